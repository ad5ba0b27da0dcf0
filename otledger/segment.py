"""Segments: their names, which of their bytes count, opening them safely, and bytes to lines (format, 1 and 5)."""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from otledger.batch import MAX_LINE, Tail, check_line
from otledger.config import MACHINE
from otledger.errors import FormatError, RootError

FORMAT = 1
HEADER_TYPE = "otledger.segment"
CHECKPOINT_TYPE = "otledger.checkpoint"
LOCK_FILE = ".lock"
QUARANTINE = "quarantine"
CACHE = ".cache"
BLOCK = 1 << 20
_HINT = 1 << 18
"""Bytes of lines that are read at a time."""
_SHORT = 1 << 15
"""Bytes that are read at a time where few lines are wanted."""
_LINE = 4096
"""Bytes that are read where one line is wanted: more than most have."""

_NAME = re.compile(r"(\d{4}-(?:0[1-9]|1[0-2]))(?:\.([1-9]\d*))?\.jsonl", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class SegmentName:
    """A segment's name; names sort as the segments follow each other."""

    month: str
    n: int = 0

    @classmethod
    def parse(cls, name: str) -> SegmentName | None:
        """Give the segment's name, or None for every other file."""
        match = _NAME.fullmatch(name)
        return cls(match[1], int(match[2] or 0)) if match else None

    def __str__(self) -> str:
        return f"{self.month}.{self.n}.jsonl" if self.n else f"{self.month}.jsonl"

    def next(self, month: str) -> SegmentName:
        """Give the name of the next segment, in `month` or, as months never go back, in a later one."""
        return SegmentName(month) if month > self.month else SegmentName(self.month, self.n + 1)


@dataclass(frozen=True, slots=True)
class Header:
    """What the first record of a segment says."""

    ledger: str
    host: str
    epoch: int
    previous: str | None
    previous_size: int
    reason: str
    seq: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A segment, and how many of its bytes count: None for all."""

    name: SegmentName
    size: int | None
    header: Header | None


@dataclass(frozen=True, slots=True)
class Chain:
    """The segments of a partition. `pieces`, oldest first, hold its records; `skipped` count for nothing."""

    pieces: tuple[Piece, ...] = ()
    skipped: tuple[SegmentName, ...] = ()
    missing: tuple[str, ...] = ()
    """Segments that a successor names and that are not there."""
    chained: bool = True
    """False for a partition that evledger wrote: no checksums, read-only."""

    @property
    def newest(self) -> SegmentName | None:
        """The last segment by name, whether it counts or not."""
        return max((*(p.name for p in self.pieces), *self.skipped), default=None)


# Opening


def open_folder(path: str | Path, *, dir_fd: int | None = None, shown: Path | None = None) -> int:
    """Open a folder, following no symlink at its end. Raises `RootError`, or FileNotFoundError."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except FileNotFoundError:
        raise
    except OSError as error:
        shown = Path(path) if shown is None else shown
        raise RootError(_why_no_folder(shown, path, dir_fd, error), path=shown) from None


def _why_no_folder(shown: Path, path: str | Path, dir_fd: int | None, error: OSError) -> str:
    try:
        mode = os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_mode
    except OSError:
        return f"{shown}: cannot be opened: {error.strerror}"
    if stat.S_ISLNK(mode):
        return f"{shown} is a symbolic link, and none is followed here; give the path that it points to"
    if not stat.S_ISDIR(mode):
        return f"{shown} is a file, and the ledger needs a folder; give another path"
    return f"{shown}: cannot be opened: {error.strerror}; see who owns it and its permissions (ls -ld)"


def open_segment(dir_fd: int, name: SegmentName | str, flags: int = os.O_RDONLY, *, shown: Path | None = None) -> int:
    """Open a segment, following no symlink; with `flags` for writing too. Raises `RootError`."""
    try:
        # O_NONBLOCK: a FIFO with a segment's name must not hang the reader.
        fd = os.open(str(name), flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=dir_fd)
    except FileNotFoundError:
        raise
    except OSError as error:
        path = (shown or Path()) / str(name)
        raise RootError(_why_no_segment(path, str(name), dir_fd, error), path=path) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        path = (shown or Path()) / str(name)
        raise RootError(f"{path} is no regular file; move it out of the ledger", path=path)
    return fd


def _why_no_segment(path: Path, name: str, dir_fd: int, error: OSError) -> str:
    try:
        mode = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode
    except OSError:
        mode = 0
    if stat.S_ISLNK(mode):
        return f"{path} is a symbolic link, and none is followed inside a ledger; put the file itself there"
    if stat.S_ISDIR(mode):
        return f"{path} is a folder, and a segment is a file; move it out of the ledger"
    return f"{path}: cannot be opened: {error.strerror}; see who owns it and its permissions (ls -l)"


def list_machines(root: Path) -> list[str]:
    """Give the names of the partitions under `root`, sorted. Raises `RootError` where it is no folder."""
    try:
        fd = open_folder(root)
    except FileNotFoundError:
        why = f"{root}: there is no ledger here; give its folder by --root or OTLEDGER_ROOT"
        raise RootError(why, path=root) from None
    try:
        with os.scandir(fd) as entries:
            return sorted(
                entry.name
                for entry in entries
                if MACHINE.fullmatch(entry.name) and ".." not in entry.name and entry.is_dir(follow_symlinks=False)
            )
    finally:
        os.close(fd)


def unfinished_name(host: str) -> str:
    """Give what a segment is called until it is durable, by the host that makes it.

    A crash may leave it. No reader looks at it, and the next segment that this host makes removes it; another host,
    which the lock may not reach, must not. It holds copies alone, of which nobody was told.
    """
    return f".new.{host}"


def list_segments(dir_fd: int) -> list[SegmentName]:
    """Give the names of the segments in a partition, in their order."""
    return sorted(name for name in map(SegmentName.parse, os.listdir(dir_fd)) if name is not None)


# Lines


def lines(fd: int, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Give offset and bytes of each line from `start` up to `end`. A line without its LF at the end is torn.

    A line longer than the format allows comes in pieces, so that no file can exhaust the memory.
    The file stays open.
    """
    with open(fd, "rb", buffering=BLOCK, closefd=False) as file:
        file.seek(start)
        offset = start
        for line in iter(functools.partial(file.readline, MAX_LINE + 1), b""):
            if end is not None and offset + len(line) > end:
                line = line[: end - offset]
                if not line:
                    return
            yield offset, line
            offset += len(line)


def line_blocks(fd: int, start: int = 0, end: int | None = None) -> Iterator[list[bytes]]:
    """Give the lines from `start` up to `end` as lists, which is the fastest way over a file.

    The last line of all may be torn; one longer than the format allows comes in pieces, as from `lines`.
    The file stays open.
    """
    if _has_overlong_line(fd, start, end):
        for _, line in lines(fd, start, end):
            yield [line]
        return
    left = None if end is None else end - start
    # Of a short range the first lines should come soon: whoever reads may want no more.
    size, hint = (BLOCK, _HINT) if left is None or left > BLOCK else (_SHORT, _SHORT)
    with open(fd, "rb", buffering=size, closefd=False) as file:
        file.seek(start)
        while block := file.readlines(hint if left is None else min(hint, left)):
            if left is not None:
                left -= sum(map(len, block))
                while left < 0:
                    last = block.pop()
                    left += len(last)
                    if left > 0:
                        block.append(last[:left])
                        left = 0
                        break
            yield block
            if left == 0:
                return


def lines_with(fd: int, needle: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Give offset and bytes of the whole lines from `start` up to `end` that hold `needle`.

    Where few do this is several times faster than to look at each line. Of a line longer than the format allows it
    gives what `lines` gives.
    """
    end = file_size(fd) if end is None else end
    size = BLOCK
    while block := pread(fd, min(size, end - start), start) if start < end else b"":
        whole = block.rfind(b"\n") + 1
        if not whole:
            if len(block) > MAX_LINE:
                yield from ((offset, line) for offset, line in lines(fd, start, end) if needle in line)
                return
            if len(block) < size:
                return
            size *= 4
            continue
        at = 0
        while (found := block.find(needle, at, whole)) >= 0:
            first = block.rfind(b"\n", at, found) + 1 or at
            at = block.index(b"\n", found) + 1
            yield start + first, block[first:at]
        start += whole
        size = BLOCK


def _has_overlong_line(fd: int, start: int, end: int | None) -> bool:
    """Tell whether there may be a line of more than twice the length allowed: reading it whole is not safe."""
    end = file_size(fd) if end is None else end
    for position in range(start, end - MAX_LINE, MAX_LINE):
        searched = 0
        while b"\n" not in pread(fd, _HINT, position + searched):
            searched += _HINT
            if searched >= MAX_LINE:
                return True
    return False


def line_at(fd: int, offset: int, end: int | None = None) -> bytes:
    """Give the line that begins at `offset`, with its LF if it has one; at most one byte more than is allowed."""
    block = os.pread(fd, _LINE if end is None else max(0, min(_LINE, end - offset)), offset)
    size = block.find(b"\n") + 1
    if size:
        return block[:size]
    for _, line in lines(fd, offset, end):
        return line
    return b""


def last_line(fd: int, end: int) -> tuple[int, bytes]:
    """Give offset and bytes of the line that ends at `end`; no more of it than a line may have."""
    size = 4096
    while True:
        start = max(0, end - size)
        block = pread(fd, end - start, start)
        cut = block.rfind(b"\n", 0, max(0, len(block) - 1))
        if cut >= 0:
            return start + cut + 1, block[cut + 1 :]
        if start == 0 or size > MAX_LINE:
            return start, block
        size *= 16


def pread(fd: int, size: int, offset: int) -> bytes:
    """Read `size` bytes at `offset`, fewer only at the end of the file."""
    data = os.pread(fd, size, offset)
    while len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def blocks(fd: int, offset: int, end: int | None = None) -> Iterator[bytes]:
    """Give the bytes from `offset` up to `end`, by default the file's, a block at a time."""
    while block := pread(fd, BLOCK if end is None else min(BLOCK, end - offset), offset):
        yield block
        offset += len(block)


def find_back(fd: int, needle: bytes, end: int) -> Iterator[tuple[int, bytes]]:
    """Give offset and bytes of the whole lines before `end` that hold `needle`, the last first."""
    seen = end
    while end > 0:
        start = max(0, end - BLOCK)
        # A needle may stand across the edge of two blocks.
        block = pread(fd, min(end - start + len(needle), seen - start), start)
        at = len(block)
        while (at := block.rfind(needle, 0, at)) >= 0:
            if start + at < seen:
                offset, line = _line_around(fd, start + at)
                seen = offset
                yield offset, line
                at = max(0, offset - start)
        end = start


def find_seq(fd: int, seq: int, end: int) -> tuple[int, bytes] | None:
    """Give offset and bytes of the record with this `seq` before `end`, by bisection, whatever the segment's size.

    None where it is not there, or where a line on the way is no record: then only `find_back` can tell.
    """
    low, high = 0, end
    while low < high:
        offset, line = _line_around(fd, (low + high) // 2)
        tail = check_line(line)
        if tail is None:
            return None
        if tail.seq == seq:
            return (offset, line) if offset + len(line) <= end else None
        if tail.seq < seq:
            low = offset + len(line)
        else:
            high = offset
    return None


def _line_around(fd: int, position: int) -> tuple[int, bytes]:
    offset, _ = last_line(fd, position)
    if position and pread(fd, 1, position - 1) == b"\n":
        offset = position
    return offset, line_at(fd, offset)


# Headers and the chain of segments


def control_data(line: bytes, type: str) -> dict[str, Any] | None:
    """Give the `data` of a line if it is a record of this type, else None."""
    if b'"type":"' + type.encode() + b'"' not in line:
        return None
    try:
        members = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(members, dict) or members.get("type") != type:
        return None
    data = members.get("data")
    return data if isinstance(data, dict) else None


@functools.lru_cache(256)
def read_header(line: bytes, path: Path) -> Header | None:
    """Give what a segment's first line says, or None if it is no valid header.

    Raises `FormatError` for a version of the format that this otledger does not know.
    """
    tail = check_line(line)
    data = control_data(line, HEADER_TYPE) if tail is not None else None
    if tail is None or data is None:
        return None
    version = data.get("format")
    if version != FORMAT:
        raise FormatError(
            f"{path}: the ledger has format {version!r}, and this otledger knows format {FORMAT}; use a newer otledger",
            path=path,
        )
    previous = data.get("previous")
    named = previous if isinstance(previous, dict) else {}
    return Header(
        ledger=str(data.get("ledger")),
        host=str(data.get("host")),
        epoch=_integer(data.get("epoch")),
        previous=named.get("segment") if isinstance(named.get("segment"), str) else None,
        previous_size=_integer(named.get("size")),
        reason=str(data.get("reason")),
        seq=tail.seq,
    )


def _integer(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def read_chain(dir_fd: int, path: Path) -> Chain:
    """Give the segments whose records count, and how many bytes of each.

    The newest segment with a valid record is the last; each header names its real predecessor and that one's
    size. A segment that no header on this way names (a creation that failed) counts for nothing.
    """
    names = list_segments(dir_fd)
    headers: dict[SegmentName, Header | None] = {}
    chained = True
    for name in names:
        fd = open_segment(dir_fd, name, shown=path)
        try:
            line = line_at(fd, 0)
            headers[name] = read_header(line, path / str(name))
            if headers[name] is None and is_unchained(line):
                chained = False
        finally:
            os.close(fd)
    remaining = [n for n in names if headers[n] is not None or _has_valid_record(dir_fd, n, path)]
    if not chained and not remaining:
        return Chain(tuple(Piece(name, None, None) for name in names), chained=False)
    return _walk(names, remaining, headers)


def _walk(names: list[SegmentName], candidates: list[SegmentName], headers: dict[SegmentName, Header | None]) -> Chain:
    pieces: list[Piece] = []
    missing: list[str] = []
    name = candidates[-1] if candidates else None
    size: int | None = None
    while name is not None:
        header = headers[name]
        pieces.append(Piece(name, size, header))
        older = [n for n in candidates if n < name]
        name, size = (older[-1] if older else None), None
        if header is not None:
            if header.previous is None:
                break
            named = SegmentName.parse(header.previous)
            if named in older:
                name, size = named, header.previous_size
            else:
                missing.append(header.previous)
    pieces.reverse()
    counted = {piece.name for piece in pieces}
    return Chain(tuple(pieces), tuple(n for n in names if n not in counted), tuple(missing))


def _has_valid_record(dir_fd: int, name: SegmentName, path: Path) -> bool:
    fd = open_segment(dir_fd, name, shown=path)
    try:
        return any(check_line(line) is not None for _, line in lines(fd))
    finally:
        os.close(fd)


def is_unchained(line: bytes) -> bool:
    """Tell whether a whole line is a CloudEvents object without `checksum`, as evledger writes them."""
    if not line.endswith(b"\n"):
        return False
    try:
        members = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(members, dict) and "checksum" not in members and "specversion" in members


def is_foreign(line: bytes) -> bool:
    """Tell whether a whole line is a JSON object without `checksum`: somebody else wrote it (format, 6)."""
    if not line.endswith(b"\n"):
        return False
    try:
        members = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(members, dict) and "checksum" not in members


@dataclass(slots=True)
class ChainCheck:
    """Checks lines one after the other: checksum, `seq`, `prev` (format, 3)."""

    seq: int
    prev: bytes
    synced: int = 0
    """The largest `synced` that any valid record named."""

    def take(self, line: bytes) -> Tail | str:
        """Give the tail of a line that continues the chain, else the reason why it does not."""
        tail = check_line(line)
        if tail is None:
            return "the line is torn" if not line.endswith(b"\n") else "the checksum does not fit the line"
        self.synced = max(self.synced, tail.synced or 0)
        if tail.seq != self.seq:
            return f"seq is {tail.seq}, and {self.seq} is due"
        if tail.prev != self.prev:
            return f"prev of seq {tail.seq} is not the checksum of the record before"
        self.seq, self.prev = tail.seq + 1, tail.checksum
        return tail


def file_size(fd: int) -> int:
    """Give the size of an open file, in bytes."""
    return os.fstat(fd).st_size


def reader_of(fd: int) -> BinaryIO:
    """Give a buffered file object over `fd`, which it owns."""
    return open(fd, "rb", buffering=BLOCK)
