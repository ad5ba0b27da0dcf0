"""Signed ledgers for tests: real records by `otledger.Journal`, and the control records that a signer writes.

Tree, root and paths are counted out here from the bytes of the files, and nothing is asked of the code that verifies.
Attacks begin with such a ledger: `Signed(root).put(1, 2).seal()` and then, with or without its key, change the files.
"""

import base64
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from otledger import Draft
from otledger.merkle import inclusion_ranges, leaf_hash
from otledger.notes import Commitment, SignerKey, VerifierKey, origin_of
from tests.faults.tools import MACHINE, journal, rechained, record_of, segment_names

Json = dict[str, Any]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def root_over(leaves: list[bytes], low: int, high: int) -> bytes:
    """The root over the leaves `low` to `high`, as RFC 6962 defines it."""
    from hashlib import sha256

    if high - low == 0:
        return sha256().digest()
    if high - low == 1:
        return leaves[low]
    half = 1 << (high - low - 1).bit_length() - 1
    return sha256(b"\1" + root_over(leaves, low, low + half) + root_over(leaves, low + half, high)).digest()


def tree_of(leaves: list[bytes], size: int) -> Json:
    """`root`, `edge` and `path` of a checkpoint over the first `size` leaves."""
    edge, low = [], 0
    for bit in range(size.bit_length() - 1, -1, -1):
        if size >> bit & 1:
            edge.append(b64(root_over(leaves, low, low + (1 << bit))))
            low += 1 << bit
    path = [b64(root_over(leaves, low, high)) for low, high in inclusion_ranges(size - 1, size)]
    return {"root": b64(root_over(leaves, 0, size)), "edge": edge, "path": path}


class Signed:
    """A machine's partition whose checkpoints are signed. Use it as a context, or close it."""

    def __init__(
        self,
        root: Path,
        *,
        machine: str = MACHINE,
        key: SignerKey | None = None,
        forward: bool = False,
        **settings: Any,
    ) -> None:
        self.root, self.machine, self.forward = root, machine, forward
        self.moved: Path | None = None
        """The folder that older segments were moved to."""
        self.journal = journal(root, machine=machine, **settings)
        self.journal.open()
        self.put()
        self.ledger: str = record_of(self.lines()[0])["data"]["ledger"]
        self.origin = origin_of(self.ledger)
        self.key = key or SignerKey.new(self.origin)
        self.next = SignerKey.new(self.origin) if forward else None

    def __enter__(self) -> "Signed":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.journal.close()

    @property
    def verifier(self) -> VerifierKey:
        return self.key.verifier

    @property
    def pin(self) -> str:
        """What somebody who verifies pins."""
        return str(self.key.verifier)

    # What is there

    def lines(self) -> list[bytes]:
        return [line for _, _, line in self.places()]

    def places(self) -> list[tuple[str, int, bytes]]:
        """File, offset and bytes of each record of the chain, its caps applied."""
        found: list[tuple[str, int, bytes]] = []
        folders = [self.root / self.machine, *([self.moved] if self.moved is not None else [])]
        paths = sorted(
            (path for folder in folders for path in folder.glob("*.jsonl")), key=lambda path: _order(path.name)
        )
        caps: dict[str, int] = {}
        for path in paths:
            first = path.read_bytes().partition(b"\n")[0]
            previous = json.loads(first)["data"]["previous"]
            if previous:
                caps[previous["segment"]] = previous["size"]
        for path in paths:
            offset = 0
            for line in path.read_bytes()[: caps.get(path.name)].splitlines(keepends=True):
                found.append((path.name, offset, line))
                offset += len(line)
        return found

    def leaves(self) -> list[bytes]:
        return [leaf_hash(line[-67:-3]) for line in self.lines()]

    # What is written

    def put(self, *payloads: Any) -> "Signed":
        if payloads:
            self.journal.append([Draft("app.event", payload) for payload in payloads])
        else:
            with self.journal._mutex, self.journal._locked(None):
                pass
        return self

    def control(self, type: str, data: Json) -> int:
        """Append a control record. Gives its `seq`."""
        (receipt,) = self.journal.append([Draft(type, data)], reserved=True)
        return receipt.seq

    def checkpoint(self, size: int | None = None, *extensions: str, key: SignerKey | None = None) -> Json:
        """The data of a signed checkpoint over the first `size` records, by default all."""
        lines = self.lines()
        size = len(lines) if size is None else size
        tree = tree_of([leaf_hash(line[-67:-3]) for line in lines], size)
        if self.next is not None:
            extensions = (*extensions, f"next {self.next.verifier}")
        text = Commitment(self.origin, size, base64.b64decode(tree["root"]), extensions).text()
        return {
            "size": size,
            "head": lines[size - 1][-67:-3].decode(),
            **tree,
            "note": (key or self.key).sign(text),
        }

    def seal(self, size: int | None = None, *, key: SignerKey | None = None) -> "Signed":
        self.control("otledger.checkpoint", self.checkpoint(size, key=key))
        return self

    def change(self, new: SignerKey, *, signed: bool = True, old: VerifierKey | None = None) -> Json:
        """The data of a change of key from the current one to `new`."""
        said = self.checkpoint()
        text = Commitment(self.origin, said["size"], base64.b64decode(said["root"]), (f"key {new.verifier}",)).text()
        return {
            "old": str(old or self.verifier),
            "new": str(new.verifier),
            "size": said["size"],
            "root": said["root"],
            "path": said["path"],
            "signature": self.key.sign(text) if signed else None,
        }

    def begin(self) -> "Signed":
        """Write that the first key begins."""
        said = self.checkpoint()
        members = {name: said[name] for name in ("size", "root", "path")}
        self.control("otledger.key", {"old": None, "new": self.pin, **members, "signature": None})
        return self

    def rotate(self, new: SignerKey | None = None, *, signed: bool = True) -> "Signed":
        """Go on with another key; with forward security the one that was announced, which the old one need not sign."""
        new = new or self.next or SignerKey.new(self.origin)
        self.control("otledger.key", self.change(new, signed=signed))
        self.key = new
        if self.forward:
            self.next = SignerKey.new(self.origin)
        return self

    def remember(self, keys: Path, **changed: Any) -> None:
        """Write what the signer remembers of its last checkpoint."""
        last = next(
            record["data"]
            for record in map(record_of, reversed(self.lines()))
            if record["type"] == "otledger.checkpoint" and "note" in record["data"]
        )
        (keys / self.ledger).mkdir(parents=True, exist_ok=True)
        members = {name: last[name] for name in ("size", "root", "edge", "note")}
        text = json.dumps({"origin": self.origin, **members, **changed})
        (keys / self.ledger / "signed").write_text(text)

    def note(self) -> str:
        """The newest note, as a witness keeps it."""
        for record in map(record_of, reversed(self.lines())):
            if record["type"] == "otledger.checkpoint" and "note" in record["data"]:
                return str(record["data"]["note"])
        raise AssertionError("nothing is signed")


