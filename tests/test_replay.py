"""Spans and traces from records: in any order, repeated, with lost ends, in bounded memory, from growing files."""

import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import otledger
from otledger import Filter, Reader, Record
from otledger.errors import ConfigurationError, FormatError
from otledger.journal import Batch
from otledger.record import format_time, parse
from otledger.replay import Replay, ReplayedSpan, Trace, merge, span_of
from tests.conftest import Script

Json = dict[str, Any]

T0 = 1_790_000_000_000_000_000
SECOND = 1_000_000_000
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def line(
    type: str, at: int, data: Any, *, trace: str | None = TRACE, span: int = 1, machine: str = "m1", seq: int = 0
) -> bytes:
    """A record as a line, its chain left out."""
    members: Json = {"specversion": "1.0", "id": f"{seq:032x}", "source": f"/{machine}/shop", "type": type}
    members |= {"time": format_time(at), "machine": machine}
    if trace is not None:
        members["traceparent"] = f"00-{trace}-{span:016x}-01"
    return json.dumps({**members, "data": data, "seq": seq}, separators=(",", ":")).encode() + b"\n"


def span_records(
    span: int, start: int, end: int | None, parent: int | None = None, *, begun: bool = True, **options: Any
) -> list[Record]:
    """Start and end record of a span; times count from T0."""
    data: Json = {"name": options.pop("name", f"s{span}")}
    if parent is not None:
        data["parent_span_id"] = f"{parent:016x}"
    data["start"] = T0 + start
    seq = options.pop("seq", span * 2)
    records = []
    if begun:
        told = line("otel.span.start", T0 + start, data, span=span, seq=seq, **options)
        records.append(parse(told))
    if end is not None:
        told = line("otel.span.end", T0 + end, {**data, "end": T0 + end}, span=span, seq=seq + 1, **options)
        records.append(parse(told))
    return records


def feed(records: Iterable[Record], replay: Replay | None = None) -> tuple[list[ReplayedSpan], list[Trace]]:
    """The spans as they ended and the traces, those that were left included."""
    replay = Replay(grace=math.inf, hold=None) if replay is None else replay
    finished = [item for record in records for item in replay.feed(record)]
    spans = [item for item in finished if isinstance(item, ReplayedSpan)]
    return spans, [*(item for item in finished if isinstance(item, Trace)), *replay.finish()]


def one(records: Iterable[Record]) -> Trace:
    _, (trace,) = feed(records)
    return trace


def tree(trace: Trace) -> list[Any]:
    """A trace as depth, id, name, end, of all spans."""
    return [(depth, int(span.span_id, 16), span.name, span.end, span.machine) for depth, span in trace.walk()]


# The tree


def test_a_trace_is_a_tree_of_its_spans() -> None:
    records = [
        *span_records(1, 0, 100),
        *span_records(2, 10, 50, parent=1),
        *span_records(3, 20, 30, parent=2),
        *span_records(4, 60, 90, parent=1, begun=False),
    ]
    spans, (trace,) = feed(records)
    assert [span.name for span in spans] == ["s1", "s2", "s3", "s4"]
    assert [(depth, span.name) for depth, span in trace.walk()] == [(0, "s1"), (1, "s2"), (2, "s3"), (1, "s4")]
    (root,) = trace.roots
    assert [span.name for span in trace.children(root)] == ["s2", "s4"]
    assert (trace.trace_id, trace.start, trace.end, trace.duration) == (TRACE, T0, T0 + 100, 100)
    assert (trace.orphans, trace.duplicates, trace.unfinished, trace.skewed) == ((), (), (), ())
    assert (trace.repeats, trace.late, trace.machines) == (0, False, ("m1",))


