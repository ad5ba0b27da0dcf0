"""Proofs from a ledger's files, and proof files: what they hold, and that nothing else passes."""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import otledger
from otledger import hashes, merkle, proof_file, proofs, provable
from otledger.batch import stamp
from otledger.errors import LedgerError, RootError
from otledger.merkle import Tree
from otledger.notes import Commitment, SignerKey, VerifierKey, origin_of
from otledger.proof_file import (
    BrokenProof,
    Consistency,
    Inclusion,
    ProofError,
    ProvedGrowth,
    ProvedRecord,
    check_proof,
    read_proof,
    write_proof,
)
from otledger.record import Draft
from tests.faults.tools import MACHINE, REPOSITORY, lines_of, rechained, segment_names


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@dataclass
class Signed:
    """A ledger of real records whose checkpoints are signed here, in the shapes of the format (5, 7)."""

    root: Path
    settings: dict[str, object] = field(default_factory=dict)
    key: SignerKey | None = None

    @property
    def path(self) -> Path:
        return self.root / MACHINE

    def journal(self) -> otledger.Journal:
        settings = {"checkpoint_interval": 1000, "keys": self.root.parent / "keys", **self.settings}
        return otledger.Journal(self.root, machine=MACHINE, **settings)

    def lines(self) -> list[bytes]:
        return [line for name in segment_names(self.root) for line in lines_of(self.path / name)]

    def leaves(self) -> list[bytes]:
        return [merkle.leaf_hash(line[-67:-3]) for line in self.lines()]

    def events(self, journal: otledger.Journal, count: int) -> None:
        journal.append([Draft("order.placed", {"n": n}, subject="s") for n in range(count)])

    def sign(self, journal: otledger.Journal, size: int | None = None) -> str:
        """Append a checkpoint with a note over the first `size` records, by default over all; gives the note."""
        lines = self.lines()
        size = len(lines) if size is None else size
        tree = Tree()
        path: list[bytes] = []
        for line in lines[:size]:
            path = tree.path_of_next()
            tree.add(merkle.leaf_hash(line[-67:-3]))
        if self.key is None:
            self.key = SignerKey.new(origin_of(ledger_of(lines[0])))
        note = self.key.sign(Commitment(self.key.name, size, tree.root()).text())
        data = {
            "size": size,
            "head": lines[size - 1][-67:-3].decode(),
            "root": b64(tree.root()),
            "edge": [b64(each) for each in tree.edge],
            "path": [b64(each) for each in path],
            "note": note,
        }
        journal.append([Draft("otledger.checkpoint", data)], reserved=True)
        return note


def ledger_of(header: bytes) -> str:
    import orjson

    return str(orjson.loads(header)["data"]["ledger"])


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    """Sixty records in three segments, signed four times, the last note not over all of them."""
    ledger = Signed(tmp_path_factory.mktemp("proofs") / "ledger", {"max_segment": 6000})
    with ledger.journal() as journal:
        for count in (10, 1, 20, 9):
            ledger.events(journal, count)
            ledger.sign(journal)
        ledger.events(journal, 5)
        journal.append([Draft("otledger.checkpoint", {"size": 3, "head": "0" * 64})], reserved=True)
        assert len(list(ledger.path.glob("*.jsonl"))) >= 3
    return ledger


def notes_of(ledger: Signed) -> Iterator[proofs.SignedCheckpoint]:
    for line in ledger.lines():
        found = proofs.read_checkpoint(line)
        if found is not None:
            yield found


@pytest.mark.parametrize("block", [1 << 20, 97, 2000])
def test_leaves_are_those_of_the_lines(signed: Signed, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provable, "BLOCK", block)
    leaves = signed.leaves()
    assert len(leaves) > 50
    for begin, end in ((0, len(leaves)), (0, 1), (7, 7), (3, 50), (len(leaves) - 1, len(leaves))):
        assert list(proofs.leaf_hashes(signed.root, MACHINE, begin, end)) == leaves[begin:end]


