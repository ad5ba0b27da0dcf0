"""Everything that can happen to a ledger, in any order, against a model that fits on a page."""

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

import otledger
from otledger import Status
from otledger.errors import LedgerError
from tests.checker import check
from tests.faults.conftest import Say
from tests.faults.hands import Crew, Hands
from tests.faults.tools import (
    append_bytes,
    edit_lock,
    good_records,
    lines_of,
    newest,
    partition,
    segment_names,
)

GOOD = (Status.OK, Status.RECOVERED)
DAY = 86_400_000_000_000
SIZE = 2 << 20
LEAST_STEPS = 800
"""What the short campaign does at least, of all kinds of steps together."""
TRIED: Counter[str] = Counter()


class Model:
    """What was accepted, what is durable, and whether somebody harmed the files."""

    def __init__(self) -> None:
        self.count = 0
        self.queued: set[int] = set()  # accepted by the living process
        self.maybe: set[int] = set()  # accepted by one that was killed
        self.durable: set[int] = set()
        self.harmed = False  # acknowledged bytes were changed or cut off
        self.status: bool | None = True  # whether verify calls it good; None: either, as nobody can know

    def next(self) -> int:
        self.count += 1
        return self.count

    def flushed(self) -> None:
        self.durable |= self.queued
        self.queued = set()

    def killed(self) -> None:
        self.maybe |= self.queued
        self.queued = set()


