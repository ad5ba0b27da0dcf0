"""What the fault campaign shares: a word on how much was tried, in every run, and a judge of crashes."""

import logging
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from random import Random

import pytest

from tests import checker
from tests.faults.judge import Judge

MEMORY = Path("/dev/shm")

Say = Callable[..., None]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]) -> Say:
    """Print a line past pytest's capture, and note its figures: a campaign that shrinks is to be noticed."""

    def say(text: str, **figures: object) -> None:
        for name, value in figures.items():
            record_property(name, value)
        with capsys.disabled():
            print(f"\n{text}", end="")

    return say


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    """A judge of crashes, with a folder in memory."""
    # Most lines are the same from state to state.
    monkeypatch.setattr(checker, "parse", lru_cache(1 << 14)(checker.parse))
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="otledger-", dir=MEMORY if MEMORY.is_dir() else None) as name:
        yield Judge(Path(name), Random())
    logging.disable(logging.NOTSET)
