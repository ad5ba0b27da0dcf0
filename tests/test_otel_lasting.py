"""What the SDK hands over is there to stay: after `export`, in worker processes, and with its sampler's decision."""

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult

import otledger
from otledger_opentelemetry import LedgerSpanExporter, LedgerSpanProcessor, read_logs, read_spans
from tests.test_otel_in import VIA_ENVIRONMENT, program, sane, serving, spans_of
from tests.test_otel_more import ONLY_TRACES, settings, work
from tests.test_otel_out import Backend, encoded
from tests.test_otel_out import otledger as command

# Processes that die

EXPORTED = """if True:
    import os, signal, sys
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry._logs import LogRecord
    from otledger_opentelemetry import LedgerLogExporter, LedgerMetricExporter, LedgerSpanExporter
    # So that only `export` itself can be why it is there.
    given = {"flush_interval": 60.0}

    def spans():
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(LedgerSpanExporter(**given)))
        for number in range(20):
            provider.get_tracer("t").start_span(f"{number}").end()

    def logs():
        provider = LoggerProvider()
        provider.add_log_record_processor(SimpleLogRecordProcessor(LedgerLogExporter(**given)))
        for number in range(20):
            provider.get_logger("t").emit(LogRecord(body=f"{number}"))

    def metrics():
        reader = PeriodicExportingMetricReader(LedgerMetricExporter(**given), export_interval_millis=3_600_000)
        counter = MeterProvider([reader]).get_meter("t").create_counter("c")
        for number in range(20):
            counter.add(1)
            assert reader.force_flush()

    globals()[sys.argv[1]]()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("durability", ["disk", "os"])
@pytest.mark.parametrize("what", ["spans", "logs", "metrics"])
def test_what_export_returned_for_survives_a_kill(root: Path, what: str, durability: str) -> None:
    done = program(EXPORTED, root, what, OTEL_OTLEDGER_DURABILITY=durability)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    if what == "spans":
        assert [span.name for span in read_spans(root)] == [f"{number}" for number in range(20)]
    elif what == "logs":
        assert [log.log_record.body for log in read_logs(root)] == [f"{number}" for number in range(20)]
    else:
        assert sum(record.type == "otel.metrics" for record in otledger.Reader(root).records()) == 20
    sane(root)


def test_export_returns_when_all_is_on_the_disk(root: Path) -> None:
    exporter = LedgerSpanExporter(**settings(root, durability="disk", flush_interval=60.0))
    exporter.export(made(30))
    health = exporter._sink.writer.health()
    assert (health.queued_records, health.durable) == (0, health.written)
    assert health.durable >= 30
    exporter.shutdown()


def test_the_scope_of_the_first_span_that_is_open_stands_before_it(root: Path) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    processor = LedgerSpanProcessor.install(provider, **settings(root))
    for name in ("one", "other"):
        provider.get_tracer(name).start_span(name)
        assert processor.force_flush()
    sane(root)
    assert [span.name for span in read_spans(root, unfinished=True)] == ["one", "other"]
    provider.shutdown()


def test_uvicorn_with_two_workers(root: Path) -> None:
    server = ("uvicorn", "tests.apps.web:app", "--port={port}", "--log-level=warning", "--workers=2")
    # A short interval: that the start of a span is recorded tells which process it is of.
    environ = {**ONLY_TRACES, "OTEL_TRACES_EXPORTER": "otledger", "OTEL_OTLEDGER_FLUSH_INTERVAL": "0.01"}
    ids: list[str] = []

    def ask(url: httpx.URL) -> None:
        ids.append(httpx.get(url, timeout=30).json()["span_id"])

    with serving(root, before=VIA_ENVIRONMENT, server=server, OTEL_OTLEDGER_ROOT=f"{root}", **environ) as (
        client,
        process,
    ):
        deadline = time.monotonic() + 60
        while len(workers_of(root)) < 2 or len(ids) < 60:
            assert time.monotonic() < deadline, "one of the workers serves nothing"
            # A connection each, at the same time: each worker takes some.
            url = client.base_url.join("/orders/1?wait=0.1")
            threads = [threading.Thread(target=ask, args=(url,)) for _ in range(10)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    # None twice: that `spans_of` tells.
    stored = spans_of(root)
    names = Counter(record.data["name"] for record in stored.values())
    assert set(ids) <= set(stored)
    assert names["charge"] == names["GET /orders/{number}"] == len(ids)
    sane(root)


def workers_of(root: Path) -> set[int]:
    """The processes whose spans were open for longer than the flush interval."""
    if not root.exists():
        return set()
    records = otledger.Reader(root).records()
    return {record.data["process"]["pid"] for record in records if record.type == "otel.span.start"}


CONCURRENT = """if True:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import ConcurrentMultiSpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
    import otledger
    from otledger_opentelemetry import LedgerSpanExporter, LedgerSpanProcessor
    from otledger_opentelemetry.instrumentor import OtledgerInstrumentor
    # At exit the SDK's own shutdown would come after that of its threads, and fail.
    provider = TracerProvider(active_span_processor=ConcurrentMultiSpanProcessor(3), shutdown_on_exit=False)
    trace.set_tracer_provider(provider)
    # Exporters that were there before the instrumentor, one in the thread of the span and one in its own.
    provider.add_span_processor(SimpleSpanProcessor(LedgerSpanExporter()))
    provider.add_span_processor(BatchSpanProcessor(LedgerSpanExporter()))
    for _ in range(2):
        OtledgerInstrumentor().instrument(skip_dep_check=True, flush_interval=0.01)
    own = [each for each in provider._active_span_processor._span_processors if isinstance(each, LedgerSpanProcessor)]
    assert len(own) == 1
    tracer = trace.get_tracer("t")
    with otledger.open_sync() as ledger, ledger.turn(otledger.ipc_hash({'a': 1})):
        for number in range(200):
            with tracer.start_as_current_span(f"outer {number}"), tracer.start_as_current_span("inner"):
                pass
    tracer.start_span("open")
