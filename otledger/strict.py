"""What a line must be besides its checksum: the checks of format, 2 and 3, that need it parsed."""

from __future__ import annotations

import json
import re
from typing import Any

from otledger.record import RESERVED_NAMES

_ORDER = (
    *("specversion", "id", "source", "type", "time", "datacontenttype", "dataschema", "subject", "machine"),
    *("ipchash", "traceparent", "tracestate", "", "data", "synced", "seq", "prev", "checksum"),
)
"""The members in their order; "" stands for extensions and marks."""
_PLACE = {name: at for at, name in enumerate(_ORDER)}
_REQUIRED = ("specversion", "id", "source", "type", "time", "machine", "seq", "prev", "checksum")
_NAME = re.compile(r"[a-z0-9]{1,20}", re.ASCII)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", re.ASCII)
_SEPARATORS = ("\u0085", "\u2028", "\u2029")
_SPACE_OUTSIDE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[ \t\r]')
MAX_DEPTH = 100


class DeepCheck:
    """Checks lines of one machine, in their order, for what needs more than one of them to tell."""

    def __init__(self, machine: str) -> None:
        self._machine = machine
        self._ids: set[int] = set()
        self._synced = 0

    def again(self) -> DeepCheck:
        """Give a check for lines that this one has seen already."""
        return DeepCheck(self._machine)

    def why_not(self, line: bytes) -> str | None:
        """Give what keeps a line from being the next record, or None."""
        reason = why_not_format(line, self._machine)
        if reason is not None:
            return reason
        members = json.loads(line)
        # A hash of 64 bits for each id, not the id: ledgers have millions of them.
        key = hash(members["id"])
        if key in self._ids:
            return f"id {members['id']!r} is another record's too"
        self._ids.add(key)
        synced = members.get("synced")
        if synced is not None:
            if synced < self._synced and members["seq"]:
                return f"synced is {synced}, and was {self._synced} before"
            self._synced = synced
        return None


class _Wrong(ValueError):
    pass


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Wrong("a member stands twice in one object")
    return members


def _constant(name: str) -> Any:
    raise _Wrong(f"{name} is no JSON")


def why_not_format(line: bytes, machine: str) -> str | None:
    """Give what keeps a line from being a record of the format, or None if it is one."""
    try:
        text = line.decode()
        members = json.loads(text, object_pairs_hook=_pairs, parse_constant=_constant)
        _check(text, members, machine)
    except (_Wrong, ValueError) as error:
        return f"not a record of the format: {error}"
    except RecursionError:
        return f"not a record of the format: nested deeper than {MAX_DEPTH}"
    if any(found[0] in b" \t\r" for found in _SPACE_OUTSIDE.findall(line)):
        return "not a record of the format: white space between members"
    return None


def _check(text: str, members: Any, machine: str) -> None:
    if not isinstance(members, dict):
        raise _Wrong("no object")
    if any(mark in text for mark in _SEPARATORS):
        raise _Wrong("U+0085, U+2028 or U+2029 is not escaped")
    for name in _REQUIRED:
        if name not in members:
            raise _Wrong(f"{name} is missing")
    _check_order(list(members))
    for name in ("specversion", "id", "source", "type", "time", "machine", "prev", "checksum"):
        if not isinstance(members[name], str) or not members[name]:
            raise _Wrong(f"{name} is no text")
    if members["specversion"] != "1.0":
        raise _Wrong("specversion is not 1.0")
    if members["machine"] != machine:
        raise _Wrong(f"machine is {members['machine']!r}, and the folder is {machine!r}")
    if not _TIME.fullmatch(members["time"]):
        raise _Wrong("time is not RFC 3339 in UTC with nine digits")
    _check_kinds(members)
    if _depth(members) > MAX_DEPTH:
        raise _Wrong(f"nested deeper than {MAX_DEPTH}")


def _check_kinds(members: dict[str, Any]) -> None:
    for name in ("datacontenttype", "dataschema", "subject", "ipchash", "traceparent", "tracestate"):
        if name in members and (not isinstance(members[name], str) or not members[name]):
            raise _Wrong(f"{name} is no text")
    if "data" in members and members["data"] is None:
        raise _Wrong("data is null")
    if "synced" in members and not (_is_count(members["synced"]) and members["synced"] <= members["seq"]):
        raise _Wrong("synced is beyond seq")
    for name, value in members.items():
        if name not in RESERVED_NAMES and not (
            isinstance(value, str) or (isinstance(value, int) and -(1 << 31) <= value < 1 << 31)
        ):
            raise _Wrong(f"{name!r} is no text, boolean or 32-bit integer")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_order(names: list[str]) -> None:
    places = [_PLACE[name] if name in RESERVED_NAMES else _PLACE[""] for name in names]
    if places != sorted(places):
        raise _Wrong("the members are not in their order")
    for name in names:
        if name not in RESERVED_NAMES and not _NAME.fullmatch(name):
            raise _Wrong(f"{name!r} is no name of an extension")


def _depth(value: Any) -> int:
    deepest, todo = 0, [(value, 1)]
    while todo:
        item, depth = todo.pop()
        if isinstance(item, dict | list):
            deepest = max(deepest, depth)
            todo += [(child, depth + 1) for child in (item.values() if isinstance(item, dict) else item)]
    return deepest
