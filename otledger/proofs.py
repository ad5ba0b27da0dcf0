"""Proofs from a ledger's files: which leaves they hold, which notes, and what leads from the one to the other.

Only reads, without the lock. Nothing here believes a note or an edge: who asks for a proof checks it (format, 7).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from otledger.batch import MAX_LINE, check_line
from otledger.errors import LedgerError, RootError
from otledger.merkle import Tree, consistency_ranges, edge_ranges, inclusion_ranges, leaf_hash, range_hashes
from otledger.notes import Commitment, Note, NoteError
from otledger.segment import (
    CHECKPOINT_TYPE,
    Chain,
    Piece,
    control_data,
    file_size,
    find_back,
    find_seq,
    lines,
    lines_with,
    list_machines,
    open_folder,
    open_segment,
    read_chain,
)

_NEEDLE = b'"type":"' + CHECKPOINT_TYPE.encode() + b'"'
_HEX = re.compile(r"[0-9a-f]{64}")


class ProofError(LedgerError):
    """What a proof needs is not there, or does not fit."""


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint with a note, read and not yet believed: note and members say the same, no signature was checked."""

    size: int
    """How many records it covers."""
    seq: int
    """Of the checkpoint record itself."""
    head: str
    """Checksum of the last record covered, 64 hex digits."""
    root: bytes
    edge: tuple[bytes, ...]
    path: tuple[bytes, ...]
    """Audit path of leaf `size` - 1 in the tree of `size`."""
    note: str
    """The signed note, whole."""

    @property
    def commitment(self) -> Commitment:
        """What the note says."""
        return Commitment.parse(Note.parse(self.note).text)


# Checkpoints


def newest_note(root: str | Path, machine: str) -> SignedCheckpoint | None:
    """Give the newest checkpoint that has a note; None where there is none. Raises `RootError`, `FormatError`."""
    with _partition(root, machine) as part:
        return next(part.notes_back(), None)


def checkpoint_covering(root: str | Path, machine: str, seq: int) -> SignedCheckpoint | None:
    """Give the newest checkpoint that has a note and covers record `seq`; None where there is none yet."""
    found = newest_note(root, machine)
    return found if found is not None and found.size > seq else None


def checkpoint_of_size(root: str | Path, machine: str, size: int) -> SignedCheckpoint | None:
    """Give the checkpoint that has a note over exactly the first `size` records; None where there is none."""
    with _partition(root, machine) as part:
        for found in part.notes_from(size):
            if found.size >= size:
                return found if found.size == size else None
    return None


def read_checkpoint(line: bytes) -> SignedCheckpoint | None:
    """Give the checkpoint of a record's line; None for any other line, one without a note, and one that is garbled."""
    tail, data = check_line(line), control_data(line, CHECKPOINT_TYPE)
    if tail is None or data is None:
        return None
    size, head, note = data.get("size"), data.get("head"), data.get("note")
    root, edge, path = hash_of(data.get("root")), hashes_of(data.get("edge")), hashes_of(data.get("path"))
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= tail.seq or not isinstance(note, str):
        return None
    if not isinstance(head, str) or not _HEX.fullmatch(head) or root is None or edge is None or path is None:
        return None
    found = SignedCheckpoint(size, tail.seq, head, root, tuple(edge), tuple(path), note)
    try:
        says = found.commitment
    except NoteError:
        return None
    return found if (says.size, says.root) == (size, root) else None


def hash_of(text: object) -> bytes | None:
    """Give the 32 bytes of a base64 text; None for anything else."""
    if not isinstance(text, str) or len(text) != 44:
        return None
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if len(data) == 32 else None


def hashes_of(texts: object, most: int = 128) -> list[bytes] | None:
    """Give the hashes of a list of base64 texts, of which there are at most `most`; None for anything else."""
    if not isinstance(texts, list) or len(texts) > most:
        return None
    found = [hash_of(text) for text in texts]
    return None if None in found else [each for each in found if each is not None]


# Leaves and proofs


def leaf_hashes(root: str | Path, machine: str, begin: int, end: int) -> Iterator[bytes]:
    """Iterate over the leaf hashes of the records with `seq` from `begin` up to, and without, `end`.

    Raises `ProofError` where one is not there, or archived, and where a line is no record or not the one that is due.
    """
    with _partition(root, machine) as part:
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
    with _partition(root, machine) as part:
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
    with _partition(root, machine) as part:
        if tree.size < old:
            for leaf in part.leaves(0, old):
                tree.add(leaf)
        known = dict(zip(edge_ranges(old), tree.edge, strict=True))
        new = [each for each in ranges if each not in known]
        known.update(zip(new, range_hashes(new, part.leaves(old, size), old), strict=True))
    return [known[each] for each in ranges]


