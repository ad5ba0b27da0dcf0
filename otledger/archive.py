"""Moving closed segments away: `otledger archive`.

A segment is copied, made durable, read back and compared; then the chain says that it is gone; then it is removed. A
crash in between leaves it in both places, and the next run goes on from there.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from otledger.archived import Archived, ArchiveError, archived_in, folder_of, is_url
from otledger.batch import check_line
from otledger.chunks import Chunk, check_chunk
from otledger.config import Config
from otledger.errors import ConfigurationError
from otledger.folder import sync_folder
from otledger.identity import host_hash
from otledger.journal import Journal
from otledger.places import Place, place_of
from otledger.record import Draft
from otledger.segment import (
    CACHE,
    Chain,
    Piece,
    SegmentName,
    blocks,
    file_size,
    line_at,
    lines,
    list_machines,
    open_folder,
    open_segment,
    read_chain,
)
from otledger.verifier import Fault, Status, verify

MONTH = re.compile(r"\d{4}-(?:0[1-9]|1[0-2])", re.ASCII)


@dataclass(frozen=True, slots=True)
class Move:
    """A segment that is to be moved away, or was."""

    segment: str
    size: int
    first: int
    """The `seq` of its first record."""
    last: int
    copied: bool = False
    """Whether an earlier run left its copy there and the record in the chain: it has only to be removed."""


@dataclass(frozen=True, slots=True)
class MachinePlan:
    """What is to be moved of one machine's partition, or was, the oldest first."""

    machine: str
    moves: tuple[Move, ...]
    kept: str = ""
    """Why older segments than asked for stay; empty where none does."""

    def to_dict(self) -> dict[str, Any]:
        """Give the plan as plain JSON values."""
        return asdict(self)


def plan_archive(root: str | Path, before: str, *, machines: Sequence[str] | None = None) -> list[MachinePlan]:
    """Tell which segments are older than the month `before` (`2026-01`) and can be moved away. Writes nothing.

    Those are the oldest, up to the first one that has to stay: the newest of all, and one in which `verify` finds
    anything. Raises `RootError`, `FormatError`, `ConfigurationError`.
    """
    if not MONTH.fullmatch(before):
        raise ConfigurationError(f"{before!r} is no month; give the first one that stays, such as 2026-01")
    root = Path(root)
    known = list_machines(root)
    plans = []
    for machine in known if machines is None else machines:
        path = root / machine
        try:
            fd = open_folder(path)
        except FileNotFoundError:
            why = f"{root} has no machine {machine!r}; there are: {', '.join(known) or 'none'}"
            raise ConfigurationError(why) from None
        try:
            plans.append(_plan(root, machine, fd, path, before))
        finally:
            os.close(fd)
    return plans


def carry_out_archive(root: str | Path, plan: MachinePlan, to: str | Path, **settings: Any) -> MachinePlan:
    """Move the segments of a plan to `to`, a folder or a URL for `fsspec`, and give what was moved.

    `settings` are those of `Config`. Raises `ArchiveError` where a copy is not as it should be, and what opening and
    writing a journal raises; what is not moved then stays as it is.
    """
    root = Path(root)
    if not plan.moves:
        return plan
    if not is_url(to) and folder_of(to).absolute().resolve().is_relative_to(root.absolute().resolve()):
        raise ConfigurationError(f"{to} is inside the ledger; give a place outside of {root}")
    given = {"service": "archive", **settings, "durability": "disk"}
    config = Config.resolve(root=root, machine=plan.machine, **given)
    place = place_of(to, plan.machine, config)
    path = root / plan.machine
    folder = open_folder(path)
    try:
        sources = [_Source(folder, path, move) for move in plan.moves]
        try:
            copied = [source.copy_to(place) for source in sources]
            place.sync()
            _write_down(config, folder, path, copied)
            for source in sources:
                source.remove()
                sync_folder(folder)
        finally:
            for source in sources:
                source.close()
    finally:
        os.close(folder)
    return plan


# What can be moved


def _plan(root: Path, machine: str, dir_fd: int, path: Path, before: str) -> MachinePlan:
    chain = read_chain(dir_fd, path)
    # All but the newest: whoever writes goes on there.
    old = [piece for piece in chain.pieces[:-1] if piece.name.month < before]
    if not old:
        return MachinePlan(machine, ())
    foreign = _why_foreign(chain)
    if foreign:
        return MachinePlan(machine, (), foreign)
    stay = _in_between(dir_fd, path, chain)
    faults = _faults(root, machine)
    recorded = {each.segment: each for each in archived_in(dir_fd, path, chain)}
    moves: list[Move] = []
    for piece, following in zip(old, chain.pieces[1:], strict=False):
        name = str(piece.name)
        why = _why_not(piece, following, faults) or (
            f"{stay} counts for nothing, and would count then; move it out of the ledger"
            if stay is not None and stay < following.name
            else ""
        )
        if why:
            return MachinePlan(machine, tuple(moves), f"{name} and what follows it: {why}")
        fd = open_segment(dir_fd, piece.name, shown=path)
        try:
            first = check_line(line_at(fd, 0))
            assert first is not None, name
            assert following.header is not None, name
            size = file_size(fd)
        finally:
            os.close(fd)
        move = Move(name, size, first.seq, following.header.seq - 1, name in recorded)
        moves.append(move)
    return MachinePlan(machine, tuple(moves))


