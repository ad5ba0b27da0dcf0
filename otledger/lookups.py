"""What the records that a reader gives add up to: spans, traces, turns, pairs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from math import inf
from typing import Any, TypeVar

from otledger.errors import ConfigurationError
from otledger.filter import Filter
from otledger.hooks import OnFault
from otledger.pairs import Pair, Pairs
from otledger.record import Record, format_time
from otledger.replay import GRACE, HOLD, Replay, in_ns
from otledger.replayed import END_TYPE, START_TYPE, ReplayedSpan, span_of
from otledger.trace import Gathered, Trace
from otledger.turns import TURN_GRACE, Turn, Turns, in_order, is_unlinked

K = TypeVar("K", ReplayedSpan, Trace)

SHREDDED_TYPE = "otledger.shredded"
_ENOUGH = 10
LOOKBACK = 3600.0
"""Seconds."""
_SPANS = "otel.span.*"
_TRACE_ID = re.compile(r"[0-9a-f]{32}")


class Lookups:
    """The part of `Reader` that puts records together. All of it reads through `records` and `span_records`.

    A window `since` (inclusive) `until` (exclusive), in nanoseconds since the epoch, is about when something began.
    Whether it has ended is looked up in all that was written later (of a turn: in the `lookback` seconds after). That
    it began before `since` is found out where it has a record in the `lookback` seconds before. `ConfigurationError`
    is raised for a window that ends before it begins.
    """

    def records(
        self,
        filter: Filter | None = None,
        *,
        machines: Sequence[str] | None = None,
        on_fault: OnFault | None = None,
    ) -> Iterator[Record]:
        """Iterate over the records that meet `filter`."""
        raise NotImplementedError

    def span_records(
        self, *, machines: Sequence[str] | None = None, on_fault: OnFault | None = None
    ) -> Iterator[ReplayedSpan]:
        """Iterate over the start and end records of spans, in the order of `records`, as fast as can be."""
        raise NotImplementedError

    def spans(
        self,
        *,
        since: int | None = None,
        until: int | None = None,
        trace_id: str | None = None,
        ipc_hash: str | None = None,
        source: str | None = None,
        unfinished: bool = True,
        machines: Sequence[str] | None = None,
        on_fault: OnFault | None = None,
    ) -> Iterator[ReplayedSpan]:
        """Iterate over the spans as they end, each once, then, unless `unfinished=False`, over those that have not."""
        window = _Window(since, until, LOOKBACK)
        trace_id = None if trace_id is None else check_trace_id(trace_id)
        wanted = Filter(trace_id=trace_id, ipc_hash=ipc_hash, source=source)
        replay = Replay(only=ReplayedSpan)
        yield from window.pick(self._replayed(replay, window, wanted, machines, on_fault))
        if unfinished:
            ended = self._ended(replay.unfinished(late=True), machines)
            left = replay.unfinished()
            yield from (span for span in left if window.has(span.start) and _key(span) not in ended)

    def traces(
        self,
        *,
        since: int | None = None,
        until: int | None = None,
        grace: float = GRACE,
        hold: int | None = HOLD,
        lookback: float = LOOKBACK,
        machines: Sequence[str] | None = None,
        on_fault: OnFault | None = None,
    ) -> Iterator[Trace]:
        """Iterate over the traces as they are finished, then over those with open spans.

        A trace may come in several parts, of which the later ones say so: see `otledger.replay.Replay`, and
        `merge`. `grace=math.inf, hold=None` gives each in one part, and holds the whole ledger for it.
        """
        window = _Window(since, until, lookback)
        replay = Replay(grace=grace, hold=hold, only=Trace)
        yield from window.pick(self._replayed(replay, window, Filter(), machines, on_fault))
        yield from (left for left in replay.finish() if window.has(left.start))

    def trace(
        self, trace_id: str, *, machines: Sequence[str] | None = None, on_fault: OnFault | None = None
    ) -> Trace | None:
        """Give the trace of an id, whole, with the records that were emitted in it; None if there is no span of it.

        Raises `ConfigurationError` for what is no trace id.
        """
        gathered, others = Gathered(), []
        wanted = Filter(trace_id=check_trace_id(trace_id))
        for record in self.records(wanted, machines=machines, on_fault=on_fault):
            if record.type in (START_TYPE, END_TYPE):
                gathered.take(span_of(record))
            else:
                others.append(record)
        return replace(gathered.plant(), records=tuple(others)) if gathered else None

    def turns(
        self,
        *,
        since: int | None = None,
        until: int | None = None,
        grace: float = TURN_GRACE,
        hold: int | None = HOLD,
        lookback: float = LOOKBACK,
        expect: Iterable[str] = (),
        on_unlinked: Callable[[Record], None] | None = None,
        machines: Sequence[str] | None = None,
        on_fault: OnFault | None = None,
    ) -> Iterator[Turn]:
        """Iterate over the turns as they are finished. `on_unlinked` gets the events that belong to none.

        `turn.missing()` gives those of the `expect`ed types that a turn does not have.

        A turn may come in several parts, of which the later ones say so: see `otledger.turns.Turns`.
        """
        window = _Window(since, until, lookback)
        turns = Turns(grace=grace, hold=hold, expect=expect)
        # Without headers, which may be younger than all that follows them and would hold a machine back.
        wanted = Filter(since=window.first, until=window.last, control=False)
        for record in self.records(wanted, machines=machines, on_fault=on_fault):
            if on_unlinked is not None and is_unlinked(record) and window.has(record.time_ns):
                on_unlinked(record)
            yield from (turn for turn in turns.feed(record) if window.has(turn.start))
        yield from (turn for turn in turns.finish() if window.has(turn.start))

    def turn(
        self,
        ipc_hash: str,
        *,
        expect: Iterable[str] = (),
        machines: Sequence[str] | None = None,
        on_fault: OnFault | None = None,
    ) -> Turn | None:
        """Give the turn of an `ipc_hash`, with the spans that its records were emitted in; None if there is none."""
        found = tuple(self.records(Filter(ipc_hash=ipc_hash), machines=machines, on_fault=on_fault))
        if not found:
            return None
        turn = Turn(ipc_hash, in_order(found), expect=tuple(sorted(set(expect))))
        known = {(span.trace_id, span.span_id) for span in turn.spans if span.end is not None}
        wanted = {(record.trace_id, record.span_id) for record in found if record.trace_id} - known
        around = [
            span
            for trace_id in dict.fromkeys(trace_id for trace_id, _ in sorted(wanted, key=str))
            for span in self.spans(trace_id=trace_id, machines=machines, on_fault=on_fault)
            if (trace_id, span.span_id) in wanted
        ]
        return replace(turn, around=tuple(around))

    def pairs(
        self,
        key: str,
        *,
        base: str = "*",
        since: int | None = None,
        until: int | None = None,
        machines: Sequence[str] | None = None,
        on_fault: OnFault | None = None,
    ) -> Iterator[Pair]:
        """Iterate over the pairs of `*.start` and `*.end` events as they are completed, then over what is unmatched.

        For `key` see `otledger.pairs.Pairs`. `base` is a shell pattern that the type without its suffix has to match.
        """
        # All is read: only the first start tells that an end is not alone.
        window, pairs = _Window(since, until, inf), Pairs(key, base=base)
        for record in self.records(Filter(control=False), machines=machines, on_fault=on_fault):
            pair = pairs.feed(record)
            if pair is not None and window.has(pair.time):
                yield pair
        yield from (pair for pair in pairs.finish() if window.has(pair.time))

    def ids_like(
        self, prefix: str, name: str, *, machines: Sequence[str] | None = None, on_fault: OnFault | None = None
    ) -> list[str]:
        """Give what begins with `prefix` among the `trace_id`s or `ipc_hash`es: `name` says which.

        Gives the first ten that differ. All lines are looked at.
        """
        found: dict[str, None] = {}
        for record in self.records(Filter(text=prefix), machines=machines, on_fault=on_fault):
            value = getattr(record, name)
            if value is not None and value.startswith(prefix):
                found[value] = None
                if len(found) == _ENOUGH:
                    break
        return list(found)

    def shredded(self, *, machines: Sequence[str] | None = None, on_fault: OnFault | None = None) -> frozenset[str]:
        """Give the ids of the keys that were destroyed on purpose: what they encrypted is erased for good.

        Looks through the whole ledger for records of shreddings.
        """
        found: set[str] = set()
        for record in self.records(Filter(type=SHREDDED_TYPE), machines=machines, on_fault=on_fault):
            data = record.data
            kids = data.get("kids") if isinstance(data, dict) else None
            found.update(kid for kid in kids if isinstance(kid, str)) if isinstance(kids, list) else None
        return frozenset(found)

    def _ended(self, doubtful: Sequence[ReplayedSpan], machines: Sequence[str] | None) -> set[tuple[str, str]]:
        """Give those of spans that have an end record somewhere: one that stands long before their start record."""
        if not doubtful:
            return set()
        wanted = set(map(_key, doubtful))
        # What is no record was reported when all was read.
        found = self.span_records(machines=machines, on_fault=lambda _: None)
        return {key for span in found if span.end is not None and (key := _key(span)) in wanted}

    def _replayed(
        self,
        replay: Replay,
        window: _Window,
        filter: Filter,
        machines: Sequence[str] | None,
        on_fault: OnFault | None,
    ) -> Iterator[Any]:
        """Feed what may be in a window, and give what is finished."""
        records: Iterator[Any]
        if filter == Filter() and window.first is None:
            records = self.span_records(machines=machines, on_fault=on_fault)
        else:
            wanted = replace(filter, type=_SPANS, since=window.first)
            records = self.records(wanted, machines=machines, on_fault=on_fault)
        return chain.from_iterable(map(replay.feed, records))


def _key(span: ReplayedSpan) -> tuple[str, str]:
    return span.trace_id, span.span_id


class _Window:
    """From when to when something has to have begun, and from when to when is looked."""

    def __init__(self, since: int | None, until: int | None, lookback: float) -> None:
        if since is not None and until is not None and until < since:
            raise ConfigurationError(
                f"the window ends ({format_time(until)}) before it begins ({format_time(since)}); swap the two"
            )
        slack = in_ns(lookback)
        self._since = since
        self._until = until
        self.first = None if since is None or slack == inf else since - int(slack)
        self.last = None if until is None or slack == inf else until + int(slack)

    def has(self, time: int) -> bool:
        """Tell whether a time is inside."""
        return (self._since is None or time >= self._since) and (self._until is None or time < self._until)

    def pick(self, items: Iterable[K]) -> Iterable[K]:
        """Give those that began inside."""
        if self._since is None and self._until is None:
            return items
        return (item for item in items if self.has(item.start))


def check_trace_id(text: str) -> str:
    """Give a trace id in lower case. Raises `ConfigurationError`, which says what is expected."""
    if not _TRACE_ID.fullmatch(text.lower()):
        raise ConfigurationError(
            f"{text!r} is no trace id: that has 32 hex digits, and this has {len(text)} characters"
        )
    return text.lower()
