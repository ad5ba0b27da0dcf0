"""OTLP messages as records of the ledger (format, 4): spans, log records and metrics, resources and scopes.

An *entry* is what `otledger.record.Encoder.telemetry` takes: type, time in ns, payload and members as JSON text.
The text is put together directly from the message, which is several times faster than by way of a draft.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import orjson
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric, ResourceMetrics, ScopeMetrics

from otledger import spandata as own
from otledger import values
from otledger.batch import MAX_LINE, STAMP_ROOM
from otledger.errors import EventRefused
from otledger.journal import Resource, dumps
from otledger.values import MAX_DEPTH, TooDeep
from otledger_opentelemetry import otlp_json

Entry = tuple[str, int, str, str]
Use = Callable[[Resource], None]
"""Called with each resource and scope before the first entry that names it."""
Report = Callable[[BaseException], None]
"""Called for each entry that had to be cut, as a line has no place for it."""

MAX_PAYLOAD = MAX_LINE - STAMP_ROOM - 16_384
"""The longest payload in bytes: what stands before it in a line is far shorter than the rest."""

_CUT_ROOM = 65_536
_SHORT = 1000
_LONGEST_STATE = 1024
_HAS_REMOTE, _IS_REMOTE = 0x100, 0x300
_SAMPLED = 1
_NO_TRACE, _NO_SPAN = bytes(16), bytes(8)
_KINDS = {0: '"UNSPECIFIED"', 2: '"SERVER"', 3: '"CLIENT"', 4: '"PRODUCER"', 5: '"CONSUMER"'}
_INTERNAL = 1
_STATUS = {0: "UNSET", 1: "OK", 2: "ERROR"}


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
        yield from _metrics(request, report)
        return
    signal = SIGNALS[kind]
    entry = _span if kind == "traces" else _log
    for resource in signal.resources(request):
        by_resource = resource_record(resource.resource, resource.schema_url, report)
        use(by_resource)
        for scope in signal.scopes(resource):
            named = f',"resource":"{by_resource.digest}"'
            by_scope = scope_record(scope.scope, scope.schema_url, report)
            if by_scope is not None:
                use(by_scope)
                named += f',"scope":"{by_scope.digest}"'
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
    """Give attributes that are all scalars, with no key twice; None if these are others."""
    found = {}
    for pair in pairs:
        value = pair.value
        kind = value.WhichOneof("value")
        if kind not in _SCALARS:
            return None
        found[pair.key] = getattr(value, kind)
    return found if len(found) == len(pairs) else None


# Resources and scopes


def resource_record(resource: Any, schema_url: str, report: Report) -> Resource:
    """Give the record of an OTLP Resource."""
    attributes, (url,) = _described("resource", resource.attributes, [schema_url], report)
    return Resource.make("resource", attributes, schema_url=url or None, dropped=resource.dropped_attributes_count)


def scope_record(scope: Any, schema_url: str, report: Report) -> Resource | None:
    """Give the record of an OTLP InstrumentationScope; None where nothing is said of it."""
    dropped = scope.dropped_attributes_count
    if not (scope.name or scope.version or schema_url or dropped or scope.attributes):
        return None
    texts = [scope.name, scope.version, schema_url]
    attributes, (name, version, url) = _described("scope", scope.attributes, texts, report)
    return Resource.make(
        "scope", attributes, name=name, version=version or None, schema_url=url or None, dropped=dropped
    )


def _described(what: str, pairs: Sequence[Any], texts: list[str], report: Report) -> tuple[bytes, list[str]]:
    """Give attributes as JSON, and the texts, cut where a line would have no place for them."""
    attributes = map_of(pairs)
    room = MAX_PAYLOAD - _CUT_ROOM
    try:
        # A level deeper than a payload: they stand in one.
        encoded = values.encode([attributes])[1:-1]
        if len(encoded) + 6 * sum(map(len, texts)) <= room:
            return encoded, texts
    except TooDeep:
        pass
    (cut, _, _) = _cut(what, attributes, [], [], room, report)
    return cut or b"{}", [text[:_SHORT] for text in texts]


def _cut(
    what: str, attributes: Mapping[str, Any], events: list[Any], links: list[Any], room: int, report: Report
) -> list[bytes]:
    encoded, count = own.cut_largest(attributes, events, links, room)
    for part in (attributes, *(item.get("attributes") for item in (*events, *links))):
        if isinstance(part, Repeated):
            # Of the values of one key the last was kept.
            count += len(part) - len(set(part))
    report(EventRefused(f"a {what} was too large for a line: {count} of its values were cut"))
    return encoded


# Spans


def _span(span: Any, named: str, report: Report) -> Entry:
    name, end, members, before, after = _frame(span, None)
    events, links = span.events, span.links
    plain = _plain(span.attributes) if not events and not links else None
    if plain is not None:
        inside = f',"attributes":{own.encode_plain(plain).decode()}' if plain else ""
        payload = f"{{{name}{before}{inside}{after}{named}}}"
        if fits(payload):
            return "otel.span.end", end, payload, members
    collected = map_of(span.attributes), [_event(event) for event in events], [_link(link) for link in links]
    try:
        payload = f"{{{name}{before}{own.collections(*collected)}{after}{named}}}"
        if fits(payload):
            return "otel.span.end", end, payload, members
    except TooDeep:
        pass
    encoded = _cut("span", *collected, MAX_PAYLOAD - _CUT_ROOM, report)
    name, end, members, before, after = _frame(span, _SHORT)
    return "otel.span.end", end, f"{{{name}{before}{own.named(encoded)}{after}{named}}}", members


def _frame(span: Any, longest: int | None) -> tuple[str, int, str, str, str]:
    """Give what stands around a span's attributes, events and links, its texts at most `longest` characters:
    the member `name`, when it ended, the record's members, the members before and after."""
    kind, parent, flags = span.kind, span.parent_span_id, span.flags
    before = "" if kind == _INTERNAL else f',"kind":{_KINDS.get(kind, kind)}'
    expected = _HAS_REMOTE
    if parent:
        before += f',"parent_span_id":"{parent[:longest].hex()}"'
        if flags & _IS_REMOTE == _IS_REMOTE:
            before += ',"parent_is_remote":true'
            expected = _IS_REMOTE
    end = span.end_time_unix_nano
    before += f',"start":{span.start_time_unix_nano},"end":{end}'
    # What an exporter hands over was sampled, though Python's says nothing of the trace flags.
    ids = span.trace_id[:longest], span.span_id[:longest]
    members, after = _context(*ids, flags & 0xFF or _SAMPLED, span.trace_state[:longest])
    if flags != expected:
        # For the rest alone the SDK's encoder would give what was expected.
        after += f',"flags":{flags}'
    attributes, events, links = span.dropped_attributes_count, span.dropped_events_count, span.dropped_links_count
    if attributes or events or links:
        counts = {"attributes": attributes, "events": events, "links": links}
        after = f',"dropped":{dumps({name: count for name, count in counts.items() if count})}{after}'
    status = span.status
    if status.code or status.message:
        after = _status(status.code, status.message[:longest]) + after
    return f'"name":{own.encode_name(span.name[:longest])}', end, members, before, after


