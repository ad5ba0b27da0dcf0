"""`archive`: old segments, moved away."""

from typing import Annotated

import typer

from otledger.cli.app import CORRUPT, NO_MATCH, OK, Failed, RootOption, command, root_of
from otledger.cli.options import Json, Machines, once


@command(
    "otledger archive --before 2026-01 /mnt/cold/ledger                 show what would be moved; writes nothing",
    "otledger archive --before 2026-01 /mnt/cold/ledger --yes           move it",
    "otledger archive --before 2026-01 s3://cold/ledger --machine web1 --yes",
)
def archive(
    ctx: typer.Context,
    destination: Annotated[
        str, typer.Argument(metavar="DEST", help="A folder outside of the ledger, or a URL that fsspec knows.")
    ],
    before: Annotated[str, typer.Option(metavar="MONTH", help="Segments of months before this one: 2026-01.")],
    machine: Machines = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Move them.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show it, as without --yes.")] = False,
    json: Json = False,
    root: RootOption = None,
) -> None:
    """Move old closed segments to another place, compared with what arrived, and have the ledger say so. Exit codes:
    0 nothing to do, or done, 1 something to do, 3 something has to stay, and stderr says why."""
    from otledger.archive import carry_out_archive, plan_archive
    from otledger.cli.output import note, out, out_json
    from otledger.cli.plans import archive_lines

    if yes and dry_run:
        raise Failed("--dry-run shows, and --yes moves; give one of them")
    folder = root_of(ctx, root)
    plans = plan_archive(folder, before, machines=once(machine))
    if yes:
        plans = [carry_out_archive(folder, plan, destination) for plan in plans]
    for plan in plans:
        if plan.kept:
            note(f"{plan.machine}: {plan.kept}")
    if json:
        out_json({"done": yes, "destination": destination, "machines": [plan.to_dict() for plan in plans]})
    else:
        out("\n".join(archive_lines(plans, destination, done=yes)))
    if any(plan.kept for plan in plans):
        raise typer.Exit(CORRUPT)
    raise typer.Exit(NO_MATCH if not yes and any(plan.moves for plan in plans) else OK)
