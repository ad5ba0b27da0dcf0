"""The OpenTelemetry SDK into the ledger at its edges: exits, forks, full queues, odd providers, servers that fork."""

import errno
import gc
import logging
import os
import signal
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry import baggage, trace
from opentelemetry._logs import LogRecord
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import LogRecordExportResult, SimpleLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ConcurrentMultiSpanProcessor, ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

import otledger
from otledger.errors import ConfigurationError
from otledger.writer import Writer
from otledger_opentelemetry import LedgerLogExporter, LedgerSpanExporter, LedgerSpanProcessor, read_spans
from otledger_opentelemetry.instrumentor import OtledgerInstrumentor
from tests.conftest import Hang
from tests.test_otel_in import PROVIDER, VIA_ENVIRONMENT, program, sane, serving, spans_of

REPOSITORY = Path(__file__).parents[1]
ONLY_TRACES = {"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}


def settings(root: Path, **more: Any) -> dict[str, Any]:
    return {"root": root, "machine": "m1", "min_free": 0, **more}


def gaps_of(root: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for record in otledger.Reader(root).records():
        if record.type == "otledger.gap":
            found[record.data["reason"]] = found.get(record.data["reason"], 0) + record.data["count"]
    return found


def names_of(root: Path) -> list[str]:
    return [record.data["name"] for record in spans_of(root).values()]


def work(provider: TracerProvider, count: int = 1, name: str = "a") -> None:
    tracer = provider.get_tracer("t")
    for _ in range(count):
        with tracer.start_as_current_span(name):
            pass


# The end of a program

LATE = """if True:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    provider = TracerProvider()
    trace.set_tracer_provider(provider)
    from otledger_opentelemetry import LedgerSpanExporter
    provider.add_span_processor(BatchSpanProcessor(LedgerSpanExporter()))
    for _ in range(10):
        with trace.get_tracer("t").start_as_current_span("a"):
            pass
"""


def test_the_last_batch_of_a_provider_that_was_made_before_otledger_was_imported(root: Path) -> None:
    done = program(LATE, root)
    assert (done.returncode, done.stderr) == (0, "")
    assert names_of(root) == ["a"] * 10
    assert len(list(read_spans(root))) == 10
    sane(root)


def test_sigterm_while_the_queue_is_locked(root: Path) -> None:
    source = f"""{PROVIDER}
    work("a")
    with provider._active_span_processor._span_processors[0].sink.writer._lock:
        os.kill(os.getpid(), signal.SIGTERM)
        work("b")
    time.sleep(20)
    """
    done = program(source, root)
    assert done.returncode == -signal.SIGTERM, done.stderr
    names = names_of(root)
    assert (names.count("a"), names.count("b")) == (100, 100)
    sane(root)


def test_a_span_that_sys_exit_leaves_has_ended(root: Path) -> None:
    done = program(f"{PROVIDER}\n    with tracer.start_as_current_span('job'):\n        sys.exit(4)", root)
    assert (done.returncode, names_of(root)) == (4, ["job"]), done.stderr


def test_shutdown_twice_and_spans_that_end_after_it(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    provider = TracerProvider()
    processor = LedgerSpanProcessor.install(provider, **settings(root))
    exporter = LedgerSpanExporter(**settings(root))
    late = provider.get_tracer("t").start_span("late")
    work(provider)
    for _ in range(2):
        provider.shutdown()
        exporter.shutdown()
    late.end()
    assert "came after shutdown" in caplog.text
    assert processor.force_flush()
    assert exporter.force_flush()
    assert names_of(root) == ["a"]
    sane(root)


# Processes

FORKS = f"""{PROVIDER}
    import threading
    stop = threading.Event()
    counts = [0, 0]
    def parent(at):
        while not stop.is_set():
            work("parent", 20)
            counts[at] += 20
            time.sleep(0.001)
    threads = [threading.Thread(target=parent, args=(at,)) for at in range(2)]
    [thread.start() for thread in threads]
    children = []
    for _ in range(15):
        child = os.fork()
        if not child:
            work("child", 20)
            stop.set()
            sys.exit(0)
        children.append(child)
        time.sleep(0.01)
    assert not any(os.waitpid(child, 0)[1] for child in children)
    stop.set()
    [thread.join() for thread in threads]
    print(sum(counts))
"""


def test_forks_while_threads_record(root: Path) -> None:
    done = program(FORKS, root, OTEL_OTLEDGER_DURABILITY="os")
    assert done.returncode == 0, done.stderr
    names = names_of(root)
    assert (names.count("parent"), names.count("child")) == (int(done.stdout), 300)
    sane(root)


@pytest.mark.parametrize("more", [(), ("--preload",)], ids=["workers", "preload"])
def test_gunicorn_with_two_workers(root: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    bind = ("-w", "2", "-k", "uvicorn_worker.UvicornWorker", "-b", "127.0.0.1:{port}", "--log-level", "error")
    server = ("gunicorn", "tests.apps.web:app", *bind, *more)
    environ = {**ONLY_TRACES, "OTEL_TRACES_EXPORTER": "otledger", "HOME": f"{tmp_path}"}
    with serving(root, before=VIA_ENVIRONMENT, server=server, OTEL_OTLEDGER_ROOT=f"{root}", **environ) as (
        client,
        process,
    ):
        # A connection each, so that both workers get some.
        ids = [httpx.get(client.base_url.join(f"/orders/{at}"), timeout=20).json()["span_id"] for at in range(30)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert set(ids) <= set(spans_of(root))
    sane(root)


def test_beside_another_exporter_in_the_list(root: Path) -> None:
    environ = {**ONLY_TRACES, "OTEL_TRACES_EXPORTER": "otledger, console", "OTEL_OTLEDGER_ROOT": f"{root}"}
    with serving(root, before=VIA_ENVIRONMENT, **environ) as (client, process):
        stored = client.get("/orders/1").json()["span_id"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM)
    assert stored in spans_of(root)
    sane(root)


def test_the_sdk_disabled(root: Path) -> None:
    environ = {**ONLY_TRACES, "OTEL_TRACES_EXPORTER": "otledger", "OTEL_OTLEDGER_ROOT": f"{root}"}
    with serving(root, before=VIA_ENVIRONMENT, OTEL_SDK_DISABLED="true", **environ) as (client, _):
        assert client.get("/orders/1").status_code == 200
    assert spans_of(root) == {}


# What has no place


@pytest.mark.parametrize("policy", ["wait", "drop"])
def test_a_full_queue_counts_what_it_drops(root: Path, hang: Hang, policy: str) -> None:
    provider = TracerProvider()
    more: dict[str, Any] = {"queue_records": 50, "queue_policy": policy, "queue_timeout": 0.02}
    LedgerSpanProcessor.install(provider, **settings(root, **more))
    work(provider)
    provider.force_flush()
    hang.start("write")
    threads = [threading.Thread(target=work, args=(provider, 50)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hang.stop()
    provider.shutdown()
    stored = len(spans_of(root)) - 1
    assert stored >= 50
    assert gaps_of(root) == {"queue full": 150 - stored}
    sane(root)


async def test_a_full_queue_never_holds_up_an_event_loop(
    root: Path, hang: Hang, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = TracerProvider()
    LedgerSpanProcessor.install(provider, **settings(root, queue_records=50))
    monkeypatch.setattr(Writer, "block_for_room", lambda *_: pytest.fail("the loop is held up"))
    hang.start("write")
    work(provider, 200)
    hang.stop()
    provider.shutdown()
    assert len(spans_of(root)) + gaps_of(root)["queue full"] == 200


def test_little_space_is_the_reason_of_its_gap(root: Path) -> None:
    provider = TracerProvider()
    LedgerSpanProcessor.install(provider, **settings(root, min_free=1 << 60))
    work(provider, 3)
    provider.shutdown()
    assert (gaps_of(root), names_of(root)) == ({"little space": 3}, [])


def test_what_an_exporter_cannot_encode_is_counted(root: Path) -> None:
    body: list[Any] = []
    body.append(body)
    logs = LoggerProvider()
    exporter = LedgerLogExporter(**settings(root))
    results = []
    export = exporter.export
    exporter.export = lambda batch: results.append(export(batch)) or results[-1]  # type: ignore[method-assign, func-returns-value]
    logs.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    logs.get_logger("l").emit(LogRecord(body=body))
    logs.get_logger("l").emit(LogRecord(body="fine"))
    assert results == [LogRecordExportResult.FAILURE, LogRecordExportResult.SUCCESS]
    spans = LedgerSpanExporter(**settings(root))
    assert spans.export([ReadableSpan("no context")]) is SpanExportResult.FAILURE
    spans.shutdown()
    logs.shutdown()
    assert gaps_of(root) == {"log record could not be encoded": 1, "span could not be encoded": 1}
    sane(root)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_a_line_has_no_place_for_is_cut_and_counted(root: Path) -> None:
    deep: list[Any] = []
    for _ in range(120):
        deep = [deep]
    provider = TracerProvider(resource=Resource({"service.name": "shop", "deep": deep}))
    processor = LedgerSpanProcessor.install(provider, **settings(root))
    tracer = provider.get_tracer("t")
    large = tracer.start_span(
        "n" * 2000, attributes={"large": "x" * (17 << 20), "small": 1}, kind=trace.SpanKind.SERVER
    )
    large.add_event("e", {"kept": True})
    large.set_status(trace.StatusCode.ERROR, "y" * 2000)
    large.end()
    tracer.start_span("deep", attributes={"deep": deep, "small": 1}).end()
    exporter = LedgerLogExporter(**settings(root))
    logs = LoggerProvider(resource=Resource({}))
    logs.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    given = {"deep": deep, "small": 1}
    logs.get_logger("l").emit(LogRecord(timestamp=5, body="x" * (17 << 20), event_name="e", attributes=given))
    # The resource, the two spans and the log record.
    assert processor.sink.writer.health().errors == 4
    provider.shutdown()
    logs.shutdown()
    stored = {record.data["name"]: record.data for record in spans_of(root).values()}
    cut, nested = stored["n" * 1000], stored["deep"]
    assert cut["attributes"] == {"large": {"$cut": (17 << 20) + 2}, "small": 1}
    assert (cut["kind"], cut["events"][0]["name"], cut["events"][0]["attributes"]) == ("SERVER", "e", {"kept": True})
    assert cut["status"] == {"code": "ERROR", "description": "y" * 1000}
    assert (list(nested["attributes"]["deep"]), nested["attributes"]["small"]) == (["$cut"], 1)
    (log,) = [record.data for record in otledger.Reader(root).records() if record.type == "otel.log"]
    assert (log["timestamp"], log["body"], log["event_name"]) == (5, {"$cut": (17 << 20) + 2}, "e")
    assert (list(log["attributes"]["deep"]), log["attributes"]["small"]) == (["$cut"], 1)
    assert {span.resource.attributes["service.name"] for span in read_spans(root)} == {"shop"}
    sane(root)


def test_a_span_that_never_ends_is_kept_by_nobody(root: Path) -> None:
    provider = TracerProvider()
    LedgerSpanProcessor.install(provider, **settings(root))
    span = provider.get_tracer("t").start_span("endless")
    provider.force_flush()
    left = weakref.ref(span)
    del span
    # The writer holds the spans of its last batch.
    work(provider)
    provider.force_flush()
    gc.collect()
    assert left() is None
    assert [span.name for span in read_spans(root, unfinished=True)] == ["a", "endless"]
    provider.shutdown()


def test_two_ledgers_of_one_provider_have_no_start_of_what_ended_at_once(root: Path) -> None:
    provider = TracerProvider()
    roots = [root / "one", root / "other"]
    for each in roots:
        provider.add_span_processor(LedgerSpanProcessor(**settings(each, flush_interval=5.0)))
    work(provider)
    provider.shutdown()
    for each in roots:
        types = [record.type for record in otledger.Reader(each).records()]
        assert (types.count("otel.span.start"), types.count("otel.span.end")) == (0, 1)


class Bridge(logging.Handler):
    """What a logging bridge comes to: each message of a logger becomes a log record of the SDK."""

    def __init__(self, provider: LoggerProvider) -> None:
        super().__init__()
        self.provider = provider

    def emit(self, record: logging.LogRecord) -> None:
        self.provider.get_logger(record.name).emit(LogRecord(body=record.getMessage()))


def test_a_message_of_the_writer_itself_does_not_wait_for_the_writer(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = LoggerProvider()
    provider.add_log_record_processor(SimpleLogRecordProcessor(LedgerLogExporter(**settings(root))))
    waited, drain, write = [], Writer.drain, os.write

    def watched(writer: Writer, timeout: float) -> int:
        waited.append(threading.current_thread() is writer._thread)
        return drain(writer, timeout)

    def failing(fd: int, data: Any) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".jsonl") and not provider_heard.is_set():
            raise OSError(errno.EIO, "the disk is gone")
        return write(fd, data)

    provider_heard = threading.Event()
    bridge = Bridge(provider)
    with otledger.open_sync(**settings(root)) as ledger:
        ledger.append("a.b")
        monkeypatch.setattr(Writer, "drain", watched)
        monkeypatch.setattr(os, "write", failing)
        logging.getLogger("otledger").addHandler(bridge)
        try:
            ledger.emit("a.c")
            while ledger.health().errors == 0 or ledger.health().queued_records < 2:
                time.sleep(0.01)
            provider_heard.set()
            ledger.flush()
        finally:
            logging.getLogger("otledger").removeHandler(bridge)
        provider.force_flush()
        provider.shutdown()
    assert waited[:1] != [True]
    types = [record.type for record in otledger.Reader(root).records()]
    assert types.count("a.c") == 1
    assert types.count("otel.log") >= 1
    sane(root)


# Providers

OTHER = """if True:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from otledger_opentelemetry import LedgerSpanExporter
    everybody, own = TracerProvider(), TracerProvider()
    trace.set_tracer_provider(everybody)
    own.add_span_processor(BatchSpanProcessor(LedgerSpanExporter()))
    for provider, name in ((everybody, "global"), (own, "own")):
        with provider.get_tracer("t").start_as_current_span(name):
            pass
"""


def test_an_exporter_that_a_program_gives_to_a_provider_of_its_own(root: Path) -> None:
    done = program(OTHER, root, OTEL_TRACES_EXPORTER="otledger")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(names_of(root)) == ["global", "own"]
    sane(root)


def test_processors_that_are_called_in_threads(root: Path) -> None:
    provider = TracerProvider(active_span_processor=ConcurrentMultiSpanProcessor(2))
    exporter = LedgerSpanExporter(**settings(root))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    LedgerSpanProcessor.install(provider, **settings(root))
    turn = otledger.ipc_hash({"a": 1})
    with otledger.open_sync(**settings(root)) as ledger, ledger.turn(turn):
        work(provider, 20)
    provider.shutdown()
    assert [record.ipc_hash for record in spans_of(root).values()] == [turn] * 20
    sane(root)


@pytest.mark.parametrize(
    ("exporter", "spans"),
    [("none", 0), ("", 1), ("console", 1), ("otledger", 1)],
    ids=["none", "unset", "other", "ours"],
)
def test_a_root_asks_for_spans_unless_there_shall_be_none(root: Path, exporter: str, spans: int) -> None:
    source = """if True:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from otledger_opentelemetry.instrumentor import OtledgerInstrumentor
        trace.set_tracer_provider(TracerProvider())
        OtledgerInstrumentor().instrument(skip_dep_check=True)
        with trace.get_tracer("t").start_as_current_span("a"):
            pass
    """
    done = program(source, root, OTEL_TRACES_EXPORTER=exporter)
    assert (done.returncode, done.stderr) == (0, "")
    assert (len(spans_of(root)) if root.exists() else 0) == spans


def test_an_unknown_setting_of_the_instrumentor_is_warned_of(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", TracerProvider())
    OtledgerInstrumentor().instrument(rot=str(root), skip_dep_check=True)
    assert "no setting rot, which is passed over; there are: root, " in caplog.text
    assert not root.exists()


def test_a_wrong_setting_installs_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_OTLEDGER_SIGTERM", "perhaps")
    provider = TracerProvider()
    with pytest.raises(ConfigurationError, match="SIGTERM"):
        LedgerSpanProcessor.install(provider, **settings(root))
    assert provider._active_span_processor._span_processors == ()
    assert not root.exists()


class Starts(SpanProcessor):
    """Notes the baggage of the context in which each span starts."""

    def __init__(self) -> None:
        self.baggage: list[dict[str, object]] = []

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        self.baggage.append(dict(baggage.get_all(parent_context)))


def remote_parent(flags: int) -> Context:
    context = trace.SpanContext(5, 6, True, trace.TraceFlags(flags), trace.TraceState([("v", "1")]))
    return trace.set_span_in_context(trace.NonRecordingSpan(context), Context())


def test_sampler_and_processors_get_the_context_that_a_span_was_given(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, starts = TracerProvider(sampler=ParentBased(ALWAYS_OFF)), Starts()
    provider.add_span_processor(starts)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    with otledger.open_sync(**settings(root)) as ledger:
        with ledger.span("below", context=baggage.set_baggage("k", "v", remote_parent(1))) as below:
            root_span = ledger.start_span("root", context=Context())
            root_span.end()
        with ledger.span("unsampled", context=remote_parent(0)) as unsampled:
            pass
    assert (below.trace_flags, root_span.trace_flags, unsampled.trace_flags) == (1, 0, 0)
    assert (below.trace_id, root_span.parent_span_id) == (f"{5:032x}", None)
    assert starts.baggage == [{"k": "v"}]
    sane(root)


def test_a_disabled_sdk_gets_no_spans_of_the_ledger(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    memory, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    with otledger.open_sync(**settings(root)) as ledger, ledger.span("a"):
        pass
    assert (memory.get_finished_spans(), names_of(root)) == ((), ["a"])


def test_a_span_that_is_handed_on_encodes_as_the_one_that_is_stored(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", "2")
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "3")
    monkeypatch.setenv("OTEL_SPAN_LINK_COUNT_LIMIT", "1")
    memory, provider = InMemorySpanExporter(), TracerProvider(resource=Resource({}))
    provider.add_span_processor(SimpleSpanProcessor(memory))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    link = trace.Link(trace.SpanContext(7, 8, True, trace.TraceFlags(1), trace.TraceState([("w", "2")])), {"l": 1})
    with otledger.open_sync(**settings(root)) as ledger:
        kind = trace.SpanKind.SERVER
        given = {"a": 1, "b": [1, 2], "c": -0.0, "d": "é", "e": True}
        with ledger.span("s", kind=kind, attributes=given, links=[link, link], context=remote_parent(1)) as span:
            span.add_event("one", {"x": 1.5})
            span.add_event("two")
            span.record_exception(KeyError("no"))
            span.set_status(trace.StatusCode.ERROR, "no")
    (handed,), (stored,) = memory.get_finished_spans(), list(read_spans(root))
    assert (handed.dropped_attributes, handed.dropped_events, handed.dropped_links) == (2, 1, 1)
    (ours,), (theirs,) = ([*encode_spans([one]).resource_spans[0].scope_spans] for one in (handed, stored))
    assert ours.SerializeToString() == theirs.SerializeToString()
