"""Every example runs as its first lines say, and leaves a ledger that the independent checker accepts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.checker import check

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example: Path, tmp_path: Path) -> None:
    root = tmp_path / "ledger"
    done = subprocess.run(
        [sys.executable, str(example), str(root)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    partitions = [path for path in root.iterdir() if path.is_dir()]
    assert partitions
    for partition in partitions:
        assert check(partition)


def test_what_the_examples_show(tmp_path: Path) -> None:
    def run(name: str) -> str:
        example = next(path for path in EXAMPLES if path.stem == name)
        command = [sys.executable, str(example), str(tmp_path / name)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    assert run("shop").endswith("OK\n")
    hidden = run("redacted")
    assert "hunter2" not in hidden
    assert "4111111111111111" not in hidden
    assert "does not fit its schema: 1" in hidden
    assert "one batch: 1 to 100" in run("script")
    signed = run("signed")
    assert "OK sealed through 5" in signed
    assert "{'name': 'Ada'} is now ['$enc']\nOK after the shredding\n" in signed
