"""The records of a ledger as an Arrow dataset: DuckDB says which columns and rows it wants, and gets no others.

A scan takes each segment from its skeleton where that has all that is wanted, only the lines that are wanted where the
skeleton can tell which those are, and else all its lines. Needs pyarrow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from otledger.errors import FormatError, RootError
from otledger.hooks import Progress
from otledger.query import rows, skeleton
from otledger.query.arrow import ALL, batch, schema
from otledger.query.extents import Extent
from otledger.query.rows import BLOCK_BYTES, BLOCK_ROWS, Block
from otledger.record import DECODE_ERRORS, decode
from otledger.segment import pread

GAP = 1 << 16
"""Bytes between two wanted lines that are read along rather than skipped."""
MAX_FAULTS = 100
"""How many lines that are no records are listed; the rest is counted."""

# Where no column is wanted but a count, the first is taken: one that costs little.
COLUMNS = ("seq", *(name for name in ALL if name != "seq"))


class Faults:
    """The lines that are no records, each once however often it is met."""

    def __init__(self) -> None:
        self.listed: list[FormatError] = []
        self._met: set[tuple[str, int | None]] = set()

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._met)

    def __call__(self, fault: FormatError) -> None:
        place = str(fault.path), fault.offset
        if place not in self._met and len(self.listed) < MAX_FAULTS:
            self.listed.append(fault)
        self._met.add(place)


class Lines(ds.Dataset):  # type: ignore[misc]
    """All records of some extents. DuckDB calls `scanner` for each scan of a query, as it does of any dataset."""

    def __init__(self, found: Sequence[Extent], *, cache: bool = True, progress: Progress | None = None) -> None:
        self._extents = found
        self._cache = cache
        self._progress = progress
        self._total = sum(extent.end for extent in found)
        self._schema = schema(COLUMNS)
        self.faults = Faults()
        self.missing: dict[Extent, None] = {}
        """The closed segments that were read without a skeleton."""
        self.error: Exception | None = None
        """What ended a scan: DuckDB passes on no more than its text."""

    @property
    def schema(self) -> pa.Schema:
        """All columns and their types."""
        return self._schema

    def scanner(self, columns: Sequence[str] | None = None, filter: Any = None, **_: Any) -> Scan:
        """Give a scan of these columns, all by default, of the rows that meet an expression."""
        return Scan(self, COLUMNS if columns is None else tuple(columns), filter)

    def batches(self, names: Sequence[str], filter: Any) -> Iterator[pa.RecordBatch]:
        """Give columns of the rows that meet `filter`."""
        done = 0
        try:
            for extent in self._extents:
                with extent.opened() as fd:
                    for table, reached in self._tables(extent, fd, names, filter):
                        kept = table if filter is None else table.filter(filter)
                        yield from kept.select(list(names)).to_batches()
                        if self._progress is not None:
                            self._progress(done + reached, self._total)
                done += extent.end
        except Exception as error:
            self.error = self.error or error
            raise

    def _tables(self, extent: Extent, fd: int, names: Sequence[str], filter: Any) -> Iterator[tuple[pa.Table, int]]:
        """Give tables that have all rows that are wanted, and how far into the extent each reaches, in bytes."""
        asked = _names_in(filter)
        needed = tuple(dict.fromkeys((*names, *asked)))
        found = self._skeleton(extent, fd)
        if found is not None and found.knows(needed):
            found.tell_faults(self.faults)
            for group in found.groups(filter):
                yield found.read(group, needed), found.reach(group)
        elif found is not None and filter is not None and found.knows(asked):
            found.tell_faults(self.faults)
            for group in found.groups(filter):
                places = found.read(group, tuple(dict.fromkeys((*asked, "seq", "offset", "size")))).filter(filter)
                for block in _fetch(extent, fd, *(places.column(name) for name in ("seq", "offset", "size"))):
                    yield _table(block, needed)
        else:
            for block in rows.blocks(extent, fd, on_fault=self.faults):
                yield _table(block, needed)

    def _skeleton(self, extent: Extent, fd: int) -> skeleton.Skeleton | None:
        if not extent.closed or not self._cache:
            return None
        found = skeleton.find(extent, fd)
        if found is None:
            self.missing[extent] = None
        return found


class Scan:
    """One scan, as DuckDB wants it of a dataset."""

    def __init__(self, lines: Lines, names: tuple[str, ...], filter: Any) -> None:
        self._lines = lines
        self._names = names
        self._filter = filter
        self.projected_schema = schema(names)

    def to_reader(self) -> pa.RecordBatchReader:
        """Give the batches; each is made when it is asked for."""
        return pa.RecordBatchReader.from_batches(self.projected_schema, self._lines.batches(self._names, self._filter))


def _table(block: Block, names: Sequence[str]) -> tuple[pa.Table, int]:
    return pa.Table.from_batches([batch(block, names)]), block.offsets[-1]


def _names_in(filter: Any) -> tuple[str, ...]:
    """Give the columns that an expression may look at: those whose names stand anywhere in its text."""
    text = "" if filter is None else str(filter)
    return tuple(name for name in COLUMNS if re.search(rf"\b{name}\b", text))


def _fetch(extent: Extent, fd: int, seqs: Any, offsets: Any, sizes: Any) -> Iterator[Block]:
    """Give the records that stand at some places, in as few reads as makes sense."""
    places = list(zip(seqs.to_pylist(), offsets.to_pylist(), sizes.to_pylist(), strict=True))
    begin = 0
    while begin < len(places):
        end = _run_end(places, begin)
        start = places[begin][1]
        content = pread(fd, places[end - 1][1] + places[end - 1][2] - start, start)
        block = Block(extent)
        for seq, offset, size in places[begin:end]:
            line = content[offset - start : offset - start + size]
            try:
                record = decode(line)
            except DECODE_ERRORS:
                raise _changed(extent) from None
            if record.seq != seq:
                raise _changed(extent)
            block.records.append(record)
            block.lines.append(line)
            block.offsets.append(offset)
        yield block
        begin = end


def _run_end(places: list[tuple[int, int, int]], begin: int) -> int:
    """Give where the places end that are near enough to each other to be read at once."""
    start = places[begin][1]
    end = begin + 1
    while end < len(places) and end - begin < BLOCK_ROWS:
        past = places[end - 1][1] + places[end - 1][2]
        if places[end][1] - past > GAP or places[end][1] + places[end][2] - start > BLOCK_BYTES:
            break
        end += 1
    return end


def _changed(extent: Extent) -> RootError:
    return RootError(f"{extent.path} was changed while it was read; run it again", path=extent.path)
