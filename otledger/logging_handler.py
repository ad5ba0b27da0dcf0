"""A `logging.Handler` that records log records as events, and what other logging libraries need to do the same."""

from __future__ import annotations

import functools
import logging
import re
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from otledger.errors import EventRefused, JournalError, LedgerClosed, LowSpace, QueueFull
from otledger.record import check_type
from otledger.view import BaseView
from otledger.writer import log, text_of

TYPE = "log.{level}"
"""The type of a log record's event: `{level}` is its level's name in lower case."""

Entry = tuple[str, dict[str, Any], int | None]
"""Level, data, and when it happened (ns since the epoch; None: now)."""

_LATE = 1_000_000
"""Nanoseconds: a record that is handed over later, by a queue for example, keeps its own time."""
_LONGEST = 10_000
"""Characters that are kept of a text where a record is cut."""
_MOST = 100
"""Members that are kept where a record is cut."""


class Recording:
    """Records events for a logging library, from any thread. Raises nothing, and does not record itself.

    What the queue refuses is counted as dropped, and an `otledger.gap` record says so. What comes while the
    ledger is not open is counted in `lost`, and the first of a series is warned of.
    """

    def __init__(self, ledger: BaseView, type: str = TYPE) -> None:
        check_type(_type_of(type, "info"))
        self.lost = 0
        self._ledger = ledger
        self._type = type
        self._here = threading.local()
        self._warned = False

    def record(self, describe: Callable[[], Entry]) -> None:
        """Queue the event that `describe` gives. On return the data is copied."""
        # A processor, or an argument's `__str__`, may log in its turn.
        if getattr(self._here, "busy", False):
            self._drop("logged while a log record was recorded")
            return
        self._here.busy = True
        try:
            self._emit(*describe())
            self._warned = False
        except Exception as error:
            self._note(error)
        finally:
            self._here.busy = False

    def _emit(self, level: str, data: dict[str, Any], when: int | None) -> None:
        type = _type_of(self._type, level)
        try:
            self._ledger.emit_nowait(type, data, time=when)
        except EventRefused as error:
            self._ledger.emit_nowait(type, _cut(data, error))

    def _note(self, error: Exception) -> None:
        if isinstance(error, LedgerClosed):
            self._lose(error)
        elif isinstance(error, QueueFull):
            self._drop("queue full")
        elif isinstance(error, JournalError):
            self._drop("writing fails")
        elif not isinstance(error, LowSpace):
            # For lack of space it is counted already.
            self._drop("log record refused")

    def _drop(self, reason: str) -> None:
        try:
            self._ledger._core.writer.drop(reason)
        except LedgerClosed as error:
            self._lose(error)

    def _lose(self, error: LedgerClosed) -> None:
        self.lost += 1
        if not self._warned:
            self._warned = True
            with suppress(Exception):
                log.warning("log records are not recorded: %s", error)


class LoggingHandler(logging.Handler):
    """A handler that records each log record as an event `log.<level>`, linked to the current span and turn.

    `ledger` is an open ledger, or a view of one with defaults; `level` the least level; `type` the events' type,
    in which `{level}` stands for the level's name in lower case. Data has `message`, `logger`, `level`,
    `module`, `function`, `line`, the exception, and under `extra` what the caller added.

    It works from any thread, waits for nothing and raises nothing. On return of the log call the event is
    accepted, everything in it formatted and copied; what the queue refuses is counted as dropped. Records of
    otledger's own logger are left to other handlers. Raises `EventRefused` for a type that is not allowed.
    """

    def __init__(self, ledger: BaseView, level: int | str = logging.NOTSET, *, type: str = TYPE) -> None:
        super().__init__(level)
        self._recording = Recording(ledger, type)

    @property
    def lost(self) -> int:
        """How many records came while the ledger was not open."""
        return self._recording.lost

    def handle(self, record: logging.LogRecord) -> bool:
        """Emit the record if the filters keep it. A filter that raises keeps it."""
        # Without the handler's lock: nothing here needs it, and what runs may take locks of the program's own.
        try:
            kept: Any = self.filter(record)
        except Exception:
            kept = True
        if kept:
            self.emit(kept if isinstance(kept, logging.LogRecord) else record)
        return bool(kept)

    def emit(self, record: logging.LogRecord) -> None:
        """Record a log record."""
        if not is_own(record.name):
            self._recording.record(lambda: _describe(record))


def is_own(name: object) -> bool:
    """Tell whether a logger is otledger's own: what it says about a ledger must not feed that ledger."""
    return name == "otledger" or (isinstance(name, str) and name.startswith("otledger."))


def exception_members(error: BaseException) -> dict[str, Any]:
    """Give an exception as members of data: `exception.type`, `.message` and `.stacktrace`."""
    try:
        stack = "".join(traceback.format_exception(error))
    except Exception:
        stack = ""
    return {
        "exception.type": type_name(error),
        "exception.message": text_of(error),
        "exception.stacktrace": stack,
    }


def type_name(error: BaseException) -> str:
    """Give the qualified name of an exception's class."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


_OWN_MEMBERS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _describe(record: logging.LogRecord) -> Entry:
    data: dict[str, Any] = {}
    try:
        data["message"] = record.getMessage()
    except Exception:
        # Arguments that do not fit the message: both are kept as they are.
        data |= {"message": record.msg, "args": record.args}
    data |= {"logger": record.name, "level": record.levelname}
    data |= {"module": record.module, "function": record.funcName, "line": record.lineno}
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if error is not None:
        data |= exception_members(error)
    elif record.exc_text:
        # Of a record that came through a queue.
        data["exception.stacktrace"] = record.exc_text
    if record.stack_info:
        data["stack"] = record.stack_info
    extra = {name: value for name, value in vars(record).items() if name not in _OWN_MEMBERS}
    if extra:
        data["extra"] = extra
    created = int(record.created * 1e9)
    late = abs(time.time_ns() - created) > _LATE
    return str(record.levelname), data, created if late else None


@functools.lru_cache(256)
def _type_of(template: str, level: str) -> str:
    return template.replace("{level}", re.sub(r"[^\w.-]+", "-", level.lower())[:100])


def _cut(data: dict[str, Any], why: EventRefused) -> dict[str, Any]:
    """Give what a line has room for of data that is too large or too deep: its plain members."""
    kept: dict[str, Any] = {}
    for name, value in data.items():
        if len(kept) < _MOST and isinstance(name, str) and isinstance(value, str | int | float):
            kept[name[:_LONGEST]] = value[:_LONGEST] if isinstance(value, str) else value
    return {**kept, "cut": str(why)[:_LONGEST]}
