"""The signing keys of a chain, and what its signer remembers: outside the ledger's root (format, 7).

    <keys>/<UUID of the chain>/
      signer       the private key, as C2SP's tools write it
      successor    the one that comes next, where that is known
      settings     how long an epoch is, and when this one began
      verifiers    the public keys, one a line, the oldest first
      signed       what was signed last
      unrecorded   data of `otledger.key` records that are not known to stand in the ledger yet
      lock         flock of whoever signs

Folders are 0700 and files 0600. Every file is replaced as a whole, and durable before anything relies on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict, TypeVar

import msgspec

from otledger.errors import ConfigurationError, FormatError, LedgerError
from otledger.folder import make_folder, sync_folder, write_all
from otledger.hashes import decode_hashes, encode_hash, encode_hashes
from otledger.merkle import Tree
from otledger.notes import Commitment, NoteError, SignerKey, VerifierKey, origin_of

FOLDER_MODE = 0o700
UNFINISHED = ".unfinished"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

T = TypeVar("T")


class Signed(msgspec.Struct, frozen=True, kw_only=True):
    """What a signer has signed last. Hashes are base64, as in checkpoints; `head` is 64 hex digits."""

    origin: str
    size: int
    root: str
    edge: list[str]
    path: list[str]
    head: str
    note: str
    time: int
    """When, in nanoseconds since the epoch."""

    def tree(self) -> Tree:
        """Give the tree as it was. Raises ValueError."""
        tree = Tree(self.size, decode_hashes(self.edge))
        if encode_hash(tree.root()) != self.root:
            raise ValueError("root and edge do not belong together")
        return tree


class Begun(TypedDict):
    """The data of an `otledger.key` record (format, 5)."""

    old: str | None
    new: str
    size: int
    root: str
    path: list[str]
    signature: str | None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a chain is signed. Times are seconds."""

    epoch: float = 0.0
    """After so long a key is destroyed and the next one signs. 0: until `otledger keys rotate`."""
    began: int = 0
    """When the key began to sign, in nanoseconds since the epoch."""


