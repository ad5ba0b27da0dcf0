"""An archived segment is elsewhere, byte for byte, and the chain says so, before it is gone; all others go on."""

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import fsspec
import pytest

import otledger
from otledger import archive, clock, places, proofs
from otledger.archive import carry_out_archive, plan_archive
from otledger.archived import (
    Archived,
    ArchiveError,
    archived_path,
    archived_segments,
    open_archived,
    read_archived,
)
from otledger.batch import has_type
from otledger.errors import ConfigurationError, RootError
from otledger.filter import Filter
from otledger.follow import Cursor
from otledger.proofs import ProofError
from otledger.query.compacting import compact
from otledger.record import Draft
from tests.checker import check
from tests.faults.tools import MACHINE, REPOSITORY, lines_of, rechained, segment_names
from tests.test_proofs import Signed

OLD = ["2025-10.jsonl", "2025-11.jsonl", "2025-12.jsonl"]


def months(root: Path, *names: str, count: int = 3, machine: str = MACHINE) -> None:
    """Append some events in each of these months, and then some in the present one."""
    for month in (*names, ""):
        real = clock.believed_month
        with (
            patch.object(clock, "believed_month", (lambda *_, month=month: month) if month else real),
            otledger.Journal(root, machine=machine, checkpoint_interval=1000) as journal,
        ):
            for n in range(count):
                journal.append([Draft("order.placed", {"month": month, "n": n}, ipc_hash=f"{month or 'now':0>64}")])


@pytest.fixture
def old(root: Path) -> Path:
    """A ledger with a segment in each of three old months, and one of the present."""
    months(root, "2025-10", "2025-11", "2025-12")
    assert segment_names(root)[:3] == OLD
    return root


def move(root: Path, dest: Path | str, before: str = "2026-01") -> list[archive.MachinePlan]:
    return [carry_out_archive(root, plan, dest) for plan in plan_archive(root, before)]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}


def payloads(root: Path) -> list[object]:
    return [record.data for record in otledger.Reader(root).records(Filter(type="order.placed"))]


def joined(root: Path, cold: Path) -> None:
    """What is left and what was moved, put together, is a whole partition to the independent checker."""
    with tempfile.TemporaryDirectory() as folder:
        partition = Path(folder) / MACHINE
        shutil.copytree(root / MACHINE, partition)
        for path in (cold / MACHINE).glob("*.jsonl"):
            shutil.copy(path, partition)
        check(partition)


# Moving


def test_old_segments_are_moved_and_the_chain_says_so(old: Path, tmp_path: Path) -> None:
    before = bytes_of(old / MACHINE)
    (plan,) = move(old, tmp_path / "cold")
    assert [each.segment for each in plan.moves] == OLD
    assert plan.kept == ""
    assert bytes_of(tmp_path / "cold" / MACHINE) == {name: before[name] for name in OLD}
    assert sorted(os.listdir(tmp_path / "cold" / MACHINE)) == OLD
    assert len(segment_names(old)) == len(before) - len(OLD)
    said = archived_segments(old, MACHINE)
    assert [each.segment for each in said] == OLD
    for each, planned in zip(said, plan.moves, strict=True):
        path = tmp_path / "cold" / MACHINE / each.segment
        records = [json.loads(line) for line in lines_of(path)]
        assert (each.first, each.last) == (records[0]["seq"], records[-1]["seq"]) == (planned.first, planned.last)
        assert f"sha256:{each.head}" == records[-1]["checksum"]
        assert each.size == path.stat().st_size
        shown = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
        assert shown.split()[0] == each.sha256
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    # Put back, it is the ledger that it was.
    for name in OLD:
        shutil.copy(tmp_path / "cold" / MACHINE / name, old / MACHINE)
    assert otledger.verify(old).status == otledger.Status.OK


