"""`index`: what the index covers, and to make it again."""

from typing import Annotated

import typer

from otledger.cli import options as opt
from otledger.cli.app import NO_MATCH, Failed, RootOption, command, root_of


@command(
    "otledger index",
    "otledger index --rebuild             make it again, to the end",
    "otledger index --json | jq '.[].behind'",
)
def index(
    ctx: typer.Context,
    machine: opt.Machines = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Delete the index and make it again.")] = False,
    json: opt.Json = False,
    root: RootOption = None,
) -> None:
    """Say how far the index covers each machine's records, by which traces, turns, spans, events and times are found.
    It keeps itself up, and may be deleted at any time (`.cache` in a machine's folder)."""
    import dataclasses
    import sys

    from otledger import index as indexes
    from otledger.cli.output import Paint, Progress, out, out_json, size_text, table

    folder = root_of(ctx, root)
    machines = opt.once(machine)
    if rebuild:
        with Progress("index") as progress:
            found = indexes.rebuild(folder, machines, progress=progress)
    else:
        found = indexes.states(folder, machines)
    if not found:
        raise Failed(f"{folder} has no machine's folder yet; is it the right --root?", NO_MATCH)
    if json:
        out_json([{**dataclasses.asdict(each), "behind": each.behind} for each in found])
        return
    head = ("machine", "index", "records", "indexed", "behind", "version")
    rows = [
        (
            each.machine,
            size_text(each.size),
            f"{each.records:,}",
            size_text(each.indexed),
            size_text(each.behind),
            str(each.version),
        )
        for each in found
    ]
    out("\n".join(table(head, rows, right=(1, 2, 3, 4, 5), paint=Paint(sys.stdout))))
