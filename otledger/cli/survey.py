"""What a ledger holds, machine by machine, from the ends of the files alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from otledger.cli.back import lines_back
from otledger.cli.output import Paint, out, size_text, table
from otledger.errors import FormatError
from otledger.record import Record, parse
from otledger.segment import (
    CHECKPOINT_TYPE,
    Chain,
    Piece,
    control_data,
    file_size,
    find_back,
    lines,
    list_machines,
    open_folder,
    open_segment,
    read_chain,
)


@dataclass(frozen=True, slots=True)
class Machine:
    """A partition as its files' ends tell of it."""

    machine: str
    chained: bool
    segments: int
    records: int
    """The number of the last record, and one."""
    bytes: int
    first: str | None
    """The time of its first event; of otledger's own record where there is no event."""
    last: str | None
    """The time of its last one."""
    checkpoint: int | None
    """How many records the last checkpoint covers."""
    checkpoint_time: str | None


def survey(root: Path) -> list[Machine]:
    """Give the machines under `root`. Raises `RootError` where there is no ledger."""
    return [_machine(root / name) for name in list_machines(root)]


def _machine(path: Path) -> Machine:
    folder = open_folder(path)
    try:
        chain = read_chain(folder, path)
        sizes = [_size(folder, path, piece) for piece in chain.pieces]
        newest = newest_record(folder, path, chain)
        first, last = _first_event(folder, path, chain), _last_event(folder, path, chain)
        checkpoint, size = _checkpoint(folder, path, chain)
    finally:
        os.close(folder)
    return Machine(
        machine=path.name,
        chained=chain.chained,
        segments=len(chain.pieces),
        records=newest.seq + 1 if newest is not None else 0,
        bytes=sum(sizes),
        first=first.time if first is not None else None,
        last=last.time if last is not None else None,
        checkpoint=size,
        checkpoint_time=checkpoint.time if checkpoint is not None else None,
    )


def _size(folder: int, path: Path, piece: Piece) -> int:
    fd = open_segment(folder, piece.name, shown=path)
    try:
        return file_size(fd) if piece.size is None else piece.size
    finally:
        os.close(fd)


def _first_event(folder: int, path: Path, chain: Chain) -> Record | None:
    found = None
    for record in _records(folder, path, chain):
        if not is_control(record):
            return record
        found = found or record
    return found


def _last_event(folder: int, path: Path, chain: Chain) -> Record | None:
    found = None
    for record in _records_back(folder, path, chain):
        if not is_control(record):
            return record
        found = found or record
    return found


def is_control(record: Record) -> bool:
    """Tell whether a record is one of otledger's own, and no event or telemetry."""
    return record.type.startswith(("otledger.", "otel.resource"))


def newest_record(folder: int, path: Path, chain: Chain) -> Record | None:
    """Give the last record of a partition, None where it has none."""
    return next(_records_back(folder, path, chain), None)


def _records(folder: int, path: Path, chain: Chain) -> Iterator[Record]:
    for piece in chain.pieces:
        fd = open_segment(folder, piece.name, shown=path)
        try:
            for _, line in lines(fd, 0, piece.size):
                record = _record(line)
                if record is not None:
                    yield record
        finally:
            os.close(fd)


def _records_back(folder: int, path: Path, chain: Chain) -> Iterator[Record]:
    for piece in reversed(chain.pieces):
        fd = open_segment(folder, piece.name, shown=path)
        try:
            for _, line in lines_back(fd, file_size(fd) if piece.size is None else piece.size):
                record = _record(line)
                if record is not None:
                    yield record
        finally:
            os.close(fd)


def _checkpoint(folder: int, path: Path, chain: Chain) -> tuple[Record | None, int | None]:
    if not chain.chained:
        return None, None
    for piece in reversed(chain.pieces):
        fd = open_segment(folder, piece.name, shown=path)
        try:
            end = file_size(fd) if piece.size is None else piece.size
            for _, line in find_back(fd, b'"type":"%b"' % CHECKPOINT_TYPE.encode(), end):
                data, record = control_data(line, CHECKPOINT_TYPE), _record(line)
                if record is not None and data is not None and isinstance(data.get("size"), int):
                    return record, data["size"]
        finally:
            os.close(fd)
    return None, None


def _record(line: bytes) -> Record | None:
    if not line.endswith(b"\n"):
        return None
    try:
        return parse(line)
    except FormatError:
        return None


# Output


def to_dict(machine: Machine) -> dict[str, Any]:
    """Give a machine as plain JSON values."""
    return asdict(machine)


def print_table(found: list[Machine]) -> None:
    """Print the machines."""
    head = ("machine", "chained", "segments", "records", "bytes", "first", "last", "checkpoint over")
    rows = [_row(machine) for machine in found]
    for line in table(head, rows, right=(2, 3, 4), paint=Paint(sys.stdout)):
        out(line)


def _row(machine: Machine) -> tuple[str, ...]:
    return (
        machine.machine,
        "yes" if machine.chained else "no",
        f"{machine.segments:,}",
        f"{machine.records:,}",
        size_text(machine.bytes),
        _second(machine.first),
        _second(machine.last),
        "-" if machine.checkpoint is None else f"{machine.checkpoint:,} ({_second(machine.checkpoint_time)})",
    )


def _second(time: str | None) -> str:
    return "-" if time is None else f"{time[:19]}Z" if time.endswith("Z") else time
