"""What the journal does where a crash, a failed sync or another host left a partition (format, 6).

What has to be done is decided in recovery.py, which only reads.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable, Iterable

from otledger import identity, quarantine, record
from otledger.batch import ZEROS, Tail, caller_part, has_type
from otledger.errors import FormatError
from otledger.folder import sync_folder
from otledger.handover import Ack, Batch, dumps
from otledger.lock import State
from otledger.partition import Partition
from otledger.recovery import Finding, Place, find_parts, find_rival, inspect, is_synced_end, way_on
from otledger.segment import (
    CHECKPOINT_TYPE,
    HEADER_TYPE,
    Chain,
    ChainCheck,
    Header,
    SegmentName,
    blocks,
    control_data,
    file_size,
    is_foreign,
    lines,
    open_segment,
    read_chain,
)

log = logging.getLogger("otledger")

_DIGEST = re.compile(rb'"(?:resource|scope)":"([0-9a-f]{32})"')


class Recovering(Partition):
    """A partition that is brought into a state in which appending can go on."""

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
        self._offered = None
        self._adoptions += 1
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
        if header is not None and header.host != identity.host_hash():
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

    def _kept_by_others(self, batch: Batch) -> Ack | None:
        """Acknowledge what another process took for written of this batch, when it could not be cut off."""
        taken = self._taken
        if taken is None or list(batch.parts[: len(taken.parts)]) != list(taken.parts):
            self._taken = None
            return None
        found = find_parts(self._dir_fd, self.path, taken.segment, taken.size, taken.parts)
        if found is not None and self.config.durability == "disk" and self._state.synced != self._state.acked:
            self._sync()
        self._taken = None
        return None if found is None else Ack(len(taken.parts), *found)

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
                kept = self._quarantine(f"{name}.0", lambda: blocks(fd, 0, size))
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

    def _report(self, finding: Finding) -> None:
        if finding in self.findings[-1:]:
            # What keeps it from being mended is told by whoever tries.
            return
        self.findings.append(finding)
        level = logging.WARNING if finding.kind == "residue" else logging.CRITICAL
        log.log(level, "%s: %s", self.path, finding)

    # What is set aside

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
            # What comes behind them meanwhile is not theirs.
            end = file_size(fd)
            name = f"{place.segment}.{place.offset}"
            return end - place.offset, self._quarantine(name, lambda: blocks(fd, place.offset, end))
        finally:
            os.close(fd)

    def _cut_kept(self, fd: int, size: int, end: int) -> None:
        """Cut a file whose bytes up to `end` are kept in quarantine; nothing must have come behind them since."""
        if file_size(fd) != end:
            raise OSError(errno.EBUSY, "somebody else writes to the segment that is recovered")
        os.ftruncate(fd, size)

    def _write_recovery(self, place: Place, size: int, name: str, reason: str, records: tuple[int, int] | None) -> None:
        data = {
            "segment": str(place.segment),
            "offset": place.offset,
            "bytes": size,
            "quarantine": name,
            "reason": reason,
            "records": list(records) if records else None,
        }
        self._put_own(quarantine.RECOVERY_TYPE, data)

    def _record_forgotten_quarantine(self) -> None:
        """Write the recovery records that a crash right after the cut prevented."""
        for copy in quarantine.forgotten(self._dir_fd, self.path):
            place = Place(copy.segment, copy.offset, self._state.seq, b"")
            self._write_recovery(place, copy.size, copy.name, "found in quarantine without its record", None)

    def _quarantine(self, prefix: str, read: Callable[[], Iterable[bytes]]) -> str:
        return quarantine.keep(self._dir_fd, prefix, read, self.config.file_mode, self.config.folder_mode)

    # After a failed sync

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
                    found.append(self.encoder.telemetry("otel.resource", record.now_ns(), dumps(data)))
        return found

    def _restart(self) -> None:
        """Under the lock, after a failed sync of ours: the successor segment."""
        assert self._lock is not None
        self._recover(self._lock.read() or self._state)
