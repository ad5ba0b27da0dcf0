"""The rows about reading."""

from functools import partial

from . import ours, peers
from .bench import Bench
from .measure import Figures, Measurement, at_least, at_most, finish, judged, start
from .writing import GIGABYTE_RECORDS

READ_RECORDS = 500_000


def verify(bench: Bench) -> list[Measurement]:
    """Compare verify with PipeWorks' check of each line, with bare hashing, and with two processes."""
    rows = [
        ("verify, by default, against PipeWorks' method on each line", "2", "pipeworks", "mb_per_s", at_least(9)),
        ("verify, by default, against sha256 of the same bytes, time", "2", "sha256", "seconds", at_most(2.3)),
        ("verify in 1 process against PipeWorks' method", "1", "pipeworks", "mb_per_s", None),
        ("verify in 1 process against sha256, time", "1", "sha256", "seconds", None),
        ("verify in 2 processes against 1", "2", "1", "mb_per_s", at_least(1.8)),
    ]
    rounds = bench.interleave(
        {
            "pipeworks": bench.over(GIGABYTE_RECORDS, peers.pipeworks_verify, n=100_000),
            "sha256": bench.over(GIGABYTE_RECORDS, peers.sha256_blocks),
            "1": bench.over(GIGABYTE_RECORDS, ours.verify, processes=1),
            "2": bench.over(GIGABYTE_RECORDS, ours.verify, processes=2),
        }
    )

    def note(over: str, under: str) -> str:
        return "{:,.0f} MB/s against {:,.0f} MB/s".format(*(rounds.median(each, "mb_per_s") for each in (over, under)))

    return [
        judged(what, "x", partial(rounds.ratio, (over, key), (under, key)), bound, partial(note, over, under))
        for what, over, under, key, bound in rows
    ]


def scan(bench: Bench) -> list[Measurement]:
    """Compare a typed scan with evledger's `read_all` of the same files, in time and in memory."""
    whats = ("typed scan against evledger read_all", "peak memory of evledger read_all against the scan's")
    bounds = (at_least(12), at_least(20))
    rounds = bench.interleave(
        {
            "otledger": bench.over(READ_RECORDS, ours.scan),
            "evledger": bench.over(READ_RECORDS, peers.evledger_read),
        }
    )

    def megabytes() -> str:
        scanned, read = (rounds.median(name, "peak_mb") for name in ("otledger", "evledger"))
        return f"{scanned:.0f} MB against {read:.0f} MB, whole process, {READ_RECORDS:,} records"

    return [
        judged(
            whats[0],
            "x",
            partial(rounds.ratio, ("otledger", "rate"), ("evledger", "rate")),
            bounds[0],
            partial(rounds.rates, "otledger", "evledger"),
        ),
        judged(
            whats[1],
            "x",
            partial(rounds.ratio, ("evledger", "peak_mb"), ("otledger", "peak_mb")),
            bounds[1],
            megabytes,
        ),
    ]


def _follow(bench: Bench) -> Figures:
    """Follow a ledger in one process while another appends to it."""
    root, ready = bench.folder(), bench.folder() / "ready"
    writer = start(ours.tick, bench.folder(), root=str(root), ready=str(ready), n=400)
    reader = start(ours.follow, bench.folder(), root=str(root), ready=str(ready))
    try:
        figures = finish(reader)
        finish(writer)
    finally:
        for child in (writer, reader):
            child.kill()
            child.wait()
    return figures


def tail(bench: Bench) -> list[Measurement]:
    """Measure how long an append takes to arrive at a reader that follows."""
    rounds = bench.interleave({"otledger": partial(_follow, bench)}, warm_up=False)
    return [
        judged(
            "tail -f, from just before an append to the read, p50",
            "ms",
            partial(rounds.spread, "otledger", "p50"),
            at_most(1),
            lambda: f"p99 {rounds.median('otledger', 'p99'):.2f} ms",
        )
    ]
