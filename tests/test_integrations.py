"""The bridges to logging, structlog, ASGI, threads and pytest, with the real libraries; and what their page shows."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import importlib.metadata
import logging
import logging.config
import logging.handlers
import os
import queue
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fastapi
import httpx
import pytest
import structlog
import uvicorn
from opentelemetry import trace
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

import otledger
from otledger.errors import EventRefused
from otledger.integrations.asgi import LedgerMiddleware, remote_parent
from otledger.integrations.structlog_processor import LedgerProcessor
from tests.checker import check
from tests.conftest import Hang

pytest_plugins = ["pytester"]

Json = dict[str, Any]

PLUGIN = "otledger.integrations.pytest_plugin"
PAGE = Path(__file__).parent.parent / "docs" / "integrations.md"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture(autouse=True)
def accepted(root: Path, check_all: Callable[[Path], Any]) -> Iterator[None]:
    """The checker and a deep verification accept whatever a test here wrote."""
    yield
    if root.exists():
        check_all(root)
        report = otledger.verify(root, deep=True)
        assert not report.faults


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """A logger for a test: it takes everything, and no other handler sees it."""
    logger = logging.Logger("shop.orders", logging.DEBUG)
    monkeypatch.setitem(logging.root.manager.loggerDict, "shop.orders", logger)
    return logger


def open_sync(root: Path, **settings: Any) -> otledger.SyncLedger:
    return otledger.open_sync(root, machine="m1", service="shop", **settings)


def open_async(root: Path, **settings: Any) -> otledger.Ledger:
    return otledger.open(root, machine="m1", service="shop", **settings)


def records(root: Path, machine: str = "m1") -> list[Json]:
    """All records but control records and resources, as the checker reads them."""
    found = check(root / machine)
    return [
        record for record in found if not record["type"].startswith("otledger.") and record["type"] != "otel.resource"
    ]


def gaps(root: Path) -> dict[str, int]:
    """How many records were dropped, by reason, as the ledger says."""
    found: dict[str, int] = {}
    for record in check(root / "m1"):
        if record["type"] == "otledger.gap":
            reason = record["data"]["reason"]
            found[reason] = found.get(reason, 0) + record["data"]["count"]
    return found


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


# logging


def test_a_log_record_is_an_event(root: Path, logger: logging.Logger) -> None:
    with open_sync(root) as ledger:
        logger.addHandler(otledger.LoggingHandler(ledger))
        with ledger.turn("ab" * 32), ledger.span("charge") as span:
            before = time.time_ns()
            logger.warning("low stock of %s", "tea", extra={"left": 3, "raw": b"x"}, stack_info=True)
        try:
            raise ValueError("no bank")
        except ValueError:
            logger.exception("failed")
    warning, _, failed = records(root)
    assert warning["type"] == "log.warning"
    assert warning["source"] == "/m1/shop"
    assert warning["traceparent"] == f"00-{span.trace_id}-{span.span_id}-01"
    assert warning["ipchash"] == "ab" * 32
    data = warning["data"]
    assert (data["message"], data["logger"], data["level"]) == ("low stock of tea", "shop.orders", "WARNING")
    assert (data["module"], data["function"]) == ("test_integrations", "test_a_log_record_is_an_event")
    assert isinstance(data["line"], int)
    assert data["extra"] == {"left": 3, "raw": {"$bytes": "eA=="}}
    assert "test_a_log_record_is_an_event" in data["stack"]
    (stored,) = otledger.Reader(root).records(otledger.Filter(type="log.warning"))
    assert stored.time_ns is not None
    assert stored.time_ns >= before
    assert stored.data["extra"]["raw"] == b"x"

    assert failed["type"] == "log.error"
    assert failed["data"]["exception.type"] == "ValueError"
    assert failed["data"]["exception.message"] == "no bank"
    assert 'raise ValueError("no bank")' in failed["data"]["exception.stacktrace"]
    assert not {"extra", "stack", "args"} & failed["data"].keys()


def test_the_handlers_level_type_filters_and_defaults(root: Path, logger: logging.Logger) -> None:
    logging.addLevelName(25, "Fyi \n")
    with open_sync(root) as ledger:
        handler = otledger.LoggingHandler(ledger.bind(subject="tenant-1"), "INFO", type="app.{level}.x")
        logger.addHandler(handler)
        logger.debug("not this")
        logger.log(25, "a level of one's own")
        handler.addFilter(lambda record: "secret" not in record.msg)
        logger.info("secret")
        handler.addFilter(lambda record: 1 / 0)  # type: ignore[arg-type, return-value]
        logger.info("a filter that raises")
    one, other = records(root)
    assert (one["type"], one["subject"], one["data"]["level"]) == ("app.fyi-.x", "tenant-1", "Fyi \n")
    assert (other["type"], other["data"]["message"]) == ("app.info.x", "a filter that raises")


@pytest.mark.parametrize("type", ["otel.log", "otledger.{level}", "", "a\nb", 7])
def test_a_type_that_is_not_allowed_is_refused_at_once(root: Path, type: Any) -> None:
    with open_sync(root) as ledger, pytest.raises((EventRefused, AttributeError)):
        otledger.LoggingHandler(ledger, type=type)


def test_what_is_changed_after_the_call_does_not_count(root: Path, logger: logging.Logger, hang: Hang) -> None:
    with open_sync(root) as ledger:
        logger.addHandler(otledger.LoggingHandler(ledger))
        hang.start("write")
        items, extra = ["tea"], {"items": ["tea"]}
        logger.info("items %s", items, extra=extra)
        items.append("later")
        extra["items"].append("later")
        hang.stop()
    (record,) = records(root)
    assert record["data"]["message"] == "items ['tea']"
    assert record["data"]["extra"] == {"items": ["tea"]}


def test_odd_log_records_raise_nothing_and_are_kept(
    root: Path, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    deep: list[Any] = []
    deep.append(deep)
    with open_sync(root) as ledger:
        handler = otledger.LoggingHandler(ledger)
        logger.addHandler(handler)
        logger.info("%d of %s", "one")
        logger.info("%s", Unprintable())
        logger.info(Unprintable())
        logger.info("lone \ud800", extra={"\ud801": float("nan")})
        logger.error("failed", exc_info=Broken())
        logger.info("deep", extra={"deep": deep})
        logger.info("x" * (17 << 20))
        handler.handle(logging.makeLogRecord({"msg": "bare", "created": float("inf")}))
        handler.handle(logging.makeLogRecord({"msg": "negative", "created": -1e30, "levelname": None}))
        assert ledger.health().dropped == 1
    found = [record["data"] for record in records(root)]
    assert [data["message"] for data in found if data["message"] == "deep"]
    assert (found[0]["message"], found[0]["args"]) == ("%d of %s", ["one"])
    assert "$repr" in found[1]["args"][0]
    assert "$repr" in found[2]["message"]
    assert found[4]["exception.type"].endswith("Broken")
    assert found[5]["message"] == "deep"
    assert "nested deeper" in found[5]["cut"]
    assert found[6]["message"] == "x" * 10_000
    assert "a line has at most" in found[6]["cut"]
    assert found[7]["message"] == "negative"
    assert len(found) == 8
    assert gaps(root) == {"log record refused": 1}
    assert capsys.readouterr().err == ""


def test_any_thread_may_log(root: Path, logger: logging.Logger) -> None:
    with open_sync(root) as ledger:
        logger.addHandler(otledger.LoggingHandler(ledger))

        def work(name: int) -> None:
            for at in range(200):
                logger.info("%d.%d", name, at)

        threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ledger.health().dropped == 0
    messages = [record["data"]["message"] for record in records(root)]
    assert sorted(messages) == sorted(f"{name}.{at}" for name in range(8) for at in range(200))
    assert [message for message in messages if message.startswith("3.")] == [f"3.{at}" for at in range(200)]


@pytest.mark.parametrize("policy", ["wait", "raise", "drop"])
def test_what_the_queue_refuses_is_counted(root: Path, logger: logging.Logger, hang: Hang, policy: Any) -> None:
    with open_sync(root, queue_records=10, queue_policy=policy) as ledger:
        logger.addHandler(otledger.LoggingHandler(ledger))
        hang.start("write")
        for at in range(100):
            logger.info("%d", at)
        dropped = ledger.health().dropped
        assert dropped
        hang.stop()
    assert gaps(root) == {"queue full": dropped}
    assert len(records(root)) + dropped == 100


def test_little_space_and_failing_writes_are_counted_once(root: Path, logger: logging.Logger) -> None:
    with open_sync(root, min_free=1 << 60) as ledger:
        logger.addHandler(otledger.LoggingHandler(ledger))
        for _ in range(5):
            logger.info("no space")
        assert ledger.health().dropped == 5
    assert gaps(root) == {"little space": 5}


def test_a_ledger_that_is_not_open_loses_nothing_silently(
    root: Path, logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = open_async(root)
    handler = otledger.LoggingHandler(ledger)
    logger.addHandler(handler)
    logger.info("before")

    async def main() -> None:
        async with ledger:
            logger.info("inside")

    asyncio.run(main())
    logger.info("after")
    logger.info("after")
    assert handler.lost == 3
    warnings = [record.getMessage() for record in caplog.records if record.name == "otledger"]
    assert len(warnings) == 2
    assert "not open yet" in warnings[0]
    assert "closed" in warnings[1]
    assert [record["data"]["message"] for record in records(root)] == ["inside"]


def test_otledgers_own_logger_does_not_feed_the_ledger(root: Path) -> None:
    top = logging.getLogger()
    with open_sync(root) as ledger:
        handler = otledger.LoggingHandler(ledger)
        top.addHandler(handler)
        try:
            logging.getLogger("otledger").warning("writing fails")
            logging.getLogger("otledger.sub").warning("writing fails")
            logging.getLogger("otledgers").warning("another's")
        finally:
            top.removeHandler(handler)
    assert [record["data"]["logger"] for record in records(root)] == ["otledgers"]


def test_logging_while_a_record_is_recorded_ends(root: Path, logger: logging.Logger) -> None:
    class Talks:
        def __str__(self) -> str:
            logger.info("asked for my text")
            return "text"

    def processor(draft: otledger.Draft) -> otledger.Draft:
        logger.info("processing")
        raise ValueError("a processor's mistake")

    with open_sync(root, processors=[processor]) as ledger:
        ledger.on_error(lambda error: logger.error("error: %s", error))
        logger.addHandler(otledger.LoggingHandler(ledger))
        logger.info("%s", Talks())
        assert ledger.health().dropped == 3
    (record,) = records(root)
    assert record["data"]["message"] == "text"
    assert "a processor's mistake" in record["otlprocessor"]
    assert gaps(root) == {"logged while a log record was recorded": 3}


def test_a_record_that_came_through_a_queue_keeps_its_time(root: Path, logger: logging.Logger) -> None:
    waiting: queue.Queue[Any] = queue.Queue()
    logger.addHandler(logging.handlers.QueueHandler(waiting))
    with open_sync(root) as ledger:
        try:
            raise ValueError("no bank")
        except ValueError:
            logger.exception("failed")
        logged = time.time_ns()
        time.sleep(0.05)
        listener = logging.handlers.QueueListener(waiting, otledger.LoggingHandler(ledger))
        listener.start()
        listener.stop()
    (record,) = otledger.Reader(root).records(otledger.Filter(type="log.*"))
    assert record.time_ns is not None
    assert record.time_ns <= logged
    assert "no bank" in str(record.data)


def test_dict_config_finds_the_handler(root: Path, logger: logging.Logger) -> None:
    with open_sync(root) as ledger:
        logging.config.dictConfig(
            {
                "version": 1,
                "incremental": False,
                "disable_existing_loggers": False,
                "handlers": {"ledger": {"()": "otledger.LoggingHandler", "ledger": ledger, "level": "WARNING"}},
                "loggers": {"shop.orders": {"handlers": ["ledger"]}},
            }
        )
        logger.info("not this")
        logger.warning("this")
    assert [record["type"] for record in records(root)] == ["log.warning"]


# structlog


def structured(ledger: Any, **options: Any) -> tuple[Any, list[Json]]:
    """A structlog logger over a ledger, and the event dicts that leave its chain."""
    passed: list[Json] = []

    def last(logger: Any, method: str, event_dict: Any) -> Any:
        passed.append(event_dict)
        raise structlog.DropEvent

    chain = [structlog.contextvars.merge_contextvars, LedgerProcessor(ledger, **options), last]
    return structlog.wrap_logger(None, processors=chain, wrapper_class=structlog.BoundLogger), passed


def test_structlog_events_are_recorded_and_passed_on(root: Path) -> None:
    with open_sync(root) as ledger:
        log, passed = structured(ledger)
        items = ["tea"]
        with ledger.span("charge") as span:
            log.bind(user=7).info("paid", items=items, _private=object())
        items.append("later")
        try:
            raise ValueError("no bank")
        except ValueError as error:
            log.exception("failed", exc_info=True)
            log.warn("again", exc_info=error, level="WARNING")
            log.error("once more", exc_info=sys.exc_info())
        log.error("none", exc_info=True)
    found = [record for record in records(root) if record["type"] != "otel.span.end"]
    assert [record["type"] for record in found] == ["log.info", "log.error", "log.warning", "log.error", "log.error"]
    assert found[0]["data"] == {"event": "paid", "user": 7, "items": ["tea"]}
    assert found[0]["traceparent"].split("-")[2] == span.span_id
    for record in found[1:4]:
        assert record["data"]["exception.message"] == "no bank"
        assert "Traceback" in record["data"]["exception.stacktrace"]
        assert "exc_info" not in record["data"]
    assert found[4]["data"] == {"event": "none"}
    assert passed[0]["items"] is items
    assert passed[0].keys() == {"event", "user", "items", "_private"}
    assert passed[1] == {"event": "failed", "exc_info": True}


def test_structlog_never_raises_and_counts(root: Path, hang: Hang) -> None:
    with open_sync(root, queue_records=5, queue_policy="raise") as ledger:
        log, passed = structured(ledger, type="app")
        log.info("odd", value=Unprintable(), deep=copy.copy)
        hang.start("write")
        for at in range(20):
            log.info("n", at=at)
        dropped = ledger.health().dropped
        hang.stop()
    assert len(passed) == 21
    assert dropped
    assert gaps(root) == {"queue full": dropped}
    assert len(records(root)) + dropped == 21
    assert {record["type"] for record in records(root)} == {"app"}
    log.info("closed")
    assert len(passed) == 22


def test_structlog_beside_the_standard_library_does_not_feed_itself(root: Path) -> None:
    with open_sync(root) as ledger:
        processor = LedgerProcessor(ledger)
        formatter = structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_log_level, processor], processor=structlog.dev.ConsoleRenderer()
        )
        for name in ("otledger", "shop"):
            formatter.format(logging.makeLogRecord({"name": name, "msg": "m", "levelname": "INFO"}))
        assert processor.lost == 0
    (record,) = records(root)
    assert record["data"] == {"event": "m", "level": "info"}


# wrap


def test_wrap_carries_the_context_into_executors(root: Path) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    barrier = threading.Barrier(4)

    with open_sync(root) as ledger, ThreadPoolExecutor(4) as pool:

        def work(name: int, *, more: str) -> str:
            barrier.wait(10)
            seen = variable.get()
            variable.set(f"changed by {name}")
            with ledger.span(f"work {name}"):
                ledger.emit("worked", {"name": name, "more": more})
            return seen

        variable.set("outer")
        with ledger.turn("cd" * 32), ledger.span("outer") as outer:
            wrapped = ledger.wrap(work)
        variable.set("later")
        # At the same time, which one context could not be entered for.
        assert list(pool.map(lambda name: wrapped(name, more="x"), range(4))) == ["outer"] * 4
        assert wrapped.__name__ == "work"
        assert variable.get() == "later"
        assert not trace.get_current_span().get_span_context().is_valid
    found = records(root)
    ends = {record["data"]["name"]: record for record in found if record["type"] == "otel.span.end"}
    for name in range(4):
        assert ends[f"work {name}"]["data"]["parent_span_id"] == outer.span_id
    assert {record["ipchash"] for record in found if record["type"] == "worked"} == {"cd" * 32}


async def test_wrap_of_a_coroutine_function(root: Path) -> None:
    async with open_async(root) as ledger:

        async def work(name: str) -> str:
            await asyncio.sleep(0)
            await ledger.emit("worked", {"name": name})
            if name == "raises":
                raise ValueError(name)
            if name == "waits":
                await asyncio.sleep(60)
            return name

        async with ledger.span("outer") as outer:
            wrapped = ledger.bind(subject="x").wrap(work)
        assert await asyncio.gather(wrapped("a"), wrapped("b")) == ["a", "b"]
        with pytest.raises(ValueError, match="raises"):
            await wrapped("raises")
        waiting = asyncio.ensure_future(wrapped("waits"))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert asyncio.iscoroutinefunction(wrapped)

        def generator() -> Iterator[int]:
            yield 1

        with pytest.raises(TypeError, match="generator"):
            ledger.wrap(generator)
    spans = {record["traceparent"].split("-")[2] for record in records(root)}
    assert spans == {outer.span_id}


# ASGI: the trace context


@pytest.mark.parametrize(
    ("header", "valid"),
    [
        (PARENT, True),
        (f" \t{PARENT} ", True),
        (f"01-{TRACE}-{SPAN}-01-what-comes-later", True),
        (f"cc-{TRACE}-{SPAN}-01", True),
        (f"ff-{TRACE}-{SPAN}-01", False),
        (f"00-{TRACE}-{SPAN}-01-more", False),
        (f"01-{TRACE}-{SPAN}-01.more", False),
        (f"00-{'0' * 32}-{SPAN}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (PARENT.upper(), False),
        (PARENT[:-1], False),
        (PARENT.replace("-", ""), False),
        (f"00-{TRACE[:-1]}g-{SPAN}-01", False),
        (f"00-{TRACE}-{SPAN}-0é", False),
        (f"00-{TRACE}-{SPAN}-01\n", False),
        ("", False),
    ],
)
def test_traceparent_by_the_rules_of_w3c(header: str, valid: bool) -> None:
    parent = remote_parent([(b"TraceParent", header.encode("latin-1"))])
    assert (parent is not None) == valid
    if parent is not None:
        assert (f"{parent.trace_id:032x}", f"{parent.span_id:016x}") == (TRACE, SPAN)
        assert parent.is_remote


def test_two_traceparents_are_none_and_unknown_flags_are_not_passed_on() -> None:
    assert remote_parent([]) is None
    assert remote_parent([(b"traceparent", PARENT.encode())] * 2) is None
    for given, kept in (("00", 0), ("01", 1), ("ff", 3), ("fe", 2)):
        parent = remote_parent([(b"traceparent", f"00-{TRACE}-{SPAN}-{given}".encode())])
        assert parent is not None
        assert parent.trace_flags == kept


LONG = "v" * 150


@pytest.mark.parametrize(
    ("headers", "state"),
    [
        (["a=1,b=2"], "a=1,b=2"),
        (["a=1", " b=2 ,, c@x=3"], "a=1,b=2,c@x=3"),
        (["a=1,a=2"], ""),
        (["nonsense"], ""),
        (["A=1"], ""),
        ([",".join(f"k{at}=1" for at in range(33))], ""),
        ([",".join(f"k{at}=1" for at in range(32))], ",".join(f"k{at}=1" for at in range(32))),
        # Too long: members of more than 128 characters go first, then the last ones.
        ([f"a={LONG},b={LONG},c={LONG},d={LONG},e=1"], f"a={LONG},b={LONG},c={LONG},e=1"),
        ([",".join(f"k{at:02}={'v' * 96}" for at in range(8))], ",".join(f"k{at:02}={'v' * 96}" for at in range(5))),
    ],
)
def test_tracestate_by_the_rules_of_w3c(headers: list[str], state: str) -> None:
    given = [(b"traceparent", PARENT.encode()), *((b"tracestate", header.encode()) for header in headers)]
    parent = remote_parent(given)
    assert parent is not None
    assert parent.trace_state.to_header() == state
    assert len(state) <= 512


# ASGI: requests over real HTTP


@contextlib.asynccontextmanager
async def served(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """An application under uvicorn on loopback, and a client of it."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="none"))
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(20):
        while not server.started:
            assert not serving.done()
            await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            yield client
    finally:
        server.should_exit = True
        await serving


