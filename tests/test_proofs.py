"""Proofs from a ledger's files, and proof files: what they hold, and that nothing else passes."""

import base64
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import pytest

import otledger
from otledger import merkle, proofs
from otledger.errors import LedgerError, RootError
from otledger.merkle import Tree
from otledger.notes import Commitment, SignerKey, origin_of
from otledger.proofs import ProofError
from otledger.record import Draft
from tests.faults.tools import MACHINE, lines_of, segment_names


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


def test_leaves_are_those_of_the_lines(signed: Signed) -> None:
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
    whole = proofs._Partition.leaves

    def leaves(part: proofs._Partition, begin: int, end: int) -> Iterator[bytes]:
        read.append((begin, end))
        return whole(part, begin, end)

    with patch.object(proofs._Partition, "leaves", leaves):
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


def test_garbled_checkpoints_are_none() -> None:
    assert proofs.read_checkpoint(b"") is None
    assert proofs.hash_of(b64(b"1" * 31)) is None
    assert proofs.hash_of("€" * 44) is None
    assert proofs.hashes_of([b64(b"1" * 32)] * 129) is None
    assert proofs.hashes_of([b64(b"1" * 32), 3]) is None
