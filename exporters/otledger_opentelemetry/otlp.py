"""OTLP messages as records of the ledger (format, 4): spans, log records and metrics, resources and scopes.

An *entry* is what `otledger.record.Encoder.telemetry` takes: type, time in ns, payload and members as JSON text.
Its payload is made directly from the message, which is several times faster than by way of a draft.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otledger.journal import Resource, dumps
from otledger_opentelemetry import otlp_metrics, payloads
from otledger_opentelemetry.payloads import Report

Entry = tuple[str, int, str, str]
Use = Callable[[Resource], None]
"""Called with each resource and scope before the first entry that names it."""
_HAS_REMOTE, _IS_REMOTE = 0x100, 0x300
_SAMPLED = 1
_NO_TRACE, _NO_SPAN = bytes(16), bytes(8)
_KINDS = {0: "UNSPECIFIED", 2: "SERVER", 3: "CLIENT", 4: "PRODUCER", 5: "CONSUMER"}
_INTERNAL = 1
_STATUS = {1: "OK", 2: "ERROR"}


class Repeated(Mapping[str, Any]):
    """The pairs of a map some of whose keys repeat: stored as `$map` (format, 3), found by their last value."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        self.pairs = pairs
        self._last = dict(pairs)

    def items(self) -> Any:
        return self.pairs

    def __getitem__(self, key: str) -> Any:
        return self._last[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._last)

    def __len__(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True, slots=True)
class Signal:
    """Traces, logs or metrics: the same three levels under other names."""

    request: type[Message]
    """TracesData, LogsData and MetricsData are the same on the wire and in JSON."""
    member: str
    """The request's only member, as OTLP/JSON writes it."""
    resources: Callable[[Any], Sequence[Any]]
    scopes: Callable[[Any], Sequence[Any]]
    items: Callable[[Any], Sequence[Any]]

    def count(self, request: Any) -> int:
        """Give how many spans, log records or metrics a request holds."""
        return sum(len(self.items(scope)) for resource in self.resources(request) for scope in self.scopes(resource))


def _signal(request: type[Message], resources: str, scopes: str, items: str) -> Signal:
    member = request.DESCRIPTOR.fields_by_name[resources].json_name
    return Signal(request, member, attrgetter(resources), attrgetter(scopes), attrgetter(items))


SIGNALS = {
    "traces": _signal(ExportTraceServiceRequest, "resource_spans", "scope_spans", "spans"),
    "logs": _signal(ExportLogsServiceRequest, "resource_logs", "scope_logs", "log_records"),
    "metrics": _signal(ExportMetricsServiceRequest, "resource_metrics", "scope_metrics", "metrics"),
}


def entries(request: Any, kind: str, use: Use, report: Report) -> Iterator[Entry]:
    """Give the entries of a request of this kind of signal, in its order. No request makes it raise."""
    if kind == "metrics":
        for ns, payload in otlp_metrics.payloads(request, report):
            yield "otel.metrics", ns, payload, ""
        return
    signal = SIGNALS[kind]
    entry = _span if kind == "traces" else _log
    for resource in signal.resources(request):
        by_resource = resource_record(resource.resource, resource.schema_url, report)
        use(by_resource)
        for scope in signal.scopes(resource):
            named = {"resource": by_resource.digest}
            by_scope = scope_record(scope.scope, scope.schema_url, report)
            if by_scope is not None:
                use(by_scope)
                named["scope"] = by_scope.digest
            for item in signal.items(scope):
                yield entry(item, named, report)


# Values


