"""`verify` with what is known from elsewhere: public keys, witnesses, the signer's memory, the age of the last seal."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import otledger
from otledger import Report, Status
from otledger.errors import ConfigurationError, RootError
from otledger.merkle import Tree, leaf_hash
from otledger.notes import NoteError, SignerKey
from otledger.verifying.subtrees import Runs, add_subtrees, subtrees
from tests.faults.tools import (
    MACHINE,
    append_bytes,
    edited,
    environment,
    lines_of,
    newest,
    offsets,
    partition,
    rechained,
    record_of,
    restamp,
    segment_names,
)
from tests.signed import Signed, checkpoints, resigned, rewrite, unsynced

module = sys.modules[otledger.verify.__module__]

MODES: dict[str, dict[str, Any]] = {
    "notes": {},
    "deep": {"deep": True},
    "tree": {"tree": True},
    "since": {"since_checkpoint": True},
    "small chunks": {"chunk": 300},
    "small chunks, tree": {"chunk": 300, "tree": True},
    "two processes": {"chunk": 2000, "processes": 2},
    "two processes, tree": {"chunk": 2000, "processes": 2, "tree": True},
}
EVERYTHING = [name for name in MODES if name != "since"]


def verify(root: Path, *pins: str, chunk: int = 16 << 20, **options: Any) -> Report:
    with patch.object(module, "CHUNK", chunk):
        return otledger.verify(root, keys=pins, **{"processes": 1, **options})


def one(report: Report) -> Any:
    (machine,) = report.machines
    return machine


def first(report: Report) -> tuple[Status, str, int, int | None]:
    """The status, and the first place of the worst kind."""
    fault = report.faults[0]
    assert fault.status == report.status, report.faults
    return report.status, fault.file, fault.offset, fault.seq


@pytest.fixture
def signed(root: Path) -> Iterator[Signed]:
    """Two seals, the second of which lags: header, key, 1, 2, 3, note, 4, 5, 6, note over 8 records."""
    with Signed(root) as ledger:
        ledger.begin().put(1).put(2).put(3).seal().put(4).put(5).put(6).seal(8)
        yield ledger


@pytest.fixture
def sealed(root: Path) -> Iterator[Signed]:
    """All events are under a note: header, key, 1, 2, 3, note, 4, 5, note."""
    with Signed(root) as ledger:
        ledger.begin().put(1).put(2).put(3).seal().put(4).put(5).seal()
        yield ledger


# Good ones --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_sealed_ledger(sealed: Signed, mode: str) -> None:
    sealed.close()
    report = verify(sealed.root, sealed.pin, **MODES[mode])
    assert (report.status, report.faults) == (Status.OK, ())
    machine = one(report)
    assert (machine.ledger, machine.sealed_through) == (sealed.ledger, 7)
    assert machine.key_ids == (sealed.verifier.id.hex(),)
    assert 0 <= machine.seal_age < 3600
    assert machine.sealed_at.endswith("Z")
    assert (machine.witnessed_through, machine.witness_age, machine.archived) == (None, None, ())
    assert (machine.unread > 0) == (mode == "since")
    plain = json.loads(json.dumps(report.to_dict()))["machines"][0]
    assert plain["sealed_through"] == 7
    assert plain["key_ids"] == list(machine.key_ids)


@pytest.mark.parametrize("mode", MODES)
def test_records_that_no_note_covers_yet(signed: Signed, mode: str) -> None:
    report = verify(signed.root, signed.pin, **MODES[mode])
    assert (report.status, report.faults, one(report).sealed_through) == (Status.UNSEALED_TAIL, (), 7)
    assert report.status.exit_code == 7
    signed.seal()
    assert verify(signed.root, signed.pin, **MODES[mode]).status == Status.OK
    signed.put("more")
    assert verify(signed.root, signed.pin, **MODES[mode]).status == Status.UNSEALED_TAIL


def test_without_a_key_nothing_is_sealed(signed: Signed) -> None:
    for options in ({}, {"deep": True}, {"tree": True}, {"tail": True}):
        report = verify(signed.root, **options)
        machine = one(report)
        assert (report.status, report.faults) == (Status.OK, ())
        assert (machine.sealed_through, machine.sealed_at, machine.seal_age) == (None, None, None)
    assert one(verify(signed.root)).key_ids == (signed.verifier.id.hex(),)
    for options in ({"since_checkpoint": True}, {"heartbeat": 10.0}):
        with pytest.raises(ConfigurationError, match="--key"):
            verify(signed.root, **options)


def test_what_does_not_go_together(signed: Signed) -> None:
    for options in ({"tail": True, "tree": True}, {"tail": True, "since_checkpoint": True}, {"heartbeat": 0}):
        with pytest.raises(ConfigurationError):
            verify(signed.root, signed.pin, **options)
    for key, error in ((signed.pin[:-3], NoteError), ("nowhere", RootError)):
        with pytest.raises(error):
            verify(signed.root, key)


def test_keys_in_files(signed: Signed, tmp_path: Path) -> None:
    other = SignerKey.new("otledger/other").verifier
    (tmp_path / "keys").write_text(f"# ours\n\n{other}\n{signed.pin}\n")
    assert one(verify(signed.root, str(tmp_path / "keys"))).sealed_through == 7
    report = otledger.verify(signed.root, keys=[signed.verifier, other])
    assert one(report).sealed_through == 7
    for content in (b"", b"# none\n", b"\xff\xfe", b"a+b+c\n"):
        (tmp_path / "keys").write_bytes(content)
        with pytest.raises(NoteError):
            verify(signed.root, str(tmp_path / "keys"))


# Nothing is proved ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_key_of_another_chain(sealed: Signed, mode: str) -> None:
    report = verify(sealed.root, str(SignerKey.new("otledger/other").verifier), **MODES[mode])
    assert report.status == Status.INCOMPLETE
    assert "no key given for this chain" in report.faults[0].reason
    assert one(report).sealed_through is None


@pytest.mark.parametrize("mode", MODES)
def test_no_note_at_all(root: Path, mode: str) -> None:
    with Signed(root) as ledger:
        ledger.put(1, 2, 3)
    report = verify(root, ledger.pin, **MODES[mode])
    assert report.status == Status.INCOMPLETE
    assert "cannot be proved" in report.faults[0].reason
    assert verify(root).status == Status.OK


@pytest.mark.parametrize("mode", MODES)
def test_all_checkpoints_deleted(sealed: Signed, mode: str) -> None:
    gone = ("otledger.checkpoint", "otledger.key")
    rewrite(sealed, lambda lines: unsynced(line for line in lines if record_of(line)["type"] not in gone))
    assert verify(sealed.root).status == Status.OK
    assert verify(sealed.root, sealed.pin, **MODES[mode]).status == Status.INCOMPLETE


@pytest.mark.parametrize("mode", MODES)
def test_the_age_of_the_last_seal(sealed: Signed, mode: str) -> None:
    assert verify(sealed.root, sealed.pin, heartbeat=3600, **MODES[mode]).status == Status.OK
    report = verify(sealed.root, sealed.pin, heartbeat=1e-6, **MODES[mode])
    assert report.status == Status.INCOMPLETE
    assert "the tail may have been cut" in report.faults[0].reason
    assert one(report).sealed_through == 7


def test_the_time_of_the_last_checkpoint_is_nobodys_to_choose(sealed: Signed) -> None:
    """It is not under its own note: whoever cuts off the tail may write any time there."""
    line = sealed.lines()[-1]
    time = record_of(line)["time"]

    def later(lines: list[bytes]) -> list[bytes]:
        return [*lines[:-1], lines[-1].replace(time.encode(), b"2100" + time.encode()[4:])]

    before = one(verify(sealed.root, sealed.pin)).sealed_at
    rewrite(sealed, later)
    report = verify(sealed.root, sealed.pin)
    assert report.status == Status.OK
    assert one(report).sealed_at == before


# Attacks ----------------------------------------------------------------------------------------------------


def edit(k: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [*lines[:k], lines[k].replace(b'"type":"app.event"', b'"type":"app.evenT"'), *lines[k + 1 :]]


def anew(line: bytes) -> bytes:
    """The record as another one, of which nobody can say that it was there before."""
    (line,) = unsynced([line])
    return line.replace(record_of(line)["id"].encode(), secrets.token_hex(16).encode())


CHANGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "edited": edit(3),
    "deleted": lambda lines: [*lines[:3], *unsynced(lines[4:])],
    "inserted": lambda lines: [*lines[:3], anew(lines[2]), *unsynced(lines[3:])],
    "swapped": lambda lines: [*lines[:2], *unsynced([lines[3], lines[2], *lines[4:]])],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("change", CHANGES)
def test_the_whole_chain_rewritten_without_the_key(sealed: Signed, change: str, mode: str) -> None:
    rewrite(sealed, CHANGES[change])
    # Heads that fit, as whoever recomputes everything would write them.
    rewrite(sealed, _with_heads)
    assert not verify(sealed.root).faults or verify(sealed.root).status == Status.TAMPERED
    report = verify(sealed.root, sealed.pin, **MODES[mode])
    place = next(checkpoints(sealed))
    assert first(report) == (Status.TAMPERED, place[0], place[1], place[2]["seq"])
    assert one(report).sealed_through is None


def _with_heads(lines: list[bytes]) -> list[bytes]:
    done: list[bytes] = []
    for line in lines:
        record = record_of(line)
        if record["type"] == "otledger.checkpoint":
            size = min(record["data"]["size"], len(done))
            line = line.replace(record["data"]["head"].encode(), rechained(done)[size - 1][-67:-3])
        done.append(line)
    return done


@pytest.mark.parametrize("mode", MODES)
def test_an_edit_behind_a_note_leaves_what_that_covers(sealed: Signed, mode: str) -> None:
    """The first note that does not hold is the first place, and the last one that does says how far all is well."""
    rewrite(sealed, edit(6))
    rewrite(sealed, _with_heads)
    report = verify(sealed.root, sealed.pin, **MODES[mode])
    good, bad = checkpoints(sealed)
    assert first(report) == (Status.TAMPERED, bad[0], bad[1], bad[2]["seq"])
    assert one(report).sealed_through == good[2]["data"]["size"] - 1 == 4


@pytest.mark.parametrize("mode", MODES)
def test_everything_signed_anew_by_another_key(sealed: Signed, mode: str) -> None:
    rewrite(sealed, lambda lines: resigned(edit(3)(lines), SignerKey.new(sealed.origin)))
    report = verify(sealed.root, sealed.pin, **MODES[mode])
    place = next(checkpoints(sealed))
    assert first(report) == (Status.TAMPERED, place[0], place[1], place[2]["seq"])
    assert "another key" in report.faults[0].reason
    assert one(report).sealed_through is None


@pytest.mark.parametrize("mode", ["notes", "deep", "since"])
def test_everything_signed_anew_where_no_record_begins_the_key(root: Path, mode: str) -> None:
    """Then the pinned key never begins: the first note is the first place."""
    with Signed(root) as ledger:
        ledger.put(1, 2, 3).seal().put(4).seal()
    rewrite(ledger, lambda lines: resigned(lines, SignerKey.new(ledger.origin)))
    report = verify(root, ledger.pin, **MODES[mode])
    place = next(checkpoints(ledger))
    assert first(report) == (Status.TAMPERED, place[0], place[1], place[2]["seq"])
    assert one(report).sealed_through is None


@pytest.mark.parametrize("mode", MODES)
def test_the_newest_note_by_another_key(sealed: Signed, mode: str) -> None:
    sealed.put("x").seal(key=SignerKey.new(sealed.origin))
    report = verify(sealed.root, sealed.pin, **MODES[mode])
    place = list(checkpoints(sealed))[-1]
    assert first(report) == (Status.TAMPERED, place[0], place[1], place[2]["seq"])
    assert "another key" in report.faults[0].reason
    assert one(report).sealed_through == 7


@pytest.mark.parametrize("mode", EVERYTHING)
def test_a_line_edited_where_it_stands(sealed: Signed, mode: str) -> None:
    """The records before it stand under the note that covers no more than those."""
    lines = sealed.lines()
    changed = [*lines[:6], lines[6].replace(b'"data":4', b'"data":7'), *lines[7:]]
    newest(sealed.root).write_bytes(b"".join(changed))
    report = verify(sealed.root, sealed.pin, **MODES[mode])
    assert first(report) == (Status.TAMPERED, newest(sealed.root).name, offsets(lines)[6], 6)
    assert one(report).sealed_through == 4


@pytest.mark.parametrize("mode", MODES)
def test_a_cut_back_to_an_older_seal_needs_more_than_the_key(sealed: Signed, mode: str, tmp_path: Path) -> None:
    """Only its age, a witness or the signer's memory tell."""
    note = sealed.note()
    sealed.remember(tmp_path / "keys")
    rewrite(sealed, lambda lines: lines[:6])
    options = MODES[mode]
    assert verify(sealed.root, sealed.pin, **options).status == Status.OK
    assert verify(sealed.root, sealed.pin, heartbeat=1e-6, **options).status == Status.INCOMPLETE
    end = newest(sealed.root).stat().st_size
    for known in ({"witness": [{sealed.origin: note}]}, {"memory": tmp_path / "keys"}):
        report = verify(sealed.root, sealed.pin, **known, **options)
        assert first(report) == (Status.TAMPERED, newest(sealed.root).name, end, 6)
        assert one(report).sealed_through == 4


