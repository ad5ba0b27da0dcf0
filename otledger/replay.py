"""Replay: records in, spans out. Pure, but for `process_state`, which asks the kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from otledger.record import Record


@dataclass(frozen=True, slots=True)
class ReplayedSpan:
    """A span as its records tell it. Times are nanoseconds since the epoch; `end` is None while unfinished."""

    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: str
    kind: str
    start: int
    end: int | None
    machine: str
    service: str
    """The source that recorded it."""
    ipc_hash: str | None
    status: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    events: tuple[Mapping[str, Any], ...] = ()
    links: tuple[Mapping[str, Any], ...] = ()
    process: Mapping[str, Any] | None = None
    """Of an unfinished span: the process that it began in (`pid`, `started`, `boot`)."""


class Replay:
    """Rebuilds spans from records, which may come in any order and more than once.

    Holds the spans that have begun and not ended, and the ids of those that ended before their beginning was
    seen.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], ReplayedSpan] = {}
        self._ended: set[tuple[str, str]] = set()

    def feed(self, record: Record) -> ReplayedSpan | None:
        """Take a record; give the span if it is one's end, and was not seen before."""
        if record.type not in ("otel.span.start", "otel.span.end"):
            return None
        span = span_of(record)
        key = span.trace_id, span.span_id
        if record.type == "otel.span.start":
            if key not in self._ended:
                self._open.setdefault(key, span)
            return None
        if key in self._ended:
            return None
        self._ended.add(key)
        self._open.pop(key, None)
        return span

    def unfinished(self) -> list[ReplayedSpan]:
        """Give the spans that began and did not end in what was fed, by their start."""
        return sorted(self._open.values(), key=lambda span: span.start)


def span_of(record: Record) -> ReplayedSpan:
    """Give the span that a start or end record tells of."""
    data = record.data if isinstance(record.data, dict) else {}
    status = data.get("status")
    return ReplayedSpan(
        trace_id=record.trace_id or "",
        span_id=record.span_id or "",
        parent_span_id=data.get("parent_span_id"),
        name=str(data.get("name")),
        kind=data.get("kind", "INTERNAL"),
        start=_integer(data.get("start")),
        end=_integer(data.get("end")) if record.type == "otel.span.end" else None,
        machine=record.machine,
        service=record.source,
        ipc_hash=record.ipc_hash,
        status=status.get("code", "UNSET") if isinstance(status, dict) else "UNSET",
        attributes=data.get("attributes") or {},
        events=tuple(data.get("events") or ()),
        links=tuple(data.get("links") or ()),
        process=data.get("process"),
    )


def _integer(value: object) -> int:
    return value if isinstance(value, int) else 0


def process_state(process: Mapping[str, Any] | None, boot: str) -> str:
    """Tell what became of the process of an unfinished span: `running`, `died`, or `unknown`.

    `boot` is this host's boot id: only a process of this host can be asked after. Another boot is `unknown`
    too, for the record does not say whether it was of this host.
    """
    if not process or process.get("boot") != boot:
        return "unknown"
    try:
        with open(f"/proc/{int(process['pid'])}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except FileNotFoundError:
        return "died"
    except (OSError, KeyError, TypeError, ValueError):
        return "unknown"
    # A number that was given to another process since then, or a process that nobody has waited for yet.
    if int(fields[19]) != process.get("started") or fields[0] in (b"Z", b"X"):
        return "died"
    return "running"
