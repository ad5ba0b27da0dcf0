"""Signing keys: who may read them, what a crash leaves of them, what a rotation leaves of the old one."""

import base64
import json
import os
import shutil
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import otledger
from otledger import keymaking
from otledger.config import Config
from otledger.errors import ConfigurationError, FormatError, LedgerError
from otledger.journal import Journal
from otledger.keys import Signer
from otledger.notes import VerifierKey, read_commitment
from otledger.record import Draft
from tests.conftest import Script
from tests.test_cli import Run, cli
from tests.test_sealing import fill, make_key, of_type, raw, trees, until

__all__ = ["cli"]

Json = dict[str, Any]
CheckAll = Callable[[Path], dict[str, list[Json]]]
NAMES = {"signer", "successor", "settings", "verifiers", "signed", "unrecorded", "lock"}


@pytest.fixture
def settings(root: Path, tmp_path: Path) -> Json:
    """The settings of a ledger that makes checkpoints often."""
    return {"root": root, "keys": tmp_path / "keys", "machine": "m1", "checkpoint_interval": 0.05, "service": "s"}


def rotate(settings: Json) -> None:
    keymaking.rotate(Config.resolve(**settings))


def signer_of(settings: Json) -> Signer:
    return Signer(settings["keys"], raw(settings["root"])[0]["data"]["ledger"])


def in_keys(settings: Json) -> list[Path]:
    return [path for path in settings["keys"].rglob("*") if path.is_file()]


def seed_of(signer: Path) -> bytes:
    """What of a private key's text is secret."""
    return signer.read_bytes().split(b"+", 4)[4].strip()


# Who may read them -----------------------------------------------------------------------------------------


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_modes(settings: Json) -> None:
    settings["keys"] = settings["keys"] / "deep"
    make_key(settings, epoch=1e9)
    fill(settings)
    rotate(settings)
    assert {path.name for path in in_keys(settings)} == NAMES
    for path in in_keys(settings):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for path in (settings["keys"].parent, settings["keys"], signer_of(settings).folder):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
@pytest.mark.parametrize("name", ["signer", "successor"])
def test_key_that_others_may_use_signs_nothing(settings: Json, mode: int, name: str) -> None:
    make_key(settings, epoch=1e9)
    path = signer_of(settings).folder / name
    path.chmod(mode)
    before = len(trees(raw(settings["root"])))
    errors: list[BaseException] = []
    with otledger.open_sync(**settings) as ledger:
        ledger.on_error(errors.append)
        ledger.append("a.b", 1)
        until(lambda: errors)
    assert f"chmod 600 {path}" in str(errors[0])
    assert len(trees(raw(settings["root"]))) == before
    path.chmod(0o600)
    fill(settings)
    assert len(trees(raw(settings["root"]))) == before + 1


def test_key_that_is_a_link_signs_nothing(settings: Json, tmp_path: Path) -> None:
    make_key(settings)
    path = signer_of(settings).folder / "signer"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError):
        signer_of(settings).key()


@pytest.mark.parametrize("way", ["plain", "link to the keys", "link to the root", "the root itself", "dots"])
def test_keys_folder_inside_the_root(settings: Json, tmp_path: Path, way: str) -> None:
    root = settings["root"]
    (root / "inner").mkdir(parents=True)
    if way == "plain":
        settings["keys"] = root / "inner" / "keys"
    elif way == "link to the keys":
        settings["keys"] = tmp_path / "link"
        settings["keys"].symlink_to(root / "inner")
    elif way == "link to the root":
        (tmp_path / "link").symlink_to(tmp_path)
        settings["keys"] = tmp_path / "link" / "ledger" / "keys"
    elif way == "the root itself":
        settings["keys"] = root
    else:
        settings["keys"] = tmp_path / "x" / ".." / "ledger" / "keys"
    with pytest.raises(ConfigurationError, match=r"inside the ledger .* give another"):
        Journal(**settings)


