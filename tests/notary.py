"""A ledger whose checkpoints are signed, written record by record: what tests of notes begin with."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import otledger
from otledger import Draft
from otledger.batch import ZEROS, caller_part, check_line, stamp
from otledger.merkle import Tree, leaf_hash
from otledger.notes import Commitment, SignerKey, VerifierKey, origin_of


def encoded(hashes: list[bytes]) -> list[str]:
    return [base64.b64encode(each).decode() for each in hashes]


class Notary:
    """One machine's partition, and who signs for it.

    Each call opens the partition and closes it, as runs of a program would.
    """

    def __init__(self, root: Path, machine: str = "m1") -> None:
        self.root, self.machine = root, machine
        self.emit(1)
        self.origin = origin_of(self._records()[0]["data"]["ledger"])
        self.signer = SignerKey.new(self.origin)
        self.keys = [self.signer.verifier]
        self._append("otledger.key", self._key_data(None, self.signer.verifier, None))

    @property
    def key(self) -> VerifierKey:
        """The public key that signs now."""
        return self.signer.verifier

    def emit(self, count: int, type: str = "x.y") -> None:
        """Write some events."""
        with otledger.Journal(self.root, machine=self.machine, checkpoint_interval=1000) as journal:
            journal.append([Draft(type, {"n": at}) for at in range(count)])

    def sign(self, *extensions: str, signer: SignerKey | None = None, size: int | None = None) -> str:
        """Write a checkpoint with a note over all that is there, and give the note."""
        tree, path, head = self._tree(size)
        said = Commitment(self.origin, tree.size, tree.root(), tuple(extensions))
        note = (signer or self.signer).sign(said.text())
        self._append(
            "otledger.checkpoint",
            {
                "size": tree.size,
                "head": head,
                "root": encoded([tree.root()])[0],
                "edge": encoded(tree.edge),
                "path": encoded(path),
                "note": note,
            },
        )
        return note

    def rotate(self, *, by: SignerKey | None = None, new: SignerKey | None = None) -> None:
        """Begin a new key, named by the one that signs now."""
        old, new = by or self.signer, new or SignerKey.new(self.origin)
        self._append("otledger.key", self._key_data(old.verifier, new.verifier, old))
        self.signer = new
        self.keys.append(new.verifier)

    def _key_data(self, old: VerifierKey | None, new: VerifierKey, by: SignerKey | None) -> dict[str, Any]:
        tree, path, _ = self._tree(None)
        said = Commitment(self.origin, tree.size, tree.root(), (f"key {new}",))
        return {
            "old": None if old is None else str(old),
            "new": str(new),
            "size": tree.size,
            "root": encoded([tree.root()])[0],
            "path": encoded(path),
            "signature": None if by is None else by.sign(said.text()),
        }

    def _append(self, type: str, data: dict[str, Any]) -> None:
        with otledger.Journal(self.root, machine=self.machine, checkpoint_interval=1000) as journal:
            journal.append([Draft(type, data)], reserved=True)

    def _tree(self, size: int | None) -> tuple[Tree, list[bytes], str]:
        tree, path, head = Tree(), list[bytes](), ""
        for record in self._records()[:size]:
            path = tree.path_of_next()
            head = record["checksum"].removeprefix("sha256:")
            tree.add(leaf_hash(head.encode()))
        return tree, path, head

    def _records(self) -> list[dict[str, Any]]:
        files = sorted(
            (self.root / self.machine).glob("*.jsonl"), key=lambda path: (path.name[:7], len(path.name), path.name)
        )
        records = [json.loads(line) for file in files for line in file.read_bytes().splitlines()]
        # Of the present chain: a new one may have followed another.
        begin = max(at for at, record in enumerate(records) if record["seq"] == 0)
        return records[begin:]


def rewrite(segment: Path, change: Callable[[bytes], bytes]) -> None:
    """Change what a segment says, and give it right checksums again: what whoever has the disk can do."""
    tails = [check_line(line) for line in segment.read_bytes().splitlines(keepends=True)]
    parts = [change(caller_part(tail)) for tail in tails if tail is not None]
    segment.write_bytes(b"".join(stamp(parts, 0, ZEROS)))
