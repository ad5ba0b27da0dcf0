"""One event of evledger 0.1.0 as a draft, and a record as evledger's event. Pure.

evledger writes CloudEvents with `machine` and `seq` (its schema.py). What a record gives back by rule is not
kept twice; everything else is in `orig…` members, so that `restore` gives the same JSON again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from otledger.errors import EventRefused
from otledger.predecessors.members import (
    FORMAT_MARK,
    REST_MARK,
    TIME_MARK,
    Members,
    instant,
    is_attribute,
    is_extension,
    is_text,
    plain,
    short_time,
    text_of,
)
from otledger.record import Draft, format_time

FORMAT = "evledger"
SUFFIX = ".import"
REQUIRED = ("specversion", "id", "source", "type", "time", "machine")

_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_OWN_MARKS = (FORMAT_MARK, TIME_MARK, REST_MARK, "origmachine", "origfolder", "origseq")
_CHAIN = ("synced", "prev", "checksum")
_SMALL = 1 << 31


def looks_like(members: Mapping[str, Any]) -> bool:
    """Tell whether an object is, or is meant as, an event of evledger's."""
    return "specversion" in members and "checksum" not in members


def to_draft(members: Members, folder: str, partition: str) -> Draft:
    """Give the draft of an event, with all `REQUIRED` members, that stood in `folder` and goes to `partition`.

    Raises `EventRefused` if the source is no text or the time no instant. Names and sizes are checked when the
    draft is encoded.
    """
    rest = dict(members)
    source = rest.pop("source")
    if not isinstance(source, str):
        # A draft without a source would get the importer's own.
        raise EventRefused(f"its source {str(source)[:80]} is no text")
    time = rest.pop("time")
    ns = instant(time)
    draft = Draft(rest.pop("type"), id=rest.pop("id"), source=source, time=ns)
    marks = draft.marks
    marks[FORMAT_MARK] = FORMAT
    if time != short_time(format_time(ns), "Z"):
        marks[TIME_MARK] = time
    if rest["specversion"] == "1.0":
        del rest["specversion"]
    machine = rest.pop("machine")
    if not is_text(machine):
        rest["machine"] = machine
    elif machine != partition.removesuffix(SUFFIX):
        marks["origmachine"] = machine
    if folder != machine:
        marks["origfolder"] = folder
    seq = rest.get("seq")
    if isinstance(seq, int) and not isinstance(seq, bool) and -_SMALL <= seq < _SMALL:
        marks["origseq"] = rest.pop("seq")
    if rest.get("data") is not None:
        draft.data = rest.pop("data")
    for name, attribute in (*((n, n) for n in ("datacontenttype", "dataschema", "subject")), ("ipchash", "ipc_hash")):
        if is_attribute(rest.get(name)):
            setattr(draft, attribute, rest.pop(name))
    if isinstance(parent := rest.get("traceparent"), str) and _TRACEPARENT.fullmatch(parent):
        draft.traceparent = rest.pop("traceparent")
        if is_attribute(rest.get("tracestate")):
            draft.tracestate = rest.pop("tracestate")
    for name in [name for name, value in rest.items() if is_extension(name, value)]:
        draft.extensions[name] = rest.pop(name)
    if rest:
        marks[REST_MARK] = text_of(rest)
    return draft


def is_ours(stored: Mapping[str, Any]) -> bool:
    """Tell whether a record, as a dict, was imported from evledger."""
    return stored.get(FORMAT_MARK) == FORMAT and str(stored["machine"]).endswith(SUFFIX)


def folder_of(stored: Mapping[str, Any]) -> str:
    """Give the name of the folder in which an imported event stood."""
    machine = str(stored["machine"]).removesuffix(SUFFIX)
    return str(stored.get("origfolder", stored.get("origmachine", machine)))


def restore(stored: Members) -> Members:
    """Give the members of an imported event as they were, in evledger's order."""
    members = as_event({name: value for name, value in stored.items() if name not in _OWN_MARKS})
    members["time"] = stored.get(TIME_MARK, members["time"])
    members["machine"] = stored.get("origmachine", stored["machine"].removesuffix(SUFFIX))
    if "origseq" in stored:
        members["seq"] = stored["origseq"]
    else:
        del members["seq"]
    if REST_MARK in stored:
        members.update(json.loads(stored[REST_MARK]))
    return members


def as_event(stored: Members) -> Members:
    """Give any record as evledger's event: a CloudEvent with `machine` and `seq`, in evledger's order.

    The members of the chain are left out: they cover the bytes of otledger's line, not of this one.
    """
    members = {name: stored[name] for name in ("specversion", "id", "source", "type")}
    members["time"] = short_time(stored["time"], "Z")
    for name in ("datacontenttype", "data", "machine", "seq"):
        if name in stored:
            members[name] = plain(stored[name]) if name == "data" else stored[name]
    members.update({name: value for name, value in stored.items() if name not in members and name not in _CHAIN})
    return members
