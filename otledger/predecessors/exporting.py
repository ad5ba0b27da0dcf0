"""Export: the ledger as the files of a predecessor, in a new folder that appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from otledger.errors import FormatError, RootError
from otledger.hooks import Progress
from otledger.predecessors import evledger, pipeworks
from otledger.predecessors.members import UNRESTORABLE, Members, line_of
from otledger.predecessors.newfolder import NewFolder
from otledger.predecessors.stored import events, import_partitions, imported, partitions
from otledger.record import Record, format_time, parse_time

STEP = 500


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export did."""

    exported: int
    files: Sequence[Path]
    partitions: Sequence[str]
    faults: Sequence[FormatError]
    """Lines of the ledger that are no records and were passed over; `otledger verify` says more."""


@dataclass(slots=True)
class _Run:
    """What an export has read so far."""

    root: Path
    names: list[str]
    progress: Progress | None
    faults: list[FormatError] = field(default_factory=list)
    exported: int = 0

    def events(self) -> Iterator[Record]:
        """Give the events of the partitions, one after the other."""
        total = sum(path.stat().st_size for name in self.names for path in (self.root / name).glob("*.jsonl"))
        done = count = 0
        for name in self.names:
            for record in events(self.root, name, self.faults.append):
                yield record
                done, count = done + len(record.line), count + 1
                if self.progress is not None and count % STEP == 0:
                    self.progress(done, max(done, total))
        if self.progress is not None:
            self.progress(total, total)

    def fault(self, record: Record, error: Exception) -> None:
        self.faults.append(
            FormatError(
                f"{record.machine}, seq {record.seq}: what it was imported from cannot be told: {error!r}",
                seq=record.seq,
            )
        )

    def report(self, folder: NewFolder) -> ExportReport:
        return ExportReport(self.exported, folder.files, self.names, self.faults)


def export_evledger(
    root: str | Path,
    destination: str | Path,
    *,
    machines: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Write the ledger's events as an evledger ledger, `<machine>/<YYYY-MM>.jsonl`, into a new folder.

    What was imported from evledger is given back as it was; other events become CloudEvents with `machine` and
    `seq`. otledger's own records and telemetry are left out. `machines` are partitions; None: all. The files are
    durable on return. Raises `RootError` where there is no ledger or the destination exists or cannot be written.
    """
    root, destination = Path(root), Path(destination)
    run = _Run(root, _chosen(root, machines), progress)
    again: set[str] | None = None
    with NewFolder(destination, root) as folder:
        for record in run.events():
            if not record.checksum:
                # A line of evledger's own, in a folder that both use; an import may have taken it already.
                again = _imported_ids(root, run.names) if again is None else again
                if record.id in again:
                    continue
            try:
                members = _evledger_event(record)
                line = line_of(members, compact=True)
            except UNRESTORABLE as error:
                run.fault(record, error)
                continue
            machine = members["machine"] if isinstance(members["machine"], str) else record.machine
            folder.write(line, file_name(machine), file_name(_month(record), ".jsonl"))
            run.exported += 1
    return run.report(folder)


def export_pipeworks(
    root: str | Path,
    destination: str | Path,
    *,
    world: str | None = None,
    everything: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write what was imported from PipeWorks as a PipeWorks ledger, `<world>.jsonl`, into a new folder.

    `world` chooses one. With `everything`, all other events are written too, with the subject, or else the
    machine, as their world. The rest is as with `export_evledger`.
    """
    root, destination = Path(root), Path(destination)
    names = _chosen(root, None)
    run = _Run(root, names if everything else [name for name in names if name == pipeworks.PARTITION], progress)
    with NewFolder(destination, root) as folder:
        for record in run.events():
            stored = record.to_dict()
            if not everything and not pipeworks.is_ours(stored):
                continue
            try:
                members, form = pipeworks.restore(stored) if pipeworks.is_ours(stored) else pipeworks.as_event(stored)
                line = pipeworks.to_line(members, form)
            except UNRESTORABLE as error:
                run.fault(record, error)
                continue
            if world is None or members["world_id"] == world:
                folder.write(line, file_name(str(members["world_id"]), ".jsonl"))
                run.exported += 1
        if not run.exported:
            which = "" if world is None else f" of the world {world!r}"
            raise RootError(f"{root} holds no event{which} that came from PipeWorks: nothing was written", path=root)
    return run.report(folder)


def _evledger_event(record: Record) -> Members:
    if not record.checksum:
        return dict(json.loads(record.line))
    stored = record.to_dict()
    return evledger.restore(stored) if evledger.is_ours(stored) else evledger.as_event(stored)


def file_name(name: str, suffix: str = "") -> str:
    """Give a name that is one part of a path, different for different names, and the same where it can be."""
    safe = "".join(quote(char, safe="", errors="surrogatepass") if _is_unsafe(char) else char for char in name) + suffix
    if safe in ("", ".", ".."):
        safe = safe.replace(".", "%2E") or "%"
    raw = safe.encode("utf-8", "replace")
    if len(raw) <= 255:
        return safe
    mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{raw[: 220 - len(suffix)].decode('utf-8', 'ignore')}%{mark}{suffix}"


def _is_unsafe(char: str) -> bool:
    return char in "/%" or not (char.isprintable() or char == " ")


def _month(record: Record) -> str:
    ns = parse_time(record.time)
    return format_time(ns)[:7] if ns is not None else record.time[:7]


def _chosen(root: Path, machines: Sequence[str] | None) -> list[str]:
    names = partitions(root)
    for machine in machines or ():
        if machine not in names:
            there = ", ".join(names) or "none"
            raise RootError(f"{root} has no machine {machine!r}; there are: {there}", path=root)
    return names if machines is None else [name for name in names if name in machines]


def _imported_ids(root: Path, names: Sequence[str]) -> set[str]:
    return {record.id for name in import_partitions(root) if name in names for record in imported(root, name)}
