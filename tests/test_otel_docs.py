"""The code of docs/opentelemetry.md runs as it stands there, against a real server and a real endpoint."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import otledger
from otledger_opentelemetry import read_spans
from tests.test_otel_in import REPOSITORY, free_port, orders, wait_until_up
from tests.test_otel_out import Backend, span, store

PAGE = (REPOSITORY / "docs" / "opentelemetry.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
QUESTIONS = (
    "How do I switch it on?",
    "What is lost when?",
    "How do I get it into Jaeger or Tempo?",
    "How do I use it beside an existing exporter?",
)


def block(language: str, word: str) -> str:
    """The one block of a language that holds this word."""
    (found,) = [text for its, text in BLOCKS if its == language and word in text]
    return str(found)


class Shop:
    """A machine with the page's program `shop`, its ledger, and an endpoint where the page has one."""

    def __init__(self, folder: Path, backend: Backend) -> None:
        self.root = folder / "ledger"
        self._folder, self._backend = folder, backend
        self.port = free_port()
        shutil.copy(REPOSITORY / "tests" / "apps" / "web.py", folder / "shop.py")
        paths = [f"{folder}", *(path for path in sys.path if path)]
        self.environ = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(paths),
            "UVICORN_PORT": f"{self.port}",
            "UVICORN_LOG_LEVEL": "warning",
            "OTLEDGER_MACHINE": "m1",
        }

    def here(self, text: str) -> str:
        """The same for this machine."""
        return text.replace("/var/lib/shop", f"{self._folder}").replace("http://127.0.0.1:4318", self._backend.url)

    def shell(self, text: str) -> str:
        """Commands of the page, apart from what installs packages."""
        lines = [line for line in self.here(text).splitlines() if not line.startswith("pip install")]
        return "\n".join(["set -eu", *lines])

    def run(self, *command: str) -> None:
        done = subprocess.run(
            command, cwd=self._folder, env=self.environ, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr

    @contextlib.contextmanager
    def serving(self, text: str, **environ: str) -> Iterator[httpx.Client]:
        """Commands of the page whose last one is a server; it ends by SIGTERM."""
        command = ["bash", "-c", self.shell(text)]
        environ = {**self.environ, **environ}
        process = subprocess.Popen(command, cwd=self._folder, env=environ, start_new_session=True)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20) as client:
                wait_until_up(client, process)
                yield client
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def names(self) -> list[str]:
        return [span.name for span in read_spans(self.root)]


@pytest.fixture
def backend() -> Iterator[Backend]:
    backend = Backend()
    yield backend
    backend.close()


@pytest.fixture
def shop(tmp_path: Path, backend: Backend) -> Shop:
    return Shop(tmp_path, backend)


@pytest.fixture
def filled(shop: Shop) -> Shop:
    """With a ledger that holds spans."""
    store(shop.root, [span(1), span(2)])
    return shop


def switched_on(shop: Shop, text: str, **environ: str) -> None:
    with shop.serving(text, **environ) as client:
        ids = orders(client, 3)
    stored = {record.span_id for record in otledger.Reader(shop.root).records()}
    assert set(ids) <= stored
    assert shop.names().count("charge") == shop.names().count("GET /orders/{number}") == 3


def test_by_environment_variable(shop: Shop) -> None:
    switched_on(shop, block("sh", "--workers"))


def test_by_flags(shop: Shop) -> None:
    switched_on(shop, block("sh", "--otledger_durability"))


def test_by_configuration_file(shop: Shop, tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.configuration")
    file = tmp_path / "otel.yaml"
    file.write_text(shop.here(block("yaml", "file_format")))
    switched_on(shop, "opentelemetry-instrument uvicorn shop:app", OTEL_CONFIG_FILE=f"{file}")


MORE = """
with provider.get_tracer("t").start_as_current_span("a"):
    pass
provider.shutdown()
"""


def test_in_code(shop: Shop) -> None:
    shop.run(sys.executable, "-c", block("python", "set_tracer_provider") + MORE)
    assert shop.names() == ["a"]


def test_into_jaeger_or_tempo(filled: Shop, backend: Backend) -> None:
    filled.run("bash", "-c", filled.shell(block("sh", "they take no logs")))
    assert backend.numbers() == [1, 2]


def test_what_went_wrong_and_what_is_new(filled: Shop, backend: Backend, tmp_path: Path) -> None:
    text = filled.shell(block("sh", "--cursor"))
    for _ in range(2):
        filled.run("bash", "-c", text)
    # By the cursor once; the spans are old, and no errors.
    assert backend.numbers() == [1, 2]
    assert (tmp_path / "replay.cursor").exists()


def test_into_files(filled: Shop, tmp_path: Path) -> None:
    filled.run("bash", "-c", filled.shell(block("sh", "chrome-trace")))
    assert all((tmp_path / name).stat().st_size > 100 for name in ("spans.jsonl", "trace.json"))


def test_replay_in_python(filled: Shop) -> None:
    filled.run(sys.executable, "-c", block("python", "report = replay") + "\nassert report.spans == 2")


def test_beside_an_exporter_by_the_list(shop: Shop, backend: Backend) -> None:
    with shop.serving(block("sh", "otledger,otlp"), OTEL_BSP_SCHEDULE_DELAY="50") as client:
        orders(client, 3)
        # The SDK's batch processor loses what it holds on SIGTERM.
        deadline = time.monotonic() + 30
        while b"".join(backend.bodies["/v1/traces"]).count(b"charge") < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert shop.names().count("charge") == 3


def test_beside_an_exporter_in_code(shop: Shop, backend: Backend) -> None:
    shop.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = backend.url
    shop.run(sys.executable, "-c", block("python", "BatchSpanProcessor") + MORE)
    assert (shop.names(), len(backend.numbers())) == (["a"], 1)


def test_receive_and_import(filled: Shop, tmp_path: Path) -> None:
    filled.run("bash", "-c", f"otledger replay --root ledger --no-logs --to {tmp_path}/traces.jsonl")
    shutil.rmtree(filled.root)
    filled.run("bash", "-c", filled.shell(block("sh", "import otlp")))
    assert filled.names() == ["span 1", "span 2"]
    command = [*filled.here(block("sh", "otledger receive")).split(), "--port", "0"]
    process = subprocess.Popen(command, env=filled.environ, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process:
        url = process.stderr.readline().split(" at ")[1].split()[0]
        body = b'{"resourceSpans": []}'
        answer = httpx.post(f"{url}/v1/traces", content=body, headers={"content-type": "application/json"})
        process.terminate()
    assert answer.status_code == 200


def test_the_page_answers_the_questions_and_each_of_its_blocks_is_run() -> None:
    titles = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert titles[: len(QUESTIONS)] == list(QUESTIONS)
    tests = Path(__file__).read_text()
    asked = re.findall(r'block\("(\w+)", "([^"]+)"\)', tests)
    assert set(BLOCKS) == {(its, block(its, word)) for its, word in asked}
