"""Contenders that make views of a ledger: databases, numbers, digests. Each runs in a process of its own."""

import sqlite3
import time
from pathlib import Path
from typing import Any

from .payload import TYPE

Figures = dict[str, float]

TABLE = "CREATE TABLE orders (id INTEGER, item TEXT, price REAL, time TEXT)"


def _insert(connection: sqlite3.Connection, record: Any) -> None:
    if record.type == TYPE:
        data = record.data
        row = data["id"], data["item"], data["price"], record.time
        connection.execute("INSERT INTO orders VALUES (?, ?, ?, ?)", row)


def projection(folder: Path, root: str) -> Figures:
    """Project every event into a row, and see afterwards how long it takes to find that nothing is new."""
    import otledger

    def view() -> otledger.Projection:
        return otledger.Projection("orders", _insert, folder / "view.db", root=root, setup=TABLE)

    cpu, started = time.process_time(), time.perf_counter()
    with view() as made:
        done = made.catch_up_sync()
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    started = time.perf_counter()
    with view() as made:
        if made.catch_up_sync().read:
            raise RuntimeError("the ledger has grown")
    resume = time.perf_counter() - started
    return {"rate": done.read / elapsed, "cpu_rate": done.read / cpu, "resume_ms": resume * 1e3}


def bare(folder: Path, root: str) -> Figures:
    """Put the same rows into the same table: the stdlib's json, a transaction for each 5,000 rows, no positions."""
    import json

    from otledger.batch import has_type

    paths = sorted(Path(root).glob("*/*.jsonl"), key=lambda path: (len(path.name), path.name))
    cpu, started = time.process_time(), time.perf_counter()
    connection = sqlite3.connect(folder / "bare.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(TABLE)
    connection.execute("BEGIN")
    done = 0
    for path in paths:
        with path.open("rb") as file:
            for line in file:
                done += 1
                if done % 5_000 == 0:
                    connection.execute("COMMIT")
                    connection.execute("BEGIN")
                if has_type(line, TYPE):
                    event = json.loads(line)
                    data = event["data"]
                    row = data["id"], data["item"], data["price"], event["time"]
                    connection.execute("INSERT INTO orders VALUES (?, ?, ?, ?)", row)
    connection.execute("COMMIT")
    connection.close()
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"rate": done / elapsed, "cpu_rate": done / cpu}


def numbers(folder: Path, root: str) -> Figures:
    """Count, and sum up spans and pairs."""
    from otledger.query.stats import stats

    started = time.process_time()
    found = stats(root)
    return {"rate": found.records / (time.process_time() - started)}


def rules(folder: Path, root: str) -> Figures:
    """Make the default digest."""
    from otledger.query.digest import digest

    started = time.process_time()
    found = digest(root)
    return {"rate": found.stats.records / (time.process_time() - started)}


def evledger_digest(folder: Path, root: str) -> Figures:
    """Make evledger's digest, which has the numbers too, of the same files."""
    from evledger import LedgerStore
    from evledger.digest import digest

    started = time.process_time()
    found = digest(LedgerStore(root).read_all().events)
    return {"rate": found.rollup.total / (time.process_time() - started)}