def test_nothing_is_planned_but_what_is_old_and_closed(old: Path) -> None:
    before = bytes_of(old / MACHINE)
    expected = {"2025-10": 0, "2025-11": 1, "2025-12": 2, "2026-01": 3, "9999-12": 3}
    for month, count in expected.items():
        (plan,) = plan_archive(old, month)
        assert [each.segment for each in plan.moves] == OLD[:count], month
    assert bytes_of(old / MACHINE) == before
    for wrong in ("2026", "2026-13", "2026-1", "last", "2026-01-01"):
        with pytest.raises(ConfigurationError, match="no month"):
            plan_archive(old, wrong)
    with pytest.raises(ConfigurationError, match="no machine 'm9'; there are: m1"):
        plan_archive(old, "2026-01", machines=["m9"])


def test_doing_it_again_later_goes_on(old: Path, tmp_path: Path) -> None:
    before = bytes_of(old / MACHINE)
    move(old, tmp_path / "cold", "2025-11")
    assert segment_names(old)[0] == OLD[1]
    move(old, tmp_path / "cold")
    assert [each.segment for each in archived_segments(old, MACHINE)] == OLD
    assert bytes_of(tmp_path / "cold" / MACHINE) == {name: before[name] for name in OLD}
    assert not move(old, tmp_path / "cold")[0].moves


def test_readers_go_on_with_what_is_left(old: Path, tmp_path: Path) -> None:
    list(otledger.Reader(old).sql("SELECT count(*) FROM events"))
    list(otledger.Reader(old).records(Filter(ipc_hash=f"{'2025-11':0>64}")))
    list(compact(old))
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(
        [sys.executable, "-m", "otledger", "index", "--rebuild", "--root", str(old)], env=environ, check=True
    )
    caches = [path.name for path in (old / MACHINE / ".cache").rglob(f"{OLD[0]}.*")]
    assert len(caches) == 2, "a skeleton and a part of the index"
    whole = payloads(old)
    assert len(whole) == 12
    move(old, tmp_path / "cold")
    assert payloads(old) == whole[9:]
    assert not [path for name in OLD for path in (old / MACHINE / ".cache").rglob(f"{name}.*")]
    reader = otledger.Reader(old)
    assert list(reader.records(Filter(ipc_hash=f"{'2025-11':0>64}"))) == []
    assert len(list(reader.records(Filter(ipc_hash=f"{'now':0>64}")))) == 3
    query = "SELECT count(*) FROM events WHERE type = 'order.placed'"
    assert list(otledger.Reader(old).sql(query)) == [(3,)]
    for command in ("show", "spans", "turns", "stats", "digest", "machines", "index", "compact", "tail"):
        done = subprocess.run(
            [sys.executable, "-m", "otledger", command, "--root", str(old)],
            capture_output=True,
            text=True,
            env=environ,
            check=False,
        )
        assert (done.returncode, done.stderr.count("rror")) in ((0, 0), (1, 0)), (command, done)


async def test_a_follower_goes_on_behind_what_it_has_read_and_skips_nothing(old: Path, tmp_path: Path) -> None:
    sizes = {name: (old / MACHINE / name).stat().st_size for name in OLD}
    move(old, tmp_path / "cold")
    reader = otledger.Reader(old)
    wanted = Filter(type="order.placed")
    read = Cursor({MACHINE: (OLD[2], sizes[OLD[2]])})
    async with contextlib.aclosing(reader.follow(read, wanted)) as records:
        assert (await anext(records)).data == {"month": "", "n": 0}
    for name, offset in ((OLD[2], 100), (OLD[1], sizes[OLD[1]]), (OLD[0], 0)):
        async with contextlib.aclosing(reader.follow(Cursor({MACHINE: (name, offset)}), wanted)) as records:
            with pytest.raises(RootError, match=f"{name} is not there, and was read up to offset {offset} only"):
                await anext(records)
    async with contextlib.aclosing(reader.follow("start", wanted)) as records:
        assert (await anext(records)).data == {"month": "", "n": 0}


