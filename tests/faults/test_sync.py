"""A sync that fails: its segment is never written or synced again, and its successor has all that counts."""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import otledger
from otledger import Draft, JournalError, Receipt, Status
from otledger.errors import SyncFailed
from tests.checker import check
from tests.faults.tools import (
    LOCKS,
    MACHINE,
    REPOSITORY,
    STRACE,
    append_bytes,
    closed,
    environment,
    events,
    headers,
    holds,
    journal,
    kill,
    lines_of,
    lock_state,
    needs_strace,
    never_trusted_again,
    newest,
    of_type,
    partition,
    payloads,
    put,
    put_batch,
    record_of,
    sane,
    segment_names,
    wait_until,
)

DURABILITIES = ["disk", "os"]


class Disk:
    """The disk under this process: it fails at will, and sees that nobody trusts a file that it failed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failures = {"fdatasync": 0, "fsync": 0}
        self.counts = {"fdatasync": 0, "fsync": 0, "write": 0}
        self.failed: dict[str, int] = {}
        """The segments whose sync failed, with their sizes at that moment."""
        self.drafts = 0
        """How many files failed before they were segments: nobody saw them."""
        self.again: list[str] = []
        """What was done to them afterwards."""
        for name in ("fdatasync", "fsync"):
            monkeypatch.setattr(os, name, self._sync(name, getattr(os, name)))
        monkeypatch.setattr(os, "write", self._write(os.write))
        monkeypatch.setattr(os, "ftruncate", self._write(os.ftruncate))

    def _sync(self, name: str, real: Any) -> Any:
        def sync(fd: int) -> None:
            path = os.readlink(f"/proc/self/fd/{fd}")
            self.counts[name] += 1
            if path in self.failed:
                self.again.append(f"{name} {path}")
            if self.failures[name] > 0 and not path.endswith("quarantine"):
                self.failures[name] -= 1
                if path.endswith(".jsonl"):
                    self.failed[path] = os.fstat(fd).st_size
                self.drafts += "/.new." in path
                raise OSError(5, "Input/output error")
            real(fd)

        return sync

    def _write(self, real: Any) -> Any:
        def write(fd: int, what: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{fd}")
            if path in self.failed:
                self.again.append(f"write {path}")
            return real(fd, what)

        return write

    def fail(self, times: int, *names: str) -> None:
        for name in names or ("fdatasync",):
            self.failures[name] = times

    def heal(self) -> None:
        self.failures = dict.fromkeys(self.failures, 0)

    def check(self) -> None:
        assert self.again == []
        for path, size in self.failed.items():
            assert os.stat(path).st_size == size


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(monkeypatch)
    yield disk
    disk.check()


def good(root: Path, receipts: list[Receipt], *, exact: bool = True) -> list[dict[str, Any]]:
    """The records after a fault: each receipt's is there once. At `os` its number may be another by now."""
    records = sane(root, allow=[Status.RECOVERED])
    ids = [record["id"] for record in records]
    assert {receipt.id for receipt in receipts} <= set(ids)
    if exact:
        holds(records, receipts)
    return records


def check_successors(root: Path) -> None:
    """Each segment that a fault began names where its predecessor ends: in whole lines."""
    names = segment_names(root)
    for name in names:
        first = lines_of(partition(root) / name)[:1]
        header = record_of(first[0])["data"] if first and first[0].endswith(b"\n") else None
        if header and header["reason"] == "fault":
            content = (partition(root) / header["previous"]["segment"]).read_bytes()
            size = header["previous"]["size"]
            assert size > 0
            assert content[:size].endswith(b"\n")