@pytest.mark.parametrize("mode", MODES)
def test_the_signer_refused(sealed: Signed, mode: str) -> None:
    said = sealed.checkpoint()
    refused = {name: said[name] for name in ("size", "root", "note")}
    data = {"size": said["size"], "head": said["head"], "refused": refused}
    seq = sealed.control("otledger.checkpoint", data)
    report = verify(sealed.root, sealed.pin, **MODES[mode])
    assert first(report) == (Status.TAMPERED, sealed.places()[seq][0], sealed.places()[seq][1], seq)
    assert "is valid under the key given" in report.faults[0].reason
    assert verify(sealed.root).status == Status.TAMPERED
    assert "give the key" in verify(sealed.root).faults[0].reason


GARBLED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "size": lambda data: data | {"size": "5"},
    "negative size": lambda data: data | {"size": -1},
    "a size that is true": lambda data: data | {"size": True},
    "huge size": lambda data: data | {"size": 10**17},
    "no root": lambda data: {name: value for name, value in data.items() if name != "root"},
    "root": lambda data: data | {"root": "*" * 44},
    "another root": lambda data: data | {"root": data["path"][0]},
    "edge": lambda data: data | {"edge": data["edge"][1:]},
    "another edge": lambda data: data | {"edge": data["edge"][::-1]},
    "edge of numbers": lambda data: data | {"edge": [1, 2, 3]},
    "path": lambda data: data | {"path": None},
    "shorter path": lambda data: data | {"path": data["path"][1:]},
    "long path": lambda data: data | {"path": data["path"] * 50},
    "head": lambda data: data | {"head": "0" * 64},
    "head that is none": lambda data: data | {"head": ["\u2028"]},
    "note": lambda data: data | {"note": "x"},
    "note that is none": lambda data: data | {"note": {"a": 1}},
    "signature": lambda data: data | {"note": data["note"][:-10] + "AAAAAAA=\n"},
    "note without signature": lambda data: data | {"note": data["note"].partition("\n\n")[0] + "\n\n"},
    "size of another note": lambda data: data | {"note": data["note"].replace("\n7\n", "\n6\n")},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", GARBLED)
