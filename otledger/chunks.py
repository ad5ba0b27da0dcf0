"""Checking a piece of a segment, many lines at a time: what one process does of `verify`.

Run as a program it is a worker: it reads chunks as lines of JSON on stdin and answers with what they hold.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

from otledger import speed
from otledger.batch import CHECKSUM_BYTES, MAX_LINE, check_line
from otledger.segment import BLOCK, CHECKPOINT_TYPE, control_data, is_foreign, line_at, line_blocks, pread
from otledger.verifying.subtrees import Runs

if TYPE_CHECKING:
    from otledger.strict import DeepCheck

MAX_FAULTS = 100
"""How many faults of a machine are listed; the rest are counted."""
_CONTROL = b'"type":"otledger.'


@dataclass(slots=True)
class Chunk:
    """Bytes `start` to `end` of a file, and what they hold: the lines that begin in them."""

    path: str
    start: int
    end: int
    seq: int = -1
    """The `seq` that is due at `start`; -1: unknown, the first good line's is taken."""
    prev: str = ""
    told: bool = False
    tree: bool = False
    """Whether the records are hashed into subtrees as well."""
    """Whether it was told already that the line with this `seq` is missing or broken."""
    count: int = 0
    first_seq: int = -1
    first_prev: str = ""
    first_offset: int = 0
    last_seq: int = -1
    last: str = ""
    """Checksum of the last good line."""
    begin: int = 0
    """Where the first line that begins in the chunk does."""
    stop: int = 0
    """Where the last line ends."""
    controls: list[tuple[int, str]] = field(default_factory=list)
    """Offsets and lines of otledger's own records."""
    bad: list[tuple[int, int, str, str]] = field(default_factory=list)
    """Offset, the `seq` that was due, reason, and what kind of line: `torn`, `foreign`, `broken`, `fork`, `gap`,
    `prev`, `json`."""
    more_bad: int = 0
    runs: list[tuple[int, int, bytes]] = field(default_factory=list)
    """Records that follow each other: first number, the number behind the last, and the hashes of their subtrees."""


