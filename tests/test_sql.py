"""SQL: right answers from skeletons and from lines, on what is torn, odd, growing; and nothing but reading."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import otledger
from otledger import Reader
from otledger.errors import ConfigurationError, FormatError, QueryError, RootError
from otledger.predecessors import import_pipeworks
from otledger.query.compacting import compact
from otledger.record import parse_time
from tests.conftest import Script
from tests.generated import START, naive, write

# ruff: noqa: DTZ001
# Times in SQL are in UTC and say no zone.

DATA = Path(__file__).with_name("data")
Json = dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hard ledger whose closed segments have skeletons."""
    root = write(tmp_path_factory.mktemp("made") / "ledger")
    assert [each.made for each in compact(root)] == [True] * 4
    return root


@pytest.fixture(params=["skeletons", "lines"])
def cache(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "skeletons")


def rows(root: Path, query: str, *arguments: Any, **options: Any) -> list[tuple[Any, ...]]:
    return list(Reader(root).sql(query, *arguments, **options))


def micros(ns: int | None) -> datetime | None:
    return None if ns is None else datetime(1970, 1, 1) + timedelta(microseconds=ns // 1000)


def in_64_bits(ns: Any) -> Any:
    return ns if isinstance(ns, int) and -(1 << 63) <= ns < 1 << 63 else None


# Answers


def expected(record: Json) -> Json:
    """What a row of `events` should be."""
    ns = parse_time(record["time"])
    context = record.get("traceparent")
    span = record["type"].startswith("otel.span.")
    data = record["data"] if span and isinstance(record.get("data"), dict) else {}
    status = data.get("status")
    known = (
        *("specversion", "id", "source", "type", "time", "datacontenttype", "dataschema", "subject", "machine"),
        *("ipchash", "traceparent", "tracestate", "data", "synced", "seq", "prev", "checksum", "at", "line"),
    )
    extensions = {name: value for name, value in record.items() if name not in known}
    segment, offset, size = record["at"]
    return {
        **{name: record.get(name) for name in ("machine", "seq", "id", "type", "source", "subject", "synced")},
        **{name: record.get(name) for name in ("datacontenttype", "dataschema", "traceparent", "tracestate")},
        **{name: record.get(name) for name in ("checksum", "prev")},
        "time": micros(ns),
        "time_ns": in_64_bits(ns),
        "time_text": record["time"],
        "ipc_hash": record.get("ipchash"),
        "trace_id": context[3:35] if context else None,
        "span_id": context[36:52] if context else None,
        "parent_span_id": value if isinstance(value := data.get("parent_span_id"), str) else None,
        "name": data.get("name"),
        "kind": value if span and isinstance(value := data.get("kind", "INTERNAL"), str) else None,
        "status": (status.get("code") if isinstance(status, dict) else "UNSET") if span else None,
        "start_ns": in_64_bits(data.get("start")),
        "end_ns": in_64_bits(data.get("end")) if record["type"] == "otel.span.end" else None,
        "data": json.dumps(record["data"], ensure_ascii=False, separators=(",", ":")) if "data" in record else None,
        "extensions": json.dumps(extensions, separators=(",", ":")) if extensions else None,
        "segment": segment,
        "line_offset": offset,
        "line_size": size,
    }


def test_events_are_the_records_that_count(made: Path, cache: bool) -> None:
    result = Reader(made).sql("select * from events", cache=cache)
    found = [dict(zip(result.columns, row, strict=True)) for row in result]
    wanted = [expected(record) for record in naive(made)]
    assert len(found) == len(wanted) > 500
    assert not [row for row in found if row["type"] == "x.lost"]
    for row, record in zip(found, wanted, strict=True):
        assert row == record
    assert result.fault_count == 0


@pytest.mark.parametrize("name", [None, "id", "time", "name", "data", "extensions", "checksum", "time_ns", "line_size"])
def test_each_column_is_right_whatever_is_filtered(made: Path, cache: bool, name: str | None) -> None:
    columns = "seq" if name is None else f"seq, {name}"
    wanted = [expected(record) for record in naive(made)]
    conditions = {
        "type = 't.3'": lambda r: r["type"] == "t.3",
        "type in ('t.1', 'x.list') and machine = 'm2'": lambda r: (
            r["type"] in ("t.1", "x.list") and r["machine"] == "m2"
        ),
        "subject is null": lambda r: r["subject"] is None,
        "seq < 9 or seq > 150": lambda r: r["seq"] < 9 or r["seq"] > 150,
        "time >= '2026-09-21 14:14:00'": lambda r: r["time"] is not None and r["time"] >= datetime(2026, 9, 21, 14, 14),
        f"time_ns < {START + 10**10}": lambda r: r["time_ns"] is not None and r["time_ns"] < START + 10**10,
        "data->>'n' = '4'": lambda r: r["data"] is not None and r["data"] == '{"n":4}',
        "checksum like '%a' and status = 'OK'": lambda r: r["checksum"].endswith("a") and r["status"] == "OK",
    }
    for condition, test in conditions.items():
        found = rows(made, f"select {columns} from events where {condition}", cache=cache)
        assert found == [(r["seq"], *([] if name is None else [r[name]])) for r in wanted if test(r)], condition
        assert found, condition


def spans_of(records: list[Json]) -> dict[tuple[str, str], Json]:
    """One record a span: its first end, else its first start."""
    best: dict[tuple[str, str], tuple[Any, Json]] = {}
    for record in records:
        if record["type"] in ("otel.span.start", "otel.span.end") and "traceparent" in record:
            key = record["traceparent"][3:35], record["traceparent"][36:52]
            rank = record["type"] != "otel.span.end", parse_time(record["time"]), record["machine"], record["seq"]
            if key not in best or rank < best[key][0]:
                best[key] = rank, record
    return {key: record for key, (_, record) in best.items()}


def test_spans_and_traces(made: Path, cache: bool) -> None:
    wanted = spans_of(naive(made))
    query = """select trace_id, span_id, name, status, finished, duration_ns, seq, attributes, epoch_ns(start_time)
               from spans where trace_id is not null"""
    found = {row[:2]: row[2:] for row in rows(made, query, cache=cache)}
    assert found.keys() == wanted.keys()
    traces: dict[str, list[Json]] = defaultdict(list)
    for key, record in wanted.items():
        data = record["data"]
        traces[key[0]].append(record)
        name, status, finished, duration, seq, attributes, start = found[key]
        assert (name, finished, seq) == (data["name"], record["type"] == "otel.span.end", record["seq"])
        assert status == data.get("status", {}).get("code", "UNSET")
        assert duration == (max(0, data["end"] - data["start"]) if "end" in data else None)
        assert json.loads(attributes) == data["attributes"]
        assert start == data["start"] // 1000 * 1000
    assert any(not row[2] for row in found.values())
    query = (
        "select trace_id, name, spans, errors, unfinished, duration_ns, machines from traces where trace_id is not null"
    )
    by_trace = {row[0]: row[1:] for row in rows(made, query, cache=cache)}
    assert by_trace.keys() == traces.keys()
    for trace, records in traces.items():
        roots = [r["data"] for r in records if "parent_span_id" not in r["data"]]
        ends = [r["data"].get("end", r["data"]["start"]) for r in records]
        name, spans, errors, unfinished, duration, machines = by_trace[trace]
        assert name == (min(roots, key=lambda data: data["start"])["name"] if roots else None)
        assert (spans, unfinished) == (len(records), sum(r["type"] == "otel.span.start" for r in records))
        assert errors == sum(r["data"].get("status", {}).get("code") == "ERROR" for r in records)
        assert duration == max(ends) - min(r["data"]["start"] for r in records)
        assert machines == [records[0]["machine"]]


def test_turns_and_machines(made: Path, cache: bool) -> None:
    turns: dict[str, list[Json]] = defaultdict(list)
    for record in naive(made):
        if "ipchash" in record:
            turns[record["ipchash"]].append(record)
    query = "select ipc_hash, records, types, traces, spans, machines, start_ns, end_ns from turns"
    found = {row[0]: row[1:] for row in rows(made, query, cache=cache)}
    assert found.keys() == turns.keys()
    for turn, records in turns.items():
        times = [parse_time(record["time"]) for record in records]
        starts = [r["data"]["start"] for r in records if r["type"] == "otel.span.end"]
        assert found[turn] == (
            len(records),
            sorted({record["type"] for record in records}),
            len({record["traceparent"][3:35] for record in records}),
            len({record["traceparent"][36:52] for record in records}),
            sorted({record["machine"] for record in records}),
            min([*times, *starts]),  # type: ignore[type-var]
            max(times),  # type: ignore[type-var]
        )
    query = "select machine, chained, segments, records, bytes, first_seq, last_seq from machines order by 1"
    of = {m: naive(made, machines=(m,)) for m in ("m1", "m2")}
    assert rows(made, query, cache=cache) == [
        (m, True, 3, len(found), sum(r["at"][2] for r in found), 0, len(found) - 1) for m, found in of.items()
    ]
    assert rows(made, "select distinct machine from events", machines=["m2"], cache=cache) == [("m2",)]


@pytest.mark.parametrize("seed", range(3))
def test_other_ledgers_give_the_same_from_lines_and_skeletons(tmp_path: Path, seed: int) -> None:
    root = write(tmp_path / "ledger", seed=seed + 10, machines=("a", "b", "c"), count=25)
    list(compact(root))
    for query in (
        "select type, source, count(*), min(time), max(time_ns) from events group by all order by all",
        "select * from spans order by all",
        "select * from traces order by all",
        "select * from turns order by all",
        "select * from machines order by all",
        "select a.id, b.data from events a join events b using (trace_id) where a.type = 't.1' order by all",
    ):
        assert rows(root, query) == rows(root, query, cache=False), query
    assert rows(root, "select count(*) from events") == [(len(naive(root)),)]


# Real ledgers


def test_evledger(tmp_path: Path) -> None:
    root = Path(shutil.copytree(DATA / "evledger", tmp_path / "ledger"))
    pairs = """
        with started as (select source, data->>'id' as id, time from events where type = 'com.example.job.start'),
             ended as (select source, data->>'id' as id, time from events where type = 'com.example.job.end')
        select count(*) filter (where ended.id is not null), count(*) filter (where ended.id is null)
        from started left join ended on started.id = ended.id and started.source = ended.source
    """
    for _ in range(2):
        assert rows(root, "select type, count(*) from events group by 1 order by 1") == sorted(
            Counter(record["type"] for record in naive(root)).items()
        )
        assert rows(root, "select chained, count(*) from machines group by 1") == [(False, 2)]
        assert rows(root, "select checksum, prev from events where checksum is not null") == []
        assert rows(root, "select max(time) from events where time < '2026-10-01'")[0][0] == max(
            micros(parse_time(record["time"]))
            for record in naive(root)
            if record["time"] < "2026-10"  # type: ignore[type-var]
        )
        assert rows(root, pairs) == rows(root, pairs, cache=False)
        assert [each.made for each in compact(root)] in ([True], [False])


def test_pipeworks(tmp_path: Path) -> None:
    root = tmp_path / "ledger"
    import_pipeworks(root, DATA / "pipeworks")
    assert rows(root, "select count(*) from turns") == [(120,)]
    complete = (
        "select count(*) from turns where list_has_all(types, ['chat.mechanical_resolution', 'chat.translation'])"
    )
    assert rows(root, complete) == [(107,)]
    assert rows(root, "select count(*) from events where type like 'chat.%' and ipc_hash is null") == [(13,)]


# What is damaged, and what grows


def test_a_damaged_line_is_told_and_passed_over(tmp_path: Path) -> None:
    root = write(tmp_path / "ledger", count=12)
    path = root / "m1" / "2026-09.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[3] = b"\xff" + lines[3][1:]
    path.write_bytes(b"\n".join(lines))
    for _ in range(2):
        result = Reader(root).sql("select count(*), count(distinct a.id) from events a join events using (id)")
        assert list(result) == [(len(naive(root)),) * 2]
        assert [(fault.path, fault.offset) for fault in result.faults] == [(path, sum(map(len, lines[:3])) + 3)]
        assert isinstance(result.faults[0], FormatError)
        list(compact(root))


def test_a_ledger_that_grows_is_seen_as_it_was_at_the_call(root: Path) -> None:
    stop = threading.Event()
    with otledger.open_sync(root, machine="m1", max_segment=20_000) as ledger:
        ledger.append("begin")

        def work() -> None:
            while not stop.is_set():
                ledger.append("tick", {"fill": "x" * 200})

        thread = threading.Thread(target=work)
        thread.start()
        try:
            counts = []
            for _ in range(15):
                query = "select count(*), max(seq) + 1, (select count(*) from events) from events"
                [(count, numbered, again)] = rows(root, query)
                assert count == numbered == again
                counts.append(count)
                if numbered > 200:
                    list(compact(root))
        finally:
            stop.set()
            thread.join()
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]
    assert len(list((root / "m1" / ".cache").glob("*.parquet"))) > 1
    assert rows(root, "select count(*) from events") == [(len(naive(root)),)]


