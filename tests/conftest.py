"""What the tests share: a root, a clean environment, the independent checker, system calls that hang, `--campaign`."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.checker import MACHINE, check, is_unchained

Records = dict[str, list[dict[str, Any]]]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--campaign long`: the fault campaign at its full length, which takes hours; CI runs the short one."""
    parser.addoption("--campaign", choices=("short", "long"), default="short", help="how long the fault campaign runs")


@pytest.fixture(scope="session")
def campaign(request: pytest.FixtureRequest) -> str:
    """How long the fault campaign runs: `short` or `long`."""
    return str(request.config.getoption("--campaign"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A ledger's root, not made yet."""
    return tmp_path / "ledger"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting comes from the environment in which the tests run."""
    for name in list(os.environ):
        if name.startswith(("OTLEDGER_", "OTEL_")):
            monkeypatch.delenv(name)


@pytest.fixture
def check_all() -> Callable[[Path], Records]:
    """Give the records of every partition under a root, by the independent checker.

    An AssertionError says what is wrong. Unchained partitions, which evledger wrote, are left out.
    """

    def check_every(root: Path) -> Records:
        folders = [path for path in sorted(root.iterdir()) if path.is_dir() and MACHINE.fullmatch(path.name)]
        assert folders, f"{root} has no partition"
        return {path.name: check(path) for path in folders if not is_unchained(path)}

    return check_every


Script = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    """Start a Python program in a process of its own: in `tmp_path`, with pipes, on the same otledger."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
        paths = os.pathsep.join(path for path in sys.path if path)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        environment = {**os.environ, "PYTHONPATH": paths}
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, start_new_session=True, **pipes)
        started.append(process)
        return process

    yield start
    for process in started:
        # With its children, which may hold the pipes.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


class Hang:
    """Has calls of this process on the files of a ledger block until it is released: a disk that hangs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._go_on = threading.Event()
        self._go_on.set()
        self.reached = threading.Event()
        """Set once a call hangs."""

    def start(self, call: str) -> None:
        """Have `write`, `fdatasync` (of segments) or `flock` (of a lock file) hang from now on."""
        module = fcntl if call == "flock" else os
        real = getattr(module, call)
        suffix = ".lock" if call == "flock" else ".jsonl"
        self._go_on.clear()
        self.reached.clear()

        def hanging(fd: int, *arguments: Any) -> Any:
            if os.readlink(f"/proc/self/fd/{fd}").endswith(suffix) and not self._go_on.is_set():
                self.reached.set()
                self._go_on.wait(30)
            return real(fd, *arguments)

        self._monkeypatch.setattr(module, call, hanging)

    def stop(self) -> None:
        """Let the calls go on, those that hang and those to come."""
        self._go_on.set()


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hang]:
    """A disk that can be made to hang."""
    hang = Hang(monkeypatch)
    yield hang
    hang.stop()
