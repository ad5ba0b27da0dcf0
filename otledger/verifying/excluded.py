"""Reading what does not count: bytes that caps leave out, and segments that no other names (format, 6)."""

from __future__ import annotations

import os
from collections.abc import Sequence

from otledger.batch import Tail, check_line
from otledger.notes import VerifierKey
from otledger.segment import (
    CHECKPOINT_TYPE,
    QUARANTINE,
    ChainCheck,
    Piece,
    SegmentName,
    control_data,
    is_foreign,
    line_at,
    lines,
    read_header,
)
from otledger.verifying.committed import Committed
from otledger.verifying.controls import open_quarantined
from otledger.verifying.files import Files
from otledger.verifying.findings import Findings
from otledger.verifying.report import Status
from otledger.verifying.seals import Seals


class Excluded:
    """Checks that nothing was put where readers do not look: records that were durable, or claimed a place."""

    def __init__(self, files: Files, found: Findings, seals: Sequence[Seals], keys: Sequence[VerifierKey]) -> None:
        self.files = files
        self.found = found
        self.seals = seals
        self.keys = list(dict.fromkeys((*keys, *(key for each in seals for key in each.trusted))))

    def check(self, seq: int, first: Piece, set_aside: Sequence[str]) -> None:
        """Look at all that the partition's chain leaves out, from a segment on.

        `seq`: the number that is due at its end. `set_aside`: files in quarantine of which a record tells.
        """
        chain, sizes = self.files.chain, self.files.sizes
        successors = {piece.header.previous: piece for piece in chain.pieces if piece.header is not None}
        for piece in chain.pieces:
            if piece.name >= first.name and piece.size is not None and piece.size < sizes[piece.name]:
                self._bytes(piece.name, piece.size, successors.get(str(piece.name)))
        for name in chain.skipped:
            later = [piece for piece in chain.pieces if piece.name > name]
            self._skipped(name, later[0] if later else None)
            if not later and self.files.size(name):
                reason = "no valid record in the segment; the next writer sets its bytes aside"
                self.found.fault(Status.INCOMPLETE, str(name), 0, seq, reason)
        if any(piece.header is not None and piece.header.reason == "fault" for piece in chain.pieces):
            self.found.raise_to(Status.RECOVERED)
        for file in set_aside if self.keys else ():
            self._quarantined(file)

    def _quarantined(self, name: str) -> None:
        """See that nothing signed was called a crash's leavings."""
        try:
            fd = open_quarantined(self.files, name)
        except (OSError, ValueError):
            return
        signed = _Signed(self, f"{QUARANTINE}/{name}", "among the bytes that were set aside")
        try:
            for offset, line in lines(fd):
                tail = check_line(line)
                if tail is not None and signed.take(offset, line, tail):
                    return
        finally:
            os.close(fd)

    def _bytes(self, name: SegmentName, start: int, successor: Piece | None) -> None:
        """Read what stands beyond the end that the next segment names.

        What has numbers that the records that count have is another writer's: only where a sync had failed it may be
        the same writer's, who wrote again what was not durable.
        """
        header = successor.header if successor is not None else None
        reason = header.reason if header is not None else ""
        before, rival = -1, ChainCheck(-1, b"")
        if successor is not None and header is not None and reason != "fault":
            tail = self.files.first_tail(successor.name)
            before, rival = header.seq, ChainCheck(header.seq, tail.prev if tail is not None else b"")
        first: int | None = None
        signed = _Signed(self, str(name), "beyond the end that the next segment names")
        with self.files.opened(name) as fd:
            for offset, line in lines(fd, start):
                tail = check_line(line)
                if tail is None:
                    if reason == "damage" and is_foreign(line):
                        self._fault(Status.TAMPERED, name, offset, None, "a line that is not otledger's")
                    continue
                if signed.take(offset, line, tail):
                    return
                if (
                    reason == "damage"
                    or isinstance(rival.take(line), Tail)
                    or (0 <= tail.seq < before and self.files.is_other_record(str(name), offset, tail.seq))
                ):
                    why = f"a record with seq {tail.seq} beyond the segment's end, and another has that number"
                    self._fault(Status.FORK, name, offset, tail.seq, why)
                elif first is not None and (tail.synced or 0) > first:
                    why = "records that were durable stand beyond the end that the next segment names"
                    self._fault(Status.TAMPERED, name, offset, first, why)
                    return
                first = tail.seq if first is None else first

    def _skipped(self, name: SegmentName, later: Piece | None) -> None:
        """Read a segment that no other names: its creation failed, or two hosts went on from the same place."""
        with self.files.opened(name) as fd:
            header = read_header(line_at(fd, 0), self.files.path / str(name))
        host = later.header.host if later is not None and later.header is not None else ""
        if header is not None and host and header.host != host:
            why = f"the segment goes on from the same place as {later.name if later else ''}, which another host began"
            self._fault(Status.FORK, name, 0, header.seq, why)
        else:
            self._bytes(name, 0, None)

    def _fault(self, status: Status, name: SegmentName, offset: int, seq: int | None, reason: str) -> None:
        self.found.fault(status, str(name), offset, seq, reason)


class _Signed:
    """Looks for notes among records that do not count: what they cover must be where it counts."""

    def __init__(self, excluded: Excluded, file: str, where: str) -> None:
        self.excluded = excluded
        self.file = file
        self.where = where
        self._first: tuple[int, int] | None = None
        """Place and number of the first record."""

    def take(self, offset: int, line: bytes, tail: Tail) -> bool:
        """Tell of the first record that a note in this line covers, if it does not count."""
        if self._first is None:
            self._first = offset, tail.seq
        data = control_data(line, CHECKPOINT_TYPE) if self.excluded.keys else None
        read = Committed.read(data, tail.seq) if data is not None else None
        if not isinstance(read, Committed) or read.note is None or not self._is_missed(read):
            return False
        reason = f"records under a signed note over {read.size} records stand {self.where}"
        self.excluded.found.fault(Status.TAMPERED, self.file, *self._first, reason)
        return True

    def _is_missed(self, read: Committed) -> bool:
        """Tell whether a pinned key has signed this, and the records that count are not those."""
        for key in self.excluded.keys:
            note, reason = read.why_unsigned(key.name)
            if reason is None and note is not None and note.is_signed_by(key):
                break
        else:
            return False
        chain = next((seals for seals in self.excluded.seals if seals.origin == key.name), None)
        if chain is None:
            return True
        if chain.files.is_away(read.size - 1):
            return False
        place = chain.files.place_of(chain.pieces, read.size - 1)
        return place is None or read.why_not(place[3].checksum.decode()) is not None
