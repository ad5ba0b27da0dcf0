"""What the commands of `replaying` do: find, print, and give the exit code."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import orjson

from otledger.cli.app import NO_MATCH, REFUSED, Failed
from otledger.cli.marks import Marks
from otledger.cli.output import Paint, Progress, counted, duration_text, note, out, out_json, safe, safe_json
from otledger.cli.printing import Printer
from otledger.cli.waterfall import moment, turn_lines, waterfall
from otledger.identity import boot_id, process_state
from otledger.pairs import Pair
from otledger.reader import Reader
from otledger.replay import ReplayedSpan
from otledger.turns import Turn

SHORT = 12
"""Digits of an id that are shown."""
LEAST = 4
"""Digits of an id that have to be given."""
HASH = re.compile(r"[0-9a-f]{64}")


def _json_line(value: Any) -> None:
    text = orjson.dumps(value, default=str).decode()
    out(safe_json(text) if sys.stdout.isatty() else text)


def _whole(reader: Reader, given: str, name: str, length: int, machines: Sequence[str] | None, printer: Printer) -> str:
    """Give the id that begins with what was given. Raises `Failed` where there is none, or several."""
    what = {"trace_id": "trace", "ipc_hash": "turn"}[name]
    shape = f"{length} hex digits, or the first {LEAST} or more of them"
    if not LEAST <= len(given) <= length or not re.fullmatch(r"[0-9a-f]+", given):
        raise Failed(f"{given!r} has {counted(len(given), 'character')}: the id of a {what} is {shape}", REFUSED)
    found = reader.ids_like(given, name, machines=machines, on_fault=printer.fault)
    if len(found) > 1:
        raise Failed(f"{given} is the beginning of several {what}s; give more of it: {', '.join(sorted(found))}")
    if not found:
        raise Failed(f"there is no {what} whose id begins with {given}; the whole id is {length} hex digits", NO_MATCH)
    return found[0]


def _printer() -> Printer:
    return Printer(json=False, long=False, raw=False)


# Traces and spans


def show_trace(root: Path, given: str, machines: list[str] | None, *, events: bool, json: bool) -> int:
    """Print one trace. Gives the exit code."""
    printer, id = _printer(), given.strip().lower()
    with Progress("trace") as progress:
        reader = Reader(root, progress=progress)
        if len(id) != 32:
            id = _whole(reader, id, "trace_id", 32, machines, printer)
        trace = reader.trace(id, machines=machines, on_fault=printer.fault)
    if trace is None:
        raise Failed(f"there is no span of a trace {id}; see what there is with: otledger spans", NO_MATCH)
    printer.records += 1
    if json:
        out_json(trace.to_dict() if events else {**trace.to_dict(), "records": []})
    else:
        for line in waterfall(trace, Paint(sys.stdout), events=events):
            out(line)
    return printer.code


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which spans are listed, by what they are; None and False: any."""

    name: str | None = None
    errors: bool = False
    unfinished: bool = False
    longer: float | None = None
    """Seconds."""

    def takes(self, span: ReplayedSpan) -> bool:
        """Tell whether a span is one of those."""
        if self.unfinished and span.end is not None:
            return False
        if self.errors and span.status != "ERROR":
            return False
        if self.longer is not None and (span.duration is None or span.duration < self.longer * 1e9):
            return False
        return self.name is None or fnmatchcase(span.name, self.name)


def show_spans(root: Path, choice: Choice, found: Mapping[str, Any], *, json: bool, long: bool) -> int:
    """Print spans, one a line. Gives the exit code."""
    printer, paint = _printer(), Paint(sys.stdout)
    with Progress("spans") as progress:
        for span in Reader(root, progress=progress).spans(**found, on_fault=printer.fault):
            if not choice.takes(span):
                continue
            printer.records += 1
            if json:
                _json_line(span.to_dict())
            else:
                out(_span_line(span, paint, long=long))
    return printer.code


def _span_line(span: ReplayedSpan, paint: Paint, *, long: bool) -> str:
    shown = None if long else SHORT
    fields = [
        paint.dim(moment(span.start)),
        safe(span.machine),
        paint.bold(safe(span.name)),
        how_it_ended(span, paint),
        *(safe(f"{name}={value}") for name, value in span.attributes.items()),
        paint.dim(f"trace={safe(span.trace_id[:shown])}"),
    ]
    if long:
        fields.append(paint.dim(safe(f"span={span.span_id} parent={span.parent_span_id} source={span.service}")))
    return "  ".join(fields)


