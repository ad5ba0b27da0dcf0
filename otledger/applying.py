"""Applying one machine's lines to a projection's database, a transaction a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from otledger.errors import FormatError, ProjectionError
from otledger.filter import Filter
from otledger.places import Partition, Place, Stretch, fingerprint, open_partition
from otledger.projected import Position, Store, of_the_disk, was_commit
from otledger.record import DECODE_ERRORS, Record, decode

if TYPE_CHECKING:
    import sqlite3

Apply = Callable[["sqlite3.Connection", Record], object]
OnFault = Callable[[FormatError], None]

BATCH_RECORDS = 5_000
BATCH_BYTES = 4 << 20
"""At so much a transaction ends, and with a segment."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done with records."""

    name: str
    apply: Apply
    filter: Filter | None
    on_fault: OnFault | None


@dataclass(slots=True)
class Count:
    """How many records were read, and handed to `apply`."""

    read: int = 0
    applied: int = 0


class Stale(Exception):
    """The database does not belong to what the ledger holds now. `str` says why."""


class Elsewhere(Exception):
    """Another process went on with the database."""


def standing(partition: Partition, position: Position | None) -> Place | None:
    """Give where a position stands in the ledger, None where there is no position. Raises `Stale`."""
    if position is None:
        return None
    place = partition.at(position.segment, position.start)
    if place is None or place.seq != position.seq:
        place = partition.find(position.seq)
    if place is not None and place.checksum == position.checksum:
        return place
    raise Stale(_why_not(partition, position, place))


def _why_not(partition: Partition, position: Position, place: Place | None) -> str:
    at = f"seq {position.seq} of {position.machine}"
    if place is not None:
        return f"{at} has checksum {position.checksum[:23]}… in the database, and {place.checksum[:23]}… in the ledger"
    first, last = partition.first(), partition.last()
    if first is None or last is None:
        return f"the database is at {at}, and the ledger has no records of that machine"
    if last < position.seq:
        return f"the database is newer than the ledger: it is at {at}, and the ledger ends at seq {last}"
    if first > position.seq:
        return f"the database is older than the ledger: it is at {at}, and the ledger begins at seq {first}"
    return f"the database is at {at}, and the ledger has no such record"


def batches(stretches: Iterable[Stretch]) -> Iterator[Stretch]:
    """Join the stretches of a segment up to what one transaction takes."""
    gathered: Stretch | None = None
    size = 0
    for stretch in stretches:
        if gathered is not None and gathered.segment == stretch.segment:
            gathered.lines.extend(stretch.lines)
        else:
            if gathered is not None:
                yield gathered
            gathered, size = stretch, 0
        size += sum(map(len, stretch.lines))
        if size >= BATCH_BYTES or len(gathered.lines) >= BATCH_RECORDS:
            yield gathered
            gathered = None
    if gathered is not None:
        yield gathered


class _Met(Exception):
    """A line at which a transaction is to end: `error` is what became of it."""

    def __init__(self, index: int, error: Exception, record: Record | None = None) -> None:
        super().__init__(str(error))
        self.index = index
        self.error = error
        self.record = record


class _Loose(Exception):
    """A line does not follow the one before."""