def rewrite(signed: Signed, change: Any) -> None:
    """Change the lines of the only segment, and chain them anew: what an insider can do who has no key."""
    (name,) = segment_names(signed.root) if signed.machine == MACHINE else (signed.places()[0][0],)
    path = signed.root / signed.machine / name
    path.write_bytes(b"".join(rechained(change(signed.lines()))))
    (signed.root / signed.machine / ".lock").unlink(missing_ok=True)


def resigned(lines: Iterable[bytes], key: SignerKey) -> list[bytes]:
    """The lines chained anew, with heads, trees and notes that fit, signed by a key: all that there is to do."""
    done: list[bytes] = []
    for line in lines:
        record = record_of(line)
        data = record.get("data")
        if record["type"] == "otledger.checkpoint" and isinstance(data, dict) and "note" in data:
            chained = rechained(done)
            size = data["size"]
            tree = tree_of([leaf_hash(each[-67:-3]) for each in chained], size)
            text = Commitment(key.name, size, base64.b64decode(tree["root"])).text()
            new = {"size": size, "head": chained[size - 1][-67:-3].decode(), **tree, "note": key.sign(text)}
            old = json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()
            assert line.count(old) == 1
            line = line.replace(old, json.dumps(new, separators=(",", ":"), ensure_ascii=False).encode())
        done.append(line)
    return rechained(done)


def unsynced(lines: Iterable[bytes]) -> list[bytes]:
    """The lines without the number of durable records, which no longer fits where others were put in or taken out."""
    return [re.sub(rb',"synced":\d+(?=,"seq":)', b"", line) for line in lines]


def checkpoints(signed: Signed) -> Iterator[tuple[str, int, Json]]:
    """File, offset and record of each signed checkpoint."""
    for name, offset, line in signed.places():
        record = record_of(line)
        if record["type"] == "otledger.checkpoint" and "note" in record["data"]:
            yield name, offset, record


def _order(name: str) -> tuple[str, int]:
    month, *rest = name.removesuffix(".jsonl").split(".")
    return month, int(rest[0]) if rest else 0
