"""The API of a ledger: what is accepted, what is durable, ids and receipts, views, turns, closing, the names' rules."""

import asyncio
import concurrent.futures
import contextlib
import enum
import hashlib
import inspect
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio

import otledger
from otledger.errors import ConfigurationError

Json = dict[str, Any]
CheckAll = Callable[[Path], dict[str, list[Json]]]

HASH = "ab" * 32
PUBLIC = {
    "Config",
    "Draft",
    "EventRefused",
    "Fault",
    "Filter",
    "Health",
    "Journal",
    "JournalError",
    "Ledger",
    "LedgerClosed",
    "LedgerError",
    "LoggingHandler",
    "QueueFull",
    "Projection",
    "Reader",
    "Receipt",
    "Record",
    "Report",
    "Span",
    "Status",
    "SyncLedger",
    "__version__",
    "by_subject",
    "ipc_hash",
    "open",
    "open_sync",
    "redact",
    "verify",
}


@pytest.fixture(autouse=True)
def accepted(root: Path, check_all: CheckAll) -> Iterator[None]:
    """The checker accepts whatever a test here wrote."""
    yield
    if root.exists():
        check_all(root)


@pytest.fixture
def events(root: Path, check_all: CheckAll) -> Callable[[], list[Json]]:
    """Give the callers' events of the one machine, as the checker reads them."""

    def read() -> list[Json]:
        (records,) = check_all(root).values()
        return [record for record in records if not record["type"].startswith(("otledger.", "otel."))]

    return read


Events = Callable[[], list[Json]]


def segment_holds(root: Path, machine: str, text: str) -> bool:
    return any(text in path.read_text() for path in (root / machine).glob("*.jsonl"))


def read(root: Path, machine: str) -> bytes:
    return b"".join(path.read_bytes() for path in sorted((root / machine).glob("*.jsonl")))


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


# The package


def test_the_public_names_are_pinned() -> None:
    assert set(otledger.__all__) == PUBLIC
    assert len(otledger.__all__) == len(PUBLIC)
    assert all(hasattr(otledger, name) for name in PUBLIC)


@pytest.mark.parametrize(
    "payload",
    [None, 7, "é ☃", {"b": 1, "a": [1, 2.5, None, True]}, {"ü": {"z": "\u2028", "y": "𝄞"}}, float("nan"), []],
)
def test_ipc_hash_is_that_of_pipeworks(payload: Any) -> None:
    text = json.dumps(payload, sort_keys=True, ensure_ascii=False)
    assert otledger.ipc_hash(payload) == hashlib.sha256(text.encode("utf-8")).hexdigest()


def test_ipc_hash_of_a_known_payload() -> None:
    # Computed by hand: sha256 of '{"a": "é", "b": 1}' in UTF-8.
    known = hashlib.sha256(b'{"a": "\xc3\xa9", "b": 1}').hexdigest()
    assert otledger.ipc_hash({"b": 1, "a": "é"}) == otledger.ipc_hash({"a": "é", "b": 1}) == known


# emit


async def test_an_event_has_what_it_was_given(root: Path, events: Events) -> None:
    before = time.time_ns()
    async with otledger.open(root, machine="m1", service="shop") as ledger:
        id = await ledger.emit(
            "order.placed",
            {"id": 7, "note": "a\u2028b"},
            subject="tenant-1",
            ipc_hash=HASH,
            extensions={"phase": "beta", "n": 3, "ok": True},
        )
        plain = await ledger.emit("plain")
    first, second = events()
    assert first["id"] == id
    assert second["id"] == plain != id
    assert [first[name] for name in ("specversion", "source", "type", "subject", "machine", "ipchash")] == [
        *("1.0", "/m1/shop", "order.placed", "tenant-1", "m1", HASH)
    ]
    assert (first["phase"], first["n"], first["ok"]) == ("beta", 3, True)
    assert first["data"] == {"id": 7, "note": "a\u2028b"}
    assert not {"data", "subject", "ipchash", "traceparent", "phase"} & second.keys()
    assert before <= nanoseconds(first["time"]) <= nanoseconds(second["time"]) <= time.time_ns()


