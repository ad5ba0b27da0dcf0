"""What is replayed encodes to the same OTLP bytes as what was exported, whatever the SDK can make."""

import logging
import math
import re
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context.context import Context
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk._logs import LogRecordLimits, ReadableLogRecord, ReadWriteLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState

import otledger
from otledger import speed
from otledger_opentelemetry import LedgerLogExporter, LedgerSpanExporter, read_logs, read_spans
from tests.checker import check

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The SDK warns of each oddity, with a traceback."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


texts = st.text(max_size=8) | st.sampled_from(["", "null", "ä", "\ud800", "\u2028", "$repr", "😀", 'a"b\\'])
numbers = (
    st.integers(-(2**63), 2**63 - 1)
    | st.integers()
    # The format knows one NaN.
    | st.floats().map(lambda number: math.nan if math.isnan(number) else number)
    | st.sampled_from([0, 1, True, 1.0, -0.0, math.nan, math.inf, -math.inf, 2**63, -(2**63)])
)
scalars = st.none() | st.booleans() | texts | numbers | st.binary(max_size=8)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(texts, inner, max_size=3)
        | st.dictionaries(texts, inner, max_size=2).map(MappingProxyType)
        | st.lists(inner, max_size=2).map(deque)
        | st.binary(max_size=4).map(bytearray)
    ),
    max_leaves=6,
)
attributes = st.dictionaries(texts, anything, max_size=4)
names = texts.filter(lambda text: "\ud800" not in text)
resources = st.builds(Resource, st.dictionaries(names, st.booleans() | names | st.integers(0, 9), max_size=3), names)
scopes = st.none() | st.builds(InstrumentationScope, names, st.none() | names, st.none() | names, attributes)
states = st.sampled_from([None, TraceState(), TraceState([("a", "1"), ("b@c", "x=y")]), TraceState([("k", "v" * 200)])])
contexts = st.builds(
    SpanContext,
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    st.booleans(),
    st.integers(0, 255).map(TraceFlags) | st.just(TraceFlags(511)),
    states,
)
times = st.integers(0, 2**63) | st.just(1_795_310_823_898_387_714)
statuses = st.builds(Status, st.sampled_from(list(StatusCode)), st.none() | names)


def bounded(given: dict[str, Any] | None, dropped: int) -> BoundedAttributes:
    found = BoundedAttributes(None, given, immutable=True)
    found.dropped = dropped
    return found


def limited(items: list[Any], dropped: int) -> BoundedList[Any]:
    found: BoundedList[Any] = BoundedList(None)
    found.extend(items)
    found.dropped = dropped
    return found


counts = st.integers(0, 3)
cleaned = st.builds(bounded, attributes, counts)
events = st.builds(Event, names, cleaned, times)
links = st.builds(Link, contexts, cleaned)
spans = st.builds(
    ReadableSpan,
    name=names,
    context=contexts,
    parent=st.none() | contexts,
    resource=resources,
    attributes=cleaned | attributes,
    events=st.builds(limited, st.lists(events, max_size=2), counts),
    links=st.builds(limited, st.lists(links, max_size=2), counts),
    kind=st.sampled_from(list(SpanKind)),
    status=statuses,
    start_time=times,
    end_time=times,
    instrumentation_scope=scopes,
)


def make_log(
    context: SpanContext | None, resource: Resource, scope: Any, attributes: Any, **members: Any
) -> ReadableLogRecord:
    record = LogRecord(context=Context({"of": "a test"}), attributes=attributes, **members)
    if context is not None:
        record.trace_id, record.span_id, record.trace_flags = context.trace_id, context.span_id, context.trace_flags
    return ReadableLogRecord(record, resource, scope)


logs = st.builds(
    make_log,
    st.none() | contexts,
    resources,
    scopes,
    st.none() | cleaned | attributes,
    timestamp=st.none() | times,
    observed_timestamp=times,
    severity_text=st.none() | names,
    severity_number=st.none() | st.sampled_from(list(SeverityNumber)),
    body=anything,
    event_name=st.none() | names,
)


def encodable(encode: Any, item: Any) -> bool:
    """What the SDK's encoder refuses costs the batch there, and is no part of the promise."""
    try:
        encode([item])
    except Exception:
        return False
    return True


def in_batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[at : at + size] for at in range(0, len(items), size)]


def same_bytes(encode: Any, originals: Sequence[Any], replayed: Sequence[Any]) -> None:
    assert len(originals) == len(replayed)
    for size in (1, 3, 1000):
        for one, other in zip(in_batches(originals, size), in_batches(replayed, size), strict=True):
            assert encode(one).SerializeToString(deterministic=True) == encode(other).SerializeToString(
                deterministic=True
            )


