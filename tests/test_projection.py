"""Projections: a database that is equal to the ledger, whatever becomes of either."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import otledger
from otledger.errors import ConfigurationError, FormatError, ProjectionError, RootError
from otledger.predecessors import import_pipeworks
from otledger.projection import places
from otledger.projection.applying import BATCH_RECORDS
from otledger.projection.places import open_partition
from tests.conftest import Script

DATA = Path(__file__).parent / "data"
TABLE = "CREATE TABLE event (machine, seq, type, data, PRIMARY KEY (machine, seq))"
Row = tuple[Any, ...]


def insert(connection: sqlite3.Connection, record: otledger.Record) -> None:
    row = record.machine, record.seq, record.type, json.dumps(record.data, default=str)
    connection.execute("INSERT INTO event VALUES (?, ?, ?, ?)", row)


def write(root: Path, n: int, machine: str = "m1", first: int = 0, **options: Any) -> None:
    """Append `n` events; the first time there are a header before them and a checkpoint behind them."""
    with otledger.Journal(root, machine=machine, service="s", **options) as journal:
        journal.append([otledger.Draft("number", {"n": first + i}) for i in range(n)])


def projection(root: Path, database: Path, apply: Any = insert, **options: Any) -> otledger.Projection:
    return otledger.Projection("events", apply, database, root=root, **{"setup": TABLE, **options})


def rows(database: Path) -> list[Row]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return connection.execute("SELECT * FROM event ORDER BY machine, seq").fetchall()


def naive(root: Path) -> list[Row]:
    """What the database has to hold, by reading the lines."""
    found = []
    for path in sorted(root.glob("*/*.jsonl"), key=lambda path: (path.parent.name, len(path.name), path.name)):
        for line in path.read_bytes().splitlines():
            members = json.loads(line)
            found.append((members["machine"], members["seq"], members["type"], json.dumps(members.get("data"))))
    return found


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "view.db"


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was said of rebuilding."""
    caplog.set_level(logging.WARNING, "otledger")
    return lambda: [record.getMessage() for record in caplog.records if "projection" in record.getMessage()]


# Catching up


def test_the_database_equals_the_ledger(root: Path, database: Path) -> None:
    write(root, 10)
    write(root, 7, "m2")
    with projection(root, database) as view:
        done = view.catch_up_sync()
        assert rows(database) == naive(root)
        assert (done.read, done.applied, done.rebuilt) == (len(naive(root)), len(naive(root)), None)
        assert {machine: place.seq for machine, place in done.positions.items()} == {"m1": 11, "m2": 8}
        assert view.catch_up_sync().read == 0
        write(root, 5, "m2", 7)
        write(root, 5, "m3")
        assert view.catch_up_sync().applied == len(naive(root)) - done.applied
    assert rows(database) == naive(root)
    assert database.stat().st_mode & 0o777 == 0o600


def test_it_goes_on_where_it_was_in_another_process_of_time(root: Path, database: Path) -> None:
    for step in range(5):
        write(root, 30, first=step * 30, max_segment=10_000)
        with projection(root, database) as view:
            assert view.catch_up_sync().rebuilt is None
        assert rows(database) == naive(root)
    assert len(list(root.glob("m1/*.jsonl"))) > 2


def test_more_than_one_transaction_takes(root: Path, database: Path) -> None:
    for step in range(3):
        write(root, BATCH_RECORDS, first=step * BATCH_RECORDS)
    with projection(root, database) as view:
        assert view.catch_up_sync().read > 2 * BATCH_RECORDS
    assert rows(database) == naive(root)


def test_which_records_are_projected(root: Path, database: Path) -> None:
    with otledger.Journal(root, machine="m1", service="s") as journal:
        journal.append([otledger.Draft("a.b" if i % 3 else "c", i, subject=f"s{i % 2}") for i in range(30)])
    with projection(root, database, filter=otledger.Filter(type="a.*", subject="s1")) as view:
        done = view.catch_up_sync()
        assert (done.read, done.applied) == (32, 10)
        assert done.positions["m1"].seq == 31
    assert [json.loads(row[3]) for row in rows(database)] == [i for i in range(30) if i % 3 and i % 2]


