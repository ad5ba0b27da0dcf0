"""Reading: order, filters, faults, bounded memory, following, and ledgers of evledger."""

import asyncio
import errno
import gc
import heapq
import json
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import otledger
from otledger import Filter, Reader
from otledger.errors import ConfigurationError, FormatError, RootError
from otledger.filter import parse_when
from otledger.follow import Cursor
from tests.conftest import Script

# ruff: noqa: ASYNC240
# Local files of a test block nobody.

Json = dict[str, Any]
CheckAll = Callable[[Path], dict[str, list[Json]]]

EVLEDGER = Path(__file__).parent / "data" / "evledger"
HASH = "ab" * 32


async def collect(records: AsyncIterator[otledger.Record]) -> list[otledger.Record]:
    return [record async for record in records]


@pytest.fixture(params=["sync", "async"])
def read(request: pytest.FixtureRequest) -> Callable[..., list[otledger.Record]]:
    """Read all records, in both ways."""

    def reading(root: Path, *arguments: Any, **options: Any) -> list[otledger.Record]:
        reader = Reader(root)
        if request.param == "sync":
            return list(reader.records(*arguments, **options))
        return asyncio.run(collect(reader.arecords(*arguments, **options)))

    return reading


Read = Callable[..., list[otledger.Record]]


def ids(records: Any) -> list[str]:
    return [record["id"] if isinstance(record, dict) else record.id for record in records]


def nanoseconds(text: str) -> int:
    whole = datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    return int(whole.timestamp()) * 10**9 + int(text[19:-1].lstrip(".").ljust(9, "0"))


def merged(machines: list[list[Json]]) -> list[Json]:
    """What the order of several machines should be: whoever's next record is the earliest comes first."""
    return list(heapq.merge(*machines, key=lambda record: nanoseconds(record["time"])))


# Records and their order


def test_records_are_what_was_written(root: Path, read: Read, check_all: CheckAll) -> None:
    with otledger.open_sync(root, machine="m1", max_segment=3000) as ledger:
        for n in range(20):
            ledger.append("a", {"n": n, "fill": "é\u2028" * 50}, extensions={"phase": "x"})
    records = read(root)
    expected = check_all(root)["m1"]
    assert [record.to_dict() for record in records] == expected
    assert [list(record.to_dict()) for record in records] == [list(record) for record in expected]
    assert [record.seq for record in records] == list(range(len(expected)))
    assert len(list((root / "m1").glob("*.jsonl"))) > 2
    for record, plain in zip(records, expected, strict=True):
        assert isinstance(record, otledger.Record)
        for name in ("id", "source", "type", "time", "machine", "seq", "checksum", "prev"):
            assert getattr(record, name) == plain[name]
        assert record.data == plain.get("data")
        assert record.synced == plain.get("synced")
        assert record.time_ns == nanoseconds(record.time)
        assert record.extensions == ({"phase": "x"} if record.type == "a" else {})
        assert json.loads(record.line) == plain
        assert record.line.endswith(b"}\n")


def test_ids_of_trace_and_span(root: Path, read: Read) -> None:
    with otledger.open_sync(root) as ledger:
        with ledger.span("s") as span:
            ledger.emit("inside", subject="x", ipc_hash=HASH)
        ledger.emit("outside")
    found = {record.type: record for record in read(root)}
    for type in ("inside", "otel.span.end"):
        assert (found[type].trace_id, found[type].span_id) == (span.trace_id, span.span_id)
    assert (found["outside"].trace_id, found["outside"].span_id) == (None, None)
    assert (found["inside"].subject, found["inside"].ipc_hash) == ("x", HASH)
    assert found["outside"].data is None


def test_machines_are_merged_by_time_and_each_keeps_its_order(root: Path, read: Read, check_all: CheckAll) -> None:
    base = 1_700_000_000 * 10**9
    times = {"m1": [1, 5, 3, 9, 9, 2], "m2": [2, 2, 8, 1, 10], "m3": []}
    for machine, own in times.items():
        with otledger.open_sync(root, machine=machine, max_segment=900) as ledger:
            for at in own:
                ledger.append("a", at, time=base + at)
    records = read(root)
    for machine in times:
        own = [record for record in records if record.machine == machine]
        assert [record.seq for record in own] == list(range(len(own)))
        assert [record.data for record in own if record.type == "a"] == times[machine]
    assert ids(records) == ids(merged(list(check_all(root).values())))
    assert ids(read(root, machines=["m2"])) == [record.id for record in records if record.machine == "m2"]
    assert ids(read(root, machines=["m3", "m1"])) == ids(merged([check_all(root)["m3"], check_all(root)["m1"]]))
    assert read(root, machines=[]) == []