def test_every_record_is_proved_under_every_note(signed: Signed) -> None:
    leaves = signed.leaves()
    notes = list(notes_of(signed))
    assert len(notes) == 4
    for note in notes:
        for seq in range(note.size):
            path = proofs.inclusion(signed.root, MACHINE, seq, note.size)
            assert merkle.is_included(leaves[seq], seq, note.size, path, note.root)
            start = proofs.edge_before(signed.root, MACHINE, seq)
            assert proofs.inclusion(signed.root, MACHINE, seq, note.size, start) == path


def test_with_an_edge_only_what_follows_it_is_read(signed: Signed) -> None:
    notes = list(notes_of(signed))
    read: list[tuple[int, int]] = []
    whole = provable.Partition.leaves

    def leaves(part: provable.Partition, begin: int, end: int) -> Iterator[bytes]:
        read.append((begin, end))
        return whole(part, begin, end)

    with patch.object(provable.Partition, "leaves", leaves):
        start = proofs.edge_before(signed.root, MACHINE, notes[2].seq + 1)
        assert start == (notes[2].size, notes[2].edge)
        proofs.inclusion(signed.root, MACHINE, notes[2].seq + 1, notes[3].size, start)
        proofs.consistency(signed.root, MACHINE, notes[2].size, notes[3].size, notes[2].edge)
    assert min(begin for begin, _ in read) == notes[2].size


def test_every_note_is_proved_to_begin_every_later_one(signed: Signed) -> None:
    notes = list(notes_of(signed))
    for old in notes:
        for new in notes:
            if old.size > new.size:
                continue
            proof = proofs.consistency(signed.root, MACHINE, old.size, new.size)
            assert merkle.is_consistent(old.size, old.root, new.size, new.root, proof)
            assert proofs.consistency(signed.root, MACHINE, old.size, new.size, old.edge) == proof


def test_notes_are_found(signed: Signed) -> None:
    notes = list(notes_of(signed))
    last = notes[-1]
    assert proofs.newest_note(signed.root, MACHINE) == last
    assert (last.commitment.size, last.commitment.root) == (last.size, last.root)
    assert proofs.checkpoint_covering(signed.root, MACHINE, last.size - 1) == last
    assert proofs.checkpoint_covering(signed.root, MACHINE, last.size) is None
    for note in notes:
        assert proofs.checkpoint_of_size(signed.root, MACHINE, note.size) == note
        assert proofs.checkpoint_of_size(signed.root, MACHINE, note.size + 1) is None
    assert proofs.checkpoint_of_size(signed.root, MACHINE, 10_000) is None
    for seq in range(len(signed.lines())):
        before = [note for note in notes if note.seq < seq]
        assert proofs.edge_before(signed.root, MACHINE, seq) == (
            (before[-1].size, before[-1].edge) if before else (0, ())
        )


def test_without_a_note_there_is_none(root: Path) -> None:
    ledger = Signed(root)
    with ledger.journal() as journal:
        ledger.events(journal, 3)
        assert proofs.newest_note(root, MACHINE) is None
        assert proofs.checkpoint_of_size(root, MACHINE, 2) is None
        assert proofs.edge_before(root, MACHINE, 2) == (0, ())
    with pytest.raises(RootError, match="m1"):
        proofs.newest_note(root, "m2")


def test_what_is_not_there_is_named(signed: Signed) -> None:
    size = len(signed.lines())
    with pytest.raises(ProofError, match=f"record {size} is not there"):
        list(proofs.leaf_hashes(signed.root, MACHINE, size - 2, size + 1))
    with pytest.raises(ProofError, match="record 1000 is not there"):
        list(proofs.leaf_hashes(signed.root, MACHINE, 1000, 1001))
    for ask in (
        lambda: proofs.inclusion(signed.root, MACHINE, 5, 5),
        lambda: proofs.consistency(signed.root, MACHINE, 0, 5),
        lambda: proofs.consistency(signed.root, MACHINE, 6, 5),
        lambda: proofs.consistency(signed.root, MACHINE, 3, 5, [b"\0" * 32]),
        lambda: proofs.inclusion(signed.root, MACHINE, 3, 5, (4, [b"\0" * 32])),
    ):
        with pytest.raises(ProofError):
            ask()


