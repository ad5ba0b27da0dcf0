"""What a ledger does when the disk, the lock, the queue, the space or the files are not as they should be."""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import otledger
from otledger import writer
from otledger.errors import (
    DiskFull,
    FormatError,
    JournalError,
    LedgerClosed,
    LedgerDamaged,
    LowSpace,
    QueueFull,
    RootError,
)
from tests.checker import check
from tests.conftest import Hang, Script

Json = dict[str, Any]
CheckAll = Callable[[Path], dict[str, list[Json]]]
Events = Callable[[], list[Json]]


@pytest.fixture
def all_records(root: Path, check_all: CheckAll) -> Callable[[], list[Json]]:
    """Give the records of machine m1, as the checker reads them."""
    return lambda: check_all(root)["m1"]


@pytest.fixture
def events(all_records: Callable[[], list[Json]]) -> Events:
    """Give the callers' events among them."""
    return lambda: [record for record in all_records() if not record["type"].startswith(("otledger.", "otel."))]


def gaps(records: list[Json]) -> dict[str, int]:
    """How many records each reason of a gap accounts for."""
    found: dict[str, int] = {}
    for record in records:
        if record["type"] == "otledger.gap":
            data = record["data"]
            assert data["first"] <= data["last"]
            found[data["reason"]] = found.get(data["reason"], 0) + data["count"]
    return found


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Failing:
    """Has writes to segments fail with an error number while it is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.errno: int | None = None
        self.calls = 0
        real = os.write

        def write(fd: int, data: Any) -> int:
            if self.errno is not None and os.readlink(f"/proc/self/fd/{fd}").endswith(".jsonl"):
                self.calls += 1
                raise OSError(self.errno, os.strerror(self.errno))
            return real(fd, data)

        monkeypatch.setattr(os, "write", write)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    return Failing(monkeypatch)


@pytest.fixture
def lock_held(root: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Have another process hold the lock of m1 until its standard input is closed."""
    started: list[subprocess.Popen[bytes]] = []
    program = (
        "import fcntl, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(fd, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )

    def hold() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", program, str(root / "m1" / ".lock")]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        return process

    yield hold
    for process in started:
        process.communicate()


# The loop is never held up


async def ticks_while(condition: Callable[[], bool], pause: float = 0.005) -> int:
    """How often another task runs until the condition holds, and that no turn of it takes long."""
    ticks = 0
    while not condition():
        ticks += 1
        await asyncio.sleep(pause)
    return ticks


@pytest.mark.parametrize("call", ["write", "fdatasync", "flock"])
async def test_what_hangs_delays_no_other_task(root: Path, hang: Hang, call: str, events: Events) -> None:
    async with otledger.open(root, machine="m1") as ledger:
        await ledger.append("before")
        hang.start(call)
        pending = [asyncio.create_task(ledger.append("pending", n)) for n in range(10)]
        await until(hang.reached.is_set)
        end = time.monotonic() + 0.5

        async def busy() -> int:
            done = 0
            while time.monotonic() < end:
                await ledger.emit("busy", done)
                async with ledger.span("work"):
                    ledger.emit_nowait("nowait", done)
                done += 1
                await asyncio.sleep(0.005)
            return done

        ticks, done = await asyncio.gather(ticks_while(lambda: time.monotonic() >= end), busy())
        # Of about a hundred each.
        assert ticks >= 20
        assert done >= 20
        assert not any(task.done() for task in pending)
        assert ledger.health().queued_records >= 2 * done
        hang.stop()
        receipts = await asyncio.gather(*pending)
    assert all(receipts)
    stored = [event["type"] for event in events()]
    assert {kind: stored.count(kind) for kind in set(stored)} == {
        "before": 1,
        "pending": 10,
        "busy": done,
        "nowait": done,
    }


@pytest.mark.parametrize("call", ["write", "fdatasync", "flock"])
async def test_opening_and_closing_hold_nobody_up_either(root: Path, hang: Hang, call: str) -> None:
    async with otledger.open(root, machine="m1") as ledger:
        await ledger.emit("a")
    hang.start(call)

    async def whole_life() -> None:
        async with otledger.open(root, machine="m1") as ledger:
            await ledger.emit("b")

    life = asyncio.create_task(whole_life())
    await until(hang.reached.is_set)
    end = time.monotonic() + 0.5
    assert await ticks_while(lambda: time.monotonic() >= end) >= 20
    assert not life.done()
    hang.stop()
    await life


async def test_a_lock_that_is_held_holds_up_no_other_ledger(root: Path, tmp_path: Path, lock_held: Any) -> None:
    async with otledger.open(root, machine="m1"):
        pass
    holder = lock_held()
    waiting = asyncio.create_task(otledger.open(root, machine="m1", lock_timeout=8.0).__aenter__())
    await asyncio.sleep(0.2)
    try:
        async with asyncio.timeout(4):
            async with otledger.open(tmp_path / "other", machine="m1") as other:
                await other.append("a")
    finally:
        holder.communicate()
        ledger = await waiting
        await ledger.aclose()


async def test_a_lock_held_by_another_process_is_waited_for_and_reported(
    root: Path, lock_held: Any, events: Events
) -> None:
    errors: list[BaseException] = []
    async with otledger.open(root, machine="m1", lock_timeout=0.3) as ledger:
        ledger.on_error(errors.append)
        holder = lock_held()
        with pytest.raises(otledger.JournalError, match=f"process {holder.pid}"):
            await asyncio.wait_for(ledger.append("a"), 5)
        await asyncio.sleep(1)
        assert ledger.health().state == "blocked"
        assert any(str(holder.pid) in str(error) for error in errors)
        holder.communicate()
        await ledger.flush()
        assert ledger.health().state == "ok"
    assert [event["type"] for event in events()] == ["a"]


# Cancelling, closing in time


async def test_cancelling_append_withdraws_nothing(root: Path, hang: Hang, events: Events) -> None:
    async with otledger.open(root, machine="m1") as ledger:
        await ledger.append("before")
        hang.start("fdatasync")
        first = asyncio.create_task(ledger.append("in flight"))
        await until(hang.reached.is_set)
        queued = asyncio.create_task(ledger.append("queued"))
        kept = asyncio.create_task(ledger.append("kept"))
        await asyncio.sleep(0.01)
        for task in (first, queued):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert not kept.done()
        hang.stop()
        receipt = await kept
    stored = events()
    assert [event["type"] for event in stored] == ["before", "in flight", "queued", "kept"]
    assert receipt is not None
    assert stored[-1]["seq"] == receipt.seq


async def test_cancelling_emit_that_waits_for_a_place_withdraws_it(root: Path, hang: Hang, events: Events) -> None:
    async with otledger.open(root, machine="m1", queue_records=4) as ledger:
        await ledger.append("before")
        hang.start("fdatasync")
        for n in range(4):
            await ledger.emit("fits", n)
        waiting = [asyncio.create_task(ledger.emit("waits", n)) for n in range(3)]
        waiting_append = asyncio.create_task(ledger.append("waits to append"))
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in [*waiting, waiting_append])
        for task in (waiting[1], waiting_append):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        hang.stop()
        ids = [await waiting[0], await waiting[2]]
    stored = events()
    assert [event["data"] for event in stored if event["type"] == "fits"] == [0, 1, 2, 3]
    assert {event["id"] for event in stored if event["type"] == "waits"} == set(ids)
    assert not any(event["type"] == "waits to append" for event in stored)


