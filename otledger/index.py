"""The index of a partition: where in its segments the records of a key, or of a time, may stand.

It lies in `.cache/index/` of the partition and is derived from the lines: whoever reads with it tests each line that
it names, and scans what it does not cover. So it may be missing, behind, of another version, damaged, or deleted at
any moment; that costs time and nothing else.

A run of it is believed while the segment still begins, and up to the run's end still ends, with the bytes that it had:
a line's last bytes commit to all before them (format, 3). Bytes that were changed in place are for `verify` to find;
here they are noticed where the segment has the size that it was indexed at, and another time of change.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from otledger.batch import MAX_LINE
from otledger.errors import JournalError, LedgerError, RootError
from otledger.filter import Filter
from otledger.hooks import Progress
from otledger.run_files import LOCK, Heads, SegmentIndex, locked, open_index
from otledger.runs import CELL, CELLS, ID, RESOURCE, SPAN, TRACE, TURN, VERSION, Builder, Damaged, Query, key_hash
from otledger.segment import BLOCK, Piece, list_machines, open_folder, open_segment, pread, read_chain

log = logging.getLogger("otledger")

LAG = 2 << 20
"""How many bytes a growing segment may be ahead of its index: to search them costs less than to index them."""
RUN_BYTES = 2 * CELLS * CELL
"""The bytes after which a run has enough cells: lines may be long."""
PATIENCE = 10.0
"""How long, in seconds, a rebuild waits for whoever keeps the index up at the moment."""

_EXPECTED = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS)
_told: set[tuple[Path, str]] = set()
"""The troubles that this process has logged, each once."""

Range = tuple[int, int | None]
"""Where whole lines begin, and where they end: None for the segment's end."""


@dataclass(frozen=True, slots=True)
class IndexState:
    """What the index of a machine covers. Sizes are bytes."""

    machine: str
    version: int
    size: int
    """What the index itself takes."""
    records: int
    indexed: int
    """Bytes of the segments that it covers."""
    total: int
    """Bytes of the segments that count."""

    @property
    def behind(self) -> int:
        """Bytes that each look-up scans."""
        return self.total - self.indexed


def query_of(filter: Filter | None) -> Query | None:
    """Give what an index can be asked about a filter; None where it is of no use."""
    if filter is None:
        return None
    keys = (
        *((ID, filter.id), (TRACE, filter.trace_id), (SPAN, filter.span_id)),
        *((TURN, filter.ipc_hash), (RESOURCE, filter.digest)),
    )
    hashes = tuple(key_hash(kind, value) for kind, value in keys if value is not None)
    if not hashes and filter.since is None and filter.until is None:
        return None
    return Query(hashes, filter.since, filter.until)


class Index:
    """The index of the partition at `path`, for one reading of it.

    `runs` is how many runs at most are made by the way, where it is missing or behind. One covers 64 MB and costs a
    third of a second. `heads` is what earlier readings remember, and this one is to add to.
    """

    def __init__(self, path: Path, *, runs: int = 1, heads: Heads | None = None) -> None:
        self.path = path
        self._left = runs
        self._heads: Heads = {} if heads is None else heads

    def ranges(self, fd: int, piece: Piece, query: Query) -> Sequence[Range]:
        """Give what must be read of a segment, in order; all of it where the index cannot be used. Never raises."""
        for _ in range(2):
            try:
                return self._ranges(fd, piece, query)
            except Damaged:
                self._heads.clear()
                # Or it was cut off at this moment, because the segment had been.
                self._mend(fd, piece)
            except (OSError, LedgerError) as error:
                self._tell(error)
                break
        return [(0, piece.size)]

    def _ranges(self, fd: int, piece: Piece, query: Query) -> list[Range]:
        with (
            suppress(FileNotFoundError),
            open_index(self.path) as folder,
            SegmentIndex(folder, fd, piece, self._heads) as own,
        ):
            if self._is_due(own):
                self._keep_up(folder, own)
            return _ranges_of(own, piece, query)
        limit = os.fstat(fd).st_size if piece.size is None else piece.size
        if self._left <= 0 or limit < _least(piece):
            return [(0, piece.size)]
        with open_index(self.path, make=True) as folder, SegmentIndex(folder, fd, piece, self._heads) as own:
            self._keep_up(folder, own)
            return _ranges_of(own, piece, query)

    def _is_due(self, own: SegmentIndex) -> bool:
        return self._left > 0 and own.limit - own.covered >= _least(own.piece)

    def _keep_up(self, folder: int, own: SegmentIndex) -> None:
        """Index what is new, if that can be done: the index is good as it is."""
        try:
            with locked(folder) as held:
                if held:
                    own.load()
                    for _ in update(own, self._left):
                        self._left -= 1
        except (OSError, LedgerError) as error:
            self._left = 0
            own.load()
            self._tell(error)

    def _mend(self, fd: int, piece: Piece) -> None:
        with suppress(OSError, LedgerError), open_index(self.path) as folder, locked(folder) as held:
            if held:
                with SegmentIndex(folder, fd, piece) as own:
                    own.whole.mend()
                    own.tail.mend()

    def _tell(self, error: Exception) -> None:
        text = str(getattr(error, "strerror", None) or error)
        if (self.path, text) not in _told and getattr(error, "errno", None) not in _EXPECTED:
            _told.add((self.path, text))
            log.warning("%s: the index cannot be kept: %s; records are found by scanning", self.path, text)


def _least(piece: Piece) -> int:
    """Give how many bytes of a segment are worth being indexed."""
    return LAG if piece.size is None else CELL


