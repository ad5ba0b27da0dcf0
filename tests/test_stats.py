"""Stats and digests: against a naive reader, against evledger, from lines and from skeletons."""

from __future__ import annotations

import json
import math
import random
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evledger import LedgerEvent
from evledger.digest import DigestConfig
from evledger.digest import digest as evledger_digest
from evledger.stats import DurationStats, pair_events
from hypothesis import given
from hypothesis import strategies as st

import otledger
from otledger.errors import ConfigurationError, FormatError, RootError
from otledger.predecessors import import_pipeworks
from otledger.query import scan, spread
from otledger.query.digest import digest
from otledger.query.findings import Finding
from otledger.query.rules import load
from otledger.query.scan import Selection
from otledger.query.spread import ERROR, EXACT, Largest, Values
from otledger.query.stats import stats
from otledger.record import parse_time

DATA = Path(__file__).parent / "data"
EVLEDGER = DATA / "evledger"
Json = dict[str, Any]


def events(root: Path) -> list[Json]:
    """All events under a root, sorted by time."""
    found = [json.loads(line) for path in sorted(root.glob("*/*.jsonl")) for line in path.read_bytes().splitlines()]
    kept = [event for event in found if not event["type"].startswith(("otledger.", "otel.resource"))]
    return sorted(kept, key=lambda event: (parse_time(event["time"]), event["machine"], event["seq"]))


@pytest.fixture
def old() -> list[LedgerEvent]:
    """The real events as evledger reads them."""
    return [LedgerEvent.from_dict(event) for event in events(EVLEDGER)]


# How values spread


def test_the_spread_of_few_values_is_exact() -> None:
    values = Values()
    assert values.spread() is None
    numbers = [5.0, 1.0, 4.0, 1.5]
    for number in numbers:
        values.add(number)
    found = values.spread()
    assert found is not None
    assert (found.count, found.total, found.min, found.median, found.p95, found.max) == (4, 11.5, 1.0, 2.75, 5.0, 5.0)
    assert found.exact
    assert values.above(4.0) == 1


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=200), st.integers(0, 200))
def test_the_spread_agrees_with_the_stdlib_however_it_is_split(numbers: list[float], cut: int) -> None:
    one, other = Values(), Values()
    for number in numbers[:cut]:
        one.add(number)
    for number in numbers[cut:]:
        other.add(number)
    one.update(other)
    found = one.spread()
    assert found is not None
    assert found.median == statistics.median(numbers)
    assert found.p95 == sorted(numbers)[math.ceil(len(numbers) * 0.95) - 1]
    assert (found.count, found.min, found.max) == (len(numbers), min(numbers), max(numbers))
    assert found.total == pytest.approx(sum(numbers))


