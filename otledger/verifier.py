"""Verifying that nothing in a ledger was changed, by the lines' bytes (format, 2, 3 and 5)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from otledger.errors import FormatError, RootError
from otledger.identity import keys_folder
from otledger.notes import VerifierKey
from otledger.segment import SegmentName, list_machines
from otledger.verifying.partition import Partition, Plan
from otledger.verifying.pinned import Claim, check_together, claims_of_witness, read_keys
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
    keys: Sequence[str | VerifierKey] = (),
    witness: Sequence[str | Mapping[str, Any]] = (),
    memory: bool | str | Path = False,
    since_checkpoint: bool = False,
    tree: bool = False,
    heartbeat: float | None = None,
    archive: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check every line's checksum, number and place in the chain, caps, checkpoints, and what was set aside.

    `machines` limits it to these; `expect` names machines that must be there. `processes` is how many work
    side by side, by default as many as pay. `tail` checks only what follows the last checkpoint. `deep` also
    parses every line as JSON, and checks every note. `progress` is called with the bytes done and the bytes in all.

    `keys` are the public keys to believe: texts, files, or `VerifierKey`; only with one is anything called sealed.
    `witness`: places, or for each a mapping of origins to signed notes. `memory`: hold it against what the signer on
    this host remembers, in the default folder of keys or in this one. `since_checkpoint` begins at the newest
    checkpoint whose note holds. `tree` recomputes the tree and compares every checkpoint with it. `heartbeat`: the
    last seal may be so many seconds old. `archive`: where archived segments are read.

    Takes the partition's lock shared for an instant, so that no batch is seen half written.
    Raises `RootError` where there is no ledger, `FormatError` for a version of the format that is unknown,
    `NoteError` for a key that is none, `ConfigurationError` for what does not go together.
    """
    began = time.perf_counter()
    root = Path(root)
    pinned = read_keys(keys)
    check_together(keys=bool(pinned), since_checkpoint=since_checkpoint, heartbeat=heartbeat, tail=tail, tree=tree)
    claims = tuple(claim for place in witness for claim in _claims(place))
    known = list_machines(root)
    reports = []
    names = known if machines is None else list(machines)
    done = _Progress(root, [name for name in names if name in known], progress)
    plan = Plan(
        CHUNK,
        processes,
        tail=tail,
        deep=deep,
        keys=pinned,
        claims=claims,
        memory=_folder_of_keys(memory),
        since_checkpoint=since_checkpoint,
        tree=tree,
        heartbeat=heartbeat,
        archive=None if archive is None else str(archive),
        progress=done.add,
    )
    origins: set[str] = set()
    for name in sorted({*names, *expect}):
        if name not in known:
            fault = Fault(Status.INCOMPLETE, name, "", 0, None, "the machine's folder is missing")
            reports.append(MachineReport(name, Status.INCOMPLETE, 0, 0, "", 0, 0, (fault,)))
        else:
            partition = Partition(root / name, plan)
            reports.append(partition.verify())
            origins |= partition.origins
    if machines is None:
        reports += _without_partition(claims, origins)
    worst = max((report.status for report in reports), default=Status.OK)
    return Report(worst, tuple(reports), time.perf_counter() - began)


def _claims(place: str | Mapping[str, Any]) -> list[Claim]:
    if isinstance(place, str):
        from otledger.witness import read_place

        return claims_of_witness(place, read_place(place))
    return claims_of_witness("given", place)


def _folder_of_keys(memory: bool | str | Path) -> Path | None:
    return keys_folder(None if memory is True else memory) if memory else None


def _without_partition(claims: Sequence[Claim], origins: set[str]) -> Iterator[MachineReport]:
    """Give a report for each chain that a witness knows and that is nowhere here."""
    for origin in sorted({claim.origin for claim in claims if not claim.unproved} - origins):
        claim = next(claim for claim in claims if claim.origin == origin)
        reason = f"{claim.who} has a note of this chain, and no machine here has the chain"
        fault = Fault(Status.INCOMPLETE, origin, "", 0, None, reason)
        yield MachineReport(origin, Status.INCOMPLETE, 0, 0, "", 0, 0, (fault,))


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
