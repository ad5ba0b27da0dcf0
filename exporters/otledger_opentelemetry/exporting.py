"""The exporters: what the SDK hands over is durable in the ledger when `export` returns."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from .processing import LedgerSpanProcessor, recorded
from .settings import Sink, resolve

log = logging.getLogger("otledger")

EXPORT_TIMEOUT = 30.0
"""Seconds that `export` waits for the disk; what it could not write by then stays queued."""
CLOSE_TIMEOUT = 10.0


class LedgerSpanExporter(SpanExporter):
    """Stores ended spans; they are as durable as configured when `export` returns.

    Settings are those of `otledger.Config` as keyword arguments, `OTEL_OTLEDGER_…` or `OTLEDGER_…` variables.
    Made by the SDK because of `OTEL_TRACES_EXPORTER=otledger` it installs a `LedgerSpanProcessor` on the global
    provider, which records spans as they start and end, and then stores nothing a second time.
    Raises `RootError`, `FormatError`, `ConfigurationError`.
    """

    def __init__(self, **settings: Any) -> None:
        self._processor: LedgerSpanProcessor | None = None
        provider = trace.get_tracer_provider()
        if not settings and asked_for("OTEL_TRACES_EXPORTER") and isinstance(provider, TracerProvider):
            self._processor = LedgerSpanProcessor.install(provider)
            self._sink = self._processor.sink
        else:
            self._sink = Sink(resolve(**settings))

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Store the spans that no processor of ours has recorded."""
        # Of another provider, where a processor was installed on the global one.
        others = [span for span in spans if not recorded(span)]
        if self._processor is not None and not others:
            return SpanExportResult.SUCCESS
        stored = True
        for span in others:
            try:
                stored &= self._sink.put(self._sink.recorder.span_end(span))
            except Exception as error:  # One span's oddity must not cost its batch.
                stored = False
                self._sink.lose("span could not be encoded", error)
        return SpanExportResult.SUCCESS if self._sink.drain(EXPORT_TIMEOUT) and stored else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Write what is queued, and close."""
        if self._processor is None:
            self._sink.release(CLOSE_TIMEOUT)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Write what is queued. False: not all of it in time."""
        return self._sink.drain(timeout_millis / 1000)


class LedgerLogExporter(LogRecordExporter):
    """Stores log records; they are as durable as configured when `export` returns. Settings as of the span exporter."""

    def __init__(self, **settings: Any) -> None:
        self._sink = Sink(resolve(**settings))

    def export(self, batch: Sequence[Any]) -> LogRecordExportResult:
        """Store the log records."""
        stored = True
        for record in batch:
            try:
                stored &= self._sink.put(self._sink.recorder.log(record))
            except Exception as error:  # One record's oddity must not cost its batch.
                stored = False
                self._sink.lose("log record could not be encoded", error)
        done = self._sink.drain(EXPORT_TIMEOUT) and stored
        return LogRecordExportResult.SUCCESS if done else LogRecordExportResult.FAILURE

    def shutdown(self) -> None:
        """Write what is queued, and close."""
        self._sink.release(CLOSE_TIMEOUT)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Write what is queued. False: not all of it in time."""
        return self._sink.drain(timeout_millis / 1000)


def asked_for(variable: str) -> bool:
    """Tell whether a variable of the SDK names this exporter."""
    return "otledger" in [name.strip() for name in os.environ.get(variable, "").split(",")]