def test_what_a_span_tells() -> None:
    data = {
        "name": "charge",
        "kind": "CLIENT",
        "parent_span_id": f"{7:016x}",
        "parent_is_remote": True,
        "start": T0,
        "end": T0 + 5,
        "attributes": {"a": {"$float": "NaN"}, "b": [1]},
        "events": [{"name": "e", "time": T0 + 1}],
        "links": [{"trace_id": "x", "span_id": "y"}],
        "status": {"code": "ERROR", "description": "no"},
    }
    told = parse(line("otel.span.end", T0 + 5, data, span=3, seq=9))
    span = span_of(told)
    assert (span.trace_id, span.span_id, span.parent_span_id) == (TRACE, f"{3:016x}", f"{7:016x}")
    assert (span.name, span.kind, span.parent_is_remote) == ("charge", "CLIENT", True)
    assert (span.start, span.end, span.duration) == (T0, T0 + 5, 5)
    assert (span.status, span.description) == ("ERROR", "no")
    assert math.isnan(span.attributes["a"])
    assert span.attributes["b"] == [1]
    assert (span.events, span.links, span.process) == (({"name": "e", "time": T0 + 1},), tuple(data["links"]), None)  # type: ignore[arg-type]
    assert (span.machine, span.service, span.seq, span.record) == ("m1", "/m1/shop", 9, told)
    plain = span.to_dict()
    assert plain["attributes"] == data["attributes"]
    assert json.loads(json.dumps(plain)) == plain


@pytest.mark.parametrize(
    "data",
    [
        None,
        "text",
        [],
        {},
        {"name": None, "start": "soon", "end": {"$int": "99999999999999999999"}},
        {"name": 7, "kind": [], "status": "ERROR", "start": None, "end": 1.5, "parent_span_id": 4, "attributes": 3},
        {"start": T0, "end": None, "status": {"code": 3}, "events": {}, "links": [1], "process": []},
    ],
)
def test_a_payload_of_other_types_is_read_as_if_they_were_left_out(data: Any) -> None:
    span = span_of(parse(line("otel.span.end", T0 + 5, data)))
    assert (span.end, span.status, span.trace_id) == (T0 + 5, "UNSET", TRACE)
    assert span.start in (T0, T0 + 5)
    assert (span.name, span.parent_span_id, dict(span.attributes)) == ("", None, {})
    assert (span.events, span.links, span.process) == ((), (), None)
    assert span.to_dict()["name"] == ""
    assert len(one([parse(line("otel.span.end", T0 + 5, data))]).spans) == 1


def test_text_that_is_none_is_an_error() -> None:
    told = line("otel.span.end", T0, {"name": "n", "start": T0, "end": T0, "attributes": {"a": "XX"}}, seq=4)
    with pytest.raises(FormatError, match=r"not a record: 'utf-8'.*position 3"):
        parse(told.replace(b"XX", b"\xff\xff"))


def test_ids_that_form_no_header_stand_in_the_data() -> None:
    own = {"name": "n", "trace_id": "0" * 32, "span_id": "0" * 16, "start": T0, "end": T0 + 1}
    span = span_of(parse(line("otel.span.end", T0 + 1, own, trace=None)))
    assert (span.trace_id, span.span_id, span.name) == ("0" * 32, "0" * 16, "n")


def test_spans_without_ids_are_not_each_others() -> None:
    data = {"name": "n", "start": T0, "end": T0 + 1}
    records = [parse(line("otel.span.end", T0 + 1, data, trace=None, seq=seq)) for seq in range(3)]
    spans, traces = feed(records)
    assert len(spans) == len(traces) == 3


def test_a_span_whose_parent_is_missing_is_an_orphan() -> None:
    trace = one([*span_records(2, 10, 50, parent=1), *span_records(3, 20, 30, parent=2), *span_records(9, 0, 5)])
    assert [span.name for span in trace.orphans] == ["s2"]
    assert [span.name for span in trace.roots] == ["s9"]
    assert [(depth, span.name) for depth, span in trace.walk()] == [(0, "s9"), (0, "s2"), (1, "s3")]


@pytest.mark.parametrize("links", [{1: 1}, {1: 2, 2: 1}, {1: 2, 2: 3, 3: 1, 4: 1, 5: 4}, {1: 2, 2: 3, 3: 2}])
def test_circles_lose_no_span(links: dict[int, int]) -> None:
    trace = one(record for span, parent in links.items() for record in span_records(span, span, 50, parent=parent))
    assert sorted(int(span.span_id, 16) for _, span in trace.walk()) == sorted(links)
    assert trace.orphans