def check_chunk(chunk: Chunk, deep: DeepCheck | None = None) -> Chunk:
    """Fill in what the lines of a chunk hold. Where nothing is known to be due the first good line tells it."""
    runs = Runs() if chunk.tree else None
    fd = os.open(chunk.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        offset = chunk.start
        if offset:
            # A line that begins before the chunk is the business of the chunk before.
            offset += len(line_at(fd, offset - 1)) - 1
        chunk.begin = offset
        if speed.check is not None and deep is None:
            _check_blocks(chunk, fd, offset, speed.check, runs)
        else:
            _check_lines(chunk, fd, offset, chunk.seq, chunk.prev, deep, runs)
    finally:
        os.close(fd)
    if runs is not None:
        runs.flush()
        chunk.runs = runs.done
    return chunk


def _check_blocks(
    chunk: Chunk,
    fd: int,
    offset: int,
    check: Callable[..., tuple[int, int, bytes, list[int]]],
    runs: Runs | None,
) -> None:
    """Check as `_check_lines` does, most lines in compiled code: it stops at those that are not as due."""
    seq, checksum = chunk.seq, chunk.prev
    block, at = b"", 0
    while offset + at < chunk.end:
        if seq >= 0:
            first, begin = seq, at
            at, count, found, controls = check(block, at, chunk.end - offset, seq, checksum.encode())
            seq, checksum = seq + count, found.decode()
            chunk.count += count
            for place in controls:
                line = block[place : block.index(b"\n", place) + 1]
                _control(chunk, offset + place, line, runs)
            if runs is not None and count:
                runs.add_lines(block, begin, at, first, count)
            if offset + at >= chunk.end:
                break
        end = block.find(b"\n", at) + 1
        if not end:
            more = pread(fd, BLOCK, offset + len(block))
            if len(block) - at + len(more) > MAX_LINE:
                _check_lines(chunk, fd, offset + at, seq, checksum, None, runs)
                return
            if more:
                block, offset, at = block[at:] + more, offset + at, 0
                continue
            if at == len(block):
                break
        line = block[at : end or len(block)]
        seq, checksum = _take_odd_line(chunk, offset + at, line, seq, checksum, None, runs)
        at += len(line)
    chunk.last_seq, chunk.last, chunk.stop = seq - 1, checksum, offset + at


def _check_lines(
    chunk: Chunk, fd: int, offset: int, seq: int, checksum: str, deep: DeepCheck | None, runs: Runs | None
) -> None:
    end = chunk.end
    digest = sha256
    for block in line_blocks(fd, offset):
        for line in block:
            if offset >= end:
                break
            found = digest(line[:-CHECKSUM_BYTES]).hexdigest()
            # One comparison checks number, place in the chain, checksum and the end of the line.
            if line.endswith(f',"seq":{seq},"prev":"{checksum}","checksum":"sha256:{found}"}}\n'.encode()):
                seq += 1
                checksum = found
                chunk.count += 1
                # The first `","type":"` is the member: in a string before it the quotes would be escaped.
                if line.startswith(b"otledger.", line.find(b'","type":"', 26) + 10):
                    _control(chunk, offset, line, runs)
                if runs is not None:
                    runs.add(seq - 1, [found])
                if deep is not None:
                    _check_json(chunk, offset, line, seq - 1, deep)
            else:
                seq, checksum = _take_odd_line(chunk, offset, line, seq, checksum, deep, runs)
            offset += len(line)
        else:
            continue
        break
    chunk.last_seq, chunk.last, chunk.stop = seq - 1, checksum, offset


def _take_odd_line(
    chunk: Chunk, offset: int, line: bytes, seq: int, checksum: str, deep: DeepCheck | None, runs: Runs | None
) -> tuple[int, str]:
    """Note what is odd about a line, or that it is a chunk's first. Gives what is due next, seen from it."""
    tail = check_line(line)
    if tail is None:
        # A piece of a line that is too long has no end either, and may reach beyond the chunk.
        if not line.endswith(b"\n") and offset + len(line) >= chunk.end and len(line) <= MAX_LINE:
            _bad(chunk, offset, seq, "the last line is torn", "torn")
        elif is_foreign(line):
            _bad(chunk, offset, seq, "a line that is not otledger's", "foreign")
        else:
            _bad(chunk, offset, seq, "the checksum does not fit the line", "broken")
        return seq, checksum
    # After a broken line the next one tells its number: the loss is told already.
    told = chunk.bad[-1][1] == seq and chunk.bad[-1][3] != "json" if chunk.bad else chunk.told and seq == chunk.seq
    if seq < 0:
        chunk.first_seq, chunk.first_prev, chunk.first_offset = tail.seq, tail.prev.decode(), offset
    elif tail.seq < seq:
        _bad(chunk, offset, seq, f"seq is {tail.seq}, and {seq} is due", f"fork {tail.seq}")
        return seq, checksum
    elif tail.seq > seq and not told:
        _bad(chunk, offset, seq, f"seq is {tail.seq}, and {seq} is due", "gap")
    elif tail.seq == seq and not told:
        _bad(chunk, offset, seq, f"prev of seq {seq} is not the checksum of the record before", "prev")
    chunk.count += 1
    if _CONTROL in line:
        _control(chunk, offset, line, runs)
    if runs is not None:
        runs.add(tail.seq, [tail.checksum.decode()])
    if deep is not None:
        _check_json(chunk, offset, line, tail.seq, deep)
    return tail.seq + 1, tail.checksum.decode()


def _control(chunk: Chunk, offset: int, line: bytes, runs: Runs | None) -> None:
    chunk.controls.append((offset, line.decode("utf-8", "replace")))
    if runs is not None:
        size = (control_data(line, CHECKPOINT_TYPE) or {}).get("size")
        if isinstance(size, int):
            runs.cut(size)


def _bad(chunk: Chunk, offset: int, seq: int, reason: str, kind: str) -> None:
    if len(chunk.bad) < MAX_FAULTS:
        chunk.bad.append((offset, seq, reason, kind))
    else:
        chunk.more_bad += 1


def _check_json(chunk: Chunk, offset: int, line: bytes, seq: int, deep: DeepCheck) -> None:
    reason = deep.why_not(line)
    if reason is not None:
        _bad(chunk, offset, seq, reason, "json")


def main() -> None:
    """Answer on stdout for each chunk on stdin, until that ends."""
    import msgspec

    for line in sys.stdin.buffer:
        answer = msgspec.json.encode(check_chunk(msgspec.json.decode(line, type=Chunk)))
        sys.stdout.buffer.write(len(answer).to_bytes(8, "big") + answer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
