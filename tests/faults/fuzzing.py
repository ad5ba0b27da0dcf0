"""What damages bytes for the fuzzers: where chance comes from, and what it may do to a file, a line, a JSON value.

Nothing here knows what otledger makes of it: that is the targets' business (fuzz_targets.py).
"""

import json
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol, TypeVar

from tests.faults.tools import rechained, restamp

T = TypeVar("T")


class Chance(Protocol):
    """Where the decisions of an example come from: dice, or the bytes that a fuzzer feeds."""

    def number(self, low: int, high: int) -> int:
        """A number between the two, both included."""

    def octets(self, count: int) -> bytes:
        """So many bytes, or fewer where there are no more."""


class Dice:
    """Chance from a seed, so that an example can be repeated."""

    def __init__(self, seed: object) -> None:
        self._random = random.Random(str(seed))

    def number(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def octets(self, count: int) -> bytes:
        return self._random.randbytes(count)


def pick(chance: Chance, what: Sequence[T]) -> T:
    return what[chance.number(0, len(what) - 1)]


class Hung(BaseException):
    """An example took longer than anything may."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `Hung` where the body takes longer, whatever it catches. In the main thread only."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hung(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# Texts that have broken parsers, terminals and splitters ----------------------------------------------------

NASTY = (
    *(b"", b"\x00", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\n"),
    *("\u0085", "\u2028", "\u2029", "\u202e", "\u0000", "\u001b[2J", "\u001b]0;x\u0007", "\u009b31m"),
    *(b"\\ud800", b"\\u0000", b"\\u2028", b"\\", b'"', b'\\"', b"{", b"}", b"[", b"]", b",", b":", b" ", b"\t"),
    *(b"NaN", b"Infinity", b"-0", b"1e999", b"1e-999", b"0x1", b"01", b"1" * 25, b"9" * 700, b"null", b"true"),
    *(b'"checksum":"sha256:', b',"seq":', b',"prev":"', b'","type":"', b'"type":"otledger.checkpoint"'),
    *(b"[" * 150 + b"]" * 150, b'{"a":' * 150 + b"1" + b"}" * 150, b'"a":1,"a":2', b'{"$map":[[1,2],[1,3]]}'),
    *(b'{"$int":"' + b"7" * 3000 + b'"}', b'{"$decimal":"1e999999"}', b'{"$bytes":"%"}', b'{"$float":"x"}'),
)
NASTY_BYTES = tuple(text.encode() if isinstance(text, str) else text for text in NASTY)

DEEP = b"[" * 10_000 + b"]" * 10_000
NASTY_LINES = (
    *(b"", b" ", b"null", b"1", b"[]", b"{}", b'""', b"\x00" * 100, b"\xff" * 50, b'{"a":1}', b'{"checksum":1}'),
    *(DEEP, b'{"a":' * 10_000, b'{"specversion":"1.0","id":"x","data":' + DEEP + b"}"),
    *(b"#!/bin/sh", b"<<<<<<< HEAD", b'{"specversion":"1.0","id":"x","source":"s","type":"t","time":"t"}'),
    b'{"specversion":"1.0","id":"x","source":"s","type":"t","time":"t","machine":"m1","seq":' + b"9" * 5000 + b"}",
    b'{"seq":0,"prev":"' + b"0" * 64 + b'","checksum":"sha256:' + b"0" * 64 + b'"}',
)

NASTY_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2**31,
        2**63,
        2**64,
        -(2**63),
        10**18,
        10**30,
        1.5,
        -0.0,
        "",
        " ",
        "\u0000",
        "x" * 2000,
    ),
    *("\u2028", "\u0085", "\u202e", "\u001b[31m", "../../etc/passwd", "..", "/", ".", "a/b", "2026-13.jsonl"),
    *("2026-11.jsonl", "2026-11.1.jsonl", "9999-12.999999999999999999999.jsonl", "0" * 64, "sha256:" + "0" * 64),
    *("9999-12-31T23:59:60.999999999Z", "0000-00-00T00:00:00.000000000Z", "2026-02-30T00:00:00.000000000Z"),
    *([], {}, [[]], {"": ""}, {"$int": "x"}, {"$enc": {}}, {"$cut": 3}, [None] * 50, {"size": 5, "segment": None}),
)


# Whole files ------------------------------------------------------------------------------------------------


def _flip(data: bytes, chance: Chance) -> bytes:
    at = chance.number(0, max(0, len(data) - 1))
    return data[:at] + bytes([data[at] ^ (1 << chance.number(0, 7))]) + data[at + 1 :] if data else b""


def _range(data: bytes, chance: Chance) -> tuple[int, int]:
    start = chance.number(0, len(data))
    longest = pick(chance, (1, 8, 64, 512, 4096, len(data)))
    return start, min(len(data), start + chance.number(0, longest))


def _delete(data: bytes, chance: Chance) -> bytes:
    start, end = _range(data, chance)
    return data[:start] + data[end:]


def _repeat(data: bytes, chance: Chance) -> bytes:
    start, end = _range(data, chance)
    return data[:end] + data[start:end] + data[end:]


def _move(data: bytes, chance: Chance) -> bytes:
    start, end = _range(data, chance)
    rest = data[:start] + data[end:]
    to = chance.number(0, len(rest))
    return rest[:to] + data[start:end] + rest[to:]


def _zeros(data: bytes, chance: Chance) -> bytes:
    """What a crash may leave of blocks that never reached the disk."""
    block = pick(chance, (512, 4096))
    start = chance.number(0, len(data) // block) * block
    end = min(len(data), start + block)
    return data[:start] + bytes(end - start) + data[end:]


def _noise(data: bytes, chance: Chance) -> bytes:
    start, end = _range(data, chance)
    return data[:start] + chance.octets(min(end - start, 600)) + data[end:]


def _insert(data: bytes, chance: Chance) -> bytes:
    at = chance.number(0, len(data))
    return data[:at] + pick(chance, NASTY_BYTES) + data[at:]


def _overwrite(data: bytes, chance: Chance) -> bytes:
    at, new = chance.number(0, len(data)), pick(chance, NASTY_BYTES)
    return data[:at] + new + data[at + len(new) :]


def _cut(data: bytes, chance: Chance) -> bytes:
    return data[: chance.number(0, len(data))]


def _torn(data: bytes, chance: Chance) -> bytes:
    """The last line, torn somewhere."""
    begin = data.rfind(b"\n", 0, max(0, len(data) - 1)) + 1
    return data[: chance.number(begin, len(data))]


def _append(data: bytes, chance: Chance) -> bytes:
    tails = (chance.octets(40), bytes(chance.number(1, 5000)), data[-200:], pick(chance, NASTY_LINES), b"\n")
    return data + pick(chance, tails)


def _lines(data: bytes, chance: Chance) -> bytes:
    """Whole lines away, twice, in another order, or somebody else's between them."""
    lines = data.splitlines(keepends=True)
    at, to = chance.number(0, max(0, len(lines) - 1)), chance.number(0, len(lines))
    what = chance.number(0, 3)
    if what == 0:
        del lines[at : at + pick(chance, (1, 1, 3))]
    elif what == 1:
        lines[to:to] = lines[at : at + 1]
    elif what == 2:
        lines[at:at] = [pick(chance, NASTY_LINES) + b"\n"]
    elif lines:
        lines.insert(min(to, len(lines) - 1), lines.pop(at))
    return b"".join(lines)


CHANGES: tuple[Callable[[bytes, Chance], bytes], ...] = (
    *(_flip, _flip, _delete, _repeat, _move, _zeros, _noise, _insert, _overwrite, _cut, _torn, _append, _lines, _lines),
)


def damaged(data: bytes, chance: Chance) -> bytes:
    """The bytes after one change, sometimes after several."""
    for _ in range(pick(chance, (1, 1, 1, 2, 5))):
        data = pick(chance, CHANGES)(data, chance)
    return data


# One line, with a right checksum again ----------------------------------------------------------------------


def text_of(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def bent(value: Any, chance: Chance) -> Any:
    """A JSON value with something in it that does not belong there."""
    if isinstance(value, dict) and value and chance.number(0, 5):
        name = pick(chance, list(value))
        if chance.number(0, 6) == 0:
            return {other: item for other, item in value.items() if other != name}
        return value | {name: bent(value[name], chance)}
    if isinstance(value, list) and value and chance.number(0, 3):
        at = chance.number(0, len(value) - 1)
        return [*value[:at], bent(value[at], chance), *value[at + 1 :]]
    return pick(chance, NASTY_VALUES)


def bent_record(line: bytes, chance: Chance) -> bytes:
    """The line with bent members and a right checksum; number and predecessor stay."""
    members = json.loads(line)
    kept = {name: members.pop(name) for name in ("seq", "prev", "checksum")}
    changed = bent(members, chance)
    members = changed if isinstance(changed, dict) else {"data": changed}
    body = text_of({name: value for name, value in members.items() if name not in kept})[:-1]
    # As text, because a bent id or type must not keep the line from being stamped.
    comma = b"" if body == b"{" else b","
    tail = b',"seq":%d,"prev":"%b","checksum":"sha256:%b"}\n' % (kept["seq"], kept["prev"].encode(), b"0" * 64)
    return restamp(body + tail if comma else b'{"a":1' + tail)


Breach = Callable[[bytes], bytes]
DATA = b',"data":'


def _in_data(text: bytes) -> Breach:
    def change(line: bytes) -> bytes:
        at = line.index(DATA) + len(DATA)
        end = line.index(b',"seq":') if b',"synced":' not in line else line.index(b',"synced":')
        return line[:at] + text + line[end:]

    return change


BREACHES: dict[str, Breach] = {
    "a member twice": lambda line: line.replace(b'"source":', b'"source":"x","source":', 1),
    "a member twice, deep inside": _in_data(b'{"a":[{"b":1,"b":2}]}'),
    "white space": lambda line: line.replace(b',"source":', b', "source":', 1),
    "a tab": lambda line: line.replace(b',"source":', b',\t"source":', 1),
    "NaN": _in_data(b"[NaN]"),
    "Infinity": _in_data(b"-Infinity"),
    "null": _in_data(b"null"),
    "no JSON": _in_data(b"{"),
    "a raw U+2028": _in_data('"\u2028"'.encode()),
    "a raw U+0085": _in_data('"\u0085"'.encode()),
    "a raw NUL": _in_data(b'"\x00"'),
    "invalid UTF-8": _in_data(b'"\xff"'),
    "half a character": _in_data(b'"\xe2\x80"'),
    "a surrogate in UTF-8": _in_data(b'"\xed\xa0\x80"'),
    "101 deep": _in_data(b"[" * 100 + b"]" * 100),
    "10,000 deep": _in_data(DEEP),
    "another machine": lambda line: line.replace(b'"machine":"m1"', b'"machine":"m2"', 1),
    "no id": lambda line: b'{"specversion":"1.0","source"' + line.partition(b',"source"')[2],
    "another version": lambda line: line.replace(b'"1.0"', b'"1.1"', 1),
    "a time without nanoseconds": lambda line: line.replace(b'Z","machine"', b'+00:00","machine"', 1),
    "members in another order": lambda line: line.replace(b'"specversion":"1.0",', b"", 1).replace(
        b',"machine":', b',"specversion":"1.0","machine":', 1
    ),
    "an array in an extension": lambda line: line.replace(DATA, b',"ext":[1]' + DATA, 1),
    "a large number in an extension": lambda line: line.replace(DATA, b',"ext":2147483648' + DATA, 1),
    "a capital in a name": lambda line: line.replace(DATA, b',"Ext":1' + DATA, 1),
}
"""What the format forbids and the checksums cannot see. Each works on the line of an event with a payload."""


def recomputed(lines: list[bytes], at: int, new: bytes) -> list[bytes]:
    """The lines with another one at a place, and everything after it chained anew, as a forger does."""
    return rechained([*lines[:at], new, *lines[at + 1 :]])
