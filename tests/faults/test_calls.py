"""System calls that fail under a ledger: each call, each error, the first, the third, the last, all from the second on.

Each case is a process of its own whose calls on the files of its ledger `strace` makes fail. It is forked from a
mother that has otledger loaded and waits at a gate until strace holds it, so that a case takes milliseconds.
"""

import itertools
import os
import queue
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

import otledger
from otledger import Receipt, Status
from tests.faults.conftest import Say
from tests.faults.tools import (
    GOOD,
    LOCKS,
    STRACE,
    append_bytes,
    closed,
    events,
    holds,
    journal,
    needs_strace,
    never_trusted_again,
    newest,
    partition,
    put,
    sane,
    snapshot,
)
from tests.faults.writers import Group, Writers

CALLS = ("write", "pwrite64", "fdatasync", "fsync", "openat", "ftruncate", "flock")
ERRORS = {
    "ENOSPC": "error=ENOSPC",
    "EIO": "error=EIO",
    "EDQUOT": "error=EDQUOT",
    "EINTR": "error=EINTR",
    "short": "retval=7",
    "delay": "delay_enter=1500",
    "delay after": "delay_exit=1500",
    "kill": "signal=KILL",
}
"""What is injected. `short` says that 7 bytes were taken, when none were: worse than any short write."""
CASES = {"short": 500, "long": 1500}
"""How many cases there must be at least."""
AT_ONCE = 3
HIT = re.compile(r"\((INJECTED|DELAYED)\)|\+\+\+ killed by SIGKILL")
"""How strace's log tells that a call was made to fail, or that it killed."""
COUNT = 10
"""How many records a process writes."""


@dataclass(frozen=True)
class Scenario:
    """What a process does, and what it finds."""

    name: str
    kind: str = "endure"
    durability: str = "disk"
    base: str = "nothing"
    processes: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    long: bool = False
    """Whether it is of the long mode only."""


SCENARIOS = [
    Scenario("new segments", settings={"max_segment": 1500, "checkpoint_interval": 0.0}),
    Scenario("recovery", base="torn"),
    Scenario("os", durability="os", base="closed"),
    Scenario("ledger", kind="endure in ledger", base="closed"),
    Scenario("recovery at os", durability="os", base="torn", long=True),
    Scenario("ledger at os", kind="endure in ledger", durability="os", base="torn", long=True),
    Scenario("two", processes=2, base="closed", settings={"max_segment": 1500}, long=True),
    Scenario("two ledgers", kind="endure in ledger", processes=2, settings={"max_segment": 1500}, long=True),
]


@dataclass(frozen=True)
class Case:
    """A scenario, and what strace injects into it."""

    scenario: Scenario
    inject: tuple[str, ...]
    lasting: bool = False
    """Whether the fault stays until the process ends."""

    @property
    def kills(self) -> bool:
        return "signal=KILL" in self.inject[0]

    def __str__(self) -> str:
        return f"{self.scenario.name}: {' '.join(self.inject)}"


class Bench:
    """Runs cases, each in a folder of its own."""

    def __init__(self, folder: Path, writers: Writers) -> None:
        self.folder, self.writers = folder, writers
        folder.mkdir()
        self._bases = {"closed": self._closed(folder / "closed"), "torn": self._torn(folder)}
        self._numbers = itertools.count()

    def _closed(self, root: Path) -> list[Receipt]:
        return closed(root, 0, 1, 2)

    def _torn(self, folder: Path) -> list[Receipt]:
        with journal(folder / "open") as target:
            receipts = put(target, 0, 1, 2)
            shutil.copytree(folder / "open", folder / "torn")
        append_bytes(newest(folder / "torn"), b'{"specversion":"1.0","id":"torn')
        LOCKS["another boot"](folder / "torn")
        return receipts

    def run(self, case: Case) -> "Outcome":
        scenario = case.scenario
        place = self.folder / str(next(self._numbers))
        place.mkdir(mode=0o700)
        root = place / "ledger"
        if scenario.base in self._bases:
            shutil.copytree(self.folder / scenario.base, root)
        # A ledger that cannot get rid of its queue is not waited for long.
        options = {"timeout": 0.2 if case.lasting else 30.0} if "ledger" in scenario.kind else {}
        group = self.writers.start(
            root, place / "acks", gate=True, kind=scenario.kind, durability=scenario.durability, options=options,
            processes=scenario.processes, count=COUNT, least=100, most=1000, **scenario.settings,
        )  # fmt: skip
        with traced(group, place / "log", *case.inject, paths=files_of(root)):
            group.release()
            status = group.wait()
        log = (place / "log").read_text()
        return Outcome(case, root, self._bases.get(scenario.base, []), group, status, log)


