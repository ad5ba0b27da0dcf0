"""What an insider may do to a ledger who has the disk: the attacks of docs/tamper-evidence.md, on real signed ledgers.

A `World` is a ledger with its keys and two witnesses elsewhere. Whoever attacks it can write all of `root`, recompute
checksums, the chain, heads and trees, and forgets no `.lock`; only some have the keys as well.
"""

import base64
import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otledger import Draft
from otledger.keys import Signer
from otledger.merkle import leaf_hash
from otledger.notes import Commitment, SignerKey, VerifierKey, origin_of
from otledger.witness import open_place
from otledger.witnessing import witness
from tests.faults.tools import ZEROS, journal, record_of, restamp
from tests.signed import tree_of

Lines = dict[str, list[bytes]]
"""The lines of each segment, by its name."""
CHECKPOINT = "otledger.checkpoint"


@dataclass
class World:
    """A ledger, its keys, and what an auditor has elsewhere."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "ledger"

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    @property
    def elsewhere(self) -> Path:
        return self.folder / "elsewhere"

    @property
    def older(self) -> "World":
        """The same some time before."""
        return World(self.folder / "older")

    def pins(self) -> list[str]:
        """The first public key of each chain, as an auditor wrote them down."""
        return (self.folder / "pins").read_text().splitlines()

    def copy(self, to: Path) -> "World":
        shutil.copytree(self.folder, to, symlinks=True)
        return World(to)

    def lines(self, machine: str = "m1") -> Lines:
        paths = sorted((self.root / machine).glob("*.jsonl"), key=_number)
        return {path.name: path.read_bytes().splitlines(keepends=True) for path in paths}

    def write(self, lines: Lines, machine: str = "m1") -> None:
        for path in (self.root / machine).glob("*.jsonl"):
            path.unlink()
        for name, content in lines.items():
            (self.root / machine / name).write_bytes(b"".join(content))
        self.forget(machine)

    def forget(self, machine: str = "m1") -> None:
        """Remove what the writers know of this boot."""
        (self.root / machine / ".lock").unlink(missing_ok=True)

    def go_on(self, machine: str = "m1") -> None:
        """Let the service run: an event, and a checkpoint as its notary makes it."""
        with journal(self.root, machine=machine, keys=self.keys) as target:
            target.append([Draft("app.event", "later")])
            target.checkpoint()

    def witness(self, name: str = "elsewhere") -> None:
        keys = [VerifierKey.parse(pin) for pin in self.pins()]
        outcomes = witness(self.root, open_place(self.folder / name), keys=keys)
        assert [one.verdict for one in outcomes if one.verdict in ("refused", "untrusted")] == []

    def ledger(self, machine: str = "m1") -> str:
        first = next(iter(self.lines(machine).values()))[0]
        return str(record_of(first)["data"]["ledger"])


def make(folder: Path) -> World:
    """Two machines, three segments each, a signed checkpoint every few records; all under the last one."""
    world = World(folder)
    pins = []
    for turn in range(2):
        for machine in ("m1", "m2"):
            with journal(world.root, machine=machine, keys=world.keys, max_segment=9000) as target:
                signer = Signer(world.keys, target.ledger_id())
                if not signer.exists:
                    signer.create(time.time_ns())
                    pins.append(str(signer.key().verifier))
                for number in range(6):
                    target.append([Draft("app.event", f"{turn}/{number}/{one}") for one in range(4)])
                    target.checkpoint()
        if turn == 0:
            folder.mkdir(exist_ok=True)
            (folder / "pins").write_text("\n".join(pins))
        for place in ("elsewhere", "elsewhere2"):
            world.witness(place)
        if turn == 0:
            world.copy(folder.with_name("older"))
    folder.with_name("older").rename(folder / "older")
    assert len(world.lines()) >= 3
    return world


# What an attacker computes ----------------------------------------------------------------------------------


def forged(lines: Lines, sign: Callable[[Commitment], str] | None = None) -> Lines:
    """The segments with caps, numbers, chain, heads and trees that fit what the lines say now.

    Notes stay as they are, unless `sign` makes new ones: only for that a key is needed.
    """
    made: Lines = {}
    seq, prev, leaves, sums = 0, ZEROS, list[bytes](), list[str]()
    before = ""
    for name, content in lines.items():
        made[name] = []
        for line in content:
            record = record_of(line)
            data = record.get("data")
            if record["type"] == "otledger.segment" and before:
                size = sum(map(len, made[before]))
                line = _with_data(line, data, {**data, "previous": {"segment": before, "size": size}})
            elif record["type"] == CHECKPOINT:
                size = min(data["size"], seq)
                new = {**data, "size": size, "head": sums[size - 1], **tree_of(leaves, size)}
                if sign is not None and "note" in data:
                    new["note"] = sign(Commitment("", size, base64.b64decode(new["root"])))
                line = _with_data(line, data, new)
            if (synced := re.search(rb',"synced":(\d+),"seq":', line)) is not None and int(synced[1]) > seq:
                line = line.replace(synced[0], b',"synced":%d,"seq":' % seq)
            line = restamp(line, seq=seq, prev=prev)
            seq, prev = seq + 1, line[-67:-3].decode()
            leaves.append(leaf_hash(prev.encode()))
            sums.append(prev)
            made[name].append(line)
        before = name
    return made


def signing(key: SignerKey) -> Callable[[Commitment], str]:
    """Sign as the origin that the key is named for."""
    return lambda said: key.sign(Commitment(key.name, said.size, said.root).text())


def edit(lines: Lines) -> tuple[str, int]:
    """Change an event in the middle of the first segment. Gives where it is."""
    name = next(iter(lines))
    at = next(at for at, line in enumerate(lines[name]) if b'"data":"0/2/1"' in line)
    lines[name][at] = restamp(lines[name][at].replace(b'"data":"0/2/1"', b'"data":"9/9/9"'))
    return name, at


def without(lines: Lines, kind: str, *, behind: int = 0) -> Lines:
    """The lines without those of a type in the first segment behind its first lines, and in all that follow."""
    first = next(iter(lines))
    return {
        name: [
            line
            for at, line in enumerate(content)
            if (name == first and at < behind) or record_of(line)["type"] != kind
        ]
        for name, content in lines.items()
    }


def offset(lines: Lines, name: str, at: int) -> int:
    return sum(map(len, lines[name][:at]))


def first_note(lines: Lines, behind: int = 0) -> tuple[str, int]:
    """File and offset of the first checkpoint behind the first lines of the first segment."""
    name, content = next(iter(lines.items()))
    at = next(at for at, line in enumerate(content) if at > behind and record_of(line)["type"] == CHECKPOINT)
    return name, offset(lines, name, at)


def _with_data(line: bytes, old: Any, new: Any) -> bytes:
    before = json.dumps(old, separators=(",", ":"), ensure_ascii=False).encode()
    assert line.count(before) == 1, line
    return line.replace(before, json.dumps(new, separators=(",", ":"), ensure_ascii=False).encode())


def _number(path: Path) -> tuple[str, int]:
    parts = path.name.split(".")
    return parts[0], int(parts[1]) if len(parts) == 3 else 0


# The attacks ------------------------------------------------------------------------------------------------

Place = tuple[str, int]
Attack = Callable[[World], dict[str, Place]]
"""Does it, and gives the first bad place (file, offset) that each level should name."""
ALL = ("chain", "signed", "running", "witnessed")


def edit_a_record(world: World) -> dict[str, Place]:
    """Edit a record and recompute its checksum: the chain breaks at the next one."""
    lines = world.lines()
    name, at = edit(lines)
    world.write(lines)
    return dict.fromkeys(ALL, (name, offset(lines, name, at + 1)))


def delete_a_record(world: World) -> dict[str, Place]:
    lines = world.lines()
    name, at = edit(lines)
    del lines[name][at]
    world.write(lines)
    return dict.fromkeys(ALL, (name, offset(lines, name, at)))


def insert_a_record(world: World) -> dict[str, Place]:
    """One of the insider's own, at the place of another, which follows it."""
    lines = world.lines()
    name, at = edit(world.lines())
    lines[name].insert(at, restamp(lines[name][at].replace(b'"data":"0/2/1"', b'"data":"new"')))
    world.write(lines)
    return dict.fromkeys(ALL, (name, offset(lines, name, at + 1)))


