"""`verify` tells what is wrong, and where first; it never calls a changed ledger OK."""

import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import otledger
from otledger import Report, Status
from otledger import verify as verify_function
from otledger.errors import LedgerError, RootError
from tests.checker import check
from tests.faults.tools import (
    LOCKS,
    MACHINE,
    REPOSITORY,
    TAIL,
    ZEROS,
    append_bytes,
    closed,
    edited,
    journal,
    lines_of,
    newest,
    offsets,
    partition,
    put,
    rechained,
    record_of,
    restamp,
    run_python,
    sane,
    segment_names,
    snapshot,
)
from tests.faults.writers import Writers

module = sys.modules[verify_function.__module__]

MEMORY = Path("/dev/shm")
HUGE = 64 << 20
CHUNKS = [HUGE, 1000, 97]
Change = Callable[[list[bytes]], list[bytes]]


def verify(root: Path, chunk: int = HUGE, **options: Any) -> Report:
    with patch.object(module, "CHUNK", chunk):
        return verify_function(root, **{"processes": 1, **options})


def first_fault(root: Path, chunk: int = HUGE, **options: Any) -> tuple[Status, str, int, int | None]:
    """The status, and the first place of the worst kind."""
    report = verify(root, chunk, **options)
    assert report.faults, report
    fault = report.faults[0]
    assert fault.status == report.status
    assert fault.machine == MACHINE
    assert fault.file in str(fault)
    return report.status, fault.file, fault.offset, fault.seq


def forget(root: Path) -> None:
    """Nothing is known of what the writers of this boot acknowledged."""
    (partition(root) / ".lock").unlink()


@pytest.fixture(scope="session")
def one_segment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A header, ten events in a batch each, a checkpoint: twelve lines."""
    root = tmp_path_factory.mktemp("one") / "ledger"
    closed(root, *range(10))
    assert len(lines_of(newest(root))) == 12
    return root


@pytest.fixture(scope="session")
def four_segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint at the end of each."""
    root = tmp_path_factory.mktemp("four") / "ledger"
    closed(root, *range(4))
    for number in range(3):
        closed(root, *range(4 * number + 4, 4 * number + 6), max_segment=1)
        closed(root, *range(4 * number + 6, 4 * number + 8))
    names = segment_names(root)
    assert len(names) > 4
    return root


@pytest.fixture
def one(one_segment: Path, root: Path) -> Path:
    shutil.copytree(one_segment, root)
    return root


@pytest.fixture
def four(four_segments: Path, root: Path) -> Path:
    shutil.copytree(four_segments, root)
    return root


# What is right ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("lock", LOCKS)
def test_a_good_ledger(one: Path, lock: str, chunk: int) -> None:
    LOCKS[lock](one)
    report = verify(one, chunk, deep=True)
    assert (report.status, report.faults, report.records) == (Status.OK, (), 12)
    (machine,) = report.machines
    content = newest(one).read_bytes()
    assert (machine.machine, machine.bytes, machine.recoveries, machine.gaps) == (MACHINE, len(content), 0, 0)
    assert machine.head.encode() == content[-67:-3]
    assert report.status.exit_code == 0
    assert json.loads(json.dumps(report.to_dict()))["status"] == "OK"


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_good_ledger_of_several_segments(four: Path, chunk: int) -> None:
    report = verify(four, chunk)
    assert (report.status, report.faults) == (Status.OK, ())
    assert report.records == len(check(partition(four)))
    forget(four)
    assert verify(four, chunk) == pytest.approx(report, abs=10) or verify(four, chunk).status == Status.OK


def test_exit_codes_differ() -> None:
    assert len({status.exit_code for status in Status}) == len(Status)


