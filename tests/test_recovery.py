"""Recovery on real files: what a crash leaves is set aside and cut off, damage is reported and left where it is."""

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import otledger
from otledger import Journal, Receipt, Status
from otledger import record as record_module
from otledger.errors import LedgerError
from tests.checker import check
from tests.faults.tools import (
    LOCKS,
    UNBELIEVED,
    Json,
    all_bytes,
    append_bytes,
    closed,
    crashed,
    edit_lock,
    events,
    good_records,
    headers,
    holds,
    journal,
    lines_of,
    lock_state,
    newest,
    of_type,
    offsets,
    partition,
    payloads,
    put,
    put_batch,
    record_of,
    restamp,
    sane,
    segment_names,
    snapshot,
    without_checkpoints,
)

MEMORY = Path("/dev/shm")

with_any_lock = pytest.mark.parametrize("lock", LOCKS)
with_no_lock = pytest.mark.parametrize("lock", UNBELIEVED)


@pytest.fixture
def quick() -> Iterator[Path]:
    """A folder in memory, for what is done hundreds of times."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        yield Path(name)


def quarantined(root: Path) -> dict[str, bytes]:
    folder = partition(root) / "quarantine"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.exists() else {}


def recover(root: Path) -> list[Any]:
    """Open, and give what was found, without closing as a program would: no checkpoint is written."""
    target = journal(root)
    try:
        target.open()
        return target.findings
    finally:
        target.after_fork()  # only lets go of its files


def stays_so(root: Path, *, locks: tuple[str, ...] = ("this boot", "missing", "another boot")) -> None:
    """Opening again changes nothing, whatever `.lock` says."""
    before = snapshot(root)
    for lock in locks:
        LOCKS[lock](root)
        recover(root)
        assert snapshot(root) == before, lock


def check_residue(root: Path, before: dict[str, bytes], file: str, offset: int, reason: str = "") -> Json:
    """The bytes of `file` beyond `offset` are in quarantine, and a record says so. Gives that record."""
    residue = before[file][offset:]
    now = snapshot(root)
    assert now[file][:offset] == before[file][:offset]
    kept = quarantined(root)
    name = f"{Path(file).name}.{offset}.{sha256(residue).hexdigest()[:16]}"
    assert kept[name] == residue
    records = sane(root, allow=[Status.RECOVERED])
    (record,) = [one for one in of_type(records, "otledger.recovery") if one["data"]["quarantine"] == name]
    data = record["data"]
    assert (data["segment"], data["offset"], data["bytes"]) == (Path(file).name, offset, len(residue))
    assert reason in data["reason"]
    # It follows at once where it was cut.
    line = lines_of(root / file)[0] if not offset else now[file][offset:].split(b"\n")[0]
    assert name.encode() in line or not offset
    return record


# What a crash leaves ----------------------------------------------------------------------------------------


@with_any_lock
def test_a_line_torn_at_every_byte(quick: Path, lock: str) -> None:
    """A writer was killed in a write: of its line some bytes are there, and were never acknowledged."""
    base = quick / "base"
    with journal(quick / "first") as target:
        receipts = put(target, 1, 2)
        shutil.copytree(quick / "first", base)
        put(target, 3)
    last = lines_of(newest(quick / "first"))[3]
    file = f"m1/{newest(base).name}"
    size = newest(base).stat().st_size
    step = 1 if lock == "another boot" else 9
    for length in [*range(1, len(last) - 1, step), len(last) - 1]:
        root = quick / f"torn{length}"
        shutil.copytree(base, root)
        append_bytes(newest(root), last[:length])
        LOCKS[lock](root)
        before = snapshot(root)
        (finding,) = recover(root)
        assert (finding.kind, finding.offset, finding.seq) == ("residue", size, 3)
        record = check_residue(root, before, file, size, "torn")
        assert record["data"]["records"] is None
        after = snapshot(root)
        recover(root)
        assert snapshot(root) == after
        shutil.rmtree(root)
    root = quick / "whole"
    shutil.copytree(base, root)
    append_bytes(newest(root), last)
    LOCKS[lock](root)
    # All of it is there: nobody else has it, so it stays.
    assert recover(root) == []
    records = sane(root, allow=[Status.OK])
    holds(records, receipts)
    assert payloads(records) == [1, 2, 3]


@with_any_lock
def test_writing_goes_on_after_a_torn_line(root: Path, tmp_path: Path, lock: str) -> None:
    receipts = crashed(tmp_path / "first", root, *range(10))
    append_bytes(newest(root), b'{"specversion":"1.0","id":"x"')
    LOCKS[lock](root)
    with journal(root) as target:
        receipts += put(target, *range(10, 15))
    records = sane(root, allow=[Status.RECOVERED])
    holds(records, receipts)
    assert payloads(records) == list(range(15))
    assert len(segment_names(root)) == 1
    stays_so(root)


@with_no_lock
def test_the_last_record_torn_by_a_power_cut(quick: Path, lock: str) -> None:
    """Its batch was never acknowledged: nothing says that it was durable."""
    base = quick / "base"
    crashed(quick / "first", base, 1, 2, 3)
    lines = lines_of(newest(base))
    *_, begin, end = offsets(lines)
    for size in [*range(begin + 1, end, 17), end - 1]:
        root = quick / f"torn{size}"
        shutil.copytree(base, root)
        os.truncate(newest(root), size)
        LOCKS[lock](root)
        before = snapshot(root)
        (finding,) = recover(root)
        assert (finding.kind, finding.offset, finding.seq) == ("residue", begin, 3)
        check_residue(root, before, f"m1/{newest(root).name}", begin)
        assert payloads(sane(root)) == [1, 2]
        stays_so(root)
        shutil.rmtree(root)


RESIDUES = {
    "a zero": b"\0",
    "zeros": b"\0" * 4096,
    "many zeros": b"\0" * (3 << 20),
    "a line of zeros": b"\0" * 600 + b"\n",
    "garbage": random.Random(1).randbytes(5000),
    "line feeds": b"\n" * 17,
    "a number": b"7",
    "no JSON": b'{"specversion":"1.0",\n',
    "a list": b"[]\n",
    "other text": "Grüße\u2028\n".encode(),
    "one object, torn": b'{"hello":"world"}',
    "no checksum, torn": b'{"specversion":"1.0","id":"1","source":"/x","type":"a","seq":4}',
}


@with_any_lock
@pytest.mark.parametrize("what", RESIDUES)
def test_bytes_that_no_writer_wrote(root: Path, tmp_path: Path, what: str, lock: str) -> None:
    crashed(tmp_path / "first", root, 1, 2)
    size = newest(root).stat().st_size
    append_bytes(newest(root), RESIDUES[what])
    LOCKS[lock](root)
    before = snapshot(root)
    (finding,) = recover(root)
    assert (finding.kind, finding.offset) == ("residue", size)
    record = check_residue(root, before, f"m1/{newest(root).name}", size)
    assert record["data"]["records"] is None
    assert payloads(closed_again(root)) == [1, 2, "more"]
    stays_so(root)


def closed_again(root: Path) -> list[Json]:
    """The records after another one was appended."""
    closed(root, "more")
    return sane(root, allow=[Status.RECOVERED])


def with_hole(root: Path, first: Path, *, count: int = 6, at: int = 1) -> tuple[int, bytes]:
    """A batch of which one line did not reach the disk, while those behind it did. Gives where, and its bytes."""
    with journal(first) as target:
        put(target, "a", "b")
        begin = newest(first).stat().st_size
        put_batch(target, *range(count))
        shutil.copytree(first, root)
    lines = lines_of(newest(root))
    index = 3 + at
    hole = offsets(lines)[index]
    assert offsets(lines)[3] == begin
    lines[index] = b"\0" * len(lines[index])
    newest(root).write_bytes(b"".join(lines))
    return hole, b"".join(lines[index:])


@with_no_lock
@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_hole_before_whole_lines(root: Path, tmp_path: Path, at: int, lock: str) -> None:
    hole, residue = with_hole(root, tmp_path / "first", at=at)
    LOCKS[lock](root)
    before = snapshot(root)
    (finding,) = recover(root)
    assert (finding.kind, finding.offset, finding.seq) == ("residue", hole, 3 + at)
    record = check_residue(root, before, f"m1/{newest(root).name}", hole)
    # The zeros have no line feed, so they and the line behind them are one.
    behind = list(range(3 + at + 2, 3 + 6))
    assert record["data"]["records"] == ([behind[0], behind[-1]] if behind else None)
    assert quarantined(root)[record["data"]["quarantine"]] == residue
    assert payloads(sane(root)) == ["a", "b", *range(at)]
    stays_so(root)


def test_a_hole_in_two_batches_that_were_not_synced(root: Path, tmp_path: Path) -> None:
    """At `os` several batches can be lost in part; `synced` says how far they were durable."""
    with journal(tmp_path / "first", durability="os") as target:
        put(target, 1, 2)
        target.sync()
        put(target, 3, 4, 5)
        shutil.copytree(tmp_path / "first", root)
    lines = lines_of(newest(root))
    lines[3] = lines[3].replace(b'"data":3', b'"data":7')
    newest(root).write_bytes(b"".join(lines))
    LOCKS["another boot"](root)
    before = snapshot(root)
    (finding,) = recover(root)
    assert (finding.kind, finding.seq) == ("residue", 3)
    record = check_residue(root, before, f"m1/{newest(root).name}", offsets(lines)[3])
    assert record["data"]["records"] == [4, 5]
    assert payloads(sane(root)) == [1, 2]
    stays_so(root)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_a_power_cut_leaves_of_the_last_batch(data: st.DataObject) -> None:
    """Blocks of it are there, or zeros, or an older length; nothing before it is touched, nothing is thrown away."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        first, root = Path(name) / "first", Path(name) / "root"
        with journal(first) as target:
            receipts = put(target, 1, "x" * data.draw(st.integers(0, 2000)))
            begin = newest(first).stat().st_size
            size = data.draw(st.integers(0, 1500))
            put_batch(target, *(f"{number}" * size for number in range(data.draw(st.integers(1, 8)))))
            shutil.copytree(first, root)
        content = bytearray(newest(root).read_bytes())
        block = data.draw(st.sampled_from([64, 512, 4096]))
        for start in range(begin - begin % block, len(content), block):
            if data.draw(st.booleans()):
                low, high = max(begin, start), min(start + block, len(content))
                content[low:high] = bytes(max(0, high - low))
        content = content[: data.draw(st.integers(begin, len(content)))]
        content += bytes(data.draw(st.integers(0, 600)))
        newest(root).write_bytes(content)
        LOCKS[data.draw(st.sampled_from(UNBELIEVED))](root)
        findings = recover(root)
        assert all(finding.kind == "residue" and finding.offset >= begin for finding in findings)
        records = sane(root)
        holds(records, receipts)
        kept = newest(root).read_bytes()
        cut = findings[0].offset if findings else len(content)
        assert kept[:cut] + b"".join(quarantined(root).values()) == bytes(content)
        stays_so(root)


