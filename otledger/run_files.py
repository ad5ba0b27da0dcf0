"""The files of a segment's index: runs (runs.py) appended under a lock, read without one.

`<segment>.runs` has whole runs, `<segment>.tail` the shorter ones that follow them until they make a whole one.
What does not read as a run ends a file there, and is cut off by whoever appends next.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from otledger.folder import write_all
from otledger.runs import Damaged, Run, Stamp
from otledger.segment import CACHE, Piece, open_folder, open_segment, pread

FOLDER = "index"
LOCK = "lock"
MIN_FREE = 64 << 20
"""Free space, in bytes, that is left to the journal."""
SETTLED = 10_000_000_000
"""How long ago, in nanoseconds, a segment must have changed for its size and time to belong together."""


Heads = dict[str, tuple[tuple[int, ...], list[Run]]]
"""For the name of a file of runs: what tells whether it is as it was, and its runs."""


class RunFile:
    """One file of runs that follow each other. It need not be there."""

    def __init__(self, folder: int, name: str, heads: Heads) -> None:
        self._folder = folder
        self._name = name
        self._heads = heads
        self._fd = -1
        self.runs: list[Run] = []
        self.size = 0

    def load(self, start: int) -> None:
        """Read the heads of the runs that cover a segment from `start` on, as far as there is no gap."""
        self.close()
        try:
            self._fd = open_segment(self._folder, self._name)
        except FileNotFoundError:
            return
        there = os.fstat(self._fd)
        self.size = there.st_size
        identity = (there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns, start)
        known = self._heads.get(self._name)
        if known is None or known[0] != identity:
            known = self._heads[self._name] = identity, list(self._read_heads(start))
        self.runs = known[1].copy()

    def _read_heads(self, start: int) -> Iterator[Run]:
        end = 0
        while (run := Run.read(self.read, end)) is not None and run.start == start:
            end += run.length
            if end > self.size:
                break
            start = run.end
            yield run

    @property
    def _end(self) -> int:
        return sum(run.length for run in self.runs)

    def read(self, size: int, offset: int) -> bytes:
        """Give so many bytes of the file, fewer at its end."""
        return pread(self._fd, size, offset) if self._fd >= 0 else b""

    def append(self, run: bytes, mode: int) -> None:
        """Write a run behind those that were loaded. Under the lock. Raises OSError; then the file is as it was."""
        room = os.fstatvfs(self._folder)
        if room.f_bavail * room.f_frsize < MIN_FREE + len(run):
            raise OSError(errno.ENOSPC, f"less than {MIN_FREE >> 20} MiB would be left for the ledger itself")
        end = self._end
        fd = self._open_to_write(os.O_CREAT, mode)
        try:
            os.ftruncate(fd, end)
            os.lseek(fd, end, os.SEEK_SET)
            try:
                write_all(fd, run)
            except OSError:
                os.ftruncate(fd, end)
                raise
        finally:
            os.close(fd)

    def mend(self) -> None:
        """Look at every byte, and cut the file off where it is damaged. Under the lock."""
        for at, run in enumerate(self.runs):
            try:
                run.check(self.read)
            except Damaged:
                del self.runs[at:]
                break
        if self._end == 0:
            self.remove()
        elif self._end < self.size:
            fd = self._open_to_write()
            try:
                os.ftruncate(fd, self._end)
            finally:
                os.close(fd)

    def remove(self) -> None:
        """Delete the file. Under the lock. Whoever reads it at this moment reads on in what it has opened."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._name, dir_fd=self._folder)
        self.close()

    def _open_to_write(self, flags: int = 0, mode: int = 0o600) -> int:
        flags |= os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(self._name, flags, mode, dir_fd=self._folder)

    def close(self) -> None:
        """Forget what was read."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self.size, self.runs = -1, 0, []


class SegmentIndex:
    """The index of one segment, open at `fd`; in the folder that `open_index` gives."""

    def __init__(self, folder: int, fd: int, piece: Piece, heads: Heads | None = None) -> None:
        self.fd = fd
        self.piece = piece
        self.settled = True
        """False while it cannot be told whether a write is under way or bytes were changed in place."""
        self._there = os.fstat(fd)
        self._mode = stat.S_IMODE(self._there.st_mode) & 0o666
        heads = {} if heads is None else heads
        self.whole = RunFile(folder, f"{piece.name}.runs", heads)
        self.tail = RunFile(folder, f"{piece.name}.tail", heads)

    def __enter__(self) -> SegmentIndex:
        self.load()
        return self

    def __exit__(self, *_: object) -> None:
        self.whole.close()
        self.tail.close()

    @property
    def limit(self) -> int:
        """How many bytes of the segment count."""
        size = self._there.st_size
        return size if self.piece.size is None else min(size, self.piece.size)

    @property
    def covered(self) -> int:
        """How many bytes of the segment it covers, from the beginning."""
        return next((file.runs[-1].end for file in (self.tail, self.whole) if file.runs), 0)

    def runs(self) -> Iterator[tuple[RunFile, Run]]:
        """Give all runs and the files that they stand in, in order."""
        for file in (self.whole, self.tail):
            for run in file.runs:
                yield file, run

    def load(self) -> None:
        """Read anew what there is, and keep what fits the segment as it is now."""
        self._there = os.fstat(self.fd)
        self.settled = True
        self.whole.load(0)
        self.tail.load(self.whole.runs[-1].end if self.whole.runs else 0)
        for file in (self.tail, self.whole):
            while file.runs and not self._fits(file.runs[-1]):
                file.runs.pop()
            if file.runs:
                if self._is_changed(file.runs[-1].stamp):
                    self.tail.runs, self.whole.runs = [], []
                    # A write sets the time before the size.
                    self.settled = time.time_ns() - self._there.st_mtime_ns > SETTLED
                return

    def _fits(self, run: Run) -> bool:
        return run.end <= self._there.st_size and run.stamp.probe == _probe(self.fd, run.end)

    def _is_changed(self, stamp: Stamp) -> bool:
        """Tell whether bytes were changed in place: the size is the same, and the time is not."""
        return stamp.size == self._there.st_size and stamp.mtime != self._there.st_mtime_ns

    def stamp(self, end: int) -> Stamp:
        """Give what will tell whether the segment is still the one that was loaded for."""
        return Stamp(self._there.st_size, self._there.st_mtime_ns, _probe(self.fd, end))

    def append(self, run: bytes, *, whole: bool) -> None:
        """Write a run that follows what is covered, and load it. Under the lock. Raises OSError."""
        if whole:
            # It has none that count; what else may stand in it must not come to count.
            self.tail.remove()
        (self.whole if whole else self.tail).append(run, self._mode)
        self.load()


def _probe(fd: int, end: int) -> bytes:
    """Give a hash of a segment's beginning and of the line that ends at `end`."""
    last = min(end, 256)
    return blake2b(pread(fd, 512, 0) + pread(fd, last, end - last), digest_size=16).digest()