# Limits


ESCAPES = {
    "read_csv": "select * from read_csv('{file}')",
    "by name": "select * from '{file}'",
    "read_text": "select * from read_text('{file}')",
    "read_blob": "select * from read_blob('{file}')",
    "read_json": "select * from read_json('{file}')",
    "parquet": "select * from read_parquet('{file}')",
    "glob": "select * from glob('/*')",
    "sniff": "select * from sniff_csv('{file}')",
    "query": "select * from query('select * from read_csv(''{file}'')')",
    "copy": "copy (select 1) to '{new}'",
    "copy in explain": "explain analyze copy (select 1) to '{new}'",
    "query copy": "select * from query('copy (select 1) to ''{new}''')",
    "export": "export database '{new}'",
    "import": "import database '{new}'",
    "attach": "attach '{new}' as other",
    "create": "create table t as select 1",
    "create in explain": "explain create table t as select 1",
    "view": "create or replace view events as select 1",
    "insert": "insert into events values (1)",
    "delete": "delete from events",
    "drop": "drop view events",
    "install": "install httpfs",
    "load": "load httpfs",
    "set": "set enable_external_access = true",
    "memory": "set memory_limit = '100GB'",
    "pragma": "pragma enable_profiling = 'json'",
    "profile": "select * from enable_profiling(save_location => '{new}')",
    "logging": "select * from enable_logging(storage => 'file', storage_path => '{new}')",
    "call": "call pragma_version()",
    "two": "select 1; copy (select 1) to '{new}'",
    "none": "-- nothing",
    "python": "select * from secret",
    "environment": "select getenv('HOME')",
    "secret": "create secret (type s3)",
    "url": "select * from read_csv('http://127.0.0.1:1/x.csv')",
}


