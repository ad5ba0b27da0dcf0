"""Opening a partition's files and finding single records in them, however damaged they are."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from otledger.batch import Tail, check_line, checksum_of
from otledger.chunks import MAX_FAULTS
from otledger.segment import (
    Chain,
    Piece,
    SegmentName,
    file_size,
    find_back,
    find_seq,
    line_at,
    lines,
    open_folder,
    open_segment,
    pread,
)

_NEAR = 1 << 16
"""Bytes before a checkpoint that are read at once."""


class Files:
    """A partition's folder, open as long as it is verified."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dir_fd = open_folder(path)
        self.chain = Chain()
        self.sizes: dict[SegmentName, int] = {}
        """How many bytes each segment had when the lock was held."""
        self.first_bad: dict[str, int] = {}
        """Where in a segment the first line is that is not as it should be."""
        self.until_closed = ExitStack()
        self.elsewhere: dict[str, Path] = {}
        """Where the segments are that are not in the folder."""
        self.away: list[tuple[int, int]] = []
        """Numbers of records that are not here: from the first up to, and without, the second."""
        self.searches = 0
        """How often a record was looked for by a pass over a segment, as bisection could not tell."""

    def close(self) -> None:
        """Close the folder, and forget what was fetched from elsewhere."""
        self.until_closed.close()
        os.close(self.dir_fd)

    @contextmanager
    def opened(self, name: SegmentName | str) -> Iterator[int]:
        """Open a segment. Raises `RootError`, or FileNotFoundError."""
        other = self.elsewhere.get(str(name))
        fd = open_segment(self.dir_fd, str(other) if other is not None else name, shown=self.path)
        try:
            yield fd
        finally:
            os.close(fd)

    def size(self, name: SegmentName) -> int:
        """Give the bytes of a segment as it is now."""
        with self.opened(name) as fd:
            return file_size(fd)

    def location(self, name: SegmentName) -> str:
        """Give the path of a segment."""
        return str(self.elsewhere.get(str(name), self.path / str(name)))

    def first_tail(self, name: SegmentName) -> Tail | None:
        """Give what a segment's first line ends in, None if that is no record."""
        with self.opened(name) as fd:
            return check_line(line_at(fd, 0))

    def is_other_record(self, file: str, before: int, seq: int) -> bool:
        """Tell whether a different record with this `seq` stands earlier in the file: not the same line twice."""
        with self.opened(file) as fd:
            other = self._find(fd, seq, before, self.first_bad.get(file, before))
            return other is not None and other != checksum_of(line_at(fd, before))

    def checksum_before(self, piece: Piece, before: int, seq: int) -> str | None:
        """Give the checksum of the last record with this `seq` before a place in a segment, None without one."""
        near = self._near(piece, before, seq)
        if near is not None:
            return near
        for other in reversed([p for p in self.chain.pieces if p.name <= piece.name]):
            if other.header is not None and other.header.seq > seq:
                continue
            with self.opened(other.name) as fd:
                end = before if other.name == piece.name else (file_size(fd) if other.size is None else other.size)
                found = self._find(fd, seq, end, end)
                if found is not None:
                    return found.decode()
        return None

    def _near(self, piece: Piece, before: int, seq: int) -> str | None:
        """Look for a record shortly before a place, where most checkpoints have it."""
        start = max(0, before - _NEAR)
        with self.opened(piece.name) as fd:
            block = pread(fd, before - start, start)
        at = block.rfind(b',"seq":%d,"prev":"' % seq)
        first, end = block.rfind(b"\n", 0, max(at, 0)) + 1, block.find(b"\n", at) + 1
        tail = check_line(block[first:end]) if at >= 0 and end and (first or not start) else None
        return tail.checksum.decode() if tail is not None and tail.seq == seq else None

    def _find(self, fd: int, seq: int, end: int, good: int) -> bytes | None:
        """Give the checksum of the last record with this `seq` before `end`; up to `good` the lines are in order."""
        place = find_seq(fd, seq, good)
        if place is not None:
            return checksum_of(place[1])
        if self.searches >= MAX_FAULTS:
            return None
        self.searches += 1
        for _, line in find_back(fd, b',"seq":%d,"prev":"' % seq, end):
            tail = check_line(line)
            if tail is not None and tail.seq == seq:
                return tail.checksum
        return None

    # Runs of records

    def records(self, pieces: Sequence[Piece], begin: int) -> Iterator[tuple[Piece, int, bytes, Tail]]:
        """Give the records from number `begin` on with their places, as long as each is the one that is due."""
        seq = begin
        for piece, after in itertools.zip_longest(pieces, pieces[1:]):
            if after is not None and after.header is not None and after.header.seq <= seq:
                continue
            with self.opened(piece.name) as fd:
                end = self.end(piece)
                first = piece.header.seq if piece.header is not None else 0
                found = (0, b"") if first >= seq else find_seq(fd, seq, end)
                for offset, line in lines(fd, found[0], end) if found is not None else ():
                    tail = check_line(line)
                    if tail is None or tail.seq != seq:
                        return
                    yield piece, offset, line, tail
                    seq += 1

    def back(self, pieces: Sequence[Piece], type: str, before: int | None = None) -> Iterator[tuple[Piece, int, bytes]]:
        """Give the lines that may be records of a type, the last first; from a place in the last segment on."""
        needle = b'"type":"' + type.encode() + b'"'
        for piece in reversed(pieces):
            end = self.end(piece) if before is None else before
            before = None
            with self.opened(piece.name) as fd:
                for offset, line in find_back(fd, needle, end):
                    yield piece, offset, line

    def is_away(self, seq: int) -> bool:
        """Tell whether the record with this number is in a segment that is not here."""
        return any(first <= seq < end for first, end in self.away)

    def end(self, piece: Piece) -> int:
        """Give how many bytes of a segment count."""
        size = self.sizes[piece.name]
        return size if piece.size is None else min(piece.size, size)

    def place_of(self, pieces: Sequence[Piece], seq: int) -> tuple[Piece, int, bytes, Tail] | None:
        """Give where the record with this `seq` is, None where it is not found."""
        return next(self.records(pieces, seq), None)
