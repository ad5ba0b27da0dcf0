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

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context.context import Context
from opentelemetry.trace import INVALID_SPAN_CONTEXT, Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace.span import TraceState

from otledger import context as ctx
from otledger import ids, speed, values
from otledger.batch import MAX_LINE, STAMP_ROOM
from otledger.errors import ConfigurationError
from otledger.identity import boot_id
from otledger.record import Encoder
from otledger.spandata import PLAIN, collections, cut_largest, dumps, encode_name, encode_plain, named, process_started
from otledger.writer import text_of

log = logging.getLogger("otledger")

F = TypeVar("F", bound=Callable[..., Any])

encode_span = speed.span

_INTERNAL = SpanKind.INTERNAL
_UNSET = StatusCode.UNSET
_TEXT = frozenset((str,))
_FLAGS = [f'-{flags:02x}"' for flags in range(256)]
_MAX_PART = MAX_LINE - STAMP_ROOM
_SHORT = 1000
"""Characters that are kept of a name or description where a span is cut."""
_CUT_ROOM = 65_536
"""More bytes than a span that is cut has besides its attributes, events and links."""


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
            text = environ.get(name)
            if text is None:
                return default
            text = text.strip()
            if not text:
                return None
            if not (text.isascii() and text.isdecimal()):
                raise ConfigurationError(f"{name}={text!r}: it must be a number of at least 0, or empty for no limit")
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


def _copy_flat(given: Any) -> dict[str, Any] | None:
    if (
        type(given) is dict
        and PLAIN.issuperset(map(type, given.values()))
        and _TEXT.issuperset(map(type, given))
        and "" not in given
    ):
        return given.copy()
    return None


copy_flat = speed.copy_flat or _copy_flat


class Recorder(Protocol):
    """What a span needs of the ledger that records it."""

    limits: Limits
    encoder: Encoder
    span_members: str
    """The members of a span's `data` that name resource and scope."""

    def span_started(self, span: Span) -> None: ...
    def span_ended(self, span: Span) -> None: ...
    def span_cut(self, values: int) -> None: ...
    def crowded(self) -> bool: ...
    async def room_for_span(self) -> None: ...


