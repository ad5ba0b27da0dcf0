"""The keys that are at hand: what reads encrypted payloads, by the id that each names, and how a key's file looks."""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any, Protocol

import msgspec

from otledger.ciphertext import Cipher, is_kid
from otledger.identity import keys_folder

FOLDER = "subjects"
SUFFIX = ".json"
_LARGEST = 1 << 16
"""Bytes of a key's file; a subject has at most 1,024 characters, and a path 4,096 bytes."""
_MOST = 4096
"""Keys that are remembered."""


class KeyFile(msgspec.Struct, kw_only=True, frozen=True):
    """A key of a subject as it is kept, one object of JSON in the file `<keys>/subjects/<kid>.json`."""

    format: int = 1
    kid: str
    alg: str
    key: str
    """32 random bytes in base64; empty once it is destroyed."""
    subject: str
    """What the policy called it by: the events' subject, unless a program has a policy of its own."""
    machine: str
    root: str
    """With `machine` the scope: the ledger's folder, links resolved."""
    created: str

    def cipher(self) -> Cipher | None:
        """Give the key ready for use; None where it is destroyed, or is not the one that its id commits to."""
        try:
            cipher = Cipher(self.alg, b64decode(self.key, validate=True))
        except ValueError:
            return None
        return cipher if cipher.kid == self.kid else None

    def to_bytes(self) -> bytes:
        """Give the file's bytes."""
        return msgspec.json.encode(self) + b"\n"


_decode = msgspec.json.Decoder(KeyFile).decode


def key_text(secret: bytes) -> str:
    """Give a key as it stands in its file."""
    return b64encode(secret).decode()


def read_key(path: Path | str) -> KeyFile | None:
    """Give what a key's file says; None where there is no such file, it cannot be read, or is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            return _decode(file.read(_LARGEST))
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


class Opener(Protocol):
    """What a record asks for its payload in plain."""

    def open(self, content: dict[str, Any], *, id: str, type: str, subject: str) -> bytes | None:
        """Give the payload's JSON, None without the key."""


class Keyring:
    """Opens payloads with the keys in `keys`, by default `OTLEDGER_KEYS` or this user's folder.

    A key is looked for when the first payload names it, and then remembered, found or not: what is shredded or comes
    later is seen by the next Keyring. It takes no lock, needs no permissions but to read, and raises nothing.
    """

    __slots__ = ("_ciphers", "_folder", "keys")

    def __init__(self, keys: Path | str | None = None) -> None:
        self.keys = keys_folder(keys)
        self._folder = str(self.keys / FOLDER)
        self._ciphers: dict[str, Cipher | None] = {}

    def open(self, content: dict[str, Any], *, id: str, type: str, subject: str) -> bytes | None:
        """Give the payload's JSON; None without the key, and where the ciphertext is not what was sealed."""
        kid = content.get("kid")
        if not is_kid(kid):
            return None
        cipher = self._cipher(str(kid))
        return None if cipher is None else cipher.open(content, id=id, type=type, subject=subject)

    def _cipher(self, kid: str) -> Cipher | None:
        try:
            return self._ciphers[kid]
        except KeyError:
            pass
        found = read_key(f"{self._folder}/{kid}{SUFFIX}")
        cipher = found.cipher() if found is not None and found.kid == kid else None
        if len(self._ciphers) >= _MOST:
            self._ciphers.clear()
        self._ciphers[kid] = cipher
        return cipher

    # What a record was read by is no part of it: records are equal whoever read them.

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, Keyring) or NotImplemented

    def __hash__(self) -> int:
        return hash(Keyring)

    def __reduce__(self) -> tuple[type[Keyring], tuple[Path]]:
        # Keys go nowhere with a pickled record.
        return Keyring, (self.keys,)

    def __repr__(self) -> str:
        return f"Keyring({str(self.keys)!r})"
