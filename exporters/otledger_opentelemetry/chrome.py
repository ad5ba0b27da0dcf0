"""Spans in Chrome's trace format, which Perfetto and chrome://tracing show."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan


def write_chrome_trace(
    path: Path | None, spans: Iterable[ReadableSpan], on_skip: Callable[[ReadableSpan, Exception], None] | None = None
) -> int:
    """Write spans as a file that Perfetto and chrome://tracing open; None: to stdout. Gives how many.

    A service is a process there, a trace a thread, both named; spans of a trace that overlap without one being inside
    the other get further threads. A span's events are instants. A span that cannot be shown, because it has no times,
    is handed to `on_skip` and left out.
    Source: the Trace Event Format, JSON object form with "X", "i" and "M" events; times in microseconds.
    """
    count, names = 0, _Names()
    with contextlib.nullcontext(sys.stdout) if path is None else open(path, "w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
        separator = ""
        for span in spans:
            try:
                events = names.events(span)
            except (TypeError, ValueError, AttributeError, OverflowError) as error:
                if on_skip is not None:
                    on_skip(span, error)
                continue
            count += 1
            for event in events:
                file.write(separator + json.dumps(event, allow_nan=False))
                separator = ",\n"
        file.write("\n]}\n")
    return count


class _Names:
    """Numbers for services and traces, named in the file when they are first met."""

    def __init__(self) -> None:
        self._processes: dict[str, int] = {}
        self._threads: dict[tuple[int, int, int], int] = {}
        self._lanes: dict[tuple[int, int], list[_Lane]] = {}

    def events(self, span: ReadableSpan) -> list[dict[str, Any]]:
        """Give what stands for a span. Raises TypeError, ValueError, AttributeError, OverflowError."""
        context = span.get_span_context()
        assert context is not None
        start = _instant(span.start_time)
        end = max(start, _instant(span.end_time))
        shown = [
            {"ph": "X", "name": str(span.name), "cat": _name_of(span.kind).lower(), "ts": start / 1000}
            | {"dur": (end - start) / 1000, "args": _arguments(span.attributes) | _identity(span)}
        ]
        shown += [
            {"ph": "i", "s": "t", "name": str(event.name), "ts": _instant(event.timestamp) / 1000}
            | {"args": _arguments(event.attributes)}
            for event in span.events
        ]
        found = self._process(span.resource.attributes)
        pid = found[-1]["pid"] if found else self._processes[_process_name(span.resource.attributes)]
        named, tid = self._thread(pid, context.trace_id, start, end)
        return [*found, *named, *({**event, "pid": pid, "tid": tid} for event in shown)]

    def _process(self, attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
        name = _process_name(attributes)
        if name in self._processes:
            return []
        pid = self._processes[name] = len(self._processes) + 1
        return [{"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}]

    def _thread(self, pid: int, trace_id: int, start: int, end: int) -> tuple[list[dict[str, Any]], int]:
        lanes = self._lanes.setdefault((pid, trace_id), [])
        at = next((at for at, lane in enumerate(lanes) if lane.takes(start, end)), len(lanes))
        if at == len(lanes):
            lanes.append(_Lane())
            lanes[at].takes(start, end)
        thread = pid, trace_id, at
        known = thread in self._threads
        tid = self._threads.setdefault(thread, len(self._threads) + 1)
        name = f"trace {trace_id:032x}" + (f" ({at + 1})" if at else "")
        named = [] if known else [{"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}]
        return named, tid


class _Lane:
    """A thread of the viewer: its spans are one inside the other, or apart. They come as they end, about."""

    def __init__(self) -> None:
        self._outermost: list[tuple[int, int]] = []

    def takes(self, start: int, end: int) -> bool:
        """Put a span here if it fits."""
        outermost = self._outermost
        inside = len(outermost)
        while inside and outermost[inside - 1][0] >= start and outermost[inside - 1][1] <= end:
            inside -= 1
        if inside and outermost[inside - 1][1] > start:
            # Before the end of one that is not inside of it: right only inside of that one.
            return inside == len(outermost) and outermost[-1][0] <= start and end <= outermost[-1][1]
        del outermost[inside:]
        outermost.append((start, end))
        return True


def _instant(ns: Any) -> int:
    if not isinstance(ns, int) or not 0 <= ns < 1 << 64:
        raise ValueError(f"a time of it is {ns!r}")
    return ns


def _name_of(kind: Any) -> str:
    return str(getattr(kind, "name", kind))


def _process_name(attributes: Mapping[str, Any]) -> str:
    service, pid = str(attributes.get("service.name", "unknown")), attributes.get("process.pid")
    return service if pid is None else f"{service} ({pid})"


def _arguments(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {str(key): _shown(value) for key, value in (attributes or {}).items()}


def _identity(span: ReadableSpan) -> dict[str, Any]:
    context, parent = span.get_span_context(), span.parent
    found = {"span_id": f"{context.span_id:016x}"} if context is not None else {}
    if parent is not None:
        found["parent_span_id"] = f"{parent.span_id:016x}"
    return {**found, "status": _name_of(span.status.status_code) if span.status else "UNSET"}


def _shown(value: Any) -> Any:
    return value if isinstance(value, str | bool | int) or value is None else repr(value)
