"""What `verify` found, for people."""

from __future__ import annotations

from collections.abc import Iterator

from otledger.cli.output import Paint, counted, duration_text, safe, size_text, table
from otledger.verifier import MachineReport, Report, Status

HEAD_SHOWN = 16

MEANINGS = {
    Status.OK: "every record is there, unchanged, in its place",
    Status.UNSEALED_TAIL: "good, but the newest records stand under no signed checkpoint yet",
    Status.RECOVERED: "good; what a crash or a failed disk left was set aside and written down (see quarantine/)",
    Status.INCOMPLETE: "what is there is good, but something is missing or cannot be proved",
    Status.FORK: "two records claim the same place: two writers had one identity; keep both copies and find out",
    Status.TAMPERED: "something was changed, removed or put in; keep the folder as it is and compare it with a copy",
}


def report_lines(report: Report, paint: Paint) -> Iterator[str]:
    """Give the machines as a table, then each fault with its place, then the verdict."""
    head = ("machine", "status", "records", "bytes", "head")
    rows = [_row(machine) for machine in report.machines]
    first, *lines = table(head, rows, right=(2, 3), paint=paint)
    yield first
    for line, machine in zip(lines, report.machines, strict=True):
        yield line.replace(str(machine.status), coloured(machine.status, paint), 1)
    for machine in report.machines:
        yield from _details(machine, paint)
    yield ""
    yield verdict(report, paint)


def _row(machine: MachineReport) -> tuple[str, ...]:
    return (
        machine.machine,
        str(machine.status),
        f"{machine.records:,}",
        size_text(machine.bytes),
        machine.head[:HEAD_SHOWN],
    )


def _details(machine: MachineReport, paint: Paint) -> Iterator[str]:
    lines = [*_found(machine, paint), *(f"{safe(machine.machine)}: {fact}" for fact in _facts(machine))]
    yield from ("", *lines) if lines else ()


def _found(machine: MachineReport, paint: Paint) -> Iterator[str]:
    for fault in machine.faults:
        yield f"{coloured(fault.status, paint)}  {safe(str(fault))}"
    if machine.more_faults:
        yield f"and {counted(machine.more_faults, 'fault')} more in {safe(machine.machine)}"
    if machine.recoveries:
        yield f"{safe(machine.machine)}: recovered {counted(machine.recoveries, 'time')} after a crash"
    if machine.gaps:
        yield f"{safe(machine.machine)}: {counted(machine.gaps, 'record')} accepted and lost, as its gap records say"


def _facts(machine: MachineReport) -> Iterator[str]:
    """Say what is proved, by whom and when, and what was not looked at."""
    if machine.sealed_through is not None:
        ids = ", ".join(machine.key_ids)
        yield f"sealed through seq {machine.sealed_through}{_ago(machine.seal_age)}, by key {ids}"
    if machine.witnessed_through is not None:
        yield f"witnessed through seq {machine.witnessed_through}{_ago(machine.witness_age)}"
    if machine.unread:
        yield f"{size_text(machine.unread)} of older bytes not read again"
    if machine.archived:
        names = ", ".join(map(safe, machine.archived))
        yield f"{counted(len(machine.archived), 'segment')} archived, and not read: {names}; --from reads them"


def _ago(age: float | None) -> str:
    return "" if age is None else f", {duration_text(max(0, int(age * 1e9)))} ago"


def verdict(report: Report, paint: Paint) -> str:
    """Give the line that says it all."""
    checked = f"{counted(report.records, 'record')}, {size_text(report.bytes)} in {report.seconds:.2f} s"
    return f"{paint.bold(coloured(report.status, paint))}: {MEANINGS[report.status]} ({checked})"


def coloured(status: Status, paint: Paint) -> str:
    """Give a status in its colour."""
    if status is Status.OK:
        return paint.green(str(status))
    good = status in (Status.RECOVERED, Status.UNSEALED_TAIL)
    return paint.yellow(str(status)) if good else paint.red(str(status))