def same_through_a_ledger(encode: Any, exporter: Any, read: Any, given: list[Any]) -> None:
    originals = [item for item in given if encodable(encode, item)]
    with tempfile.TemporaryDirectory() as folder:
        ours = exporter(root=folder, machine="m1", durability="os", min_free=0)
        ours.export(originals)
        ours.shutdown()
        replayed = list(read(folder))
        check(Path(folder) / "m1")
        assert otledger.verify(folder, processes=1, deep=True).status is otledger.Status.OK
    same_bytes(encode, originals, replayed)


many = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@many
@given(st.lists(spans, max_size=5, unique_by=lambda span: (span.context.trace_id, span.context.span_id)))
def test_spans(given: list[ReadableSpan]) -> None:
    same_through_a_ledger(encode_spans, LedgerSpanExporter, partial(read_spans, unsampled=True), given)


@many
@given(st.lists(logs, max_size=5))
def test_logs(given: list[ReadableLogRecord]) -> None:
    same_through_a_ledger(encode_logs, LedgerLogExporter, read_logs, given)


usual = st.builds(
    ReadableSpan,
    name=names,
    context=st.builds(
        SpanContext,
        st.integers(1, 2**128 - 1),
        st.integers(1, 2**64 - 1),
        st.just(False),
        st.integers(0, 255).map(TraceFlags),
        st.sampled_from([None, TraceState()]),
    ),
    parent=st.none() | contexts,
    resource=st.just(Resource({"service.name": "shop"})),
    attributes=st.builds(
        bounded, st.dictionaries(names, names | st.integers(0, 9), max_size=4) | attributes, st.just(0)
    ),
    events=st.just(limited([], 0)),
    links=st.just(limited([], 0)),
    kind=st.sampled_from(list(SpanKind)),
    status=st.just(Status(StatusCode.UNSET)),
    start_time=times | st.sampled_from([-5, 999_999, 1_000_000, None]),
    end_time=times | st.sampled_from([-5, 999_999, 1_000_000, 253_402_300_800_000_000_000]),
    instrumentation_scope=st.none() | st.just(InstrumentationScope("scope", "1.0")),
)


@pytest.mark.skipif(speed.span is None, reason="the compiled part is not here")
def test_the_compiled_part_gives_the_same_lines(tmp_path: Path) -> None:
    exporter = LedgerSpanExporter(root=tmp_path, machine="m1", durability="os", min_free=0)
    recorder = exporter._sink.recorder
    compiled = 0

    @settings(many, max_examples=400)
    @given(usual, st.none() | texts)
    def compare(span: ReadableSpan, turn: str | None) -> None:
        nonlocal compiled
        if turn is not None and isinstance(span._attributes, BoundedAttributes):
            span._attributes._otledger_turn = turn  # type: ignore[attr-defined]
        part = recorder._usual_end(span)
        if part is None:
            return
        compiled += 1
        # The id, which holds a random number, stands first.
        mine, other = (re.sub(rb'"id":"[^"]*"', b"", each, count=1) for each in (part, recorder.span(span)))
        assert mine == other

    compare()
    exporter.shutdown()
    assert compiled > 50


def test_spans_that_the_sdk_makes(root: Path) -> None:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    memory = InMemorySpanExporter()
    limits = SpanLimits(max_span_attributes=3, max_events=2, max_links=1, max_attribute_length=5)
    provider = TracerProvider(resource=Resource({"service.name": "shop", "n": 1}, "https://schema"), span_limits=limits)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    provider.add_span_processor(SimpleSpanProcessor(LedgerSpanExporter(root=root, machine="m1", durability="os")))
    tracer = provider.get_tracer("scope", "1.0", "https://scope", {"a": [1, 2]})
    for number in range(5):
        with tracer.start_as_current_span(f"outer {number}", kind=SpanKind.SERVER) as outer:
            outer.set_attributes({"a": 1, "b": "long text", "c": [1.5, 2.5], "d": True, "e": b"x"})
            for name in "xyz":
                outer.add_event(name, {"k": name})
            with tracer.start_as_current_span("inner", links=[Link(outer.get_span_context(), {"l": 1})] * 2):
                pass
            outer.set_status(Status(StatusCode.ERROR, "no"))
    provider.shutdown()
    same_bytes(encode_spans, memory.get_finished_spans(), list(read_spans(root)))


@pytest.mark.filterwarnings("ignore:Log record attributes were dropped")
def test_logs_with_limits(root: Path) -> None:
    exporter = LedgerLogExporter(root=root, machine="m1", durability="os")
    limits = LogRecordLimits(max_attributes=2, max_attribute_length=3)
    record = LogRecord(
        timestamp=5, observed_timestamp=6, body={"a": [1, None]}, attributes={"a": "long", "b": 1, "c": 2}
    )
    written = ReadWriteLogRecord(record, Resource({"r": 1}), InstrumentationScope("s"), limits)
    original = ReadableLogRecord(written.log_record, Resource({"r": 1}), InstrumentationScope("s"))
    exporter.export([original])
    exporter.shutdown()
    same_bytes(encode_logs, [original], list(read_logs(root)))
