"""Signed checkpoints: C2SP signed notes (c2sp.org/signed-note) over C2SP checkpoints (c2sp.org/tlog-checkpoint).

A note is text, an empty line, and a line for each signature. Keys are Ed25519. The name of a key is the origin that it
signs for, `otledger/<UUID of the chain>`, so whoever pins a public key pins the chain with it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from otledger.errors import LedgerError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ED25519 = b"\x01"
"""The algorithm's number in keys and key ids."""
MAX_NOTE = 1 << 20
"""The longest note that is read, in bytes."""
_NAME = re.compile(r"[^\s+]+")
_SIZE = re.compile(r"0|[1-9]\d{0,17}", re.ASCII)
_SIGNATURE = re.compile(r"— (\S+) ([A-Za-z0-9+/]+={0,2})")


class NoteError(LedgerError):
    """A key, note or checkpoint is not what C2SP describes, or is not signed by the key that it should be."""


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key: what a verifier pins. Its text is `<name>+<key id>+<base64 of 1 and the 32 bytes>`."""

    name: str
    public: bytes

    @property
    def id(self) -> bytes:
        """The 4 bytes by which a signature names its key: of the SHA-256 of name, LF, algorithm, public key."""
        return sha256(self.name.encode() + b"\n" + ED25519 + self.public).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(ED25519 + self.public).decode()}"

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Give the key of a text as `str` gives it. Raises `NoteError`."""
        name, _, rest = text.strip().partition("+")
        id, _, encoded = rest.partition("+")
        data = _decode(encoded)
        if not _NAME.fullmatch(name) or data is None or len(data) != 33 or data[:1] != ED25519:
            raise NoteError(
                f"no verifier key: {text[:200]!r}; it is <name>+<8 hex digits>+<base64>: otledger keys export"
            )
        key = cls(name, data[1:])
        if id != key.id.hex():
            raise NoteError(
                f"the verifier key {text[:200]!r} has another id than {key.id.hex()}: was it cut or mistyped?"
            )
        return key

    def verifies(self, signature: bytes, text: bytes) -> bool:
        """Tell whether `signature`, 64 bytes, is this key's over `text`."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, text)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class SignerKey:
    """A private key. Its text is `PRIVATE+KEY+<name>+<key id>+<base64 of 1 and the 32 bytes of the seed>`."""

    name: str
    seed: bytes

    def __repr__(self) -> str:
        return f"SignerKey({self.name!r}, …)"

    @classmethod
    def new(cls, name: str) -> SignerKey:
        """Make a key from the system's randomness."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        if not _NAME.fullmatch(name):
            raise NoteError(f"no name for a key: {name!r}; it has no spaces and no plus sign")
        return cls(name, Ed25519PrivateKey.generate().private_bytes_raw())

    @property
    def verifier(self) -> VerifierKey:
        """The public key."""
        return VerifierKey(self.name, self._private().public_key().public_bytes_raw())

    def text(self) -> str:
        """Give the key as text, to be kept where nobody else reads it."""
        return f"PRIVATE+KEY+{self.name}+{self.verifier.id.hex()}+{base64.b64encode(ED25519 + self.seed).decode()}"

    @classmethod
    def parse(cls, text: str) -> SignerKey:
        """Give the key of a text as `text` gives it. Raises `NoteError`, which shows nothing of the text."""
        fields = text.strip().split("+", 4)
        data = _decode(fields[4]) if len(fields) == 5 and fields[:2] == ["PRIVATE", "KEY"] else None
        if data is None or len(data) != 33 or data[:1] != ED25519:
            raise NoteError("no private key as otledger keys writes them")
        key = cls(fields[2], data[1:])
        if key.verifier.id.hex() != fields[3]:
            raise NoteError(f"the private key of {fields[2]!r} has another id than {fields[3]}: was it changed?")
        return key

    def sign(self, text: str) -> str:
        """Give the note: `text`, which ends in LF, with this key's signature."""
        data = _check_text(text).encode()
        signature = base64.b64encode(self.verifier.id + self._private().sign(data)).decode()
        return f"{text}\n— {self.name} {signature}\n"

    def _private(self) -> Ed25519PrivateKey:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Ed25519PrivateKey.from_private_bytes(self.seed)


