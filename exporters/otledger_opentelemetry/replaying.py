"""Replay: the spans and logs of a ledger, handed to an exporter of the SDK."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, detach, set_value
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otledger.errors import ConfigurationError, LedgerError
from otledger.reader import Reader
from otledger.record import now_ns

from .selecting import Item, Selection

log = logging.getLogger("otledger")

BATCH = 512
"""Spans or logs in an export, as the SDK's batch processors have it."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between two tries of an export that failed."""


class ReplayFailed(LedgerError):
    """The exporter refused a batch at every try. The cursor names what was sent before."""


@dataclass(slots=True)
class ReplayReport:
    """What a replay did."""

    spans: int = 0
    logs: int = 0
    refused: int = 0
    """Records that the exporter could not encode, or refused each on its own."""
    skipped: int = 0
    """Records that tell of no span or log."""
    seconds: float = 0.0


class ReplayCursor(msgspec.Struct):
    """How far a replay got: for each machine the `seq` up to which all is sent."""

    sent: dict[str, int] = {}

    @classmethod
    def load(cls, path: Path) -> ReplayCursor:
        """Give the cursor of a file, an empty one where there is none. Raises `ConfigurationError`."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            return cls()
        except msgspec.MsgspecError as error:
            raise ConfigurationError(f"{path} is no cursor of a replay: {error}; remove it to begin anew") from None

    def save(self, path: Path) -> None:
        """Write the cursor, durable on return."""
        unfinished = path.with_name(path.name + ".new")
        with open(unfinished, "wb") as file:
            file.write(msgspec.json.encode(self))
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)


def replay(
    source: Reader | str | Path,
    exporter: SpanExporter | LogRecordExporter | None = None,
    *,
    logs: LogRecordExporter | None = None,
    selection: Selection | None = None,
    machines: Sequence[str] | None = None,
    cursor: Path | None = None,
    batch: int = BATCH,
    speed: float | None = None,
    tries: int = 5,
    on_progress: Callable[[ReplayReport, int], None] | None = None,
) -> ReplayReport:
    """Send what `selection` picks through `exporter` (spans) and `logs`, and give what was done.

    Each (trace, span) is sent once. `cursor` is a file that is kept up: a replay that was stopped goes on there.
    `speed` replays in the recorded rhythm, that many times as fast; None: as fast as it goes. An export that
    fails is tried again, with a growing pause, up to `tries` times; of a batch that cannot be encoded only the
    records at fault are left out, and counted. The exporters are not shut down. `on_progress` is called after each
    batch with the report so far and the bytes of lines read.
    Raises `ReplayFailed`, `ConfigurationError`, `RootError`.
    """
    span_exporter = exporter if isinstance(exporter, SpanExporter) else None
    log_exporter = logs if logs is not None else exporter if isinstance(exporter, LogRecordExporter) else None
    chosen = selection or Selection()
    chosen.spans, chosen.logs = chosen.spans and span_exporter is not None, chosen.logs and log_exporter is not None

    def progress(report: ReplayReport) -> None:
        if on_progress is not None:
            on_progress(report, chosen.read)

    run = _Run(span_exporter, log_exporter, cursor, tries, progress)
    reader = source if isinstance(source, Reader) else Reader(source)
    began = time.monotonic()
    # An exporter that is instrumented itself must not make spans of its own sending.
    token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        for items in _batches(_paced(run.unsent(chosen.items(reader, machines)), speed), batch):
            run.send(items)
    finally:
        detach(token)
        run.report.skipped = len(chosen.skipped)
        run.report.seconds = time.monotonic() - began
    return run.report


class _Run:
    def __init__(
        self,
        spans: SpanExporter | None,
        logs: LogRecordExporter | None,
        cursor: Path | None,
        tries: int,
        on_progress: Callable[[ReplayReport], object],
    ) -> None:
        self.report = ReplayReport()
        self._spans = spans
        self._logs = logs
        self._path = cursor
        self._cursor = ReplayCursor.load(cursor) if cursor is not None else ReplayCursor()
        self._tries = tries
        self._on_progress = on_progress

    def unsent(self, items: Iterator[Item]) -> Iterator[Item]:
        sent = dict(self._cursor.sent)
        return (item for item in items if item.record.seq >= sent.get(item.record.machine, 0))

    def send(self, items: list[Item]) -> None:
        """Send a batch of one machine, and note that in the cursor."""
        for spans in (True, False):
            some = [item for item in items if isinstance(item.signal, ReadableSpan) is spans]
            if some:
                self._send_or_split(some)
        machine, sent = items[0].record.machine, self._cursor.sent
        # Unfinished spans come last, and are older than what was sent before them.
        sent[machine] = max(sent.get(machine, 0), *(item.record.seq + 1 for item in items))
        if self._path is not None:
            self._cursor.save(self._path)
        self._on_progress(self.report)

    def _send_or_split(self, items: list[Item]) -> None:
        try:
            self._try(items)
        except ReplayFailed:
            raise
        except Exception as error:  # The encoder refuses a whole batch for one record: find it.
            if len(items) == 1:
                self.report.refused += 1
                record = items[0].record
                log.warning("%s, seq %d cannot be encoded and is left out: %s", record.machine, record.seq, error)
                return
            middle = len(items) // 2
            self._send_or_split(items[:middle])
            self._send_or_split(items[middle:])

    def _try(self, items: list[Item]) -> None:
        pause = FIRST_PAUSE
        for attempt in range(1, self._tries + 1):
            if self._export([item.signal for item in items]):
                return
            if attempt < self._tries:
                log.warning("the exporter took none of %d records; next try in %.1f s", len(items), pause)
                time.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
        record = items[0].record
        raise ReplayFailed(
            f"the exporter refused {len(items)} records from {record.machine}, seq {record.seq} on,"
            f" {self._tries} times; see whether the endpoint is up and takes them"
        )

    def _export(self, signals: list[Any]) -> bool:
        if isinstance(signals[0], ReadableSpan):
            assert self._spans is not None
            done = self._spans.export(signals) is SpanExportResult.SUCCESS
            self.report.spans += len(signals) if done else 0
        else:
            assert self._logs is not None
            done = self._logs.export(signals) is LogRecordExportResult.SUCCESS
            self.report.logs += len(signals) if done else 0
        return done


def _paced(items: Iterator[Item], speed: float | None) -> Iterator[Item]:
    """Give the items in the rhythm of their records, `speed` times as fast."""
    first: int | None = None
    began = now_ns()
    for item in items:
        if speed is not None:
            instant = item.record.time_ns
            first = instant if first is None else first
            due = began + (instant - first) / speed
            delay = (due - now_ns()) / 1e9
            if delay > 0:
                time.sleep(delay)
        yield item


def _batches(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    """Cut into batches of one machine."""
    batch: list[Item] = []
    for item in items:
        if batch and (len(batch) >= size or item.record.machine != batch[0].record.machine):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def close(*exporters: Any) -> None:
    """Shut exporters down, whatever each of them raises."""
    for exporter in exporters:
        if exporter is not None:
            with contextlib.suppress(Exception):
                exporter.shutdown()
