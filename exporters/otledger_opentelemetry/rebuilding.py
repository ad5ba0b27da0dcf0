"""Records of the ledger as objects of the OpenTelemetry SDK, which encode to OTLP as the originals did."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
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

_KINDS = dict(SpanKind.__members__)
_FLAGS = {f"{flags:02x}": TraceFlags(flags) for flags in range(256)}
_UNSET = Status(StatusCode.UNSET)
"""Of all spans without a status, as the SDK has it."""
_NOTHING: Mapping[str, int] = {}

_NO_CONTEXT = Context({"otledger": "replay"})
"""Not empty: of an empty one `LogRecord` would take the current span instead."""


class _Rebuilt(Resource):
    """A resource of the SDK that computes its hash once: the encoder asks for it at each span."""

    _hash: int | None = None

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = super().__hash__()
        return self._hash


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
        get = data.get
        context = _context(record, data)
        parent_id = get("parent_span_id")
        parent = None
        if parent_id is not None:
            parent = SpanContext(context.trace_id, int(parent_id, 16), get("parent_is_remote", False))
        dropped = get("dropped") or _NOTHING
        return ReadableSpan(
            name=get("name"),  # type: ignore[arg-type]
            context=context,
            parent=parent,
            resource=self._resource(data),
            attributes=_attributes(get("attributes"), dropped.get("attributes", 0)),
            events=_list(get("events"), _event, dropped.get("events", 0)),
            links=_list(get("links"), _link, dropped.get("links", 0)),
            kind=_kind(get("kind", "INTERNAL")),
            status=_status(data["status"]) if "status" in data else _UNSET,
            start_time=get("start"),
            end_time=get("end"),
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
    span._attributes = _attributes({**(span.attributes or {}), UNFINISHED: True}, span.dropped_attributes)
    span._end_time = max(at, span.start_time or 0)
    return span


def _data(record: Record) -> dict[str, Any]:
    data = record.data
    if not isinstance(data, dict):
        raise FormatError("its data is no object")
    return data


def _definition(data: Mapping[str, Any]) -> Definition:
    attributes, schema_url = _bounded(data.get("attributes"), data.get("dropped", 0)), data.get("schema_url")
    if data.get("kind") == "resource":
        resource = _Rebuilt({}, schema_url)
        resource._attributes = attributes
        return Definition(resource=resource)
    scope = InstrumentationScope(data.get("name"), data.get("version"), schema_url)  # type: ignore[arg-type]
    scope._attributes = attributes
    return Definition(scope=scope)


def _attributes(stored: Any, dropped: int) -> Any:
    """Give attributes as the SDK takes them: what nothing was dropped of needs no object with a lock of its own."""
    if dropped:
        return _bounded(stored, dropped)
    return stored if stored.__class__ is dict else dict(stored) if stored else {}


def _bounded(stored: Any, dropped: int) -> BoundedAttributes:
    attributes = BoundedAttributes(None, None, immutable=True)
    # Not by its constructor: they were cleaned when they were set, and must stay what they are.
    attributes._dict = dict(stored) if stored else {}
    attributes.dropped = dropped
    return attributes


def _list(stored: Any, read: Callable[[Any], Any], dropped: int) -> Sequence[Any]:
    if not stored and not dropped:
        return ()
    found: BoundedList[Any] = BoundedList(None)
    found.extend([read(item) for item in stored or ()])
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
    state = data.get("trace_state", record.tracestate)
    try:
        if header is not None:
            flags = _FLAGS.get(header[53:55]) or TraceFlags(int(header[53:55], 16))
            trace_id, span_id = int(header[3:35], 16), int(header[36:52], 16)
        else:
            flags = TraceFlags(data.get("trace_flags", 0))
            trace_id, span_id = int(data.get("trace_id", "0"), 16), int(data.get("span_id", "0"), 16)
        # Without a state all have the same one.
        return SpanContext(trace_id, span_id, False, flags, trace_state(state) if state else None)
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
    return _KINDS.get(name, name)


def _status(stored: Any) -> Any:
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