def test_clocks_that_disagree_do_not_change_the_tree() -> None:
    trace = one(
        [
            *span_records(1, 1000, 2000),
            *span_records(2, 400, 500, parent=1, machine="m2"),
            *span_records(3, 300, 200, parent=2, machine="m2"),
        ]
    )
    assert [(depth, span.name) for depth, span in trace.walk()] == [(0, "s1"), (1, "s2"), (2, "s3")]
    assert [span.name for span in trace.skewed] == ["s3", "s2"]
    assert {span.name: span.duration for span in trace.spans} == {"s1": 1000, "s2": 100, "s3": 0}
    assert (trace.start, trace.end) == (T0 + 300, T0 + 2000)
    assert trace.machines == ("m2", "m1")


def test_a_span_that_is_recorded_again_is_one_span() -> None:
    first = [*span_records(1, 0, 100), *span_records(2, 1, 9, parent=1)]
    again = [*span_records(1, 0, 100, seq=50), *span_records(1, 0, 100, machine="m0", seq=70)]
    spans, (trace,) = feed([*first, *again])
    assert len(spans) == len(trace.spans) == 2
    assert (trace.repeats, trace.duplicates) == (2, ())
    # Of several the same one stays, in whichever order they come.
    assert {span.machine for span in trace.roots} == {"m0"}


def test_spans_that_share_an_id_are_told_apart() -> None:
    trace = one(
        [
            *span_records(1, 0, 100),
            *span_records(2, 10, 20, parent=1, name="first"),
            *span_records(2, 50, None, parent=1, name="second", seq=30),
            *span_records(3, 15, 16, parent=2),
            *span_records(4, 55, 56, parent=2),
        ]
    )
    assert [span.name for span in trace.duplicates] == ["second"]
    assert [span.name for span in trace.unfinished] == ["second"]
    assert [(depth, span.name) for depth, span in trace.walk()] == [
        *((0, "s1"), (1, "first"), (2, "s3"), (1, "second"), (2, "s4"))
    ]


def test_an_open_span_that_was_renamed_is_the_same_when_it_ends() -> None:
    records = [span_records(1, 0, None, name="before")[0], span_records(1, 0, 9, name="after")[1]]
    assert [span.name for span in one(records).spans] == ["after"]
    assert [span.name for span in one(reversed(records)).spans] == ["after"]


SPANS = st.tuples(
    st.integers(1, 5),
    st.integers(0, 3),
    st.none() | st.integers(0, 9),
    st.none() | st.integers(1, 6),
    st.booleans(),
    st.sampled_from([TRACE, "a" * 32]),
    st.sampled_from(["m1", "m2"]),
    st.sampled_from(["a", "b"]),
)


@st.composite
def histories(draw: st.DrawFn) -> list[Record]:
    """Records of some traces: lost starts and ends, repeated records, shared ids, several machines, bad parents."""
    records: list[Record] = []
    for number, (span, start, end, parent, begun, trace, machine, name) in enumerate(draw(st.lists(SPANS, max_size=9))):
        options = {"trace": trace, "machine": machine, "name": name, "seq": number * 2}
        records += span_records(span, start, end, parent, begun=begun, **options)
    return records + records[: draw(st.integers(0, 3))]


def shape(traces: Iterable[Trace]) -> list[Any]:
    return [
        (trace.trace_id, tree(trace), trace.parents, trace.repeats, [span.line for span in trace.spans])
        for trace in sorted(traces, key=lambda trace: trace.trace_id)
    ]


@settings(max_examples=120, deadline=None)
@given(histories(), st.randoms(use_true_random=False))
def test_records_in_any_order_give_the_same_trees(records: list[Record], order: random.Random) -> None:
    expected = feed(records)[1]
    shuffled = list(records)
    order.shuffle(shuffled)
    replay = Replay(grace=math.inf, hold=None)
    found = feed(shuffled, replay)[1]
    assert shape(found) == shape(expected)
    # Every line that is shown was fed, every id that was fed is shown.
    ids = {(record.trace_id, record.span_id) for record in records}
    assert {(trace.trace_id, span.span_id) for trace in found for span in trace.spans} == ids


