"""Proof files: a record's or a ledger's proof as a small JSON file, checked with a public key and nothing else.

Pure. A file is read as what a stranger sent: its size, and all that is worked on, has a bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from otledger.batch import MAX_LINE, check_line
from otledger.errors import FormatError, LedgerError
from otledger.hashes import MOST, encode_hash, hashes_of
from otledger.merkle import is_consistent, is_included, leaf_hash
from otledger.notes import Commitment, Note, NoteError, VerifierKey, read_commitment
from otledger.record import Record, parse
from otledger.strict import why_not_format

VERSION = 1
"""Of the files."""
MAX_FILE = 40 << 20
"""The largest file that is read, in bytes: the longest line, each of its quotes escaped, and notes beside it."""
MAX_PATH = MOST
"""More hashes than any audit path has: the tree of `MAX_SEQ` leaves is 60 deep. A consistency proof has one more."""
MAX_CHANGES = 10_000
"""How many changes of key are followed."""
KEY_LINE = "key "
"""What the extension line of a note begins with by which a key hands over to the next; a verifier key follows."""


class ProofError(LedgerError):
    """What a proof needs is not there."""


class BrokenProof(ProofError, FormatError):
    """A proof, or a file that should hold one, does not hold."""


class Inclusion(msgspec.Struct, kw_only=True, frozen=True, tag_field="proof", tag="inclusion"):
    """That a record is in the tree that a note commits to."""

    otledger: int = VERSION
    record: str
    """Its line, literally, without its LF."""
    index: int
    size: int
    path: list[str]
    """The audit path, from the leaf to the root: base64."""
    note: str
    keys: list[str] = []
    """Notes by which a key handed over to the next, the oldest first."""


class Consistency(msgspec.Struct, kw_only=True, frozen=True, tag_field="proof", tag="consistency"):
    """That the tree of one note begins the tree of another."""

    otledger: int = VERSION
    old: str
    new: str
    path: list[str]
    keys: list[str] = []


class _Version(msgspec.Struct):
    otledger: int


@dataclass(frozen=True, slots=True)
class ProvedRecord:
    """A record that a key has signed for, with the others of a tree."""

    record: Record
    commitment: Commitment
    key: VerifierKey

    def to_dict(self) -> dict[str, Any]:
        """Give what is proved as plain JSON values, without the record's payload."""
        record = self.record
        return {
            "proof": "inclusion",
            "record": {name: getattr(record, name) for name in ("id", "type", "source", "subject", "time", "machine")},
            "seq": record.seq,
            "checksum": record.checksum,
            **_plain(self.commitment, self.key),
        }


@dataclass(frozen=True, slots=True)
class ProvedGrowth:
    """A tree that a key has signed for, and an older one that it only added to."""

    old: Commitment
    old_key: VerifierKey
    commitment: Commitment
    key: VerifierKey

    def to_dict(self) -> dict[str, Any]:
        """Give what is proved as plain JSON values."""
        return {
            "proof": "consistency",
            "old_size": self.old.size,
            "old_root": encode_hash(self.old.root),
            "old_key_id": self.old_key.id.hex(),
            **_plain(self.commitment, self.key),
        }


def _plain(commitment: Commitment, key: VerifierKey) -> dict[str, Any]:
    root = encode_hash(commitment.root)
    return {"origin": commitment.origin, "size": commitment.size, "root": root, "key_id": key.id.hex()}


# Files


def write_proof(proof: Inclusion | Consistency) -> bytes:
    """Give the file that holds a proof: JSON, indented, with an LF at its end."""
    return msgspec.json.format(msgspec.json.encode(proof), indent=1) + b"\n"


def read_proof(data: bytes) -> Inclusion | Consistency:
    """Give the proof that a file holds, of right shape and not yet checked. Raises `BrokenProof`."""
    if len(data) > MAX_FILE:
        raise BrokenProof(f"no proof: {len(data):,} bytes, and one has {MAX_FILE:,} at most")
    try:
        version = msgspec.json.decode(data, type=_Version).otledger
        if version != VERSION:
            raise BrokenProof(f"the proof has version {version}, and this otledger knows {VERSION}; use a newer one")
        proof = msgspec.json.decode(data, type=Inclusion | Consistency)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BrokenProof(f"no proof as otledger prove writes it: {error}") from None
    if len(proof.path) > MAX_PATH or len(proof.keys) > MAX_CHANGES:
        raise BrokenProof(f"no proof: it has more than {MAX_PATH} hashes, or than {MAX_CHANGES:,} changes of key")
    return proof


