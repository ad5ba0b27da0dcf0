"""Spans and logs of the OpenTelemetry SDK as parts of lines (format, 4)."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.trace import SpanContext, SpanKind, StatusCode
from opentelemetry.trace.span import TraceState

from otledger import spandata as own
from otledger import values
from otledger.batch import MAX_LINE, STAMP_ROOM
from otledger.context import current_turn
from otledger.identity import boot_id
from otledger.journal import Resource, dumps
from otledger.record import Encoder
from otledger.writer import Writer

_MAX_PART = MAX_LINE - STAMP_ROOM
_CUT_ROOM = 65_536
_SHORT = 1000


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
        # By identity, as hashing a resource costs more than writing a span; the object is kept so that no other
        # gets its id.
        self._members: dict[tuple[int, int], tuple[Any, Any, str]] = {}
        _recorders.add(self)

    def forget(self) -> None:
        """Have resources and scopes stored again: in a forked child the writer knows none."""
        self._members.clear()

    def members_of(self, resource: Any, scope: Any) -> str:
        """Give the members that name resource and scope in a record's data."""
        known = self._members.get((id(resource), id(scope)))
        if known is not None:
            return known[2]
        members = ""
        if resource is not None:
            members += f',"resource":"{self._use(resource_record(resource))}"'
        if scope is not None:
            members += f',"scope":"{self._use(scope_record(scope))}"'
        if len(self._members) >= 4096:
            self._members.clear()
        self._members[id(resource), id(scope)] = resource, scope, members
        return members

    def _use(self, resource: Resource) -> str:
        self.writer.use(resource)
        return resource.digest

    # Spans

    def span_start(self, span: Any, turn: str | None) -> bytes:
        """Give the part of the start record of an SDK span that is open."""
        process = {"pid": os.getpid(), "started": own.process_started(), "boot": boot_id()}
        return self._span("otel.span.start", span, span.start_time, turn, f',"process":{dumps(process)}')

    def span_end(self, span: Any, turn: str | None) -> bytes:
        """Give the part of the end record of an SDK span."""
        return self._span("otel.span.end", span, span.end_time, turn, "")

    def _span(self, type: str, span: Any, ns: Any, turn: str | None, process: str) -> bytes:
        context = span._context
        flags = context.trace_flags
        if context.is_valid and 0 <= flags <= 0xFF and not context.trace_state:
            members, odd = f',"traceparent":"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"', ""
        else:
            members, odd = header_members(context)
        if turn is not None:
            members = f',"ipchash":{dumps(turn)}{members}'
        before = "" if span._kind is SpanKind.INTERNAL else _kind(span._kind)
        parent = span._parent
        if parent is not None:
            before += f',"parent_span_id":"{parent.span_id:016x}"'
            if parent.is_remote:
                before += ',"parent_is_remote":true'
        start, end = span._start_time, span._end_time
        before += f',"start":{start if start.__class__ is int else dumps(start)}'
        if end is not None:
            before += f',"end":{end if end.__class__ is int else dumps(end)}'
        after = _status(span._status)
        attributes, dropped = attributes_of(span._attributes)
        events: list[dict[str, Any]] = [_event(event) for event in span._events] if span._events else []
        links: list[dict[str, Any]] = [_link(link) for link in span._links] if span._links else []
        if dropped or events or links or span.dropped_events or span.dropped_links:
            after += _dropped(span)
        after += odd + self.members_of(span._resource, span._instrumentation_scope)
        name = own.encode_name(span._name)
        part = self._encoder.telemetry(
            type, ns, f'{{"name":{name}{before}{_collections(attributes, events, links)}{after}{process}}}', members
        )
        if len(part) <= _MAX_PART:
            return part
        encoded, count = own.cut_largest(attributes, events, links, _MAX_PART - _CUT_ROOM)
        self._report_cut("span", count)
        return self._encoder.telemetry(
            type,
            ns,
            f'{{"name":{dumps(str(span.name)[:_SHORT])}{before}{own.named(encoded)}{_status(span.status, _SHORT)}'
            f"{_dropped(span)}{odd}{self.members_of(span.resource, span.instrumentation_scope)}{process}}}",
            members,
        )

    # Logs

    def log(self, readable: Any, turn: str | None = None) -> bytes:
        """Give the part of an SDK log record."""
        record = readable.log_record
        data: dict[str, Any] = {}
        for member in ("timestamp", "observed_timestamp"):
            value = getattr(record, member)
            if value is not None:
                data[member] = value
        # What is no SeverityNumber encodes as none.
        severity = getattr(record.severity_number, "value", None)
        if severity is not None:
            data["severity_number"] = severity
        if record.severity_text is not None:
            data["severity_text"] = record.severity_text
        try:
            body = normalised(record.body)
        except Unencodable:
            # The encoder would refuse the whole batch for it; here it is kept as what it shows of itself.
            body = record.body
        if body is not None:
            data["body"] = body
        if record.event_name is not None:
            data["event_name"] = record.event_name
        attributes, dropped = attributes_of(record.attributes)
        if attributes:
            data["attributes"] = attributes
        if dropped:
            data["dropped"] = dropped
        members, odd = log_members(record)
        if turn is None and record.context:
            turn = current_turn(record.context)
        if turn is not None:
            members = f',"ipchash":{dumps(turn)}{members}'
        ns = record.timestamp if record.timestamp else record.observed_timestamp
        named = self.members_of(readable.resource, readable.instrumentation_scope)
        encoder = self._encoder
        try:
            part = encoder.telemetry("otel.log", ns, _with_members(dumps(data), odd + named), members)
            if len(part) <= _MAX_PART:
                return part
        except values.TooDeep:
            pass
        rest = {"body": data.pop("body", None), "attributes": data.pop("attributes", {})}
        encoded, count = own.cut_largest(rest, [], [], _MAX_PART - _CUT_ROOM)
        self._report_cut("log record", count)
        for member in ("severity_text", "event_name"):
            if member in data:
                data[member] = str(data[member])[:_SHORT]
        cut = encoded[0].decode()[1:-1] if encoded[0] else ""
        joined = ",".join(filter(None, (dumps(data)[1:-1], cut)))
        return encoder.telemetry("otel.log", ns, _with_members(f"{{{joined}}}", odd + named), members)

    def _report_cut(self, what: str, count: int) -> None:
        self.writer.report(ValueError(f"a {what} was too large for a line: {count} of its values were cut"))


