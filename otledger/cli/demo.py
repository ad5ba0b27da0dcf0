"""`demo`: see it at work."""

from pathlib import Path
from typing import Annotated

import typer

from otledger.cli.app import RootOption, command


@command(
    "otledger demo",
    "otledger demo --evledger ~/old-ledger --pipeworks data/ledger",
    "otledger demo --root /tmp/my-demo",
)
def demo(
    ctx: typer.Context,
    evledger: Annotated[Path | None, typer.Option(metavar="DIR", help="An evledger ledger to import as well.")] = None,
    pipeworks: Annotated[
        Path | None, typer.Option(metavar="PATH", help="A PipeWorks ledger to import as well.")
    ] = None,
    root: RootOption = None,
) -> None:
    """Start a small server with the ledger in it, kill it in the middle of its work, and look what is left. The
    ledger is made in a new temporary folder and kept, or at --root. Exit code 0 only if everything held."""
    from otledger.demo import run

    before: str | None = ctx.find_root().obj
    chosen = before if root is None else root
    folder = Path(chosen).expanduser() if chosen else None
    raise typer.Exit(run(folder, evledger=evledger, pipeworks=pipeworks))
