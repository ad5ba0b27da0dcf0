"""Spans and logs of the OpenTelemetry SDK as parts of lines (format, 4)."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.util import BoundedList
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState

from otledger import spandata as own
from otledger import speed
from otledger.context import current_turn
from otledger.identity import boot_id
from otledger.journal import Resource, dumps
from otledger.record import Encoder
from otledger.writer import Writer

from . import payloads

# Of an Enum's class each look-up is a search.
_INTERNAL, _UNSET = SpanKind.INTERNAL, StatusCode.UNSET
EARLIEST = 1_000_000
"""The first instant in ns that is a line's time; of earlier ones that is the present (`Encoder.telemetry`)."""
_NO_STATE = SpanContext(1, 1, False).trace_state
"""Of all spans without one."""


class Unencodable(ValueError):
    """A value that the SDK's own encoder refuses."""


def normalised(value: Any) -> Any:
    """Give a value as the SDK's encoder sees it: None, bool, str, int, float, bytes, lists and maps of them.

    Raises `Unencodable` for what it refuses. Source: `_encode_value` of opentelemetry-exporter-otlp-proto-common.
    """
    if value is None or isinstance(value, bool | str | int | float | bytes):
        return value
    if isinstance(value, Sequence):
        return [normalised(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): normalised(item) for key, item in value.items()}
    raise Unencodable(f"a value of type {type(value).__name__}")


def attributes_of(attributes: Mapping[str, Any] | None) -> tuple[dict[str, Any], int]:
    """Give attributes as a plain dict, without those that the SDK's encoder leaves out, and how many were dropped."""
    if isinstance(attributes, BoundedAttributes):
        # Cleaned by the SDK when they were set.
        return attributes._dict.copy(), attributes.dropped
    if not attributes:
        return {}, 0
    found = {}
    for key, value in attributes.items():
        try:
            found[key] = normalised(value)
        except Unencodable:
            continue
    return found, 0


