"""Keeping the tree over a partition's records, and signing it, off the writers' path (format, 5 and 7).

Only reads the partition: the journal writes what is made here. One process at a time is at it, by a flock on the
partition's folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from otledger import speed
from otledger.batch import ZEROS, Tail, check_line
from otledger.errors import LedgerError
from otledger.hashes import decode_hashes, encode_hash, encode_hashes
from otledger.keys import Overtaken, Signed, Signer
from otledger.merkle import Tree, grow, is_included, leaf_hash, nodes_of, tree_of
from otledger.recovery import Place
from otledger.segment import (
    BLOCK,
    CHECKPOINT_TYPE,
    ChainCheck,
    Piece,
    blocks,
    control_data,
    file_size,
    find_back,
    find_seq,
    last_line,
    lines_with,
    open_folder,
    open_segment,
    pread,
    read_chain,
)

KEY_TYPE = "otledger.key"
SEALED_TYPE = "otledger.sealed"
SEALING = 5.0
"""Seconds to wait for a commit of another process before closed segments are looked at."""
MOST_TRIED = 20
"""Checkpoints that are looked at for a tree to go on from, before it is computed from the beginning."""


@dataclass(frozen=True, slots=True)
class Commit:
    """What is to be written about the first `size` records of a chain."""

    ledger: str
    at: Place
    """Where they end."""
    checkpoint: dict[str, Any]
    """The data of the `otledger.checkpoint` record."""
    keys: tuple[dict[str, Any], ...] = ()
    """Data of `otledger.key` records that belong before it."""
    refusal: str | None = None
    """Why the signer refuses, where it does."""

    @property
    def size(self) -> int:
        """How many records it is about."""
        return self.at.seq


class Broken(LedgerError):
    """The records that should be signed are not in their chain."""


class _Behind(Exception):
    """What is known to be durable here is less than another process has signed; nothing to do."""


class Sealer:
    """The tree of one partition as this process knows it. For several threads."""

    def __init__(self, path: Path, keys: Path) -> None:
        self.path = path
        self.keys = keys
        self._closed = False
        self._dir_fd = -1
        self.after_fork()

    def after_fork(self) -> None:
        """Know nothing: at the beginning, and in a forked child, whose parent keeps the lock."""
        self._mutex = threading.Lock()
        self._close_folder()
        self._forget()

    def _forget(self) -> None:
        self._ledger = ""
        self._basis: Signed | None = None
        self._at: Place | None = None
        self._nodes = b""
        self._path: list[bytes] = []
        """The audit path of the last leaf."""
        self._whole = False
        """Whether the tree was computed from the beginning or from what was signed, not from a checkpoint's word."""

    def close(self) -> None:
        """Make no more commits. Waits for nothing: a thread that is at one gives up soon, and closes the folder."""
        self._closed = True
        if self._mutex.acquire(blocking=False):
            self._close_folder()
            self._mutex.release()

    def _close_folder(self) -> None:
        if self._dir_fd >= 0:
            os.close(self._dir_fd)
            self._dir_fd = -1

    def commit(
        self, ledger: str, upto: Place, *, covered: int = 0, seconds: float | None = None, again: bool = True
    ) -> Commit | None:
        """Bring the tree up to `upto`, all before which is durable, and sign it if the chain has a key.

        `covered` is how many records a checkpoint covers already, by whomever. None where that takes more than
        `seconds`, or another process is at it or has done more already. Without `again` None as well where nothing
        is new. Raises `Broken` where the records are not in their chain, `LedgerError` and OSError where keys or
        files cannot be read.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        with self._turn(deadline) as alone:
            if not alone or not upto.seq:
                return None
            try:
                return self._commit(ledger, upto, covered, deadline, again=again)
            except _Behind:
                return None
            except BaseException:
                self._forget()
                raise

    @contextlib.contextmanager
    def _turn(self, deadline: float | None) -> Iterator[bool]:
        """Be the only one at the tree, of all threads and processes; False where others are until `deadline`.

        Without a deadline it waits for the threads of this process, and for no other process.
        """
        left = -1 if deadline is None else max(0.0, deadline - time.monotonic())
        if not self._mutex.acquire(timeout=left):
            yield False
            return
        try:
            if self._closed:
                yield False
                return
            with self._alone(deadline) as alone:
                yield alone
        finally:
            self._mutex.release()
            if self._closed:
                self.close()

    def _commit(self, ledger: str, upto: Place, covered: int, deadline: float | None, *, again: bool) -> Commit | None:
        signer = Signer(self.keys, ledger)
        keyed = signer.exists
        signed = signer.memory() if keyed else None
        try:
            known = self._at is not None and ledger == self._ledger and signed == self._basis
            if not known or (keyed and not self._whole):
                self._begin(ledger, signed, upto, keyed=keyed)
            elif not keyed and self._at is not None and self._at.seq < covered:
                # What another process has added need not be added again.
                self._begin_at_checkpoint(self._chain(ledger), upto)
        except _Refused as refusal:
            return _refused(ledger, upto, refusal.signed, str(refusal))
        if self._at is not None and self._at.seq == upto.seq and not again:
            return None
        if not self._walk(upto, deadline):
            return None
        tree = tree_of(self._nodes)
        keys: tuple[dict[str, Any], ...] = ()
        data = {"size": upto.seq, "head": upto.prev.decode(), "root": encode_hash(tree.root())}
        data |= {"edge": encode_hashes(tree.edge), "path": encode_hashes(self._path)}
        if keyed:
            try:
                self._basis = signer.sign(tree, self._path, upto.prev.decode(), time.time_ns(), signed)
            except Overtaken:
                self._forget()
                return None
            data["note"] = self._basis.note
            keys = tuple(self._not_written(signer, upto))
        return Commit(ledger, upto, data, keys)

    @contextlib.contextmanager
    def _alone(self, deadline: float | None) -> Iterator[bool]:
        """Hold the lock on the partition's folder; False where another process has it."""
        self._open()
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._dir_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if deadline is None or time.monotonic() >= deadline:
                yield False
                return
            time.sleep(0.005)
        try:
            yield True
        finally:
            fcntl.flock(self._dir_fd, fcntl.LOCK_UN)

    def _open(self) -> None:
        if self._dir_fd >= 0:
            there, ours = os.stat(self.path), os.fstat(self._dir_fd)
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                return
            # Replaced, by a checkout or a restored copy.
            self._close_folder()
            self._forget()
        self._dir_fd = open_folder(self.path)

    # Where to go on from

    def _begin(self, ledger: str, signed: Signed | None, upto: Place, *, keyed: bool) -> None:
        self._forget()
        chain = self._chain(ledger)
        if not chain:
            raise Broken(f"{self.path}: no segment of the chain {ledger}", path=self.path)
        self._ledger, self._basis, self._whole = ledger, signed, True
        if signed is not None:
            self._at = self._signed_place(chain, signed, upto)
            self._nodes, self._path = nodes_of(signed.tree()), decode_hashes(signed.path)
            return
        self._at = Place(chain[0].name, 0, 0, ZEROS)
        if not keyed:
            self._begin_at_checkpoint(chain, upto)
        if self._at.seq == 0 and chain[0].header is not None and chain[0].header.seq > 0:
            why = f"{chain[0].header.seq:,} records before {chain[0].name} are not here, and the tree begins with them"
            raise Broken(f"{self.path}: {why}: nothing is signed before they are put back", path=self.path)

    def _chain(self, ledger: str) -> list[Piece]:
        """Give the segments of the newest chain, if it is this one."""
        pieces = list(read_chain(self._dir_fd, self.path).pieces)
        return [piece for piece in pieces if piece.header is not None and piece.header.ledger == ledger]

    def _signed_place(self, chain: list[Piece], signed: Signed, upto: Place) -> Place:
        """Give where the last record stands that was signed. Raises `_Refused` where it is not that record."""
        found = self._find(chain, signed.size - 1)
        if found is None:
            raise _Refused(signed, f"{signed.size} records were signed, and the last of them is not there")
        place, tail = found
        if tail.checksum.decode() != signed.head:
            raise _Refused(signed, f"record {signed.size - 1} is another than the one that was signed")
        if signed.size > upto.seq:
            raise _Behind
        return place

    def _find(self, chain: list[Piece], seq: int) -> tuple[Place, Tail] | None:
        for piece in reversed(chain):
            if piece.header is None or piece.header.seq > seq:
                continue
            with self._opened(piece) as (fd, end):
                last = check_line(last_line(fd, end)[1])
                if last is not None and last.seq < seq:
                    return None
                found = find_seq(fd, seq, end)
                for offset, line in [found] if found else find_back(fd, b',"seq":%d,"prev":"' % seq, end):
                    tail = check_line(line)
                    if tail is not None and tail.seq == seq:
                        return Place(piece.name, offset + len(line), seq + 1, tail.checksum), tail
            return None
        return None

    @contextlib.contextmanager
    def _opened(self, piece: Piece) -> Iterator[tuple[int, int]]:
        fd = open_segment(self._dir_fd, piece.name, shown=self.path)
        try:
            yield fd, file_size(fd) if piece.size is None else min(piece.size, file_size(fd))
        finally:
            os.close(fd)

    def _begin_at_checkpoint(self, chain: list[Piece], upto: Place) -> None:
        """Go on from the last checkpoint with a tree, if that is farther: where nothing is signed, its word will do."""
        tried = 0
        for piece in reversed(chain):
            with self._opened(piece) as (fd, end):
                for _, line in find_back(fd, b'"type":"' + CHECKPOINT_TYPE.encode() + b'"', end):
                    tried += 1
                    data = control_data(line, CHECKPOINT_TYPE)
                    if data is not None and self._take_tree(chain, data, upto):
                        return
                    if tried >= MOST_TRIED:
                        return

    def _take_tree(self, chain: list[Piece], data: dict[str, Any], upto: Place) -> bool:
        try:
            size, path = data["size"], decode_hashes(data["path"])
            tree = Tree(size, decode_hashes(data["edge"]))
        except (KeyError, TypeError, ValueError, AttributeError):
            return False
        if self._at is not None and size <= self._at.seq:
            return True
        found = self._find(chain, size - 1) if 0 < size <= upto.seq else None
        if found is None or not is_included(leaf_hash(found[1].checksum), size - 1, size, path, tree.root()):
            return False
        if encode_hash(tree.root()) != data.get("root") or found[1].checksum.decode() != data.get("head"):
            return False
        self._at, self._nodes, self._path, self._whole = found[0], nodes_of(tree), path, False
        return True

    # Going on

    def _walk(self, upto: Place, deadline: float | None) -> bool:
        """Add the records up to `upto`, each of which continues the chain. False: no time left."""
        assert self._at is not None
        if self._at.segment == upto.segment:
            pieces = [Piece(upto.segment, upto.offset, None)]
        else:
            later = [piece for piece in self._chain(self._ledger) if piece.name >= self._at.segment]
            pieces = [piece for piece in later if piece.name <= upto.segment]
        for piece in pieces:
            start = self._at.offset if piece.name == self._at.segment else 0
            end = upto.offset if piece.name == upto.segment else piece.size
            fd = open_segment(self._dir_fd, piece.name, shown=self.path)
            try:
                while start < (file_size(fd) if end is None else end):
                    if self._closed or (deadline is not None and time.monotonic() > deadline):
                        return False
                    start = self._add_block(fd, piece, start, file_size(fd) if end is None else end)
            finally:
                os.close(fd)
        if (self._at.segment, self._at.seq, self._at.prev) != (upto.segment, upto.seq, upto.prev):
            raise self._broken(upto, "the records up to there are not those that were written")
        return True

    def _add_block(self, fd: int, piece: Piece, start: int, end: int) -> int:
        """Add the whole lines of a block, and give where they end."""
        assert self._at is not None
        size = min(BLOCK, end - start)
        block = pread(fd, size, start)
        while not (whole := block.rfind(b"\n") + 1) and len(block) == size < end - start:
            size = min(4 * size, end - start)
            block = pread(fd, size, start)
        seq, prev = self._at.seq, self._at.prev
        stop, count, checksum = _check(block, whole, seq, prev)
        if stop != whole or not whole:
            place = Place(piece.name, start + stop, seq + count, checksum)
            raise self._broken(place, "the record there does not continue the chain")
        last = block.rfind(b"\n", 0, whole - 1) + 1
        before = grow(block, 0, last, seq, self._nodes)
        self._path = tree_of(before).path_of_next()
        self._nodes = grow(block, last, whole, seq + count - 1, before)
        self._at = Place(piece.name, start + whole, seq + count, checksum)
        return start + whole

    def _broken(self, place: Place, why: str) -> Broken:
        path = self.path / str(place.segment)
        message = f"{path}, offset {place.offset}, seq {place.seq}: {why}: nothing more is signed; run: otledger verify"
        return Broken(message, path=path, offset=place.offset, seq=place.seq)

    def _not_written(self, signer: Signer, upto: Place) -> list[dict[str, Any]]:
        """Give the beginnings of keys that are not in the ledger yet, and forget those that are."""
        missing = signer.unrecorded()
        if not missing:
            return []
        written: list[dict[str, Any]] = []
        # A key's record comes after all that it names.
        first = min(record["size"] for record in missing)
        for piece in reversed(self._chain(self._ledger)):
            end = upto.offset if piece.name == upto.segment else None
            with self._opened(piece) as (fd, size):
                written += keys_between(fd, 0, size if end is None else end)
            if piece.header is not None and piece.header.seq <= first:
                break
        signer.recorded([record for record in missing if record in written])
        return [dict(record) for record in missing if record not in written]

    # Closed segments

    def unsealed(self) -> list[tuple[Piece, str]] | None:
        """Give the closed segments that no `otledger.sealed` record names, the oldest first, with their SHA-256.

        Looks back to the newest that has one. None where another process is at it.
        """
        with self._turn(time.monotonic() + SEALING) as alone:
            if not alone:
                return None
            found: list[tuple[Piece, str]] = []
            named: set[str] = set()
            for piece in reversed(read_chain(self._dir_fd, self.path).pieces):
                if str(piece.name) in named:
                    break
                with self._opened(piece) as (fd, end):
                    if piece.size == end:
                        digest = sha256()
                        for block in blocks(fd, 0, end):
                            digest.update(block)
                            if self._closed:
                                return None
                        found.append((piece, digest.hexdigest()))
                    for _, line in lines_with(fd, SEALED_TYPE.encode(), 0, end):
                        data = control_data(line, SEALED_TYPE)
                        named.add(str(data.get("segment")) if data is not None else "")
            return found[::-1]


