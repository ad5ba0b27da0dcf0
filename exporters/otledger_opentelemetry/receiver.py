"""A receiver of OTLP over HTTP: requests of any program's exporter, appended to the ledger.

A request is answered with 200 when everything in it is as durable as configured, and not before. An exporter that
got no such answer sends the request again, so a record may come to stand in the ledger twice, but is not lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import zlib
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from google.protobuf.message import DecodeError

from otledger import writers
from otledger.config import Config
from otledger.errors import ConfigurationError, LedgerError
from otledger.journal import Resource
from otledger.writer import Writer
from otledger_opentelemetry import otlp, otlp_json, wire

HOST, PORT = "127.0.0.1", 4318
MAX_BODY = 16 << 20
"""Bytes of a request that are taken, as sent and unpacked."""
MAX_ITEMS = 50_000
"""How many spans, log records or metrics a request may hold: empty ones have two bytes each."""
MAX_FIELDS = 1_000_000
"""How many fields a request may have: in memory the least of them takes ninety times its two bytes."""
LARGE = 1 << 20
"""Smaller requests than this, in bytes, are parsed whatever they hold."""
BODIES = 4
"""How many of the largest requests may be held at the same time."""
READ_TIMEOUT = 30.0
"""Seconds that a request may take to arrive."""
CLOSE_TIMEOUT = 30.0
"""Seconds that what was accepted may take to be written at the end."""
RETRY_AFTER = 1
"""Seconds after which an exporter may try again."""

PATHS = {f"/v1/{kind}": kind for kind in otlp.SIGNALS}
PROTOBUF, JSON = "application/x-protobuf", "application/json"
_ENCODINGS = ("", "identity", "gzip", "deflate")

# Of google.rpc.Code.
_INVALID, _NOT_FOUND, _DENIED, _EXHAUSTED, _UNIMPLEMENTED, _UNAVAILABLE = 3, 5, 7, 8, 12, 14

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Refused(Exception):
    """A request is not taken. `str` says why."""

    def __init__(self, status: int, code: int, reason: str, **headers: str) -> None:
        super().__init__(reason)
        self.status = status
        self.code = code
        self.headers = headers


@dataclass(frozen=True, slots=True)
class _Request:
    """What a request's head says."""

    kind: str
    """`traces`, `logs` or `metrics`."""
    json: bool
    encoding: str


