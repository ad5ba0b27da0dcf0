"""A partition as proofs see it: its leaves, its signed checkpoints, its changes of key (format, 5 and 7).

Only reads, without the lock, and believes no note.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from otledger import speed
from otledger.archived import archived_in
from otledger.batch import MAX_LINE, check_line
from otledger.errors import RootError
from otledger.hashes import hash_of, hashes_of
from otledger.merkle import leaf_hash
from otledger.notes import Commitment, Note, NoteError
from otledger.proof_file import MAX_CHANGES, BrokenProof, ProofError
from otledger.segment import (
    BLOCK,
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
    pread,
    read_chain,
)

KEY_TYPE = "otledger.key"
_CHECKPOINT = b'"type":"' + CHECKPOINT_TYPE.encode() + b'"'
_KEY = b'"type":"' + KEY_TYPE.encode() + b'"'
_HEX = re.compile(r"[0-9a-f]{64}")


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


@contextlib.contextmanager
def partition(root: str | Path, machine: str) -> Iterator[Partition]:
    root = Path(root)
    known = list_machines(root)
    if machine not in known:
        there = ", ".join(known) or "none"
        raise RootError(f"{root} has no machine {machine!r}; there are: {there}", path=root)
    path = root / machine
    fd = open_folder(path)
    try:
        yield Partition(fd, path, read_chain(fd, path))
    finally:
        os.close(fd)


class Partition:
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
                for _, line in find_back(fd, _CHECKPOINT, end):
                    checkpoint = read_checkpoint(line)
                    if checkpoint is not None:
                        yield checkpoint

    def notes_from(self, seq: int) -> Iterator[SignedCheckpoint]:
        """Give the checkpoints with a note in their order, from record `seq` on."""
        for piece in self.pieces[self._first(seq) :]:
            with self.opened(piece) as (fd, end):
                found = find_seq(fd, seq, end)
                for _, line in lines_with(fd, _CHECKPOINT, 0 if found is None else found[0], end):
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

    def line(self, seq: int) -> bytes:
        """Give the line of the record with this `seq`. Raises `ProofError`."""
        for piece in self.pieces[self._first(seq) :]:
            with self.opened(piece) as (fd, end):
                found = find_seq(fd, seq, end)
                if found is None:
                    # By bisection it is not found where a line on the way is no record.
                    places = find_back(fd, b',"seq":%d,"prev":"' % seq, end)
                    found = next((place for place in places if _is_number(place[1], seq)), None)
                if found is not None:
                    return found[1]
        raise self._not_there(seq)

    def key_changes(self) -> list[str]:
        """Give the notes by which a key handed over to the next, the oldest first, as far as they are there."""
        changes: list[str] = []
        for piece in reversed(self.pieces):
            with self.opened(piece) as (fd, end):
                for _, line in find_back(fd, _KEY, end):
                    data = control_data(line, KEY_TYPE)
                    if data is None or check_line(line) is None:
                        continue
                    if isinstance(data.get("signature"), str) and len(changes) < MAX_CHANGES:
                        changes.append(data["signature"])
                    if data.get("old") is None:
                        return changes[::-1]
        return changes[::-1]

    def _leaves_of(self, piece: Piece, fd: int, size: int, seq: int) -> Iterator[bytes]:
        found = find_seq(fd, seq, size)
        start = 0 if found is None else found[0]
        if found is not None:
            start, seq = yield from _leaves_fast(fd, start, size, seq, found[1])
        for offset, line in lines(fd, start, size):
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
                raise BrokenProof(why, path=place, offset=offset, seq=seq)
            yield leaf_hash(tail.checksum)
            seq += 1

    def _first(self, seq: int) -> int:
        """Give which piece the record with this `seq` is in, if any. Raises `ProofError` if it comes before all."""
        begins = [piece.header.seq if piece.header is not None else 0 for piece in self.pieces]
        if begins and seq < begins[0]:
            raise self._not_there(seq)
        return max((at for at, begin in enumerate(begins) if begin <= seq), default=0)

    def _not_there(self, seq: int) -> ProofError:
        moved = archived_in(self.dir_fd, self.path, Chain(self.pieces))
        segment = next((each.segment for each in moved if each.first <= seq <= each.last), None)
        if segment is not None:
            why = f"record {seq} is in {segment}, which was archived; copy it back for as long as you prove it"
        elif self.missing:
            why = f"record {seq} is in {self.missing[0]} or before, which is not there; see: otledger verify"
        else:
            why = f"record {seq} is not there; see: otledger verify"
        return ProofError(f"{self.path}: {why}", path=self.path, seq=seq)


def _leaves_fast(fd: int, offset: int, end: int, seq: int, line: bytes) -> Generator[bytes, None, tuple[int, int]]:
    """Give the leaf hashes of the lines from `offset` on, of which `line` is the first, as compiled code checks them.

    Returns where it met a line that is not the next record, or the end, and the `seq` that is due there.
    """
    tail = check_line(line)
    if tail is None or speed.check is None:
        return offset, seq
    block, at, prev = b"", 0, tail.prev
    while offset + at < end:
        stop, count, prev, _ = speed.check(block, at, end - offset, seq, prev)
        if count:
            yield from [leaf_hash(each[-66:-2]) for each in block[at:stop].split(b"\n")[:-1]]
        at, seq = stop, seq + count
        if block.find(b"\n", at) >= 0 or len(block) - at > MAX_LINE:
            break
        more = pread(fd, min(BLOCK, end - offset - len(block)), offset + len(block))
        if not more:
            break
        block, offset, at = block[at:] + more, offset + at, 0
    return offset + at, seq


def _is_number(line: bytes, seq: int) -> bool:
    tail = check_line(line)
    return tail is not None and tail.seq == seq
