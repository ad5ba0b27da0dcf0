"""Replay: the spans and logs of a ledger, handed to an exporter of the SDK."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, detach, set_value
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otledger.errors import LedgerError
from otledger.reader import Reader

from .hearing import Heard
from .places import Place
from .selecting import Item, Selection

log = logging.getLogger("otledger")

BATCH = 512
"""Spans or logs in an export, as the SDK's batch processors have it."""
BATCH_BYTES = 2 << 20
"""Bytes of lines in an export: half of what a gRPC server takes by default."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between two tries of an export that failed."""
PATIENCE = 20.0
"""Seconds after which no further try is begun. The SDK's OTLP exporters try for up to ten seconds at each."""
RHYTHM = 0.05
"""Seconds by which something may be sent early, so that what is close together goes together."""
HOPELESS = 32
"""After so many refusals by an endpoint that took nothing yet the fault is not with the records."""

# What an endpoint answers that cannot take these records, and would not take them later.
_UNFIT = frozenset(("400", "413", "422", "INVALID_ARGUMENT"))
# What it answers whatever is sent.
_CLOSED = frozenset(
    ("401", "403", "404", "405", "406", "415", "501", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED")
)


class ReplayFailed(LedgerError):
    """The exporter refused a batch at every try. The cursor names what was sent before; `report` counts it."""

    def __init__(self, message: str, *, logs: bool = False) -> None:
        super().__init__(message)
        self.logs = logs
        """Whether it was a batch of log records."""
        self.report = ReplayReport()


@dataclass(slots=True)
class ReplayReport:
    """What a replay did."""

    spans: int = 0
    logs: int = 0
    refused: int = 0
    """Records that the exporter could not encode, or refused each on its own."""
    skipped: int = 0
    """Records that could not be read, or tell of no span or log."""
    seconds: float = 0.0


def replay(
    source: Reader | str | Path,
    exporter: SpanExporter | LogRecordExporter | None = None,
    *,
    logs: LogRecordExporter | None = None,
    selection: Selection | None = None,
    machines: Sequence[str] | None = None,
    cursor: Path | None = None,
    move_cursor: bool = True,
    batch: int = BATCH,
    speed: float | None = None,
    tries: int = 5,
    patience: float = PATIENCE,
    on_progress: Callable[[ReplayReport, int], None] | None = None,
) -> ReplayReport:
    """Send what `selection` picks through `exporter` (spans) and `logs`, and give what was done.

    Each (trace, span) is sent once. `cursor` is a file that is kept up: a replay that was stopped goes on there;
    with `move_cursor=False` it is read only. `speed` replays in the recorded rhythm, that many times as fast;
    None: as fast as it goes. An export that fails is tried again, with a growing pause, up to `tries` times and for
    about `patience` seconds; of a batch that cannot be encoded, or is refused for what it holds, only the records
    at fault are left out, and counted. The exporters are flushed before the cursor moves, and are not shut down.
    `on_progress` is called after each batch with the report so far and the bytes of lines read.
    Raises `ReplayFailed`, `ConfigurationError`, `RootError`, `OSError` for a cursor that cannot be written.
    """
    span_exporter = exporter if isinstance(exporter, SpanExporter) else None
    log_exporter = logs if logs is not None else exporter if isinstance(exporter, LogRecordExporter) else None
    chosen = selection or Selection()
    chosen.spans, chosen.logs = chosen.spans and span_exporter is not None, chosen.logs and log_exporter is not None
    place = Place(cursor, chosen.chains, move=move_cursor)
    run = _Run(span_exporter, log_exporter, place, tries, patience)
    reader = source if isinstance(source, Reader) else Reader(source)
    items = place.unsent(chosen.items(reader, machines, dict(place.cursor.sent)))
    began = time.monotonic()
    # An exporter that is instrumented itself must not make spans of its own sending.
    token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        with run.heard.listening_to(span_exporter, log_exporter):
            for some in _batches(items, batch, _Clock(speed) if speed is not None else None):
                run.send(some)
                if on_progress is not None:
                    on_progress(run.report, chosen.read)
        if chosen.unfinished and chosen.spans:
            place.forget_ended()
    except ReplayFailed as error:
        error.report = run.report
        raise
    finally:
        detach(token)
        run.report.skipped = len(chosen.skipped)
        run.report.seconds = time.monotonic() - began
    return run.report


class _Unfit(Exception):
    """A batch cannot be encoded, or is refused for what it holds. `str` says why."""

    def __init__(self, reason: str, *, by_endpoint: bool) -> None:
        super().__init__(reason)
        self.by_endpoint = by_endpoint


class _Run:
    def __init__(
        self,
        spans: SpanExporter | None,
        logs: LogRecordExporter | None,
        place: Place,
        tries: int,
        patience: float,
    ) -> None:
        self.report = ReplayReport()
        self.heard = Heard()
        self._spans = spans
        self._logs = logs
        self._place = place
        self._tries = tries
        self._patience = patience
        self._rejected = 0

    def send(self, items: list[Item]) -> None:
        """Send a batch, and note that in the cursor. Raises `ReplayFailed`."""
        for spans in (True, False):
            some = [item for item in items if isinstance(item.signal, ReadableSpan) is spans]
            if some:
                self._deliver(some)
        if self._rejected:
            self._give_up_if_hopeless(items, at_least=1)
        if self._place.is_kept:
            self._flush(items)
            self._place.moved(items)

    def _flush(self, items: list[Item]) -> None:
        """Have the exporters keep nothing back, so that the cursor may pass over it."""
        for exporter in (self._spans, self._logs):
            # Older exporters of logs have no such method.
            flush = getattr(exporter, "force_flush", None)
            if flush is not None and flush() is False:
                raise self._failed(items, "it kept some of them back, and could not flush them in time")

    def _deliver(self, items: list[Item]) -> None:
        """Send these, without those that are at fault."""
        try:
            self._try(items)
        except _Unfit as unfit:
            if len(items) == 1:
                self._leave_out(items[0], unfit)
                return
            # The encoder, or the endpoint, refuses a whole batch for one record: find it.
            middle = len(items) // 2
            self._deliver(items[:middle])
            self._deliver(items[middle:])

    def _leave_out(self, item: Item, unfit: _Unfit) -> None:
        self.report.refused += 1
        record = item.record
        why = "is refused by the endpoint" if unfit.by_endpoint else "cannot be encoded"
        log.warning("%s, seq %d %s and is left out: %s", record.machine, record.seq, why, unfit)
        if unfit.by_endpoint:
            self._rejected += 1
            self._give_up_if_hopeless([item], at_least=HOPELESS)

    def _give_up_if_hopeless(self, items: list[Item], at_least: int) -> None:
        if self._rejected >= at_least and not self.report.spans + self.report.logs:
            raise self._failed(items, "it refused each of them on its own")

    def _try(self, items: list[Item]) -> None:
        """Send these, in several tries. Raises `_Unfit`, `ReplayFailed`."""
        pause, began = FIRST_PAUSE, time.monotonic()
        for attempt in range(1, self._tries + 1):
            self.heard.clear()
            if self._export(items):
                return
            if attempt == 1 and (why := _why_unencodable(items)):
                raise _Unfit(why, by_endpoint=False)
            code = self.heard.code
            if code in _UNFIT:
                raise _Unfit(self.heard.reason, by_endpoint=True)
            seconds = time.monotonic() - began
            if code in _CLOSED or attempt == self._tries or seconds + pause > self._patience:
                tried = "once" if attempt == 1 else f"{attempt} times"
                raise self._failed(items, f"{self.heard.reason or 'it does not say why'} (tried {tried})")
            log.info("the exporter took none of %d records; next try in %.1f s", len(items), pause)
            time.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _failed(self, items: list[Item], why: str) -> ReplayFailed:
        record, spans = items[0].record, isinstance(items[0].signal, ReadableSpan)
        what = "span" if spans else "log record"
        return ReplayFailed(
            f"the exporter took none of {len(items)} {what}{'s' * (len(items) > 1)} from {record.machine},"
            f" seq {record.seq} on: {why}; see whether the endpoint is up and takes them",
            logs=not spans,
        )

    def _export(self, items: list[Item]) -> bool:
        try:
            return self._hand_over([item.signal for item in items])
        except (LedgerError, BrokenPipeError):
            raise
        except OSError as error:
            self.heard.say(str(error))
            return False
        except Exception as error:
            raise _Unfit(f"{type(error).__name__}: {error}", by_endpoint=False) from None

    def _hand_over(self, signals: list[Any]) -> bool:
        if isinstance(signals[0], ReadableSpan):
            assert self._spans is not None
            done = self._spans.export(signals) is SpanExportResult.SUCCESS
            self.report.spans += len(signals) if done else 0
        else:
            assert self._logs is not None
            done = self._logs.export(signals) is LogRecordExportResult.SUCCESS
            self.report.logs += len(signals) if done else 0
        return done


def _why_unencodable(items: Sequence[Item]) -> str:
    """Say why the SDK's encoder refuses a batch; its exporters only say that an export failed. Empty: it does not."""
    try:
        from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
        from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    except ImportError:
        return ""
    encode: Any = encode_spans if isinstance(items[0].signal, ReadableSpan) else encode_logs
    try:
        encode([item.signal for item in items])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


class _Clock:
    """Says how long to wait for a record's turn."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._first: int | None = None
        self._began = 0.0

    def delay(self, item: Item) -> float:
        """Give the seconds until this is due, at most 0 where it is."""
        instant = item.record.time_ns
        if self._first is None:
            self._first, self._began = instant, time.monotonic()
        return self._began + (instant - self._first) / 1e9 / self._speed - time.monotonic()


def _batches(items: Iterator[Item], size: int, clock: _Clock | None) -> Iterator[list[Item]]:
    """Cut into batches, each given when it is due."""
    batch: list[Item] = []
    count = 0
    for item in items:
        length = len(item.record.line)
        early = clock is not None and clock.delay(item) > RHYTHM
        if batch and (len(batch) >= size or count + length > BATCH_BYTES or early):
            yield batch
            batch, count = [], 0
        if clock is not None and early:
            # Sending took some of the time.
            time.sleep(max(0.0, clock.delay(item)))
        batch.append(item)
        count += length
    if batch:
        yield batch


def close(*exporters: Any) -> None:
    """Shut exporters down, whatever each of them raises."""
    for exporter in exporters:
        if exporter is not None:
            with contextlib.suppress(Exception):
                exporter.shutdown()
