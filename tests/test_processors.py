"""Processors and schemas: what is changed, hidden or dropped before it is queued, and what does not fit."""

import asyncio
import dataclasses
import json
import re
import socket
import threading
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace

import otledger
from otledger import Draft
from otledger.errors import ConfigurationError

Json = dict[str, Any]
CheckAll = Callable[[Path], dict[str, list[Json]]]


@pytest.fixture
def events(root: Path, check_all: CheckAll) -> Callable[[], list[Json]]:
    """Give the callers' events, as the checker reads them."""

    def read() -> list[Json]:
        (records,) = check_all(root).values()
        return [record for record in records if not record["type"].startswith(("otledger.", "otel."))]

    return read


Events = Callable[[], list[Json]]


# The chain


async def test_processors_add_change_and_drop(root: Path, events: Events) -> None:
    seen: list[str] = []

    def add(draft: Draft) -> Draft:
        seen.append(f"add {draft.type}")
        draft.extensions["phase"] = "beta"
        draft.subject = "added"
        draft.data["added"] = True
        return draft

    def drop(draft: Draft) -> Draft | None:
        seen.append(f"drop {draft.type}")
        return None if draft.type == "secret" else draft

    def change(draft: Draft) -> Draft:
        seen.append(f"change {draft.type}")
        assert draft.data["added"]
        return dataclasses.replace(draft, type=f"{draft.type}.changed", data={"was": draft.data}, source="/changed")

    async with otledger.open(root, processors=[add, drop, change]) as ledger:
        assert await ledger.emit("a", {"n": 1})
        assert await ledger.emit("secret", {"n": 2}) == ""
        assert ledger.emit_nowait("secret", {"n": 3}) == ""
        assert await ledger.append("secret", {"n": 4}) is None
        receipt = await ledger.append("b", {"n": 5})
        health = ledger.health()
        assert (health.accepted, health.errors, health.dropped) == (2, 0, 0)
    found = events()
    assert [(event["type"], event["data"]) for event in found] == [
        ("a.changed", {"was": {"n": 1, "added": True}}),
        ("b.changed", {"was": {"n": 5, "added": True}}),
    ]
    assert all((event["subject"], event["phase"], event["source"]) == ("added", "beta", "/changed") for event in found)
    assert receipt is not None
    assert found[1]["id"] == receipt.id
    assert seen[:3] == ["add a", "drop a", "change a"]
    assert seen.count("change secret") == 0


async def test_what_a_processor_sees(root: Path, events: Events) -> None:
    seen: list[Draft] = []

    def look(draft: Draft) -> Draft:
        seen.append(dataclasses.replace(draft))
        return draft

    async with otledger.open(root, processors=[look]) as ledger:
        view = ledger.bind(subject="s", extensions={"phase": "x"})
        async with ledger.turn("hash"), ledger.span("work") as span:
            await view.emit("a", {"n": 1}, source="/mine", time=5, id="own")
    (draft,) = seen
    assert (draft.type, draft.data, draft.subject, draft.source) == ("a", {"n": 1}, "s", "/mine")
    assert (draft.ipc_hash, draft.extensions, draft.time, draft.id) == ("hash", {"phase": "x"}, 5, "own")
    assert draft.traceparent == f"00-{span.trace_id}-{span.span_id}-01"
    (event,) = events()
    assert (event["traceparent"], event["ipchash"], event["id"]) == (draft.traceparent, "hash", "own")


async def test_the_trace_is_kept_where_there_are_processors(root: Path, events: Events) -> None:
    state = trace.TraceState([("vendor", "x"), ("b", "2")])
    above = trace.SpanContext(0xABC, 0xDEF, True, trace.TraceFlags(1), state)
    async with otledger.open(root, processors=[lambda draft: draft]) as ledger:
        with trace.use_span(trace.NonRecordingSpan(above)):
            await ledger.emit("a")
    (event,) = events()
    assert event["traceparent"] == f"00-{0xABC:032x}-{0xDEF:016x}-01"
    assert event["tracestate"] == "vendor=x,b=2"


async def test_processors_run_before_anything_is_queued(root: Path) -> None:
    here = threading.get_ident()
    threads: list[int] = []

    def look(draft: Draft) -> Draft:
        threads.append(threading.get_ident())
        return draft

    async with otledger.open(root, processors=[look]) as ledger:
        await ledger.emit("a")
        await asyncio.to_thread(ledger.emit_nowait, "b")
    assert threads[0] == here
    assert threads[1] != here


def test_processors_without_asyncio(root: Path, events: Events) -> None:
    def drop(draft: Draft) -> Draft | None:
        return None if draft.type == "no" else draft

    with otledger.open_sync(root, processors=[drop]) as ledger:
        assert ledger.emit("yes")
        assert ledger.emit("no") == ""
        assert ledger.append("no") is None
    assert [event["type"] for event in events()] == ["yes"]


