"""OTLP into the ledger: conversion, OTLP/JSON, import of files, and the receiver with the official exporters."""

import asyncio
import contextlib
import gzip
import http.client
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, LogsData
from opentelemetry.proto.metrics.v1.metrics_pb2 import MetricsData
from opentelemetry.proto.trace.v1.trace_pb2 import Span, TracesData
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otledger
import otledger_opentelemetry
from otledger import values, writers
from otledger.config import Config
from otledger.errors import ConfigurationError, FormatError, RootError
from otledger.journal import Batch, Journal
from otledger.record import Encoder
from otledger_opentelemetry import otlp, otlp_json, wire
from otledger_opentelemetry.importing import import_otlp
from otledger_opentelemetry.receiver import Receiver, Refused, bind, unpack
from tests.checker import check
from tests.conftest import Hang, Script

Json = dict[str, Any]
DATA = Path(__file__).parent / "data" / "otlp"
PROTOBUF = {"content-type": "application/x-protobuf"}
AS_JSON = {"content-type": "application/json"}
START = 1_700_000_000_000_000_000
DATAS: tuple[type[Message], ...] = (TracesData, LogsData, MetricsData)


def stored(partition: Path, type: str = "") -> list[Json]:
    """The telemetry of a partition by the independent checker, payloads decoded."""
    assert otledger.verify(partition.parent, deep=True).status.name == "OK"
    found = [record for record in check(partition) if record["type"].startswith("otel." + type)]
    return [{**record, "data": values.decode(record["data"])} for record in found]


def spans_of(count: int, first: int = 0) -> TracesData:
    """Spans whose ids are numbers from `first` + 1 on."""
    data = TracesData()
    resource = data.resource_spans.add()
    attribute(resource.resource.attributes, "service.name", "test")
    scope = resource.scope_spans.add()
    scope.scope.name = "tests"
    for number in range(first + 1, first + count + 1):
        span = scope.spans.add(trace_id=number.to_bytes(16), span_id=number.to_bytes(8), name="work", kind=1, flags=256)
        span.start_time_unix_nano, span.end_time_unix_nano = START, START + number
        span.status.SetInParent()
    return data


def attribute(attributes: Any, key: str, text: str) -> None:
    attributes.add(key=key).value.string_value = text


# What a record gives back -----------------------------------------------------------------------------------


def any_value(value: Any) -> AnyValue:
    if value is None:
        return AnyValue()
    kinds = {bool: "bool_value", str: "string_value", int: "int_value", float: "double_value", bytes: "bytes_value"}
    found = AnyValue()
    if type(value) in kinds:
        setattr(found, kinds[type(value)], value)
    elif isinstance(value, dict) or (value and isinstance(value[0], tuple)):
        found.kvlist_value.values.extend(key_values(value))
        found.kvlist_value.SetInParent()
    else:
        found.array_value.values.extend(map(any_value, value))
        found.array_value.SetInParent()
    return found


def key_values(attributes: Any) -> list[KeyValue]:
    pairs = attributes.items() if isinstance(attributes, dict) else attributes
    return [KeyValue(key=key, value=any_value(value)) for key, value in pairs]


def ids(record: Json) -> tuple[bytes, bytes, str]:
    if "traceparent" in record:
        _, trace_id, span_id, _ = record["traceparent"].split("-")
    else:
        trace_id, span_id = record["data"].get("trace_id", ""), record["data"].get("span_id", "")
    state = record.get("tracestate") or record["data"].get("trace_state", "")
    return bytes.fromhex(trace_id), bytes.fromhex(span_id), state


def span_again(record: Json) -> Span:
    """The span that a record was made of, by section 4 of docs/format.md."""
    data = record["data"]
    kind, code = data.get("kind", "INTERNAL"), data.get("status", {}).get("code", "UNSET")
    trace_id, span_id, state = ids(record)
    dropped = data.get("dropped", {})
    found = Span(
        trace_id=trace_id,
        span_id=span_id,
        trace_state=state,
        parent_span_id=bytes.fromhex(data.get("parent_span_id", "")),
        flags=data.get("flags", 0x300 if data.get("parent_is_remote") else 0x100),
        name=data["name"],
        kind=kind if isinstance(kind, int) else Span.SpanKind.Value(f"SPAN_KIND_{kind}"),
        start_time_unix_nano=data["start"],
        end_time_unix_nano=data["end"],
        attributes=key_values(data.get("attributes", {})),
        dropped_attributes_count=dropped.get("attributes", 0),
        dropped_events_count=dropped.get("events", 0),
        dropped_links_count=dropped.get("links", 0),
    )
    for event in data.get("events", []):
        found.events.add(
            name=event["name"],
            time_unix_nano=event["time"],
            attributes=key_values(event.get("attributes", {})),
            dropped_attributes_count=event.get("dropped", 0),
        )
    for link in data.get("links", []):
        found.links.add(
            trace_id=bytes.fromhex(link["trace_id"]),
            span_id=bytes.fromhex(link["span_id"]),
            trace_state=link.get("trace_state", ""),
            attributes=key_values(link.get("attributes", {})),
            dropped_attributes_count=link.get("dropped", 0),
            flags=link.get("flags", 0x300 if link.get("is_remote") else 0x100),
        )
    found.status.code = code if isinstance(code, int) else ["UNSET", "OK", "ERROR"].index(code)
    found.status.message = data.get("status", {}).get("description", "")
    return found


def log_again(record: Json) -> LogRecord:
    data = record["data"]
    trace_id, span_id, _ = ids(record)
    flags = int(record["traceparent"][-2:], 16) if "traceparent" in record else data.get("trace_flags", 0)
    return LogRecord(
        time_unix_nano=data.get("timestamp", 0),
        observed_time_unix_nano=data.get("observed_timestamp", 0),
        severity_number=data.get("severity_number", 0),
        severity_text=data.get("severity_text", ""),
        body=any_value(data.get("body")),
        event_name=data.get("event_name", ""),
        attributes=key_values(data.get("attributes", {})),
        dropped_attributes_count=data.get("dropped", 0),
        trace_id=trace_id if any(trace_id) else b"",
        span_id=span_id if any(span_id) else b"",
        flags=flags,
    )


