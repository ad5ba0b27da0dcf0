"""Print the table, and save it as JSON."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
    """Write the table and what it was measured with; nothing that names the host or its paths."""
    content = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "libraries": _versions(),
        "rounds": rounds,
        "mode": "long" if long else "short",
        "rows": [{**asdict(each), "state": each.state} for each in measurements],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
