"""The demo from its beginning to its end: what is done, and what that shows."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from otledger.cli.output import counted
from otledger.demo.client import Answers, Request, Requests, note, send_all
from otledger.demo.findings import Findings, open_spans
from otledger.demo.page import Page
from otledger.demo.process import ServerProcess
from otledger.errors import RootError
from otledger.record import now_ns

AT_ONCE = 8
SLOW = 5
FIRST, SECOND, LAST = 80, 40, 6
"""How many requests are sent before the kill, after it, and while the server is stopped."""
LONG_WAIT = 60.0
"""Seconds for which the bank lets the slow orders wait: longer than the demo runs."""
PATIENCE = 15.0


def run(root: Path | None, *, evledger: Path | None = None, pipeworks: Path | None = None) -> int:
    """Play the demo on the ledger at `root`, or in a new folder that is kept. Gives 0 if everything held, else 1.

    Raises `RootError` where an import is asked for and there is nothing to import, before anything is begun.
    """
    for source in (evledger, pipeworks):
        if source is not None and not source.exists():
            raise RootError(f"{source}: there is nothing at this path; give the ledger to import", path=source)
    folder = Path(tempfile.mkdtemp(prefix="otledger-demo-")) if root is None else root
    story = _Story(folder, evledger, pipeworks)
    asyncio.run(story.play())
    return story.page.end(folder, temporary=root is None)


class _Story:
    def __init__(self, root: Path, evledger: Path | None, pipeworks: Path | None) -> None:
        self.page = Page()
        self._root = root
        self._evledger = evledger
        self._pipeworks = pipeworks
        self._began = now_ns()
        self._requests = Requests()
        self._answers = Answers()

    async def play(self) -> None:
        self.page.title(self._root)
        server = await self._start()
        try:
            await self._work(server, FIRST)
            await self._kill(server)
            server = await self._start_again()
            await self._work(server, SECOND)
            await self._stop(server)
        finally:
            await server.kill()
        self._import()
        findings = Findings(self._root, self._began, self._answers)
        findings.check(self.page)
        findings.tell(self.page)

    async def _start(self) -> ServerProcess:
        self.page.step("Start a server", "asyncio, with the ledger embedded")
        server = await ServerProcess.start(self._root, self._log)
        self.page.say(f"process {server.pid} serves http://127.0.0.1:{server.port}, ready in {server.seconds:.1f} s")
        return server

    def _log(self, line: str) -> None:
        # What a batch that was being written at the kill has left is reported here by whoever starts next.
        self.page.say(f"the server's log says: {line}")

    async def _work(self, server: ServerProcess, count: int) -> None:
        self.page.step(f"Send {count} requests", f"{AT_ONCE} at a time")
        orders, turns, began = len(self._answers.orders), len(self._answers.turns), time.perf_counter()
        await send_all(server.port, self._requests.mixed(count), self._answers, at_once=AT_ONCE)
        orders, turns = len(self._answers.orders) - orders, len(self._answers.turns) - turns
        seconds = time.perf_counter() - began
        self.page.check(
            orders + turns == count and not self._answers.refused,
            f"{counted(orders, 'order')} and {counted(turns, 'turn')} answered in {seconds:.1f} s;"
            " an order is confirmed when it is on the disk",
        )
        for reason in self._answers.refused:
            self.page.say(reason)

    async def _kill(self, server: ServerProcess) -> None:
        self.page.step("Kill it", "SIGKILL, while requests are open")
        before, unanswered = self._answers.count, self._answers.unanswered
        slow = [self._requests.order(LONG_WAIT) for _ in range(SLOW)]
        tasks = [asyncio.create_task(note(server.port, request, self._answers)) for request in slow]
        tasks += [asyncio.create_task(self._without_pause(server)) for _ in range(AT_ONCE)]
        seen = await self._wait_for_open_spans(SLOW, answered=before + 2 * AT_ONCE)
        self.page.check(seen, f"the ledger shows the spans of {SLOW} orders that wait for their bank, as running")
        await server.kill()
        await asyncio.gather(*tasks)
        lost = self._answers.unanswered - unanswered
        self.page.check(
            lost >= SLOW,
            f"killed: {counted(self._answers.count - before, 'request')} answered until then,"
            f" {lost} left without an answer",
        )

    async def _without_pause(self, server: ServerProcess) -> None:
        while server.running:
            for request in self._requests.mixed(4):
                unanswered = self._answers.unanswered
                await note(server.port, request, self._answers)
                if self._answers.unanswered > unanswered:
                    return

    async def _wait_for_open_spans(self, orders: int, *, answered: int) -> bool:
        """Wait until so many orders wait for their bank, as the ledger tells, and so many requests are answered."""

        async def wait() -> None:
            while True:
                spans = await asyncio.to_thread(open_spans, self._root, self._began)
                waiting = [span for span, state in spans if span.name == "charge" and state == "running"]
                if len(waiting) >= orders and self._answers.count >= answered:
                    return
                await asyncio.sleep(0.05)

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(wait(), PATIENCE)
            return True
        return False

    async def _start_again(self) -> ServerProcess:
        self.page.step("Start it again", "on the same ledger")
        server = await ServerProcess.start(self._root, self._log)
        self.page.say(f"process {server.pid}, ready in {server.seconds:.1f} s")
        return server

    async def _stop(self, server: ServerProcess) -> None:
        self.page.step("Stop it", "SIGTERM, while requests are open")
        before = self._answers.count
        tasks = [asyncio.create_task(note(server.port, r, self._answers)) for r in self._last_requests()]
        await self._wait_for_open_spans(LAST, answered=before)
        server.terminate()
        code = await server.ended()
        await asyncio.gather(*tasks)
        answered = self._answers.count - before
        self.page.check(
            answered == LAST and code == 0,
            f"{answered} of {LAST} open requests were answered; then it closed the ledger and ended with code {code}",
        )

    def _last_requests(self) -> Iterator[Request]:
        for _ in range(LAST):
            yield self._requests.order(1.0)

    def _import(self) -> None:
        from otledger.predecessors import import_evledger, import_pipeworks

        for name, source, take in (
            ("evledger", self._evledger, import_evledger),
            ("PipeWorks", self._pipeworks, import_pipeworks),
        ):
            if source is None:
                continue
            self.page.step(f"Import the ledger of {name}", str(source))
            report = take(self._root, source)
            self.page.check(
                not report.refused,
                f"{counted(report.imported, 'event')} into {', '.join(report.partitions)};"
                f" {report.already_there} were there already, {len(report.refused)} refused",
            )
            for refused in report.refused:
                self.page.say(f"{refused.file}, offset {refused.offset}: {refused.reason}")
