"""What a witness keeps of a chain: its newest note, the keys that lead to it, when it came; and what it refused."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Protocol, TypeVar

import msgspec

from otledger.errors import LedgerError
from otledger.hashes import decode_hashes, encode_hashes
from otledger.merkle import Tree
from otledger.notes import Commitment, Note, NoteError, VerifierKey, read_commitment

FORMAT = 1
MOST_REFUSED = 100
"""Refused notes that are kept of one chain: the first ones tell what happened."""
MAX_ENTRY = 1 << 23
"""The longest file of a place that is read, in bytes."""
_ORIGIN = re.compile(r"otledger/([0-9A-Za-z][0-9A-Za-z-]{0,63})")


class WitnessError(LedgerError):
    """A witness's place cannot be used, or does not hold what a witness leaves there."""


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A key of a chain, and how it came to be one: `note` is what the key before it signed; None for the first."""

    key: VerifierKey
    note: str | None = None


@dataclass(frozen=True, slots=True)
class RefusedNote:
    """A note that a witness was given and did not accept."""

    note: str
    """As it was given; empty where there was none any more."""
    reason: str
    taken: int
    """When, in nanoseconds since the epoch."""
    machine: str

    @property
    def name(self) -> str:
        """What it is called at its place: the same for the same note and reason."""
        return sha256(f"{self.reason}\n{self.note}".encode()).hexdigest()[:16]

    def encode(self) -> bytes:
        """Give it as it is stored."""
        return _dumps(_Refused(FORMAT, self.machine, self.taken, self.reason, self.note))

    @classmethod
    def decode(cls, data: bytes, where: str) -> RefusedNote:
        """Read what `encode` gave. Raises `WitnessError`."""
        read = _loads(data, _Refused, where)
        return cls(read.note, read.reason, read.taken, read.machine)


@dataclass(frozen=True, slots=True)
class Stamp:
    """An RFC 3161 token over the bytes of a note."""

    authority: str
    """The address that it was asked of."""
    token: bytes
    """The authority's response, DER."""


@dataclass(frozen=True, slots=True)
class WitnessedNote:
    """The note that a witness has of a chain."""

    origin: str
    note: str
    """The signed note, literally."""
    taken: int
    """When the witness accepted it, by its own clock: nanoseconds since the epoch."""
    machine: str
    """The partition that it was read from."""
    ledger: str
    """The folder of the ledger, as the witness saw it."""
    number: int
    """How many notes of this chain the witness had accepted before."""
    previous: str
    """SHA-256 of the entry before, 64 hex digits; empty for the first."""
    keys: tuple[KnownKey, ...]
    """The keys of the chain, oldest first. The last one has signed the note, and the others count no more."""
    edge: tuple[bytes, ...] = ()
    """Of the tree that the note is over: what a later consistency proof begins with."""
    stamp: Stamp | None = None
    stamped: int | None = None
    """The time that the stamp states, where it was checked: nanoseconds since the epoch."""
    refused: tuple[RefusedNote, ...] = field(default=(), compare=False)
    """What was given as this chain's and refused, oldest first."""

    @property
    def commitment(self) -> Commitment:
        """What the note says."""
        return Commitment.parse(Note.parse(self.note).text)

    @property
    def key(self) -> VerifierKey:
        """The key that has signed."""
        return self.keys[-1].key

    def encode(self) -> bytes:
        """Give it as it is stored."""
        stamp = None
        if self.stamp is not None:
            stamp = _Stamp(self.stamp.authority, base64.b64encode(self.stamp.token).decode())
        return _dumps(
            _Stored(
                otledger=FORMAT,
                origin=self.origin,
                number=self.number,
                previous=self.previous,
                machine=self.machine,
                ledger=self.ledger,
                taken=self.taken,
                note=self.note,
                keys=[_Key(str(known.key), known.note) for known in self.keys],
                edge=encode_hashes(self.edge),
                stamp=stamp,
            )
        )

    @property
    def digest(self) -> str:
        """What the next entry names as `previous`."""
        return sha256(self.encode()).hexdigest()

    @classmethod
    def decode(cls, data: bytes, origin: str, where: str) -> WitnessedNote:
        """Read what `encode` gave, and check it: note, keys and edge must fit. Raises `WitnessError`."""
        read = _loads(data, _Stored, where)
        try:
            found = cls(
                origin=read.origin,
                note=read.note,
                taken=read.taken,
                machine=read.machine,
                ledger=read.ledger,
                number=read.number,
                previous=read.previous,
                keys=tuple(KnownKey(VerifierKey.parse(known.key), known.note) for known in read.keys),
                edge=tuple(decode_hashes(read.edge)),
                stamp=None if read.stamp is None else _stamp(read.stamp),
            )
            _check(found, origin)
        except (NoteError, ValueError, binascii.Error) as error:
            raise WitnessError(f"{where}: this is not what a witness left: {error}", path=where) from None
        return found


