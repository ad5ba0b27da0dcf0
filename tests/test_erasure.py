"""Payloads encrypted by subject: through every door, in several processes, after a shredding, and in no cache."""

import asyncio
import contextlib
import json
import logging
import os
import re
import sqlite3
import stat
import subprocess
import sys
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from hypothesis import HealthCheck, given, settings

import otledger
from otledger import Draft, EventRefused, Filter, Reader, subjectkeys
from otledger.ciphertext import AES_GCM, CHACHA20, Cipher, bound, kid_of
from otledger.encryption import Encryption
from otledger.errors import ConfigurationError, LedgerError, RootError
from otledger.keyring import KeyFile, Keyring, read_key
from otledger.record import parse
from otledger.subjectkeys import SubjectKeys
from tests.test_values import anything, shape

SECRET = "Xylophonist"
COMMAND = [sys.executable, "-m", "otledger"]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """The folder of the keys, not made yet."""
    return tmp_path / "keys"


@pytest.fixture
def cli(tmp_path: Path, root: Path, keys: Path) -> Run:
    """Runs the command line on the ledger `root` with these keys at hand."""

    def run(*args: object, **variables: str) -> "subprocess.CompletedProcess[str]":
        places = {"OTLEDGER_ROOT": str(root), "OTLEDGER_KEYS": str(keys), "OTLEDGER_MACHINE": "m1"}
        done = subprocess.run(
            [*COMMAND, *map(str, args)],
            capture_output=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **places, **variables},
            cwd=tmp_path,
            timeout=60,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


def ledger(root: Path, keys: Path, **settings: Any) -> otledger.SyncLedger:
    settings = {"encrypt": otledger.by_subject, "machine": "m1", "service": "test", "keys": keys, **settings}
    return otledger.open_sync(root, **settings)


def stored(root: Path) -> list[dict[str, Any]]:
    """The events as they stand in the files, read with nothing of otledger's."""
    lines = [line for path in sorted(root.glob("*/*.jsonl")) for line in path.read_bytes().splitlines()]
    return [record for record in map(json.loads, lines) if not record["type"].startswith("otledger.")]


def enc(record: dict[str, Any]) -> dict[str, Any]:
    assert list(record["data"]) == ["$enc"]
    assert list(record["data"]["$enc"]) == ["alg", "kid", "nonce", "ct"]
    content: dict[str, Any] = record["data"]["$enc"]
    return content


def key_files(keys: Path) -> list[Path]:
    return sorted((keys / "subjects").glob("*.json"))


def holds(folder: Path, word: str) -> list[Path]:
    """The files under a folder that hold a word, as it is or in base64 or in UTF-16."""
    forms = [word.encode(), word.encode("utf-16-le")]
    forms += [b64encode(b"x" * skip + word.encode())[4 if skip else 0 : -4] for skip in range(3)]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(form in path.read_bytes() for form in forms)]


def data_of(root: Path, keys: Path, **filter: Any) -> list[Any]:
    return [record.data for record in Reader(root, keys=keys).records(Filter(control=False, **filter))]


# What is stored


@pytest.mark.parametrize("alg", [CHACHA20, AES_GCM])
def test_the_ciphertext_is_what_the_format_says(root: Path, keys: Path, alg: str) -> None:
    with ledger(root, keys, cipher=alg) as it:
        it.emit("user.named", {"name": SECRET, "of": {1, 2}}, subject="user-1")
    (record,) = stored(root)
    content = enc(record)
    (path,) = key_files(keys)
    key = json.loads(path.read_bytes())
    assert key["alg"] == content["alg"] == alg
    assert key["kid"] == content["kid"] == path.stem
    secret = b64decode(key["key"])
    assert len(secret) == 32
    assert content["kid"] == kid_of(alg, secret)
    assert len(b64decode(content["nonce"])) == 12
    # By hand: a count of three, then each text behind its length, little-endian.
    texts = [record[name].encode() for name in ("id", "type", "subject")]
    extra = b"".join([(3).to_bytes(8, "little"), *(len(text).to_bytes(8, "little") + text for text in texts)])
    opened = {CHACHA20: ChaCha20Poly1305, AES_GCM: AESGCM}[alg](secret).decrypt(
        b64decode(content["nonce"]), b64decode(content["ct"]), extra
    )
    assert json.loads(opened) == {"name": SECRET, "of": {"$set": [1, 2]}}
    assert not holds(root, SECRET)
    assert data_of(root, keys) == [{"name": SECRET, "of": {1, 2}}]


def test_every_record_has_its_own_nonce_and_a_subject_one_key(root: Path, keys: Path) -> None:
    with ledger(root, keys) as it:
        for _ in range(50):
            it.emit("a.b", SECRET, subject="one")
            it.emit("a.b", SECRET, subject="two")
    contents = [enc(record) for record in stored(root)]
    assert len({content["nonce"] for content in contents}) == len({content["ct"] for content in contents}) == 100
    assert len({content["kid"] for content in contents}) == 2
    assert len(key_files(keys)) == 2


def test_what_is_bound_cannot_be_taken_for_something_else() -> None:
    assert bound("a", "bc", "") != bound("ab", "c", "")
    assert bound("a", "", "b") != bound("", "a", "b")
    assert len({kid_of(alg, bytes([n]) * 32) for alg in (CHACHA20, AES_GCM) for n in range(9)}) == 18


async def test_every_door_of_an_asyncio_ledger(root: Path, keys: Path) -> None:
    async with otledger.open(root, machine="m1", keys=keys, encrypt=otledger.by_subject, processors=[_add_to]) as it:
        await it.emit("a.emit", {"n": SECRET}, subject="s")
        await it.append("a.append", {"n": SECRET}, subject="s", id="own-id", time=1_790_000_000_000_000_000)
        it.emit_nowait("a.nowait", {"n": SECRET}, subject="s")
        view = it.bind(subject="s", extensions={"phase": "beta"})
        await view.emit("a.view", {"n": SECRET})
        view.emit_nowait("a.view-nowait", {"n": SECRET})
        async with view.span("work"):
            await view.append("a.in-span", {"n": SECRET})
        handler = otledger.LoggingHandler(it.bind(subject="s"))
        logger = logging.getLogger("test-erasure")
        logger.addHandler(handler)
        try:
            logger.warning("it is %s", SECRET)
        finally:
            logger.removeHandler(handler)
        await it.emit("a.given-by-processor", {"n": SECRET})
    assert not holds(root, SECRET)
    events = [record for record in stored(root) if not record["type"].startswith("otel.")]
    assert len(events) == 8
    assert all(enc(record) for record in events)
    found = list(Reader(root, keys=keys).records(Filter(control=False)))
    told = [record.data for record in found if record.type.startswith("a.")]
    assert told == [{"n": SECRET, "more": SECRET}] * 7
    (logged,) = [record.data for record in found if record.type == "log.warning"]
    assert logged["message"] == f"it is {SECRET}"
    (placed,) = [record for record in found if record.type == "a.append"]
    assert (placed.id, placed.time_ns) == ("own-id", 1_790_000_000_000_000_000)
    (within,) = [record for record in found if record.type == "a.in-span"]
    assert within.span_id is not None


