"""A witness's place that is a folder: each accepted note is a file of its own, numbered, and never touched again.

`PLACE/<UUID of the chain>/<number // 1000>/<number>.json`. Who gets the next number's name has it: this is the
comparison with what was there, and it is atomic on every file system that has hard links, without a lock. So two
witnesses never both follow the same note, a crash leaves what was there, and the folder may be append-only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from otledger.errors import RootError
from otledger.folder import give_name, make_folder, sync_folder, write_all
from otledger.notes import origin_of
from otledger.witnesses.kept import (
    MAX_ENTRY,
    MOST_REFUSED,
    RefusedNote,
    WitnessedNote,
    WitnessError,
    chain_of,
)

SHELF = 1000
"""Notes in one folder."""
_SHELF = re.compile(r"\d{6}", re.ASCII)
_ENTRY = re.compile(r"(\d{9})\.json", re.ASCII)
_CHAIN = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}")


class FolderPlace:
    """Notes in a folder, which is made where it is missing when the first note comes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def is_there(self) -> bool:
        """Tell whether there is such a folder."""
        return self.path.is_dir()

    def origins(self) -> list[str]:
        """Give the chains of which there is a note, sorted."""
        chains = [name for name in self._names(self.path) if _CHAIN.fullmatch(name)]
        return [origin_of(chain) for chain in sorted(chains) if self._last(self.path / chain) >= 0]

    def newest(self, origin: str) -> WitnessedNote | None:
        """Give the note that the folder has of a chain."""
        number = self._last(self.path / chain_of(origin))
        return self._read(origin, number) if number >= 0 else None

    def history(self, origin: str) -> Iterator[WitnessedNote]:
        """Give all the notes that were accepted, the oldest first. Raises `WitnessError` where one is missing."""
        before = ""
        for number in range(self._last(self.path / chain_of(origin)) + 1):
            entry = self._read(origin, number)
            if entry.previous != before:
                where = self._file(origin, number)
                raise WitnessError(f"{where}: it follows another note than {number - 1}.json holds", path=where)
            before = entry.digest
            yield entry

    def put(self, entry: WitnessedNote) -> bool:
        """Make `entry` the newest, durable on return, if its number is the next one; else give False."""
        path = self._file(entry.origin, entry.number)
        if self._last(self.path / chain_of(entry.origin)) + 1 != entry.number:
            return False
        return self._keep(path, entry.encode())

    def refuse(self, origin: str, refused: RefusedNote) -> None:
        """Keep a refused note, once."""
        folder = self.path / chain_of(origin) / "refused"
        if len(self._names(folder)) < MOST_REFUSED:
            self._keep(folder / f"{refused.name}.json", refused.encode())

    def refused(self, origin: str) -> tuple[RefusedNote, ...]:
        """Give the refused notes of a chain, oldest first."""
        folder = self.path / chain_of(origin) / "refused"
        files = [folder / name for name in self._names(folder) if re.fullmatch(r"[0-9a-f]{16}\.json", name)]
        found = [RefusedNote.decode(_content(file), str(file)) for file in files]
        return tuple(sorted(found, key=lambda refused: refused.taken))

    def _file(self, origin: str, number: int) -> Path:
        return self.path / chain_of(origin) / f"{number // SHELF:06d}" / f"{number:09d}.json"

    def _last(self, folder: Path) -> int:
        """Give the number of the newest note; -1 without any."""
        for shelf in sorted(filter(_SHELF.fullmatch, self._names(folder)), reverse=True):
            numbers = [int(match[1]) for match in map(_ENTRY.fullmatch, self._names(folder / shelf)) if match]
            if numbers:
                return max(numbers)
        return -1

    def _read(self, origin: str, number: int) -> WitnessedNote:
        path = self._file(origin, number)
        entry = WitnessedNote.decode(_content(path), origin, str(path))
        if entry.number != number:
            raise WitnessError(
                f"{path}: this is the note of number {entry.number}, and stands there as another", path=path
            )
        return entry

    def _names(self, folder: Path) -> list[str]:
        try:
            return os.listdir(folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _cannot("read", folder, error) from None

    def _keep(self, path: Path, content: bytes) -> bool:
        """Make a file with this content, durable on return; False where there is one of the name."""
        try:
            make_folder(path.parent, 0o755)
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # Where hard links are missing, only this keeps two apart.
                with contextlib.suppress(OSError):
                    fcntl.flock(folder, fcntl.LOCK_EX)
                return _make(folder, path.name, content)
            finally:
                os.close(folder)
        except RootError as error:
            raise WitnessError(str(error), path=path) from None
        except OSError as error:
            raise _cannot("written", path, error) from None


def _make(folder: int, name: str, content: bytes) -> bool:
    """Make a file; it has its name only when all of it is durable."""
    unnamed = f".new.{secrets.token_hex(8)}"
    fd = os.open(unnamed, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=folder)
    try:
        try:
            write_all(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        give_name(folder, unnamed, name)
    except FileExistsError:
        os.unlink(unnamed, dir_fd=folder)
        # Whoever made it may have died before its name was durable, and we tell of it.
        sync_folder(folder)
        return False
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(unnamed, dir_fd=folder)
        raise
    sync_folder(folder)
    return True


def _content(path: Path) -> bytes:
    try:
        with open(path, "rb", opener=_open) as file:
            return file.read(MAX_ENTRY)
    except FileNotFoundError:
        raise WitnessError(
            f"{path} is not there, and should be: somebody removed what the witness kept", path=path
        ) from None
    except OSError as error:
        raise _cannot("read", path, error) from None


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)


def _cannot(what: str, path: Path, error: OSError) -> WitnessError:
    why = f"{path}: cannot be {what}: {error.strerror}; see the place, its owner and its permissions (ls -ld)"
    return WitnessError(why, path=path)