def nanoseconds(text: str) -> int:
    whole = datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    return int(whole.timestamp()) * 10**9 + int(text[20:29])


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (1_700_000_000_123_456_789, "2023-11-14T22:13:20.123456789Z"),
        (0, "1970-01-01T00:00:00.000000000Z"),
        ("2026-01-02T03:04:05.5+01:00", "2026-01-02T02:04:05.500000000Z"),
        ("2026-01-02t03:04:05z", "2026-01-02T03:04:05.000000000Z"),
    ],
)
async def test_time_and_id_may_be_given(root: Path, events: Events, given: int | str, stored: str) -> None:
    async with otledger.open(root) as ledger:
        assert await ledger.emit("a", time=given, id="mine") == "mine"
    (event,) = events()
    assert (event["id"], event["time"]) == ("mine", stored)


@pytest.mark.parametrize("given", ["yesterday", "2026-13-01T00:00:00Z", 1.5, True])
async def test_a_time_that_is_no_instant_becomes_now(root: Path, events: Events, given: Any) -> None:
    before = time.time_ns()
    async with otledger.open(root) as ledger:
        await ledger.emit("a", time=given)
    assert before <= nanoseconds(events()[0]["time"]) <= time.time_ns()


async def test_ids_are_version_7_and_unique(root: Path, events: Events) -> None:
    async with otledger.open(root) as ledger:
        ids = [await ledger.emit("a", n) for n in range(3000)]
    assert len(set(ids)) == 3000
    assert all(len(id) == 32 and id[12] == "7" and id[16] in "89ab" and id == id.lower() for id in ids)
    assert [event["id"] for event in events()] == ids
    assert [event["data"] for event in events()] == list(range(3000))


async def test_the_payload_is_that_of_the_call(root: Path, events: Events) -> None:
    async with otledger.open(root, flush_interval=60.0) as ledger:
        payload: Json = {"items": [1]}
        await ledger.emit("a", payload)
        payload["items"].append(2)
        payload["late"] = True
    assert events()[0]["data"] == {"items": [1]}


async def test_what_is_accepted_is_written_soon(root: Path) -> None:
    async with otledger.open(root, machine="m1", flush_interval=0.05) as ledger:
        id = await ledger.emit("a")
        await until(lambda: segment_holds(root, "m1", id), 2)


async def test_nothing_is_written_before_its_time_unless_somebody_waits(root: Path) -> None:
    async with otledger.open(root, machine="m1", flush_interval=60.0) as ledger:
        first = await ledger.emit("a")
        await asyncio.sleep(0.3)
        assert not segment_holds(root, "m1", first)
        async with asyncio.timeout(5):
            receipt = await ledger.append("b")
        assert receipt is not None
        assert segment_holds(root, "m1", first)
        second = await ledger.emit("c")
        async with asyncio.timeout(5):
            await ledger.flush()
        assert segment_holds(root, "m1", second)


async def test_a_tight_loop_of_emit_lets_other_tasks_run(root: Path) -> None:
    async with otledger.open(root) as ledger:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(tick())
        for n in range(5000):
            await ledger.emit("a", n)
        other.cancel()
    assert ticks >= 5


async def test_emit_nowait_from_threads_and_callbacks(root: Path, events: Events) -> None:
    async with otledger.open(root) as ledger:
        loop = asyncio.get_running_loop()
        ids: dict[str, list[str]] = {name: [] for name in "abcd"}

        def work(name: str) -> None:
            for n in range(500):
                ids[name].append(ledger.emit_nowait("thread", [name, n]))

        called = asyncio.Event()

        def callback() -> None:
            ids["callback"] = [ledger.emit_nowait("callback", ["callback", 0])]
            called.set()

        loop.call_soon(callback)
        await asyncio.gather(called.wait(), *(asyncio.to_thread(work, name) for name in "abcd"))
    stored = events()
    assert len(stored) == 2001
    for name, given in ids.items():
        own = [event for event in stored if event["data"][0] == name]
        assert [event["id"] for event in own] == given
        assert [event["data"][1] for event in own] == list(range(len(given)))


