"""Turns: the records that share one `ipc_hash`. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from otledger.record import Record


@dataclass(frozen=True, slots=True)
class Turn:
    """The records linked by one `ipc_hash`, in the order in which they were given."""

    ipc_hash: str
    records: tuple[Record, ...]

    @property
    def start(self) -> int:
        """The earliest time, in nanoseconds since the epoch."""
        return min(record.time_ns for record in self.records)

    @property
    def end(self) -> int:
        """The latest time, in nanoseconds since the epoch."""
        return max(record.time_ns for record in self.records)

    @property
    def span_ids(self) -> tuple[str, ...]:
        """The spans that the records were emitted in, each once."""
        return tuple(dict.fromkeys(record.span_id for record in self.records if record.span_id))

    @property
    def trace_ids(self) -> tuple[str, ...]:
        """The traces that are touched, each once."""
        return tuple(dict.fromkeys(record.trace_id for record in self.records if record.trace_id))


def turn_of(records: Iterable[Record], ipc_hash: str) -> Turn | None:
    """Give the turn of an `ipc_hash`, or None if no record carries it."""
    found = tuple(record for record in records if record.ipc_hash == ipc_hash)
    return Turn(ipc_hash, found) if found else None
