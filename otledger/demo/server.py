"""A small HTTP server with the ledger embedded, as a shop and a game would have it.

    python -m otledger.demo.server LEDGER

    POST /order  {"item": "lamp", "amount": 12, "wait": 0.01}   answered once the order is durable
    POST /say    {"player": "Mira", "text": "open the door"}    a turn: a decision and what is told of it
    GET  /health                                                how the ledger is

It listens on a free port of 127.0.0.1 and prints `{"port": …, "pid": …}` when it is ready. SIGTERM lets open
requests end and closes the ledger; so does the end of stdin where `--attached` is given.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from opentelemetry.trace import SpanKind

import otledger

LARGEST = 1 << 20
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 500: "Internal Server Error"}


class BadRequest(Exception):
    """What was sent is no request that this server knows."""


class Server:
    """Answers requests, and records each as a span with the events of its work inside."""

    def __init__(self, ledger: otledger.Ledger) -> None:
        self._ledger = ledger
        self._routes: dict[tuple[str, str], Callable[[Any], Awaitable[Any]]] = {
            ("POST", "/order"): self._order,
            ("POST", "/say"): self._say,
            ("GET", "/health"): self._health,
        }

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the request of one connection."""
        try:
            method, path, body = await read_request(reader)
            status, answer = await self._answer(method, path, body)
        except (BadRequest, asyncio.IncompleteReadError, ValueError) as error:
            status, answer = 400, {"error": str(error)}
        content = orjson.dumps(answer)
        head = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + content)
        writer.close()
        await writer.wait_closed()

    async def _answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        route = self._routes.get((method, path))
        if route is None:
            return 404, {"error": f"there is no {method} {path}"}
        payload = orjson.loads(body) if body else None
        attributes = {"http.request.method": method, "url.path": path}
        try:
            async with self._ledger.span(f"{method} {path}", kind=SpanKind.SERVER, attributes=attributes) as span:
                answer = await route(payload)
                span.set_attribute("http.response.status_code", 200)
                return 200, answer
        except (KeyError, TypeError) as error:
            return 400, {"error": f"{type(error).__name__}: {error}"}
        except otledger.LedgerError as error:
            # What cannot be recorded is not confirmed.
            return 500, {"error": str(error)}

    async def _order(self, order: Any) -> Any:
        """Take an order, charge for it, and confirm it once that is on the disk."""
        number = order["number"]
        await self._ledger.emit("order.received", {"number": number, "item": order["item"]}, subject="shop")
        async with self._ledger.span("charge", attributes={"amount": order["amount"]}) as span:
            # The bank takes its time.
            await asyncio.sleep(order.get("wait", 0.0))
            span.add_event("bank.answered", {"bank": "First Demo Bank"})
        receipt = await self._ledger.append("order.paid", {"number": number, "amount": order["amount"]}, subject="shop")
        assert receipt is not None
        return {"number": number, "seq": receipt.seq, "checksum": receipt.checksum}

    async def _say(self, said: Any) -> Any:
        """Play a turn: all its records, and the spans around them, carry the fingerprint of what was said."""
        turn = otledger.ipc_hash(said)
        async with self._ledger.turn(turn), self._ledger.span("decide", attributes={"player": said["player"]}) as span:
            outcome = "success" if len(said["text"]) % 3 else "failure"
            span.set_attribute("outcome", outcome)
            world = self._ledger.bind(subject="harbour")
            await world.emit("world.decision", {"player": said["player"], "asks": said["text"], "outcome": outcome})
            async with self._ledger.span("narrate"):
                await asyncio.sleep(0.002)
                told = f"{said['player']} tries to {said['text']}: {_ENDINGS[outcome]}"
                await world.append("world.text", {"text": told})
        return {"turn": turn, "text": told}

    async def _health(self, _: Any) -> Any:
        return dataclasses.asdict(self._ledger.health())


_ENDINGS = {"success": "it works.", "failure": "nothing happens."}


async def read_request(reader: asyncio.StreamReader) -> tuple[str, str, bytes]:
    """Give method, path and body of a request. Raises `BadRequest`, IncompleteReadError, ValueError."""
    first = (await reader.readline()).decode("latin-1").split()
    if len(first) != 3 or not first[2].startswith("HTTP/1."):
        raise BadRequest("this is no HTTP/1 request")
    length = 0
    while (line := await reader.readline()) not in (b"\r\n", b"\n", b""):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            length = int(value)
    if not 0 <= length <= LARGEST:
        raise BadRequest(f"the body may have {LARGEST:,} bytes")
    return first[0], first[1], await reader.readexactly(length)


async def serve(root: str, *, attached: bool = False) -> None:
    """Serve until SIGTERM; then let open requests end, and close the ledger."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    if attached:
        # Nothing is ever sent there: readable means that the other end is gone.
        loop.add_reader(0, _end_of_stdin, loop, stop)
    async with otledger.open(root, service="demo-shop") as ledger:
        open_requests: set[asyncio.Task[None]] = set()
        server = Server(ledger)

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            open_requests.add(task)
            try:
                await server.connected(reader, writer)
            except ConnectionError:
                # The client went away; what it asked for is done and recorded all the same.
                pass
            finally:
                open_requests.discard(task)

        listener = await asyncio.start_server(connected, "127.0.0.1", 0)
        async with listener:
            port = listener.sockets[0].getsockname()[1]
            sys.stdout.write(orjson.dumps({"port": port, "pid": os.getpid()}).decode() + "\n")
            sys.stdout.flush()
            await stop.wait()
        await asyncio.gather(*open_requests)


def _end_of_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    loop.remove_reader(0)
    stop.set()


def main() -> None:
    """Serve the ledger that the command line names."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        asyncio.run(serve(sys.argv[1], attached="--attached" in sys.argv[2:]))
    except otledger.LedgerError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
