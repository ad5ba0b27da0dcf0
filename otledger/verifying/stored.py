"""Holding whole segments against the records that say what they were, and where they are now (format, 5)."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from otledger.archived import ArchiveError, archived_path
from otledger.batch import check_line
from otledger.segment import Chain, Piece, SegmentName, blocks, control_data, file_size, line_at, read_header
from otledger.verifying.committed import is_checksum
from otledger.verifying.files import Files
from otledger.verifying.findings import Findings
from otledger.verifying.report import Fault, Status
from otledger.verifying.seals import Seal

ARCHIVE_TYPE = "otledger.archive"


@dataclass(frozen=True, slots=True)
class Archived:
    """What an `otledger.archive` record says, with its place."""

    file: str
    offset: int
    seq: int
    size: int
    sha256: str
    first: int
    last: int
    head: str


class Stored:
    """Checks what control records say of whole segments."""

    def __init__(self, files: Files, found: Findings, *, deep: bool) -> None:
        self.files = files
        self.found = found
        self.deep = deep
        self.archived: dict[str, Archived] = {}

    def sealed(self, file: str, offset: int, seq: int, data: dict[str, Any]) -> None:
        """Hold a closed segment against the record that says which bytes it has."""
        name, size, digest = data.get("segment"), data.get("size"), data.get("sha256")
        if not isinstance(name, str) or not isinstance(size, int) or not is_checksum(digest):
            self._fault(file, offset, seq, "what it says of a closed segment is missing or garbled")
            return
        piece = next((piece for piece in self.files.chain.pieces if str(piece.name) == name), None)
        if piece is None:
            return
        there = self.files.end(piece)
        if size not in (there, self.files.sizes[piece.name]):
            reason = (
                f"the record of seq {seq} says that the segment was closed with {size} bytes, and {there} are there"
            )
            self._fault(name, min(size, there), None, reason)
        elif self.deep and self._digest(piece.name, size) != digest:
            reason = f"the record of seq {seq} says that the segment was closed with other bytes"
            self._fault(name, 0, None, reason)

    def archive(self, file: str, offset: int, seq: int, data: dict[str, Any]) -> None:
        """Remember which segment was moved away."""
        name, size, digest, head = (data.get(key) for key in ("segment", "size", "sha256", "head"))
        first, last = data.get("first"), data.get("last")
        good = (
            isinstance(name, str)
            and SegmentName.parse(name) is not None
            and isinstance(size, int)
            and isinstance(first, int)
            and isinstance(last, int)
            and is_checksum(digest)
            and is_checksum(head)
        )
        if not good:
            self._fault(file, offset, seq, "what it says of an archived segment is missing or garbled")
            return
        self.archived[str(name)] = Archived(file, offset, seq, size, digest, first, last, head)  # type: ignore[arg-type]

    def search(self) -> None:
        """Look for the records of missing segments in what was not read."""
        wanted = {*self.files.chain.missing, *self.files.elsewhere} - self.archived.keys()
        for piece, offset, line in self.files.back(self.files.chain.pieces, ARCHIVE_TYPE) if wanted else ():
            data, tail = control_data(line, ARCHIVE_TYPE), check_line(line)
            if tail is not None and data is not None and data.get("segment") not in self.archived:
                self.archive(str(piece.name), offset, tail.seq, data)
            # The oldest are archived first, and their records come last here.
            if wanted <= self.archived.keys() and any(record.first == 0 for record in self.archived.values()):
                return

    def settle(self, seal: Seal | None, *, pinned: bool, place: str | None) -> tuple[str, ...]:
        """Tell which segments are missing, and hold the archived ones against their records. Gives those away.

        `place`: where all the archived ones should be.
        """
        chain = self.files.chain
        faults = [fault for name in chain.missing if (fault := self._why_missing(chain, name, seal, pinned=pinned))]
        there = {str(piece.name) for piece in chain.pieces}
        away = sorted(self.archived.keys() - there, key=lambda name: SegmentName.parse(name) or SegmentName(""))
        if place is not None:
            faults += [self._missing(name, f"it was archived, and is not at {place}") for name in away]
        due = 0
        for name in away if chain.missing else ():
            if self.archived[name].first != due:
                faults.append(self._missing(name, f"records {due} to {self.archived[name].first - 1} are missing"))
            due = self.archived[name].last + 1
        for name in self.files.elsewhere:
            self._compare(name)
        self.found.put_first(faults)
        return tuple(away)

    def _why_missing(self, chain: Chain, name: str, seal: Seal | None, *, pinned: bool) -> Fault | None:
        record = self.archived.get(name)
        if record is None:
            return self._missing(name, "a segment that its successor names is missing")
        if pinned and (seal is None or record.seq >= seal.size):
            return self._missing(name, "the record that says that it is archived stands under no valid note")
        after = next(piece for piece in chain.pieces if piece.header is not None and piece.header.previous == name)
        tail, header = self.files.first_tail(after.name), after.header
        if tail is None or header is None or (tail.prev.decode(), tail.seq) != (record.head, record.last + 1):
            reason = f"it does not follow what the record of seq {record.seq} says was archived"
            return Fault(Status.TAMPERED, self.found.machine, str(after.name), 0, record.last + 1, reason)
        return None

    def _missing(self, name: str, reason: str) -> Fault:
        return Fault(Status.INCOMPLETE, self.found.machine, name, 0, None, reason)

    def _compare(self, name: str) -> None:
        record, segment = self.archived.get(name), SegmentName.parse(name)
        assert segment is not None
        if record is None:
            reason = "the segment is elsewhere, and no record says that it was archived"
            self.found.fault(Status.INCOMPLETE, name, 0, None, reason)
        elif self.files.sizes[segment] != record.size or self._digest(segment, record.size) != record.sha256:
            self._fault(name, 0, None, f"it has other bytes than the record of seq {record.seq} says were archived")

    def _digest(self, name: SegmentName, size: int) -> str:
        digest = sha256()
        with self.files.opened(name) as fd:
            for block in blocks(fd, 0, size):
                digest.update(block)
        return digest.hexdigest()

    def _fault(self, file: str, offset: int, seq: int | None, reason: str) -> None:
        self.found.fault(Status.TAMPERED, file, offset, seq, reason)


def fetch(files: Files, chain: Chain, place: str) -> Chain:
    """Give the chain with the segments that were moved to a place, as far as they are there. Reads their headers."""
    pieces, missing = list(chain.pieces), list(chain.missing)
    wanted = list(missing)
    while wanted:
        text = wanted.pop()
        name = SegmentName.parse(text)
        at = next((i for i, p in enumerate(pieces) if p.header is not None and p.header.previous == text), None)
        if name is None or at is None:
            continue
        try:
            path = files.until_closed.enter_context(archived_path(place, files.path.name, text))
        except ArchiveError:
            continue
        after = pieces[at].header
        files.elsewhere[text] = path
        with files.opened(name) as fd:
            header = read_header(line_at(fd, 0), path)
        pieces.insert(at, Piece(name, after.previous_size if after is not None else None, header))
        missing.remove(text)
        previous = header.previous if header is not None else None
        if previous is not None and all(str(piece.name) != previous for piece in pieces[:at]):
            missing.append(previous)
            wanted.append(previous)
    return Chain(tuple(pieces), chain.skipped, tuple(missing), chain.chained)


def sizes_of(files: Files, chain: Chain) -> dict[SegmentName, int]:
    """Give the bytes that each segment of a chain has now."""
    sizes = {}
    for piece in chain.pieces:
        with files.opened(piece.name) as fd:
            sizes[piece.name] = file_size(fd)
    return sizes
