"""`trace`, `spans`, `turn`, `turns` and `pairs`: what the records add up to."""

from typing import Annotated

import typer

from otledger.cli import options as opt
from otledger.cli.app import Failed, RootOption, command, root_of


@command(
    "otledger trace 4bf92f3577b34da6a3ce929d0e0e4736",
    "otledger trace 4bf92f35                             the beginning will do, where there is one only",
    "otledger trace 4bf92f35 --no-events --json | jq '.spans[].name'",
)
def trace(
    ctx: typer.Context,
    id: Annotated[str, typer.Argument(metavar="ID", help="The trace id: 32 hex digits, or the first of them.")],
    events: Annotated[bool, typer.Option("--events/--no-events", help="Also what was emitted in the spans.")] = True,
    machine: opt.Machines = None,
    json: opt.Json = False,
    root: RootOption = None,
) -> None:
    """Show a trace as a waterfall: its spans as a tree, how long each lasted, what failed, what never ended. Where a
    line is damaged it is reported and passed over; then the exit code is 3."""
    from otledger.cli.telling import show_trace

    raise typer.Exit(show_trace(root_of(ctx, root), id, opt.once(machine), events=events, json=json))


@command(
    "otledger spans --since 15m",
    "otledger spans --name 'GET *' --longer 0.5        the slow ones",
    "otledger spans --errors --json | jq .attributes",
    "otledger spans --unfinished                       begun, and never ended",
)
def spans(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Option(metavar="GLOB", help="Only spans with a name like this.")] = None,
    errors: Annotated[bool, typer.Option("--errors", help="Only spans with an error status.")] = False,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Only spans that have not ended.")] = False,
    longer: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Only spans that lasted at least so long.")
    ] = None,
    trace: opt.Trace = None,
    ipc_hash: opt.IpcHash = None,
    source: opt.Source = None,
    machine: opt.Machines = None,
    since: opt.Since = None,
    until: opt.Until = None,
    json: opt.JsonLines = False,
    long: opt.Long = False,
    root: RootOption = None,
) -> None:
    """List the spans that began in a window, as they ended; then those that have not ended."""
    from otledger.cli.telling import Choice, show_spans

    choice = Choice(name=name, errors=errors, unfinished=unfinished, longer=longer)
    window = opt.window(since, until)
    found = {"trace_id": trace, "ipc_hash": ipc_hash, "source": source, "machines": opt.once(machine), **window}
    raise typer.Exit(show_spans(root_of(ctx, root), choice, found, json=json, long=long))


@command(
    "otledger turn 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "otledger turn 9f86d081884c                          the beginning will do, where there is one only",
    "otledger turn 9f86d081884c --expect chat.translation --json",
)
def turn(
    ctx: typer.Context,
    ipc_hash: Annotated[str, typer.Argument(metavar="HASH", help="The ipc_hash, or the beginning of it.")],
    expect: opt.Expect = None,
    machine: opt.Machines = None,
    json: opt.Json = False,
    root: RootOption = None,
) -> None:
    """Show a turn: the records that carry one ipc_hash, in the order of time, inside the spans where they happened."""
    from otledger.cli.telling import show_turn

    raise typer.Exit(show_turn(root_of(ctx, root), ipc_hash, opt.once(machine), expect or [], json=json))


@command(
    "otledger turns --since 2h",
    "otledger turns --expect chat.mechanical_resolution --expect chat.translation --incomplete",
    "otledger turns --json | jq .duration",
)
def turns(
    ctx: typer.Context,
    expect: opt.Expect = None,
    incomplete: Annotated[bool, typer.Option("--incomplete", help="Only turns that lack an expected type.")] = False,
    machine: opt.Machines = None,
    since: opt.Since = None,
    until: opt.Until = None,
    json: opt.JsonLines = False,
    long: opt.Long = False,
    root: RootOption = None,
) -> None:
    """List the turns that began in a window: when, how many records, how long, what is missing. How many turns there
    were, and how many events belong to none, is told on stderr."""
    from otledger.cli.telling import show_turns

    if incomplete and not expect:
        raise Failed("--incomplete needs to know what is expected; add --expect TYPE, once or more")
    window = opt.window(since, until)
    found = {"machines": opt.once(machine), **window}
    raise typer.Exit(show_turns(root_of(ctx, root), expect or [], found, incomplete=incomplete, json=json, long=long))


@command(
    "otledger pairs                                   by data.id",
    "otledger pairs --key subject --type 'com.example.*'",
    "otledger pairs --key by-order --unmatched --json",
)
def pairs(
    ctx: typer.Context,
    key: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What start and end have in common: data.NAME, subject, source, machine, trace_id, span_id, ipc_hash,"
            " an extension; or by-order.",
        ),
    ] = "data.id",
    type: Annotated[
        str | None, typer.Option("--type", "-t", metavar="GLOB", help="Only types like this, without .start and .end.")
    ] = None,
    unmatched: Annotated[
        bool, typer.Option("--unmatched", help="Only starts without an end, ends without a start.")
    ] = False,
    machine: opt.Machines = None,
    since: opt.Since = None,
    until: opt.Until = None,
    json: opt.JsonLines = False,
    root: RootOption = None,
) -> None:
    """List pairs of plain events whose types end with .start and .end, then what is unmatched. How many of each is
    told on stderr."""
    from otledger.cli.telling import show_pairs

    found = {"base": type or "*", "machines": opt.once(machine), **opt.window(since, until)}
    raise typer.Exit(show_pairs(root_of(ctx, root), key, found, unmatched=unmatched, json=json))
