"""Metrics of the SDK into the ledger, as OTLP/JSON."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult

from .exporting import CLOSE_TIMEOUT, EXPORT_TIMEOUT
from .settings import Sink, resolve


class LedgerMetricExporter(MetricExporter):
    """Stores each export of metrics; it is as durable as configured when `export` returns.

    Settings as of `LedgerSpanExporter`, and the SDK's `preferred_temporality` and `preferred_aggregation`. Needs
    `otledger[otlp]`, whose encoder gives the OTLP form.
    """

    def __init__(
        self,
        preferred_temporality: dict[type, Any] | None = None,
        preferred_aggregation: dict[type, Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(preferred_temporality, preferred_aggregation)
        self._sink = Sink(resolve(**settings))

    def export(self, metrics_data: Any, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """Store the metrics of one collection."""
        from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics

        from .otlp import entries

        stored, sink = True, self._sink
        try:
            for entry in entries(encode_metrics(metrics_data), "metrics", sink.use, sink.writer.report):
                stored &= sink.put(sink.writer.journal.encoder.telemetry(*entry))
        except Exception as error:  # What cannot be encoded must not end the reader's thread.
            sink.lose("metrics could not be encoded", error)
            return MetricExportResult.FAILURE
        done = self._sink.drain(min(EXPORT_TIMEOUT, timeout_millis / 1000)) and stored
        return MetricExportResult.SUCCESS if done else MetricExportResult.FAILURE

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Write what is queued, and close."""
        self._sink.release(min(CLOSE_TIMEOUT, timeout_millis / 1000))

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Write what is queued. False: not all of it in time."""
        return self._sink.drain(timeout_millis / 1000)