def test_an_evledger_partition_has_positions_too(tmp_path: Path, database: Path) -> None:
    root = tmp_path / "old"
    shutil.copytree(DATA / "evledger", root)
    first = root / "laptop" / "2026-09.jsonl"
    lines = first.read_bytes().splitlines(keepends=True)
    first.write_bytes(b"".join(lines[:150]))
    (root / "laptop" / "2026-10.jsonl").unlink()
    with projection(root, database) as view:
        assert view.catch_up_sync().applied == 150 + 195
        first.write_bytes(b"".join(lines))
        done = view.catch_up_sync()
        assert (done.applied, done.rebuilt) == (len(lines) - 150, None)
        assert rows(database) == naive(root)
        first.write_bytes(b"".join([*lines[:-1], lines[-1].replace(b"laptop/agent", b"laptop/other")]))
        assert "checksum" in str(view.catch_up_sync().rebuilt)


def test_a_torn_last_line_waits(root: Path, database: Path) -> None:
    write(root, 10)
    (segment,) = root.glob("m1/*.jsonl")
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-20])
    with projection(root, database) as view:
        assert view.catch_up_sync().positions["m1"].seq == 10
        segment.write_bytes(whole)
        done = view.catch_up_sync()
        assert (done.read, done.rebuilt) == (1, None)
    assert rows(database) == naive(root)


# Positions are found by seeking


