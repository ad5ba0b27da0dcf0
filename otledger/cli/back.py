"""The newest records without reading a whole ledger, and what came after a cursor."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from otledger.batch import MAX_LINE
from otledger.errors import FormatError, RootError
from otledger.filter import Filter
from otledger.follow import Cursor, head_at, is_still_there
from otledger.hooks import OnFault
from otledger.record import Record, parse
from otledger.segment import (
    BLOCK,
    Piece,
    SegmentName,
    file_size,
    last_line,
    lines,
    list_machines,
    open_folder,
    open_segment,
    pread,
    read_chain,
)


def newest(root: Path, count: int, filter: Filter, machines: Sequence[str] | None, on_fault: OnFault) -> list[Record]:
    """Give the last `count` records that meet `filter`, in the order in which `Reader.records` gives them.

    Reads each machine's files backwards, no further than it must.
    """
    take = _Take(filter, on_fault)
    streams = [list(_last_of(root / machine, count, take)) for machine in _chosen(root, machines)]
    merged = heapq.merge(*(reversed(stream) for stream in streams), key=_by_time)
    return list(merged)[-count:] if count else []


def _last_of(path: Path, count: int, take: _Take) -> Iterator[Record]:
    for piece, offset, line in _lines_back(path):
        if count <= 0:
            return
        record = take(path, piece, offset, line)
        if record is not None:
            count -= 1
            yield record


def _lines_back(path: Path) -> Iterator[tuple[Piece, int, bytes]]:
    folder = open_folder(path)
    try:
        for piece in reversed(read_chain(folder, path).pieces):
            fd = open_segment(folder, piece.name, shown=path)
            try:
                for offset, line in lines_back(fd, file_size(fd) if piece.size is None else piece.size):
                    yield piece, offset, line
            finally:
                os.close(fd)
    finally:
        os.close(folder)


def lines_back(fd: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Give offset and bytes of each line before `end`, the last first; one that is too long comes in pieces."""
    carry = b""
    while end > 0:
        start = max(0, end - BLOCK)
        block = pread(fd, end - start, start) + carry
        # What begins before this block waits for the next.
        begin = block.find(b"\n") + 1 if start else 0
        if begin == 0 and start:
            begin = len(block) if len(block) <= MAX_LINE else 0
        carry, at = block[:begin], len(block)
        while at > begin:
            cut = block.rfind(b"\n", begin, at - 1) + 1 or begin
            yield start + cut, block[cut:at]
            at = cut
        end = start


def end_cursor(root: Path, machines: Sequence[str] | None) -> Cursor:
    """Give the cursor behind the last whole line of each machine."""
    positions = {machine: _end_of(root / machine) for machine in _chosen(root, machines)}
    return _with_heads(root, {machine: position for machine, position in positions.items() if position is not None})


def _with_heads(root: Path, positions: dict[str, tuple[str, int]]) -> Cursor:
    heads = {machine: head_at(root / machine, *position) for machine, position in positions.items()}
    return Cursor(positions, {machine: head for machine, head in heads.items() if head})


def _end_of(path: Path) -> tuple[str, int] | None:
    folder = open_folder(path)
    try:
        pieces = read_chain(folder, path).pieces
        if not pieces:
            return None
        fd = open_segment(folder, pieces[-1].name, shown=path)
        try:
            size = file_size(fd)
            start, line = last_line(fd, size)
        finally:
            os.close(fd)
        return str(pieces[-1].name), size if line.endswith(b"\n") or not line else start
    finally:
        os.close(folder)


class Since:
    """Iterates once over the records after a cursor, machines merged by time, to where the files end now.

    When that is done `cursor` is where to go on.
    """

    def __init__(
        self, root: Path, cursor: Cursor, filter: Filter, machines: Sequence[str] | None, on_fault: OnFault
    ) -> None:
        self._root = root
        self._machines = _chosen(root, machines)
        self._positions = {
            name: place if is_still_there(root / name, *place, cursor.heads.get(name, "")) else (place[0], 0)
            for name, place in cursor.positions.items()
            if name in self._machines
        }
        self._take = _Take(filter, on_fault)

    @property
    def cursor(self) -> Cursor:
        """Where the reading stands."""
        return _with_heads(self._root, dict(self._positions))

    def __iter__(self) -> Iterator[Record]:
        return heapq.merge(*(self._of(machine) for machine in self._machines), key=_by_time)

    def _of(self, machine: str) -> Iterator[Record]:
        path = self._root / machine
        segment, offset = self._positions.get(machine, ("", 0))
        here = SegmentName.parse(segment)
        folder = open_folder(path)
        try:
            for piece in read_chain(folder, path).pieces:
                if here is None or piece.name >= here:
                    start = offset if piece.name == here else 0
                    yield from self._in_piece(machine, folder, piece, start)
        finally:
            os.close(folder)

    def _in_piece(self, machine: str, folder: int, piece: Piece, start: int) -> Iterator[Record]:
        path = self._root / machine
        fd = open_segment(folder, piece.name, shown=path)
        try:
            end = start
            for offset, line in lines(fd, start, piece.size):
                if piece.size is None and not line.endswith(b"\n") and len(line) <= MAX_LINE:
                    break
                end = offset + len(line)
                record = self._take(path, piece, offset, line)
                if record is not None:
                    yield record
            self._positions[machine] = (str(piece.name), end)
        finally:
            os.close(fd)


class _Take:
    """Turns a line into a record, if it is wanted; what is no record goes to `on_fault`."""

    def __init__(self, filter: Filter, on_fault: OnFault) -> None:
        self._line_test, self._record_test = filter.compile()
        self._on_fault = on_fault

    def __call__(self, path: Path, piece: Piece, offset: int, line: bytes) -> Record | None:
        if self._line_test is not None and not self._line_test(line):
            return None
        torn = not line.endswith(b"\n")
        if torn and len(line) <= MAX_LINE:
            # Its writer may be at work.
            return None
        try:
            record = parse(line)
        except FormatError as error:
            where = path / str(piece.name)
            why = f"{where}, offset {offset}: {error}; see what is wrong with: otledger verify"
            self._on_fault(FormatError(why, path=where, offset=offset))
            return None
        return record if self._record_test is None or self._record_test(record) else None


def _chosen(root: Path, machines: Sequence[str] | None) -> list[str]:
    known = list_machines(root)
    for machine in machines or ():
        if machine not in known:
            there = ", ".join(known) or "none"
            raise RootError(f"{root} has no machine {machine!r}; there are: {there}", path=root)
    return known if machines is None else list(dict.fromkeys(machines))


def _by_time(record: Record) -> int:
    return record.time_ns