@pytest.mark.parametrize("call", ["write", "fdatasync"])
async def test_aclose_gives_how_many_are_left(
    root: Path, hang: Hang, call: str, caplog: pytest.LogCaptureFixture, all_records: Callable[[], list[Json]]
) -> None:
    ledger = await otledger.open(root, machine="m1")
    await ledger.append("before")
    hang.start(call)
    pending = asyncio.create_task(ledger.append("pending"))
    await until(hang.reached.is_set)
    for n in range(9):
        await ledger.emit("a", n)
    before = time.monotonic()
    with caplog.at_level(logging.CRITICAL, "otledger"):
        assert await ledger.aclose(timeout=0.3) == 10
    assert 0.25 < time.monotonic() - before < 5
    assert "10 records unwritten" in caplog.text
    with pytest.raises(otledger.LedgerClosed):
        await asyncio.wait_for(pending, 3)
    with pytest.raises(otledger.LedgerClosed):
        await ledger.emit("late")
    hang.stop()
    # The thread that hung lets its files go.
    await until(lambda: not open_files(root))
    assert not any(record["type"] == "late" for record in all_records())


def open_files(root: Path) -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if path.startswith(str(root.resolve())):
            found.append(path)
    return found


async def test_aclose_that_is_cancelled_goes_on(root: Path, hang: Hang, events: Events) -> None:
    ledger = await otledger.open(root, machine="m1")
    await ledger.append("before")
    hang.start("fdatasync")
    await ledger.emit("a")
    closing = asyncio.create_task(ledger.aclose())
    await until(hang.reached.is_set)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    hang.stop()
    await until(lambda: not open_files(root))
    assert [event["type"] for event in events()] == ["before", "a"]


