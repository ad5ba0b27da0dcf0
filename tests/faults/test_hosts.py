"""Two hosts with one identity: a copied partition, and a folder that two share without sharing its lock.

The hosts are namespaces of their own: name, machine id and boot id differ. The shared folder is two overlays over
one folder, whose files are the same and whose locks are not, as on many a network file system.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import otledger
from otledger import Journal, Receipt, Status, identity, quarantine
from otledger import lock as lock_module
from otledger.errors import LedgerDamaged
from otledger.segment import unfinished_name
from tests.faults.conftest import Say
from tests.faults.tools import (
    append_bytes,
    closed,
    crashed,
    edited,
    headers,
    holds,
    journal,
    lines_of,
    mounted,
    needs_root,
    newest,
    of_type,
    partition,
    payloads,
    put,
    rechained,
    record_of,
    run_python,
    sane,
    segment_names,
    snapshot,
)
from tests.faults.writers import Group, Writers

ROUNDS = {"short": 5, "long": 100}
"""How many times two hosts write at once over a shared folder."""

ENTER = """
mount --bind "$1/machine-id" /etc/machine-id && mount --bind "$1/boot_id" /proc/sys/kernel/random/boot_id &&
hostname "$2" && shift 2 && exec "$@"
"""


class Host:
    """The command prefix that runs a program on another host."""

    def __init__(self, folder: Path, number: int) -> None:
        place = folder / f"host{number}"
        place.mkdir()
        (place / "machine-id").write_text(f"{number:032x}\n")
        (place / "boot_id").write_text(f"00000000-0000-0000-0000-{number:012}\n")
        self.prefix = ["unshare", "--mount", "--uts", "sh", "-c", ENTER, "sh", str(place), f"host{number}"]


@pytest.fixture
def hosts(tmp_path: Path) -> list[Host]:
    """Two hosts; skips where there are no namespaces."""
    if shutil.which("unshare") is None or not Path("/etc/machine-id").exists():
        pytest.skip("needs unshare (apt-get install util-linux) and /etc/machine-id")
    found = [Host(tmp_path, 1), Host(tmp_path, 2)]
    done = run_python("import otledger.identity as i; print(i.host_hash(), i.boot_id())", prefix=found[0].prefix)
    if done.returncode:
        pytest.skip(f"no namespaces here: {done.stderr.strip()}")
    return found


@contextmanager
def shared_folder(at: Path) -> Iterator[tuple[Path, Path, Path]]:
    """A folder as it is, and as two hosts see it."""
    at.mkdir()
    with ExitStack() as stack:
        below = stack.enter_context(mounted(at / "disk", "-t", "tmpfs", "-o", "size=64m,mode=700", "tmpfs"))
        for name in ("lower", "upper", "work0", "work1"):
            (below / name).mkdir()
        seen = []
        for number in range(2):
            folders = f"lowerdir={below}/lower,upperdir={below}/upper,workdir={below}/work{number}"
            mount = mounted(at / f"seen{number}", "-t", "overlay", "-o", folders, "overlay")
            seen.append(stack.enter_context(mount))
        yield below / "upper", seen[0], seen[1]


def everything(root: Path) -> bytes:
    return b"".join(content for name, content in snapshot(root).items() if name.startswith("m1/"))


@needs_root
@pytest.mark.parametrize("durability", ["disk", "os"])
def test_two_hosts_over_a_shared_folder(
    tmp_path: Path, hosts: list[Host], durability: str, campaign: str, say: Say
) -> None:
    """Both are told, verify says FORK, and each line that was acknowledged to either is still there."""
    forks = acknowledged = 0
    # The hosts come after the mounts: they would not see them otherwise.
    with shared_folder(tmp_path / "shared") as (real, *seen), ExitStack() as stack:
        writers = [stack.enter_context(Writers(host.prefix)) for host in hosts]
        for turn in range(ROUNDS[campaign]):
            name = f"ledger{turn}"
            # The folders are there: overlays do not agree about folders that both make.
            assert start(writers[0], seen[0] / name, tmp_path / f"first{turn}", durability, seed=9, count=1).wait() == 0
            groups = [
                start(writers[number], seen[number] / name, tmp_path / f"acks{turn}-{number}", durability, seed=number)
                for number in range(2)
            ]
            assert [group.wait() for group in groups] == [0, 0]
            receipts = [receipt for group in groups for receipt in group.acknowledged()]
            acknowledged += len(receipts)
            forks += check_shared(real / name, groups, receipts)
    say(f"{durability}: {forks} forks of {ROUNDS[campaign]}, {acknowledged} acknowledged records", forks=forks)
    assert forks >= ROUNDS[campaign] // 2


def start(writers: Writers, root: Path, acks: Path, durability: str, *, seed: int, count: int = 60) -> Group:
    return writers.start(
        root, acks, kind="endure", count=count, least=100, most=3000, durability=durability, seed=seed,
        options={"tries": 1000, "pause": 0.001},
    )  # fmt: skip


def check_shared(root: Path, groups: list[Group], receipts: list[Receipt]) -> bool:
    """Check what two hosts left. Gives whether they forked."""
    content = everything(root)
    lost = [receipt for receipt in receipts if receipt.checksum.encode() not in content]
    assert not lost, "an acknowledged line was overwritten or cut"
    report = otledger.verify(root)
    told = [["finding", "fork"] in group.told() for group in groups]
    if report.status == Status.OK:
        # They did not write at the same time: whoever came second took over what was free.
        counted = {record.id for record in otledger.Reader(root).records()}
        assert {receipt.id for receipt in receipts} <= counted
        return False
    assert report.status == Status.FORK, report.faults
    assert any(told), "no writer noticed"
    # A third process changes none of it, and goes on.
    before = snapshot(root)
    closed(root, "after")
    after = snapshot(root)
    assert all(after[name].startswith(data) for name, data in before.items())
    assert otledger.verify(root).status == Status.FORK
    return True


# In this process --------------------------------------------------------------------------------------------


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has this process be on the host of this number."""

    def on_host(number: int) -> None:
        monkeypatch.setattr(identity, "host_hash", lambda: f"{number:032x}")
        monkeypatch.setattr(lock_module, "boot_id", lambda: f"boot of {number}")

    on_host(1)
    return on_host