@settings(max_examples=80, deadline=None)
@given(histories(), st.randoms(use_true_random=False), st.integers(1, 3), st.sampled_from([0, 1000, 5000]))
def test_parts_of_a_trace_merge_to_the_whole(
    records: list[Record], order: random.Random, grace: int, hold: int
) -> None:
    expected = feed(records)[1]
    shuffled = list(records)
    order.shuffle(shuffled)
    parts: dict[str, list[Trace]] = defaultdict(list)
    for trace in feed(shuffled, Replay(grace=grace / SECOND, hold=hold))[1]:
        assert trace.late == bool(parts[trace.trace_id])
        parts[trace.trace_id].append(trace)
    whole = [merge(own) for own in parts.values()]
    # How often it was told again may be forgotten between two parts; nothing else may.
    assert [found[:3] for found in shape(whole)] == [found[:3] for found in shape(expected)]


# Streaming


def test_a_trace_is_handed_on_when_it_is_over_and_the_grace_has_passed() -> None:
    replay = Replay(grace=1.0)
    second = [*span_records(2, 0, 10, parent=1), *span_records(1, 0, 20, begun=False)]
    assert [len(replay.feed(record)) for record in second] == [0, 1, 1]
    # The clock is that of the records: nothing comes while it stands still.
    assert replay.tick(T0 + SECOND) == ()
    (trace,) = replay.tick(T0 + SECOND + 20)
    assert [span.name for span in trace.spans] == ["s1", "s2"]
    assert replay.finish() == []


def test_any_record_drives_the_clock() -> None:
    replay = Replay(grace=1.0)
    for record in span_records(1, 0, 10):
        replay.feed(record)
    assert replay.feed(parse(line("order.placed", T0 + SECOND, {}))) == ()
    (trace,) = replay.feed(parse(line("order.placed", T0 + 2 * SECOND, {})))
    assert isinstance(trace, Trace)


def test_a_trace_with_an_open_span_waits_for_its_end() -> None:
    replay = Replay(grace=1.0)
    start, end = span_records(1, 0, 90 * SECOND)
    for record in [start, *span_records(2, 1, 2, parent=1)]:
        replay.feed(record)
    assert replay.tick(T0 + 60 * SECOND) == ()
    assert [span.name for span in replay.unfinished()] == ["s1"]
    assert [type(item).__name__ for item in replay.feed(end)] == ["ReplayedSpan"]
    (trace,) = replay.tick(T0 + 92 * SECOND)
    assert [span.name for span in trace.spans] == ["s1", "s2"]


def test_what_comes_late_is_handed_on_marked_and_merges() -> None:
    replay = Replay(grace=1.0)
    for record in span_records(1, 0, 10):
        replay.feed(record)
    (first,) = replay.tick(T0 + 2 * SECOND)
    for record in span_records(2, 5, 8, parent=1):
        replay.feed(record)
    (second,) = replay.finish()
    assert (first.late, second.late) == (False, True)
    assert [span.name for span in second.orphans] == ["s2"]
    whole = merge([second, first])
    assert [(depth, span.name) for depth, span in whole.walk()] == [(0, "s1"), (1, "s2")]
    assert not whole.late


def test_memory_is_bounded_and_open_spans_are_not_forgotten() -> None:
    replay = Replay(grace=math.inf, hold=10_000)
    start, end = span_records(1, 0, 5 * SECOND)
    replay.feed(start)
    parts: list[Trace] = []
    for number in range(2, 500):
        for record in span_records(number, number, number + 1, parent=1):
            parts += [item for item in replay.feed(record) if isinstance(item, Trace)]
        assert replay._size <= 10_000 + 1000
    assert len(parts) > 5
    assert [part.late for part in parts] == [False] + [True] * (len(parts) - 1)
    assert [span.name for span in replay.unfinished()] == ["s1"]
    assert [item.name for item in replay.feed(end) if isinstance(item, ReplayedSpan)] == ["s1"]
    whole = merge([*parts, *replay.finish()])
    assert len(whole.spans) == 499
    assert (len(whole.roots), whole.unfinished, whole.orphans) == (1, (), ())


