"""`verify`, `machines`, `doctor`: is the ledger whole, what is in it, and can it be written."""

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from otledger.cli.app import NO_MATCH, OK, Failed, RootOption, command, root_of
from otledger.cli.options import Json, Machines


@command(
    "otledger verify",
    "otledger verify --machine web1 --deep      one machine, every line parsed as well",
    "otledger verify --expect web1 --expect web2     INCOMPLETE if one of them is missing",
    "otledger verify --key ledger.pub --witness /mnt/elsewhere     as nobody with this disk could answer",
    "otledger verify --key ledger.pub --since-checkpoint           what follows the newest valid note",
    "otledger verify --key ledger.pub --heartbeat 1200             INCOMPLETE if the last seal is older",
    "otledger verify --json | jq .status",
)
def verify(
    ctx: typer.Context,
    machine: Machines = None,
    expect: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A machine that must be there; may be repeated.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", "-p", min=1, metavar="N", help="How many work side by side.")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", "-k", metavar="PUB", help="A public key to believe, or a file of them; may be repeated."),
    ] = None,
    witness: Annotated[
        list[str] | None,
        typer.Option(metavar="PLACE", help="Hold it against what a witness keeps there; may be repeated."),
    ] = None,
    heartbeat: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="The last seal must not be older: a cut tail shows.")
    ] = None,
    since_checkpoint: Annotated[
        bool, typer.Option("--since-checkpoint", help="Only what follows the newest checkpoint whose note is valid.")
    ] = False,
    tail: Annotated[bool, typer.Option("--tail", help="Only what follows the last checkpoint.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Parse every line as JSON, and check every note.")] = False,
    tree: Annotated[
        bool, typer.Option("--tree", help="Recompute the whole tree, and compare every checkpoint with it.")
    ] = False,
    archive: Annotated[str | None, typer.Option("--from", metavar="DEST", help="Read archived segments there.")] = None,
    keys: Annotated[
        str | None,
        typer.Option("--keys", metavar="DIR", help="Where signers keep what they signed. [default: $OTLEDGER_KEYS]"),
    ] = None,
    no_memory: Annotated[
        bool, typer.Option("--no-memory", help="Do not ask what this host's signer remembers.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing; the exit code says it.")] = False,
    json: Json = False,
    root: RootOption = None,
) -> None:
    """Check every record: its checksum, its number, its place in the chain; with a public key the signed checkpoints.
    Exit codes: 0 OK, 3 TAMPERED, 4 FORK, 5 INCOMPLETE, 6 RECOVERED, 7 UNSEALED_TAIL."""
    import sys

    from otledger.cli.output import Paint, Progress, out, out_json
    from otledger.cli.report import report_lines
    from otledger.verifier import verify as run

    folder = root_of(ctx, root)
    with Progress("verify") as progress:
        report = run(
            folder,
            machines=sorted(set(machine)) if machine else None,
            expect=expect or (),
            processes=processes,
            tail=tail,
            deep=deep,
            keys=key or (),
            witness=witness or (),
            memory=not no_memory and (keys or True),
            since_checkpoint=since_checkpoint,
            tree=tree,
            heartbeat=heartbeat,
            archive=archive,
            progress=progress,
        )
    if not report.machines:
        raise Failed(f"{folder} has no machine's folder, so nothing was verified; is it the right --root?", NO_MATCH)
    if json:
        out_json(report.to_dict())
    elif not quiet:
        out("\n".join(report_lines(report, Paint(sys.stdout))))
    raise typer.Exit(report.status.exit_code)


@command("otledger machines", "otledger machines --json | jq -r '.[].machine'")
def machines(ctx: typer.Context, json: Json = False, root: RootOption = None) -> None:
    """List the machines that write here. Reads only the ends of their files; `verify` checks what they hold."""
    from otledger.cli import survey
    from otledger.cli.output import out_json

    folder = root_of(ctx, root)
    found = survey.survey(folder)
    if json:
        out_json([survey.to_dict(machine) for machine in found])
    elif found:
        survey.print_table(found)
    else:
        raise Failed(f"{folder} has no machine's folder yet; is it the right --root?", NO_MATCH)
    raise typer.Exit(OK if found else NO_MATCH)


@command(
    "otledger doctor",
    "otledger doctor --root /var/lib/shop/ledger --json",
    "otledger doctor --self-test /var/lib/shop                 two minutes of faults on that file system",
    "otledger doctor --self-test /var/lib/shop --seconds 20",
)
def doctor(
    ctx: typer.Context,
    machine: Annotated[
        str | None, typer.Option("--machine", "-m", metavar="NAME", help="As if this machine were to write.")
    ] = None,
    self_test: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Instead, try faults on the file system of this folder; leaves nothing."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, metavar="N", help="About how long the self-test takes.")] = 120.0,
    json: Json = False,
    root: RootOption = None,
) -> None:
    """Look whether a ledger can be written here, and say what to do where it cannot. Changes nothing. Exit code 1
    if something is bad."""
    from otledger.cli import doctor as checks
    from otledger.cli.output import out_json

    if self_test is not None:
        _try_faults(self_test, seconds, json=json)
    found = checks.examine(root_of(ctx, root), machine)
    if json:
        out_json([checks.to_dict(check) for check in found])
    else:
        checks.print_checks(found)
    raise typer.Exit(NO_MATCH if any(check.level == "bad" for check in found) else OK)


def _try_faults(folder: Path, seconds: float, *, json: bool) -> NoReturn:
    from otledger.cli import doctor as checks
    from otledger.cli.output import Progress, out_json
    from otledger.selftest import self_test

    with Progress("self-test", lambda total: f"{total:.0f} s") as progress:
        outcomes = self_test(folder, seconds=seconds, progress=progress)
    if json:
        out_json([outcome.to_dict() for outcome in outcomes])
    else:
        checks.print_checks([checks.Check(one.level, one.name, one.finding, one.remedy) for one in outcomes])
    raise typer.Exit(NO_MATCH if any(outcome.level == "bad" for outcome in outcomes) else OK)