class Span(OtelSpan):
    """One operation. Made by `ledger.span` and `ledger.start_span`; begins when its block is entered.

    Use it as `async with`, as `with`, or as a decorator of a function or coroutine function. Inside the block
    it is the current OpenTelemetry span. All methods are those of `opentelemetry.trace.Span`; after its end
    they do nothing but warn.
    """

    # Declared, as attributes in a slot are read several times faster than defaults of the class.
    __slots__ = (
        *(
            "_attributes",
            "_description",
            "_dropped",
            "_dropped_events",
            "_dropped_links",
            "_end",
            "_events",
            "_given",
            "_ipc_hash",
        ),
        *("_given_links", "_left", "_links", "_parent", "_parent_context", "_parent_id", "_parent_remote", "_plain"),
        *("_record_exception", "_recorder", "_set_status_on_exception", "_span_context", "_start", "_status", "_token"),
        *("_trace_state", "_turn", "kind", "name", "span_id", "trace_flags", "trace_id"),
    )

    def __init__(
        self,
        recorder: Recorder,
        name: str,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, Any] | None = None,
        links: Sequence[Link] | None = None,
        context: Context | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        ipc_hash: str | None = None,
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

        self.trace_id = ""
        self.span_id = ""
        self.trace_flags = 1
        self._trace_state: TraceState | None = None
        self._span_context: SpanContext | None = None
        self._parent: OtelSpan | None = None
        self._parent_id: str | None = None
        self._parent_remote = False
        self._ipc_hash = self._turn = ipc_hash
        self._token: Token[Context] | None = None
        self._end: int | None = None
        # Left in another context than it was entered in: whoever finds it current takes its parent instead.
        self._left = False
        self._attributes: dict[str, Any] = {}
        # Whether orjson may be handed the attributes as they are: text, booleans and numbers.
        self._plain = True
        self._events: Sequence[dict[str, Any]] = ()
        self._links: Sequence[dict[str, Any]] = ()
        self._dropped = 0
        self._dropped_events = 0
        self._dropped_links = 0
        self._status = _UNSET
        self._description: str | None = None

    # Beginning

    def _begin(self) -> Context:
        """Start the clock, take ids and parent. Gives the context that it begins in."""
        context = ctx.current() if self._parent_context is None else self._parent_context
        trace_id = None
        if context:
            if self._turn is None:
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
        if self._given:
            self._take_given(self._given)
        for link in self._given_links or ():
            self.add_link(link.context, link.attributes)
        if self._start is None:
            self._start = time.time_ns()
        self._recorder.span_started(self)
        return context

    def _take_given(self, given: Mapping[str, Any]) -> None:
        limits = self._recorder.limits
        flat = copy_flat(given) if limits.length is None else None
        if flat is not None and (limits.attributes is None or len(flat) <= limits.attributes):
            self._attributes = flat
        else:
            self.set_attributes(given)

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
        if self._leave(error):
            self._recorder.span_ended(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._leave(error):
            try:
                if self._recorder.crowded():
                    await self._recorder.room_for_span()
            finally:
                self._recorder.span_ended(self)

    def _leave(self, error: BaseException | None) -> bool:
        """End the span, recorded or not: its record is queued by the caller. False: it had ended already."""
        token, self._token = self._token, None
        if token is not None and not ctx.leave_span(token, self, self._parent):
            self._left = True
        if self._end is not None:
            return False
        # Only what derives from Exception is an error: a cancelled task, GeneratorExit or SystemExit is none,
        # and leaves the status unset, as the SDK does.
        if isinstance(error, Exception):
            if self._record_exception:
                self.record_exception(error)
            if self._set_status_on_exception:
                self.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {text_of(error)}"))
        self._end = time.time_ns()
        return True

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
            self.kind,
            self._given,
            self._given_links,
            self._parent_context,
            None,
            self._record_exception,
            self._set_status_on_exception,
            self._ipc_hash,
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
        if not key or type(key) is not str or type(value) not in PLAIN or limits.length is not None:
            bounded = BoundedAttributes(None, None, immutable=False, max_value_len=limits.length)
            bounded[key] = value
            self._take_bounded(bounded)
            return
        self._put(key, value, limits.attributes)

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Set several attributes."""
        if not self._ended("Setting attribute on ended span."):
            bounded = BoundedAttributes(None, attributes, max_value_len=self._recorder.limits.length)
            self._take_bounded(bounded)

    def _take_bounded(self, bounded: BoundedAttributes) -> None:
        self._plain = False
        self._dropped += bounded.dropped
        for key, value in bounded.items():
            self._put(key, value, self._recorder.limits.attributes)

    def _put(self, key: str, value: Any, limit: int | None) -> None:
        attributes = self._attributes
        if key in attributes:
            # The SDK moves what is set again to the end.
            del attributes[key]
        elif limit is not None and len(attributes) >= limit:
            self._dropped += 1
            if not attributes:
                return
            del attributes[next(iter(attributes))]
        attributes[key] = value

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
            "exception.message": text_of(exception),
            "exception.stacktrace": _stack_of(exception),
            "exception.escaped": str(escaped),
        }
        described.update(attributes or {})
        self.add_event("exception", described, timestamp)

    def _ended(self, warning: str) -> bool:
        if self._end is None:
            return False
        log.warning(warning)
        return True

    @property
    def attributes(self) -> Mapping[str, Any]:
        """The attributes as they are now."""
        return self._attributes

    @property
    def parent_span_id(self) -> str | None:
        """The 16 hex digits of the parent; None for a root."""
        return self._parent_id

    def to_readable(self, resource: Any, scope: Any) -> Any:
        """Give the ended span as the SDK's `ReadableSpan`, for its exporters."""
        from opentelemetry.sdk.trace import Event, ReadableSpan
        from opentelemetry.sdk.util import BoundedList

        def bounded(stored: Mapping[str, Any], dropped: int) -> BoundedAttributes:
            found = BoundedAttributes(None, stored, immutable=True)
            found.dropped += dropped
            return found

        def limited(items: list[Any], dropped: int) -> Any:
            found: BoundedList[Any] = BoundedList(None)
            found.extend(items)
            found.dropped = dropped
            return found

        parent = None
        if self._parent_id is not None:
            parent = SpanContext(int(self.trace_id, 16), int(self._parent_id, 16), self._parent_remote)
        events = [
            Event(event["name"], bounded(event.get("attributes", {}), event.get("dropped", 0)), event["time"])
            for event in self._events
        ]
        links = [
            Link(
                SpanContext(
                    int(link["trace_id"], 16),
                    int(link["span_id"], 16),
                    link.get("is_remote", False),
                    TraceFlags(link.get("trace_flags", 0)),
                    TraceState.from_header([link["trace_state"]]) if "trace_state" in link else None,
                ),
                bounded(link.get("attributes", {}), link.get("dropped", 0)),
            )
            for link in self._links
        ]
        return ReadableSpan(
            name=self.name,
            context=SpanContext(
                int(self.trace_id, 16), int(self.span_id, 16), False, TraceFlags(self.trace_flags), self._trace_state
            ),
            parent=parent,
            resource=resource,
            attributes=bounded(self._attributes, self._dropped),
            events=limited(events, self._dropped_events),
            links=limited(links, self._dropped_links),
            kind=self.kind,
            status=Status(self._status, self._description),
            start_time=self._start,
            end_time=self._end,
            instrumentation_scope=scope,
        )

    # Records

    @property
    def members(self) -> str:
        """The members of a record that was emitted in this span: `traceparent`, `tracestate`."""
        members = f',"traceparent":"00-{self.trace_id}-{self.span_id}{_FLAGS[self.trace_flags & 0xFF]}'
        if self._trace_state:
            members += f',"tracestate":{dumps(self._trace_state.to_header())}'
        return members

    def start_part(self) -> bytes:
        """Give the part of the start record. Called by the writer's thread."""
        process = {"pid": os.getpid(), "started": process_started(), "boot": boot_id()}
        # The owner may change the attributes meanwhile; what is known now is what counts.
        return self._part("otel.span.start", self._start, dict(self._attributes), (), f',"process":{dumps(process)}')

    def end_part(self) -> bytes:
        """Give the part of the end record."""
        if encode_span is not None and self._plain and not (self._events or self._links or self._trace_state):
            encoder = self._recorder.encoder
            part = encode_span(
                encoder.own_head("otel.span.end"),
                encoder.before if self._turn is None else f'{encoder.before},"ipchash":{dumps(self._turn)}',
                self.trace_id,
                self.span_id,
                self.trace_flags,
                encode_name(self.name),
                self._before_start(),
                self._start,
                self._end,
                self._attributes,
                self._outcome() + self._recorder.span_members,
            )
            if part is not None:
                return part
        return self._part("otel.span.end", self._end, self._attributes, self._events, "")

    def _part(
        self,
        type: str,
        ns: Any,
        attributes: dict[str, Any],
        events: Sequence[dict[str, Any]],
        process: str,
        *,
        cut: bool = False,
    ) -> bytes:
        """Give a record's part: the members of `data` in the format's order, left out where they are default.

        `cut` shortens what a line has no place for, as telemetry has no caller to refuse (format, 4).
        """
        before, after = self._before_start(), ""
        start, end = self._start, self._end
        if end is not None:
            after = f',"end":{end if end.__class__ is int else dumps(end)}'
        try:
            if cut:
                after += self._cut_collections(attributes, events)
            elif events or self._links or not self._plain:
                after += collections(attributes, events, self._links)
            elif attributes:
                after += f',"attributes":{encode_plain(attributes).decode()}'
        except values.TooDeep:
            return self._part(type, ns, attributes, events, process, cut=True)
        after += self._outcome(cut=cut)
        members = f',"traceparent":"00-{self.trace_id}-{self.span_id}{_FLAGS[self.trace_flags & 0xFF]}'
        if (self._trace_state or self._turn is not None) and not cut:
            members = self._more_members()
        name = dumps(str(self.name)[:_SHORT]) if cut else encode_name(self.name)
        recorder = self._recorder
        part = recorder.encoder.telemetry(
            type,
            ns,
            f'{{"name":{name}{before},"start":{start if start.__class__ is int else dumps(start)}{after}'
            f"{recorder.span_members}{process}}}",
            members,
        )
        if len(part) > _MAX_PART and not cut:
            return self._part(type, ns, attributes, events, process, cut=True)
        return part

    def _before_start(self) -> str:
        """Give the members of a record's data between name and start."""
        members = "" if self.kind is _INTERNAL else f',"kind":"{self.kind.name}"'
        if self._parent_id is not None:
            members += f',"parent_span_id":"{self._parent_id}"'
            if self._parent_remote:
                members += ',"parent_is_remote":true'
        return members

    def _outcome(self, *, cut: bool = False) -> str:
        """Give the members of a record's data that tell the status, and what was dropped."""
        members = ""
        if self._status is not _UNSET:
            status = {"code": self._status.name}
            if self._description is not None:
                status["description"] = self._description[:_SHORT] if cut else self._description
            members = f',"status":{dumps(status)}'
        if self._dropped or self._dropped_events or self._dropped_links:
            counts = {"attributes": self._dropped, "events": self._dropped_events, "links": self._dropped_links}
            members += f',"dropped":{dumps({name: count for name, count in counts.items() if count})}'
        return members

    def _cut_collections(self, attributes: dict[str, Any], events: Sequence[dict[str, Any]]) -> str:
        encoded, count = cut_largest(attributes, events, self._links, _MAX_PART - _CUT_ROOM)
        self._recorder.span_cut(count)
        return named(encoded)

    def _more_members(self) -> str:
        turn = "" if self._turn is None else f',"ipchash":{dumps(self._turn)}'
        return turn + self.members


def _append(
    items: Sequence[dict[str, Any]], item: dict[str, Any], limit: int | None
) -> tuple[Sequence[dict[str, Any]], int]:
    """Give the items with one more, and how many of the oldest were dropped for it."""
    more = [*items, item]
    if limit is None or len(more) <= limit:
        return more, 0
    return more[len(more) - limit :], len(more) - limit


def _stack_of(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # Its class may make it impossible to show.
        return f"{type(error).__name__}: no stack trace can be made of it"
