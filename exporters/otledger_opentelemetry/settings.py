"""Settings of the exporters, and the ledger's writer that they share with everything else in the process."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from otledger import writer
from otledger.config import ENVIRONMENT_PREFIX, Config
from otledger.errors import ConfigurationError, LedgerClosed, QueueFull
from otledger.ledger import in_loop
from otledger.record import Encoder
from otledger.writer import Writer

from .storing import Recorder

log = logging.getLogger("otledger")

PREFIX = "OTEL_OTLEDGER_"
_WORDS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def resolve(environ: Mapping[str, str] | None = None, **given: Any) -> Config:
    """Give the settings: `given`, then `OTEL_OTLEDGER_…`, then `OTLEDGER_…`, then the defaults of `Config`."""
    environ = os.environ if environ is None else environ
    merged = dict(environ)
    for name, value in environ.items():
        if name.startswith(PREFIX) and value:
            merged[ENVIRONMENT_PREFIX + name.removeprefix(PREFIX)] = value
    return Config.resolve(merged, **given)


def flag(name: str, default: bool, environ: Mapping[str, str] | None = None) -> bool:
    """Give a setting that is on or off, `OTEL_OTLEDGER_<name>`. Raises `ConfigurationError` for another word."""
    environ = os.environ if environ is None else environ
    text = environ.get(PREFIX + name, "").strip().lower()
    if not text:
        return default
    if text not in _WORDS:
        raise ConfigurationError(f"{PREFIX}{name}={text!r}: it must be true or false")
    return _WORDS[text]


class Sink:
    """Where one exporter or processor writes to: the process's writer for the root and machine of its settings."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.writer: Writer = writer.acquire(config)
        self.recorder = Recorder(self.writer, Encoder(config.machine, config.service))
        self.closed = False

    def put(self, part: bytes) -> bool:
        """Queue a part, waiting for a place where no event loop is held up. False: dropped, and counted as a gap."""
        own = self.writer
        if own.full and not self._has_room():
            own.drop("queue full")
            return False
        if not self.closed:
            try:
                own.put(part)
                return True
            except LedgerClosed:
                self.closed = True
        log.warning("%s: a record came after shutdown, and is not stored", self.config.root)
        return False

    def _has_room(self) -> bool:
        own = self.writer
        if own.refusing or self.config.queue_policy != "wait" or in_loop():
            return False
        try:
            own.block_for_room(self.config.queue_timeout)
        except QueueFull:
            return False
        return True

    def drain(self, timeout: float) -> bool:
        """Write what is queued, for at most `timeout` seconds. False: some of it is left, or is kept by an error."""
        return self.writer.drain(timeout) == 0

    def release(self, timeout: float) -> None:
        """Write what is queued, and give the writer back. Safe to call twice."""
        if not self.closed:
            self.closed = True
            writer.release(self.writer, timeout)
