"""`import otlp` and `receive`: OTLP into the ledger. Nothing but typer is imported before a command runs."""

from pathlib import Path
from typing import Annotated

import typer

from otledger.cli.app import RootOption, root_of
from otledger.cli.options import Json

IMPORT_EXAMPLES = (
    "otledger import otlp traces.jsonl                    what a collector's file exporter wrote",
    "zcat traces.jsonl.gz | otledger import otlp -",
    "otledger import otlp export.bin --signal logs",
)
RECEIVE_EXAMPLES = (
    "otledger receive",
    "otledger receive --port 4319 --machine gateway",
    "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 my-program",
)


def import_otlp(
    ctx: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help="OTLP/JSON lines, or OTLP in protobuf; - takes them from stdin.")
    ],
    signal: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="traces, logs or metrics, where protobuf does not show it. [default: look]"),
    ] = None,
    json: Json = False,
    root: RootOption = None,
) -> None:
    """Append the spans, log records and metrics in a file to the partition otlp.import. Doing it twice adds nothing.
    Lines and messages that are no OTLP are reported and kept aside; then the exit code is 2."""
    from functools import partial

    from otledger.cli.outcome import run_import
    from otledger_opentelemetry.needs import needed

    take = partial(needed("otledger_opentelemetry.importing").import_otlp, signal=signal)
    raise typer.Exit(run_import(take, root_of(ctx, root), source, json=json))


def receive(
    ctx: typer.Context,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen. There is no password: leave it on loopback.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="NUMBER", min=0, max=65535, help="0 takes any free one.")] = 4318,
    max_body: Annotated[int, typer.Option(metavar="MIB", min=1, max=1024, help="The largest request, unpacked.")] = 16,
    machine: Annotated[
        str | None, typer.Option(metavar="NAME", help="The partition. [default: $OTLEDGER_MACHINE, or the host's name]")
    ] = None,
    root: RootOption = None,
) -> None:
    """Take OTLP over HTTP and append it to the ledger. A request is answered with 200 when it is durable. SIGTERM and
    Ctrl-C end it in order."""
    from otledger.cli.intake import send_warnings_to_stderr
    from otledger.cli.output import note
    from otledger_opentelemetry.needs import needed

    serve = needed("otledger_opentelemetry.receiver").serve
    send_warnings_to_stderr()
    folder = root_of(ctx, root)
    left = serve(
        folder,
        host=host,
        port=port,
        max_body=max_body << 20,
        machine=machine,
        service="receive",
        on_ready=lambda url: note(f"receiving OTLP at {url} into {folder}; Ctrl-C ends it"),
    )
    if left:
        note(f"{left:,} records could not be written to {folder}; see: otledger doctor --root {folder}")
        raise typer.Exit(2)
