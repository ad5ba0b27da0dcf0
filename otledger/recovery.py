"""What a writer finds when it opens a partition, and what is to be done about it (format, 6).

Only reads. The journal acts on what is returned.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from otledger.batch import ZEROS, Tail, caller_part, check_line
from otledger.lock import State
from otledger.segment import (
    CHECKPOINT_TYPE,
    Chain,
    ChainCheck,
    Piece,
    SegmentName,
    control_data,
    file_size,
    find_back,
    find_seq,
    is_foreign,
    last_line,
    line_at,
    lines,
    open_segment,
    read_chain,
)

MOST_WRONG = 20
"""Checkpoints whose record is not there, after which all is checked: each may cost a pass over what is before it."""

Kind = Literal["residue", "damage", "fork", "foreign"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record ends: what comes next has this `seq` and `prev`."""

    segment: SegmentName
    offset: int
    seq: int
    prev: bytes


@dataclass(frozen=True, slots=True)
class Finding:
    """The first bad place that the check met.

    `residue` is what a crash leaves, and is cut off. `damage` was durable before, `fork` is a right line whose
    number or predecessor is another's, `foreign` is somebody else's line: these stay where they are.
    """

    kind: Kind
    segment: SegmentName
    offset: int
    seq: int
    reason: str
    records: tuple[int, int] | None = None
    """First and last `seq` of the whole right lines behind the place that are set aside with it."""

    def __str__(self) -> str:
        return f"{self.segment}, offset {self.offset}, seq {self.seq}: {self.kind}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Inspection:
    """The end of the partition, and what is wrong before it."""

    place: Place | None
    finding: Finding | None
    synced: Place | None = None
    """A record's end in the last segment up to which all is durable for certain."""
    checkpoint_size: int = 0
    checkpoint_seq: int = -1


@dataclass(frozen=True, slots=True)
class Way:
    """What has to be done so that appending can go on; nothing of it: it goes on where the records end."""

    cut: bool = False
    """What stands behind the last record goes to quarantine, and is cut off."""
    header: SegmentName | None = None
    """A newest segment whose creation was not finished gets its header."""
    begin: bool = False
    """The next segment is begun, as what is there is left as it is."""


def way_on(chain: Chain, place: Place, finding: Finding | None, size_of: Callable[[SegmentName], int]) -> Way:
    """Give what has to be done in a partition whose records end at `place`. `size_of` gives a segment's bytes."""
    newest = chain.newest
    here = finding is not None and finding.segment == place.segment
    residue = here and finding is not None and finding.kind == "residue"
    if newest is not None and newest > place.segment and newest not in [piece.name for piece in chain.pieces]:
        # A successor file, even an empty one, closes its predecessor: nothing is appended there any more.
        return Way(cut=residue, header=newest)
    if residue and place.segment == newest:
        return Way(cut=True)
    if newest != place.segment or (here and not residue) or size_of(place.segment) != place.offset:
        return Way(begin=True)
    return Way()


def inspect(dir_fd: int, path: Path, chain: Chain, state: State | None) -> Inspection:
    """Check everything that may have been left unfinished, and give where the partition ends.

    With the `.lock` state of this boot that is what stands beyond the acknowledged end; without it, all from
    the record `size` of the last valid checkpoint on, in earlier segments too.
    """
    if state is not None and _agrees(dir_fd, path, chain, state):
        start = Place(_name(state.segment), state.acked, state.seq, state.head.encode() or ZEROS)
        found = _check_from(dir_fd, path, chain, start, synced=state.synced_seq)
        return Inspection(found.place, found.finding, None, state.checkpoint_size, state.checkpoint_seq)
    if not chain.pieces:
        found, checkpoint = Inspection(None, None), (0, -1)
    else:
        anchor, checkpoint = find_anchor(dir_fd, path, chain)
        found = _check_from(dir_fd, path, chain, anchor, synced=checkpoint[0])
    found = replace(found, checkpoint_size=checkpoint[0], checkpoint_seq=checkpoint[1])
    return found if state is None else _with_lost(dir_fd, path, chain, found, state)


