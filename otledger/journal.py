"""The locked writer of one machine's partition (format, 6): who may write when, and from where.

A batch is written under the lock, synced under the lock, and acknowledged only then. The journal has no
thread and no queue of its own: see writer.py. What is written is in partition.py, recovery in recovering.py; with
lock.py these are the only ones that write a partition's files.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from otledger import clock, record
from otledger.batch import check_line
from otledger.config import Config
from otledger.errors import LedgerClosed, LedgerError, RootError, SyncFailed
from otledger.handover import Ack, Batch, Receipt, Resource, dumps
from otledger.keys import check_keys_folder
from otledger.lock import State
from otledger.record import Draft
from otledger.recovering import Recovering
from otledger.recovery import Finding, Place
from otledger.sealing import SEALED_TYPE, Commit, Sealer
from otledger.segment import last_line

__all__ = ["Ack", "Batch", "Journal", "Receipt", "Resource", "dumps"]

log = logging.getLogger("otledger")

CLOSING = 1.0
"""Seconds that closing may take for the tree; what is not covered then has a checkpoint of its head alone."""


class Journal(Recovering):
    """Appends batches to one machine's partition, durable when `append` returns.

    Takes the settings of `Config` as keyword arguments. May be used by several threads and, over the lock, by
    several processes. Nothing is touched before the first use; `open` only reports errors earlier.

        with otledger.Journal("ledger", machine="m1") as journal:
            journal.append([Draft("order.placed", {"id": 7})])
    """

    def __init__(self, root: str | Path | None = None, *, config: Config | None = None, **settings: Any) -> None:
        super().__init__(config or Config.resolve(root=root, **settings))
        check_keys_folder(self.config.keys, self.root)
        self._sealer = Sealer(self.path, self.config.keys)
        self._refused = False
        self._mutex = threading.Lock()
        self._closed = False
        _journals.add(self)

    # Public

    def __enter__(self) -> Journal:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, *, timeout: float | None = None) -> None:
        """Make the partition's folder, take the lock once and recover what a crash left.

        `timeout` is how long to wait for the lock, `lock_timeout` by default. Raises `RootError`,
        `FormatError`, `LockTimeout`, `JournalError`.
        """
        with self._mutex, self._locked(self.config.lock_timeout if timeout is None else timeout):
            pass

    def append(self, drafts: Iterable[Draft], *, reserved: bool = False) -> list[Receipt]:
        """Append the drafts in one batch and give their receipts; they are durable as configured.

        Raises `EventRefused` before anything is written, `JournalError` if not all could be written: its
        `receipts` then has those that are durable, the first of the batch.
        """
        encoded = [self.encoder.draft(draft, record.now_ns(), reserved=reserved) for draft in drafts]
        ack = self.write(Batch([part for _, part in encoded], {}), timeout=self.config.lock_timeout)
        receipts = [ack.receipt(at, encoded[at][0]) for at in range(ack.count)]
        if ack.error is not None:
            ack.error.receipts = receipts
            raise ack.error
        return receipts

    def write(self, batch: Batch, *, timeout: float | None = None, on_wait: Callable[[], None] | None = None) -> Ack:
        """Append encoded parts. Gives an `Ack`; raises `JournalError` or `RootError` if nothing was written.

        Parts that are handed in again, after an error, are not written twice where another process has kept them.
        The `Ack` is of these alone then, and of what is behind them nothing is written yet.
        """
        with self._mutex, self._locked(timeout, on_wait):
            kept = self._kept_by_others(batch)
            if kept is not None:
                return kept
            self._cut_if_due()
            ack = self._put(batch)
            if ack.error is not None and isinstance(ack.error, SyncFailed):
                # The records are at hand: they go to the next segment, once; see _restart.
                self._restart()
                ack = self._put(batch)
                if isinstance(ack.error, SyncFailed):
                    raise ack.error
            return ack

    def sync(self) -> None:
        """Sync what was written at durability `os`. Raises `SyncFailed` if the next segment fails as well."""
        with self._mutex, self._locked(None):
            if self._name is None or self._state.synced == self._state.acked:
                return
            try:
                self._sync()
            except SyncFailed:
                self._restart()
                self._sync()

    def set_aside(self, name: str, data: bytes) -> str:
        """Keep bytes that cannot be appended in `quarantine/`, durable on return. Gives the file's name."""
        with self._mutex, self._locked(self.config.lock_timeout):
            return self._quarantine(name, lambda: [data])

    def close(self) -> None:
        """Write a checkpoint over what is new, and close the files. Safe to call twice."""
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            if self._dir_fd >= 0 and self._pid == os.getpid():
                try:
                    self._checkpoint_at_close()
                except (LedgerError, OSError) as error:
                    log.warning("%s: no checkpoint at close: %s", self.path, error)
            self._sealer.close()
            self._release_files()

    def waits_for_lock(self) -> bool:
        """Tell whether another process keeps this one from the partition's lock at this moment."""
        lock = self._lock
        return lock is not None and lock.waiting

    def lock_holder(self) -> int | None:
        """Give the process that holds the partition's lock, as far as the kernel tells."""
        lock = self._lock
        return lock.holder() if lock is not None else None

    def after_fork(self) -> None:
        """Drop, in a forked child, everything that belongs to the parent."""
        self._mutex = threading.Lock()
        self._drop_parents()

    def _drop_parents(self) -> None:
        self._sealer.after_fork()
        self.sealed_apart = False
        self._release_files()

    # Checkpoints with the tree

    def prepare_checkpoint(self) -> bool:
        """Compute a checkpoint over what is durable, as far as this process knows, for the next batch to take along.

        Gives whether there is one that waits. Does not take the lock. Raises what `Sealer.commit` raises.
        """
        with self._mutex:
            if self._closed:
                raise LedgerClosed(f"the journal of {self.path} is closed")
            if self._name is None or not self._something_new():
                return self._offered is not None
            state, ledger, adoptions = self._state, self._chain_id, self._adoptions
            durable = Place(self._name, state.synced, state.synced_seq, state.synced_head.encode())
            covered = state.checkpoint_size
        commit = self._sealer.commit(ledger, durable, covered=covered, again=False)
        with self._mutex:
            if commit is not None and not self._closed and self._adoptions == adoptions:
                self._note_refusal(commit)
                self._offered = commit
            return self._offered is not None

    def write_checkpoint(self) -> None:
        """Write the prepared checkpoint now, if one still waits."""
        with self._mutex, self._locked(self.config.lock_timeout):
            if self._offered is not None:
                self._put(Batch((), {}))

    def beat(self) -> float:
        """Write a checkpoint if the last is older than `heartbeat_interval`, though no records came.

        Gives the seconds until the next is due.
        """
        interval = self.config.heartbeat_interval
        with self._mutex, self._locked(self.config.lock_timeout):
            left = self._state.checkpoint + interval - clock.boot_ns() / 1e9
        if 0 < left <= interval:
            return left
        self.checkpoint()
        return interval

    def checkpoint(self) -> bool:
        """Write a checkpoint over everything with its tree, signed if the chain has a key; durable on return.

        False where another process is at it. Raises what `open` and `Sealer.commit` raise.
        """
        with self._mutex, self._locked(self.config.lock_timeout):
            self._settle_all()
            end, ledger, covered = self._here(), self._chain_id, self._state.checkpoint_size
            adoptions = self._adoptions
        commit = self._sealer.commit(ledger, end, covered=covered)
        if commit is None:
            return False
        with self._mutex, self._locked(self.config.lock_timeout):
            if self._adoptions != adoptions or not self._is_due(commit):
                return False
            self._note_refusal(commit)
            self._put_checkpoint(commit)
        return True

    def ledger_id(self) -> str:
        """Give the UUID of the partition's chain, which is begun if there is none."""
        with self._mutex, self._locked(self.config.lock_timeout):
            return self._chain_id

    def seal_segments(self) -> bool:
        """Write down the SHA-256 of closed segments that nobody has written down yet.

        False where another process is at it.
        """
        found = self._sealer.unsealed()
        for piece, digest in found or ():
            data = {"segment": str(piece.name), "size": piece.size, "sha256": digest}
            self.append([Draft(SEALED_TYPE, data)], reserved=True)
        return found is not None

    def _checkpoint_at_close(self) -> None:
        deadline = time.monotonic() + CLOSING
        left, failed = CLOSING, False
        while True:
            with self._locked(self.config.lock_timeout, closing=True):
                if self._name is None:
                    return
                self._settle_all()
                if not self._something_new():
                    return
                if failed or left <= 0:
                    self._put_checkpoint(None)
                    return
                end, ledger, covered = self._here(), self._chain_id, self._state.checkpoint_size
                adoptions = self._adoptions
            commit = None
            try:
                commit = self._sealer.commit(ledger, end, covered=covered, seconds=left)
            except (LedgerError, OSError) as error:
                log.warning("%s: the checkpoint at close is not signed: %s", self.path, error)
                failed = True
            with self._locked(self.config.lock_timeout, closing=True):
                if commit is not None and self._adoptions == adoptions and self._is_due(commit):
                    self._note_refusal(commit)
                    self._put_checkpoint(commit)
                    return
            # Others have come between, who close as well, or it takes too long.
            time.sleep(0.005)
            left = deadline - time.monotonic()

    def _note_refusal(self, commit: Commit) -> None:
        if commit.refusal is not None and not self._refused:
            self._refused = True
            at = commit.at
            self._report(Finding("damage", at.segment, at.offset, at.seq, commit.refusal))

    # The lock

    @contextlib.contextmanager
    def _locked(
        self, timeout: float | None, on_wait: Callable[[], None] | None = None, *, closing: bool = False
    ) -> Iterator[None]:
        if self._closed and not closing:
            raise LedgerClosed(f"the journal of {self.path} is closed")
        if self._pid != os.getpid():
            # A fork that ran no hooks.
            self._drop_parents()
        try:
            self._acquire(timeout, on_wait)
            try:
                self._cut_back()
                self._catch_up()
                yield
            finally:
                if self._lock is not None:
                    self._lock.release()
        except BaseException as error:
            # Whatever it was: the next to take the lock looks at the files again.
            self._name = None
            if isinstance(error, OSError) and not isinstance(error, RootError):
                raise self._explain(error) from error
            raise

    def _acquire(self, timeout: float | None, on_wait: Callable[[], None] | None) -> None:
        for attempt in range(2):
            if self._lock is None:
                self._open_folder()
            assert self._lock is not None
            try:
                self._lock.acquire(timeout, on_wait)
                return
            except FileNotFoundError:
                # The folder was replaced (a checkout, a restored copy): begin again from the root.
                self._release_files()
                if attempt:
                    raise

    # Where the partition ends

    def _catch_up(self) -> None:
        """Under the lock: know where the partition ends, and that it ends in whole records."""
        assert self._lock is not None
        state = self._lock.read()
        if state is not None and state.state == "idle" and self._name is not None and self._unchanged(state):
            return
        self._recover(state)

    def _unchanged(self, state: State) -> bool:
        """Tell whether the segment is the one we have open, and read on to what others appended."""
        if state.segment != str(self._name):
            return False
        try:
            there = os.stat(state.segment, dir_fd=self._dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        mine = os.fstat(self._fd)
        if (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino) or mine.st_size != state.acked:
            return False
        if state.acked != self._state.acked:
            tail = check_line(last_line(self._fd, state.acked)[1])
            if tail is None or tail.seq + 1 != state.seq or tail.checksum.decode() != state.head:
                return False
        self._state = state
        return True

    def _cut_if_due(self) -> None:
        assert self._name is not None
        month = clock.believed_month(self._state, record.now_ns(), clock.boot_ns())
        too_large = self._state.acked >= self.config.max_segment
        reason = "month" if month > self._name.month else "size"
        if too_large or reason == "month":
            self._final_checkpoint()
            if self._state.synced != self._state.acked:
                self._sync()
            self._start_segment(reason, self._here())


_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


def _after_fork() -> None:
    for journal in list(_journals):
        journal.after_fork()


os.register_at_fork(after_in_child=_after_fork)