def test_progress(four: Path) -> None:
    seen: list[tuple[int, int]] = []
    verify(four, 1000, progress=lambda done, total: seen.append((done, total)))
    size = sum(path.stat().st_size for path in partition(four).glob("*.jsonl"))
    assert seen[-1] == (size, size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(RootError):
        verify(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(RootError):
        verify(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert verify(tmp_path / "empty").status == Status.OK
    (tmp_path / "empty" / "m1").mkdir()
    assert verify(tmp_path / "empty").machines[0].records == 0


def test_several_machines(one: Path) -> None:
    closed(one, "a", "b", machine="m2")
    closed(one, "c", machine="m3")
    path = one / "m2" / segment_names(one)[0]
    path.write_bytes(path.read_bytes().replace(b'"data":"a"', b'"data":"x"'))
    report = verify(one)
    assert [(machine.machine, machine.status) for machine in report.machines] == [
        ("m1", Status.OK),
        ("m2", Status.TAMPERED),
        ("m3", Status.OK),
    ]
    assert report.status == Status.TAMPERED
    assert verify(one, machines=["m1", "m3"]).status == Status.OK
    assert report.records == sum(machine.records for machine in report.machines)


def test_a_machine_that_should_be_there(one: Path) -> None:
    assert verify(one, expect=["m1"]).status == Status.OK
    report = verify(one, expect=["m1", "m2"])
    assert report.status == Status.INCOMPLETE
    assert [(fault.machine, fault.file) for fault in report.faults] == [("m2", "")]
    assert verify(one, machines=["m2"]).status == Status.INCOMPLETE
    shutil.rmtree(partition(one))
    assert verify(one, expect=["m1"]).status == Status.INCOMPLETE


def test_an_evledger_partition_proves_nothing(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "tests" / "data" / "evledger", tmp_path / "ledger")
    report = verify(tmp_path / "ledger")
    assert report.status == Status.INCOMPLETE
    assert all("evledger" in fault.reason for fault in report.faults)
    assert report.records == 400


# Lines ------------------------------------------------------------------------------------------------------


def fork_of(line: bytes) -> bytes:
    return edited(line, b'"machine":"m1"', b'"subject":"fork","machine":"m1"')


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("lock", ["this boot", "missing"])
@pytest.mark.parametrize("k", [1, 5, 9, 10])
@pytest.mark.parametrize(
    ("change", "place", "status"),
    [
        pytest.param(
            lambda lines, k: [*lines[:k], lines[k].replace(b'"data":', b'"Data":'), *lines[k + 1 :]],
            lambda k: (k, k),
            Status.TAMPERED,
            id="a byte edited",
        ),
        pytest.param(
            lambda lines, k: [*lines[:k], edited(lines[k], b'"data":', b'"Data":'), *lines[k + 1 :]],
            lambda k: (k + 1, k + 1),
            Status.TAMPERED,
            id="edited with its checksum",
        ),
        pytest.param(lambda lines, k: [*lines[:k], *lines[k + 1 :]], lambda k: (k, k), Status.TAMPERED, id="deleted"),
        pytest.param(
            lambda lines, k: [*lines[:k], b'{"hello":1}\n', *lines[k:]],
            lambda k: (k, k),
            Status.TAMPERED,
            id="foreign inserted",
        ),
        pytest.param(
            lambda lines, k: [*lines[:k], b"\n", *lines[k:]], lambda k: (k, k), Status.TAMPERED, id="LF inserted"
        ),
        pytest.param(
            lambda lines, k: [*lines[: k + 1], fork_of(lines[k]), *lines[k + 1 :]],
            lambda k: (k + 1, k + 1),
            Status.FORK,
            id="fork inserted",
        ),
        pytest.param(
            lambda lines, k: [*lines[:k], restamp(fork_of(lines[k]), seq=k), *lines[k:]],
            lambda k: (k + 1, k + 1),
            None,
            id="fork inserted before",
        ),
        pytest.param(
            lambda lines, k: [*lines[: k - 1], lines[k], lines[k - 1], *lines[k + 1 :]],
            lambda k: (k - 1, k - 1),
            Status.TAMPERED,
            id="swapped with the one before",
        ),
        pytest.param(
            lambda lines, k: [*lines[: k + 1], lines[k], *lines[k + 1 :]],
            lambda k: (k + 1, k + 1),
            Status.TAMPERED,
            id="duplicated",
        ),
        pytest.param(
            lambda lines, k: [*lines[: k + 1], *lines[1:k], *lines[k + 1 :]] if k > 1 else [*lines[:2], *lines[1:]],
            lambda k: (k + 1, k + 1),
            Status.TAMPERED,
            id="replayed",
        ),
        pytest.param(
            lambda lines, k: [*lines[:k], bytes(len(lines[k])), *lines[k + 1 :]],
            lambda k: (k, k),
            Status.TAMPERED,
            id="zeros",
        ),
        pytest.param(
            lambda lines, k: [*lines[:k], lines[k][:-1], *lines[k + 1 :]],
            lambda k: (k, k),
            Status.TAMPERED,
            id="line feed removed",
        ),
        pytest.param(
            lambda lines, k: [*lines[:k], lines[k][:-1] + b" \n", *lines[k + 1 :]],
            lambda k: (k, k),
            Status.TAMPERED,
            id="blank appended",
        ),
        pytest.param(
            lambda lines, k: [*lines[:k], lines[k][:-1] + b"\r\n", *lines[k + 1 :]],
            lambda k: (k, k),
            Status.TAMPERED,
            id="CR LF",
        ),
        pytest.param(
            lambda lines, k: [*lines[:k], restamp(lines[k], prev="0" * 64), *lines[k + 1 :]],
            lambda k: (k, k),
            Status.TAMPERED,
            id="another prev",
        ),
        pytest.param(
            lambda lines, k: [*lines[:k], restamp(lines[k], seq=k + 100), *lines[k + 1 :]],
            lambda k: (k, k),
            Status.TAMPERED,
            id="another seq",
        ),
        pytest.param(
            lambda lines, k: [*lines[:k], lines[k].upper(), *lines[k + 1 :]],
            lambda k: (k, k),
            Status.TAMPERED,
            id="upper case",
        ),
    ],
)
def test_lines(one: Path, change: Any, place: Any, status: Status | None, k: int, lock: str, chunk: int) -> None:
    """The worst fault's first place is the line where the chain no longer fits, and the number that was due."""
    lines = lines_of(newest(one))
    changed = change(lines, k)
    newest(one).write_bytes(b"".join(changed))
    LOCKS[lock](one)
    index, seq = place(k)
    found = first_fault(one, chunk)
    wanted = (newest(one).name, offsets(changed)[index], seq)
    if status is not None:
        # With .lock, what was acknowledged is not where it was: that is TAMPERED, behind the first place.
        assert found[0] in (status, Status.TAMPERED if lock == "this boot" else status)
    assert found[0] >= Status.FORK
    places = [(fault.file, fault.offset, fault.seq) for fault in verify(one, chunk).machines[0].faults]
    assert places[0] == wanted
    with pytest.raises(AssertionError):
        check(partition(one))


@pytest.mark.parametrize("chunk", CHUNKS)
def test_one_change_is_one_fault(one: Path, chunk: int) -> None:
    """Not a hundred: the rest of the chain is held against what stands there."""
    lines = lines_of(newest(one))
    for changed in (
        [*lines[:5], lines[5].replace(b'"data":4', b'"data":9'), *lines[6:]],
        [*lines[:5], edited(lines[5], b'"data":4', b'"data":9'), *lines[6:]],
        [*lines[:5], *lines[6:]],
        [*lines[:5], b"{}\n", *lines[5:]],
        [*lines[:6], lines[5], *lines[6:]],
        [*lines[:6], fork_of(lines[5]), *lines[6:]],
    ):
        newest(one).write_bytes(b"".join(changed))
        (partition(one) / ".lock").unlink(missing_ok=True)
        assert len(verify(one, chunk).faults) == 1


@pytest.mark.parametrize("lock", ["this boot", "missing"])
def test_the_last_line_edited_with_its_checksum(one: Path, lock: str) -> None:
    """No line is left that would tell; only who saw it acknowledged knows."""
    forget(one)
    shutil.copytree(one, one.with_name("copy"))
    with journal(one) as target:
        put(target, "last")
        lines = lines_of(newest(one))
        state = (partition(one) / ".lock").read_bytes()
    newest(one).write_bytes(b"".join([*lines[:-1], edited(lines[-1], b'"last"', b'"lost"')]))
    (partition(one) / ".lock").write_bytes(state)
    LOCKS[lock](one)
    if lock == "missing":
        assert verify(one).status == Status.OK
    else:
        assert first_fault(one) == (Status.TAMPERED, newest(one).name, offsets(lines)[-2], len(lines) - 1)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("lock", ["this boot", "missing"])
def test_first_line_deleted(one: Path, lock: str, chunk: int) -> None:
    newest(one).write_bytes(b"".join(lines_of(newest(one))[1:]))
    LOCKS[lock](one)
    assert first_fault(one, chunk) == (Status.TAMPERED, newest(one).name, 0, 0)


@pytest.mark.parametrize("lock", ["this boot", "missing"])
@pytest.mark.parametrize("keep", [1, 6, 11])
def test_cut_at_the_end_of_a_line(one: Path, keep: int, lock: str) -> None:
    lines = lines_of(newest(one))[:keep]
    newest(one).write_bytes(b"".join(lines))
    LOCKS[lock](one)
    if lock == "missing":
        # Without a witness a cut of the tail cannot be seen.
        assert verify(one).status == Status.OK
    else:
        assert first_fault(one)[:3] == (Status.TAMPERED, newest(one).name, offsets(lines)[-1])


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("lock", ["this boot", "missing"])
@pytest.mark.parametrize("rest", [1, 40, 200, -1])
def test_cut_within_a_line(one: Path, rest: int, lock: str, chunk: int) -> None:
    lines = lines_of(newest(one))
    newest(one).write_bytes(b"".join(lines[:6]) + lines[6][:rest])
    LOCKS[lock](one)
    places = [(fault.offset, fault.seq, fault.status) for fault in verify(one, chunk).machines[0].faults]
    assert places[0] == (offsets(lines)[6], 6, Status.INCOMPLETE)
    assert verify(one, chunk).status == (Status.INCOMPLETE if lock == "missing" else Status.TAMPERED)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_torn_line_in_a_closed_segment(four: Path, chunk: int) -> None:
    """What was durable before its successor came cannot be torn."""
    path = partition(four) / segment_names(four)[1]
    lines = lines_of(path)
    os.truncate(path, path.stat().st_size - 10)
    status, file, offset, _ = first_fault(four, chunk)
    assert (status, file) == (Status.TAMPERED, path.name)
    assert offset in (offsets(lines)[-2], path.stat().st_size)


def test_more_faults_than_are_listed(root: Path) -> None:
    closed(root, *range(300))
    lines = lines_of(newest(root))
    for kept in (1, 0):
        damaged = [*lines[:kept], *(line.replace(b'"data":', b'"Data":') for line in lines[kept:])]
        newest(root).write_bytes(b"".join(damaged))
        (machine,) = verify(root).machines
        assert machine.status == Status.TAMPERED
        assert len(machine.faults) == 100
        assert len(machine.faults) + machine.more_faults >= 300
        assert machine.faults[0].offset == offsets(lines)[kept]


# Segments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", CHUNKS)
def test_first_segment_missing(four: Path, chunk: int) -> None:
    names = segment_names(four)
    (partition(four) / names[0]).unlink()
    status, file, offset, _ = first_fault(four, chunk)
    assert (status, offset) == (Status.INCOMPLETE, 0)
    assert file in names[:2]


@pytest.mark.parametrize("chunk", CHUNKS)
def test_middle_segment_missing(four: Path, chunk: int) -> None:
    """What is there is good, and something that should be there is not."""
    names = segment_names(four)
    (partition(four) / names[2]).unlink()
    status, file, _, _ = first_fault(four, chunk)
    assert status == Status.INCOMPLETE
    assert file == names[2]
    report = verify(four, chunk)
    assert {fault.file for fault in report.faults} <= {names[2], names[3]}


@pytest.mark.parametrize("lock", ["this boot", "missing"])
def test_newest_segment_missing(four: Path, lock: str) -> None:
    name = newest(four).name
    newest(four).unlink()
    LOCKS[lock](four)
    if lock == "missing":
        assert verify(four).status == Status.OK
    else:
        status, file, offset, _ = first_fault(four)
        assert status in (Status.TAMPERED, Status.INCOMPLETE)
        assert (file, offset) == (name, 0)


@pytest.mark.parametrize("lock", ["this boot", "missing"])
@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 2), (0, -1), (1, -1), (-2, -1)])
def test_segments_swapped(four: Path, a: int, b: int, lock: str) -> None:
    names = segment_names(four)
    first, second = partition(four) / names[a], partition(four) / names[b]
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    LOCKS[lock](four)
    assert verify(four).status in (Status.TAMPERED, Status.FORK, Status.INCOMPLETE)


