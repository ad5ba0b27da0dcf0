"""The SDK's configuration file: exporters with settings, and the instrumentor that installs the processor."""

import signal
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import otledger
from otledger_opentelemetry import read_logs
from tests.test_otel_in import VIA_ENVIRONMENT, expect_requests, orders, program, sane, serving, spans_of, unfinished

pytest.importorskip("opentelemetry.configuration")

RECORDING = """
    instrumentation/development:
      python:
        otledger: {settings}
        fastapi: {{}}
"""
# With no propagator the official instrumentation of FastAPI fails: the empty one extracts None as context.
EXPORTERS = """
    file_format: "1.0"
    propagator: {{composite: [{{tracecontext: {{}}}}]}}
    resource: {{attributes: [{{name: service.name, value: shop}}]}}
    tracer_provider: {{processors: [{{batch: {{exporter: {{otledger: {settings}}}}}}}]}}
    logger_provider: {{processors: [{{batch: {{exporter: {{otledger: {settings}}}}}}}]}}
    meter_provider: {{readers: [{{periodic: {{exporter: {{otledger: {settings}}}}}}}]}}
"""
NO_EXPORTER = """
    file_format: "1.0"
    propagator: {{composite: [{{tracecontext: {{}}}}]}}
    tracer_provider: {{processors: [{{batch: {{exporter: {{console: {{}}}}}}}}]}}
"""


def configured(tmp_path: Path, *parts: str, **settings: Any) -> dict[str, str]:
    """The environment of a program that is configured by a file of these parts."""
    given = "{" + ", ".join(f"{name}: {value}" for name, value in settings.items()) + "}"
    file = tmp_path / "otel.yaml"
    file.write_text("".join(textwrap.dedent(part) for part in parts).format(settings=given))
    return {"OTEL_CONFIG_FILE": f"{file}"}


def written(root: Path) -> Counter[str]:
    return Counter(record.type for record in otledger.Reader(root).records())


@pytest.mark.parametrize("exporters", [EXPORTERS, NO_EXPORTER], ids=["exporter", "no exporter"])
def test_a_server_with_the_recording_processor(root: Path, tmp_path: Path, exporters: str) -> None:
    environ = configured(tmp_path, exporters, RECORDING, root=root, machine="m1", flush_interval=0.02)
    with serving(root, before=VIA_ENVIRONMENT, **environ) as (client, process):
        ids = orders(client, 5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM)
    expect_requests(root, ids)


def test_the_processor_shows_open_spans_of_a_killed_server(root: Path, tmp_path: Path) -> None:
    environ = configured(tmp_path, NO_EXPORTER, RECORDING, root=root, machine="m1", flush_interval=0.01)
    with serving(root, before=VIA_ENVIRONMENT, **environ) as (client, process):
        done = orders(client, 1)
        with pytest.raises(Exception, match="timed out"):
            client.get("/orders/9?wait=30", timeout=1.0)
        process.kill()
        process.wait()
    assert set(done) <= set(spans_of(root))
    assert "charge" in {span.name for span in unfinished(root)}
    sane(root)


def test_a_server_with_the_exporters_alone(root: Path, tmp_path: Path) -> None:
    environ = configured(tmp_path, EXPORTERS, root=root, machine="m1")
    with serving(root, before=VIA_ENVIRONMENT, **environ) as (client, process):
        ids = orders(client, 5)
        # The batch processor loses what it holds at SIGTERM; at the end of the program it hands that over.
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in (0, -signal.SIGINT)
    expect_requests(root, ids)


SOURCE = """
from opentelemetry import _logs, metrics, trace
with trace.get_tracer("t").start_as_current_span("a"):
    _logs.get_logger("l").emit(_logs.LogRecord(body="hello"))
metrics.get_meter("m").create_counter("c").add(3)
"""
START = "from opentelemetry.instrumentation.auto_instrumentation import initialize; initialize()\n"


@pytest.mark.parametrize("more", [(), (RECORDING.replace("    fastapi: {{}}\n", ""),)], ids=["exporters", "processor"])
def test_the_last_batch_of_every_signal_is_stored_once(root: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    environ = configured(tmp_path, EXPORTERS, *more, root=root, machine="m1")
    done = program(START + SOURCE, root, **environ)
    assert done.returncode == 0, done.stderr
    assert "after shutdown" not in done.stderr
    counted = written(root)
    assert (counted["otel.span.end"], counted["otel.log"], counted["otel.metrics"]) == (1, 1, 1)
    assert [log.log_record.body for log in read_logs(root)] == ["hello"]
    sane(root)


def test_a_wrong_setting_is_named(root: Path, tmp_path: Path) -> None:
    environ = configured(tmp_path, EXPORTERS, root=root, durability="sometimes")
    done = program(START + SOURCE, root, **environ)
    assert "durability" in done.stderr
    assert not root.exists()
