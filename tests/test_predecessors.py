"""Ledgers of evledger and PipeWorks go in and come out again equal, and nothing of them is lost without a word.

The ledgers under tests/data were written by the real programs; evledger itself reads what otledger wrote.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otledger.batch import ZEROS, stamp
from otledger.errors import EventRefused, FormatError, LedgerError, LockTimeout, RootError
from otledger.identity import valid_machine
from otledger.journal import Journal
from otledger.predecessors import (
    ExportReport,
    ImportReport,
    evledger,
    export_evledger,
    export_pipeworks,
    import_evledger,
    import_pipeworks,
    intake,
    newfolder,
    pipeworks,
    sources,
)
from otledger.predecessors.exporting import file_name
from otledger.predecessors.importing import partition_names
from otledger.predecessors.members import plain, read_object, short_time
from otledger.reader import Reader
from otledger.record import Draft, Encoder, Record, parse
from tests.checker import check, is_unchained

DATA = Path(__file__).with_name("data")
EVLEDGER, PIPEWORKS = DATA / "evledger", DATA / "pipeworks"

Json = Any
Import = Callable[..., ImportReport]
Export = Callable[..., ExportReport]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A ledger that the independent checker goes over at the end of the test."""
    folder = tmp_path / "ledger"
    yield folder
    for partition in sorted(folder.glob("[a-z0-9]*")):
        if partition.is_dir() and not is_unchained(partition):
            check(partition)


def lines_of(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]


def canonical(value: Json) -> str:
    """Text that is equal for what is equal as JSON: 1, 1.0 and true differ, and NaN is equal to itself."""
    return json.dumps(value, sort_keys=True)


def same(ours: list[Json], theirs: list[Json]) -> bool:
    return [canonical(event) for event in ours] == [canonical(event) for event in theirs]


def stored(root: Path, machine: str) -> list[Record]:
    return [record for record in Reader(root).records(machines=[machine]) if not record.type.startswith("otledger.")]


def ev(id: str = "e1", **members: Json) -> dict[str, Json]:
    """An event as evledger writes it; `...` leaves a member out."""
    event: dict[str, Json] = {"specversion": "1.0", "id": id, "source": "/laptop/agent", "type": "note"}
    event |= {"time": "2026-09-28T08:03:54.947083Z", "datacontenttype": "application/json", "data": {"n": 1}}
    event |= {"machine": "laptop", "seq": 0} | members
    return {name: value for name, value in event.items() if value is not ...}