def edge_before(root: str | Path, machine: str, seq: int) -> tuple[int, tuple[bytes, ...]]:
    """Give size and edge of the last checkpoint with a note over at most the first `seq` records; (0, ()) without."""
    with _partition(root, machine) as part:
        found = next((each for each in part.notes_back(seq) if each.size <= seq), None)
    return (0, ()) if found is None else (found.size, found.edge)


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


# Partitions


@contextlib.contextmanager
def _partition(root: str | Path, machine: str) -> Iterator[_Partition]:
    root = Path(root)
    known = list_machines(root)
    if machine not in known:
        there = ", ".join(known) or "none"
        raise RootError(f"{root} has no machine {machine!r}; there are: {there}", path=root)
    path = root / machine
    fd = open_folder(path)
    try:
        yield _Partition(fd, path, read_chain(fd, path))
    finally:
        os.close(fd)


class _Partition:
    """A partition's records, as far as they count, by the pieces that hold them."""

    def __init__(self, dir_fd: int, path: Path, chain: Chain) -> None:
        self.dir_fd, self.path = dir_fd, path
        if not chain.chained:
            raise ProofError(
                f"{path} was written by evledger: it has no checksums, and nothing can be proved", path=path
            )
        begins = [at for at, piece in enumerate(chain.pieces) if piece.header is not None and piece.header.seq == 0]
        # Where a new chain was begun the numbers begin again.
        self.pieces = chain.pieces[begins[-1] :] if begins else chain.pieces
        self.missing = chain.missing

    @contextlib.contextmanager
    def opened(self, piece: Piece) -> Iterator[tuple[int, int]]:
        """Open a segment; gives descriptor and how many bytes count."""
        fd = open_segment(self.dir_fd, piece.name, shown=self.path)
        try:
            size = file_size(fd)
            yield fd, size if piece.size is None else min(size, piece.size)
        finally:
            os.close(fd)

    def notes_back(self, before: int | None = None) -> Iterator[SignedCheckpoint]:
        """Give the checkpoints with a note, the newest first, from record `before` (None: the last) back."""
        for piece in reversed(self.pieces):
            if before is not None and piece.header is not None and piece.header.seq > before:
                continue
            with self.opened(piece) as (fd, end):
                if before is not None:
                    found = find_seq(fd, before, end)
                    end = end if found is None else found[0]
                for _, line in find_back(fd, _NEEDLE, end):
                    checkpoint = read_checkpoint(line)
                    if checkpoint is not None:
                        yield checkpoint

    def notes_from(self, seq: int) -> Iterator[SignedCheckpoint]:
        """Give the checkpoints with a note in their order, from record `seq` on."""
        for piece in self.pieces[self._first(seq) :]:
            with self.opened(piece) as (fd, end):
                found = find_seq(fd, seq, end)
                for _, line in lines_with(fd, _NEEDLE, 0 if found is None else found[0], end):
                    checkpoint = read_checkpoint(line)
                    if checkpoint is not None:
                        yield checkpoint

    def leaves(self, begin: int, end: int) -> Iterator[bytes]:
        """Give the leaf hashes of the records with `seq` from `begin` up to `end`."""
        at = begin
        for piece in self.pieces[self._first(begin) :] if begin < end else ():
            with self.opened(piece) as (fd, size):
                for leaf in islice(self._leaves_of(piece, fd, size, at), end - at):
                    yield leaf
                    at += 1
            if at == end:
                return
        if at < end:
            raise self._not_there(at)

    def _leaves_of(self, piece: Piece, fd: int, size: int, seq: int) -> Iterator[bytes]:
        found = find_seq(fd, seq, size)
        for offset, line in lines(fd, 0 if found is None else found[0], size):
            tail = check_line(line)
            if tail is None and not line.endswith(b"\n") and len(line) <= MAX_LINE:
                # Torn: its writer may be at work.
                return
            if tail is not None and tail.seq < seq and found is None:
                continue
            if tail is None or tail.seq != seq:
                what = "the line is no record" if tail is None else f"seq is {tail.seq}, and {seq} is due"
                place = self.path / str(piece.name)
                why = f"{place}, offset {offset}: {what}, so nothing is proved over it; see: otledger verify"
                raise ProofError(why, path=place, offset=offset, seq=seq)
            yield leaf_hash(tail.checksum)
            seq += 1

    def _first(self, seq: int) -> int:
        """Give which piece the record with this `seq` is in, if any. Raises `ProofError` if it comes before all."""
        begins = [piece.header.seq if piece.header is not None else 0 for piece in self.pieces]
        if begins and seq < begins[0]:
            raise self._not_there(seq)
        return max((at for at, begin in enumerate(begins) if begin <= seq), default=0)

    def _not_there(self, seq: int) -> ProofError:
        if self.missing:
            why = f"record {seq} is in {self.missing[0]} or before, which is not there; if it is archived, put it back"
        else:
            why = f"record {seq} is not there; see: otledger verify"
        return ProofError(f"{self.path}: {why}", path=self.path, seq=seq)