class Signer:
    """The keys of one chain. Its files are looked at anew at each use: other processes sign with them as well."""

    def __init__(self, keys: Path, ledger: str) -> None:
        if not _UUID.fullmatch(ledger):
            raise FormatError(f"{ledger[:100]!r} is no UUID of a chain: somebody wrote it into a segment's header")
        self.folder = keys / ledger
        self.origin = origin_of(ledger)

    @property
    def exists(self) -> bool:
        """Whether the chain has a key here. Raises `LedgerError` where that cannot be told."""
        try:
            os.lstat(self.folder / "signer")
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._unreadable("signer", error) from None
        return True

    def create(self, now: int, *, epoch: float = 0.0) -> Begun:
        """Make the chain's first key, durable on return. Gives the data of its `otledger.key` record.

        `epoch`: seconds after which the key is destroyed and the next one signs; 0: never by itself.
        Raises `ConfigurationError` where there is one already.
        """
        make_folder(self.folder, FOLDER_MODE)
        with self._locked():
            if self.exists:
                raise ConfigurationError(
                    f"{self.folder} has a key already; see otledger keys list, and otledger keys rotate for another"
                )
            key = SignerKey.new(self.origin)
            if epoch:
                self._write("successor", SignerKey.new(self.origin).text() + "\n")
            self._write("settings", _json(Settings(epoch=epoch, began=now)))
            self._write("verifiers", f"{key.verifier}\n")
            first = _record(None, key.verifier, None, None)
            self._write("unrecorded", _json([first]))
            self._write("signer", key.text() + "\n")
            return first

    def key(self) -> SignerKey:
        """Give the key that signs now. Raises `NoteError`, or `ConfigurationError` where others can read it."""
        return self._key("signer")

    def verifiers(self) -> list[VerifierKey]:
        """Give the public keys, the oldest first."""
        lines = self._read("verifiers").splitlines()
        return [VerifierKey.parse(line) for line in dict.fromkeys(lines)]

    def settings(self) -> Settings:
        """Give how the chain is signed."""
        return self._decode("settings", Settings) or Settings()

    def memory(self) -> Signed | None:
        """Give what was signed last, or None. Raises `FormatError` where that cannot be read."""
        signed = self._decode("signed", Signed)
        if signed is not None:
            try:
                if signed.origin != self.origin:
                    raise ValueError(f"it is about {signed.origin}")
                signed.tree()
                decode_hashes(signed.path)
            except ValueError as error:
                raise self._unreadable("signed", error) from None
        return signed

    def sign(self, tree: Tree, path: Sequence[bytes], head: str, now: int, basis: Signed | None) -> Signed:
        """Sign a tree that was grown from `basis`, what was signed last. Durable on return.

        Raises `Overtaken` where something else was signed meanwhile.
        """
        with self._locked():
            if self.memory() != basis:
                raise Overtaken(f"{self.folder}: another process has signed meanwhile")
            settings = self.settings()
            if basis is not None and settings.epoch and now - settings.began >= settings.epoch * 1e9:
                self._rotate(now)
            key = self.key()
            announced = (f"next {self._key('successor').verifier}",) if settings.epoch else ()
            commitment = Commitment(self.origin, tree.size, tree.root(), announced)
            signed = Signed(
                origin=self.origin,
                size=tree.size,
                root=encode_hash(commitment.root),
                edge=encode_hashes(tree.edge),
                path=encode_hashes(path),
                head=head,
                note=key.sign(commitment.text()),
                time=now,
            )
            self._write("signed", _json(signed))
            return signed

    def rotate(self, now: int) -> Begun:
        """Have another key sign from now on; the old private key is destroyed. Gives the data of its record.

        The old key signs, over what was signed last, that the new one follows. Durable on return. Raises
        `ConfigurationError` where nothing was signed yet.
        """
        with self._locked():
            if self.memory() is None:
                raise ConfigurationError(f"{self.folder}: the key has signed nothing yet that another could follow on")
            return self._rotate(now)

    def unrecorded(self) -> list[Begun]:
        """Give the data of `otledger.key` records that are not known to stand in the ledger, the oldest first."""
        return self._decode("unrecorded", list[Begun]) or []

    def recorded(self, records: Sequence[Begun]) -> None:
        """Forget records that stand in the ledger now, durable."""
        if records:
            with self._locked():
                self._write("unrecorded", _json([record for record in self.unrecorded() if record not in records]))

    def _rotate(self, now: int) -> Begun:
        old, epoch = self.key(), self.settings().epoch
        if not epoch:
            self._write("successor", SignerKey.new(self.origin).text() + "\n")
        new = self._key("successor")
        begun = _record(old.verifier, new.verifier, old, self.memory())
        # In this order: whatever of it a crash leaves is finished by _finish_rotation.
        self._write("unrecorded", _json([*self.unrecorded(), begun]))
        self._finish_rotation(now)
        return begun

    def _finish_rotation(self, now: int | None = None) -> None:
        """Have the key sign that the last record names, should it not do so yet."""
        records, signer = self.unrecorded(), self._key("signer")
        if records and records[-1]["old"] == str(signer.verifier):
            new = self._key("successor")
            self._write("verifiers", f"{self._read('verifiers')}{new.verifier}\n")
            self._write("settings", _json(Settings(epoch=self.settings().epoch, began=now or time.time_ns())))
            self._succeed()
        if self.settings().epoch and not os.path.lexists(self.folder / "successor"):
            self._write("successor", SignerKey.new(self.origin).text() + "\n")

    # Files

    def _key(self, name: str) -> SignerKey:
        path = self.folder / name
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            raise ConfigurationError(f"{path} is missing: make a key by otledger keys init") from None
        if not stat.S_ISREG(mode) or mode & 0o077:
            raise ConfigurationError(f"{path} may be used by others (mode {stat.S_IMODE(mode):04o}); chmod 600 {path}")
        try:
            key = SignerKey.parse(self._read(name))
        except NoteError as error:
            raise NoteError(f"{path}: {error}", path=path) from None
        if key.name != self.origin:
            raise NoteError(f"{path} is the key of {key.name}, and {self.origin} is due", path=path)
        return key

    def _read(self, name: str) -> str:
        try:
            return (self.folder / name).read_text()
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise self._unreadable(name, error) from None

    def _write(self, name: str, text: str) -> None:
        replace_file(self.folder, name, text.encode())

    def _decode(self, name: str, kind: type[T]) -> T | None:
        """Give what a file holds; None where there is none."""
        text = self._read(name)
        if not text and not os.path.lexists(self.folder / name):
            return None
        try:
            return msgspec.json.decode(text, type=kind)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise self._unreadable(name, error) from None

    def _unreadable(self, name: str, error: Exception) -> LedgerError:
        path = self.folder / name
        message = f"{path} cannot be read ({error}): nothing is signed before it is put right"
        return ConfigurationError(message) if isinstance(error, OSError) else FormatError(message, path=path)

    def _succeed(self) -> None:
        """Have the successor in the place of the key, of which nothing is left: no file ever holds a copy of it."""
        with open(self.folder / "signer", "r+b") as old:
            os.rename(self.folder / "successor", self.folder / "signer")
            _sync_names(self.folder)
            old.write(bytes(os.fstat(old.fileno()).st_size))
            old.flush()
            os.fsync(old.fileno())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.fchmod(fd, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if self.exists:
                self._finish_rotation()
            yield
        finally:
            os.close(fd)


class Overtaken(LedgerError):
    """Another process has signed since the memory was read."""


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Have a file of 0600 hold `data`, durable on return; after a crash it has the old content or the new."""
    # One name for all, as whoever calls holds a lock: what a crash leaves there the next one overwrites.
    unfinished = folder / UNFINISHED
    fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(fd, 0o600)
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(unfinished, folder / name)
    _sync_names(folder)


def _sync_names(folder: Path) -> None:
    folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_folder(folder_fd)
    finally:
        os.close(folder_fd)


def check_keys_folder(keys: Path, root: Path) -> None:
    """Raise `ConfigurationError` where keys would stand under the root: who copies a ledger shall not copy its key."""
    if keys.absolute().resolve().is_relative_to(root.absolute().resolve()):
        raise ConfigurationError(f"the keys folder {keys} is inside the ledger {root}; give another by keys= or --keys")


def _record(old: VerifierKey | None, new: VerifierKey, signer: SignerKey | None, basis: Signed | None) -> Begun:
    """Give the data of the `otledger.key` record with which `new` begins (format, 5)."""
    size, root = (0, Tree().root()) if basis is None else (basis.size, decode_hashes([basis.root])[0])
    commitment = Commitment(new.name, size, root, (f"key {new}",))
    return {
        "old": None if old is None else str(old),
        "new": str(new),
        "size": size,
        "root": encode_hash(root),
        "path": [] if basis is None else basis.path,
        "signature": None if signer is None else signer.sign(commitment.text()),
    }


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode() + "\n"