def test_garbled_members_are_faults_and_never_errors(root: Path, what: str, mode: str) -> None:
    with Signed(root) as ledger:
        ledger.put(1, 2, 3).seal().put(4).seal(3)
        seq = ledger.control("otledger.checkpoint", GARBLED[what](ledger.checkpoint(7)))
        report = verify(root, ledger.pin, **MODES[mode])
        # As everybody sees it who has no key.
        verify(root, **{name: value for name, value in MODES[mode].items() if name != "since_checkpoint"})
    assert first(report) == (Status.TAMPERED, ledger.places()[seq][0], ledger.places()[seq][1], seq)
    assert one(report).sealed_through == 2


@pytest.mark.parametrize("type", ["otledger.key", "otledger.sealed", "otledger.archive", "otledger.checkpoint"])
@pytest.mark.parametrize("data", [None, {}, [], "x", {"size": {}, "segment": 7, "new": 1, "note": 1, "refused": []}])
@pytest.mark.parametrize("mode", MODES)
def test_garbled_control_records(sealed: Signed, type: str, data: Any, mode: str) -> None:
    sealed.control(type, data)
    report = verify(sealed.root, sealed.pin, **MODES[mode])
    assert report.status in (Status.OK, Status.TAMPERED)
    assert one(report).sealed_through == 7
    assert (report.status == Status.OK) == (not isinstance(data, dict) or (type == "otledger.checkpoint" and not data))


# Keys -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("forward", [False, True])
def test_keys_that_follow_each_other(root: Path, mode: str, forward: bool) -> None:
    with Signed(root, forward=forward) as ledger:
        first_pin = ledger.pin
        ledger.begin().put(1).seal()
        pins = [first_pin]
        for number in range(3):
            ledger.rotate(signed=not forward).put(number).seal()
            pins.append(ledger.pin)
    for pin in pins:
        report = verify(root, pin, **MODES[mode])
        assert (report.status, report.faults) == (Status.OK, ()), pin
        assert ledger.verifier.id.hex() in one(report).key_ids
    assert verify(root, *pins, **MODES[mode]).status == Status.OK