def normalised(message: Any) -> Any:
    """A message with an AnyValue and a status wherever there may be one, whose absence means the same."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for item in value if field.is_repeated else [value]:
                normalised(item)
    if isinstance(message, KeyValue):
        message.value.SetInParent()
    elif isinstance(message, Span):
        message.status.SetInParent()
    elif isinstance(message, LogRecord):
        message.body.SetInParent()
    return message


def recorded(message: Any, kind: str) -> list[Json]:
    """The records of a request, without a ledger; each is checked for what a line may be."""
    found = []
    for entry in otlp.entries(message, kind, lambda _: None, lambda _: None):
        line = Encoder("m1", "test").telemetry(*entry) + b"}"
        assert len(line) < 16 * 2**20 - 300
        record = json.loads(line)
        assert not any(mark in line.decode() for mark in "\u0085\u2028\u2029")
        found.append({**record, "data": values.decode(record["data"])})
    return found


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    texts,
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.sampled_from([-0.0, 0.0, 1.0, math.inf, -math.inf]),
    st.binary(max_size=4),
)
keys = texts | st.sampled_from(["$map", "$bytes", "a", "b", ""])
# Pairs, not a map: keys may repeat.
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(keys, inner), min_size=1, max_size=3)
)
attributes = st.lists(st.tuples(keys, anything), max_size=3).map(key_values)
trace_ids = st.binary(max_size=17) | st.binary(min_size=16, max_size=16)
span_ids = st.binary(max_size=9) | st.binary(min_size=8, max_size=8)
states = texts | st.sampled_from(["a=1", "a=1,b@c=2", "a=1, b=2", "a=1,a=2", "A=1", "a=1,"])
flags = u32 | st.sampled_from([0, 1, 0x100, 0x101, 0x300, 0x301])
events = st.builds(Span.Event, name=texts, time_unix_nano=u64, attributes=attributes, dropped_attributes_count=u32)
links = st.builds(
    Span.Link, trace_id=trace_ids, span_id=span_ids, trace_state=states, attributes=attributes, flags=flags
)
spans = st.builds(
    Span,
    trace_id=trace_ids,
    span_id=span_ids,
    parent_span_id=span_ids,
    trace_state=states,
    flags=flags,
    name=texts,
    kind=st.integers(0, 7),
    start_time_unix_nano=u64,
    end_time_unix_nano=u64,
    attributes=attributes,
    dropped_attributes_count=u32,
    events=st.lists(events, max_size=2),
    dropped_events_count=u32,
    links=st.lists(links, max_size=2),
    dropped_links_count=u32,
)
logs = st.builds(
    LogRecord,
    time_unix_nano=u64,
    observed_time_unix_nano=u64,
    severity_number=st.integers(0, 30),
    severity_text=texts,
    body=anything.map(any_value),
    attributes=attributes,
    dropped_attributes_count=u32,
    flags=flags,
    trace_id=trace_ids.filter(any) | st.just(b""),
    span_id=span_ids.filter(any) | st.just(b""),
    event_name=texts,
)


@given(spans, st.integers(0, 3), texts)
def test_a_span_comes_back_as_it_was(span: Span, code: int, message: str) -> None:
    span.status.code, span.status.message = code, message  # type: ignore[assignment]
    data = TracesData()
    data.resource_spans.add().scope_spans.add().spans.append(span)
    (record,) = recorded(data, "traces")
    assert span_again(record) == normalised(span)


@given(logs)
def test_a_log_record_comes_back_as_it_was(log: LogRecord) -> None:
    data = LogsData()
    data.resource_logs.add().scope_logs.add().log_records.append(log)
    (record,) = recorded(data, "logs")
    assert log_again(record) == normalised(log)


def test_nan_and_a_string_of_a_profile() -> None:
    data = spans_of(1)
    (span,) = data.resource_spans[0].scope_spans[0].spans
    span.attributes.add(key="nan").value.double_value = math.nan
    span.attributes.add(key="index").value.string_value_strindex = 3
    (record,) = recorded(data, "traces")
    assert math.isnan(record["data"]["attributes"]["nan"])
    assert record["data"]["attributes"]["index"] is None


def test_what_is_said_of_resource_and_scope_survives(root: Path) -> None:
    data = spans_of(1)
    (resource,) = data.resource_spans
    resource.schema_url, resource.resource.dropped_attributes_count = "https://r", 3
    (scope,) = resource.scope_spans
    scope.schema_url, scope.scope.version, scope.scope.dropped_attributes_count = "https://s", "1.2", 4
    attribute(scope.scope.attributes, "a", "b")
    attribute(scope.scope.attributes, "a", "c")
    found: dict[str, Json] = {}
    parts = []
    encoder = Encoder("m1", "test")
    resources: dict[str, Any] = {}
    for entry in otlp.entries(data, "traces", lambda r: resources.setdefault(r.digest, r), lambda _: None):
        parts.append(encoder.telemetry(*entry))
    with Journal(root, machine="m1") as journal:
        journal.write(Batch(parts, resources))
    for record in stored(root / "m1", "resource"):
        found[record["data"]["kind"]] = record["data"]
    assert found["resource"]["attributes"] == {"service.name": "test"}
    assert (found["resource"]["schema_url"], found["resource"]["dropped"]) == ("https://r", 3)
    assert found["scope"]["attributes"] == [("a", "b"), ("a", "c")]
    assert {name: found["scope"][name] for name in ("name", "version", "schema_url", "dropped")} == {
        "name": "tests", "version": "1.2", "schema_url": "https://s", "dropped": 4,
    }  # fmt: skip


# What a line has no place for ---------------------------------------------------------------------------------


def test_what_is_too_large_is_cut_and_counted() -> None:
    data = spans_of(4)
    large, deep, odd, many = data.resource_spans[0].scope_spans[0].spans
    attribute(large.attributes, "large", "x" * (17 << 20))
    attribute(large.attributes, "small", "x")
    value = deep.attributes.add(key="deep").value
    for _ in range(45):
        value = value.kvlist_value.values.add(key="k").value
        value.kvlist_value.values.add(key="k")
    odd.trace_id, odd.trace_state, odd.name = b"x" * (6 << 20), "\x01" * (6 << 20), "\x01" * (6 << 20)
    odd.status.message = "y" * (6 << 20)
    for _ in range(2):
        attribute(many.attributes, "same", "z" * (9 << 20))
    told: list[BaseException] = []
    assert len(list(otlp.entries(data, "traces", lambda _: None, told.append))) == len(told) == 4
    records = recorded(data, "traces")
    assert records[0]["data"]["attributes"] == {"large": {"$cut": (17 << 20) + 2}, "small": "x"}
    assert list(records[1]["data"]["attributes"]["deep"]) == ["$cut"]
    assert records[2]["data"]["name"] == "\x01" * 1000


def test_a_log_record_too_large_keeps_its_small_values() -> None:
    data = LogsData()
    log = data.resource_logs.add().scope_logs.add().log_records.add(severity_text="INFO", event_name="e")
    log.body.string_value = "x" * (17 << 20)
    attribute(log.attributes, "small", "x")
    (record,) = recorded(data, "logs")
    assert {name: record["data"][name] for name in ("severity_text", "body", "event_name", "attributes")} == {
        "severity_text": "INFO", "body": {"$cut": (17 << 20) + 2}, "event_name": "e", "attributes": {"small": "x"},
    }  # fmt: skip


def test_metrics_are_split_by_data_points_where_a_line_has_no_place() -> None:
    data = MetricsData()
    scope = data.resource_metrics.add().scope_metrics.add()
    scope.scope.name = "s"
    scope.metrics.add(name="small").gauge.data_points.add(as_int=1)
    points = scope.metrics.add(name="large").sum.data_points
    for number in range(5):
        attribute(points.add(as_int=number, time_unix_nano=START + number).attributes, "x", "x" * (5 << 20))
    attribute(scope.metrics.add(name="endless").gauge.data_points.add().attributes, "x", "x" * (17 << 20))
    records = recorded(data, "metrics")
    assert len(records) > 1
    cut = 0
    numbers = []
    for piece in [piece for record in records for piece in record["data"]]:
        if "$cut" in piece:
            cut += 1
            continue
        (one,) = piece["scopeMetrics"]
        assert one["scope"] == {"name": "s"}
        for metric in one["metrics"]:
            numbers += [int(point["asInt"]) for point in metric.get("sum", {}).get("dataPoints", [])]
    assert numbers == [0, 1, 2, 3, 4]
    assert cut == 1
    assert records[0]["time"].endswith(":20.000000004Z")


# OTLP/JSON ----------------------------------------------------------------------------------------------------


@given(st.lists(spans, max_size=3))
def test_json_and_protobuf_say_the_same(some: list[Span]) -> None:
    data = TracesData()
    data.resource_spans.add().scope_spans.add().spans.extend(some)
    assert otlp_json.loads(otlp_json.dumps(data), TracesData) == data


IDS = frozenset({"traceId", "spanId", "parentSpanId"})


def with_ids(value: Any, change: Callable[[str], str]) -> Any:
    """OTLP/JSON with the ids written in another way."""
    if isinstance(value, list):
        return [with_ids(item, change) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: change(item) if key in IDS else with_ids(item, change) for key, item in value.items()}


def by_protobuf(message: Message) -> Json:
    """OTLP/JSON as protobuf's own library writes JSON, but for the ids: OTLP has them in hex (its specification)."""
    written = json_format.MessageToDict(message, use_integers_for_enums=True)
    return cast(Json, with_ids(written, lambda text: b64decode(text).hex()))