async def test_the_callers_own_payload_is_not_changed(root: Path, events: Events) -> None:
    def change(draft: Draft) -> Draft:
        draft.data["inner"]["list"].append("added")
        del draft.data["gone"]
        draft.extensions["more"] = "x"
        return draft

    payload = {"inner": {"list": [1]}, "gone": 1}
    extensions: dict[str, Any] = {"phase": "x"}
    async with otledger.open(root, processors=[change]) as ledger:
        await ledger.emit("a", payload, extensions=extensions)
    assert payload == {"inner": {"list": [1]}, "gone": 1}
    assert extensions == {"phase": "x"}
    assert events()[0]["data"] == {"inner": {"list": [1, "added"]}}


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


def raising(error: BaseException) -> Callable[[Draft], Draft]:
    def processor(draft: Draft) -> Draft:
        # Half done: what it has changed must not be stored.
        draft.data["half"] = True
        draft.extensions["half"] = True
        draft.type = "half"
        raise error

    return processor


def too_deep(draft: Draft) -> Draft:
    for _ in range(200):
        draft.data = [draft.data]
    return draft


def too_large(draft: Draft) -> Draft:
    return dataclasses.replace(draft, data="x" * (17 << 20))


def renamed(name: str) -> Callable[[Draft], Draft]:
    return lambda draft: dataclasses.replace(draft, type=name)


def extended(**extensions: Any) -> Callable[[Draft], Draft]:
    return lambda draft: dataclasses.replace(draft, extensions=extensions)


def marked(**marks: Any) -> Callable[[Draft], Draft]:
    return lambda draft: dataclasses.replace(draft, marks=marks)


BROKEN: list[tuple[Callable[[Draft], Any], str]] = [
    (raising(ValueError("é\nwhy")), "ValueError: "),
    (raising(KeyError("k")), "KeyError: "),
    (raising(ValueError("x" * 5000)), "ValueError: xxx"),
    (raising(Unprintable()), "Unprintable"),
    (raising(otledger.EventRefused("mine")), "EventRefused: mine"),
    (raising(RecursionError()), "RecursionError"),
    (lambda draft: {"type": "a"}, "TypeError: a processor must return a Draft or None"),
    (lambda draft: True, "TypeError"),
    (lambda: None, "TypeError"),
    (too_deep, "EventRefused: data cannot be stored"),
    (too_large, "EventRefused: the event has"),
    (renamed("otledger.mine"), "EventRefused: type 'otledger.mine' is reserved"),
    (renamed(""), "EventRefused: type is empty"),
    (extended(Bad="x"), "EventRefused: extension 'Bad'"),
    (extended(seq="x"), "EventRefused: extension 'seq' is reserved"),
    (marked(own="x"), "EventRefused: mark 'own'"),
    (marked(otlown=1.5), "EventRefused"),
    (marked(otlown={"a": 1}), "EventRefused"),
]