@pytest.mark.parametrize("mode", EVERYTHING)
def test_the_old_key_counts_no_more(sealed: Signed, mode: str) -> None:
    old = sealed.key
    sealed.rotate().put(1).seal()
    good = one(verify(sealed.root, str(old.verifier))).sealed_through
    sealed.put("by whom").seal(key=old)
    for pins in ([str(old.verifier)], [sealed.pin], [sealed.pin, str(old.verifier)]):
        report = verify(sealed.root, *pins, **MODES[mode])
        place = list(checkpoints(sealed))[-1]
        assert first(report) == (Status.TAMPERED, place[0], place[1], place[2]["seq"])
        assert one(report).sealed_through == good


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", ["unsigned", "by itself", "of another tree", "for another key", "from an unknown key"])
def test_a_key_that_the_one_before_did_not_sign(sealed: Signed, how: str, mode: str) -> None:
    new = SignerKey.new(sealed.origin)
    data = sealed.change(new)
    if how == "unsigned":
        data["signature"] = None
    elif how == "by itself":
        sealed.key, own = new, sealed.key
        data["signature"] = sealed.change(SignerKey.new(sealed.origin))["signature"]
        sealed.key = own
    elif how == "of another tree":
        data["root"] = data["path"][0]
    elif how == "for another key":
        data["signature"] = sealed.change(SignerKey.new(sealed.origin))["signature"]
    else:
        data["old"] = str(SignerKey.new(sealed.origin).verifier)
    pin = sealed.pin
    seq = sealed.control("otledger.key", data)
    sealed.put("under the new one").seal(key=new)
    report = verify(sealed.root, pin, **MODES[mode])
    assert first(report) == (Status.TAMPERED, sealed.places()[seq][0], sealed.places()[seq][1], seq)
    assert one(report).sealed_through == 7
    # Who pins the new key believes it.
    if how != "of another tree" or not MODES[mode].get("tree"):
        assert verify(sealed.root, str(new.verifier), **MODES[mode]).status == Status.OK


@pytest.mark.parametrize("mode", MODES)
def test_notes_before_the_pinned_key_are_not_judged(sealed: Signed, mode: str) -> None:
    """Its predecessor's key is not known, and the chain binds what that had signed."""
    sealed.seal(key=SignerKey.new(sealed.origin))
    sealed.key = SignerKey.new(sealed.origin)
    assert verify(sealed.root, sealed.pin, **MODES[mode]).status == Status.TAMPERED
    seq = sealed.control("otledger.key", sealed.change(sealed.key, old=SignerKey.new(sealed.origin).verifier))
    report = verify(sealed.root, sealed.pin, **MODES[mode])
    assert report.status == Status.INCOMPLETE, report.faults
    sealed.put("new").seal()
    report = verify(sealed.root, sealed.pin, **MODES[mode])
    assert (report.status, report.faults, one(report).sealed_through) == (Status.OK, (), seq + 1)


# Witnesses and memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_witness_that_agrees(signed: Signed, mode: str) -> None:
    older = next(checkpoints(signed))[2]["data"]["note"]
    for note, through in ((older, 4), (signed.note(), 7)):
        report = verify(signed.root, signed.pin, witness=[{signed.origin: note}], **MODES[mode])
        assert (report.status, report.faults) == (Status.UNSEALED_TAIL, ())
        assert one(report).witnessed_through == through
    # Two of them: the one that knows more.
    both = [{signed.origin: older}, {signed.origin: signed.note()}, {signed.origin: older}]
    assert one(verify(signed.root, signed.pin, witness=both, **MODES[mode])).witnessed_through == 7


@pytest.mark.parametrize("size", range(1, 11))
def test_a_witness_of_any_size(signed: Signed, size: int) -> None:
    """Whether a checkpoint of that size is in the ledger or not: then the root is counted out."""
    note = signed.checkpoint(size)["note"]
    for mode in MODES.values():
        report = verify(signed.root, signed.pin, witness=[{signed.origin: note}], **mode)
        assert (report.faults, one(report).witnessed_through) == ((), size - 1)
    assert one(verify(signed.root, witness=[{signed.origin: note}])).witnessed_through == size - 1
    assert one(verify(signed.root, witness=[{signed.origin: note}])).sealed_through is None


@pytest.mark.parametrize("mode", MODES)
def test_a_witness_that_disagrees(sealed: Signed, mode: str) -> None:
    """Root signs everything anew: the key fits, and only the witness tells. It needs no key for that."""
    note = sealed.note()
    rewrite(sealed, lambda lines: resigned(edit(3)(lines), sealed.key))
    assert verify(sealed.root, sealed.pin, **MODES[mode]).status == Status.OK
    for pins in ([sealed.pin], []):
        options = {} if not pins and mode == "since" else MODES[mode]
        report = verify(sealed.root, *pins, witness=[{sealed.origin: note}], **options)
        assert report.status == Status.TAMPERED
        assert "another root" in report.faults[0].reason
        assert one(report).witnessed_through is None


def test_a_note_that_proves_nothing(sealed: Signed) -> None:
    other = SignerKey.new(sealed.origin)
    report = verify(sealed.root, sealed.pin, witness=[{sealed.origin: sealed.checkpoint(5, key=other)["note"]}])
    assert (report.status, one(report).witnessed_through) == (Status.INCOMPLETE, None)
    for note in ("", "garbage", sealed.note().replace(sealed.origin, "otledger/other", 1)):
        report = verify(sealed.root, sealed.pin, witness=[{sealed.origin: note}])
        assert (report.status, one(report).witnessed_through) == (Status.INCOMPLETE, None)