# In this process --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2, 3, 4])
@pytest.mark.parametrize("what", [("fdatasync",), ("fsync",), ("fdatasync", "fsync")])
@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_sync_fails_a_few_times(root: Path, disk: Disk, durability: str, what: tuple[str, ...], times: int) -> None:
    # With cuts on the way, where new files and folders are synced.
    with journal(root, durability=durability, max_segment=4000) as target:
        receipts = put(target, 0)
        target.sync()
        disk.fail(times, *what)
        for number in range(1, 30):
            try:
                receipts += put(target, number)
                target.sync()
            except SyncFailed:
                continue
        disk.heal()
        receipts += put(target, "after")
    assert disk.failed or disk.drafts
    records = sane(root)
    ids = [record["id"] for record in records]
    assert {receipt.id for receipt in receipts} <= set(ids)
    if durability == "disk":
        holds(records, receipts)
    check_successors(root)
    values = [value for value in payloads(records) if value != "after"]
    assert values == sorted(values)
    if "fdatasync" in what:
        assert "fault" in [header["reason"] for header in headers(records)]


@pytest.mark.parametrize("durability", DURABILITIES)
def test_one_failed_sync_is_hidden_from_the_caller(root: Path, disk: Disk, durability: str) -> None:
    """The records are at hand: they go to the next segment, once."""
    with journal(root, durability=durability) as target:
        receipts = put(target, 1, 2)
        disk.fail(1)
        receipts += put_batch(target, 3, 4, 5)
        target.sync()
        receipts += put(target, 6)
        first = segment_names(root)[0]
        end = {"disk": 3, "os": 1}[durability]
        size = sum(map(len, lines_of(partition(root) / first)[:end]))
    records = good(root, receipts, exact=durability == "disk")
    assert payloads(records) == [1, 2, 3, 4, 5, 6]
    assert len(segment_names(root)) == 2
    assert headers(records)[1]["reason"] == "fault"
    assert headers(records)[1]["previous"] == {"segment": first, "size": size}
    # What was written to it stands there for ever.
    assert (partition(root) / first).stat().st_size > size
    if durability == "disk":
        assert receipts[2].segment == segment_names(root)[1]


@pytest.mark.parametrize("durability", DURABILITIES)
def test_every_sync_fails(root: Path, disk: Disk, durability: str) -> None:
    target = journal(root, durability=durability)
    receipts = put(target, *range(3))
    target.sync()
    disk.fail(1 << 60, "fdatasync", "fsync")
    for number in range(5):
        if durability == "disk":
            with pytest.raises(SyncFailed):
                put_batch(target, f"lost {number}", "too")
        else:
            with contextlib.suppress(SyncFailed):
                receipts += put(target, number)
            with pytest.raises(SyncFailed):
                target.sync()
    # Nor does the disk get anything more at close.
    target.close()
    disk.heal()
    disk.check()
    receipts += closed(root, "after", durability=durability)
    records = good(root, receipts, exact=durability == "disk")
    if durability == "disk":
        # It was never acknowledged, and the caller knows: nothing of it may come back half.
        found = [value for value in payloads(records) if isinstance(value, str) and value != "after"]
        assert found in ([], *([f"lost {number}", "too"] for number in range(5)))


def test_batches_at_os_beyond_the_synced_end_are_appended_again(root: Path, disk: Disk) -> None:
    with journal(root, durability="os") as target:
        put(target, "synced")
        target.sync()
        size = newest(root).stat().st_size
        receipts = put(target, *range(10))
        receipts += put_batch(target, *range(10, 20))
        disk.fail(1)
        target.sync()
        first = segment_names(root)[0]
        assert lock_state(root)["state"] == "idle"
        assert lock_state(root)["synced"] == lock_state(root)["acked"]
    records = good(root, receipts, exact=False)
    assert payloads(records) == ["synced", *range(20)]
    assert headers(records)[1]["previous"] == {"segment": first, "size": size}
    # The same ids in the same order, each line's members as they were, with the numbers that follow the header's.
    old = [record_of(line) for line in lines_of(partition(root) / first)][-20:]
    new = events(records)[1:]
    for before, after in zip(old, new, strict=True):
        changed = {name for name in before if before[name] != after.get(name)}
        assert changed <= {"seq", "prev", "checksum", "synced"}
        assert after["seq"] == before["seq"] + 1


