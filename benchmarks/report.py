"""Print the table, save it as JSON, and give what README shows of it."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .measure import Bound, Measurement, Spread

LIBRARIES = (
    "otledger",
    "orjson",
    "msgspec",
    "aiofiles",
    "typer",
    "opentelemetry-api",
    "opentelemetry-sdk",
    "structlog",
    "eliot",
    "auditchain",
    "evledger",
)


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _required(bound: Bound | None, unit: str) -> str:
    if bound is None:
        return "-"
    return f"{'≥' if bound.at_least else '≤'} {bound.limit:,g} {unit}"


def _range(value: Spread | None) -> str:
    return f"{_number(value.low)} .. {_number(value.high)}" if value else ""


def table(measurements: Sequence[Measurement]) -> str:
    """Return the table as aligned text."""
    rows = [("what", "required", "measured", "min .. max", "", "figures (medians)")]
    rows += [
        (
            each.what,
            _required(each.bound, each.unit),
            f"{_number(each.value.median)} {each.unit}" if each.value else "",
            _range(each.value),
            each.state,
            each.note,
        )
        for each in measurements
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = []
    for what, required, measured, extremes, state, note in rows:
        cells = [
            what.ljust(widths[0]),
            required.rjust(widths[1]),
            measured.rjust(widths[2]),
            extremes.rjust(widths[3]),
            state.ljust(widths[4]),
            note,
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def save(path: Path, measurements: Sequence[Measurement], rounds: int, long: bool) -> None:
    """Write the rows and what they were measured with; nothing that names the host or its paths.

    Rows that the file has and that were not measured now stay, each with its own date.
    """
    run = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rounds": rounds,
        "mode": "long" if long else "short",
    }
    rows = {row["what"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}
    rows |= {each.what: {**asdict(each), "state": each.state, **run} for each in measurements}
    content = {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "libraries": _versions(),
        "rows": list(rows.values()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


SHOWN = {
    "emit against floor": "`emit`, one task, no fsync, against `orjson.dumps` + SHA-256, batched writes (the floor)",
    "emit against logging + orjson": "… against logging + orjson to a file",
    "emit against structlog + orjson": "… against structlog + orjson to a file",
    "emit against eliot": "… against eliot",
    "emit against sqlite3 WAL, 500 a commit": "… against sqlite3 WAL, 500 rows a commit",
    "emit against OTel SDK batch, spans + JSON file": "… against the OpenTelemetry SDK, batches to a JSON file",
    "emit against auditchain append_many(500)": "… against auditchain, `append_many(500)`",
    "emit against auditchain append": "… against auditchain, `append`",
    "emit against evledger at 100 events": "… against evledger at 100 events",
    "emit against evledger at 10,000 events": "… against evledger at 10,000 events",
    "append, 100 tasks, disk, against write + fdatasync each": "`append`, 100 tasks, against write + fdatasync each",
    "8 processes at os: total against 1 process": "eight processes on one ledger, against one",
    "verify, by default, against PipeWorks' method on each line": "`verify`, against PipeWorks' method on each line",
    "verify with signed notes against chain alone, time": "`verify --key`, against `verify` without a key, time",
    "verify --tree against chain alone, time": "`verify --tree`, the same",
    "verify --since-checkpoint of 1 GB": "`verify --since-checkpoint` of 1 GB",
    "tree, notes and their syncs at 50,000 events/s, share of a core": (
        "tree, signatures and their syncs at 50,000 events a second, share of a core"
    ),
    "typed scan against evledger read_all": "a typed scan, against evledger's `read_all`",
    "CPU of a recorded span against an SDK span, no processor": "CPU of a recorded span, against an SDK span",
    "peak memory of evledger read_all against the scan's": "memory of evledger's `read_all`, against the scan's",
    "event loop lag p99 at 50,000 events/s, disk": "delay of other tasks at 50,000 events a second, 99th percentile",
    "another task's delay while fdatasync hangs for 1 s": "delay of another task while an fdatasync hangs for a second",
    "tail -f, from just before an append to the read, p50": "from an append to its arrival at a follower, median",
}
"""The rows that README shows, and how it calls them."""


def markdown(content: dict[str, Any]) -> str:
    """Give the table of README from what was saved."""
    lines = ["| what | median | min … max | figures |", "|---|---|---|---|"]
    rows = {row["what"]: row for row in content["rows"]}
    for what, shown in SHOWN.items():
        row = rows[what]
        unit, value = row["unit"].replace("x", "×"), row["value"]
        extremes = f"{_number(value['low'])} … {_number(value['high'])}"
        lines.append(f"| {shown} | {_number(value['median'])} {unit} | {extremes} | {row['note']} |")
    return "\n".join(lines) + "\n"
