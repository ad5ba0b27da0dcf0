"""A disk as crashes leave it: what was synced is there, and of everything else any part may be.

A file is made of sectors. Each holds what it held after some change since the last sync that covered it; the size
is that after some change too, or any in between. A name is there once its folder was synced. A sync that fails
drops the sectors that it should have written: no later sync covers them, unless they are written again, although
it may succeed (as PostgreSQL found in 2018). The names in a folder, which file systems keep in a log of their own,
are covered by the next sync of it that succeeds.
"""

import copy
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from random import Random

from tests.faults.recorder import Call, Entry, Link, MakeFolder, Open, Rename, Sync, Truncate, Unlink, Write

SECTOR = 512
PAGE = 4096
STALE = bytes(Random(7).randbytes(SECTOR))
"""What may stand in a sector that was given to a file and never written."""

Version = int
OLD_BYTES: Version = -1
"""Instead of a version: what stood there before the sector was this file's."""


@dataclass(frozen=True, slots=True)
class State:
    """What a crash leaves: the contents of the files, and all folders, by their paths."""

    files: dict[str, bytes] = field(default_factory=dict)
    folders: frozenset[str] = frozenset()

    def write(self, top: Path) -> None:
        """Make the files below a folder, which is empty."""
        for path in sorted(self.folders):
            os.mkdir(f"{top}/{path}", 0o700)
        for path, content in self.files.items():
            fd = os.open(f"{top}/{path}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(fd, content)
            os.close(fd)

    @classmethod
    def read(cls, top: Path) -> "State":
        """What is below a folder."""
        files: dict[str, bytes] = {}
        folders: set[str] = set()
        waiting = [""]
        while waiting:
            above = waiting.pop()
            with os.scandir(f"{top}/{above}") as entries:
                for entry in entries:
                    path = f"{above}{entry.name}"
                    if entry.is_dir():
                        folders.add(path)
                        waiting.append(f"{path}/")
                    else:
                        files[path] = _read(entry.path)
        return cls(files, frozenset(folders))


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)


