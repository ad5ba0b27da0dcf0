"""What a window of a ledger holds in numbers: counts, rates, and how long spans and start/end pairs lasted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from otledger.hooks import OnFault, Progress
from otledger.pairs import is_half
from otledger.query.pairing import Pairing, PairStats
from otledger.query.scan import OTHERS, Scan, Selection, Tally
from otledger.query.spread import Spread

KEY = "data.id"
"""What links a start with its end, where nothing else is said."""


@dataclass(frozen=True, slots=True)
class SpanStats:
    """Spans of one name that ended."""

    seconds: Spread | None
    errors: int


@dataclass(frozen=True, slots=True)
class Stats:
    """The numbers of a selection. Counts are sorted: the largest first, equal ones by name.

    Of each of types, sources, subjects and machines, the first 10,000 different ones are counted; `others` says
    how many records are of further ones.
    """

    records: int
    first: int | None
    """The earliest time, in nanoseconds since the epoch."""
    last: int | None
    seconds: float
    """How long the window is; from the first to the last record where an end of it was not given."""
    per_second: float
    """Records a second; 0 where the window has no length."""
    types: Mapping[str, int]
    sources: Mapping[str, int]
    machines: Mapping[str, int]
    subjects: Mapping[str, int]
    others: Mapping[str, int]
    spans: Mapping[str, SpanStats]
    """By name; each end record counts."""
    unfinished: int
    """Spans that began in the window and did not end in it."""
    pairs: Mapping[str, PairStats]
    """By the type without `.start` and `.end`."""


def stats(
    root: str | Path,
    selection: Selection | None = None,
    *,
    key: str | None = KEY,
    on_fault: OnFault | None = None,
    cache: bool = True,
    progress: Progress | None = None,
) -> Stats:
    """Give the numbers of the records of `selection`, in one pass and in bounded memory.

    `key` is what links the start and the end of a pair (`data.id`, `subject`, an extension); None: no pairs.
    Closed segments are read from their skeletons where there are any (`cache=False`: never). A line that is no
    record raises `FormatError`, or is handed to `on_fault` and passed over. `progress` is told the bytes of the
    lines that were looked at, and how many there are.
    """
    selection = selection or Selection()
    pairing = Pairing(key) if key is not None else None
    wanted = is_half if pairing is not None else _none
    scan = Scan(root, selection, wanted, on_fault=on_fault, cache=cache, progress=progress)
    for record in scan:
        if pairing is not None:
            pairing.feed(record)
    return of_tally(scan.tally, selection, pairing)


def _none(_: str) -> bool:
    return False


def of_tally(tally: Tally, selection: Selection, pairing: Pairing | None) -> Stats:
    """Give the numbers of what was counted."""
    begin = selection.since if selection.since is not None else tally.first
    end = selection.until if selection.until is not None else tally.last
    seconds = max(0, end - begin) / 1e9 if begin is not None and end is not None else 0.0
    columns = {name: getattr(tally, name) for name in ("types", "sources", "machines", "subjects")}
    spans = sorted(tally.spans.items(), key=lambda item: (item[0] == OTHERS, item[0]))
    return Stats(
        records=tally.records,
        first=tally.first,
        last=tally.last,
        seconds=seconds,
        per_second=tally.records / seconds if seconds else 0.0,
        others={name: counted.others for name, counted in columns.items() if counted.others},
        spans={name: SpanStats(named.seconds.spread(), named.errors) for name, named in spans},
        unfinished=len(tally.open),
        pairs=pairing.stats() if pairing is not None else {},
        **{name: _sorted(counted.counts) for name, counted in columns.items()},
    )


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