def fits(payload: str) -> bool:
    """Tell whether a line has a place for the payload."""
    return len(payload) * 4 <= MAX_PAYLOAD or len(payload.encode()) <= MAX_PAYLOAD


def _status(code: int, message: str) -> str:
    members: dict[str, Any] = {}
    if code:
        members["code"] = _STATUS.get(code, code)
    if message:
        members["description"] = message
    return f',"status":{dumps(members)}'


def _event(event: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"name": event.name, "time": event.time_unix_nano}
    if event.attributes:
        found["attributes"] = map_of(event.attributes)
    if event.dropped_attributes_count:
        found["dropped"] = event.dropped_attributes_count
    return found


def _link(link: Any) -> dict[str, Any]:
    flags = link.flags
    found: dict[str, Any] = {"trace_id": link.trace_id.hex(), "span_id": link.span_id.hex()}
    if flags & 0xFF:
        found["trace_flags"] = flags & 0xFF
    remote = flags & _IS_REMOTE == _IS_REMOTE
    if remote:
        found["is_remote"] = True
    if link.trace_state:
        found["trace_state"] = link.trace_state
    if link.attributes:
        found["attributes"] = map_of(link.attributes)
    if link.dropped_attributes_count:
        found["dropped"] = link.dropped_attributes_count
    if flags != (_IS_REMOTE if remote else _HAS_REMOTE):
        found["flags"] = flags
    return found


