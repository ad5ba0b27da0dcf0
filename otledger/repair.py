"""What recovery would do to a ledger, and having it done: `otledger repair`.

The decisions are those of recovery.py, which the journal takes too; what is done is done by the journal.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from otledger.batch import check_line
from otledger.config import Config
from otledger.errors import FormatError, LockTimeout
from otledger.identity import host_hash
from otledger.journal import Journal
from otledger.lock import WIDTH, PartitionLock, State, decode_state
from otledger.quarantine import copy_name, forgotten
from otledger.record import parse
from otledger.recovery import inspect, is_synced_end, way_on
from otledger.segment import (
    BLOCK,
    LOCK_FILE,
    QUARANTINE,
    Chain,
    SegmentName,
    blocks,
    file_size,
    is_foreign,
    last_line,
    lines,
    list_segments,
    open_folder,
    open_segment,
    read_chain,
)
from otledger.verifier import Fault, Status, verify

Kind = Literal["cut", "header", "segment", "record"]
LOCK_PATIENCE = 10.0
FARTHEST = 64 * BLOCK
"""How many bytes are searched for the record after a damaged place."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that recovery does.

    `cut`: `bytes` from `offset` on go to quarantine. `header`: so does all that stands in a segment without one
    valid record, which gets its header. `segment`: the next one is begun. `record`: what was set aside earlier is
    written down.
    """

    kind: Kind
    segment: str
    offset: int
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Around:
    """A record next to a damaged place."""

    offset: int
    seq: int
    type: str
    time: str
    id: str


@dataclass(frozen=True, slots=True)
class Left:
    """Something wrong that no program can mend: it is left as it is. `bytes` is how far the next good record is."""

    fault: Fault
    before: Around | None
    after: Around | None
    bytes: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What recovery would do, or did, to one machine's partition, and what it leaves."""

    machine: str
    steps: tuple[Step, ...]
    left: tuple[Left, ...]
    more_left: int = 0
    """How many more faults there are than `left` lists."""
    kept: tuple[str, ...] = ()
    """Once it is done: the files in the partition's `quarantine/` that this made."""

    def to_dict(self) -> dict[str, Any]:
        """Give the plan as plain JSON values."""
        plain = asdict(self)
        for left in plain["left"]:
            left["fault"]["status"] = str(Status(left["fault"]["status"]))
        return plain


def plan(root: str | Path, *, machines: Sequence[str] | None = None, timeout: float = LOCK_PATIENCE) -> list[Plan]:
    """Tell what recovery would do to each machine's partition. Writes nothing, and takes the lock shared for that long.

    `timeout` is how long, in seconds, a writer may hold the lock. A partition that evledger wrote is left out: nothing
    of it is ever written. Raises `RootError`, `FormatError`, `LockTimeout`.
    """
    root = Path(root)
    report = verify(root, machines=machines)
    plans = []
    for machine in report.machines:
        path = root / machine.machine
        try:
            fd = open_folder(path)
        except FileNotFoundError:
            steps: list[Step] = []
        else:
            try:
                chain = read_chain(fd, path)
                if not chain.chained:
                    continue
                with _shared(fd, path, timeout) as state:
                    steps = _steps(fd, path, read_chain(fd, path), state)
            finally:
                os.close(fd)
        left = tuple(_around(path, fault) for fault in machine.faults if not _is_mended(fault, steps))
        plans.append(Plan(machine.machine, tuple(steps), left, machine.more_faults))
    return plans


def carry_out(root: str | Path, plans: Sequence[Plan], **settings: Any) -> list[Plan]:
    """Have the journal recover each partition whose plan has steps, and give what was done and what is left.

    `settings` are those of `Config`. What is set aside is durable before anything is cut. Raises what opening a journal
    raises.
    """
    done = []
    for planned in plans:
        if not planned.steps:
            done.append(planned)
            continue
        before = _quarantined(Path(root) / planned.machine)
        config = Config.resolve(root=root, machine=planned.machine, **{"service": "repair", **settings})
        with Journal(config=config) as journal:
            kept = tuple(sorted(_quarantined(journal.path) - before))
        done.append(Plan(planned.machine, planned.steps, planned.left, planned.more_left, kept))
    return done


def _quarantined(path: Path) -> set[str]:
    try:
        return set(os.listdir(path / QUARANTINE))
    except FileNotFoundError:
        return set()


@contextlib.contextmanager
def _shared(dir_fd: int, path: Path, timeout: float) -> Iterator[State | None]:
    """Hold the lock shared and give what its last holder left."""
    lock = PartitionLock(dir_fd, path, 0o600)
    try:
        fd = os.open(LOCK_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=dir_fd)
    except FileNotFoundError:
        yield None
        return
    try:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise LockTimeout(lock.why_locked(timeout), path=path / LOCK_FILE) from None
            time.sleep(0.01)
        yield decode_state(os.pread(fd, WIDTH, 0))
    finally:
        os.close(fd)


# The steps


def _steps(dir_fd: int, path: Path, chain: Chain, state: State | None) -> list[Step]:
    """Give what the journal would do, in its order."""
    steps = list(_bring_in_order(dir_fd, path, chain, state))
    return [*steps, *_forgotten(dir_fd, path, steps)]


