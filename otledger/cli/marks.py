"""What stands in place of a payload that cannot be read: whether its key was destroyed, or only is not here."""

from __future__ import annotations

from pathlib import Path

from otledger.errors import LedgerError
from otledger.reader import Reader
from otledger.record import Record

SHREDDED, ENCRYPTED = "[shredded]", "[encrypted]"


class Marks:
    """Tells which keys the ledger under `root` says were destroyed. Reads it when it is first asked."""

    def __init__(self, root: Path | None) -> None:
        self._root = root
        self._kids: frozenset[str] | None = None

    def of(self, record: Record) -> str:
        """Give the mark for a record whose payload cannot be read."""
        if self._kids is None:
            try:
                self._kids = Reader(self._root).shredded(on_fault=lambda _: None) if self._root else frozenset()
            except LedgerError:
                self._kids = frozenset()
        return SHREDDED if record.kid in self._kids else ENCRYPTED
