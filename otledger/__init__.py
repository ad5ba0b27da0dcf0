"""otledger writes down what a program did, so that nobody can lose or quietly change it, and tells it back.

    async with otledger.open("ledger", service="shop") as ledger:
        await ledger.emit("order.placed", {"id": 7})
        async with ledger.span("charge", attributes={"amount": 12}):
            receipt = await ledger.append("order.paid", {"id": 7})

Start with `open` (asyncio), `open_sync` (without), `Reader` and `verify`. `otledger.errors` has all errors.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from otledger.version import VERSION as __version__

if TYPE_CHECKING:
    from otledger.config import Config
    from otledger.encryption import by_subject
    from otledger.errors import EventRefused, JournalError, LedgerClosed, LedgerError, QueueFull
    from otledger.filter import Filter
    from otledger.journal import Journal, Receipt
    from otledger.ledger import Ledger, SyncLedger, open, open_sync
    from otledger.logging_handler import LoggingHandler
    from otledger.processors import redact
    from otledger.projection import Projection
    from otledger.reader import Reader
    from otledger.record import Draft, Record, ipc_hash
    from otledger.span import Span
    from otledger.verifier import Fault, Report, Status, verify
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
    "LoggingHandler",
    "Projection",
    "QueueFull",
    "Reader",
    "Receipt",
    "Record",
    "Report",
    "Span",
    "Status",
    "SyncLedger",
    "__version__",
    "by_subject",
    "ipc_hash",
    "open",
    "open_sync",
    "redact",
    "verify",
]

_HOMES = {
    "config": ("Config",),
    "encryption": ("by_subject",),
    "errors": ("EventRefused", "JournalError", "LedgerClosed", "LedgerError", "QueueFull"),
    "filter": ("Filter",),
    "journal": ("Journal", "Receipt"),
    "ledger": ("Ledger", "SyncLedger", "open", "open_sync"),
    "logging_handler": ("LoggingHandler",),
    "processors": ("redact",),
    "projection": ("Projection",),
    "reader": ("Reader",),
    "record": ("Draft", "Record", "ipc_hash"),
    "span": ("Span",),
    "verifier": ("Fault", "Report", "Status", "verify"),
    "writer": ("Health",),
}
_MODULES = {name: f"otledger.{module}" for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # Each name is imported when it is first used: a reader needs no OpenTelemetry, a writer no verify.
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'otledger' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