@pytest.mark.parametrize(("processor", "mark"), BROKEN, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("door", ["emit", "append", "nowait"])
async def test_a_broken_processor_never_loses_the_event(
    root: Path, events: Events, processor: Any, mark: str, door: str
) -> None:
    told: list[BaseException] = []

    def after(draft: Draft) -> Draft:
        draft.extensions["after"] = True
        return draft

    async with otledger.open(root, processors=[processor, after]) as ledger:
        ledger.on_error(told.append)
        payload = {"n": 1}
        if door == "emit":
            id = await ledger.emit("a", payload, extensions={"phase": "x"})
        elif door == "append":
            receipt = await ledger.append("a", payload, extensions={"phase": "x"})
            assert receipt is not None
            id = receipt.id
        else:
            id = ledger.emit_nowait("a", payload, extensions={"phase": "x"})
        health = ledger.health()
        assert (health.errors, health.accepted) == (1, 1)
        assert health.last_error
        assert len(told) == 1
    (event,) = events()
    assert event["id"] == id
    assert (event["type"], event["data"], event["phase"]) == ("a", {"n": 1}, "x")
    assert "half" not in event
    # The chain goes on.
    assert event["after"] is True
    assert event["otlprocessor"].startswith(mark)
    assert len(event["otlprocessor"]) <= 200
    # A CloudEvents string has no control characters.
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", event["otlprocessor"])


async def test_the_callers_mistake_stays_the_callers(root: Path, events: Events) -> None:
    async with otledger.open(root, processors=[lambda draft: draft, raising(ValueError("x"))]) as ledger:
        for type, options in (("otel.mine", {}), ("a", {"extensions": {"BAD": 1}}), ("", {})):
            with pytest.raises(otledger.EventRefused):
                await ledger.emit(type, {}, **options)  # type: ignore[arg-type]
        assert ledger.health().accepted == 0
    assert events() == []


async def test_spans_are_no_drafts(root: Path, check_all: CheckAll) -> None:
    async with otledger.open(root, processors=[lambda draft: None]) as ledger, ledger.span("work"):
        assert await ledger.emit("dropped") == ""
    (records,) = check_all(root).values()
    assert [record["type"] for record in records].count("otel.span.end") == 1
    assert "dropped" not in [record["type"] for record in records]
    assert trace.get_current_span() is trace.INVALID_SPAN


# redact


@dataclasses.dataclass
class Card:
    number: str
    owner: Any


Point = namedtuple("Point", "x password")


def redacted(processor: Any, data: Any, **members: Any) -> Draft:
    result = processor(Draft("a", data, **members))
    assert isinstance(result, Draft)
    return result


def test_redact_keys_at_any_depth_and_in_any_case() -> None:
    hide = otledger.redact(keys=["Password", "token"])
    data = {
        "password": "p1",
        "PassWord": {"all": "of it"},
        "user": {"name": "n", "TOKEN": ["t1", "t2"], "list": [{"token": 3}, ({"token": 4},), "token"]},
        "password_hint": "kept",
        7: "kept",
    }
    before = json.dumps(list(map(str, data.items())))
    assert redacted(hide, data).data == {
        "password": "[redacted]",
        "PassWord": "[redacted]",
        "user": {
            "name": "n",
            "TOKEN": "[redacted]",
            "list": [{"token": "[redacted]"}, ({"token": "[redacted]"},), "token"],
        },
        "password_hint": "kept",
        7: "kept",
    }
    assert json.dumps(list(map(str, data.items()))) == before


def test_redact_patterns_everywhere() -> None:
    hide = otledger.redact(patterns=[r"\d{4}-\d{4}", re.compile("SECRET", re.IGNORECASE)], replacement=r"<\1>")
    draft = redacted(
        hide,
        {"a": "card 1234-5678, secret", "1234-5678": ["x", b"raw SECRET \xff"], "set": {"secret"}, "n": 12345678},
        subject="user secret",
        extensions={"note": "a secret", "n": 1, "on": True},
    )
    assert draft.data == {
        "a": r"card <\1>, <\1>",
        r"<\1>": ["x", rb"raw <\1> " + b"\xff"],
        "set": {r"<\1>"},
        "n": 12345678,
    }
    assert draft.subject == r"user <\1>"
    assert draft.extensions == {"note": r"a <\1>", "n": 1, "on": True}


def test_redact_extensions_by_name() -> None:
    draft = redacted(otledger.redact(keys=["apikey"]), None, extensions={"apikey": "x", "phase": "y"})
    assert draft.extensions == {"apikey": "[redacted]", "phase": "y"}
    assert draft.data is None


@pytest.mark.parametrize(
    "data",
    [
        Card("1234", Card("secret", {"password": "p"})),
        [Card("1234", "secret")],
        {"card": Card("x", "secret")},
        OrderedDict(password="secret"),
        MappingProxyType({"password": "secret"}),
        Point(1, "secret"),
        {"deep": Point(1, "secret")},
        frozenset({"secret"}),
        bytearray(b"secret"),
        memoryview(b"secret"),
        ValueError("secret"),
        pydantic.create_model("M", password=(str, ...))(password="secret"),
        {Point(1, "secret"): 1},
        {("secret", 1): 1},
        Path("/home/secret"),
    ],
    ids=lambda data: type(data).__name__,
)
def test_no_secret_passes_in_whatever_holds_it(root: Path, data: Any) -> None:
    processor = otledger.redact(keys=["password", "number"], patterns=["secret", "c2VjcmV0"])
    with otledger.open_sync(root, machine="m1", processors=[processor]) as ledger:
        ledger.append("a", data)
        assert ledger.health().errors == 0
    (text,) = (bytes(record.raw) for record in otledger.Reader(root).records() if record.type == "a")
    for secret in (b"secret", b"c2VjcmV0", b'"password":"p"', b"1234"):
        assert secret not in text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.sampled_from(["secret", "x secret y"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.just("secret"), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(json_values)
def test_redact_leaves_no_match_and_changes_nothing_else(data: Any) -> None:
    before = json.dumps(data)
    after = redacted(otledger.redact(patterns=["secret"], replacement="*"), data).data
    assert "secret" not in json.dumps(after)
    assert json.dumps(data) == before
    if "secret" not in before:
        assert json.dumps(after) == before


def test_redact_refuses_a_bad_pattern() -> None:
    with pytest.raises(re.error):
        otledger.redact(patterns=["("])


async def test_redact_in_a_ledger(root: Path, events: Events) -> None:
    async with otledger.open(root, processors=[otledger.redact(keys=["password"])]) as ledger:
        await ledger.emit("login", {"user": "u", "password": "p"})
    assert events()[0]["data"] == {"user": "u", "password": "[redacted]"}


# Schemas


ORDER = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}


class Order(pydantic.BaseModel):
    id: int
    items: list[str] = []


@pytest.mark.parametrize("schema", [ORDER, Order], ids=["JSON Schema", "pydantic"])
async def test_what_does_not_fit_is_stored_marked_and_counted(root: Path, events: Events, schema: Any) -> None:
    bad: list[Any] = [{"id": "seven"}, {}, [1], "text", {"id": None}]
    async with otledger.open(root, schemas={"order": schema}) as ledger:
        await ledger.emit("order", {"id": 7})
        await ledger.append("order", {"id": 8, "more": True})
        for data in bad:
            assert await ledger.append("order", data)
        ledger.emit_nowait("other", {"id": "seven"})
        await ledger.emit("order", None)
        health = ledger.health()
        assert (health.invalid, health.errors, health.accepted) == (5, 0, 9)
    found = events()
    assert [event.get("data") for event in found] == [{"id": 7}, {"id": 8, "more": True}, *bad, {"id": "seven"}, None]
    assert [isinstance(event.get("otlinvalid"), str) for event in found] == [False, False, *[True] * 5, False, False]
    assert all(event["otlinvalid"].startswith("$") and len(event["otlinvalid"]) <= 200 for event in found[2:7])
    assert "id" in found[2]["otlinvalid"]


async def test_a_schema_sees_what_processors_left(root: Path, events: Events) -> None:
    def repair(draft: Draft) -> Draft:
        return dataclasses.replace(draft, type="order", data={"id": int(draft.data["id"])})

    async with otledger.open(root, schemas={"order": ORDER}, processors=[repair]) as ledger:
        await ledger.emit("raw", {"id": "7"})
        assert ledger.health().invalid == 0
    assert events()[0]["data"] == {"id": 7}
    assert "otlinvalid" not in events()[0]


async def test_a_schema_sees_values_as_they_are_stored(root: Path, events: Events) -> None:
    schema = {"properties": {"at": {"type": "string"}, "raw": {"type": "object", "required": ["$bytes"]}}}
    async with otledger.open(root, schemas={"a": schema}) as ledger:
        import datetime as dt

        await ledger.emit("a", {"at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "raw": b"x"})
        assert ledger.health().invalid == 0
    assert "otlinvalid" not in events()[0]


async def test_a_check_that_breaks_never_loses_the_event(root: Path, events: Events) -> None:
    class Broken(pydantic.BaseModel):
        id: int

        @pydantic.field_validator("id")
        @classmethod
        def check(cls, value: int) -> int:
            raise RuntimeError("a\nmistake \x00")

    async with otledger.open(root, schemas={"a": Broken}) as ledger:
        await ledger.emit("a", {"id": 1})
        assert ledger.health().invalid == 1
    assert events()[0]["data"] == {"id": 1}
    assert "mistake" in events()[0]["otlinvalid"]
    assert not re.search(r"[\x00-\x1f]", events()[0]["otlinvalid"])


@pytest.fixture
def server() -> Iterator[tuple[int, list[Any]]]:
    """A local port, and who connected to it."""
    asked: list[Any] = []
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            try:
                connection, address = listener.accept()
            except TimeoutError:
                continue
            asked.append(address)
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n{}")
            connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1], asked
    stop.set()
    thread.join()
    listener.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_a_schema_is_never_fetched_from_the_network(
    root: Path, events: Events, server: tuple[int, list[Any]]
) -> None:
    port, asked = server
    schema = {"$ref": f"http://127.0.0.1:{port}/schema.json"}
    async with otledger.open(root, schemas={"a": schema}) as ledger:
        await ledger.emit("a", {"id": 1})
    await asyncio.sleep(0.2)
    assert asked == []
    assert events()[0]["data"] == {"id": 1}
    assert events()[0]["otlinvalid"].startswith("the check failed")


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "nonsense"}, "is no JSON Schema"),
        ({"properties": 7}, "is no JSON Schema"),
        (7, "must be a JSON Schema"),
        (int, "must be a JSON Schema"),
        ("text", "must be a JSON Schema"),
    ],
)
def test_a_schema_that_is_none(tmp_path: Path, schema: Any, says: str) -> None:
    for door in (otledger.open, otledger.open_sync):
        with pytest.raises(ConfigurationError, match=f"'order'.*{says}"):
            door(tmp_path / "ledger", schemas={"order": schema})
    assert list(tmp_path.iterdir()) == []


async def test_a_schema_without_its_library(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'otledger\[schemas\]'"):
        otledger.open(root, schemas={"a": ORDER})
