"""Decoders of lines into msgspec's Structs, by `_decode.c` where it was built and the line is as otledger writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import EllipsisType, MappingProxyType
from typing import Any, TypeVar

import msgspec

from otledger import speed

S = TypeVar("S", bound=msgspec.Struct | None)

# As in `_decode.c`.
_TEXT, _INTEGER, _RAW, _OTHER = range(4)
_KINDS: dict[Any, tuple[int, bool]] = {
    str: (_TEXT, False),
    str | None: (_TEXT, True),
    int: (_INTEGER, False),
    int | None: (_INTEGER, True),
    msgspec.Raw: (_RAW, False),
}


def decoder(
    struct: type[msgspec.Struct],
    fallback: Callable[[bytes], S],
    *,
    types: tuple[bytes, ...] = (),
    cuts: Mapping[str, tuple[str, int, int]] = MappingProxyType({}),
) -> Callable[[bytes], S]:
    """Give what makes a `struct` of a line, as `fallback` does, and sets its member `line`.

    `types`: of a line with another beginning behind its first `"type":"` it makes None, as `fallback` has to. `cuts`
    names members that take a slice of another one, a text. In a member of type `msgspec.Raw` there may be bytes.
    Raises what `fallback` raises.
    """
    if speed.Decoder is None:
        return fallback
    found: Callable[[bytes], S] = _compiled(struct, struct.__dict__["line"], fallback, types, cuts)
    return found


def _compiled(
    struct: type[msgspec.Struct],
    line: Any = None,
    fallback: Any = None,
    types: tuple[bytes, ...] = (),
    cuts: Mapping[str, tuple[str, int, int]] = MappingProxyType({}),
) -> Any:
    fields = msgspec.structs.fields(struct)
    members = tuple(_member(struct, field) for field in fields)
    places = {field.name: place for place, field in enumerate(fields)}
    slices = tuple((struct.__dict__[name], places[of], start, stop) for name, (of, start, stop) in cuts.items())
    return speed.Decoder(struct, members, line, fallback, types, slices)  # type: ignore[misc]


def _member(struct: type, field: msgspec.structs.FieldInfo) -> tuple[bytes, Any, bool, Any, Any | EllipsisType]:
    kind: Any
    kind, nullable = _KINDS.get(field.type, (_OTHER, False))
    for nested in getattr(field.type, "__args__", (field.type,)):
        if isinstance(nested, type) and issubclass(nested, msgspec.Struct):
            kind, nullable = _compiled(nested), nested is not field.type
    initial = ... if field.required else field.default
    return field.encode_name.encode(), kind, nullable, struct.__dict__[field.name], initial