@dataclass(frozen=True, slots=True)
class Note:
    """A note, read and not yet believed."""

    text: str
    """What is signed, with its last LF."""
    signatures: tuple[tuple[str, bytes, bytes], ...]
    """Of each signature the key's name, the key's id, and the 64 or more bytes."""

    @classmethod
    def parse(cls, note: str) -> Note:
        """Give text and signatures of a note. Raises `NoteError` where it is none."""
        text, found, lines = note.rpartition("\n\n")
        if len(note) > MAX_NOTE or not found or not lines.endswith("\n"):
            raise NoteError("no signed note: text, an empty line, and signatures are due")
        signatures = []
        for line in lines[:-1].split("\n"):
            match = _SIGNATURE.fullmatch(line)
            data = _decode(match[2]) if match else None
            if match is None or data is None or len(data) < 5:
                raise NoteError(f"no signature line in a note: {line[:100]!r}")
            signatures.append((match[1], data[:4], data[4:]))
        return cls(_check_text(text + "\n"), tuple(signatures))

    def key_ids(self) -> tuple[str, ...]:
        """Give the ids of the keys that claim to have signed, as hex."""
        return tuple(id.hex() for _, id, _ in self.signatures)

    def is_signed_by(self, key: VerifierKey) -> bool:
        """Tell whether one of the signatures is this key's, and right."""
        ours = [signature for name, id, signature in self.signatures if (name, id) == (key.name, key.id)]
        return len(ours) == 1 and key.verifies(ours[0], self.text.encode())

    def signer_of(self, keys: Iterable[VerifierKey]) -> VerifierKey | None:
        """Give the first of `keys` that has signed."""
        return next((key for key in keys if self.is_signed_by(key)), None)


@dataclass(frozen=True, slots=True)
class Commitment:
    """What a checkpoint's note says: so many records, under this root."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()
    """Further lines, each of them not empty."""

    def text(self) -> str:
        """Give the text that is signed."""
        lines = (self.origin, str(self.size), base64.b64encode(self.root).decode(), *self.extensions)
        return "".join(f"{line}\n" for line in lines)

    @classmethod
    def parse(cls, text: str) -> Commitment:
        """Give what a note's text says. Raises `NoteError`."""
        lines = text.split("\n")
        root = _decode(lines[2]) if len(lines) > 3 else None
        good = root is not None and len(root) == 32 and lines[-1] == "" and lines[0] and _SIZE.fullmatch(lines[1])
        if not good or not all(lines[3:-1]):
            raise NoteError(f"no checkpoint: {text[:200]!r}; origin, size and root are due, each on a line")
        assert root is not None
        return cls(lines[0], int(lines[1]), root, tuple(lines[3:-1]))


def origin_of(ledger: str) -> str:
    """Give the origin, which is the key's name too, of the chain with this UUID."""
    return f"otledger/{ledger}"


def read_commitment(note: str, keys: Iterable[VerifierKey]) -> tuple[Commitment, VerifierKey]:
    """Give what a signed checkpoint says, and which of `keys` says it.

    Raises `NoteError` where it is no note over a checkpoint, where none of the keys has signed, and where the one
    that has is another origin's.
    """
    read = Note.parse(note)
    key = read.signer_of(keys)
    commitment = Commitment.parse(read.text)
    if key is None:
        raise NoteError(
            f"the note of {commitment.origin} is not signed by the key given, but by {', '.join(read.key_ids())}"
        )
    if key.name != commitment.origin:
        raise NoteError(f"the key {key.name} has signed for another origin, {commitment.origin}")
    return commitment, key


def _check_text(text: str) -> str:
    control = any(char < " " and char != "\n" for char in text)
    if not text.endswith("\n") or control:
        raise NoteError("the text of a note ends in LF and has no other control characters")
    return text


def _decode(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