def test_the_grace_alone_bounds_memory() -> None:
    """Without any bound of bytes no more is held than a grace's worth of traces, and open spans."""
    held = []
    for grace in (1.0, 4.0):
        replay = Replay(grace=grace, hold=None)
        whole, most = 0, 0
        for number in range(2_000):
            # Ten traces a second, each over at once.
            at = number * SECOND // 10
            for record in span_records(1, at, at + 1000, trace=f"{number + 1:032x}"):
                whole += sum(isinstance(item, Trace) for item in replay.feed(record))
            most = max(most, number + 1 - whole)
            assert replay._size < 50 * grace * 400
        assert len(replay.finish()) + whole == 2_000
        held.append(most)
    assert held == [10, 40]


def test_a_start_that_comes_long_after_its_end_is_no_open_span(root: Path) -> None:
    (start, end), others = span_records(1, 0, 10), span_records(2, 500 * SECOND, 501 * SECOND, trace="a" * 32)
    open_too, _ = span_records(3, 20, 30)
    with otledger.Journal(root, machine="m1") as journal:
        parts = [
            journal.encoder.telemetry(
                record.type, record.time_ns, bytes(record.raw).decode(), f',"traceparent":"{record.traceparent}"'
            )
            for record in (end, *others, start, open_too)
        ]
        journal.write(Batch(parts, {}))
    found = [(span.name, span.end is None) for span in Reader(root).spans()]
    assert sorted(found) == [("s1", False), ("s2", False), ("s3", True)]
    assert [span.name for span in Reader(root).spans(unfinished=False)] == ["s1", "s2"]


def test_a_time_far_ahead_tears_no_trace_apart() -> None:
    replay = Replay(grace=1.0)
    replay.feed(parse(line("clock.wrong", T0 + 10**17, {})))
    _, (trace,) = feed([*span_records(1, 0, 100), *span_records(2, 1, 2, parent=1)], replay)
    assert len(trace.spans) == 2


def test_merge_needs_a_part() -> None:
    with pytest.raises(ValueError, match="no part"):
        merge([])


# Real files, against a reader of thirty lines


def naive(root: Path) -> tuple[dict[str, dict[str, Json]], dict[str, list[Json]]]:
    """Spans by trace and id, and records by ipc_hash, by json and nothing else."""
    traces: dict[str, dict[str, Json]] = defaultdict(dict)
    turns: dict[str, list[Json]] = defaultdict(list)
    records = [
        json.loads(text)
        for folder in sorted(root.iterdir())
        for path in sorted(folder.glob("*.jsonl"))
        for text in path.read_bytes().split(b"\n")[:-1]
    ]
    for record in records:
        if "ipchash" in record:
            turns[record["ipchash"]].append(record)
        if record["type"] not in ("otel.span.start", "otel.span.end"):
            continue
        _, trace_id, span_id, _ = record["traceparent"].split("-")
        if record["type"] == "otel.span.end" or span_id not in traces[trace_id]:
            traces[trace_id][span_id] = record["data"]
    return traces, turns


def same(root: Path, found: Iterable[Trace]) -> None:
    """Assert that traces are those of the naive reader."""
    expected, _ = naive(root)
    parts: dict[str, list[Trace]] = defaultdict(list)
    for trace in found:
        parts[trace.trace_id].append(trace)
    assert parts.keys() == expected.keys()
    for trace_id, own in parts.items():
        trace = merge(own)
        assert {span.span_id: (span.name, span.start, span.end) for span in trace.spans} == {
            span_id: (data["name"], data["start"], data.get("end")) for span_id, data in expected[trace_id].items()
        }
        for span, parent in zip(trace.spans, trace.parents, strict=True):
            named = expected[trace_id][span.span_id].get("parent_span_id")
            assert (None if parent is None else trace.spans[parent].span_id) == (
                named if named in expected[trace_id] else None
            )


