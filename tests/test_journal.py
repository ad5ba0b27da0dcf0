"""The journal on real files: what it writes, when it begins a segment, and what it refuses to write to."""

import contextlib
import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

import otledger
from otledger import Draft, EventRefused, Journal, JournalError, LedgerClosed, Status, clock, folder, identity
from otledger import record as record_module
from otledger.errors import ConfigurationError, FormatError, LedgerError, RootError
from otledger.identity import boot_id, host_hash
from otledger.journal import Batch, Resource
from otledger.version import VERSION
from tests.checker import check
from tests.faults.tools import (
    MACHINE,
    REPOSITORY,
    ZEROS,
    append_bytes,
    closed,
    edit_lock,
    edited,
    environment,
    events,
    headers,
    holds,
    journal,
    lines_of,
    lock_state,
    needs_root,
    newest,
    of_type,
    partition,
    payloads,
    put,
    put_batch,
    python,
    record_of,
    run_python,
    sane,
    segment_names,
    snapshot,
)

SECOND = 1_000_000_000
DAY = 86_400 * SECOND


def at(text: str) -> int:
    """An instant, in nanoseconds since the epoch."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND


class Clock:
    """Both clocks of the journal, standing still until they are moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = at("2026-11-20T12:00:00")
        self.boot = 1000 * SECOND
        self.synchronised = False
        monkeypatch.setattr(record_module, "now_ns", lambda: self.wall)
        monkeypatch.setattr(clock, "boot_ns", lambda: self.boot)
        monkeypatch.setattr(clock, "synchronised", lambda: self.synchronised)

    def pass_(self, nanoseconds: int) -> None:
        """Time goes by."""
        self.wall += nanoseconds
        self.boot += nanoseconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


# The first records ------------------------------------------------------------------------------------------


def test_nothing_is_touched_before_the_first_use(root: Path) -> None:
    target = journal(root)
    assert not root.exists()
    target.close()
    assert not root.exists()


def test_opened_and_closed_without_an_event(root: Path) -> None:
    closed(root)
    records = sane(root, allow=[Status.OK])
    assert {record["type"] for record in records} <= {"otledger.segment", "otledger.checkpoint"}
    assert (records[0]["seq"], records[0]["prev"]) == (0, ZEROS)


def test_first_record_and_its_receipt(root: Path) -> None:
    with journal(root) as target:
        (receipt,) = put(target, {"id": 7})
        # It is in the file before anything is closed.
        lines = lines_of(newest(root))
    record = record_of(lines[-1])
    assert record["data"] == {"id": 7}
    assert (record["type"], record["source"], record["machine"]) == ("app.event", "/m1/test", MACHINE)
    assert (receipt.id, receipt.seq, receipt.checksum) == (record["id"], record["seq"], record["checksum"])
    assert receipt.segment == newest(root).name
    holds(sane(root, allow=[Status.OK]), [receipt])


def test_header_of_the_first_segment(root: Path, clocks: Clock) -> None:
    closed(root)
    header = sane(root)[0]
    data = header["data"]
    assert list(data) == ["format", "ledger", "writer", "host", "boot", "epoch", "previous", "reason"]
    assert (data["format"], data["writer"], data["previous"], data["reason"]) == (1, f"otledger/{VERSION}", None, "new")
    assert (data["host"], data["boot"]) == (host_hash(), boot_id())
    assert header["synced"] == 0
    assert segment_names(root) == ["2026-11.jsonl"]


def test_partition_of_imports_says_so(root: Path) -> None:
    closed(root, 1, machine="m1.import")
    assert check(root / "m1.import")[0]["data"]["reason"] == "import"


def test_batch_is_one_write_with_one_synced(root: Path) -> None:
    with journal(root) as target:
        put(target, "before")
        receipts = put_batch(target, *range(50))
    records = sane(root, allow=[Status.OK])
    holds(records, receipts)
    batch = [record for record in records if record.get("data") in range(50)]
    assert [record["data"] for record in batch] == list(range(50))
    assert [record["seq"] for record in batch] == [receipt.seq for receipt in receipts]
    assert ["synced" in record for record in batch] == [True] + [False] * 49
    assert batch[0]["synced"] == batch[0]["seq"]


def test_batch_larger_than_a_group_of_writes(root: Path) -> None:
    data = "x" * 30_000
    with journal(root) as target:
        receipts = put_batch(target, *([data] * 40))
    holds(sane(root, allow=[Status.OK]), receipts)


def test_an_empty_batch_writes_nothing(root: Path) -> None:
    with journal(root) as target:
        before = snapshot(root)
        assert target.append([]) == []
        assert snapshot(root) == before


def test_a_refused_event_refuses_its_batch(root: Path) -> None:
    deep: list[object] = []
    for _ in range(200):
        deep = [deep]
    bad = [
        Draft("otledger.checkpoint", {}),
        Draft("otel.log", {}),
        Draft("a", deep),
        Draft("a", "x" * (16 << 20)),
        Draft("a", extensions={"Phase": "beta"}),
        Draft("a", extensions={"otlx": "beta"}),
        Draft(""),
    ]
    with journal(root) as target:
        put(target, 1)
        before = snapshot(root)
        for draft in bad:
            with pytest.raises(EventRefused):
                target.append([Draft("app.event", 2), draft])
        assert snapshot(root) == before
        put(target, 3)
    assert payloads(sane(root, allow=[Status.OK])) == [1, 3]


