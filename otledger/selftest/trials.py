"""The trials: what a file system has to do, and what the journal has to make of it."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import statistics
import time
from contextlib import closing
from pathlib import Path

from otledger import clock
from otledger.errors import LedgerError
from otledger.folder import check_root, file_system
from otledger.lock import PartitionLock
from otledger.reader import Reader
from otledger.record import Draft
from otledger.segment import LOCK_FILE, QUARANTINE, open_folder
from otledger.selftest.child import COUNTER, open_journal
from otledger.selftest.running import Bench, Broken, Outcome, Trial
from otledger.verifier import Status, verify

GOOD = (Status.OK, Status.RECOVERED)
IN_MEMORY = ("tmpfs", "ramfs")
PATIENCE = 60.0
"""Seconds for what takes milliseconds."""
SUSPICIOUS = 30e-6
"""Seconds: no disk and no flash makes 4 KB durable faster."""


def need(ok: object, otherwise: str) -> None:
    """Raise `Broken` where something does not hold."""
    if not ok:
        raise Broken(otherwise)


def place(bench: Bench) -> Outcome:
    """Where it is, and whether otledger would take it as a root."""
    kind = file_system(bench.folder) or "unknown"
    try:
        check_root(bench.folder, force=False)
    except LedgerError as error:
        return Outcome("place", "warn", 1, str(error), "what follows was tried all the same")
    if kind in IN_MEMORY:
        return Outcome("place", "warn", 1, f"{kind}: nothing on it survives a power cut", "use a disk")
    return Outcome("place", "ok", 1, f"{kind}")


# The file system's calls


def calls(bench: Bench) -> Outcome:
    """What the journal relies on: O_EXCL, O_APPEND, ftruncate, rename, O_NOFOLLOW, fsync of files and folders."""
    folder = open_folder(bench.folder)
    rounds = 0
    try:
        while rounds == 0 or (rounds < 100 and bench.goes_on()):
            _try_calls(bench.folder, folder)
            rounds += 1
    finally:
        os.close(folder)
    return Outcome("calls", "ok", rounds, "creating, appending, cutting, renaming and syncing do what they should")


def _try_calls(path: Path, folder: int) -> None:
    fd = os.open("a", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    try:
        try:
            os.close(os.open("a", os.O_WRONLY | os.O_CREAT | os.O_EXCL, dir_fd=folder))
            raise Broken("O_EXCL opened a file that was there")
        except FileExistsError:
            pass
        os.write(fd, b"0123456789")
        os.ftruncate(fd, 4)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"abc")
        os.fdatasync(fd)
        os.fsync(folder)
        need((path / "a").read_bytes() == b"0123abc", "after ftruncate, O_APPEND did not write at the end")
        need(os.stat("a", dir_fd=folder).st_size == os.fstat(fd).st_size == 7, "a file's size depends on who asks")
        (path / "b").write_bytes(b"b")
        os.rename("b", "a", src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
        there = os.stat("a", dir_fd=folder)
        need(there.st_ino != os.fstat(fd).st_ino, "a file that was replaced has its predecessor's inode")
        need((path / "a").read_bytes() == b"b", "rename did not replace the file")
        need(os.pread(fd, 10, 0) == b"0123abc", "an open file changed when another took its name")
        os.symlink("a", "c", dir_fd=folder)
        try:
            os.close(os.open("c", os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder))
            raise Broken("O_NOFOLLOW followed a symbolic link")
        except OSError as error:
            need(error.errno in (errno.ELOOP, errno.EMLINK), f"O_NOFOLLOW raised {error.strerror}")
    finally:
        os.close(fd)
        for name in ("a", "b", "c"):
            if os.path.lexists(path / name):
                os.unlink(name, dir_fd=folder)


def syncing(bench: Bench) -> Outcome:
    """How long fdatasync takes; too short is no good sign."""
    taken: list[float] = []
    fd = os.open(bench.folder / "file", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        while len(taken) < 20 or (len(taken) < 2000 and bench.goes_on()):
            os.write(fd, os.urandom(4096))
            began = time.perf_counter()
            os.fdatasync(fd)
            taken.append(time.perf_counter() - began)
    finally:
        os.close(fd)
    taken.sort()
    median, late = statistics.median(taken), taken[int(len(taken) * 0.99)]
    finding = f"making 4 KB durable takes {median * 1000:.2f} ms, one in a hundred {late * 1000:.2f} ms"
    if median < SUSPICIOUS:
        remedy = "see whether the disk, its controller or the hypervisor only says that it wrote (write cache, unsafe)"
        return Outcome("syncing", "warn", len(taken), f"{finding}: faster than any disk is", remedy)
    return Outcome("syncing", "ok", len(taken), finding)


# The lock


def lock(bench: Bench) -> Outcome:
    """Processes that count under the lock lose no number, and a killed one leaves it free."""
    fd = open_folder(bench.folder)
    try:
        _holder_is_killed(bench, fd)
        (bench.folder / COUNTER).write_text("0")
        due = rounds = 0
        while rounds == 0 or bench.goes_on():
            counting = [bench.start("count", bench.folder, 100) for _ in range(3)]
            codes = [child.wait(PATIENCE) for child in counting]
            for child in counting:
                bench.end(child)
            need(not any(codes), "a process could not take the lock")
            due, rounds = due + 300, rounds + 1
            there = int((bench.folder / COUNTER).read_text())
            need(there == due, f"two processes held the lock at once: they counted to {there} and not to {due}")
    finally:
        os.close(fd)
    return Outcome("lock", "ok", due, f"{due:,} turns of 3 processes, never two at once; a killed one left it free")


def _holder_is_killed(bench: Bench, fd: int) -> None:
    holder = bench.start("hold", bench.folder)
    assert holder.stdout is not None
    need(holder.stdout.readline() == "held\n", "a process could not take the lock")
    own = os.open(bench.folder / LOCK_FILE, os.O_RDWR)
    try:
        try:
            fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
            raise Broken("two processes hold the same flock at once")
        except BlockingIOError:
            pass
    finally:
        os.close(own)
    bench.end(holder)
    mine = PartitionLock(fd, bench.folder, 0o600)
    with closing(mine):
        mine.acquire(PATIENCE)


# The journal


def killing(bench: Bench) -> Outcome:
    """Writers die by SIGKILL again and again; all that was acknowledged is there."""
    root = bench.folder / "ledger"
    chance = random.Random()
    told: dict[str, tuple[int, str]] = {}
    kills = 0
    while kills == 0 or bench.goes_on():
        paths = [bench.folder / f"acks-{kills}-{number}" for number in range(2)]
        writers = [bench.start("write", root, path) for path in paths]
        _wait_for(paths)
        time.sleep(chance.uniform(0, 0.08))
        for writer in writers:
            bench.end(writer)
        kills += len(writers)
        for path in paths:
            told |= acknowledged(path)
            path.unlink(missing_ok=True)
    _open_once(root)
    hold_against(root, told)
    return Outcome("kill -9", "ok", kills, f"{kills:,} writers killed, all of {len(told):,} acknowledged records there")


def _wait_for(paths: list[Path]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not any(path.exists() and path.stat().st_size for path in paths):
        need(time.monotonic() < deadline, f"nothing was acknowledged within {PATIENCE:.0f} s")
        time.sleep(0.002)


def acknowledged(path: Path) -> dict[str, tuple[int, str]]:
    """Give what processes were told to be durable: `seq` and checksum by id."""
    if not path.exists():
        return {}
    # A last line without its end is of a process that died while it wrote that down.
    rows = [row.split() for row in path.read_text().split("\n")[:-1]]
    return {id: (int(seq), checksum) for id, seq, checksum in rows}


def hold_against(root: Path, told: dict[str, tuple[int, str]]) -> None:
    """Raise `Broken` unless the ledger verifies and has every record that was acknowledged."""
    report = verify(root, processes=1, deep=True)
    need(report.status in GOOD, f"the ledger is {report.status}: {'; '.join(map(str, report.faults[:3]))}")
    there = {record.id: (record.seq, record.checksum) for record in Reader(root).records()}
    lost = [id for id, what in told.items() if there.get(id) != what]
    need(not lost, f"{len(lost):,} of {len(told):,} acknowledged records are lost or changed")


def _open_once(root: Path) -> None:
    with open_journal(root):
        pass


def tearing(bench: Bench) -> Outcome:
    """A tail as a crash leaves it is set aside, to the byte, and appending goes on."""
    chance = random.Random()
    rounds = 0
    while rounds == 0 or (rounds < 1000 and bench.goes_on()):
        root = bench.folder / f"ledger{rounds}"
        with open_journal(root) as journal:
            receipts = journal.append([Draft("selftest.event", number) for number in range(5)])
            path = journal.path / receipts[0].segment
        line = path.read_bytes().splitlines()[2]
        begun = line[: chance.randrange(1, len(line))]
        torn = chance.choice([begun, bytes(chance.randrange(1, 5000)), os.urandom(100)])
        with path.open("ab") as file:
            file.write(torn)
        if rounds % 2:
            # As after a boot: nothing is known of what was acknowledged.
            (path.parent / LOCK_FILE).write_bytes(b"")
        _append_one(root)
        kept = [one.read_bytes() for one in (path.parent / QUARANTINE).iterdir()]
        need(kept == [torn], "what a crash left was not set aside as it was")
        hold_against(root, {one.id: (one.seq, one.checksum) for one in receipts})
        rounds += 1
    return Outcome("torn tail", "ok", rounds, f"{rounds:,} torn tails set aside to the byte, and appending went on")


def _append_one(root: Path) -> None:
    with open_journal(root) as journal:
        journal.append([Draft("selftest.event", "after")])


def filling(bench: Bench) -> Outcome:
    """A write that finds no room in the middle of a batch: what was acknowledged stays, the rest is written later."""
    rounds = 0
    while rounds == 0 or bench.goes_on():
        root = bench.folder / f"ledger{rounds}"
        acks = bench.folder / f"acks{rounds}"
        child = bench.start("fill", root, acks, random.randrange(1, 8 * 2300))
        code = child.wait(PATIENCE)
        assert child.stdout is not None
        said = child.stdout.read().strip()
        bench.end(child)
        need(code == 0, "a writer that found no room did not get over it")
        need(not said, said)
        told = acknowledged(acks)
        need(len(told) == 9, f"{len(told)} of 9 records were acknowledged in the end")
        hold_against(root, told)
        rounds += 1
    return Outcome("full disk", "ok", rounds, f"{rounds:,} times no room within a batch; nothing lost, nothing twice")


# The clock


def ticking(bench: Bench) -> Outcome:
    """The clock goes on, and the file system's is the same."""
    began, boot = time.time_ns(), clock.boot_ns()
    path = bench.folder / "file"
    path.write_bytes(b"x")
    skew = path.stat().st_mtime - time.time()
    time.sleep(0.2)
    apart = abs((time.time_ns() - began) - (clock.boot_ns() - boot)) / 1e9
    need(clock.boot_ns() > boot, "the clock that counts since boot stands still")
    if abs(skew) > 2:
        remedy = "set both clocks: times of files and of records will differ"
        return Outcome("clock", "warn", 1, f"the file system's clock is {skew:+.1f} s away from this machine's", remedy)
    if apart > 0.1:
        return Outcome("clock", "warn", 1, f"the clock jumped by {apart:.1f} s meanwhile", "see who sets it")
    if not clock.synchronised():
        remedy = "run an NTP client (timedatectl set-ntp true)"
        return Outcome("clock", "warn", 1, "the clock goes on, and nobody keeps it in time", remedy)
    return Outcome("clock", "ok", 1, "the clock goes on, is kept in time, and the file system's is the same")


TRIALS: dict[str, tuple[Trial, float]] = {
    "place": (place, 0.0),
    "calls": (calls, 0.05),
    "syncing": (syncing, 0.05),
    "lock": (lock, 0.15),
    "kill -9": (killing, 0.45),
    "torn tail": (tearing, 0.15),
    "full disk": (filling, 0.15),
    "clock": (ticking, 0.0),
}
"""Each trial, and its share of the time."""
