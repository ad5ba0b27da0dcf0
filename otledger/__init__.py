"""otledger writes down what a program did, so that nobody can lose or quietly change it, and tells it back.

    async with otledger.open("ledger", service="shop") as ledger:
        await ledger.emit("order.placed", {"id": 7})
        async with ledger.span("charge", attributes={"amount": 12}):
            receipt = await ledger.append("order.paid", {"id": 7})

Start with `open` (asyncio), `open_sync` (without), `Reader` and `verify`. `otledger.errors` has all errors.
"""

from __future__ import annotations

from otledger.config import Config
from otledger.errors import EventRefused, JournalError, LedgerClosed, LedgerError, QueueFull
from otledger.filter import Filter
from otledger.journal import Journal, Receipt
from otledger.ledger import Ledger, SyncLedger, open, open_sync
from otledger.processors import redact
from otledger.reader import Reader
from otledger.record import Draft, Record, ipc_hash
from otledger.span import Span
from otledger.verify import Fault, Report, Status, verify
from otledger.version import VERSION as __version__
from otledger.writer import Health

__all__ = [
    "Config",
    "Draft",
    "EventRefused",
    "Fault",
    "Filter",
    "Health",
    "Journal",
    "JournalError",
    "Ledger",
    "LedgerClosed",
    "LedgerError",
    "QueueFull",
    "Reader",
    "Receipt",
    "Record",
    "Report",
    "Span",
    "Status",
    "SyncLedger",
    "__version__",
    "ipc_hash",
    "open",
    "open_sync",
    "redact",
    "verify",
]