@pytest.mark.parametrize("name", ESCAPES)
def test_sql_reads_the_ledger_and_nothing_else(made: Path, tmp_path: Path, name: str) -> None:
    secret = [("a frame of Python must not be seen",)]
    file, new = tmp_path / "secret.csv", tmp_path / "new"
    file.write_text("word\nsesame\n")
    with pytest.raises(QueryError) as raised:
        list(Reader(made).sql(ESCAPES[name].format(file=file, new=new)))
    assert "sesame" not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == [file]
    assert secret


@pytest.mark.parametrize(
    "query",
    ["describe spans", "summarize select 1 as a", "explain select * from events", "show tables", "from events limit 1",
     "with x as (select 1) select * from x", "values (1)", "select 1; -- done", "explain analyze select 1"],
)  # fmt: skip
def test_what_only_reads_is_allowed(made: Path, query: str) -> None:
    assert rows(made, query)


def test_mistakes_are_told_in_a_sentence(made: Path, tmp_path: Path) -> None:
    for query, word in (("selec 1", "selec"), ("select nosuch from events", "nosuch"), ("select * from no", "no")):
        with pytest.raises(QueryError, match=word):
            rows(made, query)
    with pytest.raises(RootError, match="no machine 'm9'"):
        rows(made, "select 1", machines=["m9"])
    with pytest.raises(RootError, match="there is no ledger"):
        rows(tmp_path / "none", "select 1")
    with pytest.raises(ConfigurationError, match="timeout"):
        rows(made, "select 1", timeout=0)
    with pytest.raises(ConfigurationError, match="memory"):
        rows(made, "select 1", memory=5)
    with pytest.raises(QueryError):
        rows(made, "select cast(type as int) from events")


