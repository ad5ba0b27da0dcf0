"""What records of spans and log records are made of (format, 4), whether the SDK made those or OTLP brought them.

`data` is put together as a dict in the format's order; here it becomes JSON text that a line has a place for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from otledger import spandata as own
from otledger import values
from otledger.batch import MAX_LINE, STAMP_ROOM
from otledger.errors import EventRefused
from otledger.journal import Resource
from otledger.values import TooDeep

Report = Callable[[BaseException], None]
"""Called for each payload that had to be cut, as a line has no place for it."""

MAX_PAYLOAD = MAX_LINE - STAMP_ROOM - 16_384
"""The longest payload in bytes: what stands before it in a line is far shorter than the rest."""

_ROOM = MAX_PAYLOAD - 65_536
"""Bytes that are left to attributes, events, links and body where they are cut."""
_SHORT = 1000
"""Characters that are left of a text beside them."""

_SAFE = frozenset({str, int, bool})
_FLAGS = [f'-{flags:02x}"' for flags in range(256)]
_LONGEST_STATE = 1024
_KEY = r"[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13}"
_VALUE = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_STATE = re.compile(f"(?:{_KEY})={_VALUE}(?:,(?:{_KEY})={_VALUE}){{0,31}}")


# Members


def header(trace_id: int, span_id: int, flags: int) -> str:
    """Give the member `traceparent` of ids and flags that are in range."""
    # By way of bytes: to format integers of this size takes twice as long.
    return f',"traceparent":"00-{(trace_id << 64 | span_id).to_bytes(24, "big").hex("-", -16)}{_FLAGS[flags]}'


def is_header(state: str) -> bool:
    """Tell whether a reader of this `tracestate` header gets the same entries.

    Source: W3C Trace Context, level 2, section 3.3, as the SDK reads it.
    """
    if len(state) > _LONGEST_STATE or not _STATE.fullmatch(state):
        return False
    keys = [member.partition("=")[0] for member in state.split(",")]
    return len(set(keys)) == len(keys)


def link(
    trace_id: str,
    span_id: str,
    flags: int,
    is_remote: bool,
    state: str,
    attributes: Mapping[str, Any],
    dropped: int,
) -> dict[str, Any]:
    """Give a link as it is stored; ids are hex digits."""
    found: dict[str, Any] = {"trace_id": trace_id, "span_id": span_id}
    if flags:
        found["trace_flags"] = flags
    if is_remote:
        found["is_remote"] = True
    if state:
        found["trace_state"] = state
    return found | _described(attributes, dropped)


def event(name: Any, time: Any, attributes: Mapping[str, Any], dropped: int) -> dict[str, Any]:
    """Give an event of a span as it is stored."""
    return {"name": name, "time": time} | _described(attributes, dropped)


def _described(attributes: Mapping[str, Any], dropped: int) -> dict[str, Any]:
    found: dict[str, Any] = {"attributes": attributes} if attributes else {}
    return found | {"dropped": dropped} if dropped else found


def dropped(attributes: int, events: int, links: int) -> dict[str, int]:
    """Give a span's counts of what was dropped, those that are not 0."""
    counts = {"attributes": attributes, "events": events, "links": links}
    return {name: count for name, count in counts.items() if count}


# Payloads


def are_plain(attributes: Mapping[str, Any]) -> bool:
    """Tell whether orjson may be handed these as they are: text, booleans and finite numbers."""
    for value in attributes.values():
        kind = value.__class__
        # A number that is not finite, taken from itself, is not 0: that costs less than to ask for it.
        if kind not in _SAFE and (kind is not float or value - value):
            return False
    # What has one member that begins so means something else (format, 3).
    return len(attributes) != 1 or not next(iter(attributes)).startswith("$")


def of_span(data: dict[str, Any], report: Report, plain: bool = False) -> str:
    """Give a span's data as JSON text; `plain`: orjson may be handed it as it is."""
    try:
        raw = orjson.dumps(data) if plain else values.encode(data)
        if len(raw) <= MAX_PAYLOAD:
            return (raw if raw.isascii() else values.escape_separators(raw)).decode()
    except TypeError:
        # An integer of more than 64 bits, a lone surrogate, a key that is no text.
        return of_span(data, report)
    except TooDeep:
        pass
    names = "attributes", "events", "links"
    attributes, events, links = data.get("attributes", {}), data.get("events", ()), data.get("links", ())
    return _with(data, names, _cut("span", attributes, events, links, report))


def of_log(data: dict[str, Any], report: Report) -> str:
    """Give a log record's data as JSON text."""
    try:
        raw = values.encode(data)
        if len(raw) <= MAX_PAYLOAD:
            return raw.decode()
    except TooDeep:
        pass
    # The body as an event's attribute, so that the values of both are cut by their size.
    body = [{"attributes": {"body": data["body"]}}] if "body" in data else []
    attributes, events, _ = _cut("log record", data.get("attributes", {}), body, (), report)
    return _with(data, ("attributes", "body"), [attributes, events[len(b'[{"attributes":{"body":') : -len(b"}}]")]])


def resource(attributes: Mapping[str, Any], schema_url: str, dropped: int, report: Report) -> Resource:
    """Give the record of a resource."""
    encoded, (url,) = _defined("resource", attributes, [schema_url], report)
    return Resource.make("resource", encoded, schema_url=url or None, dropped=dropped)


def scope(
    name: Any, version: Any, attributes: Mapping[str, Any], schema_url: str, dropped: int, report: Report
) -> Resource:
    """Give the record of an instrumentation scope."""
    encoded, (name, version, url) = _defined("scope", attributes, [name, version, schema_url], report)
    return Resource.make("scope", encoded, name=name, version=version, schema_url=url or None, dropped=dropped)


def _defined(what: str, attributes: Mapping[str, Any], texts: list[Any], report: Report) -> tuple[bytes, list[Any]]:
    """Give attributes as JSON, and the texts, cut where a line would have no place for them."""
    try:
        # A level deeper than a payload: they stand in one.
        encoded = values.encode([attributes])[1:-1]
        if len(encoded) + sum(len(values.encode(text)) for text in texts) <= _ROOM:
            return encoded, texts
    except TooDeep:
        pass
    encoded, _, _ = _cut(what, attributes, (), (), report)
    return encoded or b"{}", [text[:_SHORT] if isinstance(text, str) else text for text in texts]


def _cut(
    what: str, attributes: Mapping[str, Any], events: Sequence[Any], links: Sequence[Any], report: Report
) -> list[bytes]:
    encoded, count = own.cut_largest(attributes, events, links, _ROOM)
    for part in (attributes, *(item.get("attributes", {}) for item in (*events, *links))):
        # Of the values of a key that repeats the last is kept.
        count += len(part) - len(set(part))
    report(EventRefused(f"a {what} was too large for a line: {count} of its values were cut"))
    return encoded


def _with(data: dict[str, Any], names: Sequence[str], encoded: Sequence[bytes]) -> str:
    """Give data with these members as they were encoded, left out where they are empty, and the others short."""
    cut = dict(zip(names, encoded, strict=True))
    found = {
        name: orjson.Fragment(cut[name]) if name in cut else _short(value)
        for name, value in data.items()
        if cut.get(name, b"x")
    }
    return orjson.dumps(found).decode()


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _short(item) for name, item in value.items()}
    if isinstance(value, str):
        value = value[:_SHORT]
    raw = values.encode(value)
    return orjson.Fragment(raw if len(raw) <= 6 * _SHORT + 2 else values.encode(str(value)[:_SHORT]))