def write_ev(folder: Path, *events: Json, machine: str = "laptop", month: str = "2026-09") -> Path:
    """A file as evledger writes it; bytes are written as they are."""
    path = folder / machine / f"{month}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        for event in events:
            text = event if isinstance(event, bytes) else None
            file.write(text or json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
    return folder


def pw(id: str = "p1", *, form: str = "unescaped", **members: Json) -> bytes:
    """A line as PipeWorks writes it, but for the form of its checksum."""
    event: dict[str, Json] = {
        "event_id": id,
        "timestamp": "2026-11-21T20:54:51.049890+00:00",
        "world_id": "undertaking",
    }
    event |= {"event_type": "chat.translation", "schema_version": "1.0", "ipc_hash": "ab" * 32, "meta": {}}
    event |= {"data": {"ic_output": "Zoë — 老陳"}} | members
    event = {name: value for name, value in event.items() if value is not ...}
    body = json.dumps(event, ensure_ascii=form == "escaped", sort_keys=True)
    event["_checksum"] = f"sha256:{hashlib.sha256(body.encode()).hexdigest()}"
    text = json.dumps(event, ensure_ascii=False, sort_keys=True) + "\n"
    return text.encode() if "\\ud" not in body else json.dumps(event, sort_keys=True).encode() + b"\n"


def write_pw(folder: Path, *lines: bytes, world: str = "undertaking") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{world}.jsonl").open("ab") as file:
        file.writelines(lines)
    return folder


# The real ledgers


def test_evledger_comes_back_byte_for_byte(root: Path, tmp_path: Path) -> None:
    report = import_evledger(root, EVLEDGER)
    assert (report.imported, report.already_there, list(report.refused)) == (400, 0, [])
    assert report.partitions == ["ci-1.import", "laptop.import"]
    out = export_evledger(root, tmp_path / "out")
    assert (out.exported, list(out.faults)) == (400, [])
    names = sorted(path.relative_to(EVLEDGER) for path in EVLEDGER.glob("*/*.jsonl"))
    assert sorted(path.relative_to(tmp_path / "out") for path in out.files) == names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (EVLEDGER / name).read_bytes()


def test_pipeworks_comes_back_byte_for_byte(root: Path, tmp_path: Path) -> None:
    report = import_pipeworks(root, PIPEWORKS)
    assert (report.imported, report.already_there, list(report.refused)) == (240, 0, [])
    assert report.partitions == ["pipeworks.import"]
    assert report.checksums == {"unescaped": 206, "either": 34}
    records = stored(root, "pipeworks.import")
    turns: dict[str | None, set[str]] = {}
    for record in records:
        turns.setdefault(record.ipc_hash, set()).add(record.type)
    assert len(turns.keys() - {None}) == 120
    assert sum(record.ipc_hash is None for record in records) == 13
    assert {record.subject for record in records} == {"daily_undertaking", "pipeworks_web"}
    assert {record.source for record in records} == {"/pipeworks/daily_undertaking", "/pipeworks/pipeworks_web"}
    out = export_pipeworks(root, tmp_path / "out")
    assert out.exported == 240
    for path in PIPEWORKS.glob("*.jsonl"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_records_hold_what_the_events_did(root: Path) -> None:
    import_evledger(root, EVLEDGER)
    for machine in ("ci-1", "laptop"):
        files = sorted((EVLEDGER / machine).glob("*.jsonl"))
        events = [event for path in files for event in lines_of(path)]
        records = stored(root, f"{machine}.import")
        assert [(r.id, r.source, r.type, short_time(r.time, "Z"), r.data) for r in records] == [
            (e["id"], e["source"], e["type"], e["time"], e.get("data")) for e in events
        ]


@pytest.mark.parametrize(("take", "source"), [(import_evledger, EVLEDGER), (import_pipeworks, PIPEWORKS)])
def test_importing_twice_adds_nothing(root: Path, take: Import, source: Path) -> None:
    first = take(root, source)
    before = {path: path.read_bytes() for path in root.rglob("*.jsonl")}
    again = take(root, source)
    assert (again.imported, again.already_there, list(again.refused)) == (0, first.imported, [])
    assert {path: path.read_bytes() for path in root.rglob("*.jsonl")} == before


def test_what_grew_since_is_added(root: Path, tmp_path: Path) -> None:
    source = write_ev(tmp_path / "ev", ev("a"), ev("b"))
    import_evledger(root, source)
    write_ev(source, ev("c"), ev("d"), ev("c"), month="2026-10")
    report = import_evledger(root, source)
    assert (report.imported, report.already_there) == (2, 3)
    assert [record.id for record in stored(root, "laptop.import")] == ["a", "b", "c", "d"]


def test_one_file_of_pipeworks_can_be_imported(root: Path, tmp_path: Path) -> None:
    assert import_pipeworks(root, PIPEWORKS / "pipeworks_web.jsonl").imported == 119
    assert import_pipeworks(root, PIPEWORKS).imported == 121
    assert [path.name for path in export_pipeworks(root, tmp_path / "out", world="pipeworks_web").files] == [
        "pipeworks_web.jsonl"
    ]


@pytest.mark.parametrize(("take", "source"), [(import_evledger, EVLEDGER), (import_pipeworks, PIPEWORKS)])
def test_progress_comes_to_its_end(root: Path, tmp_path: Path, take: Import, source: Path) -> None:
    told: list[tuple[int, int]] = []
    for _ in range(2):
        take(root, source, progress=lambda done, total: told.append((done, total)))
        total = sum(path.stat().st_size for path in source.rglob("*.jsonl"))
        assert told[-1] == (total, total)
        assert told == sorted(told)
        told.clear()
    export_evledger(root, tmp_path / "out", progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] == sum(path.stat().st_size for path in root.rglob("*.jsonl"))


# Lines that are no events

BAD_EV = {
    "torn": (b'{"specversion":"1.0","id":"x","sour\n', "no JSON"),
    "glued": (b'{"specversion":"1.0","id":"x","sour' + json.dumps(ev("y")).encode() + b"\n", "no JSON"),
    "no object": (b'["specversion"]\n', "no object"),
    "no UTF-8": (b'{"specversion":"\xff"}\n', "no UTF-8"),
    "NUL": (b"\0" * 40 + b"\n", "no JSON"),
    "too deep": (b"[" * 200_000 + b"\n", "too deep"),
    "repeated member": (b'{"specversion":"1.0","id":"x","data":{"a":1,"a":2}}\n', "'a' is there twice"),
    "missing members": (ev("x", type=..., machine=...), "it has no type, machine"),
    "id used twice": (ev("good", data={"n": 2}), "other content"),
    "an id that is no text": (ev(7), "no text"),  # type: ignore[arg-type]
    "an empty id": (ev(""), "empty"),
    "no source": (ev("x", source=None), "no text"),
    "a reserved type": (ev("x", type="otledger.segment"), "reserved"),
    "telemetry": (ev("x", type="otel.span.end"), "reserved"),
    "a type that is no text": (ev("x", type=None), "must be a str"),
    "a control character": (ev("x", source="/a\nb"), "control character"),
    "no time": (ev("x", time="yesterday"), "no instant"),
    "a time without a zone": (ev("x", time="2026-09-28T08:03:54"), "no instant"),
    "year 0": (ev("x", time="0000-09-28T08:03:54Z"), "no instant"),
    "before year 1": (ev("x", time="0001-01-01T00:00:00+01:00"), "no instant"),
    "data too deep": (ev("x", data=json.loads("[" * 99 + "]" * 99)), "nested deeper"),
    "a member too deep": (ev("x", more=json.loads("[" * 99 + "]" * 99)), "nested deeper"),
    "data deeper than the stack": (b'{"specversion":"1.0","data":' + b"[" * 100_000 + b"\n", "too deep"),
}


@pytest.mark.parametrize("name", BAD_EV)
def test_a_bad_line_of_evledger_is_set_aside(root: Path, tmp_path: Path, name: str) -> None:
    bad, reason = BAD_EV[name]
    source = write_ev(tmp_path / "ev", ev("good"))
    path = source / "laptop" / "2026-09.jsonl"
    offset = path.stat().st_size
    write_ev(source, bad, ev("last"))
    for imported in (2, 0):
        report = import_evledger(root, source)
        assert report.imported == imported
        (refused,) = report.refused
        assert (refused.file, refused.offset) == (path, offset)
        assert reason in refused.reason
        assert refused.kept_as.read_bytes() == path.read_bytes()[offset:].split(b"\n")[0] + b"\n"
    assert [record.id for record in stored(root, "laptop.import")] == ["good", "last"]
    assert len(list((root / "laptop.import" / "quarantine").iterdir())) == 1


def line_pw(**members: Json) -> bytes:
    """A line that is an event but for some members; its checksum is right."""
    return pw("x", **members)


BAD_PW = {
    "torn": (pw("x")[:200] + b"\n", "no JSON"),
    "no object": (b"17\n", "no object"),
    "no UTF-8": (pw("x").replace(b"\xc3\xab", b"\xc3"), "no UTF-8"),
    "wrong checksum": (pw("x").replace("Zoë".encode(), b"Zoe"), "wrong checksum"),
    "no checksum": (b'{"event_id":"x"}\n', "it has no _checksum"),
    "a checksum that is no text": (b'{"_checksum": 5,' + pw("x")[pw("x").index(b' "data"') :], "wrong checksum"),
    "missing members": (line_pw(meta=..., ipc_hash=...), "it has no ipc_hash, meta"),
    "id used twice": (pw("good", data={"other": 1}), "other content"),
    "an id that is no text": (line_pw(event_id=[1]), "no text"),
    "a world that is no text": (line_pw(world_id=None), "world_id"),
    "no type": (line_pw(event_type=None), "must be a str"),
    "a reserved type": (line_pw(event_type="otledger.gap"), "reserved"),
    "no time": (line_pw(timestamp="2026-11-21"), "no instant"),
    "meta too deep": (line_pw(meta=json.loads("[" * 99 + "]" * 99)), "nested deeper"),
}


@pytest.mark.parametrize("name", BAD_PW)
def test_a_bad_line_of_pipeworks_is_set_aside(root: Path, tmp_path: Path, name: str) -> None:
    bad, reason = BAD_PW[name]
    source = write_pw(tmp_path / "pw", pw("good"), bad, pw("last"))
    for imported in (2, 0):
        report = import_pipeworks(root, source)
        assert report.imported == imported
        (refused,) = report.refused
        assert (refused.file, refused.offset) == (source / "undertaking.jsonl", len(pw("good")))
        assert reason in refused.reason
        assert refused.kept_as.read_bytes() == bad
    assert [record.id for record in stored(root, "pipeworks.import")] == ["good", "last"]


@pytest.mark.parametrize("cut", [1, 20, 200, len(pw("lost")) - 1])
def test_the_event_that_a_torn_line_of_pipeworks_swallowed_is_found(root: Path, tmp_path: Path, cut: int) -> None:
    torn = pw("lost")[:cut]
    report = import_pipeworks(root, write_pw(tmp_path / "pw", pw("a"), torn, pw("b"), pw("c")))
    assert [record.id for record in stored(root, "pipeworks.import")] == ["a", "b", "c"]
    (refused,) = report.refused
    assert (refused.offset, refused.kept_as.read_bytes()) == (len(pw("a")), torn)
    assert "torn" in refused.reason


def test_a_last_line_without_lf_counts_if_it_is_whole(root: Path, tmp_path: Path) -> None:
    source = write_ev(tmp_path / "ev", json.dumps(ev("a")).encode() + b"\r\n  \n\n" + json.dumps(ev("b")).encode())
    assert import_evledger(root, source).imported == 2
    write_ev(source, b"\n", json.dumps(ev("c")).encode()[:-1])
    report = import_evledger(root, source)
    assert (report.imported, report.already_there) == (0, 2)
    assert report.refused[0].reason.startswith("torn")
    write_ev(source, b"}\n")
    assert import_evledger(root, source).imported == 1


def test_a_line_beyond_the_limit_is_refused_in_pieces(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "LIMIT", 1000)
    inner = json.dumps(ev("false")).encode()
    long = b'{"x":"' + b"y" * 994 + inner + b"\n"
    source = write_ev(tmp_path / "ev", ev("a"), long, ev("b"))
    report = import_evledger(root, source)
    assert [record.id for record in stored(root, "laptop.import")] == ["a", "b"]
    assert b"".join(refused.kept_as.read_bytes() for refused in report.refused) == long


def test_an_event_too_large_for_a_line_is_set_aside(root: Path, tmp_path: Path) -> None:
    report = import_evledger(root, write_ev(tmp_path / "ev", ev("a", data="x" * (17 << 20)), ev("b")))
    assert (report.imported, len(report.refused)) == (1, 1)
    assert "a line has at most" in report.refused[0].reason


# Odd events that are events


def test_lines_of_evledger_are_split_at_lf_alone(root: Path, tmp_path: Path) -> None:
    store = pytest.importorskip("evledger.store").LedgerStore
    data = "one\u2028two\u2029three\u0085four\u000bfive\u001csix"
    source = write_ev(tmp_path / "ev", ev("a", data=data), ev("b", seq=1))
    assert store(source).read_all().malformed > 0
    report = import_evledger(root, source)
    assert (report.imported, list(report.refused)) == (2, [])
    export_evledger(root, tmp_path / "out")
    read = store(tmp_path / "out").read_all()
    assert (read.malformed, [event.data for event in read.events]) == (0, [data, {"n": 1}])
    assert same(lines_of(tmp_path / "out/laptop/2026-09.jsonl"), lines_of(source / "laptop/2026-09.jsonl"))


ODD = [
    ev("no data", data=...),
    ev("null", data=None),
    ev("no seq", seq=...),
    ev("null seq", seq=None),
    ev("large seq", seq=1 << 40),
    ev("seq again", seq=0),
    ev("true seq", seq=True),
    ev("no content type", datacontenttype=...),
    ev("another", datacontenttype="text/plain", data="text"),
    ev("null type", datacontenttype=None),
    ev("version", specversion="0.3"),
    ev("number", specversion=1.0),
    ev("machine", machine="ci 1/x"),
    ev("no machine", machine=None),
    ev("surrogate machine", machine="\ud800"),
    ev("seconds", time="2026-09-28T08:03:54Z"),
    ev("milli", time="2026-09-28T08:03:54.100Z"),
    ev("zeros", time="2026-09-28T08:03:54.000000Z"),
    ev("nano", time="2026-09-28T08:03:54.123456789Z"),
    ev("pico", time="2026-09-28T08:03:54.123456789123Z"),
    ev("offset", time="2026-09-30T23:59:59.5-02:00"),
    ev("compact", time="20260928T080354+0000"),
    ev("lower", time="2026-09-28t08:03:54z"),
    ev("old", time="0987-09-28T08:03:54Z"),
    ev("subject", subject="world", dataschema="https://example.com/s", ipchash="ab", partitionkey="k", n=7, yes=True),
    ev("trace", traceparent=f"00-{'a' * 32}-{'b' * 16}-01", tracestate="a=b"),
    ev("no trace", traceparent="junk", tracestate="a=b"),
    ev("state", tracestate="a=b"),
    ev("ours", prev="x", checksum="y", synced=1, origseq=5, origtime="t", otlinvalid=True, origformat="pipeworks"),
    ev("names", Upper=1, under_score=[1], x=None, y=1.5, z={"$set": [1]}, long=1 << 31, **{"\ud800": 1, "": 2}),
    ev("id with ☃ and spaces"),
]


@pytest.mark.parametrize("event", ODD, ids=lambda event: str(event["id"]))
def test_odd_events_of_evledger_come_back(event: Json) -> None:
    assert same([through_ev(event)], [event])


def test_odd_events_of_evledger_come_back_from_files(root: Path, tmp_path: Path) -> None:
    lines = [json.dumps(event).encode() + b"\n" for event in ODD]
    source = write_ev(tmp_path / "ev", *lines)
    assert import_evledger(root, source).imported == len(ODD)
    files = export_evledger(root, tmp_path / "out").files
    events = {event["id"]: event for path in files for event in lines_of(path)}
    assert same([events[event["id"]] for event in ODD], ODD)
    assert {path.relative_to(tmp_path / "out").parts for path in files} == {
        ("laptop", "2026-09.jsonl"),
        ("laptop", "2026-10.jsonl"),
        ("laptop", "0987-09.jsonl"),
        ("ci 1%2Fx", "2026-09.jsonl"),
        ("laptop.import", "2026-09.jsonl"),
        ("%ED%A0%80", "2026-09.jsonl"),
    }
    assert import_evledger(root, source).already_there == len(ODD)


ODD_PW = [
    pw("no data", data=None),
    pw("no hash", ipc_hash=None),
    pw("empty hash", ipc_hash=""),
    pw("number", ipc_hash=5),
    pw("meta", meta={"phase": "老陳", "n": [1.0, 1, True, None, {"$bytes": "AA"}]}),
    pw("null meta", meta=None),
    pw("no version", schema_version=None),
    pw("version 2", schema_version="2.0"),
    pw("more", Zebra=1, aardvark=[{"x": 10**30}]),
    pw("seconds", timestamp="2026-11-21T20:54:51+00:00"),
    pw("z", timestamp="2026-11-21T20:54:51.049890Z"),
    pw("nan", data={"x": [float("nan"), float("inf"), -float("inf"), -0.0, 1e300, 10**100, -(2**63) - 1]}),
    pw("escaped", form="escaped"),
    pw("surrogate", form="escaped", data={"\ud800": "\udfff", "$x": 1}),
    pw("separators", data={"x": "\u2028\u2029\u0085"}),
    pw("integers", data={"axes": {2: {"$y": 1}, 10: 2}}),
    pw("world", world_id="../x"),
    pw("dots", world_id=".."),
    pw("long", world_id="w" * 300),
]


def test_odd_events_of_pipeworks_come_back(root: Path, tmp_path: Path) -> None:
    source = write_pw(tmp_path / "pw", *ODD_PW)
    report = import_pipeworks(root, source)
    assert (report.imported, list(report.refused)) == (len(ODD_PW), [])
    assert report.checksums == {"unescaped": 14, "either": 2, "escaped": 2, "ordered": 1}
    out = export_pipeworks(root, tmp_path / "out")
    events = {event["event_id"]: event for path in out.files for event in lines_of(path)}
    originals = [json.loads(line) for line in ODD_PW]
    assert same([events[event["event_id"]] for event in originals], originals)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in out.files}
    assert {path.name for path in out.files} > {"...jsonl", "..%2Fx.jsonl", "undertaking.jsonl"}
    assert import_pipeworks(root, tmp_path / "out").already_there == len(ODD_PW)


# What JSON can hold

texts = st.text(st.characters(exclude_categories=()), max_size=8)
names = texts | st.sampled_from(["$x", "$map", "$bytes", "$int", "$float", "$str", "$set", "$enc", "$"])
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, -(2**63) - 1, 2**64, 10**400])
    | st.floats()
    | texts
)
payloads = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=3), max_leaves=12
)


