"""What a span's record holds, as JSON, and how it is cut where a line has no place for it (format, 4)."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from otledger import values

PLAIN = frozenset((str, bool, int, float))
"""The types of values that orjson may be handed as they are, if they are finite."""


def collections(
    attributes: Mapping[str, Any], events: Sequence[Mapping[str, Any]], links: Sequence[Mapping[str, Any]]
) -> str:
    """Give attributes, events and links as members. Raises `TooDeep`."""
    # One level more than a payload has: they stand in one.
    return named([values.encode([item])[1:-1] if item else b"" for item in (attributes, events, links)])


def named(encoded: Sequence[bytes]) -> str:
    """Give attributes, events and links, each JSON or empty, as members."""
    names = ("attributes", "events", "links")
    return "".join(f',"{name}":{item.decode()}' for name, item in zip(names, encoded, strict=True) if item)


def encode_plain(attributes: dict[str, Any]) -> bytes:
    """Encode as `values.encode` does, without looking at each value again."""
    try:
        raw = orjson.dumps(attributes)
    except TypeError:
        # An integer of more than 64 bits, a lone surrogate.
        return values.encode(attributes)
    if b"null" in raw or raw.startswith(b'{"$'):
        # What is no finite number is written as null.
        return values.encode(attributes)
    return raw if raw.isascii() else values.escape_separators(raw)


_names: dict[str, str] = {}


def encode_name(name: Any) -> str:
    """Give a span's name as JSON, and remember it: programs have few of them."""
    try:
        return _names[name]
    except (KeyError, TypeError):
        encoded = dumps(name)
        if type(name) is str and len(name) <= 100:
            if len(_names) >= 1024:
                _names.clear()
            _names[name] = encoded
        return encoded


def dumps(value: Any) -> str:
    """Give any value as JSON text."""
    return values.encode(value).decode()


def cut_largest(
    attributes: Mapping[str, Any],
    events: Sequence[Mapping[str, Any]],
    links: Sequence[Mapping[str, Any]],
    room: int,
) -> tuple[list[bytes], int]:
    """Give attributes, events and links as JSON of at most `room` bytes, and how many values were cut for it.

    The largest values go first, each replaced by `{"$cut": bytes}` (format, 4). Where that is not enough all
    three are dropped whole.
    """
    places: list[tuple[int, dict[str, Any], str]] = []
    own = _fragments(attributes, places)
    groups = [
        [
            {key: _fragments(part, places) if key == "attributes" else _fragment(part) for key, part in item.items()}
            for item in items
        ]
        for items in (events, links)
    ]
    places.sort(key=lambda place: place[0], reverse=True)

    def dump() -> list[bytes]:
        return [orjson.dumps(item) if item else b"" for item in (own, *groups)]

    excess = sum(map(len, dump())) - room
    cut = 0
    for size, owner, key in places:
        if excess <= 0 and size <= room:
            break
        # A value deeper than a line may be has no size here: it goes first.
        owner[key] = orjson.Fragment(b'{"$cut":%d}' % (size if size <= _ENDLESS else 0))
        excess -= size - 32
        cut += 1
    encoded = dump()
    if sum(map(len, encoded)) > room:
        cut += len(attributes) + len(events) + len(links)
        return [b"", b"", b""], cut
    return encoded, cut


_ENDLESS = 1 << 62


def _fragments(attributes: Mapping[str, Any], places: list[tuple[int, dict[str, Any], str]]) -> dict[str, Any]:
    owner: dict[str, Any] = {}
    for key, value in attributes.items():
        name = key.encode("utf-8", "backslashreplace").decode()
        try:
            # With as many levels around it as it will stand in.
            raw = values.encode([[[[value]]]])[4:-4]
            places.append((len(raw), owner, name))
            owner[name] = orjson.Fragment(raw)
        except values.TooDeep:
            places.append((_ENDLESS + 1, owner, name))
            owner[name] = None
    return owner


def _fragment(value: Any) -> orjson.Fragment:
    return orjson.Fragment(values.encode(value))


@functools.cache
def process_started() -> int:
    """Give when this process began, in clock ticks since boot, as /proc tells; 0 if it does not."""
    try:
        with open("/proc/self/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


os.register_at_fork(after_in_child=process_started.cache_clear)
