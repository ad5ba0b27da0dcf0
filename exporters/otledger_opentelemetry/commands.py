"""What the commands `replay` and `export chrome-trace` do."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opentelemetry.sdk._logs.export import ConsoleLogRecordExporter, LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter, SpanExportResult

from otledger.cli.app import CORRUPT, NO_MATCH, OK, Failed
from otledger.cli.intake import send_warnings_to_stderr
from otledger.cli.output import Progress, counted, note, out, out_json
from otledger.errors import FormatError
from otledger.filter import Filter
from otledger.reader import Reader

from . import replaying
from .chrome import write_chrome_trace
from .needs import needed
from .refusals import Refusals
from .selecting import Selection

STDOUT = "-"
SHOWN = 20
"""So many of the records that could not be read are named."""

_OTLP = {
    "http": "opentelemetry.exporter.otlp.proto.http",
    "grpc": "opentelemetry.exporter.otlp.proto.grpc",
}
_PROTOCOLS = {"http": "http", "http/protobuf": "http", "grpc": "grpc"}


class _NoSpans(SpanExporter):
    """Takes spans and keeps none, for `--dry-run`."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


class _NoLogs(LogRecordExporter):
    """Takes log records and keeps none, for `--dry-run`."""

    def export(self, batch: Sequence[Any]) -> LogRecordExportResult:
        return LogRecordExportResult.SUCCESS

    def shutdown(self) -> None:
        return

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


class Replaying:
    """One run of a command: what it picks, and where that goes."""

    def __init__(self, root: Path, filter: Filter, **selected: Any) -> None:
        self._reader = Reader(root)
        self._selection = Selection(filter, **selected)
        self._spans: SpanExporter | None = None
        self._logs: LogRecordExporter | None = None
        self._refused = Refusals(note)
        self._dry = False
        self._one_by_one = False

    def choose(
        self, to: str, logs_to: str | None, *, endpoint: str | None, protocol: str | None, dry_run: bool, json: bool
    ) -> None:
        """Make the exporters. Raises `Failed` where a package is missing or a choice makes no sense."""
        self._dry = dry_run
        _check_choice(to, logs_to, endpoint, json=json and not dry_run)
        if to == "otlp":
            chosen = _protocol(protocol)
            if not dry_run:
                self._spans, self._logs = self._otlp(endpoint, chosen)
        elif to == "console":
            self._spans, self._logs = ConsoleSpanExporter(), ConsoleLogRecordExporter()
            # What it wrote of a batch before it met what it cannot write would be written again.
            self._one_by_one = True
        else:
            self._spans = _file_exporter("JsonSpanExporter", to)
        if logs_to is not None:
            self._logs = _file_exporter("JsonLogExporter", logs_to)
        if dry_run:
            takes_logs = self._logs is not None or to == "otlp"
            self._spans, self._logs = _NoSpans(), _NoLogs() if takes_logs else None

    def run(
        self, machines: Sequence[str] | None, *, speed: float | None, cursor: Path | None, batch: int, json: bool
    ) -> int:
        """Replay, and say what was done. Gives the exit code."""
        send_warnings_to_stderr()
        # What its exporters say is part of our own lines.
        sdk = logging.getLogger("opentelemetry")
        sdk.addHandler(logging.NullHandler())
        sdk.propagate = False
        failed: replaying.ReplayFailed | None = None
        with Progress("replay") as draw:
            total = _size(self._reader, machines) if draw is not None else 0

            def progress(so_far: replaying.ReplayReport, read: int) -> None:
                if draw is not None:
                    draw(read, total)

            try:
                report = replaying.replay(
                    self._reader,
                    self._spans,
                    logs=self._logs,
                    selection=self._selection,
                    machines=machines,
                    cursor=cursor,
                    move_cursor=not self._dry,
                    batch=1 if self._one_by_one else batch,
                    speed=speed,
                    on_progress=progress,
                )
            except replaying.ReplayFailed as error:
                failed, report = error, error.report
            finally:
                replaying.close(self._spans, self._logs)
        return self._say(report, failed, json=json)

    def _say(self, report: replaying.ReplayReport, failed: replaying.ReplayFailed | None, *, json: bool) -> int:
        report.spans -= self._refused.spans
        report.logs -= self._refused.logs
        report.refused += self._refused.spans + self._refused.logs
        self._say_skipped()
        why = None
        if failed is not None:
            why = self._explain(failed)
            note(why)
        if json:
            problems = [str(problem) for problem in self._selection.skipped]
            out_json({**dataclasses.asdict(report), "dry_run": self._dry, "failed": why, "problems": problems})
        elif failed is None or report.spans or report.logs:
            note(self._summary(report))
        if failed is not None:
            return NO_MATCH
        return CORRUPT if report.skipped else NO_MATCH if report.refused else OK

    def _explain(self, failed: replaying.ReplayFailed) -> str:
        endpoint = getattr(self._logs if failed.logs else self._spans, "_endpoint", None)
        text = f"{endpoint}: {failed}" if isinstance(endpoint, str) else str(failed)
        if not failed.logs:
            return text
        return f"{text}, or leave logs out by --no-logs, or put them elsewhere by --logs-to FILE"

    def _summary(self, report: replaying.ReplayReport) -> str:
        verb = "would be sent" if self._dry else "sent"
        text = f"{counted(report.spans, 'span')} and {counted(report.logs, 'log record')} {verb}"
        left = [f"{report.refused:,} refused"] * bool(report.refused)
        left += [f"{report.skipped:,} that could not be read"] * bool(report.skipped)
        return ", ".join([f"{text} in {report.seconds:.1f} s", *left])

    def _say_skipped(self) -> None:
        problems = self._selection.skipped
        for problem in problems[:SHOWN]:
            note(str(problem))
        if len(problems) > SHOWN:
            note(f"and {len(problems) - SHOWN:,} more; see: otledger verify")

    def chrome(self, destination: str, machines: Sequence[str] | None, *, json: bool) -> int:
        """Write Chrome's trace format. Gives the exit code."""
        to_stdout = destination == STDOUT
        if to_stdout and json:
            raise Failed("--json and - both write to stdout; give a file for the trace")
        self._selection.logs = False
        # Found before the file is made: a ledger that is not there must leave none.
        self._reader.machines()
        items = self._selection.items(self._reader, machines)
        spans = (item.signal for item in items if isinstance(item.signal, ReadableSpan))
        count = write_chrome_trace(None if to_stdout else Path(destination), spans, self._skip)
        self._say_skipped()
        if json:
            problems = [str(problem) for problem in self._selection.skipped]
            out_json({"file": destination, "spans": count, "problems": problems})
        else:
            line = f"{counted(count, 'span')}; open it in https://ui.perfetto.dev or chrome://tracing"
            note(line) if to_stdout else out(f"{destination}: {line}")
        return CORRUPT if self._selection.skipped else OK

    def _skip(self, span: ReadableSpan, error: Exception) -> None:
        context = span.get_span_context()
        where = f"span {context.span_id:016x} of trace {context.trace_id:032x}" if context is not None else "a span"
        self._selection.skipped.append(FormatError(f"{where} cannot be shown, and is left out: {error}"))

    def _otlp(self, endpoint: str | None, protocol: str) -> tuple[SpanExporter, LogRecordExporter]:
        package = f"opentelemetry-exporter-otlp-proto-{protocol}"
        traces = needed(f"{_OTLP[protocol]}.trace_exporter", package)
        logs = needed(f"{_OTLP[protocol]}._log_exporter", package)
        if protocol == "grpc":
            given: dict[str, Any] = {}
            if endpoint is not None:
                given = {"endpoint": endpoint, "insecure": not endpoint.startswith("https://")}
            spans, records = traces.OTLPSpanExporter(**given), logs.OTLPLogExporter(**given)
            self._refused.listen_to(spans, logs=False)
            self._refused.listen_to(records, logs=True)
            return spans, records
        to_traces: dict[str, Any] = {"session": self._refused.session(logs=False)}
        to_logs: dict[str, Any] = {"session": self._refused.session(logs=True)}
        if endpoint is not None:
            if not endpoint.startswith(("http://", "https://")):
                raise Failed(f"--endpoint {endpoint!r} is no URL; give one such as http://127.0.0.1:4318")
            base = endpoint.rstrip("/").removesuffix("/v1/traces").removesuffix("/v1/logs")
            to_traces["endpoint"], to_logs["endpoint"] = f"{base}/v1/traces", f"{base}/v1/logs"
        return traces.OTLPSpanExporter(**to_traces), logs.OTLPLogExporter(**to_logs)