def _add_to(draft: Draft) -> Draft:
    draft.subject = "s"
    if isinstance(draft.data, dict):
        draft.data["more"] = SECRET
    return draft


def test_every_door_of_a_ledger_without_asyncio(root: Path, keys: Path) -> None:
    with ledger(root, keys) as it:
        it.emit("a.emit", SECRET, subject="s")
        it.append("a.append", SECRET, subject="s")
        it.emit_nowait("a.nowait", SECRET, subject="s")
        it.bind(subject="s").emit("a.view", SECRET)
        it.bind(subject="s").append("a.view-append", SECRET, id="x")
    assert not holds(root, SECRET)
    assert data_of(root, keys) == [SECRET] * 5


def test_what_is_not_encrypted(root: Path, keys: Path) -> None:
    policy = lambda draft: draft.subject if draft.type.startswith("user.") else None  # noqa: E731
    with ledger(root, keys, encrypt=policy) as it:
        it.emit("user.a", "plain 1")
        it.emit("user.b", None, subject="nothing to hide")
        it.emit("order.a", "plain 2", subject="s")
        it.emit("user.c", SECRET, subject="s")
    records = {record["type"]: record for record in stored(root)}
    assert records["user.a"]["data"] == "plain 1"
    assert "data" not in records["user.b"]
    assert records["order.a"]["data"] == "plain 2"
    assert enc(records["user.c"])
    assert len(key_files(keys)) == 1
    with otledger.open_sync(root, machine="m1", keys=keys) as it:
        it.emit("user.d", "plain 3", subject="s")
    assert stored(root)[-1]["data"] == "plain 3"


def test_subjects_may_share_a_key(root: Path, keys: Path, cli: Run) -> None:
    with ledger(root, keys, encrypt=lambda draft: str(draft.subject).split("/")[0]) as it:
        it.emit("a.b", SECRET, subject="tenant/user-1")
        it.emit("a.b", SECRET, subject="tenant/user-2")
    assert len(key_files(keys)) == 1
    assert data_of(root, keys) == [SECRET] * 2
    assert cli("keys", "shred", "tenant", "--yes").returncode == 0
    assert cli("show").stdout.count("[shredded]") == 2


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=anything)
def test_every_payload_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    keys = SubjectKeys(_FOLDERS.setdefault("keys", tmp_path_factory.mktemp("keys")) / "k", "m1", Path("/nowhere"))
    cipher = keys.obtain("s", CHACHA20).cipher()
    encoder = otledger.record.Encoder("m1", "test")  # type: ignore[attr-defined]
    _, plain = encoder.draft(Draft("a.b", value, "s"), 0)
    _, part = encoder.draft(Draft("a.b", value, "s"), 0, cipher=cipher)
    line, expected = _line(part), _line(plain)
    record = parse(line)
    record.opener = Keyring(keys.keys)
    assert shape(record.data) == shape(parse(expected).data)
    assert record.plain == parse(expected).raw
    if value is not None:
        assert b'"data":{"$enc":' in line


_FOLDERS: dict[str, Path] = {}


def _line(part: bytes) -> bytes:
    return otledger.batch.stamp([part], 0, b"0" * 64)[0]  # type: ignore[attr-defined,no-any-return]


# What is refused