# The queue


async def test_a_full_queue_makes_emit_wait(root: Path, hang: Hang, events: Events) -> None:
    async with otledger.open(root, machine="m1", queue_records=8) as ledger:
        await ledger.append("before")
        hang.start("fdatasync")
        for n in range(8):
            await ledger.emit("a", n)
        waiting = asyncio.create_task(ledger.emit("a", 8))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        assert ledger.health().queued_records == 8
        with pytest.raises(otledger.QueueFull, match=r"8 records.*queue_records"):
            ledger.emit_nowait("refused")
        hang.stop()
        await waiting
    assert [event["data"] for event in events()[1:]] == list(range(9))


async def test_waiting_for_a_place_has_a_deadline(root: Path, hang: Hang, events: Events) -> None:
    async with otledger.open(root, machine="m1", queue_records=2, queue_timeout=0.2) as ledger:
        await ledger.append("before")
        hang.start("fdatasync")
        await ledger.emit("a")
        await ledger.emit("a")
        before = time.monotonic()
        for emit in (ledger.emit, ledger.append):
            with pytest.raises(otledger.QueueFull, match=r"2 records.*0\.2 s"):
                await emit("refused")
        assert 0.35 < time.monotonic() - before < 5
        hang.stop()
    assert [event["type"] for event in events()] == ["before", "a", "a"]


async def test_the_queue_is_bounded_in_bytes_too(root: Path, hang: Hang, events: Events) -> None:
    async with otledger.open(root, machine="m1", queue_bytes=10_000, queue_policy="raise") as ledger:
        await ledger.append("before")
        hang.start("fdatasync")
        fits = 0
        with contextlib.suppress(otledger.QueueFull):
            while fits < 100:
                await ledger.emit("a", "x" * 1000)
                fits += 1
        assert 5 <= fits <= 12
        assert ledger.health().queued_bytes >= 10_000
        hang.stop()
    assert len(events()) == fits + 1


async def test_a_full_queue_may_raise_at_once(root: Path, hang: Hang, all_records: Callable[[], list[Json]]) -> None:
    async with otledger.open(root, machine="m1", queue_records=2, queue_policy="raise") as ledger:
        await ledger.append("before")
        hang.start("fdatasync")
        await ledger.emit("a")
        await ledger.emit("a")
        async with asyncio.timeout(5):
            for emit in (ledger.emit, ledger.append):
                with pytest.raises(otledger.QueueFull):
                    await emit("refused")
        with pytest.raises(otledger.QueueFull):
            ledger.emit_nowait("refused")
        hang.stop()
        await ledger.flush()
        await ledger.emit("again")
    assert [record["type"] for record in all_records() if record["type"] in ("a", "refused", "again")] == [
        *"aa",
        "again",
    ]
    assert gaps(all_records()) == {}


async def test_a_full_queue_may_drop_and_says_so(root: Path, hang: Hang, all_records: Callable[[], list[Json]]) -> None:
    async with otledger.open(root, machine="m1", queue_records=3, queue_policy="drop") as ledger:
        await ledger.append("before")
        hang.start("fdatasync")
        for _ in range(3):
            assert await ledger.emit("a")
        for _ in range(5):
            assert await ledger.emit("dropped") == ""
        assert ledger.emit_nowait("dropped") == ""
        assert await ledger.append("dropped") is None
        assert ledger.health().dropped == 7
        hang.stop()
        await ledger.flush()
        assert await ledger.emit("again")
    records = all_records()
    assert [record["type"] for record in records if not record["type"].startswith("otledger.")] == [
        *("before", "a", "a", "a", "again")
    ]
    assert gaps(records) == {"queue full": 7}


@pytest.mark.parametrize("policy", ["wait", "raise", "drop"])
def test_the_policies_without_asyncio(
    root: Path, hang: Hang, policy: Any, all_records: Callable[[], list[Json]]
) -> None:
    with otledger.open_sync(root, machine="m1", queue_records=2, queue_policy=policy, queue_timeout=0.2) as ledger:
        ledger.append("before")
        hang.start("fdatasync")
        ledger.emit("a")
        ledger.emit("a")
        if policy == "drop":
            assert ledger.emit("more") == ""
            assert ledger.append("more") is None
        else:
            for emit in (ledger.emit, ledger.append):
                with pytest.raises(otledger.QueueFull):
                    emit("more")
        if policy == "wait":
            late = threading.Thread(target=lambda: (time.sleep(0.05), hang.stop()))
            late.start()
            assert ledger.emit("waited")
            late.join()
        hang.stop()
    stored = [record["type"] for record in all_records() if not record["type"].startswith("otledger.")]
    assert stored == ["before", "a", "a", *(["waited"] if policy == "wait" else [])]
    assert gaps(all_records()) == ({"queue full": 2} if policy == "drop" else {})


