"""Stamping lines with `seq`, `prev` and `checksum`, and checking them by their bytes (format, 2 and 3).

Pure. A *part* is what a caller makes of an event: a line's bytes up to, and without, `,"synced":` or `,"seq":`.
A *line* here always includes its LF, unless it is torn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import NamedTuple

from otledger import speed

ZEROS = b"0" * 64
"""`prev` of the record with `seq` 0."""

CHECKSUM_BYTES = 87
"""How many bytes of a line follow its body: `,"checksum":"sha256:` + 64 hex + `"}` + LF."""

MAX_LINE = 16 << 20
"""The longest line, in bytes, LF included."""

MAX_SEQ = 10**18 - 1
"""The largest `seq` that is written or read: 30,000 years of a million records a second, and less than 64 bits."""

STAMP_ROOM = 330
"""More than stamping ever adds to a part, in bytes: `synced`, `seq`, `prev`, `checksum`."""

_TAIL = re.compile(
    rb',"seq":(0|[1-9]\d{0,17}),"prev":"([0-9a-f]{64})","checksum":"sha256:([0-9a-f]{64})"\}\n\Z', re.ASCII
)
_SYNCED = re.compile(rb',"synced":(0|[1-9]\d{0,17})\Z', re.ASCII)


class Tail(NamedTuple):
    """The last members of a whole, right line."""

    seq: int
    prev: bytes
    checksum: bytes
    """64 hex digits."""
    part: bytes
    """The line up to `,"seq":`."""

    @property
    def synced(self) -> int | None:
        """Every record with a smaller `seq` was durable when this line's batch was written; None if unsaid."""
        match = _SYNCED.search(self.part[-30:])
        return int(match[1]) if match else None


def stamp_plainly(parts: list[bytes], seq: int, prev: bytes) -> list[bytes]:
    """Do what `stamp` does, in Python."""
    lines: list[bytes] = []
    add, digest = lines.append, sha256
    checksum = prev.decode()
    # Text is formatted and then encoded: that is faster than formatting bytes.
    for part in parts:
        body = part + f',"seq":{seq},"prev":"{checksum}"'.encode()
        checksum = digest(body).hexdigest()
        add(body + f',"checksum":"sha256:{checksum}"}}\n'.encode())
        seq += 1
    return lines


stamp: Callable[[list[bytes], int, bytes], list[bytes]] = speed.stamp or stamp_plainly
"""Gives the lines of parts, numbered from `seq` on and chained to `prev`, 64 hex digits.

The checksum of the last line is `checksum_of(lines[-1])`, the `prev` of what comes next.
"""


def checksum_of(line: bytes) -> bytes:
    """Give the 64 hex digits of a whole line's own checksum, unchecked."""
    return line[-67:-3]


def with_synced(part: bytes, synced: int) -> bytes:
    """Give the part of a batch's first record: it names how many records were durable before."""
    return b'%b,"synced":%d' % (part, synced)


def caller_part(tail: Tail) -> bytes:
    """Give the part that a line was stamped from, so that it can be appended again elsewhere."""
    return _SYNCED.sub(b"", tail.part[-30:]).join((tail.part[:-30], b""))


def check_line(line: bytes) -> Tail | None:
    """Give the tail of a line that is whole and whose checksum is right, else None. Looks at no other line."""
    match = _TAIL.search(line, max(0, len(line) - 400))
    if match is None or sha256(line[:-CHECKSUM_BYTES]).hexdigest().encode() != match[3]:
        return None
    return Tail(int(match[1]), match[2], match[3], line[: match.start()])


def has_type(line: bytes, type: str) -> bool:
    """Tell whether a line or part is of this type, or of one that begins so where `type` ends in a dot."""
    # The first `","type":"` is the member: in a string before it the quotes would be escaped.
    at = line.find(b'","type":"', 26) + 10
    return line.startswith(type.encode() if type.endswith(".") else type.encode() + b'"', at)


def whole_lines(sizes: Sequence[int], written: int) -> tuple[int, int]:
    """Give how many of the lines with these `sizes` fit into `written` bytes, and the bytes that those have."""
    total = 0
    for count, size in enumerate(sizes):
        if total + size > written:
            return count, total
        total += size
    return len(sizes), total
