"""Witnesses: what they accept, what they refuse, and that there is always one note, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import otledger
from otledger import Status
from otledger import witness as reading
from otledger.errors import ConfigurationError
from otledger.gitrepo import git
from otledger.notes import Commitment, Note, SignerKey
from otledger.witness import WitnessError, open_place, read_place
from otledger.witnessing import Outcome, witness
from tests.conftest import Script
from tests.notary import Notary, rewrite

COMMAND = [sys.executable, "-m", "otledger"]

PlaceText = str


@pytest.fixture
def notary(root: Path) -> Notary:
    """A ledger with a signed note over some records."""
    made = Notary(root)
    made.emit(5)
    made.sign()
    return made


@pytest.fixture(params=["folder", "git"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> PlaceText:
    """Each kind of place that needs nobody else."""
    path = tmp_path / "elsewhere"
    return str(path) if request.param == "folder" else f"git+{path}"


def offer(notary: Notary, place: PlaceText, **options: Any) -> Outcome:
    options.setdefault("keys", notary.keys[:1])
    (outcome,) = witness(notary.root, open_place(place), machines=[notary.machine], **options)
    return outcome


def kept(notary: Notary, place: PlaceText) -> reading.WitnessedNote:
    return read_place(place)[notary.origin]


def size(note: str) -> int:
    return Commitment.parse(Note.parse(note).text).size


# What is accepted


def test_a_ledger_that_grows_is_followed(notary: Notary, place: PlaceText) -> None:
    before = time.time_ns()
    outcome = offer(notary, place)
    assert outcome.verdict == "first"
    notes = [kept(notary, place).note]
    assert outcome.size == size(notes[0])
    for count in (1, 7, 40, 64):
        notary.emit(count)
        notes.append(notary.sign())
        outcome = offer(notary, place, keys=[])
        assert (outcome.verdict, outcome.size, outcome.before) == ("accepted", size(notes[-1]), size(notes[-2]))
        assert kept(notary, place).note == notes[-1]
        assert offer(notary, place).verdict == "unchanged"
    entry = kept(notary, place)
    assert before < entry.taken < time.time_ns()
    assert (entry.machine, entry.number, entry.key) == ("m1", 4, notary.key)
    assert entry.refused == ()
    assert [each.note for each in open_place(place).history(notary.origin)] == notes


def test_only_new_records_are_read_for_a_proof(notary: Notary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    from otledger import witnessing

    real = witnessing.consistency
    monkeypatch.setattr(witnessing, "consistency", lambda *args: asked.append(args) or real(*args))
    place = str(tmp_path / "elsewhere")
    offer(notary, place)
    had = kept(notary, place)
    notary.emit(3)
    notary.sign()
    assert offer(notary, place).verdict == "accepted"
    assert asked[-1][-1] == had.edge
    assert had.edge


def test_the_first_note_needs_a_key(notary: Notary, place: PlaceText) -> None:
    outcome = offer(notary, place, keys=[])
    assert outcome.verdict == "untrusted"
    assert "--key" in outcome.reason
    assert not open_place(place).is_there()
    assert offer(notary, place, keys=[SignerKey.new("otledger/another").verifier]).verdict == "untrusted"
    assert offer(notary, place, keys=[], trust_first=True).verdict == "first"
    assert kept(notary, place).key == notary.key


def test_a_first_note_by_another_key_is_refused(notary: Notary, place: PlaceText) -> None:
    outcome = offer(notary, place, keys=[SignerKey.new(notary.origin).verifier])
    assert outcome.verdict == "refused"
    assert notary.key.id.hex() in outcome.reason
    assert open_place(place).newest(notary.origin) is None
    assert [each.note for each in open_place(place).refused(notary.origin)] == [notary_note(notary)]


def notary_note(notary: Notary) -> str:
    from otledger.proofs import newest_note

    found = newest_note(notary.root, notary.machine)
    assert found is not None
    return found.note


def test_another_key_on_the_command_line_than_the_known_one_is_told(notary: Notary, place: PlaceText) -> None:
    offer(notary, place)
    outcome = offer(notary, place, keys=[SignerKey.new(notary.origin).verifier])
    assert outcome.verdict == "untrusted"
    assert "--key" in outcome.reason


def test_machines_without_notes_and_unknown_ones(notary: Notary, place: PlaceText) -> None:
    with otledger.Journal(notary.root, machine="m2") as journal:
        journal.append([otledger.Draft("x.y")])
    outcomes = {outcome.machine: outcome for outcome in witness(notary.root, open_place(place), keys=notary.keys)}
    assert outcomes["m1"].verdict == "first"
    assert outcomes["m2"].verdict == "nothing"
    with pytest.raises(ConfigurationError, match="m3"):
        witness(notary.root, open_place(place), machines=["m3"])


def test_several_machines_stand_side_by_side(root: Path, place: PlaceText) -> None:
    notaries = [Notary(root, name) for name in ("m1", "m2", "m3")]
    for notary in notaries:
        notary.emit(3)
        notary.sign()
    keys = [notary.key for notary in notaries]
    assert [each.verdict for each in witness(root, open_place(place), keys=keys)] == ["first"] * 3
    assert {origin: entry.machine for origin, entry in read_place(place).items()} == {
        notary.origin: notary.machine for notary in notaries
    }


# Keys that follow each other


def test_a_key_that_the_known_one_named_is_followed(notary: Notary, place: PlaceText) -> None:
    offer(notary, place)
    for _ in range(2):
        notary.emit(2)
        notary.rotate()
    notary.emit(2)
    notary.sign()
    outcome = offer(notary, place)
    assert (outcome.verdict, outcome.key) == ("accepted", notary.key.id.hex())
    entry = kept(notary, place)
    assert [known.key for known in entry.keys] == notary.keys
    assert [known.note is None for known in entry.keys] == [True, False, False]
    # The old keys may be given still, as those who pinned them do.
    notary.emit(1)
    notary.sign()
    assert offer(notary, place, keys=notary.keys[1:2]).verdict == "accepted"


def test_a_first_note_may_be_by_a_key_that_follows_the_pinned_one(notary: Notary, place: PlaceText) -> None:
    notary.rotate()
    notary.emit(1)
    notary.sign()
    assert offer(notary, place, keys=notary.keys[:1]).verdict == "first"
    assert [known.key for known in kept(notary, place).keys] == notary.keys


def test_a_key_that_nobody_named_is_refused(notary: Notary, place: PlaceText) -> None:
    offer(notary, place)
    thief = SignerKey.new(notary.origin)
    notary.emit(1)
    notary.rotate(by=thief, new=SignerKey.new(notary.origin))
    notary.sign()
    assert refused(notary, place).startswith("the witness has a note of")


def test_an_old_note_does_not_name_another_key(notary: Notary, place: PlaceText) -> None:
    """Its signature is right, and it says nothing of the thief's key."""
    offer(notary, place)
    thief = SignerKey.new(notary.origin)
    record = {"old": str(notary.key), "new": str(thief.verifier), "size": 1, "root": "", "path": []}
    notary._append("otledger.key", {**record, "signature": kept(notary, place).note})
    notary.emit(1)
    notary.sign(signer=thief)
    assert thief.verifier.id.hex() in refused(notary, place)


