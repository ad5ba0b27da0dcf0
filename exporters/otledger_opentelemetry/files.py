"""Spans and logs in files: OTLP/JSON lines, which a collector's `otlpjsonfile` receiver reads, and Chrome's format."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from . import otlp_json

MAX_LINE = 1 << 20
"""The receiver's limit for a line, in bytes; a batch beyond it is halved."""


class _Lines:
    """Appends lines to a file; each is with the operating system when `write` returns."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def write(self, encode: Any, items: Sequence[Any]) -> None:
        line = otlp_json.dumps(encode(items)) + b"\n"
        if len(line) > MAX_LINE and len(items) > 1:
            middle = len(items) // 2
            self.write(encode, items[:middle])
            self.write(encode, items[middle:])
            return
        if self._file is None:
            self._file = sys.stdout.buffer if self._path is None else open(self._path, "ab")  # noqa: SIM115
        self._file.write(line)
        self._file.flush()

    def close(self) -> None:
        if self._file is not None and self._path is not None:
            self._file.close()
            self._file = None


class JsonSpanExporter(SpanExporter):
    """Writes one `TracesData` object a line, to a file that is appended to, or to stdout."""

    def __init__(self, path: Path | None = None) -> None:
        self._lines = _Lines(path)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write the spans. Raises what the SDK's encoder raises."""
        self._lines.write(encode_spans, spans)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the file."""
        self._lines.close()


class JsonLogExporter(LogRecordExporter):
    """Writes one `LogsData` object a line, to a file that is appended to, or to stdout."""

    def __init__(self, path: Path | None = None) -> None:
        self._lines = _Lines(path)

    def export(self, batch: Sequence[Any]) -> LogRecordExportResult:
        """Write the log records. Raises what the SDK's encoder raises."""
        self._lines.write(encode_logs, batch)
        return LogRecordExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the file."""
        self._lines.close()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Do nothing: `export` leaves nothing behind."""
        return True


def write_chrome_trace(path: Path, spans: Iterable[ReadableSpan]) -> int:
    """Write spans as a file that Perfetto and chrome://tracing open. Gives how many.

    A service is a process there, a trace a thread, both named; a span's events are instants.
    Source: the Trace Event Format, JSON array form with "X", "i" and "M" events; times in microseconds.
    """
    count, names = 0, _Names()
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
        separator = ""
        for span in spans:
            count += 1
            for event in names.events(span):
                file.write(separator + json.dumps(event))
                separator = ",\n"
        file.write("\n]}\n")
    return count


class _Names:
    """Numbers for services and traces, named in the file when they are first met."""

    def __init__(self) -> None:
        self._processes: dict[str, int] = {}
        self._threads: dict[tuple[int, int], int] = {}

    def events(self, span: ReadableSpan) -> Iterator[dict[str, Any]]:
        context = span.get_span_context()
        assert context is not None
        service = str(span.resource.attributes.get("service.name", "unknown"))
        instance = span.resource.attributes.get("process.pid")
        process_name = service if instance is None else f"{service} ({instance})"
        new = process_name not in self._processes
        pid = self._processes.setdefault(process_name, len(self._processes) + 1)
        if new:
            yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": process_name}}
        thread = pid, context.trace_id
        new = thread not in self._threads
        tid = self._threads.setdefault(thread, len(self._threads) + 1)
        if new:
            name = f"trace {context.trace_id:032x}"
            yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}
        start, end = span.start_time or 0, span.end_time or span.start_time or 0
        where = {"pid": pid, "tid": tid}
        args = {key: _shown(value) for key, value in (span.attributes or {}).items()}
        args |= {
            "span_id": f"{context.span_id:016x}",
            "status": span.status.status_code.name if span.status else "UNSET",
        }
        yield {"ph": "X", "name": str(span.name), "cat": span.kind.name.lower(), "ts": start / 1000} | {
            "dur": max(0, end - start) / 1000,
            **where,
            "args": args,
        }
        for event in span.events:
            shown = {key: _shown(value) for key, value in (event.attributes or {}).items()}
            yield {"ph": "i", "s": "t", "name": str(event.name), "ts": event.timestamp / 1000, **where, "args": shown}


def _shown(value: Any) -> Any:
    return value if isinstance(value, str | bool | int) or value is None else repr(value)