class Ledger(RuleBasedStateMachine):
    """One ledger, at most one process that has it open, a disk of 2 MB, and a clock."""

    crew: Crew
    disk: Path
    mounted: bool

    @initialize(durability=st.sampled_from(["disk", "os"]), segment=st.sampled_from([1 << 30, 4000]))
    def begin(self, durability: str, segment: int) -> None:
        self.root = Path(tempfile.mkdtemp(dir=self.disk)) / "ledger"
        self.options = {"durability": durability, "max_segment": segment, "checkpoint_interval": 0.02}
        self.options |= {"flush_interval": 0.005, "sync_interval": 0.02}
        self.model = Model()
        self.hands: Hands | None = None
        self.wall = self.boot = 0
        self.full = False
        self.scar: tuple[str, int, int] | None = None  # segment, number and place of the record that was changed
        self.names: list[str] = []
        self.open()
        self.append()

    def tried(self, step: str) -> None:
        TRIED[step] += 1

    @property
    def alive(self) -> Hands:
        assert self.hands is not None
        return self.hands

    # What programs do

    def open(self) -> None:
        self.hands = self.crew.start()
        self.alive.do("set_clock", wall=self.wall, boot=self.boot)
        self.alive.do("open", root=str(self.root), **self.options)

    @precondition(lambda self: self.hands is None and not self.full)
    @rule()
    def reopen(self) -> None:
        self.tried("reopen")
        self.open()
        self.append()

    @precondition(lambda self: self.hands is not None)
    @rule(size=st.sampled_from([10, 3000]))
    def emit(self, size: int) -> None:
        self.tried("emit")
        number = self.model.next()
        self.alive.do("emit", payload=[number, "x" * size])
        self.model.queued.add(number)

    @precondition(lambda self: self.hands is not None and not self.full)
    @rule()
    def append(self) -> None:
        self.tried("append")
        number = self.model.next()
        self.alive.do("append", payload=[number])
        self.model.durable.add(number)
        if not self.model.harmed:
            self.model.status = True

    @precondition(lambda self: self.hands is not None and not self.full)
    @rule()
    def span(self) -> None:
        self.tried("span")
        number = self.model.next()
        self.alive.do("span", payload=[number])
        self.model.queued.add(number)

    @precondition(lambda self: self.hands is not None)
    @rule()
    def flush(self) -> None:
        self.tried("flush")
        if self.full:
            with contextlib.suppress(LedgerError):
                self.alive.do("flush", timeout=0.02)
                self.model.flushed()
            return
        self.alive.do("flush", timeout=30)
        self.model.flushed()

    @precondition(lambda self: self.hands is not None and not self.full)
    @rule()
    def fork(self) -> None:
        self.tried("fork")
        number = self.model.next()
        self.alive.do("fork", payload=[number])
        self.model.durable.add(number)

    @precondition(lambda self: self.hands is not None)
    @rule()
    def kill(self) -> None:
        self.tried("kill")
        self.alive.kill()
        self.hands = None
        self.model.killed()

    @precondition(lambda self: self.hands is not None and not self.full)
    @rule()
    def close(self) -> None:
        self.tried("close")
        assert self.alive.do("close") == 0
        self.model.flushed()
        self.alive.kill()
        self.hands = None

    # What happens to the machine

    @precondition(lambda self: self.mounted and not self.full)
    @rule(left=st.sampled_from([0, 100, 3000]))
    def fill_the_disk(self, left: int) -> None:
        self.tried("fill the disk")
        self.full = True
        fd = os.open(self.disk / "filler", os.O_WRONLY | os.O_CREAT)
        try:
            with contextlib.suppress(OSError):
                while True:
                    os.write(fd, bytes(4096))
            os.ftruncate(fd, max(0, os.fstat(fd).st_size - left))
        finally:
            os.close(fd)

    @precondition(lambda self: self.full)
    @rule()
    def free_the_disk(self) -> None:
        self.tried("free the disk")
        (self.disk / "filler").unlink()
        self.full = False
        if self.hands is not None:
            with contextlib.suppress(LedgerError):
                # The try that is under way may have met the full disk.
                self.alive.do("flush", timeout=30)
            self.flush()

    @rule(days=st.sampled_from([-400, -1, 1, 40, 400]))
    def step_the_clock(self, days: int) -> None:
        self.tried("step the clock")
        self.wall = max(-600 * DAY, self.wall + days * DAY)
        self.set_clock()

    @rule()
    def cut_a_month(self) -> None:
        self.tried("cut a month")
        self.wall += 32 * DAY
        self.boot += 32 * DAY
        self.set_clock()

    def set_clock(self) -> None:
        if self.hands is not None:
            self.alive.do("set_clock", wall=self.wall, boot=self.boot)

    @precondition(lambda self: self.hands is None)
    @rule()
    def reboot(self) -> None:
        """Nothing that `.lock` says is believed afterwards."""
        self.tried("reboot")
        edit_lock(self.root, boot="00000000-0000-0000-0000-000000000000")
        if self.model.harmed and self.model.status is False and not self.is_told():
            # Who has forgotten how much there was cannot tell a cut from a crash.
            self.model.status = None

    # What others do to the files

    @precondition(lambda self: not self.full)
    @rule(garbage=st.sampled_from([b"\0" * 300, b'{"specversion":"1.0","id":"01', b"garbage\n", b"\n", b"\xff"]))
    def corrupt_the_tail(self, garbage: bytes) -> None:
        """What a crash may leave. It leaves that with the lock held: no writer is between its look and its write."""
        self.tried("corrupt the tail")
        with (partition(self.root) / ".lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            append_bytes(newest(self.root), garbage)
        if not self.model.harmed:
            # A living process mends it with its next batch, and may be at it.
            self.model.status = False if self.hands is None else None

    @precondition(lambda self: self.hands is None and not self.full)
    @rule(count=st.integers(1, 900))
    def cut_the_tail(self, count: int) -> None:
        self.tried("cut the tail")
        path = newest(self.root)
        lines = lines_of(path)
        kept = max(len(lines[0]), path.stat().st_size - count)
        whole = b"".join(lines)[:kept].rpartition(b"\n")[0]
        self.lose(path.read_bytes()[len(whole) :])
        os.truncate(path, kept)
        if self.model.status is not False or not self.is_told():
            # Cut between two records in a state that says little, it may be seen or not.
            self.model.status = None
        if self.scar is not None and not self.is_told():
            # What stands behind the changed record as well may be set aside with it, as what a crash left.
            self.lose(whole[self.scar[2] :])

    @precondition(lambda self: not self.full)
    @rule(place=st.floats(0, 1), bit=st.integers(0, 7))
    def corrupt_the_middle(self, place: float, bit: int) -> None:
        """A bit of a record that was durable before another batch began."""
        if self.model.harmed:
            return
        files = [partition(self.root) / name for name in segment_names(self.root)]
        found = [(path, line, match) for path in files for line in lines_of(path)
                 if (match := re.search(rb',(?:"synced":(\d+),)?"seq":(\d+),"prev":', line[-400:]))]  # fmt: skip
        synced = max(int(match[1] or 0) for _, _, match in found)
        if synced < 3:
            return
        self.tried("corrupt the middle")
        durable = [(path, line, int(match[2])) for path, line, match in found if int(match[2]) < synced - 1]
        path, line, number = durable[int(place * (len(durable) - 1))]
        content = path.read_bytes()
        begin = content.index(line)
        at = begin + int(place * (len(line) - 2))
        new = content[at] ^ (1 << bit)
        self.lose(line)
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([new]) if new != 10 else b"\x00")
        self.model.status, self.scar = False, (path.name, number, begin)

    def is_told(self) -> bool:
        """Whether the files alone say that the changed record was durable: by a successor, or a record behind it."""
        if self.scar is None:
            return False
        segment, number, _ = self.scar
        path = newest(self.root)
        return path.name != segment or any(record.get("synced", 0) > number for record in good_records(path))

    def lose(self, content: bytes) -> None:
        self.model.harmed = True
        lost = {int(number) for number in re.findall(rb'"data":\[(\d+)', content)}
        self.model.durable -= lost
        self.model.queued -= lost
        self.model.maybe |= lost

    @rule()
    def delete_the_cache(self) -> None:
        self.tried("delete the cache")
        shutil.rmtree(partition(self.root) / ".cache", ignore_errors=True)

    # What has to hold

    @rule(deep=st.booleans())
    def verify(self, deep: bool) -> None:
        self.tried("verify")
        report = otledger.verify(self.root, processes=1, deep=deep)
        if self.model.status is not None:
            assert (report.status in GOOD) == self.model.status, (report.status, report.faults)
        known = self.model.durable | self.model.queued | self.model.maybe
        found = Counter(self.numbers())
        assert self.model.durable <= found.keys(), f"lost: {sorted(self.model.durable - found.keys())}"
        assert found.keys() <= known, "records of nobody"
        if not self.model.harmed:
            assert max(found.values(), default=1) == 1, f"twice: {found.most_common(3)}"
        names = segment_names(self.root)
        assert names[: len(self.names)] == self.names, "a segment went away, or came before others"
        self.names = names

    def numbers(self) -> Iterator[int]:
        if self.model.harmed:
            for name in segment_names(self.root):
                for record in good_records(partition(self.root) / name):
                    if record["type"] == "app.event":
                        yield record["data"][0]
            return
        faults: list[Any] = []
        for record in otledger.Reader(self.root).records(otledger.Filter(type="app.event"), on_fault=faults.append):
            yield record.data[0]

    def teardown(self) -> None:
        if not hasattr(self, "root"):
            return
        try:
            if self.full:
                self.free_the_disk()
            if self.hands is None:
                self.reopen()
            self.append()
            assert self.alive.do("close") == 0
            self.model.flushed()
            self.verify(deep=True)
            if not self.model.harmed:
                check(partition(self.root))
        finally:
            if self.hands is not None:
                self.alive.kill()
            with contextlib.suppress(FileNotFoundError):
                (self.disk / "filler").unlink()
            shutil.rmtree(self.root.parent)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, bool]]:
    """A tmpfs of 2 MB, or a folder where none can be mounted."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "tmpfs", str(path)]
    mounted = shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield path, mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_anything_in_any_order(disk: tuple[Path, bool], tmp_path: Path, campaign: str, say: Say) -> None:
    long = campaign == "long"
    TRIED.clear()
    with Crew(tmp_path) as crew:
        machine = type("Machine", (Ledger,), {"crew": crew, "disk": disk[0], "mounted": disk[1]})
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            machine,
            settings=settings(
                max_examples=2_000 if long else 60,
                stateful_step_count=60 if long else 30,
                derandomize=not long,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    steps = sum(TRIED.values())
    say(f"{steps:,} steps: {', '.join(f'{name} {count}' for name, count in TRIED.most_common())}", steps=steps)
    assert steps >= LEAST_STEPS
    assert len(TRIED) >= 15 + 2 * disk[1]