@pytest.mark.parametrize("newer", ["copy", "original"])
@pytest.mark.parametrize("lock", ["original", "copy", "none"])
def test_a_copied_partition(root: Path, tmp_path: Path, on_host: Callable[[int], None], newer: str, lock: str) -> None:
    """Each goes on for itself. Where both come together, nothing is overwritten, and verify and writer say so."""
    receipts = closed(root, "both", "both")
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    receipts += closed(root, "original", "original")
    on_host(2)
    receipts += closed(copy, "copy")
    for one in (root, copy):
        assert otledger.verify(one).status == Status.OK
    assert [header["reason"] for header in headers(sane(copy))] == ["new", "moved"]
    # As a synchronisation does that overwrites nothing: the larger of two files is the one that went on.
    target, other = (root, copy) if newer == "original" else (copy, root)
    for file in partition(other).iterdir():
        here = partition(target) / file.name
        if file.suffix == ".jsonl" and (not here.exists() or here.stat().st_size < file.stat().st_size):
            shutil.copyfile(file, here)
    lock_file = partition(target) / ".lock"
    if lock == "none":
        lock_file.unlink()
    elif lock != newer:
        shutil.copyfile(partition(other) / ".lock", lock_file)
    report = otledger.verify(target)
    assert report.status == Status.FORK, report.faults
    told = False
    for number in (1, 2, 1):
        on_host(number)
        before = snapshot(target)
        with journal(target) as opened:
            put(opened, "after")
            findings = opened.findings
        after = snapshot(target)
        assert all(after[name].startswith(data) for name, data in before.items())
        told = told or "fork" in [finding.kind for finding in findings]
        assert otledger.verify(target).status == Status.FORK
    assert told
    content = everything(target)
    assert all(receipt.checksum.encode() in content for receipt in receipts)


def test_two_hosts_by_turns(root: Path, on_host: Callable[[int], None]) -> None:
    """No record is in conflict, but both live: the writer that finds the other's records between its own says so."""
    with journal(root) as mine:
        receipts = put(mine, 1)
        on_host(2)
        receipts += closed(root, 2)
        assert mine.findings == []
        on_host(1)
        receipts += put(mine, 3)
        on_host(2)
        receipts += closed(root, 4)
        on_host(1)
        receipts += put(mine, 5)
        # Once: not at each turn.
        (finding,) = mine.findings
    assert finding.kind == "fork"
    assert "another host" in finding.reason
    records = sane(root, allow=[Status.OK])
    holds(records, receipts)
    assert payloads(records) == [1, 2, 3, 4, 5]


def test_a_container_that_comes_back_elsewhere(root: Path, on_host: Callable[[int], None]) -> None:
    """Its host is another each time, and its disk the same: that is no fork."""
    receipts = []
    for number in range(1, 6):
        on_host(number)
        with journal(root) as opened:
            receipts += put(opened, number)
            assert opened.findings == []
    records = sane(root, allow=[Status.OK])
    holds(records, receipts)
    assert [header["reason"] for header in headers(records)] == ["new", *["moved"] * 4]


@pytest.mark.parametrize("tail", [b"torn", b'{"specversion":"1.0"}\x00\x00\x00\n', bytes(5000), b"\n\n"])
def test_what_a_crash_left_on_another_host(
    root: Path, tmp_path: Path, on_host: Callable[[int], None], tail: bytes
) -> None:
    """It is kept and recorded; nothing is cut, for that host may be alive."""
    receipts = crashed(tmp_path / "first", root, 1, 2)
    append_bytes(newest(root), tail)
    crash = newest(root)
    before = crash.read_bytes()
    on_host(2)
    receipts += closed(root, 3)
    assert crash.read_bytes() == before
    on_host(3)
    receipts += closed(root, 4)
    records = sane(root, allow=[Status.RECOVERED])
    holds(records, receipts)
    (record,) = of_type(records, "otledger.recovery")
    assert record["data"]["bytes"] == len(tail)
    assert (partition(root) / "quarantine" / record["data"]["quarantine"]).read_bytes() == tail


