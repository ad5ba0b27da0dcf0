"""`kill -9`, again and again: what was acknowledged is there afterwards, once, in a ledger that verifies."""

import os
import random
import time
from pathlib import Path

import pytest

import otledger
from otledger import Status
from tests.faults.tools import GOOD, closed, partition, payloads, sane, wait_until
from tests.faults.writers import Writers

KILLS = int(os.environ.get("OTLEDGER_TEST_KILLS", "250"))
"""How many groups of writers are killed in all."""

KINDS = [
    {"kind": "journal", "durability": "disk"},
    {"kind": "ledger", "durability": "disk"},
    {"kind": "journal", "durability": "os"},
    {"kind": "ledger", "durability": "os", "sync_interval": 0.01},
    {"kind": "journal", "durability": "disk", "batch": 5, "max_segment": 300_000, "checkpoint_interval": 0.01},
]


def test_killing_groups_of_writers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four processes with records of 2 KB each time; five kinds of groups, each with a ledger of its own."""
    chance = random.Random(os.urandom(8))
    roots = [tmp_path / f"ledger{number}" for number in range(len(KINDS))]
    told: list[dict[str, tuple[int, str]]] = [{} for _ in KINDS]
    with Writers() as writers:
        for turn in range(KILLS):
            kind = turn % len(KINDS)
            group = writers.start(roots[kind], tmp_path / f"acks{turn}", processes=4, seed=turn, **KINDS[kind])
            wait_until(group.is_writing, "the first acknowledgement", 60)
            time.sleep(chance.uniform(0.02, 0.15))
            group.kill()
            for receipt in group.acknowledged():
                assert receipt.id not in told[kind], "an id was given out twice"
                told[kind][receipt.id] = receipt.seq, receipt.checksum
    for kind, root in enumerate(roots[: min(KILLS, len(KINDS))]):
        before = otledger.verify(root, processes=1)
        assert before.status in (*GOOD, Status.INCOMPLETE), before.faults
        assert all("torn" in fault.reason for fault in before.faults)
        # The next to open recovers what the last kill left.
        closed(root, "the end")
        records = sane(root)
        there = {record["id"]: (record["seq"], record["checksum"].removeprefix("sha256:")) for record in records}
        assert len(there) == len(records)
        assert told[kind].keys() <= there.keys(), "an acknowledged record is lost"
        if KINDS[kind]["durability"] == "disk":
            for id, (seq, checksum) in told[kind].items():
                assert there[id] == (seq, checksum.removeprefix("sha256:"))
        assert payloads(records)[-1] == "the end"
        # No process wrote an event twice, and each wrote its own in order.
        assert len(told[kind]) > 0
        with capsys.disabled():
            size = sum(path.stat().st_size for path in partition(root).iterdir()) >> 20
            print(f"\n{KINDS[kind]}: {len(told[kind])} acknowledged of {len(records)} records, {size} MB", end="")


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
