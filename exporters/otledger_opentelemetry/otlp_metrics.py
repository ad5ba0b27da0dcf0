"""OTLP metrics as payloads of the ledger (format, 4): OTLP/JSON, split where a line has no place for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import orjson
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric, ResourceMetrics, ScopeMetrics

from otledger import values
from otledger.errors import EventRefused
from otledger.values import MAX_DEPTH
from otledger_opentelemetry import otlp_json
from otledger_opentelemetry.payloads import MAX_PAYLOAD, Report


def payloads(message: Any, report: Report) -> Iterator[tuple[int, str]]:
    """Give one time and payload for an export, more where it is too large for a line: split by resource, scope,
    metric, data point."""
    ns = max((point.time_unix_nano for resource in message.resource_metrics for point in _points(resource)), default=0)
    held: list[bytes] = []
    size = 0
    for resource in message.resource_metrics:
        for text in _pieces(resource, report):
            if held and size + len(text) > MAX_PAYLOAD - 2:
                yield ns, _listed(held)
                held, size = [], 0
            held.append(text)
            size += len(text) + 1
    if held:
        yield ns, _listed(held)


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
