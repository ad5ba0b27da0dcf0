"""The commands and the program of docs/proofs.md run as they stand there, on a ledger with a key."""

import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from otledger import clock
from tests.faults.tools import MACHINE, REPOSITORY, segment_names
from tests.test_proofs import Signed

PAGE = (REPOSITORY / "docs" / "proofs.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[str]:
    return [text for its, text in BLOCKS if its == language]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with a ledger of an old month and the present, an old note of it, and its public key."""
    ledger = Signed(tmp_path / "ledger")
    with patch.object(clock, "believed_month", lambda *_: "2025-12"), ledger.journal() as journal:
        ledger.events(journal, 10)
        (tmp_path / "last-week.note").write_text(ledger.sign(journal))
    with ledger.journal() as journal:
        ledger.events(journal, 10)
        ledger.sign(journal)
    assert ledger.key is not None
    (tmp_path / "shop.pub").write_text(f"{ledger.key.verifier}\n")
    return tmp_path


def run(folder: Path, *command: str, fails: str = "") -> str:
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONUTF8": "1",
    }
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (not fails), done
    assert fails in done.stderr
    return done.stdout


def test_the_commands_and_the_program_of_the_page_run(shop: Path) -> None:
    record, growth, archive = blocks("sh")
    (program,) = blocks("python")
    shown = run(shop, "sh", "-ec", record)
    assert shown.startswith("it holds: record 5 of otledger/")
    assert "only grew" in run(shop, "sh", "-ec", growth)
    (shop / "check.py").write_text(program)
    assert run(shop, sys.executable, "check.py").startswith('it holds: {"specversion":"1.0"')
    proof = (shop / "order.proof").read_text()
    for old, new, place in (
        ('\\"n\\":4', '\\"n\\":9', "assert checksum =="),
        ('"index": 5', '"index": 4', '["seq"] =='),
        ('"size": 24', '"size": 23', "assert text.split"),
    ):
        assert old in proof
        (shop / "order.proof").write_text(proof.replace(old, new))
        run(shop, sys.executable, "check.py", fails=place)
    assert "2025-12.jsonl" in run(shop, "sh", "-ec", archive)
    assert os.listdir(shop / "cold" / MACHINE) == ["2025-12.jsonl"]
    assert "2025-12.jsonl" not in segment_names(shop / "ledger")
