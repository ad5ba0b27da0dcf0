"""Decoders of lines into msgspec's Structs, by `_decode.c` where it was built and the line is as otledger writes it."""

from __future__ import annotations

from collections.abc import Callable
from types import EllipsisType
from typing import Any, TypeVar

import msgspec

from otledger import speed

S = TypeVar("S", bound=msgspec.Struct)

# As in `_decode.c`.
_TEXT, _INTEGER, _RAW, _OTHER = range(4)
_KINDS: dict[Any, tuple[int, bool]] = {
    str: (_TEXT, False),
    str | None: (_TEXT, True),
    int: (_INTEGER, False),
    int | None: (_INTEGER, True),
    msgspec.Raw: (_RAW, False),
}


def decoder(struct: type[S], fallback: Callable[[bytes], S]) -> Callable[[bytes], S]:
    """Give what makes a `struct` of a line, as `fallback` does, and sets its member `line`.

    In a member of type `msgspec.Raw` there may be bytes. Raises what `fallback` raises.
    """
    if speed.Decoder is None:
        return fallback
    found: Callable[[bytes], S] = _compiled(struct, struct.__dict__["line"], fallback)
    return found


def _compiled(struct: type[msgspec.Struct], line: Any, fallback: Any) -> Any:
    members = tuple(_member(struct, field) for field in msgspec.structs.fields(struct))
    return speed.Decoder(struct, members, line, fallback)  # type: ignore[misc]


def _member(struct: type, field: msgspec.structs.FieldInfo) -> tuple[bytes, Any, bool, Any, Any | EllipsisType]:
    kind: Any
    kind, nullable = _KINDS.get(field.type, (_OTHER, False))
    for nested in getattr(field.type, "__args__", (field.type,)):
        if isinstance(nested, type) and issubclass(nested, msgspec.Struct):
            kind, nullable = _compiled(nested, None, None), nested is not field.type
    initial = ... if field.required else field.default
    return field.encode_name.encode(), kind, nullable, struct.__dict__[field.name], initial
