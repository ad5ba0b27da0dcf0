"""Single steps: the names that files get and when, what stays open where a call fails, what comes without the lock.

What a death or a power cut leaves at each step is in test_crash_states.py.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import otledger
from otledger import JournalError, Receipt, Status
from otledger.identity import host_hash
from otledger.repair import plan
from otledger.segment import unfinished_name
from tests.checker import check
from tests.faults import stories
from tests.faults.crashes import Diary, Life
from tests.faults.recorder import Killed, Recorder, Told
from tests.faults.tools import (
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
    sane,
    segment_names,
    snapshot,
)

# The names of files ----------------------------------------------------------------------------------------


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
    draft = unfinished_name(host_hash())
    order = [f"create {draft}", f"write {draft}", f"fsync {draft}", f"name {second}", "fsync m1", "told"]
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
    assert len((partition(root) / unfinished_name(host_hash())).read_bytes()) > 400
    closed(root, 3, max_segment=1)
    assert not (partition(root) / unfinished_name(host_hash())).exists()
    assert [path.stat().st_nlink for path in partition(root).glob("*.jsonl")] == [1, 1]
    assert payloads(sane(root, allow=[Status.OK])) == [1, 3]


DRAFTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda segment: b"",
    "torn": lambda segment: segment[:200],
    "whole": lambda segment: segment,
    "zeros": lambda segment: bytes(700),
}


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("draft", DRAFTS)
def test_a_draft_that_a_crash_left(root: Path, draft: str, alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers, verify and repair do not see it; the host's next segment replaces it, and leaves another host's."""
    closed(root, 1)
    content = DRAFTS[draft](newest(root).read_bytes())
    own, other = (partition(root) / unfinished_name(host) for host in (host_hash(), "f" * 32))
    for path in (own, other):
        path.write_bytes(content)
    if alone:
        # The first segment of all was not finished.
        newest(root).unlink()
        (partition(root) / ".lock").unlink()
    before = snapshot(root)
    told = [] if alone else [1]
    assert [record.data for record in otledger.Reader(root).records() if record.type == "app.event"] == told
    report = otledger.verify(root)
    assert (report.status, report.faults) == (Status.OK, ())
    assert [planned.steps for planned in plan(root)] == [()]
    assert snapshot(root) == before
    closed(root, 2)
    assert own.exists() == (not alone)
    closed(root, 3, max_segment=1)
    assert not own.exists()
    assert other.read_bytes() == content
    assert payloads(sane(root, allow=[Status.OK])) == [*told, 2, 3]


def test_a_draft_that_cannot_be_removed(root: Path) -> None:
    """What somebody put there in its place is named, and nothing is lost by it."""
    closed(root, 1)
    odd = partition(root) / unfinished_name(host_hash())
    odd.mkdir()
    with journal(root, max_segment=1) as target:
        with pytest.raises(JournalError, match="directory"):
            put(target, 2)
        odd.rmdir()
        put(target, 3)
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
    assert not (partition(root) / unfinished_name(host_hash())).exists()


# What stays open --------------------------------------------------------------------------------------------


def told_by(life: Life, root: Path) -> list[Receipt]:
    """What was acknowledged in a life."""
    recorder = Recorder(root)
    life(root, Diary(recorder))
    return [receipt for entry in recorder.log if isinstance(entry, Told) for receipt in entry.receipts]


@pytest.mark.parametrize("call", ["write", "fsync", "fdatasync", "ftruncate", "pwrite"])
@pytest.mark.parametrize("error", [28, 5])
@pytest.mark.parametrize(
    "before",
    [
        stories.died,
        stories.died_in_a_write,
        stories.died_in_a_cut,
        stories.lost_power_in_a_write,
        stories.died_in_the_second_segment,
    ],
)
def test_failures_leave_nothing_open(
    root: Path, before: Life, call: str, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full for a week must not cost all descriptors."""
    told = told_by(before, root)
    real = getattr(os, call)

    def fail(fd: int, *arguments: Any) -> Any:
        raise OSError(error, os.strerror(error))

    target = journal(root, max_segment=1)
    opened = len(os.listdir("/proc/self/fd"))
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
    assert len(os.listdir("/proc/self/fd")) == opened
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
