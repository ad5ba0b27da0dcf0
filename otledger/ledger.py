"""The ledger that a program holds: the only place where asyncio meets storage."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import inspect
import os
import socket
import threading
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextvars import Token
from pathlib import Path
from time import time_ns
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import unquote

import orjson
from opentelemetry import trace
from opentelemetry.context.context import Context
from opentelemetry.trace import Link, SpanKind

from otledger import context as ctx
from otledger import provider, speed, values, writer
from otledger.config import Config, Durability, QueuePolicy, StartupCheck
from otledger.context import current as current_context
from otledger.errors import ConfigurationError, EventRefused, LedgerClosed, LedgerDamaged, QueueFull
from otledger.journal import Receipt, Resource
from otledger.processors import Processor
from otledger.reader import Reader
from otledger.record import Draft, Encoder, Extension, check_extensions
from otledger.schemas import Check, compile_schemas
from otledger.span import Limits, Span
from otledger.verifier import Report, verify
from otledger.version import VERSION
from otledger.writer import Health, Writer, text_of

encode_event = speed.event or (lambda *event: None)

BURST = 256
"""After so many events a task lets the others run: `emit` alone never suspends."""

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_NOT_GIVEN: Any = object()
"""None is a value of `check`."""


class _Core:
    """What all views of one ledger share: settings, encoder, writer, processors, schemas. Records spans."""

    def __init__(self, config: Config) -> None:
        self.config = config
        # Absolute: the program may change its working folder.
        self.root = config.root.absolute()
        self.encoder = Encoder(config.machine, config.service)
        self.limits = Limits.from_environment()
        self.checks: dict[str, Check] = compile_schemas(config.schemas)
        self.slow = bool(config.processors or self.checks)
        self.burst = BURST
        self.listeners: list[Callable[[BaseException], None]] = []
        self._writer: Writer | None = None
        self._last_writer: Writer | None = None
        self.span_members = ""
        self._closed = False
        _cores.add(self)

    @property
    def writer(self) -> Writer:
        if self._writer is None:
            raise LedgerClosed(
                f"the ledger {self.config.root} is closed: nothing more is accepted"
                if self._closed
                else "the ledger is not open yet: use `async with otledger.open(...)`, or await it"
            )
        return self._writer

    def open(self) -> Report | None:
        """Open writer and check, blocking. Gives what the check at start found."""
        config = self.config
        self._writer = self._last_writer = writer.acquire(config)
        # A writer knows no resources when it is new.
        self.span_members = ""
        self._closed = False
        if config.check is None:
            return None
        report = verify(config.root, machines=[config.machine], tail=config.check == "tail")
        if report.faults:
            message = f"{config.root / config.machine}: {report.status}: {report.faults[0]}"
            writer.log.critical("%s", message)
            if config.strict:
                self.close(10.0)
                raise LedgerDamaged(f"{message}; run: otledger verify --root {config.root}", report=report)
        return report

    def close(self, timeout: float) -> int:
        """Give the writer back, blocking. Gives how many records were left unwritten."""
        own, self._writer, self._closed = self._writer, None, True
        if own is None:
            return 0
        for listener in self.listeners:
            own.listeners.remove(listener)
        self.listeners.clear()
        return writer.release(own, timeout)

    # Events

    def process(self, draft: Draft, members: str) -> tuple[str, bytes | None]:
        if members:
            found = orjson.loads("{" + members[1:] + "}")
            draft.traceparent, draft.tracestate = found.get("traceparent"), found.get("tracestate")
        kept = self._run_processors(draft)
        if kept is None:
            return "", None
        check = self.checks.get(kept.type)
        if check is not None and kept.data is not None:
            self._check(check, kept)
        return self.encoder.draft(kept, time_ns())

    def _run_processors(self, draft: Draft) -> Draft | None:
        for processor in self.config.processors:
            try:
                # A copy: what a processor changes in it before it raises must not count, nor reach the caller.
                after = processor(_copy(draft))
                if after is None:
                    return None
                if not isinstance(after, Draft):
                    raise TypeError(f"a processor must return a Draft or None, not {type(after).__name__}")
                self.encoder.draft(after, 0)
                draft = after
            except Exception as error:  # A processor's mistake never loses the event.
                # What the caller gave must be storable all the same: that is for the caller to hear.
                self.encoder.draft(draft, 0)
                self.writer.report(error)
                draft.marks["otlprocessor"] = _printable(f"{type(error).__name__}: {text_of(error)}")
        return draft

    def _check(self, check: Check, draft: Draft) -> None:
        try:
            wrong = check(values.encode(draft.data), draft.data)
        except Exception as error:  # A schema's mistake never loses the event either.
            wrong = f"the check failed: {type(error).__name__}: {error}"
        if wrong is not None:
            self.writer.invalid += 1
            draft.marks["otlinvalid"] = _printable(wrong)

    # Spans

    def span_started(self, span: Span) -> None:
        own = self._writer or self.writer
        if not self.span_members:
            # Known to the writer before the first record that names them.
            self.span_members = self._describe_spans()
        if trace._TRACER_PROVIDER is not None and (sdk := provider.sdk_provider()) is not None:
            provider.begin(sdk, span, self.config.forward)
        own.put_span(span.span_id, span.start_part)

    def span_ended(self, span: Span) -> None:
        if trace._TRACER_PROVIDER is not None and span.trace_flags & 1 and self.config.forward:
            sdk = provider.sdk_provider()
            if sdk is not None:
                provider.end(sdk, span)
        own = self._writer
        if own is None:
            writer.log.warning("span %r ended after its ledger was closed: its end is not recorded", span.name)
            return
        own.end_span(span.span_id)
        if own.full and not self._room_at_once(own):
            own.drop("queue full")
            return
        if not self.span_members:
            # A span may end in another process than it began in, after a fork.
            self.span_members = self._describe_spans()
        own.put(span.end_part())

    def _room_at_once(self, own: Writer) -> bool:
        """Tell whether there is a place, waiting for it where no event loop is held up."""
        if own.refusing or self.config.queue_policy != "wait" or in_loop():
            return False
        try:
            own.block_for_room(self.config.queue_timeout)
        except QueueFull:
            return False
        return True

    def crowded(self) -> bool:
        own = self._writer
        self.burst -= 1
        return self.burst < 0 or (own is not None and own.full)

    async def room_for_span(self) -> None:
        own = self._writer
        self.burst = BURST
        await asyncio.sleep(0)
        if own is not None and own.full and not own.refusing and self.config.queue_policy == "wait":
            # A span has no caller to refuse: what has no place in time is dropped and counted.
            with contextlib.suppress(QueueFull):
                await self.wait_for_room(own)

    def span_cut(self, values: int) -> None:
        self.writer.report(EventRefused(f"a span was too large for a line: {values} of its values were cut"))

    def _describe_spans(self) -> str:
        """Have resource and scope stored, and give the members that name them in a span's data."""
        resource = Resource.make("resource", values.encode(resource_attributes(self.config.service)))
        scope = Resource.make("scope", b"{}", name="otledger", version=VERSION)
        self.writer.use(resource)
        self.writer.use(scope)
        return f',"resource":"{resource.digest}","scope":"{scope.digest}"'

    # Room

    async def make_room(self, own: Writer) -> bool:
        """Let other tasks run, or wait for a place in the queue. False: the event is to be dropped."""
        self.burst = BURST
        await asyncio.sleep(0)
        if not own.full:
            return True
        own.refuse()
        own.raise_failure()
        policy = self.config.queue_policy
        if policy == "raise":
            raise own.queue_full(0.0)
        if policy == "drop":
            own.drop("queue full")
            return False
        await self.wait_for_room(own)
        own.refuse()
        return True

    async def wait_for_room(self, own: Writer) -> None:
        timeout = self.config.queue_timeout
        try:
            async with asyncio.timeout(timeout):
                while own.full and not own.refusing:
                    own.raise_failure()
                    await own.wait_for_room()
        except TimeoutError:
            raise own.queue_full(timeout) from None

    def make_room_now(self, own: Writer, *, block: bool) -> bool:
        """The same from a callback or thread, which can only wait where `block` says so."""
        if not own.full:
            return True
        own.refuse()
        own.raise_failure()
        policy = self.config.queue_policy
        if policy == "drop":
            own.drop("queue full")
            return False
        if policy == "raise" or not block:
            raise own.queue_full(0.0)
        own.block_for_room(self.config.queue_timeout)
        own.refuse()
        return True


