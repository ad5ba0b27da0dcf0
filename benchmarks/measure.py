"""Run contenders in processes of their own, and compare what they return."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
DEADLINE = 900.0

Figures = dict[str, float]
Contender = Callable[..., Figures]


class ContenderFailed(Exception):
    """A contender ended with an error; the message is the last line that it wrote to stderr."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of the rounds and how far they lay apart."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Bound:
    """What a measurement is held against."""

    limit: float
    at_least: bool

    def holds(self, value: float) -> bool:
        """Tell whether `value` is on the right side of the limit."""
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True, slots=True)
class Measurement:
    """One line of the table; `value` is None where a contender failed, and `note` says why."""

    what: str
    unit: str
    value: Spread | None
    bound: Bound | None = None
    note: str = ""

    @property
    def state(self) -> str:
        """Return `ok`, `short`, `failed`, or `-` where there is no bound."""
        if self.value is None:
            return "failed"
        if self.bound is None:
            return "-"
        return "ok" if self.bound.holds(self.value.median) else "short"


def spread(values: Iterable[float]) -> Spread:
    """Return the median, the smallest and the largest of `values`."""
    known = list(values)
    return Spread(statistics.median(known), min(known), max(known))


def progress(text: str) -> None:
    """Tell on stderr what is being done."""
    print(text, file=sys.stderr, flush=True)


def start(contender: Contender, folder: Path, **arguments: object) -> subprocess.Popen[str]:
    """Start `contender(folder, **arguments)` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.contender", contender.__module__, contender.__name__]
    return subprocess.Popen(
        [*command, str(folder), json.dumps(arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Figures:
    """Wait for a started contender and return its figures."""
    try:
        out, err = process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise ContenderFailed(f"not done after {DEADLINE:.0f} s") from None
    if process.returncode:
        raise ContenderFailed((err.strip().splitlines() or [f"exit code {process.returncode}"])[-1])
    figures: Figures = json.loads(out.splitlines()[-1])
    return figures


def run(contender: Contender, folder: Path, **arguments: object) -> Figures:
    """Run `contender` in a process of its own and return its figures."""
    return finish(start(contender, folder, **arguments))


@dataclass(slots=True)
class Rounds:
    """What each contender returned, round by round, and the error of each that failed."""

    figures: dict[str, list[Figures]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def values(self, name: str, key: str = "rate") -> list[float]:
        """Return one figure of one contender for all rounds, or raise what made it fail."""
        if name in self.errors:
            raise ContenderFailed(f"{name}: {self.errors[name]}")
        return [figures[key] for figures in self.figures[name]]

    def median(self, name: str, key: str = "rate") -> float:
        """Return the median of one figure of one contender."""
        return statistics.median(self.values(name, key))

    def spread(self, name: str, key: str) -> Spread:
        """Return the median and the range of one figure of one contender."""
        return spread(self.values(name, key))

    def ratio(self, over: tuple[str, str], under: tuple[str, str]) -> Spread:
        """Return the ratio of two (contender, figure) pairs, taken within each round."""
        pairs = zip(self.values(*over), self.values(*under), strict=True)
        return spread(a / b for a, b in pairs)

    def rates(self, name: str, other: str) -> str:
        """Say how many a second two contenders reached."""
        return f"{self.median(name):,.0f}/s against {self.median(other):,.0f}/s"


def judged(
    what: str,
    unit: str,
    value: Callable[[], Spread],
    bound: Bound | None = None,
    note: Callable[[], str] = str,
) -> Measurement:
    """Make the measurement, or one that says which contender failed."""
    try:
        return Measurement(what, unit, value(), bound, note())
    except ContenderFailed as error:
        return Measurement(what, unit, None, bound, str(error))


def at_least(limit: float) -> Bound:
    """Return the bound of something that should be large."""
    return Bound(limit, at_least=True)


def at_most(limit: float) -> Bound:
    """Return the bound of something that should be small."""
    return Bound(limit, at_least=False)
