"""`show` and `tail`: records as text or as they are stored."""

from pathlib import Path
from typing import Annotated

import typer

from otledger.cli import options as opt
from otledger.cli.app import RootOption, command, root_of


@command(
    "otledger show --since 2h",
    "otledger show --type 'order.*' --subject tenant-1 --limit 20",
    "otledger show --text timeout --since 2026-11-21 --until 2026-11-22",
    "otledger show --ipc-hash 9f86d081884c… --long        one turn",
    "otledger show --json | jq .data                      the lines as they are stored",
)
def show(
    ctx: typer.Context,
    type: opt.Type = None,
    source: opt.Source = None,
    subject: opt.Subject = None,
    machine: opt.Machines = None,
    ipc_hash: opt.IpcHash = None,
    trace: opt.Trace = None,
    span: opt.Span = None,
    id: opt.Id = None,
    since: opt.Since = None,
    until: opt.Until = None,
    text: opt.Text = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=0, metavar="N", help="Only the last N that match.")
    ] = None,
    all: opt.All = False,
    json: opt.Lines = False,
    long: opt.Long = False,
    raw: opt.Raw = False,
    root: RootOption = None,
) -> None:
    """Show records, oldest first. What is damaged is reported and passed over; then the exit code is 3."""
    from otledger.cli.output import Progress
    from otledger.cli.printing import Printer
    from otledger.reader import Reader

    folder = root_of(ctx, root)
    filter = opt.make_filter(
        type=type, source=source, subject=subject, ipc_hash=ipc_hash, trace=trace, since=since, until=until, text=text,
        control=all, id=id, span=span,
    )  # fmt: skip
    machines = opt.once(machine)
    printer = Printer(json=json, long=long, raw=raw, root=folder)
    if limit is None:
        with Progress("show") as progress:
            printer.all(Reader(folder, progress=progress).records(filter, machines=machines, on_fault=printer.fault))
    else:
        from otledger.cli.back import newest

        printer.all(newest(folder, limit, filter, machines, printer.fault))
    raise typer.Exit(printer.code)


@command(
    "otledger tail                               the last ten",
    "otledger tail -f                            and what is written from now on, until Ctrl-C",
    "otledger tail -f -n 0 --type 'order.*' --json",
    "otledger tail --cursor /var/tmp/ship.cursor --json | ship     what is new since the last time",
)
def tail(
    ctx: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as records are written.")] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, metavar="N", help="Begin with the last N that match.")
    ] = 10,
    cursor: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Keep the reading position there, and go on from it instead of beginning with N."
        ),
    ] = None,
    type: opt.Type = None,
    source: opt.Source = None,
    subject: opt.Subject = None,
    machine: opt.Machines = None,
    ipc_hash: opt.IpcHash = None,
    trace: opt.Trace = None,
    text: opt.Text = None,
    all: opt.All = False,
    json: opt.Lines = False,
    long: opt.Long = False,
    raw: opt.Raw = False,
    root: RootOption = None,
) -> None:
    """Show the newest records, and follow the ledger as it grows."""
    from otledger.cli.following import CursorFile, follow_on, hold_sigterm
    from otledger.cli.printing import Printer, begin

    if follow:
        hold_sigterm()
    folder = root_of(ctx, root)
    filter = opt.make_filter(
        type=type, source=source, subject=subject, ipc_hash=ipc_hash, trace=trace, since=None, until=None, text=text,
        control=all,
    )  # fmt: skip
    machines = opt.once(machine)
    printer = Printer(json=json, long=long, raw=raw, root=folder)
    keeper = CursorFile(cursor) if cursor is not None else None
    kept = keeper.load() if keeper is not None else None
    position, seen = begin(folder, lines, kept, filter, machines, printer)
    if keeper is not None:
        keeper.save(position)
    if follow:
        follow_on(folder, position, filter, machines, printer, keeper, seen)
    raise typer.Exit(printer.code)
