"""`import` and `export`: the ledgers of evledger and PipeWorks, taken in and given back, and Parquet."""

from pathlib import Path
from typing import Annotated

import typer

from otledger.cli.app import RootOption, app, command, helped, root_of
from otledger.cli.options import Json, Machines

take_in = typer.Typer(
    rich_markup_mode=None,
    help=helped(
        "Take in what others wrote; doing it twice adds nothing.",
        "otledger import evledger ~/old-ledger",
        "otledger import pipeworks data/ledger",
    ),
)
give_back = typer.Typer(
    rich_markup_mode=None,
    help=helped(
        "Write the ledger as files that others read.",
        "otledger export evledger /tmp/for-evledger",
        "otledger export pipeworks /tmp/for-pipeworks",
        "otledger export parquet /srv/lake/ledger",
    ),
)
app.add_typer(take_in, name="import", short_help="Take in what others wrote: evledger, PipeWorks, OTLP.")
app.add_typer(give_back, name="export", short_help="Write files that others read: Parquet, evledger, …")

Destination = Annotated[Path, typer.Argument(metavar="DEST", help="A new folder, outside of the ledger.")]


@command("otledger import evledger ~/old-ledger", name="evledger", to=take_in)
def import_evledger(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="DIR", help="evledger's folder: <machine>/<month>.jsonl in it.")],
    json: Json = False,
    root: RootOption = None,
) -> None:
    """Append an evledger ledger, each of its machines to a partition <machine>.import. Lines that are no events are
    reported and kept aside; then the exit code is 2."""
    from otledger import predecessors
    from otledger.cli.outcome import run_import

    raise typer.Exit(run_import(predecessors.import_evledger, root_of(ctx, root), source, json=json))


@command(
    "otledger import pipeworks data/ledger",
    "otledger import pipeworks data/ledger/pipeworks_web.jsonl      one world",
    name="pipeworks",
    to=take_in,
)
def import_pipeworks(
    ctx: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="PATH", help="PipeWorks' folder with its <world>.jsonl, or one such file.")
    ],
    json: Json = False,
    root: RootOption = None,
) -> None:
    """Append a PipeWorks ledger to the partition pipeworks.import, the world as subject; its checksums are verified.
    Lines that are no events are reported and kept aside; then the exit code is 2."""
    from otledger import predecessors
    from otledger.cli.outcome import run_import

    raise typer.Exit(run_import(predecessors.import_pipeworks, root_of(ctx, root), source, json=json))


@command(
    "otledger export evledger /tmp/for-evledger",
    "otledger export evledger /tmp/for-evledger --machine laptop.import",
    name="evledger",
    to=give_back,
)
def export_evledger(
    ctx: typer.Context,
    destination: Destination,
    machine: Machines = None,
    json: Json = False,
    root: RootOption = None,
) -> None:
    """Write the events as an evledger ledger. What was imported from evledger is given back as it was."""
    from otledger import predecessors
    from otledger.cli.outcome import say_exported
    from otledger.cli.output import Progress

    folder = root_of(ctx, root)
    with Progress("export") as progress:
        report = predecessors.export_evledger(folder, destination, machines=machine or None, progress=progress)
    raise typer.Exit(say_exported(report, json=json))


@command(
    "otledger export pipeworks /tmp/for-pipeworks",
    "otledger export pipeworks /tmp/one-world --world pipeworks_web",
    name="pipeworks",
    to=give_back,
)
def export_pipeworks(
    ctx: typer.Context,
    destination: Destination,
    world: Annotated[str | None, typer.Option(metavar="NAME", help="Only this world.")] = None,
    everything: Annotated[
        bool, typer.Option("--everything", help="Also events that did not come from PipeWorks.")
    ] = False,
    json: Json = False,
    root: RootOption = None,
) -> None:
    """Write what was imported from PipeWorks as a PipeWorks ledger, with right checksums."""
    from otledger import predecessors
    from otledger.cli.outcome import say_exported
    from otledger.cli.output import Progress

    folder = root_of(ctx, root)
    with Progress("export") as progress:
        report = predecessors.export_pipeworks(
            folder, destination, world=world, everything=everything, progress=progress
        )
    raise typer.Exit(say_exported(report, json=json))


@command(
    "otledger export parquet /srv/lake/ledger                 all records, or what is new since the last time",
    "otledger export parquet /srv/lake/ledger --machine shop-1",
    name="parquet",
    to=give_back,
)
def export_parquet(
    ctx: typer.Context,
    destination: Annotated[
        Path, typer.Argument(metavar="DIR", help="A new folder, or that of the last export, outside of the ledger.")
    ],
    machine: Machines = None,
    json: Json = False,
    root: RootOption = None,
) -> None:
    """Write the records as Parquet files, by machine and month. Again into the same folder, it adds what is new. Needs
    otledger[sql]."""
    from otledger.cli.options import once
    from otledger.cli.outcome import say_parquet
    from otledger.cli.output import Progress
    from otledger.query.parquet import export_parquet as export

    folder = root_of(ctx, root)
    with Progress("export") as progress:
        report = export(folder, destination, machines=once(machine), progress=progress)
    raise typer.Exit(say_parquet(report, json=json))
