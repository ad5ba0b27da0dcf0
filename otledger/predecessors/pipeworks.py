"""One event of the PipeWorks ledger as a draft, and a record as PipeWorks' event. Pure.

An event is nine members, written as one line by `json.dumps(event, ensure_ascii=False, sort_keys=True)`.
`_checksum` is `sha256:` and the digest of the same text without it, or, by the manual, with ASCII escapes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, get_args
from urllib.parse import quote

from otledger.errors import EventRefused
from otledger.predecessors.members import (
    FORMAT_MARK,
    REST_MARK,
    TIME_MARK,
    Members,
    instant,
    is_attribute,
    is_text,
    line_of,
    plain,
    read_object,
    require,
    short_time,
    text_of,
)
from otledger.record import Draft, format_time

FORMAT = "pipeworks"
PARTITION = "pipeworks.import"
VERSION = "1.0"
CHECKSUM = "_checksum"
REQUIRED = (
    *(CHECKSUM, "event_id", "timestamp", "world_id", "event_type"),
    *("schema_version", "ipc_hash", "meta", "data"),
)

Form = Literal["unescaped", "escaped", "ordered"]
"""What a checksum was computed over: the text as the writer makes it; with ASCII escapes; or as the writer makes
it of a payload whose keys were integers, which sort as numbers while they are written and as text ever after."""

_FORM_MARK = "origchecksum"
_EVENT_BEGINS = b'{"_checksum": "sha256:'


def looks_like(members: Mapping[str, Any]) -> bool:
    """Tell whether an object is, or is meant as, an event of PipeWorks'."""
    return CHECKSUM in members or ("event_id" in members and "world_id" in members)


# Checksums


def checksum(body: Members, form: Form) -> str | None:
    """Give the checksum of an event without its `_checksum`; None where this form has no bytes."""
    top = dict(sorted(body.items()))
    text = json.dumps(top, ensure_ascii=form == "escaped", sort_keys=form != "ordered")
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" if is_text(text) else None


def fitting(members: Members) -> list[Form]:
    """Give the forms in which an event's checksum is right, the usual one first; two where nothing is escaped.

    Raises `EventRefused` if there is none, or if one of the `REQUIRED` members is missing.
    """
    require(members, REQUIRED)
    body = {name: value for name, value in members.items() if name != CHECKSUM}
    usual: tuple[Form, ...] = ("unescaped", "escaped")
    forms = [form for form in usual if checksum(body, form) == members[CHECKSUM]]
    if not forms and checksum(body, "ordered") == members[CHECKSUM]:
        forms = ["ordered"]
    if not forms:
        is_one = checksum(body, "unescaped") or checksum(body, "escaped")
        raise EventRefused(f"wrong checksum: it says {str(members[CHECKSUM])[:80]}, and its members have {is_one}")
    return forms


# Events


def to_draft(members: Members, form: Form) -> Draft:
    """Give the draft of an event with all `REQUIRED` members, its checksum aside.

    Raises `EventRefused` if the world is no name or the time no instant. Names and sizes are checked when the
    draft is encoded.
    """
    world = members["world_id"]
    if not is_attribute(world):
        raise EventRefused(f"its world_id {str(world)[:80]!r} is no name")
    rest = {name: value for name, value in members.items() if name not in (CHECKSUM, "world_id")}
    time = rest.pop("timestamp")
    ns = instant(time)
    draft = Draft(
        rest.pop("event_type"),
        id=rest.pop("event_id"),
        time=ns,
        subject=world,
        source=f"/pipeworks/{quote(world, safe='')}",
    )
    marks = draft.marks
    marks[FORMAT_MARK] = FORMAT
    if time != short_time(format_time(ns), "+00:00"):
        marks[TIME_MARK] = time
    if rest["ipc_hash"] is None or is_attribute(rest["ipc_hash"]):
        draft.ipc_hash = rest.pop("ipc_hash")
    if rest["data"] is not None:
        draft.data = rest.pop("data")
    marks["origmeta"] = text_of(rest.pop("meta"))
    if is_text(rest["schema_version"]):
        marks["origversion"] = rest.pop("schema_version")
    if form != "unescaped":
        marks[_FORM_MARK] = form
    if rest:
        marks[REST_MARK] = text_of(rest)
    return draft


def is_ours(stored: Mapping[str, Any]) -> bool:
    """Tell whether a record, as a dict, was imported from PipeWorks."""
    return stored.get(FORMAT_MARK) == FORMAT and stored["machine"] == PARTITION


def restore(stored: Members) -> tuple[Members, Form]:
    """Give the members of an imported event as they were, without the checksum, and the checksum's form."""
    members = {
        "event_id": stored["id"],
        "timestamp": stored.get(TIME_MARK, short_time(stored["time"], "+00:00")),
        "world_id": stored["subject"],
        "event_type": stored["type"],
        "ipc_hash": stored.get("ipchash"),
        "meta": json.loads(stored["origmeta"]),
    }
    if "origversion" in stored:
        members["schema_version"] = stored["origversion"]
    if "data" in stored:
        members["data"] = plain(stored["data"])
    if REST_MARK in stored:
        members.update(json.loads(stored[REST_MARK]))
    form: Form = stored.get(_FORM_MARK, "unescaped")
    return members, form if form in get_args(Form) else "unescaped"


def as_event(stored: Members) -> tuple[Members, Form]:
    """Give any record as `restore` does: its world is the subject, or else the machine."""
    members = {
        "event_id": stored["id"],
        "timestamp": short_time(stored["time"], "+00:00"),
        "world_id": stored.get("subject", stored["machine"]),
        "event_type": stored["type"],
        "schema_version": VERSION,
        "ipc_hash": stored.get("ipchash"),
        "meta": {},
        "data": plain(stored["data"]) if "data" in stored else None,
    }
    return members, "unescaped"


def to_line(members: Members, form: Form = "unescaped") -> bytes:
    """Give the line of an event with its checksum and its LF, as PipeWorks writes it."""
    if checksum(members, form) is None:
        # A lone surrogate: PipeWorks itself has no bytes for it but by escapes.
        form = "escaped"
    return line_of(dict(sorted({**members, CHECKSUM: checksum(members, form)}.items())), sort_keys=form != "ordered")


def swallowed(line: bytes) -> int:
    """Give where, in a line that is no JSON, a whole event begins that was written onto a torn one; 0 for nowhere.

    Its checksum proves that it is one.
    """
    at = line.rfind(_EVENT_BEGINS)
    if at > 0:
        try:
            fitting(read_object(line[at:]))
        except (EventRefused, RecursionError):
            return 0
    return max(at, 0)
