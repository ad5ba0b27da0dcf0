"""The rows about how long it takes until anything happens."""

import subprocess
import sys
import time
from functools import partial

from .bench import Bench
from .measure import REPOSITORY, ContenderFailed, Figures, Measurement, Spread, at_most, judged, spread

_BARE_TYPER = """
import typer
app = typer.Typer()
@app.command()
def main(name: str) -> None:
    print(name)
app()
"""


def wall(command: list[str]) -> Figures:
    """Return the ms that a command takes; the fastest of five, since only delays are added to it."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        times.append(time.perf_counter() - started)
        if done.returncode:
            raise ContenderFailed((done.stderr.strip().splitlines() or ["no message"])[-1])
    return {"ms": min(times) * 1e3}


def first_line(command: list[str]) -> Figures:
    """Return the ms until a command has printed a line; the fastest of five."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            if not child.stdout.readline():
                raise ContenderFailed("it printed nothing")
            times.append(time.perf_counter() - started)
    return {"ms": min(times) * 1e3}


def startup(bench: Bench) -> list[Measurement]:
    """Measure the import, and `--help` against a typer program that does nothing."""
    program = bench.folder() / "bare.py"
    program.write_text(_BARE_TYPER)
    python = sys.executable
    rounds = bench.interleave(
        {
            "import": partial(wall, [python, "-c", "import otledger"]),
            "pass": partial(wall, [python, "-c", "pass"]),
            "help": partial(wall, [python, "-m", "otledger", "--help"]),
            "typer": partial(wall, [python, str(program), "--help"]),
        }
    )

    def imported() -> Spread:
        pairs = zip(rounds.values("import", "ms"), rounds.values("pass", "ms"), strict=True)
        return spread(whole - bare for whole, bare in pairs)

    return [
        judged("import otledger", "ms", imported, at_most(60)),
        judged(
            "otledger --help against a bare typer program",
            "x",
            partial(rounds.ratio, ("help", "ms"), ("typer", "ms")),
            at_most(1.3),
            lambda: f"{rounds.median('help', 'ms'):.0f} ms against {rounds.median('typer', 'ms'):.0f} ms",
        ),
    ]
