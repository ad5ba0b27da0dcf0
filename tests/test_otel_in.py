"""The OpenTelemetry SDK writes into the ledger: the three ways to switch it on, and what is lost when."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

import otledger
from otledger.identity import boot_id, process_state
from otledger.record import ipc_hash
from otledger.replay import Replay
from otledger_opentelemetry import LedgerSpanExporter, LedgerSpanProcessor, read_logs, read_spans
from tests.checker import check

REPOSITORY = Path(__file__).parents[1]
VIA_ENVIRONMENT = ("opentelemetry-instrument",)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


UVICORN = ("uvicorn", "tests.apps.web:app", "--port={port}", "--log-level=warning")


@contextlib.contextmanager
def serving(
    root: Path, *, before: tuple[str, ...] = (), server: tuple[str, ...] = UVICORN, **environ: str
) -> Iterator[tuple[httpx.Client, Any]]:
    """A real server of tests/apps/web.py, and a client."""
    port = free_port()
    # Without its own handlers uvicorn leaves SIGTERM to whoever handles it.
    python = () if before else (sys.executable, "-m")
    command = [word.format(port=port) for word in (*before, *python, *server)]
    bin = str(Path(sys.executable).parent)
    path = {"PATH": f"{bin}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": f"{REPOSITORY}"}
    process = subprocess.Popen(
        command,
        env={**os.environ, **path, "OTEL_OTLEDGER_MACHINE": "m1", **environ},
        cwd=REPOSITORY,
        start_new_session=True,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            wait_until_up(client, process)
            yield client, process
    finally:
        # With its workers.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_up(client: httpx.Client, process: Any) -> None:
    for _ in range(400):
        assert process.poll() is None, "the server ended"
        with contextlib.suppress(httpx.HTTPError):
            client.get("/openapi.json")
            return
        time.sleep(0.05)
    raise AssertionError("the server does not answer")


def spans_of(root: Path) -> dict[str, Any]:
    """The ended spans by their ids; none twice."""
    ends = [record for record in otledger.Reader(root).records() if record.type == "otel.span.end"]
    found = {f"{record.span_id}": record for record in ends}
    assert len(found) == len(ends), "a span is stored twice"
    return found


def sane(root: Path) -> None:
    check(root / "m1")
    assert otledger.verify(root, processes=1, deep=True).status in (otledger.Status.OK, otledger.Status.RECOVERED)


def orders(client: httpx.Client, count: int) -> list[str]:
    return [client.get(f"/orders/{number}").json()["span_id"] for number in range(count)]


def expect_requests(root: Path, ids: list[str]) -> None:
    stored = spans_of(root)
    assert set(ids) <= set(stored)
    charge = stored[ids[0]].data
    server = stored[charge["parent_span_id"]].data
    assert (server["name"], server["kind"]) == ("GET /orders/{number}", "SERVER")
    names = [span.name for span in read_spans(root)]
    assert names.count("charge") == names.count("GET /orders/{number}") == len(ids)
    sane(root)


def test_by_environment_variables(root: Path) -> None:
    environ = {"OTEL_TRACES_EXPORTER": "otledger", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    with serving(root, before=VIA_ENVIRONMENT, OTEL_OTLEDGER_ROOT=str(root), **environ) as (client, process):
        ids = orders(client, 5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM)
    expect_requests(root, ids)


def test_by_flags(root: Path) -> None:
    flags = (*VIA_ENVIRONMENT, "--traces_exporter=otledger", "--metrics_exporter=none", "--logs_exporter=none")
    with serving(root, before=(*flags, f"--otledger_root={root}")) as (client, process):
        ids = orders(client, 3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM)
    expect_requests(root, ids)


def test_nothing_is_done_unless_asked_for(root: Path, tmp_path: Path) -> None:
    environ = {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    with serving(root, before=VIA_ENVIRONMENT, OTLEDGER_ROOT=str(root), **environ) as (client, _):
        orders(client, 1)
    assert not root.exists()


def test_sigkill_loses_at_most_the_last_flush_interval(root: Path) -> None:
    environ = {"OTEL_TRACES_EXPORTER": "otledger", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    with serving(root, before=VIA_ENVIRONMENT, OTEL_OTLEDGER_ROOT=str(root), **environ) as (client, process):
        early = orders(client, 5)
        with httpx.Client(base_url=client.base_url, timeout=30) as other:
            waiting = threading.Thread(target=lambda: _ignore(lambda: other.get("/orders/99?wait=30")))
            waiting.start()
            time.sleep(1.0)
            state = {span.name: process_state(span.process, boot_id()) for span in unfinished(root)}
            assert state["charge"] == "running"
            process.kill()
            process.wait()
            waiting.join()
    assert set(early) <= set(spans_of(root))
    left = {span.name: process_state(span.process, boot_id()) for span in unfinished(root)}
    assert left["charge"] == "died"
    sane(root)
    marked = [span for span in read_spans(root, unfinished=True) if "otledger.unfinished" in span.attributes]
    assert {"charge", "GET /orders/{number}"} <= {span.name for span in marked}


def _ignore(call: Any) -> None:
    with contextlib.suppress(httpx.HTTPError):
        call()


def unfinished(root: Path) -> Any:
    replay = Replay()
    for record in otledger.Reader(root).records():
        replay.feed(record)
    return replay.unfinished()


def run(root: Path, *command: object, **environ: str) -> subprocess.CompletedProcess[str]:
    """A program that is told by variables where the ledger is."""
    return subprocess.run(
        [str(word) for word in command],
        env={**os.environ, "OTEL_OTLEDGER_ROOT": str(root), "OTEL_OTLEDGER_MACHINE": "m1", **environ},
        capture_output=True,
        text=True,
        timeout=90,
    )


def program(source: str, root: Path, *arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    """The same of Python's, by its source."""
    return run(root, sys.executable, "-c", source, *arguments, **environ)


