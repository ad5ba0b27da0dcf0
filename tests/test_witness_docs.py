"""The commands of docs/witness.md and docs/git.md do what the pages say, run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from otledger.gitrepo import ATTRIBUTES, IGNORED, git, init
from tests.notary import Notary

DOCS = Path(__file__).parent.parent / "docs"


def commands(page: str) -> list[str]:
    """The lines of a page that people type."""
    return re.findall(r"^    ((?:otledger|git) .*)$", (DOCS / page).read_text(), re.MULTILINE)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


class Shell:
    """Runs lines in a folder, where `/mnt` and `/srv` are folders in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        program = folder / "bin" / "otledger"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m otledger "$@"\n')
        program.chmod(0o755)
        config = folder / "gitconfig"
        config.write_text("[user]\nname = t\nemail = t@example.org\n[init]\ndefaultBranch = main\n")
        self.environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "GIT_CONFIG_GLOBAL": str(config),
            "GIT_CONFIG_NOSYSTEM": "1",
        }

    def run(self, line: str) -> str:
        for name in ("/mnt/", "/srv/"):
            line = line.replace(name, f"{self.folder}{name}")
        done = subprocess.run(
            line, shell=True, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"
        return done.stdout


def test_the_commands_of_the_page_on_witnesses(shell: Shell) -> None:
    notary = Notary(shell.folder / "ledger")
    notary.sign()
    (shell.folder / "ledger.pub").write_text(f"{notary.key}\n")
    ran = []
    for line in commands("witness.md"):
        if "tsa+" in line:
            # test_timestamp.py runs it, against an authority.
            continue
        if "git+" in line:
            line += " --key ledger.pub"
        ran.append(line)
        said = shell.run(line)
        if line.startswith("otledger witness /mnt"):
            assert "m1  first" in said
        if "--list" in line:
            assert notary.origin in said
        notary.emit(1)
        notary.sign()
    assert len(ran) == 6
    code = re.search(r"## In a program\n\n(.*?)\n\n`", (DOCS / "witness.md").read_text(), re.DOTALL)
    assert code is not None
    program = re.sub("^    ", "", code[1], flags=re.MULTILINE).replace("/mnt/", f"{shell.folder}/mnt/")
    done = subprocess.run(
        [sys.executable, "-c", program], env=shell.environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(notary.origin)


def test_the_commands_of_the_page_on_git(shell: Shell) -> None:
    ledger = shell.folder / "ledger"
    Notary(ledger)
    lines = commands("git.md")
    assert "lines added" in shell.run(lines[0])
    git(None, "init", "-q", "--bare", "-b", "main", str(shell.folder / "hub.git"))
    git(ledger, "remote", "add", "origin", str(shell.folder / "hub.git"))
    shell.run("git -C ledger commit -q --allow-empty -m begin && git -C ledger push -q origin HEAD:main")
    for line in lines[1:]:
        shell.run(line)
    assert len(lines) == 6
    listed = git(shell.folder / "hub.git", "ls-tree", "-r", "--name-only", "main").decode()
    assert re.search(r"^m1/\d{4}-\d\d\.jsonl$", listed, re.MULTILINE)


def test_the_page_on_git_names_what_is_written(root: Path) -> None:
    page = (DOCS / "git.md").read_text()
    init(root)
    assert ATTRIBUTES[0] in page
    assert (root / ".gitattributes").read_text().count("merge=binary") == 2
    assert all(name.replace("*", "") in page for name in IGNORED)
