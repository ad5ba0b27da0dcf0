"""Turns and pairs, on the two real ledgers and on made ones; and the commands that show them, with traces and spans."""

import json
import math
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import otledger
from otledger import Draft, Reader, Record
from otledger.errors import ConfigurationError
from otledger.pairs import BY_ORDER, Pairs
from otledger.predecessors import import_pipeworks
from otledger.record import parse
from otledger.turns import Turns, is_unlinked, turn_of
from tests.test_cli import Run, cli
from tests.test_replay import SECOND, T0, line, naive

__all__ = ["cli"]

Json = dict[str, Any]

DATA = Path(__file__).with_name("data")
EVLEDGER = DATA / "evledger"
EXPECT = {"chat.mechanical_resolution", "chat.translation"}
HASH = "ab" * 32


@pytest.fixture(scope="module")
def pipeworks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PipeWorks' ledger, imported."""
    root = tmp_path_factory.mktemp("pipeworks") / "ledger"
    import_pipeworks(root, DATA / "pipeworks")
    return root


def event(at: int, type: str, data: Any = None, *, seq: int = 0, machine: str = "m1", **members: Any) -> Record:
    """A plain event; times count from T0, in nanoseconds."""
    plain = json.loads(line(type, T0 + at, data, trace=None, seq=seq, machine=machine))
    return parse(json.dumps({**plain, **members}, separators=(",", ":")).encode() + b"\n")


# Turns


def test_the_turns_of_pipeworks(pipeworks: Path) -> None:
    unlinked: list[Record] = []
    turns = list(Reader(pipeworks).turns(on_unlinked=unlinked.append))
    assert len(turns) == 120
    assert sum(not turn.missing(EXPECT) for turn in turns) == 107
    assert {turn.missing(EXPECT) for turn in turns} == {(), ("chat.translation",)}
    assert len(unlinked) == 13
    assert {record.ipc_hash for record in unlinked} == {None}
    assert not any(turn.late for turn in turns)
    # As the files of PipeWorks themselves tell.
    files = [path.read_text() for path in (DATA / "pipeworks").glob("*.jsonl")]
    hashes = [hash for text in files for line in text.splitlines() if (hash := json.loads(line)["ipc_hash"])]
    assert {turn.ipc_hash: len(turn.records) for turn in turns} == {each: hashes.count(each) for each in hashes}


def test_a_turn_of_pipeworks_is_that_of_the_naive_reader(pipeworks: Path) -> None:
    _, expected = naive(pipeworks)
    reader = Reader(pipeworks)
    for ipc_hash, records in expected.items():
        turn = reader.turn(ipc_hash)
        assert turn is not None
        assert [json.loads(record.line) for record in turn.records] == records
    assert reader.turn("no such turn") is None


def test_a_turn_has_the_spans_that_its_records_were_emitted_in(root: Path) -> None:
    with otledger.open_sync(root, machine="m1") as ledger:
        with ledger.span("request") as request:
            ledger.append("before")
            with ledger.turn(HASH):
                ledger.append("said", 1)
                with ledger.span("inner") as inner:
                    ledger.append("answered", 2)
        with ledger.span("elsewhere"):
            pass
    turn = ledger.reader.turn(HASH)
    assert turn is not None
    assert [type for type in turn.types if not type.startswith("otel.")] == ["said", "answered"]
    assert [span.name for span in turn.spans] == ["request", "inner"]
    assert [span.name for span in turn.around] == ["request"]
    assert set(turn.span_ids) == {request.span_id, inner.span_id}
    assert turn.trace_ids == (request.trace_id,)
    assert (turn.start, turn.end) == (turn.records[0].time_ns, max(record.time_ns for record in turn.records))
    assert turn.duration == turn.end - turn.start
    assert turn.missing(["said", "thought", "felt"]) == ("felt", "thought")
    assert json.loads(json.dumps(turn.to_dict(["felt"])))["missing"] == ["felt"]
    streamed = [turn for turn in Reader(root).turns() if turn.ipc_hash == HASH]
    assert [turn.records for turn in streamed] == [turn.records]


