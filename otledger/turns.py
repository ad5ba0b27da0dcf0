"""Turns: the records that share one `ipc_hash`, put together as records come, in bounded memory. Pure."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from operator import attrgetter
from typing import Any

from otledger.record import RESERVED_TYPES, Record
from otledger.replay import HOLD, Handed, in_ns
from otledger.replayed import END_TYPE, START_TYPE, ReplayedSpan, span_of
from otledger.trace import Gathered

TURN_GRACE = 60.0
"""Seconds: a language model may take long between a decision and its text."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The records linked by one `ipc_hash`: by `seq` within a machine, machines merged by time."""

    ipc_hash: str
    records: tuple[Record, ...]
    around: tuple[ReplayedSpan, ...] = ()
    """Spans that records were emitted in and that do not carry the hash themselves, where they were looked up
    (`Reader.turn`)."""
    late: bool = False
    """Records of this turn were handed on before."""
    expect: tuple[str, ...] = ()
    """The types that whoever asked for it expects."""

    @property
    def start(self) -> int:
        """The earliest time, in nanoseconds since the epoch; of a span its start."""
        return min(_start(record) for record in self.records)

    @property
    def end(self) -> int:
        """The latest time, in nanoseconds since the epoch."""
        return max(record.time_ns for record in self.records)

    @property
    def duration(self) -> int:
        """From the earliest to the latest time, in nanoseconds."""
        return self.end - self.start

    @property
    def spans(self) -> tuple[ReplayedSpan, ...]:
        """The spans of the turn, and those that its records were emitted in where they are known, by their start."""
        traces: dict[str, Gathered] = {}
        own = [span_of(record) for record in self.records if record.type in (START_TYPE, END_TYPE)]
        for span in (*own, *self.around):
            traces.setdefault(span.trace_id, Gathered()).take(span)
        found = [span for gathered in traces.values() for span in gathered.plant().spans]
        return tuple(sorted(found, key=lambda span: span.start))

    @property
    def span_ids(self) -> tuple[str, ...]:
        """The spans that the records were emitted in, each once."""
        return tuple(dict.fromkeys(record.span_id for record in self.records if record.span_id))

    @property
    def trace_ids(self) -> tuple[str, ...]:
        """The traces that are touched, each once."""
        return tuple(dict.fromkeys(record.trace_id for record in self.records if record.trace_id))

    @property
    def types(self) -> tuple[str, ...]:
        """The types of its records, each once."""
        return tuple(dict.fromkeys(record.type for record in self.records))

    def missing(self, expect: Iterable[str] | None = None) -> tuple[str, ...]:
        """Give those of the expected types, by default `self.expect`, that no record of the turn has, sorted."""
        return tuple(sorted(set(self.expect if expect is None else expect).difference(self.types)))

    def to_dict(self, expect: Iterable[str] | None = None) -> dict[str, Any]:
        """Give the turn as plain JSON values, without its records."""
        return {
            "ipc_hash": self.ipc_hash,
            "start": self.start,
            "end": self.end,
            "duration": self.duration,
            "count": len(self.records),
            "types": list(self.types),
            "missing": list(self.missing(expect)),
            "trace_ids": list(self.trace_ids),
            "span_ids": list(self.span_ids),
            "machines": list(dict.fromkeys(record.machine for record in self.records)),
            "late": self.late,
        }


def _start(record: Record) -> int:
    return span_of(record).start if record.type == END_TYPE else record.time_ns


def turn_of(records: Iterable[Record], ipc_hash: str) -> Turn | None:
    """Give the turn of an `ipc_hash`, or None if no record carries it."""
    found = in_order(record for record in records if record.ipc_hash == ipc_hash)
    return Turn(ipc_hash, found) if found else None


def in_order(records: Iterable[Record]) -> tuple[Record, ...]:
    """Give records by `seq` within a machine, machines merged by time."""
    machines: dict[str, list[Record]] = {}
    for record in records:
        machines.setdefault(record.machine, []).append(record)
    for own in machines.values():
        own.sort(key=attrgetter("seq"))
    return tuple(heapq.merge(*(machines[name] for name in sorted(machines)), key=attrgetter("time_ns")))


def is_unlinked(record: Record) -> bool:
    """Tell whether a record is an event that belongs to no turn: telemetry and otledger's own are no events."""
    return record.ipc_hash is None and not record.type.startswith(RESERVED_TYPES)


class _Growing:
    """A turn whose records may not all be there."""

    __slots__ = ("last", "late", "records", "size")

    def __init__(self, late: bool) -> None:
        self.records: list[Record] = []
        self.last = 0
        self.size = 0
        self.late = late


class Turns:
    """Puts turns together from records, which may come in any order.

    A turn is handed on when `grace` seconds have passed since its last record, on a clock that the times in the
    records drive. Records that come later are handed on as a further `Turn`, which says that it is `late`. At most
    `hold` bytes of lines are held (None: no bound): beyond that the turn that was left alone for longest is handed on.
    """

    def __init__(self, *, grace: float = TURN_GRACE, hold: int | None = HOLD, expect: Iterable[str] = ()) -> None:
        self.unlinked = 0
        """How many events without `ipc_hash` were fed."""
        self._expect = tuple(sorted(set(expect)))
        self._grace = in_ns(grace)
        self._hold = inf if hold is None else hold
        self._held: OrderedDict[str, _Growing] = OrderedDict()
        self._handed = Handed()
        self._now = 0
        self._due = inf
        self._size = 0

    def feed(self, record: Record) -> tuple[Turn, ...]:
        """Take a record. Gives the turns that are due."""
        now = record.time_ns
        if now > self._now:
            self._now = now
        ipc_hash = record.ipc_hash
        if ipc_hash is not None:
            self._take(ipc_hash, record)
        elif is_unlinked(record):
            self.unlinked += 1
        return self._due_turns() if self._now >= self._due or self._size > self._hold else ()

    def _take(self, ipc_hash: str, record: Record) -> None:
        turn = self._held.get(ipc_hash)
        if turn is None:
            turn = self._held[ipc_hash] = _Growing(ipc_hash in self._handed)
            if self._due == inf:
                self._due = self._now + self._grace
        else:
            self._held.move_to_end(ipc_hash)
        turn.records.append(record)
        turn.last = self._now
        turn.size += len(record.line)
        self._size += len(record.line)

    def _due_turns(self) -> tuple[Turn, ...]:
        finished: list[Turn] = []
        self._due = inf
        while self._held:
            ipc_hash, turn = next(iter(self._held.items()))
            due = turn.last + self._grace
            if due > self._now and self._size <= self._hold:
                self._due = due
                break
            del self._held[ipc_hash]
            finished.append(self._hand_on(ipc_hash, turn))
        return tuple(finished)

    def _hand_on(self, ipc_hash: str, turn: _Growing) -> Turn:
        self._size -= turn.size
        self._handed.add(ipc_hash)
        return Turn(ipc_hash, in_order(turn.records), late=turn.late, expect=self._expect)

    def finish(self) -> list[Turn]:
        """Give all turns that are left, in the order of their first records; nothing is held then."""
        turns = [self._hand_on(ipc_hash, turn) for ipc_hash, turn in self._held.items()]
        self._held.clear()
        self._due, self._size = inf, 0
        return sorted(turns, key=lambda turn: turn.records[0].time_ns)
