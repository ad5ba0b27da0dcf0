"""A partition as its writer has it open: where it ends, and all that makes it longer (format, 6).

Batches, syncs, checkpoints and segments. Everything here is done under the lock, which journal.py takes.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import uuid
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from otledger import clock, identity, record
from otledger.batch import MAX_SEQ, ZEROS, checksum_of, stamp, whole_lines, with_synced
from otledger.config import Config
from otledger.errors import DiskFull, FormatError, JournalError, SyncFailed
from otledger.folder import check_root, give_name, make_partition, set_mode, sync_folder, write_all
from otledger.handover import Ack, Batch, Resource, dumps
from otledger.lock import PartitionLock, State
from otledger.recovery import Finding, Place
from otledger.sealing import KEY_TYPE, Commit, keys_between
from otledger.segment import (
    CHECKPOINT_TYPE,
    FORMAT,
    HEADER_TYPE,
    LOCK_FILE,
    SegmentName,
    file_size,
    list_segments,
    open_segment,
    unfinished_name,
)
from otledger.version import VERSION

log = logging.getLogger("otledger")

GROUP = 256 << 10
"""Bytes of parts that are stamped and written at a time: larger blocks cross malloc's mmap threshold, and
shorter ones hold the interpreter lock no longer than a quarter of a millisecond."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


PATIENCE = 10
"""After so many intervals without a checkpoint from beside them the batches bring one of their own."""


@dataclass(frozen=True, slots=True)
class Uncut:
    """A batch that is in a segment, and is not to be there: it made it `end` bytes long, and it shall have `size`."""

    segment: str
    size: int
    end: int
    parts: Sequence[bytes]
    """Those of the batch whose lines are whole."""


