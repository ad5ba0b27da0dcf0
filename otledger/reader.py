"""Reading records: of one machine by `seq`, of several merged by time, in bounded memory."""

from __future__ import annotations

import asyncio
import heapq
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from otledger.batch import MAX_LINE
from otledger.errors import FormatError, RootError
from otledger.filter import Filter
from otledger.record import DECODE_ERRORS, Record, decode
from otledger.segment import BLOCK, Chain, Piece, line_blocks, list_machines, open_folder, open_segment, read_chain

if TYPE_CHECKING:
    from otledger.follow import Cursor, Follower

OnFault = Callable[[FormatError], None]


@dataclass(frozen=True, slots=True)
class _Source:
    """A partition whose records are read."""

    machine: str
    path: Path
    chain: Chain


class Reader:
    """Reads the ledger under `root`. Takes no lock, writes nothing, and may run beside any writer."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def machines(self) -> list[str]:
        """Give the names of the machines. Raises `RootError` where there is no ledger."""
        return list_machines(self.root)

    def records(
        self,
        filter: Filter | None = None,
        *,
        machines: Sequence[str] | None = None,
        on_fault: OnFault | None = None,
    ) -> Iterator[Record]:
        """Iterate over the records that meet `filter`: by `seq` within a machine, machines merged by time.

        A torn last line is no record and is passed over: its writer may be at work. Any other line that is no
        record raises `FormatError` with its place, or is handed to `on_fault` and passed over.
        """
        streams = [self._of(source, filter, on_fault) for source in self._sources(machines)]
        return streams[0] if len(streams) == 1 else heapq.merge(*streams, key=_by_time)

    async def arecords(
        self,
        filter: Filter | None = None,
        *,
        machines: Sequence[str] | None = None,
        on_fault: OnFault | None = None,
    ) -> AsyncIterator[Record]:
        """Iterate as `records` does, in an event loop: the files are read in threads."""
        sources = await asyncio.to_thread(lambda: list(self._sources(machines)))
        streams = [self._of_async(source, filter, on_fault) for source in sources]
        heap: list[tuple[int, int, Record]] = []
        for at, stream in enumerate(streams):
            async for record in stream:
                heap.append((record.time_ns, at, record))
                break
        heapq.heapify(heap)
        while heap:
            _, at, record = heap[0]
            yield record
            following = await anext(streams[at], None)
            if following is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (following.time_ns, at, following))

    def follow(
        self,
        cursor: Cursor | str = "end",
        filter: Filter | None = None,
        *,
        machines: Sequence[str] | None = None,
    ) -> Follower:
        """Iterate over records as they are written, without end; see `otledger.follow.Follower`."""
        from otledger.follow import follow

        return follow(self.root, cursor, filter, machines=machines)

    def _sources(self, machines: Sequence[str] | None) -> Iterator[_Source]:
        known = self.machines()
        for machine in known if machines is None else machines:
            if machine not in known:
                there = ", ".join(known) or "none"
                raise RootError(f"{self.root} has no machine {machine!r}; there are: {there}", path=self.root)
            path = self.root / machine
            fd = open_folder(path)
            try:
                yield _Source(machine, path, read_chain(fd, path))
            finally:
                os.close(fd)

    def _of(self, source: _Source, filter: Filter | None, on_fault: OnFault | None) -> Iterator[Record]:
        take = _Take(filter, on_fault)
        for piece in source.chain.pieces:
            fd = _open(source, piece)
            try:
                offset = 0
                for block in line_blocks(fd, 0, piece.size):
                    yield from take.from_block(source, piece, offset, block)
                    offset += sum(map(len, block))
            finally:
                os.close(fd)

    async def _of_async(
        self, source: _Source, filter: Filter | None, on_fault: OnFault | None
    ) -> AsyncIterator[Record]:
        import aiofiles

        take = _Take(filter, on_fault)
        for piece in source.chain.pieces:
            fd = await asyncio.to_thread(_open, source, piece)
            async with aiofiles.open(fd, "rb", buffering=0) as file:
                splitter = Splitter(piece.size)
                while not splitter.done and (block := await file.read(BLOCK)):
                    lines = list(splitter.feed(block))
                    if lines:
                        for record in take.from_block(source, piece, lines[0][0], [line for _, line in lines]):
                            yield record


class _Places:
    """Tells where lines of a block stand in the file, asked for in their order: what is passed over is not counted."""

    def __init__(self, start: int, block: list[bytes]) -> None:
        self._lines = iter(block)
        self._offset = start

    def find(self, line: bytes) -> int:
        """Give the offset of a line, the next one that is this object."""
        for other in self._lines:
            offset = self._offset
            self._offset += len(other)
            if other is line:
                return offset
        raise ValueError("no line of the block, or asked for before")


class _Take:
    """Turns lines into the records that are wanted."""

    def __init__(self, filter: Filter | None, on_fault: OnFault | None) -> None:
        self._line_test, self._record_test = filter.compile() if filter is not None else (None, None)
        self._on_fault = on_fault

    def from_block(self, source: _Source, piece: Piece, start: int, block: list[bytes]) -> Iterator[Record]:
        """Give the wanted records of lines that follow each other from offset `start` on."""
        line_test, record_test = self._line_test, self._record_test
        places = _Places(start, block)
        if block and not block[-1].endswith(b"\n"):
            # Torn, or a piece of a line that is too long.
            if len(block[-1]) > MAX_LINE:
                self._fault(source, piece, places, block[-1], ValueError("the line is too long"))
                places = _Places(start, block)
            block = block[:-1]
        for line in block if line_test is None else filter(line_test, block):
            try:
                if not line.isascii():
                    # What the decoder passes over it does not check: payloads, members that it does not know.
                    line.decode()
                record = decode(line)
            except DECODE_ERRORS as error:
                self._fault(source, piece, places, line, error)
                continue
            record.line = line
            if record_test is None or record_test(record):
                yield record

    def _fault(self, source: _Source, piece: Piece, places: _Places, line: bytes, error: Exception) -> None:
        if not line.endswith(b"\n") and len(line) <= MAX_LINE:
            return
        offset = places.find(line)
        path = source.path / str(piece.name)
        fault = FormatError(
            f"{path}, offset {offset}: not a record: {error}; see what is wrong with: otledger verify",
            path=path,
            offset=offset,
        )
        if self._on_fault is None:
            raise fault
        self._on_fault(fault)


class Splitter:
    """Cuts blocks of a file into lines. Holds no more of a line than a line may have.

    `size` is how many bytes of the file count; None for all.
    """

    def __init__(self, size: int | None = None, offset: int = 0) -> None:
        self.offset = offset
        """Where the next line begins."""
        self._left = size
        self._carry = b""

    @property
    def done(self) -> bool:
        """Whether all bytes that count were fed."""
        return self._left == 0

    def feed(self, block: bytes) -> Iterator[tuple[int, bytes]]:
        """Give offset and bytes of each line that is whole now."""
        if self._left is not None:
            block = block[: self._left]
            self._left -= len(block)
        whole = (self._carry + block).split(b"\n")
        self._carry = whole.pop()
        for line in whole:
            yield self.offset, line + b"\n"
            self.offset += len(line) + 1
        if len(self._carry) > MAX_LINE:
            yield self.offset, self._carry
            self.offset += len(self._carry)
            self._carry = b""


def _open(source: _Source, piece: Piece) -> int:
    folder = open_folder(source.path)
    try:
        return open_segment(folder, piece.name, shown=source.path)
    finally:
        os.close(folder)


def _by_time(record: Record) -> int:
    return record.time_ns
