"""One run of an import: lines in, batches of records out, what is no event set aside."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, Protocol

from otledger.errors import EventRefused
from otledger.hooks import Progress
from otledger.journal import Batch, Journal
from otledger.predecessors.members import Members, digest
from otledger.predecessors.sources import LIMIT, Line, lines, size_of
from otledger.record import Draft, now_ns
from otledger.segment import QUARANTINE

BATCH = 500
"""How many events are made durable together."""
BATCH_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Refused:
    """A line, or a part of one, that is no event: it is reported, and its bytes are kept."""

    file: Path
    offset: int
    reason: str
    kept_as: Path
    """The file in the partition's `quarantine/` that has its bytes."""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did."""

    imported: int
    already_there: int
    refused: Sequence[Refused]
    partitions: Sequence[str]
    checksums: Mapping[str, int] = field(default_factory=dict)
    """Of PipeWorks' events: how many checksums were right in which form (see pipeworks.py): `unescaped`,
    `escaped`, `ordered`, or `either` where the first two are the same."""


@dataclass(frozen=True, slots=True)
class Event:
    """A line that was read."""

    id: object
    content: Members
    """What must be equal where the same id comes again."""
    draft: Callable[[], Draft]
    """Makes its draft. Raises `EventRefused`."""
    form: str | None = None
    """The form of its checksum."""


class Kind(Protocol):
    """How a predecessor's lines are read."""

    def read(self, line: bytes) -> Event:
        """Give the event of a line. Raises `EventRefused`."""

    def swallowed(self, line: bytes) -> int:
        """Give where a whole event begins in a refused line, behind a torn one; 0 for nowhere."""


class Seen:
    """The ids that are there, each with a digest of its event: about 200 bytes an event."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[bytes, bytes] = {}

    def add(self, id: str, content: Members) -> None:
        """Remember an event."""
        self._known[self._key(id)] = digest(content)

    def look(self, id: str, content: Members) -> Literal["new", "same", "other"]:
        """Tell whether the id is known, and if so, whether with the same content."""
        known = self._known.get(self._key(id))
        if known is None:
            return "new"
        return "same" if known == digest(content) else "other"

    @staticmethod
    def _key(id: str) -> bytes:
        return blake2b(id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Intake:
    """What one import has done so far. Used by one thread."""

    def __init__(
        self, root: Path, settings: Mapping[str, Any], progress: Progress | None, files: Sequence[Path]
    ) -> None:
        self._root = root
        self._settings = {**settings, "service": "import"}
        self._progress = progress
        self._total = sum(map(size_of, files))
        self._done = self._imported = self._already = 0
        self._refused: list[Refused] = []
        self._partitions: list[str] = []
        self._checksums: Counter[str] = Counter()
        self._seen = Seen()
        self._parts: list[bytes] = []
        self._size = 0

    def know(self, seen: Seen) -> None:
        """Take the events that the ledger holds already."""
        self._seen = seen

    def recover(self, partition: str) -> None:
        """Let the journal settle what a crash left in a partition."""
        with self._journal(partition):
            pass

    def take(self, partition: str, files: Sequence[Path], kind: Kind) -> None:
        """Import files into a partition; durable on return. Raises `RootError`, `FormatError`, `JournalError`."""
        self._partitions.append(partition)
        with contextlib.closing(self._journal(partition)) as journal:
            before = self._imported
            for path in files:
                for number, line in enumerate(lines(path), 1):
                    self._line(journal, kind, path, line)
                    self._done += len(line.data)
                    if number % BATCH == 0 or self._size >= BATCH_BYTES:
                        self._flush(journal)
                self._flush(journal)
            if self._imported > before:
                # At durability `os` nobody else waits for the disk.
                journal.sync()

    def report(self) -> ImportReport:
        """Give what was done."""
        return ImportReport(self._imported, self._already, self._refused, self._partitions, dict(self._checksums))

    def _journal(self, partition: str) -> Journal:
        return Journal(self._root, machine=partition, **self._settings)

    def _line(self, journal: Journal, kind: Kind, path: Path, line: Line) -> None:
        data = line.data
        if not line.whole:
            self._refuse(journal, path, line, f"part of a line of more than {LIMIT:,} bytes")
        elif data.strip():
            try:
                self._event(journal, kind.read(data))
            except (EventRefused, RecursionError) as error:
                at = kind.swallowed(data) if isinstance(error, EventRefused) else 0
                if not at:
                    why = str(error) if isinstance(error, EventRefused) else "it is nested too deep"
                    self._refuse(journal, path, line, why)
                    return
                reason = f"torn, and the event at {line.offset + at} was written onto it"
                self._refuse(journal, path, Line(line.offset, data[:at], True), reason)
                self._line(journal, kind, path, Line(line.offset + at, data[at:], True))

    def _event(self, journal: Journal, event: Event) -> None:
        id = event.id
        if not isinstance(id, str):
            raise EventRefused(f"its id {str(id)[:80]} is no text")
        known = self._seen.look(id, event.content)
        if known == "other":
            raise EventRefused(f"its id {id[:80]} is that of another event with other content")
        if event.form:
            self._checksums[event.form] += 1
        if known == "same":
            self._already += 1
            return
        _, part = journal.encoder.draft(event.draft(), now_ns())
        self._seen.add(id, event.content)
        self._parts.append(part)
        self._size += len(part)

    def _refuse(self, journal: Journal, path: Path, line: Line, reason: str) -> None:
        # Not a segment's name: recovery reads from such names what it set aside itself.
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", path.name)[:100]
        kept = journal.set_aside(f"import.{name}.{line.offset}", line.data)
        self._refused.append(Refused(path, line.offset, reason, journal.path / QUARANTINE / kept))

    def _flush(self, journal: Journal) -> None:
        if self._parts:
            ack = journal.write(Batch(self._parts, {}), timeout=journal.config.lock_timeout)
            self._imported += ack.count
            if ack.error is not None:
                raise ack.error
            self._parts, self._size = [], 0
        if self._progress is not None:
            self._progress(self._done, max(self._done, self._total))