def by_us(message: Message, kind: type[Message]) -> Message:
    """A message that protobuf's own library reads from the JSON that we write."""
    written = with_ids(json.loads(otlp_json.dumps(message)), lambda text: b64encode(bytes.fromhex(text)).decode())
    return json_format.ParseDict(written, kind())


@given(st.lists(spans, max_size=2), st.lists(logs, max_size=2))
def test_json_agrees_with_the_mapping_of_protobuf(some: list[Span], others: list[LogRecord]) -> None:
    traces, records = TracesData(), LogsData()
    traces.resource_spans.add().scope_spans.add().spans.extend(some)
    records.resource_logs.add().scope_logs.add().log_records.extend(others)
    for message, kind in ((traces, TracesData), (records, LogsData), *zip(collected().values(), DATAS, strict=True)):
        assert otlp_json.loads(json.dumps(by_protobuf(message)).encode(), kind) == message
        assert by_us(message, kind) == message


def test_json_as_others_write_it() -> None:
    text = json.dumps(
        {
            "unknown": [{}],
            "resourceSpans": [
                {
                    "resource": None,
                    "scopeSpans": [
                        {
                            "spans": [
                                {
                                    "traceId": "5B8EFFF798038103D269B633813FC60C",
                                    "kind": "SPAN_KIND_SERVER",
                                    "startTimeUnixNano": 5,
                                    "endTimeUnixNano": "18446744073709551615",
                                    "dropped_events_count": 2.0,
                                    "status": {"code": "STATUS_CODE_ERROR", "traceId": 7},
                                    "attributes": [
                                        {"key": "a", "value": {"doubleValue": "-Infinity"}},
                                        {"key": "b", "value": {"bytesValue": "_-8"}},
                                        {"key": "c", "value": {"doubleValue": 1}},
                                    ],
                                }
                            ]
                        }
                    ],
                }
            ],
        }
    )
    (span,) = otlp_json.loads(text.encode(), TracesData).resource_spans[0].scope_spans[0].spans
    assert (span.trace_id.hex(), span.kind, span.status.code) == ("5b8efff798038103d269b633813fc60c", 2, 2)
    assert (span.start_time_unix_nano, span.end_time_unix_nano, span.dropped_events_count) == (5, 2**64 - 1, 2)
    assert [otlp.value_of(pair.value) for pair in span.attributes] == [-math.inf, b"\xff\xef", 1.0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no JSON"),
        ("[]", "no JSON object: it is a list"),
        ('{"resourceSpans":{}}', "resourceSpans: no list: it is an object"),
        ('{"resourceSpans":[{"scopeSpans":[{"spans":[{},{"traceId":"0g"}]}]}]}', "spans[1].traceId: no hex digits"),
        ('{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":" 0"}]}]}]}', "no hex digits"),
        ('{"resourceSpans":[{"scopeSpans":[{"spans":[{"startTimeUnixNano":-1}]}]}]}', "-1 is out of range"),
        ('{"resourceSpans":[{"scopeSpans":[{"spans":[{"startTimeUnixNano":"1_0"}]}]}]}', "no integer: '1_0'"),
        ('{"resourceSpans":[{"scopeSpans":[{"spans":[{"kind":"SERVER"}]}]}]}', "'SERVER' is no value"),
        ('{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":1}]}]}]}', "name: no text: 1"),
        ('{"resourceSpans":[{"resource":{"attributes":[{"value":{"bytesValue":"a"}}]}}]}', "no base64"),
        ('{"resourceSpans":[{"resource":{"attributes":[{"value":{"boolValue":1}}]}}]}', "neither true nor false"),
        ('{"resourceSpans":[{"resource":{"attributes":[{"value":{"doubleValue":"inf"}}]}}]}', "no number"),
        ('{"resourceSpans":[{"resource":{"attributes":[{"value":{"intValue":1,"boolValue":true}}]}}]}', "only one of"),
        (
            '{"resourceSpans":[{"resource":{"attributes":[{"value":'
            + '{"arrayValue":{"values":[' * 60
            + "]}}" * 60
            + "}]}}]}",
            "nested deeper than 100",
        ),
    ],
)
def test_json_that_is_no_otlp_is_refused_with_its_place(text: str, reason: str) -> None:
    with pytest.raises(otlp_json.NoOtlp) as refused:
        otlp_json.loads(text.encode(), TracesData)
    assert reason in str(refused.value)


