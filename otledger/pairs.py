"""Pairs of plain events, `*.start` and `*.end`, matched by what they have in common. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from otledger import values
from otledger.errors import ConfigurationError
from otledger.record import RESERVED_TYPES, Record

BY_ORDER = "by-order"
"""As a key: none, the first start that is open is the one that ends."""

_MEMBERS = {
    "id": None,
    "data": None,
    **{name: name for name in ("source", "subject", "machine", "trace_id", "span_id", "ipc_hash")},
    "ipchash": "ipc_hash",
}
_NONE = object()


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


class Pairs:
    """Matches starts with ends as records come.

    `key` says what the two have in common: a member of the payload (`data.id`, `data.job.id`), `subject`, `source`,
    `machine`, `trace_id`, `span_id`, `ipc_hash`, the name of an extension, or `BY_ORDER`. Where several starts of one
    type have the same key an end belongs to the first of them, and never to a start of a later time. What has no
    such key is unmatched. What is unmatched is held until `finish`. Raises `ConfigurationError` for a key that
    cannot be one.
    """

    def __init__(self, key: str, *, base: str = "*", start: str = ".start", end: str = ".end") -> None:
        self._key = key
        self._path = key.removeprefix("data.").split(".") if key.startswith("data.") else None
        if not key or _MEMBERS.get(key, key) is None or (self._path is not None and not all(self._path)):
            raise ConfigurationError(
                f"{key!r} is no key for pairs: give data.NAME, subject, source, machine, trace_id, span_id, ipc_hash,"
                f" an extension's name, or {BY_ORDER!r}"
            )
        self._base = base
        self._suffixes = start, end
        # By type without suffix, and key: those that wait for the other.
        self._starts: dict[tuple[str, bytes], deque[Pair]] = {}
        self._ends: dict[tuple[str, bytes], deque[Pair]] = {}
        self._keyless: list[Pair] = []

    def feed(self, record: Record) -> Pair | None:
        """Take a record. Gives the pair that it completes."""
        type = record.type
        started = type.endswith(self._suffixes[0])
        if not (started or type.endswith(self._suffixes[1])) or type.startswith(RESERVED_TYPES):
            return None
        base = type.removesuffix(self._suffixes[0] if started else self._suffixes[1])
        if not fnmatchcase(base, self._base):
            return None
        key = self._key_of(record)
        if key is _NONE:
            self._keyless.append(_half(base, None, record, started))
            return None
        place = base, values.encode(key)
        half = _half(base, key, record, started)
        other = self._take(self._ends if started else self._starts, place, record.time_ns, started)
        if other is None:
            (self._starts if started else self._ends).setdefault(place, deque()).append(half)
            return None
        return Pair(base, key, half.start or other.start, half.end or other.end)

    @staticmethod
    def _take(
        waiting: dict[tuple[str, bytes], deque[Pair]], place: tuple[str, bytes], time: int, started: bool
    ) -> Pair | None:
        queue = waiting.get(place)
        if queue is None:
            return None
        for half in queue:
            # Machines may be read one after the other: an end may be met before its start.
            if (half.time >= time) if started else (half.time <= time):
                queue.remove(half)
                if not queue:
                    del waiting[place]
                return half
        return None

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

    def finish(self) -> list[Pair]:
        """Give what is unmatched, by time; nothing is held then."""
        waiting = [*self._starts.values(), *self._ends.values()]
        left = [*self._keyless, *(half for queue in waiting for half in queue)]
        self._starts, self._ends, self._keyless = {}, {}, []
        return sorted(left, key=lambda half: half.time)


def _half(base: str, key: Any, record: Record, started: bool) -> Pair:
    return Pair(base, key, record if started else None, None if started else record)