# append, flush


async def test_a_receipt_agrees_with_the_file(root: Path) -> None:
    async with otledger.open(root, machine="m1", max_segment=4000) as ledger:
        for n in range(30):
            receipt = await ledger.append("a", {"n": n, "fill": "x" * 200})
            assert receipt is not None
            lines = (root / "m1" / receipt.segment).read_bytes().splitlines(keepends=True)
            (line,) = [line for line in lines if receipt.id.encode() in line]
            assert line.endswith(f'"checksum":"{receipt.checksum}"}}\n'.encode())
            record = json.loads(line)
            assert (record["id"], record["seq"], record["data"]["n"]) == (receipt.id, receipt.seq, n)
    assert len(list((root / "m1").glob("*.jsonl"))) > 2


@pytest.mark.parametrize("durability", ["disk", "os"])
async def test_append_is_durable_on_return(root: Path, monkeypatch: pytest.MonkeyPatch, durability: Any) -> None:
    synced: dict[str, int] = {}
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        size = os.fstat(fd).st_size
        real(fd)
        synced[os.readlink(f"/proc/self/fd/{fd}")] = size

    async with otledger.open(root, machine="m1", durability=durability, sync_interval=60.0) as ledger:
        await ledger.append("warm up")
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        receipt = await ledger.append("a")
        assert receipt is not None
        path = root / "m1" / receipt.segment
        end = path.read_bytes().index(receipt.checksum.encode()) + len(receipt.checksum) + 3
        assert (synced.get(str(path.resolve()), 0) >= end) == (durability == "disk")


async def test_os_durability_syncs_in_the_background(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = os.fdatasync
    async with otledger.open(root, durability="os", sync_interval=0.1) as ledger:
        await ledger.append("a")
        monkeypatch.setattr(os, "fdatasync", lambda fd: (calls.append(fd), real(fd))[1])
        await ledger.append("b")
        await until(lambda: bool(calls))


async def test_appends_share_a_sync(root: Path, monkeypatch: pytest.MonkeyPatch, events: Events) -> None:
    calls = 0
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.005)
        real(fd)

    async with otledger.open(root) as ledger:
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        receipts = await asyncio.gather(*(ledger.append("a", n) for n in range(200)))
        assert calls <= 50
    stored = {event["id"]: event for event in events()}
    assert len(stored) == 200
    for n, receipt in enumerate(receipts):
        assert receipt is not None
        assert stored[receipt.id]["data"] == n
        assert (stored[receipt.id]["seq"], stored[receipt.id]["checksum"]) == (receipt.seq, receipt.checksum)


async def test_flush_waits_for_everything_before_it(root: Path) -> None:
    async with otledger.open(root, machine="m1", flush_interval=60.0) as ledger:
        await ledger.flush()
        # More than one batch.
        ids = [await ledger.emit("a", n) for n in range(20_000)]
        await ledger.flush()
        stored = [line.split(b'"', 8)[7].decode() for line in read(root, "m1").splitlines()]
        assert set(stored) >= set(ids)
        health = ledger.health()
        assert (health.queued_records, health.queued_bytes, health.durable) == (0, 0, 20_000)


# bind, turn


async def test_bind_gives_defaults(root: Path, events: Events) -> None:
    async with otledger.open(root, machine="m1", service="shop") as ledger:
        view = ledger.bind(subject="s", source="/other", ipc_hash=HASH, extensions={"phase": "beta", "n": 1})
        await view.emit("defaults")
        await view.append("given", subject="s2", source="/mine", ipc_hash="cd", extensions={"n": 2, "more": True})
        view.bind(subject="s3", extensions={"phase": "gold"}).emit_nowait("again")
        await ledger.emit("plain")
        await view.flush()
    names = ("subject", "source", "ipchash", "phase", "n", "more")
    assert [[event.get(name) for name in names] for event in events()] == [
        ["s", "/other", HASH, "beta", 1, None],
        ["s2", "/mine", "cd", "beta", 2, True],
        ["s3", "/other", HASH, "gold", 1, None],
        [None, "/m1/shop", None, None, None, None],
    ]


