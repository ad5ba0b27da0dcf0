"""Spans put together from their records: contenders, and the rows about them."""

import json
import random
import time
from functools import partial
from pathlib import Path
from typing import Any

from .bench import Bench
from .measure import Figures, Measurement, at_least, at_most, judged, progress, run
from .payload import ATTRIBUTES, MACHINE

TRACES = 20_000
SPANS = 6
"""In each trace, about 8 ms long; traces begin 30 ms apart."""

_T0 = 1_790_000_000_000_000_000


def make(folder: Path, root: str, traces: int) -> Figures:
    """Write a ledger in which each span has a start and an end record, since evledger knows only those."""
    from otledger.journal import Batch, Journal, Resource

    chance = random.Random(1)
    attributes = json.dumps(ATTRIBUTES, separators=(",", ":"))
    resources = {
        each.digest: each
        for each in (
            Resource.make("resource", b'{"service.name":"bench"}'),
            Resource.make("scope", b"{}", name="bench", version="1"),
        )
    }
    resource, scope = resources
    rest = f',"attributes":{attributes},"resource":"{resource}","scope":"{scope}"'
    process = ',"process":{"pid":4711,"started":1,"boot":"00000000-0000-0000-0000-000000000000"}'
    with Journal(root, machine=MACHINE, service="bench", durability="os", min_free=0) as journal:
        due: list[tuple[int, bytes]] = []
        for number in range(traces):
            trace, turn = f"{chance.getrandbits(128) | 1:032x}", f"{chance.getrandbits(256):064x}"
            begin = _T0 + number * 30_000_000
            known: list[str] = []
            for at in range(SPANS):
                span = f"{chance.getrandbits(64) | 1:016x}"
                above = f',"parent_span_id":"{chance.choice(known)}"' if known else ',"kind":"SERVER"'
                known.append(span)
                start = begin + at * 1_000_000
                end = start + 900_000 if at else begin + 8_000_000
                header = f',"ipchash":"{turn}","traceparent":"00-{trace}-{span}-01"'
                head = f'{{"name":"step{at}"{above},"start":{start}'
                for type, when, data in (
                    ("otel.span.start", start, f"{head}{rest}{process}}}"),
                    ("otel.span.end", end, f'{head},"end":{end}{rest}}}'),
                ):
                    due.append((when, journal.encoder.telemetry(type, when, data, header)))
            if len(due) >= 500 or number == traces - 1:
                due.sort(key=lambda each: each[0])
                journal.write(Batch([part for _, part in due], resources))
                due = []
    return {}


def rebuild(folder: Path, root: str, traces: int) -> Figures:
    """Rebuild all spans, streaming; then the tree of each trace; then, for its memory, all turns."""
    import otledger

    from .contender import peak_mb

    reader = otledger.Reader(root)
    before = peak_mb()
    started = time.process_time()
    durations = [span.duration for span in reader.spans()]
    cpu = time.process_time() - started
    if len(durations) != traces * SPANS:
        raise RuntimeError(f"rebuilt {len(durations):,} spans of {traces * SPANS:,}")
    del durations
    started = time.process_time()
    spans = whole = 0
    for trace in reader.traces():
        spans += len(trace.spans)
        whole += not trace.late and len(trace.roots) == 1
    trees = time.process_time() - started
    if (spans, whole) != (traces * SPANS, traces):
        raise RuntimeError(f"rebuilt {spans:,} spans of {traces * SPANS:,}, {whole:,} traces of {traces:,}")
    turns = sum(1 for turn in reader.turns() if not turn.late)
    if turns != traces:
        raise RuntimeError(f"found {turns:,} turns of {traces:,}")
    return {"cpu_us": cpu / spans * 1e6, "trees_us": trees / spans * 1e6, "grown_mb": peak_mb() - before}


def evledger_pairs(folder: Path, root: str, traces: int) -> Figures:
    """Do it with evledger's `read_all` and `pair_events`, which make no trees."""
    from evledger import LedgerStore
    from evledger.stats import pair_events

    from .contender import peak_mb

    def key(event: Any) -> Any:
        # evledger leaves out the ids of a span: what else tells it from others.
        return event.data["start"]

    before = peak_mb()
    started = time.process_time()
    spans = [event for event in LedgerStore(root).read_all().events if event.type.startswith("otel.span.")]
    found = pair_events(spans, key=key)
    cpu = time.process_time() - started
    if len(found.durations) != traces * SPANS:
        raise RuntimeError(f"paired {len(found.durations):,} spans of {traces * SPANS:,}")
    return {"cpu_us": cpu / len(found.durations) * 1e6, "grown_mb": peak_mb() - before}


def spans(bench: Bench) -> list[Measurement]:
    """Compare rebuilding all spans with evledger's pairs of the same ledger, in CPU and memory."""
    root = str(bench.folder())
    progress(f"    writing a ledger of {TRACES * SPANS:,} spans")
    run(make, bench.folder(), root=root, traces=TRACES)
    rounds = bench.interleave(
        {
            "otledger": bench.fresh(rebuild, root=root, traces=TRACES),
            "evledger": bench.fresh(evledger_pairs, root=root, traces=TRACES),
        }
    )

    def cpu() -> str:
        ours, theirs = (rounds.median(name, "cpu_us") for name in ("otledger", "evledger"))
        return f"{ours:.1f} µs against {theirs:.1f} µs a span, {TRACES * SPANS:,} spans with start and end"

    def memory() -> str:
        return f"{TRACES:,} turns, of which none is kept; evledger {rounds.median('evledger', 'grown_mb'):.0f} MB"

    ratio = partial(rounds.ratio, ("evledger", "cpu_us"), ("otledger", "cpu_us"))
    return [
        judged("rebuild all spans, streaming, against evledger pair_events, CPU", "x", ratio, at_least(10), cpu),
        judged(
            "the same, with the tree of each trace",
            "x",
            partial(rounds.ratio, ("evledger", "cpu_us"), ("otledger", "trees_us")),
            None,
            lambda: f"{rounds.median('otledger', 'trees_us'):.1f} µs a span",
        ),
        judged(
            "memory that rebuilding spans and turns takes",
            "MB",
            partial(rounds.spread, "otledger", "grown_mb"),
            at_most(100),
            memory,
        ),
    ]
