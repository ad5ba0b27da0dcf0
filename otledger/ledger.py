"""The ledger that a program holds: the only place where asyncio meets storage."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from otledger import speed
from otledger.config import Config, Durability, QueuePolicy, StartupCheck
from otledger.context import current as current_context
from otledger.core import Core, resource_attributes
from otledger.encryption import KeyWanted, Policy, make_encryption
from otledger.errors import ConfigurationError
from otledger.journal import Receipt
from otledger.processors import Processor
from otledger.reader import Reader
from otledger.record import Extension, check_extensions
from otledger.verifier import Report
from otledger.view import BaseView, Turn
from otledger.writer import Health

encode_event = speed.event or (lambda *event: None)

T = TypeVar("T")

_NOT_GIVEN: Any = object()
"""None is a value of `check`."""


class View(BaseView):
    """A view of a ledger with defaults; see `Ledger.bind`."""

    async def emit(
        self,
        type: str,
        data: Any = None,
        *,
        subject: str | None = None,
        source: str | None = None,
        ipc_hash: str | None = None,
        extensions: Mapping[str, Extension] | None = None,
        time: int | str | None = None,
        id: str | None = None,
    ) -> str:
        """Record an event. On return it is accepted: it is written within `flush_interval` seconds.

        Gives its id; empty if a processor or the queue's policy dropped it. `time` is nanoseconds since the
        epoch or RFC 3339 text. Cancelling it means that the event was not accepted.
        Raises `EventRefused` (a ValueError), `QueueFull`, `LowSpace`, `LedgerClosed`.
        """
        core = self._core
        own = core._writer or core.writer
        core.burst = left = core.burst - 1
        if (left < 0 or own.full) and not await core.make_room(own):
            return ""
        if (
            self._direct
            and subject is None
            and source is None
            and ipc_hash is None
            and extensions is None
            and time is None
            and id is None
            and not current_context()
        ):
            # What `_encode` comes to for most events, without a call more: emit is the hot path.
            encoder = core.encoder
            made = encode_event(encoder.heads, type, encoder.before, data, None)
            if made is not None:
                own.put(made[1])
                return made[0]
        if core.encryption is None:
            id, kept = self._encode(type, data, subject, source, ipc_hash, extensions, time, id)
        else:
            id, kept = await self._encrypt(type, data, subject, source, ipc_hash, extensions, time, id)
        if kept is not None:
            own.put(kept)
        return id

    async def append(
        self,
        type: str,
        data: Any = None,
        *,
        subject: str | None = None,
        source: str | None = None,
        ipc_hash: str | None = None,
        extensions: Mapping[str, Extension] | None = None,
        time: int | str | None = None,
        id: str | None = None,
    ) -> Receipt | None:
        """Record an event and wait until it is durable. Gives its receipt, None if a processor dropped it.

        Raises as `emit` does, and `JournalError` if the write failed: the record then stays queued all the
        same. Cancelling it withdraws nothing.
        """
        own = self._core.writer
        if own.full and not await self._core.make_room(own):
            return None
        if self._core.encryption is None:
            id, part = self._encode(type, data, subject, source, ipc_hash, extensions, time, id)
        else:
            id, part = await self._encrypt(type, data, subject, source, ipc_hash, extensions, time, id)
        if part is None:
            return None
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Receipt] = loop.create_future()
        own.put_awaited(part, waiter, id, loop)
        return await waiter

    async def _encrypt(self, *event: Any) -> tuple[str, bytes | None]:
        """Do what `_encode` does; a key that has to be made or read meanwhile holds up nobody else."""
        encode: Callable[..., tuple[str, bytes | None]] = self._encode
        try:
            return encode(*event, wait=False)
        except KeyWanted as wanted:
            draft, name = wanted.draft, wanted.name
        core = self._core
        assert core.encryption is not None
        await _in_thread(functools.partial(core.encryption.obtain, name))
        return core.encode(draft)

    async def flush(self) -> None:
        """Wait until everything accepted so far is durable. Raises `JournalError` if a write fails meanwhile."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._core.writer.wait_for_all(waiter)
        await waiter

    def bind(
        self,
        *,
        subject: str | None = None,
        source: str | None = None,
        ipc_hash: str | None = None,
        extensions: Mapping[str, Extension] | None = None,
    ) -> View:
        """Give a view with these defaults over the ones that this view has."""
        return View(self._core, **_merged(self, subject, source, ipc_hash, extensions))


