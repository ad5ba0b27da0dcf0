"""Several processes on one ledger: each gets its turn, and every record its number."""

import asyncio
import fcntl
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import otledger
from otledger import Draft, Status
from otledger.errors import LockTimeout
from tests.checker import check
from tests.faults.tools import (
    MACHINE,
    closed,
    events,
    holds,
    journal,
    of_type,
    partition,
    payloads,
    put,
    python,
    record_of,
    sane,
    segment_names,
    wait_until,
)
from tests.faults.writers import Writers

LEDGER: dict[str, Any] = {"machine": MACHINE, "service": "test", "min_free": 0}


# At once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["journal", "threads", "tasks"])
@pytest.mark.parametrize("durability", ["disk", "os"])
@pytest.mark.parametrize("processes", [4, 8])
def test_all_at_once(tmp_path: Path, processes: int, durability: str, kind: str) -> None:
    """Records of 100 bytes to 100 KB: all receipts are true, and there is no gap."""
    root = tmp_path / "ledger"
    with Writers() as writers:
        group = writers.start(
            root,
            tmp_path / "acks",
            processes=processes,
            durability=durability,
            kind=kind,
            count=60,
            least=100,
            most=100_000,
            checkpoint_interval=0.01,
            max_segment=1_000_000,
        )
        assert group.wait() == 0
        receipts = group.acknowledged()
    assert len(receipts) == 60 * processes
    records = sane(root, allow=[Status.OK])
    holds(records, receipts)
    # A task emits another before each that it appends.
    assert len(events(records)) == len(receipts) * (2 if kind == "tasks" else 1)
    assert [record["seq"] for record in records] == list(range(len(records)))
    segment_of = {
        seq: name
        for name in segment_names(root)
        for seq in (one["seq"] for one in map(record_of, (partition(root) / name).read_bytes().splitlines()))
    }
    assert all(segment_of[receipt.seq] == receipt.segment for receipt in receipts)
    # Each process's own are in its order, as far as it wrote one after the other.
    if kind == "journal":
        for number in range(processes):
            own = [value[1] for value in payloads(records) if value[0] == number]
            assert own == list(range(60))
    assert len(segment_names(root)) > 1


def test_both_durabilities_at_once(tmp_path: Path) -> None:
    root = tmp_path / "ledger"
    with Writers() as writers:
        groups = [
            writers.start(
                root, tmp_path / f"{durability}{kind}", processes=2, count=50, durability=durability, kind=kind
            )
            for durability in ("disk", "os")
            for kind in ("journal", "threads")
        ]
        assert [group.wait() for group in groups] == [0, 0, 0, 0]
        receipts = [receipt for group in groups for receipt in group.acknowledged()]
    assert len(receipts) == 400
    records = sane(root, allow=[Status.OK])
    holds(records, receipts)
    assert len(events(records)) == 400


def test_opened_first_by_all_at_once(tmp_path: Path) -> None:
    """Nobody has made the folders yet."""
    with Writers() as writers:
        for turn in range(10):
            root = tmp_path / str(turn) / "above" / "ledger"
            group = writers.start(root, tmp_path / f"acks{turn}", processes=6, count=3)
            assert group.wait() == 0
            records = sane(root, allow=[Status.OK])
            holds(records, group.acknowledged())
            assert len(events(records)) == 18
            assert len(of_type(records, "otledger.segment")) == 1


def test_one_comes_and_goes_while_the_others_write(tmp_path: Path) -> None:
    root = tmp_path / "ledger"
    with Writers() as writers:
        group = writers.start(root, tmp_path / "acks", processes=2, count=300)
        receipts = []
        for number in range(40):
            receipts += closed(root, [9, number])
        assert group.wait() == 0
    records = sane(root, allow=[Status.OK])
    holds(records, [*receipts, *group.acknowledged()])
    assert len(events(records)) == 640


# A lock that stays taken ------------------------------------------------------------------------------------

