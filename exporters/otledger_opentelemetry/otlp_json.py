"""OTLP/JSON text to protobuf messages and back, by the rules of the OTLP specification ("JSON Protobuf Encoding").

Member names in lowerCamelCase; trace and span ids in hex; enums as integers; 64-bit integers as strings; bytes in
base64; `NaN`, `Infinity` and `-Infinity` as strings. Read are also the names of enums, numbers for 64-bit integers
and names as the .proto files write them; unknown members are ignored.
"""

from __future__ import annotations

import math
import re
from base64 import b64encode
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import orjson
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

M = TypeVar("M", bound=Message)

MAX_DEPTH = 100
"""How deep messages may be nested, as in protobuf's own parsers."""

_IDS = frozenset({"trace_id", "span_id", "parent_span_id"})
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_NUMBER = re.compile(r"-?\d{1,400}(\.\d{1,400})?([eE][+-]?\d{1,9})?", re.ASCII)
_SHORT = 80

Reader = Callable[[Any, int], Any]
Writer = Callable[[Any], Any]


class NoOtlp(ValueError):
    """The text is no OTLP/JSON. `str` says where and why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self._reason = reason
        self._path: list[str] = []

    def inside(self, place: str) -> NoOtlp:
        """Note that it was found in this member or element."""
        self._path.append(place)
        return self

    def __str__(self) -> str:
        place = ".".join(reversed(self._path)).replace(".[", "[")
        return f"{place}: {self._reason}" if place else self._reason


# Reading


def parse(text: bytes) -> dict[str, Any]:
    """Give the JSON object in a text. Raises `NoOtlp`."""
    try:
        value = orjson.loads(text)
    except ValueError as error:
        raise NoOtlp(f"no JSON: {error}") from None
    if not isinstance(value, dict):
        raise NoOtlp(f"no JSON object: it is {_kind(value)}")
    return value


def read(value: Mapping[str, Any], kind: type[M]) -> M:
    """Give the message of class `kind` that a JSON object stands for. Raises `NoOtlp`."""
    try:
        found: M = _read_message(value, kind.DESCRIPTOR, MAX_DEPTH)
        return found
    except RecursionError:
        raise NoOtlp("nested too deep") from None


def count(value: Mapping[str, Any], limit: int) -> int:
    """Give how many values are in a JSON object, or `limit` if more."""
    found, todo = 0, [value]
    while todo and found < limit:
        item: Any = todo.pop()
        found += 1
        todo.extend(item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
    return min(found + len(todo), limit)


def loads(text: bytes, kind: type[M]) -> M:
    """Give the message of class `kind` in an OTLP/JSON text. Raises `NoOtlp`."""
    return read(parse(text), kind)


def _read_message(value: Any, descriptor: Any, room: int) -> Any:
    if not isinstance(value, Mapping):
        raise NoOtlp(f"no JSON object: it is {_kind(value)}")
    if not room:
        raise NoOtlp(f"nested deeper than {MAX_DEPTH} messages")
    make, readers = _readers.get(descriptor.full_name) or _make_readers(descriptor)
    members = {}
    for name, member in value.items():
        known = readers.get(name)
        if known is None or member is None:
            continue
        field, one_of, reader = known
        try:
            members[field] = reader(member, room - 1)
        except NoOtlp as error:
            raise error.inside(name) from None
        if one_of and len(one_of.intersection(members)) > 1:
            raise NoOtlp(f"only one of these may be there: {', '.join(sorted(one_of.intersection(members)))}")
    try:
        return make(**members)
    except (ValueError, TypeError) as error:
        raise NoOtlp(str(error)) from None


_Readers = dict[str, tuple[str, frozenset[str], Reader]]
"""For a member's name: its field, the fields of which only one may be there, and what reads it."""
_readers: dict[str, tuple[type[Message], _Readers]] = {}


def _make_readers(descriptor: Any) -> tuple[type[Message], _Readers]:
    found: _Readers = {}
    for field in descriptor.fields:
        group = field.containing_oneof
        one_of = frozenset(other.name for other in group.fields) if group is not None else frozenset()
        reader = _reader_of(field)
        if field.is_repeated:
            reader = _list_of(reader)
        found[field.name] = found[field.json_name] = field.name, one_of if len(one_of) > 1 else frozenset(), reader
    _readers[descriptor.full_name] = GetMessageClass(descriptor), found
    return _readers[descriptor.full_name]


def _list_of(reader: Reader) -> Reader:
    def read_list(value: Any, room: int) -> list[Any]:
        if not isinstance(value, list):
            raise NoOtlp(f"no list: it is {_kind(value)}")
        found = []
        for at, item in enumerate(value):
            try:
                found.append(reader(item, room))
            except NoOtlp as error:
                raise error.inside(f"[{at}]") from None
        return found

    return read_list


