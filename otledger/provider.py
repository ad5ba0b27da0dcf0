"""Spans of the ledger beside the OpenTelemetry SDK's: its sampler decides, its other processors get them too.

The SDK is never imported here unless a program has set its provider.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from otledger.version import VERSION

if TYPE_CHECKING:
    from otledger.span import Span

log = logging.getLogger("otledger")

RECORDED = "_otledger_recorded"
"""Set on a span of the SDK that is in the ledger already, so that no exporter of ours stores it again."""


def sdk_provider() -> Any:
    """Give the global tracer provider if it is the SDK's, else None."""
    provider = trace._TRACER_PROVIDER
    if not hasattr(provider, "sampler") or not hasattr(provider, "_active_span_processor"):
        return None
    # OTEL_SDK_DISABLED: its processors get nothing from the SDK either.
    return None if getattr(provider, "_disabled", False) else provider


def begin(provider: Any, span: Span, forward: bool) -> None:
    """Let the provider's sampler decide the flag of a root span, and tell its processors of a sampled one."""
    if span.parent_span_id is None:
        _sample(provider, span)
    if forward and span.trace_flags & 1:
        for processor in _others(provider):
            try:
                processor.on_start(span, parent_context=span._parent_context)
            except Exception:  # A processor may need what only spans of the SDK have.
                log.debug("a span processor failed at the start of a span of the ledger", exc_info=True)


def end(provider: Any, span: Span) -> None:
    """Hand a sampled span that has ended to the provider's other processors."""
    others = _others(provider)
    if not others:
        return
    readable = span.to_readable(provider.resource, _scope())
    setattr(readable, RECORDED, True)
    for processor in others:
        try:
            processor.on_end(readable)
        except Exception as error:
            log.warning("a span processor failed at the end of a span of the ledger: %s", error)


def _sample(provider: Any, span: Span) -> None:
    """Set a root span's flag, and what the sampler adds: attributes, the trace state."""
    try:
        links = span._given_links or ()
        result = provider.sampler.should_sample(
            span._parent_context, int(span.trace_id, 16), span.name, span.kind, dict(span.attributes), links
        )
        span.trace_flags = 1 if result.decision.is_sampled() else 0
        span.set_attributes({key: value for key, value in result.attributes.items() if key not in span.attributes})
        span._trace_state = result.trace_state or None
    except Exception as error:  # A sampler's mistake must not reach the program: the span is recorded either way.
        log.warning("the provider's sampler failed: %s", error)


def _others(provider: Any) -> list[Any]:
    processors = getattr(provider._active_span_processor, "_span_processors", ())
    return [processor for processor in processors if not getattr(processor, "records_in_otledger", False)]


def _scope() -> Any:
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    return InstrumentationScope("otledger", VERSION)
