"""`witness`: keeping the newest signed notes where the writer cannot reach them, and showing what is kept."""

from pathlib import Path
from typing import Annotated

import typer

from otledger.cli.app import RootOption, command, root_of
from otledger.cli.options import Json, Machines, once


@command(
    "otledger witness /mnt/elsewhere --key ledger.pub",
    "otledger witness git+/srv/notes.git --every 60",
    "otledger witness 'tsa+http://tsa.example/#/mnt/stamped' --tsa-ca tsa.pem",
    "otledger witness --list /mnt/elsewhere",
)
def witness(
    ctx: typer.Context,
    place: Annotated[
        str, typer.Argument(metavar="PLACE", help="A folder, git+PATH[#BRANCH], or tsa+URL#FOLDER.", show_default=False)
    ],
    machine: Machines = None,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", "-k", metavar="PUB", help="A verifier key, or a file of them.", show_default=False),
    ] = None,
    trust_first: Annotated[
        bool, typer.Option("--trust-first", help="Of a chain not known yet take the key that the ledger names.")
    ] = False,
    every: Annotated[
        float | None, typer.Option(min=0.1, metavar="SECONDS", help="Go on, so often, until SIGTERM or Ctrl-C.")
    ] = None,
    git: Annotated[bool, typer.Option("--git", help="PLACE is the path of a git repository.")] = False,
    tsa_ca: Annotated[
        Path | None,
        typer.Option("--tsa-ca", metavar="FILE", help="The authority's certificates. [default: $OTLEDGER_TSA_CA]"),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show what is kept; reads no ledger.")] = False,
    history: Annotated[bool, typer.Option("--history", help="With --list: every note that was accepted.")] = False,
    json: Json = False,
    root: RootOption = None,
) -> None:
    """Keep the newest signed note of each machine at a place that the writer cannot reach. A note is accepted if it is
    signed by the key that is known for its chain and a proof shows that it goes on from the one before. Exit codes:
    0 accepted or unchanged, 1 nothing is signed, 2 no key is known, 3 refused: it is TAMPERED or another ledger."""
    from otledger.cli.witnessed import give, give_on, show
    from otledger.witness import open_place

    opened = open_place(place, git=git, ca=tsa_ca)
    if list_ or history:
        raise typer.Exit(show(opened, history=history, json=json))
    from otledger.verifying.pinned import read_keys

    folder, machines, keys = root_of(ctx, root), once(machine), read_keys(key or ())
    if every is None:
        raise typer.Exit(give(folder, opened, machines, keys, trust_first=trust_first, json=json))
    raise typer.Exit(give_on(folder, opened, machines, keys, trust_first=trust_first, json=json, every=every))
