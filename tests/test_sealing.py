"""The tree is kept and signed beside the batches: whatever comes between, each checkpoint is right."""

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import otledger
from otledger import clock, keymaking, keys, sealing
from otledger.config import Config
from otledger.errors import ConfigurationError, LedgerDamaged
from otledger.journal import Journal
from otledger.record import Draft
from otledger.sealing import Sealer
from tests.checker import Leaves
from tests.conftest import Script

Json = dict[str, Any]
CheckAll = Callable[[Path], dict[str, list[Json]]]
FAST = 0.05


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the keys are."""
    return tmp_path / "keys"


@pytest.fixture
def settings(root: Path, folder: Path) -> Json:
    """The settings of a ledger that makes checkpoints often."""
    return {"root": root, "keys": folder, "machine": "m1", "checkpoint_interval": FAST, "service": "s"}


def make_key(settings: Json, epoch: float = 0.0) -> None:
    keymaking.init(Config.resolve(**settings), epoch=epoch)


def raw(root: Path) -> list[Json]:
    """The records as they stand, unchecked."""
    paths = sorted((root / "m1").glob("*.jsonl"), key=lambda path: (path.name[:7], len(path.name), path.name))
    return [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]


def of_type(records: list[Json], name: str) -> list[Json]:
    return [record["data"] for record in records if record["type"] == f"otledger.{name}"]


def trees(records: list[Json]) -> list[Json]:
    return [data for data in of_type(records, "checkpoint") if "root" in data]


def until(test: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for something that happens in its own time."""
    deadline = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


def fill(settings: Json, count: int = 20, size: int = 10) -> None:
    """Append, and close with a checkpoint."""
    with Journal(**settings) as journal:
        journal.append([Draft("a.b", "x" * size) for _ in range(count)])


def drop(journal: Journal) -> None:
    """Leave a journal as a process does that is killed."""
    journal._release_files()
    journal._closed = True


def is_right(records: list[Json], data: Json) -> bool:
    leaves = Leaves()
    for record in records:
        leaves.add(record["checksum"][7:])
    return base64.b64decode(data["root"]) == leaves.root(0, data["size"])


# When ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyed", [False, True])
def test_at_most_one_an_interval(
    settings: Json, check_all: CheckAll, monkeypatch: pytest.MonkeyPatch, *, keyed: bool
) -> None:
    """Neither written nor computed and signed more often, and each covers what came before it."""
    if keyed:
        make_key(settings)
    committed: list[int] = []
    real = Sealer._commit

    def counting(self: Sealer, *arguments: Any, **named: Any) -> Any:
        committed.append(1)
        return real(self, *arguments, **named)

    monkeypatch.setattr(Sealer, "_commit", counting)
    settings["checkpoint_interval"] = 0.2
    begun = time.monotonic()
    with otledger.open_sync(**settings) as ledger:
        while time.monotonic() - begun < 1 or len(committed) < 4:
            ledger.append("a.b", 1)
        assert len(of_type(raw(settings["root"]), "checkpoint")) > 2
    most = (time.monotonic() - begun) / 0.2 + 2
    records = check_all(settings["root"])["m1"]
    made = of_type(records, "checkpoint")[2 * keyed :]
    assert 3 <= len(made) <= most
    assert 3 <= len(committed) <= most
    assert all("root" in data and ("note" in data) == keyed for data in made)


def test_no_records_no_checkpoint_but_the_last(settings: Json, check_all: CheckAll) -> None:
    """What was prepared is written although no batch takes it along; then there is nothing new."""
    with otledger.open_sync(**settings) as ledger:
        ledger.append("a.b", 1)
        until(lambda: len(trees(raw(settings["root"]))) == 1)
        time.sleep(6 * FAST)
        assert len(trees(raw(settings["root"]))) == 1
    assert len(trees(check_all(settings["root"])["m1"])) == 1


