"""Records of the ledger as objects of the OpenTelemetry SDK, which encode to OTLP as the originals did."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context.context import Context
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState

from otledger.errors import FormatError
from otledger.filter import Filter
from otledger.reader import Reader
from otledger.record import Record

if TYPE_CHECKING:
    from .selecting import Selection

log = logging.getLogger("otledger")

UNFINISHED = "otledger.unfinished"
"""The attribute of a span that had not ended, and was ended where it was last seen."""

_NO_CONTEXT = Context({"otledger": "replay"})
"""Not empty: of an empty one `LogRecord` would take the current span instead."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A resource or scope of a partition."""

    resource: Resource | None = None
    scope: InstrumentationScope | None = None


class Rebuilder:
    """Takes the records of one machine in their order; makes one object of each resource and each scope."""

    def __init__(self) -> None:
        self._definitions: dict[str, Definition] = {}

    def learn(self, record: Record) -> None:
        """Take an `otel.resource` record."""
        data = record.data
        if isinstance(data, dict) and isinstance(data.get("digest"), str):
            # The first stays: spans of one resource must have one object, or they encode as several.
            self._definitions.setdefault(data["digest"], _definition(data))

    def span(self, record: Record) -> ReadableSpan:
        """Give the span of a start or end record. Raises `FormatError` where its data is none."""
        data = _data(record)
        context = _context(record, data)
        parent_id = data.get("parent_span_id")
        parent = None
        if parent_id is not None:
            parent = SpanContext(context.trace_id, int(parent_id, 16), data.get("parent_is_remote", False))
        dropped = data.get("dropped") or {}
        return ReadableSpan(
            name=data.get("name"),  # type: ignore[arg-type]
            context=context,
            parent=parent,
            resource=self._resource(data),
            attributes=_attributes(data.get("attributes"), dropped.get("attributes", 0)),
            events=_list([_event(event) for event in data.get("events") or ()], dropped.get("events", 0)),
            links=_list([_link(link) for link in data.get("links") or ()], dropped.get("links", 0)),
            kind=_kind(data.get("kind", "INTERNAL")),
            status=_status(data),
            start_time=data.get("start"),
            end_time=data.get("end"),
            instrumentation_scope=self._scope(data),
        )

    def log(self, record: Record) -> ReadableLogRecord:
        """Give the log record of an `otel.log`. Raises `FormatError` where its data is none."""
        data = _data(record)
        severity = data.get("severity_number")
        log = LogRecord(
            timestamp=data.get("timestamp"),
            observed_timestamp=0,
            context=_NO_CONTEXT,
            severity_text=data.get("severity_text"),
            severity_number=_severity(severity),
            body=data.get("body"),
            attributes=_attributes(data.get("attributes"), data.get("dropped", 0)),
            event_name=data.get("event_name"),
        )
        # Set afterwards: the constructor would put the present time and the current span for what is missing.
        log.observed_timestamp = data.get("observed_timestamp")  # type: ignore[assignment]
        if record.traceparent is not None or "trace_id" in data:
            context = _context(record, data)
            log.trace_id, log.span_id, log.trace_flags = context.trace_id, context.span_id, context.trace_flags
        else:
            log.trace_id, log.span_id, log.trace_flags = 0, 0, TraceFlags(0)
        return ReadableLogRecord(log, self._resource(data), self._scope(data))

    def _resource(self, data: Mapping[str, Any]) -> Resource:
        digest = data.get("resource")
        if digest is None:
            return Resource({})
        resource = self._defined(digest).resource
        if resource is None:
            raise FormatError(f"it names {digest} as its resource, and that is a scope")
        return resource

    def _scope(self, data: Mapping[str, Any]) -> InstrumentationScope | None:
        digest = data.get("scope")
        if digest is None:
            return None
        scope = self._defined(digest).scope
        if scope is None:
            raise FormatError(f"it names {digest} as its scope, and that is a resource")
        return scope

    def _defined(self, digest: str) -> Definition:
        found = self._definitions.get(digest)
        if found is None:
            raise FormatError(f"it names the resource or scope {digest}, and no record before it defines that")
        return found


def read_spans(
    root: str | Path, filter: Filter | None = None, *, unfinished: bool = False, unsampled: bool = False
) -> Iterator[ReadableSpan]:
    """Iterate over the sampled spans of a ledger that ended, each (trace, span) once.

    With `unfinished` also over those that did not end, last: they end where their trace was last seen, and have
    the attribute `otledger.unfinished`. With `unsampled` also over those whose sampled flag is not set.
    What cannot be read is passed over, with a warning. Raises `RootError`.
    """
    from .selecting import Selection

    for signal in _signals(root, Selection(filter, unfinished=unfinished, unsampled=unsampled, logs=False)):
        if isinstance(signal, ReadableSpan):
            yield signal


