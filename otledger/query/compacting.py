"""Makes the skeletons of closed segments, in bounded memory, and has them made in the background.

`python -m otledger.query.compacting ROOT` is the background's program: it says nothing, and gives way to all others.
"""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from otledger.errors import FormatError, LedgerError, RootError
from otledger.folder import write_all
from otledger.hooks import Progress
from otledger.query import rows, skeleton
from otledger.query.extents import Extent, Seal, extents
from otledger.query.needs import needed
from otledger.query.skeleton import METADATA, VERSION, Fault, Origin
from otledger.segment import CACHE, open_folder

GROUP_ROWS = 32_768
"""Rows that are read and written at a time."""
MAX_FAULTS = 1000
"""A segment with more lines that are no records than this gets no skeleton: it is damaged, and read as it is."""
LOCK = "compact.lock"
_WORTH = 4 << 20
"""Bytes of a closed segment from which on a skeleton is made in the background."""


@dataclass(frozen=True, slots=True)
class Compacted:
    """A closed segment and its skeleton."""

    machine: str
    segment: str
    bytes: int
    """The bytes of the segment that count."""
    skeleton: int
    """The bytes of the skeleton; 0 where none is made."""
    made: bool
    """Whether it was made now, and not there already."""


def compact(
    root: str | Path, *, machines: Sequence[str] | None = None, progress: Progress | None = None
) -> Iterator[Compacted]:
    """Make the skeletons that are missing or stale, segment by segment; those of others are left as they are.

    Writers and readers may be at work. Raises `RootError` where the cache cannot be written, for want of space say:
    then nothing is lost, and questions are answered from the lines.
    """
    needed("pyarrow.parquet")
    closed = [extent for extent in extents(root, machines) if extent.closed]
    total, done = sum(extent.end for extent in closed), 0
    for extent in closed:
        before = done

        def tell(count: int, before: int = before) -> None:
            if progress is not None:
                progress(before + count, total)

        yield _compact(extent, tell)
        done += extent.end


def _compact(extent: Extent, tell: Callable[[int], None]) -> Compacted:
    try:
        with _locked(extent), extent.opened() as fd:
            made = skeleton.find(extent, fd) is None
            if made:
                _write(extent, fd, tell)
    except OSError as error:
        if isinstance(error, LedgerError):
            raise
        raise _refused(extent, error) from None
    size = sum(path.stat().st_size for path in skeleton.paths(extent))
    return Compacted(extent.machine, str(extent.segment), extent.end, size, made and size > 0)


def _refused(extent: Extent, error: OSError) -> RootError:
    why = "free some space (df -h)" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "see its owner and permissions"
    return RootError(
        f"{extent.folder / CACHE}: the skeleton of {extent.segment} cannot be written: {error.strerror or error};"
        f" {why}; nothing is lost: questions are answered from the lines",
        path=extent.folder / CACHE,
    )


@contextmanager
def _locked(extent: Extent) -> Iterator[None]:
    """Make the folder of caches, and keep others from making the same skeletons."""
    folder = open_folder(extent.folder)
    try:
        mode = os.fstat(folder).st_mode & 0o777
        with suppress(FileExistsError):
            os.mkdir(CACHE, mode, dir_fd=folder)
        cache = open_folder(CACHE, dir_fd=folder, shown=extent.folder / CACHE)
    finally:
        os.close(folder)
    try:
        fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode & 0o666, dir_fd=cache)
    finally:
        os.close(cache)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _write(extent: Extent, fd: int, tell: Callable[[int], None]) -> None:
    """Write the skeleton beside the others, and give it its name once it is whole."""
    seal = Seal.of(extent, fd)
    old = skeleton.paths(extent)
    part = extent.folder / CACHE / f"{extent.segment}.{os.getpid()}.part"
    try:
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, os.fstat(fd).st_mode & 0o666)
        try:
            sink = _Sink(file)
            complete = _write_rows(extent, fd, seal, sink, tell)
        finally:
            os.close(file)
        # What was written while it was read is in neither the old seal nor the skeleton.
        if complete and Seal.of(extent, fd) == seal:
            os.replace(part, skeleton.path_for(extent, sink.digest))
            old = [path for path in old if path != skeleton.path_for(extent, sink.digest)]
    finally:
        part.unlink(missing_ok=True)
    for path in old:
        path.unlink(missing_ok=True)


def _write_rows(extent: Extent, fd: int, seal: Seal, sink: _Sink, tell: Callable[[int], None]) -> bool:
    """Write the rows and where they come from. Gives False where the segment is too damaged for it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from otledger.query import arrow

    faults: list[Fault] = []

    def note(fault: FormatError) -> None:
        reason = str(fault).partition(": not a record: ")[2].partition("; see what is wrong")[0]
        faults.append(Fault(fault.offset or 0, reason))

    schema = arrow.schema(arrow.STORED)
    waiting: list[Any] = []
    count = waits = 0
    with pa.PythonFile(sink, mode="w") as out, pq.ParquetWriter(out, schema, **_SETTINGS) as writer:
        for block in rows.blocks(extent, fd, on_fault=note):
            if len(faults) > MAX_FAULTS:
                return False
            waiting.append(arrow.batch(block, arrow.STORED))
            count, waits = count + len(block), waits + len(block)
            if waits >= GROUP_ROWS:
                writer.write_table(pa.Table.from_batches(waiting), row_group_size=waits)
                waiting, waits = [], 0
            tell(block.offsets[-1])
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting))
        origin = Origin(VERSION, seal, count, tuple(faults))
        writer.add_key_value_metadata({METADATA: msgspec.json.encode(origin)})
    return True


_DELTA = ("seq", "time", "offset", "size", "start_ns", "end_ns")
_WORDS = ["machine", "type", "source", "subject", "name", "kind", "status", "segment"]
_SETTINGS = {
    "compression": "zstd",
    "use_dictionary": [*_WORDS, "ipc_hash", "trace_id", "parent_span_id"],
    "column_encoding": dict.fromkeys(_DELTA, "DELTA_BINARY_PACKED"),
    "write_statistics": ["time", "seq", "type", "offset"],
}


class _Sink:
    """A file that is written from its beginning to its end, with the digest of what was written."""

    closed = False

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._hash = sha256()
        self._at = 0

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: Any) -> int:
        content = bytes(data)
        self._hash.update(content)
        write_all(self._fd, content)
        self._at += len(content)
        return len(content)

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        """All is with the kernel already."""

    def close(self) -> None:
        self.closed = True


# In the background


def compact_soon(root: Path, missing: Sequence[Extent]) -> bool:
    """Have skeletons made by a process of its own, if some are missing that are worth it. Tells whether it does."""
    if not any(extent.end >= _WORTH for extent in missing):
        return False
    if not all(os.access(extent.folder, os.W_OK) for extent in missing):
        return False
    command = [sys.executable, "-m", "otledger.query.compacting", str(root.absolute())]
    null = subprocess.DEVNULL
    with suppress(OSError):
        process = subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)
        # It may outlive this process. While this one lives, somebody has to take note of its end.
        threading.Thread(target=process.wait, daemon=True).start()
        return True
    return False


def main(root: str) -> None:
    """Make what is missing under a root, at the lowest priority."""
    with suppress(OSError):
        os.nice(19)
    with suppress(LedgerError, OSError):
        for _ in compact(root):
            pass


if __name__ == "__main__":
    main(sys.argv[1])
