"""`tail -f`, and the file that keeps a reading position."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import typer

from otledger.cli.app import Failed
from otledger.cli.printing import Key, Printer, key
from otledger.errors import ConfigurationError, FormatError
from otledger.filter import Filter
from otledger.follow import Cursor, Follower
from otledger.record import Record

SAVE_INTERVAL = 0.2
TERMINATED = 128 + signal.SIGTERM


class CursorFile:
    """A cursor kept in a file. What was shown and not saved when the power failed is shown again."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Cursor | None:
        """Give the cursor, None where there is no file yet."""
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return None
        try:
            return Cursor.parse(text)
        except ConfigurationError:
            why = f"{self._path} holds no cursor of otledger; give another file, or remove it to begin anew"
            raise Failed(why) from None

    def save(self, cursor: Cursor) -> None:
        """Replace the file; it is durable on return."""
        part = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(f"{cursor}\n")
            file.flush()
            os.fsync(fd)
        os.replace(part, self._path)


def hold_sigterm() -> None:
    """Have SIGTERM wait until following has begun, which ends in order: what was shown is noted in the cursor."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def follow_on(
    root: Path,
    cursor: Cursor,
    filter: Filter,
    machines: Sequence[str] | None,
    printer: Printer,
    keeper: CursorFile | None,
    seen: set[Key],
) -> None:
    """Show what is written from `cursor` on, until a signal comes. What is in `seen` was shown before."""
    following = _Following(root, cursor, filter, machines, printer, seen)
    try:
        asyncio.run(following.run(keeper))
    except asyncio.CancelledError:
        raise typer.Exit(TERMINATED) from None


class _Following:
    def __init__(
        self,
        root: Path,
        cursor: Cursor,
        filter: Filter,
        machines: Sequence[str] | None,
        printer: Printer,
        seen: set[Key],
    ) -> None:
        self._root = root
        self._cursor = cursor
        self._filter = filter
        self._machines = machines
        self._printer = printer
        self._seen = seen

    async def run(self, keeper: CursorFile | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        # One: a cursor is saved when the one before it is.
        with ThreadPoolExecutor(1, thread_name_prefix="otledger-cursor") as thread:
            saver = asyncio.create_task(self._save(keeper, thread)) if keeper is not None else None
            try:
                while True:
                    await self._until_damage()
            finally:
                if keeper is not None and saver is not None:
                    saver.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await saver
                    thread.submit(keeper.save, self._cursor).result()

    async def _until_damage(self) -> None:
        follower = Follower(self._root, self._cursor, self._filter, machines=self._machines)
        try:
            async with contextlib.aclosing(follower) as records:
                async for record in records:
                    self._show(record)
                    self._cursor = follower.cursor
        except FormatError as error:
            # The cursor is behind the damaged line by now.
            self._printer.fault(error)
            self._cursor = follower.cursor

    def _show(self, record: Record) -> None:
        if self._seen and key(record) in self._seen:
            return
        self._printer.record(record)
        sys.stdout.flush()

    async def _save(self, keeper: CursorFile, thread: ThreadPoolExecutor) -> None:
        saved = self._cursor
        while True:
            await asyncio.sleep(SAVE_INTERVAL)
            if self._cursor != saved:
                saved = self._cursor
                await asyncio.get_running_loop().run_in_executor(thread, keeper.save, saved)
