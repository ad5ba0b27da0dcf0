"""Events from the command line and from stdin into the ledger."""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import msgspec

import otledger
from otledger.batch import MAX_LINE
from otledger.cli.app import INTERRUPTED, OK, REFUSED, Failed
from otledger.cli.output import counted, note, out, out_json
from otledger.errors import EventRefused, JournalError, LedgerError
from otledger.filter import parse_when
from otledger.record import Extension, now_ns, parse_time

MEMBERS = ("type", "data", "subject", "source", "ipc_hash", "extensions", "time", "id")
LONGEST = 6 * MAX_LINE
"""Bytes of a line that are read: JSON's escapes take up to six times as much as what they stand for."""
CLOSE_TIMEOUT = 30.0

_INTEGER = re.compile(r"-?\d{1,10}", re.ASCII)


class _Warnings(logging.Handler):
    """Shows the library's warnings as lines of this command."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def send_warnings_to_stderr() -> None:
    """Show what the library logs as lines on stderr."""
    log = logging.getLogger("otledger")
    log.addHandler(_Warnings(logging.WARNING))
    log.propagate = False


# Options


def payload(text: str | None) -> Any:
    """Give the value of `--data`. Raises `Failed` where it is no JSON."""
    if text is None:
        return None
    try:
        return read_json(text)
    except ValueError as error:
        raise Failed(f"--data is no JSON: {error}; text needs quotes of its own: --data '\"text\"'") from None


def instant(text: str | None) -> int | None:
    """Give the value of `--time` in nanoseconds since the epoch. Raises `ConfigurationError`."""
    return None if text is None else parse_when(text, now_ns())


def extensions(pairs: Sequence[str]) -> dict[str, Extension]:
    """Give the values of `--ext`. `true`, `false` and whole numbers of 32 bits are what they say, else text;
    a value in double quotes is always text. Raises `Failed`."""
    found: dict[str, Extension] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise Failed(f"--ext {pair!r} has no value; give NAME=VALUE, such as --ext phase=beta")
        if name in found:
            raise Failed(f"--ext {name} is given twice; an event has one value for each name")
        found[name] = _extension(value)
    return found


def _extension(value: str) -> Extension:
    if value in ("true", "false"):
        return value == "true"
    if _INTEGER.fullmatch(value) and -(1 << 31) <= int(value) < 1 << 31:
        return int(value)
    return value[1:-1] if len(value) >= 2 and value[0] == value[-1] == '"' else value


def refuse_options(given: Mapping[str, str | None]) -> None:
    """Raise `Failed` if an option is given that makes no sense for many events."""
    for name, value in given.items():
        if value is not None:
            raise Failed(f"{name} belongs to one event, and - takes many; put it into the lines")


# Writing


def log_one(root: Path, machine: str | None, type: str, members: dict[str, Any], *, json: bool) -> None:
    """Write an event and print its id or receipt. It is durable on return."""
    ledger = otledger.open_sync(root, machine=machine)
    try:
        receipt = ledger.append(type, **members)
    except JournalError as error:
        # It is still queued: closing tries again.
        if ledger.close(CLOSE_TIMEOUT):
            raise Failed(f"the event was not written: {error}") from None
        note(f"written at the second try: {error}")
        return
    finally:
        ledger.close(CLOSE_TIMEOUT)
    if receipt is not None:
        place = {"machine": ledger.config.machine}
        out_json(msgspec.structs.asdict(receipt) | place) if json else out(receipt.id)


def log_lines(root: Path, machine: str | None, defaults: Mapping[str, Any], *, json: bool) -> int:
    """Write an event for each line of stdin. They are durable on return. Gives the exit code."""
    # So that what was accepted is written before the process ends.
    signal.signal(signal.SIGTERM, _terminated)
    if sys.stdin.isatty():
        note("reading JSON Lines from the terminal; end with Ctrl-D")
    taking = _Taking(json=json)
    ledger = otledger.open_sync(root, machine=machine)
    interrupted = False
    try:
        taking.all(ledger.bind(**defaults), sys.stdin.buffer)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        left = ledger.close(CLOSE_TIMEOUT)
        taking.report(left, ledger.config.root)
    if interrupted:
        return INTERRUPTED
    return REFUSED if taking.refused or left else OK


def _terminated(*_: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


class _Taking:
    """What was taken from stdin, and what was refused."""

    def __init__(self, *, json: bool) -> None:
        self.accepted = 0
        self.refused: list[dict[str, Any]] = []
        self._json = json

    def all(self, ledger: otledger.SyncLedger, stdin: BinaryIO) -> None:
        for number, line in numbered_lines(stdin):
            if not line.strip():
                continue
            try:
                if ledger.emit(**_members(line)):
                    self.accepted += 1
                else:
                    self._refuse(number, "dropped, because the queue was full")
            except EventRefused as error:
                self._refuse(number, str(error))
            except LedgerError as error:
                raise Failed(f"stopped at line {number}: {error}") from None

    def _refuse(self, number: int, reason: str) -> None:
        self.refused.append({"line": number, "reason": reason})
        note(f"line {number}: {reason}")

    def report(self, left: int, root: Path) -> None:
        written = self.accepted - left
        if left:
            note(f"{counted(left, 'event')} could not be written to {root}; see: otledger doctor --root {root}")
        if self._json:
            out_json({"written": written, "not_written": left, "refused": self.refused})
        else:
            refused = f", {counted(len(self.refused), 'line')} refused" if self.refused else ""
            note(f"{counted(written, 'event')} written{refused}")


def numbered_lines(stdin: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Give number and bytes of each line; of one that is too long only its beginning."""
    number, fresh = 0, True
    while piece := stdin.readline(LONGEST):
        if fresh:
            number += 1
            yield number, piece
        fresh = piece.endswith(b"\n")


def _members(line: bytes) -> dict[str, Any]:
    """Give the arguments for `emit` that a line holds. Raises `EventRefused`."""
    if len(line) >= LONGEST and not line.endswith(b"\n"):
        raise EventRefused(f"longer than {LONGEST:,} bytes")
    try:
        members = read_json(line.decode())
    except ValueError as error:
        raise EventRefused(f"no JSON: {error}") from None
    if not isinstance(members, dict):
        raise EventRefused('no JSON object; each line is one, such as {"type": "a.b", "data": 1}')
    unknown = [name for name in members if name not in MEMBERS]
    if unknown:
        raise EventRefused(f"unknown member {unknown[0][:80]!r}; allowed are {', '.join(MEMBERS)}")
    if "type" not in members:
        raise EventRefused("it has no type")
    if not isinstance(members.get("extensions", {}), dict | None):
        raise EventRefused("its extensions are no object")
    _check_time(members.get("time"))
    return members


def _check_time(time: Any) -> None:
    if isinstance(time, str) and parse_time(time) is None:
        raise EventRefused(f"its time {time[:80]!r} is no RFC 3339, such as 2026-11-21T03:00:00Z")
    if not isinstance(time, str | int | None) or isinstance(time, bool):
        raise EventRefused("its time is neither RFC 3339 nor nanoseconds since the epoch")


# JSON


def read_json(text: str) -> Any:
    """Give the value of JSON text. Raises ValueError where it is none, or says something twice."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member stands twice in one object, so it does not say which of them counts")
    return members


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is too large for a float; quote it")
    return number