# Spans and the queue


async def test_a_span_ends_when_its_block_ends_however_long_its_record_waits(
    root: Path, hang: Hang, all_records: Callable[[], list[Json]]
) -> None:
    async with otledger.open(root, machine="m1", queue_records=2) as ledger:
        await ledger.append("before")
        hang.start("fdatasync")
        await ledger.emit("a")
        await ledger.emit("a")

        async def work() -> None:
            async with ledger.span("work"):
                pass

        task = asyncio.create_task(work())
        await asyncio.sleep(0.5)
        assert not task.done()
        hang.stop()
        await task
    (end,) = [record["data"] for record in all_records() if record["type"] == "otel.span.end"]
    assert end["end"] - end["start"] < 400_000_000


@pytest.mark.parametrize("policy", ["wait", "raise", "drop"])
async def test_a_span_without_a_place_never_hides_what_its_block_raised(
    root: Path, hang: Hang, policy: Any, all_records: Callable[[], list[Json]]
) -> None:
    options: Json = {"queue_records": 2, "queue_timeout": 0.1, "queue_policy": policy}
    async with otledger.open(root, machine="m1", **options) as ledger:
        await ledger.append("before")
        hang.start("fdatasync")
        await ledger.emit("a")
        await ledger.emit("a")
        with pytest.raises(ZeroDivisionError):
            async with ledger.span("async"):
                raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError), ledger.span("sync"):
            raise ZeroDivisionError
        assert ledger.health().dropped == 2
        hang.stop()
    assert gaps(all_records()) == {"queue full": 2}


# Writes that fail


async def test_a_failed_write_never_fails_the_program(
    root: Path, failing: Failing, caplog: pytest.LogCaptureFixture, all_records: Callable[[], list[Json]]
) -> None:
    errors: list[BaseException] = []
    async with otledger.open(root, machine="m1") as ledger:

        @ledger.on_error
        def broken(error: BaseException) -> None:
            raise RuntimeError("a listener's mistake")

        assert ledger.on_error(errors.append) == errors.append
        await ledger.append("before")
        failing.errno = errno.ENOSPC
        with pytest.raises(DiskFull, match="free some space") as caught:
            await ledger.append("waiter")
        assert isinstance(caught.value, otledger.JournalError)
        ids = [await ledger.emit("a", n) for n in range(100)]
        async with ledger.span("work"):
            pass
        with pytest.raises(DiskFull):
            await asyncio.wait_for(ledger.flush(), 10)
        await until(lambda: ledger.health().errors >= 2)
        health = ledger.health()
        assert (health.state, health.queued_records) == ("failing", 102)
        assert "No space left" in str(health.last_error)
        assert isinstance(errors[0], DiskFull)
        calls = failing.calls
        await until(lambda: failing.calls > calls)
        failing.errno = None
        await until(lambda: ledger.health().queued_records == 0)
        health = ledger.health()
        assert (health.state, health.accepted, health.dropped) == ("ok", 103, 0)
        await ledger.flush()
    records = all_records()
    stored = [record for record in records if record["type"] in ("before", "waiter", "a")]
    assert [record["type"] for record in stored] == ["before", "waiter", *"a" * 100]
    assert [record["id"] for record in stored[2:]] == ids
    assert sum(record["type"] == "otel.span.end" for record in records) == 1
    assert gaps(records) == {}


async def test_a_program_may_ask_for_the_error(root: Path, failing: Failing, events: Events) -> None:
    async with otledger.open(root, machine="m1", raise_errors=True) as ledger:
        await ledger.append("before")
        failing.errno = errno.EIO
        await ledger.emit("queued")
        await until(lambda: ledger.health().state == "failing")
        with pytest.raises(otledger.JournalError, match="Input/output error"):
            await ledger.emit("refused")
        with pytest.raises(otledger.JournalError, match="Input/output error"):
            ledger.emit_nowait("refused")
        failing.errno = None
        await until(lambda: ledger.health().state == "ok")
        await ledger.emit("again")
    assert [event["type"] for event in events()] == ["before", "queued", "again"]