class File:
    """A file with the contents that it had after each change since all of it was durable, that one first."""

    def __init__(self, content: bytes = b"") -> None:
        self.dirty: set[int] = set()
        self.dropped: set[int] = set()
        self._is_durable(content)

    def _is_durable(self, content: bytes) -> None:
        self.versions = [content]
        self.surely: dict[int, Version] = {}
        """The version that a sector has on the disk at least; 0 where nothing is said."""
        self.size_surely: Version = 0

    @property
    def content(self) -> bytes:
        """What a process reads."""
        return self.versions[-1]

    def write(self, offset: int, data: bytes) -> None:
        old = self.content
        if data:
            self._change(old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :], offset, len(data))

    def truncate(self, size: int) -> None:
        old = self.content
        self._change(old[:size].ljust(size, b"\0"), min(size, len(old)), abs(len(old) - size))

    def _change(self, content: bytes, offset: int, length: int) -> None:
        sectors = range(offset // SECTOR, -(-(offset + length) // SECTOR))
        self.versions.append(content)
        self.dirty.update(sectors)
        self.dropped.difference_update(sectors)

    def sync(self, *, succeeds: bool) -> None:
        if not succeeds:
            self.dropped |= self.dirty
        else:
            newest = len(self.versions) - 1
            self.surely.update(dict.fromkeys(self.dirty, newest))
            self.size_surely = newest
            if not self.dropped:
                self._is_durable(self.content)
        self.dirty.clear()

    def undecided(self, grain: int) -> list[list[int]]:
        """The sectors that may have one of several contents, in groups that are written together."""
        groups: dict[int, list[int]] = {}
        for sector in sorted(self.dirty | self.dropped):
            groups.setdefault(sector * SECTOR // grain, []).append(sector)
        return list(groups.values())

    def as_left(self, chosen: dict[int, Version], size: int) -> bytes:
        """The content with these versions of sectors; all others are as a process reads them."""
        made = bytearray(self.content[:size].ljust(size, b"\0"))
        for sector, version in chosen.items():
            begin, end = sector * SECTOR, min((sector + 1) * SECTOR, size)
            if begin < end:
                old = version == OLD_BYTES and begin >= len(self.versions[self.size_surely])
                part = STALE if old else self.versions[max(version, self.surely.get(sector, 0))][begin:end]
                made[begin:end] = part[: end - begin].ljust(end - begin, b"\0")
        return bytes(made)

    def plain_states(self, grain: int) -> Iterator[bytes]:
        """Those that are worth a try each time: nothing, all, and one group too few or too many, in any order."""
        newest = len(self.versions) - 1
        sizes = [len(version) for version in self.versions[self.size_surely :]]
        groups = self.undecided(grain)
        none = {sector: 0 for group in groups for sector in group}
        yield self.as_left(none, sizes[0])
        yield self.content
        yield self.as_left(none, sizes[-1])
        yield self.as_left(dict.fromkeys(none, OLD_BYTES), sizes[-1])
        for size in sizes:
            yield self.as_left({}, size)
            yield self.as_left(none, size)
        for at, group in enumerate(groups):
            alone = dict.fromkeys(group, newest)
            before = {sector: newest for other in groups[:at] for sector in other}
            behind = {sector: newest for other in groups[at:] for sector in other}
            missing = dict.fromkeys(group, 0)
            end = (group[-1] + 1) * SECTOR
            for chosen in (none | alone, none | before, none | behind, missing, dict.fromkeys(group, OLD_BYTES)):
                yield self.as_left(chosen, sizes[-1])
            yield self.as_left(none | before, min(sizes[-1], end))
            yield self.as_left({}, min(sizes[-1], end))
        for version in range(self.size_surely, newest):
            yield self.as_left(dict.fromkeys(none, version), sizes[-1])
            yield self.as_left(dict.fromkeys(none, version), len(self.versions[version]))

    def random_state(self, chance: Random) -> bytes:
        """Any of all the others."""
        newest = len(self.versions) - 1
        sizes = [len(version) for version in self.versions[self.size_surely :]]
        size = chance.choice(sizes) if chance.random() < 0.7 else chance.randint(min(sizes), max(sizes))
        low = chance.choice((OLD_BYTES, 0, 0))
        bias = chance.random()
        chosen: dict[int, Version] = {}
        for group in self.undecided(chance.choice((SECTOR, PAGE))):
            version = newest if chance.random() < bias else chance.randint(low, newest)
            chosen.update(dict.fromkeys(group, version))
        return self.as_left(chosen, size)


class Folder:
    """A folder with the names in it that are durable, and the changes since."""

    def __init__(self, names: "dict[str, File | Folder] | None" = None) -> None:
        self.durable = dict(names or {})
        self.changes: list[dict[str, File | Folder | None]] = []
        self.names = dict(self.durable)
        """What a process sees."""

    def change(self, change: "dict[str, File | Folder | None]") -> None:
        self.changes.append(change)
        self.names = _changed(self.names, change)

    def sync(self) -> None:
        self.durable = dict(self.names)
        self.changes = []

    def after(self, kept: Iterable[int]) -> "dict[str, File | Folder]":
        """The names if only these changes reached the disk."""
        names = self.durable
        for at in kept:
            names = _changed(names, self.changes[at])
        return names

    def choices(self) -> list[tuple[int, ...]]:
        """Which changes may have reached the disk: any of a few; of many all, those up to one, all but one, or one."""
        every = range(len(self.changes))
        if len(every) <= 3:
            return [kept for size in range(len(every) + 1) for kept in combinations(every, size)]
        found = [tuple(every[:at]) for at in range(len(every) + 1)]
        return found + [(at,) for at in every] + [tuple(one for one in every if one != at) for at in every]


def _changed(
    names: "dict[str, File | Folder]", change: "dict[str, File | Folder | None]"
) -> "dict[str, File | Folder]":
    both: dict[str, File | Folder | None] = {**names, **change}
    return {name: node for name, node in both.items() if node is not None}


class Disk:
    """The disk below the watched folder, which follows the recorded calls. What it begins with is durable."""

    def __init__(self, begin: State | None = None) -> None:
        self.top = Folder()
        self.handles: dict[int, File | Folder] = {}
        if begin is not None:
            for path in sorted(begin.folders):
                self._above(path).names[path.rpartition("/")[2]] = Folder()
            for path, content in begin.files.items():
                self._above(path).names[path.rpartition("/")[2]] = File(content)
            for folder in self._folders():
                folder.sync()

    def copy(self) -> "Disk":
        """Another disk in the same state."""
        return copy.deepcopy(self)

    def _folders(self) -> Iterator[Folder]:
        waiting = [self.top]
        while waiting:
            folder = waiting.pop()
            yield folder
            there = {**folder.durable, **folder.names}.values()
            waiting += [node for node in there if isinstance(node, Folder)]

    def _node(self, path: str) -> "File | Folder | None":
        node: File | Folder | None = self.top
        for name in path.split("/") if path else ():
            assert isinstance(node, Folder)
            node = node.names.get(name)
        return node

    def _above(self, path: str) -> Folder:
        node = self._node(path.rpartition("/")[0])
        assert isinstance(node, Folder)
        return node

    def follow(self, entry: Entry) -> bool:
        """Do what a recorded call did. Tells whether a crash may leave something else now."""
        if not isinstance(entry, Call):
            return False
        match entry:
            case Open(path, handle, creates, empties):
                return self._open(path, handle, creates, empties)
            case Write(handle, offset, data):
                self._file(handle).write(offset, data)
            case Truncate(handle, size):
                self._file(handle).truncate(size)
            case Sync(handle, succeeds):
                node = self.handles[handle]
                if isinstance(node, File):
                    node.sync(succeeds=succeeds)
                else:
                    node.sync()
            case MakeFolder(path):
                self._above(path).change({path.rpartition("/")[2]: Folder()})
            case Unlink(path):
                self._above(path).change({path.rpartition("/")[2]: None})
            case Link(path, to):
                self._above(to).change({to.rpartition("/")[2]: self._node(path)})
            case Rename(path, to):
                self._rename(path, to)
        return True

    def _file(self, handle: int) -> File:
        node = self.handles[handle]
        assert isinstance(node, File)
        return node

    def _open(self, path: str, handle: int, creates: bool, empties: bool) -> bool:
        node = self._node(path)
        changes = node is None
        if node is None:
            assert creates, path
            node = File()
            self._above(path).change({path.rpartition("/")[2]: node})
        elif empties and isinstance(node, File) and node.content:
            node.truncate(0)
            changes = True
        self.handles[handle] = node
        return changes

    def _rename(self, path: str, to: str) -> None:
        node, old, new = self._node(path), path.rpartition("/")[2], to.rpartition("/")[2]
        if self._above(path) is self._above(to):
            self._above(path).change({old: None, new: node})
        else:
            self._above(to).change({new: node})
            self._above(path).change({old: None})

    # What is left

    def after_kill(self) -> State:
        """What a process left that was killed: what it saw."""
        return _state({id(folder): folder.names for folder in self._folders()}, self.top, {})

    def after_power_cut(self, chance: Random, draws: int) -> Iterator[State]:
        """States that a power cut may leave: the plain ones, and `draws` others for each choice of names."""
        every = {id(folder): folder.names for folder in self._folders()}
        changed = [folder for folder in self._folders() if folder.changes]
        seen = [every, every | {id(folder): folder.durable for folder in changed}]
        for folder in changed:
            chosen = map(folder.after, folder.choices())
            seen += [one for names in chosen if (one := every | {id(folder): names}) not in seen]
        for names in seen:
            yield from self._with_names(names, chance, draws)

    def _with_names(self, names: "dict[int, dict[str, File | Folder]]", chance: Random, draws: int) -> Iterator[State]:
        undecided = [file for file in _files(names, self.top) if file.dirty or file.dropped]
        if not undecided:
            yield _state(names, self.top, {})
            return
        for focus in undecided:
            plain = {content: None for grain in (SECTOR, PAGE) for content in focus.plain_states(grain)}
            for content in plain:
                others = {id(file): _any(file, chance) for file in undecided if file is not focus}
                yield _state(names, self.top, others | {id(focus): content})
        for _ in range(draws):
            yield _state(names, self.top, {id(file): file.random_state(chance) for file in undecided})


def _any(file: File, chance: Random) -> bytes:
    kind = chance.randrange(3)
    return file.content if kind == 0 else next(file.plain_states(PAGE)) if kind == 1 else file.random_state(chance)


def _files(names: "dict[int, dict[str, File | Folder]]", folder: Folder) -> Iterator[File]:
    for node in names[id(folder)].values():
        if isinstance(node, File):
            yield node
        else:
            yield from _files(names, node)


def _state(names: "dict[int, dict[str, File | Folder]]", top: Folder, contents: dict[int, bytes]) -> State:
    files: dict[str, bytes] = {}
    folders: set[str] = set()
    waiting: list[tuple[str, Folder]] = [("", top)]
    while waiting:
        above, folder = waiting.pop()
        for name, node in names[id(folder)].items():
            path = f"{above}{name}"
            if isinstance(node, File):
                files[path] = contents.get(id(node), node.content)
            else:
                folders.add(path)
                waiting.append((f"{path}/", node))
    return State(files, frozenset(folders))
