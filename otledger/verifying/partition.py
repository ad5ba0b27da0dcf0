"""Verifying one partition: the pass over the records that count, line by line (format, 2, 3 and 5)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from otledger.batch import ZEROS
from otledger.chunks import Chunk, check_chunk
from otledger.merkle import Tree
from otledger.notes import VerifierKey, origin_of
from otledger.recovery import find_anchor as find_tail
from otledger.segment import Chain, Header, Piece, SegmentName, line_at, lines, read_chain, read_header
from otledger.strict import DeepCheck
from otledger.verifying.acknowledged import check_acknowledged, shared_lock
from otledger.verifying.anchor import Anchor, find_anchor
from otledger.verifying.controls import Controls
from otledger.verifying.excluded import Excluded
from otledger.verifying.files import Files
from otledger.verifying.findings import Findings
from otledger.verifying.outcome import Outcome, conclude
from otledger.verifying.pinned import Claim, memory_of_signer
from otledger.verifying.regrown import Regrown
from otledger.verifying.report import MachineReport, Status
from otledger.verifying.seals import Seal, Seals
from otledger.verifying.stored import Stored, fetch, sizes_of
from otledger.verifying.witnessed import check_claims

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
    keys: tuple[VerifierKey, ...] = ()
    """The public keys that are pinned, of whatever chains."""
    claims: tuple[Claim, ...] = ()
    """What witnesses remember, of whatever chains."""
    memory: Path | None = None
    """The folder of this host's keys, where signers remember what they signed."""
    since_checkpoint: bool = False
    tree: bool = False
    heartbeat: float | None = None
    archive: str | None = None
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
        self.chains: list[tuple[Piece, ...]] = []
        self.seals: Seals | None = None
        """Of the chain that is read."""
        self.judged: list[Seals] = []
        self.outcome = Outcome()
        self.archived: tuple[str, ...] = ()
        self.unread = 0
        self.origins: set[str] = set()
        """Of all chains that have a segment here, whether it counts or not."""
        self.claims: list[Claim] = []

    def verify(self) -> MachineReport:
        """Check everything there is, and say what was found."""
        files = self.files = Files(self.path)
        try:
            # Before the records are counted: what is signed meanwhile is not held against them.
            claims = [*self.plan.claims, *self._memories()]
            with shared_lock(files.dir_fd) as state:
                chain = read_chain(files.dir_fd, self.path)
                if self.plan.archive is not None:
                    chain = fetch(files, chain, self.plan.archive)
                files.chain, files.sizes = chain, sizes_of(files, chain)
                newest = chain.newest
            if not chain.chained:
                self._unchained(chain)
            elif chain.pieces:
                self._counted(chain, claims)
            elif newest is not None:
                self._without_records(newest)
            if chain.chained:
                self._not_counted(claims)
                check_acknowledged(files, state, self.found)
        finally:
            files.close()
        return self._report()

    def _memories(self) -> list[Claim]:
        keys = self.plan.memory
        if keys is None:
            return []
        pieces = read_chain(self.files.dir_fd, self.path).pieces
        ledgers = dict.fromkeys(piece.header.ledger for piece in pieces if piece.header is not None)
        return [claim for ledger in ledgers if (claim := memory_of_signer(keys, ledger)) is not None]

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
            **self.outcome.members,
            archived=self.archived,
            unread=self.unread,
        )

    def _counted(self, chain: Chain, claims: list[Claim]) -> None:
        self.chains = split(chain.pieces)
        self.claims = claims
        stored = Stored(self.files, self.found, deep=self.plan.deep)
        self.controls = Controls(self.files, self.found, stored, whole=not self.plan.tail)
        self.missing = chain.missing
        pieces, begin = self._begin(chain)
        jobs = self._jobs(pieces, self.files.sizes, begin)
        ends = {id(chunk) for (piece, chunk), (after, _) in itertools.pairwise(jobs) if after is not piece}
        for (piece, job), chunk in zip(jobs, self._run([chunk for _, chunk in jobs]), strict=True):
            self._stitch(piece, chunk, last=piece is pieces[-1])
            if piece.header is None and (id(job) in ends or job is jobs[-1][1]):
                reason = "the segment does not begin with its header"
                self.found.fault(Status.TAMPERED, str(piece.name), 0, None, reason)
            self.plan.progress(chunk.end - chunk.start)
        seal = self._end_chain(last=True)
        pinned = self.seals is not None and bool(self.seals.pinned)
        if self.unread:
            stored.search()
        self.archived = stored.settle(seal, pinned=pinned, place=self.plan.archive)
        Excluded(self.files, self.found, self.judged, self.plan.keys).check(
            self.seq, pieces[0], self.controls.set_aside
        )

    # Where it begins

    def _begin(self, chain: Chain) -> tuple[list[Piece], int]:
        """Give the segments that are read, and where in the first of them. From then on it is known what is due."""
        pieces = list(chain.pieces)
        if self.plan.tail:
            place, _ = find_tail(self.files.dir_fd, self.path, chain)
            pieces = [piece for piece in pieces if piece.name >= place.segment]
            self.seq, self.prev = place.seq, place.prev.decode()
            self._skip(chain, pieces[0], place.offset)
            self._begin_chain(pieces[0])
            return pieces, place.offset
        anchor = find_anchor(self.files, self.chains[-1], self.plan.keys) if self.plan.since_checkpoint else None
        if anchor is not None and not (self.plan.tree and anchor.seal.edge is None):
            pieces = [piece for piece in pieces if piece.name >= anchor.piece.name]
            self.seq, self.prev = anchor.seal.size, anchor.head
            self._skip(chain, pieces[0], anchor.offset)
            self._begin_chain(pieces[0], anchor)
            return pieces, anchor.offset
        if pieces[0].header is None or pieces[0].header.seq != 0:
            self._missing_start(chain, pieces[0])
        self._begin_chain(pieces[0])
        return pieces, 0

    def _skip(self, chain: Chain, first: Piece, offset: int) -> None:
        self.unread = offset + sum(self.files.end(piece) for piece in chain.pieces if piece.name < first.name)
        self.plan.progress(self.unread)

    def _begin_chain(self, piece: Piece, anchor: Anchor | None = None) -> None:
        """From here on the records are of the chain that has this segment."""
        if self.plan.tail:
            return
        pieces = next(pieces for pieces in self.chains if piece in pieces)
        self.seals = self.controls.seals = Seals(self.files, self.found, pieces, self.plan.keys)
        if anchor is not None:
            self.seals.start = anchor.start
        if not self.plan.tree:
            return
        tree = Tree(anchor.seal.size, anchor.seal.edge or ()) if anchor is not None else Tree()
        self.controls.tree = Regrown(self.files, pieces, tree)
        if self.seq != tree.size:
            reason = f"the tree cannot be recomputed without the records before {self.seq}"
            self.found.fault(Status.INCOMPLETE, str(piece.name), 0, self.seq, reason)

    def _next_chain(self, piece: Piece) -> None:
        self._end_chain(last=False)
        self.seq = 0
        self.files.away.clear()
        self._begin_chain(piece)

    def _end_chain(self, *, last: bool) -> Seal | None:
        """Judge a chain's notes at its end. Gives the last seal."""
        seals = self.seals
        if seals is None:
            return None
        self.judged.append(seals)
        begun, files = len(self.found.faults), [str(piece.name) for piece in self.files.chain.pieces]
        seal = seals.judge(every=self.plan.deep or self.plan.tree)
        self.found.in_order(begun, files)
        heartbeat = self.plan.heartbeat if last else None
        outcome = Outcome()
        if self.plan.keys:
            outcome = conclude(seals, seal, self.seq, heartbeat)
        else:
            outcome.sealed(seals, None)
        outcome.witnessed(check_claims(seals, self.claims, seal, self.seq))
        if last:
            self.outcome = outcome
        return seal

    def _not_counted(self, claims: list[Claim]) -> None:
        """See that no chain that somebody remembers was put where it does not count."""
        judged = {seals.origin for seals in self.judged}
        self.origins |= {origin_of(p.header.ledger) for p in self.files.chain.pieces if p.header is not None}
        for name in self.files.chain.skipped:
            with self.files.opened(name) as fd:
                header = read_header(line_at(fd, 0), self.path / str(name))
            if header is not None:
                self.origins.add(origin_of(header.ledger))
            for claim in claims if header is not None else ():
                if claim.origin == origin_of(header.ledger if header else "") and claim.origin not in judged:
                    reason = f"{claim.who} has a signed note over {claim.size} records of {claim.origin}; none counts"
                    self.found.fault(Status.TAMPERED, str(name), 0, 0, reason)

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
            tree = self.plan.tree
            jobs += [(piece, Chunk(path, at, min(at + step, end), tree=tree)) for at in range(start, end, step)]
        return jobs

    def _without_records(self, name: SegmentName) -> None:
        """Tell a creation that was not finished from records that were all changed."""
        size = self.files.size(name)
        with self.files.opened(name) as fd:
            were = any(b'"checksum":"sha256:' in line for _, line in lines(fd) if line.endswith(b"\n"))
        if were:
            self.files.chain = Chain((Piece(name, None, None),))
            self.files.sizes = {name: size}
            self._counted(self.files.chain, [])
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
        self.files.away.append((0, header.seq))
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
                Chunk(chunk.path, chunk.start, chunk.end, self.seq, self.prev, self.told, self.plan.tree),
                None if self.deep is None else self.deep.again(),
            )
        self.found.bytes += chunk.stop - chunk.begin
        self.found.records += chunk.count
        self.found.more += chunk.more_bad
        if self.controls.tree is not None:
            self.controls.tree.add(chunk.runs)
        # In the order of the file, so that the first fault is the first place.
        found = [(bad[0], 0, bad) for bad in chunk.bad] + [(control[0], 1, control) for control in chunk.controls]
        for _, _, what in sorted(found, key=lambda place: place[:2]):
            if len(what) == 4:
                self._bad_line(str(piece.name), what, last=last)
            else:
                self.controls.take(piece, what[0], what[1].encode())
        if chunk.bad:
            self.told = chunk.bad[-1][1] == chunk.last_seq + 1 and chunk.bad[-1][3] != "json"
        elif chunk.count:
            self.told = False
        self.seq, self.prev = chunk.last_seq + 1, chunk.last

    def _enter(self, header: Header, piece: Piece) -> None:
        """Begin anew where a new chain begins, or where the segment before is missing, which is told already."""
        if header.seq == 0 and (self.seq != 0 or (self.seals is not None and piece not in self.seals.pieces)):
            self._next_chain(piece)
            self.seq, self.prev, self.told = 0, ZEROS.decode(), False
        elif header.previous in self.missing:
            tail = self.files.first_tail(piece.name)
            if tail is not None and tail.seq >= self.seq:
                if tail.seq > self.seq:
                    self.files.away.append((self.seq, tail.seq))
                    self._break()
                self.seq, self.prev, self.told = tail.seq, tail.prev.decode(), False

    def _bad_line(self, file: str, bad: tuple[int, int, str, str], *, last: bool) -> None:
        offset, due, reason, kind = bad
        status = Status.TAMPERED
        self.files.first_bad.setdefault(file, offset)
        if kind != "json":
            self._break(due)
        if kind == "torn" and last:
            status = Status.INCOMPLETE
            reason += "; the next writer sets its bytes aside"
        elif kind.startswith("fork ") and self.files.is_other_record(file, offset, int(kind.split()[1])):
            status = Status.FORK
            reason += ", and another record has that number"
        self.found.fault(status, file, offset, due, reason)

    def _break(self, due: int | None = None) -> None:
        if self.seals is not None:
            self.seals.add_break(self.seq if due is None or due < 0 else due)

    def _unchained(self, chain: Chain) -> None:
        for piece in chain.pieces:
            with self.files.opened(piece.name) as fd:
                self.found.records += sum(1 for _ in lines(fd))
            self.found.bytes += self.files.sizes[piece.name]
            self.plan.progress(self.files.sizes[piece.name])
        reason = "written by evledger, without checksums: nothing can be proved; see otledger import evledger"
        self.found.fault(Status.INCOMPLETE, "", 0, None, reason)


def split(pieces: Sequence[Piece]) -> list[tuple[Piece, ...]]:
    """Give the segments of each chain: numbers that begin again belong to the next one."""
    begins = [at for at, piece in enumerate(pieces) if at and piece.header is not None and piece.header.seq == 0]
    return [tuple(pieces[start:end]) for start, end in zip([0, *begins], [*begins, len(pieces)], strict=True)]