# Import -------------------------------------------------------------------------------------------------------


def test_import_of_what_a_collector_wrote(root: Path) -> None:
    report = import_otlp(root, DATA / "collector.jsonl")
    assert (report.imported, report.already_there, report.refused) == (4, 0, [])
    span, *two_logs, metrics = [r for r in stored(root / "otlp.import") if r["type"] != "otel.resource"]
    assert span["traceparent"] == "00-5b8efff798038103d269b633813fc60c-eee19b7ec3c1b174-01"
    assert (span["tracestate"], span["time"]) == ("a=1,b=2", "2018-12-13T14:51:01.000000000Z")
    lines = [json.loads(line) for line in (DATA / "collector.jsonl").read_text().splitlines()]
    message = otlp_json.read(lines[0], TracesData)
    assert span_again(span) == message.resource_spans[0].scope_spans[0].spans[0]
    records = otlp_json.read(lines[1], LogsData).resource_logs[0].scope_logs[0].log_records
    assert [log_again(log) for log in two_logs] == list(records)
    assert otlp_json.read({"resourceMetrics": metrics["data"]}, MetricsData) == otlp_json.read(lines[2], MetricsData)
    assert otlp_json.plain(otlp_json.read(lines[2], MetricsData))["resourceMetrics"] == metrics["data"]


@pytest.mark.parametrize("name", ["collector.jsonl", "sdk_traces.jsonl"])
def test_importing_twice_adds_nothing(root: Path, name: str) -> None:
    first = import_otlp(root, DATA / name)
    before = [record["id"] for record in stored(root / "otlp.import")]
    again = import_otlp(root, DATA / name)
    assert (again.imported, again.already_there) == (0, first.imported)
    assert [record["id"] for record in stored(root / "otlp.import")] == before