def value_of(value: Any) -> Any:
    """Give an AnyValue as the value that it stands for; None where it has none."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return map_of(value.kvlist_value.values)
    # An index into a profile's table of strings means nothing here.
    return None if kind is None or kind == "string_value_strindex" else getattr(value, kind)


def map_of(pairs: Iterable[Any]) -> dict[str, Any] | Repeated:
    """Give key-value pairs as a map."""
    found = [(pair.key, value_of(pair.value)) for pair in pairs]
    members = dict(found)
    return members if len(members) == len(found) else Repeated(found)


_SCALARS = frozenset({"string_value", "bool_value", "int_value", "double_value"})


def _plain(pairs: Sequence[Any]) -> dict[str, Any] | None:
    """Give attributes that orjson may be handed as they are, with no key twice; None if these are others."""
    found = {}
    for pair in pairs:
        value = pair.value
        kind = value.WhichOneof("value")
        if kind not in _SCALARS:
            return None
        found[pair.key] = getattr(value, kind)
    return found if len(found) == len(pairs) and payloads.are_plain(found) else None


# Resources and scopes


def resource_record(resource: Any, schema_url: str, report: Report) -> Resource:
    """Give the record of an OTLP Resource."""
    return payloads.resource(map_of(resource.attributes), schema_url, resource.dropped_attributes_count, report)


def scope_record(scope: Any, schema_url: str, report: Report) -> Resource | None:
    """Give the record of an OTLP InstrumentationScope; None where nothing is said of it."""
    dropped = scope.dropped_attributes_count
    if not (scope.name or scope.version or schema_url or dropped or scope.attributes):
        return None
    return payloads.scope(scope.name, scope.version or None, map_of(scope.attributes), schema_url, dropped, report)


# Spans


def _span(span: Any, named: dict[str, str], report: Report) -> Entry:
    kind, parent, flags, end, status = span.kind, span.parent_span_id, span.flags, span.end_time_unix_nano, span.status
    data: dict[str, Any] = {"name": span.name}
    if kind != _INTERNAL:
        data["kind"] = _KINDS.get(kind, kind)
    expected = _HAS_REMOTE
    if parent:
        data["parent_span_id"] = parent.hex()
        if flags & _IS_REMOTE == _IS_REMOTE:
            data["parent_is_remote"] = True
            expected = _IS_REMOTE
    data["start"], data["end"] = span.start_time_unix_nano, end
    plain = not span.events and not span.links
    if span.attributes:
        attributes = _plain(span.attributes) if plain else None
        plain = attributes is not None
        data["attributes"] = attributes if plain else map_of(span.attributes)
    if span.events:
        data["events"] = [_event(event) for event in span.events]
    if span.links:
        data["links"] = [_link(link) for link in span.links]
    if status.code or status.message:
        data["status"] = _status(status)
    dropped = span.dropped_attributes_count, span.dropped_events_count, span.dropped_links_count
    if any(dropped):
        data["dropped"] = payloads.dropped(*dropped)
    # What an exporter hands over was sampled, though Python's says nothing of the trace flags.
    members, odd = _context(span.trace_id, span.span_id, flags & 0xFF or _SAMPLED, span.trace_state)
    data |= odd
    if flags != expected:
        # For the rest alone the SDK's encoder would give what was expected.
        data["flags"] = flags
    return "otel.span.end", end, payloads.of_span(data | named, report, plain), members


def _status(status: Any) -> dict[str, Any]:
    found = {"code": _STATUS.get(status.code, status.code)} if status.code else {}
    return found | {"description": status.message} if status.message else found


def _event(event: Any) -> dict[str, Any]:
    attributes = map_of(event.attributes)
    return payloads.event(event.name, event.time_unix_nano, attributes, event.dropped_attributes_count)


def _link(link: Any) -> dict[str, Any]:
    flags, ids = link.flags, (link.trace_id.hex(), link.span_id.hex())
    remote = flags & _IS_REMOTE == _IS_REMOTE
    attributes, dropped = map_of(link.attributes), link.dropped_attributes_count
    found = payloads.link(*ids, flags & 0xFF, remote, link.trace_state, attributes, dropped)
    if flags != (_IS_REMOTE if remote else _HAS_REMOTE):
        found["flags"] = flags
    return found


def _context(trace_id: bytes, span_id: bytes, flags: int, state: str) -> tuple[str, dict[str, Any]]:
    """Give the members of a record that name the span, and those of its data where they form no valid header."""
    members, odd = "", {}
    if len(trace_id) == 16 and len(span_id) == 8 and trace_id != _NO_TRACE and span_id != _NO_SPAN and flags <= 0xFF:
        members = f',"traceparent":"00-{trace_id.hex()}-{span_id.hex()}-{flags:02x}"'
    else:
        odd = {"trace_id": trace_id.hex(), "span_id": span_id.hex(), "trace_flags": flags}
    if state and members and payloads.is_header(state):
        members += f',"tracestate":{dumps(state)}'
    elif state:
        odd["trace_state"] = state
    return members, odd


# Log records


def _log(log: Any, named: dict[str, str], report: Report) -> Entry:
    # An id that is not there and one of zeros mean the same.
    ids = log.trace_id or _NO_TRACE, log.span_id or _NO_SPAN
    members, odd = _context(*ids, log.flags, "") if log.trace_id or log.span_id or log.flags else ("", {})
    found = {
        "timestamp": log.time_unix_nano,
        "observed_timestamp": log.observed_time_unix_nano,
        "severity_number": log.severity_number,
        "severity_text": log.severity_text,
    }
    data: dict[str, Any] = {name: value for name, value in found.items() if value}
    body = value_of(log.body)
    if body is not None:
        data["body"] = body
    found = {
        "event_name": log.event_name,
        "attributes": map_of(log.attributes),
        "dropped": log.dropped_attributes_count,
    }
    data |= {name: value for name, value in found.items() if value}
    ns = log.time_unix_nano or log.observed_time_unix_nano
    return "otel.log", ns, payloads.of_log(data | odd | named, report), members