async def test_a_turn_is_carried_by_everything_inside(root: Path, check_all: CheckAll) -> None:
    async with otledger.open(root) as ledger:

        async def task() -> None:
            await ledger.emit("in a task")

        async with ledger.turn(HASH):
            await ledger.emit("outer")
            await asyncio.create_task(task())
            await asyncio.to_thread(ledger.emit_nowait, "in a thread")
            async with ledger.span("in a span") as span:
                span.set_attribute("a", 1)
                await ledger.emit("inside the span")
            with ledger.turn("inner"):
                await ledger.emit("inner")
            await ledger.emit("given", ipc_hash="given")
            await ledger.bind(ipc_hash="bound").emit("bound")
            await ledger.emit("outer again")
        await ledger.emit("after")
    (records,) = check_all(root).values()
    found = {r["type"]: r.get("ipchash") for r in records if not r["type"].startswith("otledger.")}
    found.pop("otel.resource")
    found.pop("otel.span.start", None)
    inside = ("outer", "in a task", "in a thread", "otel.span.end", "inside the span", "outer again")
    assert found == {**dict.fromkeys(inside, HASH), "inner": "inner", "given": "given", "bound": "bound", "after": None}


@pytest.mark.parametrize("bad", ["", None, 7])
async def test_a_turn_needs_its_hash(root: Path, bad: Any) -> None:
    async with otledger.open(root) as ledger:
        with pytest.raises(ValueError, match="ipc_hash"):
            ledger.turn(bad)


async def test_a_turn_left_in_another_context_leaves_that_ones_turn_alone(root: Path, events: Events) -> None:
    async with otledger.open(root) as ledger:

        async def generator() -> Any:
            with ledger.turn("generator"):
                yield 1
                yield 2

        found = generator()
        await asyncio.create_task(anext(found))
        with ledger.turn("mine"):
            await found.aclose()
            await ledger.emit("a")
        await ledger.emit("b")
    assert [event.get("ipchash") for event in events()] == ["mine", None]


# Closing


async def test_a_closed_ledger_accepts_nothing(root: Path, events: Events) -> None:
    ledger = otledger.open(root)
    async with ledger:
        await ledger.emit("a")
        view = ledger.bind(subject="s")
    doors: list[Callable[[], Any]] = [
        lambda: ledger.emit("b"),
        lambda: ledger.append("b"),
        lambda: view.emit("b"),
        lambda: view.append("b"),
        ledger.flush,
        ledger.span("b").__aenter__,
    ]
    for door in doors:
        with pytest.raises(otledger.LedgerClosed, match="closed"):
            await door()
    with pytest.raises(otledger.LedgerClosed, match="closed"):
        ledger.emit_nowait("b")
    with pytest.raises(otledger.LedgerClosed, match="closed"):
        ledger.start_span("b")
    with pytest.raises(otledger.LedgerClosed), ledger.span("b"):
        pass
    assert issubclass(otledger.LedgerClosed, otledger.LedgerError)
    assert issubclass(otledger.LedgerClosed, RuntimeError)
    assert await ledger.aclose() == 0
    assert [event["type"] for event in events()] == ["a"]


async def test_health_can_be_asked_after_close(root: Path) -> None:
    async with otledger.open(root) as ledger:
        await ledger.emit("a")
    assert ledger.health().state == "closed"


async def test_a_ledger_that_is_not_open_says_so(root: Path) -> None:
    ledger = otledger.open(root)
    with pytest.raises(otledger.LedgerClosed, match="not open yet"):
        await ledger.emit("a")
    assert os.listdir(root.parent) == []


async def test_await_and_aclose(root: Path, events: Events) -> None:
    ledger = await otledger.open(root, flush_interval=60.0)
    id = await ledger.emit("a")
    assert await ledger.aclose() == 0
    assert [event["id"] for event in events()] == [id]


