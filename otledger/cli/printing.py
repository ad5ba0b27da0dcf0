"""Records on their way to stdout, faults on their way to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from otledger.cli.app import CORRUPT, NO_MATCH, OK
from otledger.cli.back import Since, end_cursor, newest
from otledger.cli.marks import Marks
from otledger.cli.output import Paint, clear_bar, note, safe_json
from otledger.cli.render import Renderer
from otledger.errors import FormatError
from otledger.filter import Filter
from otledger.follow import Cursor
from otledger.keyring import Keyring
from otledger.record import Record

Key = tuple[str, int, str]

FAULTS_SHOWN = 100


class Printer:
    """Writes records to stdout and faults to stderr, and knows the exit code that follows from them."""

    def __init__(self, *, json: bool, long: bool, raw: bool, root: Path | None = None) -> None:
        self._json = json
        self._raw = raw or not sys.stdout.isatty()
        self._opener = Keyring()
        self._renderer = Renderer(Paint(sys.stdout), long=long, raw=raw, mark=Marks(root).of)
        self.records = 0
        self.faults = 0

    def record(self, record: Record) -> None:
        """Write a record: the line as it is stored, or a line of text."""
        self.records += 1
        clear_bar()
        if not self._json:
            record.opener = self._opener
            sys.stdout.write(self._renderer.line(record) + "\n")
        elif self._raw:
            sys.stdout.buffer.write(record.line)
        else:
            # On a terminal the same JSON with escapes, since nobody else reads it.
            sys.stdout.write(safe_json(record.line.decode("utf-8", "replace").rstrip("\n")) + "\n")

    def all(self, records: Iterable[Record]) -> None:
        """Write records."""
        for record in records:
            self.record(record)

    def fault(self, fault: FormatError) -> None:
        """Tell of a line that is no record."""
        self.faults += 1
        if self.faults <= FAULTS_SHOWN:
            note(str(fault))
        elif self.faults == FAULTS_SHOWN + 1:
            note(f"more than {FAULTS_SHOWN} lines are no records; the rest is not listed; see: otledger verify")

    @property
    def code(self) -> int:
        """The exit code: 3 where a line was damaged, 1 where nothing was found."""
        if self.faults:
            return CORRUPT
        return OK if self.records else NO_MATCH


def key(record: Record) -> Key:
    """Give what tells a record from all others."""
    return record.machine, record.seq, record.id


def begin(
    folder: Path,
    lines: int,
    kept: Cursor | None,
    filter: Filter,
    machines: list[str] | None,
    printer: Printer,
) -> tuple[Cursor, set[Key]]:
    """Show what came after `kept`, or else the last `lines`. Gives where to go on, and what was shown of that."""
    if kept is not None:
        since = Since(folder, kept, filter, machines, printer.fault)
        printer.all(since)
        sys.stdout.flush()
        return since.cursor, set()
    # The position first: what is written in between comes twice from the files, and is shown once.
    cursor = end_cursor(folder, machines)
    found = newest(folder, lines, filter, machines, printer.fault)
    printer.all(found)
    sys.stdout.flush()
    return cursor, {key(record) for record in found}