def files_of(root: Path) -> list[Path]:
    """Give the paths of a ledger on which calls fail."""
    month = time.strftime("%Y-%m", time.gmtime())
    names = [".lock", "quarantine", f"{month}.jsonl", *(f"{month}.{n}.jsonl" for n in range(1, 40))]
    return [root, root / "m1", *(root / "m1" / name for name in names)]


@contextmanager
def traced(group: Group, log: Path, *inject: str, paths: Iterable[Path] = ()) -> Iterator[None]:
    """Have strace hold a group and make its calls fail, on these paths if any; wait until it has ended."""
    command = [str(STRACE), "-f", "-y", "-p", str(group.pid), "-o", str(log), "-e", f"trace={','.join(CALLS)},rename"]
    for path in paths:
        command += ["-P", str(path)]
    for one in inject:
        command += ["-e", f"inject={one}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            # It says so once it holds the process.
            line = process.stderr.readline()
            assert "attached" in line, line
            yield
            process.wait(60)
        finally:
            process.kill()


@dataclass
class Outcome:
    """What a case left, and what was told in it."""

    case: Case
    root: Path
    before: list[Receipt]
    group: Group
    status: int
    log: str

    @property
    def fired(self) -> bool:
        """Whether a call was made to fail."""
        return HIT.search(self.log) is not None

    def counts(self) -> Counter[str]:
        """For each call how often the thread made it that made it most."""
        found: Counter[str] = Counter()
        for (_, call), count in Counter(re.findall(r"^(\d+) +(\w+)\(", self.log, re.MULTILINE)).items():
            found[call] = max(count, found[call])
        return found

    def check(self) -> None:
        """Raise AssertionError where something was lost, or said that is not true."""
        case, scenario = self.case, self.case.scenario
        rows = self.group.told()
        killed = case.kills and self.fired
        assert (self.status == 0) != killed, "the process ended by an exception"
        assert rows.count(["done"]) == scenario.processes or killed
        never_trusted_again(self.log)
        if partition(self.root).exists():
            left = otledger.verify(self.root, processes=1)
            assert left.status in (*GOOD, Status.INCOMPLETE), left.faults
        closed(self.root, "after")
        records = sane(self.root)
        ids = [record["id"] for record in records]
        assert len(ids) == len(set(ids)), "a record was written twice"
        acknowledged = self.group.acknowledged()
        assert {receipt.id for receipt in acknowledged} <= set(ids), "an acknowledged record is lost"
        holds(records, [*self.before, *(acknowledged if scenario.durability == "disk" else [])])
        given = {f"0-{number}-{at}" for number in range(scenario.processes) for at in range(COUNT)}
        found = {record["id"] for record in events(records)} - {receipt.id for receipt in self.before}
        assert len(found - given) == 1, "something is there that nobody gave"
        missing = given - found
        if killed or ["error", "open", "RootError"] in rows:
            return
        if not case.lasting:
            # The fault has passed: the next try succeeded, in the same process.
            assert not missing, f"{missing} were given up"
        elif "ledger" in scenario.kind:
            accepted = {row[1] for row in rows if row[0] == "accepted"}
            assert len(missing & accepted) <= sum(int(row[1]) for row in rows if row[0] == "left"), "silently lost"
        else:
            assert missing <= {row[1] for row in rows if row[0] == "error"}, "silently lost"


def cases_of(scenario: Scenario, counts: Counter[str]) -> Iterator[Case]:
    """Give each call with each error at each place where it is made."""
    for call, (error, spec) in itertools.product(CALLS, ERRORS.items()):
        if not counts[call] or (error == "short" and call not in ("write", "pwrite64")):
            continue
        # The second flock is the first that lets go.
        second = 2 if call == "flock" else 1
        for when in sorted({1, second, min(3, counts[call]), counts[call]}):
            yield Case(scenario, (f"{call}:{spec}:when={when}",))
        if error != "kill":
            # Python calls again after EINTR, for as long as it comes.
            when = "1..50" if error == "EINTR" else "2+"
            lasting = error in ("ENOSPC", "EIO", "EDQUOT", "short")
            yield Case(scenario, (f"{call}:{spec}:when={when}",), lasting=lasting)
            if lasting:
                yield Case(scenario, (f"{call}:{spec}:when=1+",), lasting=True)


def double_faults(scenario: Scenario) -> Iterator[Case]:
    """Give faults of what mends another fault."""
    for first, second in itertools.product(
        ("pwrite64:error=EIO:when=5", "fdatasync:error=EIO:when=3", "write:error=ENOSPC:when=3..4"),
        ("ftruncate:error=EIO:when=1+", "fsync:error=EIO:when=3+", "openat:error=ENOSPC:when=6+",
         "pwrite64:error=EIO:when=6+", "flock:error=EIO:when=6+", "write:error=EDQUOT:when=5+"),
    ):  # fmt: skip
        if first.partition(":")[0] != second.partition(":")[0]:
            yield Case(scenario, (first, second), lasting=True)


@pytest.fixture
def benches(tmp_path: Path) -> Iterator[list[Bench]]:
    """Places to work at, in the memory where there is such a place: no case depends on a real disk."""
    shm = Path("/dev/shm")
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else tmp_path))
        yield [Bench(Path(folder, str(n)), stack.enter_context(Writers())) for n in range(AT_ONCE)]


