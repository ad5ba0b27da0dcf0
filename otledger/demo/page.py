"""How the demo reads."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from otledger.cli.output import Paint, counted, out, safe

MARGIN = "   "


class Page:
    """Writes the demo's steps as they happen, and keeps in mind what did not hold."""

    def __init__(self) -> None:
        self.paint = Paint(sys.stdout)
        self._steps = 0
        self._failed: list[str] = []

    def title(self, root: Path) -> None:
        """Say what this is, and where the ledger is."""
        out(self.paint.bold("otledger demo") + ": a server is killed in the middle of its work; what is left?")
        out(f"The ledger is {safe(str(root))}, and is kept.")

    def step(self, what: str, how: str) -> None:
        """Begin a step."""
        self._steps += 1
        out()
        out(f"{self._steps}. {self.paint.bold(what)} {self.paint.dim(f'({safe(how)})')}")
        sys.stdout.flush()

    def section(self, title: str) -> None:
        """Begin a part that shows something."""
        out()
        out(self.paint.bold(title))

    def say(self, text: str) -> None:
        """Write a line under a step."""
        self.line(safe(text))

    def line(self, text: str) -> None:
        """Write a line whose content is escaped already."""
        out(f"{MARGIN}{text}".rstrip())
        sys.stdout.flush()

    def lines(self, texts: Iterable[str]) -> None:
        """Write lines whose content is escaped already."""
        for text in texts:
            self.line(text)

    def check(self, held: bool, text: str) -> None:
        """Write what was to hold, and whether it did."""
        if not held:
            self._failed.append(text)
        mark = self.paint.green("ok") if held else self.paint.red("FAILED")
        self.line(f"{mark}  {safe(text)}")

    def end(self, root: Path, *, temporary: bool) -> int:
        """Say how it went, what to look at, and how to remove what was only made for it. Gives the exit code."""
        out()
        if self._failed:
            out(self.paint.red(f"{counted(len(self._failed), 'thing')} did not hold:"))
            self.lines(safe(text) for text in self._failed)
        else:
            out(self.paint.bold(self.paint.green("Everything held.")) + " See for yourself:")
            folder = safe(shlex.quote(str(root)))
            self.line(f"otledger show --root {folder} --type 'order.*' --limit 5")
            self.line(f"otledger verify --root {folder} --deep")
            if temporary:
                self.line(f"rm -r {folder}")
        sys.stdout.flush()
        return 1 if self._failed else 0