_cores: weakref.WeakSet[_Core] = weakref.WeakSet()


def _after_fork() -> None:
    # The resource names the process.
    for core in list(_cores):
        core.span_members = ""


os.register_at_fork(after_in_child=_after_fork)


class _View:
    """A ledger's ways to record, with defaults for what is not given."""

    def __init__(
        self,
        core: _Core,
        subject: str | None = None,
        source: str | None = None,
        ipc_hash: str | None = None,
        extensions: Mapping[str, Extension] | None = None,
    ) -> None:
        self._core = core
        self._subject = subject
        self._source = source
        self._ipc_hash = ipc_hash
        self._extensions = extensions
        self._bound = any(default is not None for default in (subject, source, ipc_hash, extensions))
        self._direct = not self._bound and not core.slow

    def _encode(
        self,
        type: str,
        data: Any,
        subject: str | None,
        source: str | None,
        ipc_hash: str | None,
        extensions: Mapping[str, Extension] | None,
        time: int | str | None,
        id: str | None,
    ) -> tuple[str, bytes | None]:
        """Give id and part of an event; no part where a processor dropped it."""
        core = self._core
        members = ""
        if self._bound:
            subject = self._subject if subject is None else subject
            source = self._source if source is None else source
            ipc_hash = self._ipc_hash if ipc_hash is None else ipc_hash
            extensions = {**(self._extensions or {}), **(extensions or {})}
        context = ctx.current()
        if context:
            ipc_hash = ctx.current_turn(context) if ipc_hash is None else ipc_hash
            members = _span_members(context)
        if core.slow or time is not None or id is not None:
            return core.process(Draft(type, data, subject, source, ipc_hash, dict(extensions or {}), time, id), members)
        return core.encoder.event(type, data, None, source, subject, ipc_hash, members, extensions)

    def emit_nowait(
        self,
        type: str,
        data: Any = None,
        *,
        subject: str | None = None,
        source: str | None = None,
        ipc_hash: str | None = None,
        extensions: Mapping[str, Extension] | None = None,
        time: int | str | None = None,
        id: str | None = None,
    ) -> str:
        """Queue an event from any thread or callback, without waiting. Gives its id, empty if dropped.

        Raises `EventRefused`, `LedgerClosed`, `LowSpace`, and `QueueFull` at once where there is no place.
        """
        core = self._core
        own = core.writer
        id, part = self._encode(type, data, subject, source, ipc_hash, extensions, time, id)
        if part is None or (own.full and not core.make_room_now(own, block=False)):
            return ""
        own.put(part)
        return id

    def span(
        self,
        name: str,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, Any] | None = None,
        links: Sequence[Link] | None = None,
        context: Context | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> Span:
        """Give a span that begins when its block is entered: `async with`, `with`, or as a decorator.

        `context` is the OpenTelemetry context whose span is the parent, by default the current one;
        `start_time` is in nanoseconds since the epoch.
        """
        return Span(
            self._core,
            name,
            kind,
            attributes,
            links,
            context,
            start_time,
            record_exception,
            set_status_on_exception,
            self._ipc_hash,
        )

    def start_span(self, name: str, **options: Any) -> Span:
        """Give a span that has begun and is not current; the caller ends it. Options are those of `span`."""
        span = self.span(name, **options)
        span._begin()
        return span

    def turn(self, ipc_hash: str) -> Turn:
        """Give a block (`with` or `async with`) in which every record carries this `ipc_hash`."""
        return Turn(ipc_hash)

    @staticmethod
    def wrap(function: F) -> F:
        """Give a callable that runs `function` in the context of now: current span, turn, context variables.

        For threads and executors, which begin without. Each call gets a copy of its own, so that calls may run at
        the same time. A coroutine function runs in a task of its own. Raises TypeError for a generator function.
        """
        context = contextvars.copy_context()
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError("a generator runs in its caller's context: wrap the function that goes through it")
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run_async(*args: Any, **kwargs: Any) -> Any:
                loop = asyncio.get_running_loop()
                return await loop.create_task(function(*args, **kwargs), context=context.copy())

            return run_async  # type: ignore[return-value]

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            return context.copy().run(function, *args, **kwargs)

        return run  # type: ignore[return-value]


