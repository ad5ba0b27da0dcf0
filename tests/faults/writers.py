"""Groups of real processes that write to one ledger, and tell in files what was acknowledged to them.

As a program it is their mother; a group is a process group of its own, to be killed as one.
"""

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import otledger
from otledger import Draft, Journal, JournalError, Receipt, identity, open_sync
from otledger.errors import LedgerError, LockTimeout
from otledger.predecessors.exporting import export_evledger
from tests.faults.mothers import Mother, fork, serve

PAYLOADS = random.Random(0).randbytes(1 << 19).hex()
"""What payloads are cut out of: to make random bytes for each would cost more than to write them."""


class Group:
    """Processes that write until they have written `count` records each, or are killed."""

    def __init__(self, mother: "Writers", pid: int, acks: Path) -> None:
        self._mother, self.pid, self._acks = mother, pid, acks

    def acknowledged(self) -> list[Receipt]:
        """What the processes were told so far to be durable."""
        return [Receipt(id, int(seq), checksum, segment) for id, seq, checksum, segment in self._rows("acks-*")]

    def told(self) -> list[list[str]]:
        """What else they noted: `accepted ID`, `error ID CLASS`, `left COUNT`, `finding KIND`, `done`."""
        return self._rows("told-*")

    def _rows(self, pattern: str) -> list[list[str]]:
        # A last line without its end is that of a process that was killed while it told us.
        texts = [path.read_text() for path in sorted(self._acks.glob(pattern))]
        return [row.split() for text in texts for row in text.split("\n")[:-1]]

    def is_writing(self) -> bool:
        return any(path.stat().st_size for path in list(self._acks.glob("acks-*")))

    def release(self) -> None:
        """Let a group that was started with `gate` go on."""
        os.close(os.open(self._acks / "gate", os.O_WRONLY))

    def kill(self) -> None:
        os.killpg(self.pid, signal.SIGKILL)
        self._mother.wait(self.pid)

    def ended(self) -> bool:
        """Tell whether all have ended, and wait to be waited for."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    def wait(self) -> int:
        """Wait for the end of all. Gives 0 if none of them failed."""
        return self._mother.wait(self.pid)


class Writers(Mother):
    """Starts groups of writers. `prefix` is a command under which they all run."""

    def __init__(self, prefix: Iterable[str] = ()) -> None:
        super().__init__("tests.faults.writers", prefix=prefix)

    def start(self, root: Path, acks: Path, *, gate: bool = False, **options: Any) -> Group:
        """Options: `processes`, and those of `work`. With `gate` they wait for `Group.release`."""
        acks.mkdir(parents=True)
        if gate:
            os.mkfifo(acks / "gate")
        return Group(self, self.fork(root=str(root), acks=str(acks), **options), acks)


# In the processes -------------------------------------------------------------------------------------------


def lead(acks: str, processes: int = 1, **options: Any) -> None:
    """Be a group of writers, until all have ended."""
    gate = Path(acks, "gate")
    if gate.exists():
        gate.read_bytes()
    children = [fork(partial(work, number, acks=acks, **options)) for number in range(processes)]
    failed = [pid for pid in children if os.waitpid(pid, 0)[1]]
    os._exit(1 if failed else 0)


class Worker:
    """What all kinds of writers need: payloads, and files in which they tell."""

    def __init__(self, number: int, acks: str, least: int, most: int, seed: int) -> None:
        self.number, self.least, self.most, self._seed = number, least, most, seed
        self.chance = random.Random(1000 * seed + number)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._acks = os.open(f"{acks}/acks-{number}", flags, 0o600)
        self._told = os.open(f"{acks}/told-{number}", flags, 0o600)

    def acknowledged(self, receipts: Iterable[Receipt | None]) -> None:
        rows = [f"{one.id} {one.seq} {one.checksum} {one.segment}\n" for one in receipts if one is not None]
        os.write(self._acks, "".join(rows).encode())

    def tell(self, *words: object) -> None:
        os.write(self._told, (" ".join(map(str, words)) + "\n").encode())

    def id(self, index: int) -> str:
        """The id of a record where the test is to know it."""
        return f"{self._seed}-{self.number}-{index}"

    def payload(self, index: int) -> list[Any]:
        """A payload of a size between the two, spread evenly over the orders of magnitude."""
        size = int(self.least * (self.most / self.least) ** self.chance.random())
        begin = self.chance.randrange(len(PAYLOADS) - size)
        return [self.number, index, PAYLOADS[begin : begin + size]]


def work(
    number: int,
    *,
    root: str,
    acks: str,
    kind: str = "journal",
    durability: str = "disk",
    count: int = 1 << 60,
    least: int = 2048,
    most: int = 2048,
    seed: int = 0,
    boot: str | None = None,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> None:
    """Write `count` records of `least` to `most` bytes. `options` are those of the kind, `boot` another boot's id."""
    if boot is not None:
        identity.boot_id.cache_clear()
        identity.BOOT_ID_FILE = boot
    worker = Worker(number, acks, least, most, seed)
    settings = {"machine": "m1", "service": f"p{number}", "durability": durability, **settings}
    KINDS[kind](worker, root, count, settings, **(options or {}))


