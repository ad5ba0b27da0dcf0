"""A span as one of its records tells it, read from the line in one pass. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from otledger import values
from otledger.decoding import decoder
from otledger.errors import FormatError
from otledger.record import DECODE_ERRORS, Record, decode, parse

START_TYPE = "otel.span.start"
END_TYPE = "otel.span.end"

_NOTHING = msgspec.Raw(b"")


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """A span's status: `code` is UNSET, OK or ERROR."""

    code: str = "UNSET"
    description: str | None = None


class Payload(msgspec.Struct, gc=False, kw_only=True):
    """What is read of a span's `data` at once (format, 4)."""

    name: str = ""
    parent_span_id: str | None = None
    start: int
    end: int | None = None
    status: Outcome | None = None


class _Rest(msgspec.Struct, kw_only=True):
    """What is read of it when asked for."""

    kind: Any = "INTERNAL"
    parent_is_remote: Any = False
    attributes: msgspec.Raw = _NOTHING
    events: msgspec.Raw = _NOTHING
    links: msgspec.Raw = _NOTHING
    process: msgspec.Raw = _NOTHING
    trace_id: Any = None
    span_id: Any = None


# A Struct, and no frozen dataclass, with few members: a ledger has millions of spans, and to read all of each at once
# took three times as long. Nobody changes a span once it was given.
class ReplayedSpan(msgspec.Struct, gc=False, kw_only=True):
    """A span as a record tells it: that of its end, where it has ended. Times are nanoseconds since the epoch.

    What is not at hand is read from `line` when asked for; `FormatError` is raised where that holds no text.
    """

    type: str
    machine: str
    """The partition that it was recorded in."""
    traceparent: str
    payload: Payload = msgspec.field(name="data")
    seq: int
    # Set after decoding; whatever a line may hold under these names is accepted first.
    trace_id: Any = msgspec.field(default="", name="$trace")
    """32 hex digits; empty where the record names none."""
    span_id: Any = msgspec.field(default="", name="$span")
    """16 hex digits; empty where the record names none."""
    line: Any = msgspec.field(default=b"", name="$line")
    """The record's bytes, with its LF."""

    @property
    def name(self) -> str:
        """The name."""
        return self.payload.name

    @property
    def parent_span_id(self) -> str | None:
        """The 16 hex digits of the parent; None for a root."""
        return self.payload.parent_span_id

    @property
    def start(self) -> int:
        """When it began."""
        return self.payload.start

    @property
    def end(self) -> int | None:
        """When it ended; None while it is unfinished."""
        return self.payload.end

    @property
    def time_ns(self) -> int:
        """The record's time: the end, where it has ended, else the start."""
        payload = self.payload
        return payload.start if payload.end is None else payload.end

    @property
    def duration(self) -> int | None:
        """How long it lasted, in nanoseconds, None while unfinished; 0 where a clock was set back meanwhile."""
        return None if self.end is None else max(0, self.end - self.start)

    @property
    def status(self) -> str:
        """`UNSET`, `OK` or `ERROR`."""
        outcome = self.payload.status
        return "UNSET" if outcome is None else outcome.code

    @property
    def description(self) -> str | None:
        """What the status says besides its code."""
        outcome = self.payload.status
        return None if outcome is None else outcome.description

    @property
    def kind(self) -> str:
        """`INTERNAL`, `SERVER`, `CLIENT`, `PRODUCER` or `CONSUMER`."""
        return str(self._rest().kind)

    @property
    def parent_is_remote(self) -> bool:
        """Whether the parent is of another process."""
        return self._rest().parent_is_remote is True

    @property
    def attributes(self) -> Mapping[str, Any]:
        """The attributes."""
        found = self._value(self._rest().attributes)
        return found if isinstance(found, dict) else {}

    @property
    def events(self) -> tuple[Mapping[str, Any], ...]:
        """The events inside the span: `name`, `time`, `attributes`, `dropped`, what is default left out."""
        return self._items(self._rest().events)

    @property
    def links(self) -> tuple[Mapping[str, Any], ...]:
        """The links to other spans."""
        return self._items(self._rest().links)

    @property
    def process(self) -> Mapping[str, Any] | None:
        """Of an unfinished span: the process that it began in (`pid`, `started`, `boot`)."""
        found = self._value(self._rest().process)
        return found if isinstance(found, dict) else None

    @property
    def record(self) -> Record:
        """The record."""
        return parse(self.line)

    @property
    def service(self) -> str:
        """The source that recorded it."""
        return self.record.source

    @property
    def ipc_hash(self) -> str | None:
        """The turn that it belongs to, if any."""
        return self.record.ipc_hash

    def to_dict(self) -> dict[str, Any]:
        """Give the span as plain JSON values, `attributes`, `events` and `links` as they are stored."""
        record, rest = self.record, self._rest()
        return {
            "trace_id": self.trace_id,
            "span_id": self.span_id,
            "parent_span_id": self.parent_span_id,
            "parent_is_remote": rest.parent_is_remote is True,
            "name": self.name,
            "kind": str(rest.kind),
            "start": self.start,
            "end": self.end,
            "duration": self.duration,
            "status": self.status,
            "description": self.description,
            "machine": self.machine,
            "service": record.source,
            "ipc_hash": record.ipc_hash,
            "attributes": self._value(rest.attributes, plain=True) or {},
            "events": self._value(rest.events, plain=True) or [],
            "links": self._value(rest.links, plain=True) or [],
            "process": self._value(rest.process, plain=True),
            "seq": self.seq,
        }

    def _rest(self) -> _Rest:
        return _rest_of(self.record)

    def _items(self, raw: msgspec.Raw) -> tuple[Mapping[str, Any], ...]:
        found = self._value(raw)
        return tuple(item for item in found if isinstance(item, dict)) if isinstance(found, list) else ()

    def _value(self, raw: msgspec.Raw, *, plain: bool = False) -> Any:
        text = bytes(raw)
        if not text:
            return None
        try:
            return msgspec.json.decode(text) if plain else values.loads(text)
        except DECODE_ERRORS as error:
            raise FormatError(
                f"{self.machine}, seq {self.seq}: the span cannot be read: {error};"
                " see what is wrong with: otledger verify",
                seq=self.seq,
            ) from None


