"""An asyncio server that records what it is asked, and counts it, for the soak.

    python tests/faults/serving.py ROOT NAME CLOCK

Its clock runs CLOCK nanoseconds ahead. A request is a line of JSON, as is the answer: `order` is answered once it is
durable, `burst` emits more than the queue takes, `state` tells memory and descriptors. At SIGTERM it closes the
ledger and tells what it offered to it.
"""

import asyncio
import ctypes
import gc
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import otledger
from otledger import record

QUEUE_RECORDS = 150


class Server:
    """Answers requests; `offered` counts the events and spans that it gave the ledger."""

    def __init__(self, ledger: otledger.Ledger) -> None:
        self.ledger = ledger
        self.offered = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one client until it goes."""
        try:
            while line := await reader.readline():
                request = json.loads(line)
                answer = await getattr(self, request["do"])(request)
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except ConnectionError:
            # The client went away; what it asked for is recorded all the same.
            pass
        finally:
            writer.close()

    async def order(self, request: dict[str, Any]) -> dict[str, Any]:
        """Record an order: a span, an event in it, and a receipt, if the queue takes them."""
        self.offered += 3
        async with self.ledger.span("order", attributes={"number": request["number"]}):
            await self.ledger.emit("order.received", request)
            receipt = await self.ledger.append("order.paid", request)
        return {} if receipt is None else {"id": receipt.id, "seq": receipt.seq, "checksum": receipt.checksum}

    async def burst(self, request: dict[str, Any]) -> dict[str, Any]:
        """Emit more at once than there is place for."""
        for number in range(request["count"]):
            self.offered += 1
            self.ledger.emit_nowait("burst", [number, "x" * 200])
        return {}

    async def state(self, _: dict[str, Any]) -> dict[str, Any]:
        """Tell what this process holds once everything is written."""
        await self.ledger.flush()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        return held()


def held() -> dict[str, int]:
    """Give the bytes of memory and the descriptors that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {"memory": pages * os.sysconf("SC_PAGE_SIZE"), "descriptors": len(os.listdir("/proc/self/fd"))}


async def serve(root: str, name: str) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    ledger = await otledger.open(
        root, machine="m1", service=name, queue_policy="drop", queue_records=QUEUE_RECORDS, min_free=0
    )
    server = Server(ledger)
    listener = await asyncio.start_server(server.connected, "127.0.0.1", 0)
    print(json.dumps({"port": listener.sockets[0].getsockname()[1]}), flush=True)
    await stop.wait()
    listener.close()
    await ledger.flush()
    dropped = ledger.health().dropped
    left = await ledger.aclose(60)
    print(json.dumps({"offered": server.offered, "dropped": dropped, "left": left}), flush=True)
    # Not the clients' connections: they are closed with the process.
    os._exit(0)


if __name__ == "__main__":
    ahead = int(sys.argv[3])
    record.now_ns = lambda: time.time_ns() + ahead
    asyncio.run(serve(sys.argv[1], sys.argv[2]))
