"""One run of an index: which 64 KB cells of a segment may hold a key, or a time. Bytes in, bytes out; no I/O.

A run covers up to `CELLS` cells of whole lines that follow each other. It is written once and never changed:

    head        `_HEAD`: where it begins and ends, its times, the stamp of the segment when it was made
    directory   where each page ends, counted from the first: 32-bit integers; empty: any cell may hold any key
    CRC-32      of the above
    cells       `_CELL` each, and a CRC-32 of all
    pages       CRC-32, the number of entries of each of 64 buckets, the entries

A key is hashed to 32 bits. The first of them name the bucket; an entry is 16 bits: the last 6 of the hash, and 10 for
the cell. So a key costs about two bytes, and one cell in a hundred thousand is named that does not hold it: whoever
asks looks into the lines themselves. A wrong bit is noticed, and raises `Damaged`.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from zlib import crc32

import msgspec

from otledger import speed
from otledger.record import DECODE_ERRORS, Record, decode, parse_time

VERSION = 1
MAGIC = b"otlx"
CELL = 1 << 16
"""The least bytes of a cell, except for the last of a segment; it ends with a whole line."""
CELLS = 1024
"""The most cells of a run."""
ID, TRACE, SPAN, TURN, RESOURCE = range(1, 6)
"""The kinds of keys: one text of two kinds is two keys."""

_HEAD = struct.Struct("<4sHBBIIQQqqQQq16sQ")
_CELL = struct.Struct("<QqqII")
_OFFSET = struct.Struct("<Q")
_WORD = struct.Struct("<I")
_BUCKETS = 64
_COUNTS = struct.Struct(f"<{_BUCKETS}H")
_FEW = 8
"""The most entries of a bucket, on the average."""
_LITTLE = sys.byteorder == "little"
_MOST_BITS = 20
_BAD = 1
"""Of a cell, or of a run with such a cell: a line in it is no record, and whoever scans is told so."""
_LEAST, _LARGEST = -(1 << 63), (1 << 63) - 1

Read = Callable[[int, int], bytes]
"""Gives so many bytes from an offset of the run's file on, fewer at its end."""

_ZEROS = bytes.maketrans(b"123456789", b"0" * 9)
_SHAPE = b"0000-00-00T00:00:00.000000000Z"
_EDGE = b'"}\n{"specversion":"1.0"'
"""What stands between the lines that otledger writes. It is found faster than what is always there."""
_decode_lines = msgspec.json.Decoder(Record).decode_lines
_cell: Callable[[bytes, int], tuple[int, str, str, bytes, list[tuple[int, int]]] | None] | None = getattr(
    decode, "cell", None
)
"""Gives of a cell's lines how many they are, their least and largest time, their keys packed, and the places of
telemetry that names its trace in the payload; None where the lines have to be looked at one by one."""


class Damaged(Exception):
    """What was read is no run of this version, or was changed since it was written."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells whether a segment is still the one that was indexed: its size and time of change, and a `probe`
    of the bytes at its beginning and at the run's end."""

    size: int
    mtime: int
    probe: bytes


@dataclass(frozen=True, slots=True)
class Query:
    """Hashes of keys that a record must all have, and the times that are wanted; both ends may be None."""

    hashes: tuple[int, ...]
    since: int | None
    until: int | None


def key_hash(kind: int, value: str) -> int:
    """Give the hash of a key, 32 bits."""
    return crc32(value.encode("utf-8", "surrogatepass"), kind)


# Making a run


class Builder:
    """Takes the cells of a run, and gives its bytes."""

    def __init__(self, start: int) -> None:
        self.start = self.end = start
        self.records = 0
        self._cells: list[tuple[int, int, int, int, int]] = []
        # Each is the hash of a key, and the cell in the last ten bits.
        self._keys = array("Q")

    @property
    def cells(self) -> int:
        """How many cells it has."""
        return len(self._cells)

    def add(self, block: bytes) -> None:
        """Take a cell: lines that are whole, from `end` on."""
        cell = len(self._cells)
        found = _cell(block, cell) if _cell is not None else None
        if found is None:
            records, bad = _records(block)
            count = len(records)
            times = [record.time for record in records]
            keys = _keys(records)
        else:
            count, *times, packed, places = found
            bad = False
            self._keys.frombytes(packed)
            keys = {key for start, end in places for key in _keys_of_telemetry(decode(block[start:end]))}
        self._keys.extend([key << 10 | cell for key in keys])
        self._cells.append((self.end, *_times(times), count, _BAD if bad else 0))
        self.records += count
        self.end += len(block)

    def encode(self, stamp: Stamp) -> bytes:
        """Give the bytes of the run."""
        cells, keys = self._cells, _ordered(self._keys)
        flags = _BAD if any(cell[4] for cell in cells) else 0
        bits = 0
        while len(keys) >> bits > _FEW and bits < _MOST_BITS:
            bits += 1
        pages = _pages(keys, bits)
        table = b"".join(_CELL.pack(*cell) for cell in cells)
        directory = struct.pack(f"<{len(pages)}I", *accumulate(map(len, pages)))
        length = _HEAD.size + len(directory) + 4 + len(table) + 4 + sum(map(len, pages))
        head = _HEAD.pack(
            *(MAGIC, VERSION, bits, flags, len(cells), len(pages), self.start, self.end),
            *(min(cell[1] for cell in cells), max(cell[2] for cell in cells)),
            *(self.records, stamp.size, stamp.mtime, stamp.probe, length),
        )
        head += directory
        return b"".join((head, _WORD.pack(crc32(head)), table, _WORD.pack(crc32(table)), *pages))


