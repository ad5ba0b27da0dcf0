"""Payload values as JSON text and back, by the table in section 3 of docs/format.md.

What JSON has no word for is stored as an object whose only member's name begins with `$`; nothing is dropped.
"""

import re
from base64 import b64encode
from binascii import a2b_base64
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timezone
from decimal import Context, Decimal, InvalidOperation
from enum import Enum
from math import isfinite
from typing import Any
from uuid import UUID

import msgspec
import orjson

from otledger import speed

__all__ = ["MAX_DEPTH", "TooDeep", "decode", "encode", "escape_separators", "loads"]

MAX_DEPTH = 98
"""How deep the text of a payload may be nested: a line may be 100 deep, and its record is a level."""

_MAX_REPR = 1000
_DOLLAR, _BACKSLASH = b"$\\"
_LEAVES = frozenset({str, int, bool, type(None)})
_INTEGER = re.compile(r"-?[0-9]+")
_DECIMAL = re.compile(r"[-+.0-9A-Za-z]+")
# Decimal() obeys the caller's context, which may turn a malformed text into NaN instead of raising.
_STRICT = Context(traps=[InvalidOperation])
_dumps = orjson.dumps
_parse = msgspec.json.Decoder().decode


class TooDeep(ValueError):
    """Say that the text of a payload would be nested deeper than `MAX_DEPTH`, or without end."""

    def __init__(self) -> None:
        super().__init__(
            f"the payload is nested deeper than {MAX_DEPTH} levels or contains itself; flatten or split it"
        )


def encode(value: object, on_repr: Callable[[], None] | None = None) -> bytes:
    """Write a payload as JSON text.

    Gives compact UTF-8 without NaN, repeated members, or a raw U+0085, U+2028 or U+2029. `on_repr` is called
    once for each value that can be stored only as its `$repr`.

    Raises `TooDeep` where the text, `$` objects included, would be nested deeper than `MAX_DEPTH`, where the
    payload contains itself, and where the caller has used up the stack. What `on_repr` raises passes; nothing
    else is raised but `MemoryError`.

    Source: docs/format.md, sections 2 and 3.
    """
    if speed.encode_plain is not None:
        raw = speed.encode_plain(value, MAX_DEPTH)
        if raw is not None:
            return raw
    try:
        raw = _dumps(value) if _is_plain(value, MAX_DEPTH) else None
    except Exception:  # a key that is no string, a lone surrogate, a big integer, a change by another thread
        raw = None
    if raw is None:
        try:
            raw = orjson.dumps(_build(value, MAX_DEPTH, on_repr))
        except RecursionError:
            raise TooDeep from None
    return raw if raw.isascii() else escape_separators(raw)


def decode(value: object) -> object:
    """Turn plain JSON values, as a parser gives them, back into the payload that `encode` was given.

    Gives new containers. A `$set` with an element that cannot be hashed becomes a list, a `$map` with a key
    that cannot be hashed or repeats (as 1 and True do) a list of `(key, value)` tuples. An object of one
    member whose name begins with `$` comes back as the object that it is, content and all, where the name is
    unknown or the content malformed. Numbers are as exact as the parser was. Raises nothing but
    `RecursionError`.

    Source: docs/format.md, section 3, "comes back as".
    """
    if type(value) is dict:
        if len(value) == 1:
            ((name, content),) = value.items()
            if name.startswith("$"):
                kind, read = _READERS.get(name, (None, None))
                try:
                    return read(content) if read is not None and type(content) is kind else value
                except (ValueError, ArithmeticError):
                    return value
        return {name: decode(content) for name, content in value.items()}
    if type(value) is list:
        return [decode(item) for item in value]
    return value


def loads(raw: bytes) -> object:
    """Read the JSON text of a payload.

    Gives what `decode` gives; integers are exact. Raises `msgspec.DecodeError` or `UnicodeDecodeError` where
    the text is no JSON in UTF-8 or a number is out of range, and `RecursionError` where it is nested too deep
    for the stack.

    Source: docs/format.md, section 3.
    """
    value: object = _parse(raw)
    # Another program may have written a space after the brace, or the dollar sign as an escape. To look for a
    # single byte first is several times faster.
    if (_DOLLAR in raw and b'"$' in raw) or (_BACKSLASH in raw and b"\\u0024" in raw):
        return decode(value)
    return value


