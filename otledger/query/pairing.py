"""Start/end pairs of plain events (`*.start`, `*.end`), summed up by type, as `stats` and `digest` need them.

The only place where these two link starts with ends: another way of it has to give `Pairing.feed` and `is_half`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from otledger.errors import ConfigurationError
from otledger.query.spread import Spread, Values
from otledger.record import Record

_START, _END = ".start", ".end"


@dataclass(frozen=True, slots=True)
class PairStats:
    """The pairs of one type."""

    seconds: Spread | None
    unmatched_starts: int
    unmatched_ends: int


def is_half(type: str) -> bool:
    """Tell whether records of a type are the start or the end of a pair."""
    return type.endswith((_START, _END)) and not type.startswith("otel.")


class Pairing:
    """Links starts and ends by a correlation key as they come, the oldest start first. Holds the open starts only."""

    def __init__(self, key: str) -> None:
        self._path = check_key(key)
        self._open: dict[tuple[str, Hashable], deque[int]] = {}
        self._seconds: dict[str, Values] = {}
        self._ends: dict[str, int] = {}
        self._loose: dict[str, int] = {}

    def feed(self, record: Record) -> float | None:
        """Take a start or an end; give how many seconds the pair lasted that it ends."""
        base, _, half = record.type.rpartition(".")
        key = value_at(record, self._path)
        values = self._seconds.setdefault(base, Values())
        if not isinstance(key, str | int | float) or isinstance(key, bool):
            count = self._loose if half == "start" else self._ends
            count[base] = count.get(base, 0) + 1
            return None
        place = base, key
        if half == "start":
            self._open.setdefault(place, deque()).append(record.time_ns)
            return None
        starts = self._open.get(place)
        if not starts:
            self._ends[base] = self._ends.get(base, 0) + 1
            return None
        seconds = max(0, record.time_ns - starts.popleft()) / 1e9
        if not starts:
            del self._open[place]
        values.add(seconds)
        return seconds

    def stats(self) -> Mapping[str, PairStats]:
        """Give the pairs by type, without `.start` and `.end`."""
        starts = dict(self._loose)
        for (base, _), times in self._open.items():
            starts[base] = starts.get(base, 0) + len(times)
        return {
            base: PairStats(values.spread(), starts.get(base, 0), self._ends.get(base, 0))
            for base, values in sorted(self._seconds.items())
        }


def check_key(key: str) -> tuple[str, ...]:
    """Give the path of a key: `subject`, an extension's name, or `data` and names below it, by dots."""
    path = tuple(key.split("."))
    if not all(path) or (path[0] != "data" and len(path) > 1):
        raise ConfigurationError(f"{key!r} is no place in a record: give data.NAME, subject, or an extension's name")
    return path


def value_at(record: Record, path: tuple[str, ...]) -> Any:
    """Give what stands in a record under a path, None where there is nothing."""
    name = path[0]
    if name == "data":
        value = record.data
        for part in path[1:]:
            value = value.get(part) if isinstance(value, dict) else None
        return value
    if name == "ipc_hash":
        return record.ipc_hash
    return record.to_dict().get(name)
