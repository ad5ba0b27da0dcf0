"""Checking what otledger's own records say: recoveries, gaps, checkpoints, keys, segments (format, 5)."""

from __future__ import annotations

import os
from hashlib import sha256
from typing import Any

from otledger.batch import check_line
from otledger.notes import NoteError, read_commitment
from otledger.segment import (
    CHECKPOINT_TYPE,
    QUARANTINE,
    Piece,
    blocks,
    control_data,
    file_size,
    open_folder,
    open_segment,
)
from otledger.verifying.committed import Committed
from otledger.verifying.files import Files
from otledger.verifying.findings import Findings
from otledger.verifying.regrown import Regrown
from otledger.verifying.report import Status
from otledger.verifying.seals import KEY, KEY_TYPE, NOTE, Seals
from otledger.verifying.stored import Stored


class Controls:
    """Takes the control records of a partition in their order."""

    def __init__(self, files: Files, found: Findings, stored: Stored, *, whole: bool) -> None:
        self.files = files
        self.found = found
        self.stored = stored
        self.whole = whole
        """Whether what stands before a record in the partition was checked as well."""
        self.seals: Seals | None = None
        self.tree: Regrown | None = None
        self.set_aside: list[str] = []
        """The files in quarantine of which a record tells."""

    def take(self, piece: Piece, offset: int, line: bytes) -> None:
        """Check what a control record says."""
        file = str(piece.name)
        checkpoint = control_data(line, CHECKPOINT_TYPE)
        if checkpoint is not None:
            if self.whole:
                self._checkpoint(piece, offset, line, checkpoint)
            return
        recovery = control_data(line, "otledger.recovery")
        if recovery is not None:
            self.found.recoveries += 1
            self.found.raise_to(Status.RECOVERED)
            self._quarantined(file, offset, recovery)
            return
        gap = control_data(line, "otledger.gap")
        if gap is not None:
            count = gap.get("count")
            self.found.gaps += count if isinstance(count, int) else 0
            return
        if piece.header is not None and piece.header.reason == "fault" and offset == 0:
            self.found.raise_to(Status.RECOVERED)
            return
        self._rarely(piece, offset, line)

    def _rarely(self, piece: Piece, offset: int, line: bytes) -> None:
        tail = check_line(line)
        if tail is None:
            return
        for type, take in (("otledger.sealed", self.stored.sealed), ("otledger.archive", self.stored.archive)):
            data = control_data(line, type)
            if data is not None:
                take(str(piece.name), offset, tail.seq, data)
        data = control_data(line, KEY_TYPE)
        if data is not None and self.seals is not None:
            self.seals.add(piece, offset, KEY)
            if data.get("root") is not None:
                self._compare(piece, offset, tail.seq, data, "signature")

    def _quarantined(self, file: str, offset: int, recovery: dict[str, Any]) -> None:
        name = str(recovery.get("quarantine"))
        try:
            size, digest = self._digest(name)
        except (OSError, ValueError):
            reason = f"{QUARANTINE}/{name} is missing, or cannot be read"
            self.found.fault(Status.INCOMPLETE, file, offset, None, reason)
            return
        self.set_aside.append(name)
        if not name.endswith(digest[:16]) or size != recovery.get("bytes"):
            self.found.fault(Status.TAMPERED, f"{QUARANTINE}/{name}", 0, None, "the bytes set aside were changed")

    def _digest(self, name: str) -> tuple[int, str]:
        """Give the size of a file in quarantine and its SHA-256. Raises OSError or ValueError."""
        fd = open_quarantined(self.files, name)
        try:
            digest = sha256()
            for block in blocks(fd, 0):
                digest.update(block)
            return file_size(fd), digest.hexdigest()
        finally:
            os.close(fd)

    def _checkpoint(self, piece: Piece, offset: int, line: bytes, data: dict[str, Any]) -> None:
        tail = check_line(line)
        if tail is None:
            return
        if "refused" in data:
            self._refused(piece, offset, tail.seq, data["refused"])
        if self.seals is not None and data.get("note") is not None:
            self.seals.add(piece, offset, NOTE)
        size, head = data.get("size"), data.get("head")
        if isinstance(size, int) and isinstance(head, str) and not self.files.is_away(size - 1):
            if not 0 < size <= tail.seq:
                there = None
            elif size == tail.seq:
                there = tail.prev.decode()
            else:
                there = self.files.checksum_before(piece, offset, size - 1)
            if there != head:
                reason = f"the checkpoint over {size} records names another head than the records have"
                self.found.fault(Status.TAMPERED, str(piece.name), offset, tail.seq, reason)
                return
        if data.get("root") is not None:
            self._compare(piece, offset, tail.seq, data, "note")

    def _compare(self, piece: Piece, offset: int, seq: int, data: dict[str, Any], note: str) -> None:
        """Hold what a record says of the tree against the tree, where that is recomputed."""
        first_key = note == "signature" and data.get("old") is None and data.get("size") == 0
        if self.tree is None or first_key:
            return
        read = Committed.read(data, seq, note)
        reason = read if isinstance(read, str) else self.tree.why_not(read)
        if reason is not None:
            why = f"the record of a tree does not hold: {reason}"
            self.found.fault(Status.TAMPERED, str(piece.name), offset, seq, why)

    def _refused(self, piece: Piece, offset: int, seq: int, refused: object) -> None:
        members = refused if isinstance(refused, dict) else {}
        keys = self.seals.trusted if self.seals is not None else []
        try:
            said, _ = read_commitment(str(members.get("note")), keys)
            proof = f"its note over {said.size} records is valid under the key given"
        except NoteError:
            proof = "no key given has signed its note" if keys else "give the key to check its note"
        size = members.get("size")
        what = f"{size} records" if isinstance(size, int) else "records"
        reason = f"the signer has signed another tree over {what} and refused to go on; {proof}"
        self.found.fault(Status.TAMPERED, str(piece.name), offset, seq, reason)


def open_quarantined(files: Files, name: str) -> int:
    """Open a file in quarantine. Raises OSError or ValueError."""
    if "/" in name:
        raise OSError
    folder = open_folder(QUARANTINE, dir_fd=files.dir_fd)
    try:
        return open_segment(folder, name)
    finally:
        os.close(folder)