# Damage -----------------------------------------------------------------------------------------------------


def damaged(root: Path, first: Path, change: Callable[[list[bytes]], list[bytes]]) -> list[Receipt]:
    """Ten records, each in a batch of its own, no checkpoint; then the lines are changed."""
    receipts = crashed(first, root, *range(10))
    newest(root).write_bytes(b"".join(change(lines_of(newest(root)))))
    return receipts


def flip(lines: list[bytes]) -> list[bytes]:
    return [*lines[:4], lines[4].replace(b'"data":3', b'"data":4'), *lines[5:]]


def zero(lines: list[bytes]) -> list[bytes]:
    return [*lines[:4], bytes(len(lines[4])), *lines[5:]]


def drop(lines: list[bytes]) -> list[bytes]:
    return [*lines[:4], *lines[5:]]


def tear(lines: list[bytes]) -> list[bytes]:
    return [*lines[:4], lines[4][:50], *lines[5:]]


@with_no_lock
@pytest.mark.parametrize("change", [flip, zero, drop, tear])
def test_damage_in_the_middle(root: Path, tmp_path: Path, change: Any, lock: str) -> None:
    """Later batches say that it was durable: no crash did that. Nothing is cut."""
    receipts = damaged(root, tmp_path / "first", change)
    LOCKS[lock](root)
    before = snapshot(root)
    (finding,) = recover(root)
    assert (finding.kind, finding.seq) == ("damage", 4)
    assert finding.offset == offsets(lines_of(newest(tmp_path / "first")))[4]
    after = snapshot(root)
    (new,) = after.keys() - before.keys()
    assert {name: after[name] for name in before} == before
    header = record_of(after[new].splitlines()[0])
    name = Path(next(iter(before))).name
    assert header["data"]["reason"] == "damage"
    assert header["data"]["previous"] == {"segment": name, "size": len(before[f"m1/{name}"])}
    assert (header["seq"], header["prev"]) == (11, receipts[-1].checksum.removeprefix("sha256:"))
    stays_so(root, locks=(*LOCKS, *LOCKS))
    # It goes on there, and the damage stays in sight.
    closed(root, "more")
    stays_so(root)
    report = otledger.verify(root)
    assert report.status == Status.TAMPERED
    assert (report.faults[0].file, report.faults[0].offset, report.faults[0].seq) == (name, finding.offset, 4)
    assert len(report.faults) == 1
    # A reader still gets everything else.
    found = otledger.Reader(root).records(on_fault=lambda *_: None)
    values = [record.data for record in found if record.type == "app.event"]
    # A line without its line feed takes the next with it.
    left = {flip: [4, 4], zero: [], drop: [4], tear: []}[change]
    assert values == [0, 1, 2, *left, *range(5, 10), "more"]