def test_a_partition_removed(sealed: Signed, tmp_path: Path) -> None:
    note, known = sealed.note(), sealed.origin
    with Signed(sealed.root, machine="m2") as other:
        other.put(1).seal()
        witness = [{known: note, other.origin: other.note()}]
    assert verify(sealed.root, sealed.pin, other.pin, witness=witness).status == Status.OK
    sealed.close()
    shutil.rmtree(partition(sealed.root))
    report = verify(sealed.root, other.pin, witness=witness)
    assert report.status == Status.INCOMPLETE
    assert [fault.machine for fault in report.faults] == [known]
    assert verify(sealed.root, other.pin, witness=witness, machines=["m2"]).status == Status.OK


def new_chain(signed: Signed) -> Signed:
    """Another chain behind the first: the second segment's header with another UUID and numbers from 0 on."""
    signed.close()
    last = segment_names(signed.root)[-1]
    path = partition(signed.root) / last.replace(".jsonl", ".1.jsonl")
    lines = signed.lines()
    previous = {"segment": last, "size": (partition(signed.root) / last).stat().st_size}
    header = lines[0].replace(signed.ledger.encode(), b"00000000-0000-4000-8000-000000000000")
    header = header.replace(b'"previous":null', b'"previous":' + json.dumps(previous, separators=(",", ":")).encode())
    path.write_bytes(b"".join(rechained([anew(header), anew(lines[2])])))
    (partition(signed.root) / ".lock").unlink()
    return signed


@pytest.mark.parametrize("mode", MODES)
def test_a_new_chain_does_not_hide_the_old_one(sealed: Signed, mode: str) -> None:
    note = sealed.note()
    new_chain(sealed)
    assert verify(sealed.root).status == Status.OK
    report = verify(sealed.root, sealed.pin, witness=[{sealed.origin: note}], **MODES[mode])
    # The old chain is as it was signed and witnessed; for the new one there is no key.
    assert report.status == Status.INCOMPLETE, report.faults
    assert "no key given for this chain" in report.faults[0].reason
    assert one(report).sealed_through is None
    # Cut in the old chain, behind the back of the new one.
    first_file = partition(sealed.root) / segment_names(sealed.root)[0]
    rest = b"".join(lines_of(first_file)[:6])
    second = partition(sealed.root) / segment_names(sealed.root)[1]
    old_size = b'"size":%d' % first_file.stat().st_size
    first_file.write_bytes(rest)
    second.write_bytes(
        b"".join(rechained([line.replace(old_size, b'"size":%d' % len(rest)) for line in lines_of(second)]))
    )
    assert verify(sealed.root).status == Status.OK
    report = verify(sealed.root, sealed.pin, witness=[{sealed.origin: note}])
    assert first(report) == (Status.TAMPERED, first_file.name, len(rest), 6)


def test_a_new_chain_that_names_no_predecessor(sealed: Signed) -> None:
    """Then the old one counts for nothing, and is still found: by its notes, and by the witness."""
    note = sealed.note()
    new_chain(sealed)
    second = partition(sealed.root) / segment_names(sealed.root)[1]
    header = record_of(lines_of(second)[0])["data"]["previous"]
    text = json.dumps(header, separators=(",", ":")).encode()
    second.write_bytes(b"".join(rechained([line.replace(text, b"null") for line in lines_of(second)])))
    for pins, witness in (([sealed.pin], []), ([], [{sealed.origin: note}])):
        report = verify(sealed.root, *pins, witness=witness)
        status, file, _, seq = first(report)
        assert (status, file, seq) == (Status.TAMPERED, segment_names(sealed.root)[0], 0)
    assert any("none counts" in fault.reason for fault in report.faults)