def generate(root: Path, machines: Sequence[str], traces: int, seed: int, lost: float = 0.1) -> None:
    """Interleaved traces over several machines: most starts not written, some ends lost, order shuffled a little."""
    chance = random.Random(seed)
    due: list[tuple[int, str, str, int, Json, str]] = []
    for number in range(traces):
        trace, turn = f"{chance.getrandbits(128):032x}", f"{chance.getrandbits(256):064x}"
        begin, spans = T0 + number * SECOND // 4, [f"{chance.getrandbits(64):016x}" for _ in range(6)]
        for at, span in enumerate(spans):
            start = begin + at * 1_000_000
            end = start + chance.randrange(20_000_000)
            data: Json = {"name": f"op{at}"}
            if at:
                data["parent_span_id"] = chance.choice(spans[:at])
            data["start"] = start
            machine = chance.choice(machines)
            header = f',"ipchash":"{turn}","traceparent":"00-{trace}-{span}-01"'
            gone = chance.random() < lost
            if gone or chance.random() < 0.3:
                due.append((start, machine, "otel.span.start", start, data, header))
            if not gone:
                # What a batch writes stands a little out of the order of its times.
                late = end + chance.randrange(50_000_000)
                due.append((late, machine, "otel.span.end", end, {**data, "end": end}, header))
    due.sort(key=lambda each: each[0])
    for machine in machines:
        with otledger.Journal(root, machine=machine, service="shop", max_segment=60_000) as journal:
            parts = [
                journal.encoder.telemetry(type, at, json.dumps(data, separators=(",", ":")), header)
                for _, own, type, at, data, header in due
                if own == machine
            ]
            for at in range(0, len(parts), 40):
                journal.write(Batch(parts[at : at + 40], {}))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger of three machines that share traces."""
    root = tmp_path_factory.mktemp("three") / "ledger"
    generate(root, ("m1", "m2", "m3"), 150, seed=1)
    return root


def test_traces_are_those_of_a_naive_reader(three: Path) -> None:
    found = list(Reader(three).traces())
    assert sum(not trace.late for trace in found) == 150
    assert any(len(trace.machines) > 1 for trace in found)
    assert any(trace.unfinished for trace in found)
    same(three, found)
    # One after the other, and read by `records`: other ways, the same traces.
    same(three, list(Reader(three).traces(grace=math.inf, hold=None)))
    same(three, feed(Reader(three).records())[1])
    same(three, feed(reversed(list(Reader(three).records())))[1])


def test_spans_are_those_of_a_naive_reader(three: Path) -> None:
    expected = {
        (trace_id, span_id, data["name"], data.get("end"))
        for trace_id, spans in naive(three)[0].items()
        for span_id, data in spans.items()
    }
    found = [(span.trace_id, span.span_id, span.name, span.end) for span in Reader(three).spans()]
    assert len(found) == len(set(found)) == 900
    assert set(found) == expected
    ended = [span.end for span in Reader(three).spans(unfinished=False)]
    assert None not in ended
    assert len(ended) == sum(end is not None for *_, end in expected)
    own = list(Reader(three).spans(machines=["m1"]))
    assert {span.machine for span in own} == {"m1"}
    assert len(own) + sum(1 for _ in Reader(three).spans(machines=["m2", "m3"])) == 900


def test_one_trace_is_found_whole(three: Path) -> None:
    reader = Reader(three)
    for trace_id in list(naive(three)[0])[::30]:
        trace = reader.trace(trace_id)
        assert trace is not None
        assert len(trace.spans) == 6
        assert {span.trace_id for span in trace.spans} == {trace_id}
        assert reader.trace(trace_id.upper()) == trace
        assert {span.span_id for span in reader.spans(trace_id=trace_id)} == {span.span_id for span in trace.spans}
    assert reader.trace("f" * 32) is None


@pytest.mark.parametrize("bad", ["", "4bf9", "f" * 31, "f" * 33, "g" * 32, " " * 32])
def test_what_is_no_trace_id_is_refused(three: Path, bad: str) -> None:
    with pytest.raises(ConfigurationError, match="32 hex digits"):
        Reader(three).trace(bad)
    with pytest.raises(ConfigurationError, match="32 hex digits"):
        list(Reader(three).spans(trace_id=bad))


@pytest.mark.parametrize(("first", "last"), [(0, 5), (10, 20), (36, 100), (5, 5), (-10, 0)])
def test_a_window_is_about_when_something_began(three: Path, first: int, last: int) -> None:
    since, until = T0 + first * SECOND, T0 + last * SECOND
    expected, _ = naive(three)
    spans = {
        (span_id, data.get("end"))
        for own in expected.values()
        for span_id, data in own.items()
        if since <= data["start"] < until
    }
    assert {(span.span_id, span.end) for span in Reader(three).spans(since=since, until=until)} == spans
    traces = {id for id, own in expected.items() if since <= min(data["start"] for data in own.values()) < until}
    assert {trace.trace_id for trace in Reader(three).traces(since=since, until=until)} == traces
    assert all(len(trace.spans) == 6 for trace in Reader(three).traces(since=since, until=until))


def test_a_window_that_ends_before_it_begins_is_refused(three: Path) -> None:
    for call in (Reader(three).spans, Reader(three).traces, Reader(three).turns):
        with pytest.raises(ConfigurationError, match=r"ends .* before it begins"):
            list(call(since=T0 + 1, until=T0))


def newest(root: Path) -> Path:
    """The last segment of m1."""
    return max((root / "m1").glob("*.jsonl"), key=lambda path: (len(path.name), path.name))


def test_a_window_reads_on_for_the_end_of_what_began_in_it(root: Path) -> None:
    with otledger.Journal(root, machine="m1") as journal:
        start, end = span_records(1, 1, 3600 * SECOND)
        others = [record for span in range(2, 5000) for record in span_records(span, span * SECOND, span * SECOND + 1)]
        parts = []
        for record in (start, *others, end):
            header = f',"traceparent":"{record.traceparent}"'
            parts.append(journal.encoder.telemetry(record.type, record.time_ns, bytes(record.raw).decode(), header))
        journal.write(Batch(parts, {}))
    (found,) = Reader(root).spans(until=T0 + SECOND)
    assert (found.name, found.duration) == ("s1", 3600 * SECOND - 1)


def test_times_may_stand_in_any_order(root: Path) -> None:
    """As after an import: the header is younger than all events, and the files came one after the other."""
    with otledger.Journal(root, machine="m1") as journal:
        for span in (9000, 1, 5000):
            (record,) = span_records(span, span * SECOND, span * SECOND + 1, begun=False, trace=f"{span:032x}")
            header = f',"ipchash":"{span:064x}","traceparent":"{record.traceparent}"'
            payload = bytes(record.raw).decode()
            journal.write(Batch([journal.encoder.telemetry(record.type, record.time_ns, payload, header)], {}))
    window = {"since": T0, "until": T0 + 10 * SECOND}
    assert [span.name for span in Reader(root).spans(**window)] == ["s1"]
    assert [trace.roots[0].name for trace in Reader(root).traces(**window)] == ["s1"]
    assert [turn.ipc_hash for turn in Reader(root).turns(**window)] == [f"{1:064x}"]


def test_what_began_before_the_window_is_looked_back_for(root: Path) -> None:
    with otledger.Journal(root, machine="m1") as journal:
        records = [*span_records(1, 0, None), *span_records(2, 600 * SECOND, 601 * SECOND, parent=1)]
        header = ',"ipchash":"' + "ab" * 32 + f'","traceparent":"{records[0].traceparent}"'
        parts = [
            journal.encoder.telemetry(record.type, record.time_ns, bytes(record.raw).decode(), header)
            for record in records
        ]
        journal.write(Batch(parts, {}))
    since = T0 + 500 * SECOND
    assert list(Reader(root).traces(since=since)) == []
    assert list(Reader(root).turns(since=since)) == []
    (part,) = Reader(root).traces(since=since, lookback=10)
    assert part.orphans or part.roots


def test_damage_is_reported_and_passed_over(root: Path) -> None:
    generate(root, ("m1",), 20, seed=3)
    with newest(root).open("ab") as file:
        file.write(b'{"specversion":"1.0","id":"1","source":"/m1/x","type":"otel.span.end","time":\n')
        file.write(b'{"specversion":"1.0","id":"1","source":"/m1/x","type":"otel.span.end","ti')
    faults: list[FormatError] = []
    assert sum(1 for _ in Reader(root).spans(on_fault=faults.append)) == 120
    assert [fault.path for fault in faults] == [newest(root)]
    with pytest.raises(FormatError, match="otledger verify"):
        list(Reader(root).spans())


def test_a_record_inside_a_payload_is_no_record(root: Path) -> None:
    inner = json.loads(line("otel.span.end", T0, {"name": "inner", "start": T0, "end": T0}))
    with otledger.open_sync(root, machine="m1") as ledger:
        ledger.append("copied", inner, subject='"type":"otel.span.end"', source='/"type":"otel.span.end"')
        with ledger.span("outer"):
            pass
    assert [span.name for span in Reader(root).spans()] == ["outer"]
    assert [span.name for trace in Reader(root).traces() for span in trace.spans] == ["outer"]


def test_a_trace_has_what_was_emitted_in_it(root: Path) -> None:
    with otledger.open_sync(root, machine="m1") as ledger:
        with ledger.span("work") as span:
            ledger.append("inside", 1)
        ledger.append("outside", 2)
        trace = ledger.reader.trace(span.trace_id)
    assert trace is not None
    assert [record.type for record in trace.records] == ["inside"]
    assert trace.to_dict()["records"][0]["data"] == 1
    assert json.loads(json.dumps(trace.to_dict()))["spans"][0]["name"] == "work"


def test_a_ledger_that_is_written_while_it_is_read(root: Path, script: Script) -> None:
    writer = script(
        """
        import sys, time, otledger
        settings = {"machine": "m1", "durability": "os", "flush_interval": 0.005, "max_segment": 40_000}
        ledger = otledger.open_sync(sys.argv[1], **settings)
        kept = ledger.start_span("kept open")
        with ledger:
            for number in range(400):
                with ledger.turn(f"{number:064x}"), ledger.span("outer") as span:
                    ledger.emit("said", number)
                    with ledger.span("inner"):
                        if number % 20 == 0:
                            time.sleep(0.01)
                if number == 100:
                    ledger.flush()
                    print("go", flush=True)
            ledger.flush()
            print("done", flush=True)
            sys.stdin.readline()
        """,
        root,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "go\n"
    reader, seen = Reader(root), 0
    deadline = time.monotonic() + 60
    while seen < 400 and time.monotonic() < deadline:
        whole = [trace for trace in reader.traces() if not trace.unfinished]
        assert len(whole) >= seen
        for trace in whole:
            # An inner span is written before its outer one ends: never an outer one without it.
            assert [span.name for span in trace.roots] in (["outer"], [])
            assert len(trace.spans) == 2 or trace.orphans
        seen = len([trace for trace in whole if not trace.orphans])
        assert [span.name for span in reader.spans() if span.end is None].count("kept open") == 1
        assert sum(1 for turn in reader.turns() if not turn.missing({"said"})) >= seen
    assert writer.stdout.readline() == "done\n"
    same(root, list(reader.traces()))
    last = reader.turn(f"{399:064x}")
    assert last is not None
    assert [span.name for span in last.spans] == ["outer", "inner"]
    assert writer.stdin is not None
    writer.stdin.write("\n")


# Filters by type look at the line first


@pytest.mark.parametrize(
    "pattern", ["otel.span.*", "otel.span.end", "*.end", "o?el.*", "[o]tel*", 'say"it*', "ü*", "*"]
)
def test_a_pattern_of_types_finds_what_fnmatch_finds(root: Path, pattern: str) -> None:
    from fnmatch import fnmatchcase

    with otledger.open_sync(root, machine="m1") as ledger, ledger.span("s"):
        for name in ("order.end", 'say"it', "über", "o", "[o]tel"):
            ledger.append(name)
    every = [record.type for record in Reader(root).records()]
    assert [record.type for record in Reader(root).records(Filter(type=pattern))] == [
        type for type in every if fnmatchcase(type, pattern)
    ]