def _bring_in_order(dir_fd: int, path: Path, chain: Chain, state: State | None) -> Iterator[Step]:
    """Give what the journal does in the function of this name; that it takes over another host's partition, only where
    there is more to do."""

    def size_of(name: SegmentName) -> int:
        fd = open_segment(dir_fd, name, shown=path)
        try:
            return file_size(fd)
        finally:
            os.close(fd)

    if chain.newest is None and state is None:
        return
    if state is not None and state.state != "idle":
        yield _after_failed_sync(dir_fd, path, chain, state)
        return
    found = inspect(dir_fd, path, chain, state)
    if found.place is None:
        if chain.newest is not None:
            yield from _header(dir_fd, path, chain.newest, size_of(chain.newest))
        return
    place = found.place
    way = way_on(chain, place, found.finding, lambda name: size_of(name) if name in list_segments(dir_fd) else -1)
    if way.cut and found.finding is not None:
        yield Step("cut", str(place.segment), place.offset, size_of(place.segment) - place.offset, found.finding.reason)
    header = chain.pieces[-1].header if chain.pieces else None
    foreign = header is not None and header.host != host_hash()
    if way.header is not None and not foreign:
        yield from _header(dir_fd, path, way.header, size_of(way.header))
    # Another host's unfinished segment is left to it, and ours begins behind it.
    left = foreign and way.header is not None and found.finding is not None and not way.cut
    if way.begin or left:
        reason = "it was closed by what follows it" if found.finding is None else str(found.finding)
        yield Step("segment", str(place.segment), place.offset, 0, f"damage, and what is there is left: {reason}")
    if way.cut and foreign:
        yield Step("segment", str(place.segment), place.offset, 0, "moved: its last writer was another host")


def _after_failed_sync(dir_fd: int, path: Path, chain: Chain, state: State) -> Step:
    why = "a sync failed, or its process died in it"
    if state.segment and is_synced_end(dir_fd, path, state):
        again = max(0, state.acked - state.synced)
        reason = f"fault: {why}; what was acknowledged behind the last sync is appended again"
        return Step("segment", state.segment, state.synced, again, reason)
    found = inspect(dir_fd, path, chain, None).place if chain.pieces else None
    segment, offset = (str(found.segment), found.offset) if found is not None else (state.segment, 0)
    return Step("segment", segment, offset, 0, f"fault: {why}")


def _header(dir_fd: int, path: Path, name: SegmentName, size: int) -> Iterator[Step]:
    fd = open_segment(dir_fd, name, shown=path)
    try:
        foreign = any(is_foreign(line) for _, line in lines(fd))
    finally:
        os.close(fd)
    if foreign:
        yield Step("segment", str(name), 0, 0, "damage: it holds lines of somebody else, which are left")
    else:
        yield Step("header", str(name), 0, size, "no valid record in the segment")


def _forgotten(dir_fd: int, path: Path, steps: Sequence[Step]) -> Iterator[Step]:
    """Give what is in quarantine without a record, but for what these steps set aside once more under the same name."""
    again = {_copied(dir_fd, path, step) for step in steps if step.kind in ("cut", "header")}
    for copy in forgotten(dir_fd, path):
        if copy.name not in again:
            reason = f"{QUARANTINE}/{copy.name} is named by no record"
            yield Step("record", str(copy.segment), copy.offset, copy.size, reason)


def _copied(dir_fd: int, path: Path, step: Step) -> str:
    fd = open_segment(dir_fd, step.segment, shown=path)
    try:
        return copy_name(f"{step.segment}.{step.offset}", blocks(fd, step.offset))
    finally:
        os.close(fd)


# What is left


def _is_mended(fault: Fault, steps: Sequence[Step]) -> bool:
    return any(
        fault.file == step.segment and step.kind in ("cut", "header") and fault.offset >= step.offset for step in steps
    )


def _around(path: Path, fault: Fault) -> Left:
    """Give a fault with the records around its place."""
    name = SegmentName.parse(fault.file)
    if name is None:
        return Left(fault, None, None, None)
    try:
        folder = open_folder(path)
        try:
            fd = open_segment(folder, name, shown=path)
        finally:
            os.close(folder)
    except (OSError, FormatError):
        return Left(fault, None, None, None)
    try:
        after = _first_right(fd, fault.offset)
        return Left(fault, _last_right(fd, fault.offset), after, None if after is None else after.offset - fault.offset)
    finally:
        os.close(fd)


def _first_right(fd: int, offset: int) -> Around | None:
    for at, line in lines(fd, offset, min(file_size(fd), offset + FARTHEST)):
        found = _record(at, line) if at > offset else None
        if found is not None:
            return found
    return None


def _last_right(fd: int, end: int) -> Around | None:
    stop = max(0, end - FARTHEST)
    while end > stop:
        offset, line = last_line(fd, end)
        found = _record(offset, line)
        if found is not None:
            return found
        end = offset
    return None


def _record(offset: int, line: bytes) -> Around | None:
    tail = check_line(line)
    if tail is None:
        return None
    try:
        record = parse(line)
    except FormatError:
        return None
    return Around(offset, tail.seq, record.type, record.time, record.id)
