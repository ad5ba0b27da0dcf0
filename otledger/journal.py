"""The locked writer of one machine's partition (format, 6). With lock.py the only code that writes its files.

A batch is written under the lock, synced under the lock, and acknowledged only then. The journal has no
thread and no queue of its own: see writer.py.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import threading
import uuid
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec

from otledger import clock, values
from otledger.batch import (
    MAX_SEQ,
    ZEROS,
    Tail,
    caller_part,
    check_line,
    checksum_of,
    has_type,
    stamp,
    whole_lines,
    with_synced,
)
from otledger.config import Config
from otledger.errors import DiskFull, FormatError, JournalError, LedgerClosed, LedgerError, RootError, SyncFailed
from otledger.folder import check_root, give_name, make_partition, sync_folder, write_all
from otledger.identity import boot_id, host_hash
from otledger.lock import PartitionLock, State
from otledger.quarantine import RECOVERY_TYPE, forgotten
from otledger.record import Draft, Encoder, now_ns
from otledger.recovery import Finding, Place, find_rival, inspect, is_synced_end, way_on
from otledger.segment import (
    CHECKPOINT_TYPE,
    FORMAT,
    HEADER_TYPE,
    LOCK_FILE,
    QUARANTINE,
    Chain,
    ChainCheck,
    Header,
    SegmentName,
    blocks,
    control_data,
    file_size,
    is_foreign,
    last_line,
    lines,
    list_segments,
    open_segment,
    read_chain,
    unfinished_name,
)
from otledger.version import VERSION

log = logging.getLogger("otledger")

GROUP = 256 << 10
"""Bytes of parts that are stamped and written at a time: larger blocks cross malloc's mmap threshold, and
shorter ones hold the interpreter lock no longer than a quarter of a millisecond."""

_DIGEST = re.compile(rb'"(?:resource|scope)":"([0-9a-f]{32})"')
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Receipt(msgspec.Struct, frozen=True):
    """What an append that is durable returns.

    At durability `os`, `seq` and `checksum` are provisional until the next sync (format, 6).
    """

    id: str
    seq: int
    checksum: str
    segment: str


@dataclass(frozen=True, slots=True)
class Resource:
    """An OpenTelemetry resource or scope, stored once a segment before its first use (format, 4)."""

    digest: str
    payload: str
    """The record's `data`, as JSON."""

    @classmethod
    def make(
        cls,
        kind: str,
        attributes: bytes,
        *,
        name: str | None = None,
        version: str | None = None,
        schema_url: str | None = None,
        dropped: int = 0,
    ) -> Resource:
        """Give the resource with its digest; `attributes` are a JSON object."""
        texts = f'"kind":{dumps(kind)},"name":{dumps(name)},"version":{dumps(version)}'
        members = f'{texts},"schema_url":{dumps(schema_url)},"attributes":{attributes.decode()},"dropped":{dropped}}}'
        digest = hashlib.sha256(b"{" + members.encode()).hexdigest()[:32]
        return cls(digest, f'{{"digest":"{digest}",{members}')


def dumps(value: Any) -> str:
    """Give JSON text of what otledger itself says, or of a payload."""
    return values.encode(value).decode()


@dataclass(slots=True)
class Batch:
    """What one holding of the lock writes: parts (see batch.py), and the resources that they name."""

    parts: Sequence[bytes]
    resources: Mapping[str, Resource]


@dataclass(frozen=True, slots=True)
class Ack:
    """How many parts of a batch are as durable as was asked, and where. `error` says why not all."""

    count: int
    first_seq: int
    segment: str
    lines: Sequence[bytes]
    error: JournalError | None = None

    def receipt(self, at: int, id: str) -> Receipt:
        """Give the receipt of the part at this place of the batch."""
        checksum = f"sha256:{checksum_of(self.lines[at]).decode()}"
        return Receipt(id, self.first_seq + at, checksum, self.segment)