def test_the_types_that_a_caller_expects(pipeworks: Path) -> None:
    turns = list(Reader(pipeworks).turns(expect=EXPECT))
    assert sum(not turn.missing() for turn in turns) == 107
    lacking = next(turn for turn in turns if turn.missing())
    assert lacking.missing() == ("chat.translation",) == lacking.missing(EXPECT)
    assert lacking.to_dict()["missing"] == ["chat.translation"]
    assert (lacking.missing([]), lacking.to_dict([])["missing"]) == ((), [])
    again = Reader(pipeworks).turn(lacking.ipc_hash, expect=EXPECT)
    assert again is not None
    assert again.missing() == ("chat.translation",)
    assert Reader(pipeworks).turn(lacking.ipc_hash).missing() == ()  # type: ignore[union-attr]


def test_a_turn_over_several_machines_is_in_the_order_of_time(root: Path) -> None:
    for machine, times in (("m1", (1, 4)), ("m2", (2, 3))):
        with otledger.Journal(root, machine=machine) as journal:
            journal.append([Draft(f"at.{at}", ipc_hash=HASH, time=T0 + at) for at in times])
    (turn,) = Reader(root).turns()
    assert turn.types == ("at.1", "at.2", "at.3", "at.4")
    (own,) = Reader(root).turns(machines=["m2"])
    assert own.types == ("at.2", "at.3")


def test_only_events_are_unlinked() -> None:
    assert is_unlinked(event(0, "order.placed"))
    assert not is_unlinked(event(0, "order.placed", ipchash=HASH))
    assert not is_unlinked(event(0, "otledger.segment"))
    assert not is_unlinked(event(0, "otel.log"))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([None, "a", "b", "c"])), max_size=20),
    st.randoms(use_true_random=False),
)
def test_records_in_any_order_give_the_same_turns(told: list[tuple[int, str | None]], order: random.Random) -> None:
    records = [event(at, "e", seq=seq, ipchash=turn) for seq, (at, turn) in enumerate(told)]
    order.shuffle(records)
    turns = Turns(grace=math.inf, hold=None)
    assert [turn for record in records for turn in turns.feed(record)] == []
    found = turns.finish()
    assert {turn.ipc_hash: {record.seq for record in turn.records} for turn in found} == {
        name: {seq for seq, (_, own) in enumerate(told) if own == name} for _, name in told if name
    }
    assert found == [turn_of(reversed(records), turn.ipc_hash) for turn in found]
    assert turns.unlinked == sum(name is None for _, name in told)


