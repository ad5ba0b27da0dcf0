"""The record: a caller's draft, the bytes that become a line, and the typed view of a line (format, 3).

Times are handed in.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import time as _time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

from otledger import speed, values
from otledger.batch import MAX_LINE, STAMP_ROOM, checksum_of
from otledger.ciphertext import OPENING as CIPHERTEXT
from otledger.ciphertext import Cipher, content_of
from otledger.decoding import decoder
from otledger.errors import EventRefused, FormatError
from otledger.ids import event_prefix, event_rest
from otledger.values import encode

Extension = str | bool | int

RESERVED_TYPES = ("otledger.", "otel.")
RESERVED_NAMES = frozenset(
    {
        *("specversion", "id", "source", "type", "time", "datacontenttype", "dataschema", "subject", "machine"),
        *("ipchash", "traceparent", "tracestate", "data", "synced", "seq", "prev", "checksum"),
    }
)
RESERVED_PREFIXES = ("otl", "orig")

_EXTENSION_NAME = re.compile(r"[a-z0-9]{1,20}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
MAX_NAME = 1024
"""The longest type, source, subject, id and extension value, in characters."""


@dataclass(slots=True)
class Draft:
    """An event on its way in: what processors see and may change, and what imports hand over.

    `time` is when it happened: integer nanoseconds since the epoch, or RFC 3339 text; None: now.
    `marks` are the `otl…` and `orig…` members, for processors and imports only.
    """

    type: str
    data: Any = None
    subject: str | None = None
    source: str | None = None
    ipc_hash: str | None = None
    extensions: dict[str, Extension] = field(default_factory=dict)
    time: int | str | None = None
    id: str | None = None
    datacontenttype: str | None = None
    dataschema: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    marks: dict[str, Extension] = field(default_factory=dict)


class Record(msgspec.Struct, gc=False, kw_only=True):
    """A line, read. Times are text as stored; `time_ns` gives integer nanoseconds; `data` is decoded on demand.

    A record of an evledger partition has no `prev` and no `checksum`.
    """

    id: str
    source: str
    type: str
    time: str
    machine: str
    seq: int
    datacontenttype: str | None = None
    dataschema: str | None = None
    subject: str | None = None
    ipc_hash: str | None = msgspec.field(default=None, name="ipchash")
    traceparent: str | None = None
    tracestate: str | None = None
    synced: int | None = None
    stored: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="data")
    """Its payload, as `raw` gives it."""
    # Set after decoding; whatever a line may hold under this name is accepted first.
    line: Any = msgspec.field(default=b"", name="")
    """The line's bytes, with its LF."""
    # Set after decoding too.
    opener: Any = msgspec.field(default=None, name=" ")
    """What knows keys (otledger/keyring.py), set by readers. Without it an encrypted payload stays as it is stored."""

    @property
    def raw(self) -> bytes:
        """The payload's JSON as it stands in the line; empty where there is none."""
        return bytes(self.stored)

    @property
    def data(self) -> Any:
        """The payload, with the values that JSON has no word for as they were (format, 3).

        Of an encrypted one whose key is not at hand: the object `{"$enc": …}` that is stored.
        """
        raw = self.raw
        if raw.startswith(CIPHERTEXT):
            return self._open(raw)[1]
        return values.loads(raw) if raw else None

    @property
    def kid(self) -> str | None:
        """The id of the key under which the payload is encrypted; None where it is not."""
        raw = self.raw
        content = content_of(_read(raw)) if raw.startswith(CIPHERTEXT) else None
        return None if content is None else str(content["kid"])

    @property
    def plain(self) -> bytes | None:
        """The payload's JSON as it was before encryption; None where it is encrypted and the key is not at hand."""
        raw = self.raw
        return self._open(raw)[0] if raw.startswith(CIPHERTEXT) else raw

    def _open(self, raw: bytes) -> tuple[bytes | None, Any]:
        """Give an encrypted payload's JSON, None where it cannot be had, and its value or else what is stored."""
        stored = values.loads(raw)
        content = content_of(stored)
        if content is None:
            # Another program's, which only looks like it.
            return raw, stored
        if self.opener is None or self.subject is None:
            return None, stored
        plain = self.opener.open(content, id=self.id, type=self.type, subject=self.subject)
        try:
            return (None, stored) if plain is None else (plain, values.loads(plain))
        except DECODE_ERRORS:
            return None, stored

    @property
    def checksum(self) -> str:
        """The checksum as stored, with its prefix, unchecked; empty in an evledger partition."""
        return f"sha256:{str(checksum_of(self.line), 'ascii', 'replace')}" if self._chained else ""

    @property
    def prev(self) -> str:
        """The 64 hex digits of the record before; empty in an evledger partition."""
        return self.line[-152:-88].decode("ascii", "replace") if self._chained else ""

    @property
    def _chained(self) -> bool:
        return bool(self.line[-87:].startswith(b',"checksum":"sha256:'))

    @property
    def time_ns(self) -> int:
        """When it happened, in nanoseconds since the epoch; 0 where the text is no instant."""
        return parse_time(self.time) or 0

    @property
    def trace_id(self) -> str | None:
        """The 32 hex digits of the trace that it belongs to, if any."""
        if self.traceparent is not None:
            return self.traceparent[3:35]
        return self._own("trace_id")

    @property
    def span_id(self) -> str | None:
        """The 16 hex digits of the span that it was emitted in; of a span's record, its own."""
        if self.traceparent is not None:
            return self.traceparent[36:52]
        return self._own("span_id")

    @property
    def digest(self) -> str | None:
        """What spans name an OpenTelemetry resource or scope by; of an `otel.resource` record, else None."""
        return self._own("digest") if self.type == "otel.resource" else None

    def _own(self, name: str) -> str | None:
        # A span whose ids form no valid header carries them in its data (format, 4).
        if not self.type.startswith("otel."):
            return None
        data = self.data
        own = data.get(name) if isinstance(data, dict) else None
        return own if isinstance(own, str) else None

    @property
    def extensions(self) -> dict[str, Extension]:
        """The members that are none of the format's own: extensions, `orig…` and `otl…`."""
        members = _members.decode(self.line)
        return {name: msgspec.json.decode(value) for name, value in members.items() if name not in RESERVED_NAMES}

    def to_dict(self) -> dict[str, Any]:
        """Give all members of the line, in their order, as plain JSON values.

        Raises `FormatError` where a number or a text in the payload is one that no program can read.
        """
        try:
            members: dict[str, Any] = msgspec.json.decode(self.line)
        except DECODE_ERRORS as error:
            raise FormatError(f"record {self.seq} of {self.machine} cannot be read: {error}", seq=self.seq) from None
        return members


