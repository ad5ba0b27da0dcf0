"""The index: it finds what a scan and a naive reader find, whatever becomes of the ledger and of the cache."""

import asyncio
import functools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import otledger
from otledger import Draft, Filter, Journal, Reader, clock, index, run_files, runs, segment
from otledger.errors import ConfigurationError, FormatError, RootError
from otledger.index import rebuild, states
from tests.conftest import Script
from tests.faults.tools import Json, edit_lock, journal, lines_of, newest, partition, segment_names

# Local files of a test block nobody.

BASE = 1_790_000_000_000_000_000
SMALL = {"CELL": 4096, "CELLS": 8, "LAG": 8192, "RUN_BYTES": 2 * 8 * 4096}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells and runs so small that little ledgers have many of them."""
    for name, value in SMALL.items():
        monkeypatch.setattr(index, name, value)


def naive(root: Path, wanted: Callable[[Json], bool], machines: tuple[str, ...] = ("m1",)) -> list[str]:
    """The ids of the wanted records, by the plainest reader there is: of one machine, in the order of the files."""
    files = {
        path: path.read_bytes() for machine in machines for path in sorted((root / machine).glob("*.jsonl"), key=_place)
    }
    return [record["id"] for record in _parsed(tuple(files.items())) if wanted(record)]


@functools.lru_cache(4)
def _parsed(files: tuple[tuple[Path, bytes], ...]) -> list[Json]:
    caps = {}
    for path, content in files:
        previous = json.loads(content[: content.index(b"\n")])["data"]["previous"]
        if previous is not None:
            caps[path.parent / previous["segment"]] = previous["size"]
    return [json.loads(line) for path, content in files for line in content[: caps.get(path)].split(b"\n")[:-1]]


def _place(path: Path) -> tuple[str, int]:
    return path.name[:7], _number(path)


def _number(path: Path) -> int:
    parts = path.name.split(".")
    return int(parts[1]) if len(parts) == 3 else 0


def trace_of(record: Json) -> str | None:
    parent = record.get("traceparent")
    own = record.get("data") if record["type"].startswith("otel.") else None
    return parent[3:35] if parent else own.get("trace_id") if isinstance(own, dict) else None


def span_of(record: Json) -> str | None:
    parent = record.get("traceparent")
    own = record.get("data") if record["type"].startswith("otel.") else None
    return parent[36:52] if parent else own.get("span_id") if isinstance(own, dict) else None


def time_of(record: Json) -> int:
    second = datetime.fromisoformat(record["time"][:19] + "+00:00")
    return int(second.timestamp()) * 10**9 + int(record["time"][20:29])


def drafts(rng: random.Random, count: int, at: int = 0) -> list[Draft]:
    """Records of traces and turns that stand among each other, their times now and then far away."""
    traces = [f"{rng.getrandbits(128):032x}" for _ in range(max(2, count // 12))]
    made = []
    for n in range(count):
        trace = traces[min(len(traces) - 1, n // 12 + rng.randrange(3))]
        span = f"{int(trace[:15], 16) + rng.randrange(4):016x}"
        header: Json = {"traceparent": f"00-{trace}-{span}-01"} if rng.random() < 0.9 else {}
        when = BASE + (at + n) * 10**9 + (rng.randrange(-(10**12), 10**12) if rng.random() < 0.05 else 0)
        roll = rng.random()
        turn = f"turn-{(at + n) // 9}" if roll < 0.8 else None
        fill = "x" * rng.randrange(300)
        if roll < 0.4 or not header:
            ids = {} if header else {"trace_id": trace, "span_id": span}
            made.append(Draft("otel.span.end", {"name": "é", "end": 1, **ids}, ipc_hash=turn, time=when, **header))
        elif roll < 0.42:
            made.append(Draft("otel.resource", {"digest": f"{rng.getrandbits(128):032x}", "fill": fill}, time=when))
        else:
            own = f'id "{at + n}" é' if roll < 0.5 else None
            made.append(Draft("order.placed", {"fill": fill}, id=own, ipc_hash=turn, time=when, **header))
    return made


def write(root: Path, *batches: list[Draft], machine: str = "m1", **settings: Any) -> None:
    with Journal(root, machine=machine, service="t", durability="os", min_free=0, **settings) as target:
        for batch in batches:
            target.append(batch, reserved=True)


@pytest.fixture
def varied(root: Path) -> Path:
    """Two machines, several segments."""
    rng = random.Random(7)
    write(root, *(drafts(rng, 60, n * 60) for n in range(10)), max_segment=90_000)
    write(root, *(drafts(rng, 40, n * 40) for n in range(3)), machine="m2")
    return root


def looked_up(root: Path, wanted: Filter, **options: Any) -> list[str]:
    """The ids that a reader finds, with the index and without, in both ways: all the same."""
    reader = Reader(root)
    found = [record.line for record in reader.records(wanted, **options)]

    async def collect(reader: Reader) -> list[bytes]:
        return [record.line async for record in reader.arecords(wanted, **options)]

    assert found == [record.line for record in Reader(root, index=False).records(wanted, **options)]
    assert found == [record.line for record in reader.records(wanted, **options)]
    assert found == asyncio.run(collect(reader))
    return [json.loads(line)["id"] for line in found]


def all_records(root: Path, machine: str = "m1") -> list[Json]:
    return [record.to_dict() for record in Reader(root, index=False).records(machines=[machine])]


def keys_of(record: Json) -> Iterator[tuple[Filter, Callable[[Json], bool]]]:
    """What a record can be found by, and what else is found by it."""
    id, turn, trace, span = record["id"], record.get("ipchash"), trace_of(record), span_of(record)
    yield Filter(id=id), lambda each: each["id"] == id
    if turn:
        yield Filter(ipc_hash=turn), lambda each: each.get("ipchash") == turn
    if trace:
        yield Filter(trace_id=trace), lambda each: trace_of(each) == trace
        yield Filter(trace_id=trace, ipc_hash=turn), lambda each: trace_of(each) == trace and turn in (None, each.get("ipchash"))  # fmt: skip  # noqa: E501
    if span:
        yield Filter(span_id=span), lambda each: span_of(each) == span
    if record["type"] == "otel.resource":
        digest = record["data"]["digest"]
        yield (
            Filter(digest=digest),
            lambda each: each["type"] == "otel.resource" and each["data"]["digest"] == digest,
        )


def check_some(root: Path, count: int = 8, seed: int = 1) -> None:
    """Look some records up, by all that they can be found by."""
    records = all_records(root)
    for record in random.Random(seed).sample(records, min(count, len(records))):
        for wanted, test in keys_of(record):
            assert looked_up(root, wanted, machines=["m1"]) == naive(root, test)


def covered(root: Path) -> int:
    return states(root, ["m1"])[0].indexed


def cache(root: Path) -> Path:
    return partition(root) / ".cache" / "index"


# Agreement


def test_all_that_records_can_be_found_by(varied: Path) -> None:
    rebuild(varied)
    state = states(varied)[0]
    # Of segments that are closed all is covered, of the newest all but the last cell.
    assert (state.machine, state.behind < 4096 + 1000, state.records > 550) == ("m1", True, True)
    kinds = set()
    for record in all_records(varied)[::13]:
        for wanted, test in keys_of(record):
            kinds.add(
                next(name for name in ("id", "ipc_hash", "trace_id", "span_id", "digest") if getattr(wanted, name))
            )
            assert looked_up(varied, wanted, machines=["m1"]) == naive(varied, test)
    assert len(kinds) == 5


def test_the_index_reads_little(varied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is there; so the tests of agreement are not about scanning."""
    rebuild(varied)
    with_index, all_bytes = 0, 0
    whole = index.Index.ranges

    def ranges(self: Any, fd: int, piece: Any, query: Any) -> Any:
        nonlocal with_index, all_bytes
        size = os.fstat(fd).st_size
        found = whole(self, fd, piece, query)
        with_index += sum((size if end is None else end) - start for start, end in found)
        all_bytes += size
        return found

    monkeypatch.setattr(index.Index, "ranges", ranges)
    for record in all_records(varied)[::20]:
        assert list(Reader(varied).records(Filter(id=record["id"]), machines=["m1"]))
    assert with_index < all_bytes / 4