class Run:
    """Applies the lines of one machine that follow `place`, where the database's `position` stands, batch by batch."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        partition: Partition,
        position: Position | None,
        place: Place | None,
        count: Count,
        *,
        rebuilding: bool,
    ) -> None:
        self._plan = plan
        self._line_test, self._record_test = plan.filter.compile() if plan.filter is not None else (None, None)
        self._store = store
        self._path = partition.path
        self._chained = partition.chain.chained
        self._count = count
        self._rebuilding = rebuilding
        self._position = position
        self._before = place.line[-67:-3] if place is not None and self._chained else None
        """The checksum of the line before; None where any line may follow."""

    @property
    def _machine(self) -> str:
        return self._path.name

    def take(self, batch: Stretch) -> None:
        """Apply a batch. Where a line cannot be, those before it are, and the reason is raised.

        Raises `ProjectionError`, `FormatError`, `Stale`, `Elsewhere`.
        """
        start, end = 0, len(batch.lines)
        met: _Met | None = None
        while True:
            try:
                if start < end:
                    self._transaction(batch, start, end)
            except _Met as error:
                # What precedes the line is applied once more, now without it.
                met, end = error, error.index
                continue
            if met is None:
                return
            start, end, met = self._go_on_from(batch, met), len(batch.lines), None

    def _transaction(self, batch: Stretch, start: int, end: int) -> None:
        store = self._store
        with store.transaction():
            if store.positions().get(self._machine) != self._position:
                raise Elsewhere
            with store.guarded():
                applied, before = self._apply(batch, start, end)
            position = self._last(batch, start, end)
            store.move(position)
        self._position, self._before = position, before
        self._count.read += end - start
        self._count.applied += applied

    def _apply(self, batch: Stretch, start: int, end: int) -> tuple[int, bytes | None]:
        """Apply lines; give how many were wanted, and the last one's checksum. Raises `_Met`."""
        apply, connection = self._plan.apply, self._store.connection
        line_test, record_test = self._line_test, self._record_test
        before, chained = self._before, self._chained
        applied = 0
        for index in range(start, end):
            line = batch.lines[index]
            if chained:
                if before is not None and line[-152:-88] != before:
                    raise _Met(index, _Loose())
                before = line[-67:-3]
            if line_test is not None and not line_test(line):
                continue
            try:
                record = decode(line)
            except DECODE_ERRORS as error:
                raise _Met(index, error) from None
            if record_test is None or record_test(record):
                applied += 1
                try:
                    apply(connection, record)
                except Exception as error:
                    if of_the_disk(error) is not None:
                        raise
                    raise _Met(index, error, record) from None
        return applied, before

    def _last(self, batch: Stretch, start: int, end: int) -> Position:
        line = batch.lines[end - 1]
        try:
            seq = decode(line).seq
        except DECODE_ERRORS as error:
            # A filter that looks at the bytes had passed it over.
            raise _Met(end - 1, error) from None
        offset = batch.offset + sum(map(len, batch.lines[: end - 1]))
        return Position(self._machine, seq, fingerprint(line, self._chained), str(batch.segment), offset)

    # Lines that stop it

    def _go_on_from(self, batch: Stretch, met: _Met) -> int:
        """Give the index at which to go on behind a line that was passed over, or raise what it met."""
        if met.record is not None:
            raise self._of_apply(met.record, met.error) from met.error
        if isinstance(met.error, _Loose):
            # The position may have stood in bytes that do not count any more (format, 6).
            with open_partition(self._path.parent, self._machine) as now:
                if now is None:
                    raise Stale(f"machine {self._machine} is not there any more")
                standing(now, self._position)
            self._fault(batch, met.index, "it does not follow the record before it")
            self._before = None
            return met.index
        self._fault(batch, met.index, f"not a record: {met.error}")
        self._before = None
        return met.index + 1

    def _fault(self, batch: Stretch, index: int, why: str) -> None:
        offset = batch.offset + sum(map(len, batch.lines[:index]))
        path = self._path / str(batch.segment)
        fault = FormatError(
            f"projection {self._plan.name!r}: {path}, offset {offset}: {why}; {self._kept()};"
            " see what is wrong with: otledger verify; on_fault= passes such lines over",
            path=path,
            offset=offset,
        )
        if self._plan.on_fault is None:
            raise fault
        self._plan.on_fault(fault)

    def _of_apply(self, record: Record, error: Exception) -> ProjectionError:
        what = f"apply raised {type(error).__name__}: {error}"
        if was_commit(error):
            what = "apply ended the transaction, which the projection commits itself, with the position,"
        return ProjectionError(
            f"projection {self._plan.name!r}: {what} at machine {record.machine}, seq {record.seq} ({record.type});"
            f" {self._kept()}",
            path=self._store.path,
            machine=record.machine,
            seq=record.seq,
        )

    def _kept(self) -> str:
        if self._rebuilding:
            return "the rebuild is given up, and the old database is left as it was"
        if self._position is None:
            return f"the database is left without a record of {self._machine}"
        return f"the database is kept at seq {self._position.seq} of {self._machine}"
