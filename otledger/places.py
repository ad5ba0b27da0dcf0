"""Places to which segments are moved: a folder, or what `fsspec` reaches. A copy there is whole, or not there.

What was written is read back; where it is not what should be there, nothing is removed from the ledger.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from otledger.archived import ArchiveError, folder_of, is_url, remote
from otledger.config import Config
from otledger.folder import give_name, make_folder, sync_folder, write_all
from otledger.segment import BLOCK, blocks, file_size, open_folder, open_segment

Read = Callable[[], Iterable[bytes]]
"""Gives the blocks of a segment, from its beginning."""


class Place(Protocol):
    """Where a machine's segments are moved to."""

    def put(self, name: str, read: Read) -> tuple[int, str]:
        """Put a segment there, unless it is there, and give size and SHA-256 of what is then read back.

        Raises `ArchiveError` where something else has the name, or reads as something else.
        """

    def sync(self) -> None:
        """Make the names durable."""


def place_of(to: str | Path, machine: str, config: Config) -> Place:
    """Give the place for a machine's segments at a folder or URL, made where it is missing."""
    return _Remote(to, machine) if is_url(to) else _Folder(folder_of(to) / machine, config)


def _measure(read: Iterable[bytes]) -> tuple[int, str]:
    size, digest = 0, sha256()
    for block in read:
        size += len(block)
        digest.update(block)
    return size, digest.hexdigest()


def _agree(there: tuple[int, str], source: tuple[int, str], where: str, *, new: bool) -> tuple[int, str]:
    if there == source:
        return there
    if new:
        raise ArchiveError(f"{where} does not read as it was written; nothing was removed from the ledger")
    raise ArchiveError(f"{where} is there already, and holds something else; give another place, or move it away")


def _part(name: str) -> str:
    """Give what a copy is called until it is whole and durable."""
    return f".{name}.part"


class _Folder:
    def __init__(self, path: Path, config: Config) -> None:
        self._path, self._mode = path, config.file_mode
        make_folder(path, config.folder_mode)

    def put(self, name: str, read: Read) -> tuple[int, str]:
        folder = open_folder(self._path)
        try:
            # Another run may be at it; it ends with this process, whatever becomes of that.
            fcntl.flock(folder, fcntl.LOCK_EX)
            new = False
            try:
                there = self._measured(folder, name)
            except FileNotFoundError:
                self._write(folder, name, read)
                there, new = self._measured(folder, name), True
            return _agree(there, _measure(read()), str(self._path / name), new=new)
        finally:
            # Also what a killed run left.
            with contextlib.suppress(OSError):
                os.unlink(_part(name), dir_fd=folder)
            os.close(folder)

    def _measured(self, folder: int, name: str) -> tuple[int, str]:
        fd = open_segment(folder, name, shown=self._path)
        try:
            # What a process that died here wrote may not be durable yet.
            os.fsync(fd)
            # From the disk, as far as the kernel can be asked to forget what it knows.
            os.posix_fadvise(fd, 0, file_size(fd), os.POSIX_FADV_DONTNEED)
            return _measure(blocks(fd, 0))
        finally:
            os.close(fd)

    def _write(self, folder: int, name: str, read: Read) -> None:
        part = _part(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(part, flags, self._mode, dir_fd=folder)
        try:
            os.fchmod(fd, self._mode)
            for block in read():
                write_all(fd, block)
            os.fsync(fd)
            give_name(folder, part, name)
            sync_folder(folder)
        finally:
            os.close(fd)

    def sync(self) -> None:
        folder = open_folder(self._path)
        try:
            sync_folder(folder)
        finally:
            os.close(folder)


class _Remote:
    def __init__(self, to: str | Path, machine: str) -> None:
        self._to = f"{str(to).rstrip('/')}/{machine}"
        self._system, base = remote(to)
        self._base = f"{base}/{machine}"
        with _told(self._to):
            self._system.makedirs(self._base, exist_ok=True)

    def put(self, name: str, read: Read) -> tuple[int, str]:
        path, where = f"{self._base}/{name}", f"{self._to}/{name}"
        with _told(where):
            new = not self._system.exists(path)
            if new:
                self._write(path, read)
            self._system.invalidate_cache()
            with self._system.open(path, "rb") as file:
                there = _measure(iter(lambda: file.read(BLOCK), b""))
        return _agree(there, _measure(read()), where, new=new)

    def _write(self, path: str, read: Read) -> None:
        # Under its name only when it is whole: a crash must not leave a part that looks like another's segment.
        part = f"{path}.part"
        try:
            with self._system.open(part, "wb") as file:
                for block in read():
                    file.write(block)
            self._system.mv(part, path)
        except BaseException:
            with contextlib.suppress(Exception):
                self._system.rm(part)
            raise

    def sync(self) -> None:
        """Nothing: what such a system has taken it has."""


@contextlib.contextmanager
def _told(where: str) -> Any:
    """Have whatever a file system of fsspec raises told with its place."""
    try:
        yield
    except ArchiveError:
        raise
    except Exception as error:
        raise ArchiveError(f"{where}: {type(error).__name__}: {error}; nothing was removed from the ledger") from error
