"""`keys init`, `list`, `rotate` and `export`: the keys that sign checkpoints."""

from typing import Annotated

import typer

from otledger.cli.app import NO_MATCH, OK, Failed, RootOption, command, root_of
from otledger.cli.keysgroup import Keys, Machine, keys_app
from otledger.cli.options import Json, Machines, once


@command(
    "otledger keys init                       from now on each checkpoint is signed",
    "otledger keys init --epoch 86400         a new key each day, the old one destroyed",
    name="init",
    to=keys_app,
)
def init(
    ctx: typer.Context,
    machine: Machine = None,
    epoch: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Forward security: a key for each so many seconds.")
    ] = 0.0,
    keys: Keys = None,
    json: Json = False,
    root: RootOption = None,
) -> None:
    """Make the key that signs a machine's checkpoints, and sign what is there. The private key lies outside of the
    ledger; what is printed is the public one, to pin where nobody of this host can change it."""
    from otledger.cli import keylist
    from otledger.config import Config
    from otledger.keymaking import init as make

    config = Config.resolve(root=root_of(ctx, root), machine=machine, keys=keys, durability="disk")
    keylist.say_made(make(config, epoch=epoch), config.keys, json=json)


@command(
    "otledger keys rotate",
    "otledger keys rotate --machine web1 --json",
    name="rotate",
    to=keys_app,
)
def rotate(
    ctx: typer.Context,
    machine: Machine = None,
    keys: Keys = None,
    json: Json = False,
    root: RootOption = None,
) -> None:
    """Have another key sign from now on. The old one signs that, and is destroyed: what it has signed stays provable,
    and whoever has pinned it can follow."""
    from otledger.cli import keylist
    from otledger.config import Config
    from otledger.keymaking import rotate as change

    config = Config.resolve(root=root_of(ctx, root), machine=machine, keys=keys, durability="disk")
    keylist.say_made(change(config), config.keys, json=json)


@command(
    "otledger keys list",
    "otledger keys list --json | jq .signed_size",
    name="list",
    to=keys_app,
)
def list_(
    ctx: typer.Context,
    machine: Machines = None,
    keys: Keys = None,
    json: Json = False,
    root: RootOption = None,
) -> None:
    """List the signing keys of the ledger's machines, and how far each has signed. Never shows a private key."""
    from otledger.cli import keylist
    from otledger.identity import keys_folder
    from otledger.keymaking import list_keys

    wanted = once(machine)
    found = [one for one in list_keys(root_of(ctx, root), keys_folder(keys)) if not wanted or one.machine in wanted]
    keylist.say_list(found, json=json)
    raise typer.Exit(OK if any(one.verifiers for one in found) else NO_MATCH)


@command(
    "otledger keys export > web1.pub",
    "otledger keys export --machine web1 --all",
    name="export",
    to=keys_app,
)
def export(
    ctx: typer.Context,
    machine: Machines = None,
    all_: Annotated[bool, typer.Option("--all", help="Also those that sign no more, the oldest first.")] = False,
    keys: Keys = None,
    root: RootOption = None,
) -> None:
    """Print the public keys as C2SP verifier keys, one a line: for `verify --key` and `verify-proof --key`."""
    from otledger.cli.output import out
    from otledger.identity import keys_folder
    from otledger.keymaking import list_keys

    wanted = once(machine)
    folder = keys_folder(keys)
    found = [one for one in list_keys(root_of(ctx, root), folder) if not wanted or one.machine in wanted]
    public = [key for one in found for key in (one.verifiers if all_ else one.verifiers[-1:])]
    if not public:
        raise Failed(f"no signing key in {folder} belongs to this ledger; see otledger keys init", NO_MATCH)
    for key in public:
        out(str(key))
