"""A process dies before, in or after each of its system calls: whoever comes next finds everything acknowledged.

The process is this one; its death is an exception that no code of ours may catch, after which nothing is done.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import otledger
from otledger import Journal, JournalError, Receipt, Status
from tests.checker import check
from tests.faults.tools import (
    LOCKS,
    append_bytes,
    closed,
    events,
    good_records,
    holds,
    journal,
    lines_of,
    newest,
    partition,
    payloads,
    put,
    put_batch,
    sane,
    segment_names,
)

MEMORY = Path("/dev/shm")
CALLS = ("write", "pwrite", "fsync", "fdatasync", "ftruncate", "mkdir", "unlink", "open", "fchmod")


class Killed(BaseException):
    """The process is no more."""


class Fate:
    """Lets a process die at a certain call that changes something, and fails syncs on the way."""

    def __init__(
        self,
        at: int | Callable[[str, Any], bool] = 1 << 60,
        when: str = "before",
        bad_syncs: tuple[int, ...] = (),
    ) -> None:
        self.at, self.when, self.bad_syncs = at, when, bad_syncs
        self.count = 0
        self.syncs = 0
        self.dead = False
        self.log: list[str] = []
        self.real = {name: getattr(os, name) for name in CALLS}

    def __enter__(self) -> "Fate":
        for name in CALLS:
            setattr(os, name, self._wrap(name))
        return self

    def __exit__(self, *_: object) -> None:
        for name, real in self.real.items():
            setattr(os, name, real)

    def _wrap(self, name: str) -> Callable[..., Any]:
        real = self.real[name]

        def call(*arguments: Any, **options: Any) -> Any:
            if name == "open" and not (len(arguments) > 1 and arguments[1] & os.O_CREAT):
                return real(*arguments, **options)
            if self.dead:
                raise Killed
            self.count += 1
            self.log.append(name)
            self.dead = self.at(name, arguments[0]) if callable(self.at) else self.count == self.at
            if self.dead and self.when == "half" and name == "write":
                real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
            if self.dead and self.when != "after":
                raise Killed
            if name == "fdatasync":
                self.syncs += 1
                if self.syncs in self.bad_syncs:
                    if self.dead:
                        raise Killed
                    raise OSError(5, "Input/output error")
            result = real(*arguments, **options)
            if self.dead:
                raise Killed
            return result

        return call


Life = Callable[[Path, dict[str, Any], list[Receipt]], None]


def run(root: Path, options: dict[str, Any], told: list[Receipt], *steps: Callable[[Journal], list[Receipt]]) -> None:
    target = journal(root, **options)
    try:
        for step in steps:
            for _ in range(3):
                try:
                    told += step(target)
                    break
                except JournalError as error:
                    told += getattr(error, "receipts", [])
        target.close()
    finally:
        target.after_fork()  # the kernel closes what a dead process had open


def one(number: int) -> Callable[[Journal], list[Receipt]]:
    return lambda target: put(target, number)


def some(*numbers: int) -> Callable[[Journal], list[Receipt]]:
    return lambda target: put_batch(target, *numbers)


def sync(target: Journal) -> list[Receipt]:
    target.sync()
    return []


def life(root: Path, options: dict[str, Any], told: list[Receipt]) -> None:
    run(root, options, told, one(1), some(2, 3, 4), sync, one(5), one(6), sync)


def short_life(root: Path, options: dict[str, Any], told: list[Receipt]) -> None:
    run(root, options, told, one(1), one(2))


def nothing(root: Path) -> list[Receipt]:
    return []


def crash(root: Path) -> list[Receipt]:
    target = journal(root)
    receipts = put(target, 101, 102, 103)
    target.after_fork()
    return receipts


def torn(root: Path) -> list[Receipt]:
    receipts = crash(root)
    append_bytes(newest(root), b'{"specversion":"1.0","id":"torn')
    return receipts


def unfinished(root: Path) -> list[Receipt]:
    receipts = crash(root)
    (partition(root) / "2099-01.jsonl").write_bytes(b'{"specversion"')
    return receipts


def torn_and_unfinished(root: Path) -> list[Receipt]:
    receipts = torn(root)
    (partition(root) / "2099-01.jsonl").write_bytes(b"")
    return receipts


def another_boot(root: Path) -> list[Receipt]:
    receipts = torn(root)
    LOCKS["another boot"](root)
    return receipts


def two_segments(root: Path) -> list[Receipt]:
    receipts = closed(root, 101)
    receipts += closed(root, 102, max_segment=1)
    target = journal(root)
    receipts += put(target, 103)
    target.after_fork()
    return receipts


STORIES: dict[str, tuple[Callable[[Path], list[Receipt]], Life, dict[str, Any], tuple[int, ...]]] = {
    "from the beginning": (nothing, life, {}, ()),
    "with cuts": (nothing, life, {"max_segment": 1500}, ()),
    "after a crash": (crash, short_life, {}, ()),
    "over a torn line": (torn, short_life, {}, ()),
    "over a torn line of another boot": (another_boot, short_life, {}, ()),
    "over an unfinished segment": (unfinished, short_life, {}, ()),
    "over both": (torn_and_unfinished, short_life, {}, ()),
    "a sync fails": (crash, life, {}, (2,)),
    "two syncs fail": (crash, life, {}, (2, 3)),
    "two syncs fail later": (nothing, life, {}, (3, 5)),
    "the first sync fails": (crash, short_life, {}, (1,)),
    "the first sync fails in another boot": (another_boot, short_life, {}, (1,)),
    "a sync fails at a cut": (two_segments, life, {"max_segment": 1500}, (3, 4)),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        yield Path(name)


@pytest.mark.parametrize("durability", ["disk", "os"])
@pytest.mark.parametrize("story", STORIES)
def test_death_at_every_call(folder: Path, story: str, durability: str) -> None:
    before, live, settings, bad_syncs = STORIES[story]
    options = {"durability": durability, **settings}
    base = folder / "base"
    known = before(base)
    whole = folder / "whole"
    if base.exists():
        shutil.copytree(base, whole)
    told = list(known)
    with Fate(bad_syncs=bad_syncs) as fate:
        live(whole, options, told)
    good(whole, told, durability)
    assert fate.count > 5
    lives = 0
    for at in range(1, fate.count + 1):
        for when in ("before", "half", "after"):
            if when == "half" and fate.log[at - 1] != "write":
                continue
            root = folder / f"{at}{when}"
            if base.exists():
                shutil.copytree(base, root)
            told = list(known)
            with pytest.raises(Killed), Fate(at, when, bad_syncs):
                live(root, options, told)
            lives += 1
            # At `os` a failed sync is told to the next process by `.lock` alone.
            if (root / "m1" / ".lock").exists() and lives % 3 == 0 and (durability == "disk" or not bad_syncs):
                LOCKS["missing"](root)
            told += closed(root, 900)
            records = good(root, told, durability)
            assert payloads(records)[-1] == 900
            # A second look changes nothing.
            names = segment_names(root)
            closed(root)
            assert segment_names(root) == names
            shutil.rmtree(root)


def good(root: Path, told: list[Receipt], durability: str) -> list[Any]:
    records = sane(root)
    ids = [record["id"] for record in records]
    assert {receipt.id for receipt in told} <= set(ids)
    if durability == "disk":
        holds(records, told)
    # What was tried again after an error may be there, or not; but no event twice, and in their order.
    values = payloads(records)
    numbers = [value for value in values if value < 100]
    assert numbers == sorted(set(numbers))
    assert [value for value in values if 100 < value < 900] == sorted({value for value in values if 100 < value < 900})
    return records


# The names of files ----------------------------------------------------------------------------------------


def synced_folders(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that this process has synced, from now on."""
    found: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        real(fd)
        path = os.readlink(f"/proc/self/fd/{fd}")
        if os.path.isdir(path):
            found.append(path)

    monkeypatch.setattr(os, "fsync", fsync)
    return found