@pytest.mark.parametrize("shape", ["lognormal", "negative", "few", "zeros"])
def test_the_spread_of_many_values_is_near_and_small(shape: str) -> None:
    chance = random.Random(7)
    make: dict[str, Callable[[], float]] = {
        "lognormal": lambda: chance.lognormvariate(0, 4),
        "negative": lambda: chance.gauss(-50, 100),
        "few": lambda: float(chance.randrange(1, 4)),
        "zeros": lambda: chance.choice([0.0, 0.0, 0.0, 1e-9, 1e12]),
    }
    numbers = [make[shape]() for _ in range(3 * EXACT + 30)]
    whole, parts = Values(), [Values() for _ in range(3)]
    for at, number in enumerate(numbers):
        whole.add(number)
        parts[at % 3].add(number)
    for part in parts[1:]:
        parts[0].update(part)
    numbers.sort()
    for values in (whole, parts[0]):
        found = values.spread()
        assert found is not None
        assert not found.exact
        assert found.median == pytest.approx(statistics.median(numbers), rel=ERROR * 1.01)
        assert found.p95 == pytest.approx(numbers[math.ceil(len(numbers) * 0.95) - 1], rel=ERROR * 1.01)
        assert (found.min, found.max, found.count) == (numbers[0], numbers[-1], len(numbers))
        assert len(values._buckets) < 4_000
        limit = numbers[len(numbers) // 3]
        low, high = (sum(number > limit + sign * abs(limit) * 0.021 for number in numbers) for sign in (1, -1))
        assert low <= values.above(limit) <= high


def test_the_largest_are_kept() -> None:
    chance = random.Random(3)
    numbers = [float(chance.randrange(50)) for _ in range(500)]
    largest: Largest[int] = Largest(20)
    for at, number in enumerate(numbers):
        largest.add(number, at)
    expected = sorted(enumerate(numbers), key=lambda each: (-each[1], each[0]))[:20]
    assert largest.items() == [(number, at) for at, number in expected]


# Stats


def test_the_numbers_of_the_real_evledger_ledger(old: list[LedgerEvent]) -> None:
    found = stats(EVLEDGER)
    known = events(EVLEDGER)
    assert (found.records, found.unfinished, dict(found.spans)) == (400, 0, {})
    assert dict(found.types) == Counter(event["type"] for event in known)
    assert dict(found.sources) == Counter(event["source"] for event in known)
    assert dict(found.machines) == {"laptop": 205, "ci-1": 195}
    assert list(found.types.values()) == sorted(found.types.values(), reverse=True)
    assert (found.first, found.last) == (parse_time(known[0]["time"]), parse_time(known[-1]["time"]))
    assert found.per_second == pytest.approx(400 / found.seconds)
    pairs = found.pairs["com.example.job"]
    theirs = pair_events(old, key=lambda event: event.data["id"] if isinstance(event.data, dict) else None)
    summed = DurationStats.from_pairing(theirs)
    assert pairs.seconds is not None
    assert (pairs.seconds.count, pairs.unmatched_starts, pairs.unmatched_ends) == (90, 34, 0)
    assert (summed.count, len(theirs.unmatched_starts), len(theirs.unmatched_ends)) == (90, 34, 0)
    assert pairs.seconds.total == pytest.approx(summed.total_seconds)
    assert pairs.seconds.median == pytest.approx(summed.median_seconds)
    assert (pairs.seconds.min, pairs.seconds.max) == pytest.approx((summed.min_seconds, summed.max_seconds))


def test_a_window_and_a_choice() -> None:
    known = events(EVLEDGER)
    since, until = (parse_time(known[at]["time"]) for at in (100, 300))
    assert since is not None
    assert until is not None
    found = stats(EVLEDGER, Selection(since=since, until=until, machines=["laptop"], type="com.example.*"), key=None)
    chosen = [e for e in known[100:300] if e["machine"] == "laptop" and e["type"].startswith("com.example.")]
    assert dict(found.types) == Counter(event["type"] for event in chosen)
    assert found.seconds == (until - since) / 1e9
    assert dict(found.pairs) == {}
    assert stats(EVLEDGER, Selection(source="/ci-1/agent-0")).records == 78
    assert stats(EVLEDGER, Selection(subject="nobody")).records == 0
    assert stats(EVLEDGER, Selection(subject="nobody")).per_second == 0
    for other, count in (("subject", 0), ("data.job", 90)):
        pairs = stats(EVLEDGER, key=other).pairs["com.example.job"]
        assert (pairs.seconds.count if pairs.seconds else 0) <= count
        assert pairs.unmatched_starts + (pairs.seconds.count if pairs.seconds else 0) == 124


def test_bad_questions(root: Path) -> None:
    with pytest.raises(ConfigurationError, match="the window ends before it begins: from 1970-01-01T00:00:00"):
        Selection(since=5, until=4)
    with pytest.raises(ConfigurationError, match=r"'meta\.id' is no key for pairs"):
        stats(EVLEDGER, key="meta.id")
    with pytest.raises(RootError, match="no machine 'web'; there are: ci-1, laptop"):
        stats(EVLEDGER, Selection(machines=["web"]))
    with pytest.raises(RootError, match="there is no ledger here"):
        digest(root)


def write_many(root: Path) -> None:
    """Several machines, small segments, spans, pairs across them, and all that a digest looks for."""
    for machine in ("m1", "m2"):
        chance = random.Random(machine)
        with otledger.open_sync(root, machine=machine, service="s", max_segment=60_000, durability="os") as ledger:
            for n in range(400):
                with ledger.span(f"work {n % 3}", attributes={"n": n}) as span:
                    ledger.emit("order.placed", {"id": n}, subject=f"t{n % 7}")
                    if n % 40 == 0:
                        # The span has a start record then.
                        ledger.flush()
                    if n % 50 == 0:
                        span.set_status(otledger.span.StatusCode.ERROR, "broken")
                ledger.emit("job.start", {"id": n})
                if n % 10:
                    ledger.emit("job.end", {"id": n})
                if chance.random() < 0.1:
                    ledger.emit("app.failure", {"kind": "x", "summary": f"no {n}"}, source=f"/a/{n % 2}")
                if n % 40 == 7:
                    ledger.emit("push", source=f"/a/{n % 2}")
                    ledger.emit("test.passed", source="/a/1")
                ledger.emit("task.shipped", {"tokens": 100 if n % 90 else 5_000, "cost": "0.5"})
            ledger.start_span("left open")


def test_skeletons_and_lines_give_the_same(root: Path) -> None:
    write_many(root)
    lines = [(stats(root), digest(root))]
    pytest.importorskip("pyarrow")
    from otledger.query.compacting import compact

    assert sum(each.made for each in compact(root)) > 4
    for path in root.glob("m1/*.jsonl"):
        assert path.exists()
    skeletons = [(stats(root), digest(root))]
    assert skeletons == lines
    assert [(stats(root, cache=False), digest(root, cache=False))] == lines
    window = Selection(since=lines[0][0].first, until=lines[0][0].last, subject="t3")
    assert stats(root, window) == stats(root, window, cache=False)


def test_skeletons_are_used_without_being_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    from otledger.query import rows
    from otledger.query.compacting import compact

    write_many(root)
    read: list[str] = []
    whole = rows.columns

    def columns(extent: Any, *arguments: Any, **options: Any) -> Any:
        read.append(f"{extent.machine}/{extent.segment}")
        return whole(extent, *arguments, **options)

    monkeypatch.setattr(rows, "columns", columns)
    segments = sorted(str(path.relative_to(root)) for path in root.glob("*/*.jsonl"))
    closed = {f"{each.machine}/{each.segment}" for each in compact(root)}
    assert len(closed) == len(segments) - 2
    for way in (stats, digest):
        read.clear()
        way(root)
        assert set(read) == set(segments) - closed
        read.clear()
        way(root, cache=False)
        assert sorted(set(read)) == segments


def test_the_numbers_of_spans_and_pairs(root: Path) -> None:
    write_many(root)
    found = stats(root)
    known = [json.loads(line) for path in root.glob("*/*.jsonl") for line in path.read_bytes().splitlines()]
    assert found.records == sum(not r["type"].startswith(("otledger.", "otel.resource")) for r in known)
    assert stats(root, Selection(control=True)).records == len(known)
    assert dict(found.subjects) == Counter(r["subject"] for r in known if "subject" in r)
    ends = [r["data"] for r in known if r["type"] == "otel.span.end"]
    assert set(found.spans) == {"work 0", "work 1", "work 2"}
    for name, spans in found.spans.items():
        seconds = [(data["end"] - data["start"]) / 1e9 for data in ends if data["name"] == name]
        assert spans.seconds is not None
        assert (spans.seconds.count, spans.seconds.median) == (len(seconds), statistics.median(seconds))
    assert sum(spans.errors for spans in found.spans.values()) == 16
    assert found.unfinished == 2
    pairs = found.pairs["job"]
    # The same numbers were used on both machines, one after the other.
    assert pairs.seconds is not None
    assert pairs.seconds.count == 720
    assert (pairs.unmatched_starts, pairs.unmatched_ends) == (80, 0)


def test_pairs_of_one_key_are_linked_oldest_first(root: Path) -> None:
    steps = [(0, "start", 1), (10, "start", 1), (15, "end", 1), (16, "end", 2), (40, "end", 1), (41, "start", None)]
    emit(root, *((second, f"job.{half}", {"id": id}) for second, half, id in steps))
    pairs = stats(root).pairs["job"]
    assert pairs.seconds is not None
    assert (pairs.seconds.min, pairs.seconds.max) == (15, 30)
    assert (pairs.unmatched_starts, pairs.unmatched_ends) == (1, 1)


def write_pairs(root: Path, chance: random.Random) -> None:
    """Several machines that share keys: ends before their starts, lost and repeated halves, odd keys and names."""
    for machine in ("m1", "m2", "m3"):
        drafts = []
        for n in range(150):
            # Those of m3 are in no order of time, and so some ends stand before their starts.
            at = (chance.randrange(2_000) if machine == "m3" else n * 7) * 10**9
            key = chance.choice([n, n // 2, str(n), chance.choice([None, True, 1.0, [1], {"a": 1}, "x"])])
            base = chance.choice(["job", "job", "task.part"])
            start = (f"{base}.start", {"id": key}, at)
            end = (f"{base}.end", {"id": key}, at + chance.randrange(20) * 10**9)
            drafts += chance.choice([[start, end]] * 5 + [[start], [end], [start, start, end], [end, start]])
        drafts += [("job.end", "no key", 10**9), ("job.start", None, 10**9), ("start", {"id": 1}, 0), (".end", {}, 0)]
        with otledger.Journal(root, machine=machine, service="s", max_segment=20_000) as journal:
            journal.append([otledger.Draft(type, data, time=time) for type, data, time in drafts])


def test_stats_and_pairs_agree(root: Path) -> None:
    ledgers = [EVLEDGER]
    for seed in range(6):
        write_pairs(root.with_name(f"ledger {seed}"), random.Random(seed))
        ledgers.append(root.with_name(f"ledger {seed}"))
    early = 0
    for ledger in ledgers:
        order = {(record.machine, record.seq): at for at, record in enumerate(otledger.Reader(ledger).records())}
        for key in ("data.id", "source", "by-order"):
            expected: dict[str, list[Any]] = {}
            for pair in otledger.Reader(ledger).pairs(key):
                durations, *alone = expected.setdefault(pair.base, [[], 0, 0])
                if pair.start is not None and pair.end is not None:
                    durations.append((pair.end.time_ns - pair.start.time_ns) / 1e9)
                    places = [order[record.machine, record.seq] for record in (pair.start, pair.end)]
                    early += places != sorted(places)
                else:
                    expected[pair.base][1:] = [alone[0] + (pair.end is None), alone[1] + (pair.start is None)]
            found = stats(ledger, key=key).pairs
            assert {base: [each.unmatched_starts, each.unmatched_ends] for base, each in found.items()} == {
                base: numbers[1:] for base, numbers in expected.items()
            }
            for base, (durations, *_) in expected.items():
                spread_ = found[base].seconds
                assert (spread_.count if spread_ else 0) == len(durations)
                if spread_:
                    assert spread_.total == pytest.approx(sum(durations))
                    assert (spread_.min, spread_.max) == (min(durations), max(durations))
                    assert spread_.median == statistics.median(durations)
    assert early > 20
    assert dict(stats(EVLEDGER).pairs) == {"com.example.job": stats(EVLEDGER).pairs["com.example.job"]}


def test_an_end_that_is_read_before_its_start_is_no_outlier_but_counts(root: Path) -> None:
    emit(
        root,
        (9, "job.end", {"id": 1}),
        (4, "job.start", {"id": 1}),
        (8, "job.start", {"id": 2}),
        (6, "job.end", {"id": 2}),
    )
    pairs = stats(root).pairs["job"]
    assert pairs.seconds is not None
    assert (pairs.seconds.count, pairs.seconds.total) == (1, 5)
    # An end never belongs to a start of a later time.
    assert (pairs.unmatched_starts, pairs.unmatched_ends) == (1, 1)


def test_what_is_counted_one_by_one_is_bounded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "DISTINCT", 5)
    with otledger.open_sync(root, machine="m1", durability="os") as ledger:
        for n in range(40):
            ledger.emit(f"type.{n % 8}", subject=f"s{n}")
            with ledger.span(f"name {n}"):
                pass
    found = stats(root)
    assert len(found.types) == 5
    assert sum(found.types.values()) + found.others["types"] == found.records
    assert (len(found.subjects), found.others["subjects"]) == (5, 35)
    assert len(found.spans) == 6
    assert list(found.spans)[-1] == scan.OTHERS
    assert sum(each.seconds.count for each in found.spans.values() if each.seconds) == 40


def test_a_ledger_that_grows_and_rotates_while_it_is_read(root: Path) -> None:
    def write(first: int) -> None:
        with otledger.Journal(root, machine="m1", service="s", max_segment=3_000) as journal:
            for n in range(first, first + 40):
                journal.append([otledger.Draft("job.start", {"id": n})])

    write(0)
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == 1:
            write(40)

    found = stats(root, progress=progress)
    assert found.records == 40
    assert found.pairs["job"].unmatched_starts == 40
    assert stats(root).records == 80


def test_damaged_lines_are_told(root: Path) -> None:
    shutil.copytree(EVLEDGER, root)
    path = root / "ci-1" / "2026-09.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[7] = b"nothing\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(FormatError, match="not a record"):
        stats(root)
    faults: list[FormatError] = []
    assert digest(root, on_fault=faults.append).stats.records == 399
    assert len(faults) == 1


# Digests


def finding(root: Path, text: str, **options: Any) -> Finding | None:
    path = root.parent / "rules.toml"
    path.write_text(text)
    found = digest(root, rules=path, **options).findings
    assert len(found) <= 1
    return found[0] if found else None


def test_the_digest_finds_what_evledgers_finds(old: list[LedgerEvent], tmp_path: Path) -> None:
    """With rules that say what evledger has built in; where it is at fault, the rules say what is right."""
    theirs = evledger_digest(old, DigestConfig())
    rules = tmp_path / "rules.toml"
    rules.write_text("""
        limit = 1000
        [[sum]]
        name = "shipped"
        type = "task.shipped"
        fields = ["data.tokens", "data.cost", "data.duration_s"]
        [[recent]]
        name = "failures"
        type = "failure"
        show = ["data.summary"]
        [[rule]]
        name = "could_have_asked"
        kind = "each"
        type = "decision.autonomous"
        where = { "data.could_have_asked" = true }
        [[rule]]
        name = "failure"
        kind = "each"
        type = "failure"
        [[rule]]
        name = "tokens"
        kind = "outlier"
        type = "task.shipped"
        value = "data.tokens"
        least = 2
        [[rule]]
        name = "duration_s"
        kind = "outlier"
        type = "task.shipped"
        value = "data.duration_s"
        least = 2
        [[rule]]
        name = "push_without_green"
        kind = "without"
        type = "push"
        needs = [{ type = "task.shipped" }]
        undone_by = [{ type = "failure" }]
        at_first = true
        [[rule]]
        name = "refusal"
        kind = "each"
        severity = "info"
        type = "refusal"
    """)
    ours = digest(EVLEDGER, rules=rules)
    found = {each.rule: {(m.machine, m.seq) for m in each.mentions} for each in ours.findings}
    expected: dict[str, set[tuple[str, int]]] = {}
    for anomaly in theirs.anomalies:
        rule = anomaly.detail["metric"] if anomaly.rule == "token_outlier" else anomaly.rule
        if anomaly.event is not None:
            expected.setdefault(rule, set()).add((anomaly.event.machine, anomaly.event.seq))
    assert found == expected
    assert set(found) >= {"could_have_asked", "failure", "duration_s", "push_without_green", "refusal"}
    totals = theirs.rollup.resources
    sums = ours.sums["shipped"]
    assert sums["data.tokens"].count == totals.shipped
    assert [each.total for each in sums.values()] == pytest.approx([totals.tokens, totals.cost, totals.duration_s])
    recent = [(notable.time, notable.source) for notable in theirs.rollup.recent_failures]
    assert [(parse_time(time), source) for time, source in recent] == [
        (m.time, m.source) for m in ours.recent["failures"]
    ]
    assert digest(EVLEDGER, rules=rules) == ours


def test_the_default_rules_on_the_real_ledgers(root: Path) -> None:
    found = {each.rule: each for each in digest(EVLEDGER).findings}
    assert {name: each.count for name, each in found.items()} == {
        "refusal": 25,
        "could-have-asked": 8,
        "failure-spike": 3,
        "slow-task": 5,
        "push-without-green-test": 13,
    }
    assert len(found["refusal"].mentions) == 20
    assert found["refusal"].mentions[-1].text == "force push, grave"
    import_pipeworks(root, DATA / "pipeworks")
    rolled = digest(root)
    assert rolled.findings == ()
    assert dict(rolled.stats.types) == {"chat.mechanical_resolution": 120, "chat.translation": 120}


def emit(root: Path, *drafts: tuple[int, str, Any]) -> None:
    """Append events of some seconds, `type` or `type@source`."""
    with otledger.Journal(root, machine="m1", service="s") as journal:
        journal.append(
            [
                otledger.Draft(
                    type.partition("@")[0], data, time=second * 10**9, source=type.partition("@")[2] or "/m1/s"
                )
                for second, type, data in drafts
            ]
        )


SPIKE = '[[rule]]\nname = "s"\nkind = "spike"\ntype = "f"\ncount = 3\nwithin = "10s"\n'


def test_spikes(root: Path) -> None:
    emit(root, *((second, "f", None) for second in (0, 4, 11, 20, 31, 35, 36, 37, 40, 60, 61, 62)))
    found = finding(root, SPIKE)
    assert found is not None
    assert found.count == 2
    assert [mention.time // 10**9 for mention in found.mentions] == [36, 62]
    assert found.mentions[0].text == "5 records in 9 s, 3 or more within 10s"


def test_spikes_by_source(root: Path) -> None:
    emit(root, *((second, f"f@/{second % 3}", None) for second in range(0, 30, 2)))
    assert finding(root, SPIKE) is not None
    found = finding(root, SPIKE.replace("10s", "12s") + 'by = "source"\n')
    assert found is not None
    assert found.count == 3
    assert "of /1 in" in found.mentions[1].text + found.mentions[2].text + found.mentions[0].text
    assert finding(root, SPIKE.replace("10s", "11s") + 'by = "source"\n') is None


def test_a_push_needs_a_green_test_of_its_own_source(root: Path) -> None:
    rule = """
        [[rule]]
        name = "push"
        kind = "without"
        type = "push"
        by = "source"
        needs = [{ type = "test", where = { "data.ok" = true } }]
        undone_by = [{ type = "test", where = { "data.ok" = false } }]
    """
    steps = [
        *(("push@/a", None), ("test@/a", {"ok": True}), ("push@/b", None), ("push@/a", None)),
        *(("test@/b", {"ok": "no"}), ("push@/b", None), ("test@/a", {"ok": False}), ("push@/a", None)),
        *(("test@/a", {"ok": "true"}), ("push@/a", None)),
    ]
    emit(root, *((second, type, data) for second, (type, data) in enumerate(steps)))
    found = finding(root, rule)
    assert found is not None
    assert [mention.time // 10**9 for mention in found.mentions] == [0, 2, 5, 7]


def test_outliers_need_some_values_and_finite_ones(root: Path) -> None:
    rule = '[[rule]]\nname = "o"\nkind = "outlier"\ntype = "t"\nvalue = "data.n"\nleast = 4\nshow = ["data.who"]\n'
    values: list[Any] = [10, 10, 31, "nan", "Infinity", True, None, "x", "30"]
    emit(root, *((at, "t", {"n": value, "who": f"w{at}"}) for at, value in enumerate(values)))
    assert finding(root, rule) is None
    emit(root, (20, "t", {"n": 10}), (21, "t", {"n": 10}), (22, "t", "text"))
    found = finding(root, rule)
    assert found is not None
    assert [mention.text for mention in found.mentions] == ["data.n 31 is 3.1 × the median 10: w2"]
    assert finding(root, rule.replace("least = 4", "least = 7")) is None


def test_durations_of_spans_and_pairs_can_be_outliers(root: Path) -> None:
    rule = '[[rule]]\nname = "o"\nkind = "outlier"\ntype = "*.end"\nvalue = "duration"\n'
    drafts = []
    for n in range(10):
        drafts += [(n * 100, "job.start", {"id": n}), (n * 100 + (50 if n == 7 else 5), "job.end", {"id": n})]
    emit(root, *drafts)
    found = finding(root, rule)
    assert found is not None
    assert [mention.text for mention in found.mentions] == ["duration 50 is 10.0 × the median 5"]
    assert found.mentions[0].time == 750 * 10**9


def test_more_findings_than_are_listed(root: Path) -> None:
    emit(root, *((n, "t", n) for n in range(50)))
    found = finding(root, 'limit = 7\n[[rule]]\nname = "e"\nkind = "each"\ntype = ["u", "t*"]\nshow = ["data"]\n')
    assert found is not None
    assert (found.count, [mention.text for mention in found.mentions]) == (50, [str(n) for n in range(43, 50)])


def test_only_some_rules() -> None:
    assert [each.rule for each in digest(EVLEDGER, only=["refusal"]).findings] == ["refusal"]
    with pytest.raises(ConfigurationError, match=r"there is no rule 'refusals'; there are: refusal, could-have-asked"):
        digest(EVLEDGER, only=["refusals"])


EACH = '[[rule]]\nname = "a"\nkind = "each"\ntype = "x"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = [", "rules.toml: is no TOML"),
        ("limit = 0", "line 1, limit: expected `int` >= 1"),
        ("\nlimits = 3", "line 2, limits: .*unknown field `limits`; there are: limit, pairs, sum, recent, rule"),
        (f"{EACH}{EACH.replace('each', 'eech')}", "line 7, kind: invalid value 'eech'; kinds are: each, spike"),
        (f"{EACH}\n{EACH}", "line 7, name: there are two called 'a'"),
        (f"{EACH}severe = 1", "line 5, severe: .*unknown field .*; there are: kind, type, where"),
        (f"{EACH}severity = 'bad'", "line 5, severity: invalid enum value 'bad'"),
        (f"{EACH}{SPIKE.replace('10s', 'soon')}", "line 10, within: 'soon' is no time"),
        (f"{EACH}{SPIKE.replace('3', '-3')}", "line 9, count: expected `int` >= 1"),
        (f"{SPIKE}by = 'meta.x'", "line 7, by: 'meta.x' is no place in a record"),
        ("[[sum]]\nname = 's'\nfields = ['data..x']\ntype = 't'", "line 3, fields: 'data..x' is no place"),
        ("[[sum]]\nname = 's'\nfields = 'data.x'\ntype = 't'", "line 3, fields: expected `array`, got `str`"),
        ("[[rule]]\nname = 'a'\nkind = 'without'\ntype = 'x'\nneeds = [{ typ = 'y' }]", "line 5, needs: .*`typ`"),
        ("[[rule]]\nname = 'a'\ntype = 'x'", "line 1, kind: .*missing required field `kind`"),
        ("[rule]\nname = 'a'", "line 1, rule: expected `array`, got `object`"),
        ("pairs = 'data.'", "line 1, pairs: 'data.' is no key"),
    ],
)
def test_rules_that_are_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_no_rules_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere: cannot be read: No such file"):
        load(tmp_path / "nowhere")
    (tmp_path / "latin").write_bytes(b"# \xe9\n")
    with pytest.raises(ConfigurationError, match="latin: is no text in UTF-8"):
        load(tmp_path / "latin")
    (tmp_path / "empty").write_text("")
    assert digest(EVLEDGER, rules=tmp_path / "empty").findings == ()


# The command line


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "otledger", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_commands(root: Path) -> None:
    done = cli("--root", EVLEDGER, "stats")
    assert (done.returncode, done.stderr) == (0, "")
    assert "com.example.job.start      124  31.0%" in done.stdout
    assert "400 records from 2026-09-28T08:03:54Z to 2026-10-01T00:33:44Z, 6.2 an hour" in done.stdout
    as_json = json.loads(cli("--root", EVLEDGER, "stats", "--json", "--type", "com.*").stdout)
    assert as_json["pairs"]["com.example.job"]["seconds"]["count"] == 90
    assert as_json["first"] == "2026-09-28T08:08:28.137366000Z"
    done = cli("--root", EVLEDGER, "digest")
    assert (done.returncode, done.stderr) == (0, "")
    assert "ALERT  failure-spike: 3\n" in done.stdout
    assert "  and 5 more\n" in done.stdout
    assert done.stdout == cli("--root", EVLEDGER, "digest").stdout
    as_json = json.loads(cli("--root", EVLEDGER, "digest", "--json", "--only", "refusal").stdout)
    assert [(each["rule"], each["count"]) for each in as_json["findings"]] == [("refusal", 25)]
    assert as_json["findings"][0]["mentions"][0]["time"].endswith("Z")
    rules = root.with_suffix(".toml")
    rules.write_text(cli("digest", "--show-rules").stdout)
    done = cli("--root", EVLEDGER, "digest", "--json", "--rules", rules)
    assert json.loads(done.stdout) == json.loads(cli("--root", EVLEDGER, "digest", "--json").stdout)


def test_commands_that_cannot_answer(root: Path, tmp_path: Path) -> None:
    for command in ("stats", "digest"):
        done = cli("--root", EVLEDGER, command, "--since", "2020", "--until", "2021")
        assert (done.returncode, done.stdout) == (1, "0 records\n")
        done = cli("--root", EVLEDGER, command, "--since", "2021", "--until", "2020")
        assert (done.returncode, done.stdout) == (2, "")
        assert "the window ends before it begins" in done.stderr
        assert cli("--root", root, command).returncode == 2
    bad = tmp_path / "bad.toml"
    bad.write_text("limit = 3\nlimt = 4\n")
    done = cli("--root", EVLEDGER, "digest", "--rules", bad)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{bad}, line 2, limt: " in done.stderr
    assert "Traceback" not in done.stderr
    shutil.copytree(EVLEDGER, root)
    (root / "laptop" / "2026-10.jsonl").write_bytes(b"nothing\n")
    done = cli("--root", root, "stats", "--json")
    assert done.returncode == 3
    assert "not a record" in done.stderr
    assert json.loads(done.stdout)["records"] == 396


def test_what_a_ledger_holds_cannot_move_the_terminal(root: Path) -> None:
    emit(root, (1, "failure", {"summary": "\x1b[2J\u202e"}), (2, "failure", None), (3, "failure", None))
    done = cli("--root", root, "digest")
    assert "\\x1b[2J\\u202e" in done.stdout
    assert "\x1b" not in done.stdout


def test_the_cap_of_exact_values_is_what_the_page_says() -> None:
    page = (DATA.parent.parent / "docs" / "stats.md").read_text()
    assert f"{spread.EXACT:,}" in page
    assert f"{scan.DISTINCT:,}" in page
