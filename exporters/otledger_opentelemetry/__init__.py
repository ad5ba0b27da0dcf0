"""The OpenTelemetry SDK into the ledger, and the ledger into any exporter of the SDK.

`LedgerSpanExporter`, `LedgerLogExporter`, `LedgerMetricExporter` and `LedgerSpanProcessor` write; `read_spans`,
`read_logs` and `replay` read.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .exporting import LedgerLogExporter, LedgerSpanExporter
    from .metrics import LedgerMetricExporter
    from .processing import LedgerSpanProcessor
    from .rebuilding import read_logs, read_spans
    from .replaying import replay

__all__ = [
    "LedgerLogExporter",
    "LedgerMetricExporter",
    "LedgerSpanExporter",
    "LedgerSpanProcessor",
    "read_logs",
    "read_spans",
    "replay",
]

_HOMES = {
    "LedgerLogExporter": "exporting",
    "LedgerMetricExporter": "metrics",
    "LedgerSpanExporter": "exporting",
    "LedgerSpanProcessor": "processing",
    "read_logs": "rebuilding",
    "read_spans": "rebuilding",
    "replay": "replaying",
}


def __getattr__(name: str) -> Any:
    module = _HOMES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value
