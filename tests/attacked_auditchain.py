"""The attacks of docs/tamper-evidence.md on auditchain, as it is meant to be used.

That is with an Ed25519 key and a checkpoint elsewhere. The insider can write the log, and recompute its hashes; only
some have the key.
"""

import asyncio
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from auditchain import AuditLog, AuditRecord, JsonlBackend, generate_keypair, load_checkpoint, save_checkpoint
from auditchain.hash import compute_record_hash
from auditchain.records import GENESIS_HASH
from auditchain.signing import sign_record
from auditchain.verify import verify_chain

LEVELS = ("hash chain", "Ed25519", "checkpoint elsewhere")


class Peer:
    """A log, its key, and the checkpoint that an auditor has elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log.jsonl"
        self.elsewhere = folder / "checkpoint.json"

    def make(self) -> "Peer":
        self.folder.mkdir()
        self.private, self.public = generate_keypair()
        self.append(12)
        self.anchor()
        shutil.copytree(self.folder, self.folder.with_name("older"))
        self.append(12)
        self.anchor()
        self.folder.with_name("older").rename(self.folder / "older")
        return self

    def copy(self, to: Path) -> "Peer":
        shutil.copytree(self.folder, to)
        made = Peer(to)
        made.private, made.public = self.private, self.public
        return made

    def append(self, count: int) -> None:
        async def run() -> None:
            async with AuditLog(JsonlBackend(self.log), signing_key=self.private) as log:
                for number in range(count):
                    await log.append("m1", "app.event", metadata={"number": number})

        asyncio.run(run())

    def anchor(self) -> None:
        async def run() -> None:
            async with AuditLog(JsonlBackend(self.log), signing_key=self.private) as log:
                save_checkpoint(await log.checkpoint(), self.elsewhere)

        asyncio.run(run())

    def records(self) -> list[AuditRecord]:
        return asyncio.run(JsonlBackend(self.log).load())

    def write(self, records: Iterable[AuditRecord]) -> None:
        self.log.write_text("".join(JsonlBackend._serialize(record) + "\n" for record in records))

    def is_good(self, level: str) -> bool:
        given: dict[str, Any] = {}
        if level != "hash chain":
            given["signers"] = {"s0": self.public}
        if level == "checkpoint elsewhere":
            given["checkpoint"] = load_checkpoint(self.elsewhere, public_key=self.public)
        return verify_chain(self.records(), **given).ok


def rehashed(record: AuditRecord) -> AuditRecord:
    return replace(record, hash=compute_record_hash(record, None))


def rechained(records: Iterable[AuditRecord], key: Any = None) -> list[AuditRecord]:
    """The records with numbers and hashes that fit, and the signatures that a key makes of them."""
    made, prev = list[AuditRecord](), GENESIS_HASH
    for seq, record in enumerate(records):
        record = rehashed(replace(record, seq=seq, prev_hash=prev))
        made.append(record if key is None else replace(record, signature=sign_record(record, key)))
        prev = record.hash
    return made


def changed(records: list[AuditRecord]) -> list[AuditRecord]:
    return [replace(record, metadata={"number": 999}) if record.seq == 7 else record for record in records]


def _edit(peer: Peer) -> None:
    peer.write([rehashed(record) if record.seq == 7 else record for record in changed(peer.records())])


def _delete(peer: Peer) -> None:
    peer.write([record for record in peer.records() if record.seq != 7])


def _insert(peer: Peer) -> None:
    records = peer.records()
    peer.write([*records[:7], rehashed(replace(records[7], metadata={"number": 999})), *records[7:]])


def _reorder(peer: Peer) -> None:
    records = peer.records()
    peer.write([*records[:7], records[8], records[7], *records[9:]])


def _cut_new(peer: Peer) -> None:
    peer.append(1)
    peer.write(peer.records()[:-1])


def _cut(peer: Peer) -> None:
    peer.write(peer.records()[:-3])


def _rewrite(peer: Peer) -> None:
    peer.write(rechained(changed(peer.records())))


def _sign_with_another(peer: Peer) -> None:
    peer.write(rechained(changed(peer.records()), generate_keypair()[0]))


def _sign(peer: Peer) -> None:
    peer.write(rechained(changed(peer.records()), peer.private))


def _put_back(peer: Peer) -> None:
    shutil.copy(peer.folder / "older" / "log.jsonl", peer.log)
    peer.append(1)


def _roll_back(peer: Peer) -> None:
    for name in ("log.jsonl", "checkpoint.json"):
        shutil.copy(peer.folder / "older" / name, peer.folder / name)


ATTACKS: dict[str, Callable[[Peer], None]] = {
    "nothing: the ledger only grew": lambda peer: peer.append(1),
    "edit a record and its checksum": _edit,
    "delete a record": _delete,
    "insert a record": _insert,
    "reorder records": _reorder,
    "cut what came after the last checkpoint": _cut_new,
    "cut the tail with its checkpoints": _cut,
    "rewrite everything without the key": _rewrite,
    "the same, and sign with another key": _sign_with_another,
    "put back an older copy, let the service go on": _put_back,
    "rewrite everything with the key": _sign,
    "roll back ledger, keys and witness": _roll_back,
}
"""Those that it has something like: a log is one file, without checkpoints in it, and knows of no other machine."""
