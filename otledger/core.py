"""What all views of one ledger share: its settings, encoder and writer, and how an event finds its place there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import weakref
from collections.abc import Callable, Mapping
from time import time_ns
from typing import Any
from urllib.parse import unquote

import orjson
from opentelemetry import trace

from otledger import provider, values, writers
from otledger.ciphertext import Cipher
from otledger.config import Config
from otledger.encryption import Encryption, KeyWanted
from otledger.errors import EventRefused, LedgerClosed, LedgerDamaged, QueueFull
from otledger.journal import Resource
from otledger.record import Draft, Encoder
from otledger.schemas import Check, compile_schemas
from otledger.span import Limits, Span
from otledger.verifier import Report, verify
from otledger.version import VERSION
from otledger.writer import Writer, log, text_of

BURST = 256
"""After so many events a task lets the others run: `emit` alone never suspends."""


_TELLING = frozenset({"otlinvalid", "otlprocessor"})
"""Marks whose text may quote the payload."""


class Core:
    """What all views of one ledger share: settings, encoder, writer, processors, schemas. Records spans."""

    def __init__(self, config: Config, encryption: Encryption | None = None) -> None:
        self.config = config
        self.encryption = encryption
        # Absolute: the program may change its working folder.
        self.root = config.root.absolute()
        self.encoder = Encoder(config.machine, config.service)
        self.limits = Limits.from_environment()
        self.checks: dict[str, Check] = compile_schemas(config.schemas)
        self.slow = bool(config.processors or self.checks)
        self.burst = BURST
        self.listeners: list[Callable[[BaseException], None]] = []
        self._writer: Writer | None = None
        self._last_writer: Writer | None = None
        self.span_members = ""
        self._closed = False
        _cores.add(self)

    @property
    def writer(self) -> Writer:
        if self._writer is None:
            raise LedgerClosed(
                f"the ledger {self.config.root} is closed: nothing more is accepted"
                if self._closed
                else "the ledger is not open yet: use `async with otledger.open(...)`, or await it"
            )
        return self._writer

    def open(self) -> Report | None:
        """Open writer and check, blocking. Gives what the check at start found."""
        config = self.config
        self._writer = self._last_writer = writers.acquire(config)
        # A writer knows no resources when it is new.
        self.span_members = ""
        self._closed = False
        if config.check is None:
            return None
        report = verify(config.root, machines=[config.machine], tail=config.check == "tail")
        if report.faults:
            message = f"{config.root / config.machine}: {report.status}: {report.faults[0]}"
            log.critical("%s", message)
            if config.strict:
                self.close(10.0)
                raise LedgerDamaged(f"{message}; run: otledger verify --root {config.root}", report=report)
        return report

    def close(self, timeout: float) -> int:
        """Give the writer back, blocking. Gives how many records were left unwritten."""
        own, self._writer, self._closed = self._writer, None, True
        if own is None:
            return 0
        for listener in self.listeners:
            own.listeners.remove(listener)
        self.listeners.clear()
        return writers.release(own, timeout)

    # Events

    def process(self, draft: Draft, members: str, *, wait: bool = True) -> tuple[str, bytes | None]:
        """Give id and part of a draft, no part where a processor dropped it.

        Raises `EventRefused`, and `KeyWanted` where `wait` is False and its key is not in memory.
        """
        if members:
            found = orjson.loads("{" + members[1:] + "}")
            draft.traceparent, draft.tracestate = found.get("traceparent"), found.get("tracestate")
        kept = self._run_processors(draft)
        if kept is None:
            return "", None
        check = self.checks.get(kept.type)
        if check is not None and kept.data is not None:
            self._check(check, kept)
        return self.encode(kept, wait=wait)

    def encode(self, draft: Draft, *, wait: bool = True) -> tuple[str, bytes]:
        """Give id and part of a draft that processors and schemas have seen, encrypted where that is to be."""
        encryption = self.encryption
        name = None if encryption is None else encryption.name_for(draft)
        if encryption is None or name is None:
            return self.encoder.draft(draft, time_ns())
        cipher = encryption.at_hand(name)
        if cipher is None:
            # No key is made for what cannot be stored.
            self.encoder.draft(draft, 0)
            if not wait:
                kept = _copy(draft)
                kept.time = time_ns() if draft.time is None else draft.time
                raise KeyWanted(kept, name)
            cipher = encryption.obtain(name)
        for mark in _TELLING & draft.marks.keys():
            # What raised or did not fit may be quoted there.
            draft.marks[mark] = "the text is left out: the data is encrypted"
        return self.encoder.draft(draft, time_ns(), cipher=cipher)

    def cipher_at_hand(self, draft: Draft) -> Cipher | None:
        """Give the key for an event that no processor is to see, where it is in memory."""
        encryption = self.encryption
        name = None if encryption is None else encryption.name_for(draft)
        return None if encryption is None or name is None else encryption.at_hand(name)

    def _run_processors(self, draft: Draft) -> Draft | None:
        for processor in self.config.processors:
            try:
                # A copy: what a processor changes in it before it raises must not count, nor reach the caller.
                after = processor(_copy(draft))
                if after is None:
                    return None
                if not isinstance(after, Draft):
                    raise TypeError(f"a processor must return a Draft or None, not {type(after).__name__}")
                self.encoder.draft(after, 0)
                draft = after
            except Exception as error:  # A processor's mistake never loses the event.
                # What the caller gave must be storable all the same: that is for the caller to hear.
                self.encoder.draft(draft, 0)
                self.writer.report(error)
                draft.marks["otlprocessor"] = _printable(f"{type(error).__name__}: {text_of(error)}")
        return draft

    def _check(self, check: Check, draft: Draft) -> None:
        try:
            wrong = check(values.encode(draft.data), draft.data)
        except Exception as error:  # A schema's mistake never loses the event either.
            wrong = f"the check failed: {type(error).__name__}: {error}"
        if wrong is not None:
            self.writer.invalid += 1
            draft.marks["otlinvalid"] = _printable(wrong)

    # Spans

    def span_started(self, span: Span) -> None:
        own = self._writer or self.writer
        if not self.span_members:
            # Known to the writer before the first record that names them.
            self.span_members = self._describe_spans()
        if trace._TRACER_PROVIDER is not None and (sdk := provider.sdk_provider()) is not None:
            provider.begin(sdk, span, self.config.forward)
        own.put_span(span.span_id, span.start_part)

    def span_ended(self, span: Span) -> None:
        if trace._TRACER_PROVIDER is not None and span.trace_flags & 1 and self.config.forward:
            sdk = provider.sdk_provider()
            if sdk is not None:
                provider.end(sdk, span)
        own = self._writer
        if own is None:
            log.warning("span %r ended after its ledger was closed: its end is not recorded", span.name)
            return
        own.end_span(span.span_id)
        if own.full and not self._room_at_once(own):
            own.drop("queue full")
            return
        if not self.span_members:
            # A span may end in another process than it began in, after a fork.
            self.span_members = self._describe_spans()
        own.put(span.end_part())

    def _room_at_once(self, own: Writer) -> bool:
        """Tell whether there is a place, waiting for it where no event loop is held up."""
        if own.refusing or self.config.queue_policy != "wait" or in_loop():
            return False
        try:
            own.block_for_room(self.config.queue_timeout)
        except QueueFull:
            return False
        return True

    def crowded(self) -> bool:
        own = self._writer
        self.burst -= 1
        return self.burst < 0 or (own is not None and own.full)

    async def room_for_span(self) -> None:
        own = self._writer
        self.burst = BURST
        await asyncio.sleep(0)
        if own is not None and own.full and not own.refusing and self.config.queue_policy == "wait":
            # A span has no caller to refuse: what has no place in time is dropped and counted.
            with contextlib.suppress(QueueFull):
                await self.wait_for_room(own)

    def span_cut(self, values: int) -> None:
        self.writer.report(EventRefused(f"a span was too large for a line: {values} of its values were cut"))

    def _describe_spans(self) -> str:
        """Have resource and scope stored, and give the members that name them in a span's data."""
        resource = Resource.make("resource", values.encode(resource_attributes(self.config.service)))
        scope = Resource.make("scope", b"{}", name="otledger", version=VERSION)
        self.writer.use(resource)
        self.writer.use(scope)
        return f',"resource":"{resource.digest}","scope":"{scope.digest}"'

    # Room

    async def make_room(self, own: Writer) -> bool:
        """Let other tasks run, or wait for a place in the queue. False: the event is to be dropped."""
        self.burst = BURST
        await asyncio.sleep(0)
        if not own.full:
            return True
        own.refuse()
        own.raise_failure()
        policy = self.config.queue_policy
        if policy == "raise":
            raise own.queue_full(0.0)
        if policy == "drop":
            own.drop("queue full")
            return False
        await self.wait_for_room(own)
        own.refuse()
        return True

    async def wait_for_room(self, own: Writer) -> None:
        timeout = self.config.queue_timeout
        try:
            async with asyncio.timeout(timeout):
                while own.full and not own.refusing:
                    own.raise_failure()
                    await own.wait_for_room()
        except TimeoutError:
            raise own.queue_full(timeout) from None

    def make_room_now(self, own: Writer, *, block: bool) -> bool:
        """The same from a callback or thread, which can only wait where `block` says so."""
        if not own.full:
            return True
        own.refuse()
        own.raise_failure()
        policy = self.config.queue_policy
        if policy == "drop":
            own.drop("queue full")
            return False
        if policy == "raise" or not block:
            raise own.queue_full(0.0)
        own.block_for_room(self.config.queue_timeout)
        own.refuse()
        return True


