from collections.abc import Callable
from typing import Any

source: str

class Decoder:
    def __init__(
        self,
        type: type,
        members: tuple[Any, ...],
        line: Any,
        fallback: Callable[[bytes], Any] | None,
        types: tuple[bytes, ...],
        cuts: tuple[Any, ...],
        /,
    ) -> None: ...
    def __call__(self, line: bytes, /) -> Any: ...
    def cell(self, block: bytes, cell: int, /) -> tuple[int, str, str, bytes, list[tuple[int, int]]] | None: ...

def instant(text: str, /) -> int | None: ...
def order(keys: bytes, /) -> bytes: ...
