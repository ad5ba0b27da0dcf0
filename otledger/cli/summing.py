"""Numbers and findings, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from otledger.cli.output import Paint, counted, duration_text, safe, table
from otledger.errors import EventRefused
from otledger.query.digest import Digest
from otledger.query.findings import Finding, Mention
from otledger.query.spread import Spread
from otledger.query.stats import Stats
from otledger.record import format_time

_DURATIONS = ("count", "total", "min", "median", "p95", "max")


def stats_json(stats: Stats) -> dict[str, Any]:
    """Give numbers as plain JSON values; times are RFC 3339 text, lengths of time are seconds."""
    members = asdict(stats)
    for name in ("first", "last"):
        members[name] = None if members[name] is None else _time(members[name])
    return members


def digest_json(digest: Digest) -> dict[str, Any]:
    """Give a digest as plain JSON values."""
    members = asdict(digest)
    members["stats"] = stats_json(digest.stats)
    for mention in (
        *(mention for found in members["findings"] for mention in found["mentions"]),
        *(mention for found in members["recent"].values() for mention in found),
    ):
        mention["time"] = _time(mention["time"])
    return members


def stats_lines(stats: Stats, paint: Paint, top: int) -> list[str]:
    """Give the lines that tell numbers."""
    lines = [_heading(stats)]
    for title, column in (("type", "types"), ("source", "sources"), ("machine", "machines"), ("subject", "subjects")):
        counts: Mapping[str, int] = getattr(stats, column)
        if counts:
            lines += ["", *_counts(title, counts, stats, stats.others.get(column, 0), paint, top)]
    return [*lines, *_spans(stats, paint, top), *_pairs(stats, paint, top)]


def digest_lines(digest: Digest, paint: Paint, top: int) -> list[str]:
    """Give the lines that tell a digest."""
    stats = digest.stats
    lines = [_heading(stats)]
    if stats.types:
        lines += ["", *_counts("type", stats.types, stats, stats.others.get("types", 0), paint, top)]
    lines += [*_spans(stats, paint, top), *_pairs(stats, paint, top)]
    sums = [(name, place, total) for name, totals in digest.sums.items() for place, total in totals.items()]
    if any(total.count for _, _, total in sums):
        rows = [(name, place, f"{total.count:,}", _number(total.total)) for name, place, total in sums]
        lines += ["", *table(("sum", "of", "count", "total"), rows, right=(2, 3), paint=paint)]
    for name, mentions in digest.recent.items():
        if mentions:
            lines += ["", paint.dim(f"recent {safe(name)}"), *map(_mention, mentions)]
    for finding in digest.findings:
        lines += ["", _finding(finding, paint), *map(_mention, finding.mentions)]
        left = finding.count - len(finding.mentions)
        if left > 0:
            lines.append(f"  and {left:,} more")
    if stats.records and not digest.findings:
        lines += ["", "no rule found anything"]
    return lines


def _heading(stats: Stats) -> str:
    text = counted(stats.records, "record")
    if stats.first is None or stats.last is None:
        return text
    return f"{text} from {_short(stats.first)} to {_short(stats.last)}, {_rate(stats.per_second)}"


def _counts(title: str, counts: Mapping[str, int], stats: Stats, others: int, paint: Paint, top: int) -> Iterator[str]:
    rows = [(name, f"{count:,}", f"{count / stats.records:.1%}") for name, count in list(counts.items())[:top]]
    yield from table((title, "records", "share"), rows, right=(1, 2), paint=paint)
    left = len(counts) - top
    if left > 0:
        yield f"and {left:,} more, of {sum(list(counts.values())[top:]):,} records"
    if others:
        yield f"and others, of {others:,} records: only the first {len(counts):,} were counted one by one"


def _spans(stats: Stats, paint: Paint, top: int) -> Iterator[str]:
    chosen = sorted(stats.spans.items(), key=lambda item: -item[1].seconds.total if item[1].seconds else 0)
    rows = [(name, *_spread(found.seconds), f"{found.errors:,}") for name, found in chosen[:top]]
    if rows:
        yield ""
        yield from table(("span", *_DURATIONS, "errors"), rows, right=range(1, 8), paint=paint)
    if len(chosen) > top:
        yield f"and {counted(len(chosen) - top, 'name')} more"
    if stats.unfinished:
        yield f"{counted(stats.unfinished, 'span')} did not end"


def _pairs(stats: Stats, paint: Paint, top: int) -> Iterator[str]:
    rows = [
        (name, *_spread(found.seconds), f"{found.unmatched_starts:,}", f"{found.unmatched_ends:,}")
        for name, found in list(stats.pairs.items())[:top]
    ]
    if rows:
        yield ""
        head = ("pair", *_DURATIONS, "starts alone", "ends alone")
        yield from table(head, rows, right=range(1, 9), paint=paint)
    if len(stats.pairs) > top:
        yield f"and {counted(len(stats.pairs) - top, 'type')} more"


def _spread(spread: Spread | None) -> tuple[str, ...]:
    if spread is None:
        return ("0", "-", "-", "-", "-", "-")
    about = "" if spread.exact else "~"
    texts = [_seconds(value) for value in (spread.total, spread.min, spread.median, spread.p95, spread.max)]
    return (f"{spread.count:,}", *texts[:2], *(f"{about}{text}" for text in texts[2:4]), texts[4])


def _seconds(seconds: float) -> str:
    if seconds < 7200:
        return duration_text(round(seconds * 1e9))
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} d"


def _number(value: float) -> str:
    return f"{value:,.2f}".removesuffix(".00")


def _rate(per_second: float) -> str:
    for unit, length in (("second", 1), ("minute", 60), ("hour", 3600)):
        if per_second * length >= 1:
            return f"{per_second * length:,.1f} {'an' if unit == 'hour' else 'a'} {unit}"
    return f"{per_second * 86_400:,.1f} a day"


def _finding(finding: Finding, paint: Paint) -> str:
    colour = {"alert": paint.red, "warn": paint.yellow}.get(finding.severity, paint.cyan)
    return f"{colour(finding.severity.upper())}  {safe(finding.rule)}: {finding.count:,}"


def _mention(mention: Mention) -> str:
    fields = [_short(mention.time), mention.source, mention.type, mention.subject, mention.text]
    return "  " + "  ".join(safe(field) for field in fields if field)


def _short(time: int) -> str:
    return f"{_time(time)[:19]}Z"


def _time(time: int) -> str:
    try:
        return format_time(time)
    except EventRefused:
        return str(time)
