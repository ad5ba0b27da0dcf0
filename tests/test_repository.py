"""What the README and the repository promise."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checker import check

HERE = Path(__file__).parent.parent
README = (HERE / "README.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    code = block("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seq, checksum = done.stdout.split()
    (partition,) = (tmp_path / "ledger").iterdir()
    records = {record["seq"]: record for record in check(partition)}
    assert records[int(seq)]["checksum"] == checksum
    # The line that the README shows has the members of the line that is written.
    shown = json.loads(block("json"))
    written = next(record for record in records.values() if record["type"] == "order.placed")
    assert list(shown) == list(written)
    verified = subprocess.run(
        [sys.executable, "-m", "otledger", "verify"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert verified.returncode == 0
    report = verified.stdout + verified.stderr
    assert "OK: every record is there, unchanged, in its place" in report
    assert re.search(r"machine +status +records +bytes +head", report)


def test_the_two_commands_stand_on_the_first_screen() -> None:
    first = README.splitlines()[:12]
    assert "    pip install -e '.[all]' && otledger demo" in first
    assert "    pip install -e '.[test]' && pytest" in first


def test_ci_calls_the_readmes_test_command() -> None:
    assert "pip install --quiet -e '.[test]' && pytest\n" in (HERE / ".ci" / "run").read_text()


def test_links_lead_somewhere() -> None:
    pages = [HERE / "README.md", *(HERE / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_figures_of_the_readme_are_those_of_a_saved_run() -> None:
    command = [sys.executable, "-m", "benchmarks", "--markdown"]
    table = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True).stdout
    assert len(table.splitlines()) > 15
    assert table in README


@pytest.mark.parametrize("word", ["/work/", "/root/", "/tmp/w", "\\.\\./shared", "helper-"])
def test_no_path_of_a_machine_stands_in_a_file(word: str) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=HERE, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout: there is no list of the project's files")
    for name in listed.stdout.splitlines():
        path = HERE / name
        if path.suffix in (".py", ".md", ".toml", "") and path.is_file() and name != "tests/test_repository.py":
            assert not re.search(word, path.read_text(errors="replace")), name
