"""Full records as Parquet files for other engines, partitioned by machine and month, a further file each time.

    DIR/machine=<machine>/month=<YYYY-MM>/<segment>-<from>-<to>.parquet      the records of those bytes
    DIR/_cursor.json                                                         what was written so far

A file appears whole, then the cursor is moved: where that was interrupted, the next run finds the file by its name,
so that no record is lost or written twice.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from otledger.errors import FormatError, RootError
from otledger.folder import make_folder, sync_folder, write_all
from otledger.hooks import Progress
from otledger.query import rows
from otledger.query.extents import Extent, extents
from otledger.query.needs import needed
from otledger.query.rows import Block
from otledger.segment import SegmentName, last_line

CURSOR = "_cursor.json"
LOCK = "_lock"
FILE_BYTES = 256 << 20
"""Bytes of lines that a file holds, at most but for a block."""
GROUP_BLOCKS = 8
"""Blocks of some megabytes that make a row group."""


class Position(msgspec.Struct, frozen=True):
    """How far a machine was exported."""

    segment: str
    offset: int
    last: str
    """SHA-256 of the line before the offset, in hex: whether it is still the same ledger."""


class _Cursor(msgspec.Struct):
    version: int = 1
    positions: dict[str, Position] = {}


@dataclass(slots=True)
class Exported:
    """What an export did."""

    records: int = 0
    files: list[Path] = field(default_factory=list)
    faults: list[FormatError] = field(default_factory=list)
    """Lines that are no records and were passed over."""


def export_parquet(
    root: str | Path,
    destination: str | Path,
    *,
    machines: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write the records that are not in `destination` yet. The first time it is a new or an empty folder.

    The files are durable on return; the month is that of the segment, so that of append. `data` is JSON text,
    `extensions` a map of text. Raises `RootError` where the destination holds something else, lies in the ledger, is
    being written by another, cannot be written, or was made from records that are not in the ledger any more.
    """
    needed("pyarrow.parquet")
    target, found = Path(destination), extents(root, machines)
    if target.resolve().is_relative_to(Path(root).resolve()):
        raise RootError(f"{target} is inside the ledger {root}; give a path outside of it", path=target)
    try:
        with _locked(target):
            return _Export(target, found, progress).run()
    except OSError as error:
        if isinstance(error, RootError):
            raise
        why = f"{target}: cannot be written: {error.strerror or error}; see the space left and the permissions"
        raise RootError(f"{why}; running it again goes on from where it was", path=target) from None


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    if target.is_dir() and any(target.iterdir()) and not (target / LOCK).exists():
        raise RootError(f"{target} holds other things than an export; give a new folder", path=target)
    make_folder(target, 0o700)
    fd = os.open(target / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise RootError(f"{target} is being written by another export; wait for it to end", path=target) from None
    finally:
        os.close(fd)


class _Export:
    """One run."""

    def __init__(self, target: Path, found: list[Extent], progress: Progress | None) -> None:
        self._target = target
        self._extents = found
        self._progress = progress
        self._total = sum(extent.end for extent in found)
        self._done = 0
        self._cursor = self._load()
        self._report = Exported()

    def _load(self) -> _Cursor:
        path = self._target / CURSOR
        try:
            cursor = msgspec.json.decode(path.read_bytes(), type=_Cursor)
        except FileNotFoundError:
            return _Cursor()
        except msgspec.MsgspecError as error:
            why = f"{path} is no cursor of this otledger ({error}); export to a new folder"
            raise RootError(why, path=path) from None
        if cursor.version != 1:
            raise RootError(f"{path} is of version {cursor.version}; use a newer otledger", path=path)
        return cursor

    def run(self) -> Exported:
        """Write what is missing."""
        for machine in dict.fromkeys(extent.machine for extent in self._extents):
            chain = [extent for extent in self._extents if extent.machine == machine]
            self._check(machine, chain)
            for extent in chain:
                offset = self._offset(extent)
                if offset is not None:
                    with extent.opened() as fd:
                        self._extend(extent, fd, offset)
                self._done += extent.end
        return self._report

    def _check(self, machine: str, chain: list[Extent]) -> None:
        """Raise `RootError` unless what was exported of a machine is what the ledger holds there."""
        position = self._cursor.positions.get(machine)
        if position is None:
            return
        extent = next((extent for extent in chain if str(extent.segment) == position.segment), None)
        if extent is not None and extent.end >= position.offset:
            with extent.opened() as fd:
                if _last(fd, position.offset) == position.last:
                    return
        raise RootError(
            f"{self._target}: it was exported up to {machine}/{position.segment}, offset {position.offset}, and the"
            " ledger does not hold that record there any more; export to a new folder",
            path=self._target,
        )

    def _offset(self, extent: Extent) -> int | None:
        """Give where to go on in a segment, None where all of it was done."""
        position = self._cursor.positions.get(extent.machine)
        if position is None:
            return 0
        at = SegmentName.parse(position.segment)
        assert at is not None
        return None if extent.segment < at else position.offset if extent.segment == at else 0

    def _extend(self, extent: Extent, fd: int, offset: int) -> None:
        while offset < extent.end:
            reached = self._adopt(extent, fd, offset) or self._write(extent, fd, offset)
            if reached is None:
                return
            position = Position(str(extent.segment), reached, _last(fd, reached))
            self._cursor.positions[extent.machine] = position
            _replace(self._target / CURSOR, msgspec.json.encode(self._cursor) + b"\n")
            offset = reached

    def _adopt(self, extent: Extent, fd: int, offset: int) -> int | None:
        """Give where a file ends that begins at `offset`, which an interrupted run wrote; None where there is none."""
        for path in sorted(self._folder(extent).glob(f"{_stem(extent)}-{offset:012}-*.parquet")):
            end = int(path.stem.rpartition("-")[2])
            if end > extent.end or _metadata(path) != _last(fd, end):
                raise RootError(f"{path} was not written from what the ledger holds; export to a new folder", path=path)
            return end
        return None

    def _write(self, extent: Extent, fd: int, offset: int) -> int | None:
        """Write a file of the records from `offset` on. Gives where it ends, None where there are no more."""
        import pyarrow.parquet as pq

        folder = self._folder(extent)
        make_folder(folder, 0o700)
        part = folder / f".{_stem(extent)}-{offset:012}.part"
        reached, count = None, 0
        try:
            with _Opened(part) as file, pq.ParquetWriter(file, _schema(), compression="zstd") as writer:
                waiting: list[Any] = []
                for block in rows.blocks(extent, fd, offset, on_fault=self._report.faults.append):
                    waiting.append(_batch(block))
                    if len(waiting) == GROUP_BLOCKS:
                        _write_group(writer, waiting)
                    reached, count = block.offsets[-1] + len(block.lines[-1]), count + len(block)
                    if self._progress is not None:
                        self._progress(self._done + reached, self._total)
                    if reached - offset >= FILE_BYTES:
                        break
                if reached is not None:
                    _write_group(writer, waiting)
                    writer.add_key_value_metadata({b"otledger.last": _last(fd, reached)})
            if reached is None:
                return None
            path = folder / f"{_stem(extent)}-{offset:012}-{reached:012}.parquet"
            os.replace(part, path)
            _sync(folder)
        finally:
            part.unlink(missing_ok=True)
            # An empty folder says nothing.
            with suppress(OSError):
                folder.rmdir()
        self._report.records += count
        self._report.files.append(path)
        return reached

    def _folder(self, extent: Extent) -> Path:
        return self._target / f"machine={extent.machine}" / f"month={extent.segment.month}"


def _stem(extent: Extent) -> str:
    return str(extent.segment).removesuffix(".jsonl")


def _last(fd: int, end: int) -> str:
    return sha256(last_line(fd, end)[1]).hexdigest()


def _metadata(path: Path) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return bytes(pq.read_metadata(path).metadata[b"otledger.last"]).decode()
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return ""


class _Opened:
    """A new file, durable when the block ends well."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> Any:
        self._file = os.fdopen(self._fd, "wb")
        return self._file

    def __exit__(self, kind: object, *_: object) -> None:
        with self._file:
            if kind is None:
                self._file.flush()
                os.fsync(self._fd)


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(part, path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_folder(fd)
    finally:
        os.close(fd)


# Columns

_NAMES = (
    *("machine", "seq", "id", "source", "type", "time", "time_ns", "time_text", "subject", "datacontenttype"),
    *("dataschema", "ipc_hash", "traceparent", "tracestate", "trace_id", "span_id", "extensions", "data", "synced"),
    *("prev", "checksum", "segment", "offset"),
)


def _write_group(writer: Any, waiting: list[Any]) -> None:
    import pyarrow as pa

    if waiting:
        table = pa.Table.from_batches(waiting)
        writer.write_table(table, row_group_size=len(table))
        waiting.clear()


def _schema() -> Any:
    import pyarrow as pa

    from otledger.query import arrow

    text = pa.string()
    plain = {**dict.fromkeys((*arrow.WORDS, "data"), text), "time": pa.timestamp("us", "UTC")}
    fields = {**plain, "extensions": pa.map_(text, text)}
    return pa.schema([pa.field(each.name, fields.get(each.name, each.type)) for each in arrow.schema(_NAMES)])


def _batch(block: Block) -> Any:
    import pyarrow as pa

    from otledger.query import arrow

    schema = _schema()
    plain = tuple(name for name in _NAMES if name != "extensions")
    made = arrow.batch(block, plain)
    columns = {name: made.column(name).cast(schema.field(name).type) for name in plain}
    columns["extensions"] = pa.array(map(_map, block.column("extensions")), schema.field("extensions").type)
    return pa.record_batch([columns[name] for name in _NAMES], schema=schema)


def _map(extensions: str | None) -> list[tuple[str, str]] | None:
    """Give extensions as text, as CloudEvents writes them: `true`, `7`."""
    if extensions is None:
        return None
    members: dict[str, Any] = msgspec.json.decode(extensions)
    return [(k, v if isinstance(v, str) else msgspec.json.encode(v).decode()) for k, v in members.items()]
