"""otledger's contenders. As in `peers`, each runs in a process of its own and returns figures."""

import asyncio
import json
import statistics
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from .payload import ATTRIBUTES, MACHINE, TYPE, payloads

Figures = dict[str, float]
Durability = Literal["os", "disk"]


def open_ledger(root: Path | str, durability: Durability) -> Any:
    """Return an otledger that is not open yet; for `async with`."""
    import otledger

    return otledger.open(root, service="bench", machine=MACHINE, durability=durability, min_free=0)


async def until_exists(path: Path) -> None:
    """Wait until another process has made a file."""
    async with asyncio.timeout(60):
        while not path.exists():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.001)


def emit(folder: Path, n: int, durability: Durability = "os") -> Figures:
    """Emit in a tight loop from one task; the clock stops when all is written.

    `grown_mb` is how far the process grew beyond what it was with otledger imported.
    """
    import otledger  # noqa: F401

    from .contender import peak_mb

    async def work() -> float:
        async with open_ledger(folder, durability) as led:
            started = time.perf_counter()
            for data in payloads(n):
                await led.emit(TYPE, data)
            await led.flush()
            return time.perf_counter() - started

    before = peak_mb()
    elapsed = asyncio.run(work())
    return {"rate": n / elapsed, "grown_mb": peak_mb() - before}


def append(folder: Path, n: int, tasks: int) -> Figures:
    """Append durably from many tasks, each of which awaits its receipt before its next event."""

    async def work() -> float:
        async with open_ledger(folder, "disk") as led:
            events = payloads(n)

            async def task() -> None:
                for data in events:
                    await led.append(TYPE, data)

            started = time.perf_counter()
            await asyncio.gather(*(task() for _ in range(tasks)))
            return time.perf_counter() - started

    return {"rate": n / asyncio.run(work())}


def span_cpu(folder: Path, n: int) -> Figures:
    """Return the CPU time of a recorded span with four attributes, in µs, writing it included."""

    async def work() -> float:
        async with open_ledger(folder, "os") as led:
            started = time.process_time()
            for _ in range(n):
                async with led.span("charge", attributes=ATTRIBUTES):
                    pass
            await led.flush()
            return time.process_time() - started

    return {"cpu_us": asyncio.run(work()) / n * 1e6}


def append_cost(folder: Path, root: str, blocks: int, block: int) -> Figures:
    """Return the µs of an append to an empty ledger and to that at `root`, by turns in one process."""

    async def seconds(led: Any) -> float:
        started = time.perf_counter()
        for data in payloads(block):
            await led.append(TYPE, data)
        return time.perf_counter() - started

    async def work() -> Figures:
        times: dict[str, list[float]] = {"empty": [], "full": []}
        async with (
            open_ledger(folder / "empty", "os") as empty,
            open_ledger(root, "os") as large,
        ):
            for _ in range(blocks + 1):
                times["empty"].append(await seconds(empty))
                times["full"].append(await seconds(large))
        # The first block of each touches memory for the first time.
        return {name: statistics.median(each[1:]) / block * 1e6 for name, each in times.items()}

    return asyncio.run(work())


def opening(folder: Path, root: str) -> Figures:
    """Return the ms that it takes to open a ledger, and those of a check since its last checkpoint.

    Loading the code is `load_ms`: a program does that once, whatever its ledger holds.
    """
    started = time.perf_counter()
    import otledger.ledger  # noqa: F401

    load = time.perf_counter() - started

    async def work() -> float:
        started = time.perf_counter()
        async with open_ledger(root, "os"):
            return time.perf_counter() - started

    since = _since_checkpoint(Path(root) / MACHINE)
    started = time.perf_counter()
    for line in since:
        body, _, rest = line.rpartition(b',"checksum":"sha256:')
        if rest != sha256(body).hexdigest().encode() + b'"}':
            raise RuntimeError("the ledger is damaged")
    check = time.perf_counter() - started
    return {
        "open_ms": asyncio.run(work()) * 1e3,
        "check_ms": check * 1e3,
        "load_ms": load * 1e3,
        "records": len(since),
    }