def as_stored(draft: Draft, machine: str) -> dict[str, Json]:
    _, part = Encoder(machine, "import").draft(draft, 0)
    (line,) = stamp([part], 0, ZEROS)
    return parse(line).to_dict()


def through_ev(event: Json) -> Json:
    members = read_object(json.dumps(event).encode() + b"\n")
    there = as_stored(evledger.to_draft(members, "laptop", "laptop.import"), "laptop.import")
    assert evledger.is_ours(there)
    return evledger.restore(there)


@given(payloads, st.dictionaries(names, payloads, max_size=3))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_comes_back_from_evledger(data: Json, more: dict[str, Json]) -> None:
    event = ev("x", data=data) | {name: value for name, value in more.items() if name not in ev()}
    assert same([through_ev(event)], [event])


@given(payloads, payloads, st.dictionaries(names, payloads, max_size=3), st.sampled_from(["unescaped", "escaped"]))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_comes_back_from_pipeworks(data: Json, meta: Json, more: dict[str, Json], form: str) -> None:
    more = {name: value for name, value in more.items() if name not in pipeworks.REQUIRED}
    if "\\ud" in canonical([data, meta, more]):
        form = "escaped"
    line = pw("x", form=form, data=data, meta=meta, **more)
    members = read_object(line)
    draft = pipeworks.to_draft(members, pipeworks.fitting(members)[0])
    back = pipeworks.to_line(*pipeworks.restore(as_stored(draft, "pipeworks.import")))
    assert same([json.loads(back)], [json.loads(line)])
    assert not {"\u2028", "\u2029", "\u0085"} & set(back.decode())


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_no_bytes_break_the_reading_of_a_line(line: bytes) -> None:
    with contextlib.suppress(EventRefused):
        assert isinstance(read_object(line), dict)
    assert pipeworks.swallowed(line) == 0


