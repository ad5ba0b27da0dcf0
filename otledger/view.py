"""The ways to record that need no event loop, with defaults for what is not given."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextvars import Token
from typing import Any, TypeVar

from opentelemetry.context.context import Context
from opentelemetry.trace import Link, SpanKind

from otledger import context as ctx
from otledger import values
from otledger.core import Core
from otledger.errors import EventRefused
from otledger.record import Draft, Extension
from otledger.span import Span

F = TypeVar("F", bound=Callable[..., Any])


class BaseView:
    """A ledger's ways to record, with defaults for what is not given."""

    def __init__(
        self,
        core: Core,
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
        wait: bool = True,
    ) -> tuple[str, bytes | None]:
        """Give id and part of an event; no part where a processor dropped it. `wait` as in `Core.process`."""
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
        if core.slow or time is not None or id is not None or (core.encryption is not None and subject is not None):
            draft = Draft(type, data, subject, source, ipc_hash, dict(extensions or {}), time, id)
            if core.slow or time is not None or id is not None or (cipher := core.cipher_at_hand(draft)) is None:
                return core.process(draft, members, wait=wait)
            return core.encoder.event(type, data, None, source, subject, ipc_hash, members, extensions, cipher)
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

        Only for the first event of a subject whose data is encrypted it waits for the disk to have the key.
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