def test_equal_records_of_one_file_are_all_kept(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    line = otlp_json.dumps(spans_of(2)) + b"\n"
    file.write_bytes(line * 3)
    assert import_otlp(root, file).imported == 6
    assert import_otlp(root, file).already_there == 6
    # One that goes on where the file ended before.
    file.write_bytes(line * 4)
    report = import_otlp(root, file)
    assert (report.imported, report.already_there) == (2, 6)
    assert len({record["id"] for record in stored(root / "otlp.import", "span")}) == 8


def test_what_the_sdk_wrote_holds_every_kind_of_value(root: Path) -> None:
    import_otlp(root, DATA / "sdk_traces.jsonl")
    charge, plain = stored(root / "otlp.import", "span")
    found = charge["data"]["attributes"]
    assert math.isnan(found.pop("nan"))
    assert found == {
        "amount": 12, "rate": 1.0, "minus": 0.0, "ok": True, "raw": b"\x00\xff", "list": ["a", 1, None, 2.5],
        "map": {"k": {"n": 1}}, "inf": math.inf, "big": 2**63 - 1, "leer": "", "ü": "\u2028",
    }  # fmt: skip
    assert (type(found["rate"]), math.copysign(1, found["minus"])) == (float, -1)
    assert charge["data"]["status"] == {"code": "ERROR", "description": "no funds"}
    assert list(plain["data"]) == ["name", "start", "end", "resource", "scope"]


def varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


FRAMINGS: dict[str, Callable[[bytes], bytes]] = {
    "one": lambda message: message,
    "varint": lambda message: varint(len(message)) + message,
    "four bytes": lambda message: len(message).to_bytes(4) + message,
}


def collected() -> dict[str, Any]:
    kinds = {"traces": TracesData, "logs": LogsData, "metrics": MetricsData}
    lines = (DATA / "collector.jsonl").read_bytes().splitlines()
    return {kind: otlp_json.loads(line, kinds[kind]) for kind, line in zip(kinds, lines, strict=True)}


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("kind", ["traces", "logs", "metrics"])
def test_import_of_protobuf(root: Path, tmp_path: Path, kind: str, framing: str) -> None:
    file = tmp_path / "x.bin"
    message = collected()[kind].SerializeToString()
    file.write_bytes(FRAMINGS[framing](message) * 2)
    count = {"traces": 1, "logs": 2, "metrics": 1}[kind]
    assert import_otlp(root, file).imported == 2 * count
    assert import_otlp(root, file).already_there == 2 * count
    # The same as the collector's JSON, so half of it is known then.
    import_otlp(root, DATA / "collector.jsonl")
    records = [record for record in stored(root / "otlp.import") if record["type"] != "otel.resource"]
    assert len(records) == count + 4


def test_messages_that_hold_nothing_and_those_of_an_unknown_signal(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.bin"
    data = spans_of(1)
    first = data.SerializeToString()
    del data.resource_spans[0].scope_spans[0].spans[:]
    data.resource_spans[0].scope_spans[0].spans.add()
    unknown = data.SerializeToString()
    del data.resource_spans[0].scope_spans[:]
    file.write_bytes(first + unknown + data.SerializeToString())
    report = import_otlp(root, file)
    assert (report.imported, [refused.offset for refused in report.refused]) == (1, [len(first)])
    assert "--signal" in report.refused[0].reason
    assert import_otlp(root, file, signal="traces").imported == 1


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_torn_file_of_protobuf_is_taken_as_far_as_it_goes(root: Path, tmp_path: Path, framing: str) -> None:
    file = tmp_path / "x.bin"
    whole = FRAMINGS[framing](spans_of(3).SerializeToString())
    file.write_bytes(whole * 2 + whole[:50])
    report = import_otlp(root, file)
    (refused,) = report.refused
    assert (report.imported, refused.offset, refused.file) == (6, 2 * len(whole), file)
    assert "torn" in refused.reason
    assert refused.kept_as.read_bytes() == whole[:50]


@given(st.sampled_from(["traces", "logs"]), st.data())
def test_the_signal_of_a_message_shows_in_its_bytes(kind: str, data: st.DataObject) -> None:
    message = otlp.SIGNALS[kind].request()
    times = st.integers(1, 2**64 - 1)
    items = data.draw(st.lists(spans if kind == "traces" else logs, min_size=1, max_size=2))
    for item in items:
        setattr(item, "end_time_unix_nano" if kind == "traces" else "time_unix_nano", data.draw(times))
    resource = otlp.SIGNALS[kind].resources(message).add()
    otlp.SIGNALS[kind].items(otlp.SIGNALS[kind].scopes(resource).add()).extend(items)
    raw = message.SerializeToString()
    assert wire.kind_of(raw, wire.Frame(0, len(raw), True)) == kind


def test_a_bad_line_is_reported_with_its_place_and_kept(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "with bad lines.jsonl"
    good = otlp_json.dumps(spans_of(1)) + b"\n"
    bad = [b'{"resourceSpans":[{"scopeSpans":7}]}\n', b'{"x":1}\n', b"\xff\n", good[:-20] + b"\n"]
    torn = otlp_json.dumps(spans_of(1, 1))[:-5]
    file.write_bytes(good + b"".join(bad) + b"\r\n\n" + good + torn)
    report = import_otlp(root, file)
    assert report.imported == 2
    assert [refused.kept_as.read_bytes() for refused in report.refused] == [*bad, torn]
    assert [refused.offset for refused in report.refused][:2] == [len(good), len(good) + len(bad[0])]
    assert report.refused[0].reason == "resourceSpans[0].scopeSpans: no list: it is a number"
    assert len(stored(root / "otlp.import", "span")) == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"specversion":"1.0","id":"1"}\n', "an object with the member 'specversion'"),
        (b"hello\n", "neither text in JSON nor a message of protobuf"),
        (gzip.compress(b"{}", mtime=0), "zcat"),
        (bytes(100), "neither"),
    ],
)
def test_what_is_no_otlp_at_all_is_refused_and_nothing_made(
    root: Path, tmp_path: Path, content: bytes, reason: str
) -> None:
    file = tmp_path / "x"
    file.write_bytes(content)
    with pytest.raises(FormatError, match=reason):
        import_otlp(root, file)
    assert not root.exists()


def test_a_source_that_cannot_be_read(root: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(RootError, match="cannot be read"):
            import_otlp(root, path)


def test_a_file_of_protobuf_that_looks_like_json(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "x"
    data = spans_of(1)
    attribute(data.resource_spans[0].scope_spans[0].spans[0].attributes, "k", "")
    (span,) = data.resource_spans[0].scope_spans[0].spans
    while data.ByteSize() < 0x7B:
        span.name += "x"
    raw = varint(data.ByteSize()) + data.SerializeToString()
    assert raw[:1] == b"{"
    file.write_bytes(raw)
    assert import_otlp(root, file).imported == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: spans_of(1).SerializeToString()[:80] + tail))
def test_import_of_any_bytes_ends_in_a_report_or_a_refusal(tmp_path: Path, content: bytes) -> None:
    file, root = tmp_path / "x", tmp_path / "ledger"
    shutil.rmtree(root, ignore_errors=True)
    file.write_bytes(content)
    with contextlib.suppress(FormatError):
        import_otlp(root, file, durability="os")


CLI = """
from otledger.cli import main, transfer
from otledger.cli.app import command
from otledger_opentelemetry import commands_in as ours

command(*ours.IMPORT_EXAMPLES, name="otlp", to=transfer.take_in)(ours.import_otlp)
command(*ours.RECEIVE_EXAMPLES)(ours.receive)
main()
"""


