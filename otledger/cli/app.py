"""The command line's frame: the application, how a command is registered, what becomes of errors.

Nothing but typer is imported here and in the modules of the commands, so that `--help` and completion are quick;
nor do these import annotations from `__future__`, since typer would have to evaluate the text of each at every start.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

F = TypeVar("F", bound=Callable[..., Any])

OK, NO_MATCH, REFUSED, CORRUPT, INTERRUPTED, BUG = 0, 1, 2, 3, 130, 70
"""Exit codes; those of `verify` are in `otledger.verifier.Status`."""


class Failed(Exception):
    """A command cannot go on. `str` is the line for stderr: what is wrong, and what to do."""

    def __init__(self, message: str, code: int = REFUSED) -> None:
        super().__init__(message)
        self.code = code


ORDER = (
    *("demo", "log", "show", "tail", "trace", "spans", "turn", "turns", "pairs", "stats", "digest", "sql"),
    *("verify", "prove", "verify-proof", "witness", "archive", "repair", "keys", "machines", "doctor", "git"),
    *("index", "compact", "replay", "receive", "import", "export"),
)
"""The commands as the help lists them."""
OWN = frozenset(ORDER) - {"replay", "receive", "import", "export"}
"""Those that no plugin adds to: they start without looking for plugins, which costs some milliseconds."""


class Application(TyperGroup):
    """The group of all commands; whoever reads their output may go away in the middle."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Give the commands in the order of the help."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            # As with `| head`: the reader has what it wanted.
            give_up_stdout()
            raise typer.Exit(OK) from None


def give_up_stdout() -> None:
    """Let what is still buffered for stdout go nowhere, so that the interpreter's end is quiet."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def helped(sentence: str, *examples: str) -> str:
    """Give a help text: a sentence, then examples, left as they are."""
    return "\n".join((sentence, "", "\b", "Examples:", *(f"  {example}" for example in examples)))


app = typer.Typer(
    name="otledger",
    cls=Application,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help=helped(
        "A journal of what programs did, which nobody can quietly change.",
        "otledger demo                                  see it at work, in ten seconds",
        "otledger log order.placed --data '{\"id\": 7}'   write an event",
        "otledger show --since 2h --type 'order.*'      read what was written",
        "otledger tail -f                               read along",
        "otledger verify                                prove that nothing was changed",
    ),
)


def command(*examples: str, name: str | None = None, to: typer.Typer = app) -> Callable[[F], F]:
    """Register a function as a command. Its docstring is what the help says, followed by the examples."""

    def register(function: F) -> F:
        sentence = " ".join((function.__doc__ or "").split())
        short = sentence.split(". ")[0].rstrip(".") + "."
        to.command(name, help=helped(sentence, *examples), short_help=short)(function)
        return function

    return register


def _print_version(wanted: bool) -> None:
    if wanted:
        from otledger.version import VERSION

        typer.echo(f"otledger {VERSION}")
        raise typer.Exit


RootOption = Annotated[
    str | None,
    typer.Option("--root", metavar="DIR", help="The ledger's folder. [default: $OTLEDGER_ROOT, or ./ledger]"),
]


@app.callback(invoke_without_command=True)
def _frame(
    ctx: typer.Context,
    root: RootOption = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    ctx.obj = root
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def root_of(ctx: typer.Context, given: str | None) -> Path:
    """Give the ledger's folder: the command's `--root`, the one before it, OTLEDGER_ROOT, `ledger`."""
    before: str | None = ctx.find_root().obj
    chosen = before if given is None else given
    if chosen == "":
        raise Failed("--root is empty; give the ledger's folder, or leave it out for $OTLEDGER_ROOT or ./ledger")
    return Path(chosen or os.environ.get("OTLEDGER_ROOT") or "ledger").expanduser()


def load_plugins(arguments: list[str]) -> None:
    """Have installed packages add their commands (entry points `otledger.commands`) if one may be asked for."""
    if any(argument in OWN for argument in arguments[:3]):
        return
    from importlib.metadata import entry_points

    for point in entry_points(group="otledger.commands"):
        point.load()()


def main() -> None:
    """Run the command line and exit with its code."""
    # Where they are closed Python has None. They are needed to the end.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A file name or payload that the terminal's encoding has no character for must not end a command.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(_run())


def _run() -> int:
    try:
        load_plugins(sys.argv[1:])
        code = app(prog_name="otledger", standalone_mode=False)
        return code if isinstance(code, int) else OK
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("OTLEDGER_TRACEBACK"):
            raise
        from otledger.cli.output import explain, note

        message, code = explain(error)
        note(message)
        return code