def test_several_machines_are_merged(varied: Path) -> None:
    for record in [*all_records(varied)[::40], *all_records(varied, "m2")[::20]]:
        turn = record.get("ipchash")
        if turn:
            found = looked_up(varied, Filter(ipc_hash=turn))
            expected = naive(varied, lambda each, turn=turn: each.get("ipchash") == turn, ("m1", "m2"))  # type: ignore[misc]
            assert sorted(found) == sorted(expected)


def test_windows(varied: Path) -> None:
    rng = random.Random(2)
    for n in range(25):
        since = BASE + rng.randrange(-1000, 1600) * 10**9
        until = since + rng.choice((0, 1, 10**9, 20 * 10**9, 10**12))
        first, last = (None if n % 9 == 0 else since), (None if n % 7 == 0 else until)

        def test(each: Json, first: int | None = first, last: int | None = last) -> bool:
            return (first is None or time_of(each) >= first) and (last is None or time_of(each) < last)

        expected = naive(varied, test)
        assert looked_up(varied, Filter(since=first, until=last), machines=["m1"]) == expected
        assert looked_up(varied, Filter(since=first, until=last), machines=["m1"], limit=5) == expected[:5]


def test_times_that_no_64_bits_hold(root: Path) -> None:
    times = ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z", "1970-01-01T00:00:00Z", "2300-02-28T00:00:00Z")
    write(root, [Draft("a.b", {"fill": "x" * 2000}, time=times[n % 4]) for n in range(40)])
    rebuild(root)
    for since in (None, -(1 << 70), -(1 << 63), 0, 1 << 63, 1 << 70):
        for until in (None, 0, 1, 1 << 62, 1 << 63, 1 << 80):
            if since is None or until is None or since <= until:
                looked_up(root, Filter(since=since, until=until))