@pytest.mark.parametrize("lock", ["this boot", "missing"])
def test_segment_renamed(four: Path, lock: str) -> None:
    names = segment_names(four)
    (partition(four) / names[1]).rename(partition(four) / names[1].replace(".jsonl", "1.jsonl"))
    LOCKS[lock](four)
    assert verify(four).status > Status.RECOVERED


@pytest.mark.parametrize("lock", ["this boot", "missing"])
@pytest.mark.parametrize("which", [0, 1, -1])
@pytest.mark.parametrize("what", ["zeros", "empty", "garbage", "other"])
def test_a_segment_without_a_record(four: Path, what: str, which: int, lock: str) -> None:
    path = partition(four) / segment_names(four)[which]
    size = path.stat().st_size
    content = {"zeros": bytes(size), "empty": b"", "garbage": random.Random(3).randbytes(size), "other": b"{}\n" * 9}
    path.write_bytes(content[what])
    LOCKS[lock](four)
    if (what, which, lock) == ("empty", -1, "missing"):
        # A crash leaves the same while a segment is made.
        assert verify(four).status in (Status.OK, Status.INCOMPLETE)
        return
    status, file, _, _ = first_fault(four)
    assert status > Status.RECOVERED
    assert any(fault.file == path.name for fault in verify(four).faults), file


