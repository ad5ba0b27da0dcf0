"""Spans: real OpenTelemetry spans, recorded by the SDK's rules, robust in asyncio, whole in the ledger."""

import asyncio
import gc
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry import baggage, propagate, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

import otledger
from otledger.errors import ConfigurationError
from tests.conftest import Script

Json = dict[str, Any]
CheckAll = Callable[[Path], dict[str, list[Json]]]

MIB = 1 << 20


class Written:
    """What is in the ledger, by the independent checker."""

    def __init__(self, root: Path, check_all: CheckAll) -> None:
        self.root, self.check_all = root, check_all

    @property
    def records(self) -> list[Json]:
        return [record for records in self.check_all(self.root).values() for record in records]

    def spans(self, type: str = "otel.span.end") -> dict[str, Json]:
        """The data of spans by their name, with `trace_id` and `span_id` of the record."""
        found: dict[str, Json] = {}
        for record in self.records:
            if record["type"] == type:
                _, trace_id, span_id, flags = record["traceparent"].split("-")
                assert record["data"]["name"] not in found
                own = {"trace_id": trace_id, "span_id": span_id, "trace_flags": int(flags, 16)}
                found[record["data"]["name"]] = {**record["data"], **own, "record": record}
        return found

    def event(self, type: str) -> Json:
        (found,) = [record for record in self.records if record["type"] == type]
        return found


@pytest.fixture
def written(root: Path, check_all: CheckAll) -> Written:
    return Written(root, check_all)


@pytest.fixture(autouse=True)
def accepted(root: Path, check_all: CheckAll) -> Iterator[None]:
    """The checker accepts whatever a test here wrote, and no span stays current."""
    yield
    assert not trace.get_current_span().get_span_context().is_valid
    if root.exists():
        check_all(root)


@pytest.fixture
def exported() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exported: InMemorySpanExporter) -> trace.Tracer:
    """A tracer of the SDK, whose spans are in `exported`."""
    return tracer_of(exported)


def tracer_of(exported: InMemorySpanExporter) -> trace.Tracer:
    provider = TracerProvider(shutdown_on_exit=False, resource=Resource.get_empty(), span_limits=SpanLimits())
    provider.add_span_processor(SimpleSpanProcessor(exported))
    return provider.get_tracer("test")


# What is recorded


async def test_a_span_and_what_is_emitted_in_it(root: Path, written: Written) -> None:
    before = time.time_ns()
    async with otledger.open(root, machine="m1", service="shop") as ledger:
        async with ledger.span("charge", kind=SpanKind.CLIENT, attributes={"amount": 12}) as span:
            assert isinstance(span, otledger.Span)
            assert isinstance(span, trace.Span)
            assert span.is_recording()
            span.set_attribute("bank", "x")
            span.set_attributes({"tries": [1, 2], "amount": 13})
            span.add_event("retry", {"after": 0.5})
            await ledger.emit("inside", {"n": 1})
        assert not span.is_recording()
        await ledger.emit("outside")
    found = written.spans()["charge"]
    record = found.pop("record")
    assert before < found["start"] <= found["events"][0].pop("time") <= found["end"] <= time.time_ns()
    assert {key: found[key] for key in ("kind", "attributes", "events", "trace_flags")} == {
        "kind": "CLIENT",
        "attributes": {"bank": "x", "tries": [1, 2], "amount": 13},
        "events": [{"name": "retry", "attributes": {"after": 0.5}}],
        "trace_flags": 1,
    }
    assert list(found["attributes"]) == ["bank", "tries", "amount"]
    assert not {"parent_span_id", "status", "dropped", "links"} & found.keys()
    assert (record["source"], record["machine"]) == ("/m1/shop", "m1")
    assert (found["trace_id"], found["span_id"]) == (span.trace_id, span.span_id)
    assert written.event("inside")["traceparent"] == record["traceparent"]
    assert "traceparent" not in written.event("outside")
    resources = {r["data"]["digest"]: r["data"] for r in written.records if r["type"] == "otel.resource"}
    attributes = resources[found["resource"]]["attributes"]
    assert (attributes["service.name"], attributes["process.pid"]) == ("shop", os.getpid())
    assert resources[found["scope"]]["name"] == "otledger"
    kinds = [record["type"] for record in written.records]
    assert kinds.index("otel.resource") < kinds.index("otel.span.end")


async def test_times_may_be_given(root: Path, written: Written) -> None:
    async with otledger.open(root) as ledger:
        span = ledger.start_span("a", start_time=10**18)
        span.add_event("e", timestamp=10**18 + 1)
        span.end(10**18 + 2)
    found = written.spans()["a"]
    assert (found["start"], found["events"][0]["time"], found["end"]) == (10**18, 10**18 + 1, 10**18 + 2)
    assert found["record"]["time"] == "2001-09-09T01:46:40.000000002Z"


