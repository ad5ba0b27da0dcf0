"""`kill -9`, again and again: what was acknowledged is there afterwards, once, in a ledger that verifies."""

import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Say
from tests.faults.tools import Told, closed, everything_told_is_there, partition, payloads, sane, wait_until
from tests.faults.writers import Writers

KILLS = {"short": 250, "long": 5000}
"""How many groups of four processes are killed in all."""
KILLS_A_LEDGER = 36
"""Then its records are looked up, and another ledger begins: so no disk is filled."""

KINDS: list[dict[str, Any]] = [
    {"kind": "journal", "durability": "disk"},
    {"kind": "threads", "durability": "disk"},
    {"kind": "tasks", "durability": "disk"},
    {"kind": "journal", "durability": "os"},
    {"kind": "tasks", "durability": "os", "sync_interval": 0.01},
    {"kind": "threads", "durability": "os", "sync_interval": 0.01},
    {"kind": "journal", "durability": "disk", "max_segment": 3_000_000, "checkpoint_interval": 0.01,
     "options": {"batch": 5}},
]  # fmt: skip


def test_killing_groups_of_writers(tmp_path: Path, campaign: str, say: Say) -> None:
    """Four processes each time, of threads and tasks too, with records of 100 B to 500 KB."""
    kills, looked_up, largest = 0, 0, 0
    with Writers() as writers:
        while kills < KILLS[campaign]:
            turns = min(KILLS_A_LEDGER, KILLS[campaign] - kills)
            kind = KINDS[kills // KILLS_A_LEDGER % len(KINDS)]
            root = tmp_path / f"ledger{kills}"
            told = killed(writers, root, tmp_path / f"acks{kills}", kind, turns, seed=kills)
            _, records = everything_told_is_there(root, told, exact=kind["durability"] == "disk")
            sizes = [len(str(value)) for value in payloads(records)]
            largest = max(largest, *sizes)
            size = sum(path.stat().st_size for path in partition(root).iterdir()) >> 20
            say(f"{kind}: {turns} kills, {len(told)} acknowledged of {len(records)} records, {size} MB")
            kills += turns
            looked_up += len(told)
            shutil.rmtree(root)
    say(f"{kills} kills, {looked_up} acknowledged records looked up", kills=kills, looked_up=looked_up)
    assert kills >= KILLS[campaign]
    assert looked_up >= 10 * kills
    assert largest > 400_000


def killed(writers: Writers, root: Path, acks: Path, kind: dict[str, Any], turns: int, *, seed: int) -> Told:
    """Kill so many groups. Gives what was acknowledged."""
    chance = random.Random(os.urandom(8))
    told = Told()
    for turn in range(turns):
        folder = acks / str(turn)
        group = writers.start(root, folder, processes=4, seed=seed + turn, least=100, most=500_000, **kind)
        wait_until(group.is_writing, "the first acknowledgement", 60)
        time.sleep(chance.uniform(0.0, 0.06))
        group.kill()
        told.note(group.acknowledged())
    return told


@pytest.mark.parametrize("durability", ["disk", "os"])
def test_one_of_several_is_killed(tmp_path: Path, durability: str) -> None:
    """The others go on, without a word."""
    root = tmp_path / "ledger"
    with Writers() as writers:
        others = writers.start(root, tmp_path / "others", processes=2, count=400, durability=durability)
        told = []
        for turn in range(10):
            victim = writers.start(root, tmp_path / f"victim{turn}", processes=1, seed=turn + 1, durability=durability)
            wait_until(victim.is_writing, "the first acknowledgement")
            time.sleep(0.01)
            victim.kill()
            told += victim.acknowledged()
        assert others.wait() == 0
        told += others.acknowledged()
    closed(root)
    records = sane(root)
    ids = {record["id"] for record in records}
    assert {receipt.id for receipt in told} <= ids
    assert len(ids) == len(records)
    assert len(others.acknowledged()) == 800
