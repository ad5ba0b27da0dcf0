"""The rows about views of a ledger: projections, stats, digests."""

from functools import partial

from . import viewing
from .bench import Bench
from .measure import Measurement, at_least, judged

VIEW_RECORDS = 200_000


def projection(bench: Bench) -> list[Measurement]:
    """Project events into SQLite, against doing so by hand and without positions."""
    rounds = bench.interleave(
        {
            "otledger": bench.over(VIEW_RECORDS, viewing.projection),
            "bare": bench.over(VIEW_RECORDS, viewing.bare),
        }
    )
    return [
        judged(
            "projection into SQLite, a row an event",
            "/s",
            partial(rounds.spread, "otledger", "rate"),
            at_least(50_000),
            lambda: f"{rounds.median('otledger', 'cpu_rate'):,.0f} a CPU second, {VIEW_RECORDS:,} records",
        ),
        judged(
            "projection against json and sqlite3 by hand, CPU",
            "x",
            partial(rounds.ratio, ("otledger", "cpu_rate"), ("bare", "cpu_rate")),
            None,
            lambda: "{:,.0f} against {:,.0f} a CPU second".format(
                *(rounds.median(n, "cpu_rate") for n in ("otledger", "bare"))
            ),
        ),
        judged(
            "projection that finds nothing new, opened anew",
            "ms",
            partial(rounds.spread, "otledger", "resume_ms"),
        ),
    ]


def stats(bench: Bench) -> list[Measurement]:
    """Compare stats and digest with evledger's digest, in CPU time."""
    rounds = bench.interleave(
        {
            "stats": bench.over(VIEW_RECORDS, viewing.numbers),
            "digest": bench.over(VIEW_RECORDS, viewing.rules),
            "evledger": bench.over(VIEW_RECORDS, viewing.evledger_digest),
        }
    )
    return [
        judged(
            f"{name} from lines against evledger digest, CPU",
            "x",
            partial(rounds.ratio, (name, "rate"), ("evledger", "rate")),
            None,
            partial(rounds.rates, name, "evledger"),
        )
        for name in ("stats", "digest")
    ]