@pytest.mark.parametrize("kind", ["otledger.checkpoint", "otledger.segment"])
@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: {"inner": [data]}, lambda data: json.dumps(data)])
def test_payloads_that_look_like_control_records_are_appended_again(
    root: Path, disk: Disk, kind: str, wrap: Any
) -> None:
    """Only otledger's own records are made anew; a caller's payload may hold the same words."""
    data = wrap({"type": kind})
    with journal(root, durability="os") as target:
        put(target, "synced")
        target.sync()
        receipts = put(target, data, "next")
        disk.fail(1)
        target.sync()
    records = good(root, receipts, exact=False)
    assert payloads(records) == ["synced", data, "next"]


@pytest.mark.parametrize("durability", DURABILITIES)
def test_failed_sync_before_a_cut(root: Path, disk: Disk, durability: str) -> None:
    with journal(root, durability=durability, max_segment=2000) as target:
        receipts = put(target, *range(3))
        for number in range(3, 12):
            disk.fail(1)
            try:
                receipts += put(target, number)
            except SyncFailed:
                receipts += put(target, number)
            disk.heal()
    records = good(root, receipts, exact=durability == "disk")
    assert payloads(records) == list(range(12))
    check_successors(root)


@pytest.mark.parametrize("what", ["fdatasync", "fsync"])
@pytest.mark.parametrize("durability", DURABILITIES)
def test_failed_sync_at_close(root: Path, disk: Disk, durability: str, what: str) -> None:
    """What was acknowledged is found by the next process."""
    target = journal(root, durability=durability)
    receipts = put(target, 1, 2, 3)
    disk.fail(1 << 60, what)
    target.close()
    disk.heal()
    disk.check()
    receipts += closed(root, 4)
    records = sane(root)
    assert payloads(records) == [1, 2, 3, 4]
    assert {receipt.id for receipt in receipts} <= {record["id"] for record in records}


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("segments", [1, 2])
def test_the_first_sync_after_opening_fails(
    root: Path, tmp_path: Path, disk: Disk, lock: str, torn: bool, segments: int
) -> None:
    """After a boot the first thing a writer does is a sync. What was durable before stays where it is."""
    receipts = closed(tmp_path / "first", *range(5))
    if segments == 2:
        receipts += closed(tmp_path / "first", "cut", max_segment=1)
    with journal(tmp_path / "first") as target:
        receipts += put(target, *range(5, 10))
        shutil.copytree(tmp_path / "first", root)
    if torn:
        append_bytes(newest(root), b"torn")
    LOCKS[lock](root)
    disk.fail(1)
    target = journal(root)
    try:
        receipts += put(target, "first")
    except JournalError:
        receipts += put(target, "second")
    disk.heal()
    target.close()
    records = sane(root)
    holds(records, receipts)
    ids = [record["id"] for record in records]
    assert len(ids) == len(set(ids))
    check_successors(root)
    assert otledger.verify(root, deep=True).status in (Status.OK, Status.RECOVERED)


@pytest.mark.parametrize("lock", LOCKS)
def test_every_sync_after_opening_fails(root: Path, tmp_path: Path, disk: Disk, lock: str) -> None:
    with journal(tmp_path / "first") as target:
        receipts = put(target, *range(5))
        shutil.copytree(tmp_path / "first", root)
    LOCKS[lock](root)
    disk.fail(1 << 60, "fdatasync", "fsync")
    target = journal(root)
    for _ in range(3):
        with pytest.raises(JournalError):
            put(target, "never")
    target.close()
    disk.heal()
    disk.check()
    receipts += closed(root, "after")
    records = sane(root)
    holds(records, receipts)
    assert payloads(records)[:5] == list(range(5))


def test_failed_sync_of_a_segment_that_gets_a_successor_for_damage(root: Path, tmp_path: Path, disk: Disk) -> None:
    """The sync that closes a damaged segment fails: that segment is never synced again either."""
    with journal(tmp_path / "first") as target:
        put(target, *range(5))
        shutil.copytree(tmp_path / "first", root)
    lines = lines_of(newest(root))
    newest(root).write_bytes(b"".join([*lines[:3], bytes(len(lines[3])), *lines[4:]]))
    LOCKS["another boot"](root)
    disk.fail(1)
    target = journal(root)
    try:
        receipts = put(target, "first")
    except JournalError:
        receipts = put(target, "second")
    disk.heal()
    target.close()
    holds([record_of(line) for line in lines_of(newest(root))], receipts)