@given(payloads)
@settings(deadline=None)
def test_plain_data_is_what_json_was_handed(value: Json) -> None:
    draft = Draft("x", {"value": value})
    data = plain(as_stored(draft, "m")["data"])
    assert canonical(data) == canonical({"value": value})


def test_what_json_has_no_word_for_stays_as_it_is_stored() -> None:
    data = as_stored(Draft("x", {"a": b"x", "b": {1}, "c": {1: 2}, "d": {"$y": 1}}), "m")["data"]
    assert plain(data) == {"a": {"$bytes": "eA=="}, "b": {"$set": [1]}, "c": {"$map": [[1, 2]]}, "d": {"$y": 1}}
    for odd in ({"$map": 5}, {"$map": [5]}, {"$map": [["a", 1], ["a", 2]]}, {"$int": "x"}, {"$int": "9" * 5000}):
        assert plain(odd) == odd


# Names


def test_machines_get_valid_partitions_of_their_own() -> None:
    folders = ["laptop", "My Laptop", "my-laptop", "MY LAPTOP", "..", "x" * 100, "x" * 99, "pipeworks", "a" * 55 + ".b"]
    partitions = partition_names(folders, {})
    assert len(set(partitions.values())) == len(folders)
    for name in partitions.values():
        assert valid_machine(name) == name
        assert len(name) <= 63
        assert name.endswith(".import")
    assert partitions["laptop"] == "laptop.import"
    assert partitions["my-laptop"] == "my-laptop.import"
    assert partitions[".."] == "machine.import"
    assert partitions["pipeworks"] != "pipeworks.import"
    assert partition_names(["MacBook-Pro"], {}) == {"MacBook-Pro": "macbook-pro.import"}


