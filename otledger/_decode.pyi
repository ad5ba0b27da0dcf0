from collections.abc import Callable
from typing import Any

source: str

class Decoder:
    def __init__(
        self, type: type, members: tuple[Any, ...], line: Any, fallback: Callable[[bytes], Any] | None, /
    ) -> None: ...
    def __call__(self, line: bytes, /) -> Any: ...
