"""A record as a line of text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from otledger.cli.output import Paint, duration_text, safe
from otledger.record import Record

DATA_SHOWN = 2_000
"""Characters of a payload that are shown; JSON output has all of it."""
HASH_SHOWN = 12


class Renderer:
    """Makes lines of text of records. `long` shows ids, hashes and times in full, `raw` escapes nothing.

    `mark` gives what stands for a payload that is encrypted, and whose key is not at hand.
    """

    def __init__(self, paint: Paint, *, mark: Callable[[Record], str], long: bool = False, raw: bool = False) -> None:
        self._mark = mark
        self._paint = paint
        self._long = long
        self._safe: Callable[[str], str] = str if raw else safe

    def line(self, record: Record) -> str:
        """Give the line of a record, without its LF."""
        paint = self._paint
        fields = [
            paint.dim(self._time(record.time)),
            self._safe(record.machine),
            paint.bold(self._safe(record.type)),
        ]
        if record.subject is not None:
            fields.append(paint.cyan(self._safe(record.subject)))
        fields += self._payload(record)
        fields += [paint.dim(self._safe(f"{name}={value}")) for name, value in self._links(record)]
        return "  ".join(fields)

    def _time(self, text: str) -> str:
        # Milliseconds are enough to read, and what is shown can be given to --since.
        short = not self._long and len(text) == 30 and text.endswith("Z")
        return self._safe(f"{text[:23]}Z" if short else text)

    def _payload(self, record: Record) -> list[str]:
        if record.type in ("otel.span.start", "otel.span.end"):
            return self._span(record)
        raw = record.plain
        if raw is None:
            return [self._paint.yellow(self._mark(record))]
        return [self._safe(_cut(raw))] if raw else []

    def _span(self, record: Record) -> list[str]:
        from otledger import values
        from otledger.replay import span_of

        span = span_of(record)
        fields = [self._safe(span.name)]
        if span.end is not None:
            fields.append(duration_text(max(0, span.end - span.start)))
        if span.status == "ERROR":
            fields.append(self._paint.red("ERROR"))
        if span.attributes:
            fields.append(self._safe(_cut(values.encode(span.attributes))))
        return fields

    def _links(self, record: Record) -> list[tuple[str, str]]:
        links: list[tuple[str, Any]] = [("turn", record.ipc_hash)]
        if not self._long:
            return [(name, f"{value[:HASH_SHOWN]}") for name, value in links if value]
        links += [("trace", record.trace_id), ("span", record.span_id), ("source", record.source)]
        links += [(name, str(value)) for name, value in record.extensions.items()]
        links += [("seq", str(record.seq)), ("id", record.id)]
        return [(name, value) for name, value in links if value]


def _cut(raw: bytes) -> str:
    text = raw[: DATA_SHOWN * 4].decode("utf-8", "replace")
    if len(text) <= DATA_SHOWN and len(raw) <= DATA_SHOWN * 4:
        return text
    return f"{text[:DATA_SHOWN]}… ({len(raw):,} bytes; all of it by --json)"