def write_to_journal(
    worker: Worker,
    root: str,
    count: int,
    settings: dict[str, Any],
    *,
    batch: int = 1,
    pause: float = 0.0,
    told_when: str = "appended",
) -> None:
    """Append batches. At durability `os` a sync comes after every 16; with `told_when` synced we tell only then."""
    journal = Journal(root, **settings)
    waiting: list[Receipt] = []
    for index in range(0, count, batch):
        # Whoever waits long for the lock tries again: nothing was written then.
        while True:
            try:
                waiting += journal.append([Draft("app.event", worker.payload(index + at)) for at in range(batch)])
                break
            except LockTimeout:
                continue
        if settings["durability"] == "os" and index % 16 == 15:
            journal.sync()
        elif told_when == "synced":
            continue
        worker.acknowledged(waiting)
        waiting = []
        time.sleep(pause)
    journal.close()


def write_in_threads(worker: Worker, root: str, count: int, settings: dict[str, Any]) -> None:
    """Append from four threads of one ledger."""
    ledger = open_sync(root, check=None, **settings)

    def run(thread: int) -> None:
        for index in range(thread, count, 4):
            worker.acknowledged([ledger.append("app.event", worker.payload(index))])

    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.close(60) == 0


def write_in_tasks(worker: Worker, root: str, count: int, settings: dict[str, Any], *, tasks: int = 4) -> None:
    """Append from tasks of one loop, in a span each; what is only emitted is told as accepted."""

    async def run(ledger: otledger.Ledger, task: int) -> None:
        for index in range(task, count, tasks):
            async with ledger.span(f"request {task}"):
                worker.tell("accepted", await ledger.emit("app.event", worker.payload(index)))
                worker.acknowledged([await ledger.append("app.event", worker.payload(index))])

    async def main() -> None:
        async with otledger.open(root, check=None, **settings) as ledger:
            await asyncio.gather(*(run(ledger, task) for task in range(tasks)))

    asyncio.run(main())


def endure(
    worker: Worker, root: str, count: int, settings: dict[str, Any], *, tries: int = 3, pause: float = 0.0
) -> None:
    """Append batches of one to three to a journal that may fail; what failed is tried again, as a queue does."""
    journal = Journal(root, **settings)
    drafts = [Draft("app.event", worker.payload(at), id=worker.id(at)) for at in range(count)]
    at, failures = 0, 0
    while at < count:
        batch = drafts[at : at + 1 + at % 3]
        try:
            receipts = journal.append(batch)
        except JournalError as error:
            receipts = error.receipts
            worker.tell("error", batch[len(receipts)].id, type(error).__name__)
            failures += 1
        except LedgerError as error:
            receipts = []
            worker.tell("error", batch[0].id, type(error).__name__)
            failures += 1
        worker.acknowledged(receipts)
        time.sleep(pause)
        at += len(receipts)
        if receipts:
            failures = 0
        elif failures >= tries:
            # The caller gives it up, and was told.
            at, failures = at + 1, 0
        if settings["durability"] == "os":
            try:
                journal.sync()
            except LedgerError as error:
                worker.tell("error", "sync", type(error).__name__)
    for finding in journal.findings:
        worker.tell("finding", finding.kind)
    journal.close()
    worker.tell("done")


def endure_in_ledger(worker: Worker, root: str, count: int, settings: dict[str, Any], *, timeout: float = 0.3) -> None:
    """Emit and append to a ledger whose disk may fail: what it accepts stays queued, whatever a waiter is told."""
    try:
        ledger = open_sync(root, check=None, min_free=0, **settings)
    except LedgerError as error:
        worker.tell("error", "open", type(error).__name__)
        worker.tell("done")
        return
    for at in range(count):
        id = worker.id(at)
        try:
            if at % 3:
                worker.tell("accepted", ledger.emit("app.event", worker.payload(at), id=id))
            else:
                worker.tell("accepted", id)
                worker.acknowledged([ledger.append("app.event", worker.payload(at), id=id)])
        except LedgerError as error:
            worker.tell("error", id, type(error).__name__)
    worker.tell("left", ledger.close(timeout))
    worker.tell("done")


def export(worker: Worker, root: str, count: int, settings: dict[str, Any], *, to: str) -> None:
    """Export the ledger into a new folder."""
    try:
        export_evledger(root, to)
    except LedgerError as error:
        worker.tell("error", "export", type(error).__name__)
    worker.tell("done")


KINDS: dict[str, Callable[..., None]] = {
    "journal": write_to_journal,
    "threads": write_in_threads,
    "tasks": write_in_tasks,
    "endure": endure,
    "endure in ledger": endure_in_ledger,
    "export": export,
}


if __name__ == "__main__":
    # Once for all groups: these read files, which a group that is traced must not do.
    identity.boot_id()
    identity.host_hash()
    serve(lead)
