"""Verifying that nothing in a ledger was changed, by the lines' bytes (format, 2, 3 and 5)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from otledger.errors import FormatError, RootError
from otledger.segment import SegmentName, list_machines
from otledger.verifying.partition import Partition, Plan
from otledger.verifying.report import Fault, MachineReport, Report, Status

CHUNK = 16 << 20
"""Bytes of a segment that are checked at a time, each chunk by one process."""


def verify(
    root: str | Path,
    *,
    machines: Sequence[str] | None = None,
    expect: Sequence[str] = (),
    processes: int | None = None,
    tail: bool = False,
    deep: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check every line's checksum, number and place in the chain, caps, checkpoints, and what was set aside.

    `machines` limits it to these; `expect` names machines that must be there. `processes` is how many work
    side by side, by default as many as pay. `tail` checks only what follows the last checkpoint. `deep` also
    parses every line as JSON. `progress` is called with the bytes done and the bytes in all.
    Takes the partition's lock shared for an instant, so that no batch is seen half written.
    Raises `RootError` where there is no ledger, `FormatError` for a version of the format that is unknown.
    """
    began = time.perf_counter()
    root = Path(root)
    known = list_machines(root)
    reports = []
    names = known if machines is None else list(machines)
    done = _Progress(root, [name for name in names if name in known], progress)
    plan = Plan(CHUNK, processes, tail=tail, deep=deep, progress=done.add)
    for name in sorted({*names, *expect}):
        if name not in known:
            fault = Fault(Status.INCOMPLETE, name, "", 0, None, "the machine's folder is missing")
            reports.append(MachineReport(name, Status.INCOMPLETE, 0, 0, "", 0, 0, (fault,)))
        else:
            reports.append(Partition(root / name, plan).verify())
    worst = max((report.status for report in reports), default=Status.OK)
    return Report(worst, tuple(reports), time.perf_counter() - began)


class _Progress:
    """Adds up the bytes that are done."""

    def __init__(self, root: Path, machines: Sequence[str], call: Callable[[int, int], None] | None) -> None:
        self._call = call
        self._done = 0
        self._total = 0
        if call is not None:
            for machine in machines:
                with os.scandir(root / machine) as entries:
                    self._total += sum(e.stat().st_size for e in entries if SegmentName.parse(e.name))

    def add(self, count: int) -> None:
        self._done += count
        if self._call is not None:
            self._call(min(self._done, self._total), self._total)


__all__ = ["Fault", "FormatError", "MachineReport", "Report", "RootError", "Status", "verify"]
