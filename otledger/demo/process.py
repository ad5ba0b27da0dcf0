"""The demo's server as a process that can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import orjson

import otledger
from otledger.errors import LedgerError

START_TIMEOUT = 20.0
STOP_TIMEOUT = 20.0


class ServerFailed(LedgerError):
    """The demo's server did not start."""


class ServerProcess:
    """A running server. `kill` ends it at once, `terminate` in order."""

    def __init__(self, process: asyncio.subprocess.Process, on_log: Callable[[str], None]) -> None:
        self._process = process
        self._on_log = on_log
        self._log: list[str] = []
        self._reading = asyncio.create_task(self._read_log())
        self.pid = process.pid
        self.port = 0
        self.seconds = 0.0
        """How long it took to be ready."""

    @classmethod
    async def start(cls, root: Path, on_log: Callable[[str], None] = lambda line: None) -> ServerProcess:
        """Start a server on the ledger at `root` and wait until it is ready. Raises `ServerFailed`.

        `on_log` is called with each line that it writes to stderr.
        """
        began = time.perf_counter()
        package = str(Path(otledger.__file__).parents[1])
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "otledger.demo.server", str(root), "--attached"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))},
            # Ctrl-C is for us; the server ends with its stdin.
            start_new_session=True,
        )
        server = cls(process, on_log)
        try:
            await server._wait_until_ready()
        except (TimeoutError, ValueError):
            await server.kill()
            why = server._log[-1] if server._log else "it said nothing"
            raise ServerFailed(f"the demo's server did not start: {why}; see: otledger doctor --root {root}") from None
        server.seconds = time.perf_counter() - began
        return server

    async def _wait_until_ready(self) -> None:
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), START_TIMEOUT)
        self.port = orjson.loads(line)["port"]

    async def _read_log(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            text = line.decode("utf-8", "replace").rstrip()
            self._log.append(text)
            self._on_log(text)

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.returncode is None

    async def kill(self) -> None:
        """End it by SIGKILL, which it cannot notice."""
        self._send(signal.SIGKILL)
        await self._process.wait()
        await self._reading

    def terminate(self) -> None:
        """Ask it by SIGTERM to end."""
        self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        # `Process.send_signal` polls first; where the process has just ended, that takes its exit status away from
        # asyncio, which then complains of an unknown child.
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def ended(self) -> int | None:
        """Wait until it has ended. Gives its exit code, None if it did not end."""
        try:
            return await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT)
        except TimeoutError:
            return None