def escape_separators(raw: bytes) -> bytes:
    """Write U+0085, U+2028 and U+2029 in a JSON text as escapes.

    Gives the same value, in a text that readers which split lines there do not break. Raises nothing.

    Source: docs/format.md, section 2.
    """
    # In JSON these characters can stand only inside strings, and in UTF-8 their bytes can be nothing else.
    if 0xC2 in raw:
        raw = raw.replace(b"\xc2\x85", b"\\u0085")
    if 0xE2 in raw:
        raw = raw.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return raw


def _is_plain(value: Any, room: int) -> bool:
    """Tell whether orjson may be handed `value` as it is, with `room` levels left.

    Every value is looked at because orjson, as of 3.13, writes NaN as null without a word, and does not raise
    but crash the process on tuples nested without end, an Enum whose `value` raises, an unset slot of a
    dataclass, a tzinfo that raises. So it gets none of these, and nothing that would run foreign code.
    """
    kind = type(value)
    if kind is dict:
        if len(value) == 1:
            for key in value:
                if type(key) is not str or key.startswith("$"):
                    return False
        value = value.values()
    elif kind is not list and kind is not tuple:
        return kind in _LEAVES or (kind is float and isfinite(value))
    if not room:
        return False
    for item in value:
        kind = type(item)
        if kind not in _LEAVES and not (isfinite(item) if kind is float else _is_plain(item, room - 1)):
            return False
    return True


class _Pairs(list[tuple[Any, Any]]):
    """The items of a map, whatever kind of map it was."""


class _Elements(list[Any]):
    """The elements of a set."""


def _build(value: Any, room: int, on_repr: Callable[[], None] | None) -> object:
    """Give what stands for `value` in JSON, of builtin kinds alone and nested at most `room` deep."""
    kind = type(value)
    if kind is bool or value is None:
        return value
    if kind is str:
        if _is_text(value):
            return value
        return _wrap("$str", _base64(value.encode("utf-8", "surrogatepass")), room)
    if kind is int:
        return value if -(2**63) <= value < 2**64 else _wrap("$int", _digits(value), room)
    if kind is float:
        if isfinite(value):
            return value
        return _wrap("$float", {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)], room)
    if kind is bytes:
        return _wrap("$bytes", _base64(value), room)
    if kind is Decimal:
        return _wrap("$decimal", str(value), room)
    if kind is list:
        _require(room, 1)
        return [_build(item, room - 1, on_repr) for item in value]
    if kind is _Elements:
        _require(room, 2)
        return {"$set": [_build(item, room - 2, on_repr) for item in value]}
    if kind is dict or kind is _Pairs:
        return _build_map(list(value.items()) if kind is dict else value, room, on_repr)
    try:
        simpler = _simplify(value, kind)
    except (RecursionError, MemoryError):
        raise
    except Exception:  # a kind that is not known, or code of the value's own that raised
        _require(room, 1)
        if on_repr is not None:
            on_repr()
        return {"$repr": _describe(value, kind)}
    return _build(simpler, room, on_repr)


def _build_map(pairs: list[tuple[Any, Any]], room: int, on_repr: Callable[[], None] | None) -> object:
    _require(room, 1)
    names = [str.__str__(key) for key, _ in pairs if issubclass(type(key), str)]
    if (
        len(set(names)) == len(pairs)
        and all(map(_is_text, names))
        and not (len(names) == 1 and names[0].startswith("$"))
    ):
        return {name: _build(item, room - 1, on_repr) for name, (_, item) in zip(names, pairs, strict=True)}
    _require(room, 3)
    room -= 3
    return {"$map": [[_build(key, room, on_repr), _build(item, room, on_repr)] for key, item in pairs]}


