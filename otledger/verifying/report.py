"""What `verify` answers: a status, and for each machine what was found, with the places of faults (format, 5).

Pure.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from otledger.segment import SegmentName


class Status(enum.IntEnum):
    """What `verify` found, from good to bad; the worst of a ledger's machines counts."""

    OK = 0
    """All records are there, unchanged, in their chain."""
    UNSEALED_TAIL = 1
    """Good, but the newest records stand under no signed checkpoint yet."""
    RECOVERED = 2
    """Good, and a crash or a failed disk left something that was set aside and written down."""
    INCOMPLETE = 3
    """What is there is good, and something that should be there is not, or cannot be proved."""
    FORK = 4
    """Two records claim the same place: two writers had one identity."""
    TAMPERED = 5
    """Something was changed, removed or put in."""

    def __str__(self) -> str:
        return self.name

    @property
    def exit_code(self) -> int:
        """The exit code of `otledger verify`."""
        return {"OK": 0, "TAMPERED": 3, "FORK": 4, "INCOMPLETE": 5, "RECOVERED": 6, "UNSEALED_TAIL": 7}[self.name]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong. `offset` is in bytes; `seq` is the number that was due there, if known."""

    status: Status
    machine: str
    file: str
    offset: int
    seq: int | None
    reason: str

    @property
    def place(self) -> tuple[str, int, int]:
        """What faults of a machine sort by: month, number of the segment, offset; other files come first."""
        name = SegmentName.parse(self.file)
        return (name.month, name.n, self.offset) if name is not None else ("", 0, self.offset)

    def __str__(self) -> str:
        where = f"{self.machine}/{self.file}" if self.file else self.machine
        number = "" if self.seq is None else f", seq {self.seq}"
        return f"{where}, offset {self.offset}{number}: {self.reason}"


@dataclass(frozen=True, slots=True)
class MachineReport:
    """What was found in one machine's partition."""

    machine: str
    status: Status
    records: int
    bytes: int
    head: str
    """The checksum of the last record, without its prefix."""
    recoveries: int
    gaps: int
    """How many records `otledger.gap` says were accepted and lost."""
    faults: tuple[Fault, ...]
    more_faults: int = 0
    """How many more there are than `faults` lists."""
    ledger: str | None = None
    """UUID of the newest chain; None without one."""
    key_ids: tuple[str, ...] = ()
    """Of the keys under which notes hold, 8 hex digits each; without a pinned key those that the newest note names."""
    sealed_through: int | None = None
    """The last `seq` that stands under a note of a pinned key, or of one that follows it; None where none does."""
    sealed_at: str | None = None
    """The newest time of otledger's own that stands under that note, RFC 3339."""
    seal_age: float | None = None
    """How long ago that is, in seconds."""
    witnessed_through: int | None = None
    """The last `seq` that stands under the newest note that a witness has."""
    witnessed_at: str | None = None
    witness_age: float | None = None
    archived: tuple[str, ...] = ()
    """Segments that were moved away and are needed to check everything."""
    unread: int = 0
    """Bytes of older records that were not read again."""


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found."""

    status: Status
    machines: tuple[MachineReport, ...]
    seconds: float

    @property
    def faults(self) -> tuple[Fault, ...]:
        """All faults, the worst first, each kind in the order of the files."""
        found = [fault for machine in self.machines for fault in machine.faults]
        return tuple(sorted(found, key=lambda fault: (-fault.status, fault.machine, *fault.place)))

    @property
    def records(self) -> int:
        """How many records were checked."""
        return sum(machine.records for machine in self.machines)

    @property
    def bytes(self) -> int:
        """How many bytes were checked."""
        return sum(machine.bytes for machine in self.machines)

    def to_dict(self) -> dict[str, Any]:
        """Give the report as plain JSON values."""
        from dataclasses import asdict

        plain = asdict(self)
        plain["status"] = str(self.status)
        for machine in plain["machines"]:
            machine["status"] = str(Status(machine["status"]))
            for fault in machine["faults"]:
                fault["status"] = str(Status(fault["status"]))
        plain["records"], plain["bytes"] = self.records, self.bytes
        return plain
