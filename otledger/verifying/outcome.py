"""What follows from a chain's last seal: how far it is sealed, how long ago, and what that means for the status."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from otledger.batch import has_type
from otledger.errors import EventRefused
from otledger.record import format_time
from otledger.verifying.pinned import Claim
from otledger.verifying.report import Status
from otledger.verifying.seals import Seal, Seals, time_of


@dataclass(slots=True)
class Outcome:
    """Members of the report."""

    members: dict[str, Any] = field(default_factory=dict)

    def sealed(self, seals: Seals, seal: Seal | None) -> int | None:
        """Say how far the chain is sealed. Gives when, in nanoseconds since the epoch."""
        self.members["ledger"] = seals.ledger or None
        self.members["key_ids"] = tuple(seals.key_ids)
        if seal is None:
            return None
        at = _sealed_at(seals, seal)
        self.members["sealed_through"] = seal.size - 1
        self.members["sealed_at"], self.members["seal_age"] = _text(at), _age(at)
        return at

    def witnessed(self, claim: Claim | None) -> None:
        """Say how far the chain is witnessed."""
        if claim is not None and claim.size:
            self.members["witnessed_through"] = claim.size - 1
            self.members["witnessed_at"], self.members["witness_age"] = _text(claim.taken), _age(claim.taken)


def conclude(seals: Seals, seal: Seal | None, end: int, heartbeat: float | None) -> Outcome:
    """Give what is sealed, and note where that is less than it should be. `end`: how many records the chain has.

    Call it where keys are given. Without `heartbeat` a seal may be of any age.
    """
    outcome = Outcome()
    at = outcome.sealed(seals, seal)
    found, last = seals.found, seals.pieces[-1]
    if not seals.pinned:
        reason = f"no key given for this chain, {seals.origin}: nothing of it can be proved"
        found.fault(Status.INCOMPLETE, str(seals.pieces[0].name), 0, None, reason)
        return outcome
    if seal is None:
        if found.status < Status.FORK:
            reason = "no valid note by the key given is in the ledger: it cannot be proved"
            found.fault(Status.INCOMPLETE, str(last.name), seals.files.end(last), end, reason)
        return outcome
    age = _age(at)
    if heartbeat is not None and (age is None or age > heartbeat):
        ago = "at an unknown time" if age is None else f"{age:,.0f} s ago"
        reason = f"the last seal is of {ago}, and one is due every {heartbeat:g} s: the tail may have been cut off"
        found.fault(Status.INCOMPLETE, str(last.name), seals.files.end(last), end, reason)
    if any(not has_type(line, "otledger.") for _, _, line, _ in seals.files.records(seals.pieces, seal.size)):
        found.raise_to(Status.UNSEALED_TAIL)
    return outcome


def _sealed_at(seals: Seals, seal: Seal) -> int | None:
    """Give the newest time under the note that otledger itself has set.

    The checkpoint's own is not under its note: who cuts off the tail can write any there. So it is that of the
    checkpoint before, or of the last record that is covered, whichever is later; and never later than its own.
    """
    times = []
    newest = seals.newest()
    while newest is not None and newest.seq >= seal.size:
        newest = seals.newest(newest)
    if newest is not None and newest.time is not None:
        times.append(newest.time)
    last = seals.files.place_of(seals.pieces, seal.size - 1)
    if last is not None and (covered := time_of(last[2])) is not None:
        times.append(covered)
    own = [seal.time] if seal.time is not None else []
    return min([max(times), *own]) if times else None


def _age(at: int | None) -> float | None:
    return None if at is None else (time.time_ns() - at) / 1e9


def _text(at: int | None) -> str | None:
    try:
        return None if at is None else format_time(at)
    except EventRefused:
        return None