def _ranges_of(own: SegmentIndex, piece: Piece, query: Query) -> list[Range]:
    cells = (cell for file, run in own.runs() for cell in run.ranges(file.read, query))
    return list(_joined(cells, own.covered, piece.size))


def _joined(cells: Iterable[tuple[int, int]], covered: int, cap: int | None) -> Iterator[Range]:
    """Give the cells as ranges, with what is not covered; what follows each other is one. Beyond `cap` is nothing."""
    first, last = 0, 0
    for start, end in cells:
        if cap is not None and end > cap:
            end = cap
        if start >= end:
            continue
        if start != last:
            if last > first:
                yield first, last
            first = start
        last = end
    if cap is not None and covered >= cap:
        if last > first:
            yield first, last
        return
    if last > first and last != covered:
        yield first, last
    yield (first if last > first and last == covered else covered), cap


# Making it


def update(own: SegmentIndex, runs: int | None = None) -> Iterator[int]:
    """Index what is new of a segment, under the lock; give the bytes covered after each of at most so many runs.

    Raises OSError.
    """
    while own.settled and (runs is None or runs > 0):
        tail = own.tail.runs
        room = CELLS - sum(run.cells for run in tail)
        size = RUN_BYTES - sum(run.end - run.start for run in tail)
        builder = _fill(own, room, size)
        if not builder.cells:
            return
        full = builder.cells >= room or builder.end - builder.start >= size
        if full and tail:
            # What the short runs cover is read again, and becomes a whole one with this.
            own.tail.remove()
            continue
        own.append(builder.encode(own.stamp(builder.end)), whole=full)
        if runs is not None:
            runs -= 1
        yield own.covered
        if not full:
            return


def _fill(own: SegmentIndex, cells: int, size: int) -> Builder:
    """Read on from what is covered, up to so many cells and bytes."""
    builder = Builder(own.covered)
    block, at = b"", 0
    while builder.cells < cells and builder.end - builder.start < size:
        edge = block.find(b"\n", at + CELL - 1) + 1
        if edge:
            builder.add(block[at:edge])
            at = edge
            continue
        known = builder.end + len(block) - at
        more = pread(own.fd, min(BLOCK, own.limit - known), known) if known < own.limit else b""
        if more and len(block) - at <= MAX_LINE:
            block, at = block[at:] + more, 0
            continue
        if own.piece.size is not None and not more and (edge := block.rfind(b"\n") + 1) > at:
            # It will not grow any more.
            builder.add(block[at:edge])
        break
    return builder


def states(root: Path, machines: Sequence[str] | None = None) -> list[IndexState]:
    """Give what the index of each machine covers. Changes nothing. Raises `RootError`."""
    return [_state(root, machine) for machine in _chosen(root, machines)]


def rebuild(root: Path, machines: Sequence[str] | None = None, *, progress: Progress | None = None) -> list[IndexState]:
    """Delete the index of each machine, and make it again to the end. Raises `RootError`, `JournalError`."""
    chosen = _chosen(root, machines)
    total = sum(_state(root, machine).total for machine in chosen)
    done = 0
    for machine in chosen:
        path = root / machine
        try:
            for size in _rebuilt(path):
                done += size
                if progress is not None:
                    progress(done, total)
        except OSError as error:
            if isinstance(error, RootError):
                raise
            why = f"{path}: the index cannot be written: {error.strerror}; see its space and permissions (df, ls -ld)"
            raise RootError(why, path=path) from None
    return [_state(root, machine) for machine in chosen]


def _rebuilt(path: Path) -> Iterator[int]:
    """Make the index of a partition again; give how many bytes of it each run covers."""
    with open_index(path, make=True) as folder, locked(folder, PATIENCE) as held:
        if not held:
            why = f"{path}: another process is writing the index; wait until it has done, and try again"
            raise JournalError(why, path=path)
        for name in os.listdir(folder):
            if name != LOCK:
                os.unlink(name, dir_fd=folder)
        for fd, piece in _pieces(path):
            with SegmentIndex(folder, fd, piece) as own:
                before = 0
                for covered in update(own):
                    yield covered - before
                    before = covered


def _state(root: Path, machine: str) -> IndexState:
    path = root / machine
    size = records = indexed = total = 0
    with ExitStack() as stack:
        folder = None
        with suppress(FileNotFoundError):
            folder = stack.enter_context(open_index(path))
        for fd, piece in _pieces(path):
            total += os.fstat(fd).st_size if piece.size is None else piece.size
            if folder is not None:
                with SegmentIndex(folder, fd, piece) as own:
                    size += own.whole.size + own.tail.size
                    records += sum(run.records for _, run in own.runs())
                    indexed += min(own.covered, own.limit)
    return IndexState(machine, VERSION, size, records, indexed, total)


def _pieces(path: Path) -> Iterator[tuple[int, Piece]]:
    """Give the segments of a partition, each open until the next is asked for; none of one that evledger wrote."""
    with ExitStack() as stack:
        partition = open_folder(path)
        stack.callback(os.close, partition)
        chain = read_chain(partition, path)
        for piece in chain.pieces if chain.chained else ():
            fd = open_segment(partition, piece.name, shown=path)
            try:
                yield fd, piece
            finally:
                os.close(fd)


def _chosen(root: Path, machines: Sequence[str] | None) -> list[str]:
    known = list_machines(root)
    for machine in machines or ():
        if machine not in known:
            there = ", ".join(known) or "none"
            raise RootError(f"{root} has no machine {machine!r}; there are: {there}", path=root)
    return known if machines is None else list(machines)
