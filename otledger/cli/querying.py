"""`sql` and `compact`: questions over the whole ledger."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from otledger.cli import options as opt
from otledger.cli.app import OK, RootOption, command, root_of


@command(
    "otledger sql 'select type, count(*) from events group by type order by 2 desc'",
    "otledger sql \"select time, source, data->>'id' as id from events where time > now() - interval 2 hours\"",
    "otledger sql 'select * from spans where status = $$ERROR$$' --json",
    "otledger sql 'describe spans'                        its columns; views: events, spans, traces, turns, machines",
    "otledger sql - < report.sql --csv > report.csv",
    "otledger sql 'select * from traces' --parquet traces.parquet",
)
def sql(
    ctx: typer.Context,
    query: Annotated[str, typer.Argument(metavar="SQL", help="One SELECT; - reads it from stdin.")],
    machine: opt.Machines = None,
    json: Annotated[bool, typer.Option("--json", help="Write JSON Lines: an object for each row.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Write CSV, with a header.")] = False,
    parquet: Annotated[
        Path | None, typer.Option("--parquet", metavar="FILE", help="Write a Parquet file, which must not exist.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.001, help="Give up after so long.", show_default=True)
    ] = 300.0,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="What DuckDB may take: 512MB, 2GB.", show_default=True)
    ] = "192MB",
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Read the lines alone; neither use nor make skeletons.")
    ] = False,
    long: Annotated[bool, typer.Option("--long", "-l", help="Cut no long value in the table.")] = False,
    root: RootOption = None,
) -> None:
    """Ask the ledger in SQL (DuckDB's). It is only read, and no other file is. Damaged lines are reported and passed
    over; then the exit code is 3. Needs otledger[sql]."""
    from otledger.cli.output import Progress
    from otledger.cli.rows import bytes_of, printer_for, say_faults, write_parquet
    from otledger.query.sql import sql as run

    folder = root_of(ctx, root)
    printer = printer_for(json=json, csv=csv, parquet=parquet, long=long)
    text = sys.stdin.read() if query == "-" else query
    with Progress("query") as progress:
        result = run(
            folder,
            text,
            machines=opt.once(machine),
            timeout=timeout,
            memory=bytes_of(memory),
            cache=not no_cache,
            progress=progress,
        )
        with result:
            count = write_parquet(result, parquet) if parquet is not None else printer(result)
    raise typer.Exit(say_faults(result, count))


@command(
    "otledger compact                      so that sql, stats and digest need not read all lines",
    "otledger compact --machine shop-1 --json",
)
def compact(
    ctx: typer.Context,
    machine: opt.Machines = None,
    json: opt.Json = False,
    root: RootOption = None,
) -> None:
    """Make the skeletons of closed segments that are missing: ids, times and types, without the payload, in .cache/ of
    each machine. They may be deleted at any time. Needs otledger[sql]."""
    from dataclasses import asdict

    from otledger.cli.output import Paint, Progress, out, out_json, size_text, table
    from otledger.query.compacting import compact as run

    folder = root_of(ctx, root)
    with Progress("compact") as progress:
        found = list(run(folder, machines=opt.once(machine), progress=progress))
    if json:
        out_json([asdict(each) for each in found])
    elif not found:
        out("no segment is closed yet: there is nothing to do")
    else:
        head = ("machine", "segment", "bytes", "skeleton", "")
        states = [("damaged" if not each.skeleton else "made" if each.made else "there already") for each in found]
        cells = [
            (each.machine, each.segment, size_text(each.bytes), size_text(each.skeleton), state)
            for each, state in zip(found, states, strict=True)
        ]
        for line in table(head, cells, right=(2, 3), paint=Paint(sys.stdout)):
            out(line)
    raise typer.Exit(OK)