def _span_members(context: Context) -> str:
    span = ctx.span_in(context)
    while isinstance(span, Span) and span._left:
        span = span._parent
    if span is None:
        return ""
    if isinstance(span, Span):
        return span.members
    here = span.get_span_context()
    if not here.is_valid:
        return ""
    members = f',"traceparent":"00-{here.trace_id:032x}-{here.span_id:016x}-{here.trace_flags & 0xFF:02x}"'
    if here.trace_state:
        members += f',"tracestate":{values.encode(here.trace_state.to_header()).decode()}'
    return members


def _copy(draft: Draft) -> Draft:
    """Give a draft that shares nothing with `draft` which a processor could change in it."""
    from copy import deepcopy
    from dataclasses import replace

    try:
        data = deepcopy(draft.data)
    except Exception:  # A payload that cannot be copied is kept in the form in which it would be stored.
        data = values.loads(values.encode(draft.data))
    return replace(draft, data=data, extensions=dict(draft.extensions), marks=dict(draft.marks))


def _printable(text: str) -> str:
    """Give text for a mark: at most 200 characters, none that a CloudEvents string may not have."""
    return "".join(character if character.isprintable() else "?" for character in text[:200])


class Turn:
    """A block in which every record carries one `ipc_hash`; see `Ledger.turn`."""

    def __init__(self, ipc_hash: str) -> None:
        if not isinstance(ipc_hash, str) or not ipc_hash:
            raise EventRefused("a turn needs its ipc_hash, a str; see otledger.ipc_hash()")
        self.ipc_hash = ipc_hash
        self._token: Token[Context] | None = None
        self._before: str | None = None

    def __enter__(self) -> Turn:
        context = ctx.current()
        self._before = ctx.current_turn(context)
        self._token = ctx.attach(ctx.with_turn(context, self.ipc_hash))
        return self

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            ctx.leave_turn(self._token, self.ipc_hash, self._before)
            self._token = None

    async def __aenter__(self) -> Turn:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()