def _why_not(piece: Piece, following: Piece, faults: Sequence[Fault]) -> str:
    if piece.header is None or following.header is None or following.header.previous != str(piece.name):
        return "it has no header, or the one after it does not name it; see: otledger verify"
    if following.header.seq == 0:
        return "a new chain begins after it, which nothing joins to this one; see: otledger verify"
    fault = next((fault for fault in faults if fault.file in (str(piece.name), "")), None)
    return "" if fault is None else f"otledger verify finds: {fault}"


def _faults(root: Path, machine: str) -> list[Fault]:
    """Give what `verify` finds, but for what was recovered, which is good."""
    report = verify(root, machines=[machine]).machines[0]
    faults = [fault for fault in report.faults if fault.status > Status.RECOVERED]
    if report.more_faults:
        faults.append(Fault(report.status, machine, "", 0, None, f"{report.more_faults} faults more than it lists"))
    return faults


def _in_between(dir_fd: int, path: Path, chain: Chain) -> SegmentName | None:
    """Give the first segment that counts for nothing, but would if those before it were gone."""
    for name in sorted(chain.skipped):
        fd = open_segment(dir_fd, name, shown=path)
        try:
            if any(check_line(line) is not None for _, line in lines(fd)):
                return name
        finally:
            os.close(fd)
    return None


def _why_foreign(chain: Chain) -> str:
    if not chain.chained:
        return "evledger wrote it, and nothing is ever written there"
    header = chain.pieces[-1].header if chain.pieces else None
    if header is None or header.host == host_hash():
        return ""
    return "another host writes there; archive on that host, since the ledger itself has to say what is gone"


# Moving


class _Source:
    """A segment that is being moved away."""

    def __init__(self, dir_fd: int, path: Path, move: Move) -> None:
        self._dir_fd, self._path, self.move = dir_fd, path, move
        self._fd = open_segment(dir_fd, move.segment, shown=path)

    def close(self) -> None:
        os.close(self._fd)

    def copy_to(self, place: Place) -> Archived:
        """Copy it, unless its copy is there, and give what the chain is to say of it."""
        move = self.move
        size, digest = place.put(move.segment, lambda: blocks(self._fd, 0))
        if size != move.size or not self._is_there():
            raise self._changed()
        return Archived(move.segment, size, digest, move.first, move.last, self._head())

    def _head(self) -> str:
        """Give the checksum of the last record. It was verified; that nobody has changed it since is seen here."""
        name = SegmentName.parse(self.move.segment)
        chain = read_chain(self._dir_fd, self._path)
        piece = next(piece for piece in chain.pieces if piece.name == name)
        chunk = Chunk(str(self._path / self.move.segment), 0, file_size(self._fd) if piece.size is None else piece.size)
        first = check_line(line_at(self._fd, 0))
        if first is not None:
            chunk.seq, chunk.prev = first.seq, first.prev.decode()
            check_chunk(chunk)
        if first is None or chunk.bad or (first.seq, chunk.last_seq) != (self.move.first, self.move.last):
            raise self._changed()
        return chunk.last

    def _changed(self) -> ArchiveError:
        path = self._path / self.move.segment
        return ArchiveError(f"{path} was changed meanwhile, and stays; see: otledger verify", path=path)

    def _is_there(self) -> bool:
        try:
            there = os.stat(self.move.segment, dir_fd=self._dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        mine = os.fstat(self._fd)
        return (there.st_dev, there.st_ino, there.st_size) == (mine.st_dev, mine.st_ino, self.move.size)

    def remove(self) -> None:
        """Remove it, if it is still the one that was copied."""
        if self._is_there():
            os.unlink(self.move.segment, dir_fd=self._dir_fd)
        for folder in (CACHE, f"{CACHE}/index"):
            _forget(self._dir_fd, folder, self.move.segment)


def _forget(dir_fd: int, cache: str, segment: str) -> None:
    """Remove what was derived from a segment, so that it takes no space; a cache that cannot be written is left."""
    with contextlib.suppress(OSError):
        folder = open_folder(cache, dir_fd=dir_fd)
        try:
            for name in os.listdir(folder):
                if name.startswith(f"{segment}."):
                    os.unlink(name, dir_fd=folder)
        finally:
            os.close(folder)


def _write_down(config: Config, dir_fd: int, path: Path, copied: Sequence[Archived]) -> None:
    """Have the chain say what is gone, but what it says already. Durable on return."""
    said = {(each.segment, each.sha256) for each in archived_in(dir_fd, path, read_chain(dir_fd, path))}
    drafts = [Draft("otledger.archive", each.data()) for each in copied if (each.segment, each.sha256) not in said]
    if drafts:
        with Journal(config=config) as journal:
            journal.append(drafts, reserved=True)
