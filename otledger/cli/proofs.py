"""What `prove` and `verify-proof` are given, and what they say: keys, files, records by id or number."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from otledger.cli.app import NO_MATCH, Failed
from otledger.cli.output import counted, safe
from otledger.filter import Filter
from otledger.notes import MAX_NOTE, NoteError, VerifierKey
from otledger.proof_file import MAX_FILE, Consistency, Inclusion, ProvedGrowth, ProvedRecord, write_proof
from otledger.proofs import prove_growth, prove_record
from otledger.reader import Reader
from otledger.segment import list_machines

_SEQ_DIGITS = 18


def make_proof(
    root: Path, what: str | None, since: str | None, machines: Sequence[str], *, is_id: bool
) -> Inclusion | Consistency:
    """Give the proof that is asked for. Raises `Failed` for a question that has no answer, and `ProofError`."""
    if (what is None) == (since is None):
        raise Failed("give the id or the number of a record, or --since; see: otledger prove --help")
    if since is not None:
        return prove_growth(root, _one_machine(root, machines), _since(since))
    assert what is not None
    if not is_id and len(what) <= _SEQ_DIGITS and what.isascii() and what.isdigit():
        return prove_record(root, _one_machine(root, machines), int(what))
    machine, seq = _find(root, what, machines)
    return prove_record(root, machine, seq)


def _one_machine(root: Path, machines: Sequence[str]) -> str:
    known = list(dict.fromkeys(machines)) or list_machines(root)
    if len(known) != 1:
        there = ", ".join(known) or "none"
        raise Failed(f"a number or a note is one machine's; give it by --machine; there are: {there}")
    return known[0]


def _find(root: Path, id: str, machines: Sequence[str]) -> tuple[str, int]:
    wanted = list(dict.fromkeys(machines)) or None
    found = list(islice(Reader(root).records(Filter(id=id), machines=wanted, on_fault=lambda _: None), 2))
    if not found:
        raise Failed(f"no record has the id {id!r}; see: otledger show --id", NO_MATCH)
    if len(found) > 1:
        places = " and ".join(f"{record.machine} {record.seq}" for record in found)
        raise Failed(f"more than one record has the id {id!r}: {places}; give --machine and the number")
    return found[0].machine, found[0].seq


def _since(text: str) -> int | str:
    if len(text) <= _SEQ_DIGITS and text.isascii() and text.isdigit():
        return int(text)
    return _read(text, MAX_NOTE, "a note").decode("utf-8", "replace")


# Files


def put_proof(proof: Inclusion | Consistency, path: Path | None) -> None:
    """Write a proof to a new file, or to stdout. Raises `Failed` where the file is there already."""
    data = write_proof(proof)
    if path is None:
        sys.stdout.buffer.write(data)
        return
    try:
        with open(path, "xb") as file:
            try:
                file.write(data)
                file.flush()
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(path)
                raise
    except FileExistsError:
        raise Failed(f"{path} is there already, and nothing is overwritten; give another --out") from None


def take_proof(path: str) -> bytes:
    """Give what a file or, for `-`, stdin holds; one byte more than a proof may have of a longer one."""
    if path == "-":
        return sys.stdin.buffer.read(MAX_FILE + 1)
    with open(path, "rb") as file:
        return file.read(MAX_FILE + 1)


def pinned(given: Sequence[str]) -> list[VerifierKey]:
    """Give the keys of `--key`: each a verifier key, or a file with one a line. Raises `Failed`."""
    keys: list[VerifierKey] = []
    for text in given:
        if os.path.exists(text):
            lines = _read(text, MAX_NOTE, "keys").decode("utf-8", "replace").splitlines()
            found = [line for line in lines if line.strip() and not line.startswith("#")]
        else:
            found = [text]
        keys += [_key(line, text) for line in found]
    if not keys:
        raise Failed(
            "nothing is proved without a key; give it by --key; the ledger's owner has it: otledger keys export"
        )
    return keys


def _key(line: str, given: str) -> VerifierKey:
    try:
        return VerifierKey.parse(line)
    except NoteError as error:
        where = "" if line == given else f"{given}: "
        raise Failed(f"{where}{error}, or the file that holds it") from None


def _read(path: str, most: int, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except FileNotFoundError:
        raise Failed(f"{path}: there is no such file, and it is no number; give a file with {what}") from None
    if len(data) > most:
        raise Failed(f"{path} is too large to hold {what}: more than {most:,} bytes")
    return data


# What is proved


def proved_lines(proved: ProvedRecord | ProvedGrowth) -> list[str]:
    """Give what a proof proves, as lines of text."""
    note, key = proved.commitment, proved.key.id.hex()
    if isinstance(proved, ProvedGrowth):
        return [
            f"it holds: {safe(note.origin)} only grew",
            f"  from  the first {counted(proved.old.size, 'record')}, signed by key {proved.old_key.id.hex()}",
            f"  to    the first {counted(note.size, 'record')}, signed by key {key}",
        ]
    record = proved.record
    about = [("type", record.type), ("time", record.time), ("source", record.source), ("subject", record.subject)]
    return [
        f"it holds: record {record.seq} of {safe(note.origin)} is one of the first {note.size:,}",
        f"  signed by key {key}",
        f"  id {safe(record.id)}",
        *(f"  {name} {safe(text)}" for name, text in about if text),
    ]
