"""Verifying one partition: the pass over the records that count, line by line (format, 2, 3 and 5)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from otledger.batch import ZEROS
from otledger.chunks import Chunk, check_chunk
from otledger.recovery import find_anchor
from otledger.segment import Chain, Header, Piece, SegmentName, lines, read_chain
from otledger.strict import DeepCheck
from otledger.verifying.acknowledged import check_acknowledged, shared_lock
from otledger.verifying.controls import Controls
from otledger.verifying.excluded import Excluded
from otledger.verifying.files import Files
from otledger.verifying.findings import Findings
from otledger.verifying.report import MachineReport, Status

_WORTH = 128 << 20
"""Bytes that are worth another process."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a partition is to be verified."""

    chunk: int
    """Bytes of a segment that are checked at a time, each chunk by one process."""
    processes: int | None = None
    tail: bool = False
    deep: bool = False
    progress: Callable[[int], None] = lambda _: None
    """Is told how many more bytes are done."""


class Partition:
    """Verifies one partition, and collects what it finds."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.plan = plan
        self.path = path
        self.deep = DeepCheck(path.name) if plan.deep else None
        self.found = Findings(path.name)
        self.seq = 0
        self.prev = ZEROS.decode()
        self.told = False
        self.missing: tuple[str, ...] = ()

    def verify(self) -> MachineReport:
        """Check everything there is, and say what was found."""
        files = self.files = Files(self.path)
        try:
            with shared_lock(files.dir_fd) as state:
                chain = files.chain = read_chain(files.dir_fd, self.path)
                files.sizes = {p.name: files.size(p.name) for p in chain.pieces}
                newest = chain.newest
            if not chain.chained:
                self._unchained(chain)
            elif chain.pieces:
                self._counted(chain, files.sizes)
                Excluded(files, self.found).check(self.seq)
            elif newest is not None:
                self._without_records(newest)
            if chain.chained:
                check_acknowledged(files, state, self.found)
        finally:
            files.close()
        return self._report()

    def _report(self) -> MachineReport:
        found = self.found
        return MachineReport(
            found.machine,
            found.status,
            found.records,
            found.bytes,
            self.prev if found.records else "",
            found.recoveries,
            found.gaps,
            tuple(found.faults),
            found.more,
        )

    def _counted(self, chain: Chain, sizes: dict[SegmentName, int]) -> None:
        pieces = list(chain.pieces)
        begin = 0
        self.controls = Controls(self.files, self.found)
        self.missing = chain.missing
        if self.plan.tail:
            place, _ = find_anchor(self.files.dir_fd, self.path, chain)
            pieces = [piece for piece in pieces if piece.name >= place.segment]
            begin, self.seq, self.prev = place.offset, place.seq, place.prev.decode()
        elif pieces[0].header is None or pieces[0].header.seq != 0:
            self._missing_start(chain, pieces[0])
        for name in chain.missing:
            self.found.fault(Status.INCOMPLETE, name, 0, None, "a segment that its successor names is missing")
        jobs = self._jobs(pieces, sizes, begin)
        ends = {id(chunk) for (piece, chunk), (after, _) in itertools.pairwise(jobs) if after is not piece}
        for (piece, job), chunk in zip(jobs, self._run([chunk for _, chunk in jobs]), strict=True):
            self._stitch(piece, chunk, last=piece is pieces[-1])
            if piece.header is None and (id(job) in ends or job is jobs[-1][1]):
                reason = "the segment does not begin with its header"
                self.found.fault(Status.TAMPERED, str(piece.name), 0, None, reason)
            self.plan.progress(chunk.end - chunk.start)

    def _jobs(self, pieces: list[Piece], sizes: dict[SegmentName, int], begin: int) -> list[tuple[Piece, Chunk]]:
        jobs: list[tuple[Piece, Chunk]] = []
        for piece in pieces:
            end = sizes[piece.name] if piece.size is None else piece.size
            if sizes[piece.name] < end:
                reason = f"the segment has {sizes[piece.name]} bytes, and its successor says {end}"
                self.found.fault(Status.TAMPERED, str(piece.name), sizes[piece.name], None, reason)
                end = sizes[piece.name]
            start = begin if piece is pieces[0] else 0
            path, step = self.files.location(piece.name), self.plan.chunk
            jobs += [(piece, Chunk(path, at, min(at + step, end))) for at in range(start, end, step)]
        return jobs

    def _without_records(self, name: SegmentName) -> None:
        """Tell a creation that was not finished from records that were all changed."""
        size = self.files.size(name)
        with self.files.opened(name) as fd:
            were = any(b'"checksum":"sha256:' in line for _, line in lines(fd) if line.endswith(b"\n"))
        if were:
            self._counted(Chain((Piece(name, None, None),)), {name: size})
        else:
            self.found.fault(Status.INCOMPLETE, str(name), 0, 0, "no valid record in the segment")

    def _missing_start(self, chain: Chain, first: Piece) -> None:
        header = first.header
        if header is None:
            return
        # The chain's own numbers tell what is missing before it; the rest can still be checked.
        self.seq = header.seq
        tail = self.files.first_tail(first.name)
        self.prev = tail.prev.decode() if tail is not None else self.prev
        if not chain.missing:
            reason = f"records 0 to {header.seq - 1} are missing"
            self.found.fault(Status.INCOMPLETE, str(first.name), 0, 0, reason)

    def _run(self, chunks: list[Chunk]) -> Iterator[Chunk]:
        total = sum(chunk.end - chunk.start for chunk in chunks)
        wanted = self.plan.processes
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

    def _stitch(self, piece: Piece, chunk: Chunk, *, last: bool) -> None:
        """Hold a chunk's first line against the line before it, and go on from its last."""
        header = piece.header
        if chunk.start == 0 and header is not None:
            self._enter(header, piece)
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
        self.found.bytes += chunk.stop - chunk.begin
        self.found.records += chunk.count
        self.found.more += chunk.more_bad
        # In the order of the file, so that the first fault is the first place.
        found = [(bad[0], 0, bad) for bad in chunk.bad] + [(control[0], 1, control) for control in chunk.controls]
        for _, _, what in sorted(found, key=lambda place: place[:2]):
            if len(what) == 4:
                self._bad_line(str(piece.name), what, last=last)
            else:
                self.controls.take(piece, what[0], what[1].encode(), whole=not self.plan.tail)
        if chunk.bad:
            self.told = chunk.bad[-1][1] == chunk.last_seq + 1 and chunk.bad[-1][3] != "json"
        elif chunk.count:
            self.told = False
        self.seq, self.prev = chunk.last_seq + 1, chunk.last

    def _enter(self, header: Header, piece: Piece) -> None:
        """Begin anew where a new chain begins, or where the segment before is missing, which is told already."""
        if header.seq == 0 and self.seq != 0:
            self.seq, self.prev, self.told = 0, ZEROS.decode(), False
        elif header.previous in self.missing:
            tail = self.files.first_tail(piece.name)
            if tail is not None and tail.seq >= self.seq:
                self.seq, self.prev, self.told = tail.seq, tail.prev.decode(), False

    def _bad_line(self, file: str, bad: tuple[int, int, str, str], *, last: bool) -> None:
        offset, due, reason, kind = bad
        status = Status.TAMPERED
        self.files.first_bad.setdefault(file, offset)
        if kind == "torn" and last:
            status = Status.INCOMPLETE
            reason += "; the next writer sets its bytes aside"
        elif kind.startswith("fork ") and self.files.is_other_record(file, offset, int(kind.split()[1])):
            status = Status.FORK
            reason += ", and another record has that number"
        self.found.fault(status, file, offset, due, reason)

    def _unchained(self, chain: Chain) -> None:
        for piece in chain.pieces:
            with self.files.opened(piece.name) as fd:
                self.found.records += sum(1 for _ in lines(fd))
            self.found.bytes += self.files.sizes[piece.name]
            self.plan.progress(self.files.sizes[piece.name])
        reason = "written by evledger, without checksums: nothing can be proved; see otledger import evledger"
        self.found.fault(Status.INCOMPLETE, "", 0, None, reason)
