"""The members of a predecessor's event: read strictly, compared, and fitted into what a record may hold. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

from otledger import values
from otledger.errors import EventRefused
from otledger.record import check_extensions, parse_time

Members = dict[str, Any]

FORMAT_MARK = "origformat"
"""The member that says which predecessor a record came from."""
TIME_MARK = "origtime"
REST_MARK = "origmembers"
"""JSON text of the members that nothing else in the record gives back."""

UNRESTORABLE = (KeyError, TypeError, ValueError, AttributeError, RecursionError)
"""What restoring an event raises if its record was tampered with."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def read_object(line: bytes) -> Members:
    """Give the object of a line, as Python's json reads it: NaN and integers of any size included.

    Raises `EventRefused`, which says why it is none: torn, no UTF-8, no JSON, no object, a repeated member.
    """
    try:
        value = json.loads(line.decode(), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise EventRefused(f"{_kind(line)}: byte {error.start} is no UTF-8") from None
    except ValueError as error:
        raise EventRefused(f"{_kind(line)}: {error}") from None
    except RecursionError:
        raise EventRefused("no event: it is nested too deep") from None
    if not isinstance(value, dict):
        raise EventRefused(f"no object: it is JSON of type {type(value).__name__}")
    return value


def _kind(line: bytes) -> str:
    return "no JSON" if line.endswith(b"\n") else "torn"


def _unique(pairs: list[tuple[str, Any]]) -> Members:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        repeated = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        # Both predecessors' readers take the last and lose the others without a word.
        raise ValueError(f"the member {repeated!r} is there twice, so the line does not say which of them counts")
    return members


def require(members: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Raise `EventRefused` if one of the names is missing."""
    missing = [name for name in names if name not in members]
    if missing:
        raise EventRefused(f"it has no {', '.join(missing)}")


def text_of(value: object) -> str:
    """Give JSON text for a mark: readable where it can be, with escapes where it holds a lone surrogate.

    Raises `EventRefused` if it is nested too deep.
    """
    try:
        values.encode(value)
    except values.TooDeep as error:
        raise EventRefused(str(error)) from None
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text if is_text(text) else json.dumps(value, separators=(",", ":"))


def line_of(value: Members, *, compact: bool = False, sort_keys: bool = False) -> bytes:
    """Give the line of an event, with its LF, as Python's json writes it.

    U+0085, U+2028 and U+2029 are escaped: both predecessors split there, and would lose the event.
    """
    separators = (",", ":") if compact else None
    text = json.dumps(value, ensure_ascii=False, separators=separators, sort_keys=sort_keys)
    if not is_text(text):
        text = json.dumps(value, separators=separators, sort_keys=sort_keys)
    return values.escape_separators(text.encode()) + b"\n"


def digest(members: Members) -> bytes:
    """Give 16 bytes by which two events are told to be equal as JSON, whatever the order of their members."""
    return blake2b(json.dumps(members, sort_keys=True).encode(), digest_size=16).digest()


def is_text(value: object) -> bool:
    """Tell whether a value is a string without lone surrogates."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def is_attribute(value: object) -> bool:
    """Tell whether a value can stand in a record's own attributes, such as `subject`."""
    return isinstance(value, str) and value != "" and is_extension("x", value)


def is_extension(name: str, value: Any) -> bool:
    """Tell whether a member can stand in a record as an extension (format, 3)."""
    try:
        check_extensions({name: value})
    except EventRefused:
        return False
    return True


def instant(text: object) -> int:
    """Give a time with its zone as nanoseconds since the epoch. Raises `EventRefused` if it is none.

    What RFC 3339 does not allow is read as both predecessors read it, by `datetime.fromisoformat`.
    """
    if isinstance(text, str):
        ns = parse_time(text)
        if ns is not None:
            return ns
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            pass
        else:
            if when.tzinfo is not None:
                return (when - _EPOCH) // timedelta(microseconds=1) * 1000
    raise EventRefused(f"its time {str(text)[:80]!r} is no instant: a date, a time of day and a zone are needed")


def short_time(stored: str, zone: str) -> str:
    """Give a record's time as Python's isoformat() writes it: no fraction or six digits, nine where it needs them."""
    if stored.endswith(".000000000Z"):
        return stored[:-11] + zone
    return (stored[:-4] if stored.endswith("000Z") else stored[:-1]) + zone


def plain(value: Any) -> Any:
    """Give stored data as Python's json would have been handed it.

    What no JSON parser gives (bytes, sets, decimals, …) stays the `$…` object that it is stored as.
    """
    if isinstance(value, list):
        return [plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        return {name: plain(content) for name, content in value.items()}
    ((name, content),) = value.items()
    if not name.startswith("$"):
        return {name: plain(content)}
    if name in ("$float", "$int", "$str"):
        known = values.decode(value)
        return known if _is_writable(known) else value
    if name == "$map" and isinstance(content, list):
        pairs = [(plain(pair[0]), plain(pair[1])) for pair in content if isinstance(pair, list) and len(pair) == 2]
        names = {key for key, _ in pairs if isinstance(key, str)}
        if len(names) == len(pairs) == len(content):
            return dict(pairs)
    return value


def _is_writable(number: object) -> bool:
    try:
        return bool(json.dumps(number))
    except ValueError:  # sys.set_int_max_str_digits()
        return False
