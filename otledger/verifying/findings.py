"""Collecting what is found in one partition, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
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

    def put_first(self, faults: Sequence[Fault]) -> None:
        """Note what comes before everything that was found yet."""
        for fault in faults:
            self.raise_to(fault.status)
        self.faults[:0] = faults
        self.more += len(self.faults[MAX_FAULTS:])
        del self.faults[MAX_FAULTS:]

    def in_order(self, begun: int, files: Sequence[str]) -> None:
        """Put the faults from number `begun` on in their places among those before. `files`: in their order."""
        places = {file: at for at, file in enumerate(files)}
        last = len(files)
        new = self.faults[begun:]
        del self.faults[begun:]
        for fault in new:
            here = (places.get(fault.file, last), fault.offset)
            later = (at for at, other in enumerate(self.faults) if _is_after(other, places, here))
            self.faults.insert(next(later, len(self.faults)), fault)


def _is_after(fault: Fault, places: dict[str, int], here: tuple[int, int]) -> bool:
    return fault.file in places and (places[fault.file], fault.offset) > here