@pytest.mark.parametrize("begun", [b"", b'{"specversion":"1.0","id":"'])
def test_a_segment_that_another_host_is_about_to_begin(
    root: Path, on_host: Callable[[int], None], begun: bytes
) -> None:
    """It is left to it: we go on in the next."""
    receipts = closed(root, 1)
    theirs = partition(root) / newest(root).name.replace(".jsonl", ".1.jsonl")
    theirs.write_bytes(begun)
    on_host(2)
    receipts += closed(root, 2)
    assert theirs.read_bytes() == begun
    records = sane(root)
    holds(records, receipts)
    assert payloads(records) == [1, 2]
    assert segment_names(root)[-1].endswith(".2.jsonl")


@pytest.mark.parametrize("what", ["cut", "header"])
@pytest.mark.parametrize("when", ["while they are read", "before they are cut"])
def test_bytes_that_come_while_others_are_set_aside(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, when: str
) -> None:
    """Somebody who takes no lock writes behind what is being recovered: that is not cut off with it."""
    crashed(tmp_path / "first", root, 1, 2)
    if what == "header":
        newest(root).write_bytes(b"")
        (partition(root) / ".lock").unlink()
    append_bytes(newest(root), b"torn")
    came = b"more"
    if when == "while they are read":
        owner, name = quarantine, "_digest"
    else:
        owner, name = Journal, "_quarantine"
    real = getattr(owner, name)

    def and_then_more(*arguments: Any) -> Any:
        result = real(*arguments)
        if came not in newest(root).read_bytes():
            append_bytes(newest(root), came)
        return result

    monkeypatch.setattr(owner, name, and_then_more)
    target = journal(root)
    with pytest.raises(otledger.JournalError, match="somebody else"):
        put(target, 3)
    # The next try finds it, and sets it aside as well.
    put(target, 3)
    target.close()
    kept = b"".join(path.read_bytes() for path in (partition(root) / "quarantine").iterdir())
    assert b"tornmore" in kept


def test_two_hosts_begin_a_segment_at_once(
    root: Path, on_host: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is about to name the segment that it has written, and the other is in the middle of writing its own."""
    receipts = closed(root, 1)
    real = os.link

    class Killed(BaseException):
        pass

    def write(fd: int, data: bytes) -> int:
        raise Killed

    def link(old: str, new: str, **options: Any) -> None:
        monkeypatch.setattr(os, "link", real)
        (partition(root) / ".lock").unlink()
        on_host(2)
        other = journal(root)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            with pytest.raises(Killed):
                other.open()
        other.after_fork()
        on_host(1)
        real(old, new, **options)

    with journal(root, max_segment=1) as target:
        monkeypatch.setattr(os, "link", link)
        receipts += put(target, 2)
    assert (partition(root) / unfinished_name(f"{2:032x}")).exists()
    holds(sane(root, allow=[Status.OK]), receipts)


async def test_a_fork_is_told_to_the_listeners(root: Path, on_host: Callable[[int], None]) -> None:
    errors: list[BaseException] = []
    async with otledger.open(root, machine="m1", service="test", min_free=0) as ledger:
        ledger.on_error(errors.append)
        await ledger.append("app.event", 1)
        on_host(2)
        closed(root, 2)
        on_host(1)
        await ledger.append("app.event", 3)
        await ledger.flush()
        (error,) = errors
        assert isinstance(error, LedgerDamaged)
        assert "another host" in str(error)
        assert ledger.health().errors == 1
        assert ledger.health().state == "ok"
    assert payloads(sane(root, allow=[Status.OK])) == [1, 2, 3]


@pytest.mark.parametrize("reason", ["moved", "month", "size"])
def test_records_beyond_the_end_that_a_successor_names(
    root: Path, tmp_path: Path, on_host: Callable[[int], None], reason: str
) -> None:
    """Whatever it was begun for: records with numbers that it gives to others are a fork."""
    with journal(tmp_path / "first") as target:
        put(target, 1)
        shutil.copytree(tmp_path / "first", root)
        put(target, "late")
        late = lines_of(newest(tmp_path / "first"))[-1]
    older, case = newest(root).name, tmp_path / "case"
    if reason == "moved":
        on_host(2)
    with journal(root, max_segment=1 if reason != "moved" else 1 << 30) as target:
        put(target, "next")
        shutil.copytree(root, case)
    if reason == "month":
        lines = lines_of(newest(case))
        header = record_of(lines[0])
        lines[0] = edited(lines[0], b'"reason":"size"', b'"reason":"month"')
        newest(case).write_bytes(b"".join(rechained(lines, header["seq"], header["prev"])))
    (partition(case) / ".lock").unlink()
    assert otledger.verify(case).status == Status.OK
    append_bytes(partition(case) / older, late)
    report = otledger.verify(case)
    assert report.status == Status.FORK, report.faults