def _context(trace_id: bytes, span_id: bytes, flags: int, state: str) -> tuple[str, str]:
    """Give the members of a record that name the span, and those of its data where they form no valid header."""
    if len(trace_id) == 16 and len(span_id) == 8 and trace_id != _NO_TRACE and span_id != _NO_SPAN and flags <= 0xFF:
        members, odd = f',"traceparent":"00-{trace_id.hex()}-{span_id.hex()}-{flags:02x}"', ""
    else:
        members = ""
        odd = f',"trace_id":"{trace_id.hex()}","span_id":"{span_id.hex()}","trace_flags":{flags}'
    if state:
        if members and is_header(state):
            members += f',"tracestate":{dumps(state)}'
        else:
            odd += f',"trace_state":{dumps(state)}'
    return members, odd


_KEY = r"[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13}"
_VALUE = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_STATE = re.compile(f"(?:{_KEY})={_VALUE}(?:,(?:{_KEY})={_VALUE}){{0,31}}")


def is_header(state: str) -> bool:
    """Tell whether a reader of this `tracestate` header gets the same entries.

    Source: W3C Trace Context, level 2, section 3.3, as the SDK reads it.
    """
    if len(state) > _LONGEST_STATE or not _STATE.fullmatch(state):
        return False
    keys = [member.partition("=")[0] for member in state.split(",")]
    return len(set(keys)) == len(keys)


# Log records


def _log(log: Any, named: str, report: Report) -> Entry:
    ns = log.time_unix_nano or log.observed_time_unix_nano
    body, attributes = value_of(log.body), map_of(log.attributes)
    members, before, after = _log_frame(log, None)
    try:
        # A level deeper than a payload: they stand in one.
        inside = [f'"body":{values.encode([body])[1:-1].decode()}'] if body is not None else []
        with_attributes = [f'"attributes":{values.encode([attributes])[1:-1].decode()}'] if attributes else []
        payload = _joined(before[:-1], inside, before[-1:], with_attributes, after, named)
        if fits(payload):
            return "otel.log", ns, payload, members
    except TooDeep:
        pass
    # As an event's attribute, so that the values of both are cut by their size.
    encoded = _cut("log record", attributes, [{"attributes": {"body": body}}], [], MAX_PAYLOAD - _CUT_ROOM, report)
    members, before, after = _log_frame(log, _SHORT)
    inside = [encoded[1][len(b'[{"attributes":{') : -len(b"}}]")].decode()] if body is not None and encoded[1] else []
    with_attributes = [f'"attributes":{encoded[0].decode()}'] if encoded[0] else []
    return "otel.log", ns, _joined(before[:-1], inside, before[-1:], with_attributes, after, named), members


def _joined(*groups: Sequence[str]) -> str:
    """Give an object of the members in the groups; the last group is text that begins with a comma."""
    *lists, named = groups
    assert isinstance(named, str)
    text = ",".join(member for group in lists for member in group if member)
    return f"{{{text}{named}}}" if text else f"{{{named[1:]}}}"


def _log_frame(log: Any, longest: int | None) -> tuple[str, list[str], list[str]]:
    """Give the record's members, those of `data` before the attributes, the event's name last (the body stands
    before it), and those after; texts are at most `longest` characters."""
    before = []
    if log.time_unix_nano:
        before.append(f'"timestamp":{log.time_unix_nano}')
    if log.observed_time_unix_nano:
        before.append(f'"observed_timestamp":{log.observed_time_unix_nano}')
    if log.severity_number:
        before.append(f'"severity_number":{log.severity_number}')
    if log.severity_text:
        before.append(f'"severity_text":{dumps(log.severity_text[:longest])}')
    before.append(f'"event_name":{dumps(log.event_name[:longest])}' if log.event_name else "")
    after = [f'"dropped":{log.dropped_attributes_count}'] if log.dropped_attributes_count else []
    trace_id, span_id, flags = log.trace_id[:longest], log.span_id[:longest], log.flags
    if not (trace_id or span_id or flags):
        return "", before, after
    # An id that is not there and one of zeros mean the same.
    members, odd = _context(trace_id or _NO_TRACE, span_id or _NO_SPAN, flags, "")
    return members, before, [*after, odd[1:]] if odd else after


