"""Spans and logs in files of OTLP/JSON lines, which a collector's `otlpjsonfile` receiver reads."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otledger.errors import LedgerError

from . import otlp_json

MAX_LINE = 1 << 20
"""The receiver's limit for a line, in bytes; a batch beyond it is halved."""


class FileFailed(LedgerError):
    """A file cannot be written."""


class _Lines:
    """Appends lines to a file; each is with the operating system when `write` returns."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._fd: int | None = None

    def write(self, encode: Any, items: Sequence[Any]) -> None:
        """Write the items as a line, or as several where one would be too long. Raises `FileFailed`."""
        line = otlp_json.dumps(encode(items)) + b"\n"
        if len(line) > MAX_LINE and len(items) > 1:
            middle = len(items) // 2
            self.write(encode, items[:middle])
            self.write(encode, items[middle:])
        elif self._path is None:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
        else:
            try:
                self._append(self._path, line)
            except OSError as error:
                raise self._failed(error) from None

    def sync(self) -> None:
        """Have what was written on the disk. Raises `FileFailed`."""
        if self._fd is None:
            return
        try:
            os.fsync(self._fd)
        except OSError as error:
            # A pipe or a device has nothing to sync.
            if error.errno not in (errno.EINVAL, errno.EROFS, errno.ENOTSUP):
                raise self._failed(error) from None

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _append(self, path: Path, line: bytes) -> None:
        if self._fd is None:
            self._fd = _open_after_last_line(path)
        size = os.fstat(self._fd).st_size
        written = 0
        try:
            while written < len(line):
                written += os.write(self._fd, line[written:])
        except OSError:
            if written and _is_regular(self._fd):
                # No half a line: it would spoil the next one.
                os.ftruncate(self._fd, size)
            raise

    def _failed(self, error: OSError) -> FileFailed:
        return FileFailed(
            f"{self._path} cannot be written: {error.strerror or error}; see the folder, its permissions (ls -ld)"
            " and its space (df -h), or give another file"
        )


def _open_after_last_line(path: Path) -> int:
    """Open a file for appending; what a killed process left of a line is ended."""
    flags = os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    # Read as well where that may be: a pipe that is open for reading too has no end.
    readable = path.is_file() or not path.exists()
    fd = os.open(path, flags | (os.O_RDWR if readable else os.O_WRONLY), 0o666)
    size = os.fstat(fd).st_size
    if readable and size and os.pread(fd, 1, size - 1) != b"\n":
        os.write(fd, b"\n")
    return fd


def _is_regular(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)


class _ToLines:
    """What both exporters do with their file."""

    def __init__(self, path: Path | None = None) -> None:
        self._lines = _Lines(path)

    def shutdown(self) -> None:
        """Close the file."""
        self._lines.close()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Have what was written on the disk. Raises `FileFailed`."""
        self._lines.sync()
        return True


class JsonSpanExporter(_ToLines, SpanExporter):
    """Writes one `TracesData` object a line, to a file that is appended to, or to stdout."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write the spans. Raises `FileFailed`, and what the SDK's encoder raises."""
        self._lines.write(encode_spans, spans)
        return SpanExportResult.SUCCESS


class JsonLogExporter(_ToLines, LogRecordExporter):
    """Writes one `LogsData` object a line, to a file that is appended to, or to stdout."""

    def export(self, batch: Sequence[Any]) -> LogRecordExportResult:
        """Write the log records. Raises `FileFailed`, and what the SDK's encoder raises."""
        self._lines.write(encode_logs, batch)
        return LogRecordExportResult.SUCCESS
