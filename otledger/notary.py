"""The thread that has checkpoints made while a ledger is open, beside the thread that writes batches (format, 5)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from otledger.errors import LedgerClosed, LockTimeout
from otledger.journal import Journal
from otledger.sealing import Broken

T = TypeVar("T")

LEAST_PAUSE = 0.05
"""Seconds between two checkpoints, however few are asked for."""


class Notary:
    """A daemon thread over one journal.

    `report` gets the errors that keep it from signing, each once in a row; `tell` is called when there may be
    findings of the journal to tell.
    """

    def __init__(
        self, journal: Journal, report: Callable[[BaseException], None], tell: Callable[[], None] = lambda: None
    ) -> None:
        self._journal = journal
        self._report = report
        self._tell = tell
        self._news = threading.Event()
        self._stopped = threading.Event()
        self._last_errors: dict[str, str] = {}
        """Of what was tried the error that was told last, while it lasts."""
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
        config = self._journal.config
        pause = max(LEAST_PAUSE, config.checkpoint_interval)
        waiting, left = False, config.heartbeat_interval
        segment = self._attempt(self._seal_segments, "")
        while not self._stopped.is_set():
            if self._news.wait(pause if waiting else left or None):
                # What comes in this time has one checkpoint.
                self._stopped.wait(pause)
                if self._stopped.is_set():
                    return
                self._news.clear()
                waiting = self._attempt(self._journal.prepare_checkpoint, False)
            elif waiting:
                # No batch came that would have taken it along.
                waiting = self._attempt(self._write, False)
            else:
                left = self._attempt(self._journal.beat, left)
            if self._journal.segment != segment:
                segment = self._attempt(self._seal_segments, segment)

    def _write(self) -> bool:
        self._journal.write_checkpoint()
        return False

    def _seal_segments(self) -> str:
        segment = self._journal.segment
        return segment if self._journal.seal_segments() else ""

    def _attempt(self, call: Callable[[], T], otherwise: T) -> T:
        name = call.__name__
        try:
            done = call()
            self._tell()
        except (LedgerClosed, LockTimeout):
            return otherwise
        except Broken as error:
            # To try again would read everything again. Batches bring checkpoints of their own from now on.
            self._journal.sealed_apart = False
            self._stopped.set()
            self._report(error)
            return otherwise
        except Exception as error:  # Whatever it is, records are written, and the next checkpoint is tried.
            if str(error) != self._last_errors.get(name):
                self._report(error)
            self._last_errors[name] = str(error)
            return otherwise
        self._last_errors.pop(name, None)
        return done
