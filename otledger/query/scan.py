"""One pass over a ledger: what can be counted is counted from columns, and only chosen records are read whole."""

from __future__ import annotations

import heapq
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fnmatch import translate
from pathlib import Path
from typing import Any

from otledger.errors import ConfigurationError, RootError
from otledger.hooks import OnFault, Progress
from otledger.query import skeleton
from otledger.query.extents import extents
from otledger.query.spread import Values
from otledger.record import Record, format_time, parse
from otledger.segment import list_machines, open_folder, open_segment, pread

DISTINCT = 10_000
"""So many different values are counted on their own; what has another one is counted together."""

_COLUMNS = ("type", "source", "subject", "time_ns", "segment", "offset", "size")
_SPAN_COLUMNS = ("name", "status", "start_ns", "end_ns", "trace_id", "span_id")
_ALL = (*_COLUMNS, *_SPAN_COLUMNS)
_END, _START = "otel.span.end", "otel.span.start"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which records are looked at: as `otledger.Filter`, as far as columns tell.

    Raises `ConfigurationError` where the window ends before it begins.
    """

    machines: Sequence[str] | None = None
    since: int | None = None
    until: int | None = None
    type: str | None = None
    source: str | None = None
    subject: str | None = None
    control: bool = False

    def __post_init__(self) -> None:
        if self.since is not None and self.until is not None and self.since > self.until:
            raise ConfigurationError(
                f"the window ends before it begins: from {format_time(self.since)} until {format_time(self.until)};"
                " exchange the two"
            )


@dataclass(slots=True)
class Counted:
    """How often each value was met, in bounded memory."""

    counts: Counter[str] = field(default_factory=Counter)
    others: int = 0
    """Records whose value was met after `DISTINCT` others."""

    def update(self, values: Iterable[str | None]) -> None:
        """Count values; None is none."""
        self.merge(Counter(values))

    def merge(self, counts: Counter[Any]) -> None:
        """Count values that were counted already, in the order in which they were met."""
        known = self.counts
        for value, count in counts.items():
            if value is None:
                continue
            if value in known or len(known) < DISTINCT:
                known[value] += count
            else:
                self.others += count


@dataclass(slots=True)
class Named:
    """Spans of one name."""

    seconds: Values = field(default_factory=Values)
    errors: int = 0


@dataclass(slots=True)
class Tally:
    """What was counted of some records."""

    records: int = 0
    first: int | None = None
    last: int | None = None
    types: Counted = field(default_factory=Counted)
    sources: Counted = field(default_factory=Counted)
    subjects: Counted = field(default_factory=Counted)
    machines: Counted = field(default_factory=Counted)
    spans: dict[str, Named] = field(default_factory=dict)
    open: set[tuple[str | None, str | None]] = field(default_factory=set)
    """Spans that began and did not end."""

    def take(self, machine: str, rows: dict[str, list[Any]]) -> None:
        """Count records of a machine, given as columns."""
        count = len(rows["type"])
        self.records += count
        self.machines.merge(Counter({machine: count}))
        types = Counter(rows["type"])
        self.types.merge(types)
        self.sources.update(rows["source"])
        self.subjects.update(rows["subject"])
        self.between([time for time in rows["time_ns"] if time is not None])
        if _END in types or _START in types:
            self._take_spans(rows)

    def between(self, times: list[int]) -> None:
        """Widen what lies between first and last."""
        if times:
            low, high = min(times), max(times)
            self.first = low if self.first is None else min(self.first, low)
            self.last = high if self.last is None else max(self.last, high)

    def _take_spans(self, rows: dict[str, list[Any]]) -> None:
        columns = zip(rows["type"], *(rows[name] for name in _SPAN_COLUMNS), strict=True)
        for type, name, status, start, end, trace, span in columns:
            if type == _START:
                self.open.add((trace, span))
            elif type == _END:
                self.open.discard((trace, span))
                self._take_span(name or "", status, start, end)

    def _take_span(self, name: str, status: str | None, start: int | None, end: int | None) -> None:
        named = self.spans.get(name)
        if named is None:
            if len(self.spans) >= DISTINCT:
                name = OTHERS
            named = self.spans.setdefault(name, Named())
        named.errors += status == "ERROR"
        if start is not None and end is not None:
            named.seconds.add(max(0, end - start) / 1e9)

    def merge(self, other: Tally) -> None:
        """Count what another has counted."""
        self.records += other.records
        for name in ("types", "sources", "subjects", "machines"):
            mine, theirs = getattr(self, name), getattr(other, name)
            mine.merge(theirs.counts)
            mine.others += theirs.others
        self.between([time for time in (other.first, other.last) if time is not None])
        self.open |= other.open
        for name, spans in other.spans.items():
            named = self.spans.setdefault(name if len(self.spans) < DISTINCT or name in self.spans else OTHERS, Named())
            named.errors += spans.errors
            named.seconds.update(spans.seconds)


OTHERS = "(others)"
"""The name under which spans stand whose name was met after `DISTINCT` others."""

_Chosen = tuple[int, str, int, int]
"""The time, segment, offset and size of a record that is read whole."""


class Scan:
    """A pass over the records of a selection. Iterate to the end, and then look at `tally`.

    Gives the records whose type `wanted` tells, machines merged by time, a machine's in their order.
    """

    def __init__(
        self,
        root: str | Path,
        selection: Selection,
        wanted: Callable[[str], bool],
        *,
        on_fault: OnFault | None = None,
        cache: bool = True,
        progress: Progress | None = None,
    ) -> None:
        self.tally = Tally()
        self._progress = progress
        self._done = self._total = 0
        self._root = Path(root)
        self._selection = selection
        self._wanted = wanted
        self._on_fault = on_fault
        self._cache = cache
        self._accepts = _accepting(selection)

    def __iter__(self) -> Iterator[Record]:
        chosen = self._selection.machines
        machines = list_machines(self._root) if chosen is None else list(dict.fromkeys(chosen))
        if self._progress is not None:
            self._total = sum(extent.end for extent in extents(self._root, machines))
        # A tally a machine: what is counted must not depend on how their blocks alternate.
        tallies = {machine: Tally() for machine in machines}
        streams = [self._of(machine, tally) for machine, tally in tallies.items()]
        with ExitStack() as stack:
            lines = {machine: stack.enter_context(_Lines(self._root / machine)) for machine in machines}
            for _, machine, segment, offset, size in heapq.merge(*streams, key=lambda found: found[:2]):
                yield parse(lines[machine].at(segment, offset, size))
        for tally in tallies.values():
            self.tally.merge(tally)

    def _of(self, machine: str, tally: Tally) -> Iterator[tuple[int, str, str, int, int]]:
        selection = self._selection
        wanted = _Remembered(self._wanted)
        blocks = skeleton.columns(
            self._root,
            _ALL,
            machines=[machine],
            since=selection.since,
            until=selection.until,
            cache=self._cache,
            on_fault=self._on_fault,
        )
        for block in blocks:
            rows = dict(zip(_ALL, block, strict=True))
            if self._progress is not None:
                self._done += sum(rows["size"])
                self._progress(self._done, self._total)
            rows = self._accepted(rows)
            if not rows["type"]:
                continue
            tally.take(machine, rows)
            found = zip(*(rows[name] for name in ("type", "time_ns", "segment", "offset", "size")), strict=True)
            for type, time, segment, offset, size in found:
                if wanted[type]:
                    yield time or 0, machine, segment, offset, size

    def _accepted(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for name, accepts in self._accepts.items():
            column = rows[name]
            if all(map(accepts.__getitem__, set(column))):
                continue
            kept = [at for at, value in enumerate(column) if accepts[value]]
            rows = {other: [values[at] for at in kept] for other, values in rows.items()}
        return rows


class _Remembered(dict[Any, bool]):
    """What a test says of values: asked once for each, as long as there are not too many."""

    def __init__(self, test: Callable[[Any], bool]) -> None:
        super().__init__()
        self._test = test

    def __missing__(self, value: Any) -> bool:
        if len(self) >= DISTINCT:
            self.clear()
        self[value] = answer = self._test(value)
        return answer


def _accepting(selection: Selection) -> dict[str, _Remembered]:
    tests: dict[str, _Remembered] = {}
    matches = re.compile(translate(selection.type)).match if selection.type is not None else None
    if matches is not None or not selection.control:
        tests["type"] = _Remembered(lambda type: _accepts_type(type, matches, selection.control))
    if selection.source is not None:
        tests["source"] = _Remembered(lambda value: value == selection.source)
    if selection.subject is not None:
        tests["subject"] = _Remembered(lambda value: value == selection.subject)
    return tests


def _accepts_type(type: str, matches: Callable[[str], object] | None, control: bool) -> bool:
    if not control and type.startswith(("otledger.", "otel.resource")):
        return False
    return matches is None or matches(type) is not None


class _Lines:
    """Lines of one machine by their place; the segment read last stays open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._segment = ""
        self._fd = -1

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def at(self, segment: str, offset: int, size: int) -> bytes:
        """Give the bytes there. Raises `RootError` where the segment is gone."""
        if segment != self._segment:
            self.__exit__()
            folder = open_folder(self._path)
            try:
                self._fd = open_segment(folder, segment, shown=self._path)
            except FileNotFoundError:
                path = self._path / segment
                raise RootError(f"{path} was moved away while it was read; run it again", path=path) from None
            finally:
                os.close(folder)
            self._segment = segment
        return pread(self._fd, size, offset)
