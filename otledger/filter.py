"""Which records are wanted: one set of conditions for the reader, the command line and all that follow."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from otledger import speed
from otledger.errors import ConfigurationError, EventRefused
from otledger.record import Record, format_time, parse_time

_RELATIVE = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h|d|w)", re.ASCII)
_UNITS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
    "w": 604_800_000_000_000,
}
_WILDCARD = re.compile(r"[*?\[]")
_DATE = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d))?)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Conditions that a record has to meet, all of them; None: any.

    `type` is a shell pattern (`order.*`). `since` (inclusive) and `until` (exclusive) are nanoseconds since
    the epoch. `text` is searched in the line as stored, in any case. `control` lets otledger's own records in.
    `id` is an event's own; `span_id` is that of the span that a record was emitted in or is about; `digest` is that
    of an `otel.resource` record.

    Raises `ConfigurationError` for a window that ends before it begins, and for a trace or span id that is none.
    """

    type: str | None = None
    source: str | None = None
    subject: str | None = None
    ipc_hash: str | None = None
    trace_id: str | None = None
    since: int | None = None
    until: int | None = None
    text: str | None = None
    control: bool = True
    id: str | None = None
    span_id: str | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        if self.since is not None and self.until is not None and self.since > self.until:
            raise ConfigurationError(
                f"the window ends before it begins: it is since {_shown(self.since)}, until {_shown(self.until)};"
                " swap the two"
            )
        _check_hex("trace id", self.trace_id, 32)
        _check_hex("span id", self.span_id, 16)

    @property
    def rare(self) -> bytes | None:
        """What each wanted line holds and few others do, if there is such a thing."""
        keys = (self.id, self.span_id, self.trace_id, self.ipc_hash)
        return next((value.encode() for value in keys if value and _is_literal(value)), None)

    def compile(self) -> tuple[Callable[[bytes], bool] | None, Callable[[Record], bool] | None]:
        """Give a test of a line's bytes that lets no wanted one out, and one of the record; None: no test."""
        prefix = _WILDCARD.split(self.type, maxsplit=1)[0] if self.type is not None else None
        needles = [
            value.encode()
            for value in (
                *(prefix, self.source, self.subject, self.ipc_hash),
                *(self.trace_id, self.id, self.span_id, self.digest),
            )
            if value and _is_literal(value)
        ]
        text = self.text.lower() if self.text else None
        conditions = self._conditions()
        return _line_test(needles, text), _record_test(conditions)

    def _conditions(self) -> list[Callable[[Record], bool]]:
        tests: list[Callable[[Record], bool]] = []
        if self.type is not None:
            tests.append(_type_test(self.type))
        if self.source is not None:
            tests.append(lambda record: record.source == self.source)
        if self.subject is not None:
            tests.append(lambda record: record.subject == self.subject)
        if self.ipc_hash is not None:
            tests.append(lambda record: record.ipc_hash == self.ipc_hash)
        if self.trace_id is not None:
            tests.append(lambda record: record.trace_id == self.trace_id)
        if self.id is not None:
            tests.append(lambda record: record.id == self.id)
        if self.span_id is not None:
            tests.append(lambda record: record.span_id == self.span_id)
        if self.digest is not None:
            tests.append(lambda record: record.digest == self.digest)
        if self.since is not None or self.until is not None:
            since = -math.inf if self.since is None else self.since
            until = math.inf if self.until is None else self.until
            tests.append(_time_test(since, until))
        if not self.control:
            tests.append(lambda record: not record.type.startswith(("otledger.", "otel.resource")))
        return tests


def _time_test(since: float, until: float) -> Callable[[Record], bool]:
    instant = speed.instant or parse_time

    def test(record: Record) -> bool:
        ns = instant(record.time)
        return since <= (ns if ns is not None else parse_time(record.time) or 0) < until

    return test


def _type_test(pattern: str) -> Callable[[Record], bool]:
    prefix = pattern.removesuffix("*")
    if prefix != pattern and not _WILDCARD.search(prefix):
        # Twice as fast as a regular expression.
        return lambda record: record.type.startswith(prefix)
    matches = re.compile(fnmatch.translate(pattern)).match
    return lambda record: matches(record.type) is not None


def _is_literal(value: str) -> bool:
    """Tell whether a line that holds this text holds these characters: nothing in it is ever escaped."""
    return value.isascii() and value.isprintable() and '"' not in value and "\\" not in value


def _shown(ns: int) -> str:
    try:
        return format_time(ns)
    except EventRefused:
        return f"{ns} ns"


def _check_hex(what: str, value: str | None, digits: int) -> None:
    if value is not None and re.fullmatch(f"[0-9a-f]{{{digits}}}", value) is None:
        raise ConfigurationError(f"{value!r} is no {what}: it must be {digits} lower-case hex digits")


def _line_test(needles: list[bytes], text: str | None) -> Callable[[bytes], bool] | None:
    if text is None:
        if len(needles) == 1:
            # Three times as fast as a loop over one.
            (only,) = needles
            return lambda line: only in line
        return (lambda line: all(needle in line for needle in needles)) if needles else None
    if text.isascii():
        wanted = text.encode()
        return lambda line: all(needle in line for needle in needles) and wanted in line.lower()
    return lambda line: all(needle in line for needle in needles) and text in line.decode(errors="replace").lower()


def _record_test(tests: list[Callable[[Record], bool]]) -> Callable[[Record], bool] | None:
    if not tests:
        return None
    if len(tests) == 1:
        return tests[0]
    return lambda record: all(test(record) for test in tests)


def parse_when(text: str, now: int) -> int:
    """Give an instant in nanoseconds since the epoch.

    `text` is RFC 3339, a date (`2026-11-21`, `2026-11`: its beginning in UTC), `now`, or a time before `now`
    such as `90s`, `15m`, `2h`, `3d`, `1w`. Raises `ConfigurationError` for anything else.
    """
    text = text.strip()
    if text == "now":
        return now
    relative = _RELATIVE.fullmatch(text)
    if relative is not None:
        return now - int(float(relative[1]) * _UNITS[relative[2]])
    date = _DATE.fullmatch(text)
    if date is not None:
        text = f"{date[1]}-{date[2] or '01'}-{date[3] or '01'}T00:00:00Z"
    elif "T" in text.upper() and not re.search(r"(?:Z|[+-]\d\d:\d\d)\Z", text, re.IGNORECASE):
        text += "Z"
    instant = parse_time(text)
    if instant is None:
        raise ConfigurationError(
            f"{text!r} is no time: give 2h, 15m, 3d, now, a date (2026-11-21) or RFC 3339 (2026-11-21T03:00:00Z)"
        )
    return instant
