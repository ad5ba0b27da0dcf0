"""Proofs out of a ledger's files: what leads from a record, or an older note, to a signed note (format, 7).

Only reads, without the lock. No signature and no edge is believed: what goes into a file is checked before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from otledger.batch import checksum_of
from otledger.hashes import encode_hashes
from otledger.merkle import (
    Tree,
    consistency_ranges,
    edge_ranges,
    inclusion_ranges,
    is_consistent,
    is_included,
    leaf_hash,
    range_hashes,
)
from otledger.notes import Commitment, Note
from otledger.proof_file import BrokenProof, Consistency, Inclusion, ProofError
from otledger.provable import SignedCheckpoint, partition, read_checkpoint

__all__ = [
    "BrokenProof",
    "ProofError",
    "SignedCheckpoint",
    "checkpoint_covering",
    "checkpoint_of_size",
    "consistency",
    "edge_before",
    "inclusion",
    "leaf_hashes",
    "newest_note",
    "prove_growth",
    "prove_record",
    "read_checkpoint",
]

# Checkpoints


def newest_note(root: str | Path, machine: str) -> SignedCheckpoint | None:
    """Give the newest checkpoint that has a note; None where there is none. Raises `RootError`, `FormatError`."""
    with partition(root, machine) as part:
        return next(part.notes_back(), None)


def checkpoint_covering(root: str | Path, machine: str, seq: int) -> SignedCheckpoint | None:
    """Give the newest checkpoint that has a note and covers record `seq`; None where there is none yet."""
    found = newest_note(root, machine)
    return found if found is not None and found.size > seq else None


def checkpoint_of_size(root: str | Path, machine: str, size: int) -> SignedCheckpoint | None:
    """Give the checkpoint that has a note over exactly the first `size` records; None where there is none."""
    with partition(root, machine) as part:
        for found in part.notes_from(size):
            if found.size >= size:
                return found if found.size == size else None
    return None


# Leaves and proofs


def leaf_hashes(root: str | Path, machine: str, begin: int, end: int) -> Iterator[bytes]:
    """Iterate over the leaf hashes of the records with `seq` from `begin` up to, and without, `end`.

    Raises `ProofError` where one is not there, or archived, and where a line is no record or not the one that is due.
    """
    with partition(root, machine) as part:
        yield from part.leaves(begin, end)


def inclusion(
    root: str | Path, machine: str, seq: int, size: int, start: tuple[int, Sequence[bytes]] | None = None
) -> list[bytes]:
    """Give the audit path of record `seq` in the tree of the first `size`.

    `start`: the size, at most `seq`, and the edge of an earlier tree; then only the records from there on are read.
    Raises `ProofError`.
    """
    ranges = _ranges(inclusion_ranges, seq, size)
    tree = _tree(start, seq)
    with partition(root, machine) as part:
        for leaf in part.leaves(tree.size, seq):
            tree.add(leaf)
        # What is left of a leaf is the edge of the tree that it comes next to.
        known = dict(zip(edge_ranges(seq), tree.edge, strict=True))
        right = [each for each in ranges if each not in known]
        known.update(zip(right, range_hashes(right, part.leaves(seq, size), seq), strict=True))
    return [known[each] for each in ranges]


def consistency(
    root: str | Path, machine: str, old: int, size: int, old_edge: Sequence[bytes] | None = None
) -> list[bytes]:
    """Give the proof that the tree of the first `old` records begins that of the first `size`; empty if they are one.

    With the edge of the old tree only the records from `old` on are read. Raises `ProofError`.
    """
    ranges = _ranges(consistency_ranges, old, size)
    tree = _tree(None if old_edge is None else (old, old_edge), old)
    with partition(root, machine) as part:
        if tree.size < old:
            for leaf in part.leaves(0, old):
                tree.add(leaf)
        known = dict(zip(edge_ranges(old), tree.edge, strict=True))
        new = [each for each in ranges if each not in known]
        known.update(zip(new, range_hashes(new, part.leaves(old, size), old), strict=True))
    return [known[each] for each in ranges]


def edge_before(root: str | Path, machine: str, seq: int) -> tuple[int, tuple[bytes, ...]]:
    """Give size and edge of the last checkpoint with a note over at most the first `seq` records; (0, ()) without."""
    with partition(root, machine) as part:
        found = next((each for each in part.notes_back(seq) if each.size <= seq), None)
    return (0, ()) if found is None else (found.size, found.edge)


# Files


def prove_record(root: str | Path, machine: str, seq: int) -> Inclusion:
    """Give the proof that record `seq` is in the tree of the newest note, to be written by `write_proof`.

    Raises `ProofError` where the record is not there or no note covers it yet, `BrokenProof` where the ledger is not
    what was signed.
    """
    with partition(root, machine) as part:
        line = part.line(seq)
        note = next(part.notes_back(), None)
        changes = part.key_changes() if note is not None else []
    if note is None or note.size <= seq:
        raise ProofError(f"{Path(root) / machine}: {_why_uncovered(note, seq)}", seq=seq)
    leaf = leaf_hash(checksum_of(line))
    # An edge saves reading what is before it. Where it is wrong the records themselves are asked.
    for start in dict.fromkeys((edge_before(root, machine, seq), (0, ()))):
        try:
            path = inclusion(root, machine, seq, note.size, start)
        except ProofError:
            if not start[0]:
                raise
            continue
        if is_included(leaf, seq, note.size, path, note.root):
            texts = encode_hashes(path)
            return Inclusion(
                record=_text_of(line, root, seq), index=seq, size=note.size, path=texts, note=note.note, keys=changes
            )
    raise _not_as_signed(Path(root) / machine, note)


def prove_growth(root: str | Path, machine: str, since: int | str) -> Consistency:
    """Give the proof that the newest note's tree begins with that of an older note: its text, or how many it covers.

    Raises `NoteError` for what is no note, `ProofError`, and `BrokenProof` where the ledger is not what was signed.
    """
    path = Path(root) / machine
    new = newest_note(root, machine)
    if new is None:
        raise ProofError(f"{path}: {_why_uncovered(None, 0)}", path=path)
    size = since if isinstance(since, int) else Commitment.parse(Note.parse(since).text).size
    known = checkpoint_of_size(root, machine, size)
    if isinstance(since, int) and known is None:
        raise ProofError(f"{path}: no signed checkpoint covers exactly {since} records; give an older note", path=path)
    text = since if isinstance(since, str) else known.note if known is not None else ""
    old = Commitment.parse(Note.parse(text).text)
    if old.origin != new.commitment.origin:
        raise ProofError(f"{path} is {new.commitment.origin}, and the note is of {old.origin}", path=path)
    if old.size > new.size:
        raise BrokenProof(f"{path}: the note covers {old.size} records, and the newest here {new.size}", path=path)
    with partition(root, machine) as part:
        changes = part.key_changes()
    for edge in [None] if known is None else [known.edge, None]:
        try:
            proof = consistency(root, machine, old.size, new.size, edge)
        except ProofError:
            if edge is None:
                raise
            continue
        if is_consistent(old.size, old.root, new.size, new.root, proof):
            return Consistency(old=text, new=new.note, path=encode_hashes(proof), keys=changes)
    raise _not_as_signed(path, new)


def _why_uncovered(note: SignedCheckpoint | None, seq: int) -> str:
    if note is None:
        return "it has no signed checkpoint; make a key: otledger keys init"
    return (
        f"record {seq} comes after the last signed checkpoint, which covers {note.size} records; the next one follows"
        " when the ledger is written or closed"
    )


def _text_of(line: bytes, root: str | Path, seq: int) -> str:
    try:
        return line.removesuffix(b"\n").decode()
    except UnicodeDecodeError as error:
        raise BrokenProof(f"{root}: record {seq} is no UTF-8: {error}; see: otledger verify --deep", seq=seq) from None


def _not_as_signed(path: Path, note: SignedCheckpoint) -> BrokenProof:
    why = f"{path}: the records are not those that the note of seq {note.seq} commits to; see: otledger verify"
    return BrokenProof(why, path=path, seq=note.seq)


# Ranges


def _ranges(ask: Any, first: int, size: int) -> list[tuple[int, int]]:
    try:
        return list(ask(first, size))
    except ValueError as error:
        raise ProofError(f"there is nothing to prove: {error}", seq=first) from None


def _tree(start: tuple[int, Sequence[bytes]] | None, most: int) -> Tree:
    size, edge = start or (0, ())
    try:
        tree = Tree(size, edge)
    except ValueError as error:
        raise ProofError(f"an edge that does not fit: {error}", seq=size) from None
    if tree.size > most:
        raise ProofError(f"an edge over {size} records does not help with the first {most}", seq=most)
    return tree
