"""The OpenTelemetry SDK into the ledger and out of it: contenders, and the rows about them."""

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from .bench import Bench
from .measure import REPOSITORY, Figures, Measurement, at_least, at_most, judged
from .payload import ATTRIBUTES, MACHINE

_SINK = """
import socket, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Sink(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_): pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


def _provider() -> Any:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    return TracerProvider(resource=Resource({"service.name": "bench"}), shutdown_on_exit=False)


def _spans(provider: Any, n: int) -> None:
    tracer = provider.get_tracer("bench")
    for _ in range(n):
        with tracer.start_as_current_span("charge", attributes=ATTRIBUTES):
            pass


def _cpu(provider: Any, n: int) -> Figures:
    started = time.process_time()
    _spans(provider, n)
    provider.force_flush(120_000)
    figures = {"cpu_us": (time.process_time() - started) / n * 1e6}
    provider.shutdown()
    return figures


def ledger_cpu(folder: Path, n: int) -> Figures:
    """Return the CPU of an SDK span that is recorded in a ledger at `os`, starts included, in µs."""
    from otledger_opentelemetry import LedgerSpanProcessor

    provider = _provider()
    LedgerSpanProcessor.install(provider, root=folder, machine=MACHINE, durability="os", min_free=0)
    return _cpu(provider, n)


def batch_cpu(folder: Path, n: int, console: bool) -> Figures:
    """Return the CPU of an SDK span through a batch processor that drops none, to nowhere or to a file."""
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter, SpanExportResult

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> Any:
            return SpanExportResult.SUCCESS

    provider = _provider()
    with (folder / "spans.json").open("w") as file:
        exporter = ConsoleSpanExporter(out=file) if console else Nowhere()
        provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=n))
        return _cpu(provider, n)


def ledger_lost(folder: Path, n: int) -> Figures:
    """Return how many of `n` spans in a tight loop are missing in the ledger, at its defaults."""
    import otledger
    from otledger_opentelemetry import LedgerSpanProcessor

    provider = _provider()
    LedgerSpanProcessor.install(provider, root=folder, machine=MACHINE)
    _spans(provider, n)
    provider.shutdown()
    return {"lost": n - sum(record.type == "otel.span.end" for record in otledger.Reader(folder).records())}


def batch_lost(folder: Path, n: int) -> Figures:
    """Return how many of `n` spans in a tight loop the SDK's batch processor drops, at its defaults, into a file."""
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    provider = _provider()
    with (folder / "spans.json").open("w") as file:
        exporter = ConsoleSpanExporter(out=file, formatter=lambda span: span.to_json(indent=None) + "\n")
        provider.add_span_processor(BatchSpanProcessor(exporter))
        _spans(provider, n)
        provider.shutdown()
    with (folder / "spans.json").open("rb") as file:
        return {"lost": n - sum(1 for _ in file)}


def _exporter(port: int) -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=f"http://127.0.0.1:{port}/v1/traces")


def sent_from_memory(folder: Path, n: int, batch: int) -> Figures:
    """Return spans a second that the SDK's exporter encodes and sends from memory."""
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    memory = InMemorySpanExporter()
    provider = _provider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    _spans(provider, n)
    spans = memory.get_finished_spans()
    with _sink() as port:
        exporter = _exporter(port)
        exporter.export(spans[:batch])
        started = time.perf_counter()
        for at in range(0, n, batch):
            exporter.export(spans[at : at + batch])
        return {"rate": n / (time.perf_counter() - started)}


def replayed(folder: Path, n: int, batch: int) -> Figures:
    """Return spans a second that a replay reads, rebuilds, encodes and sends."""
    from otledger_opentelemetry import LedgerSpanProcessor, read_spans, replay

    provider = _provider()
    LedgerSpanProcessor.install(provider, root=folder / "ledger", machine=MACHINE, durability="os", min_free=0)
    _spans(provider, n)
    provider.shutdown()
    with _sink() as port:
        exporter = _exporter(port)
        # As the other contender does: what is measured goes over a connection that is open.
        exporter.export(list(islice(read_spans(folder / "ledger"), batch)))
        started = time.perf_counter()
        report = replay(folder / "ledger", exporter, batch=batch)
        elapsed = time.perf_counter() - started
    if report.spans != n:
        raise RuntimeError(f"{report.spans:,} of {n:,} spans were sent")
    return {"rate": n / elapsed}


