"""What a witness did and keeps, for people and as JSON."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from otledger.cli.app import CORRUPT, NO_MATCH, OK, REFUSED
from otledger.cli.output import Paint, counted, explain, note, out, out_json, safe, safe_json, table
from otledger.errors import LedgerError
from otledger.notes import VerifierKey
from otledger.record import format_time
from otledger.witness import Place, WitnessedNote, WitnessError
from otledger.witnessing import Outcome, witness

TERMINATED = 128 + signal.SIGTERM


def give(
    root: Path,
    place: Place,
    machines: Sequence[str] | None,
    keys: Sequence[VerifierKey],
    *,
    trust_first: bool,
    json: bool,
) -> int:
    """Offer the notes once, and print what became of them. Gives the exit code."""
    outcomes = witness(root, place, machines=machines, keys=keys, trust_first=trust_first)
    _tell(outcomes)
    if json:
        out_json(_as_json(place, outcomes))
    else:
        for outcome in outcomes:
            out(_line(outcome))
    return _code(outcomes)


def give_on(
    root: Path,
    place: Place,
    machines: Sequence[str] | None,
    keys: Sequence[VerifierKey],
    *,
    trust_first: bool,
    json: bool,
    every: float,
) -> int:
    """Offer the notes again and again until SIGTERM, and print what changes. Gives the exit code."""
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    before: list[Outcome] = []
    refused = False
    while not over.is_set():
        try:
            outcomes = witness(root, place, machines=machines, keys=keys, trust_first=trust_first)
        except (LedgerError, OSError) as error:
            # A place or a disk that is away for a while.
            note(explain(error)[0])
        else:
            new = [outcome for outcome in outcomes if outcome not in before and outcome.verdict != "unchanged"]
            refused = refused or any(outcome.verdict == "refused" for outcome in new)
            _tell(new)
            if json and new:
                out(_compact(_as_json(place, new)))
            for outcome in () if json else new:
                out(_line(outcome))
            sys.stdout.flush()
            before = outcomes
        over.wait(every)
    return CORRUPT if refused else TERMINATED


def show(place: Place, *, history: bool, json: bool) -> int:
    """Print what a place holds. Gives the exit code."""
    if not place.is_there():
        raise WitnessError(f"{place}: no witness's place is there; is it mounted, or mistyped?", path=str(place))
    notes = list(_kept(place, history))
    if json:
        out_json({"place": str(place), "notes": [_note_as_json(entry) for entry in notes]})
    elif notes:
        head = ("machine", "records", "taken", "key", "stamped", "refused", "origin")
        out("\n".join(table(head, [_row(entry) for entry in notes], right=(1, 5), paint=Paint(sys.stdout))))
    for entry in () if json else notes:
        for refused in entry.refused:
            note(f"{refused.machine}, {format_time(refused.taken)}: refused: {refused.reason}")
    return OK if notes else NO_MATCH


def _kept(place: Place, history: bool) -> Iterator[WitnessedNote]:
    for origin in place.origins():
        refused = place.refused(origin)
        newest = None
        for newest in place.history(origin) if history else filter(None, [place.newest(origin)]):
            if history:
                yield newest
        if newest is not None and not history:
            yield replace(newest, refused=refused)


def _row(entry: WitnessedNote) -> tuple[str, ...]:
    return (
        entry.machine,
        f"{entry.commitment.size:,}",
        format_time(entry.taken),
        entry.key.id.hex(),
        format_time(entry.stamped) if entry.stamped else "",
        str(len(entry.refused) or ""),
        entry.origin,
    )


def _note_as_json(entry: WitnessedNote) -> dict[str, Any]:
    return {
        "origin": entry.origin,
        "machine": entry.machine,
        "ledger": entry.ledger,
        "number": entry.number,
        "size": entry.commitment.size,
        "taken": entry.taken,
        "key": str(entry.key),
        "keys": [str(known.key) for known in entry.keys],
        "stamped": entry.stamped,
        "note": entry.note,
        "refused": [
            {"machine": each.machine, "taken": each.taken, "reason": each.reason, "note": each.note}
            for each in entry.refused
        ],
    }


def _as_json(place: Place, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {"place": str(place), "machines": [outcome.to_dict() for outcome in outcomes]}


def _compact(value: dict[str, Any]) -> str:
    import orjson

    return safe_json(orjson.dumps(value).decode())


def _tell(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        if outcome.reason:
            note(f"{outcome.machine}: {outcome.reason}")


def _line(outcome: Outcome) -> str:
    size = "" if outcome.size is None else f"  {counted(outcome.size, 'record')}"
    since = "" if outcome.before is None or outcome.verdict != "accepted" else f", {outcome.before:,} before"
    key = f"  key {outcome.key}" if outcome.key else ""
    return safe(f"{outcome.machine}  {outcome.verdict}{size}{since}{key}")


def _code(outcomes: Sequence[Outcome]) -> int:
    verdicts = {outcome.verdict for outcome in outcomes}
    if "refused" in verdicts:
        return CORRUPT
    if "untrusted" in verdicts:
        return REFUSED
    return NO_MATCH if verdicts <= {"nothing"} else OK