@with_no_lock
def test_damage_before_the_last_checkpoint(root: Path, lock: str) -> None:
    """Opening checks from there on; `verify` checks everything."""
    closed(root, *range(5))
    lines = flip(lines_of(newest(root)))
    newest(root).write_bytes(b"".join(lines))
    LOCKS[lock](root)
    assert recover(root) == []
    closed(root, "more")
    assert len(segment_names(root)) == 1
    report = otledger.verify(root)
    assert report.status == Status.TAMPERED
    assert [fault.seq for fault in report.faults] == [4]


def test_damage_behind_the_last_checkpoint(root: Path, tmp_path: Path) -> None:
    closed(root, *range(5))
    target = journal(root)
    put(target, *range(5, 10))
    shutil.copytree(root, tmp_path / "copy")
    target.close()
    root = tmp_path / "copy"
    lines = lines_of(newest(root))
    lines[8] = lines[8].replace(b'"data":6', b'"data":7')
    newest(root).write_bytes(b"".join(lines))
    LOCKS["missing"](root)
    (finding,) = recover(root)
    assert (finding.kind, finding.seq, finding.offset) == ("damage", 8, offsets(lines)[8])
    stays_so(root)


@with_no_lock
def test_a_checkpoint_that_is_damaged_itself(root: Path, lock: str) -> None:
    """The one before it counts then, or the beginning."""
    closed(root, 1, 2)
    closed(root, 3, 4)
    lines = lines_of(newest(root))
    lines[-1] = lines[-1].replace(b'"size":', b'"siZe":')
    newest(root).write_bytes(b"".join(lines))
    LOCKS[lock](root)
    before = snapshot(root)
    (finding,) = recover(root)
    # It was a batch of its own, and no record says that it was durable.
    assert (finding.kind, finding.seq) == ("residue", len(lines) - 1)
    check_residue(root, before, f"m1/{newest(root).name}", offsets(lines)[-2])
    stays_so(root)