def test_a_bad_line_is_told_with_its_place(signed: Signed, tmp_path: Path) -> None:
    root = tmp_path / "ledger"
    os.makedirs(root / MACHINE)
    for path in signed.path.glob("*.jsonl"):
        (root / MACHINE / path.name).write_bytes(path.read_bytes())
    first = min(root.glob("*/*.jsonl"), key=lambda path: len(path.name))
    lines = lines_of(first)
    for change in (lines[4].replace(b'"n":', b'"m":'), lines[5], b"\n", b"\0" * 100 + b"\n"):
        first.write_bytes(b"".join([*lines[:4], change, *lines[5:]]))
        with pytest.raises(ProofError) as caught:
            list(proofs.leaf_hashes(root, MACHINE, 0, 10))
        assert (caught.value.path, caught.value.seq) == (first, 4)
        assert caught.value.offset == sum(map(len, lines[:4]))
        assert isinstance(caught.value, LedgerError)


def test_a_new_chain_begins_its_numbers_again(signed: Signed, tmp_path: Path) -> None:
    root = tmp_path / "ledger"
    shutil.copytree(signed.root, root)
    other = Signed(tmp_path / "other")
    with other.journal() as journal:
        other.events(journal, 4)
        other.sign(journal)
    lines = other.lines()
    names = segment_names(root)
    size = (root / MACHINE / names[-1]).stat().st_size
    named = b'"previous":{"segment":"%b","size":%d}' % (names[-1].encode(), size)
    lines[0] = lines[0].replace(b'"previous":null', named)
    lines = rechained(lines)
    (root / MACHINE / "2099-01.jsonl").write_bytes(b"".join(lines))
    assert len(segment_names(root)) == len(names) + 1
    assert list(proofs.leaf_hashes(root, MACHINE, 0, 3)) == [merkle.leaf_hash(line[-67:-3]) for line in lines[:3]]
    found = proofs.newest_note(root, MACHINE)
    assert found is not None
    assert other.key is not None
    assert found.commitment.origin == other.key.name
    # The notes of the chain before are about other records of these numbers.
    (root / MACHINE / "2099-01.jsonl").write_bytes(b"".join(lines[:4]))
    assert proofs.newest_note(root, MACHINE) is None
    (root / MACHINE / "2099-01.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(ProofError, match=f"record {len(lines)} is not there"):
        list(proofs.leaf_hashes(root, MACHINE, 0, len(lines) + 1))


def test_garbled_checkpoints_are_none() -> None:
    assert proofs.read_checkpoint(b"") is None
    assert hashes.hash_of(b64(b"1" * 31)) is None
    assert hashes.hash_of("€" * 44) is None
    assert hashes.hashes_of([b64(b"1" * 32)] * 129) is None
    assert hashes.hashes_of([b64(b"1" * 32), 3]) is None


# Proof files


def keys_of(ledger: Signed) -> list[VerifierKey]:
    assert ledger.key is not None
    return [ledger.key.verifier]


def test_a_proof_of_each_record_holds(signed: Signed) -> None:
    last = list(notes_of(signed))[-1]
    lines = signed.lines()
    for seq in range(last.size):
        data = write_proof(proofs.prove_record(signed.root, MACHINE, seq))
        proved = check_proof(read_proof(data), keys_of(signed))
        assert isinstance(proved, ProvedRecord)
        assert proved.record.line == lines[seq]
        assert (proved.commitment, proved.key) == (last.commitment, keys_of(signed)[0])
    with pytest.raises(ProofError, match=f"record {last.size} comes after the last signed checkpoint, which covers"):
        proofs.prove_record(signed.root, MACHINE, last.size)


def test_a_proof_of_growth_holds_from_each_note(signed: Signed) -> None:
    notes = list(notes_of(signed))
    for old in notes:
        for since in (old.size, old.note):
            data = write_proof(proofs.prove_growth(signed.root, MACHINE, since))
            proved = check_proof(read_proof(data), keys_of(signed))
            assert isinstance(proved, ProvedGrowth)
            assert (proved.old, proved.commitment) == (old.commitment, notes[-1].commitment)
    with pytest.raises(ProofError, match="no signed checkpoint covers exactly 7 records"):
        proofs.prove_growth(signed.root, MACHINE, 7)


def test_a_note_that_is_not_in_the_ledger_is_proved_from_its_records(signed: Signed) -> None:
    assert signed.key is not None
    tree = Tree()
    for leaf in signed.leaves()[:21]:
        tree.add(leaf)
    commitment = Commitment(signed.key.name, 21, tree.root())
    proof = proofs.prove_growth(signed.root, MACHINE, signed.key.sign(commitment.text()))
    proved = check_proof(proof, keys_of(signed))
    assert isinstance(proved, ProvedGrowth)
    assert proved.old == commitment


def test_no_proof_is_made_of_what_was_not_signed(signed: Signed) -> None:
    assert signed.key is not None
    for root, error in ((b"\1" * 32, "are not those"),):
        note = signed.key.sign(Commitment(signed.key.name, 21, root).text())
        with pytest.raises(BrokenProof, match=error):
            proofs.prove_growth(signed.root, MACHINE, note)
    beyond = signed.key.sign(Commitment(signed.key.name, 10_000, b"\1" * 32).text())
    with pytest.raises(BrokenProof, match="the note covers 10000 records, and the newest here"):
        proofs.prove_growth(signed.root, MACHINE, beyond)
    other = SignerKey.new(origin_of("another"))
    with pytest.raises(ProofError, match="otledger/another"):
        proofs.prove_growth(signed.root, MACHINE, other.sign(Commitment(other.name, 21, b"\1" * 32).text()))


def test_a_ledger_that_was_rewritten_proves_nothing(signed: Signed, tmp_path: Path) -> None:
    root = tmp_path / "ledger"
    os.makedirs(root / MACHINE)
    lines = signed.lines()
    assert b'"n":3' in lines[4]
    # In one segment, with all checksums right again.
    (root / MACHINE / "2026-01.jsonl").write_bytes(
        b"".join(rechained([*lines[:4], lines[4].replace(b'"n":3', b'"n":4'), *lines[5:]]))
    )
    assert len(list(proofs.leaf_hashes(root, MACHINE, 0, len(lines)))) == len(lines)
    for seq in (0, 4, 20):
        with pytest.raises(BrokenProof, match="are not those that the note of seq"):
            proofs.prove_record(root, MACHINE, seq)
    with pytest.raises(BrokenProof, match="are not those that the note of seq"):
        proofs.prove_growth(root, MACHINE, next(notes_of(signed)).note)


def mutated(proof: Inclusion | Consistency, name: str, value: object) -> Inclusion | Consistency:
    return msgspec.structs.replace(proof, **{name: value})


def fails(proof: Inclusion | Consistency, keys: list[VerifierKey]) -> str:
    with pytest.raises(BrokenProof) as caught:
        check_proof(read_proof(write_proof(proof)), keys)
    return str(caught.value)


def test_each_change_of_a_record_proof_is_noticed(signed: Signed) -> None:
    keys = keys_of(signed)
    proof = proofs.prove_record(signed.root, MACHINE, 5)
    other = proofs.prove_record(signed.root, MACHINE, 6)
    notes = list(notes_of(signed))
    assert check_proof(proof, keys)
    assert "checksum" in fails(mutated(proof, "record", proof.record.replace('"n":', '"m":')), keys)
    assert "number 6" in fails(mutated(proof, "record", other.record), keys)
    assert "one line" in fails(mutated(proof, "record", proof.record + "\n"), keys)
    assert "one line" in fails(mutated(proof, "record", other.record + "\n" + proof.record), keys)
    assert "number 6" in fails(mutated(proof, "index", 6), keys)
    assert "the note about" in fails(mutated(proof, "size", proof.size - 1), keys)
    assert "not signed" in fails(
        mutated(proof, "note", proof.note.replace(f"\n{proof.size}\n", f"\n{proof.size + 1}\n")), keys
    )
    assert "the note about" in fails(mutated(proof, "note", notes[1].note), keys)
    older = mutated(mutated(proof, "note", notes[1].note), "size", notes[1].size)
    assert "not in the tree" in fails(older, keys)
    assert "not in the tree" in fails(mutated(proof, "path", other.path), keys)
    for at in range(len(proof.path)):
        for path in (
            [*proof.path[:at], *proof.path[at + 1 :]],
            [*proof.path[:at], b64(b"\0" * 32), *proof.path[at + 1 :]],
            [*proof.path[:at], proof.path[at], *proof.path[at:]],
        ):
            assert "not in the tree" in fails(mutated(proof, "path", path), keys)
    assert "no base64" in fails(mutated(proof, "path", [*proof.path[1:], "x"]), keys)
    # What is right stays wrong with another's key, and with the right one under another name.
    assert "not signed" in fails(proof, [SignerKey.new(keys[0].name).verifier])
    assert "not signed" in fails(proof, [VerifierKey("otledger/other", keys[0].public)])
    assert "not signed" in fails(proof, [])


def test_a_line_that_the_key_signed_but_that_is_no_record_is_refused() -> None:
    key = SignerKey.new("otledger/x")
    twice = '"source":"/s","type":"a.b","time":"2026-01-01T00:00:00.000000000Z","machine":"m1","data":{"a":1,"a":2}'
    for body in (
        f'{{"specversion":"1.0","id":"1",{twice}',
        '{"id":"1","id":"2"',
        '{"specversion":"1.0"',
        "[",
        '{"a":' + "[" * 200,
    ):
        line = stamped(f"{body}".encode(), 0)
        tree = Tree()
        tree.add(merkle.leaf_hash(line[-67:-3]))
        note = key.sign(Commitment(key.name, 1, tree.root()).text())
        proof = Inclusion(record=line.decode()[:-1], index=0, size=1, path=[], note=note)
        assert "not a record" in fails(proof, [key.verifier])


def stamped(part: bytes, seq: int) -> bytes:
    return stamp([part], seq, b"0" * 64)[0]


def test_each_change_of_a_growth_proof_is_noticed(signed: Signed) -> None:
    keys = keys_of(signed)
    notes = list(notes_of(signed))
    proof = proofs.prove_growth(signed.root, MACHINE, notes[1].size)
    assert check_proof(proof, keys)
    assert "does not begin" in fails(mutated(proof, "old", notes[0].note), keys)
    assert "does not begin" in fails(mutated(proof, "new", notes[2].note), keys)
    swapped = mutated(mutated(proof, "old", notes[-1].note), "new", notes[1].note)
    assert "does not begin" in fails(swapped, keys)
    for at in range(len(proof.path)):
        assert "does not begin" in fails(mutated(proof, "path", proof.path[:at] + proof.path[at + 1 :]), keys)
    assert "not signed" in fails(
        mutated(proof, "old", notes[1].note.replace(f"\n{notes[1].size}\n", f"\n{notes[1].size + 1}\n")), keys
    )
    other = SignerKey.new("otledger/other")
    foreign = other.sign(Commitment(other.name, notes[1].size, notes[1].root).text())
    assert "two chains" in fails(mutated(proof, "old", foreign), [*keys, other.verifier])


def test_a_pinned_key_leads_to_those_that_follow_it(root: Path) -> None:
    ledger = Signed(root)
    with ledger.journal() as journal:
        ledger.events(journal, 3)
        ledger.sign(journal)
        first = ledger.key
        assert first is not None
        handed = []
        for at in range(3):
            old = ledger.key
            assert old is not None
            ledger.key = SignerKey.new(old.name)
            extension = f"key {ledger.key.verifier}"
            handed.append(old.sign(Commitment(old.name, 4, b"\1" * 32, (extension,)).text()))
            data = {"old": str(old.verifier), "new": str(ledger.key.verifier), "size": 4, "signature": handed[at]}
            journal.append([Draft("otledger.key", data)], reserved=True)
        ledger.sign(journal)
    proof = proofs.prove_record(root, MACHINE, 2)
    assert proof.keys == handed
    assert ledger.key is not None
    assert check_proof(proof, [first.verifier]).key == ledger.key.verifier
    assert check_proof(proof, [ledger.key.verifier]).key == ledger.key.verifier
    assert check_proof(proofs.prove_growth(root, MACHINE, 4), [first.verifier])
    # Each link is needed, in its order, signed by the key before, for a key of the same chain.
    for keys in (handed[:2], handed[1:], handed[::-1], [handed[0], handed[2]], ["x", *handed[1:]]):
        assert "not signed" in fails(mutated(proof, "keys", keys), [first.verifier])
    thief = SignerKey.new(first.name)
    line = f"key {ledger.key.verifier}"
    forged = thief.sign(Commitment(first.name, 4, b"\1" * 32, (line,)).text())
    assert "not signed" in fails(mutated(proof, "keys", [forged]), [first.verifier])
    two = first.sign(Commitment(first.name, 4, b"\1" * 32, (line, f"key {thief.verifier}")).text())
    assert "not signed" in fails(mutated(proof, "keys", [two]), [first.verifier])
    other = SignerKey.new("otledger/other")
    elsewhere = first.sign(Commitment(first.name, 4, b"\1" * 32, (f"key {other.verifier}",)).text())
    foreign = other.sign(Commitment(other.name, 4, b"\1" * 32, (line,)).text())
    assert "not signed" in fails(mutated(proof, "keys", [elsewhere, foreign]), [first.verifier])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "no proof as"),
        (b"[" * 100_000, "no proof as"),
        (b"{}", "no proof as"),
        (b'{"otledger":2,"proof":"inclusion"}', "use a newer one"),
        (b'{"otledger":1,"proof":"other"}', "no proof as"),
        (b'{"otledger":1,"proof":"consistency","old":"","new":""}', "no proof as"),
        (b'{"otledger":1,"proof":"inclusion","record":"","index":0,"size":1,"path":[],"note":"\xff"}', "no proof as"),
        (
            b'{"otledger":1,"proof":"inclusion","record":"","index":1000,"size":1,"path":[],"note":"x"}',
            "no signed note",
        ),
        (b'{"otledger":1,"proof":"consistency","old":"","new":"","path":[' + b'"",' * 64 + b'""]}', "more than 64"),
        (b" " * (proof_file.MAX_FILE + 1), "at most"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_file_that_is_no_proof_is_refused(data: bytes, expected: str) -> None:
    key = SignerKey.new("otledger/x").verifier
    with pytest.raises(BrokenProof, match=expected):
        check_proof(read_proof(data), [key])


@pytest.fixture(scope="module")
def files(signed: Signed) -> list[bytes]:
    made = (
        proofs.prove_record(signed.root, MACHINE, 5),
        proofs.prove_growth(signed.root, MACHINE, next(notes_of(signed)).size),
    )
    return [write_proof(proof) for proof in made]


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_changed_file_is_more_than_a_broken_proof(signed: Signed, files: list[bytes], data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from(files))
    at = data.draw(st.integers(0, len(whole) - 1))
    size = data.draw(st.integers(0, 40))
    changed = whole[:at] + data.draw(st.binary(max_size=40)) + whole[at + size :]
    try:
        proved = check_proof(read_proof(changed), keys_of(signed))
    except BrokenProof:
        return
    # White space, or a member that nobody knows.
    assert isinstance(proved, ProvedGrowth) or proved.record.line == signed.lines()[5]
    assert proved.commitment == list(notes_of(signed))[-1].commitment


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text(max_size=50)
        | st.just("otledger/x\n1\nAAAA\n\n— x AAAAAAAA\n"),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=10,
    ),
    st.data(),
)
def test_no_value_of_a_member_is_more_than_a_broken_proof(value: object, data: st.DataObject) -> None:
    key = SignerKey("otledger/x", b"\1" * 32)
    note = key.sign(Commitment(key.name, 1, b"\1" * 32).text())
    good = data.draw(
        st.sampled_from(
            [
                {"otledger": 1, "proof": "inclusion", "record": "{}", "index": 0, "size": 1, "path": [], "note": note},
                {
                    "otledger": 1,
                    "proof": "consistency",
                    "old": note,
                    "new": note,
                    "path": [b64(b"\1" * 32)],
                    "keys": [],
                },
            ]
        )
    )
    member = data.draw(st.sampled_from(sorted(good)))
    try:
        check_proof(read_proof(json.dumps({**good, member: value}).encode()), [key.verifier])
    except BrokenProof:
        return
    # A tree begins itself.
    assert (member, value) == ("path", [])