async def test_a_ledger_hides_failed_syncs(root: Path, disk: Disk) -> None:
    settings: dict[str, Any] = {"machine": MACHINE, "service": "test", "min_free": 0}
    async with otledger.open(root, **settings) as ledger:
        ids = [await ledger.emit("app.event", number) for number in range(10)]
        receipts = []
        for number in range(10, 14):
            disk.fail(1)
            receipts.append(await ledger.append("app.event", number))
        ids += [receipt.id for receipt in receipts if receipt]
    records = good(root, [receipt for receipt in receipts if receipt])
    assert [record["id"] for record in events(records)] == ids


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_a_ledger_keeps_its_queue_while_every_sync_fails(root: Path, disk: Disk, durability: str) -> None:
    settings: dict[str, Any] = {"machine": MACHINE, "service": "test", "min_free": 0, "durability": durability}
    errors: list[BaseException] = []
    ledger = await otledger.open(root, sync_interval=0.02, **settings)
    ledger.on_error(errors.append)
    ids = [(await ledger.append("app.event", 0)).id]
    disk.fail(1 << 60, "fdatasync", "fsync")
    for number in range(1, 20):
        ids.append(await ledger.emit("app.event", number))
        await asyncio.sleep(0.01)
    if durability == "disk":
        with pytest.raises(SyncFailed):
            await ledger.append("app.event", 20)
        with pytest.raises(SyncFailed):
            await ledger.flush()
        # A waiter got an error, and its record stays queued all the same.
        assert ledger.health().queued_records == 20
    await asyncio.to_thread(wait_until, lambda: errors, "an error")
    assert ledger.health().state == "failing"
    disk.heal()
    await ledger.flush()
    await ledger.append("app.event", 21)
    assert ledger.health().state == "ok"
    assert await ledger.aclose() == 0
    records = sane(root, allow=[Status.RECOVERED])
    assert [value for value in payloads(records) if value != 20] == [*range(20), 21]
    assert set(ids) <= {record["id"] for record in records}


# Processes --------------------------------------------------------------------------------------------------

WRITER = """if True:
    import os, sys
    from otledger import Draft, Journal, JournalError

    root, durability, count = sys.argv[1:]
    print(os.getpid(), flush=True)
    journal = Journal(root, machine="m1", service="test", durability=durability, checkpoint_interval=1e6)
    number = 0
    while number < int(count):
        try:
            receipt, = journal.append([Draft("app.event", number)])
        except JournalError as error:
            print("error", type(error).__name__, flush=True)
        else:
            print(receipt.id, receipt.seq, receipt.checksum, flush=True)
        number += 1
        if durability == "os" and number % 3 == 0:
            try:
                journal.sync()
            except JournalError as error:
                print("error", type(error).__name__, flush=True)
    print("done", flush=True)
    journal.close()
"""


def traced(log: Path, *inject: str) -> list[str]:
    """The command that runs another with system calls made to fail, and logs what became of files."""
    calls = "fdatasync,fsync,write,ftruncate"
    command = [str(STRACE), "-f", "-y", "--seccomp-bpf", "-o", str(log), "-e", f"trace={calls}"]
    for one in inject:
        command += ["-e", f"inject={one}"]
    return command


def acknowledged(output: str) -> list[Receipt]:
    rows = [row.split() for row in output.splitlines()]
    return [Receipt(row[0], int(row[1]), row[2], "") for row in rows if len(row) == 3]


