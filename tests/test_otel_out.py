"""The way out: `otledger replay` and `otledger export chrome-trace` as processes, into real endpoints and files."""

import asyncio
import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context.context import Context
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState

import otledger as library
from otledger.errors import ConfigurationError
from otledger.record import format_time, ipc_hash
from otledger_opentelemetry import (
    LedgerLogExporter,
    LedgerSpanExporter,
    LedgerSpanProcessor,
    read_logs,
    read_spans,
    replay,
)
from otledger_opentelemetry.chrome import write_chrome_trace
from otledger_opentelemetry.files import JsonSpanExporter
from otledger_opentelemetry.places import ReplayCursor
from otledger_opentelemetry.replaying import ReplayFailed
from otledger_opentelemetry.selecting import Selection
from tests.checker import check

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

START = 1_795_000_000_000_000_000
SECOND = 1_000_000_000
SHOP = Resource({"service.name": "shop", "process.pid": 7, "n": [1, 2]}, "https://schema")
BANK = Resource({"service.name": "bank"})
SCOPE = InstrumentationScope("scope", "1.0", "https://scope", {"a": [1, 2]})


# What is replayed ----------------------------------------------------------------------------------------------


def span(number: int, *, trace: int = 0, resource: Resource = SHOP, **members: Any) -> ReadableSpan:
    """A span with a number as its id, a second after the one before it, half a second long."""
    start = START + number * SECOND
    flags = TraceFlags(members.pop("flags", 1))
    parent = members.pop("parent", None)
    context = SpanContext(trace or number, number, False, flags, members.pop("state", TraceState()))
    values: dict[str, Any] = {
        "name": f"span {number}",
        "attributes": {"n": number},
        "start_time": start,
        "end_time": start + SECOND // 2,
        "instrumentation_scope": SCOPE,
        "status": Status(StatusCode.UNSET),
        **members,
    }
    if parent is not None:
        values["parent"] = SpanContext(trace or number, parent, False)
    return ReadableSpan(context=context, resource=resource, **values)


def log(number: int, *, trace: int = 0, resource: Resource = SHOP, **members: Any) -> ReadableLogRecord:
    at = START + number * SECOND
    given: dict[str, Any] = {"timestamp": at, "observed_timestamp": at, "body": f"log {number}", **members}
    record = LogRecord(context=Context({"of": "a test"}), **given)
    record.trace_id, record.span_id, record.trace_flags = trace, number if trace else 0, TraceFlags(1 if trace else 0)
    return ReadableLogRecord(record, resource, SCOPE)


def awkward_spans() -> list[ReadableSpan]:
    values: list[Any] = [
        None,
        b"\0\xff",
        {"a": {"b": [1, None, "x"]}},
        [],
        [1, "a", 2.5],
        -(2**63),
        -0.0,
        math.inf,
        "",
        "ä\u2028😀",
    ]
    attributes: Any = {f"k{at}": value for at, value in enumerate(values)}
    event = Event("event", BoundedAttributes(None, attributes), START)
    link = Link(SpanContext(5, 6, True, TraceFlags(1), TraceState([("a", "1")])), {"l": 1})
    return [
        span(1, attributes=attributes, events=[event], links=[link], kind=SpanKind.SERVER),
        span(2, status=Status(StatusCode.ERROR, "no"), parent=1, resource=BANK),
        span(3, name="", attributes={}, state=TraceState([("k", "v"), ("b@c", "x=y")]), instrumentation_scope=None),
        *(span(number, resource=(SHOP, BANK)[number % 2]) for number in range(4, 40)),
    ]


def awkward_logs() -> list[ReadableLogRecord]:
    return [
        log(1, body={"a": [1, None, b"x"]}, severity_number=SeverityNumber.WARN, severity_text="warn"),
        log(2, body=None, event_name="happened", attributes={"k": {"x": -0.0}}, trace=9),
        log(3, timestamp=0, observed_timestamp=5, resource=BANK),
        *(log(number) for number in range(4, 30)),
    ]


def store(root: Path, spans: Sequence[Any] = (), logs: Sequence[Any] = (), machine: str = "m1") -> None:
    settings: dict[str, Any] = {"root": root, "machine": machine, "durability": "os", "min_free": 0}
    for exporter, items in ((LedgerSpanExporter, spans), (LedgerLogExporter, logs)):
        if items:
            own: Any = exporter(**settings)
            own.export(items)
            own.shutdown()


@pytest.fixture
def filled(root: Path) -> Path:
    """A ledger of awkward spans and logs."""
    store(root, awkward_spans(), awkward_logs())
    return root


def encoded(encode: Any, items: Sequence[Any], size: int = 512) -> bytes:
    """What the SDK sends of these directly, all requests joined."""
    parts = [encode(items[at : at + size]) for at in range(0, len(items), size)]
    return b"".join(part.SerializeToString(deterministic=True) for part in parts)


def expect_same(root: Path, spans: Sequence[ReadableSpan], logs: Sequence[ReadableLogRecord]) -> None:
    assert encoded(encode_spans, list(read_spans(root))) == encoded(encode_spans, spans)
    assert encoded(encode_logs, list(read_logs(root))) == encoded(encode_logs, logs)


# Processes and endpoints ---------------------------------------------------------------------------------------

Done = subprocess.CompletedProcess[str]
OTLEDGER = [sys.executable, "-m", "otledger"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **more}


