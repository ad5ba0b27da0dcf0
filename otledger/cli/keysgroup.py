"""The group of commands about keys: they live outside the ledger's folder, each command says which it is about."""

from pathlib import Path
from typing import Annotated

import typer

from otledger.cli.app import app, helped

Machine = Annotated[
    str | None,
    typer.Option("--machine", "-m", metavar="NAME", help="Whose. [default: $OTLEDGER_MACHINE, or the host's name]"),
]
Keys = Annotated[
    Path | None,
    typer.Option("--keys", metavar="DIR", help="The folder of the keys. [default: $OTLEDGER_KEYS, or this user's]"),
]

keys_app = typer.Typer(
    rich_markup_mode=None,
    help=helped(
        "Keep the keys, which lie outside of the ledger: $OTLEDGER_KEYS, or this user's own folder.",
        "otledger keys init                                            sign checkpoints from now on",
        "otledger keys list",
        "otledger keys shred user-17 --reason 'request 4711' --yes     erase what is about somebody",
    ),
)
app.add_typer(keys_app, name="keys", short_help="Keep the keys that sign checkpoints and encrypt payloads.")