@needs_strace
@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize(
    "inject",
    [
        ["fdatasync:error=EIO:when=1"],
        ["fdatasync:error=EIO:when=3"],
        ["fdatasync:error=EIO:when=2+2"],
        ["fdatasync:error=EIO:when=3+", "fsync:error=EIO:when=5..7"],
        ["fsync:error=EIO:when=2+3"],
    ],
)
def test_a_disk_that_fails_under_a_process(root: Path, tmp_path: Path, inject: list[str], durability: str) -> None:
    log = tmp_path / "strace.log"
    command = [*traced(log, *inject), sys.executable, "-c", WRITER, str(root), durability, "12"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.endswith("done\n")
    never_trusted_again(log.read_text())
    receipts = acknowledged(done.stdout)
    receipts += closed(root, "after")
    records = sane(root)
    if durability == "disk":
        holds(records, receipts)
    assert {receipt.id for receipt in receipts} <= {record["id"] for record in records}
    assert len(events(records)) >= len(receipts)
    check_successors(root)


def killed_in(call: str, nth: int, root: Path, tmp_path: Path, durability: str, *, when: str = "delay_enter") -> str:
    """Have a writer hang in a system call, kill it there, and give what it printed."""
    log = tmp_path / f"{call}{nth}.log"
    command = traced(log, f"{call}:{when}=60000000:when={nth}")
    with subprocess.Popen(
        [*command, sys.executable, "-c", WRITER, str(root), durability, "12"],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        try:
            wait_until(lambda: hangs(pid, call) or process.poll() is not None, f"{call} number {nth}")
            assert process.poll() is None, "the process ended before"
        finally:
            with contextlib.suppress(ProcessLookupError):
                kill(pid)
            # It stays stopped, dead already, for as long as its tracer waits.
            process.kill()
        return process.stdout.read()


def hangs(pid: int, call: str) -> bool:
    """Tell whether a process sits in this system call and has used no time for a while."""
    try:
        seen = []
        for _ in range(4):
            syscall = Path(f"/proc/{pid}/syscall").read_text().split()
            seen.append((syscall[0], Path(f"/proc/{pid}/stat").read_text().split()[13:15]))
            time.sleep(0.01)
    except (OSError, IndexError):
        return False
    return all(one == seen[0] for one in seen) and seen[0][0] == {"fdatasync": "75", "fsync": "74"}[call]


@needs_strace
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="knows the numbers of the system calls of x86-64 only")
@pytest.mark.parametrize("nth", [1, 2, 5])
@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("lock", ["this boot", "another boot"])
def test_killed_in_a_sync(root: Path, tmp_path: Path, durability: str, nth: int, lock: str) -> None:
    """Nobody knows whether that sync succeeded: the next process syncs the segment never again."""
    output = killed_in("fdatasync", nth, root, tmp_path, durability)
    receipts = acknowledged(output)
    state = lock_state(root)
    assert state["state"] == "syncing"
    name = newest(root).name
    content = newest(root).read_bytes()
    LOCKS[lock](root)
    with journal(root, durability=durability) as target:
        receipts += put(target, "after")
        here = [record for record in check(partition(root)) if record["type"] == "otledger.segment"]
    records = sane(root)
    ids = {record["id"] for record in records}
    assert {receipt.id for receipt in receipts} <= ids
    if durability == "disk":
        holds(records, receipts)
    # What the dead process had written and nobody else has is not lost either.
    assert {json.loads(line)["id"] for line in content.splitlines()} - ids <= {
        record["id"] for record in map(json.loads, content.splitlines()) if record["type"].startswith("otledger.")
    }
    if lock == "this boot":
        assert here[-1]["data"]["reason"] == "fault"
        assert here[-1]["data"]["previous"] == {"segment": name, "size": state["synced"]}
        assert (partition(root) / name).read_bytes() == content
    assert payloads(records)[-1] == "after"
    assert len(segment_names(root)) == (2 if lock == "this boot" else 1)
    closed(root)
    assert len(segment_names(root)) == (2 if lock == "this boot" else 1)


@needs_strace
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="knows the numbers of the system calls of x86-64 only")
@pytest.mark.parametrize("lock", ["this boot", "another boot"])
@pytest.mark.parametrize(("call", "nth"), [("fdatasync", n) for n in (1, 2, 3)] + [("fsync", n) for n in (1, 2, 3)])
def test_killed_in_the_recovery_of_a_crash(root: Path, tmp_path: Path, call: str, nth: int, lock: str) -> None:
    """A process is killed while it opens what another boot left: nothing of that may be lost."""
    receipts = closed(tmp_path / "first", *range(100, 105))
    with journal(tmp_path / "first") as target:
        receipts += put(target, *range(105, 110))
        shutil.copytree(tmp_path / "first", root)
    append_bytes(newest(root), b"torn")
    LOCKS["another boot"](root)
    receipts += acknowledged(killed_in(call, nth, root, tmp_path, "disk"))
    LOCKS[lock](root)
    receipts += closed(root, "after")
    records = sane(root)
    holds(records, receipts)
    assert payloads(records)[:10] == list(range(100, 110))


