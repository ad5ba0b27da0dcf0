"""Verifying that nothing in a ledger was changed, by the lines' bytes (format, 2, 3 and 5)."""

from __future__ import annotations

import enum
import fcntl
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from otledger.batch import ZEROS, Tail, check_line, checksum_of
from otledger.chunks import MAX_FAULTS, Chunk, check_chunk
from otledger.errors import FormatError, RootError
from otledger.lock import WIDTH, decode_state
from otledger.recovery import find_anchor
from otledger.segment import (
    CHECKPOINT_TYPE,
    LOCK_FILE,
    QUARANTINE,
    Chain,
    ChainCheck,
    Header,
    Piece,
    SegmentName,
    blocks,
    control_data,
    file_size,
    find_back,
    find_seq,
    is_foreign,
    last_line,
    line_at,
    lines,
    list_machines,
    open_folder,
    open_segment,
    read_chain,
    read_header,
)
from otledger.strict import DeepCheck

CHUNK = 16 << 20
"""Bytes of a segment that are checked at a time, each chunk by one process."""
_WORTH = 128 << 20
"""Bytes that are worth another process."""


class Status(enum.IntEnum):
    """What `verify` found, from good to bad; the worst of a ledger's machines counts."""

    OK = 0
    """All records are there, unchanged, in their chain."""
    UNSEALED_TAIL = 1
    """Good, but the newest records stand under no signed checkpoint yet."""
    RECOVERED = 2
    """Good, and a crash or a failed disk left something that was set aside and written down."""
    INCOMPLETE = 3
    """What is there is good, and something that should be there is not, or cannot be proved."""
    FORK = 4
    """Two records claim the same place: two writers had one identity."""
    TAMPERED = 5
    """Something was changed, removed or put in."""

    def __str__(self) -> str:
        return self.name

    @property
    def exit_code(self) -> int:
        """The exit code of `otledger verify`."""
        return {"OK": 0, "TAMPERED": 3, "FORK": 4, "INCOMPLETE": 5, "RECOVERED": 6, "UNSEALED_TAIL": 7}[self.name]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong. `offset` is in bytes; `seq` is the number that was due there, if known."""

    status: Status
    machine: str
    file: str
    offset: int
    seq: int | None
    reason: str

    def __str__(self) -> str:
        where = f"{self.machine}/{self.file}" if self.file else self.machine
        number = "" if self.seq is None else f", seq {self.seq}"
        return f"{where}, offset {self.offset}{number}: {self.reason}"


@dataclass(frozen=True, slots=True)
class MachineReport:
    """What was found in one machine's partition."""

    machine: str
    status: Status
    records: int
    bytes: int
    head: str
    """The checksum of the last record, without its prefix."""
    recoveries: int
    gaps: int
    """How many records `otledger.gap` says were accepted and lost."""
    faults: tuple[Fault, ...]
    more_faults: int = 0
    """How many more there are than `faults` lists."""


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found."""

    status: Status
    machines: tuple[MachineReport, ...]
    seconds: float

    @property
    def faults(self) -> tuple[Fault, ...]:
        """All faults, the worst first, each kind in the order of the files."""
        found = [fault for machine in self.machines for fault in machine.faults]
        return tuple(sorted(found, key=lambda fault: -fault.status))

    @property
    def records(self) -> int:
        """How many records were checked."""
        return sum(machine.records for machine in self.machines)

    @property
    def bytes(self) -> int:
        """How many bytes were checked."""
        return sum(machine.bytes for machine in self.machines)

    def to_dict(self) -> dict[str, Any]:
        """Give the report as plain JSON values."""
        from dataclasses import asdict

        plain = asdict(self)
        plain["status"] = str(self.status)
        for machine in plain["machines"]:
            machine["status"] = str(Status(machine["status"]))
            for fault in machine["faults"]:
                fault["status"] = str(Status(fault["status"]))
        plain["records"], plain["bytes"] = self.records, self.bytes
        return plain


def verify(
    root: str | Path,
    *,
    machines: Sequence[str] | None = None,
    expect: Sequence[str] = (),
    processes: int | None = None,
    tail: bool = False,
    deep: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check every line's checksum, number and place in the chain, caps, checkpoints, and what was set aside.

    `machines` limits it to these; `expect` names machines that must be there. `processes` is how many work
    side by side, by default as many as pay. `tail` checks only what follows the last checkpoint. `deep` also
    parses every line as JSON. `progress` is called with the bytes done and the bytes in all.
    Takes the partition's lock shared for an instant, so that no batch is seen half written.
    Raises `RootError` where there is no ledger, `FormatError` for a version of the format that is unknown.
    """
    began = time.perf_counter()
    root = Path(root)
    known = list_machines(root)
    reports = []
    names = known if machines is None else list(machines)
    done = _Progress(root, [name for name in names if name in known], progress)
    for name in sorted({*names, *expect}):
        if name not in known:
            fault = Fault(Status.INCOMPLETE, name, "", 0, None, "the machine's folder is missing")
            reports.append(MachineReport(name, Status.INCOMPLETE, 0, 0, "", 0, 0, (fault,)))
        else:
            reports.append(_Partition(root / name, processes, deep, done).verify(tail=tail))
    worst = max((report.status for report in reports), default=Status.OK)
    return Report(worst, tuple(reports), time.perf_counter() - began)


