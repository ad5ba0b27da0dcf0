"""Start/end pairs of plain events, summed up by type: what `otledger.pairs` matches, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from otledger.pairs import Half, Halves
from otledger.query.spread import Spread, Values
from otledger.record import Record


@dataclass(frozen=True, slots=True)
class PairStats:
    """The pairs of one type."""

    seconds: Spread | None
    unmatched_starts: int
    unmatched_ends: int


class Pairing:
    """Sums up pairs as their records come. Holds the times of those that wait for the other, and no records."""

    def __init__(self, key: str) -> None:
        self._halves: Halves[None] = Halves(key, _nothing)
        self._seconds: dict[str, Values] = {}

    def feed(self, record: Record) -> float | None:
        """Take a record; give how many seconds the pair lasted that it ends, if it is the end of one.

        None also where the start is met only after its end: then the pair is counted all the same.
        """
        found = self._halves.feed(record)
        if found is None:
            return None
        start, end = found
        seconds = (end.time - start.time) / 1e9
        self._seconds.setdefault(start.base, Values()).add(seconds)
        return None if record.type.endswith(".start") else seconds

    def stats(self) -> Mapping[str, PairStats]:
        """Give the pairs by type, without `.start` and `.end`. What is unmatched is forgotten then."""
        left: list[Half[None]] = self._halves.finish()
        starts = Counter(half.base for half in left if half.started)
        ends = Counter(half.base for half in left if not half.started)
        return {
            base: PairStats(self._seconds[base].spread() if base in self._seconds else None, starts[base], ends[base])
            for base in sorted({*self._seconds, *starts, *ends})
        }


def _nothing(_: Record) -> None:
    return None
