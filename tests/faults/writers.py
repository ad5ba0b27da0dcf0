"""Groups of real processes that write to one ledger, and tell in files what was acknowledged to them.

As a program it is their mother: it has otledger loaded and forks a group for each line of JSON that it reads, so
that a group is writing within milliseconds. A group is a process group of its own, to be killed as one.
"""

import contextlib
import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from otledger import Draft, Journal, Receipt, open_sync
from otledger.errors import LockTimeout

REPOSITORY = Path(__file__).parents[2]


class Group:
    """Processes that write until they have written `count` records each, or are killed."""

    def __init__(self, mother: "Writers", pid: int, acks: Path) -> None:
        self._mother, self.pid, self._acks = mother, pid, acks

    def acknowledged(self) -> list[Receipt]:
        """What the processes were told so far to be durable."""
        receipts = []
        for path in sorted(self._acks.glob("acks-*")):
            # A last line without its end is that of a process that was killed while it told us.
            for row in path.read_text().split("\n")[:-1]:
                id, seq, checksum, segment = row.split()
                receipts.append(Receipt(id, int(seq), checksum, segment))
        return receipts

    def is_writing(self) -> bool:
        return any(path.stat().st_size for path in list(self._acks.glob("acks-*")))

    def kill(self) -> None:
        os.killpg(self.pid, signal.SIGKILL)
        self._mother.wait(self.pid)

    def wait(self) -> int:
        """Wait for the end of all. Gives 0 if none of them failed."""
        return self._mother.wait(self.pid)


class Writers:
    """Starts groups of writers."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OTLEDGER_")}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment | {"PYTHONPATH": str(REPOSITORY)},
        )
        self._groups: list[Group] = []

    def __enter__(self) -> "Writers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()

    def start(self, root: Path, acks: Path, **options: Any) -> Group:
        """Options: `processes`, `count`, `least` and `most` bytes of a payload, `kind`, `durability`, others."""
        acks.mkdir(parents=True)
        pid = self._ask({"root": str(root), "acks": str(acks), **options})
        return Group(self, pid, acks)

    def wait(self, pid: int) -> int:
        return self._ask({"wait": pid})

    def _ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


# In the processes -------------------------------------------------------------------------------------------


def mother() -> None:
    groups = []
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
            groups.remove(request["wait"])
        else:
            answer = os.fork()
            if answer == 0:
                die_with_parent()
                lead(request)
            # Set here too: whichever comes first.
            os.setpgid(answer, answer)
            groups.append(answer)
        print(answer, flush=True)
    # The test has ended, or was ended: so do they all.
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def lead(request: dict[str, Any]) -> None:
    os.setpgid(0, 0)
    children = []
    for number in range(request.pop("processes", 1)):
        pid = os.fork()
        if pid == 0:
            status = 1
            die_with_parent()
            try:
                work(number, **request)
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    failed = [pid for pid in children if os.waitpid(pid, 0)[1]]
    os._exit(1 if failed else 0)


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
    batch: int = 1,
    sync: bool = True,
    pause: float = 0.0,
    **settings: Any,
) -> None:
    """Write records, each with a payload of a size between the two, spread evenly over the orders of magnitude."""
    chance = random.Random(1000 * seed + number)
    settings = {"machine": "m1", "service": f"p{number}", "durability": durability, **settings}
    fd = os.open(f"{acks}/acks-{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def acknowledged(receipts: list[Receipt]) -> None:
        rows = [f"{one.id} {one.seq} {one.checksum} {one.segment}\n" for one in receipts]
        os.write(fd, "".join(rows).encode())

    def payload(index: int) -> list[Any]:
        size = int(least * (most / least) ** chance.random())
        return [number, index, chance.randbytes(size // 2 + 1).hex()[:size]]

    if kind == "journal":
        journal = Journal(root, **settings)
        for index in range(0, count, batch):
            # Whoever waits long for the lock tries again: nothing was written then.
            while True:
                try:
                    acknowledged(journal.append([Draft("app.event", payload(index + at)) for at in range(batch)]))
                    break
                except LockTimeout:
                    continue
            time.sleep(pause)
            if sync and durability == "os" and index % 16 == 15:
                journal.sync()
        journal.close()
        return
    ledger = open_sync(root, check=None, **settings)

    def run(thread: int) -> None:
        for index in range(thread, count, 4):
            receipt = ledger.append("app.event", payload(index))
            assert receipt is not None
            acknowledged([receipt])

    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.close(60) == 0


if __name__ == "__main__":
    mother()