def test_a_forged_checkpoint_is_no_anchor(root: Path, tmp_path: Path) -> None:
    """A checkpoint whose head is not the record's hides nothing."""
    damaged(root, tmp_path / "first", flip)
    lines = lines_of(newest(root))
    point = b'{"specversion":"1.0","id":"f","source":"/m1/x","type":"otledger.checkpoint","time":'
    point += b'"2026-11-21T21:26:00.000000000Z","machine":"m1","data":{"size":10,"head":"' + b"a" * 64 + b'"}'
    point += b',"seq":0,"prev":"' + b"0" * 64 + b'","checksum":"sha256:' + b"0" * 64 + b'"}\n'
    append_bytes(newest(root), restamp(point, seq=11, prev=lines[-1][-67:-3].decode()))
    LOCKS["missing"](root)
    (finding,) = recover(root)
    assert (finding.kind, finding.seq) == ("damage", 4)


# Forks and foreign lines ------------------------------------------------------------------------------------


def fork_of(lines: list[bytes], seq: int) -> bytes:
    """Another record with the number of one that is there."""
    return restamp(lines[seq].replace(b'"machine":"m1"', b'"subject":"fork","machine":"m1"', 1))


FOREIGN = {
    "an object": b'{"hello":"world"}\n',
    "evledger's": b'{"specversion":"1.0","id":"1","source":"/x","type":"a","machine":"m1","seq":4}\n',
}


@with_any_lock
@pytest.mark.parametrize("seq", [3, 4, 1])
def test_a_fork_is_never_cut(root: Path, tmp_path: Path, seq: int, lock: str) -> None:
    """Somebody else took the number of our last record, of the next one, or of an earlier one."""
    receipts = crashed(tmp_path / "first", root, 1, 2, 3)
    lines = lines_of(newest(root))
    other = fork_of([*lines, restamp(lines[3], seq=4)], seq)
    append_bytes(newest(root), other)
    LOCKS[lock](root)
    file, before = newest(root), snapshot(root)
    (finding,) = recover(root)
    assert (finding.kind, finding.offset) == ("fork", offsets(lines)[-1])
    assert snapshot(root)[f"m1/{file.name}"] == before[f"m1/{file.name}"]
    assert len(segment_names(root)) == 2
    receipts += closed(root, 4)
    records = check(partition(root))
    holds(records, receipts)
    header = headers(records)[1]
    assert (header["reason"], header["previous"]["size"]) == ("damage", finding.offset)
    stays_so(root, locks=(*LOCKS, *LOCKS))
    report = otledger.verify(root)
    assert report.status == Status.FORK
    assert (report.faults[0].file, report.faults[0].offset) == (file.name, finding.offset)


@with_no_lock
def test_two_writers_went_on_from_one_record(root: Path, tmp_path: Path, lock: str) -> None:
    """Of two histories each with several records the first stays the chain; the other is left where it is."""
    receipts = crashed(tmp_path / "first", root, 1, 2)
    with journal(tmp_path / "first") as target:
        put(target, *["theirs"] * 7)
        theirs = b"".join(lines_of(newest(tmp_path / "first"))[4:])
    with journal(root) as target:
        receipts += put(target, "ours", "ours too")
        size = newest(root).stat().st_size
        shutil.copytree(root, tmp_path / "both")
    root = tmp_path / "both"
    append_bytes(newest(root), theirs)
    LOCKS[lock](root)
    findings = recover(root)
    assert [(finding.kind, finding.offset) for finding in findings] == [("fork", size)]
    receipts += closed(root, "more")
    holds(check(partition(root)), receipts)
    assert payloads(check(partition(root))) == [1, 2, "ours", "ours too", "more"]
    assert otledger.verify(root).status == Status.FORK
    assert not quarantined(root)
    stays_so(root)


@with_any_lock
@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_line_is_never_cut(root: Path, tmp_path: Path, what: str, lock: str) -> None:
    receipts = crashed(tmp_path / "first", root, 1, 2)
    size = newest(root).stat().st_size
    append_bytes(newest(root), FOREIGN[what])
    LOCKS[lock](root)
    file, before = newest(root), snapshot(root)
    (finding,) = recover(root)
    assert (finding.kind, finding.offset) == ("foreign", size)
    assert snapshot(root)[f"m1/{file.name}"] == before[f"m1/{file.name}"]
    receipts += closed(root, 3)
    records = check(partition(root))
    holds(records, receipts)
    assert headers(records)[1]["reason"] == "damage"
    assert len(segment_names(root)) == 2
    stays_so(root, locks=(*LOCKS, *LOCKS))
    report = otledger.verify(root)
    assert report.status > Status.RECOVERED
    assert (report.faults[0].file, report.faults[0].offset) == (file.name, size)


@with_no_lock
@pytest.mark.parametrize("what", ["fork", "foreign"])
def test_a_fork_or_foreign_line_behind_a_torn_one(root: Path, tmp_path: Path, what: str, lock: str) -> None:
    """They keep their place even where a crash left something before them."""
    crashed(tmp_path / "first", root, 1, 2)
    lines = lines_of(newest(root))
    append_bytes(newest(root), b"torn\n" + (fork_of(lines, 2) if what == "fork" else FOREIGN["an object"]))
    LOCKS[lock](root)
    before = newest(root), newest(root).read_bytes()
    (finding,) = recover(root)
    assert finding.kind == what
    assert before[0].read_bytes() == before[1]
    assert otledger.verify(root).status > Status.RECOVERED
    stays_so(root)


