"""A span that is recorded in the ledger, and is a real OpenTelemetry span (format, 4)."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextvars import Token
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TypeVar

import orjson
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context.context import Context
from opentelemetry.trace import INVALID_SPAN_CONTEXT, Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace.span import TraceState

from otledger import context as ctx
from otledger import ids, values
from otledger.batch import MAX_LINE, STAMP_ROOM
from otledger.errors import ConfigurationError
from otledger.identity import boot_id

log = logging.getLogger("otledger")

F = TypeVar("F", bound=Callable[..., Any])

_PLAIN = frozenset((str, bool, int, float))
_ROOM = MAX_LINE - STAMP_ROOM - 4096
"""The most bytes that the `data` of a span's record may have; the rest of the line is short."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a span is kept, as the SDK limits it. None: no limit."""

    attributes: int | None = 128
    events: int | None = 128
    links: int | None = 128
    event_attributes: int | None = 128
    link_attributes: int | None = 128
    length: int | None = None
    """Characters of a string attribute of a span."""
    other_length: int | None = None
    """The same of events and links."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Limits:
        """Give the limits that `OTEL_SPAN_*` and `OTEL_ATTRIBUTE_*` ask for.

        Raises `ConfigurationError` for a value that is no number.
        """
        environ = os.environ if environ is None else environ

        def read(name: str, default: int | None) -> int | None:
            text = environ.get(name, "").strip().lower()
            if not text:
                return default
            if text == "unset":
                return None
            if not text.isdecimal():
                raise ConfigurationError(f"{name}={text!r}: it must be a number of at least 0, or 'unset'")
            return int(text)

        every = read("OTEL_ATTRIBUTE_COUNT_LIMIT", 128)
        length = read("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", None)
        return cls(
            attributes=read("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", every),
            events=read("OTEL_SPAN_EVENT_COUNT_LIMIT", 128),
            links=read("OTEL_SPAN_LINK_COUNT_LIMIT", 128),
            event_attributes=read("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", every),
            link_attributes=read("OTEL_LINK_ATTRIBUTE_COUNT_LIMIT", every),
            length=read("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", length),
            other_length=length,
        )


class Recorder(Protocol):
    """What a span needs of the ledger that records it."""

    limits: Limits

    def span_started(self, span: Span) -> None: ...
    def span_ended(self, span: Span) -> None: ...
    async def room_for_span(self) -> None: ...
    def span_part(self, type: str, ns: int, payload: bytes, trace: bytes) -> bytes: ...
    def span_digests(self) -> tuple[str, str]: ...
    def span_cut(self, values: int) -> None: ...


class Span(OtelSpan):
    """One operation. Made by `ledger.span` and `ledger.start_span`; begins when its block is entered.

    Use it as `async with`, as `with`, or as a decorator of a function or coroutine function. Inside the block
    it is the current OpenTelemetry span. All methods are those of `opentelemetry.trace.Span`; after its end
    they do nothing but warn.
    """

    def __init__(
        self,
        recorder: Recorder,
        name: str,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, Any] | None = None,
        links: Sequence[Link] | None = None,
        context: Context | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> None:
        self.name = name
        self.kind = kind
        self._recorder = recorder
        self._given = attributes
        self._given_links = links
        self._parent_context = context
        self._start = start_time
        self._record_exception = record_exception
        self._set_status_on_exception = set_status_on_exception

    # What most spans leave as it is, so that making one stays cheap.
    trace_id = ""
    """32 hex digits, empty until the span begins."""
    span_id = ""
    """16 hex digits."""
    trace_flags = 1
    _trace_state: TraceState | None = None
    _span_context: SpanContext | None = None
    _parent: OtelSpan | None = None
    _parent_id: str | None = None
    _parent_remote = False
    _turn: str | None = None
    _token: Token[Context] | None = None
    _end: int | None = None
    _left = False
    """Left in another context than it was entered in: whoever finds it current takes its parent instead."""
    _events: Sequence[dict[str, Any]] = ()
    _links: Sequence[dict[str, Any]] = ()
    _dropped = 0
    _dropped_events = 0
    _dropped_links = 0
    _status = StatusCode.UNSET
    _description: str | None = None

    # Beginning

    def _begin(self) -> Context:
        """Start the clock, take ids and parent. Gives the context that it begins in."""
        context = ctx.current() if self._parent_context is None else self._parent_context
        trace_id = None
        if context:
            self._turn = ctx.current_turn(context)
            parent = ctx.span_in(context)
            while isinstance(parent, Span) and parent._left:
                parent = parent._parent
            if isinstance(parent, Span):
                self._parent = parent
                trace_id, self._parent_id = parent.trace_id, parent.span_id
                self.trace_flags, self._trace_state = parent.trace_flags, parent._trace_state
            elif parent is not None:
                trace_id = self._under(parent)
        self.trace_id = trace_id or ids.trace_id()
        self.span_id = ids.span_id()
        self._attributes: dict[str, Any] = {}
        if self._given:
            self.set_attributes(self._given)
        for link in self._given_links or ():
            self.add_link(link.context, link.attributes)
        if self._start is None:
            self._start = time.time_ns()
        self._recorder.span_started(self)
        return context

    def _under(self, parent: OtelSpan) -> str | None:
        """Take parentage from a span of the SDK, or of another process."""
        self._parent = parent
        above = parent.get_span_context()
        if not above.is_valid:
            return None
        self._parent_id = f"{above.span_id:016x}"
        self._parent_remote = above.is_remote
        self.trace_flags, self._trace_state = int(above.trace_flags), above.trace_state
        return f"{above.trace_id:032x}"

    def __enter__(self) -> Span:
        # A span of start_span() has begun already, and is not made current, as in OpenTelemetry.
        if not self.trace_id:
            context = self._begin()
            self._token = ctx.attach(ctx.with_span(context if self._parent_context is None else ctx.current(), self))
        return self

    async def __aenter__(self) -> Span:
        return self.__enter__()

    # Ending

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        token, self._token = self._token, None
        if token is not None and not ctx.leave_span(token, self, self._parent):
            self._left = True
        # Only what derives from Exception is an error: a cancelled task, GeneratorExit or SystemExit is none,
        # and leaves the status unset, as the SDK does.
        if isinstance(error, Exception) and self.is_recording():
            if self._record_exception:
                self.record_exception(error)
            if self._set_status_on_exception:
                self.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
        self.end()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._recorder.room_for_span()
        finally:
            self.__exit__(kind, error, trace)

    def end(self, end_time: int | None = None) -> None:
        """End the span and queue its record. `end_time` is in nanoseconds since the epoch. Only the first counts."""
        if self._end is not None:
            log.warning("Calling end() on an ended span.")
            return
        if not self.trace_id:
            raise RuntimeError("Calling end() on a span that was not started.")
        self._end = time.time_ns() if end_time is None else end_time
        self._recorder.span_ended(self)

    def __call__(self, function: F) -> F:
        """Decorate a function or coroutine function: each call is a span of its own."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def call_async(*args: Any, **kwargs: Any) -> Any:
                async with self._again():
                    return await function(*args, **kwargs)

            return call_async  # type: ignore[return-value]
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError("a span cannot decorate a generator: use start_span() inside it")

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._again():
                return function(*args, **kwargs)

        return call  # type: ignore[return-value]

    def _again(self) -> Span:
        return Span(
            self._recorder,
            self.name,
            kind=self.kind,
            attributes=self._given,
            links=self._given_links,
            context=self._parent_context,
            record_exception=self._record_exception,
            set_status_on_exception=self._set_status_on_exception,
        )

    # What OpenTelemetry asks of a span

    def get_span_context(self) -> SpanContext:
        """Give the span's ids. Once it was left out of order, those of its parent."""
        if self._left:
            return self._parent.get_span_context() if self._parent is not None else INVALID_SPAN_CONTEXT
        if self._span_context is None:
            self._span_context = SpanContext(
                int(self.trace_id, 16), int(self.span_id, 16), False, TraceFlags(self.trace_flags), self._trace_state
            )
        return self._span_context

    def is_recording(self) -> bool:
        """Tell whether the span is still open."""
        return self._end is None

    def set_attribute(self, key: str, value: Any) -> None:
        """Set an attribute, by the SDK's rules: what is no attribute value becomes text, with a warning."""
        if self._ended("Setting attribute on ended span."):
            return
        limits = self._recorder.limits
        if not key or type(key) is not str or type(value) not in _PLAIN or limits.length is not None:
            bounded = BoundedAttributes(None, {key: value}, max_value_len=limits.length)
            if key not in bounded:
                self._dropped += 1
                return
            value = bounded[key]
        attributes = self._attributes
        if key in attributes:
            # The SDK moves what is set again to the end.
            del attributes[key]
        elif limits.attributes is not None and len(attributes) >= limits.attributes:
            self._dropped += 1
            if not attributes:
                return
            del attributes[next(iter(attributes))]
        attributes[key] = value

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Set several attributes."""
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def add_event(self, name: str, attributes: Mapping[str, Any] | None = None, timestamp: int | None = None) -> None:
        """Add an event of the span. `timestamp` is in nanoseconds since the epoch, by default now."""
        if self._ended("Tried calling add_event on an ended span."):
            return
        limits = self._recorder.limits
        event: dict[str, Any] = {"name": name, "time": time.time_ns() if timestamp is None else timestamp}
        self._bound(event, attributes, limits.event_attributes)
        self._events, dropped = _append(self._events, event, limits.events)
        self._dropped_events += dropped

    def add_link(self, context: SpanContext, attributes: Mapping[str, Any] | None = None) -> None:
        """Link another span."""
        if self._ended("Tried calling add_link on an ended span."):
            return
        if context is None or not (context.is_valid or attributes or context.trace_state):
            return
        limits = self._recorder.limits
        link: dict[str, Any] = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
        if context.trace_flags:
            link["trace_flags"] = int(context.trace_flags)
        if context.is_remote:
            link["is_remote"] = True
        if context.trace_state:
            link["trace_state"] = context.trace_state.to_header()
        self._bound(link, attributes, limits.link_attributes)
        self._links, dropped = _append(self._links, link, limits.links)
        self._dropped_links += dropped

    def _bound(self, owner: dict[str, Any], attributes: Mapping[str, Any] | None, limit: int | None) -> None:
        if not attributes:
            return
        bounded = BoundedAttributes(limit, attributes, max_value_len=self._recorder.limits.other_length)
        if bounded:
            owner["attributes"] = dict(bounded)
        if bounded.dropped:
            owner["dropped"] = bounded.dropped

    def update_name(self, name: str) -> None:
        """Give the span another name."""
        if not self._ended("Tried calling update_name on an ended span."):
            self.name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set the status. OK is final; UNSET is ignored; a description counts for ERROR only."""
        if self._ended("Tried calling set_status on an ended span."):
            return
        if isinstance(status, StatusCode):
            status = Status(status, description)
        elif description is not None:
            log.warning("Description %s ignored. Use either `Status` or `(StatusCode, Description)`", description)
        if self._status is StatusCode.OK or status.status_code is StatusCode.UNSET:
            return
        self._status, self._description = status.status_code, status.description

    def record_exception(
        self,
        exception: BaseException,
        attributes: Mapping[str, Any] | None = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Add an event with the type, message and stack trace of an exception."""
        kind = type(exception)
        named = f"{kind.__module__}.{kind.__qualname__}" if kind.__module__ != "builtins" else kind.__qualname__
        described: dict[str, Any] = {
            "exception.type": named,
            "exception.message": str(exception),
            "exception.stacktrace": "".join(traceback.format_exception(exception)),
            "exception.escaped": str(escaped),
        }
        described.update(attributes or {})
        self.add_event("exception", described, timestamp)

    def _ended(self, warning: str) -> bool:
        if self._end is None:
            return False
        log.warning(warning)
        return True

    # Records

    @property
    def members(self) -> bytes:
        """The members of a record that was emitted in this span: `traceparent`, `tracestate`."""
        members = f',"traceparent":"00-{self.trace_id}-{self.span_id}-{self.trace_flags & 0xFF:02x}"'.encode()
        if self._trace_state:
            members += b',"tracestate":' + values.encode(self._trace_state.to_header())
        return members

    def _members(self) -> bytes:
        if self._turn is None:
            return self.members
        return b',"ipchash":' + values.encode(self._turn) + self.members

    def start_part(self) -> bytes | None:
        """Give the part of the start record, or None if the span has ended. Called by the writer's thread."""
        if self._end is not None:
            return None
        start = self._start
        assert start is not None
        # The owner may change these while they are copied; what is known at the start is what counts.
        data = self._data(dict(self._attributes), (), list(self._links))
        data["process"] = {"pid": os.getpid(), "started": _process_started(), "boot": boot_id()}
        part = self._recorder.span_part("otel.span.start", start, self._encode(data), self._members())
        return part if self._end is None else None

    def end_part(self) -> bytes:
        """Give the part of the end record."""
        assert self._end is not None
        data = self._data(self._attributes, self._events, self._links)
        return self._recorder.span_part("otel.span.end", self._end, self._encode(data), self._members())

    def _data(
        self, attributes: dict[str, Any], events: Sequence[dict[str, Any]], links: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        data: dict[str, Any] = {"name": self.name}
        if self.kind is not SpanKind.INTERNAL:
            data["kind"] = self.kind.name
        if self._parent_id is not None:
            data["parent_span_id"] = self._parent_id
            if self._parent_remote:
                data["parent_is_remote"] = True
        data["start"] = self._start
        if self._end is not None:
            data["end"] = self._end
        if attributes:
            data["attributes"] = attributes
        if events:
            data["events"] = events
        if links:
            data["links"] = links
        if self._status is not StatusCode.UNSET:
            data["status"] = {"code": self._status.name}
            if self._description is not None:
                data["status"]["description"] = self._description
        if self._dropped or self._dropped_events or self._dropped_links:
            counts = {"attributes": self._dropped, "events": self._dropped_events, "links": self._dropped_links}
            data["dropped"] = {name: count for name, count in counts.items() if count}
        data["resource"], data["scope"] = self._recorder.span_digests()
        return data

    def _encode(self, data: dict[str, Any]) -> bytes:
        try:
            payload = values.encode(data)
            if len(payload) <= _ROOM:
                return payload
        except values.TooDeep:
            pass
        payload, cut = cut_largest(data, _ROOM)
        self._recorder.span_cut(cut)
        return payload


def cut_largest(data: Mapping[str, Any], room: int) -> tuple[bytes, int]:
    """Give the JSON of a span's data with its largest values replaced by `{"$cut": bytes}`, and how many were.

    For telemetry, which has no caller to refuse (format, 4).
    """
    places: list[tuple[int, dict[str, Any], str]] = []
    data = dict(data)
    for name, value in data.items():
        if name == "attributes":
            data[name] = _fragments(value, places)
        elif name in ("events", "links"):
            data[name] = [
                {key: _fragments(own, places) if key == "attributes" else _fragment(own) for key, own in item.items()}
                for item in value
            ]
        else:
            data[name] = _fragment(value)
    places.sort(key=lambda place: place[0], reverse=True)
    payload = orjson.dumps(data)
    excess = len(payload) - room
    cut = 0
    for size, owner, key in places:
        if excess <= 0 and size <= room:
            break
        # A value deeper than a line may be has no size here: it goes first.
        owner[key] = orjson.Fragment(b'{"$cut":%d}' % (size if size <= _ENDLESS else 0))
        excess -= size - 32
        cut += 1
    payload = orjson.dumps(data)
    if len(payload) > room:
        # Names or counts without bound: what identifies the span is kept.
        kept = ("kind", "parent_span_id", "start", "end", "status", "resource", "scope")
        data = {"name": _fragment(str(data["name"])[:1000]), **{key: data[key] for key in kept if key in data}}
        payload = orjson.dumps(data)
        cut += 1
    return payload, cut


_ENDLESS = 1 << 62


def _fragments(attributes: Mapping[str, Any], places: list[tuple[int, dict[str, Any], str]]) -> dict[str, Any]:
    owner: dict[str, Any] = {}
    for key, value in attributes.items():
        name = key.encode("utf-8", "backslashreplace").decode()
        try:
            raw = values.encode(value)
            places.append((len(raw), owner, name))
            owner[name] = orjson.Fragment(raw)
        except values.TooDeep:
            places.append((_ENDLESS + 1, owner, name))
            owner[name] = None
    return owner


def _fragment(value: Any) -> orjson.Fragment:
    return orjson.Fragment(values.encode(value))


def _append(
    items: Sequence[dict[str, Any]], item: dict[str, Any], limit: int | None
) -> tuple[Sequence[dict[str, Any]], int]:
    """Give the items with one more, and how many of the oldest were dropped for it."""
    more = [*items, item]
    if limit is None or len(more) <= limit:
        return more, 0
    return more[len(more) - limit :], len(more) - limit


@functools.cache
def _process_started() -> int:
    """Give when this process began, in clock ticks since boot, as /proc tells; 0 if it does not."""
    try:
        with open("/proc/self/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


os.register_at_fork(after_in_child=_process_started.cache_clear)
