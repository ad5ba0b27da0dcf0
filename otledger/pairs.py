"""Pairs of plain events, `*.start` and `*.end`, matched by what they have in common. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import attrgetter
from typing import Any, Generic, TypeVar

import msgspec

from otledger import values
from otledger.errors import ConfigurationError
from otledger.record import RESERVED_NAMES, RESERVED_TYPES, Record

T = TypeVar("T")

BY_ORDER = "by-order"
"""As a key: none, the first start that is open is the one that ends."""

_MEMBERS = {
    "id": None,
    "data": None,
    **{name: name for name in ("source", "subject", "machine", "trace_id", "span_id", "ipc_hash")},
    "ipchash": "ipc_hash",
}
_NONE = object()
START, END = ".start", ".end"


@dataclass(frozen=True, slots=True)
class Pair:
    """A start and its end; one of them is None where it is unmatched."""

    base: str
    """The type without its suffix."""
    key: Any
    """What they have in common; None where there is nothing, or pairs are made by order."""
    start: Record | None
    end: Record | None

    @property
    def matched(self) -> bool:
        """Whether both are there."""
        return self.start is not None and self.end is not None

    @property
    def duration(self) -> int | None:
        """From start to end in nanoseconds; None where one is missing."""
        if self.start is None or self.end is None:
            return None
        return self.end.time_ns - self.start.time_ns

    @property
    def time(self) -> int:
        """When it began, or ended if only that is known; nanoseconds since the epoch."""
        record = self.start or self.end
        return record.time_ns if record is not None else 0

    def to_dict(self) -> dict[str, Any]:
        """Give the pair as plain JSON values; `start` and `end` are the records, or null."""
        return {
            "base": self.base,
            "key": msgspec.json.decode(values.encode(self.key)),
            "matched": self.matched,
            "duration": self.duration,
            "start": None if self.start is None else self.start.to_dict(),
            "end": None if self.end is None else self.end.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class Half(Generic[T]):
    """A start or an end, and what is kept of its record."""

    base: str
    key: Any
    time: int
    """In nanoseconds since the epoch."""
    started: bool
    kept: T


_time = attrgetter("time")


class Halves(Generic[T]):
    """Matches starts with ends as records come, and keeps of each that waits what `keep` gives.

    For `key` and the order see `Pairs`. Raises `ConfigurationError` for a key that cannot be one.
    """

    def __init__(
        self, key: str, keep: Callable[[Record], T], *, base: str = "*", start: str = START, end: str = END
    ) -> None:
        check_key(key)
        self._key = key
        self._path = key.removeprefix("data.").split(".") if key.startswith("data.") else None
        self._keep = keep
        self._base = base
        self._suffixes = start, end
        # By type without suffix, and key: those that wait for the other, by time.
        self._starts: dict[tuple[str, bytes], list[Half[T]]] = {}
        self._ends: dict[tuple[str, bytes], list[Half[T]]] = {}
        self._keyless: list[Half[T]] = []

    def feed(self, record: Record) -> tuple[Half[T], Half[T]] | None:
        """Take a record. Gives start and end of the pair that it completes."""
        type = record.type
        started = type.endswith(self._suffixes[0])
        if not (started or type.endswith(self._suffixes[1])) or type.startswith(RESERVED_TYPES):
            return None
        base = type.removesuffix(self._suffixes[0] if started else self._suffixes[1])
        if self._base != "*" and not fnmatchcase(base, self._base):
            return None
        key = self._key_of(record)
        if key is _NONE:
            self._keyless.append(Half(base, None, record.time_ns, started, self._keep(record)))
            return None
        place = base, values.encode(key)
        half = Half(base, key, record.time_ns, started, self._keep(record))
        other = self._take(place, half)
        if other is None:
            insort((self._starts if started else self._ends).setdefault(place, []), half, key=_time)
            return None
        return (half, other) if started else (other, half)

    def _take(self, place: tuple[str, bytes], half: Half[T]) -> Half[T] | None:
        """Give the earliest that waits and fits."""
        waiting = self._ends if half.started else self._starts
        queue = waiting.get(place)
        if queue is None:
            return None
        # Machines may be read one after the other: an end may be met before its start.
        at = bisect_left(queue, half.time, key=_time) if half.started else 0
        if at == len(queue) or (not half.started and queue[0].time > half.time):
            return None
        other = queue.pop(at)
        if not queue:
            del waiting[place]
        return other

    def _key_of(self, record: Record) -> Any:
        if self._key == BY_ORDER:
            return None
        if self._path is not None:
            value = record.data
            for name in self._path:
                if not isinstance(value, dict) or name not in value:
                    return _NONE
                value = value[name]
        else:
            member = _MEMBERS.get(self._key)
            value = getattr(record, member) if member is not None else record.extensions.get(self._key)
        return _NONE if value is None else value

    def finish(self) -> list[Half[T]]:
        """Give what is unmatched, by time; nothing is held then."""
        waiting = [*self._starts.values(), *self._ends.values()]
        left = [*self._keyless, *(half for queue in waiting for half in queue)]
        self._starts, self._ends, self._keyless = {}, {}, []
        return sorted(left, key=_time)


class Pairs:
    """Matches starts with ends as records come.

    `key` says what the two have in common: a member of the payload (`data.id`, `data.job.id`), `subject`, `source`,
    `machine`, `trace_id`, `span_id`, `ipc_hash`, the name of an extension, or `BY_ORDER`. Where several starts of one
    type have the same key an end belongs to the earliest of them, and never to a start of a later time. What has no
    such key is unmatched. What is unmatched is held until `finish`. Raises `ConfigurationError` for a key that
    cannot be one.
    """

    def __init__(self, key: str, *, base: str = "*", start: str = START, end: str = END) -> None:
        self._halves: Halves[Record] = Halves(key, _whole, base=base, start=start, end=end)

    def feed(self, record: Record) -> Pair | None:
        """Take a record. Gives the pair that it completes."""
        found = self._halves.feed(record)
        return None if found is None else Pair(found[0].base, found[0].key, found[0].kept, found[1].kept)

    def finish(self) -> list[Pair]:
        """Give what is unmatched, by time; nothing is held then."""
        return [
            Pair(half.base, half.key, half.kept, None) if half.started else Pair(half.base, half.key, None, half.kept)
            for half in self._halves.finish()
        ]


def check_key(key: str) -> None:
    """Raise `ConfigurationError` for what cannot be the key of pairs."""
    path = key.split(".")
    known = key in _MEMBERS if key in RESERVED_NAMES else "." not in key or path[0] == "data"
    if not all(path) or not known or _MEMBERS.get(key, key) is None:
        raise ConfigurationError(
            f"{key!r} is no key for pairs: give data.NAME, subject, source, machine, trace_id, span_id, ipc_hash,"
            f" an extension's name, or {BY_ORDER!r}"
        )


def is_half(type: str) -> bool:
    """Tell whether records of a type are the start or the end of a pair."""
    return type.endswith((START, END)) and not type.startswith(RESERVED_TYPES)


def _whole(record: Record) -> Record:
    return record