@pytest.mark.parametrize("kind", ["chained", "evledger"])
def test_every_record_is_found_by_its_number(root: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # So that every look-up bisects, down to the line.
    monkeypatch.setattr(places, "_NEAR", 16)
    if kind == "chained":
        for step in range(4):
            write(root, 200, first=200 * step, max_segment=100_000)
        # Longer than what a bisection ends at.
        with otledger.Journal(root, machine="m1", service="s") as journal:
            journal.append([otledger.Draft("long", "x" * 300_000) for _ in range(3)])
    else:
        shutil.copytree(DATA / "evledger", root)
    for machine in sorted(path.name for path in root.iterdir()):
        lines = [
            (path.name, line)
            for path in sorted((root / machine).glob("*.jsonl"), key=lambda path: (len(path.name), path.name))
            for line in path.read_bytes().splitlines(keepends=True)
        ]
        with open_partition(root, machine) as partition:
            assert partition is not None
            for name, line in lines:
                place = partition.find(json.loads(line)["seq"])
                assert place is not None
                assert (str(place.segment), place.line) == (name, line)
                again = partition.at(str(place.segment), place.offset)
                assert again == place
                assert partition.at(str(place.segment), place.offset + 1) is None
            assert partition.find(len(lines)) is None
            assert (partition.first(), partition.last()) == (0, len(lines) - 1)


def test_the_place_is_found_after_the_files_moved(root: Path, database: Path) -> None:
    write(root, 3_000)
    with projection(root, database) as view:
        view.catch_up_sync()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE otledger_position SET segment = '2020-01.jsonl', start = 17")
        connection.commit()
    write(root, 10, first=3_000)
    with projection(root, database) as view:
        done = view.catch_up_sync()
    assert (done.read, done.rebuilt) == (11, None)
    assert rows(database) == naive(root)


# Rebuilding


def test_another_ledger(root: Path, database: Path, warnings: Callable[[], list[str]]) -> None:
    write(root, 20)
    with projection(root, database) as view:
        view.catch_up_sync()
    assert warnings() == []
    shutil.rmtree(root)
    write(root, 40, first=100)
    with projection(root, database) as view:
        done = view.catch_up_sync()
    assert done.rebuilt is not None
    assert "seq 21 of m1 has checksum" in done.rebuilt
    assert done.rebuilt in warnings()[0]
    assert "rebuilt" in warnings()[0]
    assert rows(database) == naive(root)
    assert [path.name for path in database.parent.glob("view.db*")] == ["view.db"]


def test_a_database_that_is_newer_than_the_ledger(root: Path, database: Path) -> None:
    write(root, 10)
    backup = root.with_name("backup")
    shutil.copytree(root, backup)
    write(root, 10, first=10)
    with projection(root, database) as view:
        view.catch_up_sync()
    shutil.rmtree(root)
    shutil.copytree(backup, root)
    with projection(root, database) as view:
        done = view.catch_up_sync()
    assert done.rebuilt == (
        "the database is newer than the ledger: it is at seq 22 of m1, and the ledger ends at seq 11"
    )
    assert rows(database) == naive(root)


def test_a_database_that_is_older_than_the_ledger(root: Path, database: Path) -> None:
    write(root, 10)
    with projection(root, database) as view:
        view.catch_up_sync()
    write(root, 10, max_segment=100)
    write(root, 10, max_segment=100)
    first = min(root.glob("m1/*.jsonl"), key=lambda path: (len(path.name), path.name))
    first.unlink()
    with projection(root, database) as view:
        done = view.catch_up_sync()
    assert "the database is older than the ledger: it is at seq 11 of m1" in str(done.rebuilt)
    assert rows(database) == naive(root)


def test_a_machine_that_went_away(root: Path, database: Path) -> None:
    write(root, 3)
    write(root, 3, "m2")
    with projection(root, database) as view:
        view.catch_up_sync()
        shutil.rmtree(root / "m2")
        assert "machine m2" in str(view.catch_up_sync().rebuilt)
    assert rows(database) == naive(root)
    with projection(root, database, machines=["m3"]) as view:
        assert "machine m1" in str(view.catch_up_sync().rebuilt)
        write(root, 3, "m3")
        assert view.catch_up_sync().rebuilt is None
    assert {row[0] for row in rows(database)} == {"m3"}


def test_another_version_or_filter(root: Path, database: Path) -> None:
    write(root, 3)
    with projection(root, database) as view:
        view.catch_up_sync()
    with projection(root, database, version=2) as view:
        assert "of version 1, and the projection is of version 2" in str(view.catch_up_sync().rebuilt)
        assert view.catch_up_sync().rebuilt is None
    with projection(root, database, version=1) as view:
        assert "of version 2, and the projection is of version 1" in str(view.catch_up_sync().rebuilt)
    with projection(root, database, filter=otledger.Filter(type="number")) as view:
        assert "another filter" in str(view.catch_up_sync().rebuilt)
    assert len(rows(database)) == 3


def test_readers_see_the_old_database_until_the_new_one_is_whole(root: Path, database: Path) -> None:
    write(root, 20)
    with projection(root, database) as view:
        view.catch_up_sync()
    seen: list[int] = []
    reader = sqlite3.connect(database)

    def apply(connection: sqlite3.Connection, record: otledger.Record) -> None:
        insert(connection, record)
        seen.extend(reader.execute("SELECT count(*) FROM event").fetchone())

    with projection(root, database, apply, version=2) as view:
        shutil.rmtree(root)
        write(root, 5)
        view.catch_up_sync()
    assert set(seen) == {22}
    # The connection that was open all the time sees the new one.
    assert reader.execute("SELECT count(*) FROM event").fetchone() == (7,)
    reader.close()


def test_a_rebuild_that_fails_leaves_the_old_database(root: Path, database: Path) -> None:
    write(root, 20)
    with projection(root, database) as view:
        view.catch_up_sync()
    before = rows(database)

    def apply(connection: sqlite3.Connection, record: otledger.Record) -> None:
        if record.seq == 7:
            raise KeyError("axis")
        insert(connection, record)

    with (
        projection(root, database, apply, version=2) as view,
        pytest.raises(ProjectionError, match=r"KeyError: 'axis' at machine m1, seq 7 .*the old database is left"),
    ):
        view.catch_up_sync()
    assert rows(database) == before
    assert [path.name for path in database.parent.glob("view.db*")] == ["view.db"]


def test_records_that_were_taken_back(root: Path, database: Path) -> None:
    """After a failed sync the successor says that less of the segment counts (format, 6)."""
    write(root, 10)
    with projection(root, database) as view:
        view.catch_up_sync()
        segment = next(root.glob("m1/*.jsonl"))
        lines = segment.read_bytes().splitlines(keepends=True)
        kept = b"".join(lines[:6])
        segment.write_bytes(kept)
        (root / "m1" / ".lock").unlink()
        write(root, 4, first=90, max_segment=100)
        segment.write_bytes(segment.read_bytes() + b"".join(lines[6:]))
        done = view.catch_up_sync()
    assert done.rebuilt is not None
    numbers = [json.loads(row[3])["n"] for row in rows(database) if row[2] == "number"]
    assert numbers == [0, 1, 2, 3, 4, 90, 91, 92, 93]


def test_a_ledger_that_becomes_another_while_it_is_read(root: Path, database: Path) -> None:
    other = root.with_name("other")
    for place, first in ((root, 0), (other, 100)):
        write(place, 5, first=first)
        write(place, 5, first=first + 5, max_segment=100)
        write(place, 5, first=first + 10, max_segment=100)
    segments = sorted(path.name for path in root.glob("m1/*.jsonl"))
    assert len(segments) > 2
    swapped = False

    def apply(connection: sqlite3.Connection, record: otledger.Record) -> None:
        nonlocal swapped
        if not swapped:
            swapped = True
            for name in segments:
                (root / "m1" / name).write_bytes((other / "m1" / name).read_bytes())
        insert(connection, record)

    with projection(root, database, apply) as view:
        assert view.catch_up_sync().rebuilt is not None
    assert rows(database) == naive(other)


# What apply does


def test_an_apply_that_raises_keeps_the_position_before_it(root: Path, database: Path) -> None:
    write(root, 20)
    bad = True

    def apply(connection: sqlite3.Connection, record: otledger.Record) -> None:
        insert(connection, record)
        if bad and record.seq == 12:
            raise ZeroDivisionError("no such axis")

    with projection(root, database, apply) as view:
        with pytest.raises(ProjectionError) as caught:
            view.catch_up_sync()
        error = caught.value
        assert (error.machine, error.seq) == ("m1", 12)
        assert isinstance(error.__cause__, ZeroDivisionError)
        assert "apply raised ZeroDivisionError: no such axis at machine m1, seq 12 (number)" in str(error)
        assert "the database is kept at seq 11 of m1" in str(error)
        assert rows(database) == naive(root)[:12]
        bad = False
        done = view.catch_up_sync()
        assert (done.applied, done.rebuilt) == (10, None)
    assert rows(database) == naive(root)


def test_the_first_record_that_there_is_cannot_be_applied(root: Path, database: Path) -> None:
    write(root, 3)

    def apply(connection: sqlite3.Connection, record: otledger.Record) -> None:
        raise ValueError("no")

    with projection(root, database, apply) as view, pytest.raises(ProjectionError, match="without a record of m1"):
        view.catch_up_sync()
    assert rows(database) == []


@pytest.mark.parametrize(
    "end",
    [
        lambda connection: connection.commit(),
        lambda connection: connection.execute("COMMIT"),
        lambda connection: connection.rollback(),
        lambda connection: connection.executescript("DELETE FROM event"),
        lambda connection: connection.__exit__(None, None, None),
    ],
)
def test_apply_must_not_commit(root: Path, database: Path, end: Callable[[sqlite3.Connection], object]) -> None:
    write(root, 10)

    def apply(connection: sqlite3.Connection, record: otledger.Record) -> None:
        insert(connection, record)
        if record.seq == 5:
            end(connection)

    with projection(root, database, apply) as view, pytest.raises(ProjectionError, match=r"the projection commits"):
        view.catch_up_sync()
    assert rows(database) == naive(root)[:5]


def test_an_error_of_sqlite_in_apply_is_the_applys(root: Path, database: Path) -> None:
    write(root, 3)
    with (
        projection(
            root, database, lambda connection, record: connection.execute("INSERT INTO nowhere VALUES (1)")
        ) as v,
        pytest.raises(
            ProjectionError, match="apply raised OperationalError: no such table: nowhere at machine m1, seq 0"
        ),
    ):
        v.catch_up_sync()


# Lines that are none


def damage(root: Path, seq: int) -> None:
    (segment,) = root.glob("m1/*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    lines[seq] = b"{" + b"#" * (len(lines[seq]) - 2) + b"\n"
    segment.write_bytes(b"".join(lines))


@pytest.mark.parametrize("filter", [None, otledger.Filter(source="/m1/s")])
def test_a_damaged_line_stops_it(root: Path, database: Path, filter: otledger.Filter | None) -> None:
    write(root, 10)
    damage(root, 4)
    with projection(root, database, filter=filter) as view:
        with pytest.raises(
            FormatError, match=r"2\d{3}-\d\d\.jsonl, offset \d+: .*kept at seq 3 of m1; .*otledger verify"
        ):
            view.catch_up_sync()
        assert len(rows(database)) == 4
    faults: list[FormatError] = []
    with projection(root, database, filter=filter, on_fault=faults.append) as view:
        assert view.catch_up_sync().positions["m1"].seq == 11
        assert view.catch_up_sync().read == 0
    assert [row[1] for row in rows(database)] == [0, 1, 2, 3, *range(5, 12)]
    assert faults


def test_a_line_that_was_taken_out_stops_it(root: Path, database: Path) -> None:
    write(root, 10)
    (segment,) = root.glob("m1/*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join([*lines[:5], *lines[6:]]))
    with (
        projection(root, database) as view,
        pytest.raises(FormatError, match="does not follow the record before it; the database is kept at seq 4"),
    ):
        view.catch_up_sync()
    faults: list[FormatError] = []
    with projection(root, database, on_fault=faults.append) as view:
        view.catch_up_sync()
    assert [row[1] for row in rows(database)] == [0, 1, 2, 3, 4, *range(6, 12)]
    assert len(faults) == 1


# A caller's connection


def test_a_connection_shares_its_database(root: Path, database: Path) -> None:
    write(root, 10)
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE other (a)")
    connection.execute("INSERT INTO other VALUES (1)")
    connection.execute(TABLE)
    connection.commit()
    first = otledger.Projection("first", insert, connection, root=root, reset="DELETE FROM event")
    types = "CREATE TABLE type (name PRIMARY KEY, n);"

    def count(connection: sqlite3.Connection, record: otledger.Record) -> None:
        connection.execute("INSERT INTO type VALUES (?, 1) ON CONFLICT DO UPDATE SET n = n + 1", (record.type,))

    second = otledger.Projection("second", count, connection, root=root, setup=types, reset="DROP TABLE type")
    first.catch_up_sync()
    second.catch_up_sync()
    shutil.rmtree(root)
    write(root, 4)
    watcher = sqlite3.connect(database)
    assert watcher.execute("SELECT n FROM type WHERE name = 'number'").fetchone() == (10,)
    assert second.catch_up_sync().rebuilt is not None
    assert watcher.execute("SELECT n FROM type WHERE name = 'number'").fetchone() == (4,)
    assert watcher.execute("SELECT count(*) FROM event").fetchone() == (12,)
    assert first.catch_up_sync().rebuilt is not None
    assert rows(database) == naive(root)
    first.close()
    assert connection.execute("SELECT a FROM other").fetchall() == [(1,)]
    watcher.close()
    connection.close()


def test_a_connection_whose_rebuild_fails_is_as_before(root: Path, database: Path) -> None:
    write(root, 10)
    connection = sqlite3.connect(database)
    with otledger.Projection("p", insert, connection, root=root, setup=TABLE) as view:
        view.catch_up_sync()
    before = rows(database)
    with (
        otledger.Projection("p", insert, connection, root=root, setup=TABLE, version=2) as view,
        pytest.raises(ProjectionError, match="give reset="),
    ):
        view.catch_up_sync()

    def apply(connection: sqlite3.Connection, record: otledger.Record) -> None:
        insert(connection, record)
        if record.seq == 5:
            raise ValueError("no")

    for apply_, raised in ((apply, pytest.raises(ProjectionError, match="ValueError")), (insert, None)):
        options: Any = {"root": root, "setup": TABLE, "reset": "DROP TABLE event", "version": 2}
        with otledger.Projection("p", apply_, connection, **options) as view, raised or contextlib.nullcontext():
            view.catch_up_sync()
        assert rows(database) == before
    connection.close()


def test_connections_that_cannot_be_used(root: Path, database: Path) -> None:
    write(root, 3)
    connection = sqlite3.connect(database)
    connection.execute(TABLE)
    connection.execute("INSERT INTO event VALUES (1, 2, 3, 4)")
    with (
        otledger.Projection("p", insert, connection, root=root) as view,
        pytest.raises(ProjectionError, match="has a transaction open; commit it"),
    ):
        view.catch_up_sync()
    connection.close()
    if hasattr(connection, "autocommit"):
        connection = sqlite3.connect(database, autocommit=False)
        with pytest.raises(ConfigurationError, match="autocommit"):
            otledger.Projection("p", insert, connection, root=root).catch_up_sync()
        connection.close()


# Files that are something else


def test_a_file_that_is_not_the_projections(root: Path, database: Path) -> None:
    write(root, 3)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE precious (a)")
    before = database.read_bytes()
    with projection(root, database) as view, pytest.raises(ProjectionError, match="of something else; give 'events'"):
        view.catch_up_sync()
    assert database.read_bytes() == before
    text = database.with_name("text")
    text.write_text("my diary" * 1000)
    with projection(root, text) as view, pytest.raises(ProjectionError, match="text: this is no SQLite database"):
        view.catch_up_sync()
    assert text.read_text() == "my diary" * 1000
    with projection(root, database.with_name("x") / "y") as view, pytest.raises(ProjectionError, match="No such file"):
        view.catch_up_sync()
    own = database.with_name("own.db")
    with projection(root, own) as view:
        view.catch_up_sync()
    with (
        otledger.Projection("others", insert, own, root=root) as view,
        pytest.raises(ProjectionError, match="of the projection 'events'; give 'others' another"),
    ):
        view.catch_up_sync()


def test_there_is_no_ledger(root: Path, database: Path) -> None:
    with projection(root, database) as view, pytest.raises(RootError, match="there is no ledger here"):
        view.catch_up_sync()


def test_a_full_disk(root: Path, database: Path) -> None:
    write(root, 3_000)
    limits = iter([20, 100_000])

    def setup(connection: sqlite3.Connection) -> None:
        connection.execute(TABLE)
        connection.execute(f"PRAGMA max_page_count = {next(limits)}")

    with (
        projection(root, database, setup=setup) as view,
        pytest.raises(ProjectionError, match=r"view.db: the disk is full; free some space \(df -h\); it is as it was"),
    ):
        view.catch_up_sync()
    assert rows(database) == []
    with projection(root, database, setup=setup) as view:
        assert view.catch_up_sync().rebuilt is None
    assert rows(database) == naive(root)
    shutil.rmtree(root)
    write(root, 4_000)
    limits = iter([20])
    before = rows(database)
    with projection(root, database, setup=setup) as view, pytest.raises(ProjectionError, match="the disk is full"):
        view.catch_up_sync()
    assert rows(database) == before
    with projection(root, database) as view:
        assert view.catch_up_sync().rebuilt is not None
    assert rows(database) == naive(root)


# asyncio


async def test_it_follows(root: Path, database: Path) -> None:
    steps: list[Any] = []
    threads: set[str] = set()

    def apply(connection: sqlite3.Connection, record: otledger.Record) -> None:
        threads.add(threading.current_thread().name)
        insert(connection, record)

    async with otledger.open(root, machine="m1", durability="os") as ledger, projection(root, database, apply) as view:
        await ledger.append("a", 1)
        task = asyncio.create_task(view.follow(steps.append))
        for n in range(20):
            await ledger.append("b", n)
        async with otledger.open(root, machine="m2", durability="os") as other:
            receipt = await other.append("c")
        last = await ledger.append("d")

        def arrived() -> bool:
            there = {machine: place.seq for machine, place in steps[-1].positions.items()} if steps else {}
            return there.get("m1", -1) >= last.seq and there.get("m2", -1) >= receipt.seq

        async with asyncio.timeout(10):
            while not arrived():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # It can be used again, and finds what came in between.
        await ledger.append("e")
        await view.catch_up()
        assert [row[2] for row in rows(database) if not row[2].startswith("otledger.")][-1:] == ["c"]
    async with projection(root, database) as view:
        await view.catch_up()
    assert rows(database) == naive(root)
    assert steps[0].rebuilt is None
    assert all(name.startswith("otledger-projection") for name in threads)


async def test_the_event_loop_goes_on_meanwhile(root: Path, database: Path) -> None:
    write(root, 50)
    inside, go_on = threading.Event(), threading.Event()

    def apply(connection: sqlite3.Connection, record: otledger.Record) -> None:
        inside.set()
        assert go_on.wait(10)
        insert(connection, record)

    async with projection(root, database, apply) as view:
        task = asyncio.create_task(view.catch_up())
        assert await asyncio.to_thread(inside.wait, 10)
        assert not task.done()
        task.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        # What was begun was ended, before the cancelled call came back.
        assert rows(database) == naive(root)


async def test_follow_says_what_stopped_it(root: Path, database: Path) -> None:
    write(root, 3)

    def apply(connection: sqlite3.Connection, record: otledger.Record) -> None:
        if record.seq == 5:
            raise ValueError("no")

    async with projection(root, database, apply) as view:
        task = asyncio.create_task(view.follow())
        await asyncio.sleep(0.05)
        write(root, 10, first=3)
        async with asyncio.timeout(10):
            with pytest.raises(ProjectionError, match="seq 5"):
                await task


# Processes


def test_it_is_killed_in_the_middle(root: Path, database: Path, script: Script) -> None:
    write(root, 3_000)
    write(root, 1_000, "m2")
    code = """
        import sys, json, sqlite3, otledger
        def apply(connection, record):
            row = record.machine, record.seq, record.type, json.dumps(record.data)
            connection.execute("INSERT INTO event VALUES (?, ?, ?, ?)", row)
            if record.seq % 100 == 0:
                print(record.seq, flush=True)
        otledger.projection.applying.BATCH_RECORDS = 50
        table = "CREATE TABLE event (machine, seq, type, data, PRIMARY KEY (machine, seq))"
        otledger.Projection("events", apply, sys.argv[2], root=sys.argv[1], setup=table).catch_up_sync()
    """.replace("import sys", "import otledger.projection.applying, sys")
    for lines in (1, 5, 11, 18):
        process = script(code, root, database)
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with projection(root, database) as view:
        assert view.catch_up_sync().rebuilt is None
        assert rows(database) == naive(root)
    # And while it is rebuilt.
    shutil.rmtree(root / "m2")
    before = rows(database)
    process = script(code, root, database)
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert rows(database) == before
    with projection(root, database) as view:
        assert view.catch_up_sync().rebuilt is not None
    assert rows(database) == naive(root)


def test_two_processes_on_one_database_apply_each_record_once(root: Path, database: Path, script: Script) -> None:
    write(root, 10)
    code = """
        import asyncio, sys, json, otledger
        def apply(connection, record):
            row = record.machine, record.seq, record.type, json.dumps(record.data)
            connection.execute("INSERT INTO event VALUES (?, ?, ?, ?)", row)
        async def main():
            table = "CREATE TABLE event (machine, seq, type, data)"
            async with otledger.Projection("events", apply, sys.argv[2], root=sys.argv[1], setup=table) as view:
                await view.follow(lambda step: print(step.read, flush=True))
        asyncio.run(main())
    """
    processes = [script(code, root, database) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for step in range(20):
        write(root, 20, first=10 + 20 * step)
    expected = naive(root)
    deadline = time.monotonic() + 10
    while rows(database) != expected and time.monotonic() < deadline:
        time.sleep(0.02)
    assert rows(database) == expected
    assert all(process.poll() is None for process in processes)


# The two real ledgers


def test_axis_scores_of_pipeworks(root: Path, tmp_path: Path) -> None:
    import importlib.util

    path = Path(__file__).parent.parent / "examples" / "axis_scores.py"
    spec = importlib.util.spec_from_file_location("axis_scores", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    import_pipeworks(root, DATA / "pipeworks")
    database = tmp_path / "scores.db"
    with example.scores(str(root), database) as view:
        assert view.catch_up_sync().applied == 120
    expected: dict[tuple[str, int, str], list[float]] = {}
    for file in sorted((DATA / "pipeworks").glob("*.jsonl")):
        for line in file.read_text().splitlines():
            event = json.loads(line)
            if event["event_type"] != "chat.mechanical_resolution":
                continue
            data = event["data"]
            for side in (data["speaker"], data["listener"]):
                who = side["character_id"]
                for axis, delta in side["axis_deltas"].items():
                    value = data["axis_snapshot_before"][str(who)][axis] + delta
                    expected.setdefault((event["world_id"], who, axis), []).append(round(value, 4))
    shown = {(world, who, axis): (value, n) for world, who, axis, value, n in example.show(database)}
    assert shown == {key: (values[-1], len(values)) for key, values in expected.items()}
