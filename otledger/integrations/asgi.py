"""ASGI middleware that records a span a request, with the trace context of W3C in and out."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from opentelemetry.context.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState

from otledger import context as ctx
from otledger.logging_handler import type_name
from otledger.span import Span
from otledger.view import BaseView
from otledger.writer import log

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"\[?([^\]]*?)\]?(?::([0-9]{1,5}))?")
_PATHS = re.compile(r"\{(\w+):path\}")
"""Parameters of a route that may hold slashes."""
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_KNOWN_FLAGS = 0x03
"""Sampled, random trace id: other bits are not passed on (W3C Trace Context, 2)."""
_STATE_LENGTH, _MEMBER_LENGTH = 512, 128
"""Characters: so much of a tracestate is kept, and members longer than this go first (W3C Trace Context, 3.3.1.5)."""
_SIGNATURES = re.compile(r"((?:^|&)(?:AWSAccessKeyId|Signature|sig|X-Goog-Signature)=)[^&]*", re.IGNORECASE)


class LedgerMiddleware:
    """ASGI middleware that records each HTTP request as a SERVER span, current while the application answers it.

    The span carries the attributes of OpenTelemetry's HTTP conventions and lasts until the application returns,
    background tasks included. It continues the trace of the request's `traceparent` and `tracestate`, and its own
    go into the response. A status of 500 or more, and an exception, which passes on, are an error. Everything but
    HTTP (lifespan, WebSocket) is handed through untouched.

    `ledger` need not be open yet: what comes while it is closed is answered all the same, and not recorded.
    """

    def __init__(self, app: App, ledger: BaseView) -> None:
        self._app = app
        self._ledger = ledger
        self._warned = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        span = self._begin(scope) if scope["type"] == "http" else None
        if span is None:
            await self._app(scope, receive, send)
            return
        trace_headers = _trace_headers(span.get_span_context())

        async def send_with_trace(message: Message) -> None:
            if message["type"] == "http.response.start":
                _note_status(span, message["status"])
                message = {**message, "headers": _added(message.get("headers", ()), trace_headers)}
            await send(message)

        error: BaseException | None = None
        try:
            await self._app(scope, receive, send_with_trace)
        except BaseException as problem:
            error = problem
            raise
        finally:
            with suppress(Exception):
                _note_route(span, scope)
            await _end(span, error)

    def _begin(self, scope: Scope) -> Span | None:
        """Begin the request's span, and make it current; None where the ledger takes none."""
        try:
            method = scope["method"] if scope["method"] in _METHODS else "HTTP"
            span = self._ledger.span(
                method, kind=SpanKind.SERVER, attributes=_attributes(scope), context=_parent_context(scope)
            )
            span.__enter__()
        except Exception as error:  # No request fails because it cannot be recorded.
            if not self._warned:
                self._warned = True
                log.warning("requests are not recorded: %s", error)
            return None
        self._warned = False
        return span


async def _end(span: Span, error: BaseException | None) -> None:
    """End the span, and raise nothing but what cancels the task."""
    if isinstance(error, Exception):
        span.set_attribute("error.type", type_name(error))
    try:
        await span.__aexit__(type(error) if error else None, error, error.__traceback__ if error else None)
    except Exception as problem:
        log.warning("a request's span was not recorded as it should be: %s", type(problem).__name__)
        with suppress(Exception):
            span.end()


# Attributes


def _attributes(scope: Scope) -> dict[str, Any]:
    """Give what OpenTelemetry's HTTP conventions say of a request that has come."""
    method, scheme = scope["method"], scope.get("scheme", "http")
    raw = scope.get("raw_path")
    found: dict[str, Any] = {
        "http.request.method": method if method in _METHODS else "_OTHER",
        "url.scheme": scheme,
        # Some servers leave the query at the raw path.
        "url.path": raw.partition(b"?")[0].decode("latin-1") if raw else quote(scope["path"]),
        "network.protocol.version": scope.get("http_version", "1.1"),
    }
    if method not in _METHODS:
        found["http.request.method_original"] = method
    if scope.get("query_string"):
        found["url.query"] = _SIGNATURES.sub(r"\1REDACTED", scope["query_string"].decode("latin-1"))
    agent = b", ".join(_values(scope, b"user-agent")).decode("latin-1")
    if agent:
        found["user_agent.original"] = agent
    found |= _addresses(scope, scheme)
    return found


