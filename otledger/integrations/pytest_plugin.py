"""Fixtures for pytest: an open ledger in memory, and its records read back.

Nothing of otledger is loaded before a test asks for a fixture.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from otledger.ledger import Ledger, SyncLedger
    from otledger.record import Record

MEMORY = Path("/dev/shm")
MACHINE = "test"
SERVICE = "pytest"

_TIMEOUT = 30.0
"""Seconds for what is queued to be written."""


@pytest.fixture
def otledger_root(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The root of the test's ledgers: a folder in memory where there is /dev/shm, else in `tmp_path`."""
    if not os.access(MEMORY, os.W_OK | os.X_OK):
        yield request.getfixturevalue("tmp_path") / "ledger"
        return
    folder = Path(tempfile.mkdtemp(prefix="otledger-pytest-", dir=MEMORY))
    yield folder / "ledger"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def otledger_ledger(otledger_root: Path) -> Iterator[Ledger]:
    """An open ledger for asyncio, whichever plugin runs the test. It is closed after the test."""
    from otledger.ledger import open

    ledger = open(otledger_root, **_settings())
    # Without a loop: which one there will be is the affair of the test's plugin.
    ledger.startup_report = ledger._core.open()
    yield ledger
    ledger._core.close(_TIMEOUT)


@pytest.fixture
def sync_ledger(otledger_root: Path) -> Iterator[SyncLedger]:
    """An open ledger without asyncio, on the same root. It is closed after the test."""
    from otledger.ledger import open_sync

    ledger = open_sync(otledger_root, **_settings())
    yield ledger
    ledger.close(_TIMEOUT)


@pytest.fixture
def otledger_records(otledger_root: Path) -> Callable[..., list[Record]]:
    """Give the records of the test's ledgers: `otledger_records("order.*")`; without a pattern all but control records.

    What was accepted before the call is among them. Raises TimeoutError if it is not written in time.
    """

    def read(type: str | None = None) -> list[Record]:
        from otledger.filter import Filter
        from otledger.reader import Reader

        _write_all(otledger_root)
        if not otledger_root.exists():
            return []
        return list(Reader(otledger_root).records(Filter(type=type, control=type is not None)))

    return read


def _settings() -> dict[str, Any]:
    # A container's /dev/shm may have less in all than must be free elsewhere.
    return {"machine": MACHINE, "service": SERVICE, "min_free": 0}


def _write_all(root: Path) -> None:
    from otledger import writers

    for own in list(writers._writers.values()):
        if own.config.root == root and own.drain(_TIMEOUT):
            raise TimeoutError(f"not all records were written within {_TIMEOUT:g} s: {own.last_error}")
