"""Looking one thing up in a large ledger: contenders, and the rows about them."""

import json
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from . import corpus
from .bench import Bench
from .measure import Figures, Measurement, Spread, at_least, at_most, judged

LOOKUPS = 400
HOUR = 3_600_000_000_000


def build(folder: Path, root: str) -> Figures:
    """Return the CPU seconds of a typed scan and of making the index anew, and how large it is."""
    from otledger import Reader
    from otledger.index import rebuild

    _warm(root)
    scan = _cpu(lambda: sum(1 for _ in Reader(root, index=False).records()))
    made = _cpu(lambda: rebuild(Path(root)))
    states = rebuild(Path(root))
    percent = 100 * sum(each.size for each in states) / sum(each.total for each in states)
    return {"ratio": scan / made, "scan": scan, "made": made, "percent": percent}


def look_up(folder: Path, root: str, seed: int = 1) -> Figures:
    """Return the ms of looking up what random lines hold: the 95th percentile, and the median; the index is warm."""
    from otledger import Filter, Reader
    from otledger.index import rebuild, states

    if any(each.behind > 3 << 20 for each in states(Path(root))):
        rebuild(Path(root))
    _warm(root)
    lines = _some_lines(Path(root), random.Random(seed))
    reader = Reader(root)
    asked: dict[str, list[Any]] = {
        "trace": [Filter(trace_id=line["traceparent"][3:35]) for line in lines],
        "turn": [Filter(ipc_hash=line["ipchash"]) for line in lines],
        "span": [Filter(span_id=line["traceparent"][36:52]) for line in lines],
        "event": [Filter(id=line["id"]) for line in lines],
        "window": [Filter(since=line["_time"], until=line["_time"] + HOUR) for line in lines],
    }
    figures: Figures = {}
    for name, filters in asked.items():
        limit = 500 if name == "window" else None
        times = []
        for wanted in [filters[0], *filters]:
            started = time.perf_counter()
            found = sum(1 for _ in reader.records(wanted, limit=limit))
            times.append((time.perf_counter() - started) * 1e3)
            if not found:
                raise RuntimeError(f"{wanted} found nothing")
        # The first look-up of all imports what it needs.
        centiles = statistics.quantiles(times[1:], n=100)
        figures |= {f"{name}_p50": centiles[49], f"{name}_p95": centiles[94]}
    started = time.process_time()
    sum(1 for _ in Reader(root, index=False).records(asked["trace"][0]))
    figures["scan"] = (time.process_time() - started) * 1e3
    return figures


def _cpu(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _warm(root: str) -> None:
    """Have the files in memory."""
    for path in Path(root).glob("*/*.jsonl"):
        with path.open("rb") as file:
            while file.read(1 << 20):
                pass


def _some_lines(root: Path, rng: random.Random) -> list[dict[str, Any]]:
    """Return records at random places that have a turn and a span."""
    from otledger.record import parse_time

    paths = sorted(root.glob("*/*.jsonl"))
    found: list[dict[str, Any]] = []
    while len(found) < LOOKUPS:
        path = rng.choice(paths)
        with path.open("rb") as file:
            file.seek(rng.randrange(path.stat().st_size))
            file.readline()
            record = json.loads(file.readline() or b"{}")
        if "ipchash" in record and "traceparent" in record:
            found.append({**record, "_time": parse_time(record["time"])})
    return found


def lookup(bench: Bench) -> list[Measurement]:
    """Look traces, turns, spans, events and hours up in 1 GB (5 GB), and make the index."""
    root = str(bench.corpus(5 * corpus.UNITS["GB"] if bench.long else corpus.UNITS["GB"]))
    size = "5 GB" if bench.long else "1 GB"
    rounds = bench.interleave(
        {"build": partial(bench.run, build, root=root), "look_up": partial(bench.run, look_up, root=root)},
        warm_up=False,
    )

    def percentile(name: str) -> Callable[[], Spread]:
        return partial(rounds.spread, "look_up", f"{name}_p95")

    def median(name: str) -> Callable[[], str]:
        return lambda: f"p50 {rounds.median('look_up', f'{name}_p50'):.2f} ms"

    bounds = {"trace": at_most(1), "turn": at_most(1), "span": None, "event": None}
    rows = [
        judged(f"look up a {name} in {size} by the index, p95", "ms", percentile(name), bound, median(name))
        for name, bound in bounds.items()
    ]
    return [
        *rows,
        judged(
            f"one-hour window of {size}, first 500 records, p95",
            "ms",
            percentile("window"),
            at_most(2),
            median("window"),
        ),
        judged("look up a trace without an index", "ms", partial(rounds.spread, "look_up", "scan"), None, str),
        judged("size of the index, part of the data", "%", partial(rounds.spread, "build", "percent"), at_most(1)),
        judged(
            "making the index against a typed scan, CPU",
            "x",
            partial(rounds.spread, "build", "ratio"),
            at_least(1 / 3),
            lambda: f"{rounds.median('build', 'made'):.1f} s against {rounds.median('build', 'scan'):.1f} s",
        ),
        judged(
            f"peak memory of making the index of {size}, whole process",
            "MB",
            partial(rounds.spread, "build", "peak_mb"),
            at_most(600),
            lambda: f"of looking up {rounds.median('look_up', 'peak_mb'):.0f} MB",
        ),
    ]