class _sink:
    """A server of another process that reads requests and answers 200."""

    def __enter__(self) -> int:
        self._process = subprocess.Popen([sys.executable, "-c", _SINK], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def sent_to(port: int, n: int, batch: int) -> Figures:
    """Send `n` spans; raise if one was not taken."""
    import httpx
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    memory = InMemorySpanExporter()
    provider = _provider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    _spans(provider, batch)
    body = encode_spans(memory.get_finished_spans()).SerializeToString()
    with httpx.Client(timeout=60) as client:
        for _ in range(n // batch):
            headers = {"content-type": "application/x-protobuf"}
            client.post(f"http://127.0.0.1:{port}/v1/traces", content=body, headers=headers).raise_for_status()
    return {}


def received(folder: Path, clients: int, n: int, batch: int) -> Figures:
    """Return the spans that a receiver takes in a second of its CPU, from several client processes."""
    port = _free_port()
    command = [sys.executable, "-m", "otledger", "receive", "--port", str(port), "--root", str(folder / "ledger")]
    environ = {**os.environ, "OTLEDGER_DURABILITY": "os", "OTLEDGER_MACHINE": MACHINE}
    receiver = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environ)
    try:
        _wait_until_open(port)
        before = _cpu_of(receiver.pid)
        arguments = [str(port), str(n), str(batch)]
        code = "import sys; from benchmarks.telemetry import sent_to; sent_to(*map(int, sys.argv[1:]))"
        children = [subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=REPOSITORY) for _ in range(clients)]
        if any(child.wait() for child in children):
            raise RuntimeError("a client failed")
        return {"rate": clients * (n // batch * batch) / (_cpu_of(receiver.pid) - before)}
    finally:
        receiver.kill()
        receiver.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_until_open(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise RuntimeError("the receiver did not start")


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sdk(bench: Bench) -> list[Measurement]:
    """Compare SDK spans into the ledger with the SDK's batch processor."""
    contenders = {
        "ledger": bench.fresh(ledger_cpu, n=30_000),
        "null": bench.fresh(batch_cpu, n=30_000, console=False),
        "console": bench.fresh(batch_cpu, n=10_000, console=True),
    }
    rounds = bench.interleave(contenders)

    def note(other: str) -> str:
        return f"{rounds.median('ledger', 'cpu_us'):.1f} µs against {rounds.median(other, 'cpu_us'):.1f} µs"

    return [
        judged(
            "CPU of an SDK span into the ledger against batch + null exporter",
            "x",
            partial(rounds.ratio, ("ledger", "cpu_us"), ("null", "cpu_us")),
            at_most(1.5),
            partial(note, "null"),
        ),
        judged(
            "batch + console exporter to a file against an SDK span into the ledger, CPU",
            "x",
            partial(rounds.ratio, ("console", "cpu_us"), ("ledger", "cpu_us")),
            at_least(3),
            partial(note, "console"),
        ),
    ]


def lost(bench: Bench) -> list[Measurement]:
    """Count the spans that a tight loop loses at the defaults."""
    names = {"otledger": ledger_lost, "the SDK's batch processor, into a file": batch_lost}
    rounds = bench.interleave(
        {name: bench.fresh(contender, n=100_000) for name, contender in names.items()}, warm_up=False
    )
    return [
        judged(
            f"spans lost of 100,000 in a tight loop, {name}",
            "",
            partial(rounds.spread, name, "lost"),
            at_most(0) if name == "otledger" else None,
        )
        for name in names
    ]


def replay(bench: Bench) -> list[Measurement]:
    """Compare a replay with sending the same spans from memory."""
    rounds = bench.interleave(
        {
            "replay": bench.fresh(replayed, n=50_000, batch=512),
            "memory": bench.fresh(sent_from_memory, n=50_000, batch=512),
        }
    )
    return [
        judged(
            "replay over HTTP against encoding and sending from memory",
            "x",
            partial(rounds.ratio, ("replay", "rate"), ("memory", "rate")),
            at_least(0.6),
            partial(rounds.rates, "replay", "memory"),
        )
    ]


def receive(bench: Bench) -> list[Measurement]:
    """Measure what a receiver takes in a second of its CPU."""
    rounds = bench.interleave({"receive": bench.fresh(received, clients=4, n=51_200, batch=512)}, warm_up=False)
    return [
        judged(
            "receive: spans a second of its CPU, four clients, batches of 512",
            "/s",
            partial(rounds.spread, "receive", "rate"),
            at_least(25_000),
        )
    ]
