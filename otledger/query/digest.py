"""A digest: what a window of a ledger holds, rolled up, and what rules find in it. The same ledger gives the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from otledger.errors import ConfigurationError
from otledger.hooks import OnFault, Progress
from otledger.pairs import is_half
from otledger.query.findings import Finder, Finding, Mention, finder, mention, number, shower
from otledger.query.members import check_place, value_at
from otledger.query.pairing import Pairing
from otledger.query.rules import Recent, Rules, Sum, as_list, load, type_test
from otledger.query.scan import DISTINCT, Scan, Selection
from otledger.query.stats import Stats, of_tally
from otledger.record import Record

_Feed = Callable[[Record, float | None], None]


@dataclass(frozen=True, slots=True)
class Total:
    """Numbers that were added up."""

    count: int
    total: float


@dataclass(frozen=True, slots=True)
class Digest:
    """What a window holds."""

    stats: Stats
    sums: Mapping[str, Mapping[str, Total]]
    """For each sum of the rules, by place."""
    recent: Mapping[str, tuple[Mention, ...]]
    """For each kind of the rules the newest records, oldest first."""
    findings: tuple[Finding, ...]
    """Of the rules that found something, in their order."""


def digest(
    root: str | Path,
    selection: Selection | None = None,
    rules: Rules | str | Path | None = None,
    *,
    only: Sequence[str] | None = None,
    on_fault: OnFault | None = None,
    cache: bool = True,
    progress: Progress | None = None,
) -> Digest:
    """Give the digest of the records of `selection`, in one pass and in bounded memory.

    `rules` are `Rules`, a TOML file of them, or the default ones; `only` names those rules that are applied.
    Machines are merged by time; within a machine the order is that of its ledger. Raises `ConfigurationError` for
    rules that are wrong; the rest as `stats`.
    """
    selection = selection or Selection()
    known = rules if isinstance(rules, Rules) else load(rules)
    work = _Work(known, [rule.name for rule in known.rule] if only is None else list(only))
    scan = Scan(root, selection, work.wants, on_fault=on_fault, cache=cache, progress=progress)
    for record in scan:
        work.feed(record)
    return Digest(
        stats=of_tally(scan.tally, selection, work.pairing),
        sums={each.sum.name: dict(each.totals) for each in work.sums},
        recent={each.recent.name: tuple(each.mentions) for each in work.recent},
        findings=tuple(found for found in (each.finding() for each in work.finders) if found is not None),
    )


class _Work:
    """All that is done with the records that are read whole."""

    def __init__(self, rules: Rules, names: list[str]) -> None:
        known = {rule.name: rule for rule in rules.rule}
        for name in names:
            if name not in known:
                raise ConfigurationError(f"there is no rule {name!r}; there are: {', '.join(known) or 'none'}")
        chosen = [rule for name, rule in known.items() if name in names]
        self.pairing = Pairing(rules.pairs)
        self.sums = [_Sum(each) for each in rules.sum]
        self.recent = [_Recent(each) for each in rules.recent]
        self.finders: list[Finder] = [finder(rule, rules.limit) for rule in chosen]
        self._consumers = [(type_test(types), feed) for types, feed in self._takers()]
        self._by_type: dict[str, list[_Feed]] = {}

    def _takers(self) -> Iterator[tuple[list[str], _Feed]]:
        """Give who takes records, with the types that each takes."""
        takers: list[_Sum | _Recent | Finder] = [*self.sums, *self.recent, *self.finders]
        for taker in takers:
            yield taker.types, taker.feed

    def wants(self, type: str) -> bool:
        """Tell whether records of a type are to be read whole."""
        return is_half(type) or bool(self._takers_of(type))

    def _takers_of(self, type: str) -> list[_Feed]:
        found = self._by_type.get(type)
        if found is None:
            if len(self._by_type) >= DISTINCT:
                self._by_type.clear()
            found = self._by_type[type] = [feed for takes, feed in self._consumers if takes(type)]
        return found

    def feed(self, record: Record) -> None:
        """Take a record."""
        duration = self.pairing.feed(record) if is_half(record.type) else _span_seconds(record)
        for feed in self._takers_of(record.type):
            feed(record, duration)


def _span_seconds(record: Record) -> float | None:
    data = record.data if record.type == "otel.span.end" else None
    if not isinstance(data, dict):
        return None
    start, end = data.get("start"), data.get("end")
    return max(0, end - start) / 1e9 if isinstance(start, int) and isinstance(end, int) else None


class _Sum:
    def __init__(self, sum: Sum) -> None:
        self.sum = sum
        self.types = as_list(sum.type)
        self.totals = dict.fromkeys(sum.fields, Total(0, 0))
        self._matches = sum.test()
        self._paths = {place: check_place(place) for place in sum.fields}

    def feed(self, record: Record, _: float | None) -> None:
        if not self._matches(record):
            return
        for place, path in self._paths.items():
            value = number(value_at(record, path))
            if value is not None:
                before = self.totals[place]
                self.totals[place] = Total(before.count + 1, before.total + value)


class _Recent:
    def __init__(self, recent: Recent) -> None:
        self.recent = recent
        self.types = as_list(recent.type)
        self.mentions: deque[Mention] = deque(maxlen=recent.limit)
        self._matches = recent.test()
        self._show = shower(recent.show)

    def feed(self, record: Record, _: float | None) -> None:
        if self._matches(record):
            self.mentions.append(mention(record, self._show(record)))