def _with_lost(dir_fd: int, path: Path, chain: Chain, found: Inspection, state: State) -> Inspection:
    """Hold what was found against what was acknowledged in this boot: more than there is, is damage.

    Its numbers are not given out again: the next record follows the last acknowledged one. Where there is more, and
    another record has the last one's number, the files were replaced by those of another writer: that is a fork.
    """
    place = found.place
    head = state.head.encode()
    if not state.seq or (place is not None and (place.seq, place.prev) == (state.seq, head)):
        return found
    if place is not None and place.seq > state.seq:
        last = len(chain.pieces) - 1
        if found.finding or _locate(dir_fd, path, chain, last, place.offset, state.seq - 1, head) is not None:
            return found
        reason = f"the acknowledged record of seq {state.seq - 1} is gone, and another one has its number"
        return replace(found, finding=Finding("fork", place.segment, place.offset, place.seq, reason))
    segment = _name(state.segment)
    if place is not None and place.seq == state.seq:
        reason = f"the last acknowledged record, seq {state.seq - 1}, is not the one that was written"
        end = place
    else:
        there = 0 if place is None else place.seq
        reason = f"{state.seq} records are acknowledged, and {there} are there"
        end = Place(segment, state.acked, state.seq, head)
        if place is not None and place.segment > segment:
            end = Place(place.segment, place.offset, state.seq, head)
        elif place is not None and place.segment == segment:
            # What is there counts, whatever was acknowledged.
            end = Place(segment, max(place.offset, state.acked), state.seq, head)
    finding = Finding("damage", end.segment, 0 if place is None else place.offset, end.seq, reason)
    return replace(found, place=end, finding=finding, synced=None)


def _agrees(dir_fd: int, path: Path, chain: Chain, state: State) -> bool:
    """Tell whether the files hold what was acknowledged in this boot, where it was written."""
    piece = next((p for p in chain.pieces if str(p.name) == state.segment), None)
    if piece is None or (piece.size is not None and piece.size < state.acked):
        return False
    fd = open_segment(dir_fd, piece.name, shown=path)
    try:
        if file_size(fd) < state.acked:
            return False
        tail = check_line(last_line(fd, state.acked)[1])
    finally:
        os.close(fd)
    return tail is not None and tail.seq + 1 == state.seq and tail.checksum.decode() == state.head


def is_synced_end(dir_fd: int, path: Path, state: State) -> bool:
    """Tell whether the segment that `.lock` names has a record's end where it says that the durable part ends."""
    name = SegmentName.parse(state.segment)
    if name is None or not state.synced:
        return False
    try:
        fd = open_segment(dir_fd, name, shown=path)
    except FileNotFoundError:
        return False
    try:
        if file_size(fd) < state.synced:
            return False
        tail = check_line(last_line(fd, state.synced)[1])
    finally:
        os.close(fd)
    return tail is not None and tail.seq + 1 == state.synced_seq and tail.checksum.decode() == state.synced_head


def find_rival(dir_fd: int, path: Path, chain: Chain) -> Finding | None:
    """Tell whether the newest segment's predecessor goes on where it should end: then two writers had one place."""
    if len(chain.pieces) < 2:
        return None
    older, newer = chain.pieces[-2:]
    header = newer.header
    if older.size is None or header is None or header.reason == "fault":
        return None
    first, beyond = (_tail_at(dir_fd, path, piece.name, at) for piece, at in ((newer, 0), (older, older.size)))
    if first is None or beyond is None or (first.seq, first.prev) != (beyond.seq, beyond.prev):
        return None
    reason = f"a record beyond the segment's end, where {newer.name} goes on with another of that number"
    return Finding("fork", older.name, older.size, beyond.seq, reason)