def test_machines_keep_their_partitions_from_import_to_import(root: Path, tmp_path: Path) -> None:
    source = write_ev(tmp_path / "ev", ev("a", machine="My Laptop"), machine="My Laptop")
    import_evledger(root, source)
    write_ev(source, ev("b", machine="my-laptop"), machine="my-laptop")
    write_ev(source, ev("c", machine="My Laptop"), machine="My Laptop")
    write_ev(source, ev("d", machine="elsewhere"), machine="other")
    write_ev(source, ev("e", machine="pipeworks"), machine="pipeworks")
    report = import_evledger(root, source)
    assert [record.id for record in stored(root, "my-laptop.import")] == ["a", "c"]
    assert len(set(report.partitions)) == 4
    assert sorted(report.partitions) == sorted(entry.name for entry in root.iterdir())
    assert import_evledger(root, source).already_there == 5
    export_evledger(root, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("My Laptop", "elsewhere", "my-laptop", "pipeworks")
    ]


@given(texts, texts)
def test_file_names_differ_and_stay_in_their_folder(one: str, other: str) -> None:
    for suffix in ("", ".jsonl"):
        name = file_name(one, suffix)
        assert name not in ("", ".", "..")
        assert "/" not in name
        assert "\0" not in name
        assert len(os.fsencode(name)) <= 255
        assert (file_name(one, suffix) == file_name(other, suffix)) == (one == other)
    assert len(os.fsencode(file_name(one * 100, ".jsonl"))) <= 255


