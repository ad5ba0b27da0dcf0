"""A disk that is full: what was acknowledged stays, what was not is kept and written later, once."""

import asyncio
import contextlib
import fcntl
import os
import resource
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import otledger
from otledger import Draft, JournalError, Receipt, Status, writer
from otledger.errors import DiskFull, LowSpace
from otledger.handover import Batch
from otledger.lock import WIDTH
from tests.checker import check
from tests.faults.conftest import Say
from tests.faults.tools import (
    MACHINE,
    append_bytes,
    closed,
    crashed,
    events,
    headers,
    holds,
    journal,
    lock_state,
    mounted,
    needs_root,
    newest,
    of_type,
    partition,
    payloads,
    put,
    put_batch,
    run_python,
    sane,
    segment_names,
    snapshot,
    wait_until,
)
from tests.faults.writers import Writers

PAGE = 4096
DISKS = {"short": 4, "long": 200}
"""How often two processes write until they are done."""
LEDGER: dict[str, Any] = {"machine": MACHINE, "service": "test", "min_free": 0}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 64 KB."""
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs") as path:
        yield path


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of 1 MB in a file. It reserves and allocates late, as tmpfs does not."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed (apt-get install e2fsprogs)")
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", str(image)], check=True, capture_output=True)
    with mounted(tmp_path / "ext4", "-o", "loop", str(image)) as path:
        path.chmod(0o700)
        yield path


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger tries again, and looks at the free space, after a moment."""
    monkeypatch.setattr(writer, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(writer, "SPACE_INTERVAL", 0.05)


class Filler:
    """A file that takes what is free but for `left` bytes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "filler"

    def fill(self, left: int = 0) -> None:
        self.empty()
        with self.path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(256))
        os.truncate(self.path, max(0, self.path.stat().st_size - left))

    def empty(self) -> None:
        self.path.unlink(missing_ok=True)


def in_order(records: list[dict[str, Any]]) -> list[Any]:
    values = payloads(records)
    numbers = [value[0] if isinstance(value, list) else value for value in values]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) == len(numbers)
    return numbers


# The journal ------------------------------------------------------------------------------------------------


def append_until_full(target: otledger.Journal, start: int, size: int, *, batch: int = 1) -> tuple[list[Receipt], int]:
    """Append until the disk is full. Gives the receipts, those of the error included, and the next number."""
    receipts = []
    for number in range(start, start + 1000):
        try:
            receipts += put_batch(target, *([number * batch + i, "x" * size] for i in range(batch)))
        except DiskFull as error:
            return receipts + getattr(error, "receipts", []), number + 1
    raise AssertionError("the disk was never full")


@needs_root
@pytest.mark.parametrize("kind", ["small", "ext4"])
@pytest.mark.parametrize("durability", ["disk", "os"])
@pytest.mark.parametrize(("size", "batch"), [(10, 1), (900, 1), (5000, 1), (300, 7), (2000, 30)])
def test_a_disk_that_fills_and_is_emptied_again(
    request: pytest.FixtureRequest, kind: str, durability: str, size: int, batch: int
) -> None:
    folder: Path = request.getfixturevalue(kind)
    root, filler = folder / "ledger", Filler(folder)
    receipts: list[Receipt] = []
    number = 0
    with journal(root, durability=durability) as target:
        receipts += put(target, -1)
        for left in (0, 3 * PAGE, 5000, 2 * PAGE):
            filler.fill(left)
            with contextlib.suppress(DiskFull):
                target.sync()
            more, number = append_until_full(target, number, size, batch=batch)
            receipts += more
            # Complete lines are kept, and the torn one is cut.
            records = check(partition(root))
            holds(records, receipts)
            with pytest.raises(DiskFull):
                put(target, "y" * 20_000)
            filler.empty()
            receipts += put_batch(target, number * batch, number * batch + 1)
            number += 2
    records = sane(root, allow=[Status.OK])
    holds(records, receipts)
    assert len(events(records)) == len(receipts)
    in_order(records)
    assert segment_names(root) == segment_names(root)[:1]
    assert not (partition(root) / "quarantine").exists()


@needs_root
@pytest.mark.parametrize("pages", range(9))
def test_first_use_on_a_disk_that_is_almost_full(small: Path, pages: int) -> None:
    """Folder, lock and first segment are made, or not; with space everything goes on from there."""
    root, filler = small / "ledger", Filler(small)
    filler.fill(pages * PAGE)
    receipts: list[Receipt] = []
    with contextlib.suppress(JournalError, OSError), journal(root) as target:
        receipts += put(target, 1)
        receipts += put(target, "x" * 3000)
    first = len(receipts)
    filler.empty()
    receipts += closed(root, 3)
    records = sane(root, allow=[Status.OK])
    holds(records, receipts)
    assert len(events(records)) == len(receipts) == first + 1


@needs_root
@pytest.mark.parametrize("stays_open", [False, True])
@pytest.mark.parametrize("pages", range(5))
def test_a_cut_on_a_full_disk(small: Path, pages: int, stays_open: bool) -> None:
    """The next segment has no place: what it would have got is not acknowledged, and comes later."""
    root, filler = small / "ledger", Filler(small)
    receipts = closed(root, 1, "x" * 2000)
    filler.fill(pages * PAGE)
    target = journal(root, max_segment=1000)
    kept = []
    for number in range(2, 6):
        try:
            receipts += put(target, number)
        except DiskFull:
            kept.append(number)
    if not stays_open:
        target.close()
        target = journal(root, max_segment=1000)
    filler.empty()
    for number in kept:
        receipts += put(target, number)
    target.close()
    records = sane(root, allow=[Status.OK])
    holds(records, receipts)
    assert len(events(records)) == 6
    assert all((partition(root) / name).stat().st_size for name in segment_names(root))


@needs_root
@pytest.mark.parametrize("residue", [10, 5000, 20_000])
@pytest.mark.parametrize("pages", range(4))
def test_recovery_on_a_full_disk(small: Path, tmp_path: Path, pages: int, residue: int) -> None:
    """There is no place for the quarantine: nothing is cut until there is."""
    root, filler = small / "ledger", Filler(small)
    receipts = crashed(tmp_path / "first", root, 1, 2)
    root.chmod(0o700)
    append_bytes(newest(root), b"t" * residue)
    filler.fill(pages * PAGE)
    for _ in range(2):
        with contextlib.suppress(DiskFull):
            receipts += closed(root, 3)
        quarantine = partition(root) / "quarantine"
        kept = b"".join(path.read_bytes() for path in quarantine.iterdir()) if quarantine.exists() else b""
        assert b"t" * residue in (kept, newest(root).read_bytes()[-residue:])
    filler.empty()
    receipts += closed(root, 4)
    records = sane(root, allow=[Status.RECOVERED])
    holds(records, receipts)
    assert len(events(records)) == len(receipts)
    (record,) = of_type(records, "otledger.recovery")
    assert record["data"]["bytes"] == residue
    assert (partition(root) / "quarantine" / record["data"]["quarantine"]).read_bytes() == b"t" * residue


@needs_root
@pytest.mark.parametrize("durability", ["disk", "os"])
def test_a_failed_sync_on_a_full_disk(small: Path, durability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the old segment nor a new one: nothing is lost, and when there is space it goes on."""
    root, filler = small / "ledger", Filler(small)
    real = os.fdatasync
    failed: list[str] = []

    def fdatasync(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        assert path not in failed
        if fail:
            failed.append(path)
            raise OSError(5, "Input/output error")
        real(fd)

    fail = False
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with journal(root, durability=durability) as target:
        receipts = put(target, 1)
        target.sync()
        receipts += put(target, "x" * 5000) if durability == "os" else []
        filler.fill(2 * PAGE)
        fail = True
        with contextlib.suppress(JournalError):
            receipts += put(target, 2)
        with contextlib.suppress(JournalError):
            target.sync()
        assert failed
        for number in range(3, 6):
            with pytest.raises(JournalError):
                put(target, number, "y" * 9000)
        fail = False
        filler.empty()
        receipts += put(target, 7)
    records = sane(root, allow=[Status.RECOVERED])
    ids = [record["id"] for record in records]
    assert {receipt.id for receipt in receipts} <= set(ids)
    assert headers(records)[-1]["reason"] == "fault"


# The ledger -------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("durability", ["disk", "os"])
async def test_a_ledger_on_a_disk_that_fills_and_is_emptied(small: Path, durability: str) -> None:
    root, filler = small / "ledger", Filler(small)
    ledger = await otledger.open(root, durability=durability, **LEDGER)
    accepted: list[str] = []
    receipts: list[Receipt] = []
    number = 0
    for _ in range(3):
        # It fills while events are emitted and appended.
        failed = 0
        while failed < 5:
            number += 1
            accepted.append(await ledger.emit("app.event", number, id=f"id-{number}"))
            number += 1
            accepted.append(f"id-{number}")
            try:
                receipt = await ledger.append("app.event", number, id=f"id-{number}")
                assert receipt is not None
                receipts.append(receipt)
            except DiskFull:
                failed += 1
            if failed == 0 and number % 50 == 0:
                filler.fill(2 * PAGE)
        assert ledger.health().state == "failing"
        assert ledger.health().queued_records >= failed
        holds(check(partition(root)), receipts)
        with pytest.raises(DiskFull):
            await ledger.flush()
        filler.empty()
        while True:
            try:
                await ledger.flush()
                break
            except DiskFull:
                await asyncio.sleep(0.01)
        assert ledger.health().state == "ok"
        assert ledger.health().queued_records == 0
    assert await ledger.aclose() == 0
    records = sane(root, allow=[Status.OK])
    holds(records, receipts)
    # All that was accepted, in its order, once: also that whose waiter got an error.
    assert [record["id"] for record in events(records)] == accepted
    assert payloads(records) == list(range(1, number + 1))
    assert not of_type(records, "otledger.gap")


@needs_root
@pytest.mark.parametrize("durability", ["disk", "os"])
def test_processes_on_a_disk_that_fills_and_is_emptied_all_the_time(
    small: Path, tmp_path: Path, durability: str, campaign: str, say: Say
) -> None:
    """Two ledgers in processes of their own: what they accepted is there once, in an order, when there is space."""
    fillings, records, root, filler = 0, 0, small / "ledger", Filler(small)
    with Writers() as writers:
        for turn in range(DISKS[campaign]):
            group = writers.start(
                root, tmp_path / f"acks{turn}", kind="endure in ledger", processes=2, count=30, least=10, most=900,
                durability=durability, options={"timeout": 60.0},
            )  # fmt: skip
            while not group.ended():
                filler.fill()
                time.sleep(0.01)
                filler.empty()
                time.sleep(0.01)
                fillings += 1
            assert group.wait() == 0
            told = group.told()
            assert [row for row in told if row[0] == "left"] == [["left", "0"]] * 2
            found = sane(root)
            holds(found, group.acknowledged() if durability == "disk" else [])
            ids = [record["id"] for record in events(found)]
            assert sorted(ids) == sorted(row[1] for row in told if row[0] == "accepted")
            records += len(ids)
            shutil.rmtree(root)
    say(f"{durability}: a disk of 64 KB filled {fillings} times under {records} records", fillings=fillings)
    assert fillings >= 5 * DISKS[campaign]


@needs_root
async def test_a_ledger_closed_on_a_full_disk_tells_what_is_left(small: Path) -> None:
    root, filler = small / "ledger", Filler(small)
    ledger = await otledger.open(root, **LEDGER)
    receipt = await ledger.append("app.event", 1)
    filler.fill()
    for number in range(20):
        await ledger.emit("app.event", ["x" * 500, number])
    left = await ledger.aclose(timeout=0.5)
    assert 0 < left <= 20
    # What close() did not wait for still ends in order, with a checkpoint where there is space.
    filler.empty()
    for thread in threading.enumerate():
        if thread.name == f"otledger-{MACHINE}":
            await asyncio.to_thread(thread.join, 10)
    records = sane(root, allow=[Status.OK])
    assert len(events(records)) == 21 - left
    holds(records, [receipt] if receipt else [])


@needs_root
async def test_a_ledger_opened_on_a_full_disk(small: Path) -> None:
    """Opening does not fail: the events wait until there is space."""
    root, filler = small / "ledger", Filler(small)
    closed(root, 0)
    os.unlink(partition(root) / ".lock")
    filler.fill()
    async with otledger.open(root, **LEDGER) as ledger:
        await ledger.emit("app.event", 1)
        with pytest.raises(JournalError):
            await ledger.append("app.event", 2)
        filler.empty()
        receipt = await ledger.append("app.event", 3)
    records = sane(root, allow=[Status.OK])
    assert payloads(records) == [0, 1, 2, 3]
    holds(records, [receipt] if receipt else [])


@needs_root
def test_a_lock_of_the_same_inode_elsewhere_is_not_taken_for_ours(tmp_path: Path) -> None:
    """Two file systems number their files alike: the holder of the one's lock is not to blame for the other's."""
    options = ("-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs")
    with mounted(tmp_path / "one", *options) as one, mounted(tmp_path / "two", *options) as two:
        locks = []
        for path in (one, two):
            closed(path / "ledger", 1)
            lock = partition(path / "ledger") / ".lock"
            locks.append(lock)
        assert locks[0].stat().st_ino == locks[1].stat().st_ino
        for lock, holder in ((locks[1], None), (locks[0], os.getpid())):
            with journal(one / "ledger") as target, lock.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                assert target.lock_holder() == holder


async def test_little_space(root: Path) -> None:
    """Below `min_free` new events are refused and counted, rather than the disk filled."""
    async with otledger.open(root, **LEDGER | {"min_free": 1 << 60}) as ledger:
        for _ in range(3):
            with pytest.raises(LowSpace, match="min_free"):
                await ledger.emit("app.event", "refused")
        with pytest.raises(LowSpace):
            await ledger.append("app.event", "refused")
        with pytest.raises(LowSpace):
            ledger.emit_nowait("app.event", "refused")
        assert ledger.health().state == "low space"
        assert ledger.health().dropped == 5
    records = sane(root, allow=[Status.OK])
    assert events(records) == []
    gaps = of_type(records, "otledger.gap")
    assert sum(gap["data"]["count"] for gap in gaps) == 5
    assert all(gap["data"]["first"] <= gap["data"]["last"] for gap in gaps)
    assert otledger.verify(root).machines[0].gaps == 5


@needs_root
async def test_space_that_comes_back(small: Path) -> None:
    root, filler = small / "ledger", Filler(small)
    async with otledger.open(root, **LEDGER | {"min_free": 16 << 10}) as ledger:
        await ledger.append("app.event", 1)
        filler.fill(2 * PAGE)
        refused = 0
        while refused < 3:
            try:
                await ledger.append("app.event", "x")
            except LowSpace:
                refused += 1
            except DiskFull:
                continue  # space is looked at now and then only
            await asyncio.sleep(0.02)
        filler.empty()
        while True:
            try:
                receipt = await ledger.append("app.event", 2)
                break
            except LowSpace:
                refused += 1
            await asyncio.sleep(0.02)
    records = sane(root, allow=[Status.OK])
    holds(records, [receipt] if receipt else [])
    assert sum(gap["data"]["count"] for gap in of_type(records, "otledger.gap")) == refused
    assert payloads(records)[0] == 1
    assert payloads(records)[-1] == 2


# Short writes and other limits ------------------------------------------------------------------------------


@pytest.mark.parametrize("at_most", [1, 7, 100, 4096])
def test_short_writes(root: Path, monkeypatch: pytest.MonkeyPatch, at_most: int) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data[:at_most])))
    with journal(root, max_segment=5000) as target:
        receipts = put(target, *range(10))
        receipts += put_batch(target, *("x" * 700 for _ in range(10)))
        receipts += put(target, "y" * 3000)
    append_bytes(newest(root), b"torn")
    receipts += closed(root, "after")
    monkeypatch.undo()
    records = sane(root, allow=[Status.RECOVERED])
    holds(records, receipts)
    assert len(events(records)) == 22


