"""The errors that otledger raises.

LedgerError
├── ConfigurationError   a setting, a machine name: also a ValueError
├── RootError            the ledger's folder or a file in it cannot be used safely: also an OSError
├── FormatError          a file is not what the format says, or of an unknown version: also a ValueError
├── LedgerDamaged        damage or a fork was found: at the start if `strict` was asked for, later by on_error
├── LedgerClosed         the ledger was closed: also a RuntimeError
├── EventRefused         this event cannot be stored: also a ValueError
├── QueryError           this query cannot be run, or was stopped: also a ValueError
├── QueueFull            no place in the queue before the deadline
├── LowSpace             less than `min_free` left on the file system
├── ProjectionError      a projection stopped, or its database cannot be used
└── JournalError         a write did not succeed; the records stay queued
    ├── LockTimeout      another process holds the lock
    ├── DiskFull         no space, or no quota
    └── SyncFailed       fdatasync or fsync failed
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


class LedgerError(Exception):
    """Base of all errors of otledger.

    `path`, `offset` (bytes) and `seq` name the place where that is known.
    """

    def __init__(
        self, message: str, *, path: Path | str | None = None, offset: int | None = None, seq: int | None = None
    ) -> None:
        super().__init__(message)
        self.path = path
        self.offset = offset
        self.seq = seq


class ConfigurationError(LedgerError, ValueError):
    """A setting or a name is not one of those allowed."""


class RootError(LedgerError, OSError):
    """The ledger's folder, or a file in it, cannot be used safely."""

    # OSError's own __str__ looks at errno; the message is all there is to say.
    __str__ = Exception.__str__


class FormatError(LedgerError, ValueError):
    """A file is not what the format says, or is of a version that this otledger does not know."""


class LedgerDamaged(LedgerError):
    """Something in the ledger was changed, or two writers had one identity.

    Raised where the start-up check finds it and `strict=True` was asked for: `report` has the findings. Given to
    `on_error` where the writer meets it later.
    """

    def __init__(self, message: str, *, report: object = None) -> None:
        super().__init__(message)
        self.report = report


class LedgerClosed(LedgerError, RuntimeError):
    """The ledger was closed: nothing more is accepted."""


class EventRefused(LedgerError, ValueError):
    """This event cannot be stored: its type, a name in it, its size or its depth is not allowed."""


class QueryError(LedgerError, ValueError):
    """This query cannot be run: its SQL is wrong, it writes, it loads files, or it took too much time or memory."""


class QueueFull(LedgerError):
    """The queue had no place for the event before the deadline. The event was not accepted."""


class LowSpace(LedgerError):
    """Less than `min_free` bytes are left on the file system. The event was not accepted, and is counted."""


class ProjectionError(LedgerError):
    """A projection stopped, or its database cannot be used. `machine` and `seq` name the record, where it was one.

    The database is as it was at the position that the message names. `__cause__` is what `apply` raised.
    """

    def __init__(
        self, message: str, *, path: Path | str | None = None, machine: str | None = None, seq: int | None = None
    ) -> None:
        super().__init__(message, path=path, seq=seq)
        self.machine = machine


class JournalError(LedgerError):
    """A write did not succeed. What was accepted stays queued and is tried again.

    Of `Journal.append`, which queues nothing, `receipts` has those of the batch that are durable.
    """

    def __init__(self, message: str, *, path: Path | str | None = None) -> None:
        super().__init__(message, path=path)
        self.receipts: list[Any] = []


class LockTimeout(JournalError):
    """Another process holds the partition's lock for longer than `lock_timeout`. It is never broken."""


class DiskFull(JournalError):
    """The file system, or the quota, has no space left."""


class SyncFailed(JournalError):
    """The disk did not take the data. The segment is given up; the records go to its successor."""