def test_keys_at_the_place_that_did_not_follow_each_other_are_told(notary: Notary, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere"
    before = notary_note(notary)
    offer(notary, str(place))
    notary.rotate()
    notary.sign()
    offer(notary, str(place))
    path = files(place)[-1]
    stored = json.loads(path.read_bytes())
    stranger = str(SignerKey.new(notary.origin).verifier)
    first, second = stored["keys"]
    for keys in (
        [{**first, "key": stranger}, second],
        [first, {**second, "note": before}],
        [first, {**second, "note": None}],
    ):
        path.write_text(json.dumps({**stored, "keys": keys}))
        with pytest.raises(WitnessError, match=path.name):
            read_place(place)
    path.write_text(json.dumps(stored))
    assert kept(notary, str(place)).keys[1].key == notary.key


def test_an_old_key_counts_no_more(notary: Notary, place: PlaceText) -> None:
    old = notary.signer
    notary.rotate()
    notary.emit(1)
    notary.sign()
    offer(notary, place)
    notary.emit(1)
    notary.sign(signer=old)
    assert old.verifier.id.hex() in refused(notary, place)


def test_a_key_change_that_was_signed_over_another_ledger_is_refused(
    notary: Notary, place: PlaceText, tmp_path: Path
) -> None:
    offer(notary, place)
    elsewhere = Notary(tmp_path / "other", "m1")
    elsewhere.origin, elsewhere.signer, elsewhere.keys = notary.origin, notary.signer, list(notary.keys)
    elsewhere.emit(30)
    elsewhere.rotate()
    stolen = next(record for record in reversed(elsewhere._records()) if record["type"] == "otledger.key")
    notary._append("otledger.key", stolen["data"])
    notary.emit(40)
    notary.sign(signer=elsewhere.signer)
    assert "not those that were signed before" in refused(notary, place)


# Attacks


def refused(notary: Notary, place: PlaceText, **options: Any) -> str:
    """Offer what must be refused: the old note stays, the new one is kept as evidence. Gives the reason."""
    before = kept(notary, place)
    outcome = offer(notary, place, **options)
    assert outcome.verdict == "refused", outcome
    after = kept(notary, place)
    assert after == before
    (evidence,) = after.refused
    assert evidence.reason == outcome.reason
    assert evidence.machine == notary.machine
    # The same again is kept once.
    assert offer(notary, place, **options).verdict == "refused"
    assert len(kept(notary, place).refused) == 1
    assert f"{before.commitment.size:,}" in outcome.reason
    return outcome.reason


def copy(notary: Notary, to: Path) -> Path:
    shutil.copytree(notary.root, to)
    return to


def put_back(notary: Notary, copied: Path) -> None:
    shutil.rmtree(notary.root)
    shutil.copytree(copied, notary.root)


def test_an_old_copy_put_back_is_refused(notary: Notary, place: PlaceText, tmp_path: Path) -> None:
    old = copy(notary, tmp_path / "copy")
    notary.emit(10)
    notary.sign()
    offer(notary, place)
    put_back(notary, old)
    reason = refused(notary, place)
    assert "fewer" in reason
    assert "TAMPERED" in reason
    (evidence,) = kept(notary, place).refused
    assert evidence.note == notary_note(notary)


def test_an_old_copy_that_goes_on_is_refused(notary: Notary, place: PlaceText, tmp_path: Path) -> None:
    old = copy(notary, tmp_path / "copy")
    notary.emit(10)
    notary.sign()
    offer(notary, place)
    put_back(notary, old)
    notary.emit(30, "other.events")
    notary.sign()
    assert "not those that were signed before" in refused(notary, place)


def test_as_many_other_records_are_refused(notary: Notary, place: PlaceText, tmp_path: Path) -> None:
    old = copy(notary, tmp_path / "copy")
    notary.emit(10)
    notary.sign()
    offer(notary, place)
    put_back(notary, old)
    notary.emit(10, "other.events")
    notary.sign()
    assert "another root" in refused(notary, place)


def test_a_ledger_without_its_notes_is_refused(notary: Notary, place: PlaceText) -> None:
    offer(notary, place)
    (segment,) = (notary.root / "m1").glob("*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join(line for line in lines if b'"note":' not in line))
    assert "has none" in refused(notary, place)


def test_another_chain_in_the_partition_is_refused(notary: Notary, place: PlaceText) -> None:
    offer(notary, place)
    shutil.rmtree(notary.root / "m1")
    other = Notary(notary.root)
    other.emit(50)
    other.sign()
    reason = refused(notary, place, keys=[*notary.keys, *other.keys])
    assert other.origin in reason


def test_a_partition_that_is_gone_is_refused(notary: Notary, place: PlaceText) -> None:
    offer(notary, place)
    shutil.rmtree(notary.root / "m1")
    assert "no machine m1 any more" in refused(notary, place)
    (outcome,) = witness(notary.root, open_place(place))
    assert (outcome.machine, outcome.verdict) == ("m1", "refused")


def test_a_note_of_another_machine_counts_for_nothing(notary: Notary, place: PlaceText) -> None:
    offer(notary, place)
    other = Notary(notary.root, "m2")
    other.origin, other.signer = notary.origin, notary.signer
    other.emit(40)
    other.sign()
    before = kept(notary, place)
    outcome = offer(other, place)
    assert outcome.verdict == "nothing"
    assert notary.origin in outcome.reason
    assert kept(notary, place) == before
    assert kept(notary, place).refused == ()


def test_a_new_chain_behind_the_old_one_is_another_one(notary: Notary, place: PlaceText, tmp_path: Path) -> None:
    """The format lets a partition begin a new chain behind what it cannot know (6): the old records are still there."""
    offer(notary, place)
    new = Notary(tmp_path / "new")
    (old,), (segment,) = (list((root / "m1").glob("*.jsonl")) for root in (notary.root, new.root))
    previous = b'"previous":{"segment":"%s","size":%d}' % (old.name.encode(), old.stat().st_size)
    rewrite(segment, lambda part: part.replace(b'"previous":null', previous))
    segment.rename(old.with_name(old.name.replace(".jsonl", ".1.jsonl")))
    (notary.root / "m1" / ".lock").unlink()
    new.root = notary.root
    new.emit(1)
    new.sign()
    assert offer(new, place).verdict == "first"
    assert set(read_place(place)) == {notary.origin, new.origin}
    assert offer(new, place).verdict == "unchanged"


def test_an_old_note_written_again_is_refused(notary: Notary, place: PlaceText) -> None:
    first = next(
        record for record in notary._records() if record["type"] == "otledger.checkpoint" and "note" in record["data"]
    )
    notary.emit(4)
    notary.sign()
    offer(notary, place)
    notary._append("otledger.checkpoint", first["data"])
    assert "fewer" in refused(notary, place)


def test_a_record_changed_behind_the_known_note_is_refused(notary: Notary, place: PlaceText) -> None:
    offer(notary, place)
    notary.emit(4)
    notary.sign()
    (segment,) = (notary.root / "m1").glob("*.jsonl")
    segment.write_bytes(segment.read_bytes().replace(b'{"n":3}', b'{"n":7}'))
    assert "no proof leads there" in refused(notary, place)


def test_evidence_has_an_end(notary: Notary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from otledger.witnesses import folder

    monkeypatch.setattr(folder, "MOST_REFUSED", 3)
    place = str(tmp_path / "elsewhere")
    offer(notary, place)
    thief = SignerKey.new(notary.origin)
    for _ in range(5):
        notary.sign(signer=thief)
        assert offer(notary, place).verdict == "refused"
    assert len(kept(notary, place).refused) == 3


# The place


def test_a_place_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    for text in (str(tmp_path / "none"), f"git+{tmp_path / 'none'}"):
        with pytest.raises(WitnessError, match="no witness's place"):
            read_place(text)
    for text in ("ftp://somewhere/x", "git+", "tsa+http://somewhere/", "tsa+ftp://x#/y", ""):
        with pytest.raises(ConfigurationError):
            open_place(text)


def files(place: Path) -> list[Path]:
    return sorted(place.rglob("*.json"))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b'"number": 1', b'"number": 2'),
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data.replace(b"otledger/", b"otledger/0"),
        lambda data: data.replace(b'"otledger": 1', b'"otledger": 2'),
        lambda data: data.replace(b'"edge": [', b'"edge": ["AAAA",'),
        lambda data: data.replace(b'"keys"', b'"kees"'),
        lambda data: json.dumps({**json.loads(data), "keys": []}).encode(),
        lambda data: json.dumps(
            {**json.loads(data), "note": json.loads(data)["note"].replace("\n\n", "\nmore\n\n")}
        ).encode(),
    ],
)
def test_what_no_witness_left_is_told(notary: Notary, tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    place = tmp_path / "elsewhere"
    offer(notary, str(place))
    notary.emit(1)
    notary.sign()
    offer(notary, str(place))
    path = files(place)[-1]
    assert change(path.read_bytes()) != path.read_bytes()
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(WitnessError, match=path.name):
        read_place(place)
    with pytest.raises(WitnessError, match=path.name):
        offer(notary, str(place))


def test_a_missing_or_changed_note_shows_in_the_history(notary: Notary, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere"
    for _ in range(4):
        notary.emit(1)
        notary.sign()
        offer(notary, str(place))
    changed, missing = files(place)[1:3]
    entry = json.loads(changed.read_bytes())
    changed.write_text(json.dumps({**entry, "taken": 1}))
    with pytest.raises(WitnessError, match="follows another"):
        list(open_place(place).history(notary.origin))
    missing.unlink()
    with pytest.raises(WitnessError):
        list(open_place(place).history(notary.origin))
    assert kept(notary, str(place)).number == 3


def test_many_notes_go_to_several_folders(notary: Notary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from otledger.witnesses import folder

    monkeypatch.setattr(folder, "SHELF", 2)
    place = tmp_path / "elsewhere"
    for at in range(5):
        notary.emit(1)
        notary.sign()
        assert offer(notary, str(place)).verdict in ("first", "accepted")
        assert kept(notary, str(place)).number == at
    assert len({path.parent for path in files(place)}) == 3
    assert len(list(open_place(place).history(notary.origin))) == 5


def test_an_origin_never_leads_out_of_the_place(root: Path, place: PlaceText) -> None:
    notary = Notary(root)
    for origin in ("otledger/../../x", "otledger/a/b", "otledger/.", "elsewhere/x", "otledger/" + "a" * 70):
        notary.origin = origin
        notary.signer = SignerKey.new(origin)
        notary.sign()
        assert offer(notary, place, keys=[notary.key], trust_first=True).verdict == "nothing"
    # Nor where the chain itself has such a name.
    (segment,) = (root / "m1").glob("*.jsonl")
    real = json.loads(segment.read_bytes().splitlines()[0])["data"]["ledger"]
    rewrite(segment, lambda part: part.replace(f'"ledger":"{real}"'.encode(), b'"ledger":"../../x"'))
    (root / "m1" / ".lock").unlink()
    notary.origin = "otledger/../../x"
    notary.signer = SignerKey.new(notary.origin)
    notary.sign()
    assert offer(notary, place, keys=[notary.key], trust_first=True).verdict == "nothing"
    assert not open_place(place).is_there()


def test_what_is_there_is_never_touched_again(notary: Notary, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere"
    offer(notary, str(place))
    (shelf,) = {path.parent for path in files(place)}

    def touched(path: Path) -> tuple[int, ...]:
        """All that changes by whatever is done with a file but reading it."""
        info = path.stat()
        return info.st_ino, info.st_nlink, info.st_size, info.st_mode, info.st_mtime_ns, info.st_ctime_ns

    before = {path.name: touched(path) for path in shelf.iterdir()}
    notary.emit(1)
    notary.sign()
    offer(notary, str(place))
    for name, known in before.items():
        assert touched(shelf / name) == known, "what was there is touched again"


def test_git_shows_each_note_and_touches_no_work_tree(notary: Notary, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    git(None, "init", "-q", "-b", "main", str(notes))
    (notes / "mine").write_text("mine")
    git(notes, "add", "mine")
    place = f"git+{notes}"
    offer(notary, place)
    notary.emit(1)
    note = notary.sign()
    offer(notary, place)
    assert git(notes, "status", "--porcelain").decode() == "A  mine\n"
    assert note in git(notes, "log", "-1", "--format=%B", "witness").decode()
    assert git(notes, "log", "--format=%an", "witness").decode().split("\n")[:2] == ["otledger witness"] * 2
    git(notes, "fsck", "--strict")
    # Another branch is another place.
    assert offer(notary, f"{place}#other").verdict == "first"
    git(notes, "checkout", "-q", "-f", "witness")
    notary.emit(1)
    notary.sign()
    with pytest.raises(WitnessError, match="checked out"):
        offer(notary, place)
    # A clone of it says the same.
    git(None, "clone", "-q", str(notes), str(tmp_path / "clone"))
    assert read_place(f"git+{tmp_path / 'clone'}") == read_place(place)


def test_a_lock_that_git_left_is_named(notary: Notary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from otledger.witnesses import git as git_place

    monkeypatch.setattr(git_place, "TRIES", 2)
    place = f"git+{tmp_path / 'notes'}"
    offer(notary, place)
    notary.emit(1)
    notary.sign()
    lock = tmp_path / "notes" / "refs" / "heads" / "witness.lock"
    lock.touch()
    with pytest.raises(WitnessError, match=r"witness\.lock"):
        offer(notary, place)
    lock.unlink()
    assert offer(notary, place).verdict == "accepted"


# Races and crashes

RACE = """
    import sys
    from otledger.notes import VerifierKey
    from otledger.witness import open_place
    from otledger.witnessing import witness

    sys.stdin.readline()
    for _ in range(int(sys.argv[4])):
        (outcome,) = witness(sys.argv[1], open_place(sys.argv[2]), keys=[VerifierKey.parse(sys.argv[3])])
        print(outcome.verdict, outcome.size, flush=True)
"""


def test_two_witnesses_at_once_keep_one_history(notary: Notary, place: PlaceText, script: Script) -> None:
    processes = [script(RACE, notary.root, place, notary.key, 12) for _ in range(3)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for _ in range(8):
        notary.emit(1)
        notary.sign()
    lines = [line.split() for process in processes for line in process.communicate(timeout=60)[0].splitlines()]
    assert all(process.returncode == 0 for process in processes)
    assert len(lines) == 36
    assert {verdict for verdict, _ in lines} <= {"first", "accepted", "unchanged"}
    offer(notary, place)
    sizes = [each.commitment.size for each in open_place(place).history(notary.origin)]
    assert sizes == sorted(set(sizes))
    assert [int(size) for verdict, size in lines if verdict == "first"] == sizes[:1]
    # Each was accepted by one of them, and by no other.
    assert len([line for line in lines if line[0] in ("first", "accepted")]) in (len(sizes), len(sizes) - 1)


def test_two_forks_at_two_witnesses_of_one_place(notary: Notary, place: PlaceText, tmp_path: Path) -> None:
    """Both look before either puts: only one may follow the note that is there."""
    offer(notary, place)
    other = copy(notary, tmp_path / "copy")
    notary.emit(3)
    notary.sign()
    fork = object.__new__(Notary)
    fork.__dict__.update(notary.__dict__, root=other)
    fork.emit(9, "other.events")
    fork.sign()
    opened = open_place(place)
    real = opened.put
    outcomes = []

    def quicker(entry: reading.WitnessedNote) -> bool:
        opened.put = real  # type: ignore[method-assign]
        outcomes.extend(witness(fork.root, open_place(place)))
        return real(entry)

    opened.put = quicker  # type: ignore[method-assign]
    outcomes += witness(notary.root, opened)
    assert [outcome.verdict for outcome in outcomes] == ["accepted", "refused"]
    assert [each.commitment.size for each in open_place(place).history(notary.origin)][-1] == outcomes[0].size
    assert len(kept(notary, place).refused) == 1


CALLS = ("open", "write", "fsync", "link", "unlink", "mkdir")


def steps(place: Path) -> Any:
    """What is at a place, whole."""
    return {path.relative_to(place): path.read_bytes() for path in files(place)}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_at_any_step_leaves_the_old_note_or_the_new_one(
    notary: Notary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Each call that changes the place fails once, before or after it took effect, and nothing is cleaned up."""
    place = tmp_path / "elsewhere"
    offer(notary, str(place))
    old = kept(notary, str(place)).note
    notary.emit(2)
    new = notary.sign()
    saved = tmp_path / "saved"
    shutil.copytree(place, saved)
    seen = set()
    for at in itertools.count():
        shutil.rmtree(place)
        shutil.copytree(saved, place)
        left = at
        dead = False

        def wrap(name: str) -> Callable[..., Any]:
            real = getattr(os, name)

            def call(*args: Any, **more: Any) -> Any:
                nonlocal left, dead
                if dead:
                    raise OSError(errno.EIO, "this process is dead")
                if name == "open" and not args[1] & os.O_CREAT:
                    return real(*args, **more)
                left -= 1
                if left < 0:
                    dead = True
                    seen.add(name)
                    if after:
                        real(*args, **more)
                    raise KeyboardInterrupt
                return real(*args, **more)

            return call

        with monkeypatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, wrap(name))
            with contextlib.suppress(KeyboardInterrupt, OSError, WitnessError):
                offer(notary, str(place))
        if not dead:
            break
        assert kept(notary, str(place)).note in (old, new)
        assert offer(notary, str(place)).verdict in ("accepted", "unchanged")
        assert kept(notary, str(place)).note == new
        assert len(list(open_place(place).history(notary.origin))) == 2
    assert seen >= {"open", "write", "fsync", "link", "unlink"}


@pytest.mark.parametrize("kind", ["folder", "git"])
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_a_kill_at_any_step_leaves_the_old_note_or_the_new_one(notary: Notary, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "elsewhere"
    place = str(path) if kind == "folder" else f"git+{path}"
    offer(notary, place)
    old = kept(notary, place).note
    notary.emit(2)
    new = notary.sign()
    saved = tmp_path / "saved"
    shutil.copytree(path, saved)
    kills = 0
    found = set()
    code = RACE.replace("sys.stdin.readline()", "pass")
    calls = (
        ("link,linkat", "fsync,fdatasync")
        if kind == "folder"
        else ("rename,renameat,renameat2", "link,linkat", "fsync")
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONDONTWRITEBYTECODE": "1"}
    program = [sys.executable, "-c", textwrap.dedent(code), str(notary.root), place, str(notary.key), "1"]
    for call in calls:
        # Git makes many such calls: every other one will do.
        for when in range(1, 40, 1 if kind == "folder" else 2):
            shutil.rmtree(path)
            shutil.copytree(saved, path)
            inject = f"inject={call}:signal=KILL:when={when}"
            command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject, *program]
            done = subprocess.run(command, capture_output=True, env=environment, check=False)
            there = kept(notary, place).note
            if done.returncode == 0:
                # There are no more of these calls.
                assert there == new
                break
            kills += 1
            assert there in (old, new)
            found.add(there == new)
            for lock in path.rglob("*.lock"):
                # What git leaves where it is killed itself; its message names the file, for people to remove.
                lock.unlink()
            assert offer(notary, place).verdict in ("accepted", "unchanged")
            assert kept(notary, place).note == new
        else:
            raise AssertionError("it never came to an end")
    assert kills >= 3
    assert False in found


def test_a_note_has_its_name_when_it_is_durable_and_is_told_when_that_is(
    notary: Notary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "elsewhere"
    offer(notary, str(place))
    notary.emit(1)
    notary.sign()
    calls = []
    fsync, link = os.fsync, os.link

    def syncing(fd: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def linking(*args: Any, **more: Any) -> None:
        calls.append("link")
        link(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", syncing)
        patch.setattr(os, "link", linking)
        assert offer(notary, str(place)).verdict == "accepted"
    assert calls == ["file", "link", "folder"]


def test_only_the_next_number_is_taken(notary: Notary, place: PlaceText) -> None:
    offer(notary, place)
    entry = kept(notary, place)
    for number in (0, 2, 7):
        assert not open_place(place).put(replace(entry, number=number))
    assert kept(notary, place) == entry


def test_a_full_disk_is_told(notary: Notary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "elsewhere"
    offer(notary, str(place))
    notary.emit(1)
    notary.sign()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = steps(place)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(WitnessError, match="No space left"):
            offer(notary, str(place))
    assert steps(place) == before
    assert not list(place.rglob(".new.*"))


# The command


def run(*args: object, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    # Without compiled files each of these many processes would compile otledger anew.
    given = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = {**given, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables}
    command = [*COMMAND, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    return done


def test_the_command_accepts_refuses_and_lists(notary: Notary, place: PlaceText, tmp_path: Path) -> None:
    common = ("--root", notary.root)
    done = run("witness", place, *common)
    assert (done.returncode, done.stdout.split()[:2]) == (2, ["m1", "untrusted"])
    assert "--key" in done.stderr
    pub = tmp_path / "ledger.pub"
    pub.write_text(f"{notary.key}\n")
    done = run("witness", place, *common, "--key", pub)
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["m1", "first"])
    done = run("witness", place, *common, "--key", notary.key, "--json")
    assert done.returncode == 0
    (machine,) = json.loads(done.stdout)["machines"]
    assert (machine["verdict"], machine["origin"]) == ("unchanged", notary.origin)
    notary.sign(signer=SignerKey.new(notary.origin))
    done = run("witness", place, *common)
    assert (done.returncode, done.stdout.split()[:2]) == (3, ["m1", "refused"])
    assert "TAMPERED" in done.stderr
    done = run("witness", "--list", place)
    assert done.returncode == 0
    assert notary.origin in done.stdout
    assert "TAMPERED" in done.stderr
    done = run("witness", "--list", "--history", place, "--json")
    (entry,) = json.loads(done.stdout)["notes"]
    assert entry["note"] == kept(notary, place).note
    done = run("witness", place, *common, "--key", "nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert "nonsense" in done.stderr
    done = run("witness", "--list", tmp_path / "none")
    assert (done.returncode, done.stdout) == (2, "")


def test_the_command_goes_on_until_it_is_told_to_stop(notary: Notary, place: PlaceText) -> None:
    command = [
        *COMMAND,
        "witness",
        place,
        "--root",
        str(notary.root),
        "--key",
        str(notary.key),
        "--every",
        "0.1",
        "--json",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["machines"][0]["verdict"] == "first"
        for _ in range(3):
            notary.emit(1)
            note = notary.sign()
            (machine,) = json.loads(process.stdout.readline())["machines"]
            assert (machine["verdict"], machine["size"]) == ("accepted", size(note))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    finally:
        process.kill()
        process.communicate()
    assert kept(notary, place).note == note


# Together with the writer that signs, and with verify


def test_a_service_that_signs_rotates_and_is_witnessed(root: Path, tmp_path: Path) -> None:
    """Keys, notes and witness by command, with rotations between; then an old copy is put back."""
    place = str(tmp_path / "elsewhere")
    keys = {"OTLEDGER_KEYS": str(tmp_path / "keys"), "OTLEDGER_MACHINE": "m1", "OTLEDGER_ROOT": str(root)}
    assert run("log", "x.first", **keys).returncode == 0
    pub = tmp_path / "m1.pub"
    made = run("keys", "init", **keys)
    assert made.returncode == 0, made.stderr
    pub.write_text(run("keys", "export", **keys).stdout)
    assert run("witness", place, "--key", pub, **keys).returncode == 0
    shutil.copytree(root, tmp_path / "copy")
    for _ in range(2):
        assert run("keys", "rotate", **keys).returncode == 0
        assert run("log", "x.more", **keys).returncode == 0
        done = run("witness", place, "--json", **keys)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["machines"][0]["verdict"] == "accepted"
    (entry,) = read_place(place).values()
    assert len(entry.keys) == 3
    report = otledger.verify(root, keys=[str(pub)], witness=[place])
    assert report.status is Status.OK, report
    assert report.machines[0].witnessed_through == entry.commitment.size - 1
    shutil.rmtree(root)
    shutil.copytree(tmp_path / "copy", root)
    done = run("witness", place, **keys)
    assert done.returncode == 3
    assert "fewer" in done.stderr
    report = otledger.verify(root, keys=[str(pub)], witness=[place])
    assert report.status is Status.TAMPERED
    assert any("witness" in fault.reason for fault in report.faults)