class Journal:
    """Appends batches to one machine's partition, durable when `append` returns.

    Takes the settings of `Config` as keyword arguments. May be used by several threads and, over the lock, by
    several processes. Nothing is touched before the first use; `open` only reports errors earlier.

        with otledger.Journal("ledger", machine="m1") as journal:
            journal.append([Draft("order.placed", {"id": 7})])
    """

    def __init__(self, root: str | Path | None = None, *, config: Config | None = None, **settings: Any) -> None:
        self.config = config or Config.resolve(root=root, **settings)
        # Absolute: the program may change its working folder.
        self.root = self.config.root.absolute()
        self.path = self.root / self.config.machine
        self.findings: list[Finding] = []
        """What recovery found since this journal was made."""
        self.encoder = Encoder(self.config.machine, self.config.service)
        self._mutex = threading.Lock()
        self._closed = False
        self._forget()
        _journals.add(self)

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
        self._uncut: tuple[str, int, int] | None = None
        """Segment, size to cut it to, and size that it had, where a cut has failed."""
        self._wrote = False
        self._rivals: set[str] = set()
        """Other hosts that wrote here since we did."""

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
        encoded = [self.encoder.draft(draft, now_ns(), reserved=reserved) for draft in drafts]
        ack = self.write(Batch([part for _, part in encoded], {}), timeout=self.config.lock_timeout)
        receipts = [ack.receipt(at, encoded[at][0]) for at in range(ack.count)]
        if ack.error is not None:
            ack.error.receipts = receipts
            raise ack.error
        return receipts

    def write(self, batch: Batch, *, timeout: float | None = None, on_wait: Callable[[], None] | None = None) -> Ack:
        """Append encoded parts. Gives an `Ack`; raises `JournalError` or `RootError` if nothing was written."""
        with self._mutex, self._locked(timeout, on_wait):
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
            if self._dir_fd < 0 or self._pid != os.getpid():
                self._release_files()
                return
            try:
                with self._locked(self.config.lock_timeout, closing=True):
                    self._final_checkpoint()
            except (LedgerError, OSError) as error:
                log.warning("%s: no checkpoint at close: %s", self.path, error)
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
        self._release_files()

    # The lock

    @contextlib.contextmanager
    def _locked(
        self, timeout: float | None, on_wait: Callable[[], None] | None = None, *, closing: bool = False
    ) -> Iterator[None]:
        if self._closed and not closing:
            raise LedgerClosed(f"the journal of {self.path} is closed")
        if self._pid != os.getpid():
            self._release_files()
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

    def _open_folder(self) -> None:
        config = self.config
        check_root(self.root, force=config.force)
        self._dir_fd = make_partition(self.root, config.machine, config.folder_mode)
        self._lock = PartitionLock(self._dir_fd, self.path, config.file_mode)

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

    def _recover(self, state: State | None) -> None:
        self._bring_in_order(state)
        self._record_forgotten_quarantine()

    def _bring_in_order(self, state: State | None) -> None:
        chain = read_chain(self._dir_fd, self.path)
        if not chain.chained:
            raise FormatError(
                f"{self.path} was written by evledger, and is read-only; import it: otledger import evledger"
                f" {self.config.root}",
                path=self.path,
            )
        if state is not None and state.state != "idle":
            self._adopt(chain, state)
            self._after_failed_sync(chain, state)
            return
        found = inspect(self._dir_fd, self.path, chain, state)
        self._adopt(chain, state)
        if state is None:
            self._state = State(checkpoint_size=found.checkpoint_size, checkpoint_seq=found.checkpoint_seq)
        if found.finding is not None:
            self._report(found.finding)
        if found.place is None:
            self._begin_chain(chain)
            return
        self._settle(chain, found.place, found.finding, found.synced)

    def _adopt(self, chain: Chain, state: State | None) -> None:
        """Take over what the chain of segments and the last holder's state say."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd, self._name = -1, None
        headers = [piece.header for piece in chain.pieces if piece.header is not None]
        self._chain_id = headers[-1].ledger if headers else ""
        self._epoch = headers[-1].epoch if headers else 0
        self._known = set()
        if state is not None:
            self._state = state

    def _begin_chain(self, chain: Chain) -> None:
        """Begin where no record is: in a new segment, or in one whose creation was not finished."""
        if chain.newest is None:
            self._start_segment("import" if self.config.machine.endswith(".import") else "new", None)
        else:
            self._rewrite_header(chain.newest, None)

    def _settle(self, chain: Chain, place: Place, finding: Finding | None, synced: Place | None) -> None:
        """Bring the partition into a state in which appending can go on at `place`, or in a new segment."""
        self._check_numbers(place.seq, 2)
        self._state.seq, self._state.head = place.seq, place.prev.decode()
        header = chain.pieces[-1].header if chain.pieces else None
        if header is not None and header.host != host_hash():
            self._take_over(chain, header, place, finding, synced)
        else:
            self._go_on(chain, place, finding, synced)

    def _go_on(self, chain: Chain, place: Place, finding: Finding | None, synced: Place | None) -> None:
        """Do what has to be done where this host wrote last."""
        way = way_on(chain, place, finding, self._size_of)
        kept = None
        if way.header is not None:
            kept = self._cut(place) if way.cut else None
            self._sync_segment(place, synced)
            self._rewrite_header(way.header, place)
        elif way.begin:
            self._sync_segment(place, synced)
            self._start_segment("damage", place)
        else:
            self._resume(place, synced)
            if way.cut:
                kept = self._cut(place)
                self._sync()
        if kept is not None and finding is not None:
            self._write_recovery(place, *kept, finding.reason, finding.records)

    def _take_over(
        self, chain: Chain, header: Header, place: Place, finding: Finding | None, synced: Place | None
    ) -> None:
        """Go on, in a segment of our own, where another host wrote last (format, 6).

        What a crash left in its segment is kept, and not cut: the host may live, and write where the lock does not
        reach. If it has come back since this journal has written, it does: two hosts have one identity.
        """
        rival = find_rival(self._dir_fd, self.path, chain)
        if rival is None and self._wrote:
            reason = f"another host (identity {header.host[:8]}) writes to this partition as well"
            rival = Finding("fork", place.segment, place.offset, place.seq, reason)
        if rival is not None and header.host not in self._rivals:
            self._rivals.add(header.host)
            self._report(rival)
        residue = finding is not None and finding.kind == "residue" and finding.segment == place.segment
        kept = self._keep(place) if residue else None
        self._sync_segment(place, synced)
        self._start_segment("moved" if residue or finding is None else "damage", place)
        if kept is not None and finding is not None:
            self._write_recovery(place, *kept, finding.reason, finding.records)

    def _size_of(self, name: SegmentName) -> int:
        fd = open_segment(self._dir_fd, name, shown=self.path)
        try:
            return file_size(fd)
        finally:
            os.close(fd)

    def _resume(self, place: Place, synced: Place | None) -> None:
        """Go on at the end of an existing segment.

        `synced` is up to where it is durable for certain, if the last holder left no word. What stands behind
        that counts as durable only after a sync.
        """
        if synced is not None or self._state.segment != str(place.segment):
            # The segment's maker may have died before its name was durable.
            sync_folder(self._dir_fd)
        self._fd = open_segment(self._dir_fd, place.segment, os.O_RDWR | os.O_APPEND, shown=self.path)
        self._name = place.segment
        state = self._state
        state.segment = str(place.segment)
        state.acked, state.seq, state.head = place.offset, place.seq, place.prev.decode()
        if synced is not None:
            # Should the sync fail, all that was read stays where it is, and the successor claims no more than
            # what is known: a record that another boot acknowledged is on the disk.
            self._claim = synced.seq
            state.synced, state.synced_seq, state.synced_head = state.acked, state.seq, state.head
        if file_size(self._fd) != place.offset:
            self._publish("idle")
        elif synced is not None or state.synced != state.acked:
            self._sync()
        else:
            self._publish("idle")
        self._claim = None

    def _sync_segment(self, place: Place, synced: Place | None) -> None:
        """Sync a segment that gets a successor, so that all before `place` is durable.

        Where that fails the successor claims no more than `synced`; the segment is not touched again.
        """
        state = self._state
        known = state.synced_seq if synced is None else synced.seq
        state.segment, state.acked, state.synced = str(place.segment), place.offset, place.offset
        state.seq = state.synced_seq = place.seq
        state.head = state.synced_head = place.prev.decode()
        try:
            fd = open_segment(self._dir_fd, place.segment, shown=self.path)
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)
        except FileNotFoundError:
            return
        except OSError as error:
            log.critical("%s: %s cannot be synced: %s", self.path, place.segment, error.strerror)
            state.synced_seq = min(known, place.seq)

    def _here(self) -> Place:
        assert self._name is not None
        return Place(self._name, self._state.acked, self._state.seq, self._state.head.encode() or ZEROS)

    # What a crash or a failed sync left

    def _report(self, finding: Finding) -> None:
        self.findings.append(finding)
        level = logging.WARNING if finding.kind == "residue" else logging.CRITICAL
        log.log(level, "%s: %s", self.path, finding)

    def _cut(self, place: Place) -> tuple[int, str]:
        """Keep the bytes beyond `place` in quarantine, and cut them off. Gives how many, and the file's name."""
        size, name = self._keep(place)
        fd = open_segment(self._dir_fd, place.segment, os.O_RDWR, shown=self.path)
        try:
            self._cut_kept(fd, place.offset, place.offset + size)
        finally:
            os.close(fd)
        return size, name

    def _keep(self, place: Place) -> tuple[int, str]:
        """Copy the bytes beyond `place` to quarantine. Gives how many, and the file's name."""
        fd = open_segment(self._dir_fd, place.segment, shown=self.path)
        try:
            size = file_size(fd) - place.offset
            return size, self._quarantine(f"{place.segment}.{place.offset}", lambda: blocks(fd, place.offset))
        finally:
            os.close(fd)

    def _cut_kept(self, fd: int, size: int, end: int) -> None:
        """Cut a file whose bytes up to `end` are kept in quarantine; nothing must have come behind them since."""
        if file_size(fd) != end:
            raise OSError(errno.EBUSY, "somebody else writes to the segment that is recovered")
        os.ftruncate(fd, size)

    def _write_recovery(
        self, place: Place, size: int, quarantine: str, reason: str, records: tuple[int, int] | None
    ) -> None:
        data = {
            "segment": str(place.segment),
            "offset": place.offset,
            "bytes": size,
            "quarantine": quarantine,
            "reason": reason,
            "records": list(records) if records else None,
        }
        self._put_own(RECOVERY_TYPE, data)

    def _quarantine(self, prefix: str, read: Callable[[], Iterable[bytes]]) -> str:
        """Keep what `read` gives, which may be more than the memory holds. Gives the file's name."""
        digest = _digest(read())
        name = f"{prefix}.{digest[:16]}"
        with contextlib.suppress(FileExistsError):
            os.mkdir(QUARANTINE, self.config.folder_mode, dir_fd=self._dir_fd)
        folder = os.open(QUARANTINE, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._dir_fd)
        try:
            _set_mode(folder, self.config.folder_mode)
            # An unfinished copy of an earlier try is written again from its beginning.
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, self.config.file_mode, dir_fd=folder)
            try:
                _set_mode(fd, self.config.file_mode)
                for block in read():
                    write_all(fd, block)
                os.fsync(fd)
                if _digest(blocks(fd, 0)) != digest:
                    raise OSError(errno.EIO, f"{QUARANTINE}/{name} does not read as it was written")
            finally:
                os.close(fd)
            os.fsync(folder)
            os.fsync(self._dir_fd)
        finally:
            os.close(folder)
        return name

    def _record_forgotten_quarantine(self) -> None:
        """Write the recovery records that a crash right after the cut prevented."""
        for copy in forgotten(self._dir_fd, self.path):
            place = Place(copy.segment, copy.offset, self._state.seq, b"")
            self._write_recovery(place, copy.size, copy.name, "found in quarantine without its record", None)

    def _after_failed_sync(self, chain: Chain, state: State) -> None:
        """A sync of this boot failed, or its process died in it: go on in the next segment (format, 6).

        What counts of the old one ends where it was synced. Behind that, what was acknowledged at `os` is
        appended again; of a process that died in the sync, everything whole, for nobody else has it.
        """
        name = SegmentName.parse(state.segment)
        if (name is None and chain.pieces) or (name is not None and not is_synced_end(self._dir_fd, self.path, state)):
            # The word that was left is wrong: all that is there counts.
            found = inspect(self._dir_fd, self.path, chain, None)
            self._start_segment("fault" if found.place else "new", found.place)
            return
        if name is None:
            # Not even the first segment could be synced.
            self._start_segment("fault" if chain.newest else "new", None)
            return
        end = state.acked
        if state.state == "syncing":
            end = self._size_of(name)
        if self._own_failed is not None and self._own_failed[0] == state.segment:
            end = min(end, self._own_failed[1])
        again = self._parts_between(name, state, end)
        synced = Place(name, state.synced, state.synced_seq, state.synced_head.encode() or ZEROS)
        self._start_segment("fault", synced, again)

    def _parts_between(self, name: SegmentName, state: State, end: int) -> list[bytes]:
        """Give the parts of the records between the synced end and `end`, to append them again.

        With them goes what they need: each segment has the resources and scopes that its spans name (format, 4).
        """
        parts = []
        needed: set[bytes] = set()
        check = ChainCheck(state.synced_seq, state.synced_head.encode() or ZEROS)
        fd = open_segment(self._dir_fd, name, shown=self.path)
        try:
            for _, line in lines(fd, state.synced, end):
                tail = check.take(line)
                if not isinstance(tail, Tail):
                    break
                part = caller_part(tail)
                if not has_type(part, CHECKPOINT_TYPE) and not has_type(part, HEADER_TYPE):
                    parts.append(part)
                    needed.update(_DIGEST.findall(part) if has_type(part, "otel.") else ())
            return [*self._definitions(fd, state.synced, needed), *parts]
        finally:
            os.close(fd)

    def _definitions(self, fd: int, end: int, needed: set[bytes]) -> list[bytes]:
        """Give new records of the resources and scopes among `needed` that a segment defines before `end`."""
        found = []
        if needed:
            for _, line in lines(fd, 0, end):
                data = control_data(line, "otel.resource")
                if data is not None and str(data.get("digest")).encode() in needed:
                    found.append(self.encoder.telemetry("otel.resource", now_ns(), dumps(data)))
        return found

    def _restart(self) -> None:
        """Under the lock, after a failed sync of ours: the successor segment."""
        assert self._lock is not None
        self._recover(self._lock.read() or self._state)

    # Segments

    def _cut_if_due(self) -> None:
        assert self._name is not None
        month = clock.believed_month(self._state, now_ns(), clock.boot_ns())
        too_large = self._state.acked >= self.config.max_segment
        reason = "month" if month > self._name.month else "size"
        if too_large or reason == "month":
            self._final_checkpoint()
            if self._state.synced != self._state.acked:
                self._sync()
            self._start_segment(reason, self._here())

    def _start_segment(self, reason: str, previous: Place | None, again: Sequence[bytes] = ()) -> None:
        """Create the next segment with its header, durable with its name on return.

        `previous` is where its predecessor ends; everything up to there is durable. `again` are parts that the
        predecessor held beyond that: they become durable together with the header, or not at all. Only what is
        durable gets a segment's name: so none is there in part after a crash, and none whose sync has failed.
        """
        self._check_numbers(0 if previous is None else previous.seq, 1 + len(again))
        # A segment that was removed keeps its name: its successor says that it was there.
        taken = [*list_segments(self._dir_fd), *([previous.segment] if previous is not None else [])]
        month = clock.believed_month(self._state, now_ns(), clock.boot_ns())
        name = max(taken).next(month) if taken else SegmentName(month)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        unfinished = unfinished_name(host_hash())
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished, dir_fd=self._dir_fd)
        fd = os.open(unfinished, flags, self.config.file_mode, dir_fd=self._dir_fd)
        self._fill_segment(fd, name, reason, previous, again, new=True)

    def _rewrite_header(self, name: SegmentName, previous: Place | None) -> None:
        """Give a newest segment without one valid record its header again.

        What stands in it is set aside; somebody else's lines are never cut, and close it for good.
        """
        fd = open_segment(self._dir_fd, name, os.O_RDWR | os.O_APPEND, shown=self.path)
        try:
            size = file_size(fd)
            foreign = any(is_foreign(line) for _, line in lines(fd))
            kept = None
            if size and not foreign:
                kept = self._quarantine(f"{name}.0", lambda: blocks(fd, 0))
                self._cut_kept(fd, 0, size)
        except BaseException:
            os.close(fd)
            raise
        if foreign:
            os.close(fd)
            self._start_segment("damage", previous)
            return
        reason = "new" if previous is None else "month" if name.month > previous.segment.month else "size"
        self._fill_segment(fd, name, reason, previous)
        if kept is not None:
            self._write_recovery(Place(name, 0, 0, b""), size, kept, "no valid record in the segment", None)

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
        called = unfinished_name(host_hash()) if new else str(name)
        seq, prev = (previous.seq, previous.prev) if previous is not None else (0, ZEROS)
        if previous is None or not self._chain_id:
            self._chain_id = str(uuid.uuid4())
        data = {
            "format": FORMAT,
            "ledger": self._chain_id,
            "writer": f"otledger/{VERSION}",
            "host": host_hash(),
            "boot": boot_id(),
            "epoch": self._epoch + 1,
            "previous": None if previous is None else {"segment": str(previous.segment), "size": previous.offset},
            "reason": reason,
        }
        durable = min(seq, self._state.synced_seq, seq if self._claim is None else self._claim)
        header = with_synced(self.encoder.telemetry(HEADER_TYPE, now_ns(), dumps(data)), durable)
        block = stamp([header, *again], seq, prev)
        try:
            _set_mode(fd, self.config.file_mode)
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
            state.checkpoint = clock.boot_ns() / 1e9
        state.segment = str(name)
        state.acked = state.synced = sum(map(len, block))
        state.seq = state.synced_seq = seq + len(block)
        state.head = state.synced_head = checksum_of(block[-1]).decode()
        self._publish("idle")

    def _publish(self, state: str) -> None:
        assert self._lock is not None
        self._state.state = state  # type: ignore[assignment]
        clock.note(self._state, now_ns(), clock.boot_ns())
        self._lock.write(self._state)

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
            self._uncut = str(self._name), before, file_size(self._fd)
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

    def _cut_back(self) -> None:
        """Cut off what a batch left that was not acknowledged, before anything else is done with the segment.

        Where somebody else has touched it since, it is theirs: they took it for a crash's, or for written.
        """
        if self._uncut is None:
            return
        name, size, end = self._uncut
        with contextlib.suppress(FileNotFoundError):
            fd = open_segment(self._dir_fd, name, os.O_RDWR, shown=self.path)
            try:
                if file_size(fd) == end:
                    os.ftruncate(fd, size)
            finally:
                os.close(fd)
        self._uncut = None

    def _check_numbers(self, seq: int, count: int) -> None:
        if seq + count - 1 > MAX_SEQ:
            raise FormatError(
                f"{self.path}: the next record would be number {seq:,}, and {MAX_SEQ:,} is the last: somebody wrote"
                " such a number into the ledger; see: otledger verify; then move the folder away",
                path=self.path,
                seq=seq,
            )

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

    def _own_parts(self, resources: Mapping[str, Resource]) -> list[bytes]:
        now = now_ns()
        parts = []
        checkpoint = self._checkpoint_part(now)
        if checkpoint is not None:
            parts.append(checkpoint)
        parts += [
            self.encoder.telemetry("otel.resource", now, resource.payload)
            for digest, resource in resources.items()
            if digest not in self._known
        ]
        return parts

    def _put_own(self, type: str, data: Mapping[str, Any]) -> None:
        part = self.encoder.telemetry(type, now_ns(), dumps(data))
        ack = self._put(Batch([part], {}))
        if ack.error is not None:
            raise ack.error

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

    def _checkpoint_part(self, now: int) -> bytes | None:
        """Give a checkpoint over everything durable, if one is due and there is something new to cover."""
        state = self._state
        since = clock.boot_ns() / 1e9 - state.checkpoint
        if 0 <= since < self.config.checkpoint_interval or not self._something_new():
            return None
        return self._make_checkpoint(now)

    def _something_new(self) -> bool:
        """Tell whether durable records other than the last checkpoint itself are not covered by it."""
        state = self._state
        uncovered = min(state.checkpoint_seq, state.synced_seq) > state.checkpoint_size
        return uncovered or state.synced_seq > state.checkpoint_seq + 1

    def _make_checkpoint(self, now: int) -> bytes:
        state = self._state
        state.checkpoint, state.checkpoint_size = clock.boot_ns() / 1e9, state.synced_seq
        state.checkpoint_seq = state.seq
        data = {"size": state.synced_seq, "head": state.synced_head}
        return self.encoder.telemetry(CHECKPOINT_TYPE, now, dumps(data))

    def _final_checkpoint(self) -> None:
        if self._name is None:
            return
        if self._state.synced != self._state.acked:
            self._sync()
        if self._something_new():
            part = self._make_checkpoint(now_ns())
            ack = self._put(Batch([part], {}))
            if ack.error is not None:
                raise ack.error
            if self._state.synced != self._state.acked:
                self._sync()


_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


def _after_fork() -> None:
    for journal in list(_journals):
        journal.after_fork()


os.register_at_fork(after_in_child=_after_fork)


def _set_mode(fd: int, mode: int) -> None:
    """Give what this user owns its mode, whatever the umask; what another made keeps the one that it has."""
    with contextlib.suppress(PermissionError):
        os.fchmod(fd, mode)


def _digest(blocks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


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
