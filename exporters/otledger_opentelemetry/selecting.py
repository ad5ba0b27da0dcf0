"""Which spans and logs of a ledger are replayed, in which order, and how far that got."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from otledger.errors import FormatError
from otledger.filter import Filter
from otledger.reader import Reader
from otledger.record import Record
from otledger.segment import HEADER_TYPE

from .rebuilding import Rebuilder, ended

_UNREADABLE = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    RecursionError,
    msgspec.MsgspecError,
)
"""What the data of a record raises that is no span, log record or resource; `FormatError` is a ValueError."""


class Item(NamedTuple):
    """One span or log record, and the record that it was rebuilt from."""

    signal: ReadableSpan | ReadableLogRecord
    record: Record
    unfinished: bool = False
    """A span that has not ended, by its start record."""


@dataclass(slots=True)
class Selection:
    """Picks spans and logs. Holds the ids of spans seen, and the start records of spans that are open."""

    filter: Filter | None = None
    unfinished: bool = False
    """Also spans that did not end, ended where they were last seen."""
    unsampled: bool = False
    """Also spans whose sampled flag is not set."""
    errors: bool = False
    """Only spans whose status is an error, and logs of severity ERROR and above."""
    service: str | None = None
    """Only those whose resource has this `service.name`."""
    spans: bool = True
    logs: bool = True
    skipped: list[FormatError] = field(default_factory=list)
    """What could not be read or rebuilt."""
    read: int = 0
    """Bytes of lines read so far."""
    chains: dict[str, str] = field(default_factory=dict)
    """For each machine that was begun to read, which chain of records it is (format, 5: `ledger`)."""

    def items(
        self, reader: Reader, machines: Sequence[str] | None = None, sent: Mapping[str, int] | None = None
    ) -> Iterator[Item]:
        """Iterate over the records: those of a machine in their order, machines merged by time, unfinished spans last.

        Of what stands below the `seq` that `sent` has for a machine only unfinished spans are given.
        """
        run = _Pass(self, sent or {})
        streams = [
            run.items(reader.records(machines=[machine], on_fault=self.skipped.append))
            for machine in (reader.machines() if machines is None else machines)
        ]
        # Not the records: a header may be younger than all that follows it, and would hold its machine back.
        yield from streams[0] if len(streams) == 1 else heapq.merge(*streams, key=_time_of)
        yield from run.unfinished()

    def takes_span(self, span: ReadableSpan) -> bool:
        """Tell whether a span is wanted, by what it holds."""
        context = span.get_span_context()
        if not self.unsampled and context is not None and not context.trace_flags & 1:
            return False
        if self.errors and (span.status is None or span.status.status_code is not StatusCode.ERROR):
            return False
        return self._is_of_service(span.resource)

    def takes_log(self, log: ReadableLogRecord) -> bool:
        """Tell whether a log record is wanted, by what it holds."""
        severity = log.log_record.severity_number
        if self.errors and (severity is None or severity.value < 17):
            return False
        return self._is_of_service(log.resource)

    def _is_of_service(self, resource: Any) -> bool:
        return self.service is None or resource.attributes.get("service.name") == self.service


class _Pass:
    """One way through a ledger."""

    def __init__(self, selection: Selection, sent: Mapping[str, int]) -> None:
        self._selection = selection
        self._sent = sent
        # By machine: a partition defines the resources and scopes that it names.
        self._rebuilders: dict[str, Rebuilder] = defaultdict(Rebuilder)
        _, self._wanted = selection.filter.compile() if selection.filter is not None else (None, None)
        # Hashes of 64 bits, not the ids: ledgers have millions of spans.
        self._seen: set[int] = set()
        self._watching = selection.unfinished and selection.spans
        self._ended: set[int] = set()
        self._begun: dict[tuple[str, str], Record] = {}
        self._last_seen: dict[str, int] = {}

    def items(self, records: Iterable[Record]) -> Iterator[Item]:
        for record in records:
            self._selection.read += len(record.line)
            try:
                item = self._take(record)
            except _UNREADABLE as error:
                self._skip(record, error)
                continue
            if item is not None:
                yield item

    def unfinished(self) -> Iterator[Item]:
        for key, record in self._begun.items():
            if hash(key) in self._ended or not (self._wanted is None or self._wanted(record)):
                continue
            try:
                span = ended(self._rebuilders[record.machine].span(record), self._last_seen[key[0]])
                if self._selection.takes_span(span):
                    yield Item(span, record, unfinished=True)
            except _UNREADABLE as error:
                self._skip(record, error)

    def _take(self, record: Record) -> Item | None:
        type = record.type
        if self._watching:
            self._note_time(record)
        if type == "otel.span.end":
            return self._take_end(record)
        if type == "otel.log":
            return self._take_log(record)
        if type == "otel.span.start":
            if self._watching:
                self._begun.setdefault(_key(record), record)
        elif type == "otel.resource":
            self._rebuilders[record.machine].learn(record)
        elif type == HEADER_TYPE and record.machine not in self._selection.chains:
            self._selection.chains[record.machine] = str(record.data["ledger"])
        return None

    def _note_time(self, record: Record) -> None:
        trace_id = record.trace_id
        if trace_id is not None:
            self._last_seen[trace_id] = max(self._last_seen.get(trace_id, 0), record.time_ns)

    def _take_end(self, record: Record) -> Item | None:
        key = _key(record)
        number = hash(key)
        if self._watching:
            self._ended.add(number)
            self._begun.pop(key, None)
        if not self._selection.spans or not (self._wanted is None or self._wanted(record)):
            return None
        # Spans without ids are not the same span.
        if number in self._seen and all(key):
            return None
        if self._is_sent(record):
            self._seen.add(number)
            return None
        span = self._rebuilders[record.machine].span(record)
        # Not before: where this one is damaged, another may be whole.
        self._seen.add(number)
        return Item(span, record) if self._selection.takes_span(span) else None

    def _take_log(self, record: Record) -> Item | None:
        if not self._selection.logs or self._is_sent(record) or not (self._wanted is None or self._wanted(record)):
            return None
        log = self._rebuilders[record.machine].log(record)
        return Item(log, record) if self._selection.takes_log(log) else None

    def _is_sent(self, record: Record) -> bool:
        return record.seq < self._sent.get(record.machine, 0)

    def _skip(self, record: Record, error: Exception) -> None:
        why = f"{type(error).__name__}: {error}" if not isinstance(error, FormatError) else str(error)
        self._selection.skipped.append(
            FormatError(
                f"{record.machine}, seq {record.seq}: the record {record.type} cannot be used: {why};"
                " see what is wrong with: otledger verify",
                seq=record.seq,
            )
        )


def _time_of(item: Item) -> int:
    return item.record.time_ns


def _key(record: Record) -> tuple[str, str]:
    return record.trace_id or "", record.span_id or ""
