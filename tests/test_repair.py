"""`otledger repair`: it says what recovery would do, writes nothing until told to, and leaves what it cannot mend.

That what it says is what recovery does is tried on thousands of damaged ledgers in tests/faults/test_fuzz.py.
"""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import otledger
from otledger import Status
from otledger.errors import LockTimeout
from otledger.repair import carry_out, plan
from tests.faults.tools import (
    MACHINE,
    append_bytes,
    closed,
    edit_lock,
    environment,
    journal,
    lines_of,
    newest,
    offsets,
    partition,
    put,
    sane,
    segment_names,
    snapshot,
)

TORN = b'{"specversion":"1.0","id":"01'


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "otledger", "repair", "--root", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    assert "Traceback" not in done.stderr
    return done


def everything(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_whole_ledger_needs_nothing(root: Path) -> None:
    closed(root, 1, 2)
    before = everything(root)
    for arguments in ((), ("--yes",)):
        done = run(root, *arguments)
        assert (done.returncode, done.stdout) == (0, "nothing to do\n")
    assert everything(root) == before


def test_a_torn_tail_is_shown_then_set_aside(root: Path) -> None:
    closed(root, 1, 2)
    end = newest(root).stat().st_size
    append_bytes(newest(root), TORN)
    before = everything(root)
    done = run(root)
    assert done.returncode == 1
    assert f"set aside the last {len(TORN)} B of {newest(root).name} from offset {end}" in done.stdout
    assert "otledger repair --yes" in done.stdout
    assert everything(root) == before
    done = run(root, "--yes", "--json")
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    [machine] = answer["machines"]
    assert answer["done"]
    assert (machine["machine"], machine["left"]) == (MACHINE, [])
    [step] = machine["steps"]
    assert (step["kind"], step["offset"], step["bytes"]) == ("cut", end, len(TORN))
    [kept] = machine["kept"]
    assert (partition(root) / "quarantine" / kept).read_bytes() == TORN
    assert otledger.verify(root).status is Status.RECOVERED
    assert len(sane(root)) > 3
    assert run(root).stdout == "nothing to do\n"


def test_what_is_in_the_middle_is_left(root: Path) -> None:
    closed(root, 1, 2, 3)
    path = newest(root)
    lines = lines_of(path)
    at = offsets(lines)[2]
    content = bytearray(path.read_bytes())
    content[at + 10] ^= 1
    path.write_bytes(content)
    before = everything(root)
    done = run(root)
    assert done.returncode == 3
    assert f"{MACHINE}/{path.name}, offset {at}, seq 2: the checksum does not fit the line" in done.stdout
    for around, seq in (("before ", 1), ("after  ", 3)):
        [row] = [row for row in done.stdout.splitlines() if f"the record {around}" in row]
        members = json.loads(lines[seq])
        assert f"offset {offsets(lines)[seq]}, seq {seq}, {members['time']}, {members['type']}, id" in row
    assert f"{len(lines[2])} B up to the next good record" in done.stdout
    assert run(root, "--yes").returncode == 3
    assert everything(root) == before


def test_both_at_once(root: Path) -> None:
    """The tail is mended, and the middle stays as it is."""
    closed(root, 1, 2, 3)
    path = newest(root)
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content + TORN)
    [planned] = plan(root)
    assert [step.kind for step in planned.steps] == ["cut"]
    assert [left.fault.status for left in planned.left] == [Status.TAMPERED]
    assert run(root, "--yes").returncode == 3
    assert path.read_bytes().startswith(bytes(content))
    [planned] = plan(root)
    assert not planned.steps
    assert len(planned.left) == 1


def failed(root: Path) -> None:
    with journal(root, durability="os") as target:
        put(target, 3)
        edit_lock(root, state="failed")
        target.after_fork()


def unfinished(root: Path) -> None:
    (partition(root) / "2090-01.jsonl").write_bytes(b'{"torn')


def forgotten(root: Path) -> None:
    """The process died between cutting and telling of it."""
    append_bytes(newest(root), TORN)
    carry_out(root, plan(root))
    lines = lines_of(newest(root))
    at = next(i for i, line in enumerate(lines) if b"otledger.recovery" in line)
    newest(root).write_bytes(b"".join(lines[:at]))
    (partition(root) / ".lock").unlink()


def overtaken(root: Path) -> None:
    """Fewer bytes than were acknowledged."""
    os.truncate(newest(root), newest(root).stat().st_size - 5)


@pytest.mark.parametrize(
    ("harm", "kinds", "begun"),
    [(failed, ["segment"], 1), (unfinished, ["header"], 0), (forgotten, ["record"], 0), (overtaken, ["segment"], 1)],
)
def test_each_kind_of_step(root: Path, harm: Callable[[Path], None], kinds: list[str], begun: int) -> None:
    closed(root, 1, 2)
    harm(root)
    before, names = everything(root), segment_names(root)
    [planned] = plan(root)
    assert [step.kind for step in planned.steps] == kinds
    assert everything(root) == before
    carry_out(root, plan(root))
    assert len(segment_names(root)) == len(names) + begun
    for name, content in before.items():
        if harm is not unfinished and name.endswith(".jsonl"):
            assert Path(name).read_bytes().startswith(content)
    [planned] = plan(root)
    assert not planned.steps


def test_a_writer_that_holds_the_lock_is_named(root: Path) -> None:
    closed(root, 1)
    with (partition(root) / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(LockTimeout, match=rf"held by process {os.getpid()} "):
            plan(root, timeout=0.05)


def test_beside_a_writer_there_is_nothing_to_do(root: Path) -> None:
    with journal(root) as target:
        put(target, 1)
        before = snapshot(root)
        assert run(root, "--yes").stdout == "nothing to do\n"
        assert snapshot(root) == before
        put(target, 2)
    sane(root)


def test_only_the_machines_that_are_asked_for(root: Path) -> None:
    for machine in ("m1", "m2"):
        closed(root, 1, machine=machine)
        append_bytes(next((root / machine).glob("*.jsonl")), TORN)
    assert run(root, "--machine", "m2", "--yes").returncode == 0
    assert [bool(planned.steps) for planned in plan(root)] == [True, False]


def test_no_ledger_and_no_machine(root: Path) -> None:
    assert run(root).returncode == 2
    closed(root, 1)
    done = run(root, "--machine", "other")
    assert done.returncode == 3
    assert "folder is missing" in done.stdout
