"""What this process does to the files under a folder, call by call, with what it was told in between.

The calls are those of `os`, replaced while a `Recorder` is entered. They are done as asked, but for the faults that
the recorder was told to bring: syncs that fail, a disk that is full, and the death of the process.
"""

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otledger import Receipt

CALLS = ("open", "close", "write", "pwrite", "ftruncate", "fsync", "fdatasync", "mkdir", "unlink", "rename", "link")


class Killed(BaseException):
    """The process is no more. No code of ours may catch it; after it nothing is done."""


# Paths are relative to the folder that is watched. A handle is an opened file: descriptors are used again.


@dataclass(frozen=True, slots=True)
class Open:
    path: str
    handle: int
    creates: bool
    empties: bool


@dataclass(frozen=True, slots=True)
class Write:
    handle: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    handle: int
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    handle: int
    succeeds: bool


@dataclass(frozen=True, slots=True)
class MakeFolder:
    path: str


@dataclass(frozen=True, slots=True)
class Unlink:
    path: str


@dataclass(frozen=True, slots=True)
class Rename:
    path: str
    to: str


@dataclass(frozen=True, slots=True)
class Link:
    path: str
    to: str


Call = Open | Write | Truncate | Sync | MakeFolder | Unlink | Rename | Link


@dataclass(frozen=True, slots=True)
class Handed:
    """Events are handed in: from now on they may be there. Ids, and their payloads."""

    events: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Told:
    """They are acknowledged: from now on they must be there, after a power cut only if `durable`."""

    receipts: tuple[Receipt, ...]
    durable: bool


@dataclass(frozen=True, slots=True)
class Synced:
    """All that was acknowledged is durable."""


@dataclass(frozen=True, slots=True)
class Aside:
    """Bytes were set aside, durable."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Foreign:
    """Somebody who takes no lock writes a line to a segment."""

    line: bytes


@dataclass(frozen=True, slots=True)
class Died:
    """The process that did all that went before is no more; the calls that follow are another's."""


Entry = Call | Handed | Told | Synced | Aside | Foreign | Died


