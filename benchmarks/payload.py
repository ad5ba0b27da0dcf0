"""What every contender writes: the same event type, payloads and span attributes."""

from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

TYPE = "order.placed"
SOURCE = "/bench/bench"
MACHINE = "bench"
ATTRIBUTES: dict[str, Any] = {
    "http.route": "/orders",
    "http.status_code": 201,
    "order.total": 12.5,
    "cached": False,
}

# As JSON about 80 bytes each. Built once: making a dict is no part of what is compared.
_PAYLOADS = [
    {"id": 1000 + i, "item": "book", "price": 12.5, "note": "a payload of about eighty bytes"} for i in range(1000)
]


def payloads(n: int) -> Iterator[dict[str, Any]]:
    """Yield `n` payloads."""
    return islice(cycle(_PAYLOADS), n)