class _Refused(Exception):
    """The ledger does not extend what was signed."""

    def __init__(self, signed: Signed, why: str) -> None:
        super().__init__(why)
        self.signed = signed


def _refused(ledger: str, upto: Place, signed: Signed, why: str) -> Commit:
    known = {"size": signed.size, "root": signed.root, "note": signed.note}
    checkpoint = {"size": upto.seq, "head": upto.prev.decode(), "refused": known}
    return Commit(ledger, upto, checkpoint, refusal=f"the signer refuses: {why}")


def keys_between(fd: int, start: int, end: int) -> list[dict[str, Any]]:
    """Give the data of the `otledger.key` records of a segment between two offsets."""
    found = (line for _, line in lines_with(fd, KEY_TYPE.encode(), start, end) if check_line(line) is not None)
    return [data for line in found if (data := control_data(line, KEY_TYPE)) is not None]


def _check(block: bytes, whole: int, seq: int, prev: bytes) -> tuple[int, int, bytes]:
    """Give how many bytes and lines of a block continue the chain, and the checksum of the last."""
    if speed.check is not None:
        stop, count, checksum, _ = speed.check(block, 0, whole, seq, prev)
        return stop, count, checksum
    check, at = ChainCheck(seq, prev), 0
    while at < whole:
        end = block.index(b"\n", at) + 1
        if not isinstance(check.take(block[at:end]), Tail):
            break
        at = end
    return at, check.seq - seq, check.prev
