"""What the processes of the self-test do: write until killed, count under the lock, hold it, meet a full disk.

python -m otledger.selftest.child ROLE FOLDER ...
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

from otledger.errors import JournalError
from otledger.journal import Journal, Receipt
from otledger.lock import PartitionLock
from otledger.record import Draft
from otledger.segment import open_folder

MACHINE = "self-test"
COUNTER = "counter"
PAYLOAD = "x" * 2048


def open_journal(root: Path) -> Journal:
    """Give the journal that is tested; what is doubtful about its root is said elsewhere."""
    return Journal(root, machine=MACHINE, service="self-test", force=True)


def say(what: str) -> None:
    """Tell the parent something."""
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def acknowledge(fd: int, receipts: list[Receipt]) -> None:
    """Write down what was acknowledged, a line each."""
    os.write(fd, "".join(f"{one.id} {one.seq} {one.checksum}\n" for one in receipts).encode())


def write(root: Path, acks: str) -> None:
    """Append until killed."""
    fd = os.open(acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with open_journal(root) as journal:
        while True:
            acknowledge(fd, journal.append([Draft("selftest.event", PAYLOAD)]))


def count(folder: Path, times: str) -> None:
    """Add one to a number in a file, again and again, in a way that only a lock makes right."""
    fd = open_folder(folder)
    lock = PartitionLock(fd, folder, 0o600)
    path = folder / COUNTER
    for _ in range(int(times)):
        lock.acquire(60)
        number = int(path.read_text() or "0")
        path.write_text(str(number + 1))
        lock.release()


def hold(folder: Path) -> None:
    """Take the lock, say so, and keep it until killed."""
    lock = PartitionLock(open_folder(folder), folder, 0o600)
    lock.acquire(60)
    say("held")
    signal.pause()


def fill(root: Path, acks: str, room: str) -> None:
    """Append with room for so many bytes, then with as much as is wanted."""
    fd = os.open(acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    drafts = [Draft("selftest.event", [number, PAYLOAD]) for number in range(8)]
    with open_journal(root) as journal:
        acknowledge(fd, journal.append(drafts[:1]))
        size = max(path.stat().st_size for path in journal.path.glob("*.jsonl"))
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + int(room), hard))
        receipts: list[Receipt] = []
        try:
            receipts = journal.append(drafts)
        except JournalError as error:
            receipts = error.receipts
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        acknowledge(fd, receipts)
        if len(receipts) == len(drafts):
            say("it was not full")
        acknowledge(fd, journal.append(drafts[len(receipts) :]))


ROLES = {"write": write, "count": count, "hold": hold, "fill": fill}


def main() -> None:
    """Play a role until done, or until the parent is no more."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    role, folder, *rest = sys.argv[1:]
    ROLES[role](Path(folder), *rest)  # type: ignore[operator]


if __name__ == "__main__":
    main()
