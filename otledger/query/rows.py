"""Columns made from lines: what a record says under which name, block by block, without any further package."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from otledger.batch import MAX_LINE
from otledger.errors import FormatError
from otledger.hooks import OnFault
from otledger.query.extents import Extent
from otledger.record import DECODE_ERRORS, RESERVED_NAMES, Record, decode, parse_time
from otledger.segment import line_blocks

BLOCK_ROWS = 16_384
BLOCK_BYTES = 4 << 20
"""Bytes of lines that a block has at most, but for one long line."""

_INT64 = 1 << 63


class SpanData(msgspec.Struct, gc=False):
    """What a span's record tells of its span in `data`; whatever stands there is accepted."""

    name: Any = None
    kind: Any = "INTERNAL"
    parent_span_id: Any = None
    start: Any = None
    end: Any = None
    status: Any = None


_NO_SPAN = SpanData(kind=None)
_decode_span = msgspec.json.Decoder(SpanData).decode


@dataclass(slots=True)
class Block:
    """Records of one segment that follow each other."""

    extent: Extent
    records: list[Record] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    """Where each line begins in its file."""
    _spans: list[SpanData] | None = None

    def __len__(self) -> int:
        return len(self.records)

    @property
    def spans(self) -> list[SpanData]:
        """What the records tell of spans; nothing for those that are no span's."""
        if self._spans is None:
            self._spans = [_span_of(r) if r.type.startswith("otel.span.") else _NO_SPAN for r in self.records]
        return self._spans

    def column(self, name: str) -> list[Any]:
        """Give a column by its name, one of `COLUMNS`."""
        return COLUMNS[name](self)


def _span_of(record: Record) -> SpanData:
    try:
        return _decode_span(record.raw)
    except DECODE_ERRORS:
        return SpanData()


def blocks(extent: Extent, fd: int, start: int = 0, end: int | None = None, *, on_fault: OnFault) -> Iterator[Block]:
    """Give the records of an extent's bytes from `start` up to `end`, where a line begins each.

    A torn last line is no record; any other line that is none is handed to `on_fault` and passed over.
    """
    block, size, offset = Block(extent), 0, start
    for lines in line_blocks(fd, start, extent.end if end is None else end):
        if not lines[-1].endswith(b"\n") and len(lines[-1]) <= MAX_LINE:
            lines.pop()
        offsets = []
        for line in lines:
            offsets.append(offset)
            offset += len(line)
        try:
            records = list(map(decode, lines))
        except DECODE_ERRORS:
            records, lines, offsets = _decode_each(extent, lines, offsets, on_fault)
        block.records += records
        block.lines += lines
        block.offsets += offsets
        size += offset - offsets[0] if offsets else 0
        if len(block) >= BLOCK_ROWS or size >= BLOCK_BYTES:
            yield block
            block, size = Block(extent), 0
    if block.records:
        yield block


def _decode_each(
    extent: Extent, lines: list[bytes], offsets: list[int], on_fault: OnFault
) -> tuple[list[Record], list[bytes], list[int]]:
    records, good, places = [], [], []
    for line, offset in zip(lines, offsets, strict=True):
        try:
            records.append(decode(line))
        except DECODE_ERRORS as error:
            on_fault(fault(extent, offset, str(error)))
            continue
        good.append(line)
        places.append(offset)
    return records, good, places


def fault(extent: Extent, offset: int, reason: str) -> FormatError:
    """Give the error that says that a line is no record."""
    return FormatError(
        f"{extent.path}, offset {offset}: not a record: {reason}; see what is wrong with: otledger verify",
        path=extent.path,
        offset=offset,
    )


# Columns


def _text(name: str) -> Callable[[Block], list[Any]]:
    def column(block: Block) -> list[Any]:
        return [getattr(record, name) for record in block.records]

    return column


def _trace_ids(block: Block) -> list[str | None]:
    return [r.traceparent[3:35] if r.traceparent is not None else r.trace_id for r in block.records]


def _span_ids(block: Block) -> list[str | None]:
    return [r.traceparent[36:52] if r.traceparent is not None else r.span_id for r in block.records]


def _parent_ids(block: Block) -> list[str | None]:
    return [p if isinstance(p := span.parent_span_id, str) else None for span in block.spans]


def _names(block: Block) -> list[str | None]:
    return [None if span.name is None else str(span.name) for span in block.spans]


def _kinds(block: Block) -> list[str | None]:
    return [kind if isinstance(kind := span.kind, str) else None for span in block.spans]


def _statuses(block: Block) -> list[str | None]:
    return [None if span is _NO_SPAN else _status(span.status) for span in block.spans]