def reorder_records(world: World) -> dict[str, Place]:
    lines = world.lines()
    name, at = edit(world.lines())
    lines[name][at : at + 2] = lines[name][at + 1], lines[name][at]
    world.write(lines)
    return dict.fromkeys(ALL, (name, offset(lines, name, at)))


def swap_segments(world: World) -> dict[str, Place]:
    lines = world.lines()
    first, second, *rest = lines
    world.write({first: lines[second], second: lines[first], **{name: lines[name] for name in rest}})
    return {}


def cap_records_away(world: World) -> dict[str, Place]:
    """A successor that names an end before the last records, which stay where they are."""
    lines = world.lines()
    *_, name = lines
    keep = len(lines[name]) - 8
    header = record_of(lines[name][0])
    first, second = name.split(".")[0], int(name.split(".")[1]) + 1 if name.count(".") == 2 else 1
    data = {**header["data"], "previous": {"segment": name, "size": offset(lines, name, keep)}, "reason": "size"}
    line = _with_data(lines[name][0], header["data"], data)
    last = record_of(lines[name][keep - 1])
    line = restamp(line, seq=last["seq"] + 1, prev=lines[name][keep - 1][-67:-3].decode())
    (world.root / "m1" / f"{first}.{second}.jsonl").write_bytes(line)
    world.forget()
    return dict.fromkeys(ALL, (name, offset(lines, name, keep)))