def _addresses(scope: Scope, scheme: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    hosts = _values(scope, b"host")
    named = _HOST.fullmatch(hosts[0].decode("latin-1")) if len(hosts) == 1 else None
    # Of a server on a UNIX socket the port is None.
    server = scope.get("server") or ("", None)
    address, port = (named[1], named[2] or _PORTS.get(scheme)) if named and named[1] else server
    if address:
        found["server.address"] = address
        if port is not None:
            found["server.port"] = int(port)
    if scope.get("client"):
        found["client.address"], found["client.port"] = scope["client"]
    return found


def _note_status(span: Span, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_attribute("error.type", str(status))
        span.set_status(StatusCode.ERROR)


def _note_route(span: Span, scope: Scope) -> None:
    """Name the span after the route that the application's router has left in the scope."""
    route = _route_of(scope)
    if route is not None and span.is_recording():
        span.set_attribute("http.route", route)
        span.update_name(f"{span.name} {route}")


def _route_of(scope: Scope) -> str | None:
    """Give the whole path's template.

    A router below another one (a mount, an included router) knows only the end of the path: what stands before
    is taken from the path itself, with the names of parameters for their values.
    """
    route = scope.get("route")
    template = getattr(route, "path", None)
    if not isinstance(template, str):
        return None
    # A mount has routes, and what it matched is the root path by now.
    path = str(scope.get("root_path", "") if hasattr(route, "routes") else scope["path"])
    values = {name: str(value) for name, value in scope.get("path_params", {}).items()}
    slashes = template.count("/")
    for name in _PATHS.findall(template):
        slashes += values.get(name, "").count("/")
    names = {value: name for name, value in values.items() if f"{{{name}" not in template}
    parts = path.split("/")
    before = parts[: max(0, len(parts) - slashes)]
    return "/".join(f"{{{names[part]}}}" if part in names else part for part in before) + template


# Trace context


def _parent_context(scope: Scope) -> Context | None:
    """Give the context whose span is the request's parent; None: the current one."""
    remote = remote_parent(scope.get("headers", ()))
    if remote is None:
        return None
    here = ctx.current()
    current = ctx.span_in(here)
    if current is not None and current.get_span_context().trace_id == remote.trace_id:
        # Another instrumentation around this one has taken the header already.
        return None
    return ctx.with_span(here, NonRecordingSpan(remote))


def remote_parent(headers: Iterable[tuple[bytes, bytes]]) -> SpanContext | None:
    """Give the caller's span from a request's headers, or None where there is no valid `traceparent`.

    Invalid are two of them, ids that are all zeros, version ff, and what version 00 does not allow. An invalid
    `tracestate` is left out. Source: W3C Trace Context, 3.
    """
    headers = list(headers)
    given = [value for name, value in headers if name.lower() == b"traceparent"]
    match = _TRACEPARENT.fullmatch(given[0].decode("latin-1").strip(" \t")) if len(given) == 1 else None
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or not (int(trace_id, 16) and int(span_id, 16)):
        return None
    state = b",".join(value for name, value in headers if name.lower() == b"tracestate").decode("latin-1")
    known = TraceFlags(int(flags, 16) & _KNOWN_FLAGS)
    return SpanContext(int(trace_id, 16), int(span_id, 16), True, known, _state(state))


def _state(text: str) -> TraceState:
    state = TraceState.from_header([text])
    members = list(state.items())
    while sum(len(key) + len(value) + 2 for key, value in members) > _STATE_LENGTH + 1:
        long = [at for at, (key, value) in enumerate(members) if len(key) + len(value) + 1 > _MEMBER_LENGTH]
        del members[long[-1] if long else -1]
    return state if len(members) == len(state) else TraceState(members)


def _trace_headers(here: SpanContext) -> list[tuple[bytes, bytes]]:
    parent = f"00-{here.trace_id:032x}-{here.span_id:016x}-{here.trace_flags & 0xFF:02x}"
    state = here.trace_state.to_header() if here.trace_state else ""
    return [(b"traceparent", parent.encode()), *([(b"tracestate", state.encode())] if state else [])]


def _added(headers: Iterable[tuple[bytes, bytes]], more: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Give a response's headers with the trace context, unless the application has set one."""
    own = list(headers)
    if any(name.lower() == b"traceparent" for name, _ in own):
        return own
    return [*own, *more]


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope.get("headers", ()) if key.lower() == name]
