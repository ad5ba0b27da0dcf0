"""Each attack of docs/tamper-evidence.md at each level: its table is what was seen."""

import re
from pathlib import Path

import pytest

import otledger
from otledger.batch import check_line
from tests import attacked_auditchain, attacks
from tests.attacks import ATTACKS, World

LEVELS = ("checksums", "chain", "signed", "running", "witnessed", "two")
GOOD = ("OK", "UNSEALED_TAIL", "RECOVERED")
TABLE = Path(__file__).parents[1] / "docs" / "tamper-evidence.md"

# The promises of the design: at which levels an attack is seen at the latest.
PROMISED = {
    "nothing: the ledger only grew": (),
    "cut what came after the last checkpoint": (),
    "cut the tail with its checkpoints": ("running", "witnessed", "two"),
    "rewrite everything without the key": ("signed", "running", "witnessed", "two"),
    "the same, and delete later checkpoints": ("running", "witnessed", "two"),
    "the same, and delete all checkpoints": ("running", "witnessed", "two"),
    "the same, and sign with another key": ("signed", "running", "witnessed", "two"),
    "put back an older copy, let the service go on": ("signed", "running", "witnessed", "two"),
    "remove a partition": ("witnessed", "two"),
    "rewrite everything with the key": ("witnessed", "two"),
    "roll back ledger, keys and witness": ("two",),
}
EARLY = ("chain", "signed", "running", "witnessed", "two")


def documented() -> dict[str, list[str]]:
    """The rows of the table in the document: attack, and a cell for each level."""
    rows = re.findall(r"^\| ([^|]+?) \| (.+) \|$", TABLE.read_text(), re.MULTILINE)
    return {name: [cell.strip(" *") for cell in rest.split("|")] for name, rest in rows}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return attacks.make(tmp_path_factory.mktemp("attacks") / "world")


@pytest.fixture
def attacked(world: World, tmp_path: Path) -> World:
    return world.copy(tmp_path / "world")


def look(world: World, level: str) -> tuple[str, tuple[str, int] | None]:
    """What an auditor who has so much finds: the status, and the first bad place."""
    if level == "checksums":
        good = all(
            check_line(line) is not None
            for folder in world.root.iterdir()
            for content in world.lines(folder.name).values()
            for line in content
        )
        return "OK" if good else "TAMPERED", None
    keys = [] if level == "chain" else world.pins()
    places = {"witnessed": ["elsewhere"], "two": ["elsewhere", "elsewhere2"]}.get(level, [])
    if level == "running":
        world.go_on()
    report = otledger.verify(
        world.root,
        keys=keys,
        witness=[str(world.folder / place) for place in places],
        heartbeat=3600 if level == "running" else None,
    )
    first = min((fault for fault in report.faults if fault.file), key=lambda fault: fault.place, default=None)
    return str(report.status), None if first is None else (first.file, first.offset)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["nothing: the ledger only grew", *ATTACKS])
def test_an_attack_is_seen_where_it_is_promised(attacked: World, name: str, level: str) -> None:
    if name in ATTACKS:
        places = ATTACKS[name](attacked)
    else:
        attacked.go_on()
        places = {}
    status, first = look(attacked, level)
    assert documented()[name][LEVELS.index(level)] == status
    if level in PROMISED.get(name, EARLY):
        assert status not in GOOD
    if name.startswith("nothing"):
        assert status in GOOD
    if status not in GOOD and level in places:
        assert first == places[level]


def test_a_removed_partition_is_missed_by_whoever_expects_it(attacked: World) -> None:
    ATTACKS["remove a partition"](attacked)
    assert otledger.verify(attacked.root, expect=["m1", "m2"]).status == otledger.Status.INCOMPLETE


def test_a_silent_service_is_missed_by_its_heartbeat(attacked: World) -> None:
    ATTACKS["cut the tail with its checkpoints"](attacked)
    report = otledger.verify(attacked.root, keys=attacked.pins(), heartbeat=1e-6)
    assert report.status == otledger.Status.INCOMPLETE
    assert "heartbeat" in report.faults[0].reason or "last seal" in report.faults[0].reason


@pytest.fixture(scope="session")
def peer(tmp_path_factory: pytest.TempPathFactory) -> attacked_auditchain.Peer:
    return attacked_auditchain.Peer(tmp_path_factory.mktemp("auditchain") / "log").make()


@pytest.mark.parametrize("name", ["nothing: the ledger only grew", *ATTACKS])
def test_auditchain_beside_it(peer: attacked_auditchain.Peer, tmp_path: Path, name: str) -> None:
    cells = documented()[name][len(LEVELS) :]
    if name not in attacked_auditchain.ATTACKS:
        assert cells == ["–"] * 3
        return
    other = peer.copy(tmp_path / "log")
    assert all(other.is_good(level) for level in attacked_auditchain.LEVELS)
    attacked_auditchain.ATTACKS[name](other)
    assert cells == ["unseen" if other.is_good(level) else "FAILED" for level in attacked_auditchain.LEVELS]