class Place(Protocol):
    """Where notes are kept. All of it raises `WitnessError` where the place cannot be used."""

    def is_there(self) -> bool:
        """Tell whether there is such a place at all; the first note makes it."""

    def origins(self) -> list[str]:
        """Give the chains of which there is a note, sorted."""

    def newest(self, origin: str) -> WitnessedNote | None:
        """Give the note that the place has of a chain."""

    def history(self, origin: str) -> Iterator[WitnessedNote]:
        """Give all the notes that were accepted, the oldest first."""

    def put(self, entry: WitnessedNote) -> bool:
        """Make `entry` the newest, durable on return, if its number is the next one; else give False."""

    def refuse(self, origin: str, refused: RefusedNote) -> None:
        """Keep a refused note, once; of one chain the first hundred."""

    def refused(self, origin: str) -> tuple[RefusedNote, ...]:
        """Give the refused notes of a chain, oldest first."""


def chain_of(origin: str) -> str:
    """Give the UUID of an origin, which is safe as a file's name. Raises `NoteError` for any other origin."""
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        raise NoteError(f"no origin of a ledger's chain: {origin[:100]!r}; it is otledger/<UUID>")
    return match[1]


def is_origin(text: str) -> bool:
    """Tell whether a ledger's chain can have this origin."""
    return _ORIGIN.fullmatch(text) is not None


def check_succession(old: VerifierKey, new: VerifierKey, note: str) -> Commitment:
    """Give what `old` signed when it handed over to `new`: the tree at that time. Raises `NoteError`."""
    said, _ = read_commitment(note, [old])
    if new.name != old.name:
        raise NoteError(f"the key {new} is of another origin than {old.name}")
    if f"key {new}" not in said.extensions:
        raise NoteError(f"the key {old.id.hex()} has not named {new.id.hex()} as the next")
    return said


def _stamp(read: _Stamp) -> Stamp:
    return Stamp(read.authority, base64.b64decode(read.token, validate=True))


def _check(entry: WitnessedNote, origin: str) -> None:
    if entry.origin != origin:
        raise NoteError(f"it is of {entry.origin[:100]}, and {origin} stands there")
    if not entry.keys:
        raise NoteError("it names no key")
    for at in range(1, len(entry.keys)):
        check_succession(entry.keys[at - 1].key, entry.keys[at].key, entry.keys[at].note or "")
    said, _ = read_commitment(entry.note, [entry.key])
    if said.origin != origin:
        raise NoteError(f"the note is of {said.origin[:100]}")
    if entry.edge and Tree(said.size, entry.edge).root() != said.root:
        raise NoteError("the edge is not that of the note's tree")


# As it is stored


class _Key(msgspec.Struct):
    key: str
    note: str | None


class _Stamp(msgspec.Struct):
    authority: str
    token: str


class _Stored(msgspec.Struct, kw_only=True):
    otledger: int
    origin: str
    number: int
    previous: str
    machine: str
    ledger: str
    taken: int
    note: str
    keys: list[_Key]
    edge: list[str]
    stamp: _Stamp | None = None


class _Refused(msgspec.Struct):
    otledger: int
    machine: str
    taken: int
    reason: str
    note: str


T = TypeVar("T", _Stored, _Refused)


def _dumps(value: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def _loads(data: bytes, kind: type[T], where: str) -> T:
    try:
        read = msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WitnessError(f"{where}: this is not what a witness left: {error}", path=where) from None
    if read.otledger != FORMAT:
        why = f"{where}: a witness of version {read.otledger} left this, and this otledger knows {FORMAT}"
        raise WitnessError(f"{why}; use a newer otledger", path=where)
    return read
