"""What the demo sends to its server, and what came back."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

ITEMS = ("lamp", "rope", "map", "kettle", "compass", "lantern oil")
PLAYERS = ("Mira", "Kael", "Zoë")
DEEDS = ("open the door", "bribe the guard", "read the old map", "wake the captain", "row to the island")


@dataclass(frozen=True, slots=True)
class Request:
    """A request, not sent yet."""

    path: str
    payload: dict[str, Any]


@dataclass(slots=True)
class Answers:
    """What was answered, and how many requests were left without an answer."""

    orders: dict[int, dict[str, Any]] = field(default_factory=dict)
    """The confirmations by the number of the order."""
    turns: list[str] = field(default_factory=list)
    unanswered: int = 0
    refused: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many requests were answered as they should be."""
        return len(self.orders) + len(self.turns)


class Requests:
    """Makes requests, each different from all before."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def order(self, wait: float = 0.01) -> Request:
        """Give an order for which the bank needs `wait` seconds."""
        number = next(self._numbers)
        item = ITEMS[number % len(ITEMS)]
        return Request("/order", {"number": number, "item": item, "amount": 5 + number % 40, "wait": wait})

    def say(self) -> Request:
        """Give a player's turn."""
        number = next(self._numbers)
        player, deed = PLAYERS[number % len(PLAYERS)], DEEDS[number % len(DEEDS)]
        return Request("/say", {"player": player, "text": deed, "turn": number})

    def mixed(self, count: int) -> list[Request]:
        """Give requests of which every fourth is a turn."""
        return [self.say() if at % 4 == 3 else self.order() for at in range(count)]


async def send(port: int, request: Request) -> Any:
    """Send a request and give its answer. Raises OSError or IncompleteReadError where none came, ValueError for
    one that is no success."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        body = orjson.dumps(request.payload)
        head = f"POST {request.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        status = int((await reader.readuntil(b" "), await reader.readexactly(3))[1])
        length = 0
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        answer = orjson.loads(await reader.readexactly(length))
    finally:
        writer.close()
    if status != 200:
        raise ValueError(f"{request.path}: {status} {answer}")
    return answer


async def send_all(port: int, requests: Iterable[Request], answers: Answers, *, at_once: int) -> None:
    """Send requests, so many at a time, and note what comes back."""
    places = asyncio.Semaphore(at_once)

    async def one(request: Request) -> None:
        async with places:
            await note(port, request, answers)

    await asyncio.gather(*(one(request) for request in requests))


async def note(port: int, request: Request, answers: Answers) -> None:
    """Send a request and note what comes back."""
    try:
        answer = await send(port, request)
    except (OSError, EOFError):
        answers.unanswered += 1
    except ValueError as error:
        answers.refused.append(str(error))
    else:
        if request.path == "/order":
            answers.orders[answer["number"]] = answer
        else:
            answers.turns.append(answer["turn"])
