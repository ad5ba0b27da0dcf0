"""`otledger doctor --self-test`: it tries faults on a file system, says what it found, and leaves nothing behind."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from otledger.errors import RootError
from otledger.journal import Journal
from otledger.selftest import Outcome, running, self_test, trials
from otledger.selftest.running import Bench
from otledger.selftest.trials import TRIALS
from tests.faults.tools import environment, wait_until

COMMAND = [sys.executable, "-m", "otledger", "doctor", "--self-test"]


def processes_of(folder: Path) -> list[int]:
    """Those whose command line names the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_all_trials_hold_here_and_nothing_is_left(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, str(tmp_path), "--seconds", "4", "--json"], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    outcomes = {one["name"]: one for one in json.loads(done.stdout)}
    assert list(outcomes) == list(TRIALS)
    assert all(one["level"] in ("ok", "warn") and one["tried"] for one in outcomes.values()), outcomes
    assert outcomes["kill -9"]["tried"] >= 2
    assert outcomes["lock"]["tried"] >= 300
    assert list(tmp_path.iterdir()) == []
    assert not processes_of(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_of_one_that_is_ended(number: signal.Signals, tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, str(tmp_path), "--seconds", "20"], stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        wait_until(lambda: list(tmp_path.glob(".otledger-self-test-*/lock/counter")), "the trial of the lock", 60)
        process.send_signal(number)
        assert process.wait(30) == 128 + number
    assert list(tmp_path.iterdir()) == []
    wait_until(lambda: not processes_of(tmp_path), "the end of its processes")


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(RootError, match="give one that exists"):
        self_test("/nowhere/at/all")


def run(name: str, tmp_path: Path) -> Outcome:
    bench = Bench(tmp_path, time.monotonic(), 1.0, None)
    outcome = running._run(bench, name, TRIALS[name][0], 0.0)
    for child in list(bench.children):
        bench.end(child)
    return outcome


def test_it_tells_of_a_recovery_that_keeps_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Journal._quarantine
    monkeypatch.setattr(Journal, "_quarantine", lambda self, prefix, read: real(self, prefix, lambda: [b"other"]))
    outcome = run("torn tail", tmp_path)
    assert outcome.level == "bad"
    assert "was not set aside" in outcome.finding


def test_it_tells_of_a_lock_that_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda fd, how: None)
    outcome = run("lock", tmp_path)
    assert (outcome.level, outcome.finding) == ("bad", "two processes hold the same flock at once")


def test_it_tells_of_records_that_are_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = trials.acknowledged
    monkeypatch.setattr(trials, "acknowledged", lambda path: real(path) | {"01": (1, "sha256:0")})
    outcome = run("kill -9", tmp_path)
    assert outcome.level == "bad"
    assert "acknowledged records are lost or changed" in outcome.finding


@pytest.mark.parametrize(
    ("call", "broken", "finding"),
    [
        ("ftruncate", lambda fd, size: None, "after ftruncate, O_APPEND did not write at the end"),
        ("rename", lambda *names, **folders: None, "a file that was replaced has its predecessor's inode"),
        ("fsync", None, "OSError: [Errno 5] Input/output error"),
    ],
)
def test_it_tells_of_calls_that_do_something_else(
    call: str, broken: Any, finding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, broken or fails)
    outcome = run("calls", tmp_path)
    assert (outcome.level, outcome.finding) == ("bad", finding)


def test_a_disk_that_is_too_fast_is_suspicious(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "SUSPICIOUS", 1000.0)
    assert run("syncing", tmp_path).level == "warn"