async def test_a_failed_sync_loses_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, all_records: Callable[[], list[Json]]
) -> None:
    real = os.fdatasync
    failures = 0

    def fdatasync(fd: int) -> None:
        nonlocal failures
        if failures == 0:
            failures += 1
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    async with otledger.open(root, machine="m1") as ledger:
        await ledger.append("before")
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        receipt = await ledger.append("a")
        await ledger.append("b")
    assert failures == 1
    records = all_records()
    assert [record["type"] for record in records if not record["type"].startswith("otledger.")] == ["before", "a", "b"]
    assert [record["data"]["reason"] for record in records if record["type"] == "otledger.segment"] == ["new", "fault"]
    assert receipt is not None
    (a,) = [record for record in records if record["type"] == "a"]
    assert (receipt.seq, receipt.checksum) == (a["seq"], a["checksum"])
    assert receipt.id.encode() in (root / "m1" / receipt.segment).read_bytes()


async def probe(ledger: otledger.Ledger) -> None:
    async with asyncio.timeout(10):
        while True:
            await ledger.emit("probe")
            await asyncio.sleep(0.05)


async def test_little_space_refuses_new_events_and_counts_them(
    root: Path, monkeypatch: pytest.MonkeyPatch, all_records: Callable[[], list[Json]]
) -> None:
    real = os.statvfs
    low = False

    def statvfs(path: Any) -> Any:
        found = real(path)
        return os.statvfs_result([*found[:3], 1, 1, *found[5:]]) if low else found

    monkeypatch.setattr(os, "statvfs", statvfs)
    async with otledger.open(root, machine="m1", min_free=1 << 20) as ledger:
        await ledger.emit("before")
        low = True
        with pytest.raises(LowSpace):
            await probe(ledger)
        assert ledger.health().state == "low space"
        for emit in (ledger.emit, ledger.append):
            with pytest.raises(LowSpace, match="min_free"):
                await emit("refused")
        with pytest.raises(LowSpace):
            ledger.emit_nowait("refused")
        assert ledger.health().dropped == 4
        low = False
        await until(lambda: ledger.health().state == "ok")
        await ledger.emit("after")
    records = all_records()
    assert gaps(records) == {"little space": 4}
    kinds = [record["type"] for record in records]
    assert "refused" not in kinds
    assert {"before", "after"} <= set(kinds)


# Health


async def test_the_figures_of_health(root: Path, hang: Hang) -> None:
    async with otledger.open(root, machine="m1") as ledger:
        health = ledger.health()
        assert health == otledger.Health("ok", 0, 0, 0, 0, 0, 0, 0, 0, None)
        for n in range(10):
            await ledger.emit("a", n)
        await ledger.flush()
        health = ledger.health()
        assert (health.accepted, health.written, health.durable, health.queued_records) == (10, 10, 10, 0)
        hang.start("fdatasync")
        await ledger.emit("b", "x" * 1000)
        await until(hang.reached.is_set)
        await ledger.emit("c", "x" * 2000)
        health = ledger.health()
        assert (health.accepted, health.written, health.durable, health.queued_records) == (12, 10, 10, 2)
        assert 3000 < health.queued_bytes < 5000
        assert health.state == "ok"
        await asyncio.sleep(1.1)
        assert ledger.health().state == "blocked"
        hang.stop()
        await ledger.flush()
        health = ledger.health()
        assert (health.state, health.queued_records, health.queued_bytes) == ("ok", 0, 0)
        assert (health.dropped, health.invalid, health.errors, health.last_error) == (0, 0, 0, None)


async def test_what_is_accepted_is_what_is_queued_and_written(root: Path) -> None:
    async with otledger.open(root, machine="m1") as ledger:
        for n in range(5):
            await ledger.emit("a", n)
            async with ledger.span("open while its batch is written"):
                await ledger.flush()
        await ledger.flush()
        health = ledger.health()
        assert health.queued_records == 0
        assert health.accepted == health.written == health.durable


def test_at_os_durable_comes_after_written(root: Path, hang: Hang) -> None:
    with otledger.open_sync(root, machine="m1", durability="os", sync_interval=60.0) as ledger:
        ledger.append("a")
        health = ledger.health()
        assert (health.written, health.durable) == (1, 1)  # durable: as durable as configured


