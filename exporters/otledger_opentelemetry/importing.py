"""Import of OTLP from files: JSON lines, as a collector's file exporter and the SDK's write them, and protobuf.

An imported record's id is made of what it says and of how many equal ones came before it, so an import may be
repeated, and goes on where an earlier one ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from google.protobuf.message import DecodeError

from otledger.config import Config
from otledger.errors import FormatError, RootError
from otledger.hooks import Progress
from otledger.journal import Batch, Journal, Resource
from otledger.predecessors.importing import one_at_a_time
from otledger.predecessors.intake import BATCH_BYTES, ImportReport, Refused
from otledger.reader import Reader
from otledger.segment import QUARANTINE, list_machines
from otledger_opentelemetry import otlp, otlp_json, wire

PARTITION = "otlp.import"
STDIN = "-"
BATCH = 5000
"""How many records are made durable together, about."""
MAX_LINE = 64 << 20
"""The longest line of JSON that is read as one, in bytes."""
MAX_FILE = 1 << 30
"""The largest file of protobuf, in bytes: it is read as a whole."""

_MEMBERS = {signal.member: kind for kind, signal in otlp.SIGNALS.items()}
_ID = slice(len('{"specversion":"1.0","id":"'), len('{"specversion":"1.0","id":"') + 32)
_COMPRESSED = {b"\x1f\x8b": "zcat", b"\x28\xb5\x2f\xfd": "zstdcat"}
_SPACE = b" \t\r\n"


class _Bad(ValueError):
    """A piece of the source is no OTLP. `str` says why."""


Content = list[tuple[str, Any]]
"""Requests, each with the kind of its signal."""


class _Piece(NamedTuple):
    """A part of the source that is imported, or set aside, as a whole."""

    offset: int
    data: bytes
    read: Callable[[], Content]
    """Raises `_Bad`."""


def import_otlp(
    root: str | Path,
    source: str | Path,
    *,
    signal: str | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> ImportReport:
    """Append the OTLP in the file `source`, or on stdin where that is `-`, to the ledger at `root`.

    It goes to the partition `otlp.import`. `signal` is `traces`, `logs` or `metrics`, for files of protobuf that do
    not show it. `settings` are those of `Config`. What is reported as imported is durable.

    Raises `RootError` and `FormatError` for what cannot be read or is no OTLP at all, `LockTimeout` while another
    import runs, `JournalError` if something could not be written: then the import can be repeated.
    """
    path = Path(source)
    if signal is not None and signal not in otlp.SIGNALS:
        raise FormatError(f"there is no signal {signal!r}; there are: {', '.join(otlp.SIGNALS)}")
    config = Config.resolve(root=root, machine=PARTITION, **{**settings, "service": "import"})
    with contextlib.closing(_open(path)) as file:
        pieces = _pieces(path, file, signal)
        # Where the source is something else altogether nothing is made.
        pieces = itertools.chain(list(itertools.islice(pieces, 1)), pieces)
        with one_at_a_time(config, PARTITION), Journal(config=config) as journal:
            taking = _Taking(journal, path, _ids(config.root))
            total = _size(file)
            for piece in pieces:
                taking.take(piece)
                if progress is not None:
                    done = piece.offset + len(piece.data)
                    progress(done, max(done, total))
            taking.finish()
            return taking.report()


def _ids(root: Path) -> set[bytes]:
    """Give the ids that earlier imports stored. What cannot be read is passed over: it may be added again."""
    if PARTITION not in list_machines(root):
        return set()
    records = Reader(root).records(machines=[PARTITION], on_fault=lambda _: None)
    return {record.id.encode() for record in records if record.type.startswith("otel.") and record.checksum}


class _Taking:
    """One run of an import: pieces in, batches of records out, what is no OTLP set aside."""

    def __init__(self, journal: Journal, path: Path, known: set[bytes]) -> None:
        self._journal = journal
        self._path = path
        self._known = known
        self._equal: Counter[bytes] = Counter()
        self._imported = self._already = 0
        self._refused: list[Refused] = []
        self._parts: list[bytes] = []
        self._size = 0
        self._resources: dict[str, Resource] = {}

    def take(self, piece: _Piece) -> None:
        """Import a piece. Raises `JournalError`."""
        try:
            content = piece.read()
        except _Bad as error:
            self._refuse(piece, str(error))
            return
        if not self._parts:
            self._resources.clear()
        for kind, request in content:
            for entry in otlp.entries(request, kind, self._use, self._report):
                self._add(entry)

    def finish(self) -> None:
        """Write what is left; everything is durable on return. Raises `JournalError`."""
        self._flush()
        if self._imported:
            # At durability `os` nobody else waits for the disk.
            self._journal.sync()

    def report(self) -> ImportReport:
        """Give what was done."""
        return ImportReport(self._imported, self._already, self._refused, [PARTITION])

    def _use(self, resource: Resource) -> None:
        self._resources[resource.digest] = resource

    def _report(self, error: BaseException) -> None:
        """The record itself shows what was cut."""

    def _add(self, entry: otlp.Entry) -> None:
        id = self._id_of(entry)
        if id in self._known:
            self._already += 1
            return
        self._known.add(id)
        part = self._journal.encoder.telemetry(*entry)
        part = part[: _ID.start] + id + part[_ID.stop :]
        self._parts.append(part)
        self._size += len(part)
        if len(self._parts) >= BATCH or self._size >= BATCH_BYTES:
            self._flush()

    def _id_of(self, entry: otlp.Entry) -> bytes:
        type, _, payload, members = entry
        # The payload names resource and scope by their digests.
        content = hashlib.sha256(f"{type}\n{members}\n{payload}".encode()).digest()[:16]
        self._equal[content] += 1
        digest = hashlib.sha256(b"%b%d" % (content, self._equal[content])).hexdigest()
        # Version and variant of a UUID whose other bits are the maker's own (RFC 9562, version 8).
        return f"{digest[:12]}8{digest[13:16]}{'89ab'[int(digest[16], 16) & 3]}{digest[17:32]}".encode()

    def _flush(self) -> None:
        if self._parts:
            batch = Batch(self._parts, self._resources)
            ack = self._journal.write(batch, timeout=self._journal.config.lock_timeout)
            self._imported += ack.count
            if ack.error is not None:
                raise ack.error
            self._parts, self._size = [], 0

    def _refuse(self, piece: _Piece, reason: str) -> None:
        # Not a segment's name: recovery reads from such names what it set aside itself.
        name = "stdin" if str(self._path) == STDIN else re.sub(r"[^A-Za-z0-9._-]+", "_", self._path.name)[:100]
        kept = self._journal.set_aside(f"import.{name}.{piece.offset}", piece.data)
        self._refused.append(Refused(self._path, piece.offset, reason, self._journal.path / QUARANTINE / kept))


# The source


def _open(path: Path) -> BinaryIO:
    try:
        raw = io.FileIO(os.dup(sys.stdin.fileno())) if str(path) == STDIN else io.FileIO(path)
    except OSError as error:
        raise RootError(f"{path}: cannot be read: {error.strerror}; give a file, or - for stdin", path=path) from None
    return io.BufferedReader(raw, 1 << 20)


def _size(file: BinaryIO) -> int:
    """Give the size of a file in bytes; 0 where that cannot be known."""
    return os.fstat(file.fileno()).st_size


def _pieces(path: Path, file: BinaryIO, signal: str | None) -> Iterator[_Piece]:
    """Give the pieces of a source. Raises `RootError`, and `FormatError` at once where it is no OTLP."""
    try:
        head: bytes = file.peek(1 << 16)  # type: ignore[attr-defined]
    except OSError as error:
        raise _unreadable(path, error) from None
    # Protobuf may begin with a brace, or with what is white space in JSON.
    if head.lstrip(_SPACE)[:1] in (b"{", b"") and wire.frames(head) is None:
        return _json_pieces(path, file)
    return _protobuf_pieces(path, file, signal)


def _unreadable(path: Path, error: OSError) -> RootError:
    return RootError(f"{path}: cannot be read: {error.strerror}", path=path)


def _no_otlp(path: Path, why: str) -> FormatError:
    return FormatError(
        f"{path} is no OTLP: {why}; what is read are OTLP/JSON lines and OTLP in protobuf, one message or"
        " length-delimited ones",
        path=path,
    )


def _json_pieces(path: Path, file: BinaryIO) -> Iterator[_Piece]:
    offset, fresh, first = 0, True, True
    while True:
        try:
            data = file.readline(MAX_LINE)
        except OSError as error:
            raise _unreadable(path, error) from None
        if not data:
            return
        whole = fresh and (data.endswith(b"\n") or len(data) < MAX_LINE)
        if not whole:
            yield _Piece(offset, data, _too_long)
        elif data.strip(_SPACE):
            read = _json_reader(data)
            if first:
                _check_first(path, data)
                first = False
            yield _Piece(offset, data, read)
        fresh = data.endswith(b"\n")
        offset += len(data)


def _check_first(path: Path, line: bytes) -> None:
    """Raise `FormatError` where the first line is an object of something else: the others will be, too."""
    with contextlib.suppress(otlp_json.NoOtlp):
        members = otlp_json.parse(line)
        if members and not _MEMBERS.keys() & members.keys():
            raise _no_otlp(path, f"its first line is an object with the member {next(iter(members))[:80]!r}")


def _json_reader(line: bytes) -> Callable[[], Content]:
    def read() -> Content:
        try:
            members = otlp_json.parse(line)
            kinds = [kind for member, kind in _MEMBERS.items() if member in members]
            if not kinds:
                raise _Bad(f"it has none of the members {', '.join(_MEMBERS)}")
            return [(kind, otlp_json.read(members, otlp.SIGNALS[kind].request)) for kind in kinds]
        except otlp_json.NoOtlp as error:
            raise _Bad(str(error)) from None

    return read


def _too_long() -> Content:
    raise _Bad(f"part of a line of more than {MAX_LINE:,} bytes")


def _protobuf_pieces(path: Path, file: BinaryIO, signal: str | None) -> Iterator[_Piece]:
    try:
        data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise _unreadable(path, error) from None
    for magic, program in _COMPRESSED.items():
        if data.startswith(magic):
            raise _no_otlp(path, f"it is compressed: {program} {path} | otledger import otlp -")
    if len(data) > MAX_FILE:
        raise _no_otlp(path, f"it has more than {MAX_FILE:,} bytes, and is no text")
    frames = wire.frames(data)
    if frames is None:
        raise _no_otlp(path, "it is neither text in JSON nor a message of protobuf")
    return (_Piece(frame.start, data[frame.start : frame.end], _frame_reader(data, frame, signal)) for frame in frames)


def _frame_reader(data: bytes, frame: wire.Frame, signal: str | None) -> Callable[[], Content]:
    def read() -> Content:
        if not frame.whole:
            raise _Bad("torn: there is no whole message")
        if frame.end == frame.start:
            return []
        kind = signal or wire.kind_of(data, frame)
        if kind is None:
            raise _Bad("neither spans nor log records nor metrics; if it is one of them, say which by --signal")
        try:
            return [(kind, otlp.SIGNALS[kind].request.FromString(data[frame.start : frame.end]))]
        except DecodeError as error:
            raise _Bad(f"no {kind} in protobuf: {error}") from None

    return read