class View(_View):
    """A view of a ledger with defaults; see `Ledger.bind`."""

    async def emit(
        self,
        type: str,
        data: Any = None,
        *,
        subject: str | None = None,
        source: str | None = None,
        ipc_hash: str | None = None,
        extensions: Mapping[str, Extension] | None = None,
        time: int | str | None = None,
        id: str | None = None,
    ) -> str:
        """Record an event. On return it is accepted: it is written within `flush_interval` seconds.

        Gives its id; empty if a processor or the queue's policy dropped it. `time` is nanoseconds since the
        epoch or RFC 3339 text. Cancelling it means that the event was not accepted.
        Raises `EventRefused` (a ValueError), `QueueFull`, `LowSpace`, `LedgerClosed`.
        """
        core = self._core
        own = core._writer or core.writer
        core.burst = left = core.burst - 1
        if (left < 0 or own.full) and not await core.make_room(own):
            return ""
        if (
            self._direct
            and subject is None
            and source is None
            and ipc_hash is None
            and extensions is None
            and time is None
            and id is None
            and not current_context()
        ):
            # What `_encode` comes to for most events, without a call more: emit is the hot path.
            encoder = core.encoder
            made = encode_event(encoder.heads, type, encoder.before, data, None)
            if made is not None:
                own.put(made[1])
                return made[0]
        id, kept = self._encode(type, data, subject, source, ipc_hash, extensions, time, id)
        if kept is not None:
            own.put(kept)
        return id

    async def append(
        self,
        type: str,
        data: Any = None,
        *,
        subject: str | None = None,
        source: str | None = None,
        ipc_hash: str | None = None,
        extensions: Mapping[str, Extension] | None = None,
        time: int | str | None = None,
        id: str | None = None,
    ) -> Receipt | None:
        """Record an event and wait until it is durable. Gives its receipt, None if a processor dropped it.

        Raises as `emit` does, and `JournalError` if the write failed: the record then stays queued all the
        same. Cancelling it withdraws nothing.
        """
        own = self._core.writer
        if own.full and not await self._core.make_room(own):
            return None
        id, part = self._encode(type, data, subject, source, ipc_hash, extensions, time, id)
        if part is None:
            return None
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Receipt] = loop.create_future()
        own.put_awaited(part, waiter, id, loop)
        return await waiter

    async def flush(self) -> None:
        """Wait until everything accepted so far is durable. Raises `JournalError` if a write fails meanwhile."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._core.writer.wait_for_all(waiter)
        await waiter

    def bind(
        self,
        *,
        subject: str | None = None,
        source: str | None = None,
        ipc_hash: str | None = None,
        extensions: Mapping[str, Extension] | None = None,
    ) -> View:
        """Give a view with these defaults over the ones that this view has."""
        return View(self._core, **_merged(self, subject, source, ipc_hash, extensions))


def _merged(
    view: _View,
    subject: str | None,
    source: str | None,
    ipc_hash: str | None,
    extensions: Mapping[str, Extension] | None,
) -> dict[str, Any]:
    check_extensions(extensions or {})
    return {
        "subject": view._subject if subject is None else subject,
        "source": view._source if source is None else source,
        "ipc_hash": view._ipc_hash if ipc_hash is None else ipc_hash,
        "extensions": {**(view._extensions or {}), **(extensions or {})} or None,
    }


class _Opened:
    """What both kinds of ledger are besides a view: the machine's partition, opened."""

    _core: _Core
    startup_report: Report | None
    """What the check at start found; None where `check=None`."""

    @property
    def config(self) -> Config:
        """The settings in force."""
        return self._core.config

    @property
    def reader(self) -> Reader:
        """A reader of the whole ledger, all machines."""
        return Reader(self._core.root)

    def health(self) -> Health:
        """Give how the ledger is at this moment."""
        core = self._core
        return (core._last_writer or core.writer).health()

    def on_error(self, callback: Callable[[BaseException], None]) -> Callable[[BaseException], None]:
        """Have `callback` called with every error of the journal and of processors; usable as a decorator.

        It is called from the writer's thread, or from the caller's for a processor's error.
        """
        self._core.writer.listeners.append(callback)
        self._core.listeners.append(callback)
        return callback


