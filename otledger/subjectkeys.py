"""The files of subjects' keys, outside every root: made, found again, listed, and destroyed for good."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from otledger.ciphertext import KEY_BYTES, bound, is_kid, kid_of
from otledger.errors import ConfigurationError, LedgerError, LockTimeout, RootError
from otledger.folder import make_folder, sync_folder, write_all
from otledger.identity import keys_folder
from otledger.keyring import FOLDER, SUFFIX, KeyFile, key_text, read_key

LOCK_FILE = ".lock"
CURRENT = "current"
"""The folder of hints: which key of a subject is in use. Lost hints cost a further key, nothing else."""
DYING = ".shredding"
"""What a key's file is called from the moment on at which nobody may use it any more."""
_TRY_AGAIN = 0.01


class SubjectKeys:
    """The keys of one scope, a machine's partition of one root, in the folder `keys`.

    Raises `ConfigurationError` where that folder lies inside the root: who copies the ledger must not copy the keys.
    """

    def __init__(self, keys: Path | str | None, machine: str, root: Path, *, lock_timeout: float = 10.0) -> None:
        self.machine = machine
        self.root = root.resolve()
        self.place = os.fspath(self.root).encode("utf-8", "backslashreplace").decode()
        """The root as keys name it: a path need not be UTF-8, a file of JSON must."""
        self.keys = keys_folder(keys)
        self.folder = self.keys / FOLDER
        self._lock_timeout = lock_timeout
        if self.folder.resolve().is_relative_to(self.root):
            raise ConfigurationError(
                f"the keys' folder {self.keys} lies inside the ledger {self.root}: who copies the ledger would copy the"
                " keys; give another by keys= or OTLEDGER_KEYS"
            )

    def path_of(self, kid: str) -> Path:
        """Give where a key is kept."""
        return self.folder / f"{kid}{SUFFIX}"

    # Making and finding

    def obtain(self, subject: str, alg: str) -> KeyFile:
        """Give the key of a subject, made where there is none; it is durable on return.

        Blocks on the disk, and on other processes that make keys. Raises `LedgerError`.
        """
        try:
            self._make_folder()
            with self._locked():
                return self._current(subject, alg) or self._make(subject, alg)
        except OSError as error:
            if isinstance(error, LedgerError):
                raise
            raise RootError(
                f"{self.folder}: no key can be made: {error.strerror or error}; see its owner, its permissions"
                " and the free space",
                path=self.folder,
            ) from None

    def _current(self, subject: str, alg: str) -> KeyFile | None:
        try:
            kid = self._hint(subject).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
        found = read_key(self.path_of(kid)) if is_kid(kid) else None
        if found is None or found.alg != alg or not self._is(found, subject) or found.cipher() is None:
            return None
        return found

    def _make(self, subject: str, alg: str) -> KeyFile:
        secret = os.urandom(KEY_BYTES)
        kid = kid_of(alg, secret)
        made = KeyFile(
            kid=kid,
            alg=alg,
            key=key_text(secret),
            subject=subject,
            machine=self.machine,
            root=self.place,
            created=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        )
        path = self.path_of(kid)
        _write_new(path, made.to_bytes())
        self._sync()
        # After the key: what the hint names is durable.
        hint = self._hint(subject)
        part = hint.with_name(f".{kid}")
        _write_new(part, f"{kid}\n".encode(), durable=False)
        os.replace(part, hint)
        return made

    def _hint(self, subject: str) -> Path:
        # A subject may be longer than a file's name, and hold any character.
        name = hashlib.sha256(bound(self.machine, self.place, subject)).hexdigest()
        return self.folder / CURRENT / name

    def _is(self, key: KeyFile, subject: str | None) -> bool:
        here = key.machine == self.machine and key.root == self.place
        return here and (subject is None or key.subject == subject)

    # The folder

    def _make_folder(self) -> None:
        for folder in (self.keys, self.folder, self.folder / CURRENT):
            if not folder.is_dir():
                try:
                    make_folder(folder, 0o700)
                except RootError as error:
                    raise RootError(str(error).replace("ledger's", "keys'"), path=folder) from None
        self.check()

    def check(self) -> None:
        """Raise `RootError` where others may read or replace keys. It is not mended: they may have been read."""
        info = os.stat(self.folder)
        if stat.S_IMODE(info.st_mode) & 0o077:
            raise RootError(
                f"{self.folder} is open to others (mode {stat.S_IMODE(info.st_mode):04o}): they may read the keys of"
                f" encrypted data; see who has, then: chmod 700 {self.folder}",
                path=self.folder,
            )
        own = os.geteuid()
        if info.st_uid != own and own != 0:
            raise RootError(
                f"{self.folder} belongs to another user (uid {info.st_uid}); give another folder by keys= or"
                " OTLEDGER_KEYS",
                path=self.folder,
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(self.folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            until = time.monotonic() + self._lock_timeout
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= until:
                        raise LockTimeout(
                            f"{self.folder / LOCK_FILE} was held by another process for {self._lock_timeout:g} s;"
                            f" see which: fuser {self.folder / LOCK_FILE}",
                            path=self.folder,
                        ) from None
                    time.sleep(_TRY_AGAIN)
            try:
                yield
            finally:
                # Said, not left to close(): a child forked meanwhile has the descriptor too.
                fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            os.close(fd)

    def _sync(self) -> None:
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_folder(fd)
        finally:
            os.close(fd)

    # Listing and destroying

    def all(self) -> list[KeyFile]:
        """Give all keys in the folder, of every scope, the oldest first. Raises `RootError`."""
        return sorted(self._read(SUFFIX), key=lambda key: (key.created, key.kid))

    def of(self, subject: str | None = None) -> list[KeyFile]:
        """Give the keys of this scope, or those of a subject in it."""
        return [key for key in self.all() if self._is(key, subject)]

    def dying(self, subject: str) -> list[KeyFile]:
        """Give the keys of a subject whose end has begun: taken out of use, and not yet forgotten."""
        return [key for key in self._read(DYING) if self._is(key, subject)]

    def _read(self, suffix: str) -> Iterator[KeyFile]:
        try:
            names = sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return
        except OSError as error:
            raise RootError(f"{self.folder}: cannot be read: {error.strerror}", path=self.folder) from None
        for name in names:
            if name.endswith(suffix) and is_kid(name.removesuffix(suffix)):
                found = read_key(self.folder / name)
                if found is not None and found.kid == name.removesuffix(suffix):
                    yield found

    def destroy(self, subject: str) -> list[KeyFile]:
        """Destroy all keys of a subject: from the first step on nobody finds them, on return their bytes are gone.

        Gives what is left of them, until `forget`: all but the keys themselves. Those whose end a crash interrupted
        are among them. Overwriting is what a program can do; see docs/erasure.md for what keeps old bytes all the same.
        Raises `RootError`, `LockTimeout`.
        """
        if not self.folder.is_dir():
            return []
        try:
            with self._locked():
                for key in self.of(subject):
                    os.rename(self.path_of(key.kid), self._dying_path(key))
                self._sync()
                dying = self.dying(subject)
                for key in dying:
                    _wipe(self._dying_path(key), key)
                dying = [msgspec.structs.replace(key, key="") for key in dying]
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._hint(subject))
        except OSError as error:
            if isinstance(error, LedgerError):
                raise
            raise RootError(
                f"{self.folder}: a key cannot be destroyed: {error.strerror or error}; see its owner and permissions,"
                " and run it again",
                path=self.folder,
            ) from None
        return dying

    def forget(self, keys: list[KeyFile]) -> None:
        """Remove what is left of destroyed keys."""
        for key in keys:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._dying_path(key))
        self._sync()

    def _dying_path(self, key: KeyFile) -> Path:
        return self.folder / f"{key.kid}{DYING}"


def _write_new(path: Path, content: bytes, *, durable: bool = True) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        write_all(fd, content)
        if durable:
            os.fsync(fd)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(fd)


def _wipe(path: Path, key: KeyFile) -> None:
    """Overwrite a key's file in place, to its length, with the same but for the key."""
    rest = msgspec.structs.replace(key, key="").to_bytes().rstrip()
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        write_all(fd, rest.ljust(os.fstat(fd).st_size - 1) + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)