class _Progress:
    """Adds up the bytes that are done."""

    def __init__(self, root: Path, machines: Sequence[str], call: Callable[[int, int], None] | None) -> None:
        self._call = call
        self._done = 0
        self._total = 0
        if call is not None:
            for machine in machines:
                with os.scandir(root / machine) as entries:
                    self._total += sum(e.stat().st_size for e in entries if SegmentName.parse(e.name))

    def add(self, count: int) -> None:
        self._done += count
        if self._call is not None:
            self._call(min(self._done, self._total), self._total)


# One machine's partition


class _Partition:
    """Verifies one partition, and collects what it finds."""

    def __init__(self, path: Path, processes: int | None, deep: bool, progress: _Progress) -> None:
        self.path = path
        self.machine = path.name
        self.processes = processes
        self.deep = DeepCheck(path.name) if deep else None
        self.progress = progress
        self.faults: list[Fault] = []
        self.more = 0
        self.records = 0
        self.size = 0
        self.recoveries = 0
        self.gaps = 0
        self.status = Status.OK
        self.seq = 0
        self.prev = ZEROS.decode()
        self.told = False
        self.missing: tuple[str, ...] = ()
        self.chain = Chain()
        self.first_bad: dict[str, int] = {}
        """Where in a segment the first line is that is not as it should be."""
        self.searches = 0
        """How often a record was looked for by a pass over a segment, as bisection could not tell."""

    def verify(self, *, tail: bool) -> MachineReport:
        self.dir_fd = open_folder(self.path)
        try:
            with _shared_lock(self.dir_fd) as state:
                chain = self.chain = read_chain(self.dir_fd, self.path)
                sizes = {p.name: self._size(p.name) for p in chain.pieces}
                newest = chain.newest
            if not chain.chained:
                self._unchained(chain, sizes)
            elif chain.pieces:
                self._counted(chain, sizes, tail)
                self._excluded(chain, sizes)
            elif newest is not None:
                self._without_records(newest)
            if chain.chained:
                self._acknowledged(chain, sizes, state)
        finally:
            os.close(self.dir_fd)
        return self._report()

    def _report(self) -> MachineReport:
        return MachineReport(
            self.machine,
            self.status,
            self.records,
            self.size,
            self.prev if self.records else "",
            self.recoveries,
            self.gaps,
            tuple(self.faults),
            self.more,
        )

    def _size(self, name: SegmentName) -> int:
        fd = open_segment(self.dir_fd, name, shown=self.path)
        try:
            return file_size(fd)
        finally:
            os.close(fd)

    def _fault(self, status: Status, file: str, offset: int, seq: int | None, reason: str) -> None:
        self.status = max(self.status, status)
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(Fault(status, self.machine, file, offset, seq, reason))
        else:
            self.more += 1

    # What counts

    def _counted(self, chain: Chain, sizes: dict[SegmentName, int], tail: bool) -> None:
        pieces = list(chain.pieces)
        begin = 0
        self.missing = chain.missing
        if tail:
            place, _ = find_anchor(self.dir_fd, self.path, chain)
            pieces = [piece for piece in pieces if piece.name >= place.segment]
            begin, self.seq, self.prev = place.offset, place.seq, place.prev.decode()
        elif pieces[0].header is None or pieces[0].header.seq != 0:
            self._missing_start(chain, pieces[0])
        for name in chain.missing:
            self._fault(Status.INCOMPLETE, name, 0, None, "a segment that its successor names is missing")
        jobs: list[tuple[Piece, Chunk]] = []
        for piece in pieces:
            end = sizes[piece.name] if piece.size is None else piece.size
            if sizes[piece.name] < end:
                reason = f"the segment has {sizes[piece.name]} bytes, and its successor says {end}"
                self._fault(Status.TAMPERED, str(piece.name), sizes[piece.name], None, reason)
                end = sizes[piece.name]
            start = begin if piece is pieces[0] else 0
            path = str(self.path / str(piece.name))
            jobs += [(piece, Chunk(path, at, min(at + CHUNK, end))) for at in range(start, end, CHUNK)]
        ends = {id(chunk) for (piece, chunk), (after, _) in itertools.pairwise(jobs) if after is not piece}
        for (piece, job), chunk in zip(jobs, self._run([chunk for _, chunk in jobs]), strict=True):
            self._stitch(piece, chunk, last=piece is pieces[-1], whole=not tail)
            if piece.header is None and (id(job) in ends or job is jobs[-1][1]):
                self._fault(Status.TAMPERED, str(piece.name), 0, None, "the segment does not begin with its header")
            self.progress.add(chunk.end - chunk.start)

    def _without_records(self, name: SegmentName) -> None:
        """Tell a creation that was not finished from records that were all changed."""
        size = self._size(name)
        fd = open_segment(self.dir_fd, name, shown=self.path)
        try:
            were = any(b'"checksum":"sha256:' in line for _, line in lines(fd) if line.endswith(b"\n"))
        finally:
            os.close(fd)
        if were:
            piece = Piece(name, None, None)
            self._counted(Chain((piece,)), {name: size}, tail=False)
        else:
            self._fault(Status.INCOMPLETE, str(name), 0, 0, "no valid record in the segment")

    def _missing_start(self, chain: Chain, first: Piece) -> None:
        header = first.header
        if header is None:
            return
        # The chain's own numbers tell what is missing before it; the rest can still be checked.
        self.seq = header.seq
        fd = open_segment(self.dir_fd, first.name, shown=self.path)
        try:
            for _, line in lines(fd):
                tail = check_line(line)
                self.prev = tail.prev.decode() if tail is not None else self.prev
                break
        finally:
            os.close(fd)
        if not chain.missing:
            self._fault(Status.INCOMPLETE, str(first.name), 0, 0, f"records 0 to {header.seq - 1} are missing")

    def _run(self, chunks: list[Chunk]) -> Iterator[Chunk]:
        total = sum(chunk.end - chunk.start for chunk in chunks)
        wanted = self.processes
        if wanted is None:
            wanted = min(os.cpu_count() or 1, 1 + total // _WORTH)
        if wanted > 1 and len(chunks) > 1 and self.deep is None:
            from otledger.workers import check_chunks

            yield from check_chunks(chunks, wanted)
            return
        for chunk in chunks:
            # One after the other what is due is known.
            chunk.seq, chunk.prev, chunk.told = self.seq, self.prev, self.told
            yield check_chunk(chunk, self.deep)

    def _stitch(self, piece: Piece, chunk: Chunk, *, last: bool, whole: bool) -> None:
        """Hold a chunk's first line against the line before it, and go on from its last."""
        file = str(piece.name)
        header = piece.header
        if chunk.start == 0 and header is not None:
            self._enter(header, chunk)
        if (chunk.seq, chunk.prev, chunk.told) != (self.seq, self.prev, self.told) and not (
            chunk.seq < 0
            and (chunk.first_seq, chunk.first_prev) == (self.seq, self.prev)
            and not (chunk.bad and chunk.bad[0][0] <= chunk.first_offset)
        ):
            # It does not follow from what came before as it was checked: once more, knowing what is due.
            chunk = check_chunk(
                Chunk(chunk.path, chunk.start, chunk.end, self.seq, self.prev, self.told),
                None if self.deep is None else self.deep.again(),
            )
        self.size += chunk.stop - chunk.begin
        self.records += chunk.count
        self.more += chunk.more_bad
        # In the order of the file, so that the first fault is the first place.
        found = [(bad[0], 0, bad) for bad in chunk.bad] + [(control[0], 1, control) for control in chunk.controls]
        for _, _, what in sorted(found, key=lambda place: place[:2]):
            if len(what) == 4:
                offset, due, reason, kind = what
                self._bad_line(file, offset, due, reason, kind, last=last)
            else:
                self._control(piece, what[0], what[1].encode(), whole)
        if chunk.bad:
            self.told = chunk.bad[-1][1] == chunk.last_seq + 1 and chunk.bad[-1][3] != "json"
        elif chunk.count:
            self.told = False
        self.seq, self.prev = chunk.last_seq + 1, chunk.last

    def _enter(self, header: Header, chunk: Chunk) -> None:
        """Begin anew where a new chain begins, or where the segment before is missing, which is told already."""
        if header.seq == 0 and self.seq != 0:
            self.seq, self.prev, self.told = 0, ZEROS.decode(), False
        elif header.previous in self.missing:
            fd = os.open(chunk.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                tail = check_line(line_at(fd, 0))
            finally:
                os.close(fd)
            if tail is not None and tail.seq >= self.seq:
                self.seq, self.prev, self.told = tail.seq, tail.prev.decode(), False

    def _bad_line(self, file: str, offset: int, due: int, reason: str, kind: str, *, last: bool) -> None:
        status = Status.TAMPERED
        self.first_bad.setdefault(file, offset)
        if kind == "torn" and last:
            status = Status.INCOMPLETE
            reason += "; the next writer sets its bytes aside"
        elif kind.startswith("fork ") and self._other_record(file, offset, int(kind.split()[1])):
            status = Status.FORK
            reason += ", and another record has that number"
        self._fault(status, file, offset, due, reason)

    def _other_record(self, file: str, before: int, seq: int) -> bool:
        """Tell whether a different record with this `seq` stands earlier in the file: not the same line twice."""
        fd = open_segment(self.dir_fd, file, shown=self.path)
        try:
            other = self._find(fd, seq, before, self.first_bad.get(file, before))
            return other is not None and other != checksum_of(line_at(fd, before))
        finally:
            os.close(fd)

    # Control records

    def _control(self, piece: Piece, offset: int, line: bytes, whole: bool) -> None:
        file = str(piece.name)
        recovery = control_data(line, "otledger.recovery")
        if recovery is not None:
            self.recoveries += 1
            self.status = max(self.status, Status.RECOVERED)
            self._quarantined(file, offset, recovery)
            return
        gap = control_data(line, "otledger.gap")
        if gap is not None:
            count = gap.get("count")
            self.gaps += count if isinstance(count, int) else 0
            return
        checkpoint = control_data(line, CHECKPOINT_TYPE)
        if checkpoint is not None and whole:
            self._checkpoint(piece, offset, line, checkpoint)
        elif piece.header is not None and piece.header.reason == "fault" and offset == 0:
            self.status = max(self.status, Status.RECOVERED)

    def _quarantined(self, file: str, offset: int, recovery: dict[str, Any]) -> None:
        name = str(recovery.get("quarantine"))
        try:
            size, digest = self._set_aside(name)
        except (OSError, ValueError):
            self._fault(Status.INCOMPLETE, file, offset, None, f"{QUARANTINE}/{name} is missing, or cannot be read")
            return
        if not name.endswith(digest[:16]) or size != recovery.get("bytes"):
            self._fault(Status.TAMPERED, f"{QUARANTINE}/{name}", 0, None, "the bytes set aside were changed")

    def _set_aside(self, name: str) -> tuple[int, str]:
        """Give the size of a file in quarantine and its SHA-256. Raises OSError or ValueError."""
        if "/" in name:
            raise OSError
        folder = open_folder(QUARANTINE, dir_fd=self.dir_fd)
        try:
            fd = open_segment(folder, name)
        finally:
            os.close(folder)
        try:
            digest = sha256()
            for block in blocks(fd, 0):
                digest.update(block)
            return file_size(fd), digest.hexdigest()
        finally:
            os.close(fd)

    def _checkpoint(self, piece: Piece, offset: int, line: bytes, data: dict[str, Any]) -> None:
        tail = check_line(line)
        size, head = data.get("size"), data.get("head")
        if tail is None or not isinstance(size, int) or not isinstance(head, str):
            return
        if not 0 < size <= tail.seq:
            found = None
        else:
            found = tail.prev.decode() if size == tail.seq else self._checksum_of(piece, offset, size - 1)
        if found != head:
            reason = f"the checkpoint over {size} records names another head than the records have"
            self._fault(Status.TAMPERED, str(piece.name), offset, tail.seq, reason)

    def _checksum_of(self, piece: Piece, before: int, seq: int) -> str | None:
        for other in reversed([p for p in self.chain.pieces if p.name <= piece.name]):
            if other.header is not None and other.header.seq > seq:
                continue
            fd = open_segment(self.dir_fd, other.name, shown=self.path)
            try:
                end = before if other.name == piece.name else (file_size(fd) if other.size is None else other.size)
                found = self._find(fd, seq, end, end)
                if found is not None:
                    return found.decode()
            finally:
                os.close(fd)
        return None

    def _find(self, fd: int, seq: int, end: int, good: int) -> bytes | None:
        """Give the checksum of the last record with this `seq` before `end`; up to `good` the lines are in order."""
        place = find_seq(fd, seq, good)
        if place is not None:
            return checksum_of(place[1])
        if self.searches >= MAX_FAULTS:
            return None
        self.searches += 1
        for _, line in find_back(fd, b',"seq":%d,"prev":"' % seq, end):
            tail = check_line(line)
            if tail is not None and tail.seq == seq:
                return tail.checksum
        return None

    # What does not count

    def _excluded(self, chain: Chain, sizes: dict[SegmentName, int]) -> None:
        """Read what caps leave out: records that were durable, or claimed a place, must not be there."""
        successors = {piece.header.previous: piece for piece in chain.pieces if piece.header is not None}
        for piece in chain.pieces:
            if piece.size is not None and piece.size < sizes[piece.name]:
                self._excluded_bytes(piece.name, piece.size, successors.get(str(piece.name)))
        for name in chain.skipped:
            later = [piece for piece in chain.pieces if piece.name > name]
            self._skipped(name, later[0] if later else None)
            if not later and self._size(name):
                reason = "no valid record in the segment; the next writer sets its bytes aside"
                self._fault(Status.INCOMPLETE, str(name), 0, self.seq, reason)
        if any(piece.header is not None and piece.header.reason == "fault" for piece in chain.pieces):
            self.status = max(self.status, Status.RECOVERED)

    def _excluded_bytes(self, name: SegmentName, start: int, successor: Piece | None) -> None:
        """Read what stands beyond the end that the next segment names.

        What has numbers that the records that count have is another writer's: only where a sync had failed it may be
        the same writer's, who wrote again what was not durable.
        """
        header = successor.header if successor is not None else None
        reason = header.reason if header is not None else ""
        before, rival = -1, ChainCheck(-1, b"")
        if successor is not None and header is not None and reason != "fault":
            before, rival = header.seq, ChainCheck(header.seq, self._first_prev(successor.name))
        first: int | None = None
        fd = open_segment(self.dir_fd, name, shown=self.path)
        try:
            for offset, line in lines(fd, start):
                tail = check_line(line)
                if tail is None:
                    if reason == "damage" and is_foreign(line):
                        self._fault(Status.TAMPERED, str(name), offset, None, "a line that is not otledger's")
                    continue
                if (
                    reason == "damage"
                    or isinstance(rival.take(line), Tail)
                    or (0 <= tail.seq < before and self._other_record(str(name), offset, tail.seq))
                ):
                    why = f"a record with seq {tail.seq} beyond the segment's end, and another has that number"
                    self._fault(Status.FORK, str(name), offset, tail.seq, why)
                elif first is not None and (tail.synced or 0) > first:
                    why = "records that were durable stand beyond the end that the next segment names"
                    self._fault(Status.TAMPERED, str(name), offset, first, why)
                    return
                first = tail.seq if first is None else first
        finally:
            os.close(fd)

    def _skipped(self, name: SegmentName, later: Piece | None) -> None:
        """Read a segment that no other names: its creation failed, or two hosts went on from the same place."""
        fd = open_segment(self.dir_fd, name, shown=self.path)
        try:
            header = read_header(line_at(fd, 0), self.path / str(name))
        finally:
            os.close(fd)
        host = later.header.host if later is not None and later.header is not None else ""
        if header is not None and host and header.host != host:
            why = f"the segment goes on from the same place as {later.name if later else ''}, which another host began"
            self._fault(Status.FORK, str(name), 0, header.seq, why)
        else:
            self._excluded_bytes(name, 0, None)

    def _first_prev(self, name: SegmentName) -> bytes:
        fd = open_segment(self.dir_fd, name, shown=self.path)
        try:
            tail = check_line(line_at(fd, 0))
            return tail.prev if tail is not None else b""
        finally:
            os.close(fd)

    def _acknowledged(self, chain: Chain, sizes: dict[SegmentName, int], state: Any) -> None:
        """Hold the files against what the writers of this boot acknowledged."""
        if state is None or not state.seq or state.state != "idle":
            return
        name = SegmentName.parse(state.segment)
        if name not in sizes or sizes[name] < state.acked:
            there = sizes.get(name, 0) if name is not None else 0
            reason = f"{state.acked} bytes were acknowledged, and {there} are there"
            self._fault(Status.TAMPERED, state.segment, there, None, reason)
            return
        fd = open_segment(self.dir_fd, name, shown=self.path)
        try:
            offset, line = last_line(fd, state.acked)
        finally:
            os.close(fd)
        if checksum_of(line).decode("ascii", "replace") != state.head:
            reason = "the last acknowledged record is not the one that was written"
            self._fault(Status.TAMPERED, state.segment, offset, state.seq - 1, reason)

    def _unchained(self, chain: Chain, sizes: dict[SegmentName, int]) -> None:
        for piece in chain.pieces:
            fd = open_segment(self.dir_fd, piece.name, shown=self.path)
            try:
                self.records += sum(1 for _ in lines(fd))
            finally:
                os.close(fd)
            self.size += sizes[piece.name]
            self.progress.add(sizes[piece.name])
        reason = "written by evledger, without checksums: nothing can be proved; see otledger import evledger"
        self._fault(Status.INCOMPLETE, "", 0, None, reason)


@contextmanager
def _shared_lock(dir_fd: int) -> Iterator[Any]:
    """Hold the lock shared, so that no batch is half written, and give its state; after a second go without."""
    try:
        fd = os.open(LOCK_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=dir_fd)
    except OSError:
        yield None
        return
    try:
        locked = False
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            yield None
            return
        for _ in range(200):
            with suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                locked = True
                break
            time.sleep(0.005)
        yield decode_state(os.pread(fd, WIDTH, 0)) if locked else None
    finally:
        os.close(fd)


__all__ = ["Fault", "FormatError", "MachineReport", "Report", "RootError", "Status", "verify"]