def _tail_at(dir_fd: int, path: Path, name: SegmentName, offset: int) -> Tail | None:
    fd = open_segment(dir_fd, name, shown=path)
    try:
        return check_line(line_at(fd, offset))
    finally:
        os.close(fd)


def find_anchor(dir_fd: int, path: Path, chain: Chain) -> tuple[Place, tuple[int, int]]:
    """Give where checking must begin, and (`size`, `seq`) of the last valid checkpoint; (0, -1) without one."""
    wrong = 0
    for at in range(len(chain.pieces) - 1, -1, -1):
        piece = chain.pieces[at]
        for offset, tail, size, head in _checkpoints(dir_fd, path, piece):
            place = _locate(dir_fd, path, chain, at, offset, size - 1, head)
            if place is not None:
                return place, (size, tail.seq)
            wrong += 1
            if wrong == MOST_WRONG:
                return _beginning(dir_fd, path, chain)
    return _beginning(dir_fd, path, chain)


def _beginning(dir_fd: int, path: Path, chain: Chain) -> tuple[Place, tuple[int, int]]:
    first = chain.pieces[0]
    seq, prev = first.header.seq if first.header else 0, ZEROS
    if seq:
        # What was before it is not there, and may be archived: its own first record tells what it follows.
        tail = _tail_at(dir_fd, path, first.name, 0)
        prev = prev if tail is None else tail.prev
    return Place(first.name, 0, seq, prev), (0, -1)


def _checkpoints(dir_fd: int, path: Path, piece: Piece) -> Iterator[tuple[int, Tail, int, bytes]]:
    fd = open_segment(dir_fd, piece.name, shown=path)
    try:
        end = file_size(fd) if piece.size is None else min(piece.size, file_size(fd))
        for offset, line in find_back(fd, b'"type":"' + CHECKPOINT_TYPE.encode() + b'"', end):
            tail, data = check_line(line), control_data(line, CHECKPOINT_TYPE)
            if tail is None or data is None:
                continue
            size, head = data.get("size"), data.get("head")
            if isinstance(size, int) and isinstance(head, str) and 0 < size <= tail.seq:
                yield offset, tail, size, head.encode()
    finally:
        os.close(fd)


def _locate(dir_fd: int, path: Path, chain: Chain, at: int, before: int, seq: int, head: bytes) -> Place | None:
    """Give the end of the record with this `seq` and checksum, searched backwards from a checkpoint."""
    for piece in reversed(chain.pieces[: at + 1]):
        fd = open_segment(dir_fd, piece.name, shown=path)
        try:
            end = before if piece is chain.pieces[at] else (file_size(fd) if piece.size is None else piece.size)
            found = find_seq(fd, seq, end)
            for offset, line in [found] if found else find_back(fd, b',"seq":%d,"prev":"' % seq, end):
                tail = check_line(line)
                if tail is not None and tail.seq == seq:
                    good = tail.checksum == head
                    return Place(piece.name, offset + len(line), seq + 1, head) if good else None
        finally:
            os.close(fd)
    return None


def _name(text: str) -> SegmentName:
    name = SegmentName.parse(text)
    assert name is not None, text
    return name


def _check_from(dir_fd: int, path: Path, chain: Chain, start: Place, *, synced: int) -> Inspection:
    walk = _Walk(start, synced)
    begin = [piece.name for piece in chain.pieces].index(start.segment)
    for piece in chain.pieces[begin:]:
        fd = open_segment(dir_fd, piece.name, shown=path)
        try:
            walk.enter(piece)
            for offset, line in lines(fd, start.offset if piece.name == start.segment else 0, piece.size):
                walk.take(offset, line)
        finally:
            os.close(fd)
    return walk.result()