def run_cli(tmp_path: Path, *arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", CLI, *map(str, arguments)]
    return subprocess.run(command, cwd=tmp_path, env=environment, input=stdin, capture_output=True, timeout=30)


def test_the_command_that_imports(tmp_path: Path) -> None:
    done = run_cli(tmp_path, "import", "otlp", "-", "--json", stdin=(DATA / "collector.jsonl").read_bytes())
    assert (done.returncode, json.loads(done.stdout)["imported"]) == (0, 4)
    again = run_cli(tmp_path, "import", "otlp", DATA / "collector.jsonl")
    assert (again.returncode, b"4 events were there already" in again.stdout) == (0, True)
    bad = run_cli(tmp_path, "import", "otlp", "-", stdin=b'{"resourceSpans":[]}\nx\n')
    assert (bad.returncode, bad.stderr.count(b"\n")) == (2, 1)
    assert b"offset 21: no JSON" in bad.stderr
    absent = run_cli(tmp_path, "import", "otlp", "absent")
    assert (absent.returncode, absent.stderr.count(b"\n")) == (2, 1)
    wrong = run_cli(tmp_path, "import", "otlp", "-", "--signal", "x", stdin=b"{}")
    assert (wrong.returncode, wrong.stderr.count(b"\n")) == (2, 1)


# The receiver's answers -----------------------------------------------------------------------------------------


@pytest.fixture
async def client(root: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a receiver in this process, which takes requests of 1 MiB and has a queue of 100 records."""
    config = Config.resolve(root=root, machine="m1", service="test", queue_records=100, queue_timeout=0.5)
    own = writers.acquire(config)
    receiver = Receiver(own, max_body=1 << 20)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(receiver), base_url="http://127.0.0.1") as found:
        yield found
    receiver.close()
    writers.release(own, 10)


def reason_of(answer: httpx.Response) -> str:
    """The message of a google.rpc.Status in the body, whose form must be that of the request."""
    if answer.headers["content-type"] == "application/json":
        status = answer.json()
        assert isinstance(status["code"], int)
        return str(status["message"])
    assert answer.headers["content-type"] == "application/x-protobuf"
    assert answer.content[0] == 0x08
    assert answer.content[2] == 0x12
    length = answer.content[3:].lstrip(bytes(range(128, 256)))[0:1]
    start = 3 + answer.content[3:].index(length) + 1
    return answer.content[start:].decode()


async def test_an_answer_of_200_has_the_form_of_the_request(client: httpx.AsyncClient, root: Path) -> None:
    for kind, message in collected().items():
        answer = await client.post(f"/v1/{kind}", content=message.SerializeToString(), headers=PROTOBUF)
        assert (answer.status_code, answer.content, answer.headers["content-type"]) == (
            200, b"", "application/x-protobuf",
        )  # fmt: skip
        # Durable when it is answered.
        assert len([r for r in check(root / "m1", torn_tail_ok=True) if r["type"].startswith("otel.")]) >= 1
        headers = {"content-type": "Application/JSON; charset=utf-8"}
        answer = await client.post(f"/v1/{kind}", content=otlp_json.dumps(message), headers=headers)
        assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"{}", "application/json")
    one, other = [record["data"] for record in stored(root / "m1", "span")]
    assert one == other


async def test_json_by_the_mapping_of_protobuf(client: httpx.AsyncClient, root: Path) -> None:
    for kind, message in collected().items():
        for headers, content in (
            (PROTOBUF, message.SerializeToString()),
            ({**AS_JSON, "content-encoding": "gzip"}, gzip.compress(json.dumps(by_protobuf(message)).encode())),
        ):
            answer = await client.post(f"/v1/{kind}", content=content, headers=headers)
            assert (answer.status_code, answer.headers["content-type"]) == (200, headers["content-type"])
    for kind, count in (("span", 1), ("log", 2), ("metrics", 1)):
        found = [[record.get(name) for name in ("traceparent", "time", "data")] for record in stored(root / "m1", kind)]
        assert len(found) == 2 * count
        assert found[:count] == found[count:]


async def test_compressed_requests(client: httpx.AsyncClient, root: Path) -> None:
    body = spans_of(1).SerializeToString()
    raw = zlib.compressobj(wbits=-15)
    bodies = {
        "gzip": [gzip.compress(body), gzip.compress(body[:10]) + gzip.compress(body[10:])],
        "deflate": [zlib.compress(body), raw.compress(body) + raw.flush()],
        "Identity": [body],
    }
    for encoding, some in bodies.items():
        for content in some:
            headers = {**PROTOBUF, "content-encoding": encoding}
            assert (await client.post("/v1/traces", content=content, headers=headers)).status_code == 200
    assert len(stored(root / "m1", "span")) == 5


MANY = LogsData()
MANY.resource_logs.add().scope_logs.add().log_records.extend([LogRecord()] * 50_001)
NONSENSE: list[tuple[int, str, str, Json, bytes]] = [
    (404, "POST", "/v1/profiles", PROTOBUF, b""),
    (404, "GET", "/", {}, b""),
    (405, "GET", "/v1/traces", {}, b""),
    (405, "OPTIONS", "/v1/traces", {"origin": "http://evil.example"}, b""),
    (403, "POST", "/v1/traces", {**AS_JSON, "origin": "http://evil.example"}, b"{}"),
    (415, "POST", "/v1/traces", {"content-type": "text/plain"}, b"{}"),
    (415, "POST", "/v1/traces", {}, b"{}"),
    (415, "POST", "/v1/traces", {**AS_JSON, "content-encoding": "zstd"}, b"{}"),
    (400, "POST", "/v1/traces", PROTOBUF, b"\xff\xff"),
    (400, "POST", "/v1/traces", PROTOBUF, b"\x0a\x05hello"),
    (400, "POST", "/v1/traces", AS_JSON, b""),
    (400, "POST", "/v1/traces", AS_JSON, b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"\\ud800"}]}]}]}'),
    (400, "POST", "/v1/traces", AS_JSON, b'{"resourceSpans":' * 2000),
    (400, "POST", "/v1/traces", {**AS_JSON, "content-encoding": "gzip"}, b"{}"),
    (400, "POST", "/v1/traces", {**AS_JSON, "content-encoding": "gzip"}, gzip.compress(b"{}", mtime=0)[:-3]),
    (400, "POST", "/v1/traces", {**AS_JSON, "content-encoding": "gzip"}, gzip.compress(b"{}", mtime=0) + b"rest"),
    (400, "POST", "/v1/traces", {**AS_JSON, "content-encoding": "deflate"}, b"\x78\x9cxxxx"),
    (413, "POST", "/v1/traces", PROTOBUF, bytes((1 << 20) + 1)),
    (413, "POST", "/v1/traces", {**AS_JSON, "content-encoding": "gzip"}, gzip.compress(bytes(64 << 20), mtime=0)),
    (413, "POST", "/v1/traces", {**PROTOBUF, "content-encoding": "deflate"}, zlib.compress(bytes(2 << 20))),
    (413, "POST", "/v1/logs", PROTOBUF, MANY.SerializeToString()),
]


@pytest.mark.parametrize(
    ("status", "method", "path", "headers", "body"), NONSENSE, ids=[str(at) for at in range(len(NONSENSE))]
)
async def test_nonsense_is_refused_with_a_reason(
    client: httpx.AsyncClient, root: Path, status: int, method: str, path: str, headers: Json, body: bytes
) -> None:
    answer = await client.request(method, path, headers=headers, content=body)
    assert answer.status_code == status, reason_of(answer)
    assert len(reason_of(answer)) > 10
    assert (answer.headers.get("allow") == "POST") == (status == 405)
    assert not stored(root / "m1", "span")


async def test_a_body_without_a_length_ends_at_the_limit(client: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield bytes(1 << 16)

    answer = await client.post("/v1/traces", content=endless(), headers=PROTOBUF)
    assert (answer.status_code, sent < 40) == (413, True)


def test_a_bomb_is_unpacked_no_further_than_the_limit() -> None:
    bomb = gzip.compress(bytes(200 << 20))
    with pytest.raises(Refused) as refused:
        unpack(bomb, "gzip", 1 << 20)
    assert refused.value.status == 413


async def test_a_full_queue_is_answered_with_429(client: httpx.AsyncClient, root: Path, hang: Hang) -> None:
    async def send(first: int) -> httpx.Response:
        body = spans_of(60, first).SerializeToString()
        return await client.post("/v1/traces", content=body, headers=PROTOBUF)

    assert (await send(0)).status_code == 200
    hang.start("fdatasync")
    waiting = [asyncio.create_task(send(first)) for first in (100, 200)]
    while not hang.reached.is_set():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    refused = await send(300)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert "queue is full" in reason_of(refused)
    # Those that wait are told after queue_timeout that they cannot count on it.
    answers = await asyncio.gather(*waiting)
    assert {answer.status_code for answer in answers} == {503}
    assert all("try again" in reason_of(answer) for answer in answers)
    hang.stop()
    async with asyncio.timeout(10):
        while (await send(400)).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    numbers = {int(record["traceparent"][3:35], 16) for record in stored(root / "m1", "span")}
    assert numbers == {first + at for first in (0, 100, 200, 400) for at in range(1, 61)}


async def test_a_disk_that_fails_is_answered_with_503(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def full(fd: int, data: Any) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".jsonl"):
            raise OSError(28, "No space left on device")
        return real(fd, data)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        answer = await client.post("/v1/traces", content=spans_of(1).SerializeToString(), headers=PROTOBUF)
        assert answer.status_code == 503
        assert "No space left" in reason_of(answer)
    # It was accepted all the same, and is written when that is possible.
    async with asyncio.timeout(10):
        body = spans_of(1, 1).SerializeToString()
        while (await client.post("/v1/traces", content=body, headers=PROTOBUF)).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
)
shapes = st.builds(
    lambda resource, span, value: json.dumps(
        {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [span, {"attributes": [value]}]}]}]}
    ).encode(),
    json_values,
    st.dictionaries(
        st.sampled_from(["traceId", "kind", "startTimeUnixNano", "attributes", "links", "status", "flags", "name"]),
        json_values,
        max_size=4,
    ),
    st.dictionaries(st.sampled_from(["key", "value"]), json_values, max_size=2),
)
changed = st.builds(
    lambda body, at, bytes_: body[: at % len(body)] + bytes_ + body[at % len(body) + 1 :],
    st.sampled_from([message.SerializeToString() for message in collected().values()]),
    st.integers(0, 2000),
    st.binary(max_size=3),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.sampled_from(["traces", "logs", "metrics"]),
    st.booleans(),
    st.sampled_from(["", "gzip", "deflate"]),
    st.binary(max_size=80) | shapes | changed,
)
def test_no_request_brings_the_receiver_down(
    tmp_path_factory: pytest.TempPathFactory, kind: str, as_json: bool, encoding: str, body: bytes
) -> None:
    config = Config.resolve(root=hostile_root(tmp_path_factory), machine="m1", service="test", durability="os")

    async def post() -> int:
        own = writers.acquire(config)
        receiver = Receiver(own)
        transport = httpx.ASGITransport(receiver)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            headers = {**(AS_JSON if as_json else PROTOBUF), "content-encoding": encoding}
            answer = await client.post(f"/v1/{kind}", content=body, headers=headers)
        receiver.close()
        writers.release(own, 10)
        return answer.status_code

    assert asyncio.run(post()) in (200, 400)


_hostile: list[Path] = []


def hostile_root(factory: pytest.TempPathFactory) -> Path:
    if not _hostile:
        _hostile.append(factory.mktemp("hostile") / "ledger")
    return _hostile[0]


def test_what_hostile_requests_left_is_a_ledger(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = hostile_root(tmp_path_factory)
    if root.exists():
        stored(root / "m1")


# The receiver's process -----------------------------------------------------------------------------------------

Start = Callable[..., tuple[str, "subprocess.Popen[str]"]]
SERVE = """
    import sys
    from otledger_opentelemetry.receiver import serve
    left = serve(sys.argv[1], port=0, machine="m1", service="receive", on_ready=lambda url: print(url, flush=True))
    print("left", left, flush=True)
"""


@pytest.fixture
def receiving(script: Script, root: Path) -> tuple[str, "subprocess.Popen[str]"]:
    """A receiver in a process of its own: its URL, and the process."""
    process = script(SERVE, root)
    assert process.stdout is not None
    return process.stdout.readline().strip(), process


def end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "left 0\n")


Receiving = tuple[str, "subprocess.Popen[str]"]


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip, Compression.Deflate])
def test_spans_of_the_official_exporter(receiving: Receiving, root: Path, compression: Compression) -> None:
    url, process = receiving
    memory = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "shop"}), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(f"{url}/v1/traces", compression=compression)
    for each in (memory, exporter):
        provider.add_span_processor(SimpleSpanProcessor(each))
    tracer = provider.get_tracer("tests", "1", attributes={"a": 1})
    with tracer.start_as_current_span("outer", attributes={"n": 1, "list": ["a", "b"], "raw": b"x"}) as outer:
        outer.add_event("event", {"x": 0.5})
        with tracer.start_as_current_span("inner", links=[], record_exception=False):
            pass
    # As one batch, too.
    assert exporter.export(memory.get_finished_spans()) is SpanExportResult.SUCCESS
    provider.shutdown()
    end(process)
    sent = list(encode_spans(memory.get_finished_spans()).resource_spans[0].scope_spans[0].spans)
    assert [span_again(record) for record in stored(root / "m1", "span")] == sent * 2
    # Read back they encode to the bytes that the exporter sent.
    again = encode_spans(list(otledger_opentelemetry.read_spans(root)))
    assert again.SerializeToString() == encode_spans(memory.get_finished_spans()).SerializeToString()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_logs_and_metrics_of_the_official_exporters(receiving: Receiving, root: Path) -> None:
    url, process = receiving
    logger_provider = LoggerProvider(resource=Resource({"service.name": "shop"}), shutdown_on_exit=False)
    logger_provider.add_log_record_processor(
        SimpleLogRecordProcessor(OTLPLogExporter(f"{url}/v1/logs", compression=Compression.Gzip))
    )
    logger_provider.get_logger("tests").emit(timestamp=START, body={"k": [1, None]}, event_name="happened")
    logger_provider.shutdown()
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{url}/v1/metrics"), export_interval_millis=math.inf)
    meter_provider = MeterProvider([reader], shutdown_on_exit=False)
    meter = meter_provider.get_meter("tests")
    meter.create_counter("orders").add(3, {"k": "v"})
    meter.create_histogram("sizes").record(12.5)
    meter_provider.force_flush()
    meter_provider.shutdown()
    end(process)
    (log,) = stored(root / "m1", "log")
    assert (log["data"]["body"], log["data"]["event_name"]) == ({"k": [1, None]}, "happened")
    names = {
        metric["name"]
        for record in stored(root / "m1", "metrics")
        for resource in record["data"]
        for scope in resource["scopeMetrics"]
        for metric in scope["metrics"]
    }
    assert names == {"orders", "sizes"}


NODE = """
const { BasicTracerProvider, SimpleSpanProcessor } = require("@opentelemetry/sdk-trace-base");
const { OTLPTraceExporter } = require("@opentelemetry/exporter-trace-otlp-http");
const exporter = new OTLPTraceExporter({ url: process.argv[2] + "/v1/traces", compression: process.argv[3] });
const provider = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] });
const span = provider.getTracer("tests", "1").startSpan("from node", { attributes: { n: 1, list: ["a", "b"] } });
span.addEvent("event", { x: 0.5 });
span.end();
provider.forceFlush().then(() => provider.shutdown());
"""


def test_spans_of_the_exporter_of_node(receiving: Receiving, root: Path, tmp_path: Path) -> None:
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.fail("this test needs node and npm: install Node.js 18 or later")
    folder = tmp_path / "node"
    folder.mkdir()
    packages = ["@opentelemetry/exporter-trace-otlp-http", "@opentelemetry/sdk-trace-base"]
    install = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", *packages]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"npm could not install {packages}: {done.stderr}"
    (folder / "main.js").write_text(NODE)
    url, process = receiving
    for compression in ("none", "gzip"):
        subprocess.run([node, "main.js", url, compression], cwd=folder, check=True, timeout=30)
    end(process)
    found = stored(root / "m1", "span")
    assert [record["data"]["name"] for record in found] == ["from node"] * 2
    assert found[0]["data"]["attributes"] == {"n": 1, "list": ["a", "b"]}
    assert found[0]["traceparent"].endswith("-01")


class Load:
    """Threads that send spans until the receiver is gone, and what they were told."""

    def __init__(self, url: str) -> None:
        self.answered: list[int] = []
        self._url = url
        self._threads = [threading.Thread(target=self._send, args=(thread * 10_000_000,)) for thread in range(3)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join(20)

    def _send(self, first: int) -> None:
        connection = http.client.HTTPConnection(self._url.removeprefix("http://"), timeout=20)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            while True:
                connection.request("POST", "/v1/traces", spans_of(20, first).SerializeToString(), PROTOBUF)
                answer = connection.getresponse()
                answer.read()
                if answer.status == 200:
                    self.answered += range(first + 1, first + 21)
                first += 20


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_what_was_answered_with_200_survives_the_end(receiving: Receiving, root: Path, how: signal.Signals) -> None:
    url, process = receiving
    with Load(url) as load:
        deadline = time.monotonic() + 20
        while len(load.answered) < 400 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(how)
    assert len(load.answered) >= 400
    process.communicate(timeout=20)
    assert process.returncode == (-how if how == signal.SIGKILL else 0)
    records = check(root / "m1", torn_tail_ok=how == signal.SIGKILL)
    numbers = [int(record["traceparent"][3:35], 16) for record in records if record["type"] == "otel.span.end"]
    assert len(set(numbers)) == len(numbers)
    assert set(load.answered) <= set(numbers)


def test_a_port_that_is_taken() -> None:
    with contextlib.closing(bind("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match="--port"):
            bind("127.0.0.1", port)
    with pytest.raises(ConfigurationError, match="--host"):
        bind("no such host.invalid", 0)


def test_the_command_that_receives(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", CLI, "receive", "--port", "0", "--machine", "m1"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process:
        url = process.stderr.readline().split(" at ")[1].split()[0]
        assert httpx.post(f"{url}/v1/traces", content=spans_of(3).SerializeToString(), headers=PROTOBUF).is_success
        process.send_signal(signal.SIGINT)
        assert (process.stderr.read(), process.wait(20)) == ("", 0)
    assert len(stored(tmp_path / "ledger" / "m1", "span")) == 3


@pytest.mark.parametrize(("missing", "command"), [("uvicorn", ["receive"]), ("google", ["import", "otlp", "-"])])
def test_missing_packages_are_one_clear_line(root: Path, missing: str, command: list[str]) -> None:
    without = f"import sys; sys.modules[{missing!r}] = None; sys.argv[1:] = {command!r}"
    code = f"{without}; import otledger.cli as cli; cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OTLEDGER_ROOT": str(root)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "needs more packages" in line
    assert "pip install 'otledger[otlp]'" in line
