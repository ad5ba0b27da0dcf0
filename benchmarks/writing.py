"""The rows about writing."""

import shutil
import time
from functools import partial

from . import loop, ours, peers
from .bench import Bench
from .measure import Bound, Figures, Measurement, Spread, at_least, at_most, finish, judged, spread, start

GIGABYTE_RECORDS = 2_100_000


def emit(bench: Bench) -> list[Measurement]:
    """Compare a tight emit loop with the floor and with the peers."""
    name = "otledger"
    contenders = {
        name: bench.fresh(ours.emit, n=300_000),
        "floor": bench.fresh(peers.floor, n=300_000),
        "structlog + orjson": bench.fresh(peers.structlog, n=100_000),
        "OTel SDK batch, events + JSON file": bench.fresh(peers.otel_logs, n=15_000),
        "OTel SDK batch, spans + JSON file": bench.fresh(peers.otel_spans, n=15_000),
        "auditchain append": bench.fresh(peers.auditchain_append, n=3_000),
        "evledger at 100 events": bench.fresh(peers.evledger_append, n=10, size=100, times=30),
        "evledger at 10,000 events": bench.fresh(peers.evledger_append, n=8, size=10_000),
        "auditchain append_many(500)": bench.fresh(peers.auditchain_append_many, n=20_000),
        "eliot": bench.fresh(peers.eliot, n=60_000),
        "logging + orjson": bench.fresh(peers.logging_orjson, n=80_000),
        "sqlite3 WAL, 500 a commit": bench.fresh(peers.sqlite, n=200_000),
    }
    bounds: dict[str, Bound] = {
        "floor": at_least(0.4),
        "structlog + orjson": at_least(2.5),
        "OTel SDK batch, spans + JSON file": at_least(30),
        "auditchain append": at_least(80),
        "evledger at 100 events": at_least(300),
        "evledger at 10,000 events": at_least(20_000),
    }
    rounds = bench.interleave(contenders)
    return [
        judged(
            f"emit against {peer}",
            "x",
            partial(rounds.ratio, (name, "rate"), (peer, "rate")),
            bounds.get(peer),
            partial(rounds.rates, name, peer),
        )
        for peer in contenders
        if peer != name
    ]


def append(bench: Bench) -> list[Measurement]:
    """Compare durable appends of 100 tasks with a write and fdatasync each."""
    rounds = bench.interleave(
        {
            "otledger": bench.fresh(ours.append, n=60_000, tasks=100),
            "write + fdatasync": bench.fresh(peers.write_and_sync, n=4_000),
        }
    )
    return [
        judged(
            "append, 100 tasks, disk, against write + fdatasync each",
            "x",
            partial(rounds.ratio, ("otledger", "rate"), ("write + fdatasync", "rate")),
            at_least(15),
            partial(rounds.rates, "otledger", "write + fdatasync"),
        )
    ]


def span(bench: Bench) -> list[Measurement]:
    """Compare the CPU of a recorded span with an SDK span that goes nowhere."""
    contenders = {
        "otledger": bench.fresh(ours.span_cpu, n=40_000),
        "SDK": bench.fresh(peers.sdk_span_cpu, n=40_000),
    }
    rounds = bench.interleave(contenders)
    return [
        judged(
            "CPU of a recorded span against an SDK span, no processor",
            "x",
            partial(rounds.ratio, ("otledger", "cpu_us"), ("SDK", "cpu_us")),
            at_most(0.4),
            lambda: "{:.1f} µs against {:.1f} µs".format(*(rounds.median(each, "cpu_us") for each in contenders)),
        )
    ]


def lag(bench: Bench) -> list[Measurement]:
    """Measure the loop's lag under a steady load, beside that of a loop that sends nothing."""
    rounds = bench.interleave(
        {
            "otledger": bench.fresh(loop.lag, rate=50_000, seconds=4),
            "nothing": bench.fresh(loop.lag_alone, rate=50_000, seconds=4),
        }
    )

    def note() -> str:
        ours_, alone = partial(rounds.median, "otledger"), partial(rounds.median, "nothing")
        return (
            f"p50 {ours_('p50'):.2f}, max {ours_('max'):.1f}; {ours_('achieved'):,.0f}/s; "
            f"sending nothing: p99 {alone('p99'):.2f}, max {alone('max'):.1f}"
        )

    return [
        judged(
            "event loop lag p99 at 50,000 events/s, disk",
            "ms",
            partial(rounds.spread, "otledger", "p99"),
            at_most(2.5),
            note,
        )
    ]