def _reader_of(field: Any) -> Reader:
    kind = field.type
    if kind == FieldDescriptor.TYPE_MESSAGE:
        inner = field.message_type
        return lambda value, room: _read_message(value, inner, room)
    if kind == FieldDescriptor.TYPE_ENUM:
        names = {value.name: value.number for value in field.enum_type.values}
        return lambda value, _: _read_enum(value, names)
    if kind == FieldDescriptor.TYPE_STRING:
        return _read_text
    if kind == FieldDescriptor.TYPE_BYTES:
        return _read_id if field.name in _IDS else _read_bytes
    if kind == FieldDescriptor.TYPE_BOOL:
        return _read_bool
    if kind == FieldDescriptor.TYPE_DOUBLE:
        return _read_double
    low, high = _RANGES[kind]
    return lambda value, _: _read_integer(value, low, high)


_RANGES = {
    FieldDescriptor.TYPE_INT32: (-(1 << 31), 1 << 31),
    FieldDescriptor.TYPE_SINT32: (-(1 << 31), 1 << 31),
    FieldDescriptor.TYPE_SFIXED32: (-(1 << 31), 1 << 31),
    FieldDescriptor.TYPE_UINT32: (0, 1 << 32),
    FieldDescriptor.TYPE_FIXED32: (0, 1 << 32),
    FieldDescriptor.TYPE_INT64: (-(1 << 63), 1 << 63),
    FieldDescriptor.TYPE_SINT64: (-(1 << 63), 1 << 63),
    FieldDescriptor.TYPE_SFIXED64: (-(1 << 63), 1 << 63),
    FieldDescriptor.TYPE_UINT64: (0, 1 << 64),
    FieldDescriptor.TYPE_FIXED64: (0, 1 << 64),
}


def _read_integer(value: Any, low: int, high: int) -> int:
    number = value
    if type(value) is str:
        # int() also takes underscores, other scripts' digits and any length.
        plain = value.isascii() and value.removeprefix("-").isdigit() and len(value) <= _SHORT
        number = int(value) if plain else None
    elif type(value) is float and value.is_integer():
        number = int(value)
    if type(number) is not int:
        raise NoOtlp(f"no integer: {_shown(value)}")
    if not low <= number < high:
        raise NoOtlp(f"{_shown(value)} is out of range")
    return number


def _read_enum(value: Any, names: Mapping[str, int]) -> int:
    if type(value) is str and value in names:
        return names[value]
    if type(value) is not int:
        raise NoOtlp(f"{_shown(value)} is no value of this enumeration")
    return _read_integer(value, -(1 << 31), 1 << 31)


def _read_text(value: Any, _: int) -> str:
    if type(value) is not str:
        raise NoOtlp(f"no text: {_shown(value)}")
    return value


def _read_bool(value: Any, _: int) -> bool:
    if type(value) is not bool:
        raise NoOtlp(f"neither true nor false: {_shown(value)}")
    return value


def _read_double(value: Any, _: int) -> float:
    if type(value) is str and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    if type(value) not in (int, float) and not (type(value) is str and _NUMBER.fullmatch(value)):
        raise NoOtlp(f"no number: {_shown(value)}")
    return float(value)


def _read_id(value: Any, _: int) -> bytes:
    try:
        found = bytes.fromhex(value)
    except (TypeError, ValueError):
        found = b""
    # fromhex() passes over spaces.
    if type(value) is not str or len(value) != 2 * len(found):
        raise NoOtlp(f"no hex digits: {_shown(value)}")
    return found


def _read_bytes(value: Any, _: int) -> bytes:
    try:
        text = _read_text(value, 0).rstrip("=").replace("-", "+").replace("_", "/")
        return a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except (Base64Error, ValueError):
        raise NoOtlp(f"no base64: {_shown(value)}") from None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    return repr(value)[:_SHORT]


# Writing


def plain(message: Message) -> dict[str, Any]:
    """Give a message as the JSON object that OTLP/JSON writes for it; what equals its default is left out."""
    found = {}
    for field, value in message.ListFields():
        known = _writers.get(field.full_name)
        if known is None:
            known = _writers[field.full_name] = field.json_name, _writer_of(field)
        name, writer = known
        if writer is not None:
            value = [writer(item) for item in value] if field.is_repeated else writer(value)
        elif field.is_repeated:
            value = list(value)
        found[name] = value
    return found


def dumps(message: Message) -> bytes:
    """Give a message as OTLP/JSON text in one line, without an LF."""
    return orjson.dumps(plain(message))


_writers: dict[str, tuple[str, Writer | None]] = {}


def _writer_of(field: Any) -> Writer | None:
    """Give what turns a value of the field into one of JSON; None: it is one."""
    kind = field.type
    if kind == FieldDescriptor.TYPE_MESSAGE:
        return plain
    if kind == FieldDescriptor.TYPE_BYTES:
        return bytes.hex if field.name in _IDS else _base64
    if kind == FieldDescriptor.TYPE_DOUBLE:
        return _double
    return str if kind in _RANGES and _RANGES[kind][1] > 1 << 32 else None


def _base64(value: bytes) -> str:
    return b64encode(value).decode()


def _double(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
