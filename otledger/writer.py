"""The queue in front of a journal, and the thread that drains it.

Every writing, syncing and waiting for the lock happens in that thread, so that a disk that hangs delays nobody
but those who wait for it. All ledgers of a process on one root and machine share one writer.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import getpid
from typing import Any

from otledger.config import Config
from otledger.delivery import Outcome, Rooms, deliver, wake_rooms
from otledger.errors import JournalError, LedgerClosed, LedgerDamaged, LedgerError, LockTimeout, LowSpace, QueueFull
from otledger.journal import Ack, Batch, Journal, Resource, dumps
from otledger.notary import Notary
from otledger.record import format_time, now_ns
from otledger.segment import LOCK_FILE

log = logging.getLogger("otledger")

WAKE_BYTES = 256 << 10
"""So much in the queue is written at once: less would cost a turn of both threads for few records."""
BATCH_RECORDS = 8192
"""How many records one holding of the lock writes: other processes wait for it."""
LOW_WATER = 0.75
"""Who waits for a place in the queue goes on when it is filled to less than this."""
SPACE_INTERVAL = 1.0
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0
"""Seconds between two tries after a failed write: doubled from the first to the longest."""

_BUSY, _LINGERING, _IDLE = range(3)

StartPart = Callable[[], bytes]
"""Gives the part of the start record of a span."""


@dataclass(frozen=True, slots=True)
class Health:
    """How the ledger is. Counts are of records since this process opened it, sizes are bytes."""

    state: str
    """`ok`, `failing` (writes fail and are tried again), `blocked` (the disk or the lock hangs), `low space`,
    `closed`."""
    queued_records: int
    queued_bytes: int
    accepted: int
    written: int
    """At least with the operating system."""
    durable: int
    """As durable as configured."""
    dropped: int
    """Accepted or refused, and lost: written down as `otledger.gap`."""
    invalid: int
    """Stored, although the payload does not fit its schema."""
    errors: int
    """Errors of processors and of the journal."""
    last_error: str | None


@dataclass(slots=True)
class _Gap:
    count: int
    first: int
    last: int


class Writer:
    """Owns a journal, a bounded queue and a daemon thread, which is started by the first record."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.journal = Journal(config=config)
        self.invalid = 0
        self.errors = 0
        self.last_error: str | None = None
        self.listeners: list[Callable[[BaseException], None]] = []
        self.users = 0
        self._opened = False
        self._findings_told = 0
        self._reset()

    def _reset(self) -> None:
        """Have an empty queue and no thread: at the beginning, and in a forked child."""
        self._pid = os.getpid()
        # Appended to without a lock.
        self._parts: list[bytes] = []
        # Spans that began, and whose start is not recorded yet, by what identifies them.
        self._spans: dict[Any, StartPart] = {}
        self._bytes_in = 0
        # Re-entrant: a signal handler or a finalizer that logs into the ledger may interrupt who holds it.
        self._lock = threading.RLock()
        self._wake = threading.Condition(self._lock)
        self._opening = threading.Lock()
        self._thread: threading.Thread | None = None
        # Owned by _lock from here on.
        self._waiters: list[tuple[int, str, Any]] = []
        self._resources: dict[str, Resource] = {}
        self._passing: dict[str, Resource] = {}
        self._room: Rooms = []
        self._gaps: dict[str, _Gap] = {}
        self._asleep = _IDLE
        self._rousing: asyncio.AbstractEventLoop | None = None
        self._closing = False
        self._closed = False
        self._bytes_out = 0
        self._set_in_flight(0, 0)
        self.full = False
        """No place for another record, or new ones are refused."""
        self._notary: Notary | None = None
        self._telling = threading.Lock()
        # Owned by the thread, read by others.
        self._retry: Batch | None = None
        self._failing = False
        self._pause = FIRST_PAUSE
        self._current: list[tuple[int, str, Any]] = []
        self._watch: threading.Thread | None = None
        self._refusing: LowSpace | None = None
        self._space_checked = 0.0
        self._sync_at = time.monotonic() + self.config.sync_interval
        self._unsynced = False
        self._busy_since = 0.0
        self._taken = self._written = self._durable = self._dropped = 0

    # For callers, from any thread

    def open(self) -> None:
        """Open the journal now, for its errors. Those of a disk that may recover are only noted."""
        with self._opening:
            if self._opened:
                return
            try:
                self.journal.open()
            except JournalError as error:
                if self.config.strict:
                    raise
                self._note(error)
            self._check_space()
            self._opened = True

    def put(self, part: bytes) -> None:
        """Queue a part. Raises `LedgerClosed`."""
        # No lock: it would cost more than all the rest. A list's append is atomic, and the thread looks at the
        # list once more after saying that it sleeps or ends.
        parts = self._parts
        parts.append(part)
        # Two threads at the same time may count one part only; `_take` puts that right.
        self._bytes_in = size = self._bytes_in + len(part)
        if size >= self._full_at or len(parts) >= self._records_left:
            self.full = True
        asleep = self._asleep
        if self._closed or (asleep and (asleep == _IDLE or size >= self._wake_at or self._pid != getpid())):
            with self._lock:
                self._refuse_if_closed(part)
                self._rouse()

    def put_awaited(self, part: bytes, waiter: Any, id: str, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Queue a part whose `waiter` gets a `Receipt` or an error. Raises `LedgerClosed`.

        `loop` is that of a waiter that belongs to one: it is written when the tasks that are ready have run.
        """
        with self._lock:
            if self._closed:
                raise self._closed_for_new()
            parts = self._parts
            parts.append(part)
            self._bytes_in += len(part)
            if self._bytes_in >= self._full_at or len(parts) >= self._records_left:
                self.full = True
            at = len(parts) - 1
            while parts[at] is not part:
                # Another thread has queued one since.
                at -= 1
            self._waiters.append((at, id, waiter))
            if loop is None:
                self._rouse()
            elif self._rousing is not loop:
                # Other tasks that are ready now append as well: one batch for all, and one waking.
                self._rousing = loop
                loop.call_soon(self._rouse_from_loop)

    def _rouse_from_loop(self) -> None:
        with self._lock:
            self._rousing = None
            self._rouse()

    def _refuse_if_closed(self, part: bytes) -> None:
        """Under _lock: take a part back that came too late."""
        if not self._closed:
            return
        for at, other in enumerate(self._parts):
            if other is part:
                del self._parts[at]
                raise self._closed_for_new()

    def _closed_for_new(self) -> LedgerClosed:
        return LedgerClosed(f"the ledger {self.config.root} is closed: nothing more is accepted")

    def put_span(self, key: Any, start: StartPart) -> None:
        """Have the start of a span recorded if it is still open when the next batch is written."""
        if self._closed:
            raise self._closed_for_new()
        if len(self._spans) >= self.config.queue_records:
            # The disk hangs; the end record stands alone.
            return
        # No lock: a dict's item is set in one step, and the thread looks at it after saying that it sleeps.
        self._spans[key] = start
        if self._asleep == _IDLE:
            with self._lock:
                self._rouse()

    def end_span(self, key: Any) -> None:
        """Have no start recorded of a span that has ended."""
        self._spans.pop(key, None)

    def use(self, resource: Resource) -> None:
        """Have `resource` stored in each segment before what is queued from now on."""
        with self._lock:
            self._resources[resource.digest] = resource

    def put_all(self, parts: Sequence[bytes], resources: Iterable[Resource]) -> None:
        """Queue parts, and have the resources that they name stored before them. Raises `LedgerClosed`.

        The resources are forgotten when the queue is empty: for those who take in what others made, of which there
        may be no end.
        """
        with self._lock:
            if self._closed:
                raise self._closed_for_new()
            self._passing.update((resource.digest, resource) for resource in resources)
            self._parts.extend(parts)
            self._bytes_in += sum(map(len, parts))
            if self._bytes_in >= self._full_at or len(self._parts) >= self._records_left:
                self.full = True
            self._rouse()

    def wait_for_all(self, waiter: Any) -> None:
        """Have `waiter` get None when everything queued so far is durable, or the error that keeps it."""
        if self._pid != getpid():
            self.after_fork()
        with self._lock:
            if self._closed or not (self._parts or self._spans or self._gaps or self._in_flight_records or self._retry):
                waiter.set_result(None)
                return
            self._waiters.append((len(self._parts) - 1, "", waiter))
            self._rouse()

    def wait_for_room(self) -> asyncio.Future[None]:
        """Give a future of the running loop that is done when the queue has a place again."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if self.full and not self._closed:
                self._room.append((loop, future))
                self._rouse()
            else:
                future.set_result(None)
        return future

    def block_for_room(self, timeout: float) -> None:
        """Wait, in a thread without a loop, until the queue has a place again. Raises `QueueFull`."""
        deadline = time.monotonic() + timeout
        while self.full and not self._closed and self._refusing is None:
            if time.monotonic() >= deadline:
                raise self.queue_full(timeout)
            with self._lock:
                self._rouse()
            time.sleep(0.001)

    def refuse(self) -> None:
        """Raise `LowSpace`, and count the event, while there is too little space."""
        error = self._refusing
        if error is not None:
            self.drop("little space")
            raise error

    def raise_failure(self) -> None:
        """Raise the journal's error while writing fails, for who asked for that."""
        if self._failing and self.config.raise_errors and self.last_error is not None:
            raise JournalError(self.last_error)

    @property
    def refusing(self) -> bool:
        """Whether there is too little space for new events."""
        return self._refusing is not None

    def queue_full(self, waited: float) -> QueueFull:
        """Give the error for a caller who waited `waited` seconds for a place."""
        health = self.health()
        why = (
            self._why_blocked()
            or (health.last_error if self._failing else None)
            or "the disk is slower than the events"
        )
        return QueueFull(
            f"the queue is full ({health.queued_records:,} records, {health.queued_bytes:,} bytes), and had no place"
            f" for {waited:g} s: {why}; see queue_records, queue_bytes, queue_policy"
        )

    def drop(self, reason: str, count: int = 1) -> None:
        """Count records that are lost; an `otledger.gap` record says so."""
        now = now_ns()
        with self._lock:
            gap = self._gaps.setdefault(reason, _Gap(0, now, now))
            gap.count += count
            gap.last = now
            self._dropped += count
            if self._asleep == _IDLE:
                self._rouse()

    def health(self) -> Health:
        """Give how the writer is at this moment."""
        state = "ok"
        if self._closed:
            state = "closed"
        elif self._why_blocked():
            state = "blocked"
        elif self._failing:
            state = "failing"
        elif self._refusing:
            state = "low space"
        with self._lock:
            return Health(
                state=state,
                queued_records=len(self._parts) + self._in_flight_records,
                queued_bytes=self._bytes_in - self._bytes_out + self._in_flight_bytes,
                accepted=self._taken + len(self._parts),
                written=self._written,
                durable=self._durable,
                dropped=self._dropped,
                invalid=self.invalid,
                errors=self.errors,
                last_error=self.last_error,
            )

    def drain(self, timeout: float) -> int:
        """Write what is queued, for at most `timeout` seconds. Gives how many records were left."""
        waiter: concurrent.futures.Future[None] = concurrent.futures.Future()
        self.wait_for_all(waiter)
        # Whatever keeps it from being written: it stays queued.
        with suppress(Exception):
            waiter.result(timeout)
            return 0
        return self.health().queued_records

    def close(self, timeout: float) -> int:
        """Write what is queued, for at most `timeout` seconds, and close. Gives how many records were left."""
        if self._pid != getpid():
            self.after_fork()
        with self._lock:
            if self._closed:
                return 0
            self._closing = True
            if self._thread is None and self._parts:
                # The loop that was to wake it has not come to that.
                self._start()
            thread = self._thread
            if thread is not None:
                self._wake.notify()
        if thread is None:
            self.journal.close()
        else:
            thread.join(timeout)
        with self._lock:
            self._closed = True
            left = len(self._parts) + self._in_flight_records
            left_waiting = [*self._current, *self._waiters]
            waiters: list[tuple[Any, Outcome]] = [(waiter, self._closed_error()) for _, _, waiter in left_waiting]
            self._waiters = []
            rooms, self._room = self._room, []
        deliver(waiters)
        wake_rooms(rooms)
        if left:
            log.critical("%s: closed with %d records unwritten: %s", self.journal.path, left, self.last_error)
        return left

    def _closed_error(self) -> LedgerClosed:
        return LedgerClosed("the ledger was closed before this record was written")

    def after_fork(self) -> None:
        """Have, in a forked child, a queue, a lock and descriptors of its own, and no record of the parent."""
        closed = self._closed
        self.journal.after_fork()
        self._reset()
        self._closed = closed

    # The thread

    def _rouse(self) -> None:
        """Under _lock: have the thread look at the queue, started if need be."""
        if self._thread is None or self._pid != os.getpid():
            self._start()
        elif self._asleep:
            # Once: until the thread runs again, nobody else need wake it.
            self._asleep = _BUSY
            self._wake.notify()

    def _start(self) -> None:
        if self._pid != os.getpid():
            # A fork that ran no hooks: the lock is held by this very thread, the queue is the parent's.
            last, waiters = self._parts[-1:], self._waiters[-1:]
            self.journal.after_fork()
            lock, resources = self._lock, self._resources
            self._reset()
            # A condition of its own: on the parent's, the parent's thread still waits.
            self._lock, self._wake, self._resources = lock, threading.Condition(lock), resources
            self._parts = last
            self._bytes_in = sum(map(len, last))
            self._waiters = [(0, id, waiter) for _, id, waiter in waiters]
        self._asleep = _BUSY
        self._thread = threading.Thread(target=self._run, name=f"otledger-{self.config.machine}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            with self._lock:
                batch, waiters, spans = self._next()
                if batch is None:
                    break
            self._process(batch, waiters, spans)
        if self._notary is not None:
            self._notary.stop()
        self.journal.close()
        self._tell_findings()

    def _next(self) -> tuple[Batch | None, list[tuple[int, str, Any]], list[StartPart]]:
        """Under _lock: wait for work, and take it off the queue. No batch: the end."""
        while not (self._parts or self._spans or self._gaps or self._waiters or self._retry):
            if self._closing:
                # What was queued before this is seen; what comes later sees it, and is refused.
                self._closed = True
                if not self._parts:
                    return None, [], []
                self._closed = False
                break
            if self.full:
                # Set by who looked at the queue just before it was taken.
                wake_rooms(self._update_full())
            self._asleep = _IDLE
            woken = bool(self._parts or self._spans) or self._wake.wait(self._idle_time())
            self._asleep = _BUSY
            if not woken:
                return Batch((), {}), [], []
        if self._retry is not None:
            self._sleep(min(self._pause, 0.2) if self._closing else self._pause)
        if self._closed:
            return None, [], []
        if self._retry is not None:
            return self._retry, [], []
        deadline = time.monotonic() + self.config.flush_interval
        while not (self._waiters or self._bytes_in >= self._wake_at or self._closing or self._room):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._asleep = _LINGERING
            if self._bytes_in < self._wake_at:
                self._wake.wait(left)
            self._asleep = _BUSY
        return self._take()

    def _sleep(self, seconds: float) -> None:
        self._asleep = _LINGERING
        self._wake.wait(seconds)
        self._asleep = _BUSY

    def _idle_time(self) -> float | None:
        if self._refusing is not None:
            return SPACE_INTERVAL
        return max(0.0, self._sync_at - time.monotonic()) if self._unsynced else None

    def _take(self) -> tuple[Batch, list[tuple[int, str, Any]], list[StartPart]]:
        spans = self._take_spans()
        gaps, self._gaps = self._gaps, {}
        own = [self._gap_part(reason, gap) for reason, gap in gaps.items()]
        taken = self._parts[:BATCH_RECORDS]
        del self._parts[:BATCH_RECORDS]
        # A waiter at -1 waits for all before it, when there was nothing of its own kind left.
        now = [(at, id, waiter) for at, id, waiter in self._waiters if at < len(taken)]
        self._waiters = [(at - len(taken), id, waiter) for at, id, waiter in self._waiters if at >= len(taken)]
        size = sum(map(len, taken))
        self._bytes_out = self._bytes_out + size if self._parts else self._bytes_in
        self._taken += len(own) + len(taken)
        self._set_in_flight(len(taken), size)
        resources = {**self._passing, **self._resources}
        if not self._parts:
            self._passing = {}
        return Batch([*own, *taken], resources), [(at + len(own), id, w) for at, id, w in now], spans

    def _take_spans(self) -> list[StartPart]:
        spans = self._spans
        # Each is its owner's until it is taken: it may end at this moment.
        taken = [spans.pop(key, None) for key in list(spans)]
        return [start for start in taken if start is not None]

    def _set_in_flight(self, records: int, size: int) -> None:
        """Note what was taken off the queue and is not written yet: it counts as queued."""
        self._in_flight_records, self._in_flight_bytes = records, size
        self._records_left = self.config.queue_records - records
        self._full_at = self._bytes_out + self.config.queue_bytes - size
        self._wake_at = self._bytes_out + WAKE_BYTES

    def _gap_part(self, reason: str, gap: _Gap) -> bytes:
        data = {
            "count": gap.count,
            "reason": reason,
            "first": format_time(gap.first),
            "last": format_time(gap.last),
        }
        return self.journal.encoder.telemetry("otledger.gap", now_ns(), dumps(data))

    def _process(self, batch: Batch, waiters: list[tuple[int, str, Any]], spans: list[StartPart]) -> None:
        starts = self._start_parts(spans)
        if starts:
            self._taken += len(starts)
            with self._lock:
                # Also those that a start was the first to name, after the batch was taken.
                resources = {**batch.resources, **self._resources}
            batch = Batch([*starts, *batch.parts], resources)
            waiters = [(at + len(starts), id, waiter) for at, id, waiter in waiters]
        if time.monotonic() - self._space_checked >= SPACE_INTERVAL:
            self._check_space()
        self._busy_since = time.monotonic()
        self._current = waiters
        error: BaseException | None = None
        ack: Ack | None = None
        try:
            if batch.parts:
                ack = self.journal.write(batch, on_wait=self._watch_lock)
                if self._notary is None:
                    self._notary = Notary(self.journal, self.report, self._tell_findings)
                self._notary.wake()
                error = ack.error
                self._unsynced = self.config.durability == "os"
            self._sync_if_due()
        except Exception as problem:  # Whatever it is, the records stay queued and the thread goes on.
            error = problem
        self._busy_since = 0.0
        self._current = []
        self._tell_findings()
        self._settle(batch, ack, error, waiters)

    def _tell_findings(self) -> None:
        """Tell the listeners of damage and forks that the journal met. It has logged them."""
        with self._telling:
            untold = self.journal.findings[self._findings_told :]
            self._findings_told += len(untold)
        for finding in untold:
            if finding.kind != "residue":
                self.report(LedgerDamaged(f"{self.journal.path}: {finding}; run: otledger verify"))

    def _start_parts(self, spans: list[StartPart]) -> list[bytes]:
        parts = []
        for start in spans:
            try:
                parts.append(start())
            except Exception as error:  # One span's oddity must not stop the writer.
                self.report(error)
        return parts

    def _watch_lock(self) -> None:
        """Called before this thread blocks on the lock: have somebody tell those who wait if it takes long."""
        if self._watch is None:
            self._watch = threading.Thread(target=self._run_watch, name="otledger-watch", daemon=True)
            self._watch.start()

    def _run_watch(self) -> None:
        limit = self.config.lock_timeout
        try:
            while since := self._busy_since:
                if time.monotonic() - since > limit:
                    self._lock_timed_out(since)
                time.sleep(max(0.05, limit / 4))
        finally:
            self._watch = None

    def _lock_timed_out(self, since: float) -> None:
        why = self._why_blocked()
        if why is None or not self.journal.waits_for_lock():
            return
        error = LockTimeout(f"{why}; the lock is never broken: see what that process does, or end it")
        with self._lock:
            waiters = [*self._current, *self._waiters]
            self._waiters = []
        deliver([(waiter, error) for _, _, waiter in waiters])
        self._note(error)
        if self._busy_since != since and self.last_error == str(error):
            # The thread went on meanwhile, and has said so before this.
            self._recovered()

    def _sync_if_due(self) -> None:
        if self._unsynced and time.monotonic() >= self._sync_at:
            interval = self.config.sync_interval
            # Where it fails it is tried again after a pause, like a write.
            self._sync_at = time.monotonic() + max(interval, self._pause)
            self.journal.sync()
            self._unsynced = False
            self._sync_at = time.monotonic() + interval

    def _settle(
        self, batch: Batch, ack: Ack | None, error: BaseException | None, waiters: list[tuple[int, str, Any]]
    ) -> None:
        """Tell those who wait, and keep what was not written for the next try."""
        count = ack.count if ack is not None else 0
        outcomes: list[tuple[Any, Outcome]] = []
        for at, id, waiter in waiters:
            if at >= count and error is not None:
                outcomes.append((waiter, error))
            elif not id or ack is None:
                outcomes.append((waiter, None))
            else:
                outcomes.append((waiter, ack.receipt(at, id)))
        rest = batch.parts[count:]
        if error is None:
            self._recovered()
        else:
            self._note(error)
        with self._lock:
            if rest and error is not None:
                # What came meanwhile stands behind it. Where only a sync failed, it is tried at once.
                outcomes += [(waiter, error) for _, _, waiter in self._waiters]
                self._waiters = []
            self._written += count
            self._durable += count
            self._retry = Batch(rest, batch.resources) if rest else None
            self._set_in_flight(len(rest), sum(map(len, rest)))
            rooms = self._update_full()
        deliver(outcomes)
        wake_rooms(rooms)

    def _update_full(self) -> Rooms:
        """Under _lock: see whether there is room again. Gives those who are to look: for room, or why there is none."""
        config = self.config
        roomy = (
            len(self._parts) + self._in_flight_records < config.queue_records * LOW_WATER
            and self._bytes_in - self._bytes_out + self._in_flight_bytes < config.queue_bytes * LOW_WATER
        )
        refused = self._refusing is not None or (self._failing and config.raise_errors)
        if refused:
            self.full = True
        elif roomy:
            self.full = False
        if self.full and not refused:
            return []
        rooms, self._room = self._room, []
        return rooms

    def _recovered(self) -> None:
        if self._failing:
            self._say(logging.WARNING, "%s: writing succeeds again", self.journal.path)
        self._failing = False
        self._pause = FIRST_PAUSE

    def _note(self, error: BaseException) -> None:
        """Count an error and tell the listeners; log the first of a series."""
        again = self._failing and str(error) == self.last_error
        if self.config.raise_errors:
            # Before anybody can see that it fails: from then on events are refused.
            self.full = True
        self._failing = True
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        if not again:
            known = isinstance(error, LedgerError)
            self._say(logging.CRITICAL, "%s", error, exc_info=None if known else error)
        self.report(error)

    def _say(self, level: int, message: str, *args: object, exc_info: Any = None) -> None:
        """Log from a thread that nobody waits for.

        The writer's own must not wait for a handler: whoever holds its lock may be recording in this very ledger.
        """
        if threading.current_thread() is self._thread:
            with suppress(RuntimeError):
                threading.Thread(target=log.log, args=(level, message, *args), kwargs={"exc_info": exc_info}).start()
                return
        # The interpreter ends, and starts no thread any more.
        log.log(level, message, *args, exc_info=exc_info)

    def report(self, error: BaseException) -> None:
        """Count an error, and tell the listeners."""
        self.errors += 1
        self.last_error = text_of(error) or type(error).__name__
        for listener in list(self.listeners):
            try:
                listener(error)
            except Exception:  # A listener's mistake must not stop the writer.
                log.exception("an on_error callback failed")

    def _why_blocked(self) -> str | None:
        since = self._busy_since
        seconds = time.monotonic() - since if since else 0.0
        if seconds < 1.0:
            return None
        holder = self.journal.lock_holder()
        if holder is not None and holder != os.getpid():
            return f"{self.journal.path / LOCK_FILE} has been held by process {holder} for {seconds:.1f} s"
        return f"the disk has not answered for {seconds:.1f} s"

    def _check_space(self) -> None:
        self._space_checked = time.monotonic()
        least = self.config.min_free
        if not least:
            return
        try:
            disk = os.statvfs(self.journal.root)
        except OSError:
            return
        free = disk.f_bavail * disk.f_frsize
        path = self.config.root
        if free < least:
            if self._refusing is None:
                self._say(logging.CRITICAL, "%s: %d bytes free, less than min_free: new events are refused", path, free)
            self._refusing = LowSpace(
                f"{path}: {free:,} bytes free, and min_free is {least:,}: the event was not accepted, and is counted;"
                " free some space, or set min_free"
            )
            self.full = True
        else:
            if self._refusing is None and free < 2 * least:
                self._say(logging.WARNING, "%s: %d bytes free; below %d new events are refused", path, free, least)
            if self._refusing is not None:
                self._refusing = None
                with self._lock:
                    rooms = self._update_full()
                wake_rooms(rooms)


def text_of(error: BaseException) -> str:
    """Give an error's text, whatever its class makes of that."""
    try:
        return str(error)
    except Exception:
        return ""