def test_a_segment_that_a_dead_process_made_gets_a_durable_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was killed after the header, before its folder was synced. What is appended there later needs the name."""
    closed(root, 1)
    target = journal(root, max_segment=1)

    def is_fatal(call: str, what: Any) -> bool:
        return call == "fsync" and os.path.isdir(f"/proc/self/fd/{what}") and len(segment_names(root)) == 2

    with Fate(is_fatal), pytest.raises(Killed):
        put(target, 2)
    target.after_fork()
    assert len(segment_names(root)) == 2
    folders = synced_folders(monkeypatch)
    closed(root, 3)
    assert str(partition(root)) in folders
    assert payloads(sane(root))[-1] == 3


@pytest.mark.parametrize("name", ["m1", "ledger"])
def test_a_folder_that_a_dead_process_made_gets_a_durable_name(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with the partition's folder in the root, and the root's in the one above."""
    target = journal(root)
    with Fate(lambda call, what: call == "mkdir" and Path(what).name == name, "after"), pytest.raises(Killed):
        put(target, 1)
    target.after_fork()
    assert root.is_dir()
    folders = synced_folders(monkeypatch)
    closed(root, 2)
    assert str(root) in folders
    if name == "ledger":
        assert str(root.parent) in folders
    assert payloads(sane(root)) == [2]