@with_any_lock
def test_a_first_line_without_checksum(root: Path, lock: str) -> None:
    """That makes no evledger partition of ours: the other lines have theirs."""
    closed(root, 1, 2)
    first, *others = lines_of(newest(root))
    newest(root).write_bytes(first[: first.rindex(b',"checksum"')] + b"}\n" + b"".join(others))
    LOCKS[lock](root)
    before = snapshot(root)
    receipts = closed(root, 3)
    holds(good_records(newest(root)), receipts)
    for name, data in before.items():
        assert snapshot(root)[name].startswith(data)
    report = otledger.verify(root)
    assert report.status == Status.TAMPERED
    assert report.faults[0].offset == 0


def test_a_duplicate_of_the_last_line(root: Path, tmp_path: Path) -> None:
    """Its number is taken, by itself: never cut either."""
    crashed(tmp_path / "first", root, 1, 2)
    lines = lines_of(newest(root))
    append_bytes(newest(root), lines[-1])
    LOCKS["missing"](root)
    file, before = newest(root), newest(root).read_bytes()
    recover(root)
    assert file.read_bytes() == before
    closed(root, 3)
    assert payloads(check(partition(root))) == [1, 2, 3]
    assert otledger.verify(root).status > Status.RECOVERED
    stays_so(root)


# The newest segment has no record ---------------------------------------------------------------------------

UNFINISHED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda header: b"",
    "a torn header": lambda header: header[:100],
    "all but the line feed": lambda header: header[:-1],
    "zeros": lambda header: bytes(len(header)),
    "garbage": lambda header: random.Random(2).randbytes(3000),
    "lines of garbage": lambda header: b"what\n" * 40,
    "a wrong checksum": lambda header: header.replace(b'"format":1', b'"format":3'),
}