def test_what_is_no_ledger(root: Path, read: Read) -> None:
    with pytest.raises(RootError, match="no ledger"):
        read(root)
    with pytest.raises(RootError, match="no ledger"):
        Reader(root).machines()
    root.mkdir()
    assert read(root) == []
    assert Reader(root).machines() == []
    with otledger.open_sync(root, machine="m1"):
        pass
    with pytest.raises(RootError, match=r"no machine 'm2'; there are: m1"):
        read(root, machines=["m2"])


def test_other_names_are_ignored(root: Path, read: Read) -> None:
    with otledger.open_sync(root, machine="m1") as ledger:
        ledger.append("a")
    (segment,) = (root / "m1").glob("*.jsonl")
    before = ids(read(root))
    for name in (
        "notes.txt",
        "2026-13.jsonl",
        "2026-11.0.jsonl",
        "2026-11.jsonl.bak",
        "x2026-11.jsonl",
        "2026-1.jsonl",
    ):
        (root / "m1" / name).write_bytes(b"nonsense\n")
    for name in ("UPPER", ".hidden", "a..b", "with space"):
        (root / name).mkdir()
        shutil.copy(segment, root / name)
    (root / "file").write_bytes(b"nonsense\n")
    (root / "link").symlink_to(root / "m1")
    assert Reader(root).machines() == ["m1"]
    assert ids(read(root)) == before


def test_what_a_successor_caps_does_not_count(
    root: Path, read: Read, check_all: CheckAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fdatasync
    with otledger.open_sync(root, machine="m1") as ledger:
        ledger.append("before")

        def fdatasync(fd: int) -> None:
            monkeypatch.setattr(os, "fdatasync", real)
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "fdatasync", fdatasync)
        receipt = ledger.append("twice in the files")
    assert receipt is not None
    files = sorted((root / "m1").glob("*.jsonl"))
    assert sum(path.read_bytes().count(receipt.id.encode()) for path in files) == 2
    assert ids(read(root)) == ids(check_all(root)["m1"])
    assert ids(read(root)).count(receipt.id) == 1


