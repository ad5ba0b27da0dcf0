"""What recovery set aside without a record that says so, because a crash prevented it (format, 6).

Only reads. The journal writes the records.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from otledger.segment import (
    BLOCK,
    QUARANTINE,
    Chain,
    SegmentName,
    control_data,
    file_size,
    find_back,
    line_at,
    list_segments,
    open_segment,
    pread,
    read_chain,
)

RECOVERY_TYPE = "otledger.recovery"

_COPY = re.compile(r"(.+\.jsonl)\.(0|[1-9]\d*)\.([0-9a-f]{16})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Copy:
    """What stood in a segment from `offset` on, as a file in quarantine with this name and size."""

    segment: SegmentName
    offset: int
    name: str
    size: int = 0


def forgotten(dir_fd: int, path: Path) -> list[Copy]:
    """Give what is in quarantine without a record that counts, of the segments that are there.

    A copy that is not whole is none of it: it was not finished, so nothing was cut on its account.
    """
    try:
        folder = os.open(QUARANTINE, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except FileNotFoundError:
        return []
    try:
        copies = list(_copies(os.listdir(folder), list_segments(dir_fd)))
        if not copies:
            return []
        chain = read_chain(dir_fd, path)
        # The record follows at once where something was cut; only after another crash it stands elsewhere.
        copies = [copy for copy in copies if not _has_record_in_place(dir_fd, path, chain, copy)]
        copies = [whole for copy in copies if (whole := _whole(folder, copy)) is not None]
    finally:
        os.close(folder)
    return _without_record(dir_fd, path, chain, copies)


def _copies(names: Iterable[str], segments: list[SegmentName]) -> Iterable[Copy]:
    for name in sorted(names):
        match = _COPY.fullmatch(name)
        segment = SegmentName.parse(match[1]) if match else None
        if match and segment in segments:
            yield Copy(segment, int(match[2]), name)


def _has_record_in_place(dir_fd: int, path: Path, chain: Chain, copy: Copy) -> bool:
    piece = next((piece for piece in chain.pieces if piece.name == copy.segment), None)
    if piece is None or (piece.size is not None and copy.offset >= piece.size):
        return False
    fd = open_segment(dir_fd, copy.segment, shown=path)
    try:
        return _named(line_at(fd, copy.offset)) == copy.name
    finally:
        os.close(fd)


def _named(line: bytes) -> object:
    data = control_data(line, RECOVERY_TYPE)
    return None if data is None else data.get("quarantine")


def _whole(folder: int, copy: Copy) -> Copy | None:
    fd = os.open(copy.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
    try:
        digest, size = sha256(), 0
        while block := pread(fd, BLOCK, size):
            digest.update(block)
            size += len(block)
    finally:
        os.close(fd)
    return replace(copy, size=size) if copy.name.endswith(digest.hexdigest()[:16]) else None


def _without_record(dir_fd: int, path: Path, chain: Chain, copies: list[Copy]) -> list[Copy]:
    """Give those that no record names, in their segments or later ones."""
    for piece in reversed(chain.pieces):
        if not any(copy.segment <= piece.name for copy in copies):
            continue
        fd = open_segment(dir_fd, piece.name, shown=path)
        try:
            end = file_size(fd) if piece.size is None else piece.size
            copies = [
                copy
                for copy in copies
                if not any(_named(line) == copy.name for _, line in find_back(fd, copy.name.encode(), end))
            ]
        finally:
            os.close(fd)
    return copies
