"""Reading records: of one machine by `seq`, of several merged by time, in bounded memory."""

from __future__ import annotations

import asyncio
import heapq
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from otledger.batch import MAX_LINE
from otledger.errors import FormatError, RootError
from otledger.filter import Filter
from otledger.hooks import OnFault, Progress
from otledger.index import Index, Range, query_of
from otledger.keyring import Keyring
from otledger.lookups import Lookups
from otledger.record import DECODE_ERRORS, Record, decode
from otledger.replayed import ReplayedSpan, maybe_span_in
from otledger.segment import (
    BLOCK,
    Chain,
    Piece,
    SegmentName,
    file_size,
    line_blocks,
    lines_with,
    list_machines,
    open_folder,
    open_segment,
    read_chain,
)

if TYPE_CHECKING:
    from otledger.follow import Cursor, Follower
    from otledger.query.sql import Result
    from otledger.run_files import Heads

R = TypeVar("R", Record, ReplayedSpan)
T = TypeVar("T")

_SOME = 256
"""Lines that are looked for at a time in an event loop."""


@dataclass(frozen=True, slots=True)
class _Source:
    """A partition whose records are read."""

    machine: str
    path: Path
    chain: Chain


class Reader(Lookups):
    """Reads the ledger under `root`. Takes no lock of it, and may run beside any writer.

    What names a trace, a turn, a span, an event or a time is looked up in an index (otledger/index.py), which is kept
    in the partitions' `.cache` as it is needed; nothing else is written, and with `index=False` nothing at all.
    `progress` is told of each reading how many bytes of the ledger were read or passed over, of how many.

    Records whose data is encrypted give it in plain where the key is in the folder `keys`, by default `OTLEDGER_KEYS`
    or this user's folder of keys. A key is looked for once: what is shredded later is seen by the next Reader.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        index: bool = True,
        progress: Progress | None = None,
        keys: str | Path | None = None,
    ) -> None:
        self.root = Path(root)
        self._opener = Keyring(keys)
        self._index = index
        self._progress = progress
        self._heads: dict[str, Heads] = {}

    def machines(self) -> list[str]:
        """Give the names of the machines. Raises `RootError` where there is no ledger."""
        return list_machines(self.root)

    def records(
        self,
        filter: Filter | None = None,
        *,
        machines: Sequence[str] | None = None,
        on_fault: OnFault | None = None,
        limit: int | None = None,
    ) -> Iterator[Record]:
        """Iterate over the records that meet `filter`: by `seq` within a machine, machines merged by time.

        At most the first `limit` of them.
        A torn last line is no record and is passed over: its writer may be at work. Any other line that is no
        record raises `FormatError` with its place, or is handed to `on_fault` and passed over.
        """
        found = self._read(decode, filter, machines, on_fault, self._opener)
        return found if limit is None else islice(found, limit)

    def span_records(
        self, *, machines: Sequence[str] | None = None, on_fault: OnFault | None = None
    ) -> Iterator[ReplayedSpan]:
        """Iterate over the start and end records of spans, in the order of `records`, as fast as can be."""
        return self._read(maybe_span_in, None, machines, on_fault)

    def _read(
        self,
        decode: Callable[[bytes], R | None],
        filter: Filter | None,
        machines: Sequence[str] | None,
        on_fault: OnFault | None,
        opener: Keyring | None = None,
    ) -> Iterator[R]:
        sources = list(self._sources(machines))
        passed = None if self._progress is None else _Passed(self._progress, sources)
        take = _Take(decode, filter, on_fault, opener)
        streams = [self._of(take, source, filter, passed) for source in sources]
        return streams[0] if len(streams) == 1 else heapq.merge(*streams, key=_by_time)

    async def arecords(
        self,
        filter: Filter | None = None,
        *,
        machines: Sequence[str] | None = None,
        on_fault: OnFault | None = None,
        limit: int | None = None,
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
        given = 0
        while heap and (limit is None or given < limit):
            _, at, record = heap[0]
            yield record
            given += 1
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

        return follow(self.root, cursor, filter, machines=machines, keys=self._opener.keys)

    def sql(
        self,
        query: str,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        machines: Sequence[str] | None = None,
        **limits: Any,
    ) -> Result:
        """Run one SELECT over the views events, spans, traces, turns and machines; see `otledger.query.sql.sql`.

        Needs `otledger[sql]`. `limits` are its `timeout`, `memory`, `cache` and `progress`.
        """
        # A door to the layer above, so that a reader is all that a user has to hold.
        from otledger.query.sql import sql

        return sql(self.root, query, parameters, machines=machines, **limits)

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

    def _of(self, take: _Take[R], source: _Source, filter: Filter | None, passed: _Passed | None) -> Iterator[R]:
        places = self._places(source, filter)
        rare = filter.rare if filter is not None else None
        for piece in source.chain.pieces:
            fd = _open(source, piece)
            try:
                # Up to where it ends now: of a line that is being written the rest alone would be none.
                now = file_size(fd) if piece.size is None else piece.size
                for offset, end in places(fd, piece):
                    end = now if end is None else end
                    if rare is not None:
                        for at, line in lines_with(fd, rare, offset, end):
                            if passed is not None:
                                passed.tell(source, piece, at)
                            yield from take.from_block(source, piece, at, [line])
                        continue
                    for block in line_blocks(fd, offset, end):
                        if passed is not None:
                            passed.tell(source, piece, offset)
                        yield from take.from_block(source, piece, offset, block)
                        offset += sum(map(len, block))
                if passed is not None:
                    passed.tell(source, piece, now)
            finally:
                os.close(fd)

    def _places(self, source: _Source, filter: Filter | None) -> Callable[[int, Piece], Sequence[Range]]:
        """Give what tells which bytes of a segment, open at a descriptor, must be read."""
        query = query_of(filter) if self._index and source.chain.chained else None
        if query is None:
            return lambda _, piece: [(0, piece.size)]
        index = Index(source.path, heads=self._heads.setdefault(source.machine, {}))
        return lambda fd, piece: index.ranges(fd, piece, query)

    async def _of_async(
        self, source: _Source, filter: Filter | None, on_fault: OnFault | None
    ) -> AsyncIterator[Record]:
        import aiofiles

        take = _Take(decode, filter, on_fault, self._opener)
        places = self._places(source, filter)
        rare = filter.rare if filter is not None else None
        for piece in source.chain.pieces:
            fd = await asyncio.to_thread(_open, source, piece)
            async with aiofiles.open(fd, "rb", buffering=0) as file:
                for offset, end in await asyncio.to_thread(places, fd, piece):
                    if rare is not None:
                        found = lines_with(fd, rare, offset, end)
                        while some := await _in_thread(lambda found=found: list(islice(found, _SOME))):  # type: ignore[misc]
                            for at, line in some:
                                for record in take.from_block(source, piece, at, [line]):
                                    yield record
                        continue
                    await file.seek(offset)
                    splitter = Splitter(None if end is None else end - offset, offset)
                    while not splitter.done and (block := await file.read(BLOCK)):
                        lines = list(splitter.feed(block))
                        if lines:
                            for record in take.from_block(source, piece, lines[0][0], [line for _, line in lines]):
                                yield record


async def _in_thread(call: Callable[[], T]) -> T:
    """Call in a thread. Whoever is cancelled meanwhile waits for it: it reads from a file that is then closed."""
    task = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


class _Passed:
    """Tells how far a reading has come, over all its machines."""

    def __init__(self, call: Progress, sources: Sequence[_Source]) -> None:
        self._call = call
        self._before: dict[tuple[str, SegmentName], int] = {}
        self._at: dict[str, int] = {}
        self._all = 0
        for source in sources:
            before = 0
            for piece in source.chain.pieces:
                self._before[source.machine, piece.name] = before
                before += _size(source, piece)
            self._all += before

    def tell(self, source: _Source, piece: Piece, offset: int) -> None:
        """Tell that a machine is read up to an offset of a segment."""
        self._at[source.machine] = self._before[source.machine, piece.name] + offset
        done = sum(self._at.values())
        # A ledger may grow meanwhile.
        self._all = max(self._all, done)
        self._call(done, self._all)


def _size(source: _Source, piece: Piece) -> int:
    if piece.size is not None:
        return piece.size
    try:
        return os.stat(source.path / str(piece.name)).st_size
    except OSError:
        return 0


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


class _Take(Generic[R]):
    """Turns lines into the records that are wanted; `decode` makes them, and gives None for what is not wanted.

    `opener`: what is handed to records that may be encrypted.
    """

    def __init__(
        self,
        decode: Callable[[bytes], R | None],
        filter: Filter | None,
        on_fault: OnFault | None,
        opener: Keyring | None,
    ) -> None:
        self._decode: Callable[[bytes], R | None] = decode
        self._opener = opener
        self._line_test: Callable[[bytes], bool] | None = None
        self._record_test: Callable[[Any], bool] | None = None
        if filter is not None:
            self._line_test, self._record_test = filter.compile()
        self._on_fault = on_fault

    def from_block(self, source: _Source, piece: Piece, start: int, block: list[bytes]) -> Iterator[R]:
        """Give the wanted records of lines that follow each other from offset `start` on."""
        decode, line_test, record_test, opener = self._decode, self._line_test, self._record_test, self._opener
        places = _Places(start, block)
        if block and not block[-1].endswith(b"\n"):
            # Torn, or a piece of a line that is too long.
            if len(block[-1]) > MAX_LINE:
                self._fault(source, piece, places, block[-1], ValueError("the line is too long"))
                places = _Places(start, block)
            block = block[:-1]
        record: Any
        for line in block if line_test is None else filter(line_test, block):
            try:
                record = decode(line)
            except DECODE_ERRORS as error:
                self._fault(source, piece, places, line, error)
                continue
            if record is None:
                continue
            if record_test is None or record_test(record):
                if opener is not None and record.subject is not None:
                    record.opener = opener
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


def _by_time(record: Record | ReplayedSpan) -> int:
    return record.time_ns