def test_the_longest_line_that_is_allowed(root: Path) -> None:
    with journal(root) as target:

        def is_allowed(size: int) -> bool:
            try:
                target.encoder.draft(Draft("app.event", "x" * size), 0)
            except EventRefused:
                return False
            return True

        low, high = (16 << 20) - 10_000, 16 << 20
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if is_allowed(middle) else (low, middle)
        with pytest.raises(EventRefused):
            put(target, "x" * high)
        receipts = put(target, "x" * low, "after")
    assert (16 << 20) - 1000 < max(map(len, lines_of(newest(root)))) <= 16 << 20
    holds(sane(root, allow=[Status.OK]), receipts)


def test_several_threads_share_a_journal(root: Path) -> None:
    receipts = []
    with journal(root, durability="os") as target:

        def work(number: int) -> None:
            for index in range(25):
                receipts.extend(put(target, [number, index]))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    records = sane(root, allow=[Status.OK])
    holds(records, receipts)
    assert len(events(records)) == len({receipt.seq for receipt in receipts}) == 150


def test_closed_means_closed(root: Path) -> None:
    target = journal(root)
    put(target, 1)
    target.close()
    before = snapshot(root)
    target.close()
    with pytest.raises(LedgerClosed):
        put(target, 2)
    with pytest.raises(LedgerClosed):
        target.open()
    with pytest.raises(LedgerClosed):
        target.sync()
    assert snapshot(root) == before