@pytest.mark.parametrize("forget", [False, True], ids=["same boot", "after a reboot"])
def test_writers_go_on_in_the_chain(old: Path, tmp_path: Path, forget: bool) -> None:
    with otledger.Journal(old, machine=MACHINE, checkpoint_interval=1000) as journal:
        journal.append([Draft("a.b", 1)])
        move(old, tmp_path / "cold")
        # One that has been open all the time, and one that opens now.
        journal.append([Draft("a.b", 2)])
    if forget:
        (old / MACHINE / ".lock").unlink()
    segments = segment_names(old)
    assert len(segments) == 1
    with otledger.Journal(old, machine=MACHINE, checkpoint_interval=1000) as journal:
        journal.append([Draft("a.b", 3)])
    assert segment_names(old) == segments
    assert [record.data for record in otledger.Reader(old).records(Filter(type="a.b"))] == [1, 2, 3]
    joined(old, tmp_path / "cold")


def test_a_writer_finds_its_place_without_any_checkpoint_that_is_left(old: Path, tmp_path: Path) -> None:
    # As a kill leaves it, in the first minute of a segment: the checkpoint before is in one that was moved.
    newest = segment_names(old)[-1]
    kept = [line for line in lines_of(old / MACHINE / newest) if not has_type(line, "otledger.checkpoint")]
    first = json.loads(kept[0])
    assert first["seq"] > 10
    (old / MACHINE / newest).write_bytes(b"".join(rechained(kept, first["seq"], first["prev"])))
    (tmp_path / "cold" / MACHINE).mkdir(parents=True)
    for name in OLD:
        shutil.move(old / MACHINE / name, tmp_path / "cold" / MACHINE)
    (old / MACHINE / ".lock").unlink()
    with otledger.Journal(old, machine=MACHINE) as journal:
        journal.append([Draft("a.b", 2)])
    assert segment_names(old) == [newest]
    joined(old, tmp_path / "cold")


def test_each_machine_has_its_own(old: Path, tmp_path: Path) -> None:
    months(old, "2025-09", machine="m2")
    move(old, tmp_path / "cold")
    assert sorted(path.name for path in (tmp_path / "cold").iterdir()) == ["m1", "m2"]
    assert [each.segment for each in archived_segments(old, "m2")] == ["2025-09.jsonl"]


# What is refused


def damage(path: Path) -> None:
    lines = lines_of(path)
    path.write_bytes(b"".join([lines[0], lines[1].replace(b'"n":', b'"m":'), *lines[2:]]))


def test_from_the_first_fault_on_all_stays(old: Path, tmp_path: Path) -> None:
    damage(old / MACHINE / OLD[1])
    (plan,) = move(old, tmp_path / "cold")
    assert [each.segment for each in plan.moves] == OLD[:1]
    assert plan.kept.startswith(f"{OLD[1]} and what follows it: otledger verify finds: m1/{OLD[1]}, offset ")
    assert segment_names(old)[:2] == OLD[1:]


def test_what_is_changed_after_the_plan_stays(old: Path, tmp_path: Path) -> None:
    (plan,) = plan_archive(old, "2026-01")
    damage(old / MACHINE / OLD[1])
    before = bytes_of(old / MACHINE)
    with pytest.raises(ArchiveError, match="was changed meanwhile"):
        carry_out_archive(old, plan, tmp_path / "cold")
    assert bytes_of(old / MACHINE) == before


def test_a_copy_that_is_not_right_removes_nothing(old: Path, tmp_path: Path) -> None:
    before = bytes_of(old / MACHINE)
    (tmp_path / "cold" / MACHINE).mkdir(parents=True)
    for content in (b"", before[OLD[1]][:-1], before[OLD[0]]):
        (tmp_path / "cold" / MACHINE / OLD[1]).write_bytes(content)
        with pytest.raises(ArchiveError, match="is there already, and holds something else"):
            move(old, tmp_path / "cold")
        assert bytes_of(old / MACHINE) == before
        assert archived_segments(old, MACHINE) == []
    os.unlink(tmp_path / "cold" / MACHINE / OLD[1])
    write_all = places.write_all
    with (
        patch.object(places, "write_all", lambda fd, data: write_all(fd, data[:-2] + b"x\n")),
        pytest.raises(ArchiveError, match="does not read as it was written"),
    ):
        move(old, tmp_path / "other")
    assert bytes_of(old / MACHINE) == before


