"""The files of a predecessor's ledger: which they are, whose they are, and their bytes as lines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from otledger.batch import MAX_LINE
from otledger.errors import EventRefused, FormatError, RootError
from otledger.predecessors import evledger, pipeworks
from otledger.predecessors.members import read_object

SUFFIX = ".jsonl"
LIMIT = 3 * MAX_LINE
"""The longest line that is read as one, in bytes: JSON's escapes take up to three times as much as UTF-8."""


class Line(NamedTuple):
    """A line, or a piece of one that is too long to be read at once."""

    offset: int
    data: bytes
    """With its LF, if it has one."""
    whole: bool


def lines(path: Path) -> Iterator[Line]:
    """Give the lines of a file, split at LF alone, up to its end at the time of reading. Raises `RootError`."""
    offset, fresh = 0, True
    try:
        with path.open("rb", buffering=1 << 20) as file:
            while data := file.readline(LIMIT):
                ends = data.endswith(b"\n")
                yield Line(offset, data, fresh and (ends or len(data) < LIMIT))
                offset += len(data)
                fresh = ends
    except OSError as error:
        raise RootError(f"{path}: cannot be read: {error.strerror}", path=path) from None


def size_of(path: Path) -> int:
    """Give the size of a file in bytes. Raises `RootError`."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise RootError(f"{path}: cannot be read: {error.strerror}", path=path) from None


def evledger_folders(source: Path) -> dict[str, list[Path]]:
    """Give the files of an evledger ledger, by machine: `<source>/<machine>/*.jsonl`, in evledger's order.

    Partitions that otledger wrote into the same folder are left out. Raises `RootError` if there is no such
    folder, `FormatError` if it holds no ledger of evledger's.
    """
    folders = {}
    for folder in _entries(source):
        files = [entry for entry in _entries(folder) if _is_data(entry)] if folder.is_dir() else []
        if files and _whose(files, "evledger") != "otledger":
            folders[os.fsencode(folder.name).decode("utf-8", "backslashreplace")] = files
    if folders:
        return folders
    if any(map(_is_data, _entries(source))):
        raise FormatError(
            f"{source} has .jsonl files, but evledger's are one folder deeper, in <machine>/<month>.jsonl; give the"
            " folder above if this is one machine's, or: otledger import pipeworks",
            path=source,
        )
    raise FormatError(
        f"{source} holds no ledger of evledger's: there is no <machine>/<month>.jsonl of its in there", path=source
    )


def pipeworks_files(source: Path) -> list[Path]:
    """Give the files of a PipeWorks ledger by name: `<source>/<world>.jsonl`, or `source` itself if it is a file.

    Raises `RootError` if there is nothing at this path, `FormatError` if it holds no ledger of PipeWorks'.
    """
    files = [source] if source.is_file() else [entry for entry in _entries(source) if _is_data(entry)]
    if not files:
        raise FormatError(f"{source} holds no ledger of PipeWorks': there is no <world>.jsonl in there", path=source)
    if _whose(files, "pipeworks") == "otledger":
        raise FormatError(f"{source} was written by otledger: there is nothing to import", path=source)
    return files


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        raise RootError(f"{folder}: there is nothing at this path; give the ledger's folder", path=folder) from None
    except NotADirectoryError:
        raise RootError(f"{folder} is no folder; give the ledger's folder", path=folder) from None
    except OSError as error:
        raise RootError(f"{folder}: cannot be read: {error.strerror}", path=folder) from None


def _is_data(path: Path) -> bool:
    return path.suffix == SUFFIX and path.is_file()


def _whose(files: list[Path], wanted: str) -> str:
    """Tell whose the files are by their first objects. Raises `FormatError` if they are the other predecessor's."""
    for path in files:
        for line in lines(path):
            try:
                members = read_object(line.data)
            except EventRefused:
                break
            if {"prev", "checksum", "seq"} <= members.keys():
                return "otledger"
            for whose, looks_like in (("pipeworks", pipeworks.looks_like), ("evledger", evledger.looks_like)):
                if whose != wanted and looks_like(members):
                    raise FormatError(
                        f"{path} is {whose}'s and not {wanted}'s; import it by: otledger import {whose}", path=path
                    )
            break
    return wanted
