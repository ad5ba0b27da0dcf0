"""Opening a partition's files and finding single records in them, however damaged they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
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
    open_folder,
    open_segment,
)


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
        self.searches = 0
        """How often a record was looked for by a pass over a segment, as bisection could not tell."""

    def close(self) -> None:
        """Close the folder."""
        os.close(self.dir_fd)

    @contextmanager
    def opened(self, name: SegmentName | str) -> Iterator[int]:
        """Open a segment. Raises `RootError`, or FileNotFoundError."""
        fd = open_segment(self.dir_fd, name, shown=self.path)
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
        return str(self.path / str(name))

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
        for other in reversed([p for p in self.chain.pieces if p.name <= piece.name]):
            if other.header is not None and other.header.seq > seq:
                continue
            with self.opened(other.name) as fd:
                end = before if other.name == piece.name else (file_size(fd) if other.size is None else other.size)
                found = self._find(fd, seq, end, end)
                if found is not None:
                    return found.decode()
        return None

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