@pytest.mark.parametrize("end", [-5, 1 << 70, 1.5, "soon"])
async def test_an_odd_end_time_is_kept_as_it_is(root: Path, written: Written, end: Any) -> None:
    async with otledger.open(root) as ledger:
        ledger.start_span("a").end(end)
    (record,) = [record for record in otledger.Reader(root).records() if record.type == "otel.span.end"]
    assert record.data["end"] == end
    assert written.spans()["a"]["record"]["time"]


async def test_after_its_end_a_span_does_nothing(
    root: Path, written: Written, caplog: pytest.LogCaptureFixture
) -> None:
    async with otledger.open(root) as ledger:
        with ledger.span("a", attributes={"k": 1}) as span:
            pass
        span.set_attribute("late", 1)
        span.set_attributes({"late": 1})
        span.add_event("late")
        span.add_link(SpanContext(1, 1, False))
        span.update_name("late")
        span.set_status(StatusCode.ERROR)
        span.record_exception(ValueError("late"))
        span.end()
    assert caplog.text.count("ended span") >= 8
    found = written.spans()
    assert set(found) == {"a"}
    assert found["a"]["attributes"] == {"k": 1}
    assert not {"events", "links", "status"} & found["a"].keys()


async def test_a_span_that_ends_after_its_ledger(
    root: Path, written: Written, caplog: pytest.LogCaptureFixture
) -> None:
    async with otledger.open(root) as ledger:
        span = ledger.start_span("late")
        other = ledger.span("never begun")
    span.end()
    assert "late" in caplog.text
    assert "closed" in caplog.text
    with pytest.raises(otledger.LedgerClosed), other:
        pass
    assert set(written.spans("otel.span.start")) == {"late"}
    assert written.spans() == {}


def test_end_of_a_span_that_has_not_begun(root: Path) -> None:
    with otledger.open_sync(root) as ledger, pytest.raises(RuntimeError, match="not started"):
        ledger.span("a").end()


# Parents


async def test_spans_nest(root: Path, written: Written) -> None:
    async with otledger.open(root) as ledger:
        async with ledger.span("outer") as outer:
            assert trace.get_current_span() is outer
            with ledger.span("inner") as inner:
                assert trace.get_current_span() is inner
                await ledger.emit("in inner")
            assert trace.get_current_span() is outer
            await ledger.emit("in outer")
        assert trace.get_current_span() is trace.INVALID_SPAN
        async with ledger.span("other"):
            pass
    spans = written.spans()
    assert spans["inner"]["parent_span_id"] == spans["outer"]["span_id"]
    assert spans["inner"]["trace_id"] == spans["outer"]["trace_id"]
    assert "parent_is_remote" not in spans["inner"]
    assert spans["other"]["trace_id"] != spans["outer"]["trace_id"]
    assert "parent_span_id" not in spans["other"]
    assert written.event("in inner")["traceparent"].split("-")[2] == spans["inner"]["span_id"]
    assert written.event("in outer")["traceparent"].split("-")[2] == spans["outer"]["span_id"]


async def test_spans_of_the_sdk_nest_with_ours(
    root: Path, written: Written, tracer: trace.Tracer, exported: InMemorySpanExporter
) -> None:
    state = TraceState([("vendor", "x")])
    async with otledger.open(root) as ledger:
        above = NonRecordingSpan(SpanContext(0xABC, 0xDEF, True, TraceFlags(1), state))
        with (
            trace.use_span(above),
            tracer.start_as_current_span("theirs") as theirs,
            ledger.span("ours") as ours,
        ):
            await ledger.emit("in ours")
            with tracer.start_as_current_span("below"):
                await ledger.emit("in below")
                async with ledger.span("lowest"):
                    pass
        assert trace.get_current_span() is trace.INVALID_SPAN
    sdk = {span.name: span for span in exported.get_finished_spans()}
    spans = written.spans()
    assert spans["ours"]["parent_span_id"] == f"{theirs.get_span_context().span_id:016x}"
    assert spans["ours"]["trace_id"] == f"{0xABC:032x}"
    assert sdk["below"].parent is not None
    assert f"{sdk['below'].parent.span_id:016x}" == ours.span_id == spans["ours"]["span_id"]
    assert sdk["below"].context is not None
    assert sdk["below"].context.trace_state == state
    assert spans["lowest"]["parent_span_id"] == f"{sdk['below'].context.span_id:016x}"
    assert {span["trace_id"] for span in spans.values()} == {f"{0xABC:032x}"}
    assert {span["record"]["tracestate"] for span in spans.values()} == {"vendor=x"}
    assert written.event("in below")["traceparent"] == f"00-{0xABC:032x}-{sdk['below'].context.span_id:016x}-01"
    assert written.event("in below")["tracestate"] == "vendor=x"


