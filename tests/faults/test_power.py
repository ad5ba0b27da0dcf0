"""Power cuts on ext4 and xfs: what was acknowledged before one is there when the file system is mounted again.

The file systems are in files, and are shut down under the writers by an ioctl which makes the kernel drop what the
disk does not have yet. Each is made once: mkfs would cost more than all the rest.
"""

import ctypes
import fcntl
import os
import random
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from otledger import Receipt, Status, identity
from tests.faults.conftest import Say
from tests.faults.tools import Told, everything_told_is_there, needs_root, wait_until
from tests.faults.writers import Group, Writers

CUTS = {"short": 200, "long": 2000}
"""How many power cuts there are in all, over both file systems."""
CUTS_A_LEDGER = 10

SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN
NOTHING_FLUSHED, LOG_FLUSHED = 2, 1
"""What the disk gets at the cut: nothing more, or the log of the file system, so sizes and names without data."""

KINDS: list[dict[str, Any]] = [
    {"kind": "journal", "durability": "disk", "least": 100, "most": 20_000},
    {"kind": "threads", "durability": "disk", "least": 100, "most": 20_000, "min_free": 0},
    {"kind": "journal", "durability": "os", "least": 100, "most": 20_000, "options": {"told_when": "synced"}},
    {"kind": "tasks", "durability": "disk", "least": 1000, "most": 100_000, "min_free": 0},
    # New files and folders all the time, whose names must be durable too.
    {"kind": "journal", "durability": "disk", "least": 100, "most": 2000, "max_segment": 20_000,
     "checkpoint_interval": 0.0},
]  # fmt: skip

MAKE = {
    "ext4": (["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"], 48 << 20, "e2fsprogs"),
    "xfs": (["mkfs.xfs", "-q", "-f"], 320 << 20, "xfsprogs"),
}
"""Command, size of the image (the least that it takes; of zeros that take no place), Debian package."""


class Disk:
    """A file system in a file, which loses its power."""

    def __init__(self, kind: str, image: Path, at: Path) -> None:
        self.kind, self.at = kind, at
        command, size, package = MAKE[kind]
        if shutil.which(command[0]) is None:
            pytest.skip(f"{command[0]} is not installed (apt-get install {package})")
        image.touch()
        os.truncate(image, size)
        subprocess.run([*command, str(image)], check=True, capture_output=True)
        at.mkdir()
        done = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no loop device here: {done.stderr.strip()}")
        self.device = done.stdout.strip()
        self._libc = ctypes.CDLL(None, use_errno=True)

    def mount(self) -> None:
        """Mount it, which plays its log."""
        arguments = (self.device.encode(), str(self.at).encode(), self.kind.encode(), 0, None)
        if self._libc.mount(*arguments):
            raise OSError(ctypes.get_errno(), f"mount {self.device}")

    def unmount(self) -> None:
        # Who was just killed may still hold a file.
        wait_until(lambda: not self._libc.umount2(str(self.at).encode(), 0), f"{self.at} can be unmounted")

    def cut(self, how: int) -> None:
        """Have the kernel drop everything that is not on the disk, and refuse all that comes."""
        fd = os.open(self.at, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", how))
        finally:
            os.close(fd)

    def detach(self) -> None:
        self._libc.umount2(str(self.at).encode(), 2)  # MNT_DETACH; it may be unmounted already
        subprocess.run(["losetup", "--detach", self.device], check=True)


@contextmanager
def disk(kind: str, folder: Path) -> Iterator[Disk]:
    """A disk whose image is in the memory where there is such a place: the kernel drops the same in either case."""
    shm = Path("/dev/shm")
    image = (shm if os.access(shm, os.W_OK) else folder) / f"otledger-{os.getpid()}-{kind}"
    try:
        made = Disk(kind, image, folder / kind)
        try:
            made.mount()
            made.at.chmod(0o700)
            yield made
        finally:
            made.detach()
    finally:
        image.unlink(missing_ok=True)


@pytest.fixture
def boots(tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Has this process, and those that it tells, be in another boot each time that it is called."""
    file, real = tmp_path / "boot_id", identity.BOOT_ID_FILE
    count = 0

    def boot() -> str:
        nonlocal count
        count += 1
        file.write_text(f"00000000-0000-0000-0000-{count:012}\n")
        identity.BOOT_ID_FILE = str(file)
        identity.boot_id.cache_clear()
        return str(file)

    yield boot
    identity.BOOT_ID_FILE = real
    identity.boot_id.cache_clear()


@needs_root
@pytest.mark.parametrize("kind", list(MAKE))
def test_power_cuts(
    tmp_path: Path,
    campaign: str,
    boots: Callable[[], str],
    kind: str,
    say: Say,
) -> None:
    """Two processes each time. Now and then the power fails again while what it left is being recovered."""
    chance = random.Random(os.urandom(8))
    cuts, statuses, looked_up = 0, dict.fromkeys(Status, 0), 0
    with disk(kind, tmp_path) as at, Writers() as writers:
        while cuts < CUTS[campaign] // len(MAKE):
            settings = KINDS[cuts // CUTS_A_LEDGER % len(KINDS)]
            root, told = at.at / f"ledger{cuts}", Told()
            for _ in range(CUTS_A_LEDGER):
                group = writers.start(root, tmp_path / f"acks{cuts}", processes=2, seed=cuts, boot=boots(), **settings)
                told.note(cut_in_the_middle(at, group, chance, wait=chance.random() < 0.8))
                cuts += 1
                if chance.random() < 0.2:
                    # Whoever writes next recovers first.
                    continue
                boots()
                status, _ = everything_told_is_there(root, told, exact=settings["durability"] == "disk")
                statuses[status] += 1
            looked_up += len(told)
            shutil.rmtree(root)
    found = ", ".join(f"{count} {status}" for status, count in statuses.items() if count)
    say(f"{kind}: {cuts} power cuts, {looked_up} acknowledged records looked up; left behind: {found}", cuts=cuts)
    assert cuts >= CUTS[campaign] // len(MAKE)
    assert looked_up >= 5 * cuts


def cut_in_the_middle(at: Disk, group: Group, chance: random.Random, *, wait: bool) -> list[Receipt]:
    """Cut the power under writers, and give what they had been told before, and not a moment later."""
    if wait:
        wait_until(group.is_writing, "the first acknowledgement", 60)
    time.sleep(chance.uniform(0.0, 0.03))
    receipts = group.acknowledged()
    at.cut(chance.choice([NOTHING_FLUSHED, NOTHING_FLUSHED, LOG_FLUSHED]))
    group.kill()
    at.unmount()
    at.mount()
    return receipts
