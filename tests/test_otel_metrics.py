"""Metrics of the SDK in the ledger, as OTLP/JSON."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import (
    InMemoryMetricReader,
    MetricExportResult,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

import otledger
from otledger_opentelemetry import LedgerMetricExporter, otlp_json
from tests.checker import check
from tests.test_otel_in import REPOSITORY, program, sane

NEVER = 3_600_000
"""Milliseconds: only a flush or the end exports."""


@pytest.fixture
def exporter(root: Path) -> Iterator[LedgerMetricExporter]:
    exporter = LedgerMetricExporter(root=root, machine="m1", min_free=0)
    yield exporter
    exporter.shutdown()


def provider_of(*readers: Any, **more: Any) -> MeterProvider:
    return MeterProvider(list(readers), Resource({"service.name": "shop"}), shutdown_on_exit=False, **more)


def stored(root: Path) -> list[dict[str, Any]]:
    check(root / "m1")
    return [part for record in otledger.Reader(root).records() if record.type == "otel.metrics" for part in record.data]


def metrics_of(root: Path) -> dict[str, dict[str, Any]]:
    """The metrics by name, as the last export stored them."""
    return {
        metric["name"]: metric for part in stored(root) for scope in part["scopeMetrics"] for metric in scope["metrics"]
    }


def test_counters_gauges_and_histograms(root: Path, exporter: LedgerMetricExporter) -> None:
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=NEVER)
    exponential = View(instrument_name="size", aggregation=ExponentialBucketHistogramAggregation())
    provider = provider_of(reader, views=[exponential])
    meter = provider.get_meter("shop", "1.0", "https://example.com/schema", {"m": True})
    meter.create_counter("orders", "1", "how many").add(3, {"kind": "new", "list": [1, 2]})
    meter.create_up_down_counter("open").add(-(2**62))
    meter.create_histogram("duration", "s").record(0.25)
    for size in (1, 1000):
        meter.create_histogram("size").record(size)
    meter.create_gauge("level").set(-0.5)

    def temperature(_: CallbackOptions) -> list[Observation]:
        return [Observation(21.5, {"room": "é"})]

    meter.create_observable_gauge("temperature", [temperature])
    assert provider.force_flush()
    found = metrics_of(root)
    assert set(found) == {"orders", "open", "duration", "size", "level", "temperature"}
    orders = found["orders"]["sum"]
    assert (orders["dataPoints"][0]["asInt"], orders["isMonotonic"]) == ("3", True)
    assert orders["dataPoints"][0]["attributes"][0] == {"key": "kind", "value": {"stringValue": "new"}}
    assert found["open"]["sum"]["dataPoints"][0]["asInt"] == str(-(2**62))
    duration = found["duration"]["histogram"]["dataPoints"][0]
    assert (duration["count"], duration["sum"], duration["bucketCounts"].count("1")) == ("1", 0.25, 1)
    assert found["size"]["exponentialHistogram"]["dataPoints"][0]["count"] == "2"
    assert found["level"]["gauge"]["dataPoints"][0]["asDouble"] == -0.5
    assert found["temperature"]["gauge"]["dataPoints"][0]["asDouble"] == 21.5
    (part,) = stored(root)
    assert part["resource"]["attributes"] == [{"key": "service.name", "value": {"stringValue": "shop"}}]
    assert part["scopeMetrics"][0]["scope"]["name"] == "shop"
    provider.shutdown()
    sane(root)


def test_what_is_stored_reads_back_as_the_message_of_the_sdks_encoder(
    root: Path, exporter: LedgerMetricExporter
) -> None:
    memory = InMemoryMetricReader()
    provider = provider_of(memory, exemplar_filter=AlwaysOnExemplarFilter())
    meter = provider.get_meter("shop")
    histogram, counter = meter.create_histogram("duration"), meter.create_counter("orders")
    with TracerProvider().get_tracer("t").start_as_current_span("a") as span:
        for value in (1, 20, 300):
            histogram.record(value, {"kind": "x"})
        counter.add(1)
    collected = memory.get_metrics_data()
    assert collected is not None
    assert exporter.export(collected) is MetricExportResult.SUCCESS
    point = metrics_of(root)["duration"]["histogram"]["dataPoints"][0]
    assert {exemplar["spanId"] for exemplar in point["exemplars"]} == {f"{span.get_span_context().span_id:016x}"}
    lines = json.dumps({"resourceMetrics": stored(root)}).encode()
    assert otlp_json.loads(lines, ExportMetricsServiceRequest) == encode_metrics(collected)
    provider.shutdown()


def test_each_export_is_durable_when_it_returns_and_shutdown_makes_the_last(
    root: Path, exporter: LedgerMetricExporter
) -> None:
    provider = provider_of(PeriodicExportingMetricReader(exporter, export_interval_millis=NEVER))
    counter = provider.get_meter("shop").create_counter("orders")
    for count in range(1, 4):
        counter.add(1)
        provider.force_flush()
        assert len(stored(root)) == count
    counter.add(1)
    provider.shutdown()
    assert metrics_of(root)["orders"]["sum"]["dataPoints"][0]["asInt"] == "4"
    sane(root)


def test_metrics_that_cannot_be_encoded_are_counted(root: Path, exporter: LedgerMetricExporter) -> None:
    assert exporter.export(object()) is MetricExportResult.FAILURE
    assert exporter.force_flush()
    gaps = [record.data for record in otledger.Reader(root).records() if record.type == "otledger.gap"]
    assert [(gap["count"], gap["reason"]) for gap in gaps] == [(1, "metrics could not be encoded")]


def test_many_points_are_split(root: Path, exporter: LedgerMetricExporter) -> None:
    memory = InMemoryMetricReader()
    provider = provider_of(memory)
    counter = provider.get_meter("shop").create_counter("orders")
    for number in range(400):
        counter.add(number, {"text": "x" * 50_000, "number": number})
    collected = memory.get_metrics_data()
    assert collected is not None
    assert exporter.export(collected) is MetricExportResult.SUCCESS
    parts = stored(root)
    assert len(parts) > 1
    points = [
        point
        for part in parts
        for scope in part["scopeMetrics"]
        for metric in scope["metrics"]
        for point in metric["sum"]["dataPoints"]
    ]
    assert sum(int(point["asInt"]) for point in points) == sum(range(400))
    provider.shutdown()


SOURCE = """if True:
    import os
    from opentelemetry import metrics, trace
    counter = metrics.get_meter("shop").create_counter("orders")
    with trace.get_tracer("t").start_as_current_span("a"):
        counter.add(2, {"process": "parent"})
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
    else:
        counter.add(5, {"process": "child"})
"""


def test_by_environment_also_from_a_forked_child(root: Path) -> None:
    environ = {"OTEL_TRACES_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "otledger"}
    start = f"from opentelemetry.instrumentation.auto_instrumentation import initialize; initialize()\n{SOURCE}"
    done = program(start, root, **environ, OTEL_METRICS_EXEMPLAR_FILTER="always_on", PYTHONPATH=f"{REPOSITORY}")
    assert (done.returncode, done.stderr) == (0, "")
    values = {
        point["attributes"][0]["value"]["stringValue"]: point["asInt"]
        for part in stored(root)
        for scope in part["scopeMetrics"]
        for metric in scope["metrics"]
        for point in metric["sum"]["dataPoints"]
    }
    assert values == {"parent": "2", "child": "5"}
    sane(root)