def _with_faults(reader: Reader, wanted: Filter) -> tuple[list[str], list[str]]:
    faults: list[str] = []
    found = [record.id for record in reader.records(wanted, on_fault=lambda fault: faults.append(str(fault)))]
    return found, faults


def test_a_line_that_is_no_record_is_reported_as_by_a_scan(varied: Path) -> None:
    rebuild(varied)
    target = newest(varied)
    content = lines_of(target)
    middle = len(content) // 2
    content[middle] = b'{"a":[{}\n' + content[middle] + b"]}\n"
    target.write_bytes(b"".join(content))
    rebuild(varied)
    record = json.loads(content[0])
    for wanted in (Filter(since=BASE - 10**18, until=BASE - 10**17), Filter(digest="0" * 32), Filter(id=record["id"])):
        read = [_with_faults(Reader(varied, index=chosen), wanted) for chosen in (True, False)]
        assert read[0] == read[1]
    with pytest.raises(FormatError):
        list(Reader(varied).records(Filter(since=BASE - 10**18, until=BASE - 10**17), machines=["m1"]))
    assert looked_up(varied, Filter(id=json.loads(content[middle - 1])["id"]))


# What nobody should ask


def test_an_unknown_key_finds_nothing(varied: Path) -> None:
    for wanted in (Filter(id="no"), Filter(trace_id="0" * 32), Filter(span_id="0" * 16), Filter(ipc_hash="é"), Filter(digest="")):  # fmt: skip  # noqa: E501
        assert looked_up(varied, wanted) == []


@pytest.mark.parametrize("given", [{"trace_id": "ab"}, {"span_id": "A" * 16}, {"trace_id": "g" * 32}, {"span_id": ""}])
def test_an_id_that_is_none_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="hex digits"):
        Filter(**given)


def test_a_window_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"ends before it begins: it is since 2026-.*Z, until 1969-12"):
        Filter(since=BASE, until=-1)
    assert Filter(since=5, until=5)


def test_a_machine_that_is_not_there(varied: Path) -> None:
    for function in (states, rebuild):
        with pytest.raises(RootError, match="there are: m1, m2"):
            function(varied, ["m3"])


# A ledger that changes


