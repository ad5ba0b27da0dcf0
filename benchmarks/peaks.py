"""The rows about the memory that commands take which read a whole ledger."""

import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

from . import corpus
from .bench import Bench
from .measure import Figures, Measurement, at_most, judged

COMMANDS: dict[str, list[str]] = {
    "show --type": ["show", "--type", "nothing.*"],
    "verify": ["verify"],
    "index --rebuild": ["index", "--rebuild"],
    "spans": ["spans", "--json"],
    "turns": ["turns", "--json"],
    "pairs": ["pairs", "--json"],
    "stats": ["stats", "--json"],
    "digest": ["digest", "--json"],
    "compact": ["compact"],
    "export parquet": ["export", "parquet", "{folder}/parquet"],
    "replay --dry-run": ["replay", "--dry-run"],
}


def command(folder: Path, root: str, words: list[str]) -> Figures:
    """Run a command over a ledger; give its peak in MB, and its CPU seconds."""
    filled = [word.format(folder=folder) for word in words]
    done = subprocess.run(
        [sys.executable, "-m", "otledger", *filled, "--root", root],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    # 1: nothing was found.
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{' '.join(filled)}: {done.stderr[-500:]}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"mb": used.ru_maxrss / 1024, "cpu": used.ru_utime + used.ru_stime}


def peaks(bench: Bench) -> list[Measurement]:
    """Run each command once over 1 GB (5 GB with --long)."""
    size = "5 GB" if bench.long else "1 GB"
    root = str(bench.corpus(5 * corpus.UNITS["GB"] if bench.long else corpus.UNITS["GB"]))
    found = bench.interleave(
        {name: partial(bench.run, command, root=root, words=words) for name, words in COMMANDS.items()}, warm_up=False
    )
    return [
        judged(
            f"peak memory of otledger {name}, {size}",
            "MB",
            partial(found.spread, name, "mb"),
            at_most(600),
            lambda name=name: f"{found.median(name, 'cpu'):.1f} CPU-s",
        )
        for name in COMMANDS
    ]
