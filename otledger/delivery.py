"""Handing outcomes to those who wait for them, in whatever loop or thread they wait."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from otledger.journal import Receipt

Outcome = Receipt | BaseException | None


class Waiter(Protocol):
    """A future of asyncio or of concurrent.futures."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: Any, /) -> None: ...


Rooms = list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]]
"""Those who wait for a place in the queue, each with its loop."""


def deliver(outcomes: list[tuple[Any, Outcome]]) -> None:
    """Hand outcomes to their futures: those of a loop in one call to it."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Any, Outcome]]] = {}
    for waiter, outcome in outcomes:
        if isinstance(waiter, concurrent.futures.Future):
            _finish([(waiter, outcome)])
        else:
            by_loop.setdefault(waiter.get_loop(), []).append((waiter, outcome))
    for loop, some in by_loop.items():
        _call(loop, _finish, some)


def wake_rooms(rooms: Rooms) -> None:
    """Have those who waited for a place in the queue look again."""
    for loop, future in rooms:
        _call(loop, _finish, [(future, None)])


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
    # A closed loop: nobody waits any more.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *args)


def _finish(outcomes: list[tuple[Waiter, Outcome]]) -> None:
    for waiter, outcome in outcomes:
        try:
            if isinstance(outcome, BaseException):
                waiter.set_exception(outcome)
            else:
                waiter.set_result(outcome)
        except (asyncio.InvalidStateError, concurrent.futures.InvalidStateError):
            # Cancelled, or told of a time-out before: the first outcome counts.
            continue