# evledger reads what otledger wrote


def both(root: Path) -> Counter[str]:
    """A ledger with imported and native events, and how many there are of each type."""
    import_evledger(root, EVLEDGER)
    import_pipeworks(root, PIPEWORKS)
    with Journal(root, machine="m1", service="shop") as journal:
        journal.append([Draft("order.placed", {"id": n, "text": "a\u2028b"}, subject="s") for n in range(10)])
    return Counter(record.type for record in Reader(root).records())


def test_evledger_reads_the_ledger(root: Path) -> None:
    package = pytest.importorskip("evledger")
    counts = both(root)
    read = package.LedgerStore(root).read_all()
    assert read.malformed == 0
    assert package.counts_by_type(read.events) == counts
    shown = package.query_events(read.events, package.Query(machine="m1", type="order.*"))
    assert [event.data["id"] for event in shown] == list(range(10))


def test_evledgers_commands_read_the_ledger(root: Path) -> None:
    pytest.importorskip("click")
    pytest.importorskip("evledger")
    counts = both(root)
    command = [sys.executable, "-c", "from evledger.cli import ledger_group; ledger_group()"]
    for arguments, expected in (
        (("show", "--type", "order.*"), "10 event(s)."),
        (("show", "--machine", "laptop.import", "--until", "2026-11-01T00:00:00Z"), "205 event(s)."),
        (("stats", "--pair"), f"Events: {counts.total()}"),
    ):
        done = subprocess.run(
            [*command, *arguments, "--ledger-root", str(root)], capture_output=True, text=True, check=True
        )
        assert expected in done.stdout


def test_evledger_reads_the_export_of_native_events(root: Path, tmp_path: Path) -> None:
    package = pytest.importorskip("evledger")
    both(root)
    with Journal(root, machine="m1", service="shop") as journal:
        journal.append([Draft("x", {"b": b"x"}, ipc_hash="ab", time="2026-09-30T23:59:59.123456789Z")])
    report = export_evledger(root, tmp_path / "out", machines=["m1", "laptop.import"])
    read = package.LedgerStore(tmp_path / "out").read_all()
    assert (read.malformed, len(read.events), report.exported) == (0, 216, 216)
    (event,) = lines_of(tmp_path / "out" / "m1" / "2026-09.jsonl")
    record = stored(root, "m1")[-1]
    assert event == {
        "specversion": "1.0",
        "id": record.id,
        "source": "/m1/shop",
        "type": "x",
        "time": "2026-09-30T23:59:59.123456789Z",
        "data": {"b": {"$bytes": "eA=="}},
        "machine": "m1",
        "seq": record.seq,
        "ipchash": "ab",
    }