class Recorder:
    """Gives the parts of one process's spans and logs, and has their resources and scopes stored."""

    def __init__(self, writer: Writer, encoder: Encoder) -> None:
        self.writer = writer
        self._encoder = encoder
        # By identity, as hashing a resource costs more than writing a span; the objects are kept so that no other
        # gets their ids.
        self._known: dict[tuple[int, int], _Named] = {}
        self._last: _Named = None, None, ({}, "")
        _recorders.add(self)

    def forget(self) -> None:
        """Have resources and scopes stored again: in a forked child the writer knows none."""
        self._known.clear()
        self._last = None, None, ({}, "")

    def _named(self, resource: Any, scope: Any) -> tuple[dict[str, str], str]:
        """Give the members of a record's data that name resource and scope, also as JSON."""
        last = self._last
        if last[0] is resource and last[1] is scope:
            return last[2]
        known = self._last = self._known.get((id(resource), id(scope))) or self._learn(resource, scope)
        return known[2]

    def _learn(self, resource: Any, scope: Any) -> _Named:
        members = {}
        if resource is not None:
            members["resource"] = self._use(resource_record(resource, self._report))
        if scope is not None:
            members["scope"] = self._use(scope_record(scope, self._report))
        if len(self._known) >= 4096:
            self._known.clear()
        text = "".join(f',"{name}":{dumps(digest)}' for name, digest in members.items())
        known = self._known[id(resource), id(scope)] = resource, scope, (members, text)
        return known

    def _use(self, resource: Resource) -> str:
        self.writer.use(resource)
        return resource.digest

    def _report(self, error: BaseException) -> None:
        self.writer.report(error)

    def span_start(self, span: Any) -> bytes:
        """Give the part of the start record of an SDK span, which may have ended just now."""
        process = {"pid": os.getpid(), "started": own.process_started(), "boot": boot_id()}
        return self.span(span, "otel.span.start", {"process": process})

    def span_end(self, span: Any) -> bytes:
        """Give the part of the end record of an SDK span."""
        part = self._usual_end(span) if speed.span is not None else None
        return self.span(span) if part is None else part

    def _usual_end(self, span: Any) -> bytes | None:
        """Give what `span` would, by compiled code; None of a span that is not as most are."""
        # The program waits for this at the end of each span: no property where an attribute will do, and no call for
        # what most spans do not have.
        trace_id, span_id, _, flags, state, valid = span._context
        attributes, events, links, status = span._attributes, span._events, span._links, span._status
        name, end, kind, parent = span._name, span._end_time, span._kind, span._parent
        if (
            not valid
            or not 0 <= flags <= 0xFF
            or (state is not _NO_STATE and state)
            or status is None
            or status._status_code is not _UNSET
            or status._description is not None
            or not events.__class__ is links.__class__ is BoundedList
            or events._dq  # type: ignore[attr-defined]
            or links._dq  # type: ignore[attr-defined]
            or events.dropped
            or links.dropped
            or attributes.__class__ is not BoundedAttributes
            or attributes.dropped
            or name.__class__ is not str
            or end.__class__ is not int
            or end < EARLIEST
            or kind.__class__ is not SpanKind
        ):
            return None
        before, turn = self._encoder.before, getattr(attributes, "_otledger_turn", None)
        more = "" if kind is _INTERNAL else f',"kind":"{kind._name_}"'
        if parent is not None:
            remote = ',"parent_is_remote":true' if parent.is_remote else ""
            more = f'{more},"parent_span_id":"{parent.span_id:016x}"{remote}'
        return speed.span(  # type: ignore[misc]
            self._encoder.own_head("otel.span.end"),
            before if turn is None else f'{before},"ipchash":{dumps(turn)}',
            trace_id.to_bytes(16, "big").hex(),
            span_id.to_bytes(8, "big").hex(),
            flags,
            own.encode_name(name),
            more,
            span._start_time,
            end,
            attributes._dict,
            self._named(span._resource, span._instrumentation_scope)[1],
        )

    def span(self, span: Any, type: str = "otel.span.end", more: Mapping[str, Any] | None = None) -> bytes:
        """Give the part of the end record of an SDK span, or of one of another type with more members of `data`."""
        # The program waits for this at the end of each span: no property where an attribute will do, and no call for
        # what most spans do not have.
        trace_id, span_id, _, flags, state, valid = span._context
        odd = None
        if valid and 0 <= flags <= 0xFF and (state is _NO_STATE or not state):
            members = payloads.header(trace_id, span_id, flags)
        else:
            members, odd = _header(span._context)
        attributes, events, links, status = span._attributes, span._events, span._links, span._status
        turn = getattr(attributes, "_otledger_turn", None)
        if turn is not None:
            members = f',"ipchash":{dumps(turn)}{members}'
        name, kind, parent, start = span._name, span._kind, span._parent, span._start_time
        # A start record tells of none: the span may have ended since it was asked for.
        end = span._end_time if more is None else None
        # Whether orjson may be handed the data as they are.
        plain = name.__class__ is str and start.__class__ is int and (end is None or end.__class__ is int)
        data = {"name": name}
        if kind is not _INTERNAL:
            plain = plain and kind.__class__ is SpanKind
            data["kind"] = getattr(kind, "_name_", kind)
        if parent is not None:
            data["parent_span_id"] = f"{parent.span_id:016x}"
            if parent.is_remote:
                data["parent_is_remote"] = True
        data["start"] = start
        if end is not None:
            data["end"] = end
        dropped = 0
        if attributes.__class__ is BoundedAttributes:
            dropped = attributes.dropped
            # Of a span that is open another thread may set one meanwhile.
            attributes = attributes._dict if more is None else attributes._dict.copy()
        else:
            attributes, _ = attributes_of(attributes)
        if attributes:
            plain = plain and payloads.are_plain(attributes)
            data["attributes"] = attributes
        if (
            dropped
            or odd is not None
            or status is None
            or status._status_code is not _UNSET
            or status._description is not None
            or not events.__class__ is links.__class__ is BoundedList
            or events._dq  # type: ignore[attr-defined]
            or links._dq  # type: ignore[attr-defined]
            or events.dropped
            or links.dropped
        ):
            plain = False
            data |= _rest(span, odd)
        data |= self._named(span._resource, span._instrumentation_scope)[0]
        if more is not None:
            data |= more
        text = payloads.of_span(data, self._report, plain)
        return self._encoder.telemetry(type, start if end is None else end, text, members)

    def log(self, readable: Any, turn: str | None = None) -> bytes:
        """Give the part of an SDK log record."""
        record = readable.log_record
        # What is no SeverityNumber encodes as none.
        severity = getattr(record.severity_number, "value", None)
        try:
            body = normalised(record.body)
        except Unencodable:
            # The encoder would refuse the whole batch for it; here it is kept as what it shows of itself.
            body = record.body
        attributes, dropped = attributes_of(record.attributes)
        members, odd = _log_header(record)
        found = {
            "timestamp": record.timestamp,
            "observed_timestamp": record.observed_timestamp,
            "severity_number": severity,
            "severity_text": record.severity_text,
            "body": body,
            "event_name": record.event_name,
            "attributes": attributes or None,
            "dropped": dropped or None,
            **odd,
        }
        data = {name: value for name, value in found.items() if value is not None}
        data |= self._named(readable.resource, readable.instrumentation_scope)[0]
        if turn is None and record.context:
            turn = current_turn(record.context)
        if turn is not None:
            members = f',"ipchash":{dumps(turn)}{members}'
        ns = record.timestamp if record.timestamp else record.observed_timestamp
        return self._encoder.telemetry("otel.log", ns, payloads.of_log(data, self._report), members)