@pytest.mark.parametrize("lock", ["this boot", "missing"])
@pytest.mark.parametrize("what", [b"", b"\0" * 5000, b"\n", b"\n" * 100, b"x", b"\xff" * 999 + b"\n"])
def test_the_only_segment_without_a_record(one: Path, what: bytes, lock: str) -> None:
    newest(one).write_bytes(what)
    LOCKS[lock](one)
    status, file, offset, _ = first_fault(one)
    assert status == (Status.INCOMPLETE if lock == "missing" else Status.TAMPERED)
    assert file == newest(one).name
    assert 0 <= offset <= len(what)


@pytest.mark.parametrize("by", [-1, 1, -400, 400])
def test_a_cap_edited(four: Path, by: int) -> None:
    names = segment_names(four)
    path = partition(four) / names[2]
    lines = lines_of(path)
    size = record_of(lines[0])["data"]["previous"]["size"]
    path.write_bytes(b"".join([edited(lines[0], b'"size":%d' % size, b'"size":%d' % (size + by)), *lines[1:]]))
    status, _, _, _ = first_fault(four)
    assert status == Status.TAMPERED
    places = {(fault.file, fault.offset) for fault in verify(four).faults}
    # Where the next line no longer fits, at the latest.
    assert (names[2], len(lines_of(path)[0])) in places or any(file == names[1] for file, _ in places)


@pytest.mark.parametrize("lock", ["this boot", "missing"])
def test_a_cap_that_hides_durable_records(root: Path, lock: str) -> None:
    """A forged successor, all of it right, says that the last batches do not count."""
    with journal(root) as target:
        put(target, *range(6))
        lines = lines_of(newest(root))
        state = (partition(root) / ".lock").read_bytes()
    newest(root).write_bytes(b"".join(lines))
    (partition(root) / ".lock").write_bytes(state)
    closed(root.with_name("other"), max_segment=1)
    closed(root.with_name("other"), 1, max_segment=1)
    header = lines_of(partition(root.with_name("other")) / segment_names(root.with_name("other"))[1])[0]
    keep = 4
    data = record_of(header)["data"]
    text = json.dumps(data, separators=(",", ":")).encode()
    data |= {"ledger": record_of(lines[0])["data"]["ledger"], "reason": "fault"}
    data["previous"] = {"segment": newest(root).name, "size": offsets(lines)[keep]}
    header = header.replace(text, json.dumps(data, separators=(",", ":")).encode())
    header = restamp(header, seq=keep, prev=lines[keep - 1][-67:-3].decode())
    (partition(root) / newest(root).name.replace(".jsonl", ".1.jsonl")).write_bytes(header)
    LOCKS[lock](root)
    name = segment_names(root)[0]
    places = [(fault.status, fault.file, fault.offset) for fault in verify(root).faults]
    assert (Status.TAMPERED, name) in [place[:2] for place in places]
    assert verify(root).status == Status.TAMPERED


def test_beyond_a_cap_nothing_counts(four: Path) -> None:
    """Bytes behind the end of a closed segment are no records."""
    for name in segment_names(four)[:-1]:
        append_bytes(partition(four) / name, b"\0garbage\n{}\n" + b"torn")
    before = len(check(partition(four)))
    report = verify(four)
    assert report.status in (Status.OK, Status.RECOVERED)
    assert report.records == before


@pytest.mark.parametrize("what", ["file", "folder", "fifo"])
def test_what_is_no_segment_is_ignored(one: Path, what: str) -> None:
    for name in ("2026-00.jsonl", "notes.jsonl", "2026-11.jsonl.bak", "2026-11.01.jsonl"):
        path = partition(one) / name
        if what == "file":
            path.write_text("hello")
        elif what == "folder":
            path.mkdir()
        else:
            os.mkfifo(path)
    assert verify(one).status == Status.OK


# Control records --------------------------------------------------------------------------------------------