def otledger(*arguments: object, input: str | None = None, **environ: str) -> Done:
    """Run the command line in a process of its own."""
    done = subprocess.run(
        [*OTLEDGER, *map(str, arguments)],
        env=environment(**environ),
        input=input,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert "Traceback" not in done.stderr
    assert all(line.startswith("otledger: ") for line in done.stderr.splitlines()), done.stderr
    return done


class Backend:
    """An OTLP endpoint over HTTP that keeps the bodies it answered with 200, by path."""

    def __init__(self) -> None:
        self.bodies: dict[str, list[bytes]] = {"/v1/traces": [], "/v1/logs": []}
        self.times: list[float] = []
        self.asked = 0
        self.answer: Callable[[int, str, bytes], tuple[int, bytes]] = lambda count, path, body: (200, b"")
        backend = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                backend.asked += 1
                status, content = backend.answer(backend.asked, self.path, body)
                if status == 200:
                    backend.bodies[self.path].append(body)
                    backend.times.append(time.monotonic())
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("content-type", "application/x-protobuf")
                    self.send_header("content-length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def sent(self, path: str = "/v1/traces") -> bytes:
        return b"".join(self.bodies[path])

    def numbers(self) -> list[int]:
        """The ids of the spans that came, in their order."""
        request = ExportTraceServiceRequest.FromString(self.sent())
        return [
            int.from_bytes(found.span_id)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for found in scope.spans
        ]


@pytest.fixture
def backend() -> Iterator[Backend]:
    backend = Backend()
    yield backend
    backend.close()


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """`otledger receive` in a process of its own: its URL, and the ledger that it writes."""
    root = tmp_path / "second"
    command = [*OTLEDGER, "receive", "--port", "0", "--machine", "m2", "--root", str(root)]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process:
        try:
            yield process.stderr.readline().split(" at ")[1].split()[0], root
        finally:
            process.terminate()


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


# The same bytes ------------------------------------------------------------------------------------------------


def test_into_our_own_receiver(filled: Path, receiver: tuple[str, Path]) -> None:
    url, second = receiver
    done = otledger("replay", "--root", filled, "--endpoint", url, "--batch", 7)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.startswith("otledger: 39 spans and 29 log records sent in ")
    check(second / "m2")
    expect_same(second, awkward_spans(), awkward_logs())


@pytest.mark.parametrize("size", [512, 5])
def test_the_second_ledger_replays_to_the_same_bytes(
    filled: Path, receiver: tuple[str, Path], backend: Backend, size: int
) -> None:
    url, second = receiver
    for number in range(100, 110):
        # Later ones, by other requests.
        store(filled, [span(number, flags=number % 2, parent=7), span(number, trace=5)], [log(number, trace=number)])
    done = otledger("replay", "--root", filled, "--endpoint", url, "--batch", size, "--unsampled")
    assert done.returncode == 0, done.stderr
    sent = []
    for root in (filled, second):
        done = otledger("replay", "--root", root, "--endpoint", backend.url, "--unsampled")
        assert done.returncode == 0, done.stderr
        sent.append(backend.bodies)
        backend.bodies = {path: [] for path in backend.bodies}
    assert sent[0] == sent[1]
    assert all(sum(map(len, bodies)) > 1000 for bodies in sent[0].values())


@pytest.mark.parametrize("size", [1000, 7])
def test_over_http(filled: Path, backend: Backend, size: int) -> None:
    done = otledger("replay", "--root", filled, "--endpoint", f"{backend.url}/", "--batch", size, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["spans"], report["logs"], report["refused"], report["skipped"]) == (39, 29, 0, 0)
    assert (report["failed"], report["problems"], report["dry_run"]) == (None, [], False)
    assert backend.sent() == encoded(encode_spans, awkward_spans(), size)
    joined = ExportLogsServiceRequest.FromString(backend.sent("/v1/logs"))
    assert sum(len(s.log_records) for r in joined.resource_logs for s in r.scope_logs) == 29


def test_the_variables_of_the_sdk_hold(filled: Path, backend: Backend) -> None:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": backend.url, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    done = otledger("replay", "--no-logs", OTLEDGER_ROOT=str(filled), **environ)
    assert done.returncode == 0, done.stderr
    assert backend.sent() == encoded(encode_spans, awkward_spans())
    assert backend.sent("/v1/logs") == b""
    done = otledger("replay", OTLEDGER_ROOT=str(filled), OTEL_EXPORTER_OTLP_PROTOCOL="http/json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("otledger: OTEL_EXPORTER_OTLP_PROTOCOL 'http/json' is unknown; there are: http")


class Spans(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.refuse = -1
        self.answer = ExportTraceServiceResponse()
        self.busy = 0

    def Export(self, request: Any, context: Any) -> Any:
        names = [s.name for r in request.resource_spans for g in r.scope_spans for s in g.spans]
        if f"span {self.refuse}" in names:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not this one")
        if self.busy:
            self.busy -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "later")
        self.requests.append(request)
        return self.answer


class Logs(logs_service_pb2_grpc.LogsServiceServicer):
    def __init__(self) -> None:
        self.requests: list[ExportLogsServiceRequest] = []
        self.answer = ExportLogsServiceResponse()

    def Export(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return self.answer


Serving = tuple[str, Spans, Logs]


@pytest.fixture
def grpc_backend() -> Iterator[Serving]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    spans, logs = Spans(), Logs()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(spans, server)  # type: ignore[no-untyped-call]
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(logs, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}", spans, logs
    server.stop(None).wait()


def test_over_grpc(filled: Path, grpc_backend: Serving) -> None:
    url, spans, logs = grpc_backend
    done = otledger("replay", "--root", filled, "--endpoint", url, "--protocol", "grpc")
    assert done.returncode == 0, done.stderr
    assert b"".join(r.SerializeToString() for r in spans.requests) == encoded(encode_spans, awkward_spans())
    assert b"".join(r.SerializeToString() for r in logs.requests) == encoded(encode_logs, awkward_logs())


def test_grpc_leaves_out_what_cannot_be_encoded_or_is_refused(root: Path, grpc_backend: Serving) -> None:
    url, spans, _ = grpc_backend
    # Two that are refused: the SDK says why for the first of them only.
    store(root, [span(1), span(2, start_time=-5), span(3), span(4), span(5), *(span(3 + 10 * n) for n in (1, 2))])
    spans.refuse = 4
    done = otledger("replay", "--root", root, "--endpoint", url, "--protocol", "grpc", "--json")
    assert done.returncode == 1
    assert {key: json.loads(done.stdout)[key] for key in ("spans", "refused")} == {"spans": 5, "refused": 2}
    assert "cannot be encoded and is left out" in done.stderr
    assert "not this one" in done.stderr


def test_what_a_grpc_backend_takes_in_part_is_counted(root: Path, grpc_backend: Serving) -> None:
    url, spans, logs = grpc_backend
    store(root, [span(number) for number in range(1, 11)], [log(1), log(2)])
    spans.answer.partial_success.rejected_spans, spans.answer.partial_success.error_message = 3, "too old"
    logs.answer.partial_success.rejected_log_records = 1
    # After this the SDK's exporter makes a new stub.
    spans.busy = 1
    done = otledger("replay", "--root", root, "--endpoint", url, "--protocol", "grpc", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["spans"], report["logs"], report["refused"]) == (1, 7, 1, 4)
    told = "the endpoint refused 3 spans: too old", "the endpoint refused 1 log record: it does not say why"
    assert done.stderr == "".join(f"otledger: {line}\n" for line in told)


# What is picked ------------------------------------------------------------------------------------------------


def various(root: Path) -> None:
    """Spans 1 to 9 on three machines, and log records."""
    store(root, [span(1, trace=100), span(2, trace=100, parent=1, resource=BANK), span(3, flags=0)])
    store(root, [span(4, status=Status(StatusCode.ERROR)), span(1, trace=100), span(5)], machine="m2")
    store(
        root,
        logs=[
            log(6, trace=100, severity_number=SeverityNumber.ERROR),
            log(7, severity_number=SeverityNumber.WARN, resource=BANK),
        ],
        machine="m3",
    )


def at(number: float) -> str:
    return format_time(START + int(number * SECOND))


# The ids of the spans and the bodies of the log records.
CHOICES: dict[str, tuple[set[int], set[int]]] = {
    "": ({1, 2, 4, 5}, {6, 7}),
    f"--trace {100:032X}": ({1, 2}, {6}),
    "--service bank": ({2}, {7}),
    "--machine m2": ({1, 4, 5}, set()),
    "--machine m1 -m m3": ({1, 2}, {6, 7}),
    "--errors": ({4}, {6}),
    "--unsampled": ({1, 2, 3, 4, 5}, {6, 7}),
    # The time of an ended span is its end.
    f"--since {at(2)} --until {at(4.5)}": ({2}, set()),
    f"--since {at(4.5)}": ({4, 5}, {6, 7}),
    "--no-logs": ({1, 2, 4, 5}, set()),
}


def test_choices(root: Path, tmp_path: Path) -> None:
    various(root)
    with futures.ThreadPoolExecutor(2) as pool:
        found = dict(zip(CHOICES, pool.map(lambda choice: chosen(root, tmp_path, choice), CHOICES), strict=True))
    assert found == {choice: (sorted(spans), sorted(logs)) for choice, (spans, logs) in CHOICES.items()}


def chosen(root: Path, folder: Path, choice: str) -> tuple[list[int], list[int]]:
    """The ids of the spans and the numbers of the log records that are written to files."""
    logs = folder / f"logs{abs(hash(choice))}.jsonl"
    done = otledger("replay", "--root", root, "--to", "-", "--logs-to", logs, *choice.split())
    assert done.returncode == 0, done.stderr
    spans = [
        int(found["spanId"], 16)
        for line in done.stdout.splitlines()
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for found in scope["spans"]
    ]
    records = [
        int(found["body"]["stringValue"].removeprefix("log "))
        for line in (logs.read_text().splitlines() if logs.exists() else [])
        for resource in json.loads(line)["resourceLogs"]
        for scope in resource["scopeLogs"]
        for found in scope["logRecords"]
    ]
    return sorted(spans), sorted(records)


async def test_a_turn(root: Path, backend: Backend) -> None:
    turn = ipc_hash({"a": 1})
    async with library.open(root, machine="m1", min_free=0) as ledger:
        async with ledger.turn(turn), ledger.span("inside"):
            pass
        async with ledger.span("outside"):
            pass
    arguments = ("replay", "--root", root, "--endpoint", backend.url, "--turn", turn)
    done = await asyncio.to_thread(otledger, *arguments)
    assert done.returncode == 0, done.stderr
    request = ExportTraceServiceRequest.FromString(backend.sent())
    assert [s.name for r in request.resource_spans for g in r.scope_spans for s in g.spans] == ["inside"]


def test_machines_are_merged_by_time(root: Path, backend: Backend) -> None:
    store(root, [span(number) for number in (1, 3, 5)])
    store(root, [span(number) for number in (2, 3, 4)], machine="m2")
    assert otledger("replay", "--root", root, "--endpoint", backend.url, "--batch", 1).returncode == 0
    assert backend.numbers() == [1, 2, 3, 4, 5]


UNFINISHED = """
import os, sys, time
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import set_span_in_context
from otledger_opentelemetry import LedgerSpanProcessor
root, machine, start, second = sys.argv[1], sys.argv[2], int(sys.argv[3]), 1_000_000_000
provider = TracerProvider()
processor = LedgerSpanProcessor(root=root, machine=machine, min_free=0, flush_interval=0.01)
provider.add_span_processor(processor)
tracer = provider.get_tracer("t")
outer = tracer.start_span("outer", start_time=start)
inner = tracer.start_span("inner", context=set_span_in_context(outer), start_time=start + second)
time.sleep(0.1)
inner.end(start + 3 * second)
processor.force_flush()
os._exit(0)
"""


def leave_unfinished(root: Path, machine: str = "m1") -> None:
    subprocess.run(
        [sys.executable, "-c", UNFINISHED, root, machine, str(START)], env=environment(), check=True, timeout=60
    )


def names_sent(backend: Backend) -> list[str]:
    request = ExportTraceServiceRequest.FromString(backend.sent())
    return [s.name for r in request.resource_spans for g in r.scope_spans for s in g.spans]


def test_unfinished_spans_end_where_they_were_last_seen(root: Path, backend: Backend) -> None:
    leave_unfinished(root)
    assert otledger("replay", "--root", root, "--endpoint", backend.url).returncode == 0
    assert names_sent(backend) == ["inner"]
    backend.bodies["/v1/traces"].clear()
    assert otledger("replay", "--root", root, "--endpoint", backend.url, "--unfinished").returncode == 0
    request = ExportTraceServiceRequest.FromString(backend.sent())
    inner, outer = (s for r in request.resource_spans for g in r.scope_spans for s in g.spans)
    assert (inner.name, outer.name) == ("inner", "outer")
    assert outer.end_time_unix_nano == START + 3 * SECOND
    assert [(a.key, a.value.bool_value) for a in outer.attributes] == [("otledger.unfinished", True)]
    assert not inner.attributes


def test_a_span_that_ended_on_another_machine_is_not_unfinished(root: Path) -> None:
    leave_unfinished(root, "a")
    (outer,) = [found for found in read_spans(root, unfinished=True) if found.name == "outer"]
    context = outer.get_span_context()
    assert context is not None
    # As when the rest of it was imported.
    whole = ReadableSpan("outer", context, start_time=START, end_time=START + 9 * SECOND, resource=outer.resource)
    store(root, [whole], machine="b")
    spans = {found.name: found for found in read_spans(root, unfinished=True)}
    assert (len(spans), spans["outer"].end_time) == (2, START + 9 * SECOND)
    assert not spans["outer"].attributes


# The cursor ----------------------------------------------------------------------------------------------------


def slowly(count: int, path: str, body: bytes) -> tuple[int, bytes]:
    time.sleep(0.1)
    return 200, b""


def test_a_replay_that_is_killed_goes_on(root: Path, backend: Backend, tmp_path: Path) -> None:
    store(root, [span(number) for number in range(1, 201)])
    cursor = tmp_path / "cursor"
    arguments = ["replay", "--root", str(root), "--endpoint", backend.url, "--batch", "10", "--cursor", str(cursor)]
    backend.answer = slowly
    for wanted in (4, 9):
        process = subprocess.Popen([*OTLEDGER, *arguments], env=environment(), stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while backend.asked < wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        time.sleep(0.2)
    backend.answer = lambda count, path, body: (200, b"")
    assert otledger(*arguments).returncode == 0
    numbers = backend.numbers()
    assert sorted(set(numbers)) == list(range(1, 201))
    assert len(numbers) <= 200 + 2 * 10
    # What is appended is sent the next time, and nothing else.
    backend.bodies["/v1/traces"].clear()
    store(root, [span(201), span(7)])
    done = otledger(*arguments)
    assert (done.returncode, backend.numbers()) == (0, [201]), done.stderr
    assert otledger(*arguments).returncode == 0
    assert backend.numbers() == [201]


class Taking(SpanExporter, LogRecordExporter):
    """Takes everything, until it fails."""

    def __init__(self, works: int = 1000) -> None:
        self.taken: list[Any] = []
        self.works = works

    def export(self, items: Any) -> Any:
        self.works -= 1
        kind: Any = SpanExportResult if isinstance(items[0], ReadableSpan) else LogRecordExportResult
        if self.works < 0:
            return kind.FAILURE
        self.taken += items
        return kind.SUCCESS

    def shutdown(self) -> None:
        return

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True

    @property
    def names(self) -> list[str]:
        return [found.name for found in self.taken]


def test_unfinished_spans_are_sent_once_with_a_cursor_and_not_lost_when_it_stops_before_them(
    root: Path, tmp_path: Path
) -> None:
    leave_unfinished(root)
    cursor = tmp_path / "cursor"
    with pytest.raises(ReplayFailed) as failed:
        replay(root, Taking(1), selection=Selection(unfinished=True), cursor=cursor, batch=1, tries=1)
    assert failed.value.report.spans == 1
    for expected in (["outer"], []):
        taking = Taking()
        replay(root, taking, selection=Selection(unfinished=True), cursor=cursor)
        assert taking.names == expected
    # It ends after all: now it is sent as it is.
    (outer,) = [found for found in read_spans(root, unfinished=True) if found.name == "outer"]
    context = outer.get_span_context()
    store(root, [ReadableSpan("outer", context, start_time=START, end_time=START + 9, resource=outer.resource)])
    taking = Taking()
    replay(root, taking, selection=Selection(unfinished=True), cursor=cursor)
    assert [(found.name, found.end_time) for found in taking.taken] == [("outer", START + 9)]
    assert ReplayCursor.load(cursor).unfinished == {}


def test_the_cursor_waits_for_what_an_exporter_keeps_back(root: Path, tmp_path: Path) -> None:
    store(root, [span(1), span(2)])

    class Holding(Taking):
        def force_flush(self, timeout_millis: int = 30_000) -> bool:
            return False

    with pytest.raises(ReplayFailed, match="kept some of them back"):
        replay(root, Holding(), cursor=tmp_path / "cursor")
    assert ReplayCursor.load(tmp_path / "cursor").sent == {}
    assert replay(root, Taking(), cursor=tmp_path / "cursor").spans == 2


def test_the_cursor_of_another_ledger_is_refused(root: Path, tmp_path: Path) -> None:
    cursor = tmp_path / "cursor"
    for folder, count in ((root, 20), (tmp_path / "other", 5), (tmp_path / "larger", 40)):
        store(folder, [span(number) for number in range(1, count)])
        if folder == root:
            replay(folder, Taking(), cursor=cursor)
            continue
        with pytest.raises(ConfigurationError, match="cursor of another ledger"):
            replay(folder, Taking(), cursor=cursor)


def test_a_cursor_that_is_none(filled: Path, backend: Backend, tmp_path: Path) -> None:
    (tmp_path / "nonsense").write_bytes(b'{"sent": "\xff"}')
    for place, says in (("nonsense", "remove it to begin anew"), ("no/folder", "No such file"), (".", "directory")):
        done = otledger("replay", "--root", filled, "--endpoint", backend.url, "--cursor", tmp_path / place)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert says in done.stderr
        assert str(tmp_path) in done.stderr
    assert backend.asked == 0


def test_a_dry_run_sends_nothing_and_says_what_would_be_sent(filled: Path, backend: Backend, tmp_path: Path) -> None:
    cursor, file = tmp_path / "cursor", tmp_path / "spans.jsonl"
    common = ("replay", "--root", filled, "--cursor", cursor)
    done = otledger(*common, "--endpoint", backend.url, "--dry-run")
    assert (done.returncode, done.stdout) == (0, "")
    assert "39 spans and 29 log records would be sent" in done.stderr
    assert (backend.asked, cursor.exists()) == (0, False)
    done = otledger(*common, "--to", file, "--dry-run", "--json")
    report = json.loads(done.stdout)
    assert (report["spans"], report["logs"], report["dry_run"], file.exists()) == (39, 0, True, False)
    # With a cursor: what is left.
    assert otledger(*common, "--endpoint", backend.url).returncode == 0
    before = cursor.read_bytes()
    assert "0 spans and 0 log records would be sent" in otledger(*common, "--dry-run").stderr
    assert cursor.read_bytes() == before


# Rhythm, retries, refusals -------------------------------------------------------------------------------------


def test_the_recorded_rhythm(root: Path, backend: Backend) -> None:
    store(root, [span(number) for number in (1, 2)])
    store(root, [span(number) for number in (5, 9)], machine="m2")
    # Seconds 1, 2, 5 and 9, ten times as fast.
    assert otledger("replay", "--root", root, "--endpoint", backend.url, "--speed", 10).returncode == 0
    assert (backend.numbers(), len(backend.times)) == ([1, 2, 5, 9], 4)
    assert 0.6 < backend.times[-1] - backend.times[0] < 5
    assert backend.times[2] - backend.times[0] > 0.25


def test_an_endpoint_that_is_busy_at_first(filled: Path, backend: Backend) -> None:
    backend.answer = lambda count, path, body: (503, b"") if count <= 3 else (200, b"")
    # So short a time-out that the SDK's exporter gives up by itself.
    done = otledger("replay", "--root", filled, "--endpoint", backend.url, OTEL_EXPORTER_OTLP_TIMEOUT="0.5")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (0, "", 1), done.stderr
    assert backend.sent() == encoded(encode_spans, awkward_spans())


def test_an_endpoint_that_is_not_there_or_never_answers(filled: Path, tmp_path: Path) -> None:
    with socket.socket() as listener, futures.ThreadPoolExecutor(3) as pool:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        silent, closed = listener.getsockname()[1], closed_port()
        cases = {("http", silent): "", ("http", closed): "", ("grpc", closed): "refused"}
        began = time.monotonic()
        all_done = list(pool.map(lambda case: unanswered(filled, tmp_path, *case), cases))
    # The pauses make 7.5 seconds.
    assert time.monotonic() - began < 60
    for (_, port), says, done in zip(cases, cases.values(), all_done, strict=True):
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert f"127.0.0.1:{port}" in done.stderr
        assert "the exporter took none of 39 spans from m1, seq " in done.stderr
        assert says in done.stderr
        assert "see whether the endpoint is up" in done.stderr
        report = json.loads(done.stdout)
        assert (report["spans"], report["failed"]) == (0, done.stderr.removeprefix("otledger: ").rstrip("\n"))
    assert all(ReplayCursor.load(cursor).sent == {} for cursor in tmp_path.glob("cursor-*"))


def unanswered(root: Path, folder: Path, protocol: str, port: int) -> Done:
    arguments = ("--endpoint", f"http://127.0.0.1:{port}", "--protocol", protocol, "--json")
    cursor = folder / f"cursor-{protocol}-{port}"
    return otledger("replay", "--root", root, *arguments, "--cursor", cursor, OTEL_EXPORTER_OTLP_TIMEOUT="0.5")


def test_patience_ends_before_the_tries(root: Path) -> None:
    store(root, [span(1)])

    class Slow(Taking):
        def export(self, items: Any) -> Any:
            time.sleep(0.3)
            return SpanExportResult.FAILURE

    began = time.monotonic()
    with pytest.raises(ReplayFailed, match="tried once"):
        replay(root, Slow(), tries=1000, patience=0.5)
    assert time.monotonic() - began < 5


def test_a_wrong_endpoint_is_told_at_once(filled: Path, backend: Backend, tmp_path: Path) -> None:
    backend.answer = lambda count, path, body: (401, b"")
    done = otledger("replay", "--root", filled, "--endpoint", backend.url)
    assert (done.returncode, done.stderr.count("\n"), backend.asked) == (1, 1, 1)
    assert "401" in done.stderr
    # Something that answers anything with 400 is no OTLP endpoint: the cursor must not pass over the whole ledger.
    backend.answer = lambda count, path, body: (400, b"")
    cursor = tmp_path / "cursor"
    done = otledger("replay", "--root", filled, "--endpoint", backend.url, "--cursor", cursor)
    assert (done.returncode, ReplayCursor.load(cursor).sent) == (1, {})
    assert backend.asked < 100


def test_a_backend_that_takes_no_logs(filled: Path, backend: Backend) -> None:
    backend.answer = lambda count, path, body: (404, b"") if path == "/v1/logs" else (200, b"")
    done = otledger("replay", "--root", filled, "--endpoint", backend.url)
    assert done.returncode == 1
    assert "--no-logs" in done.stderr
    assert "39 spans and 0 log records sent" in done.stderr
    assert otledger("replay", "--root", filled, "--endpoint", backend.url, "--no-logs").returncode == 0


def test_what_the_backend_refuses_is_left_out_and_counted(root: Path, backend: Backend) -> None:
    store(root, [span(number) for number in range(1, 31)])
    backend.answer = lambda count, path, body: (400, b"") if b"span 17" in body else (200, b"")
    done = otledger("replay", "--root", root, "--endpoint", backend.url, "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["spans"], report["refused"]) == (1, 29, 1)
    assert sorted(backend.numbers()) == [number for number in range(1, 31) if number != 17]
    assert done.stderr.count("\n") == 1
    assert "is refused by the endpoint and is left out" in done.stderr


def test_what_the_backend_takes_in_part_is_counted(root: Path, backend: Backend) -> None:
    store(root, [span(number) for number in range(1, 11)])
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans, answer.partial_success.error_message = 3, "too old"
    backend.answer = lambda count, path, body: (200, answer.SerializeToString())
    done = otledger("replay", "--root", root, "--endpoint", backend.url, "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["spans"], report["refused"]) == (1, 7, 3)
    assert done.stderr == "otledger: the endpoint refused 3 spans: too old\n"


ODD: list[dict[str, Any]] = [
    {"name": 5},
    {"start_time": -5},
    {"name": "\ud800"},
    {"end_time": 1 << 64},
    {"end_time": 2.5},
]


def test_what_cannot_be_encoded_is_left_out_and_counted(root: Path, backend: Backend, tmp_path: Path) -> None:
    good = [span(number) for number in range(1, 21)]
    odd = [span(100 + number, **members) for number, members in enumerate(ODD)]
    logs = [log(1), log(2, severity_text="\ud800"), log(3)]
    store(root, [*good[:10], *odd[:3], *good[10:], *odd[3:]], logs)
    done = otledger("replay", "--root", root, "--endpoint", backend.url, "--cursor", tmp_path / "cursor", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["spans"], report["logs"], report["refused"]) == (1, 20, 2, 6)
    assert backend.numbers() == list(range(1, 21))
    assert done.stderr.count("cannot be encoded and is left out") == done.stderr.count("\n") == 6
    file = tmp_path / "spans.jsonl"
    done = otledger("replay", "--root", root, "--to", file, "--json")
    assert (done.returncode, json.loads(done.stdout)["refused"], json.loads(done.stdout)["spans"]) == (1, 5, 20)
    # The cursor is past them.
    assert (
        otledger("replay", "--root", root, "--endpoint", backend.url, "--cursor", tmp_path / "cursor").returncode == 0
    )


def test_large_spans_are_sent_in_smaller_batches(root: Path, backend: Backend) -> None:
    store(root, [span(number, attributes={"large": "x" * 600_000}) for number in range(1, 9)])
    assert otledger("replay", "--root", root, "--endpoint", backend.url).returncode == 0
    assert backend.numbers() == list(range(1, 9))
    assert max(map(len, backend.bodies["/v1/traces"])) < 4 << 20


# Files and the console -----------------------------------------------------------------------------------------


def test_otlp_json_files_and_back(filled: Path, tmp_path: Path) -> None:
    spans, logs, third = tmp_path / "spans.jsonl", tmp_path / "logs.jsonl", tmp_path / "third"
    done = otledger("replay", "--root", filled, "--to", spans, "--logs-to", logs, "--batch", 10)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    for file in (spans, logs):
        assert otledger("import", "otlp", file, "--root", third).returncode == 0
    expect_same(third, awkward_spans(), awkward_logs())
    done = otledger("import", "otlp", spans, "--root", third)
    assert "39 events were there already" in done.stdout


def test_stdout_into_an_import(filled: Path, tmp_path: Path) -> None:
    done = otledger("replay", "--root", filled, "--to", "-")
    assert done.returncode == 0
    assert "39 spans and 0 log records sent" in done.stderr
    assert otledger("import", "otlp", "-", "--root", tmp_path / "third", input=done.stdout).returncode == 0
    assert encoded(encode_spans, list(read_spans(tmp_path / "third"))) == encoded(encode_spans, awkward_spans())


def test_the_console(root: Path) -> None:
    # The SDK's console exporter knows no bytes.
    store(root, [span(number) for number in range(1, 11)] + [span(11, attributes={"b": b"x"})], [log(1), log(2)])
    done = otledger("replay", "--root", root, "--to", "console")
    assert done.returncode == 1
    assert "10 spans and 2 log records sent" in done.stderr
    assert "is left out: TypeError: Object of type bytes" in done.stderr
    decoder, at, names = json.JSONDecoder(), 0, []
    while at < len(done.stdout):
        found, at = decoder.raw_decode(done.stdout, at)
        names.append(found.get("name", "a log record"))
        at += len(done.stdout[at:]) - len(done.stdout[at:].lstrip())
    assert (names.count("a log record"), len(names)) == (2, 12)


CONTRADICTIONS = [
    (("--to", "-", "--logs-to", "-"), "one signal a file"),
    (("--to", "x.jsonl", "--logs-to", "x.jsonl"), "one signal a file"),
    (("--to", "-", "--json"), "--json"),
    (("--to", "console", "--json"), "--json"),
    (("--to", "x.jsonl", "--endpoint", "http://127.0.0.1:1"), "--endpoint"),
    (("--endpoint", "127.0.0.1:4318"), "http://127.0.0.1:4318"),
    (("--protocol", "carrier-pigeon"), "http, http/protobuf, grpc"),
    (("--since", "yesterday"), "2h"),
    (("--machine", "nobody"), "m1"),
    (("--to", "no/such/folder.jsonl"), "no/such/folder.jsonl"),
]


def test_what_makes_no_sense_is_one_clear_line(filled: Path) -> None:
    with futures.ThreadPoolExecutor(2) as pool:
        all_done = list(pool.map(lambda case: otledger("replay", "--root", filled, *case[0]), CONTRADICTIONS))
    for (arguments, says), done in zip(CONTRADICTIONS, all_done, strict=True):
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), (arguments, done.stderr)
        assert says in done.stderr
    assert not Path("x.jsonl").exists()


def test_a_full_disk(filled: Path) -> None:
    done = otledger("replay", "--root", filled, "--to", "/dev/full")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "/dev/full cannot be written: No space left on device" in done.stderr


def test_a_line_that_was_left_torn_is_ended(tmp_path: Path) -> None:
    file = tmp_path / "spans.jsonl"
    file.write_bytes(b'{"resourceSpans":[')
    exporter = JsonSpanExporter(file)
    assert exporter.export([span(1)]) is SpanExportResult.SUCCESS
    assert exporter.force_flush()
    exporter.shutdown()
    torn, whole = file.read_bytes().splitlines()
    assert torn == b'{"resourceSpans":['
    assert json.loads(whole)["resourceSpans"]


def test_a_reader_of_stdout_that_goes_away(root: Path) -> None:
    store(root, [span(number, attributes={"large": "x" * 5000}) for number in range(1, 300)])
    command = [*OTLEDGER, "replay", "--root", str(root), "--to", "-", "--batch", "5"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment(), **pipes) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert (process.wait(30), process.stderr.read()) == (0, b"")


WITHOUT = """
import sys
from importlib.abc import MetaPathFinder
class Missing(MetaPathFinder):
    def find_spec(self, name, *_):
        if name.startswith("opentelemetry.exporter"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from otledger.cli import main
main()
"""


@pytest.mark.parametrize("arguments", [(), ("--protocol", "grpc"), ("--to", "x.jsonl")])
def test_packages_that_are_missing(filled: Path, arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", WITHOUT, "replay", "--root", str(filled), *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "pip install '" in done.stderr


def test_a_chrome_trace_needs_no_more_packages(filled: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT, "export", "chrome-trace", "trace.json", "--root", str(filled)]
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


# Damage --------------------------------------------------------------------------------------------------------


def damage(root: Path, needle: bytes, change: Callable[[bytes], bytes]) -> None:
    """Change the first line with `needle` in it."""
    (segment,) = (root / "m1").glob("*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    at = next(at for at, line in enumerate(lines) if needle in line)
    lines[at] = change(lines[at])
    segment.write_bytes(b"".join(lines))


def replaced(name: bytes) -> Callable[[bytes], bytes]:
    """Have a member of a line be a number instead of an object."""
    return lambda line: line.replace(b'"%s":{' % name, b'"%s":5,"x":{' % name)


# What is damaged, how, how many of ten spans are left, what is said of it.
DAMAGE: dict[str, tuple[bytes, Callable[[bytes], bytes], int, list[str]]] = {
    "a line that is none": (b'"span 5"', lambda line: b"nonsense\n", 9, ["offset ", "m1"]),
    "a line cut in two": (b'"span 5"', lambda line: line[:90] + b"\n" + line[90:], 9, ["offset ", "m1"]),
    "data that is no span": (b'"span 5"', replaced(b"data"), 9, ["m1, seq "]),
    "no resource": (b'"kind":"resource"', lambda line: b"", 5, ["m1, seq ", "resource or scope"]),
    "a resource that is none": (b'"kind":"resource"', replaced(b"attributes"), 5, ["otel.resource"]),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_told_and_the_rest_is_replayed(root: Path, backend: Backend, kind: str) -> None:
    store(root, [span(number, resource=(BANK, SHOP)[number % 2]) for number in range(1, 11)])
    needle, change, left, says = DAMAGE[kind]
    damage(root, needle, change)
    done = otledger("replay", "--root", root, "--endpoint", backend.url, "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["spans"], len(backend.numbers())) == (3, left, left), done.stderr
    assert report["skipped"] == len(report["problems"]) >= 1
    assert all(says_this in done.stderr for says_this in says), done.stderr
    assert "otledger verify" in done.stderr


def test_what_was_sent_is_not_told_again(root: Path, tmp_path: Path) -> None:
    store(root, [span(number) for number in range(1, 5)])
    damage(root, b'"span 2"', replaced(b"data"))
    reports = [replay(root, Taking(), cursor=tmp_path / "cursor") for _ in range(2)]
    assert [(report.spans, report.skipped) for report in reports] == [(3, 1), (0, 0)]


def test_reading_in_python_warns(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    store(root, [span(number) for number in range(1, 5)])
    damage(root, b'"span 2"', lambda line: b"nonsense\n")
    assert len(list(read_spans(root))) == 3
    assert "not a record" in caplog.text


def test_no_ledger(tmp_path: Path) -> None:
    for command in (("replay",), ("export", "chrome-trace", tmp_path / "trace.json")):
        done = otledger(*command, "--root", tmp_path / "nothing")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert "there is no ledger here" in done.stderr
    assert not (tmp_path / "trace.json").exists()


# Chrome's format -----------------------------------------------------------------------------------------------


def test_chrome_trace(root: Path, tmp_path: Path) -> None:
    provider = TracerProvider(resource=Resource({"service.name": "shop", "process.pid": 7}))
    processor = LedgerSpanProcessor(root=root, machine="m1", min_free=0)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("t")
    with tracer.start_as_current_span("outer", kind=SpanKind.SERVER, attributes={"n": 1, "l": [math.nan]}) as outer:
        with tracer.start_as_current_span("inner"):
            outer.add_event("event", {"k": "v\ud800"})
        # Two that overlap, as tasks do.
        one, other = tracer.start_span("one"), tracer.start_span("other")
        one.end()
        other.end()
    provider.shutdown()
    file = tmp_path / "trace.json"
    done = otledger("export", "chrome-trace", file, "--root", root)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{file}: 4 spans" in done.stdout
    events = json.loads(file.read_text(), parse_constant=pytest.fail)["traceEvents"]
    names = {(event["name"], event["args"]["name"]) for event in events if event["ph"] == "M"}
    trace = f"trace {outer.get_span_context().trace_id:032x}"
    assert names == {("process_name", "shop (7)"), ("thread_name", trace), ("thread_name", f"{trace} (2)")}
    shown = {event["name"]: event for event in events if event["ph"] in "Xi"}
    assert shown["outer"]["args"]["n"] == 1
    assert shown["outer"]["cat"] == "server"
    assert is_inside(shown["inner"], shown["outer"])
    assert is_inside(shown["event"] | {"dur": 0}, shown["outer"])
    assert shown["one"]["tid"] != shown["other"]["tid"]
    assert shown["inner"]["args"]["parent_span_id"] == shown["outer"]["args"]["span_id"]
    expect_nested(events)


def is_inside(inner: dict[str, Any], outer: dict[str, Any]) -> bool:
    same = (inner["pid"], inner["tid"]) == (outer["pid"], outer["tid"])
    # Microseconds as floats are exact to a quarter of one.
    begins_later = inner["ts"] >= outer["ts"] - 0.5
    return bool(same and begins_later and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] + 0.5)


def expect_nested(events: list[dict[str, Any]]) -> None:
    """On a thread spans are one inside the other, or apart."""
    spans = [event for event in events if event["ph"] == "X"]
    for one in spans:
        for other in spans:
            if (one["pid"], one["tid"]) != (other["pid"], other["tid"]):
                continue
            first, second = sorted((one, other), key=lambda event: (event["ts"], -event["dur"]))
            apart = first["ts"] + first["dur"] <= second["ts"] + 0.5
            assert apart or is_inside(second, first), (one, other)


def test_chrome_trace_of_many_that_overlap(tmp_path: Path) -> None:
    spans = [
        span(number, trace=1, start_time=START + start * 1000, end_time=START + (start + length) * 1000)
        for number, (start, length) in enumerate(((s * 7 % 23, s * 5 % 11) for s in range(60)), start=1)
    ]
    spans.sort(key=lambda found: found.end_time or 0)
    assert write_chrome_trace(tmp_path / "trace.json", spans) == 60
    expect_nested(json.loads((tmp_path / "trace.json").read_text())["traceEvents"])


def test_chrome_trace_of_nothing_and_of_odd_spans(root: Path, tmp_path: Path) -> None:
    store(root, logs=[log(1)])
    done = otledger("export", "chrome-trace", "-", "--root", root)
    assert (done.returncode, json.loads(done.stdout)["traceEvents"]) == (0, [])
    store(root, [span(1, start_time=-5), span(2, name=5), span(3, end_time=2.5), span(4, kind=99)])
    file = tmp_path / "trace.json"
    done = otledger("export", "chrome-trace", file, "--root", root, "--json")
    assert (done.returncode, json.loads(done.stdout)["spans"]) == (3, 2), done.stderr
    assert done.stderr.count("cannot be shown") == 2
    shown = [event["name"] for event in json.loads(file.read_text())["traceEvents"] if event["ph"] == "X"]
    assert shown == ["5", "span 4"]
