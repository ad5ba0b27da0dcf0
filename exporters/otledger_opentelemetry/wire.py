"""Files of OTLP in protobuf: where a message begins and ends, and of which signal it is. Pure.

Such a file holds one message; or messages each behind its length, as a varint (protobuf's own tools) or as four
bytes, the highest first (a collector's file exporter). Nothing in it says which; the bytes can mean only one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor

from otledger_opentelemetry.otlp import SIGNALS

_VARINT, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5
_ITEMS = 100
"""How many spans, log records or metrics are looked at to tell the signal."""


class Frame(NamedTuple):
    """A message of a file: its place, in bytes. Not `whole`: the file ends within it, or nothing fits there."""

    start: int
    end: int
    whole: bool


class _Field(NamedTuple):
    number: int
    wire: int
    start: int
    """Where its content begins, behind its length."""
    end: int


def frames(data: bytes) -> Iterator[Frame] | None:
    """Give the messages in the bytes of a file; None if this is no OTLP in protobuf.

    Of a file that is one message each resource is given for itself: that is a message as well.
    """
    for split in (_one, _by_varint, _by_four_bytes):
        first = next(split(data), None)
        if first is not None and first.whole and first.end > first.start and _is_request(data, first.start, first.end):
            return split(data)
    return None


def _one(data: bytes) -> Iterator[Frame]:
    at = 0
    while at < len(data):
        try:
            field = _field(data, at, len(data))
        except ValueError:
            field = None
        if field is None or (field.number, field.wire) != (1, _LENGTH):
            yield Frame(at, len(data), False)
            return
        yield Frame(at, field.end, True)
        at = field.end


def _by_varint(data: bytes) -> Iterator[Frame]:
    return _framed(data, lambda at: _varint(data, at, len(data)))


def _by_four_bytes(data: bytes) -> Iterator[Frame]:
    return _framed(data, lambda at: (int.from_bytes(data[at : at + 4]), at + 4))


def _framed(data: bytes, length_at: Callable[[int], tuple[int, int]]) -> Iterator[Frame]:
    at = 0
    while at < len(data):
        try:
            length, start = length_at(at)
        except ValueError:
            yield Frame(at, len(data), False)
            return
        if start + length > len(data):
            yield Frame(at, len(data), False)
            return
        yield Frame(start, start + length, True)
        at = start + length


def _is_request(data: bytes, start: int, end: int) -> bool:
    """Tell whether these bytes are resources with their scopes, as every signal has them."""
    try:
        resources = list(_fields(data, start, end))
        inner = [field for resource in resources[:_ITEMS] for field in _fields(data, resource.start, resource.end)]
    except ValueError:
        return False
    are_resources = all((field.number, field.wire) == (1, _LENGTH) for field in resources)
    return are_resources and all(field.wire == _LENGTH and field.number in (1, 2, 3) for field in inner)


def kind_of(data: bytes, frame: Frame) -> str | None:
    """Give the signal of a message: `traces`, `logs` or `metrics`; None where that cannot be told.

    The three differ only in what stands in their third level. Where nothing does it is any of them.
    """
    seen: set[tuple[int, int]] = set()
    sizes = set()
    empty = True
    try:
        for item in _items(data, frame):
            empty = False
            for field in _fields(data, item.start, item.end):
                seen.add((field.number, field.wire))
                if field.number == 1 and field.wire == _LENGTH:
                    sizes.add(field.end - field.start)
    except ValueError:
        pass
    if empty or not seen:
        return "traces" if empty else None
    fitting = [kind for kind, known in _KNOWN.items() if known.issuperset(seen)]
    if "traces" in fitting and "metrics" in fitting:
        # Without any time: a span begins with its trace's id, a metric with its name.
        return "traces" if sizes == {16} else "metrics"
    if "logs" in fitting and (1, _LENGTH) not in seen:
        return "logs"
    return fitting[0] if fitting else None


def count_fields(data: bytes, limit: int) -> int:
    """Give how many fields a request has down to those of its spans, log records or metrics, or `limit` if more.

    It is far cheaper than parsing what has too many. Raises ValueError where it is no message.
    """
    return sum(1 for _ in itertools.islice(_down_to_items(data), limit))


def _down_to_items(data: bytes) -> Iterator[_Field]:
    for resource in _fields(data, 0, len(data)):
        yield resource
        for scope in _fields(data, resource.start, resource.end):
            yield scope
            for item in _fields(data, scope.start, scope.end) if scope.number == 2 else ():
                yield item
                yield from _fields(data, item.start, item.end) if item.number == 2 else ()


def _items(data: bytes, frame: Frame) -> Iterator[_Field]:
    found = 0
    for resource in _fields(data, frame.start, frame.end):
        for scope in _fields(data, resource.start, resource.end):
            if scope.number != 2:
                continue
            for item in _fields(data, scope.start, scope.end):
                if item.number == 2 and item.wire == _LENGTH:
                    yield item
                    found += 1
                    if found == _ITEMS:
                        return


def _known_fields(kind: str) -> set[tuple[int, int]]:
    descriptor = SIGNALS[kind].request.DESCRIPTOR
    for _ in range(3):
        # Of ResourceSpans and of ScopeSpans it is the second field; of the request the only one.
        fields = descriptor.fields_by_number
        inner = (fields.get(2) or fields[1]).message_type
        assert inner is not None
        descriptor = inner
    return {(field.number, _wire_of(field)) for field in descriptor.fields}


def _wire_of(field: Any) -> int:
    if field.type in (FieldDescriptor.TYPE_FIXED64, FieldDescriptor.TYPE_SFIXED64, FieldDescriptor.TYPE_DOUBLE):
        return _EIGHT
    if field.type in (FieldDescriptor.TYPE_FIXED32, FieldDescriptor.TYPE_SFIXED32, FieldDescriptor.TYPE_FLOAT):
        return _FOUR
    texts = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_MESSAGE)
    return _LENGTH if field.type in texts else _VARINT


_KNOWN = {kind: _known_fields(kind) for kind in SIGNALS}


def _fields(data: bytes, start: int, end: int) -> Iterator[_Field]:
    """Give the fields of a message. Raises ValueError where it is none."""
    while start < end:
        field = _field(data, start, end)
        yield field
        start = field.end


def _field(data: bytes, start: int, end: int) -> _Field:
    tag, start = _varint(data, start, end)
    number, wire = tag >> 3, tag & 7
    if wire == _VARINT:
        _, stop = _varint(data, start, end)
    elif wire == _LENGTH:
        length, start = _varint(data, start, end)
        stop = start + length
    elif wire in (_EIGHT, _FOUR):
        stop = start + (8 if wire == _EIGHT else 4)
    else:
        raise ValueError("no type of this number")
    if stop > end or not number:
        raise ValueError("beyond the end")
    return _Field(number, wire, start, stop)


def _varint(data: bytes, start: int, end: int) -> tuple[int, int]:
    """Give a number and where it ends. Raises ValueError."""
    number = 0
    for shift in range(0, 70, 7):
        if start >= end:
            raise ValueError("beyond the end")
        byte = data[start]
        start += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, start
    raise ValueError("longer than 64 bits")