def _simplify(value: Any, kind: type) -> object:
    """Give `value` as a kind that `_build` knows, or nearer to one; raise anything where there is none.

    Where it can be, a base class's own method is called, for a subclass may have changed it; and `kind` is
    asked, not isinstance(), for `__class__` may lie. An Enum comes first, as in orjson: it may be a str too.
    """
    if issubclass(kind, Enum):
        return value.value
    if issubclass(kind, str):
        return str.__str__(value)
    if issubclass(kind, int):
        return int.__int__(value)
    if issubclass(kind, float):
        return float.__float__(value)
    if issubclass(kind, dict):
        return _Pairs(dict.items(value))
    if issubclass(kind, list):
        return list(list.__iter__(value))
    if issubclass(kind, tuple):
        return list(tuple.__iter__(value))
    if issubclass(kind, (bytes, bytearray, memoryview)):
        return memoryview(value).tobytes()
    if issubclass(kind, set):
        return _Elements(set.__iter__(value))
    if issubclass(kind, frozenset):
        return _Elements(frozenset.__iter__(value))
    if issubclass(kind, Decimal):
        return Decimal(value)
    if issubclass(kind, datetime):
        # The offset is asked for here because orjson would ask in a way that cannot fail safely.
        offset = value.utcoffset()
        zone = None if offset is None else timezone(offset)
        return orjson.dumps(datetime.combine(value.date(), value.time(), zone))[1:-1].decode()
    if issubclass(kind, date):
        return date.isoformat(value)
    if issubclass(kind, time) and value.tzinfo is None:
        return time.isoformat(value)  # orjson, as of 3.13, writes 0.045678 seconds as 0.45678
    if issubclass(kind, UUID):
        return str(UUID(int=value.int))
    if is_dataclass(kind):
        # As orjson: all attributes, fields or not, but those with a leading underscore.
        members = dict(getattr(value, "__dict__", {}))
        for field in fields(kind):
            if field.name not in members and hasattr(value, field.name):
                members[field.name] = getattr(value, field.name)
        return _Pairs(item for item in members.items() if str(item[0])[:1] != "_")
    if issubclass(kind, Mapping):
        return _Pairs((key, item) for key, item in value.items())
    raise TypeError


def _describe(value: object, kind: type) -> str:
    # Neither repr() nor a metaclass can be trusted to return, to return a plain string, or to return UTF-8.
    try:
        name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    except Exception:
        name = "object"
    try:
        text = str.__str__(repr(value))
    except Exception as error:
        text = f"<repr() raised {type(error).__name__}>"
    return f"{_cut(name)}: {_cut(text)}"


def _cut(text: str) -> str:
    return text[:_MAX_REPR].encode("utf-8", "backslashreplace").decode()[:_MAX_REPR]


def _require(room: int, levels: int) -> None:
    if room < levels:
        raise TooDeep


def _wrap(name: str, content: str, room: int) -> object:
    _require(room, 1)
    return {name: content}


def _is_text(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _base64(content: bytes) -> str:
    return b64encode(content).decode()


def _digits(number: int) -> str:
    try:
        return str(number)
    except ValueError:  # sys.set_int_max_str_digits(), which binds int but not Decimal
        return str(Decimal(number))


def _read_bytes(text: str) -> bytes:
    return a2b_base64(text, strict_mode=True)


def _read_str(text: str) -> str:
    return _read_bytes(text).decode("utf-8", "surrogatepass")


def _read_float(text: str) -> float:
    if text not in ("NaN", "Infinity", "-Infinity"):
        raise ValueError
    # A new object each time: two NaN are two keys of a map, one NaN is one.
    return float(text)


def _read_int(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError
    number = _natural(text.removeprefix("-"))
    return -number if text.startswith("-") else number


def _natural(digits: str) -> int:
    # No limit of sys.set_int_max_str_digits() is below 640. Halving makes a hostile file's number cheaper.
    if len(digits) <= 640:
        return int(digits)
    half = len(digits) // 2
    shift: int = 10**half
    return _natural(digits[:-half]) * shift + _natural(digits[-half:])


def _read_decimal(text: str) -> Decimal:
    if not _DECIMAL.fullmatch(text):
        raise ValueError
    return Decimal(text, _STRICT)


def _read_set(items: list[object]) -> object:
    elements = [decode(item) for item in items]
    try:
        return set(elements)
    except TypeError:
        return elements


def _read_map(items: list[Any]) -> object:
    if any(type(pair) is not list for pair in items):
        raise ValueError
    pairs = [(decode(key), decode(item)) for key, item in items]
    try:
        mapping = dict(pairs)
    except TypeError:
        return pairs
    return mapping if len(mapping) == len(pairs) else pairs


_READERS: dict[str, tuple[type, Callable[[Any], object]]] = {
    "$bytes": (str, _read_bytes),
    "$float": (str, _read_float),
    "$int": (str, _read_int),
    "$decimal": (str, _read_decimal),
    "$set": (list, _read_set),
    "$str": (str, _read_str),
    "$map": (list, _read_map),
}
