"""Checking what otledger's own records say: recoveries, gaps, checkpoints (format, 5)."""

from __future__ import annotations

import os
from hashlib import sha256
from typing import Any

from otledger.batch import check_line
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
from otledger.verifying.files import Files
from otledger.verifying.findings import Findings
from otledger.verifying.report import Status


class Controls:
    """Takes the control records of a partition in their order."""

    def __init__(self, files: Files, found: Findings) -> None:
        self.files = files
        self.found = found

    def take(self, piece: Piece, offset: int, line: bytes, *, whole: bool) -> None:
        """Check what a control record says. `whole`: what stands before it in the partition is checked as well."""
        file = str(piece.name)
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
        checkpoint = control_data(line, CHECKPOINT_TYPE)
        if checkpoint is not None and whole:
            self._checkpoint(piece, offset, line, checkpoint)
        elif piece.header is not None and piece.header.reason == "fault" and offset == 0:
            self.found.raise_to(Status.RECOVERED)

    def _quarantined(self, file: str, offset: int, recovery: dict[str, Any]) -> None:
        name = str(recovery.get("quarantine"))
        try:
            size, digest = self._set_aside(name)
        except (OSError, ValueError):
            reason = f"{QUARANTINE}/{name} is missing, or cannot be read"
            self.found.fault(Status.INCOMPLETE, file, offset, None, reason)
            return
        if not name.endswith(digest[:16]) or size != recovery.get("bytes"):
            self.found.fault(Status.TAMPERED, f"{QUARANTINE}/{name}", 0, None, "the bytes set aside were changed")

    def _set_aside(self, name: str) -> tuple[int, str]:
        """Give the size of a file in quarantine and its SHA-256. Raises OSError or ValueError."""
        if "/" in name:
            raise OSError
        folder = open_folder(QUARANTINE, dir_fd=self.files.dir_fd)
        try:
            fd = open_segment(folder, name)
        finally:
            os.close(folder)
        try:
            digest = sha256()
            for block in blocks(fd, 0):
                digest.update(block)
            return file_size(fd), digest.hexdigest()
        finally:
            os.close(fd)

    def _checkpoint(self, piece: Piece, offset: int, line: bytes, data: dict[str, Any]) -> None:
        tail = check_line(line)
        size, head = data.get("size"), data.get("head")
        if tail is None or not isinstance(size, int) or not isinstance(head, str):
            return
        if not 0 < size <= tail.seq:
            there = None
        elif size == tail.seq:
            there = tail.prev.decode()
        else:
            there = self.files.checksum_before(piece, offset, size - 1)
        if there != head:
            reason = f"the checkpoint over {size} records names another head than the records have"
            self.found.fault(Status.TAMPERED, str(piece.name), offset, tail.seq, reason)
