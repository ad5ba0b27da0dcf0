"""Settings: arguments, then the environment, then defaults; what is not allowed; names; what importing loads."""

import dataclasses
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import otledger
from otledger.config import MACHINE, Config
from otledger.core import resource_attributes
from otledger.errors import ConfigurationError
from otledger.identity import valid_machine
from tests.conftest import Script

SETTINGS: dict[str, tuple[Any, str, Any, Any]] = {
    # name: (default, text in the environment, what it means, another value for the argument)
    "root": (Path("ledger"), "from-environment", Path("from-environment"), Path("argument")),
    "machine": (None, "from-environment", "from-environment", "argument"),
    "service": (None, "from environment", "from environment", "argument"),
    "durability": ("disk", "os", "os", "disk"),
    "flush_interval": (0.05, "0.5", 0.5, 0.25),
    "sync_interval": (1.0, "2", 2.0, 3.0),
    "queue_records": (50_000, "7", 7, 8),
    "queue_bytes": (16 << 20, "1000", 1000, 2000),
    "queue_policy": ("wait", "drop", "drop", "raise"),
    "queue_timeout": (30.0, "1.5", 1.5, 2.5),
    "lock_timeout": (10.0, "0", 0.0, 4.0),
    "min_free": (64 << 20, "0", 0, 1),
    "max_segment": (1 << 30, "5000", 5000, 6000),
    "checkpoint_interval": (1.0, "0.1", 0.1, 0.2),
    "file_mode": (0o600, "640", 0o640, 0o660),
    "check": ("tail", "full", "full", "tail"),
    "strict": (False, "yes", True, False),
    "raise_errors": (False, "1", True, False),
    "forward": (True, "no", False, True),
    "keys": (None, "/k", Path("/k"), Path("/other")),
    "heartbeat_interval": (600.0, "60", 60.0, 30.0),
    "force": (False, "true", True, False),
}


def test_every_setting_is_in_the_table() -> None:
    assert {field.name for field in dataclasses.fields(Config)} == {*SETTINGS, "processors", "schemas"}


def test_a_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config.resolve({}).root = Path("x")  # type: ignore[misc]


@pytest.mark.parametrize("name", SETTINGS)
def test_arguments_count_before_the_environment_and_that_before_defaults(name: str) -> None:
    default, text, meant, given = SETTINGS[name]
    variable = {f"OTLEDGER_{name.upper()}": text}
    if default is not None:
        assert getattr(Config.resolve({}), name) == default
        assert getattr(Config.resolve({f"OTLEDGER_{name.upper()}": ""}), name) == default
    assert getattr(Config.resolve(variable), name) == meant
    assert meant != given
    assert getattr(Config.resolve(variable, **{name: given}), name) == given
    assert type(getattr(Config.resolve(variable), name)) is type(getattr(Config.resolve({}), name))
    if name != "check":
        assert getattr(Config.resolve(variable, **{name: None}), name) == meant


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_through_every_door(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, text, meant, given = SETTINGS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(f"OTLEDGER_{name.upper()}", text)

    def found(**options: Any) -> list[Any]:
        with otledger.open_sync(**options) as sync:
            configs = [otledger.open(**options).config, sync.config, otledger.Journal(**options).config]
        return [getattr(config, name) for config in configs]

    assert found() == [meant] * 3
    assert found(**{name: given}) == [given] * 3


def test_no_check_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTLEDGER_CHECK", "full")
    assert otledger.open(check=None).config.check is None
    monkeypatch.setenv("OTLEDGER_CHECK", "none")
    assert otledger.open().config.check is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("flush_interval", "soon"),
        ("queue_records", "7.5"),
        ("queue_records", "many"),
        ("min_free", "64M"),
        ("file_mode", "rw"),
        ("file_mode", "999"),
        ("strict", "maybe"),
    ],
)
def test_a_variable_that_cannot_be_read(name: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"OTLEDGER_{name.upper()}='{text}' cannot be read"):
        Config.resolve({f"OTLEDGER_{name.upper()}": text})


BAD: list[tuple[str, Any, str]] = [
    ("durability", "memory", "allowed are 'disk', 'os'"),
    ("durability", "DISK", "allowed are 'disk', 'os'"),
    ("queue_policy", "block", "allowed are 'wait', 'raise', 'drop'"),
    ("check", "some", "allowed are 'tail', 'full', None"),
    *((name, -1, f"{name} is -1; it must be a number of at least 0") for name in ("flush_interval", "queue_timeout")),
    *((name, float("nan"), f"{name} is nan") for name in ("flush_interval", "lock_timeout", "sync_interval")),
    *((name, "1", f"{name} is '1'") for name in ("flush_interval", "queue_records", "max_segment")),
    *((name, 0, f"{name} is 0; it must be a number of at least 1") for name in ("queue_records", "queue_bytes")),
    ("max_segment", 0, "at least 1"),
    ("min_free", -1, "at least 0"),
    ("queue_records", 1.5, "queue_records is 1.5"),
    ("queue_records", True, "queue_records is True"),
    ("checkpoint_interval", None.__class__, "checkpoint_interval is"),
    ("file_mode", 0o666, "file_mode is 0o666; allowed are 0o600"),
    ("file_mode", 0o400, "file_mode is 0o400"),
    ("file_mode", 0o700, "file_mode is 0o700"),
    ("machine", "../x", "no valid name"),
    ("machine", "Upper", "no valid name"),
    ("machine", 7, "no valid name"),
    ("processors", [7], "must be callable"),
]