def read_logs(root: str | Path, filter: Filter | None = None) -> Iterator[ReadableLogRecord]:
    """Iterate over the log records of a ledger.

    What cannot be read is passed over, with a warning. Raises `RootError`.
    """
    from .selecting import Selection

    for signal in _signals(root, Selection(filter, spans=False)):
        if isinstance(signal, ReadableLogRecord):
            yield signal


def _signals(root: str | Path, selection: Selection) -> Iterator[ReadableSpan | ReadableLogRecord]:
    for item in selection.items(Reader(root)):
        yield item.signal
    for problem in selection.skipped:
        log.warning("%s", problem)


def ended(span: ReadableSpan, at: int) -> ReadableSpan:
    """Give an unfinished span as one that ended at `at`, and says that it did not."""
    attributes = BoundedAttributes(None, None, immutable=False)
    attributes._dict = {**span._attributes, UNFINISHED: True}  # type: ignore[dict-item]
    span._attributes, span._end_time = attributes, max(at, span.start_time or 0)
    return span


def _data(record: Record) -> dict[str, Any]:
    data = record.data
    if not isinstance(data, dict):
        raise FormatError("its data is no object")
    return data


def _definition(data: Mapping[str, Any]) -> Definition:
    attributes, schema_url = _attributes(data.get("attributes"), data.get("dropped", 0)), data.get("schema_url")
    if data.get("kind") == "resource":
        resource = Resource({}, schema_url)
        resource._attributes = attributes
        return Definition(resource=resource)
    scope = InstrumentationScope(data.get("name"), data.get("version"), schema_url)  # type: ignore[arg-type]
    scope._attributes = attributes
    return Definition(scope=scope)


def _attributes(stored: Any, dropped: int) -> BoundedAttributes:
    attributes = BoundedAttributes(None, None, immutable=True)
    # Not by its constructor: they were cleaned when they were set, and must stay what they are.
    attributes._dict = dict(stored) if stored else {}
    attributes.dropped = dropped
    return attributes


def _list(items: Sequence[Any], dropped: int) -> Sequence[Any]:
    if not items and not dropped:
        # Most spans have no events and no links, and a `BoundedList` has a lock.
        return ()
    found: BoundedList[Any] = BoundedList(None)
    found.extend(items)
    found.dropped = dropped
    return found


def _event(event: Mapping[str, Any]) -> Event:
    return Event(event.get("name"), _attributes(event.get("attributes"), event.get("dropped", 0)), event.get("time"))  # type: ignore[arg-type]


def _link(link: Mapping[str, Any]) -> Link:
    context = SpanContext(
        int(link.get("trace_id") or "0", 16),
        int(link.get("span_id") or "0", 16),
        link.get("is_remote", False),
        TraceFlags(link.get("trace_flags", 0)),
        trace_state(link.get("trace_state")),
    )
    return Link(context, _attributes(link.get("attributes"), link.get("dropped", 0)))


def _context(record: Record, data: Mapping[str, Any]) -> SpanContext:
    header = record.traceparent
    if header is not None:
        trace_id, span_id, flags = header[3:35], header[36:52], int(header[53:55], 16)
    else:
        trace_id, span_id, flags = data.get("trace_id", "0"), data.get("span_id", "0"), data.get("trace_flags", 0)
    state = data.get("trace_state", record.tracestate)
    try:
        return SpanContext(int(trace_id, 16), int(span_id, 16), False, TraceFlags(flags), trace_state(state))
    except (TypeError, ValueError) as error:
        raise FormatError(f"its ids or flags are none: {error}") from None


def trace_state(header: str | None) -> TraceState:
    """Give a trace state of its header, with all its entries, valid or not."""
    state = TraceState()
    if header:
        for entry in header.split(","):
            key, _, value = entry.partition("=")
            state._dict[key] = value
    return state


def _kind(name: Any) -> Any:
    return SpanKind[name] if name in SpanKind.__members__ else name


def _status(data: Mapping[str, Any]) -> Any:
    if "status" not in data:
        return Status(StatusCode.UNSET)
    stored = data["status"]
    if stored is None:
        return None
    status = Status(StatusCode[stored.get("code", "UNSET")])
    # Not by its constructor, which keeps a description of errors only.
    status._description = stored.get("description")
    return status


def _severity(number: Any) -> Any:
    try:
        return None if number is None else SeverityNumber(number)
    except ValueError:
        return None
