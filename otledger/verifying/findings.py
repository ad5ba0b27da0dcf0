"""Collecting what is found in one partition, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from otledger.chunks import MAX_FAULTS
from otledger.verifying.report import Fault, Status


@dataclass(slots=True)
class Findings:
    """Adds up faults and counts while a partition is checked."""

    machine: str
    status: Status = Status.OK
    faults: list[Fault] = field(default_factory=list)
    more: int = 0
    """How many faults there are beyond those listed."""
    records: int = 0
    bytes: int = 0
    recoveries: int = 0
    gaps: int = 0

    def raise_to(self, status: Status) -> None:
        """Make the status at least as bad as this."""
        self.status = max(self.status, status)

    def fault(self, status: Status, file: str, offset: int, seq: int | None, reason: str) -> None:
        """Note what is wrong, and count it where enough is listed already."""
        self.raise_to(status)
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(Fault(status, self.machine, file, offset, seq, reason))
        else:
            self.more += 1
