"""Judging the signed notes of one chain by the keys that are pinned for it, and the keys that follow these.

The chain binds every record to those before it, so one note proves all that it covers, by its path: the newest one is
looked at, and those where a key changes. All of them are, one after the other, where that does not hold, or when asked
for: then the first that is wrong, and the last good one before it, are known exactly.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from otledger.batch import check_line
from otledger.notes import VerifierKey, origin_of
from otledger.record import parse_time
from otledger.segment import CHECKPOINT_TYPE, Piece, control_data, line_at
from otledger.verifying.committed import Committed, is_checksum, key_of, next_key
from otledger.verifying.files import Files
from otledger.verifying.findings import Findings
from otledger.verifying.report import Status

KEY_TYPE = "otledger.key"
NOTE, KEY = 0, 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A checkpoint with a note, or a change of key, with its place."""

    piece: Piece
    offset: int
    seq: int
    kind: int
    time: int | None
    """What it says when it was written, in nanoseconds since the epoch."""
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Seal:
    """A note that holds, under a key that is trusted."""

    size: int
    seq: int
    time: int | None
    key: VerifierKey
    edge: tuple[bytes, ...] | None
    root: bytes


@dataclass(frozen=True, slots=True)
class Start:
    """Where the keys stand at a checkpoint that is begun with."""

    key: VerifierKey