def test_a_query_that_takes_too_long_is_ended(made: Path) -> None:
    with pytest.raises(QueryError, match=r"not done after 0\.3 s"):
        rows(made, "select count(*) from range(1000000000000)", timeout=0.3)


def test_a_query_that_takes_too_much_memory_is_ended(made: Path) -> None:
    with pytest.raises(QueryError, match="more than its 32 MB"):
        rows(made, "select list(range) from range(50000000)", memory=32 << 20)


def test_nothing_is_left_behind(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    Reader(made).sql("select * from events").close()
    with Reader(made).sql("select * from events") as result:
        next(iter(result))
        result.close()
    rows(made, "select * from events")
    with pytest.raises(QueryError):
        rows(made, "select nosuch")
    assert list(tmp_path.iterdir()) == []


# Forms


def test_arrow_and_polars(made: Path) -> None:
    query = "select seq, type, time, data, count(*) over () as n from events where machine = 'm1' order by seq"
    plain = rows(made, query)
    table = Reader(made).sql(query).to_arrow()
    assert [tuple(row.values()) for row in table.to_pylist()] == plain
    assert [str(type) for type in table.schema.types] == ["int64", "string", "timestamp[us]", "string", "int64"]
    assert Reader(made).sql(query).to_polars().rows() == plain
    assert [row for batch in Reader(made).sql(query).batches() for row in batch.to_pylist()] == table.to_pylist()
    assert Reader(made).sql("select 1 as a where false").to_arrow().num_rows == 0


def test_parameters(made: Path) -> None:
    assert rows(made, "select count(*) from events where type = ?", ["t.1"]) == rows(
        made, "select count(*) from events where type = $type", {"type": "t.1"}
    )
    assert Reader(made).sql("select count(*) as n from events where seq < ?", [5]).to_arrow().to_pylist() == [{"n": 10}]
    with pytest.raises(QueryError):
        rows(made, "select ?", [])


@pytest.mark.parametrize(("module", "extra"), [("duckdb", "sql"), ("pyarrow.dataset", "sql"), ("polars", "polars")])
def test_a_missing_package_names_its_extra(
    made: Path, monkeypatch: pytest.MonkeyPatch, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match=rf"pip install 'otledger\[{extra}\]'"):
        Reader(made).sql("select 1").to_polars()


def test_importing_a_reader_loads_none_of_it(script: Script) -> None:
    code = """
        import sys, otledger
        otledger.Reader, otledger.open
        print([name for name in ("duckdb", "pyarrow", "polars", "otledger.query") if name in sys.modules])
    """
    assert script(code).communicate()[0] == "[]\n"


# The command


def run(*arguments: object, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "otledger", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small") / "ledger"
    with otledger.open_sync(root, machine="m1") as ledger:
        ledger.append("order.placed", {"id": 7, "text": 'a\x1b[31m,"b'}, time=START)
        ledger.append("order.paid", {"id": 2**63}, time=START + 1500)
    return root


def test_the_command_writes_tables_json_and_csv(small: Path) -> None:
    query = (
        "select seq, type, time, data, null as nothing, 1.50 as d, 'nan'::float as f from events where seq in (1, 2)"
    )
    table = run("sql", query, "--root", small)
    assert (table.returncode, table.stderr) == (0, "")
    head, first, second = table.stdout.splitlines()
    assert head.split() == ["seq", "type", "time", "data", "nothing", "d", "f"]
    assert first.split()[:3] == ["1", "order.placed", "2026-09-21T14:13:20Z"]
    assert '"b' in first
    assert second.split()[2] == "2026-09-21T14:13:20.000001Z"
    lines = run("sql", "-", "--json", "--root", small, stdin=query).stdout.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"seq": 1, "type": "order.placed", "time": "2026-09-21T14:13:20Z", "data": {"id": 7, "text": 'a\x1b[31m,"b'},
         "nothing": None, "d": 1.5, "f": None},
        {"seq": 2, "type": "order.paid", "time": "2026-09-21T14:13:20.000001Z", "data": {"id": 2**63},
         "nothing": None, "d": 1.5, "f": None},
    ]  # fmt: skip
    done = run("sql", "select data->>'text' as t, type from events where seq = 1", "--csv", "--root", small)
    assert done.stdout == 't,type\n"a\x1b[31m,""b",order.placed\n'