def test_key_of_another_chain(settings: Json, tmp_path: Path) -> None:
    make_key(settings)
    other = settings | {"root": tmp_path / "other"}
    fill(other)
    shutil.copytree(signer_of(settings).folder, signer_of(other).folder)
    with pytest.raises(LedgerError, match="it is about otledger/"):
        make_checkpoint(other)
    (signer_of(other).folder / "signed").unlink()
    with pytest.raises(LedgerError, match="is the key of"):
        make_checkpoint(other)


def make_checkpoint(settings: Json) -> None:
    with Journal(**settings) as journal:
        try:
            journal.append([Draft("a.b", 1)])
            journal.checkpoint()
        finally:
            journal._release_files()
            journal._closed = True


@pytest.mark.parametrize("ledger", ["../../etc", "", "x" * 36, "a/b", "0190b2a4-0000-7000-8000-00000000000G"])
def test_chain_that_is_no_uuid(settings: Json, ledger: str) -> None:
    with pytest.raises(FormatError, match="no UUID"):
        Signer(settings["keys"], ledger)


# Crashes ---------------------------------------------------------------------------------------------------

CALLS = ("open", "write", "fsync", "fchmod", "rename", "mkdir", "chmod", "close")


class Step(OSError):
    """The call that fails."""


def patch_calls(monkeypatch: pytest.MonkeyPatch, keys: Path, at: int, fail: Callable[[], None]) -> list[str]:
    """Have the call number `at` of those on the keys fail before it does anything. Gives the calls so far."""
    done: list[str] = []

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            first = arguments[0]
            try:
                path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else os.fspath(first)
            except (OSError, TypeError):
                path = ""
            if str(path).startswith(str(keys)):
                done.append(name)
                if len(done) == at:
                    if name == "close":
                        real(*arguments, **named)
                    fail()
            return real(*arguments, **named)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, wrap(name, getattr(os, name)))
    return done


def die() -> None:
    os._exit(7)


def fails() -> None:
    raise Step(5, "a step that fails")


OPERATIONS: dict[str, Callable[[Json], object]] = {
    "create": lambda settings: keymaking.init(Config.resolve(**settings)),
    "create for an epoch": lambda settings: keymaking.init(Config.resolve(**settings), epoch=1e9),
    "rotate": rotate,
    "rotate in an epoch": rotate,
    "sign": fill,
    "sign in a new epoch": fill,
}