PROVIDER = """if True:
    import multiprocessing, os, signal, sys, time
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from otledger_opentelemetry import LedgerSpanProcessor
    provider = TracerProvider()
    LedgerSpanProcessor.install(provider)
    trace.set_tracer_provider(provider)
    tracer = trace.get_tracer("t")
    def work(name, count=100):
        for _ in range(count):
            with tracer.start_as_current_span(name):
                pass
"""

ENDS = {
    "sys.exit(3)": (3, 100),
    "raise RuntimeError('no')": (1, 100),
    "os.kill(os.getpid(), signal.SIGTERM); time.sleep(20)": (-signal.SIGTERM, 100),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_ended_is_stored_however_the_program_ends(root: Path, end: str) -> None:
    done = program(f"{PROVIDER}\n    work('a')\n    {end}", root)
    code, count = ENDS[end]
    assert (done.returncode, len(spans_of(root))) == (code, count), done.stderr
    sane(root)


def test_sigterm_is_left_alone_where_that_is_wanted_or_somebody_handles_it(root: Path) -> None:
    show = "print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
    assert program(f"{PROVIDER}\n    {show}", root).stdout == "False\n"
    assert program(f"{PROVIDER}\n    {show}", root, OTEL_OTLEDGER_SIGTERM="false").stdout == "True\n"
    handled = PROVIDER.replace("provider =", "signal.signal(signal.SIGTERM, print); provider =", 1)
    assert program(f"{handled}\n    print(signal.getsignal(signal.SIGTERM) is print)", root).stdout == "True\n"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_of_multiprocessing_lose_nothing(root: Path, tmp_path: Path, method: str) -> None:
    script = tmp_path / "program.py"
    body = PROVIDER.replace("if True:\n", "", 1).replace("\n    ", "\n").strip()
    script.write_text(
        f"{body}\n"
        f"if __name__ == '__main__':\n"
        f"    work('parent')\n"
        f"    context = multiprocessing.get_context('{method}')\n"
        "    children = [context.Process(target=work, args=('child',)) for _ in range(3)]\n"
        "    [child.start() for child in children]\n"
        "    [child.join() for child in children]\n"
        "    assert not any(child.exitcode for child in children)\n"
    )
    done = run(root, sys.executable, script)
    assert (done.returncode, done.stderr) == (0, "")
    names = [record.data["name"] for record in spans_of(root).values()]
    assert (names.count("parent"), names.count("child")) == (100, 300)
    list(read_spans(root))
    sane(root)


def test_one_recorder_a_provider(root: Path) -> None:
    settings: dict[str, Any] = {"root": root, "machine": "m1", "min_free": 0}
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(LedgerSpanExporter(**settings)))
    provider.add_span_processor(BatchSpanProcessor(LedgerSpanExporter(**settings)))
    one = LedgerSpanProcessor.install(provider, **settings)
    assert LedgerSpanProcessor.install(provider, **settings) is one
    with provider.get_tracer("t").start_as_current_span("a"):
        pass
    provider.shutdown()
    assert len(spans_of(root)) == 1
    sane(root)


