"""The export to Parquet: every record once, whatever interrupts it, and readable by others."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import otledger
from otledger.errors import RootError
from otledger.query.parquet import CURSOR, export_parquet
from tests.conftest import Script
from tests.generated import naive, write


def exported(target: Path) -> list[dict[str, Any]]:
    """What is in the files, by machine and `seq`."""
    found: list[dict[str, Any]] = []
    for path in target.rglob("*.parquet"):
        found += pq.ParquetFile(path).read().to_pylist()
    return sorted(found, key=lambda row: (row["machine"], row["seq"]))


def in_order(root: Path) -> list[dict[str, Any]]:
    return sorted(naive(root), key=lambda record: (record["machine"], record["seq"]))


def compare(root: Path, target: Path) -> None:
    """Every member of every record stands in the files, and no record twice."""
    rows, records = exported(target), in_order(root)
    assert len(rows) == len(records)
    for row, record in zip(rows, records, strict=True):
        for name in ("machine", "seq", "id", "source", "type", "subject", "dataschema", "datacontenttype"):
            assert row[name] == record.get(name)
        for name in ("traceparent", "tracestate", "synced", "prev", "checksum"):
            assert row[name] == record.get(name)
        assert (row["time_text"], row["ipc_hash"]) == (record["time"], record.get("ipchash"))
        assert (row["data"] is None) == ("data" not in record)
        assert row["data"] is None or json.loads(row["data"]) == record["data"]
        assert (row["segment"], row["offset"]) == record["at"][:2]
        extensions = {name: record[name] for name in ("phase", "extra", "count") if name in record}
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in extensions.items()}
        assert dict(row["extensions"] or []) == texts


def test_all_members_of_all_records(tmp_path: Path) -> None:
    root, target = write(tmp_path / "ledger", count=25), tmp_path / "out"
    report = export_parquet(root, target)
    assert report.records == len(naive(root))
    assert report.faults == []
    compare(root, target)
    assert sorted(path.relative_to(target).parts[:2] for path in report.files) == [
        (f"machine={machine}", f"month={month}")
        for machine in ("m1", "m2")
        for month in ("2026-09", "2026-09", "2026-10")
    ]
    assert {path.name for path in target.iterdir()} == {"machine=m1", "machine=m2", CURSOR, "_lock"}
    assert not list(target.rglob("*.part"))
    for path in report.files:
        assert path.stat().st_mode & 0o77 == 0


def test_others_read_it_by_its_partitions(tmp_path: Path) -> None:
    root, target = write(tmp_path / "ledger", count=15), tmp_path / "out"
    export_parquet(root, target)
    files = f"read_parquet('{target}/**/*.parquet', hive_partitioning = true)"
    query = f"select machine, month, count(*) from {files} group by all"
    with duckdb.connect() as connection:
        found = connection.execute(query).fetchall()
    assert sum(count for _, _, count in found) == len(naive(root))
    assert {(machine, month) for machine, month, _ in found} == {
        (machine, month) for machine in ("m1", "m2") for month in ("2026-09", "2026-10")
    }
    assert ds.dataset(target, partitioning="hive").count_rows() == len(naive(root))


def test_the_next_run_adds_what_is_new(root: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    with otledger.open_sync(root, machine="m1", max_segment=4000) as ledger:
        for round in range(4):
            for n in range(7):
                ledger.append("tick", {"round": round, "n": n})
            report = export_parquet(root, target)
            assert report.records > 0
            compare(root, target)
            assert export_parquet(root, target).files == []
    with otledger.open_sync(root, machine="m2") as ledger:
        ledger.append("other")
    export_parquet(root, target)
    compare(root, target)


def test_one_machine_and_then_all(tmp_path: Path) -> None:
    root, target = write(tmp_path / "ledger", count=9), tmp_path / "out"
    assert export_parquet(root, target, machines=["m2"]).records == len(naive(root, machines=("m2",)))
    assert export_parquet(root, target).records == len(naive(root, machines=("m1",)))
    compare(root, target)


def test_a_run_that_ended_between_file_and_cursor_doubles_nothing(tmp_path: Path) -> None:
    root, target = write(tmp_path / "ledger", count=15), tmp_path / "out"
    export_parquet(root, target, machines=["m1"])
    before = (target / CURSOR).read_bytes()
    export_parquet(root, target)
    files = sorted(target.rglob("*.parquet"))
    for cursor in (before, None):
        (target / CURSOR).write_bytes(cursor) if cursor else (target / CURSOR).unlink()
        report = export_parquet(root, target)
        assert (report.records, report.files) == (0, [])
        assert sorted(target.rglob("*.parquet")) == files
    compare(root, target)


def test_a_run_that_is_killed_anywhere_goes_on(tmp_path: Path, script: Script) -> None:
    root, target = write(tmp_path / "ledger", count=15), tmp_path / "out"
    code = """
        import os, sys
        from otledger.query import parquet
        left = int(sys.argv[3])
        real = os.replace
        def replace(*names):
            global left
            if left == 0:
                os._exit(9)
            left -= 1
            real(*names)
        os.replace = replace
        parquet.export_parquet(sys.argv[1], sys.argv[2])
    """
    for steps in range(4):
        assert script(code, root, target, steps).wait() == 9
    (target / "machine=m1" / "month=2026-09" / ".2026-09-000000000000.part").write_bytes(b"half")
    export_parquet(root, target)
    compare(root, target)


def test_a_full_disk_is_told_and_the_next_run_goes_on(tmp_path: Path, script: Script) -> None:
    root, target = write(tmp_path / "ledger", count=15), tmp_path / "out"
    code = """
        import resource, sys
        from otledger import errors
        from otledger.query.parquet import export_parquet
        import pyarrow.parquet
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        try:
            export_parquet(sys.argv[1], sys.argv[2])
        except errors.RootError as error:
            print(error)
    """
    assert "cannot be written" in script(code, root, target).communicate()[0]
    assert not list(target.rglob("*.part"))
    export_parquet(root, target)
    compare(root, target)


def test_what_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "ledger", count=9)
    with pytest.raises(RootError, match="is inside the ledger"):
        export_parquet(root, root / "out")
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with pytest.raises(RootError, match="holds other things"):
        export_parquet(root, other)
    assert [path.name for path in other.iterdir()] == ["mine.txt"]
    with pytest.raises(RootError, match="no machine 'm9'"):
        export_parquet(root, tmp_path / "out", machines=["m9"])
    target = tmp_path / "out"
    export_parquet(root, target)
    for cursor in (b"{", b'{"version":2}'):
        (target / CURSOR).write_bytes(cursor)
        with pytest.raises(RootError):
            export_parquet(root, target)


def test_another_ledger_is_not_mixed_in(tmp_path: Path) -> None:
    root, other = write(tmp_path / "ledger", count=9), write(tmp_path / "other", seed=2, count=9)
    target = tmp_path / "out"
    export_parquet(root, target)
    count = len(exported(target))
    with pytest.raises(RootError, match="does not hold that record there any more"):
        export_parquet(other, target)
    (target / CURSOR).unlink()
    with pytest.raises(RootError, match="was not written from what the ledger holds"):
        export_parquet(other, target)
    shutil.rmtree(root / "m1")
    assert export_parquet(root, target, machines=["m2"]).records == 0
    assert len(exported(target)) == count


def test_damaged_lines_are_told_and_passed_over(tmp_path: Path) -> None:
    root, target = write(tmp_path / "ledger", count=9), tmp_path / "out"
    path = root / "m1" / "2026-10.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2][:-5]
    path.write_bytes(b"\n".join(lines))

    def run() -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "otledger", "export", "parquet", str(target), "--root", str(root), "--json"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run()
    assert done.returncode == 3
    assert "2026-10.jsonl, offset" in done.stderr
    assert json.loads(done.stdout)["exported"] == len(naive(root))
    again = run()
    assert (again.returncode, json.loads(again.stdout)["exported"]) == (0, 0)
    compare(root, target)
