"""Finding the newest signed checkpoint without reading what is before it: where an incremental check begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from otledger.batch import check_line
from otledger.notes import VerifierKey
from otledger.segment import CHECKPOINT_TYPE, Piece, control_data
from otledger.verifying.files import Files
from otledger.verifying.findings import Findings
from otledger.verifying.seals import KEY, KEY_TYPE, NOTE, Entry, Seal, Seals, Start, read_entry

MOST_PLAIN = 1000
"""Checkpoints without a note that are passed over."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """Where checking begins: everything before it is bound by a note that holds."""

    piece: Piece
    offset: int
    seal: Seal
    head: str
    start: Start


def find_anchor(files: Files, pieces: Sequence[Piece], keys: Sequence[VerifierKey]) -> Anchor | None:
    """Give the place behind the records that the newest note covers; None where that note does not hold.

    A note of a key that follows a pinned one is believed as well; then the changes of key are looked for in all that
    is there, which is quick but not O(log n).
    """
    seals = Seals(files, Findings(""), pieces, keys)
    entry = _newest(files, pieces) if seals.pinned else None
    if entry is None:
        return None
    seal, _ = seals.check(entry, seals.pinned)
    if seal is None:
        key = _key_that_follows(files, pieces, keys)
        seal, _ = seals.check(entry, [key]) if key is not None else (None, None)
    last = files.place_of(pieces, seal.size - 1) if seal is not None else None
    if seal is None or last is None:
        return None
    piece, offset, line, tail = last
    return Anchor(piece, offset + len(line), seal, tail.checksum.decode(), Start(seal.key))


def _newest(files: Files, pieces: Sequence[Piece]) -> Entry | None:
    left = MOST_PLAIN
    for piece, offset, line in files.back(pieces, CHECKPOINT_TYPE):
        entry = read_entry(piece, offset, line, NOTE)
        if entry is None:
            continue
        if "refused" in entry.data or left == 0:
            return None
        if entry.data.get("note") is not None:
            return entry
        left -= 1
    return None


def _key_that_follows(files: Files, pieces: Sequence[Piece], keys: Sequence[VerifierKey]) -> VerifierKey | None:
    seals = Seals(files, Findings(""), pieces, keys)
    places: list[tuple[Piece, int, int]] = []
    for piece, offset, line in files.back(pieces, KEY_TYPE):
        if check_line(line) is None or control_data(line, KEY_TYPE) is None:
            continue
        places.append((piece, offset, KEY))
        upto = pieces[: pieces.index(piece) + 1]
        # The note before may name the key that comes next.
        before = next(files.back(upto, CHECKPOINT_TYPE, offset), None)
        if before is not None:
            places.append((before[0], before[1], NOTE))
    for place in sorted(set(places), key=lambda place: (place[0].name, place[1])):
        seals.add(*place)
    key = seals.key_at_end()
    return key if not seals.found.faults else None