@pytest.mark.parametrize("flags", ["00", "01"])
async def test_a_remote_parent(root: Path, written: Written, flags: str) -> None:
    carrier = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-{flags}", "tracestate": "a=1,b=2"}
    context = propagate.extract(carrier)
    async with otledger.open(root) as ledger:
        async with ledger.span("server", kind=SpanKind.SERVER, context=context) as span:
            assert trace.get_current_span() is span
            outgoing: dict[str, str] = {}
            propagate.inject(outgoing)
            await ledger.emit("inside")
        detached = ledger.start_span("detached", context=context)
        detached.end()
    for name in ("server", "detached"):
        found = written.spans()[name]
        assert (found["trace_id"], found["parent_span_id"], found["parent_is_remote"]) == ("ab" * 16, "cd" * 8, True)
        assert found["trace_flags"] == int(flags, 16)
        assert found["record"]["tracestate"] == "a=1,b=2"
    assert outgoing["traceparent"] == written.spans()["server"]["record"]["traceparent"]
    assert outgoing["tracestate"] == "a=1,b=2"
    assert written.event("inside")["traceparent"] == outgoing["traceparent"]


async def test_an_invalid_parent_begins_a_trace(root: Path, written: Written) -> None:
    async with otledger.open(root) as ledger:
        with trace.use_span(trace.INVALID_SPAN), ledger.span("a"):
            pass
        with trace.use_span(trace.INVALID_SPAN):
            await ledger.emit("b")
    assert "parent_span_id" not in written.spans()["a"]
    assert int(written.spans()["a"]["trace_id"], 16)
    assert "traceparent" not in written.event("b")


async def test_a_given_context_keeps_what_else_is_current(root: Path, written: Written) -> None:
    context = propagate.extract({"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"})
    token = otel_context.attach(baggage.set_baggage("user", "7"))
    try:
        async with otledger.open(root) as ledger:
            async with ledger.turn("turn"), ledger.span("a", context=context):
                assert baggage.get_baggage("user") == "7"
                await ledger.emit("inside")
            assert baggage.get_baggage("user") == "7"
    finally:
        otel_context.detach(token)
    assert written.event("inside")["ipchash"] == "turn"


async def test_tasks_and_threads_inherit_the_span(root: Path, written: Written) -> None:
    async with otledger.open(root) as ledger:

        async def task(n: int) -> None:
            async with ledger.span(f"task {n}"):
                await asyncio.sleep(0.01)
                await ledger.emit(f"event {n}")

        async with ledger.span("outer"):
            tasks = [asyncio.create_task(task(n)) for n in range(5)]
            await asyncio.to_thread(ledger.emit_nowait, "in a thread")
        # The parent has ended; that changes nothing for its children.
        await asyncio.gather(*tasks)
        other = threading.Thread(target=ledger.emit_nowait, args=("in a bare thread",))
        other.start()
        other.join()
    spans = written.spans()
    for n in range(5):
        assert spans[f"task {n}"]["parent_span_id"] == spans["outer"]["span_id"]
        assert written.event(f"event {n}")["traceparent"].split("-")[2] == spans[f"task {n}"]["span_id"]
    assert written.event("in a thread")["traceparent"] == spans["outer"]["record"]["traceparent"]
    assert "traceparent" not in written.event("in a bare thread")


async def test_start_span_is_detached(root: Path, written: Written) -> None:
    async with otledger.open(root) as ledger:
        with ledger.span("outer") as outer:
            span = ledger.start_span("detached", attributes={"k": 1})
            assert trace.get_current_span() is outer
            await ledger.emit("in outer")
            with trace.use_span(span):
                assert trace.get_current_span() is span
                await ledger.emit("in detached")
                with ledger.span("below"):
                    pass
            assert span.is_recording()
        span.set_attribute("late", True)
        span.end()
        with ledger.start_span("ended by its block") as other:
            assert trace.get_current_span() is trace.INVALID_SPAN
            other.set_attribute("k", 1)
        with trace.use_span(ledger.start_span("ended by use_span"), end_on_exit=True):
            pass
    spans = written.spans()
    assert spans["detached"]["attributes"] == {"k": 1, "late": True}
    assert spans["detached"]["parent_span_id"] == spans["outer"]["span_id"]
    assert spans["below"]["parent_span_id"] == spans["detached"]["span_id"]
    assert written.event("in outer")["traceparent"] == spans["outer"]["record"]["traceparent"]
    assert written.event("in detached")["traceparent"] == spans["detached"]["record"]["traceparent"]
    assert {"ended by its block", "ended by use_span"} <= set(spans)


# Decorators