def test_100_000_spans_in_a_tight_loop_are_all_stored(root: Path) -> None:
    provider = TracerProvider()
    LedgerSpanProcessor.install(provider, root=root, machine="m1", min_free=0)
    tracer = provider.get_tracer("t")
    for _ in range(100_000):
        with tracer.start_as_current_span("a"):
            pass
    provider.shutdown()
    assert len(spans_of(root)) == 100_000


async def test_sdk_spans_and_ledger_spans_are_one_trace_and_belong_to_the_turn(root: Path) -> None:
    provider = TracerProvider()
    async with otledger.open(root, machine="m1", min_free=0) as ledger:
        LedgerSpanProcessor.install(provider, root=root, machine="m1")
        tracer = provider.get_tracer("t")
        async with ledger.turn(ipc_hash({"a": 1})), ledger.span("outer") as outer:
            with tracer.start_as_current_span("middle"):
                async with ledger.span("inner"):
                    await ledger.emit("a.b")
        await ledger.flush()
        provider.shutdown()
    records = {record.data["name"]: record for record in spans_of(root).values()}
    assert {record.trace_id for record in records.values()} == {outer.trace_id}
    assert records["middle"].data["parent_span_id"] == records["outer"].span_id
    assert records["inner"].data["parent_span_id"] == records["middle"].span_id
    assert {record.ipc_hash for record in records.values()} == {ipc_hash({"a": 1})}
    sane(root)


def test_logs_by_environment(root: Path) -> None:
    source = """if True:
        import logging
        logging.getLogger("shop").warning("sold %d", 3)
    """
    environ = {"OTEL_TRACES_EXPORTER": "otledger", "OTEL_LOGS_EXPORTER": "otledger", "OTEL_METRICS_EXPORTER": "none"}
    more = {"OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED": "true"}
    instrument = Path(sys.executable).with_name("opentelemetry-instrument")
    done = run(root, instrument, sys.executable, "-c", source, **environ, **more)
    assert done.returncode == 0, done.stderr
    assert "sold 3" in [log.log_record.body for log in read_logs(root)]
    sane(root)


HANDED_ON = """if True:
    import asyncio, sys
    import otledger
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
    from otledger_opentelemetry import LedgerSpanExporter, LedgerSpanProcessor
    memory = InMemorySpanExporter()
    provider = TracerProvider(sampler=TraceIdRatioBased(float(sys.argv[1])))
    provider.add_span_processor(SimpleSpanProcessor(memory))
    provider.add_span_processor(SimpleSpanProcessor(LedgerSpanExporter()))
    LedgerSpanProcessor.install(provider)
    trace.set_tracer_provider(provider)
    async def main():
        async with otledger.open(sys.argv[2], machine="m1", forward=sys.argv[3] == "yes") as ledger:
            for _ in range(50):
                async with ledger.span("outer", attributes={"a": 1}) as outer:
                    outer.add_event("e", {"k": 2})
                    with trace.get_tracer("t").start_as_current_span("inner"):
                        pass
    asyncio.run(main())
    provider.shutdown()
    spans = memory.get_finished_spans()
    ids = {span.context.span_id for span in spans}
    orphans = [span for span in spans if span.parent is not None and span.parent.span_id not in ids]
    print(len(spans), len(orphans), sum(span.name == "outer" and span.events[0].attributes["k"] == 2 for span in spans))
"""


