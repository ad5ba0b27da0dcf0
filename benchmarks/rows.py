"""The rows of the table, by the names that `--only` takes."""

from collections.abc import Callable

from . import looking, peaks, reading, rebuilding, sealing, sql, startup, telemetry, views, writing
from .bench import Bench
from .measure import Measurement

ROWS: dict[str, Callable[[Bench], list[Measurement]]] = {
    "emit": writing.emit,
    "append": writing.append,
    "span": writing.span,
    "lag": writing.lag,
    "stall": writing.stall,
    "growth": writing.growth,
    "open": writing.opening,
    "processes": writing.processes,
    "memory": writing.memory,
    "verify": reading.verify,
    "scan": reading.scan,
    "sealing": sealing.sealing,
    "spans": rebuilding.spans,
    "tail": reading.tail,
    "projection": views.projection,
    "stats": views.stats,
    "lookup": looking.lookup,
    "peaks": peaks.peaks,
    "startup": startup.startup,
    "sql": sql.sql,
    "sdk": telemetry.sdk,
    "lost": telemetry.lost,
    "replay": telemetry.replay,
    "receive": telemetry.receive,
}