# Metrics


def _metrics(message: Any, report: Report) -> Iterator[Entry]:
    """Give one entry for an export, more where it is too large for a line: split by resource, scope, metric, data
    point."""
    ns = max((point.time_unix_nano for resource in message.resource_metrics for point in _points(resource)), default=0)
    held: list[bytes] = []
    size = 0
    for resource in message.resource_metrics:
        for text in _pieces(resource, report):
            if held and size + len(text) > MAX_PAYLOAD - 2:
                yield "otel.metrics", ns, _listed(held), ""
                held, size = [], 0
            held.append(text)
            size += len(text) + 1
    if held:
        yield "otel.metrics", ns, _listed(held), ""


def _listed(texts: Sequence[bytes]) -> str:
    return f"[{b','.join(texts).decode()}]"


def _points(resource: Any) -> Iterator[Any]:
    for scope in resource.scope_metrics:
        for metric in scope.metrics:
            kind = metric.WhichOneof("data")
            if kind is not None:
                yield from getattr(metric, kind).data_points


def _pieces(resource: Any, report: Report) -> Iterator[bytes]:
    """Give a ResourceMetrics as JSON texts, each of which a line has a place for."""
    value = otlp_json.plain(resource)
    text, cut = _metrics_text(value)
    if len(text) <= MAX_PAYLOAD - 2:
        if cut:
            report(EventRefused(f"a metric was nested too deep for a line: {cut} of its values were cut"))
        yield text
        return
    halves = _halves(resource)
    for half in halves:
        yield from _pieces(half, report)
    if not halves:
        report(EventRefused("a data point was too large for a line: it was cut"))
        yield b'{"$cut":%d}' % len(text)


def _halves(resource: Any) -> list[Any]:
    """Give a ResourceMetrics as two with the same resource; none where it holds a single data point."""
    scopes = resource.scope_metrics
    if len(scopes) != 1:
        return [_resource_with(resource, half) for half in _split(scopes)]
    (scope,) = scopes
    if len(scope.metrics) != 1:
        return [_resource_with(resource, [_scope_with(scope, half)]) for half in _split(scope.metrics)]
    (metric,) = scope.metrics
    kind = metric.WhichOneof("data")
    points = getattr(metric, kind).data_points if kind is not None else ()
    if len(points) <= 1:
        return []
    return [
        _resource_with(resource, [_scope_with(scope, [_metric_with(metric, kind, half)])]) for half in _split(points)
    ]


def _split(items: Sequence[Any]) -> list[Sequence[Any]]:
    middle = (len(items) + 1) // 2
    return [items[:middle], items[middle:]] if items else []


def _resource_with(resource: Any, scopes: Sequence[Any]) -> ResourceMetrics:
    found = ResourceMetrics(scope_metrics=scopes, schema_url=resource.schema_url)
    if resource.HasField("resource"):
        found.resource.CopyFrom(resource.resource)
    return found


def _scope_with(scope: Any, metrics: Sequence[Any]) -> ScopeMetrics:
    found = ScopeMetrics(metrics=metrics, schema_url=scope.schema_url)
    if scope.HasField("scope"):
        found.scope.CopyFrom(scope.scope)
    return found


def _metric_with(metric: Any, kind: str, points: Sequence[Any]) -> Metric:
    found = Metric()
    found.CopyFrom(metric)
    held = getattr(found, kind).data_points
    del held[:]
    held.extend(points)
    return found


_METRICS_DEPTH = MAX_DEPTH - 1
"""How deep a ResourceMetrics may be nested: it stands in a list."""


def _metrics_text(value: dict[str, Any]) -> tuple[bytes, int]:
    """Give the JSON text, and how many values were cut because they were nested too deep."""
    cut = _prune(value, _METRICS_DEPTH - 1)
    raw = orjson.dumps(value)
    return raw if raw.isascii() else values.escape_separators(raw), cut


def _prune(value: Any, room: int) -> int:
    """Cut, in place, what is nested deeper than `room` levels below. Gives how often."""
    cut = 0
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, dict | list) and item:
            if room <= 1:
                value[key] = {"$cut": len(orjson.dumps(item))}
                cut += 1
            else:
                cut += _prune(item, room - 1)
    return cut
