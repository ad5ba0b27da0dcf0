"""A ledger in a git repository, with the real git: what is merged, what is not, and what a writer notices."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import otledger
from otledger import Draft, Status, identity
from otledger.gitrepo import ATTRIBUTES, IGNORED, GitError, git, init
from tests.conftest import Records, Script

CheckAll = Callable[[Path], Records]
SEGMENT = "m1/2026-11.jsonl"


@pytest.fixture(autouse=True)
def own_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of whoever runs the tests, and a name for their commits."""
    config = tmp_path / "gitconfig"
    config.write_text(
        "[user]\nname = t\nemail = t@example.org\n[init]\ndefaultBranch = main\n[pull]\nrebase = false\n"
        "[core]\nautocrlf = true\n[advice]\ndetachedHead = false\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


def try_git(folder: Path, *args: object) -> str | None:
    """Give what git said where it refused."""
    try:
        git(folder, *map(str, args))
    except GitError as error:
        return str(error)
    return None


def commit(folder: Path, message: str = "more") -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", message)


def emit(root: Path, *numbers: int, machine: str = "m1") -> list[str]:
    """Write events as a program would that is started for it; gives their ids."""
    with otledger.Journal(root, machine=machine) as journal:
        return [receipt.id for receipt in journal.append([Draft("x.y", {"n": n}) for n in numbers])]


def ids(root: Path) -> set[str]:
    """The ids of all events that a reader finds."""
    return {record.id for record in otledger.Reader(root, index=False).records()}


def the_segment(root: Path, machine: str = "m1") -> Path:
    return min((root / machine).glob("*.jsonl"))


# git init


def test_a_root_becomes_a_repository(root: Path) -> None:
    done = init(root)
    assert done.created
    assert done.changed == (".gitattributes", ".gitignore")
    before = {path: path.read_bytes() for path in (root / ".gitattributes", root / ".gitignore")}
    again = init(root)
    assert (again.created, again.changed) == (False, ())
    assert {path: path.read_bytes() for path in before} == before
    assert root.stat().st_mode & 0o777 == 0o700


def test_lines_that_are_there_stay(root: Path) -> None:
    root.mkdir()
    (root / ".gitattributes").write_text("* text=auto")
    (root / ".gitignore").write_text("# ours\n.lock\n*.tmp\n")
    init(root)
    assert (root / ".gitattributes").read_text().splitlines() == ["* text=auto", *ATTRIBUTES]
    ours = (root / ".gitignore").read_text().splitlines()
    assert ours[:3] == ["# ours", ".lock", "*.tmp"]
    assert sorted(ours[1:]) == sorted({*IGNORED, "*.tmp"})
    assert init(root).changed == ()


def test_what_git_says_to_each_file(root: Path) -> None:
    init(root)
    with otledger.Journal(root, machine="m1") as journal:
        journal.append([Draft("x.y")])
        kept = journal.set_aside("2026-11.jsonl.17", b"torn\r\n")
    (root / "m1" / ".cache" / "index").mkdir(parents=True)
    (root / "m1" / ".cache" / "index" / "x").write_text("x")
    (root / "m1" / ".new.0123").write_text("x")
    quarantined = f"m1/quarantine/{kept}"
    segment = str(the_segment(root).relative_to(root))
    for name in (segment, quarantined):
        said = git(root, "check-attr", "text", "merge", "--", name).decode()
        assert f"{name}: text: unset" in said
        assert f"{name}: merge: binary" in said
    commit(root)
    listed = git(root, "ls-files").decode().split()
    assert sorted(listed) == sorted([".gitattributes", ".gitignore", segment, quarantined])
    # autocrlf is on: without the attributes this would come back changed.
    (root / quarantined).unlink()
    git(root, "checkout", "--", quarantined)
    assert (root / quarantined).read_bytes() == b"torn\r\n"


def test_a_root_inside_of_a_repository_stays_in_it(tmp_path: Path) -> None:
    git(None, "init", "-q", str(tmp_path / "project"))
    root = tmp_path / "project" / "data" / "ledger"
    done = init(root)
    assert not done.created
    assert done.repository == tmp_path / "project"
    assert not (root / ".git").exists()
    emit(root, 1)
    said = git(tmp_path / "project", "check-attr", "merge", "--", "data/ledger/m1/2026-11.jsonl").decode()
    assert said.endswith("merge: binary\n")
    commit(tmp_path / "project")
    assert ".lock" not in git(tmp_path / "project", "ls-files").decode()


def test_a_root_that_its_repository_ignores_is_refused(tmp_path: Path) -> None:
    project = tmp_path / "project"
    git(None, "init", "-q", str(project))
    (project / ".gitignore").write_text("data/\n")
    with pytest.raises(GitError, match="is ignored by"):
        init(project / "data" / "ledger")


def test_a_hook_s_variables_lead_nowhere_else(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(None, "init", "-q", str(tmp_path / "other"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "other" / "index"))
    assert init(root).created
    assert (root / ".git").is_dir()


def test_without_git_it_says_what_to_install(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(GitError, match="install it"):
        init(root)


def test_the_command(root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "otledger", "git", "init", "--root", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "lines added" in done.stdout
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, env=environment, check=True)
    assert json.loads(done.stdout) == {"root": str(root), "repository": str(root), "created": False, "changed": []}
    (root / ".gitattributes").unlink()
    (root / ".gitattributes").mkdir()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


# Several machines

WRITER = """
    import sys, time
    import otledger

    with otledger.open_sync(sys.argv[1], machine=sys.argv[2], flush_interval=0.005, lock_timeout=30) as ledger:
        print("ready", flush=True)
        n = 0
        import select
        while not select.select([sys.stdin], [], [], 0.002)[0]:
            receipt = ledger.append("x.y", {"n": n, "text": "line\\u2028" * 3})
            print(receipt.id, flush=True)
            n += 1
"""


def start(script: Script, root: Path, machine: str) -> subprocess.Popen[str]:
    process = script(WRITER, root, machine)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def stop(process: subprocess.Popen[str]) -> set[str]:
    """End a writer; gives the ids that it was told to be durable."""
    out, _ = process.communicate("\n", timeout=60)
    assert process.returncode == 0
    return set(out.split())


def exchange(clone: Path) -> None:
    """Commit what is there, take what others pushed, push."""
    commit(clone)
    for _ in range(20):
        git(clone, "pull", "-q", "--no-edit", "origin", "main")
        if try_git(clone, "push", "-q", "origin", "HEAD:main") is None:
            return
    raise AssertionError("others push all the time")


def partitions(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.jsonl")}


def hub_and_clones(tmp_path: Path, count: int) -> list[Path]:
    """A bare repository in the middle, and clones of it; the first is the ledger that was there before."""
    hub = tmp_path / "hub.git"
    git(None, "init", "-q", "--bare", str(hub))
    first = tmp_path / "clone1"
    init(first)
    commit(first, "begin")
    git(first, "remote", "add", "origin", str(hub))
    git(first, "push", "-q", "-u", "origin", "HEAD:main")
    clones = [first]
    for at in range(2, count + 1):
        clones.append(tmp_path / f"clone{at}")
        git(None, "clone", "-q", str(hub), str(clones[-1]))
    return clones


def test_three_machines_pull_merge_and_push_while_they_write(
    tmp_path: Path, script: Script, check_all: CheckAll
) -> None:
    clones = hub_and_clones(tmp_path, 3)
    writers = [start(script, clone, f"m{at}") for at, clone in enumerate(clones, 1)]
    for _ in range(2):
        for clone in clones:
            exchange(clone)
    told = [stop(writer) for writer in writers]
    assert all(len(each) > 20 for each in told)
    for clone in [*clones, *clones]:
        exchange(clone)
    held = [partitions(clone) for clone in clones]
    assert {name.partition("/")[0] for name in held[0]} == {"m1", "m2", "m3"}
    assert held[0] == held[1] == held[2]
    for clone in clones:
        assert otledger.verify(clone).status is Status.OK
        assert ids(clone) >= set.union(*told)
        assert len(check_all(clone)) == 3
        # Nobody but its own writer was in a partition.
        assert {name: len({r["machine"] for r in records}) for name, records in check_all(clone).items()} == {
            "m1": 1,
            "m2": 1,
            "m3": 1,
        }
    # And they go on.
    emit(clones[1], 1, machine="m2")
    exchange(clones[1])
    exchange(clones[0])
    assert partitions(clones[0]) == partitions(clones[1])


def test_one_partition_in_two_clones_is_a_conflict_and_nothing_is_merged(tmp_path: Path) -> None:
    one, two = hub_and_clones(tmp_path, 2)
    emit(one, 1)
    exchange(one)
    exchange(two)
    emit(one, 2)
    exchange(one)
    emit(two, 3)
    commit(two)
    ours, theirs = partitions(two), partitions(one)
    said = try_git(two, "pull", "-q", "--no-edit", "origin", "main")
    assert said is not None
    unmerged = git(two, "ls-files", "--unmerged").decode()
    name = str(the_segment(two).relative_to(two))
    assert name in unmerged
    assert partitions(two) == ours
    assert otledger.verify(two).status is Status.OK
    # Both in one file, as people may put them there who mean well, or a merge driver.
    before = ours[name].splitlines(keepends=True)
    added = [line for line in theirs[name].splitlines(keepends=True) if line not in before]
    (two / name).write_bytes(ours[name] + b"".join(added))
    report = otledger.verify(two)
    assert report.status is Status.FORK
    (machine,) = report.machines
    assert machine.faults[0].offset == len(ours[name])
    with otledger.Journal(two, machine="m1") as journal:
        assert [finding.kind for finding in journal.findings] == ["fork"]


def test_one_partition_on_two_hosts_is_a_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other host goes on in a segment of its own, so git merges them: verify does not."""
    one, two = hub_and_clones(tmp_path, 2)
    emit(one, 1)
    exchange(one)
    exchange(two)
    with monkeypatch.context() as patch:
        patch.setattr(identity, "host_hash", lambda: "f" * 32)
        emit(two, 3)
    exchange(two)
    emit(one, 2)
    exchange(one)
    exchange(two)
    assert partitions(one) == partitions(two)
    assert len(partitions(one)) == 2
    for clone in (one, two):
        assert otledger.verify(clone).status is Status.FORK


# What a writer notices


class Writer:
    """A journal that stays open while git works, and what it was told to be durable."""

    def __init__(self, root: Path) -> None:
        self.root = root
        init(root)
        # One checkpoint at the most: nothing but what the tests write.
        self.journal = otledger.Journal(root, machine="m1", checkpoint_interval=1000)
        self.journal.open()
        self.told: dict[int, str] = {}

    def emit(self, *numbers: int) -> None:
        for receipt in self.journal.append([Draft("x.y", {"n": n}) for n in numbers]):
            assert receipt.seq not in self.told, "a number was given out twice"
            self.told[receipt.seq] = receipt.id

    def lost(self) -> set[str]:
        """What was told to be durable and no reader finds."""
        return set(self.told.values()) - ids(self.root)

    def findings(self) -> list[str]:
        return [finding.kind for finding in self.journal.findings]

    def finish(self) -> otledger.Report:
        self.journal.close()
        return otledger.verify(self.root)


@pytest.fixture
def writer(root: Path) -> Any:
    made = Writer(root)
    made.emit(1, 2)
    commit(root, "first")
    made.emit(3, 4)
    commit(root, "second")
    yield made
    made.journal.close()


def test_a_checkout_of_an_older_commit_is_told_and_the_way_back_finds_all(writer: Writer) -> None:
    git(writer.root, "checkout", "-q", "HEAD~1")
    writer.emit(5, 6)
    assert writer.findings() == ["damage"]
    assert otledger.verify(writer.root).status is Status.TAMPERED
    git(writer.root, "checkout", "-q", "main")
    writer.emit(7)
    assert not writer.lost()
    assert len(writer.findings()) == 1
    assert writer.finish().status is Status.OK


def test_a_stash_is_told_and_its_return_finds_all(writer: Writer) -> None:
    writer.emit(5)
    git(writer.root, "stash", "-q")
    writer.emit(6)
    assert writer.findings() == ["damage"]
    assert len(writer.lost()) == 1
    git(writer.root, "stash", "pop", "-q")
    writer.emit(7)
    assert not writer.lost()
    assert writer.finish().status is Status.OK


def test_records_that_git_threw_away_are_told_for_good(writer: Writer, caplog: pytest.LogCaptureFixture) -> None:
    writer.emit(5)
    git(writer.root, "reset", "-q", "--hard")
    with caplog.at_level(logging.CRITICAL, "otledger"):
        writer.emit(6)
    assert "are acknowledged" in caplog.text
    assert writer.findings() == ["damage"]
    assert writer.lost()
    report = writer.finish()
    assert report.status is Status.TAMPERED
    # A later writer, and a later look, still see it.
    emit(writer.root, 8)
    assert otledger.verify(writer.root).status is Status.TAMPERED


def test_a_branch_without_the_partition_is_told_and_the_way_back_finds_all(writer: Writer) -> None:
    git(writer.root, "checkout", "-q", "--orphan", "empty")
    git(writer.root, "rm", "-rfq", ".")
    assert not partitions(writer.root)
    writer.emit(5)
    assert writer.findings() == ["damage"]
    assert otledger.verify(writer.root).status is Status.INCOMPLETE
    git(writer.root, "checkout", "-q", "main")
    writer.emit(6)
    assert not writer.lost()
    assert writer.finish().status is Status.OK


def test_a_checkout_while_nobody_writes_is_told_to_the_next(writer: Writer) -> None:
    writer.journal.close()
    git(writer.root, "stash", "-q")
    git(writer.root, "checkout", "-q", "HEAD~1")
    with otledger.Journal(writer.root, machine="m1") as journal:
        assert [finding.kind for finding in journal.findings] == ["damage"]
        numbers = {receipt.seq for receipt in journal.append([Draft("x.y")])}
    assert not numbers & writer.told.keys()


def test_a_checkout_in_the_middle_of_a_batch_is_told(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is replaced between the write and the sync: what is acknowledged then goes nowhere."""
    real = os.fdatasync
    times = iter([True])

    def sync(fd: int) -> None:
        if next(times, False):
            git(writer.root, "checkout", "-q", "--force", "HEAD~1")
        real(fd)

    monkeypatch.setattr(os, "fdatasync", sync)
    writer.emit(5)
    writer.emit(6)
    assert writer.findings() == ["damage"]


def test_a_pull_that_brings_other_machines_disturbs_nobody(tmp_path: Path) -> None:
    one, two = hub_and_clones(tmp_path, 2)
    writer = Writer(one)
    emit(two, 1, machine="m2")
    exchange(two)
    for at in range(5):
        writer.emit(at)
        exchange(one)
        emit(two, at, machine="m2")
        exchange(two)
    assert writer.findings() == []
    assert [path.name for path in (one / "m1").glob("*.jsonl")] == [the_segment(one).name]
    assert not writer.lost()
    assert writer.finish().status is Status.OK


def test_a_pull_of_what_another_clone_wrote_here_is_a_fork_that_the_writer_tells(tmp_path: Path) -> None:
    one, two = hub_and_clones(tmp_path, 2)
    writer = Writer(one)
    writer.emit(1)
    exchange(one)
    exchange(two)
    emit(two, 3, 4)
    exchange(two)
    # Nothing of ours is uncommitted, so git replaces the segment with the longer one, which begins with ours.
    git(one, "pull", "-q", "--ff-only", "origin", "main")
    writer.emit(5)
    assert not writer.lost()
    assert writer.finish().status is Status.OK
    exchange(one)
    exchange(two)
    # Then both write at once, and ours gives way.
    emit(two, 6)
    exchange(two)
    other = otledger.Journal(one, machine="m1", checkpoint_interval=1000)
    told = {receipt.id for receipt in other.append([Draft("x.y")])}
    git(one, "checkout", "-q", "-f", "HEAD")
    git(one, "pull", "-q", "--ff-only", "origin", "main")
    told |= {receipt.id for receipt in other.append([Draft("x.y")])}
    findings = [finding.kind for finding in other.findings]
    other.close()
    assert len(told - ids(one)) == 1
    assert findings == ["fork"]


def test_stash_and_pop_while_a_writer_writes_lose_nothing_untold(tmp_path: Path, script: Script) -> None:
    """Git reads a file and replaces it, and what was written in between is nowhere: then the writer must say so."""
    root = tmp_path / "ledger"
    init(root)
    commit(root)
    writer = start(script, root, "m1")
    for _ in range(6):
        commit(root)
        try_git(root, "stash", "-q")
        try_git(root, "stash", "pop", "-q")
    told = stop(writer)
    assert len(told) > 10
    lost = told - ids(root)
    assert not lost or otledger.verify(root).status in (Status.TAMPERED, Status.INCOMPLETE)