"""


def test_the_instrumentor_where_processors_are_called_in_threads(root: Path) -> None:
    done = program(CONCURRENT, root, OTLEDGER_ROOT=f"{root}", OTLEDGER_MACHINE="m1")
    assert (done.returncode, done.stderr) == (0, "")
    stored = spans_of(root)
    assert len(stored) == 400
    assert {record.ipc_hash for record in stored.values()} == {otledger.ipc_hash({"a": 1})}
    outer = {record.span_id for record in stored.values() if record.data["name"] != "inner"}
    inner = [record.data["parent_span_id"] for record in stored.values() if record.data["name"] == "inner"]
    assert set(inner) == outer
    starts = [record.data["name"] for record in otledger.Reader(root).records() if record.type == "otel.span.start"]
    assert "open" in starts
    sane(root)


# Spans that are recorded only


class ByName(Sampler):
    """Samples spans called `sampled`, has those called `recorded` recorded only, and drops others."""

    def should_sample(self, parent_context: Any, trace_id: int, name: str, *_: Any, **__: Any) -> SamplingResult:
        decisions = {"sampled": Decision.RECORD_AND_SAMPLE, "recorded": Decision.RECORD_ONLY}
        return SamplingResult(decisions.get(name, Decision.DROP))

    def get_description(self) -> str:
        return "by name"


@pytest.fixture
def backend() -> Iterator[Backend]:
    backend = Backend()
    yield backend
    backend.close()


def test_record_only_spans_keep_their_flag_and_are_replayed_when_asked_for(root: Path, backend: Backend) -> None:
    provider = TracerProvider(sampler=ByName(), shutdown_on_exit=False)
    LedgerSpanProcessor.install(provider, **settings(root))
    for name in ("recorded", "sampled", "dropped"):
        work(provider, 3, name)
    provider.shutdown()
    flags = [(record.data["name"], int(f"{record.traceparent}"[-2:], 16) & 1) for record in spans_of(root).values()]
    assert flags == [("recorded", 0)] * 3 + [("sampled", 1)] * 3
    sampled, everything = list(read_spans(root)), list(read_spans(root, unsampled=True))
    assert [span.name for span in sampled] == ["sampled"] * 3
    assert [span.name for span in everything] == ["recorded"] * 3 + ["sampled"] * 3
    for more, spans in (((), sampled), (("--unsampled",), everything)):
        backend.bodies["/v1/traces"].clear()
        done = command("replay", "--root", root, "--endpoint", backend.url, *more)
        assert done.returncode == 0, done.stderr
        assert backend.sent() == encoded(encode_spans, spans)


def made(count: int) -> list[ReadableSpan]:
    """Spans as a provider makes them."""
    memory, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    work(provider, count)
    return list(memory.get_finished_spans())
