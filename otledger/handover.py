"""What is handed to a journal, and what it gives back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from otledger import values
from otledger.batch import checksum_of
from otledger.errors import JournalError


class Receipt(msgspec.Struct, frozen=True):
    """What an append that is durable returns.

    At durability `os`, `seq` and `checksum` are provisional until the next sync (format, 6).
    """

    id: str
    seq: int
    checksum: str
    segment: str


@dataclass(frozen=True, slots=True)
class Resource:
    """An OpenTelemetry resource or scope, stored once a segment before its first use (format, 4)."""

    digest: str
    payload: str
    """The record's `data`, as JSON."""

    @classmethod
    def make(
        cls,
        kind: str,
        attributes: bytes,
        *,
        name: str | None = None,
        version: str | None = None,
        schema_url: str | None = None,
        dropped: int = 0,
    ) -> Resource:
        """Give the resource with its digest; `attributes` are a JSON object."""
        texts = f'"kind":{dumps(kind)},"name":{dumps(name)},"version":{dumps(version)}'
        members = f'{texts},"schema_url":{dumps(schema_url)},"attributes":{attributes.decode()},"dropped":{dropped}}}'
        digest = hashlib.sha256(b"{" + members.encode()).hexdigest()[:32]
        return cls(digest, f'{{"digest":"{digest}",{members}')


def dumps(value: Any) -> str:
    """Give JSON text of what otledger itself says, or of a payload."""
    return values.encode(value).decode()


@dataclass(slots=True)
class Batch:
    """What one holding of the lock writes: parts (see batch.py), and the resources that they name."""

    parts: Sequence[bytes]
    resources: Mapping[str, Resource]


@dataclass(frozen=True, slots=True)
class Ack:
    """How many parts of a batch are as durable as was asked, and where. `error` says why not all."""

    count: int
    first_seq: int
    segment: str
    lines: Sequence[bytes]
    error: JournalError | None = None

    def receipt(self, at: int, id: str) -> Receipt:
        """Give the receipt of the part at this place of the batch."""
        checksum = f"sha256:{checksum_of(self.lines[at]).decode()}"
        return Receipt(id, self.first_seq + at, checksum, self.segment)