async def test_a_ledger_that_was_awaited_may_be_used_as_a_block_too(root: Path, events: Events) -> None:
    ledger = await otledger.open(root, flush_interval=60.0)
    async with ledger:
        id = await ledger.emit("a")
    # Closed: what was accepted is in the file, and nobody holds the files any more.
    assert [event["id"] for event in events()] == [id]
    assert open_files(root) == []


def open_files(root: Path) -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            path = os.readlink(f"/proc/self/fd/{fd}")
            if path.startswith(str(root.resolve())):
                found.append(path)
    return found


async def test_a_ledger_can_be_opened_again(root: Path, events: Events) -> None:
    for n in range(3):
        async with otledger.open(root) as ledger:
            await ledger.emit("a", n)
        assert open_files(root) == []
    assert [event["data"] for event in events()] == [0, 1, 2]
    assert otledger.verify(root).status is otledger.Status.OK


async def test_the_same_ledger_may_be_entered_again(root: Path, events: Events) -> None:
    # Each batch has a segment of its own, in which what its spans name has to stand.
    ledger = otledger.open(root, max_segment=1)
    for n in range(2):
        async with ledger, ledger.span("work"):
            await ledger.emit("a", n)
        with pytest.raises(otledger.LedgerClosed):
            await ledger.emit("late")
    assert [event["data"] for event in events()] == [0, 1]


async def test_closing_writes_a_checkpoint_when_there_is_something_new(root: Path, check_all: CheckAll) -> None:
    async with otledger.open(root, machine="m1") as ledger:
        await ledger.emit("a")
    records = check_all(root)["m1"]
    assert records[-1]["type"] == "otledger.checkpoint"
    assert records[-1]["data"]["size"] == len(records) - 1
    async with otledger.open(root, machine="m1"):
        pass
    assert len(check_all(root)["m1"]) == len(records)


async def test_checkpoints_come_at_most_once_an_interval(root: Path, check_all: CheckAll) -> None:
    async with otledger.open(root, machine="m1", checkpoint_interval=60.0) as ledger:
        for n in range(50):
            await ledger.append("a", n)
    rare = sum(record["type"] == "otledger.checkpoint" for record in check_all(root)["m1"])
    assert rare == 1
    async with otledger.open(root, machine="m2", checkpoint_interval=0.0) as ledger:
        for n in range(50):
            await ledger.append("a", n)
    assert sum(record["type"] == "otledger.checkpoint" for record in check_all(root)["m2"]) > 10


