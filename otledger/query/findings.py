"""What the rules of a digest find: each rule fed record by record, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from math import isfinite
from typing import Any

import msgspec

from otledger.query.members import check_place, value_at
from otledger.query.rules import DURATION, Each, Outlier, Rule, Spike, Without, as_list, seconds
from otledger.query.scan import DISTINCT, OTHERS
from otledger.query.spread import Largest, Values
from otledger.record import Record

TEXT = 200
"""Characters of what a record is shown as."""


@dataclass(frozen=True, slots=True)
class Mention:
    """A record, and what there is to say of it."""

    time: int
    """In nanoseconds since the epoch."""
    machine: str
    seq: int
    type: str
    source: str
    subject: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule found."""

    rule: str
    kind: str
    severity: str
    count: int
    """How many records, or spikes; of outliers among more than 4,096 values within 1 % of the limit."""
    mentions: tuple[Mention, ...]
    """The newest of them, oldest first; of outliers those that are furthest out."""


class Finder:
    """Takes records, gives what one rule finds. `duration` is how many seconds a span or a pair lasted that ended."""

    def __init__(self, rule: Rule, limit: int) -> None:
        self.rule = rule
        self.types = as_list(rule.type)
        """The types of records that it takes."""
        self._matches = rule.test()
        self._show = shower(rule.show)
        self._mentions: deque[Mention] = deque(maxlen=limit)
        self._count = 0

    def feed(self, record: Record, duration: float | None) -> None:
        """Take a record."""
        if self._matches(record):
            self._found(record, self._show(record))

    def _found(self, record: Record, text: str) -> None:
        self._count += 1
        self._mentions.append(mention(record, text))

    def finding(self) -> Finding | None:
        """Give what was found, None if nothing was."""
        if not self._count:
            return None
        rule = self.rule
        kind = str(type(rule).__struct_config__.tag)
        return Finding(rule.name, kind, rule.severity, self._count, tuple(self._mentions))


class _Spikes(Finder):
    """Records that come close together. What goes on within the time is one spike."""

    def __init__(self, rule: Spike, limit: int) -> None:
        super().__init__(rule, limit)
        self._need = rule.count
        self._text = rule.within
        self._within = int((seconds(rule.within) or 0) * 1e9)
        self._scope = scoper(rule.by)
        self._times: dict[str, deque[int]] = {}
        self._running: dict[str, _Running] = {}
        self._newest: deque[_Running] = deque(maxlen=limit)

    def feed(self, record: Record, duration: float | None) -> None:
        if not self._matches(record):
            return
        scope = self._scope(record)
        times = self._times.setdefault(scope, deque(maxlen=self._need))
        times.append(record.time_ns)
        if len(times) < self._need or times[-1] - times[0] > self._within:
            self._running.pop(scope, None)
            return
        running = self._running.get(scope)
        if running is None:
            running = self._running[scope] = _Running(record, scope, self._need, times[0])
            self._newest.append(running)
            self._count += 1
        else:
            running.count += 1
        running.last = record.time_ns

    def finding(self) -> Finding | None:
        self._mentions.clear()
        for running in self._newest:
            of = f" of {running.scope}" if running.scope else ""
            length = (running.last - running.first) / 1e9
            text = f"{running.count} records{of} in {length:.0f} s, {self._need} or more within {self._text}"
            self._mentions.append(mention(running.record, text))
        return super().finding()


@dataclass(slots=True)
class _Running:
    record: Record
    """The one with which it became a spike."""
    scope: str
    count: int
    first: int
    last: int = 0


class _Outliers(Finder):
    """Numbers above a multiple of the median of their scope."""

    def __init__(self, rule: Outlier, limit: int) -> None:
        super().__init__(rule, limit)
        self._limit = limit
        self._outlier = rule
        self._value = None if rule.value == DURATION else check_place(rule.value)
        self._scope = scoper(rule.by)
        self._values: dict[str, tuple[Values, Largest[Mention]]] = {}

    def feed(self, record: Record, duration: float | None) -> None:
        if not self._matches(record):
            return
        value = duration if self._value is None else number(value_at(record, self._value))
        if value is None:
            return
        scope = self._scope(record)
        if scope not in self._values:
            scope = scope if len(self._values) < DISTINCT else OTHERS
            self._values.setdefault(scope, (Values(), Largest(self._limit)))
        values, largest = self._values[scope]
        values.add(value)
        if largest.takes(value):
            largest.add(value, mention(record, self._show(record)))

    def finding(self) -> Finding | None:
        rule = self._outlier
        out: list[tuple[float, Mention]] = []
        self._count = 0
        for scope, (values, largest) in self._values.items():
            spread = values.spread()
            if spread is None or spread.count < rule.least or spread.median <= 0:
                continue
            bound = spread.median * rule.factor
            self._count += values.above(bound)
            of = f" of {scope}" if scope else ""
            for value, found in largest.items():
                if value > bound:
                    what = f"{rule.value} {value:g} is {value / spread.median:.1f} × the median {spread.median:g}{of}"
                    text = f"{what}: {found.text}" if found.text else what
                    out.append((value / spread.median, replace(found, text=text)))
        furthest = sorted(out, key=lambda each: -each[0])[: self._limit]
        self._mentions.clear()
        self._mentions.extend(sorted((found for _, found in furthest), key=lambda each: (each.time, each.machine)))
        return super().finding()


class _Lacking(Finder):
    """Records before which another did not come."""

    def __init__(self, rule: Without, limit: int) -> None:
        super().__init__(rule, limit)
        self._needs = [match.test() for match in rule.needs]
        self._undone_by = [match.test() for match in rule.undone_by]
        self._at_first = rule.at_first
        self.types = [type for match in (rule, *rule.needs, *rule.undone_by) for type in as_list(match.type)]
        self._scope = scoper(rule.by)
        self._there: dict[str, bool] = {}

    def feed(self, record: Record, duration: float | None) -> None:
        scope = self._scope(record)
        if any(test(record) for test in self._needs):
            self._there[scope] = True
        elif any(test(record) for test in self._undone_by):
            self._there[scope] = False
        if self._matches(record) and not self._there.get(scope, self._at_first):
            self._found(record, self._show(record))


def finder(rule: Rule, limit: int) -> Finder:
    """Give what looks for what a rule says."""
    match rule:
        case Each():
            return Finder(rule, limit)
        case Spike():
            return _Spikes(rule, limit)
        case Outlier():
            return _Outliers(rule, limit)
        case Without():
            return _Lacking(rule, limit)


# Records as text


def mention(record: Record, text: str) -> Mention:
    """Give a record with what there is to say of it."""
    return Mention(record.time_ns, record.machine, record.seq, record.type, record.source, record.subject, text)


def shower(places: list[str]) -> Callable[[Record], str]:
    """Give what tells of a record by some places in it."""
    paths = [check_place(place) for place in places]

    def show(record: Record) -> str:
        return ", ".join(_text(value) for value in (value_at(record, path) for path in paths) if value is not None)

    return show


def scoper(place: str | None) -> Callable[[Record], str]:
    """Give what tells to which scope a record belongs; all to one of no place."""
    if place is None:
        return lambda _: ""
    path = check_place(place)
    return lambda record: _text(value_at(record, path))


def number(value: Any) -> float | None:
    """Give a finite number, also one that stands there as text; None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if isfinite(found) else None


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode(errors="replace")
    return text if len(text) <= TEXT else f"{text[:TEXT]}…"
