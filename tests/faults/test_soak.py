"""A soak: eight servers on one ledger, 200 clients, servers that are killed, a torn tail, and the end of a month.

No process grows, and the accounting is exact: what was offered to a ledger is on the disk or counted in a gap.
"""

import asyncio
import contextlib
import fcntl
import itertools
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import otledger
from otledger import Status
from tests.checker import check
from tests.faults.conftest import Say
from tests.faults.tools import REPOSITORY, append_bytes, environment, newest, partition, segment_names

SECONDS = {"short": 8.0, "long": 1800.0}
"""How long the clients send."""
PAUSE = {"short": 0.15, "long": 0.5}
"""How long a client waits between two requests."""
SERVERS, CLIENTS = 8, 200
BURST = 400
GROWTH = 6 << 20
"""Bytes that a process may hold more at the end than after the first third: less than it handles in a second."""


@dataclass
class Process:
    """A server that runs."""

    name: str
    process: asyncio.subprocess.Process
    port: int

    @classmethod
    async def start(cls, root: Path, name: str, ahead: int) -> "Process":
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(REPOSITORY / "tests/faults/serving.py"), str(root), name, str(ahead)),
            stdout=asyncio.subprocess.PIPE, env=environment(),
        )  # fmt: skip
        assert process.stdout is not None
        return cls(name, process, json.loads(await process.stdout.readline())["port"])

    async def ask(self, **request: Any) -> dict[str, Any]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            return await ask(reader, writer, request)
        finally:
            writer.close()

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()

    async def end(self) -> dict[str, int]:
        """Have it close its ledger, and give what it counted."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stdout is not None
        answer: dict[str, int] = json.loads(await self.process.stdout.readline())
        assert await self.process.wait() == 0
        return answer


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: dict[str, Any]) -> dict[str, Any]:
    writer.write(json.dumps(request).encode() + b"\n")
    await writer.drain()
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise ConnectionError("the server is gone")
    answer: dict[str, Any] = json.loads(line)
    return answer


@dataclass
class Load:
    """Clients that send until they are told to stop."""

    servers: list[Process]
    pause: float
    receipts: dict[str, tuple[int, str]] = field(default_factory=dict)
    answered: int = 0
    broken: int = 0
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    async def run(self, seconds: float) -> None:
        """Send for so long, then wait for all answers."""
        end = asyncio.get_running_loop().time() + seconds
        await asyncio.gather(*(self._client(number, end) for number in range(CLIENTS)))

    async def _client(self, number: int, end: float) -> None:
        chance = random.Random(number)
        now = asyncio.get_running_loop().time
        while now() < end:
            server = self.servers[number % SERVERS]
            with contextlib.suppress(OSError):
                await self._talk(server, chance, end)
                continue
            # It was killed: its successor takes its place.
            self.broken += 1
            await asyncio.sleep(0.1)

    async def _talk(self, server: Process, chance: random.Random, end: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            while asyncio.get_running_loop().time() < end and server in self.servers:
                if chance.random() < 0.005:
                    await ask(reader, writer, {"do": "burst", "count": BURST})
                else:
                    answer = await ask(reader, writer, {"do": "order", "number": next(self.numbers)})
                    if answer:
                        self.receipts[answer["id"]] = answer["seq"], answer["checksum"]
                self.answered += 1
                await asyncio.sleep(chance.uniform(0.5, 1.5) * self.pause)
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def running(root: Path, ahead: int) -> AsyncIterator[list[Process]]:
    servers = list(await asyncio.gather(*(Process.start(root, f"s{n}", ahead) for n in range(SERVERS))))
    try:
        yield servers
    finally:
        for server in servers:
            with contextlib.suppress(ProcessLookupError):
                server.process.kill()


def to_next_month(seconds: float) -> int:
    """Give how far ahead a clock runs, in nanoseconds, that comes to the next month in so many seconds."""
    now = datetime.now(UTC)
    after = now.replace(year=now.year + now.month // 12, month=now.month % 12 + 1, day=1, hour=0, minute=0, second=0)
    return int((after.replace(microsecond=0).timestamp() - now.timestamp() - seconds) * 1e9)


async def kill_two(load: Load, root: Path, ahead: int) -> list[str]:
    """Kill two servers at work, leave a torn line as one of them may have, and start two others in their place."""
    killed = []
    for at in (1, 5):
        killed.append(load.servers[at].name)
        await load.servers[at].kill()
    await asyncio.to_thread(leave_torn_line, root)
    for at in (1, 5):
        load.servers[at] = await Process.start(root, f"s{at}-again", ahead)
    return killed


def leave_torn_line(root: Path) -> None:
    with (partition(root) / ".lock").open("rb") as lock:
        # As whoever is killed in a write: under the lock, and without a word in it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        append_bytes(newest(root), b'{"specversion":"1.0","id":"torn')


async def test_a_soak(root: Path, campaign: str, say: Say) -> None:
    seconds, third = SECONDS[campaign], SECONDS[campaign] / 3
    # Servers take a while to start.
    month_end = time.time() + 0.6 * seconds + 4
    ahead = to_next_month(0.6 * seconds + 4)
    async with running(root, ahead) as servers:
        load = Load(servers, PAUSE[campaign])
        await load.run(third)
        before = {server.name: await server.ask(do="state") for server in servers}
        sending = asyncio.create_task(load.run(2 * third))
        await asyncio.sleep(third / 2)
        killed = await kill_two(load, root, ahead)
        await sending
        after = {server.name: await server.ask(do="state") for server in servers}
        await asyncio.sleep(max(0.0, month_end - time.time()))
        await asyncio.gather(*(server.ask(do="order", number=-1) for server in servers))
        counted = {server.name: await server.end() for server in servers}
    growth = {name: after[name]["memory"] - before[name]["memory"] for name in before.keys() & after.keys()}
    assert len(growth) == SERVERS - 2
    assert max(growth.values()) < GROWTH, growth
    assert all(after[name]["descriptors"] == before[name]["descriptors"] for name in growth), (before, after)
    records = accounted(root, load, counted, killed)
    if campaign == "short":
        assert len(check(partition(root))) == records
    dropped = sum(one["dropped"] for one in counted.values())
    say(
        f"{seconds:.0f} s: {load.answered} answers to {CLIENTS} clients, {records} records, {dropped} dropped and"
        f" counted, {load.broken} connections broken, at most {max(growth.values()) >> 10} KB more",
        answers=load.answered, records=records, dropped=dropped,
    )  # fmt: skip
    assert load.answered >= 20 * seconds
    assert dropped > 0


def accounted(root: Path, load: Load, counted: dict[str, dict[str, int]], killed: list[str]) -> int:
    """Check the ledger against what its servers counted and its clients were told. Gives how many records there are."""
    report = otledger.verify(root)
    assert report.status == Status.RECOVERED, report.faults
    assert report.machines[0].recoveries >= 1
    months = {name[:7] for name in segment_names(root)}
    assert len(months) == 2
    stored: Counter[str] = Counter()
    gaps: Counter[str] = Counter()
    receipts = dict(load.receipts)
    records = 0
    for record in otledger.Reader(root).records():
        records += 1
        name = record.source.removeprefix("/m1/")
        if record.type == "otledger.gap":
            gaps[name] += record.data["count"]
        elif record.type in ("order.received", "order.paid", "burst", "otel.span.end"):
            stored[name] += 1
        told = receipts.pop(record.id, None)
        assert told is None or told == (record.seq, record.checksum), "a receipt was not true"
    assert not receipts, "what was answered is lost"
    for name, count in counted.items():
        assert count["left"] == 0
        assert gaps[name] == count["dropped"]
        assert stored[name] == count["offered"] - count["dropped"], name
    assert all(stored[name] > 0 for name in killed)
    assert report.machines[0].gaps == sum(gaps.values())
    return records
