"""The rows about SQL: against a raw scan of the lines, how soon it begins, and what memory it takes."""

import os
import sys
import time
from functools import partial
from pathlib import Path

from .bench import Bench
from .corpus import make
from .measure import Figures, Measurement, at_least, at_most, judged, progress, run
from .startup import first_line

COUNTS = "select type, count(*) from {} group by type order by 2 desc"
DECLARED = "{type: 'VARCHAR', time: 'VARCHAR', seq: 'BIGINT', data: 'JSON'}"
MEMORY_QUERIES = {
    "counts": COUNTS.format("events"),
    "traces": "select count(*), sum(spans), sum(errors), sum(unfinished) from traces",
    "slowest turns": "select * from turns order by duration_ns desc limit 5",
    "payload": "select count(*) from events where data->>'name' = 'llm.call'",
    "attributes": "select name, max(length(attributes)) from spans group by name",
}


def counts_raw(folder: Path, root: str) -> Figures:
    """Count the types in the lines with DuckDB, columns declared; gives CPU seconds."""
    import duckdb

    files = [str(path) for path in sorted(Path(root).glob("*/*.jsonl"))]
    source = f"read_json({files!r}, columns = {DECLARED}, format = 'newline_delimited', records = true)"
    with duckdb.connect() as connection:
        connection.execute("select 1").fetchall()
        started = time.process_time()
        found = connection.execute(COUNTS.format(source)).fetchall()
        return {"cpu": time.process_time() - started, "records": sum(count for _, count in found)}


def counts(folder: Path, root: str, cache: bool) -> Figures:
    """Count the types with `Reader.sql`; gives CPU seconds."""
    from otledger import Reader
    from otledger.query.sql import sql

    list(sql(root, "select 1"))
    started = time.process_time()
    found = list(Reader(root).sql(COUNTS.format("events"), cache=cache))
    return {"cpu": time.process_time() - started, "records": sum(count for _, count in found)}


def compacting(folder: Path, root: str) -> Figures:
    """Make all skeletons; gives MB of lines a CPU second, and the size of the skeletons in percent."""
    from otledger.query.compacting import compact

    started = time.process_time()
    done = list(compact(root))
    taken, size = time.process_time() - started, sum(each.bytes for each in done)
    return {"mb_per_s": size / taken / 1e6, "percent": 100 * sum(each.skeleton for each in done) / size}


def asked(folder: Path, root: str, query: str) -> Figures:
    """Ask a query; the memory is told by whoever calls this."""
    from otledger import Reader

    started = time.process_time()
    for _ in Reader(root).sql(query):
        pass
    return {"cpu": time.process_time() - started}


def _corpus(bench: Bench) -> tuple[Path, Figures]:
    """Return a ledger all of whose records stand in closed segments with skeletons, and what these took."""
    import otledger

    size = 5 * 10**9 if bench.long else 10**9
    progress(f"    writing a ledger of {size / 1e9:.0f} GB")
    root = bench.folder() / "ledger"
    make(root, size, machines=2, months=4)
    for machine in ("m1", "m2"):
        with otledger.open_sync(root, machine=machine, min_free=0) as ledger:
            ledger.append("closed")
    figures = run(compacting, bench.folder(), root=str(root))
    os.sync()
    return root, figures


def sql(bench: Bench) -> list[Measurement]:
    """Measure SQL on a small ledger, and on one of 1 GB (5 GB with --long)."""
    import otledger

    small = bench.folder() / "small"
    with otledger.open_sync(small, machine="m1") as ledger:
        for n in range(100):
            ledger.append("order.placed", {"id": n})
    root, made = _corpus(bench)
    command = [sys.executable, "-m", "otledger", "sql", "--root", str(small)]
    rounds = bench.interleave(
        {
            "raw": partial(run, counts_raw, bench.folder(), root=str(root)),
            "skeletons": partial(run, counts, bench.folder(), root=str(root), cache=True),
            "lines": partial(run, counts, bench.folder(), root=str(root), cache=False),
            "first row": partial(first_line, [*command, COUNTS.format("events")]),
        }
    )
    memory = bench.interleave(
        {name: partial(run, asked, bench.folder(), root=str(root), query=q) for name, q in MEMORY_QUERIES.items()},
        warm_up=False,
    )

    def seconds(name: str) -> str:
        return "{:.2f} CPU-s against {:.2f}".format(*(rounds.median(each, "cpu") for each in (name, "raw")))

    return [
        judged(
            "counts by type from skeletons against DuckDB over the lines, CPU",
            "x",
            partial(rounds.ratio, ("raw", "cpu"), ("skeletons", "cpu")),
            at_least(4),
            partial(seconds, "skeletons"),
        ),
        judged(
            "counts by type from lines against DuckDB over the lines, CPU",
            "x",
            partial(rounds.ratio, ("raw", "cpu"), ("lines", "cpu")),
            None,
            lambda: (
                f"{seconds('lines')}; skeletons: {made['mb_per_s']:.0f} MB/CPU-s, {made['percent']:.1f} % of the lines"
            ),
        ),
        judged(
            "otledger sql to its first line, small ledger",
            "ms",
            partial(rounds.spread, "first row", "ms"),
            at_most(400),
        ),
        *(
            judged(
                f"peak memory of SQL: {name}",
                "MB",
                partial(memory.spread, name, "peak_mb"),
                at_most(600),
                lambda name=name: f"{memory.median(name, 'cpu'):.1f} CPU-s, {5 if bench.long else 1} GB",
            )
            for name in MEMORY_QUERIES
        ),
    ]