def test_a_journal_leaves_no_descriptor_open(root: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        closed(root, 1, max_segment=1000)
    assert os.listdir("/proc/self/fd") == before


def test_opening_again_goes_on(root: Path) -> None:
    receipts = [receipt for number in range(5) for receipt in closed(root, number)]
    records = sane(root, allow=[Status.OK])
    holds(records, receipts)
    assert payloads(records) == list(range(5))
    assert len(segment_names(root)) == 1
    assert len({header["ledger"] for header in headers(records)}) == 1


@pytest.mark.parametrize("durability", ["disk", "os"])
def test_two_journals_of_one_process_take_turns(root: Path, durability: str) -> None:
    with journal(root, durability=durability) as first, journal(root, durability=durability) as second:
        for number in range(10):
            put(first, number)
            put(second, -number)
    assert payloads(sane(root, allow=[Status.OK])) == [value for number in range(10) for value in (number, -number)]


# What is durable --------------------------------------------------------------------------------------------


def test_synced_at_disk(root: Path) -> None:
    with journal(root) as target:
        for number in range(4):
            put_batch(target, number, number)
    records = sane(root)
    assert [record["synced"] for record in records if "synced" in record] == [
        record["seq"] for record in records if "synced" in record
    ]
    assert sum("synced" in record for record in events(records)) == 4


def test_synced_at_os_names_the_last_sync(root: Path) -> None:
    with journal(root, durability="os") as target:
        put(target, 0, 1, 2)
        target.sync()
        put(target, 3, 4)
        records = check(partition(root))
        assert lock_state(root)["synced_seq"] == 4
    assert payloads(records) == [0, 1, 2, 3, 4]
    assert [record["synced"] for record in events(records)] == [1, 1, 1, 4, 4]
    state = lock_state(root)
    assert state["synced"] == state["acked"] == newest(root).stat().st_size


def test_sync_without_anything_new(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    with journal(root, durability="os") as target:
        put(target, 1)
        monkeypatch.setattr(os, "fdatasync", synced.append)
        target.sync()
        target.sync()
        monkeypatch.undo()
    assert len(synced) == 1


# Checkpoints ------------------------------------------------------------------------------------------------


def test_at_most_one_checkpoint_a_second(root: Path, clocks: Clock) -> None:
    with journal(root, checkpoint_interval=1.0) as target:
        for _ in range(10):
            put(target, "a")
            clocks.pass_(300_000_000)
        records = check(partition(root))
        points = of_type(records, "otledger.checkpoint")
        assert len(points) == 2
        times = [datetime.fromisoformat(point["time"][:26] + "+00:00").timestamp() for point in points]
        assert times[1] - times[0] >= 1
    sane(root, allow=[Status.OK])


def test_a_checkpoint_covers_what_is_durable(root: Path, clocks: Clock) -> None:
    with journal(root, durability="os", checkpoint_interval=1.0) as target:
        put(target, 0, 1)
        target.sync()
        put(target, 2, 3)
        clocks.pass_(2 * SECOND)
        put(target, 4)
        records = check(partition(root))
    (point,) = of_type(records, "otledger.checkpoint")
    # Records 3 and 4 are with the operating system only.
    assert point["data"] == {"size": 3, "head": records[2]["checksum"].removeprefix("sha256:")}
    assert point["seq"] == 5
    last = sane(root, allow=[Status.OK])[-1]
    assert last["type"] == "otledger.checkpoint"
    assert last["data"]["size"] == last["seq"]


def test_no_checkpoint_where_nothing_is_new(root: Path, clocks: Clock) -> None:
    closed(root, 1, checkpoint_interval=0.0)
    before = snapshot(root)
    for _ in range(3):
        clocks.pass_(10 * SECOND)
        closed(root, checkpoint_interval=0.0)
    assert snapshot(root) == before
    for name in (".lock",):
        (partition(root) / name).unlink()
    closed(root, checkpoint_interval=0.0)
    assert snapshot(root) == before


def test_checkpoints_do_not_follow_each_other(root: Path, clocks: Clock) -> None:
    """Each event brings at most one, and one at close."""
    with journal(root, checkpoint_interval=0.0) as target:
        put(target, *range(5))
    types = [record["type"] for record in sane(root, allow=[Status.OK])]
    assert ("otledger.checkpoint", "otledger.checkpoint") not in itertools.pairwise(types)
    assert types[-1] == "otledger.checkpoint"


def test_a_checkpoint_at_a_cut_and_at_close(root: Path) -> None:
    with journal(root, max_segment=2000) as target:
        put(target, *range(12))
    names = segment_names(root)
    assert len(names) > 2
    for name in names:
        last = record_of(lines_of(partition(root) / name)[-1])
        assert last["type"] == "otledger.checkpoint"
        assert last["data"]["size"] == last["seq"]
    sane(root, allow=[Status.OK])


@pytest.mark.parametrize("durability", ["disk", "os"])
def test_two_processes_share_the_interval(root: Path, clocks: Clock, durability: str) -> None:
    settings = {"durability": durability, "checkpoint_interval": 1.0}
    with journal(root, **settings) as first, journal(root, **settings) as second:
        for _ in range(5):
            put(first, 1)
            put(second, 2)
        clocks.pass_(2 * SECOND)
        put(first, 1)
        put(second, 2)
        points = of_type(check(partition(root)), "otledger.checkpoint")
        assert len(points) == (1 if durability == "disk" else 0) or points[0]["data"]["size"] >= 1
        assert len(points) <= 1


# Segments ---------------------------------------------------------------------------------------------------


def test_cut_by_size(root: Path) -> None:
    with journal(root, max_segment=1500) as target:
        receipts = put(target, *range(40))
    records = sane(root, allow=[Status.OK])
    holds(records, receipts)
    names = segment_names(root)
    # More than ten: they sort by number, not by text.
    assert len(names) > 11
    assert [receipt.segment for receipt in receipts] == sorted((r.segment for r in receipts), key=names.index)
    found = headers(records)
    assert [header["reason"] for header in found] == ["new"] + ["size"] * (len(names) - 1)
    for header, name, before in zip(found[1:], names[1:], names, strict=False):
        size = (partition(root) / before).stat().st_size
        assert header["previous"] == {"segment": before, "size": size}, name
        assert size < 1500 + 2000
    assert [header["epoch"] for header in found] == sorted({header["epoch"] for header in found})
    assert len({header["ledger"] for header in found}) == 1
    for header in of_type(records, "otledger.segment"):
        assert header["synced"] == header["seq"]


@pytest.mark.parametrize("durability", ["disk", "os"])
def test_another_process_cuts(root: Path, durability: str) -> None:
    with journal(root, durability=durability) as first, journal(root, durability=durability, max_segment=1) as second:
        for number in range(5):
            put(first, number)
            put(second, -number)
    assert len(segment_names(root)) == 6
    assert payloads(sane(root, allow=[Status.OK])) == [value for number in range(5) for value in (number, -number)]


def test_resources_stand_once_in_each_segment(root: Path) -> None:
    resource = Resource.make("resource", b'{"service.name":"test"}')
    scope = Resource.make("scope", b"{}", name="otledger", version="1")
    resources = {one.digest: one for one in (resource, scope)}
    with journal(root, max_segment=3000) as target:
        for number in range(12):
            _, part = target.encoder.draft(Draft("app.event", number), 0)
            ack = target.write(Batch([part], resources))
            assert ack.count == 1
            line = next(line for line in lines_of(newest(root)) if f'"data":{number},'.encode() in line)
            receipt = ack.receipt(0, "id")
            assert (record_of(line)["seq"], record_of(line)["checksum"]) == (receipt.seq, receipt.checksum)
    records = sane(root, allow=[Status.OK])
    assert payloads(records) == list(range(12))
    assert len(segment_names(root)) > 1
    for name in segment_names(root):
        own = [record_of(line) for line in lines_of(partition(root) / name)]
        assert len(of_type(own, "otel.resource")) == 2


def test_month_of_append_begins_a_segment(root: Path, clocks: Clock) -> None:
    clocks.wall = at("2026-11-30T23:59:59")
    with journal(root) as target:
        put(target, "november")
        clocks.pass_(2 * SECOND)
        target.append([Draft("app.event", "december", time="1999-01-01T00:00:00Z")])
    records = sane(root, allow=[Status.OK])
    assert segment_names(root) == ["2026-11.jsonl", "2026-12.jsonl"]
    size = (partition(root) / "2026-11.jsonl").stat().st_size
    assert headers(records)[1]["previous"] == {"segment": "2026-11.jsonl", "size": size}
    assert headers(records)[1]["reason"] == "month"
    december = [record_of(line) for line in lines_of(partition(root) / "2026-12.jsonl")]
    assert payloads(december) == ["december"]
    assert events(december)[0]["time"] == "1999-01-01T00:00:00.000000000Z"


def test_month_passes_while_nobody_writes(root: Path, clocks: Clock) -> None:
    closed(root, 1)
    clocks.pass_(70 * DAY)
    closed(root, 2)
    assert segment_names(root) == ["2026-11.jsonl", "2027-01.jsonl"]
    assert payloads(sane(root, allow=[Status.OK])) == [1, 2]


@pytest.mark.parametrize("durability", ["disk", "os"])
def test_month_never_goes_back(root: Path, clocks: Clock, durability: str) -> None:
    with journal(root, durability=durability) as target:
        put(target, 1)
        clocks.wall -= 40 * DAY
        put(target, 2)
        assert segment_names(root) == ["2026-11.jsonl"]
    closed(root, 3, max_segment=1)
    assert segment_names(root) == ["2026-11.jsonl", "2026-11.1.jsonl"]
    assert payloads(sane(root, allow=[Status.OK])) == [1, 2, 3]


def test_a_month_in_the_future_is_kept(root: Path, clocks: Clock) -> None:
    """The partition's month is ahead of the clock: it goes on there."""
    clocks.wall = at("2027-05-01T00:00:00")
    closed(root, 1)
    clocks.wall = at("2026-11-20T00:00:00")
    closed(root, 2)
    closed(root, 3, max_segment=1)
    assert segment_names(root) == ["2027-05.jsonl", "2027-05.1.jsonl"]
    assert payloads(sane(root, allow=[Status.OK])) == [1, 2, 3]


def test_a_jump_ahead_is_not_believed(root: Path, clocks: Clock) -> None:
    with journal(root) as target:
        put(target, 1)
        clocks.wall += 100 * DAY
        put(target, 2)
    # Nor does the next process believe it, nor a cut for another reason.
    closed(root, 3)
    closed(root, 4, max_segment=1)
    assert segment_names(root) == ["2026-11.jsonl", "2026-11.1.jsonl"]
    clocks.wall -= 100 * DAY
    closed(root, 5)
    assert segment_names(root) == ["2026-11.jsonl", "2026-11.1.jsonl"]
    assert payloads(sane(root, allow=[Status.OK])) == [1, 2, 3, 4, 5]


def test_a_jump_ahead_is_believed_of_a_synchronised_clock(root: Path, clocks: Clock) -> None:
    clocks.synchronised = True
    with journal(root) as target:
        put(target, 1)
        clocks.wall += 100 * DAY
        put(target, 2)
    assert segment_names(root) == ["2026-11.jsonl", "2027-02.jsonl"]
    assert payloads(sane(root, allow=[Status.OK])) == [1, 2]


def test_a_jump_ahead_is_believed_after_its_own_length(root: Path, clocks: Clock) -> None:
    with journal(root) as target:
        put(target, 1)
        clocks.wall += 40 * DAY  # 30 December
        put(target, 2)
        clocks.pass_(9 * DAY)  # in truth 29 November
        put(target, 3)
        assert segment_names(root) == ["2026-11.jsonl"]
        clocks.pass_(10 * DAY)  # in truth 9 December: what the monotonic clock says is believed
        put(target, 4)
        assert segment_names(root) == ["2026-11.jsonl", "2026-12.jsonl"]
        clocks.pass_(20 * DAY)  # 39 days after the jump
        put(target, 5)
        assert segment_names(root)[-1] == "2026-12.jsonl"
        clocks.pass_(2 * DAY)
        put(target, 6)
        assert segment_names(root)[-1] == "2027-02.jsonl"
    assert payloads(sane(root, allow=[Status.OK])) == [1, 2, 3, 4, 5, 6]


def test_a_small_step_over_the_end_of_a_month_is_believed(root: Path, clocks: Clock) -> None:
    clocks.wall = at("2026-11-30T23:59:50")
    with journal(root) as target:
        put(target, 1)
        clocks.wall += 30 * SECOND
        put(target, 2)
    assert segment_names(root) == ["2026-11.jsonl", "2026-12.jsonl"]


def test_a_segment_of_another_host_is_taken_over(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed(root, 1)
    monkeypatch.setattr(identity, "host_hash", lambda: "f" * 32)
    closed(root, 2)
    closed(root, 3)
    records = sane(root, allow=[Status.OK])
    assert [header["reason"] for header in headers(records)] == ["new", "moved"]
    assert headers(records)[1]["host"] == "f" * 32
    assert payloads(records) == [1, 2, 3]


# Permissions ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(root: Path) -> dict[str, int]:
    paths = [root, *sorted(root.rglob("*"))]
    return {str(path.relative_to(root)): stat.S_IMODE(path.stat().st_mode) for path in paths}


@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
@pytest.mark.parametrize(("file_mode", "folder_mode"), [(0o600, 0o700), (0o640, 0o750), (0o664, 0o775)])
def test_modes_whatever_the_umask(tmp_path: Path, mask: int, file_mode: int, folder_mode: int) -> None:
    root = tmp_path / "above" / "ledger"
    with umask(mask):
        closed(root, 1, 2, file_mode=file_mode, max_segment=1)
        append_bytes(newest(root), b"torn")
        with journal(root, file_mode=file_mode) as target:
            target.set_aside("bad", b"line")
    found = modes(root)
    assert len(found) >= 8
    for name, mode in found.items():
        assert mode == (folder_mode if (root / name).is_dir() else file_mode), name


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A folder that other users may enter."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@needs_root
def test_a_ledger_shared_by_a_group(open_path: Path) -> None:
    """Two users write to one partition with mode 0660; either can recover what the other left."""
    root = open_path / "ledger"
    root.mkdir()
    os.chown(root, 0, 4242)
    os.chmod(root, 0o2770)
    code = """if True:
        import os, sys
        from otledger import Draft, Journal
        os.setgroups([]); os.setgid(4242); os.setuid(int(sys.argv[2]))
        with Journal(sys.argv[1], machine="m1", service="test", file_mode=0o660) as journal:
            journal.append([Draft("app.event", int(sys.argv[2]))])
    """
    for uid in (5001, 5002, 5001, 5002):
        done = run_python(code, root, uid)
        assert done.returncode == 0, done.stderr
        append_bytes(newest(root), b'{"specversion":"1.0","id":"torn')
    closed(root, 0, file_mode=0o660)
    assert payloads(sane(root)) == [5001, 5002, 5001, 5002, 0]


# What is refused --------------------------------------------------------------------------------------------


def refused(root: Path, *words: str, error: type[Exception] = RootError, **settings: object) -> None:
    """Opening raises an error that names these words; the folder is as before."""
    before = snapshot(root) if root.is_dir() else None
    target = journal(root, **settings)
    with pytest.raises(error) as caught:
        target.open()
    for word in words:
        assert word in str(caught.value)
    assert isinstance(caught.value, LedgerError)
    with contextlib.suppress(LedgerError):
        target.close()
    if before is not None:
        assert snapshot(root) == before


def test_root_is_a_file(root: Path) -> None:
    root.write_text("hello")
    refused(root, str(root), "is a file")
    refused(root / "below", str(root))
    assert root.read_text() == "hello"


def test_root_is_a_symlink(root: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    root.symlink_to(tmp_path / "real")
    refused(root, str(root), "symbolic link")
    (tmp_path / "real").rmdir()
    refused(root, str(root))


def test_root_below_a_symlink_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    closed(tmp_path / "link" / "ledger", 1)
    sane(tmp_path / "real" / "ledger", allow=[Status.OK])


def test_root_that_everybody_may_write(root: Path) -> None:
    root.mkdir()
    root.chmod(0o707)
    refused(root, str(root), "everybody", "chmod")
    closed(root, 1, force=True)
    sane(root, allow=[Status.OK])


def test_root_on_a_network_file_system(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root.mkdir(mode=0o700)
    for kind in ("fuse.sshfs", "fuse", "nfs4", "cifs"):
        monkeypatch.setattr(folder, "file_system", lambda path, kind=kind: kind)
        refused(root, str(root), kind, "force")
    closed(root, 1, force=True)
    sane(root, allow=[Status.OK])


def test_root_is_made_on_a_network_file_system(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where the root does not exist yet."""
    monkeypatch.setattr(folder, "file_system", lambda path: "fuse.sshfs")
    refused(root, "fuse.sshfs")


@needs_root
def test_root_that_is_not_writable(open_path: Path) -> None:
    code = """if True:
        import os, sys
        from otledger import Journal
        from otledger.errors import RootError
        os.setgroups([]); os.setgid(4243); os.setuid(4243)
        try:
            Journal(sys.argv[1], machine="m1", service="test").open()
        except RootError as error:
            print(error)
    """
    root = open_path / "ledger"
    done = run_python(code, root)
    assert "cannot be made" in done.stdout, done
    closed(root, 1)
    assert "cannot be opened" in run_python(code, root).stdout
    root.chmod(0o755)
    assert "not writable" in run_python(code, root).stdout
    os.chown(root, 4243, 4243)
    assert str(partition(root)) in run_python(code, root).stdout
    os.chown(partition(root), 4243, 4243)
    assert ".lock" in run_python(code, root).stdout
    os.chown(partition(root) / ".lock", 4243, 4243)
    assert newest(root).name in run_python(code, root).stdout
    assert payloads(sane(root, allow=[Status.OK])) == [1]


@pytest.mark.parametrize("machine", ["../x", "A", "", "a..b", ".a", "a/b", "a" * 64, "-a", "é", "a\n"])
def test_machine_names(root: Path, machine: str) -> None:
    if machine:
        with pytest.raises(ConfigurationError):
            journal(root, machine=machine)
    assert not root.exists()


def test_machine_folder_is_no_folder(root: Path, tmp_path: Path) -> None:
    root.mkdir(mode=0o700)
    partition(root).write_text("")
    refused(root, str(partition(root)))
    partition(root).unlink()
    (tmp_path / "elsewhere").mkdir()
    partition(root).symlink_to(tmp_path / "elsewhere")
    refused(root, str(partition(root)), "symbolic link")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("kind", ["folder", "symlink", "fifo"])
@pytest.mark.parametrize("name", ["2026-11.jsonl", "2099-12.jsonl"])
def test_a_segment_that_is_no_file(root: Path, tmp_path: Path, kind: str, name: str, clocks: Clock) -> None:
    if name != "2026-11.jsonl":
        closed(root, 1)
    partition(root).mkdir(parents=True, exist_ok=True)
    root.chmod(0o700)
    path = partition(root) / name
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        (tmp_path / "victim").write_text("do not touch")
        path.symlink_to(tmp_path / "victim")
    refused(root, str(path))
    with pytest.raises(LedgerError, match=name):
        otledger.verify(root)
    if kind == "symlink":
        assert (tmp_path / "victim").read_text() == "do not touch"


@pytest.mark.parametrize("kind", ["folder", "symlink", "fifo"])
def test_a_lock_that_is_no_file(root: Path, tmp_path: Path, kind: str) -> None:
    closed(root, 1)
    path = partition(root) / ".lock"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        (tmp_path / "victim").write_text("")
        path.symlink_to(tmp_path / "victim")
    refused(root, str(path), error=LedgerError)
    assert otledger.verify(root).status == Status.OK


@pytest.mark.parametrize("version", [b"2", b'"1"', b"null", b"0"])
def test_an_unknown_version_of_the_format(root: Path, version: bytes) -> None:
    closed(root, 1, 2)
    first, *others = lines_of(newest(root))
    newest(root).write_bytes(b"".join([edited(first, b'"format":1', b'"format":' + version), *others]))
    refused(root, newest(root).name, "format", error=FormatError)
    (partition(root) / ".lock").unlink()
    refused(root, newest(root).name, "format", error=FormatError)
    with pytest.raises(FormatError):
        otledger.verify(root)


def test_an_evledger_partition_is_read_only(root: Path) -> None:
    shutil.copytree(REPOSITORY / "tests" / "data" / "evledger", root)
    root.chmod(0o700)
    refused(root, "evledger", "import", error=FormatError, machine="laptop")


def test_close_never_raises(root: Path) -> None:
    """Where a partition cannot be used there is nothing to close, and nothing stays open."""
    closed(root, 1)
    path = newest(root)
    first, *others = lines_of(path)
    path.write_bytes(b"".join([edited(first, b'"format":1', b'"format":2'), *others]))
    before = os.listdir("/proc/self/fd")
    target = journal(root)
    with pytest.raises(FormatError):
        put(target, 2)
    target.close()
    assert os.listdir("/proc/self/fd") == before


# Changed behind its back ------------------------------------------------------------------------------------


def test_lock_removed_while_open(root: Path) -> None:
    with journal(root) as target:
        put(target, 1)
        (partition(root) / ".lock").unlink()
        put(target, 2)
        assert (partition(root) / ".lock").exists()
        closed(root, 3)
        put(target, 4)
    assert payloads(sane(root, allow=[Status.OK])) == [1, 2, 3, 4]
    assert len(segment_names(root)) == 1


@pytest.mark.parametrize("content", [b"", b"garbage", b"{}", b'{"boot":"x","state":"idle"}', b"[" * 100_000])
def test_lock_replaced_while_open(root: Path, content: bytes) -> None:
    with journal(root) as target, journal(root) as other:
        put(target, 1)
        put(other, 2)
        lock = partition(root) / ".lock"
        lock.unlink()
        lock.write_bytes(content)
        put(target, 3)
        put(other, 4)
    assert payloads(sane(root, allow=[Status.OK])) == [1, 2, 3, 4]
    assert len(segment_names(root)) == 1


def test_lock_overwritten_in_place(root: Path) -> None:
    with journal(root) as target:
        put(target, 1)
        (partition(root) / ".lock").write_bytes(b"")
        put(target, 2)
    assert payloads(sane(root, allow=[Status.OK])) == [1, 2]


@pytest.mark.parametrize(
    "members",
    [
        {"segment": "x"},
        {"segment": "../../etc/passwd"},
        {"segment": ""},
        {"acked": -5},
        {"seq": -1},
        {"head": "zz"},
        {"head": "é"},
        {"state": "failed", "segment": "x"},
        {"state": "failed", "synced": -5},
        {"state": "failed", "synced_seq": 70, "synced_head": "z"},
    ],
)
def test_lock_that_holds_nonsense(root: Path, members: dict[str, object]) -> None:
    """What cannot be true says nothing: it is as if the file were missing."""
    receipts = closed(root, 1, 2)
    (partition(root) / ".lock").write_bytes(json.dumps(lock_state(root) | members).encode())
    receipts += closed(root, 3)
    records = sane(root, allow=[Status.OK])
    holds(records, receipts)
    assert payloads(records) == [1, 2, 3]


@pytest.mark.parametrize(
    "members",
    [
        {"segment": "2020-01.jsonl"},
        {"acked": 1 << 62},
        {"acked": 3},
        {"seq": 99},
        {"head": "0" * 64},
        {"state": "failed", "segment": "2020-01.jsonl"},
        {"state": "failed", "acked": 5, "synced": 5},
        {"state": "syncing", "acked": 1 << 62},
        {"state": "syncing", "synced_head": "0" * 64},
    ],
)
def test_lock_that_contradicts_the_files(root: Path, members: dict[str, object]) -> None:
    """That is damage, perhaps; writing goes on, and no record that is there is lost to a reader."""
    closed(root, 1, 2)
    edit_lock(root, **members)
    closed(root, 3)
    closed(root, 4)
    values = [record.data for record in otledger.Reader(root).records() if record.type == "app.event"]
    assert values == [1, 2, 3, 4]
    otledger.verify(root)


@pytest.mark.parametrize("reopen", [False, True])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("how", ["removed", "truncated", "emptied", "older copy", "line less"])
def test_segment_changed_while_open(root: Path, tmp_path: Path, how: str, cut: bool, reopen: bool) -> None:
    """What was acknowledged is gone: that is damage. It is reported, nothing more is lost, and writing goes on."""
    target = journal(root)
    put(target, 1, 2)
    if cut:
        closed(root, "cut", max_segment=1)
    put(target, 3)
    path = newest(root)
    shutil.copy(path, tmp_path / "older")
    put(target, 4, 5)
    content = path.read_bytes()
    if how == "removed":
        path.unlink()
    elif how == "truncated":
        os.truncate(path, len(content) - 100)
    elif how == "emptied":
        os.truncate(path, 0)
    elif how == "older copy":
        path.unlink()
        shutil.copy(tmp_path / "older", path)
    else:
        os.truncate(path, len(b"".join(lines_of(path)[:-1])))
    left = snapshot(root)
    findings = []
    if reopen:
        target.close()
        findings += target.findings
        target = journal(root)
    receipts = put(target, "a", "b")
    findings += target.findings
    assert {finding.kind for finding in findings} == {"damage"}
    names = segment_names(root)
    assert names[-1] not in left
    assert names[-1] != path.name
    receipts += put(target, "c")
    target.close()
    receipts += closed(root, "d")
    assert segment_names(root) == names
    # The new records stand in a good segment behind, under numbers that nobody else has got.
    last = [record_of(line) for line in lines_of(newest(root))]
    assert payloads(last) == ["a", "b", "c", "d"]
    holds(last, receipts)
    assert headers(last)[0]["reason"] == "damage"
    assert headers(last)[0]["previous"] == {"segment": path.name, "size": len(content)}
    assert receipts[0].seq > 5
    for name, data in left.items():
        assert (root / name).read_bytes() == data
    assert otledger.verify(root, processes=1).status in (Status.TAMPERED, Status.INCOMPLETE)
    # Nor does another boot begin one segment after the other.
    for _ in range(3):
        (partition(root) / ".lock").unlink()
        closed(root)
    assert segment_names(root) == names


def test_segment_edited_in_place_while_open(root: Path) -> None:
    """Only `verify` sees that; writing goes on as if nothing had been."""
    with journal(root) as target:
        put(target, 1, 2, 3)
        newest(root).write_bytes(newest(root).read_bytes().replace(b'"data":2', b'"data":5'))
        put(target, 4)
    assert len(segment_names(root)) == 1
    report = otledger.verify(root)
    assert report.status == Status.TAMPERED
    assert report.faults[0].seq == 2


@pytest.mark.parametrize("ignore_lock", [False, True])
def test_git_checkout_while_open(root: Path, ignore_lock: bool) -> None:
    """A checkout replaces files by others: what was written meanwhile is gone, but nothing gets mixed up."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")

    def git(*arguments: str) -> None:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
        subprocess.run(command, cwd=root, check=True, capture_output=True)

    with journal(root) as target:
        put(target, 1, 2)
        git("init", "-q")
        (root / ".gitignore").write_text(".lock\n" if ignore_lock else "")
        git("add", "--all")
        git("commit", "-q", "-m", "x")
        put(target, 3, 4)
        git("checkout", "--force", ".")
        receipts = put(target, 5, 6)
    if ignore_lock:
        last = [record_of(line) for line in lines_of(newest(root))]
        assert headers(last)[0]["reason"] == "damage"
        assert otledger.verify(root).status > Status.RECOVERED
    else:
        last = sane(root, allow=[Status.OK])
    holds(last, receipts)
    assert payloads(last)[-2:] == [5, 6]


@pytest.mark.parametrize("how", ["removed", "moved", "replaced by a copy", "root moved"])
def test_machine_folder_replaced_while_open(root: Path, tmp_path: Path, how: str) -> None:
    """What is acknowledged stands under the path that the ledger was given."""
    with journal(root) as target:
        put(target, 1, 2)
        if how == "removed":
            shutil.rmtree(partition(root))
        elif how == "moved":
            partition(root).rename(tmp_path / "elsewhere")
        elif how == "root moved":
            root.rename(tmp_path / "elsewhere")
        else:
            partition(root).rename(tmp_path / "elsewhere")
            shutil.copytree(tmp_path / "elsewhere", partition(root))
        receipts = put(target, 3, 4)
        records = check(partition(root))
        holds(records, receipts)
        assert payloads(records) == ([1, 2, 3, 4] if how == "replaced by a copy" else [3, 4])
    closed(root, 5)
    assert payloads(sane(root, allow=[Status.OK]))[-3:] == [3, 4, 5]


def test_other_files_are_left_alone(root: Path) -> None:
    closed(root, 1)
    (partition(root) / ".cache").mkdir()
    for name in ("notes.txt", "2026-13.jsonl", "2026-11.01.jsonl", "2026-11.0.jsonl", "2026-11.jsonl~", ".cache/x"):
        (partition(root) / name).write_text("{}\n")
    closed(root, 2)
    assert payloads(sane(root, allow=[Status.OK])) == [1, 2]
    assert (partition(root) / "2026-13.jsonl").read_text() == "{}\n"


# Quarantine -------------------------------------------------------------------------------------------------


def test_setting_bytes_aside(root: Path) -> None:
    with journal(root) as target:
        name = target.set_aside("pipeworks_web.17", b"no json\n")
        again = target.set_aside("pipeworks_web.17", b"no json\n")
        other = target.set_aside("pipeworks_web.17", b"no json at all\n")
        assert name == again != other
        put(target, 1)
    folder = partition(root) / "quarantine"
    assert sorted(path.name for path in folder.iterdir()) == sorted([name, other])
    assert (folder / name).read_bytes() == b"no json\n"
    closed(root, 2)
    assert payloads(sane(root, allow=[Status.OK])) == [1, 2]


def test_quarantine_is_a_symlink(root: Path, tmp_path: Path) -> None:
    closed(root, 1)
    (tmp_path / "elsewhere").mkdir()
    (partition(root) / "quarantine").symlink_to(tmp_path / "elsewhere")
    append_bytes(newest(root), b"torn")
    refused(root, "quarantine", error=LedgerError)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert newest(root).read_bytes().endswith(b"torn")


# Fork -------------------------------------------------------------------------------------------------------


def in_child(work: object) -> int:
    """Run `work` in a forked child. Gives its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()  # type: ignore[operator]
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("durability", ["disk", "os"])
def test_child_and_parent_both_append(root: Path, durability: str) -> None:
    with journal(root, durability=durability) as target:
        put(target, "before")
        for number in range(3):
            assert in_child(lambda number=number: put(target, ["child", number])) == 0
            put(target, ["parent", number])
    values = payloads(sane(root, allow=[Status.OK]))
    assert values == ["before"] + [[who, number] for number in range(3) for who in ("child", "parent")]


def test_child_closes_its_own(root: Path) -> None:
    with journal(root) as target:
        put(target, 1)
        assert in_child(target.close) == 0
        put(target, 2)

        def use() -> None:
            put(target, 3)
            target.close()

        assert in_child(use) == 0
        put(target, 4)
    assert payloads(sane(root, allow=[Status.OK])) == [1, 2, 3, 4]


FORK_IN_THE_MIDDLE = """if True:
    import fcntl, os, sys, threading, time
    from otledger import Draft, Journal
    from otledger import journal as module

    root, what = sys.argv[1:]
    journal = Journal(root, machine="m1", service="test")
    journal.append([Draft("app.event", "before")])
    inside, go = threading.Event(), threading.Event()
    real = os.fdatasync

    def slow(fd):
        inside.set()
        go.wait()
        real(fd)

    os.fdatasync = slow
    thread = threading.Thread(target=journal.append, args=([Draft("app.event", "parent")],))
    thread.start()
    inside.wait()
    pid = os.fork()
    if pid == 0:
        os.fdatasync = real
        if what == "append":
            journal.append([Draft("app.event", "child")])
        else:
            print(os.getpid(), flush=True)
            time.sleep(1000)
        os._exit(0)
    if what == "append":
        go.set()
        thread.join()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        journal.close()
    else:
        go.wait()
"""


def test_fork_in_the_middle_of_an_append(root: Path) -> None:
    """Another thread was appending when the process forked: the child's journal works all the same."""
    with python(FORK_IN_THE_MIDDLE, root, "append") as process:
        try:
            out, _ = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for child in children:
                os.kill(int(child), 9)
            pytest.fail("the child hangs on a lock that its parent held")
    assert out == "0\n"
    assert sorted(payloads(sane(root, allow=[Status.OK]))) == ["before", "child", "parent"]


def test_a_child_does_not_keep_its_parents_lock(root: Path) -> None:
    """The parent forks in the middle of a batch and is killed. The child, which lives on, holds nothing."""
    with python(FORK_IN_THE_MIDDLE, root, "sleep") as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
        try:
            closed(root, "after", lock_timeout=1.0)
        finally:
            os.kill(child, 9)
    values = payloads(sane(root))
    assert values[0] == "before"
    assert values[-1] == "after"


def test_a_program_that_ends_without_closing(root: Path) -> None:
    code = """if True:
        import os, sys
        from otledger import Draft, Journal
        journal = Journal(sys.argv[1], machine="m1", service="test", durability=sys.argv[2])
        for number in range(5):
            journal.append([Draft("app.event", number)])
        os._exit(0)
    """
    for durability in ("disk", "os"):
        subprocess.run(
            [sys.executable, "-c", code, str(root), durability], check=True, cwd=REPOSITORY, env=environment()
        )
    assert payloads(sane(root, allow=[Status.OK])) == [0, 1, 2, 3, 4] * 2


# Errors on the way ------------------------------------------------------------------------------------------


def test_the_error_tells_what_was_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write fails: the receipts of the error are those of the records that stand, the first of the batch."""
    real = os.write
    with journal(root) as target:
        put(target, 0)
        left = [1500]

        def write(fd: int, data: bytes) -> int:
            if not left[0]:
                raise OSError(5, "Input/output error")
            count = min(left[0], len(data))
            left[0] -= count
            return real(fd, bytes(data)[:count])

        monkeypatch.setattr(os, "write", write)
        with pytest.raises(JournalError) as caught:
            put_batch(target, *range(1, 20))
        with pytest.raises(JournalError) as nothing:
            put_batch(target, "no", "never")
        monkeypatch.undo()
        receipts = caught.value.receipts  # type: ignore[attr-defined]
        assert 0 < len(receipts) < 19
        assert nothing.value.receipts == []  # type: ignore[attr-defined]
        more = put_batch(target, "a", "b")
    records = sane(root)
    holds(records, [*receipts, *more])
    assert payloads(records) == [0, *range(1, 1 + len(receipts)), "a", "b"]


def test_a_config_is_taken_as_it_is(root: Path) -> None:
    config = otledger.Config.resolve(root=root, machine=MACHINE, service="other")
    with Journal(config=config) as target:
        put(target, 1)
    assert events(sane(root))[0]["source"] == "/m1/other"
