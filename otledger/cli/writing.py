"""`log`: one event, or as many as come in."""

from typing import Annotated

import typer

from otledger.cli.app import RootOption, command, root_of
from otledger.cli.options import Json


@command(
    "otledger log deploy.finished",
    "otledger log order.placed --data '{\"id\": 7}' --subject tenant-1 --ext phase=beta",
    'echo \'{"type": "a.b", "data": 1}\' | otledger log -',
    "my-program | otledger log - --subject nightly",
)
def log(
    ctx: typer.Context,
    type: Annotated[str, typer.Argument(metavar="TYPE", help="The event's type; - takes JSON Lines from stdin.")],
    data: Annotated[str | None, typer.Option("--data", "-d", metavar="JSON", help="The payload.")] = None,
    subject: Annotated[str | None, typer.Option("--subject", "-s", metavar="TEXT", help="What it is about.")] = None,
    source: Annotated[
        str | None, typer.Option(metavar="URI", help="Who emits. [default: /<machine>/otledger]", show_default=False)
    ] = None,
    ipc_hash: Annotated[str | None, typer.Option(metavar="HASH", help="The turn that it belongs to.")] = None,
    ext: Annotated[
        list[str] | None,
        typer.Option("--ext", "-e", metavar="NAME=VALUE", help="An extension attribute; may be repeated."),
    ] = None,
    time: Annotated[
        str | None, typer.Option(metavar="WHEN", help="When it happened: RFC 3339, or 2h ago. [default: now]")
    ] = None,
    id: Annotated[str | None, typer.Option(metavar="TEXT", help="Its id. [default: a new UUID]")] = None,
    machine: Annotated[
        str | None, typer.Option(metavar="NAME", help="The partition. [default: $OTLEDGER_MACHINE, or the host's name]")
    ] = None,
    json: Json = False,
    root: RootOption = None,
) -> None:
    """Write an event and print its id. It is durable when the command returns. With - each line of stdin is an
    event, a JSON object with type and optionally data, subject, source, ipc_hash, extensions, time and id; the
    options are then its defaults."""
    from otledger.cli import intake

    intake.send_warnings_to_stderr()
    defaults = {
        "subject": subject, "source": source, "ipc_hash": ipc_hash, "extensions": intake.extensions(ext or []),
    }  # fmt: skip
    folder = root_of(ctx, root)
    if type == "-":
        intake.refuse_options({"--data": data, "--time": time, "--id": id})
        raise typer.Exit(intake.log_lines(folder, machine, defaults, json=json))
    members = {**defaults, "data": intake.payload(data), "time": intake.instant(time), "id": id}
    intake.log_one(folder, machine, type, members, json=json)
