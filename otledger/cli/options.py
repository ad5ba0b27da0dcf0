"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from otledger.cli.app import root_of

if TYPE_CHECKING:
    from otledger.filter import Filter


def _complete_machine(ctx: typer.Context, incomplete: str) -> list[str]:
    from otledger.errors import LedgerError
    from otledger.segment import list_machines

    try:
        return [name for name in list_machines(root_of(ctx, ctx.params.get("root"))) if name.startswith(incomplete)]
    except (LedgerError, OSError):
        return []


Machines = Annotated[
    list[str] | None,
    typer.Option(
        "--machine",
        "-m",
        metavar="NAME",
        help="Only this machine; may be repeated.",
        show_default=False,
        autocompletion=_complete_machine,
    ),
]
Type = Annotated[str | None, typer.Option("--type", "-t", metavar="GLOB", help="Only types like this: 'order.*'.")]
Source = Annotated[str | None, typer.Option(metavar="TEXT", help="Only what this source emitted.")]
Subject = Annotated[str | None, typer.Option("--subject", "-s", metavar="TEXT", help="Only what is about this.")]
IpcHash = Annotated[str | None, typer.Option(metavar="HASH", help="Only the records of this turn.")]
Trace = Annotated[str | None, typer.Option(metavar="ID", help="Only the records of this trace, 32 hex digits.")]
Id = Annotated[str | None, typer.Option("--id", metavar="ID", help="Only the event with this id.")]
Span = Annotated[
    str | None,
    typer.Option(metavar="ID", help="Only what was emitted in this span, and its own: 16 hex digits."),
]
Since = Annotated[
    str | None, typer.Option(metavar="WHEN", help="From then on: 90s, 15m, 2h, 3d ago, a date, or RFC 3339.")
]
Until = Annotated[str | None, typer.Option(metavar="WHEN", help="Up to then, exclusive.")]
Text = Annotated[str | None, typer.Option(metavar="TEXT", help="Only lines with this text, in any case.")]
All = Annotated[bool, typer.Option("--all", "-a", help="Also otledger's own records: headers, checkpoints, …")]
Expect = Annotated[
    list[str] | None,
    typer.Option(
        "--expect", "-e", metavar="TYPE", help="A type that a turn should have; may be repeated.", show_default=False
    ),
]
Top = Annotated[int, typer.Option("--top", "-n", min=1, metavar="N", help="Rows of each table.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Write JSON Lines.")]
Lines = Annotated[bool, typer.Option("--json", help="Write JSON Lines: each record's line as it is stored.")]
Long = Annotated[bool, typer.Option("--long", "-l", help="Show ids, hashes and times in full.")]
Raw = Annotated[bool, typer.Option("--raw", help="Escape nothing: control characters reach the terminal.")]


def make_filter(
    *,
    type: str | None,
    source: str | None,
    subject: str | None,
    ipc_hash: str | None,
    trace: str | None,
    since: str | None,
    until: str | None,
    text: str | None,
    control: bool,
    id: str | None = None,
    span: str | None = None,
) -> Filter:
    """Give the filter that the options ask for. Raises `ConfigurationError` for a time or an id that is none."""
    from otledger.filter import Filter, parse_when
    from otledger.record import now_ns

    now = now_ns()
    return Filter(
        type=type,
        source=source,
        subject=subject,
        ipc_hash=ipc_hash,
        trace_id=None if trace is None else trace.lower(),
        id=id,
        span_id=None if span is None else span.lower(),
        since=None if since is None else parse_when(since, now),
        until=None if until is None else parse_when(until, now),
        text=text,
        control=control,
    )


def window(since: str | None, until: str | None) -> dict[str, int | None]:
    """Give the two times as nanoseconds. Raises `ConfigurationError` for what is no time."""
    from otledger.filter import parse_when
    from otledger.record import now_ns

    now = now_ns()
    return {
        "since": None if since is None else parse_when(since, now),
        "until": None if until is None else parse_when(until, now),
    }


def once(names: list[str] | None) -> list[str] | None:
    """Give each name once, None where there are none."""
    return list(dict.fromkeys(names)) if names else None
