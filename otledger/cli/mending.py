"""`repair`: what recovery would do, and having it done."""

from typing import Annotated

import typer

from otledger.cli.app import CORRUPT, NO_MATCH, OK, RootOption, command, root_of
from otledger.cli.options import Json, Machines, once


@command(
    "otledger repair                     show what would be done; writes nothing",
    "otledger repair --yes               do it",
    "otledger repair --machine web1 --json",
)
def repair(
    ctx: typer.Context,
    machine: Machines = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it.")] = False,
    json: Json = False,
    root: RootOption = None,
) -> None:
    """Show what recovery would do to a ledger that a crash left unfinished, and do it with --yes. Bytes go to
    quarantine, never away; what is damaged in the middle is reported and left. Exit codes: 0 nothing to do, or done,
    1 something to do, 3 something is damaged and left."""
    from otledger.cli.output import out, out_json
    from otledger.cli.plans import plan_lines
    from otledger.repair import carry_out, plan

    folder = root_of(ctx, root)
    plans = plan(folder, machines=once(machine))
    waiting = any(planned.steps for planned in plans)
    if yes:
        plans = carry_out(folder, plans)
    if json:
        out_json({"done": yes, "machines": [planned.to_dict() for planned in plans]})
    else:
        out("\n".join(plan_lines(plans, done=yes)))
    if any(planned.left for planned in plans):
        raise typer.Exit(CORRUPT)
    raise typer.Exit(NO_MATCH if waiting and not yes else OK)