def how_it_ended(span: ReplayedSpan, paint: Paint) -> str:
    """Give how long a span lasted and whether it failed, or what became of its process."""
    if span.duration is None:
        return paint.yellow(f"unfinished ({process_state(span.process, boot_id())})")
    lasted = duration_text(span.duration)
    if span.status != "ERROR":
        return lasted
    return f"{lasted}  {paint.red('ERROR')}{safe(f': {span.description}' if span.description else '')}"


# Turns


def show_turn(root: Path, given: str, machines: list[str] | None, expect: Sequence[str], *, json: bool) -> int:
    """Print one turn. Gives the exit code."""
    printer, ipc_hash = _printer(), given.strip()
    with Progress("turn") as progress:
        reader = Reader(root, progress=progress)
        # What a caller uses as a hash may be any text: only what is not found is looked at more closely.
        turn = reader.turn(ipc_hash, expect=expect, machines=machines, on_fault=printer.fault)
        if turn is None and not HASH.fullmatch(ipc_hash):
            ipc_hash = _whole(reader, ipc_hash.lower(), "ipc_hash", 64, machines, printer)
            turn = reader.turn(ipc_hash, expect=expect, machines=machines)
    if turn is None:
        raise Failed(f"there is no turn {ipc_hash}; see what there is with: otledger turns", NO_MATCH)
    printer.records += 1
    if json:
        records = [record.to_dict() for record in turn.records]
        out_json({**turn.to_dict(), "records": records, "spans": [span.to_dict() for span in turn.spans]})
        return printer.code
    paint = Paint(sys.stdout)
    out(_turn_line(turn, paint, long=True))
    for line in turn_lines(turn, Marks(root).of):
        out(line)
    return printer.code


def show_turns(
    root: Path, expect: Sequence[str], found: Mapping[str, Any], *, incomplete: bool, json: bool, long: bool
) -> int:
    """Print turns, one a line. Gives the exit code."""
    printer, paint = _printer(), Paint(sys.stdout)
    count = complete = unlinked = 0

    def on_unlinked(_: object) -> None:
        nonlocal unlinked
        unlinked += 1

    with Progress("turns") as progress:
        reader = Reader(root, progress=progress)
        for turn in reader.turns(**found, expect=expect, on_unlinked=on_unlinked, on_fault=printer.fault):
            count += 1
            lacks = bool(turn.missing())
            complete += not lacks
            if incomplete and not lacks:
                continue
            printer.records += 1
            if json:
                _json_line(turn.to_dict())
            else:
                out(_turn_line(turn, paint, long=long))
    said = f", {complete:,} complete" if expect else ""
    note(f"{counted(count, 'turn')}{said}; {counted(unlinked, 'event')} in no turn")
    return printer.code


def _turn_line(turn: Turn, paint: Paint, *, long: bool) -> str:
    fields = [
        paint.dim(moment(turn.start)),
        paint.bold(safe(turn.ipc_hash if long else turn.ipc_hash[:SHORT])),
        counted(len(turn.records), "record"),
        duration_text(turn.duration),
    ]
    missing = turn.missing()
    if missing:
        fields.append(paint.red(safe(f"missing {', '.join(missing)}")))
    if turn.late:
        fields.append("continued")
    return "  ".join(fields)


# Pairs


def show_pairs(root: Path, key: str, found: Mapping[str, Any], *, unmatched: bool, json: bool) -> int:
    """Print pairs, one a line. Gives the exit code."""
    printer, paint = _printer(), Paint(sys.stdout)
    matched = starts = ends = 0
    with Progress("pairs") as progress:
        for pair in Reader(root, progress=progress).pairs(key, **found, on_fault=printer.fault):
            matched += pair.matched
            starts += pair.end is None
            ends += pair.start is None
            if unmatched and pair.matched:
                continue
            printer.records += 1
            if json:
                _json_line(pair.to_dict())
            else:
                out(_pair_line(pair, key, paint))
    alone = f"{counted(starts, 'start')} without an end, {counted(ends, 'end')} without a start"
    note(f"{counted(matched, 'pair')}; {alone}")
    return printer.code


def _pair_line(pair: Pair, key: str, paint: Paint) -> str:
    record = pair.start or pair.end
    alone = "no end" if pair.end is None else "no start"
    said = duration_text(pair.duration) if pair.duration is not None else paint.yellow(alone)
    fields = [paint.dim(moment(pair.time)), safe(record.machine if record else ""), paint.bold(safe(pair.base)), said]
    if pair.key is not None:
        fields.append(safe(f"{key}={pair.key}"))
    return "  ".join(fields)