def test_it_is_kept_up_as_the_ledger_grows(root: Path) -> None:
    rng = random.Random(4)
    reader, seen = Reader(root), 0
    with Journal(root, machine="m1", service="t", durability="os", min_free=0, max_segment=150_000) as target:
        for n in range(60):
            receipts = target.append(drafts(rng, 15, n * 15), reserved=True)
            # The newest is found although no index covers it yet.
            assert [each.seq for each in reader.records(Filter(id=receipts[-1].id))][-1:] == [receipts[-1].seq]
            assert covered(root) >= seen or n == 0
            seen = covered(root)
    assert len(segment_names(root)) > 1
    assert states(root)[0].behind <= 8192 + 4096
    assert {path.suffix for path in cache(root).iterdir()} >= {".runs", ".tail"}
    check_some(root)


def test_a_month_changes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(5)
    for month in ("2027-01", "2027-02", "2027-03"):
        monkeypatch.setattr(clock, "believed_month", lambda *_, month=month: month)
        write(root, drafts(rng, 80), drafts(rng, 20))
        check_some(root, 4)
    assert segment_names(root) == ["2027-01.jsonl", "2027-02.jsonl", "2027-03.jsonl"]
    check_some(root)


WRITER = """
    import otledger, sys, time
    with otledger.Journal(sys.argv[1], machine="m1", durability="os", min_free=0, max_segment=600_000) as target:
        print("ready", flush=True)
        for n in range(150):
            target.append([otledger.Draft("a.b", {"fill": "x" * 200}, ipc_hash=f"turn-{k % 7}") for k in range(14)])
"""
READER = """
    import sys
    from otledger import Filter, Reader, index
    index.CELL, index.CELLS, index.LAG, index.RUN_BYTES = 4096, 8, 8192, 65536
    root, scan, found, n = sys.argv[1], Reader(sys.argv[1], index=False), Reader(sys.argv[1]), 0
    def seqs(reader, turn):
        return [record.seq for record in reader.records(Filter(ipc_hash=turn))]
    while n < 300:
        turn = f"turn-{n % 7}"
        before, there, after = seqs(scan, turn), seqs(found, turn), seqs(scan, turn)
        assert there[:len(before)] == before and after[:len(there)] == there, (turn, before, there, after)
        n += 1
        if len(after) == 300:
            break
    print("fine", len(after), flush=True)
"""


def test_several_processes_read_while_one_writes(root: Path, script: Script) -> None:
    writer = script(WRITER, root)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    readers = [script(READER, root) for _ in range(3)]
    for process in readers:
        assert process.communicate(timeout=60)[0].startswith("fine")
        assert process.returncode == 0
    assert writer.wait(60) == 0
    for turn in range(7):
        expected = naive(root, lambda each, turn=turn: each.get("ipchash") == f"turn-{turn}")  # type: ignore[misc]
        assert looked_up(root, Filter(ipc_hash=f"turn-{turn}")) == expected
    assert covered(root) > 0


def test_what_recovery_cuts_off_is_forgotten(root: Path) -> None:
    rng = random.Random(6)
    write(root, drafts(rng, 200))
    rebuild(root)
    before = covered(root)
    target = newest(root)
    kept = lines_of(target)[:120]
    target.write_bytes(b"".join(kept))
    (partition(root) / ".lock").unlink()
    write(root, drafts(rng, 150, 300))
    assert target.stat().st_size > before
    check_some(root, 12)


def test_what_is_beyond_a_cap_does_not_count(root: Path, tmp_path: Path) -> None:
    rng = random.Random(8)
    copy = tmp_path / "copy"
    with journal(root, durability="os") as target:
        target.append(drafts(rng, 60), reserved=True)
        target.sync()
        target.append(drafts(rng, 100, 60), reserved=True)
        shutil.copytree(root, copy)
    rebuild(copy)
    edit_lock(copy, state="failed")
    write(copy, drafts(rng, 30, 200))
    assert len(segment_names(copy)) == 2
    check_some(copy, 10)
    rebuild(copy)
    check_some(copy, 10)


def test_a_segment_that_is_replaced(root: Path, tmp_path: Path) -> None:
    rng = random.Random(9)
    write(root, drafts(rng, 200))
    write(tmp_path / "other", drafts(rng, 260))
    rebuild(root)
    shutil.copy(newest(tmp_path / "other"), newest(root))
    check_some(root, 10)


