"""`replay` and `export chrome-trace`: the ledger into OpenTelemetry backends and viewers.

Nothing but typer is imported before a command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otledger.cli import options as opt
from otledger.cli.app import RootOption, root_of

if TYPE_CHECKING:
    from otledger_opentelemetry.commands import Replaying

REPLAY_EXAMPLES = (
    "otledger replay --endpoint http://127.0.0.1:4318          all spans and logs, to a collector",
    "otledger replay --since 2h --errors --unfinished          what went wrong, and what never ended",
    "otledger replay --trace 4bf92f3577b34da6a3ce929d0e0e4736 --to console",
    "otledger replay --to spans.jsonl --logs-to logs.jsonl     OTLP/JSON, for a collector's otlpjsonfile receiver",
    "otledger replay --no-logs --endpoint http://jaeger:4318   Jaeger and Tempo take no logs",
    "otledger replay --cursor /var/tmp/replay.cursor           what is new since the last time",
)
CHROME_EXAMPLES = ("otledger export chrome-trace trace.json --since 10m      open it in https://ui.perfetto.dev",)

Turn = Annotated[str | None, typer.Option("--turn", metavar="HASH", help="Only this turn (ipc_hash).")]
Service = Annotated[str | None, typer.Option(metavar="NAME", help="Only what this service (service.name) did.")]
Errors = Annotated[bool, typer.Option("--errors", help="Only spans with an error status, and logs from ERROR on.")]
Unfinished = Annotated[
    bool, typer.Option("--unfinished", help="Also spans that never ended: ended where they were last seen, and marked.")
]
Unsampled = Annotated[bool, typer.Option("--unsampled", help="Also spans that are not sampled.")]


def replay(
    ctx: typer.Context,
    to: Annotated[
        str, typer.Option(metavar="WHERE", help="otlp, console, or a file for OTLP/JSON lines; - is stdout.")
    ] = "otlp",
    logs_to: Annotated[
        str | None, typer.Option(metavar="FILE", help="A file for the logs as OTLP/JSON lines: one signal a file.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="The collector. [default: $OTEL_EXPORTER_OTLP_ENDPOINT]")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="http or grpc. [default: $OTEL_EXPORTER_OTLP_PROTOCOL, or http]"),
    ] = None,
    no_logs: Annotated[bool, typer.Option("--no-logs", help="Only spans: Jaeger and Tempo take no logs.")] = False,
    trace: opt.Trace = None,
    turn: Turn = None,
    since: opt.Since = None,
    until: opt.Until = None,
    service: Service = None,
    machine: opt.Machines = None,
    errors: Errors = False,
    unfinished: Unfinished = False,
    unsampled: Unsampled = False,
    speed: Annotated[
        float | None, typer.Option(min=0.001, metavar="N", help="In the recorded rhythm, N times as fast.")
    ] = None,
    cursor: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the place there, and go on from it.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Spans in a request.")] = 512,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Send nothing; count.")] = False,
    json: opt.Json = False,
    root: RootOption = None,
) -> None:
    """Send spans and logs to an OpenTelemetry backend, as the program would have sent them. Each span is sent once;
    what the backend refuses is tried again, then reported; then the exit code is 1, and 3 where the ledger is
    damaged. One cursor is for one choice of records."""
    run = _picking(
        ctx, root, trace, turn, since, until,
        service=service, errors=errors, unfinished=unfinished, unsampled=unsampled, logs=not no_logs,
    )  # fmt: skip
    run.choose(to, logs_to, endpoint=endpoint, protocol=protocol, dry_run=dry_run, json=json)
    raise typer.Exit(run.run(opt.once(machine), speed=speed, cursor=cursor, batch=batch, json=json))


def chrome_trace(
    ctx: typer.Context,
    destination: Annotated[str, typer.Argument(metavar="FILE", help="The file to write; - is stdout.")],
    trace: opt.Trace = None,
    turn: Turn = None,
    since: opt.Since = None,
    until: opt.Until = None,
    service: Service = None,
    machine: opt.Machines = None,
    errors: Errors = False,
    unfinished: Unfinished = False,
    json: opt.Json = False,
    root: RootOption = None,
) -> None:
    """Write spans as a file that Perfetto and chrome://tracing open: a process for each service, a thread for each
    trace, more where its spans overlap. Where the ledger is damaged the exit code is 3."""
    run = _picking(
        ctx, root, trace, turn, since, until,
        service=service, errors=errors, unfinished=unfinished, unsampled=True,
    )  # fmt: skip
    raise typer.Exit(run.chrome(destination, opt.once(machine), json=json))


def _picking(
    ctx: typer.Context,
    root: str | None,
    trace: str | None,
    turn: str | None,
    since: str | None,
    until: str | None,
    **selected: Any,
) -> Replaying:
    """Give the run of a command, by the options that both have."""
    from otledger_opentelemetry.commands import Replaying

    filter = opt.make_filter(
        type=None, source=None, subject=None, ipc_hash=turn, trace=trace, since=since, until=until, text=None,
        control=True,
    )  # fmt: skip
    return Replaying(root_of(ctx, root), filter, **selected)
