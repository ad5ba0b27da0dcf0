"""`stats` and `digest`: what a window of the ledger holds, in numbers and by rules."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otledger.cli import options as opt
from otledger.cli.app import CORRUPT, NO_MATCH, OK, RootOption, command, root_of

if TYPE_CHECKING:
    from otledger.query.scan import Selection


@command(
    "otledger stats",
    "otledger stats --since 24h --type 'order.*'",
    "otledger stats --key subject               pairs of *.start and *.end by their subject",
    "otledger stats --json | jq .types",
)
def stats(
    ctx: typer.Context,
    type: opt.Type = None,
    source: opt.Source = None,
    subject: opt.Subject = None,
    machine: opt.Machines = None,
    since: opt.Since = None,
    until: opt.Until = None,
    key: Annotated[
        str, typer.Option(metavar="PLACE", help="What links *.start and *.end: data.NAME, subject, an extension; none.")
    ] = "data.id",
    top: opt.Top = 20,
    all: opt.All = False,
    json: opt.Json = False,
    root: RootOption = None,
) -> None:
    """Count records by type, source, machine and subject; how many a second; how long spans and start/end pairs
    lasted. What is damaged is reported and passed over; then the exit code is 3."""
    import sys

    from otledger.cli.output import Paint, Progress, out, out_json
    from otledger.cli.printing import Printer
    from otledger.cli.summing import stats_json, stats_lines
    from otledger.query.stats import stats as run

    faults = Printer(json=json, long=False, raw=False)
    selection = _selection(type, source, subject, machine, since, until, control=all)
    with Progress("stats") as progress:
        found = run(
            root_of(ctx, root),
            selection,
            key=None if key == "none" else key,
            on_fault=faults.fault,
            progress=progress,
        )
    if json:
        out_json(stats_json(found))
    else:
        out("\n".join(stats_lines(found, Paint(sys.stdout), top)))
    raise typer.Exit(CORRUPT if faults.faults else OK if found.records else NO_MATCH)


@command(
    "otledger digest --since 24h",
    "otledger digest --since 2026-11-21 --until 2026-11-22 --rules ours.toml",
    "otledger digest --only failure-spike --only refusal",
    "otledger digest --json | jq '.findings[] | select(.severity == \"alert\")'",
    "otledger digest --show-rules > ours.toml       the default rules, to begin with",
)
def digest(
    ctx: typer.Context,
    rules: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The rules, in TOML. [default: --show-rules]")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this rule; may be repeated.")] = None,
    type: opt.Type = None,
    source: opt.Source = None,
    subject: opt.Subject = None,
    machine: opt.Machines = None,
    since: opt.Since = None,
    until: opt.Until = None,
    top: opt.Top = 10,
    show_rules: Annotated[bool, typer.Option("--show-rules", help="Print the rules, and look at no ledger.")] = False,
    json: opt.Json = False,
    root: RootOption = None,
) -> None:
    """Roll up a window, and say what rules find in it: failures that come close together, numbers far above the
    median, pushes without a green test, refusals, decisions that could have been asked about."""
    import sys

    from otledger.cli.output import Paint, Progress, out, out_json
    from otledger.cli.printing import Printer
    from otledger.cli.summing import digest_json, digest_lines
    from otledger.query.digest import digest as run
    from otledger.query.rules import DEFAULT, load

    known = load(rules)
    if show_rules:
        out((rules or DEFAULT).read_text(encoding="utf-8").rstrip("\n"))
        return
    faults = Printer(json=json, long=False, raw=False)
    selection = _selection(type, source, subject, machine, since, until, control=False)
    with Progress("digest") as progress:
        found = run(root_of(ctx, root), selection, known, only=only, on_fault=faults.fault, progress=progress)
    if json:
        out_json(digest_json(found))
    else:
        out("\n".join(digest_lines(found, Paint(sys.stdout), top)))
    raise typer.Exit(CORRUPT if faults.faults else OK if found.stats.records else NO_MATCH)


def _selection(
    type: str | None,
    source: str | None,
    subject: str | None,
    machine: list[str] | None,
    since: str | None,
    until: str | None,
    *,
    control: bool,
) -> "Selection":
    from otledger.query.scan import Selection

    window = opt.window(since, until)
    return Selection(
        machines=opt.once(machine),
        since=window["since"],
        until=window["until"],
        type=type,
        source=source,
        subject=subject,
        control=control,
    )