def test_heartbeat(settings: Json, check_all: CheckAll) -> None:
    make_key(settings)
    with otledger.open_sync(**settings, heartbeat_interval=0.1) as ledger:
        ledger.append("a.b", 1)
        until(lambda: len(trees(raw(settings["root"]))) >= 6)
    assert all("note" in data for data in trees(check_all(settings["root"])["m1"]))


def test_heartbeat_while_another_lives(settings: Json, script: Script, check_all: CheckAll) -> None:
    """Of two idle processes the heartbeats together are no more frequent than those of one."""
    code = """
        import sys, otledger
        with otledger.open_sync(sys.argv[1], machine="m1", keys=sys.argv[2], heartbeat_interval=0.3) as ledger:
            ledger.append("a.b", 1)
            print(flush=True)
            sys.stdin.readline()
        """
    begun = time.monotonic()
    both = [script(code, settings["root"], settings["keys"]) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        process.stdout.readline()
    until(lambda: len(trees(raw(settings["root"]))) >= 6)
    assert len(trees(raw(settings["root"]))) <= 2 * (time.monotonic() - begun) / 0.3 + 4
    for process in both:
        process.communicate("\n")
    check_all(settings["root"])


def test_at_a_cut_and_at_close(settings: Json, check_all: CheckAll) -> None:
    make_key(settings)
    with otledger.open_sync(**settings, max_segment=10_000) as ledger:
        for number in range(40):
            ledger.append("a.b", "x" * 500)
            if number % 10 == 9:
                size = raw(settings["root"])[-1]["seq"]
                until(lambda: trees(raw(settings["root"]))[-1]["size"] >= size)  # noqa: B023
    records = check_all(settings["root"])["m1"]
    assert len(of_type(records, "segment")) > 2
    assert trees(records)[-1]["size"] == records[-1]["seq"]
    assert "note" in trees(records)[-1]


def test_after_a_kill(settings: Json, script: Script, check_all: CheckAll) -> None:
    make_key(settings)
    code = """
        import sys, otledger
        ledger = otledger.open_sync(sys.argv[1], machine="m1", keys=sys.argv[2], checkpoint_interval=0.05).open()
        while True:
            ledger.append("a.b", 1)
            print(flush=True)
        """
    process = script(code.replace(".open()", ""), settings["root"], settings["keys"])
    assert process.stdout is not None
    for _ in range(300):
        process.stdout.readline()
    process.kill()
    process.wait()
    fill(settings, 3)
    records = check_all(settings["root"])["m1"]
    assert trees(records)[-1]["size"] == records[-1]["seq"]
    assert len(trees(records)) >= 3


# By whom ---------------------------------------------------------------------------------------------------

WRITERS = """
    import sys, time, otledger
    from otledger import sealing

    grown, real = [], sealing.grow

    def counting(block, start, stop, seq, nodes):
        grown.append(block.count(b"\\n", start, stop))
        return real(block, start, stop, seq, nodes)

    sealing.grow = counting
    with otledger.open_sync(sys.argv[1], machine="m1", keys=sys.argv[2], checkpoint_interval=0.05) as ledger:
        errors = []
        ledger.on_error(errors.append)
        ledger.append("a.b", 1)
        print(flush=True)
        sys.stdin.readline()
        end = time.monotonic() + float(sys.argv[3])
        while time.monotonic() < end:
            for _ in range(20):
                ledger.emit("a.b", 1)
            ledger.append("a.b", 1)
            # What is written has to be checked, by a checker that takes its time.
            time.sleep(0.01)
    print(sum(grown), len(errors))
    """


@pytest.mark.parametrize("keyed", [False, True])
def test_four_processes_do_the_work_of_one(settings: Json, script: Script, check_all: CheckAll, *, keyed: bool) -> None:
    fill(settings, 5000)
    before = len(raw(settings["root"]))
    if keyed:
        make_key(settings)
    four = [script(WRITERS, settings["root"], settings["keys"], 2.0) for _ in range(4)]
    for process in four:
        assert process.stdout is not None
        process.stdout.readline()
    told = [process.communicate("\n")[0].split() for process in four]
    records = check_all(settings["root"])["m1"]
    assert [errors for _, errors in told] == ["0"] * 4
    assert sum(int(grown) for grown, _ in told) <= 2 * (len(records) - before)
    assert len(trees(records)) > 10
    assert "root" in of_type(records, "checkpoint")[-1]


def test_key_made_while_servers_run(settings: Json, script: Script, check_all: CheckAll) -> None:
    three = [script(WRITERS, settings["root"], settings["keys"], 2.0) for _ in range(3)]
    for process in three:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        process.stdin.write("\n")
        process.stdin.flush()
    until(lambda: len(trees(raw_so_far(settings["root"]))) > 3)
    make_key(settings)
    told = [process.communicate()[0].split() for process in three]
    assert [errors for _, errors in told] == ["0"] * 3
    records = check_all(settings["root"])["m1"]
    begins = [record["seq"] for record in records if record["type"] == "otledger.key"]
    assert len(begins) == 1
    later = trees(records[begins[0] :])
    assert len(later) > 3
    assert all("note" in data for data in later)


def raw_so_far(root: Path) -> list[Json]:
    """The whole lines of a ledger that is written to at this moment, of one segment."""
    content = next((root / "m1").glob("*.jsonl")).read_bytes()
    return [json.loads(line) for line in content[: content.rfind(b"\n")].splitlines()]


# From where ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyed", [False, True])
def test_restart_reads_no_more_than_is_new(
    settings: Json, check_all: CheckAll, monkeypatch: pytest.MonkeyPatch, *, keyed: bool
) -> None:
    if keyed:
        make_key(settings)
    fill(settings, 3000, 5000)
    grown: list[int] = []
    read: list[int] = []
    real_pread, real_grow = os.pread, sealing.grow

    def pread(fd: int, size: int, offset: int) -> bytes:
        data = real_pread(fd, size, offset)
        read.append(len(data))
        return data

    def grow(block: bytes, start: int, stop: int, seq: int, nodes: bytes) -> bytes:
        grown.append(block.count(b"\n", start, stop))
        return real_grow(block, start, stop, seq, nodes)

    monkeypatch.setattr(os, "pread", pread)
    monkeypatch.setattr(sealing, "grow", grow)
    with otledger.open_sync(**settings, check=None) as ledger:
        ledger.append("a.b", 1)
    monkeypatch.undo()
    assert sum(grown) < 10
    # All is read once, to see whether the segment names closed ones.
    assert sum(read) < 18 << 20
    assert len(trees(check_all(settings["root"])["m1"])) >= 2


@pytest.mark.parametrize("forged", ["edge", "root", "path", "head", "size", "all"])
def test_forged_checkpoint_is_not_gone_on_from(settings: Json, forged: str) -> None:
    fill(settings)
    records = raw(settings["root"])
    data = dict(trees(records)[-1])
    wrong = base64.b64encode(b"x" * 32).decode()
    lies = {
        "edge": [wrong] * len(data["edge"]),
        "root": wrong,
        "path": [wrong] * len(data["path"]),
        "head": "0" * 64,
        "size": data["size"] - 1,
    }
    data |= lies if forged == "all" else {forged: lies[forged]}
    with Journal(**settings) as journal:
        journal.append([Draft("otledger.checkpoint", data)], reserved=True)
        assert journal.checkpoint()
        drop(journal)
    records = raw(settings["root"])
    assert trees(records)[-1]["size"] > data["size"]
    assert is_right(records, trees(records)[-1])


def test_forged_checkpoint_means_nothing_to_the_first_key(settings: Json) -> None:
    """What nobody signed is computed from the beginning before it is signed."""
    fill(settings)
    records = raw(settings["root"])
    size = len(records)
    lie = Leaves()
    for record in records:
        lie.add(
            hashlib.sha256(record["checksum"].encode()).hexdigest() if record["seq"] == 3 else record["checksum"][7:]
        )
    forged = {
        "size": size,
        "head": records[-1]["checksum"][7:],
        "root": base64.b64encode(lie.root(0, size)).decode(),
        "edge": [base64.b64encode(node).decode() for node in lie.edge(0, size)],
        "path": [base64.b64encode(node).decode() for node in lie.path(0, size)],
    }
    journal = Journal(**settings)
    journal.append([Draft("otledger.checkpoint", forged)], reserved=True)
    drop(journal)
    make_key(settings)
    records = raw(settings["root"])
    signed = [data for data in trees(records) if "note" in data]
    assert signed
    assert all(is_right(records, data) for data in signed)


def test_pure_python_makes_the_same(settings: Json, tmp_path: Path) -> None:
    make_key(settings)
    fill(settings, 700)
    code = """
        import json, sys
        from pathlib import Path
        from otledger import speed
        from otledger.journal import Journal
        from otledger.sealing import Sealer
        (Path(sys.argv[2]) / sys.argv[3] / "signed").unlink()
        journal = Journal(sys.argv[1], machine="m1", keys=sys.argv[2])
        journal.open()
        commit = Sealer(journal.path, journal.config.keys).commit(sys.argv[3], journal._here())
        print(json.dumps(commit.checkpoint), speed.grow is None)
        """
    ledger = raw(settings["root"])[0]["data"]["ledger"]
    found = []
    for pure in ("", "1"):
        where, there = tmp_path / f"root{pure}", tmp_path / f"keys{pure}.copy"
        shutil.copytree(settings["root"], where)
        shutil.copytree(settings["keys"], there)
        command = [sys.executable, "-c", "\n".join(line[8:] for line in code.splitlines()), where, there, ledger]
        environment = {**os.environ, "OTLEDGER_PURE": pure}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.append(done.stdout.rsplit(" ", 1))
    assert found[0][0] == found[1][0]
    assert "note" in found[0][0]
    assert found[1][1].strip() == "True"


# Nobody waits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["grow", "fsync"])
def test_append_never_waits_for_the_sealer(
    settings: Json, check_all: CheckAll, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Nor does closing: not for a tree that takes long, nor for a disk with the keys that hangs."""
    make_key(settings)
    hangs, go_on = threading.Event(), threading.Event()
    notary = [""]

    def hang() -> None:
        if threading.current_thread().name.startswith("otledger-seal"):
            notary[0] = threading.current_thread().name
            hangs.set()
            go_on.wait(60)

    real_grow, real_fsync = sealing.grow, os.fsync

    def grow(*arguments: Any) -> bytes:
        hang()
        return real_grow(*arguments)

    def fsync(fd: int) -> None:
        if str(settings["keys"]) in os.readlink(f"/proc/self/fd/{fd}"):
            hang()
        real_fsync(fd)

    if what == "grow":
        monkeypatch.setattr(sealing, "grow", grow)
    else:
        monkeypatch.setattr(os, "fsync", fsync)
    try:
        with otledger.open_sync(**settings) as ledger:
            ledger.append("a.b", 1)
            assert hangs.wait(20)
            for _ in range(200):
                ledger.append("a.b", 1)
        assert not go_on.is_set()
    finally:
        go_on.set()
    until(lambda: notary[0] not in [thread.name for thread in threading.enumerate()])
    monkeypatch.undo()
    fill(settings)
    records = check_all(settings["root"])["m1"]
    assert trees(records)[-1]["size"] == records[-1]["seq"]


def test_batches_bring_their_own_where_the_sealer_hangs(settings: Json, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def commit(*_: Any, **__: Any) -> None:
        go_on.wait(60)

    monkeypatch.setattr(Sealer, "commit", commit)
    with otledger.open_sync(**settings) as ledger:

        def plain() -> bool:
            ledger.append("a.b", 1)
            return len(of_type(raw(settings["root"]), "checkpoint")) > 1

        until(plain)
        go_on.set()


# What comes between ----------------------------------------------------------------------------------------


def test_fork(settings: Json, script: Script, check_all: CheckAll) -> None:
    make_key(settings)
    code = """
        import os, sys, time, otledger
        with otledger.open_sync(sys.argv[1], machine="m1", keys=sys.argv[2], checkpoint_interval=0.05) as ledger:
            ledger.append("a.b", 1)
            time.sleep(0.3)
            child = os.fork()
            for _ in range(100):
                ledger.append("a.b", 1)
                time.sleep(0.002)
        if child:
            assert os.waitpid(child, 0)[1] == 0
            print("done")
        """
    assert script(code, settings["root"], settings["keys"]).communicate()[0] == "done\n"
    records = check_all(settings["root"])["m1"]
    assert "note" in of_type(records, "checkpoint")[-1]
    assert trees(records)[-1]["size"] == records[-1]["seq"]


def open_folders() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return found


def test_forked_child_does_not_keep_the_lock_of_its_parent(settings: Json) -> None:
    """A child that outlives a parent killed at its work must not keep others from it."""
    fill(settings)
    sealer = Sealer(settings["root"] / "m1", settings["keys"])
    with sealer._turn(None) as alone:
        assert alone
        child = os.fork()
        if not child:
            sealer.after_fork()
            left = [
                os.readlink(f"/proc/self/fd/{fd}")
                for fd in os.listdir("/proc/self/fd")
                if fd.isdigit() and int(fd) > 2 and os.path.lexists(f"/proc/self/fd/{fd}")
            ]
            os._exit(str(settings["root"] / "m1") in left)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("keyed", [False, True])
def test_folder_replaced_by_a_copy(settings: Json, tmp_path: Path, check_all: CheckAll, *, keyed: bool) -> None:
    if keyed:
        make_key(settings)
    root = settings["root"]
    with otledger.open_sync(**settings) as ledger:
        for _ in range(10):
            ledger.append("a.b", 1)
        until(lambda: trees(raw(root))[-1:] and trees(raw(root))[-1]["size"] >= raw(root)[-1]["seq"] - 1)
        shutil.copytree(root, tmp_path / "copy")
        root.rename(tmp_path / "old")
        (tmp_path / "copy").rename(root)
        for _ in range(3):
            size = len(trees(raw(root)))
            ledger.append("a.b", 2)
            until(lambda: len(trees(raw(root))) > size)  # noqa: B023
    records = check_all(root)["m1"]
    assert not of_type(records, "checkpoint")[-1].get("refused")
    assert all("root" in data for data in of_type(records, "checkpoint"))
    assert trees(records)[-1]["size"] == records[-1]["seq"]


def test_month(settings: Json, check_all: CheckAll, monkeypatch: pytest.MonkeyPatch) -> None:
    make_key(settings)
    with otledger.open_sync(**settings) as ledger:
        ledger.append("a.b", 1)
        monkeypatch.setattr(clock, "believed_month", lambda *_: "2199-12")
        ledger.append("a.b", 2)
        until(lambda: of_type(raw(settings["root"]), "sealed"))
    records = check_all(settings["root"])["m1"]
    assert len(of_type(records, "segment")) == 2
    assert trees(records)[-1]["size"] == records[-1]["seq"]


def test_recovery(settings: Json, check_all: CheckAll) -> None:
    make_key(settings)
    fill(settings)
    (settings["root"] / "m1" / ".lock").write_bytes(b"")
    with next((settings["root"] / "m1").glob("*.jsonl")).open("ab") as file:
        file.write(b'{"torn')
    fill(settings)
    records = check_all(settings["root"])["m1"]
    assert of_type(records, "recovery")
    assert "note" in trees(records)[-1]
    assert trees(records)[-1]["size"] == records[-1]["seq"]


def test_new_chain(settings: Json, check_all: CheckAll) -> None:
    """It has no key yet, and a tree of its own."""
    make_key(settings)
    fill(settings)
    old = raw(settings["root"])[0]["data"]["ledger"]
    (settings["root"] / "m1" / ".lock").write_bytes(b"")
    for path in (settings["root"] / "m1").glob("*.jsonl"):
        path.write_bytes(b"\0" * path.stat().st_size)
    with otledger.open_sync(**settings, check=None) as ledger:
        for _ in range(5):
            ledger.append("a.b", 1)
        until(lambda: trees(check_all(settings["root"])["m1"]))
    records = check_all(settings["root"])["m1"]
    assert records[0]["data"]["ledger"] != old
    assert trees(records)[-1]["size"] == records[-1]["seq"]
    assert not any("note" in data for data in trees(records))
    make_key(settings)
    assert "note" in trees(check_all(settings["root"])["m1"])[-1]


def test_broken_chain_is_told_once(settings: Json, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing more is signed, the service goes on with plain checkpoints, and nothing is read again and again."""
    make_key(settings)
    journal = Journal(**settings)
    journal.append([Draft("a.b", "before" * 10_000) for _ in range(60)])
    drop(journal)
    path = next((settings["root"] / "m1").glob("*.jsonl"))
    content = path.read_bytes()
    place = content.rfind(b"before", 0, len(content) - 500_000)
    path.write_bytes(content[:place] + b"B" + content[place + 1 :])
    signed = len(trees(raw_loose(path)))
    read: list[int] = []
    real = sealing.pread

    def pread(fd: int, size: int, offset: int) -> bytes:
        read.append(size)
        return real(fd, size, offset)

    monkeypatch.setattr(sealing, "pread", pread)
    errors: list[BaseException] = []
    with otledger.open_sync(**settings, check=None) as ledger:
        ledger.on_error(errors.append)
        ledger.append("a.b", 1)
        until(lambda: errors)
        so_far = len(read)

        def plain() -> bool:
            ledger.append("a.b", 1)
            return sum("root" not in data for data in of_type(raw_loose(path), "checkpoint")) > 4

        until(plain)
        assert len(errors) == 1
        assert isinstance(errors[0], sealing.Broken)
        begins = content.rfind(b'{"specversion"', 0, place)
        assert re.search(rf"offset {begins}, seq \d+: .*otledger verify", str(errors[0]))
        assert len(read) == so_far
    assert len(trees(raw_loose(path))) == signed


def raw_loose(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_missing_beginning_is_not_signed(settings: Json) -> None:
    """Where the first records are not here the first key cannot sign them, and says so."""
    with Journal(**settings, max_segment=2000) as journal:
        for _ in range(10):
            journal.append([Draft("a.b", "x" * 500)])
    first = min((settings["root"] / "m1").glob("*.jsonl"), key=lambda path: len(path.name))
    first.unlink()
    with pytest.raises(sealing.Broken, match="are not here"):
        make_key(settings)


# Refusals --------------------------------------------------------------------------------------------------


def put_back(settings: Json, tmp_path: Path) -> None:
    """An older copy."""
    shutil.copytree(settings["root"], tmp_path / "old")
    fill(settings)
    shutil.rmtree(settings["root"])
    shutil.copytree(tmp_path / "old", settings["root"])


def cut(settings: Json, _: Path) -> None:
    """The signed tail, with its checkpoints."""
    fill(settings)
    path = next((settings["root"] / "m1").glob("*.jsonl"))
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:8]))
    (settings["root"] / "m1" / ".lock").unlink()