def _ordered(keys: array[int]) -> array[int]:
    """Give the keys sorted, each once."""
    if speed.order is None:
        return array("Q", sorted(set(keys)))
    return array("Q", speed.order(keys.tobytes()))


def _records(block: bytes) -> tuple[list[Record], bool]:
    """Give the records of whole lines, and whether there is a line that is none."""
    lines = block.count(b"\n")
    # Only where each line begins and ends as an object does, none can be hidden inside of another.
    apart = block.startswith(b"{") and block.endswith(b"}\n")
    if apart and (block.count(_EDGE) == lines - 1 or block.count(b"}\n{") == lines - 1):
        try:
            if not block.isascii():
                block.decode()
            records = _decode_lines(block)
        except DECODE_ERRORS:
            pass
        else:
            if len(records) == lines:
                return records, False
    records = []
    for line in block.split(b"\n")[:-1]:
        try:
            records.append(decode(line))
        except DECODE_ERRORS:
            continue
    return records, len(records) < lines


def _keys(records: Sequence[Record]) -> set[int]:
    """Give the hashes of all that the records can be found by."""
    found = {crc32(id.encode("utf-8", "surrogatepass"), ID) for id in [record.id for record in records]}
    found.update([key_hash(TURN, turn) for turn in {record.ipc_hash for record in records} if turn is not None])
    # Most records share their parent with others.
    known = {record.traceparent for record in records}
    parents = [parent for parent in known if parent is not None]
    found.update([key_hash(TRACE, trace) for trace in {parent[3:35] for parent in parents}])
    found.update([crc32(parent[36:52].encode("utf-8", "surrogatepass"), SPAN) for parent in parents])
    if None in known:
        for record in records:
            if record.traceparent is None and record.type.startswith("otel."):
                found.update(_keys_of_telemetry(record))
    return found


def _keys_of_telemetry(record: Record) -> Iterator[int]:
    if (trace := record.trace_id) is not None:
        yield key_hash(TRACE, trace)
    if (span := record.span_id) is not None:
        yield key_hash(SPAN, span)
    if (digest := record.digest) is not None:
        yield key_hash(RESOURCE, digest)


def _times(texts: Sequence[str]) -> tuple[int, int]:
    """Give the smallest and the largest time, in nanoseconds."""
    if not texts:
        return 0, 0
    if _sort_as_text(texts):
        texts = min(texts), max(texts)
    times = [parse_time(text) or 0 for text in texts]
    return _clamped(min(times)), _clamped(max(times))


def _sort_as_text(texts: Sequence[str]) -> bool:
    """Tell whether all are times as they are written (format, 3); of others some may count as 0."""
    joined = "".join(texts).encode("utf-8", "surrogatepass")
    if joined.translate(_ZEROS) != _SHAPE * len(texts) or any(len(text) != len(_SHAPE) for text in texts):
        return False
    return all(parse_time(second + ".000000000Z") is not None for second in {text[:19] for text in texts})


def _clamped(ns: int) -> int:
    """Give the nearest to a time in 64 bits: those of the years 1 to 1677 and 2262 to 9999 have none."""
    return max(_LEAST, min(_LARGEST, ns))


def _pages(keys: array[int], bits: int) -> list[bytes]:
    """Give the pages over sorted `hash << 10 | cell`; none where a bucket has too many entries.

    It has where somebody makes ids of one hash.
    """
    shift = 42 - bits
    buckets = max(1 << bits, _BUCKETS)
    edges = [0, *(bisect_left(keys, bucket << shift) for bucket in range(1, 1 << bits))]
    edges += [len(keys)] * (buckets + 1 - len(edges))
    # The last 16 bits of each.
    entries = array("H", keys.tobytes())[0 if _LITTLE else 3 :: 4]
    if not _LITTLE:
        entries.byteswap()
    pages = []
    for first in range(0, buckets, _BUCKETS):
        own = edges[first : first + _BUCKETS + 1]
        counts = [after - before for before, after in pairwise(own)]
        if max(counts) >= 1 << 16:
            return []
        page = _COUNTS.pack(*counts) + entries[own[0] : own[-1]].tobytes()
        pages.append(_WORD.pack(crc32(page)) + page)
    return pages


