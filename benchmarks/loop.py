"""What a ledger does to the other tasks of its event loop, also while the disk hangs."""

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .ours import open_ledger, until_exists
from .payload import MACHINE, TYPE, payloads

Figures = dict[str, float]

HANG = 1.0
_CALLS = {
    "write": ("write", "writev", "pwrite", "pwritev"),
    "fdatasync": ("fdatasync", "fsync"),
}
_HOLD_LOCK = """
import fcntl, os, sys, time
sys.stdin.readline()
with open(sys.argv[1], "rb") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    open(sys.argv[3], "w").close()
    time.sleep(float(sys.argv[2]))
"""


async def _probe(delays: list[float], interval: float = 0.001) -> None:
    """Be another task of the loop, and note how much later than asked for it runs, in ms."""
    while True:
        due = time.perf_counter() + interval
        await asyncio.sleep(interval)
        delays.append((time.perf_counter() - due) * 1e3)


async def _paced(send: Callable[[dict[str, object]], Any], rate: float, seconds: float) -> int:
    """Send at a steady rate, catching up after a delay, and return how many were sent in time."""
    started = time.perf_counter()
    sent = 0
    events = payloads(sys.maxsize)
    while (elapsed := time.perf_counter() - started) < seconds:
        while sent < elapsed * rate:
            await send(next(events))
            sent += 1
        await asyncio.sleep(0.001)
    return sent


async def _nothing(data: dict[str, object]) -> None:
    """Send nothing, to see the lag of the machine alone."""


async def _lag(send: Callable[[dict[str, object]], Any], rate: float, seconds: float) -> Figures:
    await _paced(send, rate, 0.5)
    delays: list[float] = []
    probe = asyncio.create_task(_probe(delays))
    started = time.perf_counter()
    sent = await _paced(send, rate, seconds)
    achieved = sent / (time.perf_counter() - started)
    probe.cancel()
    with suppress(asyncio.CancelledError):
        await probe
    centiles = statistics.quantiles(delays, n=100)
    return {"p50": centiles[49], "p99": centiles[98], "max": max(delays), "achieved": achieved}


def lag_alone(folder: Path, rate: float, seconds: float) -> Figures:
    """Return the lag of a loop that is paced in the same way and sends nothing."""
    return asyncio.run(_lag(_nothing, rate, seconds))


def lag(folder: Path, rate: float, seconds: float) -> Figures:
    """Return the lag of a loop that emits at a steady rate to a ledger at `disk`."""

    async def work() -> Figures:
        async with open_ledger(folder, "disk") as led:
            return await _lag(lambda data: led.emit(TYPE, data), rate, seconds)

    return asyncio.run(work())


class _Hang:
    """Makes one call that concerns the ledger's files block for a second, as a slow disk would.

    `time.sleep` releases the interpreter lock, as the system call does.
    """

    def __init__(self, root: Path, names: tuple[str, ...]) -> None:
        self._root = f"{root.resolve()}{os.sep}"
        self._armed = False
        for name in names:
            setattr(os, name, self._wrap(getattr(os, name)))

    def arm(self) -> None:
        """Let the next call hang."""
        self._armed = True

    def _wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(fd: int, *arguments: Any) -> Any:
            if self._armed and os.readlink(f"/proc/self/fd/{fd}").startswith(self._root):
                self._armed = False
                time.sleep(HANG)
            return call(fd, *arguments)

        return wrapped


def stall(folder: Path, call: str) -> Figures:
    """Return the longest delay of another task, in ms, while a call of the writer hangs for a second.

    `call` is `write`, `fdatasync`, or `flock`, for which another process holds the lock.
    """
    root = folder / "ledger"
    held = folder / "held"
    command = [sys.executable, "-c", _HOLD_LOCK, str(root / MACHINE / ".lock"), str(HANG), str(held)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
    # Before otledger is imported, so that names which it takes from `os` are the wrapped ones.
    hang = _Hang(root, _CALLS.get(call, ()))

    async def begin() -> None:
        if call == "flock":
            assert holder.stdin
            holder.stdin.write("\n")
            holder.stdin.flush()
            await until_exists(held)
        else:
            hang.arm()

    async def work() -> Figures:
        async with open_ledger(root, "disk") as led:
            delays: list[float] = []
            tasks = [
                asyncio.create_task(_probe(delays)),
                asyncio.create_task(_paced(lambda data: led.emit(TYPE, data), 1000, 3600)),
            ]
            await asyncio.sleep(0.5)
            delays.clear()
            await begin()
            started = time.perf_counter()
            await led.append(TYPE, None)
            hung = time.perf_counter() - started
            # A loop that was blocked may run this task before the probe.
            await asyncio.sleep(0.02)
            worst = max(delays)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if hung < HANG / 2:
            raise RuntimeError(f"the hang did not reach the writer: an append took {hung * 1e3:.0f} ms")
        return {"worst_ms": worst}

    try:
        return asyncio.run(work())
    finally:
        holder.kill()
        holder.wait()