HOLDER = """if True:
    import fcntl, os, sys
    fd = os.open(sys.argv[1], os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


def test_lock_held_by_another_process(root: Path) -> None:
    closed(root, 1)
    with python(HOLDER, partition(root) / ".lock") as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        target = journal(root, lock_timeout=0.2)
        for _ in range(2):
            with pytest.raises(LockTimeout, match=rf"\b{pid}\b") as caught:
                put(target, "never")
            assert "never broken" in str(caught.value)
        with pytest.raises(LockTimeout):
            target.open(timeout=0.01)
        assert target.lock_holder() == pid
        # Nor does closing wait for ever, or break it.
        target.close()
        process.kill()
        process.wait()
    closed(root, 2)
    assert payloads(sane(root, allow=[Status.OK])) == [1, 2]


@pytest.mark.parametrize("durability", ["disk", "os"])
def test_a_lock_that_cannot_be_let_go(root: Path, monkeypatch: pytest.MonkeyPatch, durability: str) -> None:
    """What was written under it is acknowledged, once, and the next gets the lock."""
    real = fcntl.flock

    def flock(fd: int, operation: int) -> None:
        if operation == fcntl.LOCK_UN:
            raise OSError(5, "Input/output error")
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with journal(root, durability=durability) as target:
        receipts = put(target, 1, 2)
        receipts += closed(root, 3, lock_timeout=1)
        receipts += put(target, 4)
    records = sane(root, allow=[Status.OK])
    holds(records, receipts)
    assert payloads(records) == [1, 2, 3, 4]


def test_lock_held_by_a_stopped_writer(tmp_path: Path) -> None:
    """A writer that is stopped in a batch keeps the lock: it is named, and nothing is broken."""
    root = tmp_path / "ledger"
    with Writers() as writers:
        group = writers.start(root, tmp_path / "acks", processes=1, most=100_000)
        wait_until(group.is_writing, "the first acknowledgement")
        target = journal(root, lock_timeout=0.3)
        for _ in range(1000):
            time.sleep(0.003)
            os.killpg(group.pid, signal.SIGSTOP)
            try:
                receipts = put(target, "between")
            except LockTimeout as error:
                message = str(error)
                break
            finally:
                os.killpg(group.pid, signal.SIGCONT)
        else:
            pytest.skip("it was never stopped while it held the lock")
        assert "process" in message
        target.close()
        group.kill()
        receipts = closed(root, "after")
    closed(root)
    records = sane(root)
    holds(records, [*receipts, *group.acknowledged()])


async def test_a_ledger_keeps_its_queue_while_the_lock_is_taken(root: Path) -> None:
    async with otledger.open(root, **LEDGER, lock_timeout=0.2) as ledger:
        await ledger.append("app.event", 0)
        with python(HOLDER, partition(root) / ".lock") as process:
            assert process.stdout is not None
            pid = int(process.stdout.readline())
            ids = [await ledger.emit("app.event", number) for number in range(1, 10)]
            with pytest.raises(LockTimeout, match=rf"\b{pid}\b"):
                await ledger.append("app.event", 10)
            with pytest.raises(LockTimeout, match=rf"\b{pid}\b"):
                await ledger.flush()
            health = ledger.health()
            assert health.state == "blocked"
            assert health.queued_records == 10
            assert str(pid) in (health.last_error or "")
            # Another task is not held up.
            began = time.monotonic()
            await asyncio.sleep(0)
            assert time.monotonic() - began < 5
            process.kill()
            process.wait()
        await ledger.flush()
        receipt = await ledger.append("app.event", 11)
    records = sane(root, allow=[Status.OK])
    assert payloads(records) == list(range(12))
    assert set(ids) <= {record["id"] for record in records}
    holds(records, [receipt] if receipt else [])


async def test_a_ledger_closed_while_the_lock_is_taken(root: Path) -> None:
    ledger = await otledger.open(root, **LEDGER, lock_timeout=0.2)
    await ledger.append("app.event", 0)
    with python(HOLDER, partition(root) / ".lock") as process:
        assert process.stdout is not None
        process.stdout.readline()
        await ledger.emit("app.event", 1)
        assert await ledger.aclose(timeout=0.5) == 1
        process.kill()
        process.wait()
    closed(root, 2)
    values = payloads(sane(root, allow=[Status.OK]))
    # The record was given up, or written in the very moment in which the lock was free; never twice.
    assert sorted(values) in ([0, 2], [0, 1, 2])


# Forks ------------------------------------------------------------------------------------------------------

FORKED = """if True:
    import os, sys
    import otledger
    from otledger import open_sync

    root, durability = sys.argv[1:]
    ledger = open_sync(root, machine="m1", service="test", durability=durability, flush_interval=1.0, min_free=0)
    ledger.append("app.event", "before")
    for number in range(100):
        ledger.emit("app.event", ["parent", number])
    children = []
    for child in range(3):
        pid = os.fork()
        if pid == 0:
            for number in range(20):
                ledger.emit("app.event", ["child", child, number])
            receipt = ledger.append("app.event", ["child", child, "appended"])
            assert ledger.close() == 0
            os._exit(0)
        children.append(pid)
        ledger.emit("app.event", ["parent", 100 + child])
    statuses = [os.waitpid(pid, 0)[1] for pid in children]
    ledger.append("app.event", "after")
    assert ledger.close() == 0
    print(statuses)