class Partition:
    """The open files of one machine's partition, and the state that its segments are in.

    The lock is held in every call but `_forget` and `_release_files`.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        # Absolute: the program may change its working folder.
        self.root = config.root.absolute()
        self.path = self.root / config.machine
        self.findings: list[Finding] = []
        """What recovery found since this journal was made."""
        self.encoder = record.Encoder(config.machine, config.service)
        self.sealed_apart = False
        """Whether somebody has checkpoints made beside the batches, and offers them."""
        self._adoptions = 0
        """How often the files were looked at anew: what was computed before that may be about other records."""
        self._forget()

    def _forget(self) -> None:
        """Own nothing: no descriptor, no position."""
        self._pid = os.getpid()
        self._dir_fd = -1
        self._fd = -1
        self._lock: PartitionLock | None = None
        self._state = State()
        self._name: SegmentName | None = None
        self._chain_id = ""
        self._epoch = 0
        self._known: set[str] = set()
        self._own_failed: tuple[str, int] | None = None
        self._claim: int | None = None
        self._uncut: Uncut | None = None
        """What could be neither acknowledged nor cut off."""
        self._taken: Uncut | None = None
        """What another process took for written of it."""
        self._wrote = False
        self._rivals: set[str] = set()
        """Other hosts that wrote here since we did."""
        self._offered: Commit | None = None
        """A checkpoint that is to go with the next batch."""
        self._adoptions += 1
        self._replaced = 0.0, 0, -1
        """What the state said of checkpoints before the last one was made."""

    def _open_folder(self) -> None:
        config = self.config
        check_root(self.root, force=config.force)
        self._dir_fd = make_partition(self.root, config.machine, config.folder_mode)
        self._lock = PartitionLock(self._dir_fd, self.path, config.file_mode)

    @property
    def segment(self) -> str:
        """The segment that is appended to, as far as this process knows."""
        return self._state.segment

    def _release_files(self) -> None:
        if self._lock is not None:
            self._lock.close()
        for fd in (self._fd, self._dir_fd):
            if fd >= 0:
                os.close(fd)
        self._forget()

    def _explain(self, error: OSError) -> JournalError:
        what = f"{self.path}: {error.strerror or error}"
        if error.errno in NO_SPACE:
            return DiskFull(f"{what}; free some space: what was accepted stays queued until then", path=self.path)
        return JournalError(f"{what}; what was accepted stays queued and is tried again", path=self.path)

    # Segments

    def _start_segment(self, reason: str, previous: Place | None, again: Sequence[bytes] = ()) -> None:
        """Create the next segment with its header, durable with its name on return.

        `previous` is where its predecessor ends; everything up to there is durable. `again` are parts that the
        predecessor held beyond that: they become durable together with the header, or not at all. Only what is
        durable gets a segment's name: so none is there in part after a crash, and none whose sync has failed.
        """
        self._check_numbers(0 if previous is None else previous.seq, 1 + len(again))
        # A segment that was removed keeps its name: its successor says that it was there.
        taken = [*list_segments(self._dir_fd), *([previous.segment] if previous is not None else [])]
        month = clock.believed_month(self._state, record.now_ns(), clock.boot_ns())
        name = max(taken).next(month) if taken else SegmentName(month)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        unfinished = unfinished_name(identity.host_hash())
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished, dir_fd=self._dir_fd)
        fd = os.open(unfinished, flags, self.config.file_mode, dir_fd=self._dir_fd)
        self._fill_segment(fd, name, reason, previous, again, new=True)

    def _fill_segment(
        self,
        fd: int,
        name: SegmentName,
        reason: str,
        previous: Place | None,
        again: Sequence[bytes] = (),
        *,
        new: bool = False,
    ) -> None:
        called = unfinished_name(identity.host_hash()) if new else str(name)
        seq, prev = (previous.seq, previous.prev) if previous is not None else (0, ZEROS)
        if previous is None or not self._chain_id:
            self._chain_id = str(uuid.uuid4())
        data = {
            "format": FORMAT,
            "ledger": self._chain_id,
            "writer": f"otledger/{VERSION}",
            "host": identity.host_hash(),
            "boot": identity.boot_id(),
            "epoch": self._epoch + 1,
            "previous": None if previous is None else {"segment": str(previous.segment), "size": previous.offset},
            "reason": reason,
        }
        durable = min(seq, self._state.synced_seq, seq if self._claim is None else self._claim)
        header = with_synced(self.encoder.telemetry(HEADER_TYPE, record.now_ns(), dumps(data)), durable)
        block = stamp([header, *again], seq, prev)
        try:
            set_mode(fd, self.config.file_mode)
            write_all(fd, b"".join(block))
            if file_size(fd) < sum(map(len, block)):
                raise OSError(errno.EIO, "not all that was written is there")
            os.fsync(fd)
            if new:
                give_name(self._dir_fd, called, str(name))
                called = str(name)
                # Whoever looks at what the process has open shall not see a file that is deleted.
                named = open_segment(self._dir_fd, name, os.O_RDWR | os.O_APPEND, shown=self.path)
                os.close(fd)
                fd = named
            sync_folder(self._dir_fd)
        except OSError as error:
            os.close(fd)
            if error.errno in (*NO_SPACE, errno.EEXIST):
                if new:
                    # Nothing in it was acknowledged: without it the next try finds things as they were.
                    os.unlink(called, dir_fd=self._dir_fd)
                raise self._explain(error) from error
            self._publish("failed")
            raise SyncFailed(
                f"{self.path / str(name)}: the new segment could not be made durable: {error.strerror}",
                path=self.path / str(name),
            ) from error
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._name, self._known = fd, name, set()
        self._epoch += 1
        self._own_failed = None
        self._claim = None
        state = self._state
        if previous is None:
            # A chain's first checkpoint is worth writing when there is more than this header.
            state.checkpoint, state.checkpoint_size, state.checkpoint_seq = clock.boot_ns() / 1e9, 0, -1
        state.segment = str(name)
        state.acked = state.synced = sum(map(len, block))
        state.seq = state.synced_seq = seq + len(block)
        state.head = state.synced_head = checksum_of(block[-1]).decode()
        self._publish("idle")

    def _publish(self, state: str) -> None:
        assert self._lock is not None
        self._state.state = state  # type: ignore[assignment]
        clock.note(self._state, record.now_ns(), clock.boot_ns())
        self._lock.write(self._state)

    def _here(self) -> Place:
        assert self._name is not None
        return Place(self._name, self._state.acked, self._state.seq, self._state.head.encode() or ZEROS)

    def _check_numbers(self, seq: int, count: int) -> None:
        if seq + count - 1 > MAX_SEQ:
            raise FormatError(
                f"{self.path}: the next record would be number {seq:,}, and {MAX_SEQ:,} is the last: somebody wrote"
                " such a number into the ledger; see: otledger verify; then move the folder away",
                path=self.path,
                seq=seq,
            )

    # Batches

    def _put(self, batch: Batch) -> Ack:
        """Write a batch with what belongs before it, sync it if asked, acknowledge it in `.lock`."""
        own = self._own_parts(batch.resources)
        parts = [*own, *batch.parts]
        if not parts:
            return Ack(0, self._state.seq, self._state.segment, ())
        parts[0] = with_synced(parts[0], self._state.synced_seq)
        first = self._state.seq
        self._check_numbers(first, len(parts))
        lines_written, error = self._write_lines(parts)
        if self._state.checkpoint_seq >= first + len(lines_written):
            # It is not among them.
            self._state.checkpoint, self._state.checkpoint_size, self._state.checkpoint_seq = self._replaced
        if not lines_written:
            raise self._explain(error or OSError(errno.EIO, "nothing was written"))
        before = self._state.acked
        state = self._state
        state.acked += sum(map(len, lines_written))
        state.seq += len(lines_written)
        state.head = checksum_of(lines_written[-1]).decode()
        failure: JournalError | None = None if error is None else self._explain(error)
        try:
            if error is None:
                self._check_end()
            if self.config.durability == "disk":
                self._sync(acked_before=before)
            else:
                self._publish("idle")
        except SyncFailed as problem:
            failure = problem
            lines_written = []
        except OSError:
            # Not all of it is there, or `.lock` cannot be written: what another process would not know of must not
            # be there.
            left = batch.parts[: max(0, len(lines_written) - len(own))]
            self._uncut = Uncut(str(self._name), before, file_size(self._fd), left)
            self._cut_back()
            raise
        self._wrote = True
        count = max(0, len(lines_written) - len(own))
        if count or len(lines_written) >= len(own):
            self._known.update(batch.resources)
        return Ack(
            count,
            first + len(own),
            str(self._name),
            lines_written[len(own) :],
            failure,
        )

    def _put_own(self, type: str, data: Mapping[str, Any]) -> None:
        part = self.encoder.telemetry(type, record.now_ns(), dumps(data))
        ack = self._put(Batch([part], {}))
        if ack.error is not None:
            raise ack.error

    def _own_parts(self, resources: Mapping[str, Resource]) -> list[bytes]:
        now = record.now_ns()
        parts = self._checkpoint_parts(now)
        parts += [
            self.encoder.telemetry("otel.resource", now, resource.payload)
            for digest, resource in resources.items()
            if digest not in self._known
        ]
        return parts

    def _write_lines(self, parts: list[bytes]) -> tuple[list[bytes], OSError | None]:
        """Give the lines that stand whole in the file, and the error that kept the others out of it."""
        state = self._state
        seq, prev = state.seq, state.head.encode() or ZEROS
        written: list[bytes] = []
        ends = list(accumulate(map(len, parts)))
        at = 0
        while at < len(parts):
            end = bisect_right(ends, (ends[at - 1] if at else 0) + GROUP, at + 1)
            group = stamp(parts[at:end], seq, prev)
            done, error = _write_some(self._fd, b"".join(group))
            if error is not None:
                count, size = whole_lines([len(line) for line in group], done)
                written += group[:count]
                if size != done:
                    # If even this fails, the next to take the lock finds a torn tail and recovers.
                    with contextlib.suppress(OSError):
                        os.ftruncate(self._fd, state.acked + sum(map(len, written)))
                return written, error
            written += group
            seq += len(group)
            prev = checksum_of(group[-1])
            at = end
        return written, None

    def _check_end(self) -> None:
        """See whether our lines stand where they belong: a writer that takes no lock may have come between.

        Raises OSError where the file system has less than it said that it took.
        """
        end = os.lseek(self._fd, 0, os.SEEK_CUR)
        if end < self._state.acked:
            raise OSError(errno.EIO, f"{self._state.acked - end} bytes less are there than were written")
        if end != self._state.acked:
            foreign = end - self._state.acked
            log.critical("%s: somebody else wrote %d bytes while the lock was held", self.path, foreign)
            self._state.acked = end

    def _cut_back(self) -> None:
        """Cut off what a batch left that was not acknowledged, before anything else is done with the segment.

        Where somebody else has touched it since, it is theirs: they took it for a crash's, or for written.
        """
        if self._uncut is None:
            return
        assert self._lock is not None
        uncut, state = self._uncut, self._lock.read()
        with contextlib.suppress(FileNotFoundError):
            fd = open_segment(self._dir_fd, uncut.segment, os.O_RDWR, shown=self.path)
            try:
                # Who takes it for written says so in `.lock`, and need not write to the segment.
                if file_size(fd) == uncut.end and (
                    state is None or (state.segment, state.acked) == (uncut.segment, uncut.size)
                ):
                    os.ftruncate(fd, uncut.size)
                elif uncut.parts:
                    self._taken = uncut
            finally:
                os.close(fd)
        self._uncut = None

    def _sync(self, *, acked_before: int | None = None) -> None:
        """Make the segment durable up to its acknowledged end. After a failure it is never touched again."""
        state = self._state
        acked, seq, head = state.acked, state.seq, state.head
        if acked_before is not None:
            # Until the sync has succeeded, another process must not take these records for acknowledged.
            state.acked = acked_before
        self._publish("syncing")
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            assert self._name is not None
            self._own_failed = (str(self._name), state.acked)
            with contextlib.suppress(OSError):
                self._publish("failed")
            raise SyncFailed(
                f"{self.path / str(self._name)}: fdatasync failed: {error.strerror}; the records go to the next"
                " segment. Look at the disk (dmesg, smartctl)",
                path=self.path / str(self._name),
            ) from error
        state.acked = state.synced = acked
        state.seq = state.synced_seq = seq
        state.head = state.synced_head = head
        try:
            self._publish("idle")
        except OSError as error:
            if acked_before is not None:
                raise
            # Nothing is acknowledged by this: it costs the next to take the lock a new segment, and no record.
            log.warning("%s: %s cannot be written: %s", self.path, LOCK_FILE, error.strerror)

    # Checkpoints

    def _checkpoint_parts(self, now: int) -> list[bytes]:
        """Give the checkpoint that is offered, or one over everything durable, if one is due and something is new."""
        state = self._state
        since = clock.boot_ns() / 1e9 - state.checkpoint
        offered = self._offered
        if offered is not None and not self._is_due(offered):
            offered = self._offered = None
        # Somebody who makes them beside the batches may have died, or be far behind.
        interval = self.config.checkpoint_interval * (PATIENCE if self.sealed_apart and offered is None else 1)
        if 0 <= since < interval or not (offered or self._something_new()):
            return []
        self._offered = None
        return self._make_checkpoint(now, offered)

    def _something_new(self) -> bool:
        """Tell whether durable records other than the last checkpoint itself are not covered by it."""
        state = self._state
        uncovered = min(state.checkpoint_seq, state.synced_seq) > state.checkpoint_size
        return uncovered or state.synced_seq > state.checkpoint_seq + 1

    def _make_checkpoint(self, now: int, commit: Commit | None = None) -> list[bytes]:
        """Give the parts of a checkpoint: of what was computed, or of the head alone."""
        state = self._state
        if commit is None:
            assert self._name is not None
            end = Place(self._name, state.synced, state.synced_seq, state.synced_head.encode())
            commit = Commit(self._chain_id, end, {"size": state.synced_seq, "head": state.synced_head})
        keys = self._keys_due(commit)
        self._replaced = state.checkpoint, state.checkpoint_size, state.checkpoint_seq
        state.checkpoint, state.checkpoint_size = clock.boot_ns() / 1e9, commit.size
        state.checkpoint_seq = state.seq + len(keys)
        parts = [self.encoder.telemetry(KEY_TYPE, now, dumps(key)) for key in keys]
        return [*parts, self.encoder.telemetry(CHECKPOINT_TYPE, now, dumps(commit.checkpoint))]

    def _is_due(self, commit: Commit) -> bool:
        """Tell whether a commit that was computed without the lock may still be written.

        Not behind one of another process over as much: that is signed later, maybe by another key. And with a key's
        record only into the segment for which it was missed.
        """
        fits = not commit.keys or commit.at.segment == self._name
        return fits and commit.ledger == self._chain_id and commit.size > self._state.checkpoint_size

    def _keys_due(self, commit: Commit) -> list[dict[str, Any]]:
        """Give the beginnings of keys that nobody has written since the commit was computed."""
        if not commit.keys:
            return []
        written = keys_between(self._fd, commit.at.offset, self._state.acked)
        return [key for key in commit.keys if key not in written]

    def _settle_all(self) -> None:
        """Have everything that was written durable."""
        if self._state.synced != self._state.acked:
            self._sync()

    def _final_checkpoint(self) -> None:
        if self._name is None:
            return
        self._settle_all()
        if self._something_new():
            self._put_checkpoint(None)

    def _put_checkpoint(self, commit: Commit | None) -> None:
        """Write a checkpoint now, durable on return."""
        self._offered = None
        parts = self._make_checkpoint(record.now_ns(), commit)
        ack = self._put(Batch(parts, {}))
        if ack.error is not None:
            raise ack.error
        self._settle_all()


def _write_some(fd: int, data: bytes) -> tuple[int, OSError | None]:
    """Write all of `data`, going on after short writes. Gives how much was written, and the error if not all."""
    done = 0
    view = memoryview(data)
    while done < len(data):
        try:
            count = os.write(fd, view[done:] if done else data)
        except OSError as error:
            return done, error
        if count == 0:
            return done, OSError(errno.EIO, "nothing was written")
        done += count
    return done, None