class _Walk:
    """Goes over lines, remembers where the chain ends and the first thing that does not belong to it."""

    def __init__(self, start: Place, synced: int) -> None:
        self.check = ChainCheck(start.seq, start.prev, synced)
        self.place = start
        self.synced = start
        self.starts: dict[int, Place] = {}
        """Where the batches after `synced` begin."""
        self.piece: Piece | None = None
        self.bad: Finding | None = None
        self.kinds: set[Kind] = set()
        self.behind: list[Place] = []
        """First and last whole right line behind the bad place with a number that is not taken."""

    def enter(self, piece: Piece) -> None:
        self.piece = piece
        if piece.name > self.place.segment:
            if piece.header is not None and piece.header.seq == 0:
                # A new chain: its numbers begin again.
                self.check.seq, self.check.prev = 0, ZEROS
            self.place = Place(piece.name, 0, self.check.seq, self.check.prev)

    def take(self, offset: int, line: bytes) -> None:
        assert self.piece is not None
        due = self.check.seq
        got = self.check.take(line)
        if isinstance(got, Tail):
            self._note_synced(got, Place(self.piece.name, offset, got.seq, got.prev))
            self.place = Place(self.piece.name, offset + len(line), self.check.seq, self.check.prev)
            if self.synced.segment != self.piece.name:
                # A segment's header was synced before anything followed it.
                self.synced = self.place
            if self.bad is not None:
                self.kinds.add("damage")
            return
        tail = check_line(line)
        kind: Kind = "residue"
        if tail is None:
            if is_foreign(line):
                kind = "foreign"
        elif tail.seq <= due:
            kind = "fork"
        else:
            end = Place(self.piece.name, offset + len(line), tail.seq + 1, tail.checksum)
            self.behind = [*self.behind[:1], end]
        self.kinds.add(kind)
        if self.bad is None:
            self.bad = Finding(kind, self.piece.name, offset, due, got)

    def _note_synced(self, tail: Tail, before: Place) -> None:
        """Move on to where the records end that this one says were durable: the beginning of a batch."""
        if tail.synced is None:
            return
        self.starts[tail.seq] = before
        durable = self.starts.get(tail.synced)
        if durable is not None and durable.seq > self.synced.seq and durable.offset:
            self.synced = durable
            self.starts = {seq: place for seq, place in self.starts.items() if seq >= durable.seq}

    def result(self) -> Inspection:
        bad = self.bad
        if bad is None:
            return Inspection(self.place, None, self.synced)
        kind = bad.kind
        if kind == "residue":
            if bad.seq < self.check.synced or "damage" in self.kinds:
                kind = "damage"
            elif "fork" in self.kinds:
                kind = "fork"
            elif "foreign" in self.kinds:
                kind = "foreign"
        place = self.place
        records = None
        if self.behind:
            if kind == "residue":
                records = (self.behind[0].seq - 1, self.behind[-1].seq - 1)
            elif kind == "damage" and self.behind[-1].seq > place.seq:
                place = self.behind[-1]
        finding = Finding(kind, bad.segment, bad.offset, bad.seq, bad.reason, records)
        return Inspection(place, finding, self.synced)


def find_parts(
    dir_fd: int, path: Path, segment: str, offset: int, parts: Sequence[bytes]
) -> tuple[int, str, list[bytes]] | None:
    """Look for records made of these parts, one behind the other, from this place on: in the segment or a later one.

    Gives the number of the first, their segment and their lines.
    """
    for piece in read_chain(dir_fd, path).pieces:
        name = str(piece.name)
        if piece.name < (SegmentName.parse(segment) or piece.name):
            continue
        fd = open_segment(dir_fd, name, shown=path)
        try:
            found: list[bytes] = []
            for _, line in lines(fd, offset if name == segment else 0, piece.size):
                tail = check_line(line)
                if tail is None or caller_part(tail) != parts[len(found)]:
                    found = []
                    continue
                found.append(line)
                if len(found) == len(parts):
                    return tail.seq - len(parts) + 1, name, found
        finally:
            os.close(fd)
    return None
