"""What is recorded to be crashed: the ways in which a journal writes, each as short as it can be."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from otledger import Journal, clock, identity
from otledger.errors import LockTimeout
from tests.faults.crashes import Diary, Life, Story
from tests.faults.recorder import Killed
from tests.faults.tools import LOCKS, append_bytes, journal, lines_of, newest, partition, restamp


def dies(target: Journal) -> None:
    """Its process is no more: the kernel closes what it had open."""
    target.after_fork()


def batches(**settings: Any) -> Life:
    """A partition from its beginning, in batches of several sizes."""

    def live(root: Path, diary: Diary) -> None:
        target = journal(root, **settings)
        diary.put(target, 1)
        diary.put(target, 2, 3, 4)
        diary.put(target, 5, 6, size=300)
        diary.sync(target)
        diary.put(target, 7, 8, 9, 10, 11, size=150)
        diary.put(target, 12)
        diary.sync(target)
        target.close()

    return live


def few(**settings: Any) -> Life:
    def live(root: Path, diary: Diary) -> None:
        target = journal(root, **settings)
        diary.put(target, 201)
        diary.put(target, 202, 203, 204, size=100)
        target.close()

    return live


def unsynced(root: Path, diary: Diary) -> None:
    """At `os`: much is written between two syncs, with checkpoints over what was durable before."""
    target = journal(root, durability="os")
    covers = journal(root, durability="os", checkpoint_interval=1e-9)
    diary.put(target, 1)
    diary.sync(target)
    diary.put(target, 2, 3, size=100)
    diary.put(covers, 4, 5, 6, size=40)
    diary.put(target, 7)
    diary.put(target, 8, 9, size=200)
    diary.sync(target)
    diary.put(target, 10)
    diary.put(covers, 11, size=500)
    dies(target)
    covers.close()


def two_writers(durability: str) -> Life:
    """They take turns, as processes do over the lock."""

    def live(root: Path, diary: Diary) -> None:
        one, other = journal(root, durability=durability), journal(root, durability=durability)
        diary.put(one, 1)
        diary.put(other, 2, 3)
        diary.put(one, 4, size=300)
        diary.put(other, 5)
        dies(one)
        diary.put(other, 6, 7, size=100)
        diary.sync(other)
        other.close()

    return live


def a_month_begins(root: Path, diary: Diary) -> None:
    with patch.object(clock, "believed_month", lambda *_: "2020-01"):
        target = journal(root, durability="os")
        diary.put(target, 1, 2, size=100)
    diary.put(target, 3)
    diary.put(target, 4, 5, size=100)
    diary.sync(target)
    target.close()


def keeps_what_cannot_be_appended(root: Path, diary: Diary) -> None:
    target = journal(root)
    diary.put(target, 1)
    diary.set_aside(target, "gap", b"kept " * 300)
    diary.put(target, 2)
    target.close()


def died(root: Path, diary: Diary) -> None:
    target = journal(root)
    diary.put(target, -103, -102)
    diary.put(target, -101)
    dies(target)


def died_in_a_write(root: Path, diary: Diary) -> None:
    died(root, diary)
    append_bytes(newest(root), b'{"specversion":"1.0","id":"torn' * 30)


def died_in_a_cut(root: Path, diary: Diary) -> None:
    died(root, diary)
    (partition(root) / "2099-01.jsonl").write_bytes(b'{"specversion"')


def died_in_both(root: Path, diary: Diary) -> None:
    died_in_a_write(root, diary)
    (partition(root) / "2099-01.jsonl").write_bytes(b"")


def died_elsewhere(root: Path, diary: Diary) -> None:
    """On another host, in a write."""
    with patch.object(identity, "host_hash", lambda: "0" * 32):
        died_in_a_write(root, diary)


def lost_power_in_a_write(root: Path, diary: Diary) -> None:
    died_in_a_write(root, diary)
    LOCKS["another boot"](root)


def died_in_the_second_segment(root: Path, diary: Diary) -> None:
    first = journal(root)
    diary.put(first, -103)
    first.close()
    second = journal(root, max_segment=1)
    diary.put(second, -102)
    second.close()
    died_later = journal(root)
    diary.put(died_later, -101)
    dies(died_later)


def dies_in_a_sync(*, number: int = 1, fresh: bool = False, **settings: Any) -> Life:
    """Two processes; a sync of one fails, and it dies before it learns of that. The other goes on, or a `fresh` one."""

    def live(root: Path, diary: Diary) -> None:
        one, other = journal(root, **settings), journal(root, **settings)
        diary.put(one, 1)
        diary.put(other, 2, 3)
        diary.recorder.die_in_sync(number)
        with suppress(Killed):
            diary.put(one, 4, 5, size=200)
            diary.sync(one)
        diary.recorder.is_another_process()
        dies(one)
        if fresh:
            dies(other)
            other = journal(root)
        diary.put(other, 6)
        diary.put(other, 7, size=100)
        diary.sync(other)
        dies(other)

    return live


def one_dies(at: int, *, half: bool = False, **settings: Any) -> Life:
    """Two processes; one dies in its batch, in the call with this number. The other has its files open, and goes on."""

    def live(root: Path, diary: Diary) -> None:
        one, other = journal(root, **settings), journal(root, **settings)
        diary.put(one, 1)
        diary.put(other, 2, 3)
        diary.recorder.die_in(at, half=half)
        with suppress(Killed):
            diary.put(one, 4, 5, size=200)
            diary.sync(one)
        if not diary.recorder.is_another_process():
            raise NeverDied
        dies(one)
        diary.put(other, 6)
        diary.put(other, 7, size=100)
        diary.sync(other)
        dies(other)

    return live


class NeverDied(Exception):
    """The process was through with its batch before."""


def the_lock_is_replaced(root: Path, diary: Diary) -> None:
    """As a checkout does, while one process has it open. It comes in the middle of another's batch."""
    one = journal(root, lock_timeout=0.01)
    diary.put(one, 1)
    lock = partition(root) / ".lock"
    content = lock.read_bytes()
    os.unlink(lock)
    fd = os.open(lock, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(fd, content)
    os.close(fd)
    other = journal(root)
    diary.put(other, 2, 3)
    real = os.write

    def write(fd: int, data: Any) -> int:
        os.write = real
        with suppress(LockTimeout):
            diary.put(one, 4)
        return real(fd, data)

    with patch.object(os, "write", write):
        diary.put(other, 5, 6, size=50)
    diary.put(one, 7)
    dies(one)
    other.close()


def somebody_writes(root: Path, diary: Diary) -> None:
    """A line of another program, and one with a number that is taken, between batches."""
    target = journal(root)
    diary.put(target, 1, 2)
    diary.somebody_writes(newest(root), b'{"hello":"world"}\n')
    diary.put(target, 3, size=100)
    last = lines_of(newest(root))[-1]
    diary.somebody_writes(newest(root), restamp(last.replace(b'"id":"', b'"id":"other ')))
    diary.put(target, 4)
    diary.put(target, 5, 6, size=50)
    diary.somebody_writes(newest(root), b'{"bye":"world"}\n')
    target.close()


STORIES: dict[str, Story] = {
    "batches at disk": Story(batches()),
    "batches at os": Story(batches(durability="os")),
    "unsynced batches with checkpoints": Story(unsynced),
    "cuts at disk": Story(batches(max_segment=1500)),
    "cuts at os": Story(batches(max_segment=1500, durability="os")),
    "a month begins": Story(a_month_begins),
    "two writers at disk": Story(two_writers("disk")),
    "two writers at os": Story(two_writers("os")),
    "bytes that cannot be appended": Story(keeps_what_cannot_be_appended),
    "after a death": Story(few(), died),
    "after a death at os": Story(few(durability="os"), died),
    "after a power cut in a write": Story(few(), lost_power_in_a_write),
    "after a death in a write": Story(few(), died_in_a_write),
    "after a death in a cut": Story(few(), died_in_a_cut),
    "after a death in both": Story(few(), died_in_both),
    "taken over": Story(few(), died_elsewhere),
    "a full disk": Story(batches(), full_at=(3,)),
    "a full disk at os": Story(batches(durability="os"), full_at=(2, 5)),
    "a disk that is full at a cut": Story(batches(max_segment=1500), full_at=(3, 6)),
    "a sync fails": Story(batches(), bad_syncs=(3,)),
    "a sync fails at os": Story(batches(durability="os"), bad_syncs=(2,)),
    "two syncs fail": Story(batches(), bad_syncs=(3, 4)),
    "two syncs fail at os": Story(batches(durability="os"), bad_syncs=(2, 3)),
    "two syncs fail later": Story(batches(), bad_syncs=(3, 5)),
    "a process dies in a sync that fails": Story(dies_in_a_sync()),
    "a process dies in a sync that fails at os": Story(dies_in_a_sync(durability="os")),
    "a process dies in the sync of a new segment": Story(dies_in_a_sync(number=2, fresh=True, max_segment=1000)),
    "the first sync after a power cut fails": Story(few(), lost_power_in_a_write, bad_syncs=(1,)),
    "the first sync fails": Story(few(), died, bad_syncs=(1,)),
    "the first sync of all fails": Story(batches(), bad_syncs=(1,)),
    "the first sync after a torn write fails": Story(few(), died_in_a_write, bad_syncs=(1,)),
    "syncs fail at a cut": Story(batches(max_segment=1500), died_in_the_second_segment, bad_syncs=(3, 4)),
    "a lock that is replaced": Story(the_lock_is_replaced),
    "lines of somebody else": Story(somebody_writes),
    "syncs fail at a cut at os": Story(batches(max_segment=1500, durability="os"), bad_syncs=(3, 4)),
}
