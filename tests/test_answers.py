"""All ways to ask a ledger give the same answer: by index, by scanning, by SQL, and by a reader of thirty lines.

On ledgers with lost ends, records in any order, traces that stand among each other, several machines; and on one that
is written, compacted, repaired, and robbed of its cache while it is read.
"""

import asyncio
import contextlib
import json
import math
import random
import shutil
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import otledger
from otledger import Filter, Reader, index
from otledger.errors import ConfigurationError, LedgerError
from otledger.predecessors import import_pipeworks
from otledger.query.compacting import compact
from otledger.query.digest import digest
from otledger.query.scan import Selection
from otledger.query.stats import stats
from otledger.record import Record, parse_time
from otledger.repair import carry_out, plan
from otledger.replay import Replay
from otledger.trace import Trace, merge
from otledger.turns import Turns
from tests import generated
from tests.conftest import Script
from tests.test_replay import generate

DATA = Path(__file__).with_name("data")
Json = dict[str, Any]
Place = tuple[str, int]
"""The machine and the number of a record."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells and runs so small that little ledgers have many of them."""
    for name, value in {"CELL": 4096, "CELLS": 8, "LAG": 8192, "RUN_BYTES": 65_536}.items():
        monkeypatch.setattr(index, name, value)


@pytest.fixture(params=["odd 1", "odd 2", "odd 3", "shared 1", "shared 2", "real evledger", "real pipeworks"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Odd: whatever a line may hold, in no order. Shared: traces over three machines. Real: copies of real ones."""
    kind, seed = request.param.split()
    root = tmp_path / "ledger"
    if seed == "evledger":
        return Path(shutil.copytree(DATA / seed, root))
    if seed == "pipeworks":
        import_pipeworks(root, DATA / seed)
        return root
    if kind == "odd":
        return generated.write(root, seed=int(seed), machines=("m1", "m2", "m3"), count=30)
    generate(root, ("m1", "m2", "m3"), 60, int(seed), lost=0.2)
    return root


# The naive reader, over `generated.naive`


def keys(record: Json) -> Iterator[tuple[str, str]]:
    """What a record can be found by."""
    yield "id", record["id"]
    if "ipchash" in record:
        yield "ipc_hash", record["ipchash"]
    if "traceparent" in record:
        yield "trace_id", record["traceparent"].split("-")[1]
        yield "span_id", record["traceparent"].split("-")[2]


def spans_of(records: Iterable[Json]) -> dict[tuple[str, str], Json]:
    """One payload a span: that of an end, else that of its start."""
    found: dict[tuple[str, str], Json] = {}
    for record in records:
        if record["type"] in ("otel.span.start", "otel.span.end") and "traceparent" in record:
            _, trace, span, _ = record["traceparent"].split("-")
            if record["type"] == "otel.span.end" or (trace, span) not in found:
                found[trace, span] = {**record["data"], "machine": record["machine"]}
    return found


def traces_of(records: Iterable[Json]) -> dict[str, tuple[Any, ...]]:
    """Spans, errors, unfinished ones, start, end, machines."""
    traces: dict[str, list[Json]] = defaultdict(list)
    for (trace, _), data in spans_of(records).items():
        traces[trace].append(data)
    return {
        trace: (
            len(own),
            sum(data.get("status", {}).get("code") == "ERROR" for data in own),
            sum("end" not in data for data in own),
            min(data["start"] for data in own),
            max(data.get("end", data["start"]) for data in own),
            sorted({data["machine"] for data in own}),
        )
        for trace, own in traces.items()
    }


def turns_of(records: Iterable[Json]) -> dict[str, tuple[Any, ...]]:
    """Records, start, end, types, machines."""
    turns: dict[str, list[Json]] = defaultdict(list)
    for record in records:
        if "ipchash" in record:
            turns[record["ipchash"]].append(record)
    return {
        turn: (
            len(own),
            min(each["data"]["start"] if each["type"] == "otel.span.end" else parse_time(each["time"]) for each in own),
            max(parse_time(each["time"]) or 0 for each in own),
            sorted({each["type"] for each in own}),
            sorted({each["machine"] for each in own}),
        )
        for turn, own in turns.items()
    }


# The other ways


def places(records: Iterable[Record]) -> list[Place]:
    return sorted((record.machine, record.seq) for record in records)


def read(root: Path, wanted: Filter) -> list[Place]:
    """By index and by scanning, with and without an event loop: all the same, in the same order."""
    lines = [record.line for record in Reader(root).records(wanted)]

    async def collect(**options: Any) -> list[bytes]:
        return [record.line async for record in Reader(root, **options).arecords(wanted)]

    assert [record.line for record in Reader(root, index=False).records(wanted)] == lines
    assert asyncio.run(collect()) == lines
    assert asyncio.run(collect(index=False)) == lines
    return sorted((record["machine"], record["seq"]) for record in map(json.loads, lines))


def rows(root: Path, query: str, **options: Any) -> list[tuple[Any, ...]]:
    return list(Reader(root).sql(query, **options))


def merged(parts: Iterable[Trace]) -> dict[str, tuple[Any, ...]]:
    traces: dict[str, list[Trace]] = defaultdict(list)
    for part in parts:
        if all(span.trace_id for span in part.spans):
            traces[part.trace_id].append(part)
    return {
        id: (
            len(trace.spans),
            len(trace.errors),
            len(trace.unfinished),
            trace.start,
            trace.end,
            sorted(trace.machines),
        )
        for id, trace in ((id, merge(own)) for id, own in traces.items())
    }


def told(turns: Iterable[otledger.turns.Turn]) -> dict[str, tuple[Any, ...]]:
    return {
        turn.ipc_hash: (
            len(turn.records),
            turn.start,
            turn.end,
            sorted(turn.types),
            sorted({record.machine for record in turn.records}),
        )
        for turn in turns
    }


# Agreement


def test_records_are_the_same_whoever_finds_them(ledger: Path) -> None:
    known = generated.naive(ledger)
    expected: dict[tuple[str, str], list[Place]] = defaultdict(list)
    for record in known:
        for key in keys(record):
            expected[key].append((record["machine"], record["seq"]))
    index.rebuild(ledger)
    for _ in range(2):
        for name in ("id", "ipc_hash", "trace_id", "span_id"):
            found: dict[tuple[str, str], list[Place]] = defaultdict(list)
            for key, machine, seq in rows(ledger, f"select {name}, machine, seq from events where {name} is not null"):
                found[name, key].append((machine, seq))
            assert {key: sorted(own) for key, own in found.items()} == {
                key: sorted(own) for key, own in expected.items() if key[0] == name
            }
        # The second time by skeletons.
        list(compact(ledger))
    for name, key in random.Random(1).sample(sorted(expected), 30):
        assert read(ledger, Filter(**{name: key})) == sorted(expected[name, key])
        query = f"select machine, seq from events where {name} = $key order by all"
        assert list(Reader(ledger).sql(query, {"key": key})) == sorted(expected[name, key])
    for name, unknown in (("id", "no"), ("ipc_hash", "no"), ("trace_id", "0" * 32), ("span_id", "0" * 16)):
        assert read(ledger, Filter(**{name: unknown})) == []
        assert rows(ledger, f"select * from events where {name} = '{unknown}'") == []


def test_windows_are_the_same_whoever_cuts_them(ledger: Path) -> None:
    known = [(parse_time(each["time"]), each["machine"], each["seq"]) for each in generated.naive(ledger)]
    times = sorted(time for time, _, _ in known if time is not None and 10**18 < time < 2 * 10**18)
    chance = random.Random(2)
    for _ in range(12):
        since, until = sorted((chance.choice(times), chance.choice(times) + chance.choice((0, 1, 10**9))))
        expected = sorted(each[1:] for each in known if each[0] is not None and since <= each[0] < until)
        assert read(ledger, Filter(since=since, until=until)) == expected
        condition = f"time_ns >= {since} and time_ns < {until}"
        assert rows(ledger, f"select machine, seq from events where {condition} order by all") == expected
        counted = stats(ledger, Selection(since=since, until=until, control=True))
        assert (counted.records, dict(counted.machines)) == (len(expected), Counter(machine for machine, _ in expected))
    assert read(ledger, Filter(since=5, until=5)) == []
    assert stats(ledger, Selection(since=5, until=5)).records == 0


def test_spans_traces_and_turns_are_the_same_whoever_puts_them_together(ledger: Path) -> None:
    known, reader = generated.naive(ledger), Reader(ledger)
    records = list(reader.records())
    random.Random(3).shuffle(records)
    whole: Json = {"grace": math.inf, "hold": None}
    spans = {key: (data["name"], data["start"], data.get("end")) for key, data in spans_of(known).items()}
    found = {
        (span.trace_id, span.span_id): (span.name, span.start, span.end) for span in reader.spans() if span.trace_id
    }
    assert found == spans
    assert not spans or any(end is None for _, _, end in spans.values())
    traces = traces_of(known)
    replay = Replay(**whole)
    shuffled = [item for record in records for item in replay.feed(record) if isinstance(item, Trace)]
    for parts in (reader.traces(), reader.traces(**whole), [*shuffled, *replay.finish()]):
        assert merged(parts) == traces
    turns = turns_of(known)
    gathered = Turns(**whole)
    assert told(reader.turns(**whole)) == turns
    assert told([*(turn for record in records for turn in gathered.feed(record)), *gathered.finish()]) == turns
    for id in random.Random(4).sample(sorted(traces), min(10, len(traces))):
        trace = reader.trace(id)
        assert trace is not None
        assert merged([trace])[id] == traces[id]
        assert trace == Reader(ledger, index=False).trace(id)
        assert {span.span_id for span in trace.spans} | {record.span_id for record in trace.records} == {
            each["traceparent"].split("-")[2] for each in known if id in each.get("traceparent", "")
        }
    for id in random.Random(4).sample(sorted(turns), min(10, len(turns))):
        turn = reader.turn(id)
        assert turn is not None
        assert told([turn])[id] == turns[id]
        assert turn == Reader(ledger, index=False).turn(id)
    for _ in range(2):
        query = "select trace_id, span_id, name, start_ns, end_ns from spans where trace_id is not null"
        assert {row[:2]: row[2:] for row in rows(ledger, query)} == spans
        query = """select trace_id, spans, errors, unfinished, start_ns, end_ns, machines,
                   duration_ns = end_ns - start_ns from traces where trace_id is not null"""
        assert {row[0]: row[1:] for row in rows(ledger, query)} == {id: (*row, True) for id, row in traces.items()}
        query = "select ipc_hash, records, start_ns, end_ns, types, machines from turns"
        assert {row[0]: row[1:] for row in rows(ledger, query)} == turns
        list(compact(ledger))


# Questions that have no answer


def test_a_window_that_ends_before_it_begins_is_refused_by_all(ledger: Path) -> None:
    reader, window = Reader(ledger), {"since": 2, "until": 1}
    ways: list[Callable[[], Any]] = [
        lambda: Filter(**window),
        lambda: Selection(**window),
        lambda: list(reader.spans(**window)),
        lambda: list(reader.traces(**window)),
        lambda: list(reader.turns(**window)),
        lambda: list(reader.pairs("data.id", **window)),
        lambda: stats(ledger, Selection(**window)),
        lambda: digest(ledger, Selection(**window)),
    ]
    for way in ways:
        with pytest.raises(ConfigurationError, match="before it begins"):
            way()


# A ledger that changes


WRITER = """
    import random, sys, time, otledger
    settings = {"machine": sys.argv[2], "durability": "os", "max_segment": 60_000, "min_free": 0}
    with otledger.open_sync(sys.argv[1], **settings) as ledger:
        ledger.append("begun")
        print("go", flush=True)
        for n in range(600):
            with ledger.turn(f"turn-{n % 7}"), ledger.span("outer"):
                ledger.emit("said", {"n": n, "fill": "x" * random.randrange(300)})
            if n % 15 == 0:
                ledger.flush()
                time.sleep(0.1)
"""


def test_a_ledger_that_is_written_and_whose_cache_is_deleted_all_the_time(root: Path, script: Script) -> None:
    writers = [script(WRITER, root, machine) for machine in ("m1", "m2")]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "go\n"
    stop = threading.Event()
    failed: list[BaseException] = []

    def work(step: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                step()
        except BaseException as error:
            failed.append(error)

    def delete() -> None:
        for folder in root.glob("*/.cache"):
            shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.03)

    def make() -> None:
        # Its files may be deleted in its hands.
        with contextlib.suppress(LedgerError, OSError):
            list(compact(root))

    def look_up() -> None:
        wanted = Filter(ipc_hash=f"turn-{random.randrange(7)}")
        query = f"select machine, seq from events where ipc_hash = '{wanted.ipc_hash}'"
        grown = [
            places(Reader(root, index=False).records(wanted)),
            places(Reader(root).records(wanted)),
            sorted(rows(root, query)),
            places(reader.records(wanted)),
            places(turn.records if (turn := reader.turn(wanted.ipc_hash or "")) else ()),
            places(Reader(root, index=False).records(wanted)),
        ]
        for machine in ("m1", "m2"):
            own = [[seq for name, seq in found if name == machine] for found in grown]
            for before, after in pairwise(own):
                assert after[: len(before)] == before
        counts.append(len(grown[-1]))

    reader, counts = Reader(root), list[int]()
    threads = [threading.Thread(target=work, args=(step,)) for step in (delete, make, look_up, look_up)]
    for thread in threads:
        thread.start()
    try:
        for writer in writers:
            assert writer.wait(60) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed, failed
    assert len(counts) > 5
    assert len(list(root.glob("m1/*.jsonl"))) > 3
    known = generated.naive(root)
    for turn in range(7):
        expected = sorted((each["machine"], each["seq"]) for each in known if each.get("ipchash") == f"turn-{turn}")
        assert read(root, Filter(ipc_hash=f"turn-{turn}")) == expected
        assert rows(root, f"select machine, seq from events where ipc_hash = 'turn-{turn}' order by all") == expected


def _half_of(records: Iterator[Any], meanwhile: Callable[[], None], count: int) -> list[Any]:
    found = [next(records) for _ in range(count)]
    meanwhile()
    return [*found, *records]


def by_reader(root: Path, meanwhile: Callable[[], None], on_fault: Callable[[object], None]) -> list[Place]:
    return places(_half_of(Reader(root).records(on_fault=on_fault), meanwhile, 50))


def by_window(root: Path, meanwhile: Callable[[], None], on_fault: Callable[[object], None]) -> list[Place]:
    return places(_half_of(Reader(root).records(Filter(since=1), on_fault=on_fault), meanwhile, 50))


def by_trace(root: Path, meanwhile: Callable[[], None], on_fault: Callable[[object], None]) -> list[Place]:
    spans = _half_of(Reader(root).spans(on_fault=on_fault), meanwhile, 20)
    return sorted((span.machine, span.seq) for span in spans)


def by_sql(root: Path, meanwhile: Callable[[], None], on_fault: Callable[[object], None]) -> list[Place]:
    with Reader(root).sql("select machine, seq from events") as result:
        meanwhile()
        return sorted(result)


def by_stats(root: Path, meanwhile: Callable[[], None], on_fault: Callable[[object], None]) -> list[Place]:
    asked = [meanwhile]

    def progress(*_: int) -> None:
        if asked:
            asked.pop()()

    found = stats(root, Selection(control=True), on_fault=on_fault, progress=progress)
    return sorted((machine, seq) for machine, count in found.machines.items() for seq in range(count))


@pytest.mark.parametrize("way", [by_reader, by_window, by_trace, by_sql, by_stats])
def test_a_ledger_that_is_repaired_while_it_is_read(root: Path, way: Callable[..., list[Place]]) -> None:
    settings: Json = {"machine": "m1", "service": "s", "durability": "os", "min_free": 0}
    with otledger.open_sync(root, **settings, max_segment=20_000) as ledger:
        for n in range(150):
            with ledger.span("work"):
                ledger.emit("said", {"n": n})
    good = sorted((each["machine"], each["seq"]) for each in generated.naive(root))
    ends = {(each["machine"], each["seq"]) for each in generated.naive(root) if each["type"] == "otel.span.end"}
    newest = max((root / "m1").glob("*.jsonl"), key=lambda path: (len(path.name), path.name))
    with newest.open("ab") as file:
        file.write(b"no record\n" * 3 + b'{"specversion":"1.0","id":"01')
    repaired = []

    def repair() -> None:
        repaired.extend(carry_out(root, plan(root), durability="os"))
        with otledger.Journal(root, **settings) as journal:
            journal.append([otledger.Draft("later", {"n": n}) for n in range(20)])

    faults: list[object] = []
    found = way(root, repair, faults.append)
    assert [step.kind for each in repaired for step in each.steps]
    # What was there before is found, and of what came later perhaps some; nothing twice, nothing else.
    after = sorted((each["machine"], each["seq"]) for each in generated.naive(root))
    assert after[: len(good)] == good
    before = sorted(ends) if way is by_trace else good
    assert found[: len(before)] == before
    assert found == sorted(set(found))
    assert set(found) <= set(after)
    assert len(faults) <= 4
    assert places(Reader(root).records()) == after


# Memory


READING = """
    import sys, otledger, pyarrow.compute, pyarrow.dataset, pyarrow.parquet
    from pathlib import Path
    from otledger.index import rebuild
    from otledger.query.compacting import compact
    from otledger.query.digest import digest
    from otledger.query.stats import stats

    def most():
        status = open("/proc/self/status").read()
        return int(status.partition("VmHWM:")[2].split()[0])

    root = Path(sys.argv[1])
    reader = otledger.Reader(root, index=False)
    next(iter(reader.records()))
    ways = {
        "spans": reader.spans,
        "traces": reader.traces,
        "turns": reader.turns,
        "pairs": lambda: reader.pairs("data.id"),
        "stats": lambda: range(stats(root, cache=False).pairs["job"].seconds.count),
        "digest": lambda: range(digest(root, cache=False).stats.pairs["job"].seconds.count),
        "index": lambda: range(rebuild(root)[0].records // 3),
        "compact": lambda: [each.made for each in compact(root)],
    }
    before = most()
    print(sum(1 for _ in ways[sys.argv[2]]()), (most() - before) // 1024)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed segment of 95 MB: 25,000 turns, each with a span and a pair."""
    root = tmp_path_factory.mktemp("large") / "ledger"
    settings: Json = {"machine": "m1", "service": "s", "durability": "os", "min_free": 0}
    with otledger.open_sync(root, **settings, max_segment=1 << 30) as ledger:
        for n in range(25_000):
            with ledger.turn(f"turn-{n}"), ledger.span("work", attributes={"fill": "x" * 1200}):
                ledger.emit("job.start", {"id": n, "fill": "x" * 1200})
                ledger.emit("job.end", {"id": n})
    with otledger.Journal(root, **settings, max_segment=1000) as journal:
        journal.append([otledger.Draft("later")])
    assert len(list(root.glob("m1/*.jsonl"))) == 2
    return root


@pytest.mark.parametrize("way", ["spans", "traces", "turns", "pairs", "stats", "digest", "index", "compact"])
def test_much_is_read_in_little_memory(large: Path, script: Script, way: str) -> None:
    process = script(READING, large, way)
    count, mib = map(int, process.communicate(timeout=120)[0].split())
    assert process.returncode == 0
    assert count == 1 if way == "compact" else count >= 25_000
    assert mib < (75 if way == "compact" else 60)
