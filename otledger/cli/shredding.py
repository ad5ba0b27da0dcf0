"""`keys shred` and `keys subjects`: the keys that subjects' data is encrypted with."""

from typing import Annotated

import typer

from otledger.cli.app import NO_MATCH, OK, RootOption, command, root_of
from otledger.cli.keysgroup import Keys, Machine, keys_app
from otledger.cli.options import Json


@command(
    "otledger keys shred user-17                                  show what would be destroyed",
    "otledger keys shred user-17 --reason 'request 4711' --yes    destroy it",
    name="shred",
    to=keys_app,
)
def shred(
    ctx: typer.Context,
    subject: Annotated[str, typer.Argument(metavar="SUBJECT", help="What the data is about.")],
    machine: Machine = None,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Why; it stands in the ledger for good.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it.")] = False,
    keys: Keys = None,
    json: Json = False,
    root: RootOption = None,
) -> None:
    """Erase the encrypted data of a subject: destroy its keys, and leave a record that says so. Without --yes nothing
    is done. Nobody can undo it, but a backup of the keys' folder undoes the erasure: delete it there too. Exit codes:
    0 done, 1 nothing to do, or not done without --yes."""
    from otledger.cli import keyreport
    from otledger.config import Config
    from otledger.shredding import plan_shredding
    from otledger.shredding import shred as carry_out

    # Whatever the environment says for the program: a shredding is durable.
    config = Config.resolve(root=root_of(ctx, root), machine=machine, keys=keys, durability="disk")
    done = carry_out(config, subject, reason) if yes else plan_shredding(config, subject)
    keyreport.say_shredding(done, done=yes, json=json)
    raise typer.Exit(OK if yes and done.kids else NO_MATCH)


@command(
    "otledger keys subjects",
    "otledger keys subjects --everywhere --json",
    name="subjects",
    to=keys_app,
)
def subjects(
    ctx: typer.Context,
    machine: Machine = None,
    everywhere: Annotated[bool, typer.Option("--everywhere", help="Also those of other machines and roots.")] = False,
    keys: Keys = None,
    json: Json = False,
    root: RootOption = None,
) -> None:
    """List the subjects that have keys, with the keys' ids and when they were made. Never shows a key."""
    from otledger.cli import keyreport
    from otledger.config import Config
    from otledger.shredding import keys_of

    config = Config.resolve(root=root_of(ctx, root), machine=machine, keys=keys)
    of = keys_of(config)
    found = of.all() if everywhere else of.of()
    keyreport.say_keys(found, everywhere=everywhere, json=json)
    raise typer.Exit(OK if found else NO_MATCH)
