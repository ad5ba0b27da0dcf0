"""Where the record of a given number stands in a partition: found by seeking, not by reading all of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from otledger.batch import check_line
from otledger.record import DECODE_ERRORS
from otledger.segment import (
    Chain,
    Piece,
    SegmentName,
    file_size,
    last_line,
    line_at,
    line_blocks,
    lines,
    open_folder,
    open_segment,
    read_chain,
)

_NEAR = 1 << 16
"""Bytes below which reading on is quicker than another bisection."""


@dataclass(frozen=True, slots=True)
class Place:
    """A record, and where its line begins."""

    segment: SegmentName
    offset: int
    seq: int
    checksum: str
    line: bytes


@dataclass(frozen=True, slots=True)
class Stretch:
    """Lines that follow each other in a segment, all of them whole."""

    segment: SegmentName
    offset: int
    """Where the first begins."""
    lines: list[bytes]


class Partition:
    """One machine's segments as they were when it was opened. Holds the folder open; made by `open_partition`."""

    def __init__(self, path: Path, folder: int, chain: Chain) -> None:
        self.path = path
        self.machine = path.name
        self.chain = chain
        self._folder = folder

    def at(self, segment: str, offset: int) -> Place | None:
        """Give the record whose line begins there, or None where there is none, or none that counts."""
        piece = self._piece(segment)
        if piece is None:
            return None
        with self._open(piece) as (fd, end):
            # A line begins behind the end of another; what begins elsewhere is a part of one.
            if offset >= end or (offset and os.pread(fd, 1, offset - 1) != b"\n"):
                return None
            return self._place(piece, offset, line_at(fd, offset, end))

    def find(self, seq: int) -> Place | None:
        """Give the record with this number, or None. Of several (a fork) it is the first."""
        chosen = None
        for piece in self.chain.pieces:
            first = self._first_seq(piece)
            if first is not None and first <= seq:
                chosen = piece
        if chosen is None:
            return None
        with self._open(chosen) as (fd, end):
            return self._bisect(chosen, fd, end, seq)

    def first(self) -> int | None:
        """Give the first number that there is; None where there are no records."""
        return next((seq for seq in map(self._first_seq, self.chain.pieces) if seq is not None), None)

    def last(self) -> int | None:
        """Give the last number that there is; None where there are no records."""
        for piece in reversed(self.chain.pieces):
            with self._open(piece) as (fd, end):
                while end > 0:
                    end, line = last_line(fd, end)
                    seq = self._seq(line)
                    if seq is not None:
                        return seq
        return None

    def stretches(self, after: Place | None = None) -> Iterator[Stretch]:
        """Give all lines from behind a record on, or from the beginning, that were whole when each was opened."""
        for piece in self.chain.pieces:
            if after is not None and piece.name < after.segment:
                continue
            start = after.offset + len(after.line) if after is not None and piece.name == after.segment else 0
            with self._open(piece) as (fd, end):
                if end <= start:
                    continue
                for block in line_blocks(fd, start, end):
                    whole = block if block[-1].endswith(b"\n") else block[:-1]
                    if whole:
                        yield Stretch(piece.name, start, whole)
                    start += sum(map(len, block))

    def _piece(self, segment: str) -> Piece | None:
        return next((piece for piece in self.chain.pieces if str(piece.name) == segment), None)

    @contextmanager
    def _open(self, piece: Piece) -> Iterator[tuple[int, int]]:
        """Give a descriptor and how many bytes count. A writer may append: what it adds later is left for later."""
        fd = open_segment(self._folder, piece.name, shown=self.path)
        try:
            size = file_size(fd)
            yield fd, size if piece.size is None else min(size, piece.size)
        finally:
            os.close(fd)

    def _first_seq(self, piece: Piece) -> int | None:
        if piece.header is not None:
            return piece.header.seq
        with self._open(piece) as (fd, end):
            return next((seq for seq in (self._seq(line) for _, line in lines(fd, 0, end)) if seq is not None), None)

    def _bisect(self, piece: Piece, fd: int, end: int, seq: int) -> Place | None:
        low, high = 0, end
        while high - low > _NEAR:
            middle = (low + high) // 2
            found = self._next_readable(fd, middle, high)
            if found is None or found[1] > seq:
                high = middle + 1
            else:
                low = found[0]
        # The line may begin before `high` and go on beyond it.
        for offset, line in lines(fd, low, end):
            number = self._seq(line)
            if number == seq:
                return self._place(piece, offset, line)
            if offset >= high and number is not None:
                return None
        return None

    def _next_readable(self, fd: int, start: int, high: int) -> tuple[int, int] | None:
        """Give offset and number of the first record that begins after `start` and before `high`."""
        for index, (offset, line) in enumerate(lines(fd, start)):
            if offset >= high:
                return None
            seq = self._seq(line) if index else None
            if seq is not None:
                return offset, seq
        return None

    def _seq(self, line: bytes) -> int | None:
        if not line.endswith(b"\n"):
            return None
        if self.chain.chained:
            tail = check_line(line)
            return None if tail is None else tail.seq
        return _number(line)

    def _place(self, piece: Piece, offset: int, line: bytes) -> Place | None:
        seq = self._seq(line)
        return None if seq is None else Place(piece.name, offset, seq, fingerprint(line, self.chain.chained), line)


@contextmanager
def open_partition(root: Path, machine: str) -> Iterator[Partition | None]:
    """Open a machine's partition; None where there is none."""
    path = root / machine
    try:
        folder = open_folder(path)
    except FileNotFoundError:
        yield None
        return
    try:
        yield Partition(path, folder, read_chain(folder, path))
    finally:
        os.close(folder)


def fingerprint(line: bytes, chained: bool = True) -> str:
    """Give a line's own checksum; of an evledger line, which has none, the SHA-256 of its bytes."""
    return f"sha256:{line[-67:-3].decode('latin-1') if chained else hashlib.sha256(line).hexdigest()}"


class _Numbered(msgspec.Struct):
    seq: int


_decode_number = msgspec.json.Decoder(_Numbered).decode


def _number(line: bytes) -> int | None:
    try:
        return _decode_number(line).seq
    except DECODE_ERRORS:
        return None
