"""Following a ledger as it grows: inotify where the kernel has it, polling where not."""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
import struct
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from otledger.batch import MAX_LINE, checksum_of
from otledger.config import check_machine
from otledger.errors import ConfigurationError, FormatError, RootError
from otledger.filter import Filter
from otledger.keyring import Keyring
from otledger.record import Record, parse
from otledger.segment import (
    BLOCK,
    SegmentName,
    last_line,
    list_machines,
    list_segments,
    open_folder,
    open_segment,
    pread,
    read_chain,
)

T = TypeVar("T")

POLL = 0.05
"""Seconds between two looks without inotify."""
LOOK_AGAIN = 1.0
"""Seconds after which the files are looked at even if inotify was silent."""

_MODIFY, _MOVED_TO, _CREATE = 0x2, 0x80, 0x100


HEAD = 16
"""Digits of a checksum that a cursor holds."""


class Cursor(msgspec.Struct, frozen=True):
    """A reading position: for each machine the segment and how many of its bytes were read.

    `str(cursor)` is JSON text that `Cursor.parse` takes.
    """

    positions: dict[str, tuple[str, int]] = {}
    heads: dict[str, str] = {}
    """By machine the first digits of the checksum of the record that ends there. A power cut may take records that were
    read: what came in their place is then read from the segment's beginning."""

    def __str__(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Give the cursor of its text. Raises `ConfigurationError`."""
        try:
            cursor = msgspec.json.decode(text, type=cls)
            for machine, (segment, offset) in cursor.positions.items():
                check_machine(machine)
                if SegmentName.parse(segment) is None or offset < 0:
                    raise ConfigurationError(f"{segment!r} at {offset}: no place in a segment")
        except (msgspec.MsgspecError, UnicodeError, RecursionError, ConfigurationError) as error:
            raise ConfigurationError(f"{text[:200]!r} is no cursor: {error}") from None
        return cursor


class Follower:
    """Iterates over records as they are written, each machine's in their order; never ends by itself.

    `cursor` is a `Cursor`, its text, "start", or "end" for what is written from now on. After each record
    `self.cursor` says where to resume.

        async with contextlib.aclosing(reader.follow("end")) as records:
            async for record in records: ...
    """

    def __init__(
        self,
        root: str | Path,
        cursor: Cursor | str = "end",
        filter: Filter | None = None,
        *,
        machines: Sequence[str] | None = None,
        keys: str | Path | None = None,
    ) -> None:
        self.root = Path(root)
        self._opener = Keyring(keys)
        self._machines = None if machines is None else [check_machine(machine) for machine in machines]
        self._line_test, self._record_test = filter.compile() if filter is not None else (None, None)
        given = Cursor.parse(cursor) if isinstance(cursor, str) and cursor not in ("start", "end") else cursor
        self._new: Literal["start", "end"] = "end" if given == "end" else "start"
        self._tails: dict[str, _Tail] = {}
        if isinstance(given, Cursor):
            for machine, (segment, offset) in given.positions.items():
                if self._machines is not None and machine not in self._machines:
                    continue
                tail = self._tails[machine] = _Tail(self.root / machine, segment, offset)
                tail.check(given.heads.get(machine, ""))
        list_machines(self.root)
        self._look_for_machines()
        # A machine that appears later is read from its beginning.
        self._new = "start"
        self._records = self._run()

    @property
    def cursor(self) -> Cursor:
        """Where to resume, so that nothing is missed or seen twice."""
        tails = [(machine, tail) for machine, tail in list(self._tails.items()) if tail.segment]
        heads = {machine: tail.head for machine, tail in tails if tail.head}
        return Cursor({machine: tail.position for machine, tail in tails}, heads)

    def __aiter__(self) -> Follower:
        return self

    async def __anext__(self) -> Record:
        return await self._records.__anext__()

    async def aclose(self) -> None:
        """Stop following."""
        await self._records.aclose()

    def _look_for_machines(self) -> list[Path]:
        new = []
        for machine in list_machines(self.root):
            if machine in self._tails or (self._machines is not None and machine not in self._machines):
                continue
            tail = self._tails[machine] = _Tail(self.root / machine)
            if self._new == "end":
                tail.go_to_end()
            new.append(tail.path)
        return new

    async def _run(self) -> AsyncGenerator[Record, None]:
        watch = Watch()
        look = partial(self._look, watch)
        try:
            watch.add(self.root)
            for tail in self._tails.values():
                watch.add(tail.path)
            found = await watch.look(look)
            while True:
                while not found:
                    found = await watch.wait(look)
                for tail, batch in found:
                    for offset, line in batch:
                        record = self._wanted(tail, offset, line)
                        if record is not None:
                            yield record
                found = await watch.look(look)
        finally:
            await watch.aclose()

    def _look(self, watch: Watch) -> list[tuple[_Tail, list[tuple[int, bytes]]]]:
        """Give the next lines of each machine that has some."""
        while True:
            found = [(tail, batch) for tail in self._tails.values() if (batch := tail.read())]
            new = [] if found else self._look_for_machines()
            for path in new:
                watch.add(path)
            if not new:
                return found

    def _wanted(self, tail: _Tail, offset: int, line: bytes) -> Record | None:
        tail.consumed(offset + len(line), line)
        if self._line_test is not None and not self._line_test(line):
            return None
        try:
            record = parse(line)
        except FormatError as error:
            path = tail.path / tail.segment
            raise FormatError(
                f"{path}, offset {offset}: {error}; run: otledger verify", path=path, offset=offset
            ) from None
        if record.subject is not None:
            record.opener = self._opener
        return record if self._record_test is None or self._record_test(record) else None


def follow(
    root: str | Path,
    cursor: Cursor | str = "end",
    filter: Filter | None = None,
    *,
    machines: Sequence[str] | None = None,
    keys: str | Path | None = None,
) -> Follower:
    """Give an asynchronous iterator over records as they are written; see `Follower`."""
    return Follower(root, cursor, filter, machines=machines, keys=keys)


def head_at(path: Path, segment: str, offset: int) -> str | None:
    """Give what a cursor holds of the record that ends at `offset`; None where there is no such segment."""
    try:
        folder = open_folder(path)
    except FileNotFoundError:
        return None
    try:
        fd = open_segment(folder, segment, shown=path)
    except FileNotFoundError:
        return None
    finally:
        os.close(folder)
    try:
        line = last_line(fd, offset)[1] if os.fstat(fd).st_size >= offset else b""
    finally:
        os.close(fd)
    return checksum_of(line)[:HEAD].decode("ascii", "replace") if line.endswith(b"\n") else ""


def is_still_there(path: Path, segment: str, offset: int, head: str) -> bool:
    """Tell whether the record that a cursor names ends where it says, as far as that can be known."""
    return not head or head_at(path, segment, offset) in (head, None)


@dataclass(slots=True)
class _Tail:
    """Where one machine's partition has been read up to."""

    path: Path
    segment: str = ""
    offset: int = 0
    """What the caller has been given."""
    read_to: int = 0
    """Where the next line begins. A line that is not whole is read again: recovery may cut it off."""
    last: bytes = b""
    """The line that the caller was given last, of this segment."""

    def __post_init__(self) -> None:
        self.read_to = self.offset

    @property
    def position(self) -> tuple[str, int]:
        return self.segment, self.offset

    @property
    def head(self) -> str:
        return checksum_of(self.last)[:HEAD].decode("ascii", "replace")

    def consumed(self, offset: int, line: bytes) -> None:
        self.offset, self.last = offset, line

    def check(self, head: str) -> None:
        """Go back to the segment's beginning where the record that was read last is not the one that ends here."""
        if not is_still_there(self.path, self.segment, self.offset, head):
            self._begin(self.segment)

    def go_to_end(self) -> None:
        folder = open_folder(self.path)
        try:
            chain = read_chain(folder, self.path)
            if chain.pieces:
                name = chain.pieces[-1].name
                fd = open_segment(folder, name, shown=self.path)
                try:
                    size = os.fstat(fd).st_size
                    start, line = last_line(fd, size)
                    # A torn line may be one that is being written.
                    self._begin(str(name), size if line.endswith(b"\n") else start)
                    self.last = line if line.endswith(b"\n") else b""
                finally:
                    os.close(fd)
        finally:
            os.close(folder)

    def _begin(self, segment: str, offset: int = 0) -> None:
        self.segment, self.offset, self.read_to, self.last = segment, offset, offset, b""

    def read(self) -> list[tuple[int, bytes]]:
        """Give the next lines with their offsets; none where there are none yet."""
        folder = open_folder(self.path)
        try:
            while True:
                # Looked up before reading: once a segment has a successor it does not grow any more.
                following, end = self._following(folder)
                try:
                    found = self._read_segment(folder, end)
                except FileNotFoundError:
                    self._pass_over(folder)
                    continue
                if found or following is None:
                    return found
                self._begin(str(following))
        finally:
            os.close(folder)

    def _following(self, folder: int) -> tuple[SegmentName | None, int | None]:
        """Give the next segment, if there is one, and how many bytes of this one count then."""
        if self.segment and str(list_segments(folder)[-1]) == self.segment:
            return None, None
        pieces = read_chain(folder, self.path).pieces
        here = SegmentName.parse(self.segment)
        end = next((piece.size for piece in pieces if piece.name == here), None)
        return next((piece.name for piece in pieces if here is None or piece.name > here), None), end

    def _pass_over(self, folder: int) -> None:
        """Go on behind a segment that was archived, where all of it had been read. Raises `RootError` elsewhere."""
        first = next(iter(read_chain(folder, self.path).pieces), None)
        header = None if first is None else first.header
        if first is None or header is None or (header.previous, header.previous_size) != (self.segment, self.read_to):
            path = self.path / self.segment
            why = f"{path} is not there, and was read up to offset {self.read_to} only; if it is archived, copy it back"
            raise RootError(f"{why}, or give another cursor", path=path, offset=self.read_to)
        self._begin(str(first.name))

    def _read_segment(self, folder: int, end: int | None) -> list[tuple[int, bytes]]:
        if not self.segment:
            return []
        fd = open_segment(folder, self.segment, shown=self.path)
        try:
            size = BLOCK
            # No more than there is, as a large buffer takes longer than the little that mostly comes.
            end = os.fstat(fd).st_size if end is None else end
            while True:
                wanted = min(size, end - self.read_to)
                block = pread(fd, wanted, self.read_to) if wanted > 0 else b""
                whole = block[: block.rfind(b"\n") + 1]
                if whole or len(block) < size or size > MAX_LINE:
                    break
                size *= 4
        finally:
            os.close(fd)
        if not whole and len(block) > MAX_LINE:
            whole = block
        found = []
        for line in _split(whole):
            found.append((self.read_to, line))
            self.read_to += len(line)
        return found


def _split(whole: bytes) -> list[bytes]:
    """Give the lines of whole lines, or what has none as it is. Only LF ends a line."""
    if not whole.endswith(b"\n"):
        return [whole] if whole else []
    return [line + b"\n" for line in whole[:-1].split(b"\n")]


def _names(events: bytes) -> Iterator[bytes]:
    """Give the names of the files that inotify's events tell of; empty where there is none (inotify(7))."""
    at = 0
    while at < len(events):
        *_, size = _EVENT.unpack_from(events, at)
        at += _EVENT.size + size
        yield events[at - size : at].rstrip(b"\0")


_EVENT = struct.Struct("=iIII")


class Watch:
    """A thread that waits for changes in folders and then looks at them: nobody has to wake it in between.

    Without inotify it looks every `POLL` seconds.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._poll = select.poll()
        self._woken, self._wake = os.pipe()
        self._poll.register(self._woken, select.POLLIN)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="otledger-follow")
        with suppress(OSError, AttributeError):
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd >= 0:
            self._poll.register(self._fd, select.POLLIN)

    def add(self, path: Path) -> None:
        """Watch a folder too."""
        if self._fd >= 0:
            self._libc.inotify_add_watch(self._fd, os.fsencode(path), _MODIFY | _CREATE | _MOVED_TO)

    async def look(self, work: Callable[[], T]) -> T:
        """Run `work` in the thread, now."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def wait(self, work: Callable[[], T]) -> T:
        """Run `work` in the thread once something has changed, at the latest after `LOOK_AGAIN` seconds."""

        def wait_and_work() -> T:
            self._wait()
            return work()

        return await self.look(wait_and_work)

    def _wait(self) -> None:
        until = time.monotonic() + (LOOK_AGAIN if self._fd >= 0 else POLL)
        while (left := until - time.monotonic()) > 0:
            ready = [fd for fd, _ in self._poll.poll(left * 1e3)]
            if self._woken in ready or (self._fd in ready and self._is_changed()):
                return

    def _is_changed(self) -> bool:
        # The state of the lock changes as well, before and after a segment does.
        with suppress(BlockingIOError):
            return any(not name.startswith(b".") for name in _names(os.read(self._fd, 65_536)))
        return False

    async def aclose(self) -> None:
        """Watch no more. What the thread is at ends first."""
        os.write(self._wake, b"x")
        try:
            await asyncio.shield(self.look(self._close))
        finally:
            self._thread.shutdown(wait=False)

    def _close(self) -> None:
        for fd in (self._fd, self._woken, self._wake):
            if fd >= 0:
                os.close(fd)
        self._fd = -1