class Receiver:
    """The ASGI application. It queues through `writer`, which it does not own."""

    def __init__(self, writer: Writer, *, max_body: int = MAX_BODY) -> None:
        self._writer = writer
        self._max_body = max_body
        self._held = 0
        # One: parsing holds the interpreter's lock, and the memory of one large request at a time is enough.
        self._parser = ThreadPoolExecutor(1, thread_name_prefix="otledger-otlp")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        json = headers.get(b"content-type", JSON).partition(";")[0].strip().lower() != PROTOBUF
        try:
            await self._take(_read_head(scope, headers), headers, receive)
        except Refused as refused:
            body = _status_body(refused, json=json)
            await _answer(send, refused.status, body, json=json, headers=refused.headers)
        except ConnectionError:
            # Nobody is there to be answered.
            return
        else:
            # The message Export…ServiceResponse without a member.
            await _answer(send, 200, b"{}" if json else b"", json=json, headers={})

    def close(self) -> None:
        """End the thread that parses."""
        self._parser.shutdown()

    async def _take(self, request: _Request, headers: dict[bytes, str], receive: Receive) -> None:
        """Read a request and wait until it is durable. Raises `Refused`."""
        self._refuse_if_full()
        with self._holding() as hold:
            body = await self._read_body(headers, receive, hold)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._parser, self._queue, request, body)
        await self._wait()

    def _refuse_if_full(self) -> None:
        writer = self._writer
        if writer.refusing:
            raise _later(503, "there is too little space on the ledger's disk")
        if writer.full:
            raise _later(429, "the ledger's queue is full")

    @contextlib.contextmanager
    def _holding(self) -> Iterator[Callable[[int], None]]:
        """Give what counts the bytes of a body; they are held until the end of the block."""
        own = 0

        def hold(count: int) -> None:
            nonlocal own
            own += count
            self._held += count
            if own > self._max_body:
                raise _too_large(self._max_body)
            if self._held > BODIES * self._max_body:
                raise _later(429, "too many large requests at the same time")

        try:
            yield hold
        finally:
            self._held -= own

    async def _read_body(self, headers: dict[bytes, str], receive: Receive, hold: Callable[[int], None]) -> bytes:
        length = headers.get(b"content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:20]) > self._max_body:
            raise _too_large(self._max_body)
        pieces = []
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionError
                    piece = message.get("body", b"")
                    hold(len(piece))
                    pieces.append(piece)
                    if not message.get("more_body"):
                        return b"".join(pieces)
        except TimeoutError:
            reason = f"the request did not arrive within {READ_TIMEOUT:g} s"
            raise Refused(408, _UNAVAILABLE, reason, connection="close") from None

    def _queue(self, request: _Request, body: bytes) -> None:
        """Queue what a body holds. Raises `Refused`, and then has queued nothing. Called in the parser's thread."""
        message = parse(request.kind, unpack(body, request.encoding, self._max_body), json=request.json)
        writer = self._writer
        encode = writer.journal.encoder.telemetry
        resources: list[Resource] = []
        parts = [encode(*entry) for entry in otlp.entries(message, request.kind, resources.append, writer.report)]
        # Others may have filled the queue since the head was read.
        self._refuse_if_full()
        try:
            writer.put_all(parts, resources)
        except LedgerError as error:
            raise _later(503, str(error)) from None

    async def _wait(self) -> None:
        """Wait until what is queued is durable. Raises `Refused`."""
        waiter = asyncio.get_running_loop().create_future()
        self._writer.wait_for_all(waiter)
        timeout = self._writer.config.queue_timeout
        try:
            async with asyncio.timeout(timeout):
                await waiter
        except TimeoutError:
            raise _later(503, f"the ledger was not written within {timeout:g} s") from None
        except LedgerError as error:
            raise _later(503, f"the ledger could not be written: {error}") from None


def _read_head(scope: Scope, headers: dict[bytes, str]) -> _Request:
    """Give what is asked for. Raises `Refused`."""
    kind = PATHS.get(scope["path"])
    if kind is None:
        raise Refused(404, _NOT_FOUND, f"there is nothing at this path; OTLP goes to {', '.join(PATHS)}")
    if scope["method"] != "POST":
        raise Refused(405, _UNIMPLEMENTED, "OTLP is sent by POST", allow="POST")
    if b"origin" in headers:
        # Only browsers send it, for pages that may come from anywhere.
        raise Refused(403, _DENIED, "requests of web pages are not taken")
    content_type = headers.get(b"content-type", "").partition(";")[0].strip().lower()
    if content_type not in (PROTOBUF, JSON):
        raise Refused(415, _INVALID, f"the content type must be {PROTOBUF} or {JSON}", accept=f"{PROTOBUF}, {JSON}")
    encoding = headers.get(b"content-encoding", "").strip().lower()
    if encoding not in _ENCODINGS:
        raise Refused(415, _INVALID, "the content encoding must be gzip, deflate or identity")
    return _Request(kind, content_type == JSON, encoding)


def _later(status: int, reason: str) -> Refused:
    return Refused(status, _UNAVAILABLE, f"{reason}; try again later", **{"retry-after": str(RETRY_AFTER)})


def _too_large(limit: int) -> Refused:
    return Refused(413, _EXHAUSTED, f"it has more than {limit:,} bytes: send less at once", connection="close")


# Bodies


def unpack(body: bytes, encoding: str, limit: int) -> bytes:
    """Give a body without its compression: at most `limit` bytes, and no more are ever unpacked. Raises `Refused`."""
    if encoding in ("", "identity"):
        return body
    # A deflate body should have zlib's head; some senders leave it out. Its first byte has 8 in its lower half.
    window = 31 if encoding == "gzip" else 15 if body[:1] and body[0] & 15 == 8 else -15
    pieces, size = [], 0
    try:
        while body:
            unpacker = zlib.decompressobj(window)
            piece = unpacker.decompress(body, limit - size + 1)
            size += len(piece)
            if size > limit:
                raise _too_large(limit)
            pieces.append(piece)
            if not unpacker.eof:
                raise Refused(400, _INVALID, f"the {encoding} data is not complete")
            body = unpacker.unused_data
    except zlib.error as error:
        raise Refused(400, _INVALID, f"no {encoding} data: {error}") from None
    return b"".join(pieces)


def parse(kind: str, body: bytes, *, json: bool) -> Any:
    """Give the request in a body. Raises `Refused`."""
    request = otlp.SIGNALS[kind].request
    large = len(body) > LARGE
    try:
        if json:
            members = otlp_json.parse(body)
            if large and otlp_json.count(members, MAX_FIELDS) == MAX_FIELDS:
                raise _too_many()
            message: Any = otlp_json.read(members, request)
        else:
            if large and wire.count_fields(body, MAX_FIELDS) == MAX_FIELDS:
                raise _too_many()
            message = request.FromString(body)
    except otlp_json.NoOtlp as error:
        raise Refused(400, _INVALID, f"no {request.DESCRIPTOR.name} in OTLP/JSON: {error}") from None
    except (DecodeError, ValueError) as error:
        raise Refused(400, _INVALID, f"no {request.DESCRIPTOR.name} in protobuf: {error}") from None
    if otlp.SIGNALS[kind].count(message) > MAX_ITEMS:
        raise _too_many()
    return message


def _too_many() -> Refused:
    return Refused(
        413, _EXHAUSTED, f"it holds more than {MAX_ITEMS:,} items or {MAX_FIELDS:,} fields: send less at once"
    )


def _status_body(refused: Refused, *, json: bool) -> bytes:
    """Give a google.rpc.Status: its members are code (1) and message (2)."""
    message = str(refused)[:1000]
    if json:
        return orjson.dumps({"code": refused.code, "message": message.encode(errors="replace").decode()})
    text = message.encode(errors="replace")
    return b"\x08%c\x12%b%b" % (refused.code, _varint(len(text)), text)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


async def _answer(send: Send, status: int, body: bytes, *, json: bool, headers: dict[str, str]) -> None:
    fields = {"content-type": JSON if json else PROTOBUF, "content-length": str(len(body)), **headers}
    head = [(name.encode(), value.encode("latin-1")) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


# The process


def bind(host: str, port: int) -> socket.socket:
    """Give a socket that listens there. Raises `ConfigurationError`, which says what to do."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigurationError(f"{host} is no address of this machine: {error}; give another by --host") from None
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(1024)
    except (OSError, OverflowError) as error:
        found.close()
        what = getattr(error, "strerror", None) or error
        raise ConfigurationError(
            f"{host}:{port} cannot be listened on: {what}; another receiver or a collector may have it:"
            " give another by --port"
        ) from None
    return found


def serve(
    root: str | Path,
    *,
    host: str = HOST,
    port: int = PORT,
    max_body: int = MAX_BODY,
    on_ready: Callable[[str], object] | None = None,
    **settings: Any,
) -> int:
    """Receive until SIGTERM or SIGINT. Gives how many accepted records were left unwritten at the end.

    Call it in the main thread. `settings` are those of `Config`; `port` 0 takes any free one; `on_ready` is called
    with the URL when requests are taken. Raises `ConfigurationError`, and what opening a ledger raises.
    """
    config = Config.resolve(root=root, **settings)
    listener = bind(host, port)
    try:
        writer = writers.acquire(config)
        left = 0
        try:
            receiver = Receiver(writer, max_body=max_body)
            try:
                _run(receiver, listener, on_ready)
            finally:
                receiver.close()
        finally:
            left = writers.release(writer, CLOSE_TIMEOUT)
        return left
    finally:
        listener.close()


class _Server(uvicorn.Server):
    """Says when it is ready, and gives signals to nobody after it ended: they were for it."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        with super().capture_signals():
            yield
            self._captured_signals.clear()


def _run(receiver: Receiver, listener: socket.socket, on_ready: Callable[[str], object] | None) -> None:
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    config = uvicorn.Config(
        receiver,
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=int(CLOSE_TIMEOUT),
    )
    _Server(config, lambda: on_ready(url) if on_ready is not None else None).run(sockets=[listener])