async def test_decorators(root: Path, written: Written) -> None:
    async with otledger.open(root) as ledger:

        @ledger.span("sync", attributes={"kind": "sync"})
        def double(n: int) -> int:
            """Twice."""
            trace.get_current_span().set_attribute("n", n)
            return 2 * n

        @ledger.span("async", kind=SpanKind.CONSUMER)
        async def triple(n: int) -> int:
            await asyncio.sleep(0)
            trace.get_current_span().set_attribute("n", n)
            return 3 * n

        assert double.__name__ == "double"
        assert double.__doc__ == "Twice."
        assert asyncio.iscoroutinefunction(triple)
        with ledger.span("outer"):
            assert double(2) == 4
            assert await triple(3) == 9
        assert await asyncio.gather(triple(4), triple(5)) == [12, 15]
        with pytest.raises(ZeroDivisionError):
            ledger.span("fails")(lambda: 1 // 0)()
        with pytest.raises(TypeError, match="generator"):

            @ledger.span("no")
            def generator() -> Iterator[int]:
                yield 1

        with pytest.raises(TypeError, match="generator"):

            @ledger.span("no")
            async def async_generator() -> Any:
                yield 1

    ends = [record for record in written.records if record["type"] == "otel.span.end"]
    names = [end["data"]["name"] for end in ends]
    assert sorted(names) == ["async", "async", "async", "fails", "outer", "sync"]
    outer = written_by_name(ends, "outer")[0]["traceparent"].split("-")[2]
    (sync,) = written_by_name(ends, "sync")
    assert sync["data"]["attributes"] == {"kind": "sync", "n": 2}
    assert sync["data"]["parent_span_id"] == outer
    several = written_by_name(ends, "async")
    assert [end["data"]["attributes"]["n"] for end in several] == [3, 4, 5]
    assert [end["data"].get("parent_span_id") for end in several] == [outer, None, None]
    assert len({end["traceparent"] for end in several}) == 3
    assert all(end["data"]["kind"] == "CONSUMER" for end in several)


def written_by_name(ends: list[Json], name: str) -> list[Json]:
    return [end for end in ends if end["data"]["name"] == name]


@pytest.mark.parametrize("bound", [False, True])
async def test_a_decorated_function_is_a_child_of_whoever_calls_it(root: Path, written: Written, bound: bool) -> None:
    async with otledger.open(root) as ledger:
        view = ledger.bind(ipc_hash="turn") if bound else ledger

        @view.span("decorated")
        async def work() -> None:
            await view.emit("inside")

        async with ledger.span("outer"):
            await work()
    spans = written.spans()
    assert spans["decorated"].get("parent_span_id") == spans["outer"]["span_id"]
    assert spans["decorated"]["record"].get("ipchash") == ("turn" if bound else None)
    assert written.event("inside")["traceparent"] == spans["decorated"]["record"]["traceparent"]


# Exceptions


class Own(Exception):
    pass


ENDS: list[BaseException] = [
    ValueError("bad"),
    Own(),
    Own("ü", 7),
    KeyError("k"),
    ExceptionGroup("several", [ValueError(1)]),
    asyncio.CancelledError(),
    KeyboardInterrupt(),
    SystemExit(3),
    GeneratorExit(),
]


def fail(manager: Any, error: BaseException, before: StatusCode | None) -> None:
    with manager as span:
        if before is not None:
            span.set_status(before)
        raise error


@pytest.mark.parametrize("error", ENDS, ids=repr)
@pytest.mark.parametrize("options", [{}, {"record_exception": False}, {"set_status_on_exception": False}], ids=str)
@pytest.mark.parametrize("before", [None, StatusCode.OK])
def test_exceptions_as_the_sdk_records_them(
    root: Path,
    check_all: CheckAll,
    tracer: trace.Tracer,
    exported: InMemorySpanExporter,
    error: BaseException,
    options: Json,
    before: StatusCode | None,
) -> None:
    with otledger.open_sync(root, durability="os", check=None) as ledger:
        for manager in (ledger.span("a", **options), tracer.start_as_current_span("a", **options)):
            error.__traceback__ = None
            with pytest.raises(type(error)):
                fail(manager, error, before)
    ours = Written(root, check_all).spans()["a"]
    (theirs,) = exported.get_finished_spans()
    found, expected = comparable(ours), comparable(as_data(theirs))
    for side in (found, expected):
        for event in side["events"]:
            # The way to the exception differs; what was raised does not.
            trace_back = event["attributes"].pop("exception.stacktrace")
            assert trace_back.startswith(("Traceback", "  + Exception Group Traceback"))
            assert "raise error" in trace_back
    assert found == expected
    assert bool(found["events"]) == (isinstance(error, Exception) and options.get("record_exception", True))


async def test_a_cancelled_task_leaves_the_status_unset(root: Path, written: Written) -> None:
    async with otledger.open(root) as ledger:

        async def work() -> None:
            async with ledger.span("cancelled"):
                await asyncio.sleep(60)

        task = asyncio.create_task(work())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            async with ledger.span("timed out"), asyncio.timeout(0.01):
                await asyncio.sleep(60)
    spans = written.spans()
    assert not {"status", "events"} & spans["cancelled"].keys()
    assert spans["timed out"]["status"] == {"code": "ERROR", "description": "TimeoutError: "}


# By the SDK's rules


def plain(value: Any) -> Any:
    """Make values comparable: NaN equals NaN, 1 is neither 1.0 nor True, and the order of keys counts."""
    if isinstance(value, Mapping):
        return [[key, plain(item)] for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return ["float", "NaN" if math.isnan(value) else value.hex()]
    return [type(value).__name__, value]


def as_data(span: ReadableSpan) -> Json:
    """A span of the SDK, as the format stores it."""

    def inner(item: Any) -> Json:
        dropped = item.dropped_attributes
        return {
            **({"attributes": dict(item.attributes)} if item.attributes else {}),
            **({"dropped": dropped} if dropped else {}),
        }

    def link(item: Link) -> Json:
        context = item.context
        found: Json = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
        found |= {"trace_flags": int(context.trace_flags)} if context.trace_flags else {}
        found |= {"is_remote": True} if context.is_remote else {}
        found |= {"trace_state": context.trace_state.to_header()} if context.trace_state else {}
        return found | inner(item)

    found: Json = {"name": span.name}
    found |= {"kind": span.kind.name} if span.kind is not SpanKind.INTERNAL else {}
    found |= {"start": span.start_time, "end": span.end_time}
    found |= {"attributes": dict(span.attributes)} if span.attributes else {}
    events = [{"name": event.name, "time": event.timestamp, **inner(event)} for event in span.events]
    found |= {"events": events} if events else {}
    found |= {"links": [link(item) for item in span.links]} if span.links else {}
    if span.status.status_code is not StatusCode.UNSET:
        found["status"] = {"code": span.status.status_code.name}
        found["status"] |= {"description": span.status.description} if span.status.description is not None else {}
    counts = {
        "attributes": span.dropped_attributes,
        "events": span.dropped_events,
        "links": span.dropped_links,
    }
    dropped = {name: count for name, count in counts.items() if count}
    return found | ({"dropped": dropped} if dropped else {})


def comparable(data: Json) -> Json:
    return {
        "status": data.get("status"),
        "events": [{**event, "time": 0} for event in data.get("events", [])],
    }


class Described:
    def __str__(self) -> str:
        return "described"


names = st.text(max_size=8) | st.sampled_from(["a", "b", "$a", "\ud800", "\u2028", "x" * 40])
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["x" * 40, "\ud800", "\u2028", "", Described(), object, {1, 2}, bytearray(b"ab"), range(3), 1j])
    | st.binary(max_size=8)
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(names | st.integers(0, 3) | st.none(), inner, max_size=3)
    ),
    max_leaves=5,
)
keys = st.sampled_from(["a", "b", "c", "d", "e"]) | names | st.sampled_from([None, 7, ""])
attributes = st.none() | st.dictionaries(keys, values, max_size=4)
contexts = st.builds(
    SpanContext,
    st.sampled_from([0, 1, (1 << 128) - 1]),
    st.sampled_from([0, 1, (1 << 64) - 1]),
    st.booleans(),
    st.sampled_from([TraceFlags(0), TraceFlags(1), TraceFlags(3)]),
    st.sampled_from([None, TraceState(), TraceState([("a", "1"), ("b", "2")])]),
)
times = st.integers(0, 1 << 62)
codes = st.sampled_from(list(StatusCode))
descriptions = st.none() | st.sampled_from(["", "why", "\ud800"])
errors = st.sampled_from([ValueError("x"), Own(), KeyError(7), asyncio.CancelledError("c"), OSError(2, "no")])
operations = st.lists(
    st.one_of(
        st.tuples(st.just("set_attribute"), keys, values),
        st.tuples(st.just("set_attributes"), st.dictionaries(keys, values, max_size=4)),
        st.tuples(st.just("add_event"), names, attributes, times),
        st.tuples(st.just("add_link"), contexts, attributes),
        st.tuples(st.just("update_name"), names),
        st.tuples(st.just("set_status"), codes, descriptions),
        st.tuples(st.just("set_status"), st.builds(Status, codes), descriptions),
        st.tuples(st.just("record_exception"), errors, attributes, times, st.booleans()),
        st.tuples(st.just("end"), times),
    ),
    max_size=12,
)
LIMITS = (
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
)
limits = st.dictionaries(st.sampled_from(LIMITS), st.sampled_from(["0", "1", "2", "3", "30", " 2 "]), max_size=4)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    environment=limits | st.just({}),
    kind=st.sampled_from(list(SpanKind)),
    initial=attributes,
    links=st.lists(st.tuples(contexts, attributes), max_size=4),
    done=operations,
)
def test_a_span_is_what_the_sdk_would_have_made_of_it(
    tmp_path_factory: pytest.TempPathFactory,
    environment: dict[str, str],
    kind: SpanKind,
    initial: Any,
    links: list[Any],
    done: list[Any],
) -> None:
    root = tmp_path_factory.mktemp("property") / "ledger"
    exported = InMemorySpanExporter()
    with pytest.MonkeyPatch.context() as patch:
        for name, text in environment.items():
            patch.setenv(name, text)
        tracer = tracer_of(exported)
        with otledger.open_sync(root, durability="os", check=None) as ledger:
            for start in (ledger.start_span, tracer.start_span):
                options: Json = {"kind": kind, "attributes": initial, "start_time": 5}
                span = start("name", **options, links=[Link(context, given) for context, given in links])
                for operation, *arguments in done:
                    getattr(span, operation)(*arguments)
                if span.is_recording():
                    span.end(1 << 60)
            assert ledger.health().errors == 0
    (theirs,) = exported.get_finished_spans()
    (record,) = [record for record in otledger.Reader(root).records() if record.type == "otel.span.end"]
    ours = record.data
    del ours["resource"], ours["scope"]
    assert plain(ours) == plain(json_like(as_data(theirs)))