async def test_a_cancelled_program_still_writes_what_it_accepted(root: Path, events: Events) -> None:
    ids = []

    async def program() -> None:
        async with otledger.open(root, flush_interval=60.0) as ledger:
            while True:
                ids.append(await ledger.emit("a"))
                await asyncio.sleep(0.001)

    task = asyncio.create_task(program())
    await until(lambda: len(ids) >= 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [event["id"] for event in events()] == ids


async def test_emit_cancelled_while_it_lets_others_run_is_not_accepted(root: Path, events: Events) -> None:
    ids: list[str] = []
    async with otledger.open(root) as ledger:

        async def tight() -> None:
            while True:
                ids.append(await ledger.emit("a"))

        tasks = [asyncio.create_task(tight()) for _ in range(3)]
        await until(lambda: len(ids) > 500)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert {event["id"] for event in events()} == set(ids)
    assert len(events()) == len(ids)


def test_trio_gets_a_clear_error(root: Path) -> None:
    async def block() -> None:
        async with otledger.open(root):
            raise AssertionError("opened")

    async def plain() -> None:
        await otledger.open(root)

    for program in (block, plain):
        with pytest.raises(ConfigurationError, match=r"asyncio.*trio.*open_sync"):
            trio.run(program)
    assert not os.path.exists(root)


# Names, types, sizes

BAD_EXTENSIONS = [
    ({"Phase": "x"}, "a-z and 0-9"),
    ({"a_b": "x"}, "a-z and 0-9"),
    ({"a-b": "x"}, "a-z and 0-9"),
    ({"": "x"}, "1 to 20"),
    ({"a" * 21: "x"}, "1 to 20"),
    ({"phasé": "x"}, "a-z and 0-9"),
    ({"٣": "x"}, "a-z and 0-9"),
    ({"a\n": "x"}, "a-z and 0-9"),
    ({7: "x"}, "a-z and 0-9"),
    *(({name: "x"}, "reserved") for name in ("seq", "id", "data", "checksum", "ipchash", "machine", "time", "synced")),
    *(({name: "x"}, "otl") for name in ("otl", "otlinvalid", "otlmine")),
    *(({name: "x"}, "orig") for name in ("orig", "origseq", "original")),
    ({"phase": 1.5}, "str, bool and int"),
    ({"phase": None}, "str, bool and int"),
    ({"phase": ["x"]}, "str, bool and int"),
    ({"phase": b"x"}, "str, bool and int"),
    ({"phase": 1 << 31}, "32 bits"),
    ({"phase": -(1 << 31) - 1}, "32 bits"),
    ({"phase": "a\nb"}, "control character"),
    ({"phase": "\ud800"}, "surrogate"),
    ({"phase": "x" * 1025}, "1024"),
]
BAD_TYPES = [
    ("otledger.checkpoint", "reserved.*otledger"),
    ("otledger.mine", "reserved.*otledger"),
    ("otel.span.end", "reserved.*otel"),
    ("otel.", "reserved"),
    ("", "empty"),
    (None, "must be a str"),
    (7, "must be a str"),
    (b"order", "must be a str"),
    ({"id": 7}, "must be a str"),
    ("a\x00b", "control character"),
    ("a\ud800", "surrogate"),
    ("x" * 1025, "1024"),
]


@pytest.mark.parametrize("door", ["emit", "append", "emit_nowait", "sync emit", "sync append", "journal"])
@pytest.mark.parametrize(
    ("type", "extensions", "says"),
    [("a", extensions, says) for extensions, says in BAD_EXTENSIONS] + [(type, {}, says) for type, says in BAD_TYPES],
)
async def test_a_bad_name_is_refused_through_every_door(
    shared: Any, door: str, type: Any, extensions: Any, says: str
) -> None:
    ledger, sync, journal = shared
    doors: dict[str, Callable[..., Any]] = {
        "emit": ledger.emit,
        "append": ledger.append,
        "emit_nowait": ledger.emit_nowait,
        "sync emit": sync.emit,
        "sync append": sync.append,
        # The good one before it is not written either.
        "journal": lambda *names, **more: journal.append([otledger.Draft("good"), otledger.Draft(*names, **more)]),
    }
    before = ledger.health().accepted

    async def use() -> None:
        result = doors[door](type, extensions=extensions)
        if inspect.isawaitable(result):
            await result

    with pytest.raises(ValueError, match=says) as caught:
        await use()
    assert isinstance(caught.value, otledger.EventRefused)
    assert ledger.health().accepted == before
    text = "".join(path.read_text() for path in (ledger.config.root / "j").glob("*.jsonl"))
    assert '"good"' not in text


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One ledger for the many tests of what is refused."""
    root = tmp_path_factory.mktemp("shared") / "ledger"
    ledger = otledger.open(root, machine="m1")
    asyncio.run(_entered(ledger))
    with otledger.open_sync(root, machine="m1") as sync, otledger.Journal(root, machine="j") as journal:
        yield ledger, sync, journal
    asyncio.run(_closed(ledger))


async def _entered(ledger: otledger.Ledger) -> None:
    await ledger


async def _closed(ledger: otledger.Ledger) -> None:
    await ledger.aclose()


@pytest.mark.parametrize(("extensions", "says"), BAD_EXTENSIONS)
def test_bind_refuses_a_bad_extension_at_once(shared: Any, extensions: Any, says: str) -> None:
    for ledger in shared[:2]:
        with pytest.raises(otledger.EventRefused, match=says):
            ledger.bind(extensions=extensions)


@pytest.mark.parametrize(
    ("member", "value", "says"),
    [
        ("subject", 7, "subject.*must be a str"),
        ("subject", "a\nb", "subject.*control character"),
        ("subject", "x" * 1025, "1024"),
        ("source", "", "source is empty"),
        ("source", 7, "source.*must be a str"),
        ("ipc_hash", 7, "ipc_hash.*must be a str"),
        ("ipc_hash", "", "ipc_?hash is empty"),
        ("id", "", "id is empty"),
        ("id", 7, "id.*must be a str"),
    ],
)
async def test_a_bad_member_is_refused(shared: Any, member: str, value: Any, says: str) -> None:
    ledger, sync, _ = shared
    for emit in (ledger.emit_nowait, sync.emit):
        with pytest.raises(otledger.EventRefused, match=says):
            emit("a", **{member: value})
    with pytest.raises(otledger.EventRefused, match=says):
        await ledger.append("a", **{member: value})


class Kind(enum.StrEnum):
    PAID = "order.paid"


async def test_what_is_allowed_is_stored(root: Path, events: Events) -> None:
    good: Json = {"a": "", "z9": -(1 << 31), "b" * 20: (1 << 31) - 1, "on": True, "off": False, "text": "é\u2028☃"}
    async with otledger.open(root) as ledger:
        await ledger.emit("a.B-c_9 ☃", extensions=good, subject="é")
        await ledger.emit(Kind.PAID)
        await ledger.emit("otel")
        await ledger.emit("otledgers.mine")
        await ledger.emit("x" * 1024, source="urn:x:y")
    first, *others = events()
    assert {name: first[name] for name in good} == good
    assert [type(first[name]) for name in good] == [str, int, int, bool, bool, str]
    assert [event["type"] for event in others] == ["order.paid", "otel", "otledgers.mine", "x" * 1024]


async def test_an_event_too_large_or_too_deep_is_refused_and_nothing_else_is_lost(root: Path, events: Events) -> None:
    deep: Any = 0
    for _ in range(99):
        deep = [deep]
    endless: list[Any] = []
    endless.append(endless)
    async with otledger.open(root) as ledger:
        await ledger.emit("before")
        for emit in (ledger.emit, ledger.append):
            with pytest.raises(otledger.EventRefused, match=r"a line has at most 16,777,216"):
                await emit("large", "x" * (16 << 20))
            for bad in (deep, endless):
                with pytest.raises(otledger.EventRefused, match="deep"):
                    await emit("deep", bad)
        await ledger.emit("largest", "x" * ((16 << 20) - 1000))
        await ledger.append("deepest", deep[0])
        await ledger.append("after")
    stored = events()
    assert [event["type"] for event in stored] == ["before", "largest", "deepest", "after"]
    assert len(stored[1]["data"]) == (16 << 20) - 1000
    assert stored[2]["data"] == deep[0]


async def test_what_json_has_no_word_for_comes_back(root: Path) -> None:
    payload = {"b": b"\x00\xff", "nan": float("inf"), "big": 1 << 70, "set": {1, 2}, "map": {1: "a"}, "s": "\ud800"}
    async with otledger.open(root) as ledger:
        await ledger.emit("a", payload)
        await ledger.emit("b", object)
    records = {record.type: record.data for record in otledger.Reader(root).records()}
    assert records["a"] == payload
    assert list(records["b"]) == ["$repr"]


# Without asyncio


def test_a_sync_ledger(root: Path, events: Events) -> None:
    with otledger.open_sync(root, machine="m1", service="cron", flush_interval=60.0) as ledger:
        assert isinstance(ledger, otledger.SyncLedger)
        first = ledger.emit("a", {"n": 1}, subject="s", extensions={"phase": "x"}, time=0, id="mine")
        receipt = ledger.append("b", {"n": 2})
        assert receipt is not None
        assert segment_holds(root, "m1", receipt.checksum)
        view = ledger.bind(subject="bound")
        assert isinstance(view, otledger.SyncLedger)
        view.emit_nowait("c")
        with ledger.span("work", attributes={"k": 1}), ledger.turn(HASH):
            ledger.emit("d")
        ledger.flush()
        assert ledger.health().queued_records == 0
        last = ledger.emit("e")
    assert first == "mine"
    stored = events()
    assert [event["type"] for event in stored] == list("abcde")
    assert stored[0]["time"].startswith("1970")
    assert stored[0]["source"] == "/m1/cron"
    assert stored[2]["subject"] == "bound"
    assert stored[3]["ipchash"] == HASH
    assert "traceparent" in stored[3]
    assert stored[4]["id"] == last
    assert ledger.close() == 0
    for door in (ledger.emit, ledger.append, ledger.emit_nowait, view.emit, ledger.start_span):
        with pytest.raises(otledger.LedgerClosed):
            door("late")
    with pytest.raises(otledger.LedgerClosed):
        ledger.flush()


def test_a_sync_ledger_in_threads(root: Path, events: Events) -> None:
    with (
        otledger.open_sync(root, queue_records=64) as ledger,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        # More than the queue holds: each waits for its place.
        ids = list(pool.map(lambda n: ledger.emit("a", n), range(1000)))
        receipts = list(pool.map(lambda n: ledger.append("b", n), range(100)))
    stored = events()
    assert {event["id"] for event in stored} == {*ids, *(receipt.id for receipt in receipts if receipt)}
    assert len(stored) == 1100


def test_a_sync_ledger_gives_up_waiting_and_the_record_stays(root: Path, hang: Any, events: Events) -> None:
    with otledger.open_sync(root) as ledger:
        hang.start("fdatasync")
        with pytest.raises(TimeoutError):
            ledger.append("a", timeout=0.1)
        with pytest.raises(TimeoutError):
            ledger.flush(timeout=0.1)
        hang.stop()
        ledger.flush(timeout=10)
    assert [event["type"] for event in events()] == ["a"]


def test_the_journal_alone(root: Path, monkeypatch: pytest.MonkeyPatch, check_all: CheckAll) -> None:
    synced: list[int] = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (real(fd), synced.append(os.fstat(fd).st_size))[0])
    with otledger.Journal(root, machine="m1", service="tool") as journal:
        drafts = [
            otledger.Draft(
                "a", {"n": 1}, subject="s", extensions={"phase": "x"}, id="mine", time="2026-01-01T00:00:00Z"
            ),
            otledger.Draft("b"),
        ]
        receipts = journal.append(iter(drafts))
        path = root / "m1" / receipts[0].segment
        assert path.read_bytes().endswith(receipts[1].checksum.encode() + b'"}\n')
        assert synced[-1] == path.stat().st_size
        assert journal.append([]) == []
        threads = [threading.Thread(target=journal.append, args=([otledger.Draft("c", n)],)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with pytest.raises(otledger.LedgerClosed, match="closed"):
        journal.append([otledger.Draft("late")])
    stored = [record for record in check_all(root)["m1"] if not record["type"].startswith("otledger.")]
    assert [record["type"] for record in stored] == ["a", "b", *"c" * 8]
    assert [(record["id"], record["seq"], record["checksum"]) for record in stored[:2]] == [
        (receipt.id, receipt.seq, receipt.checksum) for receipt in receipts
    ]
    assert (stored[0]["id"], stored[0]["source"], stored[0]["phase"]) == ("mine", "/m1/tool", "x")
    assert stored[0]["time"] == "2026-01-01T00:00:00.000000000Z"
    assert sorted(record["data"] for record in stored[2:]) == list(range(8))


def test_journals_take_turns(root: Path, check_all: CheckAll) -> None:
    with otledger.Journal(root, machine="m1") as one, otledger.Journal(root, machine="m1") as two:
        for n in range(20):
            (one if n % 3 else two).append([otledger.Draft("a", n)])
    stored = [record["data"] for record in check_all(root)["m1"] if record["type"] == "a"]
    assert stored == list(range(20))
