"""What the commands `replay` and `export chrome-trace` do."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opentelemetry.sdk._logs.export import ConsoleLogRecordExporter, LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter, SpanExportResult

from otledger.cli.app import NO_MATCH, OK, REFUSED, Failed
from otledger.cli.intake import send_warnings_to_stderr
from otledger.cli.output import Progress, counted, note, out, out_json
from otledger.filter import Filter
from otledger.reader import Reader

from . import replaying
from .selecting import Selection

_OTLP = {
    "http": "opentelemetry.exporter.otlp.proto.http",
    "grpc": "opentelemetry.exporter.otlp.proto.grpc",
}


class _Nowhere(SpanExporter, LogRecordExporter):
    """Takes everything and keeps nothing, for `--dry-run`."""

    def export(self, items: Any) -> Any:
        return SpanExportResult.SUCCESS if isinstance(items[0], ReadableSpan) else LogRecordExportResult.SUCCESS

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
        self._dry = False

    def choose(self, to: str, logs_to: str | None, *, endpoint: str | None, protocol: str, dry_run: bool) -> None:
        """Make the exporters. Raises `Failed` where a package is missing or a choice is unknown."""
        self._dry = dry_run
        if dry_run:
            self._spans = self._logs = _Nowhere()
        elif to == "console":
            self._spans, self._logs = ConsoleSpanExporter(), ConsoleLogRecordExporter()
        elif to == "otlp":
            self._spans, self._logs = _otlp(endpoint, protocol)
        else:
            files = _imported("otledger_opentelemetry.files")
            self._spans = files.JsonSpanExporter(None if to == "-" else Path(to))
        if logs_to is not None and not dry_run:
            self._logs = _imported("otledger_opentelemetry.files").JsonLogExporter(Path(logs_to))

    def run(
        self, machines: Sequence[str] | None, *, speed: float | None, cursor: Path | None, batch: int, json: bool
    ) -> int:
        """Replay, and say what was done. Gives the exit code."""
        send_warnings_to_stderr()
        report = replaying.ReplayReport()
        with Progress("replay") as draw:
            total = _size(self._reader, machines)

            def progress(so_far: replaying.ReplayReport, read: int) -> None:
                nonlocal report
                report = so_far
                if draw is not None:
                    draw(read, total)

            try:
                report = replaying.replay(
                    self._reader,
                    self._spans,
                    logs=self._logs,
                    selection=self._selection,
                    machines=machines,
                    cursor=None if self._dry else cursor,
                    batch=batch,
                    speed=speed,
                    on_progress=progress,
                )
            except replaying.ReplayFailed as error:
                note(str(error))
                self._say(report, json)
                return NO_MATCH
            finally:
                replaying.close(self._spans, self._logs)
        self._say(report, json)
        return NO_MATCH if report.refused or report.skipped else OK

    def _say(self, report: replaying.ReplayReport, json: bool) -> None:
        for problem in self._selection.skipped[:20]:
            note(str(problem))
        if json:
            out_json({**dataclasses.asdict(report), "dry_run": self._dry})
            return
        verb = "would be sent" if self._dry else "sent"
        text = f"{counted(report.spans, 'span')} and {counted(report.logs, 'log record')} {verb}"
        left = [f"{report.refused:,} refused"] * bool(report.refused)
        left += [f"{report.skipped:,} that could not be read"] * bool(report.skipped)
        note(", ".join([f"{text} in {report.seconds:.1f} s", *left]))

    def chrome(self, destination: Path, machines: Sequence[str] | None) -> int:
        """Write Chrome's trace format. Gives the exit code."""
        files = _imported("otledger_opentelemetry.files")
        self._selection.logs = False
        spans = (item.signal for item in self._selection.items(self._reader, machines))
        count = files.write_chrome_trace(destination, spans)
        out(f"{destination}: {counted(count, 'span')}; open it in https://ui.perfetto.dev or chrome://tracing")
        for problem in self._selection.skipped[:20]:
            note(str(problem))
        return REFUSED if self._selection.skipped else OK


def _otlp(endpoint: str | None, protocol: str) -> tuple[SpanExporter, LogRecordExporter]:
    package = _OTLP.get(protocol)
    if package is None:
        raise Failed(f"--protocol {protocol!r} is unknown; there are: {', '.join(_OTLP)}")
    traces = _imported(f"{package}.trace_exporter", f"opentelemetry-exporter-otlp-proto-{protocol}")
    logs = _imported(f"{package}._log_exporter", f"opentelemetry-exporter-otlp-proto-{protocol}")
    if endpoint is None:
        return traces.OTLPSpanExporter(), logs.OTLPLogExporter()
    if protocol == "grpc":
        insecure = not endpoint.startswith("https://")
        return (
            traces.OTLPSpanExporter(endpoint=endpoint, insecure=insecure),
            logs.OTLPLogExporter(endpoint=endpoint, insecure=insecure),
        )
    base = endpoint.rstrip("/").removesuffix("/v1/traces").removesuffix("/v1/logs")
    return traces.OTLPSpanExporter(endpoint=f"{base}/v1/traces"), logs.OTLPLogExporter(endpoint=f"{base}/v1/logs")


def _imported(module: str, package: str = "otledger[otlp]") -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Failed(f"this needs more packages ({error}); install them: pip install '{package}'") from None


def _size(reader: Reader, machines: Sequence[str] | None) -> int:
    """Give the bytes of the segments that are read, for the progress bar."""
    names = reader.machines() if machines is None else machines
    return sum(path.stat().st_size for name in names for path in (reader.root / name).glob("*.jsonl"))