def _since_checkpoint(partition: Path) -> list[bytes]:
    """Return the lines that the newest checkpoint does not cover."""
    lines: list[bytes] = []
    first = None
    for path in sorted(partition.glob("*.jsonl"), key=_segment_order, reverse=True):
        content = path.read_bytes()
        mark = content.rfind(b'"type":"otledger.checkpoint"')
        if first is None and mark >= 0:
            line = content[content.rfind(b"\n", 0, mark) + 1 : content.index(b"\n", mark)]
            first = b',"seq":%d,"prev":"' % json.loads(line)["data"]["size"]
        found = content.rfind(first) if first else -1
        if found >= 0:
            return content[content.rfind(b"\n", 0, found) + 1 :].splitlines() + lines
        lines = content.splitlines() + lines
    return lines


def _segment_order(path: Path) -> tuple[str, int]:
    month, number, *_ = f"{path.stem}.0".split(".")
    return month, int(number)


def emit_for(folder: Path, root: str, begin: float, seconds: float, durability: Durability) -> Figures:
    """Emit in a tight loop for some seconds, from the wall-clock time `begin` on, beside other processes."""

    async def work() -> Figures:
        async with open_ledger(root, durability) as led:
            delay = begin - time.time()
            if delay < 0:
                raise RuntimeError(f"opened {-delay:.1f} s too late")
            await asyncio.sleep(delay)
            end = time.perf_counter() + seconds
            started = time.perf_counter()
            data = next(payloads(1))
            done = 0
            while time.perf_counter() < end:
                await led.emit(TYPE, data)
                done += 1
            await led.flush()
            return {"events": done, "seconds": time.perf_counter() - started}

    return asyncio.run(work())


def verify(folder: Path, root: str, processes: int) -> Figures:
    """Verify a whole ledger."""
    import otledger

    size = sum(path.stat().st_size for path in (Path(root) / MACHINE).glob("*.jsonl"))
    started = time.perf_counter()
    report = otledger.verify(root, processes=processes)
    elapsed = time.perf_counter() - started
    if "OK" not in str(report.status):
        raise RuntimeError(f"verify says {report.status}")
    return {"seconds": elapsed, "mb_per_s": size / elapsed / 1e6}


def scan(folder: Path, root: str) -> Figures:
    """Count by type what the Reader returns, and look at `seq` and `time`."""
    import otledger

    started = time.perf_counter()
    types: Counter[str] = Counter()
    last = ("", -1)
    for record in otledger.Reader(root).records():
        types[record.type] += 1
        last = (record.time, record.seq)
    elapsed = time.perf_counter() - started
    if last[1] + 1 != types.total():
        raise RuntimeError(f"read {types.total():,} of {last[1] + 1:,} records")
    return {"rate": types.total() / elapsed}


def follow(folder: Path, root: str, ready: str) -> Figures:
    """Return the percentiles of the ms from just before an append to the record's arrival here."""
    import otledger

    async def work() -> Figures:
        delays: list[float] = []
        await until_exists(Path(root) / MACHINE / ".lock")
        Path(ready).touch()  # noqa: ASYNC240
        async with asyncio.timeout(60):
            async for record in otledger.Reader(root).follow(cursor="end"):
                # CLOCK_MONOTONIC is one clock for all processes of a machine.
                now = time.monotonic_ns()
                if record.type == "bench.stop":
                    break
                if record.type == "bench.tick":
                    delays.append((now - record.data["at"]) / 1e6)
        if len(delays) < 100:
            raise RuntimeError(f"only {len(delays)} records arrived")
        centiles = statistics.quantiles(delays, n=100)
        return {"p50": centiles[49], "p99": centiles[98]}

    return asyncio.run(work())


def tick(folder: Path, root: str, ready: str, n: int) -> Figures:
    """Append `n` events, 5 ms apart, once somebody follows."""

    async def work() -> None:
        async with open_ledger(root, "os") as led:
            await led.append("bench.begin", None)
            await until_exists(Path(ready))
            # The reader says so just before it begins to follow.
            await asyncio.sleep(0.5)
            for _ in range(n):
                await led.append("bench.tick", {"at": time.monotonic_ns()})
                await asyncio.sleep(0.005)
            await led.append("bench.stop", None)

    asyncio.run(work())
    return {}