@pytest.mark.parametrize("cannot_cut", [False, True])
@pytest.mark.parametrize("error", [28, 5, 122, 27])
def test_a_write_that_stops_at_every_byte(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, cannot_cut: bool
) -> None:
    """Of a batch of three the whole lines are acknowledged; the others are appended when it works again."""
    with journal(tmp_path / "base") as target:
        put(target, 0)
        before = newest(tmp_path / "base").stat().st_size
        put_batch(target, 1, 2, 3)
        after = newest(tmp_path / "base").stat().st_size
    real, real_cut = os.write, os.ftruncate
    for allowed in range(0, after - before, 13):
        target = journal(root / str(allowed))
        receipts = put(target, 0)
        left = [allowed]

        def write(fd: int, data: Any, left: list[int] = left) -> int:
            if not left[0]:
                raise OSError(error, "no")
            count = min(left[0], len(data))
            left[0] -= count
            return real(fd, bytes(data[:count]))

        def no_cut(fd: int, size: int) -> None:
            raise OSError(error, "no")

        monkeypatch.setattr(os, "write", write)
        if cannot_cut:
            monkeypatch.setattr(os, "ftruncate", no_cut)
        with pytest.raises(JournalError) as caught:
            put_batch(target, 1, 2, 3)
        monkeypatch.setattr(os, "write", real)
        monkeypatch.setattr(os, "ftruncate", real_cut)
        done = getattr(caught.value, "receipts", [])
        receipts += done
        receipts += put_batch(target, *range(1 + len(done), 4))
        target.close()
        records = sane(
            root / str(allowed), allow=[Status.RECOVERED if cannot_cut and allowed else Status.OK, Status.OK]
        )
        holds(records, receipts)
        assert payloads(records) == [0, 1, 2, 3]
        assert isinstance(caught.value, DiskFull) == (error in (28, 122))