@pytest.mark.parametrize(("name", "value", "says"), BAD)
def test_a_value_that_is_not_allowed(tmp_path: Path, name: str, value: Any, says: str) -> None:
    doors = (otledger.open, otledger.open_sync, otledger.Journal)
    for door in doors:
        with pytest.raises(ConfigurationError, match=says) as caught:
            door(tmp_path / "ledger", **{name: value})
        assert isinstance(caught.value, ValueError)
    assert list(tmp_path.iterdir()) == []


def test_a_processor_that_is_not_in_a_list(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="processors"):
        otledger.open(tmp_path / "ledger", processors=otledger.redact(keys=["x"]))  # type: ignore[arg-type]


def test_an_interval_without_end_is_refused_or_works(tmp_path: Path) -> None:
    for value in (float("inf"), 1e12):
        try:
            ledger = otledger.open_sync(
                tmp_path / str(value), flush_interval=value, sync_interval=value, durability="os", machine="m1"
            )
        except ConfigurationError:
            continue
        with ledger:
            ledger.emit("a")
            assert ledger.append("b", timeout=5)
        text = b"".join(path.read_bytes() for path in (tmp_path / str(value) / "m1").glob("*.jsonl"))
        assert b'"type":"a"' in text


def test_a_setting_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no setting 'flush'; there are: root, machine.*flush_interval"):
        otledger.open(tmp_path, flush=1)
    with pytest.raises(ConfigurationError, match="no setting"):
        otledger.open_sync(tmp_path, flush=1)


def test_the_root_may_be_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert otledger.open("~/ledger").config.root == tmp_path / "ledger"


# Names


def test_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/srv/shop/serve.py", "--port", "80"])
    assert Config.resolve({}).service == "serve"
    assert Config.resolve({"OTEL_SERVICE_NAME": "otel"}).service == "otel"
    assert Config.resolve({"OTEL_SERVICE_NAME": "otel", "OTLEDGER_SERVICE": "own"}).service == "own"
    assert Config.resolve({"OTEL_SERVICE_NAME": "otel", "OTLEDGER_SERVICE": "own"}, service="arg").service == "arg"


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["/usr/bin/shop"], "shop"),
        (["serve.py"], "serve"),
        (["/x/package/__main__.py"], "package"),
        ([""], "python"),
        (["-c"], "python"),
        ([], "python"),
    ],
)
def test_the_programs_name(monkeypatch: pytest.MonkeyPatch, argv: list[str], name: str) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert Config.resolve({}).service == name


@pytest.mark.parametrize("service", ["a\nb", "x" * 1025])
def test_a_service_that_cannot_be_part_of_a_source(tmp_path: Path, service: str) -> None:
    with pytest.raises(ValueError, match="service"):
        otledger.open_sync(tmp_path / "ledger", service=service)


def test_the_machine_is_the_hosts_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Web_01.Example.org")
    assert Config.resolve({}).machine == "web_01"
    monkeypatch.setattr(socket, "gethostname", lambda: "")
    assert MACHINE.fullmatch(Config.resolve({}).machine)


@given(st.text(max_size=100) | st.from_regex(r"[A-Za-z0-9._-]{0,80}", fullmatch=True))
def test_every_hosts_name_is_made_valid(name: str) -> None:
    made = valid_machine(name)
    assert MACHINE.fullmatch(made)
    assert ".." not in made
    if MACHINE.fullmatch(name) and ".." not in name:
        assert made == name


def test_the_resource_of_a_process() -> None:
    attributes = resource_attributes("shop", {"OTEL_RESOURCE_ATTRIBUTES": "a=1, b = x%20y ,service.name=no,bad"})
    assert attributes["service.name"] == "shop"
    assert (attributes["a"], attributes["b"]) == ("1", "x y")
    assert attributes["process.pid"] == os.getpid()
    assert attributes["host.name"] == socket.gethostname()
    assert "bad" not in attributes


# What is loaded

HEAVY = ("opentelemetry.sdk", "typer", "click", "rich", "jsonschema", "pydantic", "duckdb", "cryptography", "aiofiles")


@pytest.mark.parametrize(
    "program",
    [
        "import otledger",
        "import otledger; [getattr(otledger, name) for name in otledger.__all__]",
        "import otledger; otledger.open_sync('l').close()",
        "import otledger\nwith otledger.open_sync('l') as l:\n    l.start_span('s').end()\n    l.append('a', {1: 2})",
        "import asyncio, otledger\nasync def main():\n    async with otledger.open('l') as l: await l.append('a')\n"
        "asyncio.run(main())",
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_used(script: Script, program: str) -> None:
    process = script(f"{program}\nimport sys\nprint(*sys.modules)")
    loaded = process.communicate(timeout=30)[0].split()
    assert process.returncode == 0
    assert "otledger" in loaded
    assert [name for name in loaded if name.startswith(HEAVY)] == []


def test_the_names_say_where_they_are_from() -> None:
    for name in otledger.__all__:
        if name != "__version__":
            assert getattr(otledger, name).__module__.startswith("otledger.")
    with pytest.raises(AttributeError, match="nothing"):
        otledger.nothing  # type: ignore[attr-defined] # noqa: B018
    assert set(otledger.__all__) <= set(dir(otledger))