def forged_checkpoint(root: Path, size: int, head: str) -> int:
    """Change the checkpoint at the end of the first segment, and all that follows from it. Gives its offset."""
    seq, prev = 0, ZEROS
    found = 0
    for name in segment_names(root):
        path = partition(root) / name
        lines = lines_of(path)
        if name == segment_names(root)[0]:
            point = record_of(lines[-1])
            old = json.dumps(point["data"], separators=(",", ":")).encode()
            new = json.dumps({**point["data"], "size": size, "head": head}, separators=(",", ":")).encode()
            assert len(old) == len(new)
            lines[-1] = lines[-1].replace(old, new)
            found = offsets(lines)[-2]
        lines = rechained(lines, seq, prev)
        seq, prev = seq + len(lines), lines[-1][-67:-3].decode()
        path.write_bytes(b"".join(lines))
    forget(root)
    return found


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_checkpoint_with_a_wrong_head(four: Path, chunk: int) -> None:
    first = lines_of(partition(four) / segment_names(four)[0])
    size = record_of(first[-1])["data"]["size"]
    offset = forged_checkpoint(four, size, "a" * 64)
    # Later ones name heads that are no longer those of their records either.
    assert first_fault(four, chunk) == (Status.TAMPERED, segment_names(four)[0], offset, size)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_faults_come_in_the_order_of_the_file(root: Path, chunk: int) -> None:
    """Whatever kind they are: a wrong checkpoint before a broken line is the first place."""
    closed(root, 1, 2)
    closed(root, 3, 4)
    lines = lines_of(newest(root))
    index = next(i for i, line in enumerate(lines) if b'"otledger.checkpoint"' in line)
    head = record_of(lines[index])["data"]["head"]
    lines = rechained([*lines[:index], lines[index].replace(head.encode(), b"a" * 64), *lines[index + 1 :]])
    lines[-2] = lines[-2].replace(b'"data":4', b'"data":5')
    newest(root).write_bytes(b"".join(lines))
    forget(root)
    places = [fault.offset for fault in verify(root, chunk).machines[0].faults]
    assert places[:2] == [offsets(lines)[index], offsets(lines)[-3]]
    assert places == sorted(places)


def test_a_checkpoint_over_records_that_are_not_there_yet(four: Path) -> None:
    first = lines_of(partition(four) / segment_names(four)[0])
    size = record_of(first[-1])["data"]["size"]
    offset = forged_checkpoint(four, size + 1, record_of(first[-1])["data"]["head"])
    found = [(fault.file, fault.offset) for fault in verify(four).faults]
    assert (segment_names(four)[0], offset) in found


@pytest.fixture
def recovered(root: Path) -> Path:
    """A ledger with something in quarantine."""
    with journal(root) as target:
        put(target, 1, 2)
        append_bytes(newest(root), b"torn")
        put(target, 3)
    sane(root, allow=[Status.RECOVERED])
    return root


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_recovered_ledger(recovered: Path, chunk: int) -> None:
    report = verify(recovered, chunk, deep=True)
    assert (report.status, report.faults, report.machines[0].recoveries) == (Status.RECOVERED, (), 1)
    assert report.status.exit_code == 6


@pytest.mark.parametrize("what", ["edited", "longer", "shorter", "missing", "folder", "symlink"])
def test_quarantine_changed(recovered: Path, what: str) -> None:
    (path,) = (partition(recovered) / "quarantine").iterdir()
    if what == "edited":
        path.write_bytes(b"t0rn")
    elif what == "longer":
        append_bytes(path, b"!")
    elif what == "shorter":
        path.write_bytes(b"tor")
    else:
        path.unlink()
        if what == "folder":
            path.mkdir()
        elif what == "symlink":
            path.symlink_to("/dev/null")
    report = verify(recovered)
    wanted = Status.TAMPERED if what in ("edited", "longer", "shorter") else Status.INCOMPLETE
    assert report.status == wanted or (what == "symlink" and report.status == Status.TAMPERED)
    assert any(path.name in str(fault) for fault in report.faults)


def test_a_forged_recovery_record_reads_nothing_else(recovered: Path) -> None:
    """The name of the quarantine file in it is nobody's way out of the folder."""
    lines = lines_of(newest(recovered))
    index = next(i for i, line in enumerate(lines) if b'"otledger.recovery"' in line)
    for name in ("../../../../etc/passwd", "..", "", ".", "/etc/passwd", "a\\u0000b"):
        data = record_of(lines[index])["data"]
        old = data["quarantine"].encode()
        changed = [*lines[:index], lines[index].replace(old, name.encode()), *lines[index + 1 :]]
        newest(recovered).write_bytes(b"".join(rechained(changed)))
        (partition(recovered) / ".lock").unlink(missing_ok=True)
        assert verify(recovered).status in (Status.INCOMPLETE, Status.TAMPERED)


def test_gaps_are_counted(root: Path) -> None:
    closed(root, 1)
    with journal(root) as target:
        for count in (3, 4):
            data = {"count": count, "reason": "queue full", "first": "x", "last": "y"}
            target.append([otledger.Draft("otledger.gap", data)], reserved=True)
    (machine,) = verify(root).machines
    assert (machine.gaps, machine.status) == (7, Status.OK)


# Deep -------------------------------------------------------------------------------------------------------

