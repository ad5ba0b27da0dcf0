"""Which bytes of which segments a query reads, fixed once, so that all its scans see the same ledger."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from otledger.errors import RootError
from otledger.segment import (
    Piece,
    SegmentName,
    file_size,
    last_line,
    list_machines,
    open_folder,
    open_segment,
    read_chain,
)


@dataclass(frozen=True, slots=True)
class Extent:
    """The bytes of one segment that count."""

    machine: str
    folder: Path
    """The machine's partition."""
    segment: SegmentName
    end: int
    """How many bytes count. The last of them may be of a torn line."""
    closed: bool
    """Whether it has a successor, so that nothing is appended to it any more."""
    chained: bool

    @property
    def path(self) -> Path:
        """The segment's file."""
        return self.folder / str(self.segment)

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Open the file for reading. Raises `RootError` where it is gone."""
        folder = open_folder(self.folder)
        try:
            fd = open_segment(folder, self.segment, shown=self.folder)
        except FileNotFoundError:
            why = f"{self.path} was there a moment ago and is not any more; run it again"
            raise RootError(why, path=self.path) from None
        finally:
            os.close(folder)
        try:
            yield fd
        finally:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class Seal:
    """What a cache of a segment is made from: if any of it differs, the cache is stale."""

    segment: str
    size: int
    modified: int
    """When the file was last written, in nanoseconds since the epoch."""
    last: str
    """SHA-256 of the last line that counts, its checksum included, in hex."""

    @classmethod
    def of(cls, extent: Extent, fd: int) -> Seal:
        """Give the seal of an extent whose file is open as `fd`."""
        end = min(extent.end, file_size(fd))
        last = sha256(last_line(fd, end)[1]).hexdigest()
        return cls(str(extent.segment), end, os.fstat(fd).st_mtime_ns, last)


def extents(root: str | Path, machines: Sequence[str] | None = None) -> list[Extent]:
    """Give what counts of a ledger now, machine by machine, oldest segment first.

    What is appended later is not in it. Raises `RootError` where there is no ledger or no such machine.
    """
    root = Path(root)
    known = list_machines(root)
    found: list[Extent] = []
    for machine in known if machines is None else machines:
        if machine not in known:
            there = ", ".join(known) or "none"
            raise RootError(f"{root} has no machine {machine!r}; there are: {there}", path=root)
        found += _of_machine(machine, root / machine)
    return found


def _of_machine(machine: str, path: Path) -> Iterator[Extent]:
    folder = open_folder(path)
    try:
        chain = read_chain(folder, path)
        for piece in chain.pieces:
            end = _end(folder, path, piece)
            yield Extent(machine, path, piece.name, end, piece is not chain.pieces[-1], chain.chained)
    finally:
        os.close(folder)


def _end(folder: int, path: Path, piece: Piece) -> int:
    fd = open_segment(folder, piece.name, shown=path)
    try:
        size = file_size(fd)
        return size if piece.size is None else min(size, piece.size)
    finally:
        os.close(fd)