"""


@pytest.mark.parametrize("durability", ["disk", "os"])
def test_fork_with_a_queue(root: Path, durability: str) -> None:
    """The child drops its parent's queue, and nothing is written twice."""
    with python(FORKED, root, durability) as process:
        out, _ = process.communicate(timeout=60)
    assert out == "[0, 0, 0]\n"
    values = payloads(sane(root, allow=[Status.OK]))
    assert len(values) == 2 + 103 + 3 * 21
    assert [value[1] for value in values if value[0] == "parent"] == list(range(103))
    for child in range(3):
        own = [value[2] for value in values if value[:2] == ["child", child]]
        assert own == [*range(20), "appended"]


MULTIPROCESSING = """if True:
    import multiprocessing, os, sys, threading
    import otledger
    from otledger import open_sync

    def work(number):
        ledger.append("app.event", ["child", number])
        return os.getpid()

    if __name__ == "__main__":
        ledger = open_sync(sys.argv[1], machine="m1", service="test", min_free=0)
        stop = threading.Event()

        def busy():
            number = 0
            while not stop.is_set():
                ledger.append("app.event", ["parent", number])
                number += 1

        thread = threading.Thread(target=busy)
        thread.start()
        with multiprocessing.get_context("fork").Pool(4, maxtasksperchild=5) as pool:
            pids = pool.map(work, range(60), chunksize=1)
        stop.set()
        thread.join()
        ledger.close()
        print(len(set(pids)) > 1)
"""


def test_a_pool_of_forked_workers_under_a_busy_parent(root: Path) -> None:
    """Forks in the middle of batches, with a thread that appends all the time."""
    with python(MULTIPROCESSING, root) as process:
        out, _ = process.communicate(timeout=100)
    assert out == "True\n"
    values = payloads(sane(root))
    assert sorted(value[1] for value in values if value[0] == "child") == list(range(60))
    parents = [value[1] for value in values if value[0] == "parent"]
    assert parents == list(range(len(parents)))


def test_a_child_killed_in_the_middle(root: Path) -> None:
    """A forked child dies without a word; its parent goes on."""
    with journal(root) as target:
        put(target, "before")
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                try:
                    while True:
                        target.append([Draft("app.event", "x" * 2000)])
                finally:
                    os._exit(1)
            time.sleep(0.005)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            put(target, "parent")
        check(partition(root))
    records = sane(root)
    assert payloads(records).count("parent") == 20
