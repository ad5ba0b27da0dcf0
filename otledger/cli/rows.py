"""The rows of a query on their way out: as a table, JSON lines, CSV, or a Parquet file."""

from __future__ import annotations

import csv as csv_writer
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any

import msgspec

from otledger.cli.app import CORRUPT, NO_MATCH, OK, Failed
from otledger.cli.output import Paint, counted, note, out, safe, safe_json
from otledger.query.sql import Result

CELL = 60
"""Characters of a value that a table shows."""
LOOKED_AT = 500
"""Rows that a table's widths are made from; those that follow keep to them where they can."""
EXPLAINED = ("explain_key", "explain_value")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMG]?)i?B?", re.ASCII)
_UNITS = {"": 1, "k": 1 << 10, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_NUMBERS = re.compile(r"(U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|DOUBLE|FLOAT|DECIMAL.*|NUMBER)", re.IGNORECASE)
_encode = msgspec.json.Encoder(decimal_format="number", enc_hook=str).encode


def bytes_of(text: str) -> int:
    """Give a size such as `256MB` in bytes. Raises `Failed`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise Failed(f"{text!r} is no size: give 256MB, 1.5GB")
    return int(float(match[1]) * _UNITS[match[2]])


def printer_for(*, json: bool, csv: bool, parquet: Path | None, long: bool) -> Callable[[Result], int]:
    """Give what writes a result to stdout and tells how many rows there were. Raises `Failed`."""
    if json + csv + (parquet is not None) > 1:
        raise Failed("--json, --csv and --parquet cannot be combined; give one")
    if parquet is not None and os.path.lexists(parquet):
        raise Failed(f"{parquet} exists, and nothing is overwritten; give another name, or remove it")
    if json:
        return _print_json
    return _print_csv if csv else lambda result: _print_table(result, None if long else CELL)


def say_faults(result: Result, count: int) -> int:
    """Tell of the lines that were passed over. Gives the exit code."""
    for fault in result.faults:
        note(str(fault))
    if result.fault_count > len(result.faults):
        note(f"{counted(result.fault_count, 'line')} are no records; the rest is not listed; see: otledger verify")
    return CORRUPT if result.fault_count else OK if count else NO_MATCH


def _print_json(result: Result) -> int:
    names = _unique(result.columns)
    kinds = [_plain if type != "JSON" else _raw for type in result.types]
    terminal = sys.stdout.isatty()
    count = 0
    for row in result:
        count += 1
        fields = {name: kind(value) for name, kind, value in zip(names, kinds, row, strict=True)}
        text = _encode(fields).decode()
        out(safe_json(text) if terminal else text)
    return count


def _unique(names: Sequence[str]) -> list[str]:
    found: dict[str, None] = {}
    for name in names:
        again, n = name, 1
        while again in found:
            again, n = f"{name}_{n}", n + 1
        found[again] = None
    return list(found)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    return value


def _raw(value: Any) -> Any:
    return None if value is None else msgspec.Raw(value.encode())


def _text(value: Any) -> str:
    """Give a value as text: times in RFC 3339, what has parts as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    text = _encode(_plain(value)).decode()
    return text[1:-1] if text.startswith('"') else text


def _print_csv(result: Result) -> int:
    writer = csv_writer.writer(sys.stdout, lineterminator="\n")
    writer.writerow(result.columns)
    count = 0
    for row in result:
        count += 1
        writer.writerow(map(_text, row))
    return count


def _print_table(result: Result, cell: int | None) -> int:
    if result.columns == EXPLAINED:
        return _print_plan(result)
    rows: Iterable[list[str]] = ([_cut(safe(_text(value)), cell) for value in row] for row in result)
    rows = iter(rows)
    first = list(islice(rows, LOOKED_AT))
    head = [safe(name) for name in result.columns]
    widths = [max(map(len, column)) for column in zip(head, *first, strict=True)]
    right = [_NUMBERS.fullmatch(type) is not None for type in result.types]

    def line(cells: list[str]) -> str:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True))
        return "  ".join(padded).rstrip()

    out(Paint(sys.stdout).dim(line(head)))
    count = 0
    for row in chain(first, rows):
        count += 1
        out(line(row))
    return count


def _print_plan(result: Result) -> int:
    for _, plan in result:
        for line in plan.splitlines():
            out(safe(line))
    return 1


def _cut(text: str, length: int | None) -> str:
    return text if length is None or len(text) <= length else text[: length - 1] + "…"


def write_parquet(result: Result, path: Path) -> int:
    """Write the rows to a new file, which appears whole. Gives how many there were."""
    import pyarrow.parquet as pq

    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "xb") as file:
            count = 0
            with pq.ParquetWriter(file, result.schema, compression="zstd") as writer:
                for batch in result.batches():
                    writer.write_batch(batch)
                    count += len(batch)
            file.flush()
            os.fsync(file.fileno())
        os.link(part, path)
    except FileExistsError:
        raise Failed(f"{path} exists, and nothing is overwritten; give another name, or remove it") from None
    finally:
        with suppress(FileNotFoundError):
            part.unlink()
    return count