# The command line


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in an empty folder."""

    def call(*args: object, code: int = 0, input: bytes = b"") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "otledger", *map(str, args)]
        environ = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUTF8": "1"}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, input=input, env=environ, check=False)
        out, err = done.stdout.decode(), done.stderr.decode()
        assert "Traceback" not in err
        assert done.returncode == code, (out, err)
        return subprocess.CompletedProcess(done.args, code, out, err)

    return call


Run = Callable[..., subprocess.CompletedProcess[str]]


def test_a_record_is_proved_by_its_id_and_by_its_number(run: Run, signed: Signed, tmp_path: Path) -> None:
    (key,) = keys_of(signed)
    (tmp_path / "shop.pub").write_text(f"# the shop's\n\n{key}\n")
    record = json.loads(signed.lines()[5])
    by_id = run("prove", record["id"], "--root", signed.root).stdout
    run("prove", "5", "--machine", MACHINE, "--out", "x.proof", "--root", signed.root)
    assert (tmp_path / "x.proof").read_text() == by_id
    done = run("verify-proof", "x.proof", "--key", "shop.pub")
    size = list(notes_of(signed))[-1].size
    assert done.stdout.splitlines() == [
        f"it holds: record 5 of {key.name} is one of the first {size}",
        f"  signed by key {key.id.hex()}",
        f"  id {record['id']}",
        "  type order.placed",
        f"  time {record['time']}",
        f"  source {record['source']}",
        "  subject s",
    ]
    plain = json.loads(run("verify-proof", "-", "-k", key, "--json", input=by_id.encode()).stdout)
    assert plain == {
        "holds": True,
        "proof": "inclusion",
        "record": {name: record[name] for name in ("id", "type", "source", "subject", "time", "machine")},
        "seq": 5,
        "checksum": record["checksum"],
        "origin": key.name,
        "size": size,
        "root": plain["root"],
        "key_id": key.id.hex(),
    }


def test_growth_is_proved_from_a_note_and_from_a_size(run: Run, signed: Signed, tmp_path: Path) -> None:
    (key,) = keys_of(signed)
    first, *_, last = notes_of(signed)
    (tmp_path / "old.note").write_text(first.note)
    by_note = run("prove", "--since", "old.note", "--root", signed.root).stdout
    assert run("prove", "--since", first.size, "--root", signed.root).stdout == by_note
    done = run("verify-proof", "-", "--key", key, input=by_note.encode())
    assert done.stdout.splitlines() == [
        f"it holds: {key.name} only grew",
        f"  from  the first {first.size} records, signed by key {key.id.hex()}",
        f"  to    the first {last.size} records, signed by key {key.id.hex()}",
    ]
    plain = json.loads(run("verify-proof", "-", "-k", key, "--json", input=by_note.encode()).stdout)
    assert (plain["old_size"], plain["size"], plain["holds"]) == (first.size, last.size, True)


def test_what_does_not_hold_is_told_and_has_its_exit_code(run: Run, signed: Signed, tmp_path: Path) -> None:
    (key,) = keys_of(signed)
    proof = run("prove", "5", "--root", signed.root).stdout
    (tmp_path / "bad.proof").write_text(proof.replace('\\"n\\":4', '\\"n\\":7'))
    done = run("verify-proof", "bad.proof", "--key", key, code=3)
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert "the record's checksum does not fit" in done.stderr
    done = run("verify-proof", "bad.proof", "--key", key, "--json", code=3)
    assert json.loads(done.stdout)["holds"] is False
    other = SignerKey.new(key.name).verifier
    assert "not signed by the key given" in run("verify-proof", "-", "-k", other, code=3, input=proof.encode()).stderr
    assert "no proof as otledger prove" in run("verify-proof", "-", "-k", key, code=3, input=b"\xff\0").stderr


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (["prove"], 2, "give the id or the number"),
        (["prove", "5", "--since", "11"], 2, "give the id or the number"),
        (["prove", "nobody"], 1, "no record has the id 'nobody'"),
        (["prove", "5", "--id"], 1, "no record has the id '5'"),
        (["prove", "5", "--machine", "web9"], 2, "has no machine 'web9'"),
        (["prove", "5", "-m", "m1", "-m", "m2"], 2, "give it by --machine"),
        (["prove", "5000"], 2, "record 5000 is not there"),
        (["prove", "--since", "7"], 2, "covers exactly 7 records"),
        (["prove", "--since", "0"], 2, "covers exactly 0 records"),
        (["prove", "--since", "old.note"], 2, "old.note: there is no such file"),
        (["prove", "5", "--out", "taken"], 2, "nothing is overwritten"),
        (["prove", "--since", "taken"], 2, "no signed note"),
        (["verify-proof", "taken"], 2, "nothing is proved without a key"),
        (["verify-proof", "taken", "--key", "x+y"], 2, "no verifier key: 'x+y'"),
        (["verify-proof", "taken", "--key", "taken"], 2, "taken: no verifier key: 'something'"),
        (["verify-proof", "nowhere", "--key", "KEY"], 2, "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_line(
    run: Run, signed: Signed, tmp_path: Path, args: list[str], code: int, expected: str
) -> None:
    (tmp_path / "taken").write_text("something\n")
    args = [str(keys_of(signed)[0]) if arg == "KEY" else arg for arg in args]
    done = run(*args, *(["--root", signed.root] if args[0] == "prove" else []), code=code)
    assert done.stderr.startswith("otledger: ")
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr
    assert done.stdout == ""
    assert (tmp_path / "taken").read_text() == "something\n"


def test_a_ledger_without_a_key_says_how_to_make_one(run: Run, root: Path) -> None:
    ledger = Signed(root)
    with ledger.journal() as journal:
        ledger.events(journal, 3)
    assert "make a key: otledger keys init" in run("prove", "2", "--root", root, code=2).stderr


def test_an_id_that_two_records_have_is_not_guessed(run: Run, signed: Signed, root: Path) -> None:
    for machine in ("m1", "m2"):
        with otledger.Journal(root, machine=machine) as journal:
            journal.append([Draft("a.b", id="twice")])
    assert (
        "more than one record has the id 'twice': m1 1 and m2 1" in run("prove", "twice", "--root", root, code=2).stderr
    )
    assert "it has no signed checkpoint" in run("prove", "twice", "-m", "m2", "--root", root, code=2).stderr
