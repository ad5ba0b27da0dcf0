"""Replay: records in, in any order; spans as they end and whole traces out, in bounded memory. Pure."""

from __future__ import annotations

from collections import OrderedDict
from math import inf

from otledger.record import Record
from otledger.replayed import END_TYPE, START_TYPE, ReplayedSpan, span_of
from otledger.trace import Gathered, Trace, merge

__all__ = [
    "END_TYPE",
    "GRACE",
    "HOLD",
    "SECOND",
    "START_TYPE",
    "Handed",
    "Replay",
    "ReplayedSpan",
    "Trace",
    "in_ns",
    "merge",
    "span_of",
]

GRACE = 10.0
"""Seconds: exporters of the SDK hand spans on after five."""
HOLD = 16 << 20
"""Bytes of lines: some 60 MB of memory."""

SECOND = 1_000_000_000


def in_ns(seconds: float) -> float:
    """Give seconds as nanoseconds: an integer, since no float tells nanoseconds of this century apart; or infinity."""
    return seconds if seconds == inf else round(seconds * SECOND)


class Handed:
    """Remembers which of the newest ids were handed on: at least `keep` of them, at most twice as many."""

    # Hashes of 64 bits, not the ids: ledgers have millions.
    __slots__ = ("_keep", "_new", "_old")

    def __init__(self, keep: int = 65_536) -> None:
        self._keep = keep
        self._new: set[int] = set()
        self._old: set[int] = set()

    def add(self, id: str) -> None:
        """Remember an id."""
        self._new.add(hash(id))
        if len(self._new) >= self._keep:
            self._old, self._new = self._new, set()

    def __contains__(self, id: str) -> bool:
        number = hash(id)
        return number in self._new or number in self._old


class Replay:
    """Rebuilds spans and traces from records, which may come in any order and more than once.

    A trace is handed on when none of its spans is open and `grace` seconds have passed since its last record, on a
    clock that the times in the records drive. Spans that come later are handed on as a further `Trace`, which says
    that it is `late`; a trace that was handed on more than 65,536 traces ago is not known any more to have been.

    At most `hold` bytes of the lines of ended spans are held (None: no bound): beyond that the trace that was left
    alone for longest is handed on as it is. Spans that are open are held until they end, whatever their number,
    since nothing else tells which they are. `only` tells to hand on nothing but spans, or traces.
    """

    def __init__(
        self, *, grace: float = GRACE, hold: int | None = HOLD, only: type[ReplayedSpan] | type[Trace] | None = None
    ) -> None:
        self._gives_spans = only is not Trace
        self._gives_traces = only is not ReplayedSpan
        self._grace = in_ns(grace)
        self._hold = inf if hold is None else hold
        # By when they were last touched. Whatever is due and has open spans waits in `_busy`; `_bare` have only
        # open spans, the others were handed on.
        self._held: OrderedDict[str, Gathered] = OrderedDict()
        self._busy: OrderedDict[str, Gathered] = OrderedDict()
        self._bare: dict[str, Gathered] = {}
        self._handed = Handed()
        self._now = 0
        # No trace is due before; it may be too early.
        self._due = inf
        self._size = 0

    def feed(self, record: Record | ReplayedSpan) -> tuple[ReplayedSpan | Trace, ...]:
        """Take a record, or a span that was read from one. Gives what is finished by it.

        That is the span that ended, if it was not known that it had, and the traces that are due.
        """
        if not isinstance(record, ReplayedSpan):
            if record.type != END_TYPE and record.type != START_TYPE:
                return self.tick(record.time_ns)
            record = span_of(record)
        span = record
        trace_id = span.trace_id
        if not trace_id or not span.span_id:
            # Without ids none is another's relative: each stands alone.
            trace_id = f"{span.machine}/{span.seq}"
        group = self._held.get(trace_id)
        if group is None:
            group = self._recall(trace_id)
        else:
            self._held.move_to_end(trace_id)
        new = group.take(span)
        end = span.payload.end
        if end is None:
            group.last = self._now
            return ()
        size = len(span.line)
        group.size += size
        self._size += size
        if end > self._now:
            self._now = end
        group.last = self._now
        finished = (span,) if new and self._gives_spans else ()
        if end < self._due and self._size <= self._hold:
            return finished
        return finished + self._due_traces()

    def _recall(self, trace_id: str) -> Gathered:
        group = self._busy.pop(trace_id, None) or self._bare.pop(trace_id, None)
        if group is None:
            group = Gathered(trace_id in self._handed)
        self._held[trace_id] = group
        if self._due == inf:
            self._due = self._now + self._grace
        return group

    def tick(self, now: int) -> tuple[Trace, ...]:
        """Tell the time, in nanoseconds since the epoch, where no record does. Gives the traces that are due."""
        if now > self._now:
            self._now = now
        return self._due_traces() if self._now >= self._due else ()

    def _due_traces(self) -> tuple[Trace, ...]:
        finished: list[Trace] = []
        held = self._held
        self._due = inf
        while held:
            trace_id, group = next(iter(held.items()))
            due = group.last + self._grace
            if due > self._now:
                self._due = due
                break
            del held[trace_id]
            if group.open:
                self._busy[trace_id] = group
            else:
                finished += self._hand_on(trace_id, group)
        while self._size > self._hold and (self._busy or held):
            trace_id, group = (self._busy or held).popitem(last=False)
            left = group.without_ended()
            if group.size:
                finished += self._hand_on(trace_id, group)
            if left is not None:
                self._bare[trace_id] = left
        return tuple(finished)

    def _hand_on(self, trace_id: str, group: Gathered) -> tuple[Trace, ...]:
        self._size -= group.size
        self._handed.add(trace_id)
        return (group.plant(),) if self._gives_traces else ()

    def unfinished(self, *, late: bool = False) -> list[ReplayedSpan]:
        """Give the spans that began and did not end in what was fed, by their start.

        `late`: only those of traces that were handed on before. Their ends may have been told then.
        """
        groups = [*self._held.values(), *self._busy.values(), *self._bare.values()]
        found = (span for group in groups if group.late or not late for span in group.unfinished())
        return sorted(found, key=_by_start)

    def finish(self) -> list[Trace]:
        """Give all traces that are left, those with open spans too, by their start; nothing is held then."""
        groups = {**self._held, **self._busy, **self._bare}
        traces = [trace for trace_id, group in groups.items() for trace in self._hand_on(trace_id, group)]
        self._held.clear()
        self._busy.clear()
        self._bare.clear()
        self._due, self._size = inf, 0
        return sorted(traces, key=lambda trace: (trace.start, trace.trace_id))


def _by_start(span: ReplayedSpan) -> tuple[int, str]:
    return span.start, span.span_id