_Named = tuple[Any, Any, tuple[dict[str, str], str]]
"""A resource, a scope, and the members that name them."""


def _rest(span: Any, odd: Mapping[str, Any] | None) -> dict[str, Any]:
    """Give the members of a span that few have, between its attributes and its resource."""
    found = {
        "events": [_event(event) for event in span._events],
        "links": [_link(link) for link in span._links],
        "status": _status(span._status),
        "dropped": payloads.dropped(span.dropped_attributes, span.dropped_events, span.dropped_links),
        **(odd or {}),
    }
    return {name: value for name, value in found.items() if value or name not in _LEFT_OUT}


_LEFT_OUT = frozenset({"events", "links", "status", "dropped"})
"""Members that are left out where they are empty."""


def _event(event: Any) -> dict[str, Any]:
    attributes, _ = attributes_of(event.attributes)
    return payloads.event(event.name, event.timestamp, attributes, event.dropped_attributes)


def _link(link: Any) -> dict[str, Any]:
    context, (attributes, _) = link.context, attributes_of(link.attributes)
    ids = f"{context.trace_id:032x}", f"{context.span_id:016x}", int(context.trace_flags)
    state = header_of(context.trace_state) if context.trace_state else ""
    return payloads.link(*ids, context.is_remote, state, attributes, link.dropped_attributes)


def _status(status: Any) -> dict[str, Any]:
    if status is None:
        return {}
    code, description = status.status_code, status.description
    found = {} if code is _UNSET else {"code": getattr(code, "name", code)}
    return found if description is None else {**found, "description": description}


def header_of(state: TraceState) -> str:
    """Give a trace state as its header, as the SDK's encoder writes it."""
    return ",".join(f"{key}={value}" for key, value in state.items())


def _header(context: SpanContext) -> tuple[str, dict[str, Any]]:
    """Give the members of a record that name the span, and those of its data where they form no valid header."""
    flags, members, odd = int(context.trace_flags), "", {}
    if context.is_valid and 0 <= flags <= 0xFF:
        members = payloads.header(context.trace_id, context.span_id, flags)
    else:
        odd = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}", "trace_flags": flags}
    if context.trace_state:
        state = header_of(context.trace_state)
        if members and payloads.is_header(state):
            members += f',"tracestate":{dumps(state)}'
        else:
            odd["trace_state"] = state
    return members, odd


def _log_header(record: Any) -> tuple[str, dict[str, Any]]:
    """Give the members that name the span of a log record, and those of its data where they form no header."""
    context = SpanContext(record.trace_id or 0, record.span_id or 0, False, record.trace_flags or TraceFlags(0))
    if not (context.trace_id or context.span_id or context.trace_flags):
        return "", {}
    return _header(context)


def resource_record(resource: Any, report: payloads.Report) -> Resource:
    """Give an SDK resource as it is stored."""
    attributes, dropped = attributes_of(resource.attributes)
    return payloads.resource(attributes, resource.schema_url, dropped, report)


def scope_record(scope: Any, report: payloads.Report) -> Resource:
    """Give an SDK instrumentation scope as it is stored."""
    attributes, dropped = attributes_of(scope.attributes)
    return payloads.scope(scope.name, scope.version, attributes, scope.schema_url, dropped, report)


_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _after_fork() -> None:
    for recorder in list(_recorders):
        recorder.forget()


os.register_at_fork(after_in_child=_after_fork)