ODD = {
    "a member twice": lambda line: line.replace(b'"machine":"m1"', b'"machine":"m1","machine":"m1"'),
    "a member twice in the data": lambda line: line.replace(b'"data":5', b'"data":{"a":1,"a":2}'),
    "white space": lambda line: line.replace(b'"machine":"m1"', b'"machine": "m1"'),
    "white space in the data": lambda line: line.replace(b'"data":5', b'"data":[1, 2]'),
    "another machine": lambda line: line.replace(b'"machine":"m1"', b'"machine":"m2"'),
    "another order": lambda line: line.replace(b',"machine":"m1"', b"").replace(
        b',"specversion"', b',"machine":"m1","specversion"'
    ).replace(b'{"specversion":"1.0"', b'{"machine":"m1","specversion":"1.0"'),
    "no id": lambda line: line.replace(b'"id":"', b'"nr":"'),
    "no time": lambda line: line.replace(b'"time":"', b'"tide":"'),
    "another version": lambda line: line.replace(b'"specversion":"1.0"', b'"specversion":"2.0"'),
    "a time without its zone": lambda line: line.replace(b'Z","machine"', b'","machine"'),
    "NaN": lambda line: line.replace(b'"data":5', b'"data":NaN'),
    "Infinity": lambda line: line.replace(b'"data":5', b'"data":[-Infinity]'),
    "no JSON": lambda line: line.replace(b'"data":5', b'"data":five'),
    "no UTF-8": lambda line: line.replace(b'"data":5', b'"data":"\xff\xfe"'),
    "U+2028": lambda line: line.replace(b'"data":5', '"data":"\u2028"'.encode()),
    "U+0085": lambda line: line.replace(b'"data":5', '"data":"\u0085"'.encode()),
    "too deep": lambda line: line.replace(b'"data":5', b'"data":' + b"[" * 101 + b"]" * 101),
    "far too deep": lambda line: line.replace(b'"data":5', b'"data":' + b"[" * 50_000 + b"]" * 50_000),
    "a name of an extension": lambda line: line.replace(b',"machine"', b',"Machine":1,"machine"'),
    "data is null": lambda line: line.replace(b'"data":5', b'"data":null'),
    "an extension that is an object": lambda line: line.replace(b'"machine":"m1"', b'"machine":"m1","ext":{}'),
    "a large extension": lambda line: line.replace(b'"machine":"m1"', b'"machine":"m1","ext":9999999999'),
    "a subject that is a number": lambda line: line.replace(b',"machine"', b',"subject":5,"machine"'),
    "an id that is taken": lambda line: b'{"specversion":"1.0","id":"TAKEN"' + line[line.index(b',"source"') :],
    "synced beyond seq": lambda line: line.replace(b'"synced":6', b'"synced":9'),
    "synced goes back": lambda line: line.replace(b'"synced":6', b'"synced":2'),
}  # fmt: skip


@pytest.mark.parametrize("chunk", [HUGE, 97])
@pytest.mark.parametrize("what", ODD)
def test_deep_finds_what_checksums_do_not(one: Path, what: str, chunk: int) -> None:
    """Lines with right checksums, in their chain, that the format does not allow."""
    lines = lines_of(newest(one))
    index = next(i for i, line in enumerate(lines) if b'"data":5' in line)
    changed = ODD[what](lines[index])
    if what == "an id that is taken":
        changed = changed.replace(b"TAKEN", record_of(lines[3])["id"].encode())
    assert changed != lines[index]
    # Without the checkpoint at the end: it names another head now.
    newest(one).write_bytes(b"".join(rechained([*lines[:index], changed, *lines[index + 1 : -1]])))
    forget(one)
    with pytest.raises(AssertionError):
        check(partition(one))
    assert verify(one, chunk).status == Status.OK
    report = verify(one, chunk, deep=True)
    assert report.status == Status.TAMPERED
    assert [(fault.offset, fault.seq) for fault in report.faults] == [(offsets(lines)[index], index)]


# Chunks and processes ---------------------------------------------------------------------------------------


def facts(report: Report) -> Any:
    return report.status, [
        (one.status, one.records, one.bytes, one.head, one.recoveries, one.gaps, one.faults, one.more_faults)
        for one in report.machines
    ]


@st.composite
def changes(draw: st.DrawFn) -> Callable[[list[bytes]], list[bytes]]:
    """Something that may happen to the lines of a file, a few times."""
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(
                    ["flip", "drop", "copy", "swap", "fork", "foreign", "cut", "zero", "lf", "edit", "json"]
                ),
                st.integers(0, 1 << 20),
                st.integers(0, 1 << 20),
            ),
            min_size=1,
            max_size=3,
        )
    )

    def change(lines: list[bytes]) -> list[bytes]:
        for kind, a, b in steps:
            if not lines:
                break
            i, j = a % len(lines), b % len(lines)
            line = lines[i]
            if not line:
                continue
            good = TAIL.search(line) and line.count(b'"machine":"m1"') == 1
            if kind == "flip":
                at = b % len(line)
                lines = [*lines[:i], line[:at] + bytes([line[at] ^ 1]) + line[at + 1 :], *lines[i + 1 :]]
            elif kind == "drop":
                lines = [*lines[:i], *lines[i + 1 :]]
            elif kind == "copy":
                lines = [*lines[:j], line, *lines[j:]]
            elif kind == "swap":
                lines[i], lines[j] = lines[j], lines[i]
            elif kind == "fork" and good:
                lines = [*lines[:j], fork_of(line), *lines[j:]]
            elif kind == "foreign":
                lines = [*lines[:i], b'{"a":1}\n', *lines[i:]]
            elif kind == "cut":
                lines = [*lines[:i], line[: b % len(line)], *lines[i + 1 :]]
            elif kind == "zero":
                lines = [*lines[:i], bytes(len(line)), *lines[i + 1 :]]
            elif kind == "lf":
                lines = [*lines[:i], b"\n" * (b % 5), *lines[i:]]
            elif kind == "edit" and good:
                lines = [*lines[:i], fork_of(line), *lines[i + 1 :]]
            elif kind == "json" and good:
                lines = [*lines[:i], restamp(line.replace(b'"machine":"m1"', b'"machine": "m1"')), *lines[i + 1 :]]
        return lines

    return change