@pytest.mark.parametrize("durability", ["disk", "os"])
@pytest.mark.parametrize("lost", [1, 7, 10_000])
def test_a_write_of_which_less_is_there_than_was_said(
    root: Path, monkeypatch: pytest.MonkeyPatch, lost: int, durability: str
) -> None:
    """The file system lies: what is not there is not acknowledged, and the caller is told."""
    real = os.write
    with journal(root, durability=durability, max_segment=4000) as target:
        receipts = put(target, 0)
        for number in range(1, 20):
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", lambda fd, data: real(fd, bytes(data[:-lost])) * 0 + len(data))
                with pytest.raises(JournalError, match=r"less are there|not all that was written"):
                    put_batch(target, number, "x" * 200)
            receipts += put_batch(target, number, "x" * 200)
    records = sane(root)
    holds(records, receipts)
    assert [value for value in payloads(records) if value != "x" * 200] == list(range(20))


@pytest.mark.parametrize("durability", ["disk", "os"])
@pytest.mark.parametrize("at_most", [1, 100, 500])
def test_lock_written_in_parts(root: Path, monkeypatch: pytest.MonkeyPatch, at_most: int, durability: str) -> None:
    """Another process reads in it what was left, and no mixture of that and what was there before."""
    real = os.pwrite
    with journal(root, durability=durability) as target:
        receipts = put(target, 1)
        for number in range(2, 6):
            with monkeypatch.context() as patch:
                patch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:at_most], offset))
                receipts += put(target, number)
            with (partition(root) / ".lock").open("rb") as file:
                assert len(file.read()) == WIDTH
            assert lock_state(root)["seq"] == receipts[-1].seq + 1
    records = sane(root, allow=[Status.OK])
    holds(records, receipts)
    assert payloads(records) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("durability", ["disk", "os"])
