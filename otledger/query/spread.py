"""How values spread: count, total, extremes and percentiles of any number of them, in bounded memory."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from math import ceil, exp, log
from typing import Generic, TypeVar

T = TypeVar("T")

EXACT = 4096
"""Up to so many values percentiles are exact."""
ERROR = 0.01
"""Beyond, a percentile is off by at most this part of itself."""

_STEP = log((1 + ERROR) / (1 - ERROR))


@dataclass(frozen=True, slots=True)
class Spread:
    """What is known of some values."""

    count: int
    total: float
    min: float
    median: float
    """Of an even number of values, the middle between the two."""
    p95: float
    """The smallest value that 95 of 100 do not exceed."""
    max: float
    exact: bool
    """Whether median and p95 are exact; else they are within 1 %."""


class Values:
    """Takes values, gives their `Spread`.

    Keeps them up to `EXACT`, and then how many lie in each of a row of intervals that grow by a factor: the sketch
    of Masson, Rim and Lee (DDSketch, VLDB 2019). From 1 ns to 100 years there are some 2,100 intervals.
    """

    __slots__ = ("_buckets", "_kept", "_max", "_min", "_total", "count")

    def __init__(self) -> None:
        self.count = 0
        self._total = 0.0
        self._min = float("inf")
        self._max = float("-inf")
        self._kept: list[float] | None = []
        self._buckets: dict[tuple[int, int], int] = {}

    def add(self, value: float) -> None:
        """Take a finite value."""
        self.count += 1
        self._total += value
        if value < self._min:
            self._min = value
        if value > self._max:
            self._max = value
        if self._kept is None:
            self._put(value)
            return
        self._kept.append(value)
        if len(self._kept) > EXACT:
            for each in self._kept:
                self._put(each)
            self._kept = None

    def update(self, other: Values) -> None:
        """Take what another has taken."""
        self.count += other.count
        self._total += other._total
        self._min, self._max = min(self._min, other._min), max(self._max, other._max)
        if self._kept is not None and other._kept is not None and self.count <= EXACT:
            self._kept += other._kept
            return
        for value in [*(self._kept or ()), *(other._kept or ())]:
            self._put(value)
        for key, count in other._buckets.items():
            self._buckets[key] = self._buckets.get(key, 0) + count
        self._kept = None

    def _put(self, value: float) -> None:
        key = (0, 0) if value == 0 else (1 if value > 0 else -1, ceil(log(abs(value)) / _STEP))
        self._buckets[key] = self._buckets.get(key, 0) + 1

    def spread(self) -> Spread | None:
        """Give the spread, None of no values."""
        if not self.count:
            return None
        if self._kept is not None:
            # Sorting what is sorted nearly, at the next call, costs little.
            self._kept.sort()
        half = self.count // 2
        median = self._at(half) if self.count % 2 else (self._at(half - 1) + self._at(half)) / 2
        p95 = self._at(ceil(self.count * 0.95) - 1)
        return Spread(self.count, self._total, self._min, median, p95, self._max, self._kept is not None)

    def above(self, limit: float) -> int:
        """Give how many values are larger than `limit`; of more than `EXACT`, as near as the intervals tell."""
        if self._kept is not None:
            return sum(value > limit for value in self._kept)
        return sum(count for key, count in self._buckets.items() if self._middle(key) > limit)

    def _at(self, index: int) -> float:
        if self._kept is not None:
            return self._kept[index]
        seen = 0
        for key in sorted(self._buckets, key=self._middle):
            seen += self._buckets[key]
            if seen > index:
                return min(max(self._middle(key), self._min), self._max)
        return self._max

    @staticmethod
    def _middle(key: tuple[int, int]) -> float:
        sign, number = key
        # The value from which both ends of the interval are equally far, as a part of it.
        return sign * 2 * exp(number * _STEP) / (1 + exp(_STEP))


class Largest(Generic[T]):
    """Keeps the largest of many items by a number, and of equals the first."""

    __slots__ = ("_items", "_limit", "_taken")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: list[tuple[float, int, T]] = []
        self._taken = 0

    def takes(self, value: float) -> bool:
        """Tell whether an item with this number would be kept."""
        return len(self._items) < self._limit or value > self._items[0][0]

    def add(self, value: float, item: T) -> None:
        """Take an item."""
        self._taken += 1
        if self.takes(value):
            insort(self._items, (value, -self._taken, item), key=lambda entry: entry[:2])
            del self._items[: max(0, len(self._items) - self._limit)]

    def items(self) -> list[tuple[float, T]]:
        """Give numbers and items, the largest first."""
        return [(value, item) for value, _, item in reversed(self._items)]