@settings(max_examples=250, deadline=None, report_multiple_bugs=False)
@given(change=changes(), which=st.integers(0, 4), chunk=st.integers(50, 2500), lock=st.booleans(), deep=st.booleans())
def test_the_size_of_chunks_makes_no_difference(
    four_segments: Path, change: Change, which: int, chunk: int, lock: bool, deep: bool
) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        root = Path(name) / "ledger"
        shutil.copytree(four_segments, root)
        names = segment_names(root)
        path = partition(root) / names[which % len(names)]
        content = b"".join(change(lines_of(path)))
        assume(content)
        path.write_bytes(content)
        if not lock:
            forget(root)
        assert facts(verify(root, chunk, deep=deep)) == facts(verify(root, deep=deep))


@pytest.mark.parametrize("what", ["good", "flip", "fork", "json", "missing"])
def test_two_processes_find_what_one_finds(four: Path, what: str) -> None:
    path = partition(four) / segment_names(four)[2]
    lines = lines_of(path)
    lines = {
        "good": lines,
        "flip": [lines[0], lines[1].replace(b'"data"', b'"Data"'), *lines[2:]],
        "fork": [lines[0], lines[1], fork_of(lines[1]), *lines[2:]],
        "json": [lines[0], restamp(lines[1].replace(b'"machine":', b'"machine": ')), *lines[2:]],
        "missing": [],
    }[what]
    if lines:
        path.write_bytes(b"".join(lines))
    else:
        path.unlink()
    assert facts(verify(four, 1500, processes=2, deep=True)) == facts(verify(four, 1500, deep=True))


def test_a_file_without_a_line_feed_needs_little_memory(tmp_path: Path, one: Path) -> None:
    """Nor does a line of hundreds of megabytes: no file can exhaust the memory of who verifies it."""
    code = """if True:
        import resource, sys
        import otledger
        import otledger.strict

        pages = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (pages + (120 << 20), resource.RLIM_INFINITY))
        for deep in (False, True):
            report = otledger.verify(sys.argv[1], processes=1, deep=deep)
            print(report.status, report.records, flush=True)
    """
    size = newest(one).stat().st_size
    for number, (start, end) in enumerate([(0, b""), (size, b""), (size, b"\n"), (size, lines_of(newest(one))[-1])]):
        root = tmp_path / f"giant{number}"
        shutil.copytree(one, root)
        forget(root)
        os.truncate(newest(root), start)
        os.truncate(newest(root), start + (280 << 20))
        append_bytes(newest(root), end)
        done = run_python(code, root)
        assert done.returncode == 0, done.stderr[-3000:]
        rows = done.stdout.splitlines()
        assert len(rows) == 2
        assert all(row.split()[0] in ("INCOMPLETE", "TAMPERED") for row in rows)
        assert all(int(row.split()[1]) >= (12 if start else 0) for row in rows)
        newest(root).unlink()


# Beside a writer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"deep": True}, {"tail": True}, {"processes": 2}])
@pytest.mark.parametrize("durability", ["disk", "os"])
def test_while_writers_write(tmp_path: Path, durability: str, options: dict[str, Any]) -> None:
    """Takes the lock shared for an instant: no batch is seen half written."""
    root = tmp_path / "ledger"
    with Writers() as writers:
        group = writers.start(
            root, tmp_path / "acks", processes=2, durability=durability, least=100, most=3000,
            max_segment=500_000, checkpoint_interval=0.01, options={"batch": 5, "pause": 0.002},
        )  # fmt: skip
        try:
            while not group.is_writing():
                os.sched_yield()
            seen = 0
            for _ in range(6):
                known = len(group.acknowledged())
                report = verify(root, 1 << 20, **options)
                assert report.status == Status.OK, report.faults
                if "tail" not in options:
                    assert report.records > known
                    assert report.records >= seen
                    seen = report.records
        finally:
            group.kill()


# Tail -------------------------------------------------------------------------------------------------------


def test_only_the_tail(one: Path) -> None:
    with journal(one) as target:
        put(target, "a", "b", "c")
        shutil.copytree(one, one.with_name("copy"))
    root = one.with_name("copy")
    lines = lines_of(newest(root))
    assert verify(root, tail=True).records == 4
    newest(root).write_bytes(b"".join([*lines[:3], lines[3].replace(b'"data":2', b'"data":3'), *lines[4:]]))
    assert verify(root, tail=True).status == Status.OK
    newest(root).write_bytes(b"".join([*lines[:-2], lines[-2].replace(b'"b"', b'"x"'), lines[-1]]))
    report = verify(root, tail=True)
    assert (report.status, report.faults[0].offset) == (Status.TAMPERED, offsets(lines)[-3])


# Never OK ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Segments that a size and a fault began, one with bytes beyond its cap, and something in quarantine."""
    root = tmp_path_factory.mktemp("rich") / "ledger"
    closed(root, *range(3))
    closed(root, "cut", max_segment=1)
    with journal(root) as target:
        put(target, 1)
        append_bytes(newest(root), b"torn")
        put(target, 2)
        with patch.object(os, "fdatasync", side_effect=[OSError(5, "Input/output error"), None, None, None]):
            put(target, 3)
        put(target, 4)
    assert len(segment_names(root)) == 3
    sane(root, allow=[Status.RECOVERED])
    return root