def stall(bench: Bench) -> list[Measurement]:
    """Measure another task's worst delay while a call of the writer hangs."""
    calls = ("write", "fdatasync", "flock")
    contenders = {call: bench.fresh(loop.stall, call=call) for call in calls}
    rounds = bench.interleave(contenders, warm_up=False)

    return [
        judged(
            f"another task's delay while {call} hangs for 1 s",
            "ms",
            partial(rounds.spread, call, "worst_ms"),
            at_most(20),
        )
        for call in calls
    ]


def growth(bench: Bench) -> list[Measurement]:
    """Compare an append to a large ledger with one to an empty ledger."""
    size = 10_000_000 if bench.long else 1_000_000
    what = f"cost of an append at {size:,} records against an empty ledger"
    cost = bench.over(size, ours.append_cost, blocks=60, block=50)
    rounds = bench.interleave({"otledger": cost}, warm_up=False)

    def note() -> str:
        empty, large = (rounds.median("otledger", key) for key in ("empty", "full"))
        return f"{large:.0f} µs against {empty:.0f} µs"

    ratio = partial(rounds.ratio, ("otledger", "full"), ("otledger", "empty"))
    return [judged(what, "x", ratio, at_most(1.1), note)]


def opening(bench: Bench) -> list[Measurement]:
    """Measure the time to open a ledger of a gigabyte beyond the check since its last checkpoint."""
    what = "time to open a 1 GB ledger, less the check since its last checkpoint"
    rounds = bench.interleave({"otledger": bench.over(GIGABYTE_RECORDS, ours.opening)})

    def beyond() -> Spread:
        times = zip(rounds.values("otledger", "open_ms"), rounds.values("otledger", "check_ms"), strict=True)
        return spread(opened - check for opened, check in times)

    def note() -> str:
        keys = ("open_ms", "check_ms", "records", "load_ms")
        opened, check, records, load = (rounds.median("otledger", key) for key in keys)
        return f"open {opened:.1f} ms, check {check:.1f} ms for {records:,.0f} records; loading the code {load:.0f} ms"

    return [judged(what, "ms", beyond, at_most(50), note)]


def _together(bench: Bench, processes: int, durability: str) -> Figures:
    """Let processes emit to one ledger at the same time."""
    root = bench.folder()
    # All open before any begins; on two cores eight interpreters take a while to start.
    arguments = {"root": str(root), "seconds": 4.0, "durability": durability, "begin": time.time() + 4}
    children = [start(ours.emit_for, bench.folder(), **arguments) for _ in range(processes)]
    try:
        figures = [finish(child) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
        shutil.rmtree(root)
    events = [each["events"] for each in figures]
    return {
        "rate": sum(events) / max(each["seconds"] for each in figures),
        "fairness": min(events) / max(events),
    }


def processes(bench: Bench) -> list[Measurement]:
    """Compare eight processes that share a ledger with one, and the least served with the most served."""
    rounds = bench.interleave(
        {
            f"{count} at {durability}": partial(_together, bench, count, durability)
            for durability in ("os", "disk")
            for count in (1, 8)
        }
    )
    rows = []
    for durability, throughput, fairness in (("os", at_least(0.7), at_least(0.6)), ("disk", None, None)):
        one, eight = f"1 at {durability}", f"8 at {durability}"
        rows += [
            judged(
                f"8 processes at {durability}: total against 1 process",
                "x",
                partial(rounds.ratio, (eight, "rate"), (one, "rate")),
                throughput,
                partial(rounds.rates, eight, one),
            ),
            judged(
                f"8 processes at {durability}: least served against most served",
                "x",
                partial(rounds.spread, eight, "fairness"),
                fairness,
            ),
        ]
    return rows


def memory(bench: Bench) -> list[Measurement]:
    """Measure what a writer at full speed needs beyond the interpreter with otledger imported."""
    levels = ("os", "disk")
    contenders = {level: bench.fresh(ours.emit, n=500_000, durability=level) for level in levels}
    rounds = bench.interleave(contenders, warm_up=False)
    return [
        judged(
            f"memory of a writer at full speed, {level}",
            "MB",
            partial(rounds.spread, level, "grown_mb"),
            at_most(64),
            partial(lambda level: f"peak {rounds.median(level, 'peak_mb'):.0f} MB in all", level),
        )
        for level in levels
    ]