def test_reading_beside_a_writer(root: Path, read: Read) -> None:
    with otledger.open_sync(root, machine="m1", max_segment=20_000) as ledger:
        for n in range(20):
            for _ in range(20):
                ledger.emit("a", "x" * 100)
            if n % 3 == 0:
                ledger.flush()
            records = read(root)
            assert [record.seq for record in records] == list(range(len(records)))
            assert len(records) > 20 * (n // 3 * 3)


async def test_many_readers_at_once(root: Path) -> None:
    async with otledger.open(root, machine="m1") as ledger:
        for n in range(500):
            await ledger.emit("a", n)
        await ledger.flush()
        found = await asyncio.gather(*(collect(ledger.reader.arecords(Filter(type="a"))) for _ in range(5)))
    assert [[record.data for record in records] for records in found] == [list(range(500))] * 5


async def test_reading_that_is_broken_off_leaves_nothing_open(root: Path) -> None:
    for machine in ("m1", "m2"):
        with otledger.open_sync(root, machine=machine) as ledger:
            for n in range(100):
                ledger.emit("a", n)
    for record in Reader(root).records():
        assert record
        break
    async with aclosing(Reader(root).arecords()) as records:  # type: ignore[type-var]
        async for record in records:
            assert record
            break
    gc.collect()
    await asyncio.sleep(0.05)
    assert [path for path in map(link, os.listdir("/proc/self/fd")) if path.startswith(str(root))] == []


def link(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


# Filters


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with something for every filter."""
    root = tmp_path_factory.mktemp("varied") / "ledger"
    base = 1_700_000_000 * 10**9
    for machine in ("m1", "m2"):
        with otledger.open_sync(root, machine=machine) as ledger:
            for n in range(30):
                with ledger.span(f"span {n}"):
                    ledger.emit(
                        ("order.placed", "order.paid", "Order.Paid", "note", "order")[n % 5],
                        {"n": n, "text": ("École", "plain", 'a "quoted" \\ text', "ÉCOLE", "STRASSE ß")[n % 5]},
                        subject=("tenant-1", "é", 'q"q', None)[n % 4],
                        source=(None, "/other", "urn:x")[n % 3],
                        ipc_hash=(None, HASH, "é\\")[n % 3],
                        time=base + n,
                    )
    return root


def expected(root: Path, wanted: Filter, check_all: CheckAll) -> list[str]:
    """What a filter should let through, told in other words than the library's."""

    def trace(record: Json) -> str | None:
        return record["traceparent"].split("-")[1] if "traceparent" in record else None

    def fits(record: Json) -> bool:
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        at = nanoseconds(record["time"])
        return (
            (wanted.type is None or fnmatchcase(record["type"], wanted.type))
            and (wanted.source is None or record["source"] == wanted.source)
            and (wanted.subject is None or record.get("subject") == wanted.subject)
            and (wanted.ipc_hash is None or record.get("ipchash") == wanted.ipc_hash)
            and (wanted.trace_id is None or trace(record) == wanted.trace_id)
            and (wanted.since is None or at >= wanted.since)
            and (wanted.until is None or at < wanted.until)
            and (wanted.text is None or wanted.text.lower() in text.lower())
            and (wanted.control or not record["type"].startswith(("otledger.", "otel.resource")))
        )

    return ids(merged([[record for record in records if fits(record)] for records in check_all(root).values()]))


BASE = 1_700_000_000 * 10**9
FILTERS = [
    Filter(),
    Filter(type="order.*"),
    Filter(type="order.p?id"),
    Filter(type="order"),
    Filter(type="[Oo]rder.Paid"),
    Filter(type="otel.*"),
    Filter(source="/other"),
    Filter(source="urn:x"),
    Filter(subject="tenant-1"),
    Filter(subject="é"),
    Filter(subject='q"q'),
    Filter(ipc_hash=HASH),
    Filter(ipc_hash="é\\"),
    Filter(since=BASE + 3),
    Filter(until=BASE + 3),
    Filter(since=BASE + 3, until=BASE + 7),
    Filter(text="plain"),
    Filter(text="PLAIN"),
    Filter(text="tenant-1"),
    Filter(text="École"),
    Filter(text="école"),
    Filter(text="ÉCOLE"),
    Filter(text="ß"),
    Filter(control=False),
    Filter(type="order.*", subject="tenant-1", source="/other", text="plain", since=BASE, until=BASE + 1000),
]


@pytest.mark.parametrize("wanted", FILTERS, ids=repr)
def test_each_filter(varied: Path, read: Read, check_all: CheckAll, wanted: Filter) -> None:
    expectation = expected(varied, wanted, check_all)
    assert expectation
    assert ids(read(varied, wanted)) == expectation


def test_a_filter_of_a_trace_and_of_machines(varied: Path, read: Read, check_all: CheckAll) -> None:
    trace_id = next(record.trace_id for record in read(varied) if record.type == "note")
    wanted = Filter(trace_id=trace_id)
    assert 2 <= len(read(varied, wanted)) <= 3
    assert ids(read(varied, wanted)) == expected(varied, wanted, check_all)
    assert {record.machine for record in read(varied, Filter(type="note"), machines=["m2"])} == {"m2"}
    assert read(varied, Filter(trace_id="0" * 32)) == []


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    wanted=st.builds(
        Filter,
        type=st.none() | st.sampled_from(["order*", "*", "note", "[!o]*", "ORDER*", "order.p*"]),
        source=st.none() | st.sampled_from(["/other", "urn:x", "/m1/pytest"]),
        subject=st.none() | st.sampled_from(["tenant-1", "é", "no"]),
        ipc_hash=st.none() | st.sampled_from([HASH, "é\\"]),
        since=st.none() | st.integers(BASE - 2, BASE + 15),
        until=st.none() | st.integers(BASE + 15, BASE + 32),
        text=st.none() | st.sampled_from(["a", "E", "é", "order", "tenant", "ss", ""]),
        control=st.booleans(),
    )
)
def test_filters_together(varied: Path, check_all: CheckAll, wanted: Filter) -> None:
    assert ids(Reader(varied).records(wanted)) == expected(varied, wanted, check_all)


NOW = nanoseconds("2026-11-21T12:00:00Z")


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("now", NOW),
        ("90s", NOW - 90 * 10**9),
        ("15m", NOW - 15 * 60 * 10**9),
        ("1.5h", NOW - 5400 * 10**9),
        ("3d", nanoseconds("2026-11-18T12:00:00Z")),
        ("1w", nanoseconds("2026-11-14T12:00:00Z")),
        ("250ms", NOW - 250_000_000),
        ("2026-11-21", nanoseconds("2026-11-21T00:00:00Z")),
        ("2026-11", nanoseconds("2026-11-01T00:00:00Z")),
        ("2026", nanoseconds("2026-01-01T00:00:00Z")),
        ("2026-11-21T03:04:05", nanoseconds("2026-11-21T03:04:05Z")),
        ("2026-11-21T03:04:05.123456789Z", nanoseconds("2026-11-21T03:04:05.123456789Z")),
        ("2026-11-21T03:04:05+01:00", nanoseconds("2026-11-21T02:04:05Z")),
        ("2026-11-21t03:04:05z", nanoseconds("2026-11-21T03:04:05Z")),
        (" 1s ", NOW - 10**9),
    ],
)
def test_instants_for_people(text: str, instant: int) -> None:
    assert parse_when(text, NOW) == instant


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13", "2026-11-31", "5", "5x", "-3h", "12:00", "٣d"])
def test_what_is_no_instant(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is no time: give 2h"):
        parse_when(text, NOW)


# Faults


@pytest.fixture
def written(root: Path) -> Path:
    with otledger.open_sync(root, machine="m1") as ledger:
        for n in range(10):
            ledger.append("a", n)
    (segment,) = (root / "m1").glob("*.jsonl")
    return segment


BAD_LINES = [
    b"nonsense\n",
    b"\n",
    b'{"a":1}\n',
    b"[1]\n",
    b'{"specversion":"1.0","id":7}\n',
    b"\0" * 100 + b"\n",
    b'"\xff\xfe"\n',
    b"[" * 100_000 + b"\n",
    b'{"specversion":"1.0","id":"x","source":"/a","type":"t","time":"x","machine":"m1","seq":"1"}\n',
    b"x" * ((16 << 20) + 5) + b"\n",
]


@pytest.mark.parametrize("bad", BAD_LINES, ids=lambda bad: repr(bad[:12]))
def test_a_bad_line_is_reported_with_its_place_and_swallows_no_other(
    root: Path, read: Read, written: Path, bad: bytes
) -> None:
    lines = written.read_bytes().splitlines(keepends=True)
    before = ids(read(root))
    written.write_bytes(b"".join([*lines[:5], bad, *lines[5:]]))
    offset = sum(map(len, lines[:5]))
    with pytest.raises(FormatError, match=rf"{written.name}, offset {offset}:.*otledger verify") as caught:
        read(root)
    assert (caught.value.path, caught.value.offset) == (written, offset)
    faults: list[FormatError] = []
    assert ids(read(root, on_fault=faults.append)) == before
    assert faults[0].offset == offset
    assert len(faults) == 1 or len(bad) > 16 << 20


@pytest.mark.parametrize("tail", [b"{", b'{"specversion":"1.0"', b"\0" * 4096, b"\xff"])
def test_a_torn_last_line_is_passed_over(root: Path, read: Read, written: Path, tail: bytes) -> None:
    before = ids(read(root))
    with written.open("ab") as file:
        file.write(tail)
    assert ids(read(root)) == before


def test_a_whole_record_without_its_end_is_torn(root: Path, read: Read, written: Path) -> None:
    before = ids(read(root))
    written.write_bytes(written.read_bytes()[:-1])
    assert ids(read(root)) == before[:-1]


@pytest.mark.parametrize("how", ["sync", "async", "follow"])
def test_a_giant_file_without_a_newline_needs_little_memory(
    root: Path, script: Script, written: Path, how: str
) -> None:
    size = 200 << 20
    with written.open("ab") as file:
        file.truncate(size)  # zeros, that take no place
    program = """
        import asyncio, sys, otledger
        def most():
            status = open("/proc/self/status").read()
            return int(status.partition("VmHWM:")[2].split()[0])
        from otledger.errors import FormatError
        how, root = sys.argv[1:]
        reader = otledger.Reader(root)
        faults = []
        async def run():
            if how == "async":
                return [record async for record in reader.arecords(on_fault=faults.append)]
            found = []
            try:
                async for record in reader.follow("start"):
                    found.append(record)
            except FormatError as error:
                faults.append(error)
            return found
        before = most()
        records = list(reader.records(on_fault=faults.append)) if how == "sync" else asyncio.run(run())
        print(len(records), len(faults), (most() - before) // 1024)
    """
    process = script(program, how, root)
    records, faults, mib = map(int, process.communicate(timeout=60)[0].split())
    assert process.returncode == 0
    assert records >= 12
    assert faults >= (1 if how == "follow" else size // (17 << 20))
    assert mib < 140


def test_many_records_need_little_memory(root: Path, script: Script) -> None:
    with otledger.open_sync(root, machine="m1", durability="os") as ledger:
        for n in range(40_000):
            ledger.emit("a", {"n": n, "fill": "x" * 1000})
    program = """
        import asyncio, sys, otledger
        def most():
            status = open("/proc/self/status").read()
            return int(status.partition("VmHWM:")[2].split()[0])
        reader = otledger.Reader(sys.argv[1])
        async def count():
            return sum([1 async for record in reader.arecords(otledger.Filter(type="a"))])
        next(iter(reader.records()))
        before = most()
        print(sum(1 for record in reader.records(otledger.Filter(type="a"))), asyncio.run(count()))
        print((most() - before) // 1024)
    """
    sync, asynchronous, mib = map(int, script(program, root).communicate(timeout=60)[0].split())
    assert sync == asynchronous == 40_000
    assert mib < 30  # of 52 MB


# evledger


def test_a_ledger_of_evledger_is_read(read: Read, tmp_path: Path) -> None:
    root = tmp_path / "evledger"
    shutil.copytree(EVLEDGER, root)
    plain = {
        folder.name: [
            json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_bytes().splitlines()
        ]
        for folder in sorted(root.iterdir())
    }
    assert sum(map(len, plain.values())) == 400
    records = read(root)
    assert [record.to_dict() for record in records] == merged(list(plain.values()))
    assert {record.machine for record in records} == {"laptop", "ci-1"} == set(Reader(root).machines())
    assert all((record.prev, record.checksum) == ("", "") for record in records)
    by_id = {event["id"]: event for events in plain.values() for event in events}
    assert all(record.data == by_id[record.id].get("data") for record in records)
    assert all(record.time_ns == nanoseconds(record.time) for record in records)
    one = read(root, Filter(type="task.*"), machines=["laptop"])
    assert ids(one) == [event["id"] for event in plain["laptop"] if event["type"].startswith("task.")] != []


def test_evledgers_partitions_stand_beside_ours(read: Read, tmp_path: Path, check_all: CheckAll) -> None:
    root = tmp_path / "both"
    shutil.copytree(EVLEDGER, root)
    root.chmod(0o700)
    with otledger.open_sync(root, machine="m1") as ledger:
        ledger.append("a")
    assert set(check_all(root)) == {"m1"}
    records = read(root)
    assert len(records) == 400 + len(check_all(root)["m1"])
    assert Reader(root).machines() == ["ci-1", "laptop", "m1"]


# Following


class Following:
    """A follower in a task of its own, and what it gave."""

    def __init__(self, root: Path, *arguments: Any, **options: Any) -> None:
        self.follower = Reader(root).follow(*arguments, **options)
        self._found: asyncio.Queue[otledger.Record | FormatError] = asyncio.Queue()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            async for record in self.follower:
                await self._found.put(record)
        except FormatError as error:
            await self._found.put(error)

    async def take(self, count: int, seconds: float = 10) -> list[otledger.Record]:
        found: list[otledger.Record] = []
        async with asyncio.timeout(seconds):
            while len(found) < count:
                item = await self._found.get()
                if isinstance(item, FormatError):
                    raise item
                found.append(item)
        return found

    async def until(self, type: str, seconds: float = 10) -> list[otledger.Record]:
        """The next records up to one of a type."""
        found = await self.take(1, seconds)
        while found[-1].type != type:
            found += await self.take(1, seconds)
        return found

    async def nothing(self, seconds: float = 0.2) -> bool:
        await asyncio.sleep(seconds)
        return self._found.empty()

    async def aclose(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.follower.aclose()


@pytest.fixture(params=["inotify", "polling"])
def watching(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With inotify, and where there is none."""
    if request.param == "polling":

        def absent(*_: Any, **__: Any) -> Any:
            raise OSError("no such library")

        monkeypatch.setattr("otledger.follow.ctypes.CDLL", absent)
    return str(request.param)


ORDERS = Filter(type="a")


async def test_follow_from_the_start_and_on(root: Path, watching: str, check_all: CheckAll) -> None:
    async with otledger.open(root, machine="m1") as ledger:
        for n in range(5):
            await ledger.append("a", n)
        async with aclosing(Following(root, "start")) as following:
            first = await following.take(6)
            assert [record.seq for record in first] == list(range(6))
            receipts = []
            for n in range(5, 10):
                receipt = await ledger.append("a", n)
                receipts.append(receipt)
                found = await following.until("a", 5)
                assert receipt is not None
                assert (found[-1].seq, found[-1].data) == (receipt.seq, n)
    assert len(check_all(root)["m1"]) >= 11


async def test_follow_from_the_end(root: Path, watching: str) -> None:
    async with otledger.open(root, machine="m1") as ledger:
        await ledger.append("a", "old")
        async with aclosing(Following(root, "end", ORDERS)) as following:
            await ledger.append("b", "filtered")
            await ledger.append("a", "new")
            assert [record.data for record in await following.take(1)] == ["new"]


async def test_inotify_is_quick(root: Path) -> None:
    async with otledger.open(root, machine="m1") as ledger:
        await ledger.append("a")
        async with aclosing(Following(root, "end", ORDERS)) as following:
            quick = 0
            for n in range(10):
                taking = asyncio.create_task(following.take(1))
                await asyncio.sleep(0.06)
                await ledger.append("a", n)
                done, _ = await asyncio.wait([taking], timeout=0.5)  # long before it would look by itself
                quick += bool(done)
                assert (await taking)[0].data == n
    assert quick >= 8


@pytest.mark.parametrize("cut", ["size", "month"])
async def test_follow_across_a_cut(root: Path, watching: str, cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: Json = {"max_segment": 2500} if cut == "size" else {}
    async with otledger.open(root, machine="m1", **options) as ledger:  # noqa: SIM117
        async with aclosing(Following(root, "start", ORDERS)) as following:
            seen = []
            for n in range(30):
                if n == 15 and cut == "month":
                    monkeypatch.setattr("otledger.clock.believed_month", lambda *_: "2099-12")
                await ledger.append("a", n)
                if n % 4 == 0:
                    seen += await following.take(n + 1 - len(seen))
            seen += await following.take(30 - len(seen))
            assert [record.data for record in seen] == list(range(30))
            assert len(list((root / "m1").glob("*.jsonl"))) >= 2
            # And one that begins when all the segments are there.
            async with aclosing(Following(root, "start", ORDERS)) as late:
                assert [record.data for record in await late.take(30)] == list(range(30))


async def test_a_machine_that_appears_is_read_from_its_beginning(root: Path, watching: str) -> None:
    async with otledger.open(root, machine="m1") as one:
        await one.append("a", "old")
        async with aclosing(Following(root, "end", ORDERS)) as following:
            assert await following.nothing()
            async with otledger.open(root, machine="m2") as two:
                await two.append("a", "first of m2")
                await two.append("a", "second of m2")
                found = await following.take(2)
                assert [(record.machine, record.data) for record in found] == [
                    ("m2", "first of m2"),
                    ("m2", "second of m2"),
                ]
                await one.append("a", "m1 again")
                assert [record.data for record in await following.take(1)] == ["m1 again"]


async def test_a_machine_that_appears_with_records_is_read_from_its_beginning(
    root: Path, tmp_path: Path, watching: str
) -> None:
    for path, machine in ((root, "m1"), (tmp_path / "other", "m2")):
        with otledger.open_sync(path, machine=machine) as ledger:
            ledger.append("a", f"old of {machine}")
    async with aclosing(Following(root, "end", ORDERS)) as following:
        assert await following.nothing()
        (tmp_path / "other" / "m2").rename(root / "m2")
        assert [record.data for record in await following.take(1)] == ["old of m2"]


async def test_only_the_machines_asked_for(root: Path, watching: str) -> None:
    async with otledger.open(root, machine="m1") as one, otledger.open(root, machine="m2") as two:  # noqa: SIM117
        async with aclosing(Following(root, "start", ORDERS, machines=["m2"])) as following:
            await one.append("a", 1)
            await two.append("a", 2)
            assert [record.data for record in await following.take(1)] == [2]
            assert await following.nothing()


async def test_a_cursor_resumes_without_loss_or_repetition(root: Path, check_all: CheckAll) -> None:
    for machine in ("m1", "m2"):
        with otledger.open_sync(root, machine=machine, max_segment=1500) as ledger:
            for n in range(10):
                ledger.append("a", n)
    everything = check_all(root)
    total = sum(map(len, everything.values()))
    cursor: Any = "start"
    seen = []
    while len(seen) < total:
        async with aclosing(Reader(root).follow(cursor)) as follower:
            async with asyncio.timeout(10):
                seen += [await anext(follower) for _ in range(min(3, total - len(seen)))]
            cursor = str(follower.cursor)
            assert Cursor.parse(cursor) == follower.cursor
    for machine, records in everything.items():
        assert [record.id for record in seen if record.machine == machine] == ids(records)
    async with otledger.open(root, machine="m1") as ledger:  # noqa: SIM117
        async with aclosing(Following(root, Cursor.parse(cursor), ORDERS)) as following:
            await ledger.append("a", "later")
            assert [record.data for record in await following.take(1)] == ["later"]


@pytest.mark.parametrize("later", [1, 2, 9])
async def test_a_cursor_behind_what_a_power_cut_took(root: Path, later: int) -> None:
    """Records that were read are gone, and others have come in their place: each of these is given."""
    with otledger.Journal(root, machine="m1") as journal:
        journal.append([otledger.Draft("a", n) for n in range(5)])
        (path,) = (root / "m1").glob("*.jsonl")
        async with aclosing(Reader(root).follow("start")) as follower:
            async with asyncio.timeout(10):
                assert len([await anext(follower) for _ in range(6)]) == 6
            cursor = str(follower.cursor)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]))
    (root / "m1" / ".lock").unlink()
    with otledger.Journal(root, machine="m1") as journal:
        journal.append([otledger.Draft("a", f"new {n}") for n in range(later)])
    async with aclosing(Following(root, cursor, ORDERS)) as following:
        given = [record.data for record in await following.take(3 + later)]
    assert given == [0, 1, 2, *(f"new {n}" for n in range(later))]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "middle",
        "{}x",
        "[]",
        '{"positions":{"../x":["2026-11.jsonl",0]}}',
        '{"positions":{"m1":["../2026-11.jsonl",0]}}',
        '{"positions":{"m1":["2026-11.jsonl",-1]}}',
        '{"positions":{"m1":["2026-11.jsonl"]}}',
    ],
)
async def test_what_is_no_cursor(root: Path, text: str) -> None:
    root.mkdir()
    with pytest.raises(ConfigurationError, match="no cursor"):
        Reader(root).follow(text)


async def test_follow_where_there_is_no_ledger(root: Path) -> None:
    with pytest.raises(RootError, match="no ledger"):
        Reader(root).follow()


@pytest.mark.parametrize("begin", ["start", "end", "before"])
async def test_a_line_that_is_being_written(root: Path, written: Path, begin: str) -> None:
    whole = written.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    rest = whole.removesuffix(last)
    written.write_bytes(rest if begin == "before" else rest + last[:100])
    async with aclosing(Following(root, "end" if begin == "before" else begin)) as following:
        if begin == "start":
            await following.take(len(rest.splitlines()))
        assert await following.nothing()
        for cut in (100, 200, len(last) - 1):
            written.write_bytes(rest + last[:cut])
            assert await following.nothing(0.1)
        written.write_bytes(whole)
        assert [record.line for record in await following.take(1)] == [last]


async def test_a_torn_tail_that_is_cut_off_meanwhile(root: Path, written: Path, watching: str) -> None:
    async with aclosing(Following(root, "end")) as following:
        with written.open("ab") as file:
            file.write(b'{"specversion":"1.0","id":"torn')
        assert await following.nothing()
        async with otledger.open(root, machine="m1") as ledger:
            await ledger.append("a", "after the recovery")
            found = await following.until("a")
    assert [record.type for record in found][:1] == ["otledger.recovery"]
    assert found[-1].data == "after the recovery"
    assert [record.seq for record in found] == list(range(found[0].seq, found[0].seq + len(found)))


async def test_a_bad_line_ends_following_with_its_place(root: Path, written: Path) -> None:
    size = written.stat().st_size
    async with aclosing(Following(root, "end")) as following:
        with written.open("ab") as file:
            file.write(b"nonsense\n")
        with pytest.raises(FormatError, match=f"offset {size}.*otledger verify"):
            await following.take(1)


async def test_evledgers_partition_is_followed(tmp_path: Path, watching: str) -> None:
    root = tmp_path / "evledger"
    shutil.copytree(EVLEDGER, root)
    async with aclosing(Following(root, "start")) as following:
        assert len(await following.take(400)) == 400
        path = max((root / "laptop").glob("*.jsonl"))
        event = json.loads(path.read_bytes().splitlines()[-1])
        event |= {"id": "new", "seq": event["seq"] + 1}
        with path.open("a") as file:
            file.write(json.dumps(event) + "\n")
        assert ids(await following.take(1)) == ["new"]


async def test_a_follower_that_is_closed_leaves_nothing_open(root: Path, written: Path) -> None:
    def watches() -> int:
        return sum("inotify" in link(fd) for fd in os.listdir("/proc/self/fd"))

    before = watches()
    async with aclosing(Following(root, "start")) as following:
        await following.take(3)
        assert watches() == before + 1
    assert watches() == before
    task = asyncio.create_task(collect(Reader(root).follow("start")))
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    gc.collect()
    await asyncio.sleep(0.01)
    assert watches() == before


def test_a_line_that_is_completed_while_it_is_read(root: Path) -> None:
    with otledger.Journal(root, machine="m1", service="s") as journal:
        journal.append([otledger.Draft("a", n) for n in range(3)])
    (segment,) = root.glob("m1/*.jsonl")
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-100])
    records = otledger.Reader(root).records(otledger.Filter(control=False))
    assert next(records).data == 0
    with segment.open("ab") as file:
        file.write(whole[-100:])
    assert [record.data for record in records] == [1, 2]


# Progress, and what is looked for in threads


def grown(root: Path) -> int:
    """Two machines, several segments. Gives the bytes."""
    for machine in ("m1", "m2"):
        settings: Json = {"machine": machine, "service": "s", "max_segment": 30_000, "durability": "os"}
        with otledger.open_sync(root, **settings) as ledger:
            for n in range(300):
                with ledger.turn(f"turn-{n}"), ledger.span("work"):
                    ledger.emit("job.start", {"id": n})
                if n % 20 == 0:
                    ledger.flush()
    assert len(list(root.glob("m1/*.jsonl"))) > 2
    return sum(path.stat().st_size for path in root.glob("*/*.jsonl"))


def test_a_reader_tells_how_far_it_has_come(root: Path) -> None:
    size = grown(root)
    told: list[tuple[int, int]] = []
    reader = Reader(root, progress=lambda *each: told.append(each))
    for read_ in (
        lambda: reader.records(),
        lambda: reader.spans(),
        lambda: reader.traces(),
        lambda: reader.turns(),
        lambda: reader.pairs("data.id"),
        lambda: reader.records(Filter(type="no.such")),
        # By the index: what it passes over counts too.
        lambda: reader.records(Filter(ipc_hash="turn-7")),
        lambda: reader.records(Filter(since=1, until=2)),
    ):
        told.clear()
        list(read_())
        assert told[-1] == (size, size)
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        assert {total for _, total in told} == {size}
    told.clear()
    list(reader.records(machines=["m2"]))
    assert told[-1][1] == sum(path.stat().st_size for path in root.glob("m2/*.jsonl"))
    # What is added meanwhile is no more than all.
    records = reader.records(machines=["m1"])
    next(records)
    with otledger.Journal(root, machine="m1", service="s", durability="os") as journal:
        journal.append([otledger.Draft("a.b", "x" * 500) for _ in range(50)])
    list(records)
    assert told[-1][0] == told[-1][1]
    assert all(done <= total for done, total in told)


def test_arecords_looks_for_what_is_rare_in_whole_blocks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from otledger import reader as module

    grown(root)
    searched = []
    whole = module.lines_with

    def lines_with(fd: int, needle: bytes, *place: Any) -> Any:
        searched.append(needle)
        return whole(fd, needle, *place)

    def from_block(*_: Any) -> Any:
        raise AssertionError("all lines were looked at")

    monkeypatch.setattr(module, "lines_with", lines_with)
    monkeypatch.setattr(module.Splitter, "feed", from_block)
    for index in (True, False):
        for number in (0, 7, 299):
            wanted = Filter(ipc_hash=f"turn-{number}", type="job.start")
            found = asyncio.run(collect(Reader(root, index=index).arecords(wanted)))
            assert [(record.machine, record.data) for record in found] == [
                ("m1", {"id": number}),
                ("m2", {"id": number}),
            ]
    assert set(searched) == {b"turn-0", b"turn-7", b"turn-299"}


async def test_arecords_that_is_cancelled_waits_for_its_thread(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from otledger import reader as module

    grown(root)
    reached, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    left: list[int] = []

    def lines_with(fd: int, *_: Any) -> Any:
        loop.call_soon_threadsafe(reached.set)
        go_on.wait(30)
        # It is open until the thread is done with it.
        left.append(os.fstat(fd).st_size)
        yield from ()

    monkeypatch.setattr(module, "lines_with", lines_with)
    task = asyncio.create_task(collect(Reader(root, index=False).arecords(Filter(ipc_hash="turn-1"))))
    await reached.wait()
    task.cancel()
    await asyncio.sleep(0.05)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(left) == 1