def _merged(
    view: BaseView,
    subject: str | None,
    source: str | None,
    ipc_hash: str | None,
    extensions: Mapping[str, Extension] | None,
) -> dict[str, Any]:
    check_extensions(extensions or {})
    return {
        "subject": view._subject if subject is None else subject,
        "source": view._source if source is None else source,
        "ipc_hash": view._ipc_hash if ipc_hash is None else ipc_hash,
        "extensions": {**(view._extensions or {}), **(extensions or {})} or None,
    }


class _Opened:
    """What both kinds of ledger are besides a view: the machine's partition, opened."""

    _core: Core
    startup_report: Report | None
    """What the check at start found; None where `check=None`."""

    @property
    def config(self) -> Config:
        """The settings in force."""
        return self._core.config

    @property
    def reader(self) -> Reader:
        """A reader of the whole ledger, all machines."""
        return Reader(self._core.root, keys=self._core.config.keys)

    def health(self) -> Health:
        """Give how the ledger is at this moment."""
        core = self._core
        return (core._last_writer or core.writer).health()

    def on_error(self, callback: Callable[[BaseException], None]) -> Callable[[BaseException], None]:
        """Have `callback` called with every error of the journal and of processors; usable as a decorator.

        It is called from the writer's thread, or from the caller's for a processor's error.
        """
        self._core.writer.listeners.append(callback)
        self._core.listeners.append(callback)
        return callback


