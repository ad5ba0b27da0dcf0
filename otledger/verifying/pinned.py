"""What a verifier knows from elsewhere: pinned keys, and what witnesses or the signer itself remember."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from otledger.errors import ConfigurationError, RootError
from otledger.hashes import hash_of
from otledger.notes import Commitment, Note, NoteError, VerifierKey, origin_of

MOST_KEYS = 1 << 20
"""Bytes of a file of keys that are read."""


def read_keys(given: Iterable[str | VerifierKey]) -> tuple[VerifierKey, ...]:
    """Give the keys that are meant: each a key, its text, or a file that has one on each line.

    Raises `NoteError` for what is no key, `RootError` for a file that cannot be read.
    """
    keys: list[VerifierKey] = []
    for one in given:
        if isinstance(one, VerifierKey):
            keys.append(one)
        elif "+" in one and not os.path.exists(one):
            keys.append(VerifierKey.parse(one))
        else:
            keys += map(VerifierKey.parse, _key_lines(Path(one)))
    return tuple(dict.fromkeys(keys))


def _key_lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            text = file.read(MOST_KEYS).decode()
    except OSError as error:
        why = f"{path}: neither a verifier key nor a file that holds one: {error.strerror}; see otledger keys export"
        raise RootError(why, path=path) from None
    except UnicodeDecodeError:
        raise NoteError(f"{path}: this is no file of verifier keys; see otledger keys export", path=path) from None
    found = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    if not found:
        raise NoteError(f"{path} holds no verifier key; see otledger keys export", path=path)
    return found


@dataclass(frozen=True, slots=True)
class Claim:
    """What somebody remembers of a chain: so many records, under this root."""

    who: str
    """For people: `the witness /mnt/elsewhere`."""
    origin: str
    size: int = 0
    root: bytes = b""
    note: Note | None = None
    taken: int | None = None
    """When it was taken, in nanoseconds since the epoch."""
    witness: bool = True
    unproved: bool = False
    """Counts only where the note is signed by a key that is trusted: anybody may have handed it in."""
    broken: str | None = None
    """Why it cannot be read."""


def claims_of_witness(place: str, notes: Mapping[str, Any]) -> list[Claim]:
    """Give what a witness remembers. `notes`: by origin a signed note's text, or what `otledger.witness` gives."""
    who = f"the witness {place}"
    claims = []
    for origin, kept in notes.items():
        if isinstance(kept, str):
            claims.append(_claim(who, origin, kept, None))
            continue
        claims.append(_claim(who, origin, kept.note, kept.taken if kept.stamped is None else kept.stamped))
        for refused in kept.refused:
            found = _claim(f"{who}, which refused it,", origin, refused.note, refused.taken, unproved=True)
            if found.broken is None:
                claims.append(found)
    return claims


def _claim(who: str, origin: str, text: str, taken: int | None, *, unproved: bool = False) -> Claim:
    try:
        note = Note.parse(text)
        says = Commitment.parse(note.text)
    except NoteError as error:
        return Claim(who, origin, broken=str(error))
    if says.origin != origin:
        return Claim(who, origin, broken=f"it is of another chain, {says.origin[:100]}")
    return Claim(who, origin, says.size, says.root, note, taken, unproved=unproved)


def memory_of_signer(keys: Path, ledger: str) -> Claim | None:
    """Give what the signer of this chain on this host remembers, None where there is nothing (format, 7)."""
    if "/" in ledger or ledger.startswith("."):
        return None
    path, origin = keys / ledger / "signed", origin_of(ledger)
    who = f"the signer's memory, {path},"
    try:
        members = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        return Claim(who, origin, witness=False, broken=str(error.strerror))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Claim(who, origin, witness=False, broken="it is no JSON")
    data = members if isinstance(members, dict) else {}
    size, root = data.get("size"), hash_of(data.get("root"))
    if data.get("origin") != origin or not isinstance(size, int) or isinstance(size, bool) or size < 0 or root is None:
        return Claim(who, origin, witness=False, broken="origin, size or root is missing or garbled")
    return Claim(who, origin, size, root, witness=False) if size else None


def check_together(*, keys: bool, since_checkpoint: bool, heartbeat: float | None, tail: bool, tree: bool) -> None:
    """Raise `ConfigurationError` where what is asked for does not go together."""
    if since_checkpoint and not keys:
        raise ConfigurationError("--since-checkpoint believes signed checkpoints alone: give the public key by --key")
    if heartbeat is not None and not keys:
        raise ConfigurationError("--heartbeat asks for the last seal, and without a public key nothing is: give --key")
    if heartbeat is not None and not heartbeat > 0:
        raise ConfigurationError(f"the heartbeat is {heartbeat!r}; it must be a number of seconds above 0")
    if tail and (tree or since_checkpoint):
        raise ConfigurationError("--tail goes neither with --tree nor with --since-checkpoint; leave it out")
