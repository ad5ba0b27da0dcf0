"""Folders and bytes on the disk: what is refused as a root, how a partition is made, writing all or raising."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from otledger.errors import RootError
from otledger.segment import open_folder

NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "fuse", "fuseblk")
"""File systems where flock or fdatasync may not do what the ledger needs."""


def file_system(path: Path) -> str:
    """Give the type of the file system that `path` is on, from the kernel's mount table; "" if unknown."""
    with suppress(OSError):
        device = os.stat(path).st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as table:
            for row in table:
                left, _, right = row.partition(" - ")
                if left.split()[2] == wanted:
                    return right.split()[0]
    return ""


def is_network(kind: str) -> bool:
    """Tell whether a file system of this type is refused as a root."""
    return kind in NETWORK or kind.startswith("fuse.")


def check_root(root: Path, *, force: bool) -> None:
    """Raise `RootError` if `root`, or where it would be made, cannot be used safely.

    `force` allows what is only doubtful.
    """
    try:
        fd = open_folder(root)
    except FileNotFoundError:
        _check_file_system(root, force=force)
        return
    try:
        info = os.fstat(fd)
        if not force and info.st_mode & stat.S_IWOTH:
            raise RootError(
                f"{root} may be written by everybody (mode {stat.S_IMODE(info.st_mode):04o}), so anybody could replace"
                f" the record; chmod o-w {root}, or use force=True",
                path=root,
            )
        if not os.access(root, os.W_OK | os.X_OK):
            raise RootError(f"{root} is not writable for this user; see its owner and permissions (ls -ld)", path=root)
    finally:
        os.close(fd)
    _check_file_system(root, force=force)


def _check_file_system(root: Path, *, force: bool) -> None:
    there = root.absolute()
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    kind = file_system(there)
    if not force and is_network(kind):
        raise RootError(
            f"{root} is on a {kind} file system, where locks and syncs cannot be relied on; use a local disk and ship"
            " the files, or force=True if you know better",
            path=root,
        )


def make_partition(root: Path, machine: str, mode: int) -> int:
    """Open the partition's folder, made with its root where missing, each durable in the folder above."""
    make_folder(root, mode)
    root_fd = open_folder(root)
    try:
        try:
            os.mkdir(machine, mode, dir_fd=root_fd)
        except FileExistsError:
            pass
        except OSError as error:
            raise RootError(f"{root / machine}: cannot be made: {error.strerror}", path=root / machine) from None
        else:
            fd = open_folder(machine, dir_fd=root_fd, shown=root / machine)
            os.fchmod(fd, mode)
            os.close(fd)
        # Whoever made these may have died before their names were durable.
        sync_folder(root_fd)
        _sync_above(root)
        return open_folder(machine, dir_fd=root_fd, shown=root / machine)
    finally:
        os.close(root_fd)


def make_folder(path: Path, mode: int) -> None:
    """Make a folder and those above it that are missing, each durable in the one above. Raises `RootError`."""
    missing = []
    at = path
    while not os.path.lexists(at):
        missing.append(at)
        at = at.parent
    for folder in reversed(missing):
        try:
            os.mkdir(folder, mode)
        except FileExistsError:
            continue
        except OSError as error:
            raise RootError(
                f"{path}: the ledger's folder cannot be made: {folder}: {error.strerror}; give another path, or make"
                " it and give this user write permission",
                path=path,
            ) from None
        os.chmod(folder, mode)
        above = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_folder(above)
        finally:
            os.close(above)


def _sync_above(path: Path) -> None:
    with suppress(PermissionError):
        fd = os.open(path.absolute().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_folder(fd)
        finally:
            os.close(fd)


def sync_folder(fd: int) -> None:
    """Make the names in a folder durable."""
    os.fsync(fd)


def give_name(folder: int, old: str, new: str) -> None:
    """Rename a file within a folder; FileExistsError where the name is taken, also by another host at this moment."""
    try:
        os.link(old, new, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        # A file system without hard links. Only the lock keeps others from the name there.
        if new in os.listdir(folder):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new) from error
        os.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)
    else:
        os.unlink(old, dir_fd=folder)


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`, going on after short writes. Raises OSError."""
    view = memoryview(data)
    while view:
        count = os.write(fd, view)
        if count == 0:
            raise OSError(errno.EIO, "nothing was written")
        view = view[count:]


def set_mode(fd: int, mode: int) -> None:
    """Give what this user owns its mode, whatever the umask; what another made keeps the one that it has."""
    with suppress(PermissionError):
        os.fchmod(fd, mode)
