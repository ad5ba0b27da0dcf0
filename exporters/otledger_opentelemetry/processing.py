"""The processor that records spans when they start and when they end."""

from __future__ import annotations

import os
import signal
import threading
from types import MethodType
from typing import Any

from opentelemetry.context.context import Context
from opentelemetry.sdk.trace import (
    ConcurrentMultiSpanProcessor,
    ReadableSpan,
    Span,
    SpanProcessor,
    TracerProvider,
)

from otledger import context as ctx
from otledger.errors import LedgerClosed
from otledger.provider import RECORDED

from .settings import Sink, flag, resolve

CLOSE_TIMEOUT = 10.0


def recorded(span: ReadableSpan) -> bool:
    """Tell whether a processor of ours has recorded this span."""
    return getattr(span, RECORDED, False) is True


def _tell_threads(active: ConcurrentMultiSpanProcessor) -> None:
    """Have processors that are called in threads told what they cannot see there: the turn, and what is recorded."""
    on_start, on_end = active.on_start, active.on_end

    def start(span: Span, parent_context: Context | None = None) -> None:
        on_start(span, ctx.current() if parent_context is None else parent_context)

    def end(span: ReadableSpan) -> None:
        # An exporter's processor may come before ours.
        setattr(span, RECORDED, True)
        on_end(span)

    active.on_start, active.on_end = start, end  # type: ignore[method-assign]


class LedgerSpanProcessor(SpanProcessor):
    """Records spans in the ledger: their end, and their start where they are open for longer than a batch.

    A span that ended is written within `flush_interval` seconds, by a thread; where the queue is full, `on_end`
    waits for a place in a thread without an event loop, and counts the span as a gap in one with a loop.
    Settings are those of `otledger.Config`. Raises `RootError`, `FormatError`, `ConfigurationError`.
    """

    records_in_otledger = True

    def __init__(self, **settings: Any) -> None:
        self.sink = Sink(resolve(**settings))
        self._start_part = self.sink.recorder.span_start
        self._end_part = self.sink.recorder.span_end

    @classmethod
    def install(cls, provider: TracerProvider, **settings: Any) -> LedgerSpanProcessor:
        """Give the provider's processor of this kind; a new one is put before all others."""
        active = provider._active_span_processor
        for processor in active._span_processors:
            if isinstance(processor, cls):
                return processor
        flushes = flag("SIGTERM", True)
        own = cls(**settings)
        provider.add_span_processor(own)
        # Before an exporter's processor, so that it finds each span marked as recorded.
        with active._lock:
            others = [processor for processor in active._span_processors if processor is not own]
            active._span_processors = (own, *others)
        if isinstance(active, ConcurrentMultiSpanProcessor):
            _tell_threads(active)
        if flushes:
            own.flush_on_sigterm()
        return own

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Have the start recorded if the span is still open when the next batch is written."""
        context = ctx.current() if parent_context is None else parent_context
        try:
            if context and (turn := ctx.current_turn(context)) is not None:
                # Shared with the object that `on_end` is given. In a table of our own what never ends would stay.
                shared: Any = span._attributes
                shared._otledger_turn = turn
            if not self.sink.closed:
                self.sink.writer.put_span(span.context.span_id, MethodType(self._start_part, span))
        except (AttributeError, LedgerClosed):
            # No span of the SDK, or it is too late: the end stands alone.
            return

    def on_end(self, span: ReadableSpan) -> None:
        """Queue the span's end record."""
        sink = self.sink
        sink.writer.end_span(span._context.span_id)  # type: ignore[union-attr]
        setattr(span, RECORDED, True)
        try:
            part = self._end_part(span)
        except Exception as error:  # A span's oddity must not reach the program.
            sink.lose("span could not be encoded", error)
            return
        writer = sink.writer
        if writer.full or sink.closed:
            sink.put(part)
            return
        # As nearly always.
        try:
            writer.put(part)
        except LedgerClosed:
            sink.put(part)

    def shutdown(self) -> None:
        """Write what is queued, and close."""
        self.sink.release(CLOSE_TIMEOUT)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Write what is queued. False: not all of it in time."""
        return self.sink.drain(timeout_millis / 1000)

    def flush_on_sigterm(self) -> bool:
        """Have SIGTERM write what is queued before it ends the process. False: somebody handles it already.

        Only in the main thread, and only over the default action.
        """
        if threading.current_thread() is not threading.main_thread():
            return False
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            return False
        signal.signal(signal.SIGTERM, self._on_sigterm)
        return True

    def _on_sigterm(self, number: int, frame: Any) -> None:
        # Not here: the main thread may have been interrupted while it holds a lock that writing needs.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        threading.Thread(target=self._drain_and_end, name="otledger-sigterm", daemon=True).start()

    def _drain_and_end(self) -> None:
        self.sink.drain(CLOSE_TIMEOUT)
        os.kill(os.getpid(), signal.SIGTERM)