def test_the_export_of_a_ledger_can_be_imported_elsewhere(root: Path, tmp_path: Path) -> None:
    both(root)
    out = export_evledger(root, tmp_path / "out")
    report = import_evledger(tmp_path / "second", tmp_path / "out")
    assert (report.imported, list(report.refused)) == (out.exported, [])
    export_evledger(tmp_path / "second", tmp_path / "again")
    for path in out.files:
        assert (tmp_path / "again" / path.relative_to(tmp_path / "out")).read_bytes() == path.read_bytes()


def test_a_ledger_of_evledgers_can_be_imported_into_itself(root: Path, tmp_path: Path) -> None:
    shutil.copytree(EVLEDGER, root)
    assert import_evledger(root, root).imported == 400
    report = import_evledger(root, root)
    assert (report.imported, report.already_there, len(report.partitions)) == (0, 400, 2)
    write_ev(root, ev("late", seq=9000), month="2026-10")
    assert export_evledger(root, tmp_path / "out").exported == 401
    shutil.rmtree(root / "laptop")
    shutil.rmtree(root / "ci-1")
    with pytest.raises(FormatError, match="holds no ledger of evledger's"):
        import_evledger(root, root)


# PipeWorks


def test_native_events_can_go_to_pipeworks(root: Path, tmp_path: Path) -> None:
    both(root)
    assert export_pipeworks(root, tmp_path / "imported").exported == 240
    assert export_pipeworks(root, tmp_path / "all", everything=True).exported == 650
    assert export_pipeworks(root, tmp_path / "one", everything=True, world="s").exported == 10
    report = import_pipeworks(tmp_path / "second", tmp_path / "all")
    assert (report.imported, list(report.refused)) == (650, [])


# Interruptions

CRASH = """
import os, signal, sys
from otledger.predecessors import import_evledger, import_pipeworks, intake

intake.BATCH = int(sys.argv[5])
calls = 0


def progress(done, total):
    global calls
    calls += 1
    if calls == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)


{"evledger": import_evledger, "pipeworks": import_pipeworks}[sys.argv[1]](sys.argv[2], sys.argv[3], progress=progress)
"""


KINDS: dict[str, tuple[Import, Export]] = {
    "evledger": (import_evledger, export_evledger),
    "pipeworks": (import_pipeworks, export_pipeworks),
}


def start(kind: str, root: Path, source: Path, calls: int, *, batch: int) -> subprocess.Popen[bytes]:
    """An import in a process that kills itself after so many batches."""
    command = [sys.executable, "-c", CRASH, kind, str(root), str(source), str(calls), str(batch)]
    path = os.pathsep.join([str(DATA.parent.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})


@pytest.mark.parametrize("calls", [1, 3, 7, 11])
@pytest.mark.parametrize(("kind", "source"), [("evledger", EVLEDGER), ("pipeworks", PIPEWORKS)])
def test_an_import_that_was_killed_goes_on(root: Path, tmp_path: Path, kind: str, source: Path, calls: int) -> None:
    assert start(kind, root, source, calls, batch=20).wait() == -signal.SIGKILL
    take, give = KINDS[kind]
    report = take(root, source)
    # The last batch of each file is a short one.
    assert 20 * (calls - 2) < report.already_there <= 20 * calls
    assert report.imported
    give(root, tmp_path / "out")
    for path in source.rglob("*.jsonl"):
        assert (tmp_path / "out" / path.relative_to(source)).read_bytes() == path.read_bytes()


def test_an_import_may_be_killed_at_any_instant(root: Path, tmp_path: Path) -> None:
    for after in (0.02, 0.1, 0.0, 0.05, 0.01, 0.2):
        process = start("evledger", root, EVLEDGER, 0, batch=1)
        before = sum(path.stat().st_size for path in root.rglob("*.jsonl"))
        while process.poll() is None and sum(path.stat().st_size for path in root.rglob("*.jsonl")) == before:
            time.sleep(0.001)
        time.sleep(after)
        process.kill()
        process.wait()
    report = import_evledger(root, EVLEDGER)
    assert report.imported + report.already_there == 400
    assert len(stored(root, "ci-1.import") + stored(root, "laptop.import")) == 400
    export_evledger(root, tmp_path / "out")
    for path in EVLEDGER.rglob("*.jsonl"):
        assert (tmp_path / "out" / path.relative_to(EVLEDGER)).read_bytes() == path.read_bytes()


def test_an_import_that_a_full_disk_broke_off_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "BATCH", 20)
    write, left = os.write, [60_000]

    def failing(fd: int, data: Any) -> int:
        if left[0] <= 0:
            raise OSError(28, "No space left on device")
        part = memoryview(data)[: left[0]]
        left[0] -= len(part)
        return write(fd, part)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing)
        with pytest.raises(LedgerError, match="No space left"):
            import_evledger(root, EVLEDGER)
    report = import_evledger(root, EVLEDGER)
    assert report.imported + report.already_there == 400
    assert 0 < report.already_there < 400
    assert len(stored(root, "ci-1.import") + stored(root, "laptop.import")) == 400