_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _read(raw: bytes) -> Any:
    try:
        return values.loads(raw)
    except DECODE_ERRORS:
        return None


_decode = msgspec.json.Decoder(Record).decode
DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def decode_plainly(line: bytes) -> Record:
    """Give the record of a line. Raises one of `DECODE_ERRORS`."""
    if not line.isascii():
        # What the decoder passes over it does not check: payloads, members that it does not know.
        line.decode()
    record = _decode(line)
    record.line = line
    record.opener = None
    return record


decode = decoder(Record, decode_plainly)
"""Gives the record of a line, its checksum unchecked. Raises one of `DECODE_ERRORS`."""


def parse(line: bytes) -> Record:
    """Give the record of a line, its checksum unchecked. Raises `FormatError` if it is no such object."""
    try:
        return decode(line)
    except DECODE_ERRORS as error:
        raise FormatError(f"not a record: {error}") from None


def ipc_hash(payload: Any) -> str:
    """Give the fingerprint that links the records of a turn, as PipeWorks computes it: 64 hex digits.

    SHA-256 of `json.dumps(payload, sort_keys=True, ensure_ascii=False)` in UTF-8.
    Raises TypeError or ValueError for what the stdlib's json cannot write.
    """
    return hashlib.sha256(json.dumps(payload, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


# Times


def format_time(ns: int) -> str:
    """Give `ns` as RFC 3339 in UTC with nine digits of fraction. Raises `EventRefused` outside years 1 to 9999."""
    seconds, rest = divmod(ns, 1_000_000_000)
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z".rjust(30, "0")
    except (OverflowError, ValueError, OSError):
        raise EventRefused(f"time {ns} is no instant between the years 1 and 9999") from None


def parse_time(text: str) -> int | None:
    """Give RFC 3339 text as nanoseconds since the epoch, or None if it is none. A tenth digit is cut off."""
    if speed.instant is not None and (ns := speed.instant(text)) is not None:
        return ns
    fraction = text[20:29]
    if len(text) == 30 and text[19] == "." and text[29] == "Z" and fraction.isdigit() and fraction.isascii():
        # As otledger writes it. Records of the same second follow each other: four times as fast.
        second = _second(text[:19])
        return None if second is None else second + int(fraction)
    return _parse_any(text)


@functools.lru_cache(maxsize=256)
def _second(text: str) -> int | None:
    return _parse_any(f"{text}Z")


def _parse_any(text: str) -> int | None:
    match = _RFC3339.fullmatch(text)
    if match is None:
        return None
    day, clock, fraction, zone = match.groups()
    try:
        instant = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone in 'Zz' else zone}")
    except ValueError:
        return None
    seconds = (instant - _EPOCH).days * 86_400 + (instant - _EPOCH).seconds
    return seconds * 1_000_000_000 + int((fraction or "0").ljust(9, "0")[:9])


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_YEAR_10000 = 253_402_300_800_000_000_000


# Names


def check_type(name: object) -> str:
    """Give a caller's type back, or raise `EventRefused`, which says what is allowed."""
    text = check_text("type", name)
    if text.startswith(RESERVED_TYPES):
        raise EventRefused(f"type {name!r} is reserved: types beginning with 'otledger.' or 'otel.' are otledger's own")
    return text


def check_extensions(extensions: Mapping[str, Extension]) -> None:
    """Raise `EventRefused` if a name or value is not allowed as a caller's extension (format, 3)."""
    for name, value in extensions.items():
        if not isinstance(name, str) or not _EXTENSION_NAME.fullmatch(name):
            raise EventRefused(f"extension {name!r}: a name is 1 to 20 of a-z and 0-9")
        if name in RESERVED_NAMES or name.startswith(RESERVED_PREFIXES):
            raise EventRefused(
                f"extension {name!r} is reserved: allowed are names other than {', '.join(sorted(RESERVED_NAMES))}"
                " and names beginning with 'otl' or 'orig'"
            )
        _check_value(name, value)


def _check_value(name: str, value: object) -> None:
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        if not -(1 << 31) <= value < 1 << 31:
            raise EventRefused(f"{name!r} is {value}: an integer has 32 bits; give larger ones as a string")
    elif not isinstance(value, str):
        raise EventRefused(f"{name!r} is of type {type(value).__name__}: allowed are str, bool and int")
    else:
        check_text(repr(name), value, empty=True)


def check_text(what: str, text: object, *, empty: bool = False) -> str:
    """Give a text back, or raise `EventRefused` if it is none that a record may have as a member."""
    if not isinstance(text, str):
        raise EventRefused(f"{what} is of type {type(text).__name__}: it must be a str")
    if not text and not empty:
        raise EventRefused(f"{what} is empty: it must have a character at least")
    if len(text) > MAX_NAME:
        raise EventRefused(f"{what} has {len(text)} characters: allowed are {MAX_NAME}; put long text into data")
    if _CONTROL.search(text):
        raise EventRefused(f"{what} {text[:80]!r} holds a control character or a lone surrogate")
    return text


def _member(name: str, value: Extension) -> str:
    return f',"{name}":{values.encode(value).decode()}'


# Lines

OPENING = '{"specversion":"1.0","id":"'
_MAX_PART = MAX_LINE - STAMP_ROOM


def _too_large(part: bytes) -> EventRefused:
    return EventRefused(
        f"the event has {len(part):,} bytes as JSON: a line has at most {MAX_LINE:,};"
        " store the payload elsewhere and its hash here"
    )


class Encoder:
    """Makes parts (see batch.py) for one machine and service. Remembers what is the same from event to event."""

    __slots__ = ("_instant", "_machine", "_own_heads", "before", "heads", "on_repr", "reprs", "source")

    _REMEMBERED = 1024

    def __init__(self, machine: str, service: str) -> None:
        self.source = f"/{machine}/{service}"
        check_text("service", service)
        self._machine = _member("machine", machine)
        self.before = f'Z"{self._machine}'
        """What stands between time and payload of an event without more."""
        self.heads: dict[str | tuple[str, str], str] = {}
        """What stands between id and time, by type, or by type and source where that is not the usual one."""
        self._own_heads: dict[str, str] = {}
        self._note_instant(0)
        self.reprs = 0
        self.on_repr = self._count_repr

    def event(
        self,
        type: str,
        data: Any,
        ns: int | None = None,
        source: str | None = None,
        subject: str | None = None,
        ipc_hash: str | None = None,
        members: str = "",
        extensions: Mapping[str, Extension] | None = None,
        cipher: Cipher | None = None,
    ) -> tuple[str, bytes]:
        """Give id and part of an event that happened at `ns`; None: now.

        `members` are encoded ones, for the trace that it belongs to. The payload is copied: what the caller
        changes in it later does not count. With `cipher` it is encrypted, and the event needs a subject.
        Raises `EventRefused` if a name, the size or the depth is not allowed.
        """
        key = type if source is None else (type, source)
        try:
            head = self.heads[key]
        except (KeyError, TypeError):
            # What cannot be hashed is no text.
            head = self._head(type, source, key)
        before = self.before
        if members or extensions or subject is not None or ipc_hash is not None:
            before = f'Z"{self._tail(subject, ipc_hash, members, extensions)}'
        seal = None
        if cipher is not None and data is not None:
            seal = functools.partial(cipher.seal, type=type, subject=check_text("subject", subject))
        elif speed.event is not None:
            made = speed.event(self.heads, key, before, data, ns)
            if made is not None:
                return made
        return self._assemble(head, before, data, now_ns() if ns is None else ns, seal)

    def _assemble(
        self, head: str, before: str, data: Any, ns: int, seal: Callable[..., bytes] | None
    ) -> tuple[str, bytes]:
        millisecond, prefix, text = self._instant
        if ns // 1_000_000 != millisecond:
            prefix, text = self._note_instant(ns)
        id = prefix + event_rest()
        payload = ""
        if data is not None:
            try:
                raw = encode(data, self.on_repr)
            except values.TooDeep as error:
                raise EventRefused(f"data cannot be stored: {error}") from None
            payload = f',"data":{(raw if seal is None else seal(raw, id=id)).decode()}'
        part = f"{OPENING}{id}{head}{text}{ns % 1_000_000:06d}{before}{payload}".encode()
        if len(part) > _MAX_PART:
            raise _too_large(part)
        return id, part

    def _tail(
        self, subject: str | None, ipc_hash: str | None, members: str, extensions: Mapping[str, Extension] | None
    ) -> str:
        tail = self._machine
        if subject is not None:
            tail = _member("subject", check_text("subject", subject)) + tail
        if ipc_hash is not None:
            tail += _member("ipchash", check_text("ipc_hash", ipc_hash))
        tail += members
        if extensions:
            check_extensions(extensions)
            for name, value in extensions.items():
                tail += _member(name, value)
        return tail

    def draft(
        self, draft: Draft, ns: int, *, reserved: bool = False, cipher: Cipher | None = None
    ) -> tuple[str, bytes]:
        """Give id and part of a draft; `ns` is the time of append, used where the draft's own is no instant.

        `reserved` allows otledger's own types and marks; with `cipher` the payload is encrypted, and needs a subject.
        Raises `EventRefused`.
        """
        when = parse_time(draft.time) if isinstance(draft.time, str) else draft.time
        time = format_time(when if isinstance(when, int) and not isinstance(when, bool) else ns)
        id = event_prefix(ns // 1_000_000) + event_rest() if draft.id is None else check_text("id", draft.id)
        type = check_text("type", draft.type) if reserved else check_type(draft.type)
        check_extensions(draft.extensions)
        members = [
            '{"specversion":"1.0"',
            _member("id", id),
            _member("source", check_text("source", self.source if draft.source is None else draft.source)),
            _member("type", type),
            _member("time", time),
        ]
        for name in ("datacontenttype", "dataschema", "subject"):
            value = getattr(draft, name)
            if value is not None:
                members.append(_member(name, check_text(name, value)))
        members.append(self._machine)
        for name, value in (
            ("ipchash", draft.ipc_hash),
            ("traceparent", draft.traceparent),
            # What another program sent may be longer than a line's text; the trace is known without it.
            ("tracestate", draft.tracestate if draft.tracestate and len(draft.tracestate) <= MAX_NAME else None),
        ):
            if value is not None:
                members.append(_member(name, check_text(name, value)))
        members += [_member(name, value) for name, value in draft.extensions.items()]
        for name, value in draft.marks.items():
            if not _EXTENSION_NAME.fullmatch(name) or not name.startswith(RESERVED_PREFIXES):
                raise EventRefused(f"mark {name!r}: at most 20 of a-z and 0-9, beginning with 'otl' or 'orig'")
            if not isinstance(value, str):
                _check_value(name, value)
            members.append(_member(name, value))
        if draft.data is not None:
            try:
                payload = values.encode(draft.data, self.on_repr)
            except values.TooDeep as error:
                raise EventRefused(f"data cannot be stored: {error}") from None
            if cipher is not None:
                payload = cipher.seal(payload, id=id, type=type, subject=check_text("subject", draft.subject))
            members.append(f',"data":{payload.decode()}')
        part = "".join(members).encode()
        if len(part) > _MAX_PART:
            raise _too_large(part)
        return id, part

    def own_head(self, type: str) -> str:
        """Give what stands between id and time in otledger's own records of a type."""
        head = self._own_heads.get(type)
        if head is None:
            head = self._own_heads[type] = self._make_head(type, self.source)
        return head

    def telemetry(self, type: str, ns: Any, payload: str, members: str = "") -> bytes:
        """Give the part of one of otledger's own records, whose payload is JSON already.

        Where `ns` is no instant between the years 1970 and 9999 the time is now.
        """
        head = self.own_head(type)
        if ns.__class__ is not int or not 1_000_000 <= ns < _YEAR_10000:
            ns = now_ns()
        before = f'Z"{self._machine}{members}'
        if speed.telemetry is not None:
            part = speed.telemetry(head, before, payload, ns)
            if part is not None:
                return part
        millisecond, prefix, text = self._instant
        if ns // 1_000_000 != millisecond:
            prefix, text = self._note_instant(ns)
        return f'{OPENING}{prefix}{event_rest()}{head}{text}{ns % 1_000_000:06d}{before},"data":{payload}'.encode()

    def _count_repr(self) -> None:
        self.reprs += 1

    def _head(self, type: str, source: str | None, key: Any) -> str:
        where = self.source if source is None else check_text("source", source)
        head = self._make_head(check_type(type), where)
        if len(self.heads) >= self._REMEMBERED:
            self.heads.clear()
        self.heads[key] = head
        return head

    @staticmethod
    def _make_head(type: str, source: str) -> str:
        return '"' + _member("source", source) + _member("type", type) + ',"time":"'

    def _note_instant(self, ns: int) -> tuple[str, str]:
        """Give what ids and times of this millisecond begin with, and remember it."""
        prefix, text = event_prefix(ns // 1_000_000), format_time(ns)[:23]
        # One attribute, so that threads never see the number of one millisecond and the texts of another.
        self._instant: tuple[int, str, str] = ns // 1_000_000, prefix, text
        return prefix, text


def now_ns() -> int:
    """Give the time, in nanoseconds since the epoch."""
    return _time.time_ns()