def test_a_segment_that_would_count_again_keeps_those_before_it(old: Path, tmp_path: Path) -> None:
    # A segment that no header names, such as a copy that somebody left.
    (old / MACHINE / "2025-11.1.jsonl").write_bytes((old / MACHINE / OLD[0]).read_bytes())
    whole = payloads(old)
    (plan,) = plan_archive(old, "2026-01")
    assert [each.segment for each in plan.moves] == OLD[:1]
    assert "2025-11.1.jsonl counts for nothing, and would count then" in plan.kept or "verify finds" in plan.kept
    carry_out_archive(old, plan, tmp_path / "cold")
    assert payloads(old) == whole[3:]


def test_no_place_in_the_ledger_is_taken(old: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(old)
    for place in (old, old / "cold", f"file://{old}/x", tmp_path / "link" / "x"):
        with pytest.raises(ConfigurationError, match="inside the ledger"):
            move(old, place)
    assert segment_names(old)[:3] == OLD


def test_another_host_s_partition_is_left_alone(old: Path, tmp_path: Path) -> None:
    with patch.object(archive, "host_hash", lambda: "0" * 32):
        (plan,) = plan_archive(old, "2026-01")
    assert (plan.moves, "another host writes there" in plan.kept) == ((), True)


# Crashes

CRASHES = """
import os, shutil, sys
from pathlib import Path
from otledger.archive import carry_out_archive, plan_archive

root, work = Path(sys.argv[1]), Path(sys.argv[2])
names = ("write", "fsync", "fdatasync", "link", "unlink", "mkdir", "open", "posix_fadvise")
real = {name: getattr(os, name) for name in names}

def dying(left, name):
    def call(*args, **options):
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)
        return real[name](*args, **options)
    return call

at = 0
while True:
    at += 1
    case = work / str(at)
    shutil.copytree(root, case / "ledger")
    child = os.fork()
    if not child:
        (plan,) = plan_archive(case / "ledger", "2026-01")
        left = [at]
        for name in names:
            setattr(os, name, dying(left, name))
        carry_out_archive(case / "ledger", plan, case / "cold")
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
print(at)
"""


def test_a_kill_at_any_step_loses_nothing_and_the_next_run_ends_it(old: Path, tmp_path: Path) -> None:
    before = bytes_of(old / MACHINE)
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", CRASHES, str(old), str(tmp_path / "cases")]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=True)
    count = int(done.stdout)
    assert count > 40
    seen = set()
    for at in range(1, count):
        root, cold = tmp_path / "cases" / str(at) / "ledger", tmp_path / "cases" / str(at) / "cold"
        here, there = bytes_of(root / MACHINE), bytes_of(cold / MACHINE)
        said = {each.segment for each in archived_segments(root, MACHINE)}
        for name in OLD:
            assert here.get(name) == before[name] or (there[name] == before[name] and name in said), (at, name)
        seen.add((len(OLD) - len(here.keys() & set(OLD)), len(there.keys() & set(OLD)), len(said)))
        move(root, cold)
        assert bytes_of(cold / MACHINE) == {name: before[name] for name in OLD}
        assert sorted(os.listdir(cold / MACHINE)) == OLD
        assert not bytes_of(root / MACHINE).keys() & set(OLD)
        records = [read_archived(line) for name in segment_names(root) for line in lines_of(root / MACHINE / name)]
        assert [each.segment for each in records if each is not None] == OLD
        joined(root, cold)
    # Copied in part, written down and not removed, removed in part.
    assert {(0, 1, 0), (0, 3, 0), (0, 3, 3), (1, 3, 3)} <= seen


# Places


def test_a_url_is_a_place_through_fsspec(old: Path, tmp_path: Path) -> None:
    before = bytes_of(old / MACHINE)
    move(old, "memory://cold/ledger")
    system = fsspec.filesystem("memory")
    assert sorted(system.ls("/cold/ledger/m1", detail=False)) == [f"/cold/ledger/m1/{name}" for name in OLD]
    for name in OLD:
        with archived_path("memory://cold/ledger", MACHINE, name) as path:
            assert path.read_bytes() == before[name]
        assert not path.exists()
        fd = open_archived("memory://cold/ledger", MACHINE, name)
        with open(fd, "rb") as file:
            assert file.read() == before[name]
    with pytest.raises(ArchiveError, match=r"m1/2024-01.jsonl is not there"):
        open_archived("memory://cold/ledger", MACHINE, "2024-01.jsonl")
    assert segment_names(old)[0] not in OLD
    system.rm("/cold", recursive=True)


def test_a_url_s_wrong_copy_removes_nothing(old: Path) -> None:
    before = bytes_of(old / MACHINE)
    system = fsspec.filesystem("memory")
    system.pipe(f"/wrong/m1/{OLD[2]}", before[OLD[2]][:-1])
    with pytest.raises(ArchiveError, match="holds something else"):
        move(old, "memory://wrong")
    assert bytes_of(old / MACHINE) == before
    system.rm("/wrong", recursive=True)


def test_a_place_that_cannot_be_is_told(old: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="give a folder, or a URL that fsspec knows"):
        move(old, "nosuch://cold")
    (tmp_path / "file").write_text("")
    with pytest.raises(RootError, match="cannot be made"):
        move(old, tmp_path / "file")
    assert segment_names(old)[:3] == OLD


def test_a_folder_s_segments_are_opened_and_no_others(old: Path, tmp_path: Path) -> None:
    before = bytes_of(old / MACHINE)
    cold = tmp_path / "cold"
    move(old, cold)
    for place in (cold, str(cold), f"file://{cold}"):
        with open(open_archived(place, MACHINE, OLD[0]), "rb") as file:
            assert file.read() == before[OLD[0]]
        with archived_path(place, MACHINE, OLD[0]) as path:
            assert path == cold / MACHINE / OLD[0]
    for machine, name, error in (
        (MACHINE, "2024-01.jsonl", ArchiveError),
        ("m2", OLD[0], ArchiveError),
        ("..", OLD[0], ConfigurationError),
        (MACHINE, "../x", RootError),
        (MACHINE, ".lock", RootError),
    ):
        with pytest.raises(error):
            open_archived(cold, machine, name)
        with pytest.raises(error), archived_path(cold, machine, name):
            pass
    (cold / MACHINE / "2024-01.jsonl").symlink_to(old / MACHINE / ".lock")
    with pytest.raises(RootError, match="symbolic link"):
        open_archived(cold, MACHINE, "2024-01.jsonl")
    with pytest.raises(ArchiveError), archived_path(cold, MACHINE, "2024-01.jsonl"):
        pass


# The records


GOOD = Archived("2025-10.jsonl", 10, "a" * 64, 0, 5, "b" * 64, 9)


@pytest.mark.parametrize(
    "change",
    [
        {"segment": None},
        {"segment": "../x"},
        {"segment": 5},
        {"size": -1},
        {"size": True},
        {"size": "10"},
        {"sha256": "a" * 63},
        {"sha256": None},
        {"head": "B" * 64},
        {"first": 6},
        {"last": 10_000},
        {"last": 1.5},
    ],
)
def test_a_garbled_record_says_nothing(root: Path, change: dict[str, object]) -> None:
    with otledger.Journal(root, machine=MACHINE) as journal:
        for n in range(9):
            journal.append([Draft("a.b", n)])
        journal.append([Draft("otledger.archive", GOOD.data())], reserved=True)
        journal.append([Draft("otledger.archive", {**GOOD.data(), **change})], reserved=True)
        journal.append([Draft("a.b", {"type": "otledger.archive"})])
    (found,) = archived_segments(root, MACHINE)
    assert replace(found, seq=9) == GOOD
    lines = [line for name in segment_names(root) for line in lines_of(root / MACHINE / name)]
    assert [read_archived(line) for line in lines if b"otledger.archive" in line] == [found, None, None]


# Proofs


def test_a_proof_needs_what_was_moved_only_where_it_is_about_it(root: Path, tmp_path: Path) -> None:
    ledger = Signed(root)
    months(root, "2025-10", "2025-11")
    with ledger.journal() as journal:
        ledger.sign(journal)
        ledger.events(journal, 4)
        ledger.sign(journal)
    size = len(ledger.lines())
    early, late = proofs.prove_record(root, MACHINE, 3), proofs.prove_record(root, MACHINE, size - 3)
    move(root, tmp_path / "cold")
    assert proofs.prove_record(root, MACHINE, size - 3) == late
    with pytest.raises(ProofError, match=r"record 3 is in 2025-10.jsonl, which was archived"):
        proofs.prove_record(root, MACHINE, 3)
    with pytest.raises(ProofError, match=r"record 0 is in 2025-10.jsonl, which was archived"):
        list(proofs.leaf_hashes(root, MACHINE, 0, 1))
    for path in (tmp_path / "cold" / MACHINE).iterdir():
        shutil.copy(path, root / MACHINE)
    assert proofs.prove_record(root, MACHINE, 3) == early


# The command line


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `otledger archive`."""

    def call(root: Path, *args: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "otledger", "archive", *map(str, args), "--root", str(root)]
        environ = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUTF8": "1"}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environ, check=False)
        assert "Traceback" not in done.stderr
        assert done.returncode == code, done
        return done

    return call


def test_archive_shows_first_and_moves_on_yes(run: Callable[..., subprocess.CompletedProcess[str]], old: Path) -> None:
    before = bytes_of(old / MACHINE)
    for extra in ((), ("--dry-run",)):
        done = run(old, "--before", "2026-01", "cold", *extra, code=1)
        shown = done.stdout.splitlines()
        assert [line.partition(",")[0] for line in shown[:3]] == [f"m1  would move  {name}" for name in OLD]
        assert shown[3] == "3 segments to move to cold, and nothing was written; do it by: --yes"
        assert bytes_of(old / MACHINE) == before
    plain = json.loads(run(old, "--before", "2025-12", "cold", "--yes", "--json").stdout)
    assert (plain["done"], [each["segment"] for each in plain["machines"][0]["moves"]]) == (True, OLD[:2])
    done = run(old, "--before", "2026-01", "cold", "--yes", "--machine", "m1")
    assert done.stdout.startswith(f"m1  moved  {OLD[2]}, ")
    assert run(old, "--before", "2026-01", "cold", "--yes").stdout == "nothing to do\n"


def test_archive_tells_what_stays(run: Callable[..., subprocess.CompletedProcess[str]], old: Path) -> None:
    damage(old / MACHINE / OLD[1])
    done = run(old, "--before", "2026-01", "cold", "--yes", code=3)
    assert done.stderr.startswith(f"otledger: m1: {OLD[1]} and what follows it: otledger verify finds: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout.count("moved") == 1
    for args, expected in (
        (("--before", "soon", "cold"), "'soon' is no month"),
        (("--before", "2026-01", "nosuch://cold", "--yes"), "nothing"),
        (("--before", "2026-01", "cold", "--yes", "--dry-run"), "give one of them"),
        (("--before", "2026-01", "cold", "--machine", "m9"), "no machine 'm9'"),
    ):
        if "nosuch://cold" not in args:
            assert expected in run(old, *args, code=2).stderr
