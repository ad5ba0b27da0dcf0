"""`.lock`: the writers' flock, and what the last of them left to know (format, 6).

The file holds one line of JSON, padded with spaces to a fixed width. It is a hint for one boot only: after
another boot nothing in it is believed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from otledger.batch import MAX_SEQ
from otledger.errors import LockTimeout, RootError
from otledger.identity import boot_id
from otledger.segment import LOCK_FILE, SegmentName

WIDTH = 1024
"""Bytes of the state in the file. Less than a page, so that a killed writer leaves the old or the new."""


class State(msgspec.Struct):
    """What the last holder of the lock left. Sizes are bytes, `seq` and `synced_seq` count records."""

    boot: str = ""
    pid: int = 0
    state: Literal["idle", "syncing", "failed"] = "idle"
    segment: str = ""
    """The newest segment that has acknowledged records."""
    acked: int = 0
    """Where the acknowledged bytes of `segment` end."""
    synced: int = 0
    """Where its bytes end that were durable for certain."""
    seq: int = 0
    """The `seq` of the next record."""
    head: str = ""
    """The checksum of the last acknowledged record."""
    synced_seq: int = 0
    synced_head: str = ""
    checkpoint: float = 0.0
    """When the last checkpoint was written, in seconds since boot."""
    checkpoint_size: int = 0
    """How many records it covers."""
    checkpoint_seq: int = -1
    """Its own `seq`."""
    wall: int = 0
    """The clock at the last batch at which it was believed, in nanoseconds since the epoch."""
    monotonic: int = 0
    """The same instant in nanoseconds since boot."""


_HEAD = re.compile(r"[0-9a-f]{64}", re.ASCII)
_decoder = msgspec.json.Decoder(State)
_encoder = msgspec.json.Encoder()


def decode_state(content: bytes) -> State | None:
    """Give the state that `.lock` holds, or None if it is of another boot or cannot be read."""
    try:
        state = _decoder.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return state if state.boot == boot_id() and _can_be_true(state) else None


def _can_be_true(state: State) -> bool:
    """Tell whether the members fit each other; they are written by this module, but in a file that others reach."""
    if SegmentName.parse(state.segment) is None:
        # Before the first segment is durable there is nothing to point to.
        return state.segment == "" and state.state == "failed" and state.seq == state.acked == state.synced == 0
    return (
        0 <= state.synced <= state.acked
        and state.seq <= MAX_SEQ
        and state.synced_seq >= 0
        and (state.synced_seq <= state.seq or state.state != "idle")
        and -1 <= state.checkpoint_seq <= state.seq
        and 0 <= state.checkpoint_size <= state.seq
        and all(_HEAD.fullmatch(head) for head in (state.head, state.synced_head))
    )


class PartitionLock:
    """The flock of one partition, on a file that is never unlinked or replaced.

    `dir_fd` is the partition's folder and stays its opener's.
    """

    def __init__(self, dir_fd: int, path: Path, mode: int) -> None:
        self._dir_fd = dir_fd
        self._path = path / LOCK_FILE
        self._mode = mode
        self._fd = -1
        self.waiting = False
        """Whether `acquire` is blocked by another holder at this moment."""

    def acquire(self, timeout: float | None, on_wait: Callable[[], None] | None = None) -> None:
        """Take the lock; afterwards `.lock` is still the file at its path.

        Blocks in the kernel, which serves waiters fairly. With `timeout` (seconds) it gives up and raises
        `LockTimeout`. `on_wait` is called once when the lock is taken. Raises FileNotFoundError where the
        partition's folder is gone.
        """
        waited = False
        while True:
            if self._fd < 0:
                self._open()
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if on_wait is not None and not waited:
                    on_wait()
                waited = self.waiting = True
                try:
                    self._block(timeout)
                finally:
                    self.waiting = False
            if self._still_there():
                return
            self.close()

    def _block(self, timeout: float | None) -> None:
        if timeout is None:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            return
        deadline = time.monotonic() + timeout
        pause = 0.001
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise LockTimeout(self.why_locked(timeout), path=self._path) from None
            time.sleep(pause)
            pause = min(pause * 2, 0.05)

    def why_locked(self, seconds: float) -> str:
        """Give the message for a lock that another has held for `seconds`."""
        holder = self.holder()
        who = f"process {holder}" if holder else "another process"
        return (
            f"{self._path} is held by {who} for more than {seconds:.1f} s; it is never broken:"
            f" see what that process does{f' (ps -fp {holder})' if holder else ''}, or end it"
        )

    def holder(self) -> int | None:
        """Give the process that holds the lock, as far as the kernel tells."""
        try:
            info = os.stat(LOCK_FILE, dir_fd=self._dir_fd, follow_symlinks=False)
            major, minor = os.major(info.st_dev), os.minor(info.st_dev)
            locks = [row.split() for row in Path("/proc/locks").read_text("ascii").splitlines()]
            places = {fields[5]: int(fields[4]) for fields in locks if fields[1] == "FLOCK"}
            exact = places.get(f"{major:02x}:{minor:02x}:{info.st_ino}")
            mounts = Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines()
            if exact is not None or f"{major}:{minor}" in [mount.split()[2] for mount in mounts]:
                return exact
        except (OSError, IndexError, ValueError):
            return None
        # btrfs and overlayfs show another device there: the inode must do, if it is the only one of its number.
        alike = [pid for place, pid in places.items() if place.rpartition(":")[2] == str(info.st_ino)]
        return alike[0] if len(alike) == 1 else None

    def release(self) -> None:
        """Let the lock go. Never raises: what was done under it is done."""
        if self._fd >= 0:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            except OSError:
                # Closing lets it go as well.
                self.close()

    def close(self) -> None:
        """Close the file, and with it the lock unless another process shares it through a fork."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self) -> State | None:
        """Give what the last holder left, or None if that was in another boot or cannot be read."""
        return decode_state(os.pread(self._fd, WIDTH, 0))

    def write(self, state: State) -> None:
        """Leave `state` for the next holder. Raises OSError where it is not there as a whole."""
        state.boot = boot_id()
        state.pid = os.getpid()
        content = _encoder.encode(state).ljust(WIDTH - 1) + b"\n"
        done = os.pwrite(self._fd, content, 0)
        if done == WIDTH:
            return
        while 0 < done < WIDTH and (count := os.pwrite(self._fd, content[done:], done)):
            done += count
        if os.pread(self._fd, WIDTH, 0) != content:
            raise OSError(errno.EIO, f"{LOCK_FILE} was written in part only")

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            fd = os.open(LOCK_FILE, flags, self._mode, dir_fd=self._dir_fd)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise RootError(
                f"{self._path}: cannot be opened for writing: {error.strerror}; the program needs to own it or"
                " to have write permission",
                path=self._path,
            ) from None
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            os.close(fd)
            raise RootError(f"{self._path} is no regular file; move it out of the ledger", path=self._path)
        if info.st_size == 0 and info.st_uid == os.geteuid():
            os.fchmod(fd, self._mode)
        self._fd = fd

    def _still_there(self) -> bool:
        """Tell whether the locked file is the one at its path; FileNotFoundError: the folder is not.

        By its whole path, as the folder may have been moved away, or replaced, with the file in it.
        """
        try:
            if _same(os.fstat(self._fd), os.lstat(self._path)):
                return True
        except FileNotFoundError:
            pass
        if not _same(os.fstat(self._dir_fd), os.stat(self._path.parent)):
            raise FileNotFoundError(f"{self._path.parent} was replaced")
        return False


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