@needs_strace
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="knows the numbers of the system calls of x86-64 only")
def test_killed_after_a_sync_before_its_acknowledgement(root: Path, tmp_path: Path) -> None:
    output = killed_in("fdatasync", 4, root, tmp_path, "disk", when="delay_exit")
    receipts = acknowledged(output)
    receipts += closed(root, "after")
    holds(sane(root), receipts)


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("lock", ["this boot", "another boot"])
def test_a_process_dies_while_its_disk_fails(root: Path, disk: Disk, durability: str, lock: str) -> None:
    """It left `failed` in `.lock`, and never got a successor made. The next process makes it."""
    target = journal(root, durability=durability)
    receipts = put(target, 1, 2)
    target.sync()
    synced = newest(root).stat().st_size
    receipts += put(target, 3) if durability == "os" else []
    disk.fail(1 << 60, "fdatasync", "fsync")
    if durability == "disk":
        with pytest.raises(SyncFailed):
            put(target, 4)
    else:
        receipts += put(target, 4)
        with pytest.raises(SyncFailed):
            target.sync()
    target.after_fork()  # gone, without a word
    state = lock_state(root)
    assert (state["state"], state["synced"]) == ("failed", synced)
    disk.heal()
    disk.check()
    LOCKS[lock](root)
    if lock == "another boot":
        disk.failed = {}  # what is read now came from the disk
    receipts += closed(root, "after")
    records = sane(root)
    assert {receipt.id for receipt in receipts} <= {record["id"] for record in records}
    values = payloads(records)
    assert values == [1, 2, *([3, 4] if durability == "os" else []), "after"] or (durability, lock) == (
        "disk",
        "another boot",
    )
    if lock == "this boot":
        assert headers(records)[-1]["previous"] == {"segment": segment_names(root)[0], "size": synced}


@pytest.mark.parametrize("holder", ["journal", "another"])
def test_lock_cannot_be_written(root: Path, monkeypatch: pytest.MonkeyPatch, holder: str) -> None:
    """`.lock` is a file as well: where it cannot be written the batch is not acknowledged, nor there twice later."""
    target = journal(root)
    receipts = put(target, 1)
    real = os.pwrite
    for nth in range(1, 4):
        calls = [0]

        def pwrite(fd: int, data: bytes, offset: int, calls: list[int] = calls, nth: int = nth) -> int:
            calls[0] += 1
            if calls[0] == nth:
                raise OSError(5, "Input/output error")
            return real(fd, data, offset)

        monkeypatch.setattr(os, "pwrite", pwrite)
        draft = Draft("app.event", nth, id=f"the-id-{nth}")
        try:
            receipts += target.append([draft])
        except JournalError:
            monkeypatch.setattr(os, "pwrite", real)
            if holder == "another":
                receipts += closed(root, "between")
            # As a queue does: it was not acknowledged, so it is written again.
            receipts += target.append([draft])
        monkeypatch.setattr(os, "pwrite", real)
    target.close()
    records = sane(root)
    holds(records, receipts)
    assert [value for value in payloads(records) if value != "between"] == [1, 1, 2, 3]


def test_recoveries_after_a_fault_are_counted_once(root: Path, disk: Disk) -> None:
    with journal(root) as target:
        put(target, 1)
        disk.fail(1)
        put(target, 2)
    records = sane(root, allow=[Status.RECOVERED])
    assert not of_type(records, "otledger.recovery")
    closed(root)
    assert sane(root, allow=[Status.RECOVERED]) == records
