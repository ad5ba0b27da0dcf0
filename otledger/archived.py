"""Segments that were moved away: the records that say so (format, 5), and reading them where they are now.

A place is a folder, or a URL for `fsspec`; a segment is at `<place>/<machine>/<segment>`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otledger.batch import check_line
from otledger.config import check_machine
from otledger.errors import ConfigurationError, LedgerError, RootError
from otledger.segment import (
    BLOCK,
    Chain,
    SegmentName,
    control_data,
    file_size,
    lines_with,
    open_folder,
    open_segment,
    read_chain,
)

ARCHIVE_TYPE = "otledger.archive"
_NEEDLE = b'"type":"' + ARCHIVE_TYPE.encode() + b'"'
_HEX = re.compile(r"[0-9a-f]{64}")


class ArchiveError(LedgerError):
    """A segment cannot be moved away, or is not where it was moved to."""


@dataclass(frozen=True, slots=True)
class Archived:
    """A segment that was moved away, by the record that says so."""

    segment: str
    size: int
    """Bytes of the file, all of them."""
    sha256: str
    """Of these bytes, 64 hex digits."""
    first: int
    """The `seq` of its first record."""
    last: int
    head: str
    """The checksum of its last record that counts, 64 hex digits."""
    seq: int = -1
    """Of the record that says so."""

    def data(self) -> dict[str, Any]:
        """Give the record's `data`."""
        return {name: getattr(self, name) for name in ("segment", "size", "sha256", "first", "last", "head")}


def read_archived(line: bytes) -> Archived | None:
    """Give what a record's line says that was moved away; None for any other line, and for one that is garbled."""
    tail, data = check_line(line), control_data(line, ARCHIVE_TYPE)
    if tail is None or data is None:
        return None
    segment = data.get("segment")
    if not isinstance(segment, str) or SegmentName.parse(segment) is None:
        return None
    numbers = [data.get(name) for name in ("size", "first", "last")]
    hashes = [data.get(name) for name in ("sha256", "head")]
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
        return None
    if not all(isinstance(text, str) and _HEX.fullmatch(text) for text in hashes):
        return None
    size, first, last = (int(n) for n in numbers if n is not None)
    if not first <= last < tail.seq:
        return None
    return Archived(segment, size, str(hashes[0]), first, last, str(hashes[1]), tail.seq)


def archived_segments(root: str | Path, machine: str) -> list[Archived]:
    """Give what the records that are there say was moved away, by segment; the newest record counts of each.

    A segment that is named may still be there: then nothing has come of it yet. Raises `RootError`.
    """
    path = Path(root) / machine
    fd = open_folder(path)
    try:
        return archived_in(fd, path, read_chain(fd, path))
    finally:
        os.close(fd)


def archived_in(dir_fd: int, path: Path, chain: Chain) -> list[Archived]:
    """Give what the records of an open partition say was moved away, by segment."""
    found: dict[str, Archived] = {}
    for piece in chain.pieces:
        fd = open_segment(dir_fd, piece.name, shown=path)
        try:
            end = file_size(fd) if piece.size is None else min(piece.size, file_size(fd))
            for _, line in lines_with(fd, _NEEDLE, 0, end):
                archived = read_archived(line)
                if archived is not None:
                    found[archived.segment] = archived
        finally:
            os.close(fd)
    return sorted(found.values(), key=lambda each: each.first)


# Where they are


def is_url(place: str | Path) -> bool:
    """Tell whether a place is one for `fsspec`, and no folder."""
    return "://" in str(place) and not str(place).startswith("file://")


def folder_of(place: str | Path) -> Path:
    """Give the folder that a place is."""
    return Path(str(place).removeprefix("file://")).expanduser()


def remote(place: str | Path) -> tuple[Any, str]:
    """Give the `fsspec` file system of a URL, and the path on it. Raises `ConfigurationError`, `ArchiveError`."""
    try:
        import fsspec
    except ImportError:
        why = f"{place}: such a place needs fsspec; install it by: pip install 'otledger[archive]'"
        raise ConfigurationError(why) from None
    try:
        system, path = fsspec.core.url_to_fs(str(place))
    except (ValueError, ImportError, OSError) as error:
        raise ConfigurationError(f"{place}: {error}; give a folder, or a URL that fsspec knows") from None
    return system, str(path).rstrip("/")


@contextlib.contextmanager
def archived_path(place: str | Path, machine: str, name: str) -> Iterator[Path]:
    """Give a path at which a segment that was moved to `place` can be read; of another system, that of a copy.

    The copy is gone at the end. Raises `ArchiveError` where it is not there, `RootError`, `ConfigurationError`.
    """
    _check_names(machine, name)
    if not is_url(place):
        path = folder_of(place) / machine / name
        if not path.is_file() or path.is_symlink():
            raise _not_there(place, machine, name)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="otledger-") as folder:
        path = Path(folder) / name
        _fetch(place, machine, name, path)
        yield path


def open_archived(place: str | Path, machine: str, name: str) -> int:
    """Open a segment that was moved to `place`, to be read; gives a descriptor, which the caller closes.

    What is on another system is copied to a file without a name. Raises what `archived_path` raises.
    """
    _check_names(machine, name)
    if is_url(place):
        with archived_path(place, machine, name) as path:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    path = folder_of(place) / machine
    try:
        folder = open_folder(path)
    except FileNotFoundError:
        raise _not_there(place, machine, name) from None
    try:
        return open_segment(folder, name, shown=path)
    except FileNotFoundError:
        raise _not_there(place, machine, name) from None
    finally:
        os.close(folder)


def _fetch(place: str | Path, machine: str, name: str, path: Path) -> None:
    system, base = remote(place)
    try:
        with system.open(f"{base}/{machine}/{name}", "rb") as source, open(path, "wb") as target:
            shutil.copyfileobj(source, target, BLOCK)
    except FileNotFoundError:
        raise _not_there(place, machine, name) from None
    except OSError as error:
        raise ArchiveError(f"{place}: {machine}/{name} cannot be read: {error}", path=name) from None


def _check_names(machine: str, name: str) -> None:
    check_machine(machine)
    if SegmentName.parse(name) is None:
        raise RootError(f"{name!r} is no segment's name")


def _not_there(place: str | Path, machine: str, name: str) -> ArchiveError:
    return ArchiveError(f"{place}: {machine}/{name} is not there; give the place that it was moved to", path=name)
