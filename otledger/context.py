"""The current span and the current turn, in OpenTelemetry's own context.

A span of otledger is the current OpenTelemetry span, and the other way round, so that instrumented libraries
nest rightly; the turn lies beside it and goes wherever the context goes.
"""

from __future__ import annotations

from contextvars import Token

from opentelemetry import context as context_api
from opentelemetry.context.context import Context
from opentelemetry.trace import Span
from opentelemetry.trace.propagation import _SPAN_KEY

_TURN_KEY = context_api.create_key("otledger-turn")

# The runtime's own attach and detach: `context.detach` swallows the ValueError of a token from another context,
# and logs a traceback.
_runtime = context_api._RUNTIME_CONTEXT

current = getattr(getattr(_runtime, "_current_context", None), "get", _runtime.get_current)
"""Gives the current context; of the usual runtime the context variable's own method, which costs a quarter."""
attach = _runtime.attach


def current_turn(context: Context) -> str | None:
    """Give the `ipc_hash` of the turn that `context` is in."""
    turn = context.get(_TURN_KEY)
    return turn if isinstance(turn, str) else None


def with_turn(context: Context, ipc_hash: str) -> Context:
    """Give `context` with the turn set."""
    return Context({**context, _TURN_KEY: ipc_hash})


def with_span(context: Context, span: Span) -> Context:
    """Give `context` with `span` as the current one."""
    return Context({**context, _SPAN_KEY: span} if context else {_SPAN_KEY: span})


def span_in(context: Context) -> Span | None:
    """Give the current span of `context`, or None."""
    span = context.get(_SPAN_KEY)
    return span if isinstance(span, Span) else None


def leave_span(token: Token[Context], span: Span, parent: Span | None) -> bool:
    """Make current again what was so before `span`. False: it is left out of order.

    That happens to an async generator that is closed elsewhere, or while a later span is current. In another
    context only the span is put back; other values, such as baggage, are left alone. A later span stays.
    """
    here = current()
    if here.get(_SPAN_KEY) is not span:
        return False
    try:
        _runtime.detach(token)
    except ValueError:
        attach(with_span(here, parent) if parent is not None else _without(here, _SPAN_KEY))
        return False
    return True


def leave_turn(token: Token[Context], ipc_hash: str, before: str | None) -> None:
    """Make the turn current again that was so before, unless another one is current by now."""
    here = current()
    if current_turn(here) != ipc_hash:
        return
    try:
        _runtime.detach(token)
    except ValueError:
        attach(with_turn(here, before) if before is not None else _without(here, _TURN_KEY))


def _without(context: Context, key: str) -> Context:
    return Context({name: value for name, value in context.items() if name != key})