# Checking


def check_proof(proof: Inclusion | Consistency, keys: Iterable[VerifierKey]) -> ProvedRecord | ProvedGrowth:
    """Give what a proof proves to whoever believes `keys`. Raises `BrokenProof` where it does not hold."""
    try:
        trusted = follow_keys(keys, proof.keys)
        return _check_inclusion(proof, trusted) if isinstance(proof, Inclusion) else _check_growth(proof, trusted)
    except NoteError as error:
        raise BrokenProof(f"the proof does not hold: {error}") from None


def follow_keys(keys: Iterable[VerifierKey], changes: Sequence[str]) -> list[VerifierKey]:
    """Give `keys` and those that they handed over to, one after the other, by notes that the elder has signed.

    A note that none of them has signed, or that names no key of its own origin, says nothing.
    """
    trusted = {(key.name, key.id): key for key in keys}
    for text in changes[:MAX_CHANGES]:
        try:
            note = Note.parse(text)
            signers = [trusted[name, id] for name, id, _ in note.signatures if (name, id) in trusted]
            commitment, _ = read_commitment(text, signers)
            following = [line.removeprefix(KEY_LINE) for line in commitment.extensions if line.startswith(KEY_LINE)]
            new = [VerifierKey.parse(line) for line in following]
        except NoteError:
            continue
        if len(new) == 1 and new[0].name == commitment.origin:
            trusted[new[0].name, new[0].id] = new[0]
    return list(trusted.values())


def _check_inclusion(proof: Inclusion, keys: Sequence[VerifierKey]) -> ProvedRecord:
    commitment, key = read_commitment(proof.note, keys)
    if "\n" in proof.record or len(proof.record) >= MAX_LINE:
        raise _does_not_hold("the record is more than one line, or too long")
    try:
        line = proof.record.encode() + b"\n"
    except UnicodeEncodeError:
        raise _does_not_hold("the record is no UTF-8") from None
    tail = check_line(line)
    if tail is None:
        raise _does_not_hold("the record's checksum does not fit its line")
    if tail.seq != proof.index:
        raise _does_not_hold(f"it is about number {proof.index}, and the record is number {tail.seq}")
    if proof.size != commitment.size:
        raise _does_not_hold(f"it is about {proof.size} records, and the note about {commitment.size}")
    if not is_included(leaf_hash(tail.checksum), tail.seq, commitment.size, _hashes(proof.path), commitment.root):
        raise _does_not_hold("the record is not in the tree that the note commits to")
    try:
        record = parse(line)
    except FormatError as error:
        raise _does_not_hold(str(error)) from None
    reason = why_not_format(line, record.machine)
    if reason is not None:
        raise _does_not_hold(reason)
    return ProvedRecord(record, commitment, key)


def _check_growth(proof: Consistency, keys: Sequence[VerifierKey]) -> ProvedGrowth:
    old, old_key = read_commitment(proof.old, keys)
    new, key = read_commitment(proof.new, keys)
    if old.origin != new.origin:
        raise _does_not_hold(f"the notes are of two chains, {old.origin} and {new.origin}")
    if not is_consistent(old.size, old.root, new.size, new.root, _hashes(proof.path)):
        raise _does_not_hold(f"the tree of {new.size} records does not begin with that of {old.size}")
    return ProvedGrowth(old, old_key, new, key)


def _does_not_hold(reason: str) -> BrokenProof:
    return BrokenProof(f"the proof does not hold: {reason}")


def _hashes(texts: list[str]) -> list[bytes]:
    found = hashes_of(texts)
    if found is None:
        raise _does_not_hold("a hash in it is no base64 of 32 bytes")
    return found