@contextlib.contextmanager
def open_index(path: Path, *, make: bool = False) -> Iterator[int]:
    """Open the folder of a partition's index, made where it is missing if `make`. Raises OSError, `RootError`."""
    if make:
        above = open_folder(path)
        try:
            _make_folder(CACHE, above)
            _make_folder(f"{CACHE}/{FOLDER}", above)
        finally:
            os.close(above)
    folder = open_folder(f"{path}/{CACHE}/{FOLDER}")
    try:
        yield folder
    finally:
        os.close(folder)


def _make_folder(name: str, above: int) -> None:
    there = os.fstat(above)
    try:
        os.mkdir(name, stat.S_IMODE(there.st_mode) & 0o777, dir_fd=above)
    except FileExistsError:
        return
    if os.geteuid() == 0:
        # Whoever the ledger belongs to must be able to go on with it.
        os.chown(name, there.st_uid, there.st_gid, dir_fd=above, follow_symlinks=False)


@contextlib.contextmanager
def locked(folder: int, patience: float = 0.0) -> Iterator[bool]:
    """Hold the lock of an index. Gives False if another has it, and after `patience` seconds still does."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(LOCK, flags, stat.S_IMODE(os.fstat(folder).st_mode) & 0o666, dir_fd=folder)
    try:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    yield False
                    return
                time.sleep(0.02)
            else:
                yield True
                return
    finally:
        os.close(fd)
