"""The skeleton of a ledger: what its records are without their payload, from Parquet caches where those can be trusted.

A closed segment's skeleton is `<machine>/.cache/<segment>.<digest>.parquet`. `digest` is that of the file's bytes, so
that a file that was damaged, or not written to its end, is known. Its metadata has the `Seal` of the bytes that it was
made from, the version of the cache and the lines that are no records. What does not fit is not used: then the lines
are read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from otledger.errors import ConfigurationError, FormatError
from otledger.hooks import OnFault
from otledger.query import rows
from otledger.query.extents import Extent, Seal, extents
from otledger.query.rows import COLUMNS
from otledger.segment import CACHE

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1
METADATA = b"otledger"
"""The key of a skeleton's own metadata in its file."""
DIGITS = 32
"""Hex digits of the digest in a file's name."""
_NAME = re.compile(rf"(\d{{4}}-\d\d(?:\.\d+)?\.jsonl)\.[0-9a-f]{{{DIGITS}}}\.parquet", re.ASCII)


class Fault(msgspec.Struct, frozen=True):
    """A line that is no record."""

    offset: int
    reason: str


class Origin(msgspec.Struct, frozen=True):
    """What a skeleton was made from."""

    version: int
    seal: Seal
    rows: int
    faults: tuple[Fault, ...] = ()


def columns(
    root: str | Path,
    names: Sequence[str],
    *,
    machines: Sequence[str] | None = None,
    since: int | None = None,
    until: int | None = None,
    cache: bool = True,
    on_fault: OnFault | None = None,
) -> Iterator[tuple[list[Any], ...]]:
    """Give columns of all records, block by block: a tuple with one list for each of `names`.

    Names are those of `rows.COLUMNS`: machine, seq, id, type, source, subject, time_ns, ipc_hash, trace_id, span_id,
    parent_span_id, name, kind, status, start_ns, end_ns, segment, offset, size; and, from the lines and so at their
    cost, data and others. Times are integers, nanoseconds since the epoch; None where there is no such value.
    `since` (inclusive) and `until` (exclusive) choose by `time_ns`. Records come by machine, then by `seq`.

    Closed segments are read from their skeletons where there are any and pyarrow is installed (`cache=False`: never);
    the rest from the lines, with the same outcome. A line that is no record raises `FormatError`, or is handed to
    `on_fault` and passed over.
    """
    unknown = [name for name in names if name not in COLUMNS]
    if unknown:
        raise ConfigurationError(f"there is no column {unknown[0]!r}; there are: {', '.join(COLUMNS)}")
    chosen = [*names, *(["time_ns"] if since is not None or until is not None else [])]
    for extent in extents(root, machines):
        for block in _columns_of(extent, chosen, since, until, cache, on_fault or _raise):
            if since is not None or until is not None:
                block = _between(block, since, until)
            if block[0]:
                yield block[: len(names)]


def _raise(fault: FormatError) -> None:
    raise fault


def _between(block: tuple[list[Any], ...], since: int | None, until: int | None) -> tuple[list[Any], ...]:
    low = -(1 << 63) if since is None else since
    high = 1 << 63 if until is None else until
    kept = [at for at, time in enumerate(block[-1]) if time is not None and low <= time < high]
    return block if len(kept) == len(block[-1]) else tuple([column[at] for at in kept] for column in block)


def _columns_of(
    extent: Extent, names: Sequence[str], since: int | None, until: int | None, cache: bool, on_fault: OnFault
) -> Iterator[tuple[list[Any], ...]]:
    with extent.opened() as fd:
        if cache and extent.closed and find_spec("pyarrow") is not None:
            found = find(extent, fd)
            if found is not None and found.knows(names):
                found.tell_faults(on_fault)
                for group in found.groups_between(since, until):
                    table = found.read(group, tuple(dict.fromkeys(names)))
                    yield tuple(_list_of(table.column(name)) for name in names)
                return
        yield from rows.columns(extent, fd, names, on_fault=on_fault)


def _list_of(column: pa.ChunkedArray) -> list[Any]:
    """Give a column as a list. Of a dictionary each word is made once, which is several times as fast."""
    found: list[Any] = []
    for chunk in column.chunks:
        if hasattr(chunk, "dictionary"):
            words = chunk.dictionary.to_pylist()
            found += [None if at is None else words[at] for at in chunk.indices.to_pylist()]
        else:
            found += chunk.to_pylist()
    return found