_cores: weakref.WeakSet[Core] = weakref.WeakSet()


def _after_fork() -> None:
    # The resource names the process.
    for core in list(_cores):
        core.span_members = ""


os.register_at_fork(after_in_child=_after_fork)


def _copy(draft: Draft) -> Draft:
    """Give a draft that shares nothing with `draft` which a processor could change in it."""
    from copy import deepcopy
    from dataclasses import replace

    try:
        data = deepcopy(draft.data)
    except Exception:  # A payload that cannot be copied is kept in the form in which it would be stored.
        data = values.loads(values.encode(draft.data))
    return replace(draft, data=data, extensions=dict(draft.extensions), marks=dict(draft.marks))


def _printable(text: str) -> str:
    """Give text for a mark: at most 200 characters, none that a CloudEvents string may not have."""
    return "".join(character if character.isprintable() else "?" for character in text[:200])


def resource_attributes(service: str, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Give the OpenTelemetry resource of this process: `OTEL_RESOURCE_ATTRIBUTES`, the service, host, process."""
    environ = os.environ if environ is None else environ
    given: dict[str, Any] = {}
    for pair in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        key, separator, value = pair.partition("=")
        if separator and key.strip():
            given[key.strip()] = unquote(value.strip())
    return {
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "otledger",
        "telemetry.sdk.version": VERSION,
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
        **given,
        "service.name": service,
    }


def in_loop() -> bool:
    """Tell whether this thread runs an event loop, which must not be held up."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
