"""What an import or an export did, for people and as JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from otledger.cli.app import CORRUPT, NO_MATCH, OK, REFUSED, Failed
from otledger.cli.output import Progress, counted, note, out, out_json, safe
from otledger.errors import FormatError
from otledger.predecessors import ExportReport, ImportReport

if TYPE_CHECKING:
    from otledger.query.parquet import Exported


def run_import(take: Callable[..., ImportReport], root: Path, source: Path, *, json: bool) -> int:
    """Import a ledger with `take` and print what that did. Gives the exit code."""
    try:
        with Progress("import") as progress:
            report = take(root, source, progress=progress)
    except FormatError as error:
        # It is the input that is refused here, and no ledger of ours that is damaged.
        raise Failed(str(error), REFUSED) from None
    return _say_imported(report, json=json)


def _say_imported(report: ImportReport, *, json: bool) -> int:
    for refused in report.refused:
        note(f"{refused.file}, offset {refused.offset}: {refused.reason}; kept as {refused.kept_as}")
    if json:
        out_json(
            {
                "imported": report.imported,
                "already_there": report.already_there,
                "partitions": list(report.partitions),
                "checksums": dict(report.checksums),
                "refused": [
                    {"file": str(r.file), "offset": r.offset, "reason": r.reason, "kept_as": str(r.kept_as)}
                    for r in report.refused
                ],
            }
        )
    else:
        out(f"{counted(report.imported, 'event')} imported into {', '.join(report.partitions)}")
        if report.already_there:
            out(f"{counted(report.already_there, 'event')} were there already")
        if report.checksums:
            forms = ", ".join(f"{count:,} {form}" for form, count in sorted(report.checksums.items()))
            out(f"checksums verified: {forms}")
        if report.refused:
            out(f"{counted(len(report.refused), 'line')} refused")
    return REFUSED if report.refused else OK


def say_parquet(report: Exported, *, json: bool) -> int:
    """Print what an export of Parquet files did. Gives the exit code."""
    for fault in report.faults:
        note(str(fault))
    if json:
        files = [str(file) for file in report.files]
        out_json({"exported": report.records, "files": files, "faults": [str(fault) for fault in report.faults]})
    elif report.files:
        out(f"{counted(report.records, 'record')} written to {counted(len(report.files), 'file')}:")
        for file in report.files:
            out(f"  {safe(str(file))}")
    else:
        out("nothing is new")
    return CORRUPT if report.faults else OK


def say_exported(report: ExportReport, *, json: bool) -> int:
    """Print what an export did. Gives the exit code."""
    for fault in report.faults:
        note(str(fault))
    if json:
        files = [str(file) for file in report.files]
        faults = [str(fault) for fault in report.faults]
        out_json({"exported": report.exported, "partitions": list(report.partitions), "files": files, "faults": faults})
    else:
        out(f"{counted(report.exported, 'event')} written to {counted(len(report.files), 'file')}:")
        for file in report.files:
            out(f"  {safe(str(file))}")
    if report.faults:
        return CORRUPT
    return OK if report.exported else NO_MATCH