@with_any_lock
@pytest.mark.parametrize("month", [False, True])
@pytest.mark.parametrize("what", UNFINISHED)
def test_newest_segment_without_a_record(
    root: Path, tmp_path: Path, what: str, month: bool, lock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash while it was made: it gets its header again, under its name."""
    instant = [1_795_000_000_000_000_000]  # 2026-11
    monkeypatch.setattr(record_module, "now_ns", lambda: instant[0])
    receipts = crashed(tmp_path / "first", root, 1, 2)
    first = lines_of(newest(root))
    name = "2026-12.jsonl" if month else "2026-11.1.jsonl"
    path = partition(root) / name
    content = UNFINISHED[what](first[0])
    path.write_bytes(content)
    path.chmod(0o600)
    LOCKS[lock](root)
    before = snapshot(root)
    recover(root)
    assert segment_names(root) == ["2026-11.jsonl", name]
    assert snapshot(root)["m1/2026-11.jsonl"] == before["m1/2026-11.jsonl"]
    records = sane(root, allow=[Status.RECOVERED] if content else [Status.OK, Status.RECOVERED])
    holds(records, receipts)
    header = headers(records)[1]
    assert header["previous"] == {"segment": "2026-11.jsonl", "size": len(before["m1/2026-11.jsonl"])}
    assert list(quarantined(root).values()) == ([content] if content else [])
    stays_so(root)
    closed(root, 3)
    assert payloads(sane(root)) == [1, 2, 3]
    assert segment_names(root) == ["2026-11.jsonl", name]


@pytest.mark.parametrize("lock", ["missing", "empty", "garbage"])
@pytest.mark.parametrize("what", UNFINISHED)
def test_only_segment_without_a_record(
    root: Path, tmp_path: Path, what: str, lock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with the first segment of all: the chain begins in it."""
    monkeypatch.setattr(record_module, "now_ns", lambda: 1_795_000_000_000_000_000)
    crashed(tmp_path / "first", root, 1, 2)
    path = newest(root)
    content = UNFINISHED[what](lines_of(path)[0])
    path.write_bytes(content)
    if lock == "empty":
        (partition(root) / ".lock").write_bytes(b"")
    else:
        LOCKS[lock](root)
    recover(root)
    assert segment_names(root) == [path.name]
    assert list(quarantined(root).values()) == ([content] if content else [])
    receipts = closed(root, 3)
    records = sane(root)
    holds(records, receipts)
    assert (records[0]["seq"], payloads(records)) == (0, [3])
    stays_so(root)


@with_no_lock
def test_newest_segment_unfinished_and_the_one_before_torn(root: Path, tmp_path: Path, lock: str) -> None:
    """A successor, even an empty one, closes its predecessor: nothing is written to that any more."""
    receipts = crashed(tmp_path / "first", root, 1, 2)
    size = newest(root).stat().st_size
    append_bytes(newest(root), b"torn")
    first = newest(root)
    (partition(root) / "2099-01.jsonl").touch(0o600)
    LOCKS[lock](root)
    before = first.read_bytes()
    recover(root)
    assert first.read_bytes()[: len(before)] in (before, before[:size])
    assert len(first.read_bytes()) <= len(before)
    receipts += closed(root, 3)
    records = check(partition(root))
    holds(records, receipts)
    assert headers(records)[1]["previous"] == {"segment": first.name, "size": size}
    assert otledger.verify(root).status in (Status.OK, Status.RECOVERED)
    assert all_bytes(root) >= len(before)
    stays_so(root)


@with_no_lock
def test_newest_segment_holds_somebody_elses_lines(root: Path, tmp_path: Path, lock: str) -> None:
    """Foreign lines are never cut, nor is a whole file of them."""
    receipts = crashed(tmp_path / "first", root, 1, 2)
    path = partition(root) / "2099-01.jsonl"
    path.write_bytes(b"".join(FOREIGN.values()))
    LOCKS[lock](root)
    recover(root)
    assert path.read_bytes() == b"".join(FOREIGN.values())
    receipts += closed(root, 3)
    holds(check(partition(root)), receipts)
    stays_so(root)


# Interrupted recovery ---------------------------------------------------------------------------------------


def recovered(root: Path, first: Path) -> tuple[int, bytes]:
    """A ledger that was recovered. Gives where, and the bytes that were set aside."""
    crashed(first, root, 1, 2)
    size = newest(root).stat().st_size
    append_bytes(newest(root), b"torn")
    recover(root)
    return size, b"torn"


@with_any_lock
@pytest.mark.parametrize("torn", [False, True])
def test_killed_between_the_cut_and_its_record(root: Path, tmp_path: Path, torn: bool, lock: str) -> None:
    size, _ = recovered(root, tmp_path / "first")
    record = newest(root).read_bytes()[size:]
    newest(root).write_bytes(newest(root).read_bytes()[:size] + (record[:77] if torn else b""))
    old = lock_state(tmp_path / "first")
    edit_lock(root, **{name: old[name] for name in old if name.startswith(("seq", "head", "synced", "acked"))})
    edit_lock(root, acked=size, synced=size, seq=3, synced_seq=3)
    state = record_of(lines_of(newest(root))[2])["checksum"].removeprefix("sha256:")
    edit_lock(root, head=state, synced_head=state)
    LOCKS[lock](root)
    recover(root)
    records = sane(root, allow=[Status.RECOVERED])
    found = of_type(records, "otledger.recovery")
    assert {one["data"]["quarantine"] for one in found} == set(quarantined(root))
    assert len(found) == 1 + torn
    first = next(one["data"] for one in found if quarantined(root)[one["data"]["quarantine"]] == b"torn")
    assert (first["segment"], first["offset"], first["bytes"]) == (newest(root).name, size, 4)
    assert payloads(closed_again(root)) == [1, 2, "more"]
    assert len(of_type(sane(root), "otledger.recovery")) == 1 + torn
    stays_so(root)


@with_any_lock
@pytest.mark.parametrize("copied", [0, 2, 4])
def test_killed_between_the_copy_and_the_cut(root: Path, tmp_path: Path, copied: int, lock: str) -> None:
    """The copy is there, whole or not, and the residue as well: it is done again."""
    size, residue = recovered(root, tmp_path / "first")
    newest(root).write_bytes(newest(root).read_bytes()[:size] + residue)
    (name,) = quarantined(root)
    (partition(root) / "quarantine" / name).write_bytes(residue[:copied])
    head = record_of(lines_of(newest(root))[2])["checksum"].removeprefix("sha256:")
    edit_lock(root, acked=size, synced=size, seq=3, synced_seq=3, head=head, synced_head=head)
    LOCKS[lock](root)
    before = snapshot(root)
    recover(root)
    check_residue(root, before, f"m1/{newest(root).name}", size)
    assert len(of_type(sane(root), "otledger.recovery")) == 1
    stays_so(root)


@pytest.mark.parametrize("unfinished", [False, True])
@with_any_lock
def test_killed_in_the_sync_after_the_cut(
    root: Path, tmp_path: Path, lock: str, unfinished: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes next goes on in another segment; the record is written there."""
    receipts = crashed(tmp_path / "first", root, 1, 2)
    first = newest(root)
    size = first.stat().st_size
    append_bytes(first, b"torn")
    if unfinished:
        (partition(root) / "2099-01.jsonl").touch(0o600)
    LOCKS[lock](root)

    class Killed(BaseException):
        pass

    def die(fd: int) -> None:
        if first.stat().st_size == size:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", die)
        with pytest.raises(Killed):
            recover(root)
    assert list(quarantined(root).values()) == [b"torn"]
    recover(root)
    (record,) = of_type(sane(root, allow=[Status.RECOVERED]), "otledger.recovery")
    assert (record["data"]["segment"], record["data"]["offset"]) == (first.name, size)
    assert {record["data"]["quarantine"]} == set(quarantined(root))
    holds(check(partition(root)), receipts)
    stays_so(root)


@with_any_lock
def test_an_unfinished_copy_of_what_a_power_cut_took(root: Path, tmp_path: Path, lock: str) -> None:
    """A recovery was at its copy when the power went, and with it the bytes that it copied: nothing was cut."""
    crashed(tmp_path / "first", root, 1, 2)
    copy = partition(root) / "quarantine" / f"{newest(root).name}.{newest(root).stat().st_size}.{'0' * 16}"
    copy.parent.mkdir(0o700)
    copy.write_bytes(b"half of what")
    LOCKS[lock](root)
    recover(root)
    assert not of_type(sane(root, allow=[Status.OK]), "otledger.recovery")
    assert copy.read_bytes() == b"half of what"
    stays_so(root)


def test_odd_files_in_quarantine(root: Path) -> None:
    """With a copy's name, and nothing that recovery made."""
    closed(root, 1, 2)
    names = [f"{newest(root).name}.{number}.{'0' * 16}" for number in range(4)]
    folder = partition(root) / "quarantine"
    folder.mkdir(0o700)
    (folder / names[0]).symlink_to("/etc/passwd")
    (folder / names[1]).mkdir()
    os.mkfifo(folder / names[2])
    (folder / names[3]).symlink_to("/nowhere")
    closed(root, 3)
    recover(root)
    assert sorted(path.name for path in folder.iterdir()) == names
    assert not of_type(sane(root, allow=[Status.OK]), "otledger.recovery")


@with_any_lock
def test_a_copy_of_what_stood_behind_the_end(root: Path, tmp_path: Path, lock: str) -> None:
    """The same with a whole copy, of bytes behind others that the power cut took as well: one record tells of it."""
    crashed(tmp_path / "first", root, 1, 2)
    name = f"{newest(root).name}.{newest(root).stat().st_size + 3000}.{sha256(b'torn').hexdigest()[:16]}"
    (partition(root) / "quarantine").mkdir(0o700)
    (partition(root) / "quarantine" / name).write_bytes(b"torn")
    LOCKS[lock](root)
    recover(root)
    assert of_type(sane(root, allow=[Status.RECOVERED]), "otledger.recovery")
    stays_so(root)
    closed(root, *("x" * 1000 for _ in range(5)))
    recover(root)
    (record,) = of_type(sane(root, allow=[Status.RECOVERED]), "otledger.recovery")
    assert record["data"]["quarantine"] == name


@pytest.mark.parametrize("where", ["newest", "unfinished"])
@pytest.mark.parametrize("call", ["fsync", "ftruncate", "fdatasync", "write"])
@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_recovery_that_fails_is_done_again(
    root: Path, tmp_path: Path, call: str, nth: int, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of its system calls fails, the next opening finds everything and ends in the same state."""
    receipts = crashed(tmp_path / "first", root, 1, 2)
    if where == "newest":
        append_bytes(newest(root), b"torn")
    else:
        (partition(root) / "2099-01.jsonl").write_bytes(b"torn")
    LOCKS["another boot"](root)
    real = getattr(os, call)
    calls = []

    def fail(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == nth:
            raise OSError(5, "Input/output error")
        return real(*arguments)

    monkeypatch.setattr(os, call, fail)
    try:
        recover(root)
        failed = False
    except LedgerError:
        failed = True
    monkeypatch.undo()
    assert b"torn" in b"".join(snapshot(root).values())
    recover(root)
    receipts += closed(root, 3)
    records = sane(root, allow=[Status.RECOVERED])
    holds(records, receipts)
    assert payloads(records) == [1, 2, 3]
    if not (failed and call in ("fsync", "fdatasync")):
        # After a failed sync another segment may leave the torn bytes where they are.
        assert list(quarantined(root).values()) == [b"torn"]
    stays_so(root)


# More than one segment --------------------------------------------------------------------------------------


def two_segments(root: Path, first: Path) -> list[Receipt]:
    """A segment with a checkpoint at its end, and the next, with three records and none."""
    receipts = closed(first, 1, 2)
    with journal(first, max_segment=1) as target:
        receipts += put(target, 3)
    with journal(first) as target:
        receipts += put(target, 4, 5)
        shutil.copytree(first, root)
    return receipts


@with_any_lock
def test_crash_in_the_second_segment(root: Path, tmp_path: Path, lock: str) -> None:
    receipts = two_segments(root, tmp_path / "first")
    assert len(segment_names(root)) == 2
    size = newest(root).stat().st_size
    append_bytes(newest(root), b"torn")
    LOCKS[lock](root)
    before = snapshot(root)
    recover(root)
    check_residue(root, before, f"m1/{newest(root).name}", size)
    holds(sane(root), receipts)
    stays_so(root)


@with_no_lock
def test_checking_crosses_into_the_segment_before(root: Path, tmp_path: Path, lock: str) -> None:
    """There is no checkpoint in either: all is checked, and what was synced before a successor was made counts."""
    two_segments(root, tmp_path / "first")
    without_checkpoints(root)
    LOCKS[lock](root)
    assert [value for value in payloads(sane(root, allow=[Status.OK])) if isinstance(value, int)] == [1, 2, 3, 4, 5]
    path = partition(root) / segment_names(root)[0]
    lines = lines_of(path)
    path.write_bytes(b"".join([*lines[:2], bytes(len(lines[2])), *lines[3:]]))
    before = snapshot(root)
    (finding,) = recover(root)
    assert (finding.kind, str(finding.segment), finding.offset) == ("damage", path.name, offsets(lines)[2])
    # It is in a segment that is closed already: there is no need for another.
    assert snapshot(root) == before
    closed(root, 6)
    stays_so(root)
    report = otledger.verify(root)
    assert report.status == Status.TAMPERED
    assert (report.faults[0].file, report.faults[0].offset) == (path.name, finding.offset)


@with_no_lock
def test_crash_in_the_second_segment_without_any_checkpoint(root: Path, tmp_path: Path, lock: str) -> None:
    two_segments(root, tmp_path / "first")
    without_checkpoints(root)
    size = newest(root).stat().st_size
    append_bytes(newest(root), b"torn")
    LOCKS[lock](root)
    before = snapshot(root)
    recover(root)
    check_residue(root, before, f"m1/{newest(root).name}", size)
    stays_so(root)


@with_no_lock
@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_segment(root: Path, tmp_path: Path, which: int, lock: str) -> None:
    """Writing goes on behind what is left, under numbers that are not taken where that can be known."""
    two_segments(root, tmp_path / "first")
    closed(root, 6, max_segment=1)
    names = segment_names(root)
    assert len(names) == 3
    (partition(root) / names[which]).unlink()
    LOCKS[lock](root)
    left = snapshot(root)
    receipts = closed(root, 7)
    assert {name: snapshot(root)[name] for name in left if "2026" not in name} == {}
    for name, data in left.items():
        assert snapshot(root)[name].startswith(data)
    last = [record_of(line) for line in lines_of(newest(root))]
    holds(last, receipts)
    names = segment_names(root)
    stays_so(root)
    assert segment_names(root) == names
    assert otledger.verify(root).status in (Status.INCOMPLETE, Status.TAMPERED)


# Whatever happens -------------------------------------------------------------------------------------------


def test_a_large_residue(root: Path, tmp_path: Path) -> None:
    """A preallocated or sparse end of 200 MB is set aside like any other."""
    crashed(tmp_path / "first", root, 1)
    size = newest(root).stat().st_size
    os.truncate(newest(root), size + (200 << 20))
    LOCKS["another boot"](root)
    recover(root)
    (kept,) = (partition(root) / "quarantine").iterdir()
    assert kept.stat().st_size == 200 << 20
    assert payloads(sane(root, allow=[Status.RECOVERED])) == [1]
    kept.unlink()


@settings(max_examples=200, deadline=None, report_multiple_bugs=False)
@given(data=st.data())
def test_opening_never_loses_or_raises(data: st.DataObject) -> None:
    """Any change anywhere: the next writer opens, throws no byte away, appends, and the next does the same."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        first, root = Path(name) / "first", Path(name) / "root"
        closed(first, 1, 2, 3)
        closed(first, "cut", max_segment=data.draw(st.sampled_from([1, 1 << 30])))
        with journal(first) as target:
            put(target, *range(data.draw(st.integers(0, 4))))
            shutil.copytree(first, root)
        path = partition(root) / data.draw(st.sampled_from(segment_names(root)))
        content = path.read_bytes()
        for _ in range(data.draw(st.integers(1, 2))):
            at = data.draw(st.integers(0, len(content)))
            cut = data.draw(st.integers(0, 700))
            content = content[:at] + data.draw(st.binary(max_size=30)) + content[at + cut :]
        path.write_bytes(content)
        LOCKS[data.draw(st.sampled_from(list(LOCKS)))](root)
        there = all_bytes(root)
        target = journal(root)
        receipts = put(target, "x", "y")
        target.close()
        # Nothing is thrown away, so the files have grown by what was appended at least.
        assert all_bytes(root) > there + 700
        holds(good_records(newest(root)), receipts)
        stays_so(root)
        (partition(root) / ".lock").unlink()
        receipts = closed(root, "z")
        holds(good_records(newest(root)), receipts)
        otledger.verify(root)


def test_a_journal_that_stays_open_recovers_too(root: Path) -> None:
    """Another process died in its batch: the next batch of ours finds what it left."""
    with journal(root) as target:
        receipts = put(target, 1)
        size = newest(root).stat().st_size
        append_bytes(newest(root), b"torn")
        receipts += put(target, 2)
        assert [finding.offset for finding in target.findings] == [size]
        append_bytes(newest(root), b"\0" * 100)
        receipts += put(target, 3)
    records = sane(root, allow=[Status.RECOVERED])
    holds(records, receipts)
    assert sorted(quarantined(root).values()) == [b"\0" * 100, b"torn"]
    assert len(of_type(records, "otledger.recovery")) == 2
    assert len(events(records)) == 3


def test_a_recovery_is_durable_before_anything_is_cut(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the calls: copy, sync of the copy, of its folder, of the folder above, cut, sync."""
    crashed(tmp_path / "first", root, 1)
    append_bytes(newest(root), b"torn")
    calls: list[tuple[str, str]] = []

    def logged(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(fd: int, *arguments: Any) -> Any:
            path = Path(os.readlink(f"/proc/self/fd/{fd}"))
            calls.append((name, "copy" if path.parent.name == "quarantine" else path.name))
            return real(fd, *arguments)

        return call

    for name in ("write", "fsync", "fdatasync", "ftruncate"):
        monkeypatch.setattr(os, name, logged(name))
    recover(root)
    monkeypatch.undo()
    segment = newest(root).name
    cut = calls.index(("ftruncate", segment))
    before = calls[:cut]
    for step in (("write", "copy"), ("fsync", "copy"), ("fsync", "quarantine"), ("fsync", "m1")):
        assert step in before, calls
    assert before.index(("write", "copy")) < before.index(("fsync", "copy"))
    # The cut is durable before the record that follows it is acknowledged.
    assert ("fdatasync", segment) in calls[cut:]
    assert isinstance(journal(root), Journal)