@pytest.mark.parametrize("how", ["dies", "fails"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_crash_at_each_step(
    settings: Json,
    tmp_path: Path,
    check_all: CheckAll,
    monkeypatch: pytest.MonkeyPatch,
    campaign: str,
    operation: str,
    how: str,
) -> None:
    """Whatever a crash or a failure leaves: the next goes on, no key is lost, and the chain of keys is whole."""
    fill(settings, 2)
    if not operation.startswith("create"):
        epoch = {"rotate in an epoch": 1e9, "sign in a new epoch": 1e-9}.get(operation, 0.0)
        make_key(settings, epoch=epoch)
    settings["keys"].mkdir(exist_ok=True)
    for name in ("root", "keys"):
        shutil.copytree(settings[name], tmp_path / f"{name}.before")
    # The short campaign fails at each second step, and dies at those between them.
    step, stride = (-1, 2) if how == "dies" else (0, 2)
    if campaign == "long":
        step, stride = 0, 1
    while True:
        step += stride
        for name in ("root", "keys"):
            shutil.rmtree(settings[name])
            shutil.copytree(tmp_path / f"{name}.before", settings[name])
        if how == "dies":
            over = not dies(settings, monkeypatch, operation, step)
        else:
            over = not raises(settings, monkeypatch, operation, step)
        if over:
            break
        if not signer_of(settings).exists:
            assert operation.startswith("create")
            make_key(settings)
        fill(settings, 1)
        with monkeypatch.context() as patch:
            # An epoch that is over at once has another key by now.
            patch.setattr(time, "time_ns", lambda: 0)
            signer = signer_of(settings)
            key = signer.key().verifier
        records = check_all(settings["root"])["m1"]
        assert "note" in of_type(records, "checkpoint")[-1], (step, operation)
        read_commitment(trees(records)[-1]["note"], [key])
        begun = of_type(records, "key")
        assert begun[-1]["new"] == str(key)
        assert [str(one) for one in signer.verifiers()] == [data["new"] for data in begun]
        assert len({data["new"] for data in begun}) == len(begun)
        assert {path.name for path in in_keys(settings)} <= NAMES
    assert step > 10, operation


def dies(settings: Json, monkeypatch: pytest.MonkeyPatch, operation: str, step: int) -> bool:
    """Tell whether a process came to that step, and died."""
    child = os.fork()
    if not child:
        code = 1
        try:
            patch_calls(monkeypatch, settings["keys"], step, die)
            OPERATIONS[operation](settings)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 7)
    return code == 7


def raises(settings: Json, monkeypatch: pytest.MonkeyPatch, operation: str, step: int) -> bool:
    """Tell whether it came to that step, which failed."""
    with monkeypatch.context() as patch:
        done = patch_calls(patch, settings["keys"], step, fails)
        try:
            OPERATIONS[operation](settings)
        except (Step, LedgerError):
            assert len(done) >= step
    return len(done) >= step


def test_processes_sign_and_rotate_at_once(settings: Json, script: Script, check_all: CheckAll) -> None:
    make_key(settings, epoch=0.3)
    code = """
        import sys, time, otledger
        from otledger import keymaking
        from otledger.config import Config
        errors = []
        end = time.monotonic() + 2.5
        config = Config.resolve(root=sys.argv[1], keys=sys.argv[2], machine="m1", checkpoint_interval=0.05)
        with otledger.open_sync(sys.argv[1], machine="m1", keys=sys.argv[2], checkpoint_interval=0.05) as ledger:
            ledger.on_error(errors.append)
            while time.monotonic() < end:
                ledger.append("a.b", 1)
                if sys.argv[3] == "rotate":
                    keymaking.rotate(config)
        print(*errors, "done")
        """
    what = ("rotate", "rotate", "sign", "sign")
    running = [script(code, settings["root"], settings["keys"], each) for each in what]
    assert [process.communicate()[0] for process in running] == ["done\n"] * 4
    fill(settings)
    records = check_all(settings["root"])["m1"]
    begun = of_type(records, "key")
    assert len(begun) > 8
    assert [data["new"] for data in begun] == [str(key) for key in signer_of(settings).verifiers()]
    assert "note" in of_type(records, "checkpoint")[-1]


KILLED = """
    import os, random, signal, sys, time, otledger
    read, write = os.pipe()
    for number in range(int(sys.argv[3])):
        child = os.fork()
        if not child:
            ledger = otledger.open_sync(sys.argv[1], machine="m1", keys=sys.argv[2], checkpoint_interval=0.05)
            try:
                ledger.__enter__()
                while True:
                    ledger.append("a.b", number)
                    os.write(write, b".")
            finally:
                os._exit(1)
        os.read(read, 1 << 16)
        time.sleep(random.uniform(0.0, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.set_blocking(read, False)
        try:
            os.read(read, 1 << 16)
        except BlockingIOError:
            pass
        os.set_blocking(read, True)
    print("done")
    """


@pytest.mark.parametrize("epoch", [0.0, 0.25])
def test_kills_never_lead_to_a_refusal(
    settings: Json, script: Script, check_all: CheckAll, campaign: str, epoch: float
) -> None:
    """What was signed and what is in the ledger fit each other wherever a process that signs is killed."""
    make_key(settings, epoch=epoch)
    count = 25 if campaign == "short" else 1000
    assert script(KILLED, settings["root"], settings["keys"], count).communicate()[0] == "done\n"
    fill(settings)
    records = check_all(settings["root"])["m1"]
    checkpoints = of_type(records, "checkpoint")
    assert not any("refused" in data for data in checkpoints)
    assert len(trees(records)) > 10
    assert "note" in checkpoints[-1]
    assert (len(of_type(records, "key")) > 3) == bool(epoch)


# Forward security ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0.0, 0.3])
def test_old_key_is_nowhere(settings: Json, tmp_path: Path, check_all: CheckAll, epoch: float) -> None:
    """After its epoch, or a rotation, the bytes of a private key are gone; what it signed can be verified."""
    make_key(settings, epoch=epoch)
    folder = signer_of(settings).folder
    seeds, held = [], []
    with otledger.open_sync(**settings) as ledger:
        for _ in range(4):
            seeds.append(seed := seed_of(folder / "signer"))
            # The file itself, by another name: what is destroyed is its bytes.
            held.append(tmp_path / f"held{len(held)}")
            os.link(folder / "signer", held[-1])
            if not epoch:
                rotate(settings)

            def other() -> bool:
                ledger.append("a.b", 1)
                return seed_of(folder / "signer") != seed

            until(other)
    content = b"".join(path.read_bytes() for path in [*in_keys(settings), *held])
    for seed in seeds:
        assert seed not in content
        assert base64.b64decode(seed)[1:] not in content
    assert {path.name for path in in_keys(settings)} <= NAMES
    records = check_all(settings["root"])["m1"]
    known = signer_of(settings).verifiers()
    assert len(known) >= 5
    for data in trees(records):
        commitment, _ = read_commitment(data["note"], known)
        assert len(commitment.extensions) == bool(epoch)


def test_epoch_is_kept(settings: Json, check_all: CheckAll) -> None:
    """A key signs for its epoch, not for one checkpoint, and not again after a restart."""
    make_key(settings, epoch=1e6)
    first = signer_of(settings).key()
    for _ in range(3):
        fill(settings)
    assert signer_of(settings).key() == first
    assert len(of_type(check_all(settings["root"])["m1"], "key")) == 1
    settled = json.loads((signer_of(settings).folder / "settings").read_bytes())
    settled["began"] -= int(1e6 * 1e9)
    (signer_of(settings).folder / "settings").write_text(json.dumps(settled))
    fill(settings)
    assert signer_of(settings).key() != first
    fill(settings)
    begun = of_type(check_all(settings["root"])["m1"], "key")
    assert len(begun) == 2


# Commands --------------------------------------------------------------------------------------------------


def test_commands(cli: Run, root: Path, tmp_path: Path, check_all: CheckAll) -> None:
    where = ("--keys", tmp_path / "keys")
    named = (*where, "--machine", "m1")
    fill({"root": root, "machine": "m1", "keys": tmp_path / "keys"})
    none = cli("keys", "list", *where)
    assert none.returncode == 1
    assert "none" in none.stdout
    assert cli("keys", "export", *where).returncode == 1
    made = cli("keys", "init", *named)
    assert made.returncode == 0
    first = VerifierKey.parse(made.stdout)
    assert made.stdout == f"{first}\n"
    again = cli("keys", "init", *named)
    assert (again.returncode, again.stdout) == (2, "")
    assert "otledger keys rotate" in again.stderr
    assert cli("keys", "export", *where).stdout == f"{first}\n"
    changed = json.loads(cli("keys", "rotate", *named, "--json").stdout)
    second = VerifierKey.parse(changed["key"])
    assert cli("keys", "export", *where, "--all").stdout == f"{first}\n{second}\n"
    assert cli("keys", "export", *where, "--machine", "m1").stdout == f"{second}\n"
    listed = json.loads(cli("keys", "list", *where, "--json").stdout)
    records = check_all(root)["m1"]
    assert listed[0] == changed
    assert listed[0]["key_ids"] == [first.id.hex(), second.id.hex()]
    assert listed[0]["signed_size"] == trees(records)[-1]["size"]
    table = cli("keys", "list", *where)
    assert second.id.hex() in table.stdout
    assert "PRIVATE" not in table.stdout + made.stdout + made.stderr
    assert [data["new"] for data in of_type(records, "key")] == [str(first), str(second)]


def test_commands_that_cannot(cli: Run, root: Path, tmp_path: Path) -> None:
    where = ("--keys", tmp_path / "keys")
    fill({"root": root, "machine": "m1", "keys": tmp_path / "keys"})
    rotated = cli("keys", "rotate", *where, "--machine", "m1")
    assert (rotated.returncode, rotated.stdout) == (2, "")
    assert "otledger keys init" in rotated.stderr
    for command in (("list",), ("export",)):
        unknown = cli("keys", *command, *where, "--machine", "nobody")
        assert unknown.returncode != 0
        assert not unknown.stdout.strip() or command == ("list",)
    bad = cli("keys", "init", *where, "--machine", "../x")
    assert (bad.returncode, bad.stdout) == (2, "")
    inside = cli("keys", "init", "--keys", root / "keys", "--machine", "m1")
    assert (inside.returncode, inside.stdout) == (2, "")
    assert "inside the ledger" in inside.stderr
    (tmp_path / "file").write_text("")
    for command in ("init", "list", "export", "rotate"):
        failed = cli("keys", command, "--keys", tmp_path / "file" / "keys", "--machine", "m1")
        assert failed.returncode == 2, command
        assert failed.stdout == ""
        assert str(tmp_path / "file") in failed.stderr


def test_init_begins_a_ledger(cli: Run, root: Path, tmp_path: Path, check_all: CheckAll) -> None:
    made = cli("keys", "init", "--keys", tmp_path / "keys", "--machine", "new", "--epoch", 3600, "--json")
    assert json.loads(made.stdout)["epoch"] == 3600
    records = check_all(root)["new"]
    assert "note" in trees(records)[-1]
    assert "next otledger/" in trees(records)[-1]["note"]


def test_interrupted(settings: Json) -> None:
    """A signal in the middle of a rotation is a crash like another."""
    make_key(settings)
    child = os.fork()
    if not child:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        while True:
            rotate(settings)
    os.waitpid(child, 0)
    fill(settings)
    assert signer_of(settings).key()


# Commits that wait for each other --------------------------------------------------------------------------


def publish(journal: Journal, commit: Any) -> bool:
    """Write a commit as the journal does, if it is still due."""
    with journal._mutex, journal._locked(1.0):
        due = journal._is_due(commit)
        if due:
            journal._put_checkpoint(commit)
        return due


def commit_of(journal: Journal) -> Any:
    with journal._mutex, journal._locked(1.0):
        journal._settle_all()
        end, ledger = journal._here(), journal._chain_id
    return journal._sealer.commit(ledger, end)


@pytest.fixture
def two(settings: Json) -> Iterator[tuple[Journal, Journal]]:
    """Two journals of one partition, as two processes have them."""
    make_key(settings)
    settings["checkpoint_interval"] = 1e6
    with Journal(**settings) as one, Journal(**settings) as other:
        yield one, other


def test_record_of_a_key_is_written_once(settings: Json, two: tuple[Journal, Journal], check_all: CheckAll) -> None:
    """Two have signed with a new key before either has written its record."""
    one, other = two
    signer_of(settings).rotate(time.time_ns())
    earlier = commit_of(one)
    other.append([Draft("a.b", 1)])
    later = commit_of(other)
    assert earlier.keys
    assert later.keys
    assert publish(one, earlier)
    assert publish(other, later)
    assert len(of_type(check_all(settings["root"])["m1"], "key")) == 2


@pytest.mark.parametrize("more", [0, 1])
def test_note_of_the_old_key_comes_too_late(
    settings: Json, two: tuple[Journal, Journal], check_all: CheckAll, more: int
) -> None:
    """Signed before a rotation, and not written before the new key's: it is left out."""
    one, other = two
    late = commit_of(one)
    signer_of(settings).rotate(time.time_ns())
    other.append([Draft("a.b", 1)] * more)
    assert publish(other, commit_of(other))
    assert not publish(one, late)
    check_all(settings["root"])


def test_record_of_a_key_in_the_segment_before(
    settings: Json, two: tuple[Journal, Journal], check_all: CheckAll
) -> None:
    """A commit with a key's record is not written into a later segment: where it stands then is not known."""
    one, other = two
    signer_of(settings).rotate(time.time_ns())
    late = commit_of(one)
    with other._mutex, other._locked(1.0):
        other._start_segment("size", other._here())
    assert not publish(one, late)
    assert one.checkpoint()
    assert len(of_type(check_all(settings["root"])["m1"], "key")) == 2