@pytest.mark.parametrize(
    ("ratio", "forward", "expected"), [("1", "yes", "100 0 50"), ("0", "yes", "0 0 0"), ("1", "no", "50 50 0")]
)
def test_the_providers_sampler_decides_and_its_other_processors_get_spans_of_the_ledger(
    root: Path, ratio: str, forward: str, expected: str
) -> None:
    done = program(HANDED_ON, root, ratio, root, forward)
    assert (done.stdout.strip(), done.stderr) == (expected, "")
    stored = spans_of(root)
    names = [record.data["name"] for record in stored.values()]
    # The ledger records its own either way; what the SDK's sampler drops is never seen.
    assert (names.count("outer"), names.count("inner")) == (50, 50 if ratio == "1" else 0)
    assert {record.traceparent[-2:] for record in stored.values() if record.traceparent} == {f"0{ratio}"}
    assert len(list(read_spans(root))) == (100 if ratio == "1" else 0)
    sane(root)


def _load(client: httpx.Client, process: Any, number: signal.Signals, *, seconds: float) -> dict[str, float]:
    """Send requests from eight threads, kill the server in the middle. Gives the spans that the client was told of,
    each with how long before the kill that was."""
    told: dict[str, float] = {}
    stopping = threading.Event()

    def run() -> None:
        with httpx.Client(base_url=client.base_url, timeout=10) as own, contextlib.suppress(httpx.HTTPError):
            while not stopping.is_set():
                answer = own.get("/orders/1")
                if answer.status_code == 200:
                    told[answer.json()["span_id"]] = time.monotonic()

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    process.send_signal(number)
    killed = time.monotonic()
    process.wait(30)
    stopping.set()
    for thread in threads:
        thread.join()
    return {span: killed - when for span, when in told.items()}


def test_a_server_killed_under_load_accounts_for_each_span(root: Path) -> None:
    environ = {"OTEL_TRACES_EXPORTER": "otledger", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    settings = {**environ, "OTEL_OTLEDGER_ROOT": str(root), "OTEL_OTLEDGER_FLUSH_INTERVAL": "0.05"}
    with serving(root, before=VIA_ENVIRONMENT, **settings) as (client, process):
        told = _load(client, process, signal.SIGTERM, seconds=1.5)
    assert len(told) > 50
    assert set(told) <= set(spans_of(root))
    sane(root)
    with serving(root, before=VIA_ENVIRONMENT, **settings) as (client, process):
        told = _load(client, process, signal.SIGKILL, seconds=1.5)
    open_ones = {span.span_id for span in unfinished(root)}
    missing = set(told) - set(spans_of(root)) - open_ones
    assert len(told) > 50
    # The last flush interval, and as long again as a busy machine may take to run a thread.
    assert all(told[span] < 0.05 + 0.5 for span in missing)
    sane(root)


SAMPLED = """if True:
    import otledger, sys
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
    from opentelemetry.trace.span import TraceState
    class Own(Sampler):
        def should_sample(self, context, trace_id, name, kind=None, attributes=None, links=None, state=None):
            if name == "broken":
                raise RuntimeError("no")
            added = {**attributes, "sampler": "own"}
            return SamplingResult(Decision.RECORD_AND_SAMPLE, added, TraceState([("ot", "th:0")]))
        def get_description(self):
            return "own"
    trace.set_tracer_provider(TracerProvider(sampler=Own()))
    with otledger.open_sync(sys.argv[1], machine="m1") as ledger:
        with ledger.span("whole", attributes={"a": 1}), ledger.span("below"):
            pass
        with ledger.span("broken"):
            pass
"""


def test_what_a_sampler_adds_is_recorded(root: Path) -> None:
    done = program(SAMPLED, root, root)
    assert done.returncode == 0, done.stderr
    stored = {record.data["name"]: record for record in spans_of(root).values()}
    assert stored["whole"].data["attributes"] == {"a": 1, "sampler": "own"}
    assert "attributes" not in stored["below"].data
    assert (stored["whole"].tracestate, stored["below"].tracestate) == ("ot=th:0", "ot=th:0")
    assert stored["broken"].traceparent.endswith("-01")
    sane(root)