def _check_choice(to: str, logs_to: str | None, endpoint: str | None, *, json: bool) -> None:
    """Raise `Failed` where options contradict each other."""
    if to == "":
        raise Failed("--to is empty; give otlp, console, a file, or - for stdout")
    if to == logs_to:
        raise Failed(f"--to and --logs-to are both {to}; OTLP/JSON has one signal a file: give another for the logs")
    if endpoint is not None and to != "otlp":
        raise Failed("--endpoint is for --to otlp; give one of them")
    if json and STDOUT in (to, logs_to):
        raise Failed("--json and - both write to stdout; give a file for the data")
    if json and to == "console":
        raise Failed("--json and --to console both write to stdout; give one of them")


def _protocol(given: str | None) -> str:
    """Give `http` or `grpc`. Raises `Failed`."""
    variable = "OTEL_EXPORTER_OTLP_PROTOCOL"
    name, value = ("--protocol", given) if given is not None else (variable, os.environ.get(variable) or "http")
    if value not in _PROTOCOLS:
        raise Failed(f"{name} {value!r} is unknown; there are: {', '.join(_PROTOCOLS)}")
    return _PROTOCOLS[value]


def _file_exporter(name: str, path: str) -> Any:
    return getattr(needed("otledger_opentelemetry.files"), name)(None if path == STDOUT else Path(path))


def _size(reader: Reader, machines: Sequence[str] | None) -> int:
    """Give the bytes of the segments that are read, for the progress bar."""
    names = reader.machines() if machines is None else machines
    return sum(path.stat().st_size for name in names for path in (reader.root / name).glob("*.jsonl"))
