"""A structlog processor that records what is logged, and passes it on."""

from __future__ import annotations

import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

from otledger.logging_handler import TYPE, Entry, Recording, exception_members, is_own
from otledger.view import BaseView

_LEVELS = {"warn": "warning", "exception": "error", "msg": "info", "log": "info"}
"""Of methods that are not named like their level."""


class LedgerProcessor:
    """A structlog processor that records each event dict as an event `log.<level>`, and passes it on unchanged.

    Put it before the renderer. `ledger` is an open ledger, or a view of one with defaults; `type` the events'
    type, in which `{level}` stands for the level's name. Data is the event dict as it is then, copied, without
    structlog's own members (`_record`); `exc_info` becomes `exception.type`, `.message` and `.stacktrace`.

    It works from any thread, waits for nothing and raises nothing; what the queue refuses is counted as dropped.
    Raises `EventRefused` for a type that is not allowed.
    """

    def __init__(self, ledger: BaseView, *, type: str = TYPE) -> None:
        self._recording = Recording(ledger, type)

    @property
    def lost(self) -> int:
        """How many events came while the ledger was not open."""
        return self._recording.lost

    def __call__(self, logger: Any, method: str, event_dict: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        # In `foreign_pre_chain` records of the standard library's loggers pass here too.
        name = getattr(event_dict.get("_record"), "name", None) or event_dict.get("logger")
        if not is_own(name):
            self._recording.record(lambda: _describe(method, event_dict))
        return event_dict


def _describe(method: str, event_dict: Mapping[str, Any]) -> Entry:
    data = {name: value for name, value in event_dict.items() if name != "exc_info" and not str(name).startswith("_")}
    error = _error_of(event_dict.get("exc_info"))
    if error is not None:
        data |= exception_members(error)
    return str(event_dict.get("level") or _LEVELS.get(method, method)), data, None


def _error_of(given: Any) -> BaseException | None:
    """Give the exception that `exc_info` means: itself, the second of a tuple, or the current one if true."""
    if isinstance(given, tuple):
        given = given[1] if len(given) == 3 else None
    elif given and not isinstance(given, BaseException):
        given = sys.exc_info()[1]
    return given if isinstance(given, BaseException) else None