class Ledger(View, _Opened):
    """A ledger in an asyncio program. Made by `otledger.open`; use it as `async with`, or await it and `aclose`."""

    def __init__(self, config: Config) -> None:
        super().__init__(_Core(config))
        self.startup_report = None

    async def __aenter__(self) -> Ledger:
        if self._core._writer is None:
            self.startup_report = await _in_thread(self._core.open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __await__(self) -> Generator[Any, None, Ledger]:
        return self.__aenter__().__await__()

    async def aclose(self, timeout: float = 10) -> int:
        """Write what is queued and close. Gives how many records were left unwritten after `timeout` seconds."""
        # Shielded: a cancelled program still writes what it accepted.
        return await asyncio.shield(_in_thread(functools.partial(self._core.close, timeout)))


class SyncLedger(_View, _Opened):
    """A ledger in a program without asyncio. Made by `otledger.open_sync`; use it as `with`, or `close` it."""

    def __init__(self, config: Config) -> None:
        super().__init__(_Core(config))
        self.startup_report = self._core.open()

    def __enter__(self) -> SyncLedger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def emit(
        self,
        type: str,
        data: Any = None,
        *,
        subject: str | None = None,
        source: str | None = None,
        ipc_hash: str | None = None,
        extensions: Mapping[str, Extension] | None = None,
        time: int | str | None = None,
        id: str | None = None,
    ) -> str:
        """Record an event. On return it is accepted. Arguments and errors are those of `Ledger.emit`."""
        core = self._core
        own = core.writer
        if own.full and not core.make_room_now(own, block=True):
            return ""
        id, part = self._encode(type, data, subject, source, ipc_hash, extensions, time, id)
        if part is not None:
            own.put(part)
        return id

    def append(
        self,
        type: str,
        data: Any = None,
        *,
        subject: str | None = None,
        source: str | None = None,
        ipc_hash: str | None = None,
        extensions: Mapping[str, Extension] | None = None,
        time: int | str | None = None,
        id: str | None = None,
        timeout: float | None = None,
    ) -> Receipt | None:
        """Record an event and wait until it is durable. Gives its receipt, None if a processor dropped it.

        Raises as `Ledger.append` does, and TimeoutError after `timeout` seconds; the record stays queued.
        """
        core = self._core
        own = core.writer
        if own.full and not core.make_room_now(own, block=True):
            return None
        id, part = self._encode(type, data, subject, source, ipc_hash, extensions, time, id)
        if part is None:
            return None
        waiter: concurrent.futures.Future[Receipt] = concurrent.futures.Future()
        own.put_awaited(part, waiter, id)
        return waiter.result(timeout)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything accepted so far is durable. Raises `JournalError`, or TimeoutError."""
        waiter: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._core.writer.wait_for_all(waiter)
        waiter.result(timeout)

    def bind(
        self,
        *,
        subject: str | None = None,
        source: str | None = None,
        ipc_hash: str | None = None,
        extensions: Mapping[str, Extension] | None = None,
    ) -> SyncLedger:
        """Give a view with these defaults. It is closed with this ledger."""
        view = SyncLedger.__new__(SyncLedger)
        _View.__init__(view, self._core, **_merged(self, subject, source, ipc_hash, extensions))
        view.startup_report = self.startup_report
        return view

    def close(self, timeout: float = 10) -> int:
        """Write what is queued and close. Gives how many records were left unwritten after `timeout` seconds."""
        return self._core.close(timeout)


def open(
    root: str | Path | None = None,
    *,
    machine: str | None = None,
    service: str | None = None,
    durability: Durability | None = None,
    processors: Sequence[Processor] | None = None,
    schemas: Mapping[str, Any] | None = None,
    queue_policy: QueuePolicy | None = None,
    check: StartupCheck | None = _NOT_GIVEN,
    **settings: Any,
) -> Ledger:
    """Give a ledger for an asyncio program, opened by `async with` or `await`.

    All settings are those of `Config`, whose defaults hold where nothing is given and no `OTLEDGER_` variable
    is set. Opening raises `RootError`, `FormatError`, and `LedgerDamaged` if `strict`.
    Raises `ConfigurationError` at once for a setting that is not allowed.
    """
    given: dict[str, Any] = {"machine": machine, "service": service, "durability": durability, "processors": processors}
    given |= {"schemas": schemas, "queue_policy": queue_policy}
    return Ledger(_resolve(root, check, given | settings))


def open_sync(
    root: str | Path | None = None, *, check: StartupCheck | None = _NOT_GIVEN, **settings: Any
) -> SyncLedger:
    """Give an open ledger for a program without asyncio. Settings and errors are those of `open`."""
    return SyncLedger(_resolve(root, check, settings))


def _resolve(root: str | Path | None, check: StartupCheck | None, settings: dict[str, Any]) -> Config:
    if check is not _NOT_GIVEN:
        settings["check"] = check
    return Config.resolve(root=root, **settings)


def resource_attributes(service: str, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Give the OpenTelemetry resource of this process: `OTEL_RESOURCE_ATTRIBUTES`, the service, host, process."""
    environ = os.environ if environ is None else environ
    given: dict[str, Any] = {}
    for pair in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        key, separator, value = pair.partition("=")
        if separator and key.strip():
            given[key.strip()] = unquote(value.strip())
    return {
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "otledger",
        "telemetry.sdk.version": VERSION,
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
        **given,
        "service.name": service,
    }


def in_loop() -> bool:
    """Tell whether this thread runs an event loop, which must not be held up."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _in_thread(function: Callable[[], T]) -> T:
    """Run `function` in a daemon thread of its own, so that a disk that hangs holds up neither loop nor exit."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError(
            "otledger runs on asyncio; under another event loop, such as trio, use otledger.open_sync() in a thread"
        ) from None
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as problem:
            error = problem
        # Where the loop ended meanwhile, nobody waits for the result.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="otledger-open-close", daemon=True).start()
    return await future


__all__ = ["Health", "Ledger", "Receipt", "SyncLedger", "Turn", "View", "open", "open_sync", "resource_attributes"]