def test_the_command_writes_parquet_and_overwrites_nothing(small: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.parquet"
    done = run("sql", "select seq, type, data from events order by seq", "--parquet", file, "--root", small)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [row["type"] for row in pq.read_table(file).to_pylist()][1:3] == ["order.placed", "order.paid"]
    again = run("sql", "select 1", "--parquet", file, "--root", small)
    assert again.returncode == 2
    assert "nothing is overwritten" in again.stderr
    assert os.listdir(tmp_path) == ["out.parquet"]


def test_exit_codes_and_one_line_of_error(small: Path, tmp_path: Path) -> None:
    for arguments, code, word in (
        (["select 1 where false"], 1, ""),
        (["drop view events"], 2, "DROP is not allowed"),
        (["select count(*) from range(1000000000000)", "--timeout", "0.2"], 2, "not done after 0.2 s"),
        (["select 1", "--memory", "much"], 2, "no size"),
        (["select 1", "--json", "--csv"], 2, "cannot be combined"),
    ):
        done = run("sql", *arguments, "--root", small)
        assert done.returncode == code, done
        assert word in done.stderr
        assert len(done.stderr.splitlines()) == (1 if word else 0), done.stderr
    damaged = Path(shutil.copytree(small, tmp_path / "damaged"))
    [path] = (damaged / "m1").glob("*.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"type":"order.paid"', b'"type":"order.paid'))
    done = run("sql", "select count(*) from events", "--json", "--root", damaged)
    assert done.returncode == 3
    assert json.loads(done.stdout)
    assert "not a record" in done.stderr


def test_an_explained_query_is_shown_as_a_drawing(small: Path) -> None:
    done = run("sql", "explain select count(*) from events", "--root", small)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 3


def test_time_is_in_utc(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    now = datetime.now(UTC).replace(tzinfo=None)
    [(hours,)] = rows(small, "select date_diff('second', time, ?) from events where seq = 1", [now])
    assert hours == (now - datetime(2026, 9, 21, 14, 13, 20)) // timedelta(seconds=1)
    assert rows(small, "select count(*) from events where time > now() - interval 1 day and seq = 0") == [(1,)]
