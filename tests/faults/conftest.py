"""What the fault campaign shares: a word on how much was tried, in every run."""

from collections.abc import Callable

import pytest

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
