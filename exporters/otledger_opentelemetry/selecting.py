"""Which spans and logs of a ledger are replayed, in which order, and how far that got."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from otledger.errors import FormatError
from otledger.filter import Filter
from otledger.reader import Reader
from otledger.record import Record

from .rebuilding import Rebuilder, ended


@dataclass(frozen=True, slots=True)
class Item:
    """One span or log record, and the record that it was rebuilt from."""

    signal: ReadableSpan | ReadableLogRecord
    record: Record


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
    """What could not be rebuilt."""
    read: int = 0
    """Bytes of lines read so far."""

    def items(self, reader: Reader, machines: Sequence[str] | None = None) -> Iterator[Item]:
        """Iterate machine by machine, each in the order of its records."""
        seen: set[int] = set()
        for machine in reader.machines() if machines is None else machines:
            yield from self._of_machine(reader, machine, seen)

    def _of_machine(self, reader: Reader, machine: str, seen: set[int]) -> Iterator[Item]:
        rebuilder = Rebuilder()
        _, wanted = self.filter.compile() if self.filter is not None else (None, None)
        begun: dict[tuple[str, str], Record] = {}
        last_seen: dict[str, int] = {}
        for record in reader.records(machines=[machine], on_fault=self.skipped.append):
            self.read += len(record.line)
            if record.type == "otel.resource":
                rebuilder.learn(record)
            elif record.type.startswith("otel.span."):
                key = record.trace_id or "", record.span_id or ""
                last_seen[key[0]] = max(last_seen.get(key[0], 0), record.time_ns)
                if record.type == "otel.span.start":
                    begun.setdefault(key, record)
                    continue
                begun.pop(key, None)
                # A hash of 64 bits for each span, not its ids: ledgers have millions of them.
                number = hash(key)
                if self.spans and number not in seen and (wanted is None or wanted(record)):
                    seen.add(number)
                    yield from self._span(rebuilder, record)
            elif record.type == "otel.log" and self.logs and (wanted is None or wanted(record)):
                yield from self._log(rebuilder, record)
        if not (self.unfinished and self.spans):
            return
        for key, record in begun.items():
            if hash(key) not in seen and (wanted is None or wanted(record)):
                yield from self._span(rebuilder, record, end=last_seen[key[0]])

    def _span(self, rebuilder: Rebuilder, record: Record, end: int | None = None) -> Iterator[Item]:
        try:
            span = rebuilder.span(record)
        except (FormatError, KeyError, TypeError, ValueError, AttributeError) as error:
            self._skip(record, error)
            return
        if end is not None:
            span = ended(span, end)
        if self._takes_span(span):
            yield Item(span, record)

    def _takes_span(self, span: ReadableSpan) -> bool:
        context = span.get_span_context()
        if not self.unsampled and context is not None and not context.trace_flags & 1:
            return False
        if self.errors and (span.status is None or span.status.status_code is not StatusCode.ERROR):
            return False
        return self._of_service(span.resource)

    def _log(self, rebuilder: Rebuilder, record: Record) -> Iterator[Item]:
        try:
            log = rebuilder.log(record)
        except (FormatError, KeyError, TypeError, ValueError, AttributeError) as error:
            self._skip(record, error)
            return
        severity = log.log_record.severity_number
        if self.errors and (severity is None or severity.value < 17):
            return
        if self._of_service(log.resource):
            yield Item(log, record)

    def _of_service(self, resource: Any) -> bool:
        return self.service is None or resource.attributes.get("service.name") == self.service

    def _skip(self, record: Record, error: Exception) -> None:
        self.skipped.append(FormatError(f"{record.machine}, seq {record.seq}: no {record.type[5:]}: {error}"))
