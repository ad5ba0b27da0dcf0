"""The thread that has checkpoints made while a ledger is open, beside the thread that writes batches (format, 5)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from otledger.errors import LedgerClosed, LedgerError, LockTimeout
from otledger.journal import Journal
from otledger.sealing import Broken

T = TypeVar("T")

LEAST_PAUSE = 0.05
"""Seconds between two checkpoints, however few are asked for."""


class Notary:
    """A daemon thread over one journal. `report` gets the errors that keep it from signing, each once in a row."""

    def __init__(self, journal: Journal, report: Callable[[BaseException], None]) -> None:
        self._journal = journal
        self._report = report
        self._news = threading.Event()
        self._stopped = threading.Event()
        self._last_error = ""
        journal.sealed_apart = True
        threading.Thread(target=self._run, name=f"otledger-seal-{journal.config.machine}", daemon=True).start()

    def wake(self) -> None:
        """Say that a batch was written."""
        if not self._news.is_set():
            self._news.set()

    def stop(self) -> None:
        """Have the thread end, without waiting for it."""
        self._stopped.set()
        self._news.set()

    def _run(self) -> None:
        waiting, left = False, self._journal.config.heartbeat_interval
        segment = self._attempt(self._seal_segments, "")
        while True:
            pause = max(LEAST_PAUSE, self._journal.config.checkpoint_interval)
            news = self._news.wait(pause if waiting else left or None)
            if news and not waiting:
                # What comes in this time has one checkpoint.
                self._stopped.wait(pause)
            if self._stopped.is_set():
                return
            self._news.clear()
            if news or waiting:
                waiting = self._attempt(self._checkpoint, False)
            else:
                left = self._attempt(self._journal.beat, left)
            if self._journal.segment != segment:
                segment = self._attempt(self._seal_segments, segment)

    def _checkpoint(self) -> bool:
        """Have a checkpoint computed; give whether it waits for a batch that takes it along."""
        waiting = self._journal.prepare_checkpoint()
        if waiting and not self._news.is_set():
            # No batch comes that would.
            self._journal.write_checkpoint()
            return False
        return waiting

    def _seal_segments(self) -> str:
        segment = self._journal.segment
        self._journal.seal_segments()
        return segment

    def _attempt(self, call: Callable[[], T], otherwise: T) -> T:
        try:
            return call()
        except (LedgerClosed, LockTimeout):
            pass
        except Broken as error:
            # To try again would read everything again. Batches bring checkpoints of their own from now on.
            self._journal.sealed_apart = False
            self._stopped.set()
            self._report(error)
        except (LedgerError, OSError) as error:
            if str(error) != self._last_error:
                self._report(error)
            self._last_error = str(error)
        return otherwise