def json_like(value: Any) -> Any:
    """What comes back for a value: tuples as lists; no other change."""
    if isinstance(value, Mapping):
        return {key: json_like(item) for key, item in value.items()}
    return [json_like(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", LIMITS)
def test_each_limit_counts(root: Path, check_all: CheckAll, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "2")
    with otledger.open_sync(root) as ledger:
        span = ledger.start_span("a", attributes={f"k{n}": "long" for n in range(5)})
        for n in range(4):
            span.add_event(f"e{n}", {f"k{n}": "long" for n in range(5)})
            span.add_link(SpanContext(1, n + 1, False), {f"k{n}": "long" for n in range(5)})
        span.end()
    data = Written(root, check_all).spans()["a"]
    attribute_lengths = {len(value) for value in data["attributes"].values()}
    inner_lengths = {len(value) for event in data["events"] for value in event["attributes"].values()}
    counts = {
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": len(data["attributes"]),
        "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": len(data["events"][0]["attributes"]),
        "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": len(data["links"][0]["attributes"]),
        "OTEL_SPAN_EVENT_COUNT_LIMIT": len(data["events"]),
        "OTEL_SPAN_LINK_COUNT_LIMIT": len(data["links"]),
        "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": max(inner_lengths),
        "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": max(attribute_lengths),
    }
    counts["OTEL_ATTRIBUTE_COUNT_LIMIT"] = len(data["attributes"])
    changed = {limit for limit, count in counts.items() if count == 2}
    assert name in changed
    # The general ones count for all their kind, the special ones for one.
    general = {
        "OTEL_ATTRIBUTE_COUNT_LIMIT": {limit for limit in LIMITS if "ATTRIBUTE_COUNT" in limit},
        "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": {limit for limit in LIMITS if "LENGTH" in limit},
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_ATTRIBUTE_COUNT_LIMIT"},
    }
    assert changed == general.get(name, {name})


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("text", ["-1", "many", "1.5"])
def test_a_limit_that_is_no_number(root: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(ConfigurationError, match=name):
        otledger.open_sync(root)
    assert not root.exists()


# Context in asyncio


async def test_a_generator_that_is_closed_in_another_task(root: Path, written: Written) -> None:
    async with otledger.open(root) as ledger:
        seen: list[Any] = []

        async def generator() -> Any:
            async with ledger.span("in the generator"):
                yield 1
                yield 2

        found = generator()
        async with ledger.span("parent"):
            # The task has a copy of this context, and keeps the generator's span in it.
            async def begin() -> None:
                await anext(found)
                seen.append(trace.get_current_span())

            await asyncio.create_task(begin())
        token = otel_context.attach(baggage.set_baggage("user", "7"))
        with ledger.span("mine") as mine:
            await found.aclose()
            assert trace.get_current_span() is mine
            assert baggage.get_baggage("user") == "7"
            await ledger.emit("in mine")
        otel_context.detach(token)
        assert seen[0].name == "in the generator"
    spans = written.spans()
    assert set(spans) == {"in the generator", "parent", "mine"}
    assert written.event("in mine")["traceparent"] == spans["mine"]["record"]["traceparent"]
    assert "parent_span_id" not in spans["mine"]


async def test_a_dead_span_does_not_stay_current(root: Path, written: Written) -> None:
    async with otledger.open(root) as ledger:

        async def generator() -> Any:
            async with ledger.span("in the generator"):
                yield 1

        async with ledger.span("parent") as parent:
            found = generator()
            token = otel_context.attach(baggage.set_baggage("user", "7"))
            await anext(found)  # its span is current here now
            assert trace.get_current_span().get_span_context() != parent.get_span_context()
            await asyncio.create_task(close(found))  # and is left in another context
            assert baggage.get_baggage("user") == "7"
            await ledger.emit("after")
            with ledger.span("child"):
                pass
            assert trace.get_current_span().get_span_context() == parent.get_span_context()
            otel_context.detach(token)
    spans = written.spans()
    assert set(spans) == {"in the generator", "parent", "child"}
    assert written.event("after")["traceparent"] == spans["parent"]["record"]["traceparent"]
    assert spans["child"]["parent_span_id"] == spans["parent"]["span_id"]


async def close(generator: Any) -> None:
    await generator.aclose()


async def test_spans_of_the_sdk_skip_one_that_was_left_elsewhere(
    root: Path, tracer: trace.Tracer, exported: InMemorySpanExporter
) -> None:
    async with otledger.open(root) as ledger:

        async def generator() -> Any:
            with ledger.span("in the generator"):
                yield 1

        with tracer.start_as_current_span("theirs") as theirs:
            found = generator()
            await anext(found)
            await asyncio.create_task(close(found))
            with tracer.start_as_current_span("below"):
                pass
        # This task's context still holds the generator's span under no parent: there is none.
        assert trace.get_current_span() is trace.INVALID_SPAN
    (below,) = [span for span in exported.get_finished_spans() if span.name == "below"]
    assert below.parent is not None
    assert below.parent.span_id == theirs.get_span_context().span_id


async def test_spans_that_end_out_of_order_in_one_task(root: Path, written: Written) -> None:
    async with otledger.open(root) as ledger:

        async def generator() -> Any:
            async with ledger.span("in the generator"):
                yield 1

        async with ledger.span("parent"):
            found = generator()
            await anext(found)
            async with ledger.span("mine"):
                await found.aclose()
                await ledger.emit("in mine")
            await ledger.emit("in parent")
        await ledger.emit("outside")
    spans = written.spans()
    assert written.event("in mine")["traceparent"] == spans["mine"]["record"]["traceparent"]
    assert written.event("in parent")["traceparent"] == spans["parent"]["record"]["traceparent"]
    assert "traceparent" not in written.event("outside")


async def test_a_generator_that_is_closed_by_the_loop(root: Path, written: Written) -> None:
    async with otledger.open(root) as ledger:

        async def generator() -> Any:
            async with ledger.span("in the generator"):
                yield 1

        async def abandon() -> None:
            found = generator()
            await anext(found)

        await asyncio.create_task(abandon())
        gc.collect()
        for _ in range(5):
            await asyncio.sleep(0)
        assert trace.get_current_span() is trace.INVALID_SPAN
        async with aclosing(generator()) as found:
            async for _ in found:
                break
    ends = [record for record in written.records if record["type"] == "otel.span.end"]
    assert len(ends) == 2
    # GeneratorExit is no error.
    assert not any("status" in end["data"] for end in ends)


async def test_no_tracebacks_are_logged_for_what_is_left_elsewhere(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with otledger.open(root) as ledger:

        async def generator() -> Any:
            with ledger.span("a"), ledger.turn("t"):
                yield 1

        found = generator()
        with caplog.at_level(logging.DEBUG):
            await asyncio.create_task(anext(found))
            await found.aclose()
    assert "different Context" not in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


# Start records


async def test_a_start_record_is_for_spans_that_stay_open(root: Path, written: Written) -> None:
    async with otledger.open(root, machine="m1", flush_interval=60.0) as ledger:
        async with ledger.span("short", attributes={"k": 1}):
            pass
        async with ledger.turn("turn"), ledger.span("long", kind=SpanKind.SERVER, attributes={"k": 1}) as span:
            span.set_attribute("before", True)
            await ledger.flush()
            span.set_attribute("after", True)
            span.add_event("e")
            await ledger.append("in the middle")
        detached = ledger.start_span("open at close")
    detached.end()
    starts, ends = written.spans("otel.span.start"), written.spans()
    assert set(starts) == {"long", "open at close"}
    assert set(ends) == {"short", "long"}
    start, end = starts["long"], ends["long"]
    assert start["attributes"] == {"k": 1, "before": True}
    # The end stands alone: it has everything.
    assert end["attributes"] == {"k": 1, "before": True, "after": True}
    assert [event["name"] for event in end["events"]] == ["e"]
    for name in ("kind", "start", "resource", "scope", "span_id", "trace_id"):
        assert start[name] == end[name]
    assert "end" not in start
    assert start["record"]["ipchash"] == end["record"]["ipchash"] == "turn"
    assert start["process"]["pid"] == os.getpid()
    assert (start["process"]["started"], start["process"]["boot"]) == this_process()
    assert start["record"]["seq"] < written.event("in the middle")["seq"] < end["record"]["seq"]


def this_process() -> tuple[int, str]:
    """When it started, in ticks, and the boot, as the kernel tells."""
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(stat[19]), Path("/proc/sys/kernel/random/boot_id").read_text().strip()


async def test_a_start_record_is_written_without_any_event(root: Path, written: Written) -> None:
    async with otledger.open(root, flush_interval=0.05) as ledger:
        with ledger.span("alone"):
            async with asyncio.timeout(5):
                while "alone" not in starts_in(root):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
    assert set(written.spans("otel.span.start")) == set(written.spans()) == {"alone"}


def starts_in(root: Path) -> list[str]:
    lines = [line for path in root.glob("*/*.jsonl") for line in path.read_bytes().splitlines(keepends=True)]
    records = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return [record["data"]["name"] for record in records if record["type"] == "otel.span.start"]


def test_a_killed_program_leaves_unfinished_spans(root: Path, script: Script, written: Written) -> None:
    program = """
        import os, sys, otledger
        ledger = otledger.open_sync(sys.argv[1])
        with ledger.span("outer"), ledger.span("inner", attributes={"k": 1}):
            ledger.append("inside")
            os._exit(1)
    """
    assert script(program, root).wait(30) == 1
    assert set(written.spans("otel.span.start")) == {"outer", "inner"}
    assert written.spans("otel.span.start")["inner"]["attributes"] == {"k": 1}
    assert written.spans() == {}


async def test_changing_attributes_while_the_start_is_written(root: Path, written: Written) -> None:
    async with otledger.open(root, flush_interval=0.0) as ledger:
        for n in range(40):
            with ledger.span(f"s{n}") as span:
                for k in range(120):
                    span.set_attribute(f"k{k}", k)
                    if k == 60:
                        await asyncio.sleep(0.001)
        assert ledger.health().errors == 0
    assert len(written.spans()) == 40
    assert all(len(span["attributes"]) == 120 for span in written.spans().values())
    assert written.spans("otel.span.start")


# Too large


def deep(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


async def test_what_is_too_large_is_cut_and_counted(root: Path, written: Written) -> None:
    async with otledger.open(root, machine="m1") as ledger:
        with ledger.span("large", attributes={"small": 1, "big": "x" * (10 * MIB), "text": "y" * 1000}) as span:
            span.set_attribute("bigger", "z" * (12 * MIB))
            span.add_event("e", {"big": "w" * (5 * MIB), "small": 2})
            await ledger.append("before")
        await ledger.append("after")
        assert ledger.health().errors >= 1
        assert "too large" in str(ledger.health().last_error)
    for found in (written.spans()["large"], written.spans("otel.span.start")["large"]):
        assert found["attributes"]["small"] == 1
        assert found["attributes"]["text"] == "y" * 1000
        assert found["attributes"]["bigger"] == {"$cut": 12 * MIB + 2}
        assert list(found["attributes"]) == ["small", "big", "text", "bigger"]
    # No more than needed: without the largest the rest has a place.
    assert written.spans()["large"]["events"][0]["attributes"]["small"] == 2
    assert sum("$cut" in str(value)[:10] for value in written.spans()["large"]["attributes"].values()) == 1
    assert [record["type"] for record in written.records if record["type"] in ("before", "after")] == [
        "before",
        "after",
    ]


async def test_a_long_name_that_fits_is_kept(root: Path, written: Written) -> None:
    async with otledger.open(root) as ledger:
        with ledger.span("x" * 1_000_000):
            pass
    assert set(written.spans()) == {"x" * 1_000_000}


@pytest.mark.parametrize(
    "what",
    [
        *("name", "status", "exception", "many attributes", "many events", "many links", "key", "event name"),
        *("deep attribute", "deeper attribute", "deep event", "deep link"),
    ],
)
async def test_whatever_is_too_large_the_span_is_kept(root: Path, written: Written, what: str) -> None:
    async with otledger.open(root, machine="m1") as ledger:
        await ledger.append("before")
        span = ledger.start_span("x" * (17 * MIB) if what == "name" else "a", kind=SpanKind.CLIENT)
        if what == "status":
            span.set_status(StatusCode.ERROR, "x" * (17 * MIB))
        elif what == "exception":
            with suppress(ValueError), span:
                raise ValueError("x" * (9 * MIB))
        elif what == "many attributes":
            span.set_attributes({f"k{n}": "x" * MIB for n in range(100)})
        elif what == "many events":
            for n in range(100):
                span.add_event(f"e{n}", {"big": "x" * MIB})
        elif what == "many links":
            for n in range(100):
                span.add_link(SpanContext(1, n + 1, False), {"big": "x" * MIB})
        elif what.endswith("attribute"):
            span.set_attributes({"deep": deep(98 if what == "deep attribute" else 200), "flat": 1})
        elif what == "deep event":
            span.add_event("e", {"deep": deep(97)})
        elif what == "deep link":
            span.add_link(SpanContext(1, 1, False), {"deep": deep(97)})
        elif what == "key":
            span.set_attribute("k" * (17 * MIB), 1)
        elif what == "event name":
            span.add_event("e" * (17 * MIB))
        else:
            assert what == "name"
        if span.is_recording():
            span.end()
        await ledger.append("after")
        health = ledger.health()
        assert health.errors >= 1
        assert health.queued_records == 0
    (end,) = [record for record in written.records if record["type"] == "otel.span.end"]
    data = end["data"]
    assert (end["traceparent"].split("-")[2], data["kind"]) == (span.span_id, "CLIENT")
    assert {"start", "end", "resource", "scope", "name"} <= data.keys()
    if what.endswith("attribute"):
        assert data["attributes"]["flat"] == 1
        assert list(data["attributes"]["deep"]) == ["$cut"]
    if what in ("status", "exception"):
        assert data["status"]["code"] == "ERROR"
    assert "after" in [record["type"] for record in written.records]
    assert otledger.verify(root).status is otledger.Status.OK


async def test_what_just_fits_is_not_cut(root: Path, written: Written) -> None:
    async with otledger.open(root, machine="m1") as ledger:
        with ledger.span("a", attributes={"big": "x" * (16 * MIB - 10_000)}):
            pass
        assert ledger.health().errors == 0
    assert len(written.spans()["a"]["attributes"]["big"]) == 16 * MIB - 10_000


class Unshowable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


async def test_an_exception_that_cannot_be_shown_ends_its_span_all_the_same(root: Path) -> None:
    async with otledger.open(root, machine="m1") as ledger:
        with pytest.raises(Unshowable):
            async with ledger.span("a"):
                raise Unshowable
    (end,) = (record for record in otledger.Reader(root).records() if record.type == "otel.span.end")
    assert end.data["status"]["code"] == "ERROR"
    assert end.data["events"][0]["attributes"]["exception.message"] == ""
