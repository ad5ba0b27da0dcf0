"""The copies of what recovery sets aside: making one, and finding those without a record of them (format, 6).

The journal writes the records.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from otledger.errors import RootError
from otledger.folder import set_mode, write_all
from otledger.segment import (
    QUARANTINE,
    Chain,
    Piece,
    SegmentName,
    blocks,
    control_data,
    file_size,
    line_at,
    lines_with,
    list_segments,
    open_folder,
    open_segment,
    read_chain,
)

RECOVERY_TYPE = "otledger.recovery"

_COPY = re.compile(r"(.+\.jsonl)\.(0|[1-9]\d*)\.([0-9a-f]{16})", re.ASCII)


def keep(dir_fd: int, prefix: str, read: Callable[[], Iterable[bytes]], file_mode: int, folder_mode: int) -> str:
    """Keep what `read` gives, which may be more than the memory holds, durable on return. Gives the file's name.

    `read` is called twice. Raises OSError, also where the copy does not read as it was written.
    """
    digest = _digest(read())
    name = f"{prefix}.{digest[:16]}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(QUARANTINE, folder_mode, dir_fd=dir_fd)
    folder = os.open(QUARANTINE, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        set_mode(folder, folder_mode)
        # An unfinished copy of an earlier try is written again from its beginning.
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, file_mode, dir_fd=folder)
        try:
            set_mode(fd, file_mode)
            for block in read():
                write_all(fd, block)
            os.fsync(fd)
            if _digest(blocks(fd, 0)) != digest:
                raise OSError(errno.EIO, f"{QUARANTINE}/{name} does not read as it was written")
        finally:
            os.close(fd)
        os.fsync(folder)
        os.fsync(dir_fd)
    finally:
        os.close(folder)
    return name


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
        folder = open_folder(QUARANTINE, dir_fd=dir_fd, shown=path / QUARANTINE)
    except FileNotFoundError:
        return []
    try:
        copies = list(_copies(os.listdir(folder), list_segments(dir_fd)))
        if not copies:
            return []
        chain = read_chain(dir_fd, path)
        # The record follows at once where something was cut; it stands in a later segment where the bytes were kept.
        copies = [copy for copy in copies if not _has_record_in_place(dir_fd, path, chain, copy)]
        copies = [whole for copy in copies if (whole := _whole(folder, copy)) is not None]
    finally:
        os.close(folder)
    return _without_record(dir_fd, path, chain, copies)


def copy_name(prefix: str, read: Iterable[bytes]) -> str:
    """Give the name that a copy of what `read` gives has in quarantine."""
    return f"{prefix}.{_digest(read)[:16]}"


def _digest(read: Iterable[bytes]) -> str:
    digest = sha256()
    for block in read:
        digest.update(block)
    return digest.hexdigest()


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
    try:
        fd = open_segment(folder, copy.name)
    except (OSError, RootError):
        # Nothing that recovery made, or another user's: it is for those who can read it.
        return None
    try:
        name = copy_name(copy.name.rpartition(".")[0], blocks(fd, 0))
        return replace(copy, size=file_size(fd)) if copy.name == name else None
    finally:
        os.close(fd)


def _without_record(dir_fd: int, path: Path, chain: Chain, copies: list[Copy]) -> list[Copy]:
    """Give those that no record names, in their segments or later ones.

    Searched from the front: where something was set aside its record is one of the next.
    """
    for piece in chain.pieces:
        if not any(copy.segment <= piece.name for copy in copies):
            continue
        fd = open_segment(dir_fd, piece.name, shown=path)
        try:
            copies = [copy for copy in copies if not _has_record_in(fd, piece, copy)]
        finally:
            os.close(fd)
    return copies


def _has_record_in(fd: int, piece: Piece, copy: Copy) -> bool:
    if piece.name < copy.segment:
        return False
    # It may even stand before the place, where a power cut took what was between.
    starts = (copy.offset, 0) if piece.name == copy.segment else (0,)
    found = (line for start in starts for _, line in lines_with(fd, copy.name.encode(), start, piece.size))
    return any(_named(line) == copy.name for line in found)