@pytest.mark.parametrize("settled", [True, False])
def test_bytes_that_are_changed_in_place(root: Path, settled: bool) -> None:
    write(root, drafts(random.Random(10), 300))
    rebuild(root)
    target = newest(root)
    content = lines_of(target)
    trace = trace_of(json.loads(next(line for line in reversed(content[:250]) if b"traceparent" in line)))
    assert trace is not None
    at = next(n for n, line in enumerate(content) if b"traceparent" in line)
    was = trace_of(json.loads(content[at]))
    assert was is not None
    content[at] = content[at].replace(was.encode(), trace.encode())
    target.write_bytes(b"".join(content))
    if settled:
        os.utime(target, ns=(BASE, BASE))
    for wanted in (trace, was):
        expected = naive(root, lambda each, wanted=wanted: trace_of(each) == wanted)  # type: ignore[misc]
        assert looked_up(root, Filter(trace_id=wanted)) == expected
    for _ in range(30):
        list(Reader(root).records(Filter(trace_id=was)))
    # While a write may be under way nothing is made anew.
    assert (states(root)[0].behind < 2 * 8192) == settled


# A cache that fails


def test_a_cache_that_is_deleted_meanwhile(varied: Path) -> None:
    rebuild(varied)
    wanted = Filter(since=BASE)
    expected = looked_up(varied, wanted, machines=["m1"])
    reading = Reader(varied).records(wanted, machines=["m1"])
    found = [next(reading).id for _ in range(100)]
    shutil.rmtree(cache(varied).parent)
    found += [record.id for record in reading]
    assert found == expected
    check_some(varied, 4)
    assert covered(varied) > 0


def test_a_cache_of_another_version(varied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "VERSION", 2)
    rebuild(varied)
    assert covered(varied) > 0
    monkeypatch.undo()
    assert covered(varied) == 0
    check_some(varied, 4)
    assert states(varied, ["m1"])[0].version == 1


def test_any_byte_of_the_cache_may_be_wrong(root: Path) -> None:
    rng = random.Random(11)
    write(root, drafts(rng, 300))
    rebuild(root)
    files = {path: path.read_bytes() for path in cache(root).iterdir() if path.suffix in (".runs", ".tail")}
    assert len(files) == 2
    records = all_records(root)
    expected: dict[str, list[str]] = {}
    for n in range(100):
        path = rng.choice(list(files))
        damaged = bytearray(files[path])
        if n % 5:
            for _ in range(rng.choice((1, 1, 20))):
                damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        else:
            del damaged[rng.randrange(len(damaged)) :]
        for each, content in files.items():
            each.write_bytes(content)
        path.write_bytes(damaged)
        turn = rng.choice([record["ipchash"] for record in records if "ipchash" in record])
        if turn not in expected:
            expected[turn] = naive(root, lambda each, turn=turn: each.get("ipchash") == turn)  # type: ignore[misc]
        assert [record.id for record in Reader(root).records(Filter(ipc_hash=turn))] == expected[turn]
    check_some(root, 3)


def test_any_byte_of_a_runs_head_may_be_wrong(root: Path) -> None:
    write(root, drafts(random.Random(13), 50))
    rebuild(root)
    (path,) = (path for path in cache(root).iterdir() if path.stat().st_size)
    good = path.read_bytes()
    run = runs.Run.read(lambda size, offset: good[offset : offset + size], 0)
    assert run is not None
    wanted = Filter(since=BASE - 10**13)
    expected = naive(root, lambda each: time_of(each) >= BASE - 10**13)
    reads = 0
    for at in range(0, 120 + 36 * run.cells, 5):
        path.write_bytes(good[:at] + bytes([good[at] ^ 16]) + good[at + 1 :])
        assert [record.id for record in Reader(root).records(wanted)] == expected
        reads += 1
    assert reads > 50


