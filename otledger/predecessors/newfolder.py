"""A new folder that appears whole, with everything in it durable, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections import OrderedDict
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from otledger.errors import RootError
from otledger.folder import sync_folder

OPEN_FILES = 64


class NewFolder:
    """Collects lines in files under a name of its own, and gets its real name when all is durable.

    Files are 0600, folders 0700. Raises `RootError` if there is something at the path, if it lies in the folder
    `outside` (where a ledger would take it for a partition), or if it cannot be written.
    """

    def __init__(self, path: Path, outside: Path) -> None:
        self.path = path
        self._part = path.absolute().with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
        self._open: OrderedDict[Path, BinaryIO] = OrderedDict()
        self._files: dict[Path, None] = {}
        if os.path.lexists(path):
            raise RootError(f"{path} exists, and nothing is overwritten; give a path where nothing is", path=path)
        if path.resolve().is_relative_to(outside.resolve()):
            raise RootError(f"{path} is inside the ledger {outside}; give a path outside of it", path=path)

    @property
    def files(self) -> list[Path]:
        """The files that were written, in the order in which they were begun."""
        return [self.path / file for file in self._files]

    def write(self, line: bytes, *parts: str) -> None:
        """Append a line to a file in the folder."""
        file = Path(*parts)
        try:
            self._opened(file).write(line)
        except OSError as error:
            raise self._failed(error) from None

    def __enter__(self) -> NewFolder:
        try:
            self._part.mkdir(mode=0o700)
        except OSError as error:
            raise self._failed(error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except OSError as problem:
            raise self._failed(problem) from None
        finally:
            for file in self._open.values():
                # After a failed write, closing tries it once more, and fails once more.
                with contextlib.suppress(OSError):
                    file.close()
            shutil.rmtree(self._part, ignore_errors=True)

    def _opened(self, file: Path) -> BinaryIO:
        found = self._open.get(file)
        if found is None:
            if len(self._open) >= OPEN_FILES:
                self._close(self._open.popitem(last=False)[1])
            path = self._part / file
            path.parent.mkdir(mode=0o700, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            found = self._open[file] = os.fdopen(os.open(path, flags, 0o600), "ab")
            self._files[file] = None
        else:
            self._open.move_to_end(file)
        return found

    def _close(self, file: BinaryIO) -> None:
        with file:
            file.flush()
            os.fsync(file.fileno())

    def _finish(self) -> None:
        while self._open:
            self._close(self._open.popitem()[1])
        for folder in {self._part / file.parent for file in self._files} | {self._part}:
            _sync(folder)
        if os.path.lexists(self.path):
            raise RootError(f"{self.path} was made by somebody else meanwhile; give another path", path=self.path)
        self._part.rename(self.path)
        _sync(self._part.parent)

    def _failed(self, error: OSError) -> RootError:
        if isinstance(error, RootError):
            return error
        why = f"{self.path}: cannot be written: {error.strerror or error}; see the space left and the permissions"
        return RootError(why, path=self.path)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_folder(fd)
    finally:
        os.close(fd)