def rewrite(settings: Json, _: Path) -> None:
    """Everything, with the chain computed anew."""
    fill(settings)
    path = next((settings["root"] / "m1").glob("*.jsonl"))
    prev, done = "0" * 64, []
    for line in path.read_bytes().splitlines():
        body = line.rpartition(b',"checksum":')[0].replace(b"xxxx", b"yyyy")
        body = re.sub(rb'"prev":"[0-9a-f]{64}"$', b'"prev":"%s"' % prev.encode(), body)
        if b'"type":"otledger.checkpoint"' in body:
            size = int(re.search(rb'"size":(\d+)', body)[1])  # type: ignore[index]
            head = json.loads(done[size - 1])["checksum"][7:].encode()
            body = re.sub(rb'"data":\{.*\},"s', b'"data":{"size":%d,"head":"%s"},"s' % (size, head), body)
        prev = hashlib.sha256(body).hexdigest()
        done.append(body + b',"checksum":"sha256:%s"}\n' % prev.encode())
    path.write_bytes(b"".join(done))
    (settings["root"] / "m1" / ".lock").unlink()


@pytest.mark.parametrize("attack", [put_back, cut, rewrite])
def test_refusal(
    settings: Json, tmp_path: Path, attack: Callable[[Json, Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The service goes on; nothing is signed, and everybody is told, also after a restart."""
    make_key(settings)
    fill(settings)
    attack(settings, tmp_path)
    memory = next(settings["keys"].glob("*/signed")).read_bytes()
    known = json.loads(memory)
    for _ in range(2):
        errors: list[BaseException] = []
        caplog.clear()
        with otledger.open_sync(**settings, check=None) as ledger:
            ledger.on_error(errors.append)
            for number in range(5):
                assert ledger.append("a.b", number).seq

            def refused() -> list[Json]:
                ledger.append("a.b", 0)
                return [data for data in of_type(raw(settings["root"]), "checkpoint") if "refused" in data]

            until(lambda: refused() and errors)  # noqa: B023
            assert ledger.health().state == "ok"
        assert [type(error) for error in errors] == [LedgerDamaged]
        assert "the signer refuses" in str(errors[0])
        assert sum(record.levelname == "CRITICAL" and "refuses" in record.message for record in caplog.records) == 1
        assert refused_shape(settings) == {name: known[name] for name in ("size", "root", "note")}
        checkpoint = of_type(raw(settings["root"]), "checkpoint")[-1]
        assert "refused" in checkpoint
        assert not {"root", "note"} & checkpoint.keys()
    assert next(settings["keys"].glob("*/signed")).read_bytes() == memory


def refused_shape(settings: Json) -> Json:
    found: Json = [d for d in of_type(raw(settings["root"]), "checkpoint") if "refused" in d][-1]["refused"]
    return found


def test_refused_at_close_alone(settings: Json, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_key(settings)
    put_back(settings, tmp_path)
    fill(settings)
    assert "refused" in of_type(raw(settings["root"]), "checkpoint")[-1]
    assert "refuses" in caplog.text


def test_what_is_put_right_is_signed_again(settings: Json, tmp_path: Path, check_all: CheckAll) -> None:
    make_key(settings)
    fill(settings)
    shutil.copytree(settings["root"], tmp_path / "old")
    fill(settings)
    settings["root"].rename(tmp_path / "new")
    (tmp_path / "old").rename(settings["root"])
    fill(settings)
    shutil.rmtree(settings["root"])
    (tmp_path / "new").rename(settings["root"])
    fill(settings)
    records = check_all(settings["root"])["m1"]
    assert "note" in of_type(records, "checkpoint")[-1]


# Closed segments -------------------------------------------------------------------------------------------


def test_sealed_after_each_cut(settings: Json, check_all: CheckAll) -> None:
    partition = settings["root"] / "m1"
    with otledger.open_sync(**settings, max_segment=10_000) as ledger:
        for _ in range(4):
            segments = len(list(partition.glob("*.jsonl")))
            while len(list(partition.glob("*.jsonl"))) == segments:
                ledger.append("a.b", "x" * 500)
            until(lambda: len(of_type(raw(settings["root"]), "sealed")) == len(list(partition.glob("*.jsonl"))) - 1)
    sealed = of_type(check_all(settings["root"])["m1"], "sealed")
    assert len(sealed) >= 4
    assert len({data["segment"] for data in sealed}) == len(sealed)
    for data in sealed:
        told = subprocess.run(["sha256sum", partition / data["segment"]], capture_output=True, text=True, check=True)
        assert told.stdout.split()[0] == data["sha256"]


def test_segments_closed_by_who_died_are_sealed(settings: Json, check_all: CheckAll) -> None:
    journal = Journal(**settings, max_segment=3000)
    for _ in range(30):
        journal.append([Draft("a.b", "x" * 500)])
    drop(journal)
    closed = len(list((settings["root"] / "m1").glob("*.jsonl"))) - 1
    for _ in range(2):
        with otledger.open_sync(**settings) as ledger:
            ledger.append("a.b", 1)
            until(lambda: len(of_type(raw(settings["root"]), "sealed")) >= closed)
    sealed = of_type(check_all(settings["root"])["m1"], "sealed")
    assert closed > 3
    assert sorted({data["segment"] for data in sealed}) == sorted(data["segment"] for data in sealed)
    assert len(sealed) == closed


def test_keys_inside_the_ledger_are_refused(settings: Json) -> None:
    settings["keys"] = settings["root"] / "keys"
    with pytest.raises(ConfigurationError, match="inside the ledger"):
        Journal(**settings)


def test_unusable_memory_is_told_once(settings: Json, check_all: CheckAll) -> None:
    make_key(settings)
    signed = next(settings["keys"].glob("*/signed"))
    good = signed.read_bytes()
    count = len(trees(raw(settings["root"])))
    for bad in (b"", b"{", good.replace(b'"path":[', b'"path":["!",'), good[: len(good) // 2]):
        signed.write_bytes(bad)
        errors: list[BaseException] = []
        with otledger.open_sync(**settings) as ledger:
            ledger.on_error(errors.append)
            ledger.append("a.b", 1)
            until(lambda: errors)  # noqa: B023
            for _ in range(20):
                ledger.append("a.b", 1)
                time.sleep(FAST / 4)
        assert len(errors) == 1
        assert "nothing is signed before it is put right" in str(errors[0])
        assert signed.read_bytes() == bad
    signed.write_bytes(good)
    assert len(trees(raw(settings["root"]))) == count
    fill(settings)
    assert "note" in of_type(check_all(settings["root"])["m1"], "checkpoint")[-1]


def test_keys_folder_that_cannot_be_looked_into_is_told(settings: Json) -> None:
    """It does not pass for a chain without a key."""
    settings["keys"].write_text("a file")
    errors: list[BaseException] = []
    with otledger.open_sync(**settings) as ledger:
        ledger.on_error(errors.append)
        ledger.append("a.b", 1)
        until(lambda: errors)
    assert "cannot be read" in str(errors[0])
    assert not trees(raw(settings["root"]))


def test_memory_is_durable_before_a_note_is_published(
    settings: Json, monkeypatch: pytest.MonkeyPatch, check_all: CheckAll
) -> None:
    make_key(settings)
    done: list[str] = []
    real_fsync, real_rename, real_write = os.fsync, os.rename, os.write

    def fsync(fd: int) -> None:
        real_fsync(fd)
        done.append(f"fsync {os.path.basename(os.readlink(f'/proc/self/fd/{fd}'))}")

    def rename(old: Any, new: Any, **more: Any) -> None:
        real_rename(old, new, **more)
        done.append(f"rename {os.path.basename(new)}")

    def write(fd: int, data: bytes) -> int:
        done.extend(f"write {note}" for note in re.findall(rb'"note":"([^"]*)"', bytes(data)))
        return real_write(fd, data)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "write", write)
    fill(settings)
    monkeypatch.undo()
    published = max(at for at, what in enumerate(done) if what.startswith("write"))
    ledger = raw(settings["root"])[0]["data"]["ledger"]
    steps = ["fsync .unfinished", "rename signed", f"fsync {ledger}"]
    at = [done.index(step) for step in steps]
    assert at == sorted(at)
    assert at[-1] < published
    check_all(settings["root"])
    assert keys.Signer(settings["keys"], ledger).memory()
