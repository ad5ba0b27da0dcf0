"""Registers the commands of this package with the command line. Imports nothing but typer and the commands' frames."""

from otledger.cli.app import command
from otledger.cli.transfer import give_back, take_in

from . import commands_in, commands_out


def register() -> None:
    """Add `import otlp`, `receive`, `replay` and `export chrome-trace`."""
    command(*commands_in.IMPORT_EXAMPLES, name="otlp", to=take_in)(commands_in.import_otlp)
    command(*commands_in.RECEIVE_EXAMPLES)(commands_in.receive)
    command(*commands_out.REPLAY_EXAMPLES)(commands_out.replay)
    command(*commands_out.CHROME_EXAMPLES, name="chrome-trace", to=give_back)(commands_out.chrome_trace)
