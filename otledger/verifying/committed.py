"""Reading what control records commit to: trees, notes, changes of key (format, 5 and 7).

Pure. Members that are missing or garbled give a reason in words, never an error: anybody may have written them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeGuard

from otledger.hashes import hash_of, hashes_of
from otledger.merkle import fold, is_included, leaf_hash
from otledger.notes import Commitment, Note, NoteError, VerifierKey

_CHECKSUM = re.compile(r"[0-9a-f]{64}")
"""More than any edge or path has."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The tree that a checkpoint or a change of key names, read and not yet believed."""

    size: int
    root: bytes
    path: tuple[bytes, ...]
    edge: tuple[bytes, ...] | None
    note: str | None

    @classmethod
    def read(cls, data: dict[str, Any], seq: int, note: str = "note") -> Committed | str:
        """Give what the record `seq` says, or why that is none. `note`: the member that holds the signed note."""
        size, root, path = data.get("size"), hash_of(data.get("root")), hashes_of(data.get("path"))
        edge, text = data.get("edge"), data.get(note)
        if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= seq:
            return f"it says that it covers {str(size)[:40]} records, and {seq} are before it"
        if root is None or path is None:
            return "its root or path is missing or garbled"
        if text is not None and not isinstance(text, str):
            return "its note is garbled"
        hashes = None if edge is None else hashes_of(edge)
        if edge is not None and (hashes is None or len(hashes) != size.bit_count()):
            return "its edge is garbled"
        return cls(size, root, tuple(path), None if hashes is None else tuple(hashes), text)

    def why_not(self, head: str) -> str | None:
        """Give the reason why path and edge do not lead from the last record, with this checksum, to the root."""
        leaf = leaf_hash(head.encode())
        if not is_included(leaf, self.size - 1, self.size, self.path, self.root):
            return f"the record before {self.size} is not in the tree that it names"
        if self.edge is not None and fold(self.edge) != self.root:
            return "its edge is of another tree than it names"
        return None

    def why_unsigned(self, origin: str, extension: str | None = None) -> tuple[Note | None, str | None]:
        """Give the note, and the reason why it does not say the same as the record. Signatures are not looked at."""
        try:
            note = Note.parse(self.note or "")
            says = Commitment.parse(note.text)
        except NoteError as error:
            return None, f"its note is garbled: {error}"
        if says.origin != origin:
            return note, f"its note is of another chain, {says.origin[:100]}"
        if (says.size, says.root) != (self.size, self.root):
            return note, "its note is of another tree than it names"
        if extension is not None and extension not in says.extensions:
            return note, "its note does not name the new key"
        return note, None


def is_checksum(text: object) -> TypeGuard[str]:
    """Tell whether this is a checksum without its prefix."""
    return isinstance(text, str) and _CHECKSUM.fullmatch(text) is not None


def key_of(text: object) -> VerifierKey | None:
    """Give the verifier key of a text, None of anything else."""
    try:
        return VerifierKey.parse(text) if isinstance(text, str) else None
    except NoteError:
        return None


def next_key(note: str | None) -> str | None:
    """Give the key that a checkpoint's note says is the next one's, None where it says none."""
    try:
        says = Commitment.parse(Note.parse(note or "").text)
    except NoteError:
        return None
    return next((line.removeprefix("next ") for line in says.extensions if line.startswith("next ")), None)