@pytest.mark.parametrize("mode", MODES)
def test_the_signers_memory(sealed: Signed, mode: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    assert verify(sealed.root, sealed.pin, memory=keys, **MODES[mode]).status == Status.OK
    sealed.remember(keys)
    report = verify(sealed.root, sealed.pin, memory=keys, **MODES[mode])
    assert (report.status, one(report).witnessed_through) == (Status.OK, None)
    # It is synced before the checkpoint is published: then its root is counted out.
    root = sealed.put("x").checkpoint()
    sealed.remember(keys, size=root["size"], root=root["root"])
    assert verify(sealed.root, sealed.pin, memory=keys, **MODES[mode]).status == Status.UNSEALED_TAIL
    sealed.remember(keys, root=root["root"])
    report = verify(sealed.root, sealed.pin, memory=keys, **MODES[mode])
    assert report.status == Status.TAMPERED
    assert "another root" in report.faults[0].reason
    with patch.dict(os.environ, OTLEDGER_KEYS=str(keys)):
        assert verify(sealed.root, memory=True).status == Status.TAMPERED
    for text in ("", "[]", "{}", '{"origin":1}', "\udcff"):
        (keys / sealed.ledger / "signed").write_text(text, errors="surrogateescape")
        assert verify(sealed.root, sealed.pin, memory=keys, **MODES[mode]).status == Status.INCOMPLETE


@pytest.mark.parametrize("mode", MODES)
def test_an_older_copy_put_back_and_the_service_goes_on(sealed: Signed, mode: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    sealed.close()
    shutil.copytree(sealed.root, tmp_path / "older")
    with Signed(sealed.root, key=sealed.key) as later:
        later.put("lost").seal().remember(keys)
    shutil.rmtree(sealed.root)
    shutil.copytree(tmp_path / "older", sealed.root)
    with Signed(sealed.root, key=sealed.key) as again:
        again.put("other").put("more").seal()
    report = verify(sealed.root, sealed.pin, memory=keys, **MODES[mode])
    assert report.status == Status.TAMPERED
    assert "the signer's memory" in report.faults[0].reason


# What does not count ----------------------------------------------------------------------------------------


def capped(signed: Signed, size: int) -> Path:
    """A successor that says that the first segment ends earlier than it does."""
    signed.close()
    name = segment_names(signed.root)[-1]
    path = partition(signed.root) / name.replace(".jsonl", ".1.jsonl")
    lines = signed.lines()
    end = offsets(lines)[size]
    previous = json.dumps({"segment": name, "size": end}, separators=(",", ":")).encode()
    header = (
        lines[0].replace(b'"previous":null', b'"previous":' + previous).replace(b'"reason":"new"', b'"reason":"fault"')
    )
    path.write_bytes(b"".join(rechained([anew(header)], size, lines[size - 1][-67:-3].decode())))
    (partition(signed.root) / ".lock").unlink(missing_ok=True)
    return partition(signed.root) / name


@pytest.mark.parametrize("mode", MODES)
def test_a_successor_that_caps_sealed_records_away(sealed: Signed, mode: str) -> None:
    lines = sealed.lines()
    path = capped(sealed, 7)
    report = verify(sealed.root, sealed.pin, **MODES[mode])
    assert first(report) == (Status.TAMPERED, path.name, offsets(lines)[7], 7)
    assert one(report).sealed_through == 4


def test_a_checkpoint_that_a_failed_sync_left_behind_is_no_attack(sealed: Signed) -> None:
    """Its note covers what counts; only the checkpoint itself was not durable."""
    sealed.close()
    name, offset, record = list(checkpoints(sealed))[-1]
    os.truncate(partition(sealed.root) / name, offset + len(sealed.lines()[record["seq"]]))
    capped(sealed, record["seq"])
    with_notes = verify(sealed.root, sealed.pin)
    assert Status.TAMPERED not in {fault.status for fault in with_notes.faults}, with_notes.faults


def test_sealed_records_called_a_crashs_leavings(sealed: Signed) -> None:
    """Moved to quarantine by a record that says that they were torn."""
    sealed.close()
    lines = sealed.lines()
    rest = b"".join(lines[7:])
    name = f"{newest(sealed.root).name}.{offsets(lines)[7]}.{sha256(rest).hexdigest()[:16]}"
    (partition(sealed.root) / "quarantine").mkdir()
    (partition(sealed.root) / "quarantine" / name).write_bytes(rest)
    newest(sealed.root).write_bytes(b"".join(lines[:7]))
    (partition(sealed.root) / ".lock").unlink()
    data = {"segment": newest(sealed.root).name, "offset": 7, "bytes": len(rest), "quarantine": name, "reason": "torn"}
    with Signed(sealed.root, key=sealed.key) as again:
        again.control("otledger.recovery", data)
    assert verify(sealed.root).status == Status.RECOVERED
    report = verify(sealed.root, sealed.pin)
    assert first(report) == (Status.TAMPERED, f"quarantine/{name}", 0, 7)


# Whole segments ---------------------------------------------------------------------------------------------


@pytest.fixture
def months(root: Path) -> Iterator[Signed]:
    """Three segments, and a signed checkpoint over all."""
    with Signed(root) as ledger:
        ledger.begin().put(1, 2).seal()
    for number in range(2):
        with Signed(root, key=ledger.key, max_segment=1) as ledger:
            ledger.put(number).seal()
    with Signed(root, key=ledger.key) as ledger:
        ledger.put("last").seal()
        assert len(segment_names(root)) > 3
        yield ledger


def archived(ledger: Signed, name: str, dest: Path) -> dict[str, Any]:
    """Move a segment away, and give what the record of it says."""
    path = partition(ledger.root) / name
    lines = lines_of(path)
    (dest / MACHINE).mkdir(parents=True, exist_ok=True)
    shutil.move(path, dest / MACHINE / name)
    ledger.moved = dest / MACHINE
    content = b"".join(lines)
    return {
        "segment": name,
        "size": len(content),
        "sha256": sha256(content).hexdigest(),
        "first": record_of(lines[0])["seq"],
        "last": record_of(lines[-1])["seq"],
        "head": lines[-1][-67:-3].decode(),
    }


@pytest.mark.parametrize("mode", MODES)
def test_archived_segments(months: Signed, mode: str, tmp_path: Path) -> None:
    names = segment_names(months.root)
    whole = verify(months.root, months.pin, **MODES[mode])
    assert whole.status == Status.OK
    made = [archived(months, name, tmp_path / "dest") for name in names[:2]]
    options = MODES[mode]
    assert verify(months.root, months.pin, **options).status == Status.INCOMPLETE
    for data in made:
        months.control("otledger.archive", data)
    # Anybody may have written these records.
    assert verify(months.root, months.pin, **options).status == Status.INCOMPLETE
    plain = {name: value for name, value in options.items() if name != "since_checkpoint"}
    if not options.get("tree"):
        assert verify(months.root, **plain).status == Status.OK
    months.seal()
    report = verify(months.root, months.pin, **options)
    assert report.status == (Status.INCOMPLETE if options.get("tree") else Status.OK), report.faults
    assert one(report).archived == (tuple(names[:2]) if mode != "since" else one(report).archived)
    # From there everything is checked.
    report = verify(months.root, months.pin, archive=tmp_path / "dest", **options)
    assert (report.status, report.faults) == (Status.OK, ())
    if mode != "since":
        assert report.records == whole.records + 3
        other = tmp_path / "dest" / MACHINE / names[0]
        other.write_bytes(other.read_bytes().replace(b'"data":1', b'"data":5'))
        report = verify(months.root, months.pin, archive=tmp_path / "dest", **options)
        assert report.status == Status.TAMPERED
        assert report.faults[0].file == names[0]


def test_only_the_archived_bytes_will_do(months: Signed, tmp_path: Path) -> None:
    name = segment_names(months.root)[0]
    data = archived(months, name, tmp_path / "dest")
    for changed in ({"sha256": "0" * 64}, {"size": data["size"] + 1}):
        months.control("otledger.archive", data | changed)
        months.seal()
        report = verify(months.root, months.pin, archive=tmp_path / "dest")
        assert (report.status, report.faults[0].file) == (Status.TAMPERED, name)
    for changed in ({"head": "0" * 64}, {"last": data["last"] - 1}):
        months.control("otledger.archive", data | changed)
        months.seal()
        report = verify(months.root, months.pin)
        assert report.status == Status.TAMPERED
        assert "archived" in report.faults[0].reason
    months.control("otledger.archive", data)
    months.seal()
    assert verify(months.root, months.pin).status == Status.OK
    months.control("otledger.archive", data | {"first": 1})
    months.seal()
    assert verify(months.root, months.pin).status == Status.INCOMPLETE


def test_the_record_of_a_closed_segment(months: Signed) -> None:
    name = segment_names(months.root)[0]
    content = (partition(months.root) / name).read_bytes()
    data = {"segment": name, "size": len(content), "sha256": sha256(content).hexdigest()}
    months.control("otledger.sealed", data)
    assert verify(months.root, deep=True).status == Status.OK
    months.control("otledger.sealed", data | {"sha256": "0" * 64})
    assert verify(months.root).status == Status.OK
    assert first(verify(months.root, deep=True))[:2] == (Status.TAMPERED, name)
    months.control("otledger.sealed", data | {"size": len(content) - 1})
    assert first(verify(months.root))[:3] == (Status.TAMPERED, name, len(content) - 1)
    append_bytes(partition(months.root) / name, b"more")
    months.control("otledger.sealed", data)
    assert first(verify(months.root))[:3] == (Status.TAMPERED, name, len(content) - 1)


# The tree ---------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(first=st.integers(0, 70), counts=st.lists(st.integers(0, 40), max_size=6), cuts=st.sets(st.integers(0, 300)))
def test_subtrees_make_the_same_tree(first: int, counts: list[int], cuts: set[int]) -> None:
    checksums = [sha256(b"%d" % n).hexdigest() for n in range(first + sum(counts))]
    expected, tree = Tree(), Tree()
    for checksum in checksums:
        expected.add(leaf_hash(checksum.encode()))
    add_subtrees(tree, first, subtrees(0, checksums[:first]))
    runs = Runs()
    for count in counts:
        for cut in cuts:
            runs.cut(cut)
        runs.add(first, checksums[first : first + count])
        first += count
    runs.flush()
    for _, end, nodes in runs.done:
        add_subtrees(tree, end, nodes)
        assert tree.size == end
        assert tree.root() == root_of(checksums[:end])
    assert (tree.size, tree.edge) == (expected.size, expected.edge)


def root_of(checksums: list[str]) -> bytes:
    tree = Tree()
    for checksum in checksums:
        tree.add(leaf_hash(checksum.encode()))
    return tree.root()


@pytest.mark.parametrize("mode", [name for name in MODES if "tree" in name])
def test_every_checkpoint_is_compared_with_the_tree(root: Path, mode: str) -> None:
    """Also one whose path fits, and that no newer note would show: its root is over other records before the last."""
    with Signed(root) as ledger:
        ledger.put(*range(5)).seal()
        for size in (3, 5, 6):
            ledger.put(*range(7)).control("otledger.checkpoint", ledger.checkpoint(size))
        fork = ledger.leaves()
        fork[1] = bytes(32)
        with patch.object(Signed, "leaves", lambda _: fork):
            from tests.signed import tree_of

            size = len(fork)
            forged = {"size": size, "head": ledger.lines()[size - 1][-67:-3].decode(), **tree_of(fork, size)}
        seq = ledger.control("otledger.checkpoint", forged)
        ledger.seal()
    assert verify(root, ledger.pin).status == Status.OK
    for pins in ([], [ledger.pin]):
        report = verify(root, *pins, **MODES[mode])
        assert first(report) == (Status.TAMPERED, ledger.places()[seq][0], ledger.places()[seq][1], seq)
        assert "its root" in report.faults[0].reason


@pytest.mark.parametrize("mode", [name for name in MODES if "tree" in name])
@pytest.mark.parametrize("lag", [0, 1, 7, 150])
def test_checkpoints_that_lag(root: Path, mode: str, lag: int) -> None:
    with Signed(root) as ledger:
        for number in range(6):
            ledger.put(*range(number * 11 + 1))
            ledger.seal(max(1, len(ledger.lines()) - lag))
    report = verify(root, ledger.pin, **MODES[mode])
    assert report.status in (Status.OK, Status.UNSEALED_TAIL)
    assert report.faults == ()


def test_pure_python_makes_the_same_tree(signed: Signed) -> None:
    """Line by line, as it is done where nothing is compiled."""
    from otledger import speed

    with patch.object(speed, "check", None):
        for mode in ("tree", "small chunks, tree"):
            assert verify(signed.root, signed.pin, **MODES[mode]).status == Status.UNSEALED_TAIL
        lines = signed.lines()
        edge = record_of(lines[-1])["data"]["edge"][0].encode()
        changed = edited(lines[-1], b'"edge":["' + edge, b'"edge":["' + b"A" * 43 + b"=")
        newest(signed.root).write_bytes(b"".join([*lines[:-1], changed]))
        assert verify(signed.root, tree=True).status == Status.TAMPERED


# Incremental ------------------------------------------------------------------------------------------------


def test_since_checkpoint_reads_little(root: Path) -> None:
    """The log of the size for the note's last record, and what comes after it: whatever is before."""
    read: list[int] = []
    real = os.pread

    def counting(fd: int, size: int, offset: int) -> bytes:
        data = real(fd, size, offset)
        read.append(len(data))
        return data

    sizes = []
    with Signed(root) as ledger:
        for _ in range(3):
            ledger.put(*["x" * 4000] * 2000).seal()
            ledger.put("after")
            size = newest(root).stat().st_size
            with patch.object(os, "pread", counting):
                report = verify(root, ledger.pin, since_checkpoint=True)
            assert (report.status, report.faults) == (Status.UNSEALED_TAIL, ())
            assert report.records == 2
            assert one(report).unread + report.bytes == size
            sizes.append((size, sum(read)))
            read.clear()
    assert sizes[-1][0] > 24_000_000
    assert sizes[-1][1] < 4_000_000
    assert sizes[-1][1] < sizes[0][1] + 500_000


def test_since_checkpoint_sees_what_follows_and_leaves_what_was(sealed: Signed) -> None:
    sealed.put("a").put("b")
    lines = sealed.lines()
    changed = [*lines[:2], lines[2].replace(b'"data":1', b'"data":9'), *lines[3:]]
    newest(sealed.root).write_bytes(b"".join(changed))
    assert verify(sealed.root, sealed.pin, since_checkpoint=True).status == Status.UNSEALED_TAIL
    assert verify(sealed.root, sealed.pin).status == Status.TAMPERED
    changed = [*lines[:-1], lines[-1].replace(b'"b"', b'"c"')]
    newest(sealed.root).write_bytes(b"".join(changed))
    report = verify(sealed.root, sealed.pin, since_checkpoint=True)
    assert report.faults[0].offset == offsets(lines)[-2]
    assert report.status == Status.TAMPERED


def test_millions_of_checkpoints_are_not_held(root: Path) -> None:
    """Eight bytes each."""
    from otledger.verifying.files import Files
    from otledger.verifying.findings import Findings
    from otledger.verifying.seals import NOTE, Seals

    with Signed(root) as ledger:
        ledger.put(1).seal()
    files = Files(partition(root))
    try:
        from otledger.segment import read_chain

        (piece,) = read_chain(files.dir_fd, files.path).pieces
        seals = Seals(files, Findings(MACHINE), [piece], [])
        for number in range(100_000):
            seals.add(piece, number, NOTE)
        assert sum(sys.getsizeof(places) for places in seals._places.values()) < 1_000_000
    finally:
        files.close()


# Several machines -------------------------------------------------------------------------------------------


def test_each_machine_for_itself(sealed: Signed) -> None:
    with Signed(sealed.root, machine="m2") as other:
        other.put(1).seal().put(2)
    report = verify(sealed.root, sealed.pin, other.pin)
    assert [machine.status for machine in report.machines] == [Status.OK, Status.UNSEALED_TAIL]
    report = verify(sealed.root, sealed.pin)
    assert [machine.status for machine in report.machines] == [Status.OK, Status.INCOMPLETE]
    assert [machine.sealed_through for machine in report.machines] == [7, None]


def test_verify_with_everything_changes_nothing(sealed: Signed, tmp_path: Path) -> None:
    from tests.faults.tools import snapshot

    sealed.remember(tmp_path / "keys")
    before = snapshot(sealed.root)
    for options in MODES.values():
        verify(sealed.root, sealed.pin, memory=tmp_path / "keys", witness=[{sealed.origin: sealed.note()}], **options)
    assert snapshot(sealed.root) == before
    assert restamp(sealed.lines()[0]) == sealed.lines()[0]


# The command ------------------------------------------------------------------------------------------------


def command(*args: object, keys: Path | None = None) -> subprocess.CompletedProcess[str]:
    environ = environment() | ({"OTLEDGER_KEYS": str(keys)} if keys else {})
    words = [sys.executable, "-m", "otledger", "verify", *map(str, args)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, env=environ, check=False)


def test_the_command(months: Signed, tmp_path: Path) -> None:
    (tmp_path / "ledger.pub").write_text(months.pin + "\n")
    options = ["--root", months.root, "--key", tmp_path / "ledger.pub"]
    done = command(*options, "--heartbeat", 3600)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"by key {months.verifier.id.hex()}" in done.stdout
    assert "sealed through seq" in done.stdout
    assert "older bytes not read again" in command(*options, "--since-checkpoint").stdout
    assert command(*options, "--heartbeat", 0.000001).returncode == 5
    assert json.loads(command(*options, "--tree", "--json").stdout)["machines"][0]["ledger"] == months.ledger
    months.put("x")
    assert command(*options, "--quiet").returncode == 7
    assert command("--root", months.root, "--since-checkpoint").returncode == 2
    assert "--key" in command("--root", months.root, "--since-checkpoint").stderr
    wrong = command("--root", months.root, "--key", "otledger/x+y")
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)
    # What this host's signer remembers is asked without being told.
    months.remember(tmp_path / "keys", size=1000)
    assert command(*options, keys=tmp_path / "keys").returncode == 3
    assert command(*options, "--keys", tmp_path / "keys").returncode == 3
    assert command(*options, "--no-memory", keys=tmp_path / "keys").returncode == 7


def test_the_command_with_archived_segments_and_a_witness(months: Signed, tmp_path: Path) -> None:
    from otledger.witness import open_place
    from otledger.witnessing import witness

    name = segment_names(months.root)[0]
    months.control("otledger.archive", archived(months, name, tmp_path / "dest"))
    months.seal()
    options = ["--root", months.root, "--key", months.pin]
    done = command(*options)
    assert (done.returncode, f"1 segment archived, and not read: {name}" in done.stdout) == (0, True)
    assert command(*options, "--from", tmp_path / "dest", "--tree").returncode == 0
    assert command(*options, "--from", tmp_path / "nowhere").returncode == 5
    assert command(*options, "--witness", tmp_path / "place").returncode == 2
    witness(months.root, open_place(tmp_path / "place"), keys=[months.verifier])
    done = command(*options, "--witness", tmp_path / "place")
    assert (done.returncode, "witnessed through seq" in done.stdout) == (0, True)
    # The witness has seen more than a ledger that was cut back.
    shutil.rmtree(tmp_path / "place")
    months.put("more").seal()
    witness(months.root, open_place(tmp_path / "place"), keys=[months.verifier])
    path = newest(months.root)
    months.close()
    (partition(months.root) / ".lock").unlink()
    lines = lines_of(path)
    kept = max(at for at, line in enumerate(lines) if b'"data":"more"' in line)
    path.write_bytes(b"".join(lines[:kept]))
    assert command(*options).returncode == 0
    done = command(*options, "--witness", tmp_path / "place")
    assert (done.returncode, "cut off" in done.stdout) == (3, True)
