"""The trace: spans of one trace id as a tree, whatever is missing, repeated or out of step. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from otledger.record import Record
from otledger.replayed import ReplayedSpan

_ENDLESS = 1 << 80
_quick_order = attrgetter("payload.start", "span_id")


@dataclass(frozen=True, slots=True)
class Trace:
    """The spans of one trace id, by their start, and which of them is whose parent.

    The tree follows ids alone, never times: clocks of different machines may disagree.
    """

    trace_id: str
    spans: tuple[ReplayedSpan, ...]
    parents: tuple[int | None, ...]
    """For each span the place of its parent in `spans`; None where it has none here."""
    repeats: int = 0
    """How many end records told again what another one had told."""
    late: bool = False
    """Spans of this trace were handed on before; `merge` puts the parts together."""
    records: tuple[Record, ...] = ()
    """What was emitted in its spans, where it was asked for (`Reader.trace`)."""

    @property
    def roots(self) -> tuple[ReplayedSpan, ...]:
        """The spans that never had a parent."""
        return tuple(span for span, parent in self._with_parents() if parent is None and not span.parent_span_id)

    @property
    def orphans(self) -> tuple[ReplayedSpan, ...]:
        """The spans whose parent is not here: of another service, not yet written, lost."""
        return tuple(span for span, parent in self._with_parents() if parent is None and span.parent_span_id)

    @property
    def duplicates(self) -> tuple[ReplayedSpan, ...]:
        """The spans whose id an earlier span has: other spans, not other records of the same one."""
        first: dict[str, ReplayedSpan] = {}
        return tuple(span for span in self.spans if first.setdefault(span.span_id, span) is not span)

    @property
    def unfinished(self) -> tuple[ReplayedSpan, ...]:
        """The spans that have not ended."""
        return tuple(span for span in self.spans if span.end is None)

    @property
    def skewed(self) -> tuple[ReplayedSpan, ...]:
        """The spans that began before their parent did: clocks that disagree."""
        return tuple(span for span, parent in self._with_parents() if parent is not None and span.start < parent.start)

    def _with_parents(self) -> Iterator[tuple[ReplayedSpan, ReplayedSpan | None]]:
        for span, parent in zip(self.spans, self.parents, strict=True):
            yield span, None if parent is None else self.spans[parent]

    @property
    def errors(self) -> tuple[ReplayedSpan, ...]:
        """The spans whose status is an error."""
        return tuple(span for span in self.spans if span.status == "ERROR")

    @property
    def machines(self) -> tuple[str, ...]:
        """The machines that recorded it, each once."""
        return tuple(dict.fromkeys(span.machine for span in self.spans))

    @property
    def start(self) -> int:
        """The earliest time, in nanoseconds since the epoch."""
        return self.spans[0].start

    @property
    def end(self) -> int:
        """The latest time that a span tells of, in nanoseconds since the epoch."""
        return max(span.start if span.end is None else max(span.start, span.end) for span in self.spans)

    @property
    def duration(self) -> int:
        """From the earliest to the latest time, in nanoseconds."""
        return self.end - self.start

    def children(self, span: ReplayedSpan) -> tuple[ReplayedSpan, ...]:
        """Give the children of one of its spans, by their start."""
        at = next(at for at, other in enumerate(self.spans) if other is span)
        return tuple(self.spans[child] for child, parent in enumerate(self.parents) if parent == at)

    def walk(self) -> Iterator[tuple[int, ReplayedSpan]]:
        """Iterate over depth and span: each span behind its parent, siblings by their start."""
        below: dict[int | None, list[int]] = {}
        for child, parent in enumerate(self.parents):
            below.setdefault(parent, []).append(child)
        waiting = [(0, at) for at in reversed(below.get(None, []))]
        while waiting:
            depth, at = waiting.pop()
            yield depth, self.spans[at]
            waiting += [(depth + 1, child) for child in reversed(below.get(at, []))]

    def to_dict(self) -> dict[str, Any]:
        """Give the trace as plain JSON values: `spans` in the order of `walk`, each with its `depth`."""
        return {
            "trace_id": self.trace_id,
            "start": self.start,
            "end": self.end,
            "duration": self.duration,
            "machines": list(self.machines),
            "roots": [span.span_id for span in self.roots],
            "orphans": [span.span_id for span in self.orphans],
            "duplicates": [span.span_id for span in self.duplicates],
            "unfinished": [span.span_id for span in self.unfinished],
            "errors": [span.span_id for span in self.errors],
            "repeats": self.repeats,
            "late": self.late,
            "spans": [{"depth": depth, **span.to_dict()} for depth, span in self.walk()],
            "records": [record.to_dict() for record in self.records],
        }


def plant(spans: list[ReplayedSpan], *, unique: bool = True, repeats: int = 0, late: bool = False) -> Trace:
    """Give the tree of the spans of a trace, one at least, which it sorts. `unique`: no two have the same id."""
    spans.sort(key=_quick_order if unique else _order)
    places: dict[str | None, int] = {}
    for at, span in enumerate(spans):
        places.setdefault(span.span_id, at)
    parents = [places.get(span.payload.parent_span_id) for span in spans]
    if not unique:
        _choose_among_duplicates(spans, parents)
    for at, parent in enumerate(parents):
        if parent is not None and parent >= at:
            # Only a parent that comes later can close a circle.
            _break_circles(parents)
            break
    return Trace(spans[0].trace_id, tuple(spans), tuple(parents), repeats, late)


def _choose_among_duplicates(spans: Sequence[ReplayedSpan], parents: list[int | None]) -> None:
    """Give a child of an id that several spans have to the last of them that was open when it began."""
    having: dict[str, list[int]] = {}
    for at, span in enumerate(spans):
        having.setdefault(span.span_id, []).append(at)
    for at, span in enumerate(spans):
        for other in having.get(span.parent_span_id or "", [])[1:]:
            parent = spans[other]
            if parent.start <= span.start and (parent.end is None or span.start <= parent.end):
                parents[at] = other


def _break_circles(parents: list[int | None]) -> None:
    """Take its parent from the first span of each circle."""
    safe: set[int] = set()
    for first in range(len(parents)):
        path: list[int] = []
        at: int | None = first
        while at is not None and at not in safe:
            if at in path:
                parents[min(path[path.index(at) :])] = None
                break
            path.append(at)
            at = parents[at]
        safe.update(path)


def _order(span: ReplayedSpan) -> tuple[Any, ...]:
    end = _ENDLESS if span.end is None else span.end
    return span.start, span.span_id, end, span.name, span.machine, span.seq


class Gathered:
    """The spans of one trace as far as they are known; takes the records of a span in any order, and repeated ones."""

    __slots__ = ("_odd", "_open", "_spans", "last", "late", "repeats", "size")

    def __init__(self, late: bool = False) -> None:
        self._spans: dict[str, ReplayedSpan] = {}
        self._open = 0
        # All spans of an id that more records tell of than a start and an end that fit; these are not in `_spans`.
        self._odd: dict[str, list[ReplayedSpan]] | None = None
        self.last = 0
        """When it was last touched, and how many bytes of it count: for `Replay`."""
        self.size = 0
        self.repeats = 0
        self.late = late

    def take(self, span: ReplayedSpan) -> bool:
        """Take a span, as one of its records tells it. Tells whether it has ended, and that was not known."""
        spans, id, payload = self._spans, span.span_id, span.payload
        known = spans.get(id)
        if payload.end is None:
            if known is not None or self._odd is not None:
                return self._take_odd(span)
            self._open += 1
        elif known is None:
            if self._odd is not None:
                return self._take_odd(span)
        else:
            begun = known.payload
            if begun.end is not None or begun.start != payload.start:
                return self._take_odd(span)
            self._open -= 1
        spans[id] = span
        return payload.end is not None

    def _take_odd(self, span: ReplayedSpan) -> bool:
        """Take a span whose id is known: another record of the same span, or another span."""
        if self._odd is None:
            self._odd = {}
        known = self._odd.setdefault(span.span_id, [])
        regular = self._spans.pop(span.span_id, None)
        if regular is not None:
            self._open -= regular.end is None
            known.append(regular)
        for at, other in enumerate(known):
            if _is_same(other, span):
                known[at] = self._better(other, span)
                return other.end is None and span.end is not None
        known.append(span)
        return span.end is not None

    def _better(self, known: ReplayedSpan, span: ReplayedSpan) -> ReplayedSpan:
        if (known.end is None) != (span.end is None):
            return span if known.end is None else known
        if span.end is not None:
            self.repeats += 1
        # The same one, in whichever order they came.
        return min(known, span, key=lambda each: (each.machine, each.seq))

    @property
    def open(self) -> bool:
        """Whether a span has begun and not ended."""
        return self._open > 0 or (self._odd is not None and bool(self.unfinished()))

    def __bool__(self) -> bool:
        return bool(self._spans or self._odd)

    def unfinished(self) -> list[ReplayedSpan]:
        """Give the spans that have begun and not ended."""
        return [span for span in self._all() if span.end is None]

    def _all(self) -> list[ReplayedSpan]:
        odd = () if self._odd is None else self._odd.values()
        return [*self._spans.values(), *(span for spans in odd for span in spans)]

    def plant(self) -> Trace:
        """Give the tree of what is known, which is one span at least."""
        unique = self._odd is None or all(len(spans) == 1 for spans in self._odd.values())
        return plant(self._all(), unique=unique, repeats=self.repeats, late=self.late)

    def without_ended(self) -> Gathered | None:
        """Give what is still open, to go on with; None if nothing is."""
        left = Gathered(late=self.late or self.size > 0)
        left.last = self.last
        open = self.unfinished()
        for span in open:
            left.take(span)
        return left if open else None


def _is_same(span: ReplayedSpan, other: ReplayedSpan) -> bool:
    """Tell whether two records with one id tell of the same span: a start knows neither end nor last name."""
    if span.start != other.start:
        return False
    if span.end is None or other.end is None:
        return True
    return (span.end, span.name, span.parent_span_id) == (other.end, other.name, other.parent_span_id)


def merge(parts: Iterable[Trace]) -> Trace:
    """Give one tree of parts of a trace that were handed on one after the other. Raises ValueError for none."""
    known = sorted(parts, key=lambda part: part.late)
    if not known:
        raise ValueError("there is no part of a trace to merge")
    gathered = Gathered(late=known[0].late)
    gathered.repeats = sum(part.repeats for part in known)
    for span in (span for part in known for span in part.spans):
        gathered.take(span)
    return replace(gathered.plant(), records=tuple(record for part in known for record in part.records))
