"""The keys of a chain, as the ledger's `otledger.key` records tell of them: which one followed which (format, 5)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otledger.batch import check_line
from otledger.notes import Commitment, Note, NoteError, VerifierKey
from otledger.segment import control_data, file_size, lines_with, open_folder, open_segment, read_chain
from otledger.witnesses.kept import KnownKey, check_succession

KEY_TYPE = "otledger.key"
_NEEDLE = f'"type":"{KEY_TYPE}"'.encode()


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key record, read and not yet believed."""

    old: VerifierKey | None
    new: VerifierKey
    signature: str | None
    """The note by which the old key named the new one."""


def key_records(root: Path, machine: str) -> list[KeyRecord]:
    """Give the key records of a partition that can be read, in their order. Raises `RootError`, `FormatError`."""
    path = root / machine
    dir_fd = open_folder(path)
    try:
        found = []
        for piece in read_chain(dir_fd, path).pieces:
            fd = open_segment(dir_fd, piece.name, shown=path)
            try:
                end = file_size(fd) if piece.size is None else min(piece.size, file_size(fd))
                found += [read for _, line in lines_with(fd, _NEEDLE, 0, end) if (read := _read(line)) is not None]
            finally:
                os.close(fd)
        return found
    finally:
        os.close(dir_fd)


def chains(root: Path, machine: str) -> list[str]:
    """Give the UUIDs of the chains that a partition's segments hold, the present one last.

    Raises `RootError`, `FormatError`.
    """
    path = root / machine
    dir_fd = open_folder(path)
    try:
        headers = [piece.header for piece in read_chain(dir_fd, path).pieces]
        return list(dict.fromkeys(header.ledger for header in headers if header is not None))
    finally:
        os.close(dir_fd)


def way_to_signer(
    known: VerifierKey, note: Note, records: Sequence[KeyRecord]
) -> list[tuple[KnownKey, Commitment]] | None:
    """Give the keys by which `known` was followed up to the one that signed `note`, with what was signed each time.

    Empty where `known` has signed it itself; None where no signed way leads to its signer.
    """
    ways: dict[str, list[tuple[KnownKey, Commitment]]] = {str(known): []}
    waiting = [known]
    while waiting:
        key = waiting.pop(0)
        if note.is_signed_by(key):
            return ways[str(key)]
        for record, said in _followers(key, records):
            if str(record.new) not in ways:
                ways[str(record.new)] = [*ways[str(key)], (KnownKey(record.new, record.signature), said)]
                waiting.append(record.new)
    return None


def _followers(key: VerifierKey, records: Sequence[KeyRecord]) -> Iterator[tuple[KeyRecord, Commitment]]:
    for record in records:
        if record.old == key and record.signature is not None:
            try:
                yield record, check_succession(key, record.new, record.signature)
            except NoteError:
                continue


def _read(line: bytes) -> KeyRecord | None:
    data: dict[str, Any] | None = control_data(line, KEY_TYPE) if check_line(line) is not None else None
    if data is None:
        return None
    old, new, signature = data.get("old"), data.get("new"), data.get("signature")
    if not isinstance(new, str) or not isinstance(old, str | None) or not isinstance(signature, str | None):
        return None
    try:
        return KeyRecord(VerifierKey.parse(old) if old is not None else None, VerifierKey.parse(new), signature)
    except NoteError:
        return None