def _with_members(text: str, members: str) -> str:
    """Give a JSON object with more members, which begin with a comma."""
    return f"{text[:-1]}{members}}}" if text != "{}" else f"{{{members[1:]}}}"


def _kind(kind: Any) -> str:
    if kind is SpanKind.INTERNAL:
        return ""
    return f',"kind":{dumps(kind.name if isinstance(kind, SpanKind) else kind)}'


def _status(status: Any, longest: int | None = None) -> str:
    if status is None:
        return ""
    code, description = status.status_code, status.description
    if code is StatusCode.UNSET and description is None:
        return ""
    members = {} if code is StatusCode.UNSET else {"code": code.name if isinstance(code, StatusCode) else code}
    if description is not None:
        members["description"] = description[:longest]
    return f',"status":{dumps(members)}'


def _dropped(span: Any) -> str:
    counts = {"attributes": span.dropped_attributes, "events": span.dropped_events, "links": span.dropped_links}
    if not any(counts.values()):
        return ""
    return f',"dropped":{dumps({name: count for name, count in counts.items() if count})}'


def _collections(attributes: dict[str, Any], events: list[dict[str, Any]], links: list[dict[str, Any]]) -> str:
    try:
        if not events and not links and own.PLAIN.issuperset(map(type, attributes.values())):
            return f',"attributes":{own.encode_plain(attributes).decode()}' if attributes else ""
        return own.collections(attributes, events, links)
    except values.TooDeep:
        encoded, _ = own.cut_largest(attributes, events, links, _MAX_PART - _CUT_ROOM)
        return own.named(encoded)


def _event(event: Any) -> dict[str, Any]:
    attributes, _ = attributes_of(event.attributes)
    found: dict[str, Any] = {"name": event.name, "time": event.timestamp}
    if attributes:
        found["attributes"] = attributes
    if event.dropped_attributes:
        found["dropped"] = event.dropped_attributes
    return found


def _link(link: Any) -> dict[str, Any]:
    context = link.context
    found: dict[str, Any] = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
    if context.trace_flags:
        found["trace_flags"] = int(context.trace_flags)
    if context.is_remote:
        found["is_remote"] = True
    if context.trace_state:
        found["trace_state"] = header_of(context.trace_state)
    attributes, _ = attributes_of(link.attributes)
    if attributes:
        found["attributes"] = attributes
    if link.dropped_attributes:
        found["dropped"] = link.dropped_attributes
    return found


def header_of(state: TraceState) -> str:
    """Give a trace state as its header, as the SDK's encoder writes it."""
    return ",".join(f"{key}={value}" for key, value in state.items())


def header_members(context: SpanContext) -> tuple[str, str]:
    """Give the members of a record that name the span, and those of its data where they form no valid header."""
    flags = context.trace_flags
    valid = context.is_valid and 0 <= flags <= 0xFF
    odd = ""
    if valid:
        members = f',"traceparent":"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"'
    else:
        members = ""
        odd = f',"trace_id":"{context.trace_id:032x}","span_id":"{context.span_id:016x}","trace_flags":{int(flags)}'
    state = context.trace_state
    if state:
        header = header_of(state)
        if valid and is_header(state, header):
            members += f',"tracestate":{dumps(header)}'
        else:
            odd += f',"trace_state":{dumps(header)}'
    return members, odd


def is_header(state: TraceState, header: str) -> bool:
    """Tell whether a reader of the header gets the same entries."""
    return len(header) <= 1024 and TraceState.from_header([header])._dict == dict(state.items())


def log_members(record: Any) -> tuple[str, str]:
    """Give the members that name the span of a log record, and those of its data where they form no header."""
    trace_id, span_id, flags = record.trace_id or 0, record.span_id or 0, int(record.trace_flags or 0)
    if not (trace_id or span_id or flags):
        return "", ""
    if 0 < trace_id < 1 << 128 and 0 < span_id < 1 << 64 and 0 <= flags <= 0xFF:
        return f',"traceparent":"00-{trace_id:032x}-{span_id:016x}-{flags:02x}"', ""
    return "", f',"trace_id":"{trace_id:032x}","span_id":"{span_id:016x}","trace_flags":{flags}'


def resource_record(resource: Any) -> Resource:
    """Give an SDK resource as it is stored."""
    attributes, dropped = attributes_of(resource.attributes)
    return Resource.make("resource", values.encode(attributes), schema_url=resource.schema_url or None, dropped=dropped)


def scope_record(scope: Any) -> Resource:
    """Give an SDK instrumentation scope as it is stored."""
    attributes, dropped = attributes_of(scope.attributes)
    return Resource.make(
        "scope",
        values.encode(attributes),
        name=scope.name,
        version=scope.version,
        schema_url=scope.schema_url or None,
        dropped=dropped,
    )


_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _after_fork() -> None:
    for recorder in list(_recorders):
        recorder.forget()


os.register_at_fork(after_in_child=_after_fork)
