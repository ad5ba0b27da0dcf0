"""Holding a partition's files against what `.lock` says that this boot's writers acknowledged (format, 6)."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from otledger.batch import checksum_of
from otledger.lock import WIDTH, State, decode_state
from otledger.segment import LOCK_FILE, SegmentName, last_line
from otledger.verifying.files import Files
from otledger.verifying.findings import Findings
from otledger.verifying.report import Status


def check_acknowledged(files: Files, state: State | None, found: Findings) -> None:
    """Note where less is there than was acknowledged, or something else."""
    if state is None or not state.seq or state.state != "idle":
        return
    name = SegmentName.parse(state.segment)
    if name is None or files.sizes.get(name, -1) < state.acked:
        there = files.sizes.get(name, 0) if name is not None else 0
        reason = f"{state.acked} bytes were acknowledged, and {there} are there"
        found.fault(Status.TAMPERED, state.segment, there, None, reason)
        return
    with files.opened(name) as fd:
        offset, line = last_line(fd, state.acked)
    if checksum_of(line).decode("ascii", "replace") != state.head:
        reason = "the last acknowledged record is not the one that was written"
        found.fault(Status.TAMPERED, state.segment, offset, state.seq - 1, reason)


@contextmanager
def shared_lock(dir_fd: int) -> Iterator[State | None]:
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