class Skeleton:
    """A skeleton file that fits its segment. Its rows come in groups, in the order of the lines."""

    def __init__(self, extent: Extent, origin: Origin, path: Path, file: Any) -> None:
        self._extent = extent
        self.origin = origin
        self._path = path
        self._file = file

    def knows(self, names: Sequence[str]) -> bool:
        """Tell whether it has all these columns."""
        from otledger.query.arrow import SKELETON

        return set(SKELETON).issuperset(names)

    def tell_faults(self, on_fault: OnFault) -> None:
        """Hand on the lines that are no records."""
        for fault in self.origin.faults:
            on_fault(rows.fault(self._extent, fault.offset, fault.reason))

    def groups(self, filter: Any = None) -> list[int]:
        """Give the groups, without those where no row can meet a filter, which is an expression of pyarrow."""
        if filter is None:
            return list(range(self._file.num_row_groups))
        import pyarrow as pa
        import pyarrow.dataset as ds
        from pyarrow.fs import LocalFileSystem

        try:
            fragment = ds.ParquetFileFormat().make_fragment(str(self._path), LocalFileSystem())
            parts = fragment.split_by_row_group(filter, schema=self._file.schema_arrow)
        except (pa.ArrowInvalid, OSError):
            # It asks for a column that is not in the file, or the file was deleted: it is open, and no harm is done.
            return self.groups()
        return sorted(group.id for part in parts for group in part.row_groups)

    def groups_between(self, since: int | None, until: int | None) -> list[int]:
        """Give the groups that may have a time from `since` on and before `until`, in nanoseconds."""
        return self.groups(_window(since, until))

    def reach(self, group: int) -> int:
        """Give about how many bytes of the segment the rows up to the end of a group stand for."""
        groups: int = self._file.num_row_groups
        return self._extent.end * (group + 1) // groups

    def read(self, group: int, names: Sequence[str]) -> pa.Table:
        """Give columns of a group, by the names of `arrow.SKELETON`."""
        from otledger.query import arrow

        stored = [name for name in names if name != "time_ns"]
        if "time_ns" in names:
            stored += [name for name in ("time", "nanos") if name not in names]
        table = self._file.read_row_group(group, stored, use_threads=False)
        if "time_ns" in names:
            table = table.append_column("time_ns", arrow.time_ns(table.column("time"), table.column("nanos")))
        return table.select(list(names))


def _window(since: int | None, until: int | None) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    window, time = None, pc.field("time")
    if since is not None:
        window = time >= pa.scalar(max(since // 1000, -(1 << 63)), pa.timestamp("us"))
    if until is not None:
        before = time <= pa.scalar(min(until // 1000, (1 << 63) - 1), pa.timestamp("us"))
        window = before if window is None else window & before
    return window


def find(extent: Extent, fd: int) -> Skeleton | None:
    """Give the skeleton of an extent whose file is open as `fd`, None where there is none that fits."""
    seal = Seal.of(extent, fd)
    for path in paths(extent):
        found = _open(extent, path)
        if found is not None and found.origin.version == VERSION and found.origin.seal == seal:
            return found
    return None


def _open(extent: Extent, path: Path) -> Skeleton | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open(path, "rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest()[:DIGITS] != path.name.split(".")[-2]:
                return None
        # The name is that of the bytes: whatever is there by now is the same.
        file = pq.ParquetFile(pa.OSFile(str(path)))
        origin = msgspec.json.decode(file.metadata.metadata[METADATA], type=Origin)
    except (pa.ArrowException, OSError, KeyError, TypeError, msgspec.MsgspecError):
        # Deleted meanwhile, or of another version.
        return None
    return Skeleton(extent, origin, path, file)


def paths(extent: Extent) -> list[Path]:
    """Give the files that may be a segment's skeleton."""
    with suppress(OSError):
        folder = extent.folder / CACHE
        found = [(path, _NAME.fullmatch(path.name)) for path in folder.iterdir()]
        return sorted(path for path, match in found if match is not None and match[1] == str(extent.segment))
    return []


def path_for(extent: Extent, digest: str) -> Path:
    """Give the name of a segment's skeleton whose bytes have this SHA-256, in hex."""
    return extent.folder / CACHE / f"{extent.segment}.{digest[:DIGITS]}.parquet"
