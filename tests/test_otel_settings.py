"""The settings of the exporters: which variable counts before which, and that all of them are flags as well."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import otledger
from otledger.config import Config
from otledger.errors import ConfigurationError
from otledger_opentelemetry import LedgerSpanExporter, environment
from otledger_opentelemetry.settings import resolve
from tests.test_otel_in import VIA_ENVIRONMENT

OF_CODE = {"check", "raise_errors", "forward", "processors", "schemas"}
"""What only a program that opens a ledger itself can be told."""

# For each setting two texts, and what they mean.
TEXTS: dict[str, tuple[tuple[str, Any], tuple[str, Any]]] = {
    "root": (("/a", Path("/a")), ("/b", Path("/b"))),
    "machine": (("m1", "m1"), ("m2", "m2")),
    "service": (("shop", "shop"), ("bank", "bank")),
    "durability": (("os", "os"), ("disk", "disk")),
    "flush_interval": (("0.2", 0.2), ("0.3", 0.3)),
    "sync_interval": (("5", 5.0), ("6", 6.0)),
    "queue_records": (("7", 7), ("8", 8)),
    "queue_bytes": (("7000", 7000), ("8000", 8000)),
    "queue_policy": (("drop", "drop"), ("wait", "wait")),
    "queue_timeout": (("1.5", 1.5), ("2.5", 2.5)),
    "lock_timeout": (("3.5", 3.5), ("4.5", 4.5)),
    "min_free": (("0", 0), ("9", 9)),
    "max_segment": (("100000", 100_000), ("200000", 200_000)),
    "checkpoint_interval": (("0.5", 0.5), ("0.6", 0.6)),
    "heartbeat_interval": (("60", 60.0), ("0", 0.0)),
    "keys": (("/k", Path("/k")), ("/other", Path("/other"))),
    "file_mode": (("640", 0o640), ("600", 0o600)),
    "strict": (("true", True), ("false", False)),
    "force": (("yes", True), ("no", False)),
}


def test_each_setting_has_a_variable_that_is_a_flag() -> None:
    settings = set(Config.__dataclass_fields__) - OF_CODE
    assert set(TEXTS) == settings
    names = {name: value for name, value in vars(environment).items() if name.startswith("OTEL_")}
    assert all(name == value for name, value in names.items())
    assert set(names) == {f"OTEL_OTLEDGER_{name.upper()}" for name in (*settings, "sigterm")}


@pytest.mark.parametrize("name", TEXTS)
def test_arguments_then_our_variables_then_those_of_the_ledger(name: str) -> None:
    (one, first), (other, second) = TEXTS[name]
    ours, theirs = f"OTEL_OTLEDGER_{name.upper()}", f"OTLEDGER_{name.upper()}"
    assert getattr(resolve({theirs: other}), name) == second
    assert getattr(resolve({ours: one, theirs: other}), name) == first
    assert getattr(resolve({ours: other, theirs: one}), name) == second
    assert getattr(resolve({ours: "", theirs: other}), name) == second
    assert getattr(resolve({ours: one, theirs: one}, **{name: second}), name) == second


def test_the_service_of_the_sdk_counts_last() -> None:
    assert resolve({"OTEL_SERVICE_NAME": "sdk"}).service == "sdk"
    assert resolve({"OTEL_SERVICE_NAME": "sdk", "OTLEDGER_SERVICE": "ours"}).service == "ours"


def test_the_sdk_makes_the_exporter_with_these_settings(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_OTLEDGER_ROOT", f"{root}")
    monkeypatch.setenv("OTLEDGER_ROOT", f"{root}-other")
    monkeypatch.setenv("OTEL_OTLEDGER_MACHINE", "m1")
    monkeypatch.setenv("OTEL_OTLEDGER_FILE_MODE", "640")
    exporter = LedgerSpanExporter()
    exporter.shutdown()
    assert otledger.Reader(root).machines() == ["m1"]
    assert {path.stat().st_mode & 0o777 for path in (root / "m1").glob("*.jsonl")} <= {0o640}
    assert not Path(f"{root}-other").exists()


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"OTEL_OTLEDGER_FLUSH_INTERVAL": "soon"}, "OTEL_OTLEDGER_FLUSH_INTERVAL='soon' cannot be read as float"),
        ({"OTLEDGER_FLUSH_INTERVAL": "soon"}, "OTLEDGER_FLUSH_INTERVAL='soon' cannot be read as float"),
        ({"OTEL_OTLEDGER_DURABILITY": "tape"}, "durability is 'tape'; allowed are 'disk', 'os'"),
    ],
)
def test_a_wrong_text_is_named_with_its_variable(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(environ)
    assert str(caught.value) == message


def test_all_flags() -> None:
    flags = [f"--otledger_{name}={text}" for name, ((text, _), _) in TEXTS.items()]
    source = """if True:
        from dataclasses import asdict
        from otledger_opentelemetry.settings import flag, resolve
        print(asdict(resolve()), flag("SIGTERM", True))
    """
    quiet = [f"--{signal}_exporter=none" for signal in ("traces", "logs", "metrics")]
    bin = str(Path(sys.executable).parent)
    environ = {**os.environ, "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}", "OTLEDGER_SERVICE": "another"}
    environ["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [*VIA_ENVIRONMENT, *quiet, *flags, "--otledger_sigterm=off", sys.executable, "-c", source],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for name, ((_, value), _) in TEXTS.items():
        assert f"{name!r}: {value!r}" in done.stdout
    assert done.stdout.endswith(" False\n")