class Recorder:
    """Records while it is entered.

    `bad_syncs` are the syncs of segments, counted from 1, that fail. `full_at` counts writes to segments: that one
    is short, and the next is refused.
    """

    def __init__(self, top: Path, *, bad_syncs: tuple[int, ...] = (), full_at: tuple[int, ...] = ()) -> None:
        self.log: list[Entry] = []
        self._top = f"{top}/"
        self._bad_syncs, self._full_at = bad_syncs, full_at
        self._die_in, self._half = 0, False
        self._dies_in_sync, self._is_dead = 0, False
        self._syncs = self._writes = self._handles = 0
        self._is_full = False
        self._files: dict[int, tuple[int, str]] = {}
        self._real = {name: getattr(os, name) for name in CALLS}

    def die_in(self, changes: int, *, half: bool = False) -> None:
        """Let the process die before so many more calls that change something, or with `half` of a write done."""
        self._die_in, self._half = changes, half

    def die_in_sync(self, number: int = 1) -> None:
        """Let the sync of a segment with this number from now on fail, and the process die before it learns of that."""
        self._dies_in_sync = number

    def is_another_process(self) -> bool:
        """Go on as a process that lives. Tells whether the one before died."""
        died, self._is_dead, self._die_in = self._is_dead, False, 0
        self.note(Died())
        return died

    def __enter__(self) -> "Recorder":
        for name in CALLS:
            setattr(os, name, getattr(self, f"_{name}"))
        return self

    def __exit__(self, *_: object) -> None:
        for name, real in self._real.items():
            setattr(os, name, real)

    def note(self, entry: Entry) -> None:
        self.log.append(entry)

    def _path(self, path: Any, dir_fd: int | None = None) -> str | None:
        """The path below the watched folder, or None."""
        text = os.fspath(path)
        if dir_fd is not None:
            above = self._files.get(dir_fd)
            return None if above is None else f"{above[1]}/{text}".lstrip("/")
        text += "/" if f"{text}/" == self._top else ""
        return text.removeprefix(self._top) if text.startswith(self._top) else None

    def _handle(self, fd: int) -> int | None:
        file = self._files.get(fd)
        return None if file is None else file[0]

    def _is_segment(self, fd: int) -> bool:
        path = self._files[fd][1]
        return path.endswith(".jsonl") or "/.new." in path

    def _change(self, half: Callable[[], object] | None = None) -> None:
        if self._is_dead:
            raise Killed
        self._die_in -= 1
        if self._die_in == 0:
            self._is_dead = True
            if self._half and half is not None:
                half()
            raise Killed

    # What stands in for the calls

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        there = self._path(path, dir_fd)
        if there is not None and flags & (os.O_CREAT | os.O_TRUNC):
            self._change()
        fd: int = self._real["open"](path, flags, mode, dir_fd=dir_fd)
        if there is not None:
            self._handles += 1
            self._files[fd] = self._handles, there
            self.log.append(Open(there, self._handles, bool(flags & os.O_CREAT), bool(flags & os.O_TRUNC)))
        return fd

    def _close(self, fd: int) -> None:
        self._files.pop(fd, None)
        self._real["close"](fd)

    def _write(self, fd: int, data: Any) -> int:
        handle = self._handle(fd)
        if handle is None:
            return int(self._real["write"](fd, data))
        self._change(lambda: self._do_write(fd, handle, bytes(data)[: len(data) // 2]))
        if self._is_segment(fd):
            self._writes += 1
            if self._is_full:
                self._is_full = False
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._writes in self._full_at:
                self._is_full = True
                return self._do_write(fd, handle, bytes(data)[: len(data) * 2 // 3])
        return self._do_write(fd, handle, bytes(data))

    def _do_write(self, fd: int, handle: int, data: bytes) -> int:
        count: int = self._real["write"](fd, data)
        self.log.append(Write(handle, os.lseek(fd, 0, os.SEEK_CUR) - count, data[:count]))
        return count

    def _pwrite(self, fd: int, data: Any, offset: int) -> int:
        handle = self._handle(fd)
        if handle is not None:
            self._change()
        count: int = self._real["pwrite"](fd, data, offset)
        if handle is not None:
            self.log.append(Write(handle, offset, bytes(data)[:count]))
        return count

    def _ftruncate(self, fd: int, size: int) -> None:
        handle = self._handle(fd)
        if handle is not None:
            self._change()
            self.log.append(Truncate(handle, size))
        self._real["ftruncate"](fd, size)

    def _fsync(self, fd: int) -> None:
        self._sync("fsync", fd)

    def _fdatasync(self, fd: int) -> None:
        self._sync("fdatasync", fd)

    def _sync(self, name: str, fd: int) -> None:
        handle = self._handle(fd)
        if handle is not None:
            self._change()
            self._syncs += self._is_segment(fd)
            self._dies_in_sync -= self._is_segment(fd)
            self._is_dead = self._is_segment(fd) and self._dies_in_sync == 0
            fails = self._is_segment(fd) and self._syncs in self._bad_syncs
            self.log.append(Sync(handle, not (fails or self._is_dead)))
            if self._is_dead:
                raise Killed
            if fails:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._real[name](fd)

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        there = self._path(path, dir_fd)
        if there is not None:
            self._change()
        self._real["mkdir"](path, mode, dir_fd=dir_fd)
        if there is not None:
            self.log.append(MakeFolder(there))

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        there = self._path(path, dir_fd)
        if there is not None:
            self._change()
        self._real["unlink"](path, dir_fd=dir_fd)
        if there is not None:
            self.log.append(Unlink(there))

    def _rename(self, path: Any, to: Any, **options: Any) -> None:
        self._name("rename", Rename, path, to, options)

    def _link(self, path: Any, to: Any, **options: Any) -> None:
        self._name("link", Link, path, to, options)

    def _name(self, name: str, kind: type[Rename] | type[Link], path: Any, to: Any, options: dict[str, Any]) -> None:
        old = self._path(path, options.get("src_dir_fd"))
        new = self._path(to, options.get("dst_dir_fd"))
        if old is not None:
            self._change()
        self._real[name](path, to, **options)
        if old is not None and new is not None:
            self.log.append(kind(old, new))