class Seals:
    """Collects where notes and changes of key are, and judges them at the chain's end."""

    def __init__(self, files: Files, found: Findings, pieces: Sequence[Piece], keys: Sequence[VerifierKey]) -> None:
        self.files = files
        self.found = found
        self.pieces = pieces
        self.ledger = next((piece.header.ledger for piece in pieces if piece.header is not None), "")
        self.origin = origin_of(self.ledger)
        self.pinned = [key for key in keys if key.name == self.origin]
        self.trusted: list[VerifierKey] = list(self.pinned)
        """The pinned keys and those that follow them, as far as they were met."""
        self.former: set[str] = set()
        """Keys that come before a pinned one."""
        self.key_ids: list[str] = []
        self.start: Start | None = None
        self.broken: int | None = None
        """The number of the first record that does not follow the one before it: nothing binds it to that."""
        self._past: set[str] = set()
        self._places: dict[str, array[int]] = {}
        self._by_name = {str(piece.name): piece for piece in pieces}

    def add(self, piece: Piece, offset: int, kind: int) -> None:
        """Take note of where an entry is. Eight bytes each: a ledger may have millions."""
        places = self._places.get(str(piece.name))
        if places is None:
            places = self._places[str(piece.name)] = array("q")
        places.append(offset << 1 | kind)

    def add_break(self, seq: int) -> None:
        """Take note that the record that is due here does not follow the one before."""
        self.broken = seq if self.broken is None else min(self.broken, seq)

    # Entries

    def entries(self) -> Iterator[Entry]:
        """Give what was collected, in its order."""
        for name, places in self._places.items():
            yield from self._entries_of(name, places)

    def _entries_of(self, name: str, places: Sequence[int]) -> Iterator[Entry]:
        with self.files.opened(name) as fd:
            for place in places:
                kind, offset = place & 1, place >> 1
                entry = read_entry(self._by_name[name], offset, line_at(fd, offset), kind)
                if entry is not None:
                    yield entry

    def newest(self, before: Entry | None = None) -> Entry | None:
        """Give the last checkpoint with a note, or the last one before another."""
        for name, places in reversed(self._places.items()):
            if before is not None and self._by_name[name].name > before.piece.name:
                continue
            end = before.offset if before is not None and before.piece.name == self._by_name[name].name else None
            for place in reversed(places):
                if place & 1 == NOTE and (end is None or place >> 1 < end):
                    return next(self._entries_of(name, (place,)), None)
        return None

    # Judgement

    def judge(self, *, every: bool) -> Seal | None:
        """Give the last note that holds, and tell of those that do not. `every`: look at each of them."""
        newest = self.newest()
        if not self.pinned:
            self._look_at(newest)
            return None
        if every or self.broken is not None:
            return self._judge_every()
        at, key = len(self.found.faults), self.key_at_end()
        if newest is not None and at == len(self.found.faults):
            seal, reason = self.check(newest, [key] if key is not None else self.pinned)
            if seal is not None and reason is None:
                return self._take(seal)
        if newest is None:
            return None
        del self.found.faults[at:]
        return self._judge_every()

    def _look_at(self, newest: Entry | None) -> None:
        """See whether the newest note fits the records, where no key is known to check who has signed it."""
        read = newest and Committed.read(newest.data, newest.seq)
        if newest is None or read is None:
            return
        reason = read if isinstance(read, str) else None
        if isinstance(read, Committed):
            said, reason = read.why_unsigned(self.origin)
            self.key_ids = list(dict.fromkeys(said.key_ids())) if said is not None else []
            reason = reason or self._why_not(newest, read)
        if reason is not None:
            self._fault(newest, f"the signed checkpoint does not hold: {reason}")

    def _judge_every(self) -> Seal | None:
        pinned = {str(key) for key in self.pinned}
        has_start = self.start is None and any(
            entry.data.get("new") in pinned for entry in self.entries() if entry.kind == KEY
        )
        key, self._past = (self.start.key if self.start is not None else None), set()
        last: Seal | None = None
        before: Entry | None = None
        unjudged: Entry | None = None
        for entry in self.entries():
            if entry.kind == KEY:
                key = self._change(entry, key, before)
                unjudged = unjudged if key is None else None
                continue
            before = entry
            if key is None and (has_start or not self._is_of_pinned(entry)):
                # Of a key before the pinned one, as long as that begins later.
                unjudged = unjudged or entry
                continue
            seal, reason = self.check(entry, [key] if key is not None else self.pinned)
            unjudged = None
            if seal is None or reason is not None:
                self._fault(entry, reason or "")
                continue
            key = key or seal.key
            if self.broken is None or seal.size <= self.broken:
                last = self._take(seal)
        if key is None and unjudged is not None:
            _, reason = self.check(unjudged, self.pinned)
            self._fault(unjudged, reason or "")
        return last

    def _is_of_pinned(self, entry: Entry) -> bool:
        read = Committed.read(entry.data, entry.seq)
        note = read.why_unsigned(self.origin)[0] if isinstance(read, Committed) else None
        return note is not None and not {key.id.hex() for key in self.pinned}.isdisjoint(note.key_ids())

    def _take(self, seal: Seal) -> Seal:
        if seal.key.id.hex() not in self.key_ids:
            self.key_ids.append(seal.key.id.hex())
        return seal

    def check(self, entry: Entry, keys: Sequence[VerifierKey]) -> tuple[Seal | None, str | None]:
        """Give the seal of a checkpoint that one of `keys` has signed, and why its note does not hold."""
        read = Committed.read(entry.data, entry.seq)
        if isinstance(read, str):
            return None, f"the signed checkpoint does not hold: {read}"
        note, reason = read.why_unsigned(self.origin)
        key = note.signer_of(keys) if note is not None else None
        reason = reason or self._why_not(entry, read)
        if reason is not None:
            return None, f"the signed checkpoint over {read.size} records does not hold: {reason}"
        if note is None or key is None:
            ids = ", ".join(note.key_ids()) if note is not None else ""
            wanted = ", ".join(key.id.hex() for key in keys)
            return None, f"the checkpoint over {read.size} records is signed by another key: {ids}, and not {wanted}"
        return Seal(read.size, entry.seq, entry.time, key, read.edge, read.root), None

    def _why_not(self, entry: Entry, read: Committed) -> str | None:
        named = entry.data.get("head")
        if self.files.is_away(read.size - 1) and entry.kind == NOTE:
            return read.why_not(named) if is_checksum(named) else "its head is missing or garbled"
        head = self.files.checksum_before(entry.piece, entry.offset, read.size - 1)
        if head is None:
            return "the last record that it covers is not there"
        if entry.kind == NOTE and named != head:
            return "it names another head than the records have"
        return read.why_not(head)

    def _fault(self, entry: Entry, reason: str) -> None:
        file = str(entry.piece.name)
        if not any((fault.file, fault.offset) == (file, entry.offset) for fault in self.found.faults):
            self.found.fault(Status.TAMPERED, file, entry.offset, entry.seq, reason)

    # Keys

    def key_at_end(self) -> VerifierKey | None:
        """Give the key that counts at the end; None where no change of key is there, so that it is the pinned one."""
        key, self._past = (self.start.key if self.start is not None else None), set()
        for entry in self.entries() if self._has_keys() else ():
            if entry.kind == KEY:
                key = self._change(entry, key, None)
        return key

    def _has_keys(self) -> bool:
        return any(place & 1 for places in self._places.values() for place in places)

    def _change(self, entry: Entry, key: VerifierKey | None, before: Entry | None) -> VerifierKey | None:
        """Give the key that counts after a change of key."""
        old, new = entry.data.get("old"), key_of(entry.data.get("new"))
        if key is not None:
            self._past.add(str(key))
        if new is not None and new in self.pinned and str(new) not in self._past:
            # Whoever pins a key need not be told by the one before.
            if isinstance(old, str) and key is None:
                self.former.add(old)
            return new
        if key is None:
            key = next((pinned for pinned in self.pinned if str(pinned) == old), None)
            if key is None:
                self.former.update(text for text in (old,) if isinstance(text, str))
                return None
        reason = self._why_no_change(entry, key, new, before)
        if reason is not None or new is None:
            self._fault(entry, f"the change of key does not hold: {reason}")
            return key
        if new not in self.trusted:
            self.trusted.append(new)
        return new

    def _why_no_change(
        self, entry: Entry, key: VerifierKey, new: VerifierKey | None, before: Entry | None
    ) -> str | None:
        if new is None:
            return "its new key is missing or garbled"
        if new.name != self.origin:
            return f"the new key is of another chain, {new.name[:100]}"
        if new == key and entry.data.get("old") is None:
            return None
        if entry.data.get("old") != str(key):
            return "it does not follow the key before it"
        if entry.data.get("signature") is None:
            before = before or self.newest(entry)
            seal = self.check(before, [key])[0] if before is not None else None
            named = next_key(before.data.get("note")) if seal is not None and before is not None else None
            return None if named == str(new) else "the key before has not signed it"
        read = Committed.read(entry.data, entry.seq, "signature")
        if isinstance(read, str):
            return read
        note, reason = read.why_unsigned(self.origin, f"key {new}")
        if reason is None and note is not None and not note.is_signed_by(key):
            reason = "the key before has not signed it"
        return reason or self._why_not(entry, read)


def read_entry(piece: Piece, offset: int, line: bytes, kind: int) -> Entry | None:
    """Give a checkpoint or a change of key as it stands in its line; None where it is no such record any more."""
    tail = check_line(line)
    data = control_data(line, KEY_TYPE if kind == KEY else CHECKPOINT_TYPE)
    if tail is None or data is None:
        return None
    return Entry(piece, offset, tail.seq, kind, time_of(line), data)


def time_of(line: bytes) -> int | None:
    """Give what a record says when it happened, in nanoseconds since the epoch."""
    try:
        members = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    text = members.get("time") if isinstance(members, dict) else None
    return parse_time(text) if isinstance(text, str) else None