def test_a_damaged_page_is_mended(root: Path) -> None:
    write(root, drafts(random.Random(12), 300))
    rebuild(root)
    path = next(cache(root).glob("*.runs"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    bad = covered(root)
    for record in all_records(root):
        if "ipchash" in record:
            list(Reader(root).records(Filter(ipc_hash=record["ipchash"])))
    assert covered(root) >= bad
    assert path.read_bytes()[-3:] != content[-3:]


@pytest.mark.parametrize("what", ["file", "link", "folder file"])
def test_a_cache_that_cannot_be_made(varied: Path, what: str) -> None:
    shutil.rmtree(partition(varied) / ".cache", ignore_errors=True)
    place = partition(varied) / ".cache"
    if what == "file":
        place.write_text("mine")
    elif what == "link":
        place.symlink_to(varied / "nowhere")
    else:
        place.mkdir()
        (place / "index").write_text("mine")
    check_some(varied, 3)
    with pytest.raises(RootError):
        rebuild(varied)


def in_child(root: Path, first: str) -> subprocess.CompletedProcess[str]:
    """Look all turns up in a process of its own, after some lines of code; it prints how many it found."""
    code = f"""
import os, resource, sys
import otledger
from otledger import Filter, Reader, index, run_files
index.CELL, index.CELLS, index.LAG, index.RUN_BYTES = 4096, 8, 8192, 65536
{first}
reader = Reader(sys.argv[1])
print(sum(len(list(reader.records(Filter(ipc_hash=f"turn-{{n}}"), machines=["m1"]))) for n in range(67)))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [sys.executable, "-c", code, str(root)],
        env=environment,
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )


def turns_of(root: Path) -> int:
    return len(naive(root, lambda each: "ipchash" in each))


@pytest.mark.parametrize(
    "full",
    [
        "resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))",
        "run_files.MIN_FREE = 1 << 60",
    ],
)
def test_a_disk_that_is_full(varied: Path, full: str) -> None:
    done = in_child(varied, full)
    assert (done.returncode, done.stdout.strip()) == (0, str(turns_of(varied)))
    # Said once, and not at each look-up.
    assert done.stderr.count("the index cannot be kept") == 1, done.stderr
    assert all(path.stat().st_size == 0 for path in cache(varied).iterdir())
    check_some(varied, 3)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
def test_a_file_system_that_fills_up(varied: Path) -> None:
    place = cache(varied)
    place.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12k", "none", place], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        done = in_child(varied, "run_files.MIN_FREE = -(1 << 20)")
        assert (done.returncode, done.stdout.strip()) == (0, str(turns_of(varied)))
        assert done.stderr.count("the index cannot be kept: No space left") == 1, done.stderr
        check_some(varied, 3)
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_a_cache_that_is_another_users() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        root = Path(folder) / "ledger"
        rng = random.Random(7)
        write(root, *(drafts(rng, 60, n * 60) for n in range(10)), file_mode=0o644)
        first = "os.setgroups([]); os.setegid(65534); os.seteuid(65534)"
        for made in (False, True):
            if made:
                rebuild(root)
                write(root, drafts(rng, 60, 600), file_mode=0o644)
            before = covered(root)
            done = in_child(root, first)
            assert (done.returncode, done.stderr) == (0, "")
            assert int(done.stdout) > 400
            assert covered(root) == before
        assert before > 0


def test_no_index_is_made_where_none_is_wanted(varied: Path) -> None:
    assert list(Reader(varied, index=False).records(Filter(ipc_hash="turn-1")))
    assert list(Reader(varied).records(Filter(type="order.*")))
    assert not cache(varied).exists()


def test_a_rebuild_waits_for_others_and_then_says_so(varied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rebuild(varied)
    monkeypatch.setattr(index, "PATIENCE", 0.05)
    with run_files.open_index(partition(varied)) as folder, run_files.locked(folder):
        with pytest.raises(otledger.LedgerError, match="another process is writing the index"):
            rebuild(varied)
        # Who looks something up does not wait.
        check_some(varied, 2)


def test_ids_that_fill_one_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        runs, "crc32", lambda data, start=0: zlib.crc32(data, start) & (0xFFFF if start else 0xFFFFFFFF)
    )
    monkeypatch.setattr(runs, "_cell", None)
    line = '{"id":"%d","source":"s","type":"t","time":"2026-01-01T00:00:00.000000000Z","machine":"m","seq":0}\n'
    builder = runs.Builder(0)
    for cell in range(8):
        builder.add("".join(line % n for n in range(9000 * cell, 9000 * cell + 9000)).encode())
    content = builder.encode(runs.Stamp(0, 0, b"0" * 16))
    run = runs.Run.read(lambda size, offset: content[offset : offset + size], 0)
    assert run is not None
    assert run.length == len(content)
    query = runs.Query((runs.key_hash(runs.ID, "9"),), None, None)
    assert len(list(run.ranges(lambda size, offset: content[offset : offset + size], query))) == 8


def test_no_line_hides_inside_of_another() -> None:
    line = b'{"id":"%s","source":"s","type":"t","time":"x","machine":"m","seq":0'
    hidden = line % b"hidden" + b"}\n"
    outer = line % b"outer" + b',"x":[1,\n' + hidden + b"]}\n"
    crowd = (line % b"crowd" + b"}") * 3 + b"\n"
    records, bad = runs._records(outer + crowd)
    assert ([record.id for record in records], bad) == (["hidden"], True)
    assert [record.id for record in runs._records(hidden * 3)[0]] == ["hidden"] * 3


@pytest.mark.parametrize("block", [64, 1000, 1 << 20])
def test_lines_with_a_needle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(segment, "BLOCK", block)
    monkeypatch.setattr(segment, "MAX_LINE", 1 << 16)
    rng = random.Random(block)
    path = tmp_path / "x"
    for n in range(30):
        made = [
            b"a" * rng.randrange(300) + rng.choice((b"", b"", b"needle")) + b"b" * rng.randrange(9) for _ in range(60)
        ]
        path.write_bytes(b"\n".join(made))
        content = lines_of(path)
        places = [(sum(map(len, content[:at])), line) for at, line in enumerate(content) if line.endswith(b"\n")]
        first = rng.choice(places)[0] if n % 2 else 0
        last = rng.choice((None, rng.randrange(first, path.stat().st_size)))
        with path.open("rb") as file:
            found = list(segment.lines_with(file.fileno(), b"needle", first, last))
        expected = [each for each in places if b"needle" in each[1] and each[0] >= first]
        assert found == [each for each in expected if last is None or each[0] + len(each[1]) <= last]


def test_ids_of_one_hash(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "crc32", lambda data, start=0: 7 if start in range(1, 6) else len(data))
    monkeypatch.setattr(runs, "_cell", None)
    monkeypatch.setattr(runs, "key_hash", lambda kind, value: 7)
    monkeypatch.setattr(index, "key_hash", lambda kind, value: 7)
    write(root, drafts(random.Random(1), 300))
    rebuild(root)
    check_some(root, 5)


# The command


def command(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "otledger", "--root", root, *arguments], text=True, capture_output=True, check=False
    )


def test_the_command_says_what_is_covered(varied: Path) -> None:
    done = command(varied, "index", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert [(each["machine"], each["indexed"], each["behind"]) for each in json.loads(done.stdout)] == [
        (machine, 0, sum(path.stat().st_size for path in (varied / machine).glob("*.jsonl")))
        for machine in ("m1", "m2")
    ]
    assert not cache(varied).exists()
    done = command(varied, "index", "--rebuild", "--machine", "m1")
    assert done.stdout.splitlines()[0].split() == ["machine", "index", "records", "indexed", "behind", "version"]
    assert covered(varied) > 0
    assert command(varied, "index", "--machine", "m3").returncode == 2
    assert command(varied / "none", "index").returncode == 2


def test_the_command_shows_what_an_id_names(varied: Path) -> None:
    record = next(record for record in all_records(varied)[50:] if span_of(record) and record["type"] == "order.placed")
    span = span_of(record)
    assert span is not None
    done = command(varied, "show", "--id", record["id"], "--json")
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [record["id"]]
    done = command(varied, "show", "--span", span.upper(), "--json", "--machine", "m1")
    expected = naive(varied, lambda each: span_of(each) == span)
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == expected
    for arguments, why in (
        (("--span", "12"), "'12' is no span id: it must be 16 lower-case hex digits"),
        (("--trace", "12"), "'12' is no trace id"),
        (("--since", "2026-02", "--until", "2026-01"), "the window ends before it begins"),
    ):
        done = command(varied, "show", *arguments)
        assert (done.returncode, done.stderr.count("\n"), why in done.stderr) == (2, 1, True)
    assert command(varied, "show", "--id", "unknown").returncode == 1