def counted(root: Path) -> dict[str, int]:
    """How many bytes of each file count."""
    sizes = {name: (partition(root) / name).stat().st_size for name in segment_names(root)}
    for name in segment_names(root):
        previous = record_of(lines_of(partition(root) / name)[0])["data"]["previous"]
        if previous:
            sizes[previous["segment"]] = previous["size"]
    for path in (partition(root) / "quarantine").iterdir():
        sizes[f"quarantine/{path.name}"] = path.stat().st_size
    return sizes


@settings(max_examples=500, deadline=None, report_multiple_bugs=False)
@given(data=st.data())
def test_no_change_goes_unseen(rich: Path, data: st.DataObject) -> None:
    """Bytes flipped, cut out or put in, anywhere where they count: never OK, and never an exception."""
    sizes = counted(rich)
    name = data.draw(st.sampled_from(sorted(sizes)))
    lock = data.draw(st.sampled_from(list(LOCKS)))
    content = (partition(rich) / name).read_bytes()
    at = data.draw(st.integers(0, sizes[name] - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "replace"]))
    if kind == "flip":
        changed = content[:at] + bytes([content[at] ^ (1 << data.draw(st.integers(0, 7)))]) + content[at + 1 :]
    elif kind == "cut":
        changed = content[:at] + content[at + data.draw(st.integers(1, 3000)) :]
    elif kind == "insert":
        changed = content[:at] + data.draw(st.binary(min_size=1, max_size=50)) + content[at:]
    else:
        new = data.draw(st.binary(min_size=1, max_size=50))
        changed = content[:at] + new + content[at + len(new) :]
    assume(changed[: sizes[name]] != content[: sizes[name]])
    last = name == segment_names(rich)[-1]
    if lock != "this boot" and last:
        # A cut of the tail at the end of a line cannot be seen without a witness.
        assume(not (content.startswith(changed) and (changed.endswith(b"\n") or not changed)))
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        root = Path(folder) / "ledger"
        shutil.copytree(rich, root)
        (partition(root) / name).write_bytes(changed)
        LOCKS[lock](root)
        chunk = data.draw(st.sampled_from(CHUNKS))
        report = verify(root, chunk, deep=data.draw(st.booleans()))
        assert report.status > Status.RECOVERED
        assert report.faults


@settings(max_examples=150, deadline=None, report_multiple_bugs=False)
@given(data=st.data())
def test_lines_moved_about_are_seen(four_segments: Path, data: st.DataObject) -> None:
    """Any other selection or order of the ledger's own good lines, over all segments."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        root = Path(folder) / "ledger"
        shutil.copytree(four_segments, root)
        names = segment_names(root)
        lines = [lines_of(partition(root) / name) for name in names]
        flat = [line for own in lines for line in own]
        which = data.draw(st.integers(0, len(names) - 1))
        at = data.draw(st.integers(0, len(lines[which])))
        put_in = data.draw(st.lists(st.sampled_from(flat), max_size=2))
        drop = data.draw(st.integers(0, 3))
        changed = [*lines[which][:at], *put_in, *lines[which][at + drop :]]
        assume(changed != lines[which])
        # Otherwise the tail, or all of the newest segment, is cut.
        lock = data.draw(st.sampled_from(["this boot", "missing"]))
        assume(lock == "this boot" or which != len(names) - 1 or changed != lines[which][: len(changed)])
        # Beyond a cap nothing counts.
        assume(which == len(names) - 1 or changed[: len(lines[which])] != lines[which])
        (partition(root) / names[which]).write_bytes(b"".join(changed))
        LOCKS[lock](root)
        report = verify(root, data.draw(st.sampled_from(CHUNKS)))
        assert report.status > Status.RECOVERED
        assert report.faults


@settings(max_examples=100, deadline=None)
@given(content=st.one_of(st.binary(max_size=2000), st.lists(st.sampled_from([b"{}", b"\n", b"\0", b'"', b"[", b","]))))
def test_no_file_makes_it_raise(content: Any) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        path = Path(folder) / "ledger" / MACHINE / "2026-11.jsonl"
        path.parent.mkdir(parents=True)
        path.write_bytes(content if isinstance(content, bytes) else b"".join(content))
        for deep in (False, True):
            assert verify(Path(folder) / "ledger", 50, deep=deep).status != Status.OK


def test_verify_changes_nothing(rich: Path, tmp_path: Path) -> None:
    before = snapshot(rich), (partition(rich) / ".lock").read_bytes()
    for options in ({}, {"deep": True}, {"tail": True}, {"processes": 2}):
        verify(rich, **options)
    assert (snapshot(rich), (partition(rich) / ".lock").read_bytes()) == before
    # Nor does it need to.
    shutil.copytree(rich, tmp_path / "copy")
    forget(tmp_path / "copy")
    before = snapshot(tmp_path / "copy")
    verify(tmp_path / "copy")
    assert snapshot(tmp_path / "copy") == before
    assert not (partition(tmp_path / "copy") / ".lock").exists()


def test_only_clear_errors(one: Path) -> None:
    """What is raised is an error of otledger."""
    (partition(one) / "2026-12.jsonl").mkdir()
    with pytest.raises(LedgerError):
        verify(one)


def test_a_type_of_a_later_version_is_no_fault(root: Path) -> None:
    with otledger.Journal(root, machine="m1", service="s") as journal:
        journal.append([otledger.Draft("otledger.future", {"a": 1}), otledger.Draft("otel.future")], reserved=True)
    report = otledger.verify(root, processes=1, deep=True)
    assert (report.status, report.faults) == (otledger.Status.OK, ())