def cut_the_unsealed_tail(world: World) -> dict[str, Place]:
    """What came after the last checkpoint, and nothing else."""
    lines = world.lines()
    *_, name = lines
    size = offset(lines, name, len(lines[name]))
    with journal(world.root, machine="m1", keys=world.keys) as target:
        target.append([Draft("app.event", "unsealed")])
        left = world.copy(world.folder.with_name("unsealed"))
    with (left.root / "m1" / name).open("r+b") as file:
        file.truncate(size)
    left.forget()
    shutil.rmtree(world.folder)
    left.folder.rename(world.folder)
    return {}


def cut_the_tail_with_its_checkpoints(world: World) -> dict[str, Place]:
    lines = world.lines()
    *_, name = lines
    points = [at for at, line in enumerate(lines[name]) if record_of(line)["type"] == CHECKPOINT]
    lines[name] = lines[name][: points[-3] + 1]
    world.write(lines)
    return {}


def rewrite_without_the_key(world: World) -> dict[str, Place]:
    """All that follows an edited record computed anew, the notes left as they are."""
    lines = world.lines()
    _, at = edit(lines)
    lines = forged(lines)
    world.write(lines)
    return dict.fromkeys(ALL[1:], first_note(lines, at))


def rewrite_and_delete_all_checkpoints(world: World) -> dict[str, Place]:
    lines = world.lines()
    edit(lines)
    world.write(forged(without(without(lines, CHECKPOINT), "otledger.key")))
    return {}


def rewrite_and_delete_later_checkpoints(world: World) -> dict[str, Place]:
    """Those before the edited record stay, and hold."""
    lines = world.lines()
    _, at = edit(lines)
    world.write(forged(without(lines, CHECKPOINT, behind=at)))
    return {}


def rewrite_and_sign_with_another_key(world: World) -> dict[str, Place]:
    lines = world.lines()
    edit(lines)
    lines = forged(lines, signing(SignerKey.new(origin_of(world.ledger()))))
    world.write(lines)
    return dict.fromkeys(ALL[1:], first_note(lines))


def rewrite_and_sign_with_the_key(world: World) -> dict[str, Place]:
    """Root itself: it has the key, and changes what the signer remembers."""
    lines = world.lines()
    edit(lines)
    signer = Signer(world.keys, world.ledger())
    lines = forged(lines, signing(signer.key()))
    world.write(lines)
    *_, last = [record_of(line) for content in lines.values() for line in content if CHECKPOINT.encode() in line]
    known = json.loads((signer.folder / "signed").read_text())
    known |= {name: last["data"][name] for name in ("size", "root", "edge", "path", "head", "note")}
    (signer.folder / "signed").write_text(json.dumps(known))
    return {}


def put_back_an_older_copy(world: World) -> dict[str, Place]:
    """The partition as it was, then the service goes on."""
    shutil.rmtree(world.root / "m1")
    shutil.copytree(world.older.root / "m1", world.root / "m1")
    world.forget()
    world.go_on()
    lines = world.lines()
    place = next(
        (name, offset(lines, name, at))
        for name, content in lines.items()
        for at, line in enumerate(content)
        if b'"refused":' in line
    )
    return dict.fromkeys(ALL, place)


def remove_a_partition(world: World) -> dict[str, Place]:
    shutil.rmtree(world.root / "m2")
    return {}


def roll_back_ledger_and_witness(world: World) -> dict[str, Place]:
    """Ledger, keys and witness as they were: nobody who is left knows better."""
    for name in ("ledger", "keys", "elsewhere"):
        shutil.rmtree(world.folder / name)
        shutil.copytree(world.older.folder / name, world.folder / name)
    world.forget()
    return {}


ATTACKS: dict[str, Attack] = {
    "edit a record and its checksum": edit_a_record,
    "delete a record": delete_a_record,
    "insert a record": insert_a_record,
    "reorder records": reorder_records,
    "swap segments": swap_segments,
    "cap sealed records away by a new segment": cap_records_away,
    "cut what came after the last checkpoint": cut_the_unsealed_tail,
    "cut the tail with its checkpoints": cut_the_tail_with_its_checkpoints,
    "rewrite everything without the key": rewrite_without_the_key,
    "the same, and delete later checkpoints": rewrite_and_delete_later_checkpoints,
    "the same, and delete all checkpoints": rewrite_and_delete_all_checkpoints,
    "the same, and sign with another key": rewrite_and_sign_with_another_key,
    "put back an older copy, let the service go on": put_back_an_older_copy,
    "remove a partition": remove_a_partition,
    "rewrite everything with the key": rewrite_and_sign_with_the_key,
    "roll back ledger, keys and witness": roll_back_ledger_and_witness,
}
