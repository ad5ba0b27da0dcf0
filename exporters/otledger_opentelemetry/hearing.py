"""Why an export failed: what the SDK's exporters log, which is all that they tell."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator

_CODE = re.compile(r"\bcode: (?:StatusCode\.)?([A-Z_]+|\d{3})\b")
_TRANSIENT = re.compile(r"Transient error (.*) encountered while")


class Heard:
    """What the SDK's exporters log, which is all that they tell of why an export failed."""

    def __init__(self) -> None:
        self._messages: list[str] = []

    @contextlib.contextmanager
    def listening_to(self, *exporters: object) -> Iterator[None]:
        """Hear what these exporters log, until the end of the block."""
        names = {kind.__module__ for exporter in exporters for kind in type(exporter).__mro__}
        loggers = [logging.getLogger(name) for name in names if name.startswith("opentelemetry.exporter.")]
        for logger in loggers:
            # As the first filter: one of the SDK's keeps back what it has let through shortly before.
            logger.filters.insert(0, self._hear)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(self._hear)

    def say(self, message: str) -> None:
        """Take what an exporter raised."""
        self._messages.append(message)

    def clear(self) -> None:
        """Forget what was said of an earlier export."""
        self._messages.clear()

    @property
    def code(self) -> str | None:
        """The code of the answer, where there was one: `400`, `INVALID_ARGUMENT`."""
        found = _CODE.search(self._messages[-1]) if self._messages else None
        return found[1] if found else None

    @property
    def reason(self) -> str:
        """Why the export failed; empty where nothing was said."""
        if not self._messages:
            return ""
        for message in reversed(self._messages):
            found = _TRANSIENT.search(message)
            if found is not None and self.code is None:
                return found[1][:300]
        return self._messages[-1][:300]

    def _hear(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            self._messages.append(record.getMessage())
        return True