def shop(ledger: Any) -> list[Any]:
    """Routes of a shop."""

    async def order(request: Request) -> Response:
        await ledger.emit("order.shown", {"id": request.path_params["id"]})
        return PlainTextResponse("ok", status_code=int(request.query_params.get("status", 200)))

    async def broken(request: Request) -> Response:
        raise LookupError("no such order")

    async def stream(request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            for at in range(3):
                await ledger.emit("part", {"at": at})
                yield b"x"

        return StreamingResponse(parts(), background=BackgroundTask(ledger.emit, "background"))

    async def own(request: Request) -> Response:
        return PlainTextResponse("", headers={"traceparent": "the application's"})

    inner = Starlette(routes=[Route("/items/{item}", own), Route("/notes/{note:path}", own)])
    return [
        Route("/orders/{id}", order, methods=["GET", "POST"]),
        Route("/broken", broken),
        Route("/stream", stream),
        Mount("/tenants/{tenant}", inner),
        Mount("/files", PlainTextResponse("a file")),
    ]


def spans_of(root: Path) -> dict[str, Json]:
    """The ended spans by their paths."""
    ends = [record for record in records(root) if record["type"] == "otel.span.end"]
    return {record["data"]["attributes"]["url.path"]: record for record in ends}


async def test_a_span_a_request(root: Path) -> None:
    async with open_async(root) as ledger:
        app = Starlette(routes=shop(ledger))
        app.add_middleware(LedgerMiddleware, ledger=ledger)
        async with served(app) as client:
            given = {"traceparent": PARENT, "tracestate": "a=1,b=2", "user-agent": "tests/1"}
            answer = await client.get("/orders/7?x=%20&sig=secret", headers=given)
            await client.get("/orders/a%2Fb%0Ac", headers={"host": "shop.example"})
            await client.request("BREW", "/orders/8", headers={"traceparent": PARENT.replace("00-", "ff-")})
            await client.get("/tenants/acme/items/7")
            await client.get("/tenants/acme/notes/a/b")
            await client.get("/tenants/acme/nothing")
            await client.get("/files/x.txt", headers={"host": "[::1]:8080"})
            await client.post("/orders/503", params={"status": 503})
            port = client.base_url.port
    found = spans_of(root)
    assert len(found) == 8
    first = found["/orders/7"]
    version, trace_id, span_id, flags = answer.headers["traceparent"].split("-")
    assert (version, trace_id, flags) == ("00", TRACE, "01")
    assert span_id not in (SPAN, "0" * 16)
    assert answer.headers["tracestate"] == "a=1,b=2"
    assert first["traceparent"] == answer.headers["traceparent"]
    assert first["tracestate"] == "a=1,b=2"
    data = first["data"]
    assert (data["name"], data["kind"]) == ("GET /orders/{id}", "SERVER")
    assert (data["parent_span_id"], data["parent_is_remote"]) == (SPAN, True)
    assert "status" not in data
    attributes = data["attributes"]
    assert attributes.pop("client.port") > 0
    assert attributes == {
        "http.request.method": "GET",
        "url.scheme": "http",
        "url.path": "/orders/7",
        "url.query": "x=%20&sig=REDACTED",
        "network.protocol.version": "1.1",
        "user_agent.original": "tests/1",
        "server.address": "127.0.0.1",
        "server.port": port,
        "client.address": "127.0.0.1",
        "http.response.status_code": 200,
        "http.route": "/orders/{id}",
    }
    events = {record["data"]["id"]: record for record in records(root) if record["type"] == "order.shown"}
    assert events["7"]["traceparent"] == first["traceparent"]
    assert events["7"]["tracestate"] == "a=1,b=2"

    other = found["/orders/a%2Fb%0Ac"]["data"]
    assert (other["attributes"]["server.address"], other["attributes"]["server.port"]) == ("shop.example", 80)
    assert "parent_span_id" not in other
    assert found["/files/x.txt"]["data"]["attributes"]["server.address"] == "::1"
    brewed = found["/orders/8"]
    assert brewed["traceparent"].split("-")[1] != TRACE
    assert brewed["data"]["name"].startswith("HTTP")
    assert brewed["data"]["attributes"]["http.request.method"] == "_OTHER"
    assert brewed["data"]["attributes"]["http.request.method_original"] == "BREW"
    assert brewed["data"]["attributes"]["http.response.status_code"] == 405
    assert "status" not in brewed["data"]
    for path, route in (
        ("/tenants/acme/items/7", "/tenants/{tenant}/items/{item}"),
        ("/tenants/acme/notes/a/b", "/tenants/{tenant}/notes/{note:path}"),
        ("/tenants/acme/nothing", "/tenants/{tenant}"),
        ("/files/x.txt", "/files"),
    ):
        assert found[path]["data"]["attributes"]["http.route"] == route
    failed = found["/orders/503"]["data"]
    assert failed["status"] == {"code": "ERROR"}
    assert failed["attributes"]["error.type"] == "503"


@pytest.mark.parametrize("outermost", [False, True])
async def test_exceptions_streams_and_what_the_application_set(root: Path, outermost: bool) -> None:
    async with open_async(root) as ledger:
        app: Any = Starlette(routes=shop(ledger))
        if outermost:
            app = LedgerMiddleware(app, ledger)
        else:
            app.add_middleware(LedgerMiddleware, ledger=ledger)
        async with served(app) as client:
            broken = await client.get("/broken")
            streamed = await client.get("/stream")
            own = await client.get("/tenants/a/items/1")
            missing = await client.get("/nowhere")
    assert [answer.status_code for answer in (broken, streamed, own, missing)] == [500, 200, 200, 404]
    assert own.headers.get_list("traceparent") == ["the application's"]
    found = spans_of(root)
    data = found["/broken"]["data"]
    assert data["status"] == {"code": "ERROR", "description": "LookupError: no such order"}
    assert data["attributes"]["error.type"] == "LookupError"
    (event,) = data["events"]
    assert event["attributes"]["exception.message"] == "no such order"
    assert ("http.response.status_code" in data["attributes"]) == ("traceparent" in broken.headers) == outermost
    assert found["/nowhere"]["data"]["name"] == "GET"
    assert "status" not in found["/nowhere"]["data"]
    inside = [record for record in records(root) if record["type"] in ("part", "background")]
    assert len(inside) == 4
    assert {record["traceparent"] for record in inside} == {streamed.headers["traceparent"]}


async def test_an_instrumentation_around_it_is_the_parent(root: Path) -> None:
    async with open_async(root) as ledger:
        app = LedgerMiddleware(LedgerMiddleware(Starlette(routes=shop(ledger)), ledger), ledger)
        async with served(app) as client:
            answer = await client.get("/orders/1", headers={"traceparent": PARENT})
    inner, outer = [record for record in records(root) if record["type"] == "otel.span.end"]
    assert outer["data"]["parent_span_id"] == SPAN
    assert inner["data"]["parent_span_id"] == outer["traceparent"].split("-")[2]
    assert answer.headers.get_list("traceparent") == [inner["traceparent"]]


async def test_requests_at_the_same_time_have_traces_of_their_own(root: Path) -> None:
    async with open_async(root) as ledger:
        app = Starlette(routes=shop(ledger))
        app.add_middleware(LedgerMiddleware, ledger=ledger)
        async with served(app) as client:
            answers = await asyncio.gather(*(client.get(f"/orders/{at}") for at in range(50)))
        assert not trace.get_current_span().get_span_context().is_valid
    parents = {f"/orders/{at}": answer.headers["traceparent"] for at, answer in enumerate(answers)}
    assert len(set(parents.values())) == 50
    assert {path: record["traceparent"] for path, record in spans_of(root).items()} == parents
    for record in records(root):
        if record["type"] == "order.shown":
            assert record["traceparent"] == parents[f"/orders/{record['data']['id']}"]


async def test_lifespan_and_websockets_pass_through(root: Path) -> None:
    seen: list[Any] = []

    async def plain(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))

    async def receive() -> Any: ...
    async def send(message: Any) -> None: ...

    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.close()

    async with open_async(root) as ledger:
        for kind in ("lifespan", "websocket", "something.else"):
            scope = {"type": kind}
            await LedgerMiddleware(plain, ledger)(scope, receive, send)
            assert all(given is own for given, own in zip(seen.pop(), (scope, receive, send), strict=True))

        app = Starlette(routes=[WebSocketRoute("/talk", talk)])
        app.add_middleware(LedgerMiddleware, ledger=ledger)
        incoming = iter([{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "hello"}])
        sent: list[Any] = []

        async def next_message() -> Any:
            return next(incoming)

        async def keep(message: Any) -> None:
            sent.append(message)

        scope = {"type": "websocket", "path": "/talk", "headers": [(b"traceparent", PARENT.encode())]}
        await app(scope | {"query_string": b"", "subprotocols": []}, next_message, keep)
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send", "websocket.close"]
    assert sent[1]["text"] == "hello"
    assert not records(root)