def test_order_of_a_cut(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old segment is synced before the new one is made, that before it is named, its folder before anything is
    told.
    """
    calls: list[str] = []
    closed(root, 1)
    first = newest(root).name
    for name in ("fsync", "fdatasync", "write", "open", "link"):
        real = getattr(os, name)

        def call(what: Any, *arguments: Any, name: str = name, real: Any = real, **options: Any) -> Any:
            result = real(what, *arguments, **options)
            if name == "open":
                if arguments and arguments[0] & os.O_EXCL:
                    calls.append(f"create {what}")
            elif name == "link":
                calls.append(f"name {arguments[0]}")
            else:
                calls.append(f"{name} {Path(os.readlink(f'/proc/self/fd/{what}')).name}")
            return result

        monkeypatch.setattr(os, name, call)
    with journal(root, durability="os", max_segment=1) as target:
        put(target, 2)
        calls.append("told")
        monkeypatch.undo()
    second = newest(root).name
    order = ["create .new", "write .new", "fsync .new", f"name {second}", "fsync m1", "told"]
    places = [calls.index(step) for step in order]
    assert places == sorted(places)
    # Everything written to the first was synced before.
    last_write = max((i for i, step in enumerate(calls) if step == f"write {first}"), default=-1)
    if last_write >= 0:
        assert f"fdatasync {first}" in calls[last_write : places[0]]


def test_a_segment_has_no_name_until_it_is_durable(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sync fails, and the process dies before it can say so: nobody finds the file, or trusts it."""
    closed(root, 1)
    names = segment_names(root)
    real = os.fsync

    def fail(fd: int) -> None:
        if os.path.isfile(f"/proc/self/fd/{fd}"):
            raise Killed
        real(fd)

    target = journal(root, max_segment=1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(Killed):
            put(target, 2)
    target.after_fork()
    assert segment_names(root) == names
    assert len((partition(root) / ".new").read_bytes()) > 400
    closed(root, 3, max_segment=1)
    assert not (partition(root) / ".new").exists()
    assert [path.stat().st_nlink for path in partition(root).glob("*.jsonl")] == [1, 1]
    assert payloads(sane(root, allow=[Status.OK])) == [1, 3]


def test_a_segments_name_that_another_host_takes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock does not reach that host. What it wrote is not overwritten."""
    closed(root, 1)
    real = os.link

    def link(old: str, new: str, **options: Any) -> None:
        (partition(root) / new).write_bytes(b"another host's\n")
        real(old, new, **options)

    with monkeypatch.context() as patch, journal(root, max_segment=1) as target:
        patch.setattr(os, "link", link)
        with pytest.raises(JournalError, match="exists"):
            put(target, 2)
        patch.setattr(os, "link", real)
        assert newest(root).read_bytes() == b"another host's\n"
        put(target, 3)
    assert payloads(sane(root)) == [1, 3]


def test_a_file_system_without_hard_links(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    closed(root, 1)
    closed(root, 2, max_segment=1)
    assert payloads(sane(root, allow=[Status.OK])) == [1, 2]
    assert not (partition(root) / ".new").exists()


# What stays open --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["write", "fsync", "fdatasync", "ftruncate", "pwrite"])
@pytest.mark.parametrize("error", [28, 5])
@pytest.mark.parametrize("story", [crash, torn, unfinished, another_boot, two_segments])
def test_failures_leave_nothing_open(
    root: Path, story: Callable[[Path], list[Receipt]], call: str, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full for a week must not cost all descriptors."""
    told = story(root)
    real = getattr(os, call)

    def fail(fd: int, *arguments: Any) -> Any:
        raise OSError(error, os.strerror(error))

    target = journal(root, max_segment=1)
    before = len(os.listdir("/proc/self/fd"))
    counts = []
    monkeypatch.setattr(os, call, fail)
    for _ in range(6):
        try:
            put(target, 1)
        except JournalError:
            counts.append(len(os.listdir("/proc/self/fd")))
    monkeypatch.setattr(os, call, real)
    assert len(set(counts[1:])) <= 1, counts
    told += put(target, 2)
    target.close()
    assert len(os.listdir("/proc/self/fd")) == before
    records = check(partition(root))
    assert {receipt.id for receipt in told} <= {record["id"] for record in records}
    assert otledger.verify(root).status in (Status.OK, Status.RECOVERED)
    assert len({record["id"] for record in events(records)}) == len(events(records))


# Where the program goes -------------------------------------------------------------------------------------


def test_a_relative_root_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that changes its working folder, as a daemon does, goes on with the same ledger."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with journal(Path("ledger")) as target:
        receipts = put(target, 1)
        monkeypatch.chdir(tmp_path / "elsewhere")
        receipts += put(target, 2)
        (tmp_path / "ledger" / "m1" / ".lock").unlink()
        receipts += put(target, 3)
    assert not list((tmp_path / "elsewhere").iterdir())
    records = sane(tmp_path / "ledger", allow=[Status.OK])
    holds(records, receipts)
    assert payloads(records) == [1, 2, 3]


async def test_a_ledger_with_a_relative_root_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    async with otledger.open("ledger", machine="m1", service="test", min_free=0) as ledger:
        await ledger.append("app.event", 1)
        monkeypatch.chdir(tmp_path / "elsewhere")
        await ledger.append("app.event", 2)
        assert [record.data for record in ledger.reader.records() if record.type == "app.event"] == [1, 2]
    assert not list((tmp_path / "elsewhere").iterdir())
    assert payloads(sane(tmp_path / "ledger", allow=[Status.OK])) == [1, 2]


def test_lines_that_somebody_appends_without_the_lock(root: Path) -> None:
    """`echo >> segment` between two batches, of our own process and of others: never cut, never counted as ours."""
    with journal(root) as target:
        receipts = put(target, 1)
        for number in range(3):
            append_bytes(newest(root), b'{"hello":%d}\n' % number)
            receipts += put(target, number + 2)
    texts = b"".join((partition(root) / name).read_bytes() for name in segment_names(root))
    assert all(b'{"hello":%d}\n' % number in texts for number in range(3))
    ids = {record["id"] for name in segment_names(root) for record in good_records(partition(root) / name)}
    assert {receipt.id for receipt in receipts} <= ids
    assert payloads(check(partition(root))) == [1, 2, 3, 4]
    assert otledger.verify(root).status == Status.TAMPERED
    assert all(line.endswith(b"\n") for name in segment_names(root) for line in lines_of(partition(root) / name))