# Reading a run


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it stands in a file. `start` and `end` are offsets in the segment."""

    start: int
    end: int
    records: int
    stamp: Stamp
    length: int
    """How many bytes of the file it takes."""
    cells: int
    _offset: int
    _bits: int
    _bad: bool
    _times: tuple[int, int]
    _directory: bytes

    @classmethod
    def read(cls, read: Read, offset: int) -> Run | None:
        """Give the run that begins there, or None where the file ends or something else stands there."""
        block = read(_HEAD.size + 4 * (CELLS + 1), offset)
        if len(block) < _HEAD.size:
            return None
        magic, version, bits, flags, cells, pages, start, end, least, largest, records, size, mtime, probe, length = (
            _HEAD.unpack_from(block)
        )
        if magic != MAGIC or version != VERSION or pages > 1 << _MOST_BITS:
            return None
        whole = _HEAD.size + 4 * pages + 4
        if whole > len(block):
            block = read(whole, offset)
        if len(block) < whole or _WORD.unpack_from(block, whole - 4)[0] != crc32(block[: whole - 4]):
            return None
        directory = block[_HEAD.size : whole - 4]
        stamp = Stamp(size, mtime, probe)
        return cls(start, end, records, stamp, length, cells, offset, bits, bool(flags), (least, largest), directory)

    def ranges(self, read: Read, query: Query) -> Iterator[tuple[int, int]]:
        """Give beginning and end of the cells that may hold what is asked for, in their order. Raises `Damaged`."""
        since = _LEAST if query.since is None else _clamped(query.since)
        until = _LARGEST if query.until is None else _clamped(query.until)
        named: set[int] | None = None if self._times[0] <= until and self._times[1] >= since else set()
        for key in query.hashes:
            if named is None or named:
                found = self._named(read, key)
                named = found if named is None or found is None else named & found
        if named is not None and not named and not self._bad:
            return
        table = self._table(read)
        if named is not None and not self._bad:
            # Of most runs few cells are asked for: the others need not be looked at.
            for at in sorted(named):
                start, least, largest, _, _ = _CELL.unpack_from(table, at * _CELL.size)
                if least <= until and largest >= since:
                    yield start, self._end_of(table, at)
            return
        for at, (start, least, largest, _, flags) in enumerate(_CELL.iter_unpack(table)):
            if (least <= until and largest >= since and (named is None or at in named)) or flags & _BAD:
                yield start, self._end_of(table, at)

    def _end_of(self, table: bytes, at: int) -> int:
        following = (at + 1) * _CELL.size
        return _OFFSET.unpack_from(table, following)[0] if following < len(table) else self.end

    def check(self, read: Read) -> None:
        """Look at every byte. Raises `Damaged`."""
        self._table(read)
        for page in range(len(self._directory) // 4):
            self._page(read, page)

    def _table(self, read: Read) -> bytes:
        size = self.cells * _CELL.size
        block = read(size + 4, self._offset + _HEAD.size + len(self._directory) + 4)
        if len(block) < size + 4 or _WORD.unpack_from(block, size)[0] != crc32(block[:size]):
            raise Damaged
        return block[:size]

    def _page(self, read: Read, page: int) -> bytes:
        (end,) = _WORD.unpack_from(self._directory, 4 * page)
        start = _WORD.unpack_from(self._directory, 4 * page - 4)[0] if page else 0
        pages = self._offset + _HEAD.size + len(self._directory) + 4 + self.cells * _CELL.size + 4
        block = read(end - start, pages + start)
        if len(block) < end - start or _WORD.unpack_from(block)[0] != crc32(block[4:]):
            raise Damaged
        return block

    def _named(self, read: Read, key: int) -> set[int] | None:
        """Give the numbers of the cells that may hold a key; None: any."""
        if not self._directory:
            return None
        bucket = key >> (32 - self._bits)
        block = self._page(read, bucket // _BUCKETS)
        counts = _COUNTS.unpack_from(block, 4)
        first = sum(counts[: bucket % _BUCKETS])
        count = counts[bucket % _BUCKETS]
        entries = struct.unpack_from(f"<{count}H", block, 4 + _COUNTS.size + 2 * first)
        return {entry & 1023 for entry in entries if entry >> 10 == key & 63}