async def test_a_closed_ledger_does_not_fail_a_request(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = open_async(root)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/close":
            await ledger.aclose()
        await PlainTextResponse("ok")(scope, receive, send)

    async with served(LedgerMiddleware(app, ledger)) as client:
        assert [(await client.get("/before")).text, (await client.get("/before")).text] == ["ok", "ok"]
        await ledger
        assert (await client.get("/open")).text == "ok"
        assert (await client.get("/close")).text == "ok"
        assert (await client.get("/after")).text == "ok"
    assert list(spans_of(root)) == ["/open"]
    warnings = [record.getMessage() for record in caplog.records if record.name == "otledger"]
    assert [warning for warning in warnings if "requests are not recorded" in warning] == [warnings[0], warnings[-1]]
    assert any("ended after its ledger was closed" in warning for warning in warnings)


async def test_an_exception_without_a_text_passes_on_as_it_is(root: Path) -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/cancelled":
            raise asyncio.CancelledError
        raise Broken

    async def send(message: Any) -> None: ...

    async with open_async(root) as ledger:
        for path, error in (("/broken", Broken), ("/cancelled", asyncio.CancelledError)):
            scope = {"type": "http", "method": "GET", "path": path, "headers": []}
            with pytest.raises(error):
                await LedgerMiddleware(app, ledger)(scope, send, send)  # type: ignore[arg-type]
            assert not trace.get_current_span().get_span_context().is_valid
    found = spans_of(root)
    assert found["/broken"]["data"]["attributes"]["error.type"].endswith("Broken")
    assert "status" not in found["/cancelled"]["data"]


# Servers


async def test_a_fastapi_lifespan_opens_and_closes_the_ledger(root: Path) -> None:
    ledger = open_async(root)
    states: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
        async with ledger:
            await ledger.emit("started")
            yield
            await ledger.emit("stopped")
        states.append(ledger.health().state)

    router = fastapi.APIRouter()

    @router.get("/orders/{order}")
    async def show(order: int) -> dict[str, str]:
        return {"id": await ledger.emit("order.shown", {"id": order})}

    @router.get("/threaded")
    def threaded() -> dict[str, str]:
        return {"id": ledger.emit_nowait("threaded")}

    # Twice: the server, and with it the ledger, may start again.
    for _ in range(2):
        app = fastapi.FastAPI(lifespan=lifespan)
        app.include_router(router, prefix="/api")
        app.add_middleware(LedgerMiddleware, ledger=ledger)
        async with served(app) as client:
            answers = [await client.get("/api/orders/7"), await client.get("/api/threaded")]
            assert (await client.get("/api/orders/x")).status_code == 422
    assert states == ["closed", "closed"]
    found = records(root)
    types = [record["type"] for record in found]
    assert (types[-1], types.count("started"), types.count("stopped")) == ("stopped", 2, 2)
    stored = {record["id"]: record for record in found}
    for answer in answers:
        assert stored[answer.json()["id"]]["traceparent"] == answer.headers["traceparent"]
    routes = [record["data"]["attributes"]["http.route"] for record in found if record["type"] == "otel.span.end"]
    assert sorted(set(routes)) == ["/api/orders/{order}", "/api/threaded"]


SHOP = """
import asyncio, logging, os
from contextlib import asynccontextmanager

from fastapi import FastAPI

import otledger
from otledger.integrations.asgi import LedgerMiddleware

# Before the workers are forked, with a writer's thread at work.
main = otledger.open_sync("ledger", machine="m1", service="shop")
main.append("loaded", {"pid": os.getpid()})
ledger = otledger.open("ledger", machine="m1", service="shop")
log = logging.getLogger("shop")
log.setLevel("INFO")
log.addHandler(otledger.LoggingHandler(ledger))

@asynccontextmanager
async def lifespan(app):
    async with ledger:
        await ledger.emit("started", {"pid": os.getpid()})
        yield
        await ledger.emit("stopped", {"pid": os.getpid()})

app = FastAPI(lifespan=lifespan)
app.add_middleware(LedgerMiddleware, ledger=ledger)

@app.post("/orders/{n}")
async def order(n: int):
    begun = await ledger.emit("order.begun", {"n": n})
    await asyncio.sleep(0.02)
    log.info("order %d", n)
    done = await ledger.emit("order.done", {"n": n})
    return {"ids": [begun, done]}
"""


@contextlib.contextmanager
def gunicorn(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """gunicorn with preload and two workers on the shop; it and its address. Its log is `gunicorn.log`."""
    (folder / "shop.py").write_text(SHOP)
    options = ["--preload", "--workers", "2", "--worker-class", "uvicorn_worker.UvicornWorker"]
    command = [sys.executable, "-m", "gunicorn", *options, "--bind", "127.0.0.1:0", "shop:app"]
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)}
    with open(folder / "gunicorn.log", "w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, text=True, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while True:
            said = (folder / "gunicorn.log").read_text()
            listening = re.search(r"Listening at: (http://[0-9.:]+)", said)
            if listening and said.count("Application startup complete") == 2:
                break
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
        yield process, listening[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def test_gunicorn_with_preload_loses_nothing_on_sigterm(root: Path, tmp_path: Path) -> None:
    answered: list[httpx.Response] = []
    sent = 0

    async def send_orders(address: str) -> None:
        nonlocal sent
        # Connections of their own, so that both workers get some.
        while True:
            try:
                async with httpx.AsyncClient(base_url=address, timeout=20) as client:
                    for _ in range(5):
                        sent += 1
                        answered.append(await client.post(f"/orders/{sent}"))
            except httpx.TransportError:
                return

    with gunicorn(tmp_path) as (process, address):
        clients = [asyncio.create_task(send_orders(address)) for _ in range(8)]
        async with asyncio.timeout(30):
            while len(answered) < 200:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert not any(client.done() for client in clients)
            process.terminate()
            await asyncio.gather(*clients)
            await asyncio.to_thread(process.wait, 25)
        assert process.returncode == 0, (tmp_path / "gunicorn.log").read_text()

    assert {answer.status_code for answer in answered} == {200}
    found = records(root)
    stored = {record["id"] for record in found}
    assert len(stored) == len(found)
    accepted = [id for answer in answered for id in answer.json()["ids"]]
    assert len(accepted) == 2 * len(answered)
    assert set(accepted) <= stored
    of = {type: [record for record in found if record["type"] == type] for type in {r["type"] for r in found}}
    # What was begun was ended, whether or not the client heard of it.
    assert len(of["order.begun"]) == len(of["order.done"]) == len(of["log.info"]) == len(of["otel.span.end"])
    assert {answer.headers["traceparent"] for answer in answered} <= {r["traceparent"] for r in of["otel.span.end"]}
    assert len(of["loaded"]) == 1
    workers = {record["data"]["pid"] for record in of["started"]}
    assert len(workers) == 2
    assert {record["data"]["pid"] for record in of["stopped"]} == workers
    assert "otledger.gap" not in {record["type"] for record in check(root / "m1")}


# pytest


def plugin_arguments() -> list[str]:
    """What loads the plugin, where no entry point does."""
    known = {point.value for point in importlib.metadata.entry_points(group="pytest11")}
    return [] if PLUGIN in known else ["-p", PLUGIN]


@pytest.fixture
def run_tests(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pytest.RunResult]:
    """Run a test file with the plugin, in a process of its own."""

    def run(code: str, *arguments: str) -> pytest.RunResult:
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        pytester.makeini(
            "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error"
        )
        pytester.makepyfile(code)
        return pytester.runpytest_subprocess(*plugin_arguments(), *arguments)

    return run


def test_the_fixtures(run_tests: Callable[..., pytest.RunResult], tmp_path: Path) -> None:
    before = {path.name for path in Path("/dev/shm").glob("otledger-pytest-*")} if os.path.isdir("/dev/shm") else set()
    outcome = run_tests(
        """
        import asyncio
        import os
        import pytest
        import otledger

        async def test_async(otledger_ledger, otledger_records, otledger_root):
            assert isinstance(otledger_ledger, otledger.Ledger)
            assert otledger_ledger.startup_report.status == otledger.Status.OK
            async with otledger_ledger.span("charge"):
                await otledger_ledger.emit("order.paid", {"id": 1})
            assert [record.type for record in otledger_records()] == ["order.paid", "otel.span.end"]
            await otledger_ledger.append("order.sent")
            assert [record.type for record in otledger_records("order.*")] == ["order.paid", "order.sent"]
            if os.access("/dev/shm", os.W_OK):
                assert str(otledger_root).startswith("/dev/shm/")

        def test_sync(sync_ledger, otledger_records, otledger_root):
            assert isinstance(sync_ledger, otledger.SyncLedger)
            assert otledger_records() == []
            sync_ledger.emit("a", {"n": float("nan")})
            (record,) = otledger_records()
            assert record.data["n"] != record.data["n"]
            assert record.source == "/test/pytest"
            assert otledger.verify(otledger_root, deep=True).status == otledger.Status.OK
            assert any(record.type == "otledger.segment" for record in otledger_records("otledger.*"))

        def test_both_on_one_root(sync_ledger, otledger_ledger, otledger_records):
            sync_ledger.emit("one")
            otledger_ledger.emit_nowait("two")
            asyncio.run(otledger_ledger.append("three"))
            assert [record.type for record in otledger_records()] == ["one", "two", "three"]

        def test_closed_by_the_test(sync_ledger, otledger_records):
            sync_ledger.emit("one")
            sync_ledger.close()
            assert len(otledger_records()) == 1

        def test_nothing_recorded(otledger_records):
            assert otledger_records() == []
        """
    )
    outcome.assert_outcomes(passed=5)
    after = {path.name for path in Path("/dev/shm").glob("otledger-pytest-*")} if os.path.isdir("/dev/shm") else set()
    assert after <= before


def test_without_shared_memory_the_ledger_lies_in_tmp_path(run_tests: Callable[..., pytest.RunResult]) -> None:
    outcome = run_tests(
        f"""
        import pathlib
        import {PLUGIN} as plugin

        plugin.MEMORY = pathlib.Path("/nowhere")

        def test_root(sync_ledger, otledger_root, otledger_records, tmp_path):
            assert otledger_root == tmp_path / "ledger"
            sync_ledger.emit("a")
            assert len(otledger_records()) == 1
        """
    )
    outcome.assert_outcomes(passed=1)


def test_the_plugin_loads_nothing_before_a_fixture_is_used(run_tests: Callable[..., pytest.RunResult]) -> None:
    outcome = run_tests(
        f"""
        import sys

        def test_modules():
            assert {PLUGIN!r} in sys.modules
            light = {{"otledger", "otledger.version", "otledger.integrations", {PLUGIN!r}}}
            assert {{name for name in sys.modules if name.split(".")[0] == "otledger"}} == light
            assert not [name for name in sys.modules if name.split(".")[0] in ("opentelemetry", "orjson", "msgspec")]
        """
    )
    outcome.assert_outcomes(passed=1)


# The page


def example(title: str) -> str:
    """The Python of a section of the page."""
    found = re.search(rf"^## {re.escape(title)}.*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


def test_the_page_has_an_example_a_section() -> None:
    text = PAGE.read_text()
    assert len(re.findall(r"^## ", text, re.MULTILINE)) == text.count("```python") == 5


@pytest.mark.parametrize(
    ("title", "types"),
    [
        ("logging", {"log.warning": 1}),
        ("structlog", {"log.info": 1}),
        ("Threads", {"order.reported": 3, "otel.span.end": 1}),
    ],
)
def test_the_scripts_of_the_page_run(tmp_path: Path, title: str, types: dict[str, int]) -> None:
    command = [sys.executable, "-W", "error", "-c", example(title)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment["OTLEDGER_MACHINE"] = "m1"
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [record for record in records(tmp_path / "ledger") if record["type"] in types]
    assert {type: len([record for record in found if record["type"] == type]) for type in types} == types
    assert len({record.get("traceparent") for record in found}) == 1


async def test_the_application_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OTLEDGER_MACHINE", "m1")
    names: Json = {}
    exec(compile(example("ASGI"), "page", "exec"), names)
    async with served(names["app"]) as client:
        answer = await client.get("/orders/7", headers={"traceparent": PARENT})
    assert answer.json() == {"id": 7}
    event, span = records(tmp_path / "ledger")
    assert event["traceparent"] == span["traceparent"] == answer.headers["traceparent"]
    assert span["data"]["name"] == "GET /orders/{order}"
    assert span["data"]["parent_span_id"] == SPAN


def test_the_tests_of_the_page_pass(run_tests: Callable[..., pytest.RunResult]) -> None:
    run_tests(textwrap.dedent(example("pytest"))).assert_outcomes(passed=2)