_decode_span = msgspec.json.Decoder(ReplayedSpan).decode
_decode_rest = msgspec.json.Decoder(_Rest).decode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_TYPES: Mapping[str, Any] = {
    "name": str,
    "parent_span_id": str | None,
    "start": int,
    "end": int | None,
    "status": Outcome,
}


_SPAN_TYPES = (b'otel.span.end"', b'otel.span.start"')


def _decode_maybe(line: bytes) -> ReplayedSpan | None:
    # What stands before `type` (format, 3) holds no quotation mark that is not escaped.
    return _decode_plainly(line) if line.startswith(_SPAN_TYPES, line.find(b'"type":"') + 8) else None


def _decode_plainly(line: bytes) -> ReplayedSpan:
    try:
        if not line.isascii():
            line.decode()
        span = _decode_span(line)
    except DECODE_ERRORS:
        span = _odd(decode(line))
    if header := span.traceparent:
        span.trace_id = header[3:35]
        span.span_id = header[36:52]
    span.line = line
    return span


_decode = decoder(
    ReplayedSpan,
    _decode_maybe,
    types=_SPAN_TYPES,
    cuts={"trace_id": ("traceparent", 3, 35), "span_id": ("traceparent", 36, 52)},
)


def maybe_span_in(line: bytes) -> ReplayedSpan | None:
    """Give the span, if the line is of a start or end record. Raises one of `DECODE_ERRORS` for a damaged one.

    What in its payload is not of the format's type is taken as if it were left out; a time that is none is the
    record's.
    """
    span = _decode(line)
    if span is None or (span.type == END_TYPE and span.payload.end is not None):
        return span
    return _timed(span)


def span_of(record: Record) -> ReplayedSpan:
    """Give the span that a start or end record tells of, as `maybe_span_in` does."""
    return _timed(_decode(record.line) or _decode_plainly(record.line))


def _timed(span: ReplayedSpan) -> ReplayedSpan:
    payload = span.payload
    if span.type != END_TYPE:
        payload.end = None
    elif payload.end is None:
        payload.end = decode(span.line).time_ns
    return span


def _rest_of(record: Record) -> _Rest:
    try:
        return _decode_rest(record.raw)
    except DECODE_ERRORS:
        return _Rest()


def _odd(record: Record) -> ReplayedSpan:
    try:
        members = _members(record.raw)
    except DECODE_ERRORS:
        members = {}
    known: dict[str, Any] = {"start": record.time_ns}
    for name, type in _TYPES.items():
        if name in members:
            try:
                known[name] = msgspec.json.decode(members[name], type=type)
            except DECODE_ERRORS:
                continue
    span = ReplayedSpan(
        type=record.type,
        machine=record.machine,
        traceparent=record.traceparent or "",
        payload=Payload(**known),
        seq=record.seq,
    )
    span.trace_id, span.span_id = record.trace_id or "", record.span_id or ""
    return span
