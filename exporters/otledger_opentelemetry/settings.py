"""Settings of the exporters, and the ledger's writer that they share with everything else in the process."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from typing import Any

from otledger import writers
from otledger.config import ENVIRONMENT_PREFIX, Config
from otledger.core import in_loop
from otledger.errors import ConfigurationError, LedgerClosed, LedgerError, QueueFull
from otledger.journal import Resource
from otledger.record import Encoder
from otledger.writer import Writer

from .storing import Recorder

log = logging.getLogger("otledger")

PREFIX = "OTEL_OTLEDGER_"
_WORDS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def resolve(environ: Mapping[str, str] | None = None, **given: Any) -> Config:
    """Give the settings: `given`, then `OTEL_OTLEDGER_…`, then `OTLEDGER_…`, then the defaults of `Config`.

    Raises `ConfigurationError`.
    """
    environ = os.environ if environ is None else environ
    merged = dict(environ)
    for name, value in environ.items():
        if name.startswith(PREFIX) and value:
            merged[ENVIRONMENT_PREFIX + name.removeprefix(PREFIX)] = value
    try:
        return Config.resolve(merged, **given)
    except ConfigurationError as error:
        variable = f"OTEL_{error}".partition("=")[0]
        if not (variable.startswith(PREFIX) and environ.get(variable)):
            raise
        raise ConfigurationError(f"OTEL_{error}") from None


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
        self.writer: Writer = writers.acquire(config)
        self.recorder = Recorder(self.writer, Encoder(config.machine, config.service))
        self.closed = False
        self._held = [True]
        self._reopening = threading.Lock()

    def put(self, part: bytes) -> bool:
        """Queue a part, waiting for a place where no event loop is held up. False: dropped, and counted as a gap."""
        own = self.writer
        if own.full and not self._has_room():
            own.drop("little space" if own.refusing else "queue full")
            return False
        if not self.closed and (_accepted(own, part) or _accepted(self._open_again(own), part)):
            return True
        log.warning("%s: a record came after shutdown, and is not stored", self.config.root)
        return False

    def use(self, resource: Resource) -> None:
        """Have a resource or scope stored before what is put from now on."""
        self.writer.use(resource)

    def _open_again(self, closed: Writer) -> Writer:
        """Give an open writer in place of one that was closed at exit, or that one where there is none.

        A provider of the SDK that was made before otledger was imported, as in a configuration file, hands over its
        last batch after that: what is registered first is called last.
        """
        with self._reopening:
            if self.writer is closed:
                try:
                    again = writers.acquire(self.config)
                except (LedgerError, OSError) as error:
                    log.warning("%s: cannot be opened again: %s", self.config.root, error)
                    return closed
                for resource in list(closed._resources.values()):
                    again.use(resource)
                self.writer = self.recorder.writer = again
            return self.writer

    def _in_writer(self) -> bool:
        """Tell whether this is the writer's own thread, whose log messages may come back to an exporter."""
        return threading.current_thread() is self.writer._thread

    def _has_room(self) -> bool:
        own = self.writer
        if own.refusing or self.config.queue_policy != "wait" or in_loop() or self._in_writer():
            return False
        try:
            own.block_for_room(self.config.queue_timeout)
        except QueueFull:
            return False
        return True

    def lose(self, reason: str, error: BaseException) -> None:
        """Report why a record is not stored, and count it as a gap."""
        self.writer.report(error)
        self.writer.drop(reason)

    def drain(self, timeout: float) -> bool:
        """Write what is queued, for at most `timeout` seconds. False: some of it is left, or is kept by an error."""
        return not self._in_writer() and self.writer.drain(timeout) == 0

    def release(self, timeout: float) -> None:
        """Write what is queued, and give the writer back. Safe to call twice, from any threads."""
        try:
            # One step, for of two threads both would find it open; no lock, for a fork would take it along.
            self._held.pop()
        except IndexError:
            return
        self.closed = True
        writers.release(self.writer, timeout)


def _accepted(own: Writer, part: bytes) -> bool:
    try:
        own.put(part)
    except LedgerClosed:
        return False
    return True