def test_nothing_is_stored_plain_where_there_is_no_key(root: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a file")
    with ledger(root, tmp_path / "keys") as it:
        with pytest.raises(EventRefused, match="keys") as caught:
            it.emit("a.b", SECRET, subject="s")
        assert isinstance(caught.value.__cause__, LedgerError)
        with pytest.raises(EventRefused):
            it.append("a.b", SECRET, subject="s")
        with pytest.raises(EventRefused):
            it.emit_nowait("a.b", SECRET, subject="s")
        it.emit("a.c", "plain")
    assert [record["type"] for record in stored(root)] == ["a.c"]
    assert not holds(root, SECRET)


async def test_nothing_is_stored_plain_in_asyncio_either(root: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a file")
    async with otledger.open(root, machine="m1", keys=tmp_path / "keys", encrypt=otledger.by_subject) as it:
        for door in (it.emit, it.append):
            with pytest.raises(EventRefused):
                await door("a.b", SECRET, subject="s")
        handler = otledger.LoggingHandler(it.bind(subject="s"))
        handler.emit(logging.makeLogRecord({"msg": SECRET, "levelname": "INFO"}))
        assert it.health().dropped == 1
    assert stored(root) == []


def test_a_disk_that_is_full_makes_no_key(root: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def failing(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".json"):
            raise OSError(28, "No space left on device")
        real(fd)

    with ledger(root, keys) as it:
        monkeypatch.setattr(os, "fsync", failing)
        with pytest.raises(EventRefused, match="No space left"):
            it.emit("a.b", SECRET, subject="s")
        assert key_files(keys) == []
        monkeypatch.undo()
        it.emit("a.b", SECRET, subject="s")
    assert data_of(root, keys) == [SECRET]


@pytest.mark.parametrize("policy", [lambda draft: 1 / 0, lambda draft: 7, lambda draft: "", lambda draft: "\ud800"])
def test_a_policy_that_fails_refuses_the_event(root: Path, keys: Path, policy: Any) -> None:
    with ledger(root, keys, encrypt=policy) as it, pytest.raises(EventRefused):
        it.emit("a.b", SECRET, subject="s")
    assert stored(root) == []


def test_no_key_is_made_for_what_cannot_be_stored(root: Path, keys: Path) -> None:
    with ledger(root, keys) as it:
        for type, data in (("otel.x", 1), ("a.b", "x" * (16 << 20)), ("a.b", _deep(200))):
            with pytest.raises(EventRefused):
                it.emit(type, data, subject="s")
        assert not keys.exists()
        it.emit("a.b", "x" * 1000, subject="s")
        # In plain it would have its place: the ciphertext is a third longer.
        with pytest.raises(EventRefused, match="a line has at most"):
            it.emit("a.b", "x" * (13 << 20), subject="s")
    assert len(stored(root)) == 1


def _deep(levels: int) -> Any:
    return [] if not levels else [_deep(levels - 1)]


def test_settings_that_are_not_allowed(root: Path, keys: Path) -> None:
    for wrong in ({"encrypt": "subject"}, {"cipher": "ROT-13"}, {"encrypt": None, "cipher": AES_GCM}):
        with pytest.raises(ConfigurationError):
            ledger(root, keys, **wrong)
    # What encrypts nothing does not take the setting either.
    with pytest.raises(ConfigurationError, match="encrypt"):
        otledger.Journal(root, encrypt=otledger.by_subject)
    assert not root.exists()


@pytest.mark.parametrize("inside", ["ledger/keys", "ledger", "link"])
def test_keys_inside_the_root_are_refused(root: Path, tmp_path: Path, inside: str) -> None:
    root.mkdir()
    (tmp_path / "link").symlink_to(root)
    with pytest.raises(ConfigurationError, match="inside the ledger"):
        ledger(root, tmp_path / inside)
    assert not list(root.iterdir())


def test_a_folder_of_keys_that_others_may_read_is_refused(root: Path, keys: Path) -> None:
    with ledger(root, keys) as it:
        it.emit("a.b", SECRET, subject="s")
        (keys / "subjects").chmod(0o750)
        it.emit("a.b", SECRET, subject="s")
        with pytest.raises(EventRefused, match="chmod 700"):
            it.emit("a.b", SECRET, subject="new")
    with pytest.raises(RootError, match="chmod 700"):
        ledger(root, keys)
    (keys / "subjects").chmod(0o700)
    with ledger(root, keys) as it:
        it.emit("a.b", SECRET, subject="new")
    assert data_of(root, keys) == [SECRET] * 3


# The files of keys


def test_the_files_of_keys(root: Path, keys: Path) -> None:
    old = os.umask(0)
    try:
        with ledger(root, keys, cipher=AES_GCM) as it:
            it.emit("a.b", 1, subject="Größe " + "x" * 900)
    finally:
        os.umask(old)
    (path,) = key_files(keys)
    for folder in (keys, keys / "subjects", keys / "subjects" / "current"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for file in (keys / "subjects").rglob("*"):
        assert file.is_dir() or stat.S_IMODE(file.stat().st_mode) == 0o600
    key = json.loads(path.read_bytes())
    assert list(key) == ["format", "kid", "alg", "key", "subject", "machine", "root", "created"]
    assert key["subject"] == "Größe " + "x" * 900
    assert (key["machine"], key["root"], key["format"]) == ("m1", str(root.resolve()), 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", key["created"])


def test_a_key_is_durable_before_its_first_record_is_accepted(
    root: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def noting(fd: int) -> None:
        real(fd)
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))

    with ledger(root, keys) as it:
        monkeypatch.setattr(os, "fsync", noting)
        put = it._core.writer.put

        def accept(part: bytes) -> None:
            (path,) = key_files(keys)
            assert path.stem.encode() in part
            subjects = str(keys / "subjects")
            names = [name for name in synced if name.startswith(str(keys))]
            # The folders in the ones above, the key's bytes, then its name.
            assert names == [str(keys), subjects, str(path), subjects]
            put(part)

        monkeypatch.setattr(it._core.writer, "put", accept)
        it.emit("a.b", SECRET, subject="s")
        monkeypatch.undo()
    assert data_of(root, keys) == [SECRET]


def test_a_key_that_is_damaged_is_not_used(root: Path, keys: Path) -> None:
    with ledger(root, keys) as it:
        it.emit("a.b", SECRET, subject="s")
    (path,) = key_files(keys)
    key = json.loads(path.read_bytes())
    path.write_text(json.dumps({**key, "key": b64encode(bytes(32)).decode()}))
    with ledger(root, keys) as it:
        it.emit("a.b", "new", subject="s")
    assert len(set(kids_of(root, "s"))) == len(key_files(keys)) == 2
    assert data_of(root, keys, type="a.b")[1] == "new"


def test_a_fork_in_the_middle_leaves_no_lock(root: Path, keys: Path, script: Any) -> None:
    code = """
        import os, sys
        from pathlib import Path
        from otledger.subjectkeys import SubjectKeys
        keys = SubjectKeys(sys.argv[1], "m1", Path(sys.argv[2]), lock_timeout=1)
        keys.obtain("before", "AES-256-GCM")
        with keys._locked():
            child = os.fork()
            if child == 0:
                os.close(1)
                sys.stdin.readline()
                os._exit(0)
        keys.obtain("after", "AES-256-GCM")
        print("made", flush=True)
    """
    process = script(code, keys, root)
    assert process.stdout.readline() == "made\n"
    assert process.wait(60) == 0


def test_another_ledger_has_another_key_for_the_same_subject(root: Path, keys: Path, tmp_path: Path) -> None:
    for machine, place in (("m1", root), ("m2", root), ("m1", tmp_path / "other")):
        with ledger(place, keys, machine=machine) as it:
            it.emit("a.b", SECRET, subject="s")
    scopes = {(key.machine, key.root) for path in key_files(keys) if (key := read_key(path))}
    assert len(scopes) == len(key_files(keys)) == 3
    assert data_of(root, keys) == [SECRET] * 2
    # By whatever way the folder is reached.
    (tmp_path / "link").symlink_to(tmp_path)
    with ledger(tmp_path / "link" / root.name, keys) as it:
        it.emit("a.b", SECRET, subject="s")
    assert len(key_files(keys)) == 3


@pytest.mark.parametrize("harm", ["empty", "garbage", "gone", "other", "traversal"])
def test_a_hint_that_is_harmed_costs_a_key_and_nothing_else(root: Path, keys: Path, harm: str) -> None:
    for subject in ("other", "s"):
        with ledger(root, keys) as it:
            it.emit("a.b", SECRET, subject=subject)
    hints = sorted((keys / "subjects" / "current").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    other = hints[0].read_text()
    content = {"empty": "", "garbage": "\xff\x00" * 9, "other": other, "traversal": "../../x", "gone": "0" * 64}
    hints[1].write_text(content[harm], encoding="latin-1")
    with ledger(root, keys) as it:
        it.emit("a.b", SECRET, subject="s")
    assert len(key_files(keys)) == 3
    assert data_of(root, keys) == [SECRET] * 3
    # And all of them go.
    assert len(SubjectKeys(keys, "m1", root).destroy("s")) == 2


# Several at once

WRITER = """
    import os, sys, otledger
    root, keys, name, count = sys.argv[1:]
    with otledger.open_sync(root, machine="m1", keys=keys, service=name, encrypt=otledger.by_subject) as ledger:
        print("open", flush=True)
        sys.stdin.readline()
        for number in range(int(count)):
            ledger.emit("a.b", f"Xylophonist {number}", subject=f"user-{number}")
"""


def test_two_processes_agree_on_the_keys(root: Path, keys: Path, script: Any, check_all: Any) -> None:
    writers = [script(WRITER, root, keys, f"p{n}", 20) for n in range(2)]
    for writer in writers:
        assert writer.stdout.readline() == "open\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        assert writer.wait(60) == 0
    check_all(root)
    kids: dict[str, set[str]] = {}
    for record in stored(root):
        kids.setdefault(record["subject"], set()).add(enc(record)["kid"])
    assert len(stored(root)) == 40
    assert len(kids) == 20
    assert all(len(found) == 1 for found in kids.values())
    assert len(key_files(keys)) == 20
    assert sorted(data_of(root, keys)) == sorted(f"{SECRET} {n}" for n in range(20) for _ in range(2))


def test_threads_agree_on_the_keys(root: Path, keys: Path) -> None:
    with ledger(root, keys) as it:
        barrier = threading.Barrier(8)

        def write() -> None:
            barrier.wait()
            for number in range(5):
                it.emit("a.b", SECRET, subject=f"user-{number}")

        threads = [threading.Thread(target=write) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(key_files(keys)) == 5
    assert data_of(root, keys) == [SECRET] * 40


def test_the_key_is_found_again_after_a_restart_and_in_a_fork(root: Path, keys: Path, script: Any) -> None:
    code = """
        import os, sys, otledger
        root, keys = sys.argv[1:]
        with otledger.open_sync(root, machine="m1", keys=keys, encrypt=otledger.by_subject) as ledger:
            ledger.emit("a.parent", "Xylophonist", subject="s")
            ledger.flush()
            child = os.fork()
            ledger.emit("a.after", "Xylophonist", subject="s")
            ledger.emit("a.after", "Xylophonist", subject="in both")
            ledger.flush()
            if child == 0:
                ledger.close()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    """
    for _ in range(2):
        assert script(code, root, keys).wait(60) == 0
    assert len(key_files(keys)) == 2
    assert data_of(root, keys) == [SECRET] * 10


@pytest.mark.parametrize("step", ["os, 'write'", "os, 'fsync'", "os, 'replace'"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_while_a_key_is_made(root: Path, keys: Path, script: Any, step: str, when: str) -> None:
    code = f"""
        import os, sys
        from pathlib import Path
        from otledger.subjectkeys import SubjectKeys
        keys = SubjectKeys(sys.argv[1], "m1", Path(sys.argv[2]))
        keys.obtain("before", "ChaCha20-Poly1305")
        holder, name = {step}
        real = getattr(holder, name)
        def crash(*args, **options):
            if {when == "after"}:
                real(*args, **options)
            os._exit(9)
        setattr(holder, name, crash)
        keys.obtain("s", "ChaCha20-Poly1305")
    """
    assert script(code, keys, root).wait(60) == 9
    with ledger(root, keys) as it:
        it.emit("a.b", SECRET, subject="s")
    assert data_of(root, keys) == [SECRET]
    # A key that nothing was encrypted with goes as well.
    left = SubjectKeys(keys, "m1", root)
    assert len(left.of("s")) == len(left.destroy("s"))
    assert left.of("s") == []
    assert data_of(root, keys) != [SECRET]


async def test_the_loop_goes_on_while_a_key_is_made(root: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    real = SubjectKeys.obtain

    def slow(self: SubjectKeys, subject: str, alg: str) -> KeyFile:
        assert go_on.wait(30)
        return real(self, subject, alg)

    async with otledger.open(root, machine="m1", keys=keys, encrypt=otledger.by_subject) as it:
        monkeypatch.setattr(SubjectKeys, "obtain", slow)
        payload = {"name": SECRET}
        waiting = asyncio.create_task(it.emit("a.slow", payload, subject="s"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        # What the caller changes now does not count.
        payload["name"] = "changed"
        await it.append("a.other", "plain")
        cancelled = asyncio.create_task(it.emit("a.cancelled", SECRET, subject="t"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert not waiting.done()
        go_on.set()
        await waiting
    found = list(Reader(root, keys=keys).records(Filter(type="a.*")))
    assert {record.type: record.data for record in found} == {"a.other": "plain", "a.slow": {"name": SECRET}}
    # The time is that of the call.
    by_type = {record.type: record.time_ns for record in found}
    assert by_type["a.slow"] < by_type["a.other"]


# Schemas and processors


def test_schemas_and_processors_see_plaintext_and_their_marks_do_not_quote_it(root: Path, keys: Path) -> None:
    seen: list[Any] = []

    def look(draft: Draft) -> Draft:
        seen.append(draft.data)
        if draft.type == "a.raises":
            raise KeyError(draft.data["name"])
        return draft

    schema = {"type": "object", "properties": {"age": {"type": "integer"}}}
    settings: dict[str, Any] = {"processors": [look], "schemas": {"a.odd": schema}}
    with ledger(root, keys, **settings) as it:
        it.emit("a.odd", {"age": SECRET}, subject="s")
        it.emit("a.raises", {"name": SECRET}, subject="s")
        it.emit("a.odd", {"age": "in plain"})
        assert it.health().invalid == 2
    assert seen == [{"age": SECRET}, {"name": SECRET}, {"age": "in plain"}]
    assert not holds(root, SECRET)
    odd, raised, plain = stored(root)
    assert "left out" in odd["otlinvalid"]
    assert "left out" in raised["otlprocessor"]
    assert "in plain" in plain["otlinvalid"]


# Reading


def test_without_the_key_a_reader_gives_the_ciphertext(root: Path, keys: Path, tmp_path: Path, cli: Run) -> None:
    with ledger(root, keys) as it:
        it.emit("a.b", SECRET, subject="s", ipc_hash="ab" * 32)
    (there,) = stored(root)
    (record,) = Reader(root, keys=tmp_path / "none").records(Filter(type="a.b"))
    assert record.data == there["data"]
    assert record.plain is None
    assert record.kid == there["data"]["$enc"]["kid"]
    assert json.loads(record.raw) == there["data"]
    assert record.to_dict() == there
    # What no reader gave has no keys.
    assert parse(record.line).data == there["data"]
    for command in (["show"], ["tail"], ["turn", "abab"]):
        assert "[encrypted]" in cli(*command, OTLEDGER_KEYS=str(tmp_path / "none")).stdout
        assert SECRET in cli(*command).stdout
    for command in (["show", "--json"], ["tail", "--json"], ["turn", "abab", "--json"]):
        done = cli(*command)
        assert done.returncode == 0
        assert SECRET not in done.stdout
        assert there["data"]["$enc"]["ct"] in done.stdout


async def test_every_reader_gives_plaintext_with_the_key(root: Path, keys: Path, tmp_path: Path) -> None:
    with ledger(root, keys) as it:
        it.emit("job.start", {"id": SECRET}, subject="s", ipc_hash="ab" * 32)
        it.emit("job.end", {"id": SECRET}, subject="s", ipc_hash="ab" * 32)
    reader = Reader(root, keys=keys)
    expected = [{"id": SECRET}] * 2
    assert [record.data async for record in reader.arecords(Filter(control=False))] == expected
    turn = reader.turn("ab" * 32)
    assert turn is not None
    assert [record.data for record in turn.records] == expected
    followed = []
    async with contextlib.aclosing(reader.follow("start", Filter(control=False))) as records:
        async for record in records:
            followed.append(record)
            if len(followed) == 2:
                break
    assert [record.data for record in followed] == expected
    (pair,) = reader.pairs("data.id")
    assert pair.matched
    assert [record.data for record in it.reader.records(Filter(control=False))] == expected
    # Records are equal whoever read them.
    assert followed == list(Reader(root, keys=tmp_path / "none").records(Filter(control=False)))
    assert followed[0] != followed[1]


def test_the_default_folder_is_that_of_the_environment(
    root: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTLEDGER_KEYS", str(keys))
    with otledger.open_sync(root, machine="m1", encrypt=otledger.by_subject) as it:
        it.emit("a.b", SECRET, subject="s")
    assert len(key_files(keys)) == 1
    assert [record.data for record in Reader(root).records(Filter(type="a.b"))] == [SECRET]
    monkeypatch.delenv("OTLEDGER_KEYS")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with otledger.open_sync(root, machine="m2", encrypt=otledger.by_subject) as it:
        it.emit("a.c", SECRET, subject="s")
    assert len(key_files(tmp_path / "state" / "otledger" / "keys")) == 1
    assert [record.data for record in Reader(root).records(Filter(type="a.c"))] == [SECRET]


def test_a_reader_looks_for_a_key_once_and_a_new_one_sees_a_shredding(
    root: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ledger(root, keys) as it:
        for _ in range(10):
            it.emit("a.b", SECRET, subject="s")
            it.emit("a.b", SECRET, subject="lost")
    lost = next(path for path in key_files(keys) if json.loads(path.read_bytes())["subject"] == "lost")
    lost.unlink()
    looked: list[str] = []

    def counting(path: Any) -> KeyFile | None:
        looked.append(path)
        return read_key(path)

    monkeypatch.setattr("otledger.keyring.read_key", counting)
    reader = Reader(root, keys=keys)
    for _ in range(3):
        found = [record.data for record in reader.records(Filter(type="a.b"))]
        assert found.count(SECRET) == 10
    assert len(looked) == 2
    SubjectKeys(keys, "m1", root).destroy("s")
    assert SECRET not in data_of(root, keys)


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "id": lambda record: record.update(id="another"),
    "type": lambda record: record.update(type="a.other"),
    "subject": lambda record: record.update(subject="t"),
    "no subject": lambda record: record.pop("subject"),
    "ct": lambda record: record["data"]["$enc"].update(ct=b64encode(b"x" * 40).decode()),
    "short": lambda record: record["data"]["$enc"].update(ct="AAAA"),
    "no base64": lambda record: record["data"]["$enc"].update(ct="=!"),
    "number": lambda record: record["data"]["$enc"].update(ct=7),
    "nonce": lambda record: record["data"]["$enc"].update(nonce=b64encode(bytes(12)).decode()),
    "long nonce": lambda record: record["data"]["$enc"].update(nonce=b64encode(bytes(13)).decode()),
    "alg": lambda record: record["data"]["$enc"].update(alg=AES_GCM),
    "unknown alg": lambda record: record["data"]["$enc"].update(alg="none"),
    "kid": lambda record: record["data"]["$enc"].update(kid="0" * 64),
    "path": lambda record: record["data"]["$enc"].update(kid="../x"),
    "no kid": lambda record: record["data"]["$enc"].pop("kid"),
    "list": lambda record: record["data"].update({"$enc": []}),
    "more": lambda record: record["data"].update(more=1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_tampered_with_is_shown_as_it_stands(root: Path, keys: Path, cli: Run, change: str) -> None:
    with ledger(root, keys) as it:
        it.emit("a.b", SECRET, subject="s")
        it.emit("a.b", SECRET, subject="t")
    path = next(root.glob("*/*.jsonl"))
    lines = path.read_bytes().splitlines(keepends=True)
    at = next(at for at, line in enumerate(lines) if b'"subject":"s"' in line)
    record = json.loads(lines[at])
    CHANGES[change](record)
    lines[at] = json.dumps(record, separators=(",", ":")).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    (found,) = [each for each in Reader(root, keys=keys).records() if each.seq == record["seq"]]
    assert found.data == record["data"]
    assert found.plain != SECRET.encode()
    done = cli("show", "--all")
    assert done.returncode == 0
    assert done.stdout.count(SECRET) == 1


def test_a_key_file_that_is_another_key_opens_nothing(root: Path, keys: Path, cli: Run) -> None:
    with ledger(root, keys) as it:
        it.emit("a.b", SECRET, subject="s")
        it.emit("a.b", SECRET, subject="t")
    one, two = key_files(keys)
    content = json.loads(one.read_bytes())
    for wrong in (
        two.read_bytes(),
        json.dumps({**json.loads(two.read_bytes()), "kid": one.stem}).encode(),
        json.dumps({**content, "alg": AES_GCM}).encode(),
        json.dumps({**content, "key": ""}).encode(),
        b"",
        b"\xff\x00",
        b"[]",
    ):
        one.write_bytes(wrong)
        assert data_of(root, keys).count(SECRET) == 1
        assert cli("show").stdout.count("[encrypted]") == 1
    one.unlink()
    one.mkdir()
    assert data_of(root, keys).count(SECRET) == 1


def test_what_only_looks_like_ciphertext(root: Path, keys: Path, cli: Run) -> None:
    fake = {"$enc": {"alg": CHACHA20, "kid": "0" * 64, "nonce": "", "ct": ""}}
    with ledger(root, keys) as it:
        it.emit("a.b", fake, subject="s")
        it.emit("a.c", fake)
    with otledger.Journal(root, machine="m1") as journal:
        journal.append([Draft("a.d", "x", subject="s", extensions={"opener": "x"})])
    assert data_of(root, keys) == [fake, fake, "x"]
    assert cli("show").returncode == 0
    # A member of a line is never taken for what opens payloads.
    (record,) = Reader(root, keys=keys).records(Filter(type="a.b"))
    line = record.line.replace(b'{"specversion"', b'{" ":"opener","specversion"')
    assert parse(line).opener is None
    assert json.dumps(parse(line).data) == record.raw.decode().replace(":", ": ").replace(",", ", ")


def test_a_keyring_and_a_cipher_tell_no_secret(root: Path, keys: Path) -> None:
    import pickle

    with ledger(root, keys) as it:
        it.emit("a.b", SECRET, subject="s")
    (record,) = Reader(root, keys=keys).records(Filter(type="a.b"))
    assert record.data == SECRET
    (path,) = key_files(keys)
    secret = json.loads(path.read_bytes())["key"]
    pickled = pickle.dumps(record)
    assert b64decode(secret) not in pickled
    assert secret.encode() not in pickled
    assert pickle.loads(pickled).data == SECRET
    assert secret not in repr(record)
    assert secret not in repr(Cipher(CHACHA20, b64decode(secret)))


# Shredding


def kids_of(root: Path, subject: str) -> list[str]:
    return [enc(record)["kid"] for record in stored(root) if record.get("subject") == subject]


def shreddings(root: Path) -> list[dict[str, Any]]:
    return [record.to_dict()["data"] for record in Reader(root).records(Filter(type="otledger.shredded"))]


def test_shredding(root: Path, keys: Path, cli: Run, check_all: Any) -> None:
    with ledger(root, keys) as it:
        for subject in ("user-1", "user-2"):
            it.emit("a.b", SECRET, subject=subject, ipc_hash="ab" * 32)
    kid, other = kids_of(root, "user-1")[0], kids_of(root, "user-2")[0]
    secret = json.loads((keys / "subjects" / f"{kid}.json").read_bytes())["key"]
    before = {path: path.read_bytes() for path in [*root.rglob("*.jsonl"), *key_files(keys)]}

    planned = cli("keys", "shred", "user-1")
    assert planned.returncode == 1
    assert kid in planned.stdout
    assert "--yes" in planned.stdout
    assert {path: path.read_bytes() for path in before} == before

    done = cli("keys", "shred", "user-1", "--reason", "request 4711", "--yes")
    assert done.returncode == 0, done.stderr
    assert kid in done.stdout
    assert shreddings(root) == [{"kids": [kid], "subject": "user-1", "reason": "request 4711"}]
    assert [path.stem for path in key_files(keys)] == [other]
    assert not holds(keys, secret)
    assert not holds(keys, kid)
    check_all(root)
    assert cli("verify").returncode == 0
    assert Reader(root, keys=keys).shredded() == {kid}
    shown = cli("show", "--all").stdout
    assert shown.count(SECRET) == 1
    assert shown.count("[shredded]") == 1
    for command in (["tail"], ["turn", "abab"], ["show", "-n", "9"]):
        assert "[shredded]" in cli(*command).stdout
    line = next(line for line in cli("show", "--json").stdout.splitlines() if '"user-1"' in line)
    assert json.loads(line)["data"]["$enc"]["kid"] == kid

    again = cli("keys", "shred", "user-1", "--yes", "--json")
    assert again.returncode == 1
    assert json.loads(again.stdout)["done"] is False
    assert len(shreddings(root)) == 1


def test_a_shredding_overwrites_the_key_before_it_is_removed(
    root: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ledger(root, keys) as it:
        it.emit("a.b", SECRET, subject="s")
    (path,) = key_files(keys)
    before = path.read_bytes()
    secret = json.loads(before)["key"].encode()
    os.link(path, keys / "held")
    steps: list[str] = []
    real = os.fsync

    def noting(fd: int) -> None:
        real(fd)
        steps.append(os.readlink(f"/proc/self/fd/{fd}").rpartition("/")[2])

    monkeypatch.setattr(os, "fsync", noting)
    (destroyed,) = SubjectKeys(keys, "m1", root).destroy("s")
    assert steps == ["subjects", f"{path.stem}.shredding"]
    assert destroyed.key == ""
    # The very bytes on the disk, by another name.
    assert len((keys / "held").read_bytes()) == len(before)
    assert secret not in (keys / "held").read_bytes()


def test_listing_the_subjects(root: Path, keys: Path, cli: Run, tmp_path: Path) -> None:
    assert cli("keys", "subjects").returncode == 1
    with ledger(root, keys) as it:
        it.emit("a.b", SECRET, subject="user-1\u202e")
    with ledger(tmp_path / "elsewhere", keys) as it:
        it.emit("a.b", SECRET, subject="user-9")
    done = cli("keys", "subjects")
    assert done.returncode == 0
    assert "user-1" in done.stdout
    assert "\u202e" not in done.stdout
    assert "user-9" not in done.stdout
    found = [json.loads(line) for line in cli("keys", "subjects", "--everywhere", "--json").stdout.splitlines()]
    assert [key["subject"] for key in found] == ["user-1\u202e", "user-9"]
    assert all("key" not in key for key in found)
    for path in key_files(keys):
        assert json.loads(path.read_bytes())["key"] not in json.dumps(found)


def test_shredding_says_what_it_leaves(root: Path, keys: Path, cli: Run) -> None:
    for machine in ("m1", "m2"):
        with ledger(root, keys, machine=machine) as it:
            it.emit("a.b", SECRET, subject="s")
    done = cli("keys", "shred", "s", "--yes")
    assert done.returncode == 0
    assert "machine m2" in done.stderr
    assert data_of(root, keys).count(SECRET) == 1
    done = cli("keys", "shred", "s", "--machine", "m2", "--yes", "--keys", keys, "--json", OTLEDGER_KEYS="/none")
    assert json.loads(done.stdout)["done"] is True
    assert data_of(root, keys).count(SECRET) == 0
    assert len(shreddings(root)) == 2


def test_shredding_needs_a_ledger(root: Path, keys: Path, cli: Run) -> None:
    assert cli("keys", "shred", "s", "--yes").returncode == 2
    assert not root.exists()
    with ledger(root, keys, machine="m2") as it:
        it.emit("a.b", SECRET, subject="s")
    done = cli("keys", "shred", "s", "--yes")
    assert done.returncode == 2
    assert "there are: m2" in done.stderr
    assert data_of(root, keys) == [SECRET]


def test_a_running_writer_stops_using_a_key_that_is_shredded(
    root: Path, keys: Path, script: Any, cli: Run, check_all: Any
) -> None:
    code = """
        import sys, otledger
        root, keys = sys.argv[1:]
        with otledger.open_sync(root, machine="m1", keys=keys, encrypt=otledger.by_subject) as ledger:
            for number, _ in enumerate(iter(sys.stdin.readline, "stop\\n")):
                ledger.append("a.b", f"Xylophonist {number}", subject="s")
                print("written", flush=True)
    """
    writer = script(code, root, keys)

    def write() -> None:
        writer.stdin.write("one\n")
        writer.stdin.flush()
        assert writer.stdout.readline() == "written\n"

    for _ in range(3):
        write()
        write()
        assert cli("keys", "shred", "s", "--yes").returncode == 0
    write()
    writer.stdin.write("stop\n")
    writer.stdin.flush()
    assert writer.wait(60) == 0
    check_all(root)
    kids = kids_of(root, "s")
    assert len(set(kids)) == 4
    assert [kids.count(kid) for kid in dict.fromkeys(kids)] == [2, 2, 2, 1]
    assert [kid for told in shreddings(root) for kid in told["kids"]] == list(dict.fromkeys(kids))[:3]
    assert data_of(root, keys, type="a.b")[6:] == [f"{SECRET} 6"]
    assert cli("show").stdout.count("[shredded]") == 6


def test_shredding_while_others_write_as_fast_as_they_can(
    root: Path, keys: Path, script: Any, cli: Run, check_all: Any
) -> None:
    code = """
        import sys, threading, otledger
        root, keys = sys.argv[1:]
        stop = threading.Event()
        with otledger.open_sync(root, machine="m1", keys=keys, encrypt=otledger.by_subject) as ledger:
            def write():
                while not stop.is_set():
                    ledger.emit("a.b", "Xylophonist", subject="s")
            threads = [threading.Thread(target=write) for _ in range(2)]
            for thread in threads:
                thread.start()
            print("writes", flush=True)
            sys.stdin.readline()
            stop.set()
            for thread in threads:
                thread.join()
    """
    writer = script(code, root, keys)
    assert writer.stdout.readline() == "writes\n"
    for _ in range(3):
        assert cli("keys", "shred", "s", "--yes").returncode in (0, 1)
    writer.stdin.write("stop\n")
    writer.stdin.flush()
    assert writer.wait(60) == 0
    check_all(root)
    gone = {kid for told in shreddings(root) for kid in told["kids"]}
    left = {path.stem for path in key_files(keys)}
    used = set(kids_of(root, "s"))
    assert not gone & left
    # Every key is either there or told of, however the two ran.
    assert used <= gone | left
    assert not holds(root, SECRET)


STEPS = {
    "taken out of use": "os, 'rename'",
    "overwritten": "otledger.subjectkeys, '_wipe'",
    "hint removed": "os, 'unlink'",
    "recorded": "otledger.Journal, 'append'",
    "removed": "otledger.subjectkeys.SubjectKeys, 'forget'",
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_crash_in_between_is_finished_by_running_it_again(
    root: Path, keys: Path, script: Any, cli: Run, step: str, when: str
) -> None:
    with ledger(root, keys) as it:
        it.emit("a.b", SECRET, subject="s")
    kid = kids_of(root, "s")[0]
    code = f"""
        import os, sys, otledger, otledger.subjectkeys, otledger.shredding
        holder, name = {STEPS[step]}
        real = getattr(holder, name)
        def crash(*args, **options):
            if {when == "after"}:
                real(*args, **options)
            os._exit(9)
        config = otledger.Config.resolve(root=sys.argv[1], keys=sys.argv[2], machine="m1")
        setattr(holder, name, crash)
        otledger.shredding.shred(config, "s", "why")
    """
    assert script(code, root, keys).wait(60) == 9
    first = (step, when) == ("taken out of use", "before")
    # From the first step on nobody reads it, and a writer makes a new key.
    assert (SECRET in data_of(root, keys, type="a.b")) == first
    done = cli("keys", "shred", "s", "--yes")
    assert done.returncode == (1 if (step, when) == ("removed", "after") else 0)
    assert [told["kids"] for told in shreddings(root)] == [[kid]]
    assert key_files(keys) == []
    assert not [path for path in (keys / "subjects").iterdir() if kid in path.name]
    assert cli("show").stdout.count("[shredded]") == 1
    assert cli("keys", "shred", "s", "--yes").returncode == 1


def test_a_record_that_cannot_be_written_is_told_and_written_later(
    root: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from otledger.shredding import shred

    with ledger(root, keys) as it:
        it.emit("a.b", SECRET, subject="s")
    kid = kids_of(root, "s")[0]
    config = otledger.Config.resolve(root=root, keys=keys, machine="m1")

    def fails(*_: object, **__: object) -> None:
        raise otledger.JournalError("no space")

    monkeypatch.setattr(otledger.Journal, "append", fails)
    with pytest.raises(LedgerError, match="run it again"):
        shred(config, "s")
    monkeypatch.undo()
    assert data_of(root, keys, type="a.b")[0] != SECRET
    with ledger(root, keys) as it:
        it.emit("a.b", "new", subject="s")
    assert shred(config, "s").kids[-1:] + shred(config, "t").kids
    assert kid in Reader(root).shredded()
    assert len(Reader(root).shredded()) == 2


def test_what_comes_later_is_new_data(root: Path, keys: Path, cli: Run) -> None:
    with ledger(root, keys) as it:
        it.append("a.b", SECRET, subject="s")
        assert cli("keys", "shred", "s", "--yes").returncode == 0
        it.append("a.b", "later", subject="s")
    assert data_of(root, keys, type="a.b")[1] == "later"
    assert len(set(kids_of(root, "s"))) == 2


def test_a_key_that_cannot_be_looked_at_refuses_the_event(root: Path, keys: Path) -> None:
    with ledger(root, keys) as it:
        it.emit("a.b", SECRET, subject="s")
        (keys / "subjects").rename(keys / "away")
        (keys / "subjects").write_text("a file")
        with pytest.raises(EventRefused):
            it.emit("a.b", SECRET, subject="s")
    assert len(stored(root)) == 1


def test_the_lock_of_the_keys_is_given_up_in_time(root: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    held = SubjectKeys(keys, "m1", root, lock_timeout=0.05)
    held.obtain("other", CHACHA20)
    with open(keys / "subjects" / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LedgerError, match=r"\.lock was held"):
            held.obtain("s", CHACHA20)
    assert held.obtain("s", CHACHA20).subject == "s"
    assert subjectkeys.LOCK_FILE == ".lock"


# No cache holds plaintext


def test_no_cache_and_no_export_holds_plaintext(root: Path, keys: Path, tmp_path: Path, cli: Run) -> None:
    with ledger(root, keys, max_segment=60_000) as it:
        view = it.bind(subject="s", ipc_hash="ab" * 32)
        with it.span("work"):
            for number in range(300):
                view.emit("job.start", {"id": number, "name": SECRET, SECRET: [SECRET]})
                view.emit("job.end", {"id": number, "text": f"a {SECRET} b"})
                if number % 50 == 0:
                    it.flush()
            it.emit("a.plain", {"text": "Visible"})
    trace = next(record for record in stored(root) if "traceparent" in record)["traceparent"][3:35]
    exports = tmp_path / "exports"
    exports.mkdir()
    commands: list[list[Any]] = [
        ["index", "--rebuild"],
        ["compact"],
        ["show"],
        ["show", "--text", SECRET],
        ["show", "--since", "1h"],
        ["show", "--trace", trace],
        ["tail", "--cursor", exports / "cursor"],
        ["trace", trace],
        ["spans"],
        ["turn", "abab"],
        ["turns"],
        ["pairs"],
        ["pairs", "--key", "data.id"],
        ["stats"],
        ["digest"],
        ["sql", "SELECT count(*) FROM events WHERE data IS NOT NULL"],
        ["sql", "SELECT data FROM events", "--parquet", exports / "rows.parquet"],
        ["verify"],
        ["doctor"],
        ["machines"],
        ["repair"],
        ["export", "parquet", exports / "lake"],
        ["export", "evledger", exports / "evledger"],
        ["export", "pipeworks", exports / "pipeworks", "--everything"],
    ]
    for command in commands:
        done = cli(*command)
        assert done.returncode in (0, 1), (command, done.stderr)
    assert not holds(root, SECRET)
    assert not holds(exports, SECRET)
    assert not _in_parquet([*root.rglob("*.parquet"), *exports.rglob("*.parquet")], SECRET)
    # The search itself finds what is there.
    assert holds(root, "Visible")
    assert holds(exports / "evledger", "Visible")
    assert _in_parquet(list(exports.rglob("*.parquet")), "Visible")
    assert len(list(root.glob("*/*.jsonl"))) > 2
    assert len(list(root.rglob(".cache/**/*.parquet"))) > 1
    assert [path for path in root.rglob(".cache/*") if path.suffix != ".parquet"]
    # With the key at hand, only a person is shown it.
    assert SECRET in cli("show").stdout
    assert SECRET not in cli("sql", "SELECT data FROM events", "--json").stdout


def _in_parquet(files: list[Path], word: str) -> list[Path]:
    """Files whose cells hold a word: their pages are compressed."""
    import pyarrow.parquet as pq

    return [path for path in files if word in repr(pq.read_table(path).to_pylist())]


def test_a_projection_works_from_what_is_stored(root: Path, keys: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("OTLEDGER_KEYS", str(keys))
    with ledger(root, keys) as it:
        it.emit("a.b", {"name": SECRET}, subject="s")
    seen: list[Any] = []

    def apply(connection: sqlite3.Connection, record: otledger.Record) -> None:
        if record.type == "a.b":
            seen.append(record.data)
            connection.execute("INSERT INTO t VALUES (?)", (json.dumps(record.data),))

    (tmp_path / "db").mkdir()
    with otledger.Projection("seen", apply, tmp_path / "db" / "view.db", root=root, setup="CREATE TABLE t (x)") as view:
        view.catch_up_sync()
    assert [list(data) for data in seen] == [["$enc"]]
    assert not holds(tmp_path / "db", SECRET)


def test_a_sealer_keeps_a_bounded_number_of_keys(root: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otledger.encryption._MOST", 3)
    monkeypatch.setattr("otledger.keyring._MOST", 3)
    with ledger(root, keys) as it:
        for _ in range(2):
            for number in range(10):
                it.emit("a.b", SECRET, subject=f"user-{number}")
        encryption = it._core.encryption
        assert isinstance(encryption, Encryption)
        assert len(encryption._known) <= 3
    assert len(key_files(keys)) == 10
    reader = Reader(root, keys=keys)
    assert [record.data for record in reader.records(Filter(type="a.b"))] == [SECRET] * 20
    assert len(reader._opener._ciphers) <= 3