@needs_strace
def test_every_call_fails_in_every_way(benches: list[Bench], campaign: str, say: Say) -> None:
    """Acknowledged records are there, nothing is silently lost, the ledger verifies, and appending goes on."""
    cases: list[Case] = []
    for scenario in SCENARIOS:
        if scenario.long and campaign == "short":
            continue
        calm = benches[0].run(Case(scenario, ("fsync:error=EIO:when=9999",)))
        calm.check()
        cases += [*cases_of(scenario, calm.counts()), *double_faults(scenario)]
    work = queue.SimpleQueue[Case]()
    for case in cases:
        work.put(case)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        results = [result for part in threads.map(lambda bench: run_all(bench, work), benches) for result in part]
    fired = [case for case, did, _ in results if did]
    failed = [(case, why) for case, _, why in results if why]
    say(f"{len(fired)} system calls failed in {len(cases)} cases", fault_cases=len(fired))
    assert not failed, "\n".join(f"{case}\n    {why}" for case, why in failed)
    assert len(fired) >= CASES[campaign]


def run_all(bench: Bench, work: "queue.SimpleQueue[Case]") -> list[tuple[Case, bool, str]]:
    """Run cases until there are none; give each with whether a call failed in it, and what is wrong."""
    results = []
    while True:
        try:
            case = work.get_nowait()
        except queue.Empty:
            return results
        outcome, why = bench.run(case), ""
        try:
            outcome.check()
        except (AssertionError, otledger.LedgerError, KeyError) as error:
            why = f"{type(error).__name__}: {error}\n    {outcome.group.told()}\n{outcome.log[-4000:]}"
        else:
            shutil.rmtree(outcome.root.parent)
        results.append((case, outcome.fired, why))


@needs_strace
def test_every_call_of_an_export_fails_in_every_way(benches: list[Bench], tmp_path: Path, say: Say) -> None:
    """The new folder is there as a whole, or not at all and the caller knows; the ledger is as it was."""
    bench = benches[0]
    root = bench.folder / "closed"
    before = snapshot(root)
    cases = [f"rename:{spec}:when=1" for name, spec in ERRORS.items() if name != "short"]
    cases += [f"fsync:{spec}:when={when}" for name, spec in ERRORS.items() if name != "short" for when in (1, 2, 3)]
    fired = 0
    for number, inject in enumerate(cases):
        to = tmp_path / f"out{number}"
        group = bench.writers.start(root, tmp_path / f"acks{number}", gate=True, kind="export", options={"to": str(to)})
        with traced(group, tmp_path / "log", inject):
            group.release()
            status = group.wait()
        fired += HIT.search((tmp_path / "log").read_text()) is not None
        assert (status == 0) == ("KILL" not in inject), inject
        rows = group.told()
        assert status or rows[-1] == ["done"]
        whole = to.exists()
        assert whole or status or rows[0][:2] == ["error", "export"], inject
        if whole:
            assert len((to / "m1" / newest(root).name).read_bytes().splitlines()) == 3
        assert status or not list(tmp_path.glob(f".out{number}.*")), inject
        assert snapshot(root) == before
    say(f"{fired} system calls of an export failed", export_cases=fired)
    assert fired == len(cases)