def test_a_turn_is_handed_on_after_the_grace_and_continued_when_more_comes() -> None:
    turns = Turns(grace=1.0)
    assert turns.feed(event(0, "a", ipchash=HASH)) == ()
    assert turns.feed(event(SECOND // 2, "b", ipchash=HASH)) == ()
    assert turns.feed(event(SECOND, "other")) == ()
    (first,) = turns.feed(event(SECOND + SECOND // 2, "other"))
    assert (first.types, first.late) == (("a", "b"), False)
    turns.feed(event(2 * SECOND, "c", ipchash=HASH))
    (second,) = turns.finish()
    assert (second.types, second.late) == (("c",), True)


def test_the_memory_of_turns_is_bounded() -> None:
    turns = Turns(grace=math.inf, hold=5_000)
    found = []
    for number in range(300):
        found += turns.feed(event(number, "a", "x" * 100, ipchash=f"{number:064x}"))
        assert turns._size <= 5_000
    assert len([*found, *turns.finish()]) == 300
    assert len(found) > 250


# Pairs


def test_the_pairs_of_evledger() -> None:
    found = list(Reader(EVLEDGER).pairs("data.id"))
    pairs = [pair for pair in found if pair.matched]
    assert len(pairs) == 90
    assert {(pair.start is None, pair.end is None) for pair in found if not pair.matched} == {(False, True)}
    assert len(found) - len(pairs) == 34
    for pair in pairs:
        assert pair.start is not None
        assert pair.end is not None
        assert pair.base == "com.example.job"
        assert pair.key == pair.start.data["id"] == pair.end.data["id"]
        assert pair.duration == pair.end.time_ns - pair.start.time_ns
    # In a naive way: ids of starts, ids of ends.
    events = [json.loads(text) for path in EVLEDGER.glob("*/*.jsonl") for text in path.read_text().splitlines()]
    ids: dict[str, set[int]] = defaultdict(set)
    for each in events:
        if each["type"].startswith("com.example.job."):
            ids[each["type"]].add(each["data"]["id"])
    starts, ends = ids["com.example.job.start"], ids["com.example.job.end"]
    assert {pair.key for pair in pairs} == starts & ends
    assert {pair.key for pair in found if not pair.matched} == starts ^ ends


def test_a_lost_end_does_not_shift_those_that_follow() -> None:
    records = [
        event(1, "job.start", {"id": 1}),
        event(2, "job.start", {"id": 2}),
        event(3, "job.end", {"id": 2}),
    ]
    assert summary("data.id", records) == [(2, 2, 3), (1, 1, None)]
    # By order alone it does, which is why that has to be asked for.
    assert summary(BY_ORDER, records) == [(None, 1, 3), (None, 2, None)]


def summary(key: str, records: list[Record], **options: Any) -> list[Any]:
    """Key, start and end of each pair, those that are matched first."""
    pairs = Pairs(key, **options)
    found = [pair for record in records if (pair := pairs.feed(record))] + pairs.finish()
    return [
        (pair.key, *(None if record is None else record.time_ns - T0 for record in (pair.start, pair.end)))
        for pair in found
    ]


@pytest.mark.parametrize(
    ("key", "members"),
    [
        ("subject", {"subject": "x"}),
        ("phase", {"phase": "x"}),
        ("ipc_hash", {"ipchash": "x"}),
        ("source", {"source": "x"}),
        ("data.job.id", {"data": {"job": {"id": "x"}}}),
    ],
)
def test_what_two_events_may_have_in_common(key: str, members: Json) -> None:
    other = {name: json.loads(json.dumps(value).replace("x", "y")) for name, value in members.items()}
    records = [
        event(1, "job.start", **other),
        event(2, "job.start", **members),
        event(3, "job.end", **members),
        event(4, "job.end"),
    ]
    found = summary(key, records)
    assert found[:2] == [("x", 2, 3), ("y", 1, None)]
    assert found[2][1:] == (None, 4)


def test_keys_are_what_they_are() -> None:
    keys = [1, "1", True, 1.5, None, [1], {"a": 1}]
    records = [event(at, "job.start", {"id": key}) for at, key in enumerate(keys)]
    records += [event(10 + at, "job.end", {"id": key}) for at, key in enumerate(keys)]
    # Null is no key.
    found = summary("data.id", records)
    assert [(start, end) for _, start, end in found] == [
        *((at, 10 + at) for at, key in enumerate(keys) if key is not None),
        *((4, None), (None, 14)),
    ]


def test_an_end_belongs_to_the_first_start_and_never_to_a_later_one() -> None:
    again = [event(at, type, {"id": 7}) for at, type in enumerate(("job.start", "job.start", "job.end", "job.end"))]
    assert summary("data.id", again) == [(7, 0, 2), (7, 1, 3)]
    before = [event(5, "job.end", {"id": 7}), event(6, "job.start", {"id": 7})]
    assert summary("data.id", before) == [(7, None, 5), (7, 6, None)]
    # Read in another order than that of time.
    assert summary("data.id", [event(6, "job.end", {"id": 7}), event(5, "job.start", {"id": 7})]) == [(7, 5, 6)]


def test_only_plain_events_of_one_type_are_paired() -> None:
    records = [
        *(event(1, "otel.span.start", {"id": 1}), event(2, "otel.span.end", {"id": 1})),
        *(event(3, "a.start", {"id": 1}), event(4, "b.end", {"id": 1}), event(5, "a.end", {"id": 1})),
        *(event(6, "start", {"id": 1}), event(7, "a.started", {"id": 1})),
    ]
    assert summary("data.id", records) == [(1, 3, 5), (1, None, 4)]
    assert summary("data.id", records, base="b*") == [(1, None, 4)]


def test_pairs_are_those_of_a_naive_matching() -> None:
    chance = random.Random(4)
    for _ in range(200):
        records = [
            event(chance.randrange(12), f"job.{chance.choice(('start', 'end'))}", {"id": chance.randrange(2)}, seq=seq)
            for seq in range(chance.randrange(14))
        ]
        # Whatever comes takes, of the others that wait and fit, the earliest, and of those the one that came first.
        waiting: list[Record] = []
        expected = []
        for record in records:
            began = record.type == "job.start"
            fit = [
                other
                for other in waiting
                if other.type != record.type
                and other.data == record.data
                and (other.time_ns >= record.time_ns if began else other.time_ns <= record.time_ns)
            ]
            other = min(fit, key=lambda other: other.time_ns, default=None)
            if other is None:
                waiting.append(record)
                continue
            waiting.remove(other)
            expected.append((record, other) if began else (other, record))
        pairs = Pairs("data.id")
        found = [pair for record in records if (pair := pairs.feed(record))]
        assert [(pair.start.seq, pair.end.seq) for pair in found if pair.start and pair.end] == [
            (start.seq, end.seq) for start, end in expected
        ]
        left = [pair.start or pair.end for pair in pairs.finish()]
        assert sorted(record.seq for record in left if record) == sorted(record.seq for record in waiting)


@pytest.mark.parametrize("key", ["", "data", "id", "data.", "data..id", "meta.id", "time", "seq", "type"])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.NAME, subject"):
        Pairs(key)


def test_pairs_of_a_window_began_in_it() -> None:
    times = [pair.time for pair in Reader(EVLEDGER).pairs("data.id")]
    middle = sorted(times)[len(times) // 2]
    early = list(Reader(EVLEDGER).pairs("data.id", until=middle))
    late = list(Reader(EVLEDGER).pairs("data.id", since=middle))
    assert len(early) + len(late) == len(times)
    assert sum(pair.matched for pair in (*early, *late)) == 90
    assert all(pair.time < middle for pair in early)


def test_pairs_as_plain_values() -> None:
    (pair,) = [pair for pair in Reader(EVLEDGER).pairs("data.id") if pair.key == 1]
    plain = json.loads(json.dumps(pair.to_dict()))
    assert (plain["base"], plain["key"], plain["matched"]) == ("com.example.job", 1, True)
    assert plain["start"]["data"]["id"] == plain["end"]["data"]["id"] == 1


# The command line


@pytest.fixture
def shop(root: Path) -> Json:
    """A ledger with a turn, a failure, an open span of a process that died, and hostile text. Gives its ids."""
    with otledger.open_sync(root, machine="web1", service="shop") as ledger:
        with ledger.turn(HASH), ledger.span("GET /orders", attributes={"n": 1}) as outer:
            ledger.append("order.seen", {"id": 1})
            with pytest.raises(ValueError, match="host"), ledger.span("mail\x1b[31m"):
                raise ValueError("no\x1b[31m such host")
            kept = ledger.start_span("never ended")
            ledger.flush()
        with ledger.turn("abcd" * 16):
            ledger.append("order.lost", {"text": "x"})
        ledger.append("order.plain")
    assert kept.is_recording()
    return {"trace": outer.trace_id, "root": root}


def test_trace_shows_a_waterfall(cli: Run, shop: Json) -> None:
    done = cli("trace", shop["trace"], COLUMNS="120")
    assert (done.returncode, done.stderr) == (0, "")
    title, facts, empty, *rows = done.stdout.splitlines()
    assert title == f"trace {shop['trace']}"
    assert "3 spans  web1  1 failed  1 unfinished" in facts
    assert empty == ""
    assert [row.split("  ")[0] or row.split("  ")[1] for row in rows] == [
        *("GET /orders", "· order.seen", "mail\\x1b[31m", "never ended")
    ]
    assert rows[0].index("█") < rows[2].index("█")
    assert "ERROR: ValueError: no\\x1b[31m such host" in rows[2]
    assert "░" in rows[3]
    # The process that wrote it is this one.
    assert rows[3].endswith("unfinished (running)")
    assert "\x1b" not in done.stdout
    assert "order.seen" not in cli("trace", shop["trace"], "--no-events").stdout


def test_trace_takes_the_beginning_of_an_id_and_writes_json(cli: Run, shop: Json) -> None:
    done = cli("trace", shop["trace"][:10].upper(), "--json")
    assert done.returncode == 0
    plain = json.loads(done.stdout)
    assert plain["trace_id"] == shop["trace"]
    assert [(span["depth"], span["name"]) for span in plain["spans"]] == [
        *((0, "GET /orders"), (1, "mail\x1b[31m"), (1, "never ended"))
    ]
    assert [record["type"] for record in plain["records"]] == ["order.seen"]


def test_trace_shows_what_is_out_of_the_ordinary(cli: Run, root: Path) -> None:
    trace = "f" * 32
    with otledger.Journal(root, machine="m1") as journal:
        parts = []
        for span, parent, start, end in ((1, 7, 5, 9), (2, 1, 1, 2), (2, 1, 6, 7), (3, 9, 3, 4)):
            data = {"name": f"s{span}", "parent_span_id": f"{parent:016x}", "start": T0 + start, "end": T0 + end}
            header = f',"traceparent":"00-{trace}-{span:016x}-01"'
            parts += [journal.encoder.telemetry("otel.span.end", T0 + end, json.dumps(data), header)] * 2
        journal.write(otledger.journal.Batch(parts, {}))
        orphaned = Draft("e", traceparent=f"00-{trace}-{8:016x}-01", time=T0 + 2)
        journal.append([orphaned])
    done = cli("trace", trace)
    assert done.returncode == 0
    facts = done.stdout.splitlines()[1]
    for fact in (
        "2 without their parent",
        "1 with an id that another has",
        "1 begun before their parent: clocks disagree",
        "4 recorded more than once",
    ):
        assert fact in facts
    assert "parent 0000000000000007 is not here" in done.stdout
    assert "span 0000000000000008 is not here" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("trace", "f" * 32), 1, "there is no span of a trace"),
        (("trace", "ffff"), 1, "32 hex digits"),
        (("trace", "abc"), 2, "'abc' has 3 characters: the id of a trace is 32 hex digits"),
        (("trace", "x" * 32), 2, "32 hex digits"),
        (("trace", "f" * 33), 2, "33 characters"),
        (("turn", "f" * 64), 1, "there is no turn"),
        (("turn", "ffff"), 1, "64 hex digits"),
        (("turn", "nonsense"), 2, "'nonsense' has 8 characters: the id of a turn is 64 hex digits"),
        (("turn", "ab"), 2, "64 hex digits"),
        (("turns", "--incomplete"), 2, "--expect"),
        (("turns", "--since", "1h", "--until", "2h"), 2, "before it begins"),
        (("spans", "--since", "1h", "--until", "2h"), 2, "before it begins"),
        (("pairs", "--since", "1h", "--until", "2h"), 2, "before it begins"),
        (("spans", "--trace", "ffff"), 2, "32 hex digits"),
        (("pairs", "--key", "data"), 2, "data.NAME"),
    ],
)
def test_what_cannot_be_found_is_one_line(
    cli: Run, shop: Json, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = cli(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        *(("trace", "TRACE"), ("turn", HASH), ("turns",), ("spans",), ("pairs", "--key", "subject"), ("stats",)),
        *(("digest",), ("sql", "select type from events"), ("compact",), ("index",), ("index", "--rebuild")),
    ],
)
def test_all_of_it_comes_as_json(cli: Run, shop: Json, arguments: tuple[str, ...]) -> None:
    with otledger.open_sync(shop["root"], machine="web1") as ledger:
        ledger.append("job.start", subject="x")
    done = cli(*(shop["trace"] if each == "TRACE" else each for each in arguments), "--json")
    assert done.returncode == 0
    try:
        plain = json.loads(done.stdout)
    except ValueError:
        plain = [json.loads(text) for text in done.stdout.splitlines()]
    assert isinstance(plain, dict | list)
    assert plain or arguments == ("compact",)
    # What is not asked for, and what is for people, is on stderr.
    assert "\x1b" not in done.stdout


def test_the_beginning_of_several_ids_is_not_enough(cli: Run, shop: Json) -> None:
    with otledger.open_sync(shop["root"], machine="web1") as ledger, ledger.turn("abab" + "0" * 60):
        ledger.append("x.y")
    done = cli("turn", "abab")
    assert done.returncode == 2
    assert HASH in done.stderr
    assert "abab" + "0" * 60 in done.stderr
    assert cli("turn", "ababa").returncode == 0


def test_turn_shows_records_inside_their_spans(cli: Run, shop: Json) -> None:
    done = cli("turn", HASH[:6], "--expect", "order.seen", "--expect", "order.paid")
    assert (done.returncode, done.stderr) == (0, "")
    first, *rows = done.stdout.splitlines()
    assert HASH in first
    assert first.endswith("missing order.paid")
    assert [row[13:].split(",")[0].rstrip() for row in rows] == [
        *("[GET /orders", '  order.seen  {"id":1}', "  [mail\\x1b[31m", "  [never ended")
    ]
    plain = json.loads(cli("turn", HASH, "--json").stdout)
    assert plain["count"] == len(plain["records"])
    assert [span["name"] for span in plain["spans"]] == ["GET /orders", "mail\x1b[31m", "never ended"]


def test_turns_lists_them_and_counts_on_stderr(cli: Run, shop: Json) -> None:
    done = cli("turns", "--expect", "order.seen")
    assert done.returncode == 0
    assert [row.split("  ")[1] for row in done.stdout.splitlines()] == [HASH[:12], "abcdabcdabcd"]
    assert done.stdout.splitlines()[1].endswith("missing order.seen")
    assert done.stderr == "otledger: 2 turns, 1 complete; 1 event in no turn\n"
    only = cli("turns", "-e", "order.seen", "--incomplete", "--json")
    (plain,) = map(json.loads, only.stdout.splitlines())
    assert (plain["ipc_hash"], plain["missing"]) == ("abcd" * 16, ["order.seen"])
    assert cli("turns", "--until", "2020-01-01").returncode == 1


def test_turns_of_pipeworks(cli: Run, pipeworks: Path) -> None:
    expect = [argument for type in sorted(EXPECT) for argument in ("--expect", type)]
    done = cli("turns", *expect, "--json", OTLEDGER_ROOT=str(pipeworks))
    assert done.stderr == "otledger: 120 turns, 107 complete; 13 events in no turn\n"
    assert sum(not json.loads(text)["missing"] for text in done.stdout.splitlines()) == 107


def test_spans_lists_what_is_asked_for(cli: Run, shop: Json) -> None:
    mail, outer, kept = "mail\x1b[31m", "GET /orders", "never ended"
    for arguments, names in (
        (("--errors",), [mail]),
        (("--unfinished", "--ipc-hash", HASH, "--since", "1h"), [kept]),
        (("--name", "GET*", "--longer", "0"), [outer]),
        (("--source", "/web1/other"), []),
        (("--until", "1h"), []),
    ):
        done = cli("spans", "--json", *arguments)
        assert [json.loads(text)["name"] for text in done.stdout.splitlines()] == names
        assert done.returncode == (not names)


def test_spans_are_lines_of_text(cli: Run, shop: Json) -> None:
    rows = cli("spans", "--long", "--trace", shop["trace"]).stdout.splitlines()
    assert rows[1].split("  ")[1:3] == ["web1", "GET /orders"]
    assert "n=1" in rows[1]
    assert "ERROR: ValueError: no\\x1b[31m such host" in rows[0]
    assert "unfinished (running)" in rows[2]
    assert all(shop["trace"] in row for row in rows)


def test_pairs_of_evledger_on_the_command_line(cli: Run) -> None:
    at = {"OTLEDGER_ROOT": str(EVLEDGER)}
    done = cli("pairs", **at)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 124)
    assert done.stderr == "otledger: 90 pairs; 34 starts without an end, 0 ends without a start\n"
    only = [json.loads(text) for text in cli("pairs", "--unmatched", "--json", **at).stdout.splitlines()]
    assert len(only) == 34
    assert all(pair["end"] is None for pair in only)
    assert cli("pairs", "--type", "nothing", **at).returncode == 1


@pytest.mark.parametrize("command", [("spans",), ("turns",), ("pairs",)])
def test_damage_is_told_and_the_rest_shown(cli: Run, root: Path, command: tuple[str, ...]) -> None:
    with otledger.open_sync(root, machine="m1") as ledger:
        with ledger.turn(HASH), ledger.span("s"):
            ledger.append("a.start", {"id": 1})
        ledger.append("a.end", {"id": 1})
    (segment,) = (root / "m1").glob("*.jsonl")
    with segment.open("ab") as file:
        file.write(b'{"specversion":"1.0","id":"1","source":"/m1/x","type":"otel.span.end","time":}\n')
    done = cli(*command)
    assert done.returncode == 3
    assert len(done.stdout.splitlines()) == 1
    assert "otledger verify" in done.stderr
