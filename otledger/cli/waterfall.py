"""A trace as a waterfall and a turn as a list, in lines of text."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator

import orjson

from otledger.cli.output import Paint, counted, duration_text, safe
from otledger.errors import EventRefused
from otledger.identity import boot_id, process_state
from otledger.record import Record, format_time
from otledger.replay import END_TYPE, START_TYPE, ReplayedSpan, Trace
from otledger.turns import Turn

DEEPEST = 20
"""Levels that are indented."""
DATA_SHOWN = 200
_DURATION = 10


def waterfall(trace: Trace, paint: Paint, *, events: bool = True, width: int | None = None) -> Iterator[str]:
    """Give a trace as lines: what it is, then each span with its bar, what was emitted in it below.

    `width` is that of the terminal; with less than 60 columns lines get longer than it.
    """
    yield paint.bold(f"trace {safe(trace.trace_id)}")
    yield _summary(trace)
    yield ""
    drawing = _Drawing(trace, paint, events, shutil.get_terminal_size((100, 24)).columns if width is None else width)
    for depth, span in trace.walk():
        yield drawing.span(depth, span)
        yield from drawing.events(depth + 1, span.span_id)
    yield from drawing.left_over()


def moment(ns: int) -> str:
    """Give a time to the millisecond; the number itself where it is no instant."""
    try:
        return f"{format_time(ns)[:23]}Z"
    except EventRefused:
        return str(ns)


def _summary(trace: Trace) -> str:
    facts = [
        moment(trace.start),
        duration_text(trace.duration),
        counted(len(trace.spans), "span"),
        ", ".join(map(safe, trace.machines)),
    ]
    for count, what in (
        (len(trace.errors), "failed"),
        (len(trace.unfinished), "unfinished"),
        (len(trace.orphans), "without their parent"),
        (len(trace.duplicates), "with an id that another has"),
        (len(trace.skewed), "begun before their parent: clocks disagree"),
        (trace.repeats, "recorded more than once"),
    ):
        if count:
            facts.append(f"{count:,} {what}")
    return "  ".join(facts)


class _Drawing:
    """Draws the spans of one trace to scale."""

    def __init__(self, trace: Trace, paint: Paint, events: bool, width: int) -> None:
        self._trace = trace
        self._paint = paint
        self._of: dict[str | None, list[Record]] = defaultdict(list)
        for record in trace.records if events else ():
            self._of[record.span_id].append(record)
        self._shown: set[str] = set()
        self._orphans = {id(span) for span in trace.orphans}
        several = len(trace.machines) > 1
        self._labels = {id(span): self._label(depth, span, several) for depth, span in trace.walk()}
        room = max(60, width) - _DURATION - 4
        longest = max(len(label) for label in self._labels.values())
        events_longest = max((len(record.type) + 2 * DEEPEST for own in self._of.values() for record in own), default=0)
        self._names = max(10, min(max(longest, min(events_longest, 30)), room // 2))
        self._bar = room - self._names
        self._begin = min([trace.start, *(record.time_ns for own in self._of.values() for record in own)])
        ends = [trace.end, *(record.time_ns for own in self._of.values() for record in own)]
        self._length = max(1, max(ends) - self._begin)

    @staticmethod
    def _label(depth: int, span: ReplayedSpan, several: bool) -> str:
        where = f" @{span.machine}" if several else ""
        return f"{'  ' * min(depth, DEEPEST)}{safe(span.name)}{safe(where)}"

    def _cut(self, label: str) -> str:
        return label if len(label) <= self._names else f"{label[: self._names - 1]}…"

    def _at(self, time: int) -> int:
        return min(self._bar - 1, (time - self._begin) * self._bar // self._length)

    def span(self, depth: int, span: ReplayedSpan) -> str:
        """Give the line of a span."""
        paint = self._paint
        first = self._at(span.start)
        last = self._at(max(span.start, span.end)) if span.end is not None else self._bar - 1
        bar = ("█" if span.end is not None else "░") * (last - first + 1)
        failed = span.status == "ERROR"
        painted = paint.red(bar) if failed else paint.cyan(bar) if span.end is not None else paint.yellow(bar)
        lasted = "…" if span.duration is None else duration_text(span.duration)
        label = self._cut(self._labels[id(span)]).ljust(self._names)
        line = f"{label}  {' ' * first}{painted}{' ' * (self._bar - 1 - last)}  {lasted.rjust(_DURATION)}"
        return "  ".join([line, *self._notes(span)])

    def _notes(self, span: ReplayedSpan) -> Iterator[str]:
        if span.status == "ERROR":
            yield self._paint.red("ERROR") + safe(f": {span.description}" if span.description else "")
        if span.end is None:
            yield self._paint.yellow(f"unfinished ({process_state(span.process, boot_id())})")
        if id(span) in self._orphans:
            yield safe(f"parent {span.parent_span_id} is not here")

    def events(self, depth: int, span_id: str) -> Iterator[str]:
        """Give the lines of what was emitted in a span."""
        if span_id in self._shown:
            return
        self._shown.add(span_id)
        for record in self._of.get(span_id, ()):
            yield self._event(depth, record)

    def _event(self, depth: int, record: Record) -> str:
        label = self._cut(f"{'  ' * min(depth, DEEPEST)}· {safe(record.type)}").ljust(self._names)
        mark = f"{' ' * self._at(record.time_ns)}╵".ljust(self._bar)
        after = f"+{duration_text(max(0, record.time_ns - self._begin))}"
        return self._paint.dim(f"{label}  {mark}  {after.rjust(_DURATION)}")

    def left_over(self) -> Iterator[str]:
        """Give the lines of what was emitted in spans that are not here."""
        for span_id, records in self._of.items():
            if span_id not in self._shown:
                for record in records:
                    yield f"{self._event(0, record)}  {safe(f'span {span_id} is not here')}"


def turn_lines(turn: Turn, mark: Callable[[Record], str] | None = None) -> Iterator[str]:
    """Give a turn as lines in the order of time, what happened inside a span indented under it.

    `mark` gives what stands for a payload that is encrypted, and whose key is not at hand.
    """
    spans = {span.span_id: span for span in turn.spans}
    told = [record for record in turn.records if record.type not in (START_TYPE, END_TYPE)]
    entries = [_span_entry(span, spans) for span in turn.spans]
    entries += [_record_entry(record, spans, mark) for record in told]
    entries.sort(key=lambda entry: entry[:2])
    for at, depth, text in entries:
        yield f"{(at - entries[0][0]) / 1e6:8.1f} ms  {'  ' * min(depth, DEEPEST)}{safe(text)}"


def _span_entry(span: ReplayedSpan, spans: dict[str, ReplayedSpan]) -> tuple[int, int, str]:
    lasted = "unfinished" if span.duration is None else duration_text(span.duration)
    failed = ", ERROR" if span.status == "ERROR" else ""
    attributes = " ".join(f"{name}={value}" for name, value in span.attributes.items())
    return span.start, _depth(span.span_id, spans) - 1, f"[{span.name}, {lasted}{failed}] {attributes}".rstrip()


def _record_entry(
    record: Record, spans: dict[str, ReplayedSpan], mark: Callable[[Record], str] | None
) -> tuple[int, int, str]:
    if mark is not None and record.plain is None:
        return record.time_ns, _depth(record.span_id, spans), f"{record.type}  {mark(record)}"
    data = record.data
    told = data.get("text") if isinstance(data, dict) and len(data) == 1 else None
    text = f"“{told}”" if told else orjson.dumps(data, default=str).decode()
    text = text if len(text) <= DATA_SHOWN else f"{text[:DATA_SHOWN]}…"
    return record.time_ns, _depth(record.span_id, spans), f"{record.type}  {text}"


def _depth(span_id: str | None, spans: dict[str, ReplayedSpan]) -> int:
    seen: set[str] = set()
    while span_id is not None and span_id in spans and span_id not in seen:
        seen.add(span_id)
        span_id = spans[span_id].parent_span_id
    return len(seen)