def test_only_one_import_runs_at_a_time(root: Path) -> None:
    root.mkdir()
    fd = os.open(root, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(LockTimeout, match="another import"):
        import_evledger(root, EVLEDGER)
    os.close(fd)
    assert import_evledger(root, EVLEDGER).imported == 400


def test_settings_are_passed_on(root: Path) -> None:
    import_evledger(root, EVLEDGER, file_mode=0o640, durability="os", max_segment=20_000)
    files = list((root / "laptop.import").glob("*.jsonl"))
    assert len(files) > 1
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}


def test_a_changed_record_is_told_apart(root: Path, tmp_path: Path) -> None:
    import_pipeworks(root, write_pw(tmp_path / "pw", pw("a"), pw("b")))
    (path,) = (root / "pipeworks.import").glob("*.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"origmeta":"{}"', b'"origmeta":"{{"', 1))
    out = export_pipeworks(root, tmp_path / "out")
    assert (out.exported, len(out.faults)) == (1, 1)
    shutil.rmtree(root)


# What is refused as a whole


@pytest.mark.parametrize(
    ("take", "make", "error", "message"),
    [
        (import_evledger, lambda path: None, RootError, "nothing at this path"),
        (import_pipeworks, lambda path: None, RootError, "nothing at this path"),
        (import_evledger, lambda path: path.write_text("x"), RootError, "is no folder"),
        (import_evledger, Path.mkdir, FormatError, "holds no ledger of evledger's"),
        (import_pipeworks, Path.mkdir, FormatError, "holds no ledger of PipeWorks'"),
        (import_evledger, lambda path: shutil.copytree(PIPEWORKS, path), FormatError, "one folder deeper"),
        (import_evledger, lambda path: shutil.copytree(PIPEWORKS, path / "m"), FormatError, "import pipeworks"),
        (import_pipeworks, lambda path: shutil.copytree(EVLEDGER, path), FormatError, "holds no ledger of PipeWorks'"),
        (import_pipeworks, lambda path: shutil.copytree(EVLEDGER / "laptop", path), FormatError, "import evledger"),
        (import_evledger, lambda path: import_evledger(path, EVLEDGER), FormatError, "holds no ledger of evledger's"),
    ],
)
def test_what_is_no_such_ledger_is_refused(
    root: Path, tmp_path: Path, take: Import, make: Callable[[Path], object], error: type[LedgerError], message: str
) -> None:
    source = tmp_path / "source"
    make(source)
    with pytest.raises(error, match=message):
        take(root, source)
    assert not root.exists()


def test_a_file_that_cannot_be_read_is_an_error(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_pw(tmp_path / "pw", pw("a"))

    def failing(self: Path, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(RootError, match="Permission denied"):
        import_pipeworks(root, source)


@pytest.mark.parametrize("give", [export_evledger, export_pipeworks])
def test_an_export_overwrites_nothing(root: Path, tmp_path: Path, give: Export) -> None:
    import_pipeworks(root, PIPEWORKS)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "folder", "link"):
        with pytest.raises(RootError, match="nothing is overwritten"):
            give(root, tmp_path / name)
    for inside in (root / "out", root / "pipeworks.import" / "out"):
        with pytest.raises(RootError, match="inside the ledger"):
            give(root, inside)
    with pytest.raises(RootError, match="cannot be written"):
        give(root, tmp_path / "none" / "out")
    with pytest.raises(RootError, match="no ledger here"):
        give(tmp_path / "none", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "ledger", "link"]


def test_an_export_of_nothing_says_so(root: Path, tmp_path: Path) -> None:
    import_pipeworks(root, PIPEWORKS)
    with pytest.raises(RootError, match="of the world 'nowhere'"):
        export_pipeworks(root, tmp_path / "out", world="nowhere")
    with pytest.raises(RootError, match="no machine 'nobody'"):
        export_evledger(root, tmp_path / "out", machines=["nobody"])
    assert [path.name for path in tmp_path.iterdir()] == ["ledger"]


def test_an_export_that_fails_leaves_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_pipeworks(root, PIPEWORKS)

    def failing(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(RootError, match="Input/output error"):
            export_pipeworks(root, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["ledger"]


def test_an_export_opens_few_files_at_a_time(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newfolder, "OPEN_FILES", 2)
    events = [ev(f"{n}", time=f"20{n % 9 + 10}-01-01T00:00:00Z") for n in range(60)]
    import_evledger(root, write_ev(tmp_path / "ev", *events))
    report = export_evledger(root, tmp_path / "out")
    assert len(report.files) == 9
    exported = [event for path in report.files for event in lines_of(path)]
    assert same(sorted(exported, key=lambda event: int(event["id"])), events)


def test_exports_are_private(root: Path, tmp_path: Path) -> None:
    import_evledger(root, EVLEDGER)
    export_evledger(root, tmp_path / "out")
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*.jsonl")}
    assert modes == {0o600}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700