def test_a_sync_in_the_background_that_fails_is_tried_again_after_a_pause(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, events: Events
) -> None:
    monkeypatch.setattr(writer, "FIRST_PAUSE", 3600.0)
    with otledger.open_sync(root, machine="m1", durability="os", sync_interval=0.1) as ledger:
        receipt = ledger.append("a")
        assert receipt is not None
        # What is torn has to be set aside first, and cannot be.
        (root / "m1" / "quarantine").write_text("")
        with (root / "m1" / receipt.segment).open("ab") as file:
            file.write(b"torn")
        wait_until(lambda: ledger.health().errors > 0)
        time.sleep(0.3)
        assert ledger.health().errors == 1
        (root / "m1" / "quarantine").unlink()
        ledger.append("b")
    assert [event["type"] for event in events()] == ["a", "b"]
    assert caplog.text.count("the line is torn") == 1


def test_an_append_while_only_a_sync_fails_is_tried(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncing, told = threading.Event(), threading.Event()

    def sync(journal: otledger.Journal) -> None:
        syncing.set()
        told.wait(10)
        raise JournalError("the disk is full")

    monkeypatch.setattr(otledger.Journal, "sync", sync)
    with otledger.open_sync(root, machine="m1", durability="os", sync_interval=0.01) as ledger:
        ledger.append("a")
        assert syncing.wait(10)
        with ThreadPoolExecutor() as threads:
            receipt = threads.submit(ledger.append, "b")
            wait_until(lambda: ledger.health().queued_records == 1)
            told.set()
            assert receipt.result(10) is not None


# Roots and files that are not as they should be


def test_a_root_that_is_a_file(root: Path) -> None:
    root.write_text("not a ledger")
    with pytest.raises(RootError, match="is a file"):
        otledger.open_sync(root)
    assert root.read_text() == "not a ledger"


def test_a_root_that_is_a_symlink(root: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    root.symlink_to(tmp_path / "there")
    with pytest.raises(RootError, match="symbolic link"):
        otledger.open_sync(root)
    assert list((tmp_path / "there").iterdir()) == []


def test_a_root_that_others_may_write(root: Path, all_records: Callable[[], list[Json]]) -> None:
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(RootError, match=r"chmod o-w"):
        otledger.open_sync(root)
    with otledger.open_sync(root, machine="m1", force=True) as ledger:
        ledger.emit("a")
    assert all_records()[1]["type"] == "a"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody who may not write")
def test_a_root_that_is_not_writable(tmp_path: Path, script: Script) -> None:
    tmp_path.chmod(0o755)
    program = """
        import os, sys, otledger
        otledger.open_sync("mine").close()  # everything is loaded
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        for root in (".", "new"):
            try:
                otledger.open_sync(root)
            except otledger.LedgerError as error:
                print(type(error).__name__, error)
    """
    process = script(program)
    first, second = process.communicate(timeout=30)[0].splitlines()
    assert process.returncode == 0
    assert first.startswith("RootError")
    assert "not writable" in first
    assert second.startswith("RootError")
    assert "write permission" in second


@pytest.mark.parametrize("umask", [0, 0o777])
def test_folders_and_files_are_for_the_owner_alone_whatever_the_umask(root: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with otledger.open_sync(root / "deep" / "er", machine="m1") as ledger:
            ledger.append("a")
    finally:
        os.umask(before)
    for path in [root / "deep", *(root / "deep").rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("machine", ["..", "a/b", "../x", "A", "a b", "", "a..b", "é", ".a", "x" * 64, "a\n"])
def test_a_bad_machine_name(root: Path, machine: str) -> None:
    if machine:
        with pytest.raises(ValueError, match=r"no valid name: 1 to 63 of a-z"):
            otledger.open(root, machine=machine)
    else:
        assert otledger.open(root, machine=machine).config.machine
    assert not root.exists()


def damage(path: Path, line: int, old: bytes, new: bytes) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    assert old in lines[line]
    lines[line] = lines[line].replace(old, new)
    path.write_bytes(b"".join(lines))


@pytest.fixture
def damaged(root: Path) -> Path:
    """A segment with a changed line in the middle, under a later checkpoint."""
    with otledger.open_sync(root, machine="m1") as ledger:
        for n in range(5):
            ledger.append("a", {"secret": n})
    with otledger.open_sync(root, machine="m1") as ledger:
        ledger.append("last")
    (path,) = (root / "m1").glob("*.jsonl")
    damage(path, 3, b'"secret"', b'"secreT"')
    return path


def test_the_check_at_start_reports_damage_and_goes_on(
    root: Path, damaged: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = damaged.read_bytes()
    with (
        caplog.at_level(logging.CRITICAL, "otledger"),
        otledger.open_sync(root, machine="m1", check="full") as ledger,
    ):
        report = ledger.startup_report
        assert report is not None
        assert report.status is otledger.Status.TAMPERED
        assert [(fault.machine, fault.file) for fault in report.faults[:1]] == [("m1", damaged.name)]
        receipt = ledger.append("after")
    assert any(record.levelno == logging.CRITICAL and "checksum" in record.message for record in caplog.records)
    assert damaged.read_bytes().startswith(before)
    assert receipt is not None


def test_the_check_at_start_may_be_strict(root: Path, damaged: Path) -> None:
    before = damaged.read_bytes()
    with pytest.raises(LedgerDamaged, match="otledger verify") as caught:
        otledger.open_sync(root, machine="m1", check="full", strict=True)
    assert caught.value.report.status is otledger.Status.TAMPERED  # type: ignore[attr-defined]
    assert open_files(root) == []
    assert damaged.read_bytes().startswith(before)


async def test_the_same_with_asyncio(root: Path, damaged: Path) -> None:
    with pytest.raises(LedgerDamaged):
        async with otledger.open(root, machine="m1", check="full", strict=True):
            raise AssertionError("opened")
    async with otledger.open(root, machine="m1", check=None) as ledger:
        assert ledger.startup_report is None
        await ledger.append("a")


def test_the_check_of_the_tail_reads_the_tail(root: Path, damaged: Path) -> None:
    with otledger.open_sync(root, machine="m1") as ledger:
        report = ledger.startup_report
        assert report is not None
        # The damage stands before the last checkpoint.
        assert report.status is otledger.Status.OK
        assert 0 < report.bytes < damaged.stat().st_size
        ledger.append("a")


def test_a_good_ledger_has_a_good_report(root: Path) -> None:
    for extent in ("tail", "full"):
        with otledger.open_sync(root, machine="m1", check=extent) as ledger:  # type: ignore[arg-type]
            report = ledger.startup_report
            assert report is not None
            assert (report.status, report.faults) == (otledger.Status.OK, ())
            ledger.append("a")


def test_a_format_of_the_future(root: Path) -> None:
    with otledger.open_sync(root, machine="m1") as ledger:
        ledger.append("a")
    (path,) = (root / "m1").glob("*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    body = lines[0].replace(b'"format":1', b'"format":2').rpartition(b',"checksum":"sha256:')[0]
    lines[0] = body + b',"checksum":"sha256:' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'
    path.write_bytes(b"".join(lines))
    before = path.read_bytes()
    with pytest.raises(FormatError, match="newer otledger"):
        otledger.open_sync(root, machine="m1")
    with pytest.raises(FormatError, match="newer otledger"):
        list(otledger.Reader(root).records())
    assert path.read_bytes() == before


def test_a_partition_of_evledger_is_not_written_to(root: Path) -> None:
    folder = root / "m1"
    folder.mkdir(parents=True)
    root.chmod(0o700)
    line = {"specversion": "1.0", "id": "x", "source": "/m1/a", "type": "note", "time": "2026-10-01T00:00:00Z"}
    line |= {"machine": "m1", "seq": 0}
    (folder / "2026-10.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(FormatError, match="import evledger"):
        otledger.open_sync(root, machine="m1")
    assert (folder / "2026-10.jsonl").read_text() == json.dumps(line) + "\n"


def test_a_segment_that_is_a_folder(root: Path) -> None:
    with otledger.open_sync(root, machine="m1") as ledger:
        ledger.append("a")
    (path,) = (root / "m1").glob("*.jsonl")
    path.rename(root / "kept")
    path.mkdir()
    with pytest.raises(RootError, match="no regular file; move it"):
        otledger.open_sync(root, machine="m1")


@pytest.mark.parametrize("tail", [b'{"specversion":"1.0","id":"torn', b"\0" * 5000, b'{"a":1}', b"\xff\xfe"])
def test_a_torn_tail_is_set_aside_and_nothing_is_lost(
    root: Path, tail: bytes, all_records: Callable[[], list[Json]]
) -> None:
    with otledger.open_sync(root, machine="m1") as ledger:
        ledger.append("a")
    (path,) = (root / "m1").glob("*.jsonl")
    with path.open("ab") as file:
        file.write(tail)
    with otledger.open_sync(root, machine="m1") as ledger:
        ledger.append("b")
    assert [record["type"] for record in all_records() if not record["type"].startswith("otledger.")] == ["a", "b"]
    (recovery,) = [record["data"] for record in all_records() if record["type"] == "otledger.recovery"]
    assert (root / "m1" / "quarantine" / recovery["quarantine"]).read_bytes() == tail


@pytest.mark.parametrize("content", [b"", b"\0" * 8192, b"nonsense\n"])
def test_a_newest_file_without_a_record(root: Path, content: bytes, all_records: Callable[[], list[Json]]) -> None:
    with otledger.open_sync(root, machine="m1") as ledger:
        ledger.append("a")
    (path,) = (root / "m1").glob("*.jsonl")
    path.with_suffix(".1.jsonl").write_bytes(content)
    with otledger.open_sync(root, machine="m1") as ledger:
        ledger.append("b")
    assert [record["type"] for record in all_records() if not record["type"].startswith("otledger.")] == ["a", "b"]


def test_flock_is_on_the_lock_file_and_free_between_batches(root: Path) -> None:
    with otledger.open_sync(root, machine="m1") as ledger:
        ledger.append("a")
        fd = os.open(root / "m1" / ".lock", os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        waiting = threading.Thread(target=ledger.append, args=("b",))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        os.close(fd)
        waiting.join(10)
        assert not waiting.is_alive()


def test_what_threads_queue_while_the_ledger_closes_is_stored_or_refused(tmp_path: Path) -> None:
    """No lock guards the queue: each event must be one or the other all the same."""
    for attempt in range(4):
        root = tmp_path / str(attempt)
        ledger = otledger.open_sync(root, machine="m1", durability="os", min_free=0)
        accepted: list[str] = []

        def hammer(ledger: otledger.SyncLedger, accepted: list[str]) -> None:
            with contextlib.suppress(LedgerClosed):
                while True:
                    try:
                        accepted.append(ledger.emit_nowait("a", len(accepted)))
                    except QueueFull:
                        time.sleep(0.001)

        threads = [threading.Thread(target=hammer, args=(ledger, accepted)) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.004 * attempt)
        assert ledger.close() == 0
        for thread in threads:
            thread.join()
        stored = [record["id"] for record in check(root / "m1") if record["type"] == "a"]
        assert sorted(stored) == sorted(accepted)


async def test_the_first_append_is_written_though_the_ledger_is_closed_at_once(root: Path) -> None:
    ledger = await otledger.open(root, machine="m1", min_free=0)
    # Beside the loop, which has had no turn to wake the writer.
    first = asyncio.create_task(ledger.append("a"))
    await asyncio.sleep(0)
    assert await asyncio.to_thread(ledger._core.close, 10.0) == 0
    receipt = await first
    assert receipt is not None
    assert receipt.id in [record["id"] for record in check(root / "m1")]


def test_an_append_of_a_loop_that_ended_does_not_hold_up_those_of_the_next(root: Path) -> None:
    ledger = otledger.open(root, machine="m1", min_free=0)

    async def begin() -> None:
        await ledger
        task = asyncio.get_running_loop().create_task(ledger.append("a"))
        await asyncio.sleep(0)
        tasks.add(task)

    tasks: set[asyncio.Task[Any]] = set()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())

    async def go_on() -> None:
        assert await asyncio.wait_for(ledger.append("b"), 10) is not None
        assert await ledger.aclose() == 0

    asyncio.run(go_on())
    loop.run_until_complete(asyncio.gather(*tasks))
    loop.close()
    assert [record["type"] for record in check(root / "m1") if len(record["type"]) == 1] == ["a", "b"]


def test_a_log_handler_that_waits_for_the_ledger_does_not_hold_up_the_writer(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a logging bridge does: it holds its lock while it waits, and the writer has something to say."""
    outcomes: list[BaseException | None] = []

    class Recording(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name == "otledger":
                return
            try:
                ledger.append("log", record.getMessage(), timeout=10)
                outcomes.append(None)
            except Exception as error:
                outcomes.append(error)

    real, failing = os.write, threading.Event()

    def write(fd: int, data: bytes) -> int:
        if failing.is_set() and os.readlink(f"/proc/self/fd/{fd}").endswith(".jsonl"):
            failing.clear()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    own, logger = logging.getLogger("otledger"), logging.getLogger("shop")
    handler = Recording()
    own.addHandler(handler)
    logger.addHandler(handler)
    try:
        with otledger.open_sync(root, machine="m1", min_free=0) as ledger:
            ledger.append("a")
            failing.set()
            logger.warning("told while the disk fails")
            ledger.append("b")
    finally:
        own.removeHandler(handler)
        logger.removeHandler(handler)
    assert [type(outcome) for outcome in outcomes] == [otledger.JournalError]
    assert [record["type"] for record in check(root / "m1") if record["type"] in ("a", "b", "log")] == ["a", "log", "b"]
