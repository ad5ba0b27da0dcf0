"""The folders, the ledgers and the rounds of one run."""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from . import corpus, ours
from .measure import Contender, ContenderFailed, Figures, Rounds, progress, run


@dataclass(frozen=True, slots=True)
class Bench:
    """The settings of one run, and the folder that holds its data."""

    root: Path
    rounds: int
    long: bool
    _ledgers: dict[int, Path] = field(default_factory=dict)
    """By the number of records, or minus the number of bytes."""

    def folder(self) -> Path:
        """Return a new empty folder."""
        return Path(tempfile.mkdtemp(dir=self.root))

    def ledger(self, records: int) -> Path:
        """Return a ledger of so many records, made once a run."""
        if records not in self._ledgers:
            progress(f"    writing a ledger of {records:,} records")
            root = self.folder()
            run(ours.emit, root, n=records)
            # Or its pages are written back while something else is measured.
            os.sync()
            self._ledgers[records] = root
        return self._ledgers[records]

    def corpus(self, size: int) -> Path:
        """Return a ledger of traces, turns and events of so many bytes, made once a run."""
        if -size not in self._ledgers:
            progress(f"    writing a ledger of {size / 1e9:g} GB")
            root = self.folder()
            corpus.make(root, size)
            os.sync()
            self._ledgers[-size] = root
        return self._ledgers[-size]

    def interleave(self, contenders: Mapping[str, Callable[[], Figures]], warm_up: bool = True) -> Rounds:
        """Run all contenders in turn, round after round; the warm-up round does not count.

        One that fails is left out of the rounds that follow, and the others go on.
        """
        rounds = Rounds({name: [] for name in contenders})
        for number in range(0 if warm_up else 1, self.rounds + 1):
            for name, contender in contenders.items():
                if name in rounds.errors:
                    continue
                progress(f"  {f'round {number} of {self.rounds}' if number else 'warm-up'}: {name}")
                try:
                    figures = contender()
                except ContenderFailed as error:
                    progress(f"    failed: {error}")
                    rounds.errors[name] = str(error)
                else:
                    if number:
                        rounds.figures[name].append(figures)
        return rounds

    def fresh(self, contender: Contender, **arguments: object) -> Callable[[], Figures]:
        """Return a call that runs `contender` in a new folder and removes the folder afterwards."""
        return partial(self._run_fresh, contender, arguments)

    def over(self, records: int, contender: Contender, **arguments: object) -> Callable[[], Figures]:
        """Return a call that runs `contender` with the `root` of a ledger of so many records."""
        return lambda: self._run_fresh(contender, {**arguments, "root": str(self.ledger(records))})

    def run(self, contender: Contender, **arguments: Any) -> Figures:
        """Run `contender` once, in a new folder that is removed afterwards."""
        return self._run_fresh(contender, arguments)

    def _run_fresh(self, contender: Contender, arguments: dict[str, Any]) -> Figures:
        with tempfile.TemporaryDirectory(dir=self.root) as folder:
            return run(contender, Path(folder), **arguments)