def test_a_batch_that_can_be_neither_acknowledged_nor_cut(
    root: Path, monkeypatch: pytest.MonkeyPatch, durability: str, between: bool
) -> None:
    """It is cut before anything else is written, so that what is tried again is not there twice."""

    def fails(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    with journal(root, durability=durability) as target:
        receipts = put(target, 1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", fails)
            patch.setattr(os, "ftruncate", fails)
            for _ in range(3):
                with pytest.raises(JournalError):
                    put(target, 2)
        if between:
            # Another process finds a whole line, and keeps it: it is its own from then on.
            receipts += closed(root, "between")
        receipts += put(target, 2)
    records = sane(root)
    holds(records, receipts)
    assert payloads(records) == ([1, 2, "between", 2] if between else [1, 2])


@pytest.mark.parametrize("by", ["opening", "appending", "a cut"])
@pytest.mark.parametrize("durability", ["disk", "os"])
def test_a_batch_that_could_not_be_cut_and_that_another_process_keeps(
    root: Path, monkeypatch: pytest.MonkeyPatch, durability: str, by: str
) -> None:
    """It is theirs, and is neither cut off nor, when it is tried again, written once more."""

    def fails(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    with journal(root, durability=durability) as target:
        receipts = put(target, 1)
        drafts = [Draft("app.event", number, id=f"id-{number}") for number in (2, 3)]
        batch = Batch([target.encoder.draft(draft, 0, reserved=False)[1] for draft in drafts], {})
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", fails)
            patch.setattr(os, "ftruncate", fails)
            for _ in range(2):
                with pytest.raises(JournalError):
                    target.write(batch)
        other = journal(root, durability=durability, max_segment=1000 if by == "a cut" else 1 << 30)
        other.open()
        if by != "opening":
            receipts += put(other, "between")
        ack = target.write(batch)
        receipts += [ack.receipt(at, draft.id or "") for at, draft in enumerate(drafts)]
        receipts += put(target, 4)
        receipts += put(other, 5)
        other.close()
    records = sane(root, allow=[Status.OK])
    holds(records, receipts)
    assert payloads(records) == [1, 2, 3, *(["between"] if by != "opening" else []), 4, 5]
    assert (len(segment_names(root)) > 1) == (by == "a cut")


LIMITED = """if True:
    import resource, sys
    from otledger import Draft, Journal, JournalError

    root, limit, durability = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    journal = Journal(root, machine="m1", service="test", durability=durability)
    number, failures, draft = 0, 0, None
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    while number < 100 and failures < 10:
        try:
            receipt, = journal.append([Draft("app.event", number, id=f"id-{number}")])
        except JournalError as error:
            print("error", error, flush=True)
            failures += 1
            if failures == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            continue
        print(receipt.id, receipt.seq, receipt.checksum, flush=True)
        number += 1
    journal.close()
"""


@pytest.mark.parametrize("durability", ["disk", "os"])
@pytest.mark.parametrize("limit", [1024, 5000, 20_000])
def test_a_limit_of_the_file_size(root: Path, limit: int, durability: str) -> None:
    """What is over `ulimit -f` fails with EFBIG after a short write."""
    done = run_python(LIMITED, root, limit, durability)
    assert done.returncode == 0, done.stderr
    rows = [row.split() for row in done.stdout.splitlines()]
    receipts = [Receipt(row[0], int(row[1]), row[2], "") for row in rows if row[0] != "error"]
    assert len(receipts) == 100
    assert sum(row[0] == "error" for row in rows) == 3
    records = sane(root)
    holds(records, receipts)
    assert payloads(records) == list(range(100))


def test_no_descriptors_left(root: Path) -> None:
    """Opening fails with a clear error, and works once there are some."""
    closed(root, 1)
    append_bytes(newest(root), b"torn")
    before = snapshot(root)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    for spare in range(6):
        target = journal(root)
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, hard))
        try:
            with contextlib.suppress(JournalError, OSError):
                target.append([Draft("app.event", spare)])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        with contextlib.suppress(JournalError):
            target.close()
    receipts = closed(root, "after")
    records = sane(root, allow=[Status.RECOVERED])
    holds(records, receipts)
    assert payloads(records)[0] == 1
    assert b"torn" in snapshot(root).values()
    assert snapshot(root)[f"m1/{newest(root).name}"].startswith(before[f"m1/{newest(root).name}"][:-4])
    assert len(os.listdir("/proc/self/fd")) == used


def test_wait_until_tells_what() -> None:
    with pytest.raises(AssertionError, match="the moon"):
        wait_until(lambda: False, "the moon", seconds=0)
