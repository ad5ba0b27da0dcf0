"""The group of commands about keys: they live outside the ledger's folder, each command says which it is about."""

import typer

from otledger.cli.app import app, helped

keys_app = typer.Typer(
    rich_markup_mode=None,
    help=helped(
        "Keep the keys, which lie outside of the ledger: $OTLEDGER_KEYS, or this user's own folder.",
        "otledger keys subjects",
        "otledger keys shred user-17 --reason 'request 4711' --yes",
    ),
)
app.add_typer(keys_app, name="keys", short_help="Keep the keys: list those of subjects, shred them.")