class Ledger(View, _Opened):
    """A ledger in an asyncio program. Made by `otledger.open`; use it as `async with`, or await it and `aclose`."""

    def __init__(self, config: Config, encrypt: Policy | None = None, cipher: str | None = None) -> None:
        super().__init__(Core(config, make_encryption(encrypt, cipher, config)))
        self.startup_report = None

    async def __aenter__(self) -> Ledger:
        if self._core._writer is None:
            self.startup_report = await _in_thread(self._core.open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __await__(self) -> Generator[Any, None, Ledger]:
        return self.__aenter__().__await__()

    async def aclose(self, timeout: float = 10) -> int:
        """Write what is queued and close. Gives how many records were left unwritten after `timeout` seconds."""
        # Shielded: a cancelled program still writes what it accepted.
        return await asyncio.shield(_in_thread(functools.partial(self._core.close, timeout)))


class SyncLedger(BaseView, _Opened):
    """A ledger in a program without asyncio. Made by `otledger.open_sync`; use it as `with`, or `close` it."""

    def __init__(self, config: Config, encrypt: Policy | None = None, cipher: str | None = None) -> None:
        super().__init__(Core(config, make_encryption(encrypt, cipher, config)))
        self.startup_report = self._core.open()

    def __enter__(self) -> SyncLedger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def emit(
        self,
        type: str,
        data: Any = None,
        *,
        subject: str | None = None,
        source: str | None = None,
        ipc_hash: str | None = None,
        extensions: Mapping[str, Extension] | None = None,
        time: int | str | None = None,
        id: str | None = None,
    ) -> str:
        """Record an event. On return it is accepted. Arguments and errors are those of `Ledger.emit`."""
        core = self._core
        own = core.writer
        if own.full and not core.make_room_now(own, block=True):
            return ""
        id, part = self._encode(type, data, subject, source, ipc_hash, extensions, time, id)
        if part is not None:
            own.put(part)
        return id

    def append(
        self,
        type: str,
        data: Any = None,
        *,
        subject: str | None = None,
        source: str | None = None,
        ipc_hash: str | None = None,
        extensions: Mapping[str, Extension] | None = None,
        time: int | str | None = None,
        id: str | None = None,
        timeout: float | None = None,
    ) -> Receipt | None:
        """Record an event and wait until it is durable. Gives its receipt, None if a processor dropped it.

        Raises as `Ledger.append` does, and TimeoutError after `timeout` seconds; the record stays queued.
        """
        core = self._core
        own = core.writer
        if own.full and not core.make_room_now(own, block=True):
            return None
        id, part = self._encode(type, data, subject, source, ipc_hash, extensions, time, id)
        if part is None:
            return None
        waiter: concurrent.futures.Future[Receipt] = concurrent.futures.Future()
        own.put_awaited(part, waiter, id)
        return waiter.result(timeout)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything accepted so far is durable. Raises `JournalError`, or TimeoutError."""
        waiter: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._core.writer.wait_for_all(waiter)
        waiter.result(timeout)

    def bind(
        self,
        *,
        subject: str | None = None,
        source: str | None = None,
        ipc_hash: str | None = None,
        extensions: Mapping[str, Extension] | None = None,
    ) -> SyncLedger:
        """Give a view with these defaults. It is closed with this ledger."""
        view = SyncLedger.__new__(SyncLedger)
        BaseView.__init__(view, self._core, **_merged(self, subject, source, ipc_hash, extensions))
        view.startup_report = self.startup_report
        return view

    def close(self, timeout: float = 10) -> int:
        """Write what is queued and close. Gives how many records were left unwritten after `timeout` seconds."""
        return self._core.close(timeout)


def open(
    root: str | Path | None = None,
    *,
    machine: str | None = None,
    service: str | None = None,
    durability: Durability | None = None,
    processors: Sequence[Processor] | None = None,
    schemas: Mapping[str, Any] | None = None,
    queue_policy: QueuePolicy | None = None,
    check: StartupCheck | None = _NOT_GIVEN,
    encrypt: Policy | None = None,
    cipher: str | None = None,
    **settings: Any,
) -> Ledger:
    """Give a ledger for an asyncio program, opened by `async with` or `await`.

    All settings are those of `Config`, whose defaults hold where nothing is given and no `OTLEDGER_` variable
    is set. With `encrypt=otledger.by_subject` the data of events that have a subject is encrypted with a key for each
    subject, by `cipher`: "ChaCha20-Poly1305", the default, or "AES-256-GCM"; see docs/erasure.md.
    Opening raises `RootError`, `FormatError`, and `LedgerDamaged` if `strict`.
    Raises `ConfigurationError` at once for a setting that is not allowed.
    """
    given: dict[str, Any] = {"machine": machine, "service": service, "durability": durability, "processors": processors}
    given |= {"schemas": schemas, "queue_policy": queue_policy}
    return Ledger(_resolve(root, check, given | settings), encrypt, cipher)


def open_sync(
    root: str | Path | None = None,
    *,
    check: StartupCheck | None = _NOT_GIVEN,
    encrypt: Policy | None = None,
    cipher: str | None = None,
    **settings: Any,
) -> SyncLedger:
    """Give an open ledger for a program without asyncio. Settings and errors are those of `open`."""
    return SyncLedger(_resolve(root, check, settings), encrypt, cipher)


def _resolve(root: str | Path | None, check: StartupCheck | None, settings: dict[str, Any]) -> Config:
    if check is not _NOT_GIVEN:
        settings["check"] = check
    return Config.resolve(root=root, **settings)


async def _in_thread(function: Callable[[], T]) -> T:
    """Run `function` in a daemon thread of its own, so that a disk that hangs holds up neither loop nor exit."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError(
            "otledger runs on asyncio; under another event loop, such as trio, use otledger.open_sync() in a thread"
        ) from None
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as problem:
            error = problem
        # Where the loop ended meanwhile, nobody waits for the result.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="otledger-open-close", daemon=True).start()
    return await future


__all__ = ["Health", "Ledger", "Receipt", "SyncLedger", "Turn", "View", "open", "open_sync", "resource_attributes"]