def _status(status: Any) -> str:
    code = status.get("code", "UNSET") if isinstance(status, dict) else "UNSET"
    return code if isinstance(code, str) else "UNSET"


def _starts(block: Block) -> list[int | None]:
    return [int64(span.start) for span in block.spans]


def _ends(block: Block) -> list[int | None]:
    return [
        int64(span.end) if record.type == "otel.span.end" else None
        for record, span in zip(block.records, block.spans, strict=True)
    ]


def int64(value: object) -> int | None:
    """Give an integer that fits into 64 bits with a sign, None for all else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and -_INT64 <= value < _INT64 else None


def _times_ns(block: Block) -> list[int | None]:
    return [int64(parse_time(record.time)) for record in block.records]


def _data(block: Block) -> list[str | None]:
    # Bytes that are no UTF-8 may stand in a line that others wrote.
    return [bytes(record.raw).decode(errors="replace") or None for record in block.records]


def _extensions(block: Block) -> list[str | None]:
    return [_extensions_of(line) for line in block.lines]


class _Plain(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A line without extensions: all members that the format names, whatever they hold."""

    specversion: msgspec.Raw = msgspec.Raw()
    id: msgspec.Raw = msgspec.Raw()
    source: msgspec.Raw = msgspec.Raw()
    type: msgspec.Raw = msgspec.Raw()
    time: msgspec.Raw = msgspec.Raw()
    datacontenttype: msgspec.Raw = msgspec.Raw()
    dataschema: msgspec.Raw = msgspec.Raw()
    subject: msgspec.Raw = msgspec.Raw()
    machine: msgspec.Raw = msgspec.Raw()
    ipchash: msgspec.Raw = msgspec.Raw()
    traceparent: msgspec.Raw = msgspec.Raw()
    tracestate: msgspec.Raw = msgspec.Raw()
    data: msgspec.Raw = msgspec.Raw()
    synced: msgspec.Raw = msgspec.Raw()
    seq: msgspec.Raw = msgspec.Raw()
    prev: msgspec.Raw = msgspec.Raw()
    checksum: msgspec.Raw = msgspec.Raw()


_check_plain = msgspec.json.Decoder(_Plain).decode


def _extensions_of(line: bytes) -> str | None:
    # Most lines have none, which is told three times as fast as what the others have.
    with suppress(*DECODE_ERRORS):
        _check_plain(line)
        return None
    found = {name: value for name, value in _members(line).items() if name not in RESERVED_NAMES}
    return msgspec.json.encode(found).decode(errors="replace") if found else None


_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def _prevs(block: Block) -> list[str | None]:
    return [line[-152:-88].decode(errors="replace") if _chained(line) else None for line in block.lines]


def _checksums(block: Block) -> list[str | None]:
    return [line[-74:-3].decode(errors="replace") if _chained(line) else None for line in block.lines]


def _chained(line: bytes) -> bool:
    return line[-87:].startswith(b',"checksum":"sha256:')


COLUMNS: dict[str, Callable[[Block], list[Any]]] = {
    "machine": _text("machine"),
    "seq": lambda block: [int64(record.seq) for record in block.records],
    "id": _text("id"),
    "type": _text("type"),
    "source": _text("source"),
    "subject": _text("subject"),
    "time_ns": _times_ns,
    "ipc_hash": _text("ipc_hash"),
    "trace_id": _trace_ids,
    "span_id": _span_ids,
    "parent_span_id": _parent_ids,
    "name": _names,
    "kind": _kinds,
    "status": _statuses,
    "start_ns": _starts,
    "end_ns": _ends,
    "segment": lambda block: [str(block.extent.segment)] * len(block),
    "offset": lambda block: list(block.offsets),
    "size": lambda block: [len(line) for line in block.lines],
    "time_text": _text("time"),
    "datacontenttype": _text("datacontenttype"),
    "dataschema": _text("dataschema"),
    "traceparent": _text("traceparent"),
    "tracestate": _text("tracestate"),
    "synced": lambda block: [int64(record.synced) for record in block.records],
    "prev": _prevs,
    "checksum": _checksums,
    "extensions": _extensions,
    "data": _data,
}
"""All columns by name. Those of spans are None for other records; `time_ns`, `start_ns` and `end_ns` also where the
ledger has no instant between the years 1678 and 2262."""


def columns(extent: Extent, fd: int, names: Sequence[str], *, on_fault: OnFault) -> Iterator[tuple[list[Any], ...]]:
    """Give columns of an extent's records, block by block: a tuple with a list for each of `names`."""
    for block in blocks(extent, fd, on_fault=on_fault):
        yield tuple(block.column(name) for name in names)
