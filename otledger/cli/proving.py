"""`prove` and `verify-proof`: what a record's place in the ledger is worth to somebody who has only a public key."""

from pathlib import Path
from typing import Annotated

import typer

from otledger.cli.app import CORRUPT, OK, RootOption, command, root_of
from otledger.cli.options import Json, Machines

Key = Annotated[
    list[str] | None,
    typer.Option(
        "--key",
        "-k",
        metavar="PUB",
        help="A verifier key as 'otledger keys export' gives it, or a file with some; may be repeated.",
        show_default=False,
    ),
]


@command(
    "otledger prove 01936e0b5cde7cc2a1a1c0ffee000001 > order.proof    the record with this id",
    "otledger prove 1234 --machine web1 --out order.proof             the record with this number",
    "otledger prove --since last-week.note --out growth.proof         nothing before that note was changed",
    "otledger prove --since 50000                                     the same, from the note over 50,000 records",
)
def prove(
    ctx: typer.Context,
    what: Annotated[
        str | None, typer.Argument(metavar="ID|SEQ", help="The record: its id, or its number.", show_default=False)
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="NOTE|SIZE", help="Prove that the ledger only grew: a file with a note, or its size."),
    ] = None,
    id: Annotated[bool, typer.Option("--id", help="Take ID|SEQ as an id although it is a number.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="A new file to write to.")] = None,
    machine: Machines = None,
    root: RootOption = None,
) -> None:
    """Write a small file that proves a record, or that the ledger only grew, to anybody who has the public key. Exit
    codes: 0 written, 1 there is no such record, 2 no signed checkpoint covers it yet, 3 the ledger is not what was
    signed."""
    from otledger.cli.proofs import make_proof, put_proof

    proof = make_proof(root_of(ctx, root), what, since, machine or [], is_id=id)
    put_proof(proof, out)


@command(
    "otledger verify-proof order.proof --key shop.pub",
    "otledger verify-proof growth.proof --key otledger/5f0c…+c74f20a3+ARpc2Qc…",
    "otledger prove 1234 | otledger verify-proof - --key shop.pub --json",
)
def verify_proof(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What 'otledger prove' wrote; - is stdin.")],
    key: Key = None,
    json: Json = False,
) -> None:
    """Check a proof with the public key and nothing else: no ledger, no network. Exit codes: 0 it holds, 2 a usage
    error, 3 it does not hold."""
    from otledger.cli.output import note, out, out_json
    from otledger.cli.proofs import pinned, proved_lines, take_proof
    from otledger.proof_file import BrokenProof, check_proof, read_proof

    keys = pinned(key or [])
    data = take_proof(file)
    try:
        proved = check_proof(read_proof(data), keys)
    except BrokenProof as error:
        note(str(error))
        if json:
            out_json({"holds": False, "reason": str(error)})
        raise typer.Exit(CORRUPT) from None
    if json:
        out_json({"holds": True, **proved.to_dict()})
    else:
        out("\n".join(proved_lines(proved)))
    raise typer.Exit(OK)
