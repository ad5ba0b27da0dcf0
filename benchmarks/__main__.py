"""`python -m benchmarks`: run the rows, print the table, save it."""

import argparse
import json
import os
import tempfile
from pathlib import Path

from .bench import Bench
from .measure import Measurement, progress
from .report import markdown, save, table
from .rows import ROWS

LATEST = Path(__file__).parent / "results" / "latest.json"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=ROWS, help=f"of {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender runs (5)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--short", action="store_true", help="large means a million records (default)")
    mode.add_argument("--long", action="store_true", help="large means ten million records: 5 GB of disk")
    parser.add_argument("--markdown", action="store_true", help="print README's table of what is saved")
    parser.add_argument(
        "--json",
        type=Path,
        default=LATEST,
        metavar="FILE",
        help="where the results are; what is measured anew replaces what is there",
    )
    return parser.parse_args()


def _isolate(folder: Path) -> None:
    """Let no setting of this user reach the contenders, and nothing of theirs reach this user's files."""
    kept = ("PYTHONPATH", "PYTHONHOME")
    for key in list(os.environ):
        if key.startswith(("OTLEDGER_", "OTEL_", "PYTHON")) and key not in kept:
            del os.environ[key]
    # Compiled modules are cached even where the user forbids it: an import would measure the compiler.
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "pycache")
    os.environ["XDG_STATE_HOME"] = str(folder / "state")


def main() -> None:
    """Run what the command line asks for."""
    arguments = _arguments()
    if arguments.markdown:
        print(markdown(json.loads(arguments.json.read_text())), end="")
        return
    measurements: list[Measurement] = []
    with tempfile.TemporaryDirectory(prefix="otledger-bench-") as folder:
        _isolate(Path(folder))
        bench = Bench(Path(folder), arguments.rounds, arguments.long)
        for name in arguments.only or ROWS:
            progress(name)
            measurements += ROWS[name](bench)
    print(table(measurements))
    save(arguments.json, measurements, arguments.rounds, arguments.long)
    progress(f"saved as {arguments.json}")


if __name__ == "__main__":
    main()
