"""Running the trials one after the other in a folder of their own, of which nothing is left."""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from otledger.errors import LedgerError, RootError

Level = Literal["ok", "warn", "bad"]
Progress = Callable[[float, float], None]
SHORTEST = 2.0
"""Seconds within which each trial can be done at least once."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a trial found. `tried` says how often it was done, `remedy` what to do, empty where nothing needs to be."""

    name: str
    level: Level
    tried: int
    finding: str
    remedy: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Give the outcome as plain JSON values."""
        return asdict(self)


class Broken(Exception):
    """The file system, or otledger on it, did not do what a ledger needs. `str` says what."""


@dataclass(slots=True)
class Bench:
    """Where a trial works, and until when."""

    folder: Path
    began: float
    seconds: float
    progress: Progress | None
    until: float = 0.0
    """By `time.monotonic`."""
    children: list[subprocess.Popen[str]] = field(default_factory=list)

    def goes_on(self) -> bool:
        """Tell whether there is time for another round."""
        now = time.monotonic()
        if self.progress is not None:
            self.progress(min(now - self.began, self.seconds), self.seconds)
        return now < self.until

    def start(self, role: str, *arguments: object) -> subprocess.Popen[str]:
        """Start a process of child.py."""
        command = [sys.executable, "-m", "otledger.selftest.child", role, *map(str, arguments)]
        with (self.folder / "errors").open("ab") as errors:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.children.append(child)
        return child

    def end(self, child: subprocess.Popen[str]) -> None:
        """Kill a process and wait for its end."""
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
        self.children.remove(child)


Trial = Callable[[Bench], Outcome]


def self_test(folder: str | Path, *, seconds: float = 120.0, progress: Progress | None = None) -> list[Outcome]:
    """Try on the file system of `folder` what a ledger needs, for about so many seconds.

    Works in a new folder inside it and removes that again, with every process that it started. `progress` is called
    with the seconds that are over, and all of them. Raises `RootError` where nothing can be made there.
    """
    from otledger.selftest.trials import TRIALS

    path = Path(folder)
    try:
        work = Path(tempfile.mkdtemp(prefix=".otledger-self-test-", dir=path))
    except OSError as error:
        why = f"{path}: a folder cannot be made there: {error.strerror}; give one that exists and is writable"
        raise RootError(why, path=path) from None
    bench = Bench(work, time.monotonic(), max(SHORTEST, seconds), progress)
    try:
        with _terminated(), _quiet():
            return [_run(bench, name, trial, share) for name, (trial, share) in TRIALS.items()]
    finally:
        for child in list(bench.children):
            bench.end(child)
        shutil.rmtree(work)


def _run(bench: Bench, name: str, trial: Trial, share: float) -> Outcome:
    began = time.monotonic()
    bench.until = began + bench.seconds * share
    home = bench.folder
    bench.folder = home / name.replace(" ", "-")
    bench.folder.mkdir(mode=0o700)
    try:
        found = trial(bench)
    except Broken as error:
        remedy = "do not keep a ledger here; report what you found: it may be otledger's fault"
        found = Outcome(name, "bad", 1, str(error), remedy)
    except subprocess.TimeoutExpired:
        found = Outcome(name, "bad", 1, "a process hangs: see dmesg and the disk", "do not keep a ledger here")
    except (LedgerError, OSError) as error:
        found = Outcome(name, "bad", 1, f"{type(error).__name__}: {error}", "do not keep a ledger here")
    finally:
        bench.folder = home
    return Outcome(name, found.level, found.tried, found.finding, found.remedy, time.monotonic() - began)


@contextmanager
def _quiet() -> Iterator[None]:
    """Have nothing logged of what the journal finds: it is there on purpose."""
    log = logging.getLogger("otledger")
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def _terminated() -> Iterator[None]:
    """Have SIGTERM end this in order, so that nothing is left behind."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
