"""What must hold after a crash: the promises of docs/durability.md, held against a ledger that is recovered."""

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import otledger
from otledger import Draft, Journal, Status
from otledger.errors import LedgerError
from otledger.identity import boot_id
from tests.checker import check
from tests.faults.disk import State
from tests.faults.recorder import Aside, Entry, Foreign, Handed, Synced, Told
from tests.faults.tools import GOOD, Json, events, journal, of_type, partition

OTHER_BOOT = "0" * 36
LEDGER = "ledger"
DRAFT = ".new."
"""How the name of what is to become a segment begins."""
_EVENT = re.compile(rb'\{"specversion":"1\.0","id":"([^"]*)".*"type":"app\.event".*\}')
LAST = 10**6
"""The number of the event that is appended after each recovery."""

Place = tuple[int, str]
"""A record's `seq` and checksum."""


class Lost(AssertionError):
    """A promise was broken."""


def need(ok: object, *reason: object) -> None:
    if not ok:
        raise Lost(" ".join(map(str, reason)))


@dataclass(frozen=True)
class Expected:
    """What may be there, and what has to be."""

    handed: Mapping[str, Any] = field(default_factory=dict)
    """The payloads of all events that were handed in, by their ids."""
    told: Mapping[str, Place | None] = field(default_factory=dict)
    """What survives the process. The place is None while it is provisional."""
    durable: Mapping[str, Place | None] = field(default_factory=dict)
    """What survives a power cut."""
    aside: Mapping[str, bytes] = field(default_factory=dict)
    foreign: tuple[bytes, ...] = ()
    """Lines that somebody else may have written to a segment."""

    def after(self, entry: Entry) -> "Expected":
        """What is expected after an entry of the log; itself where it tells nothing."""
        match entry:
            case Handed(events):
                return replace(self, handed={**self.handed, **events})
            case Told(receipts, durable) if receipts:
                new = {one.id: (one.seq, one.checksum) if durable else None for one in receipts}
                return replace(self, told={**self.told, **new}, durable={**self.durable, **(new if durable else {})})
            case Synced():
                return replace(self, durable={**self.told, **self.durable})
            case Aside(name, data):
                return replace(self, aside={**self.aside, name: data})
            case Foreign(line):
                return replace(self, foreign=(*self.foreign, line))
            case _:
                return self


class Judge:
    """Recovers crashed ledgers, each in a folder of its own."""

    def __init__(self, folder: Path, chance: Random) -> None:
        self.folder = folder
        self.chance = chance
        self.count = 0
        self._config = journal(folder).config

    def judge(self, state: State, *, may: Expected, must: Expected, power: bool, before: State, copied: bool) -> None:
        """Recover what a crash left, go on with it, and raise `Lost` at the first promise that is broken.

        `may` says what was handed in, and `must` what has to be there. `before` is what was durable when the story
        began: what an earlier crash left, perhaps, in whose recovery this one was. `copied`: see `account`.
        """
        self.count += 1
        top = self.folder / str(self.count)
        top.mkdir()
        try:
            found = self._recover(top, in_other_boot(state) if power else state, may, before, copied)
        except LedgerError as error:
            raise Lost(f"recovery fails: {error}") from error
        finally:
            shutil.rmtree(top)
        for id, place in (must.durable if power else must.told).items():
            need(id in found, f"the acknowledged record {id} is lost")
            need(place is None or found[id] == place, f"the acknowledged record {id} is {found[id]}, not {place}")
        for name, data in must.aside.items():
            need(quarantined(state).get(name) == data, f"quarantine/{name} was durable and is not there")

    def _recover(self, top: Path, state: State, may: Expected, before: State, copied: bool) -> dict[str, Place]:
        root = top / LEDGER
        state.write(top)
        odd = foreign_lines(state, may.foreign)
        self._opened(root, odd).after_fork()  # only lets go of its files
        recovered = State.read(top)
        account(state, recovered, copied=copied)
        account(before, recovered, copied=copied)
        need(foreign_lines(recovered, may.foreign) == odd, "a line of somebody else was moved")
        if self.chance.randrange(2):
            lock = root / self._config.machine / ".lock"
            lock.write_bytes(_other_boot(lock.read_bytes()))
        target = self._opened(root, odd)
        again = State.read(top)
        need(_but_lock(again) == _but_lock(recovered), "a second recovery changes something")
        target.append([Draft("app.event", LAST, id="last")])
        target.close()
        records = self._records(root, odd)
        _are_recorded(quarantined(again), records)
        return self._events(records, may.handed)

    def _opened(self, root: Path, odd: object) -> Journal:
        target = Journal(config=replace(self._config, root=root))
        try:
            target.open()
        except BaseException:
            target.after_fork()
            raise
        kinds = {finding.kind for finding in target.findings}
        need(odd or kinds <= {"residue"}, "a crash is taken for", *target.findings)
        return target

    def _records(self, root: Path, odd: object) -> list[Json]:
        try:
            records = check(partition(root))
        except AssertionError as error:
            raise Lost(f"the checker: {error}") from error
        report = otledger.verify(root, processes=1, deep=self.count % 8 == 0)
        good = report.status >= Status.FORK if odd else report.status in GOOD
        need(good, f"verify says {report.status}:", *report.faults)
        need(report.records == len(records), f"verify counts {report.records} records, and {len(records)} are there")
        return records

    def _events(self, records: list[Json], handed: Mapping[str, Any]) -> dict[str, Place]:
        *mine, last = events(records)
        need(last["id"] == "last", "the last event is not the last")
        for record in mine:
            need(record["id"] in handed, f"nobody handed in {record['id']}")
            need(record["data"] == handed[record["id"]], f"{record['id']} has another payload")
        numbers = [record["data"]["n"] for record in mine]
        need(numbers == sorted(set(numbers)), "not in their order, or twice:", numbers)
        return {record["id"]: (record["seq"], record["checksum"]) for record in mine}


def _are_recorded(there: dict[str, bytes], records: list[Json]) -> None:
    """What recovery set aside for good has a record that says so."""
    told = {record["data"]["quarantine"] for record in of_type(records, "otledger.recovery")}
    for name, data in there.items():
        need(".jsonl." not in name or name in told or not _is_whole(name, data), f"no record of quarantine/{name}")


def _is_whole(name: str, data: bytes) -> bool:
    return name.endswith(sha256(data).hexdigest()[:16])


def _other_boot(content: bytes) -> bytes:
    return content.replace(boot_id().encode(), OTHER_BOOT.encode())


def in_other_boot(state: State) -> State:
    """The state as the next boot finds it."""
    files = {path: _other_boot(data) if path.endswith("/.lock") else data for path, data in state.files.items()}
    return State(files, state.folders)


def _but_lock(state: State) -> dict[str, bytes]:
    return {path: content for path, content in state.files.items() if not path.endswith("/.lock")}


def quarantined(state: State) -> dict[str, bytes]:
    """What is in quarantine, by the files' names."""
    return {os.path.basename(path): content for path, content in state.files.items() if "/quarantine/" in path}


def foreign_lines(state: State, lines: tuple[bytes, ...]) -> list[tuple[str, int, bytes]]:
    """Where whole lines of somebody else stand."""
    segments = [(path, content) for path, content in state.files.items() if path.endswith(".jsonl")]
    found = [(path, content.find(line), line) for path, content in segments for line in lines]
    return sorted(one for one in found if one[1] >= 0)


def _ids(content: bytes) -> set[bytes]:
    """The ids of the events in whole lines."""
    return {match[1] for line in content.split(b"\n")[:-1] if (match := _EVENT.match(line))}


def account(crashed: State, recovered: State, *, copied: bool) -> None:
    """Each byte that a crash left is where it was, or in quarantine.

    Of what was to become a segment and had no name yet nothing else is asked than that its events stand in segments
    as well, if `copied`: while there was no power cut, which may take what those hold and nobody was told is durable.
    """
    aside = quarantined(recovered)
    for path, content in _but_lock(crashed).items():
        name = os.path.basename(path)
        if name.startswith(DRAFT):
            there = set().union(*(_ids(data) for path, data in recovered.files.items() if path.endswith(".jsonl")))
            need(not copied or _ids(content) <= there, f"{path} had events that are in no segment now")
            continue
        if "/quarantine/" in path:
            need(aside.get(name) == content or not _is_whole(name, content), f"{path} was changed")
            continue
        now = recovered.files.get(path, b"")
        if now.startswith(content):
            continue
        cuts = [(int(other.split(".")[-2]), data) for other, data in aside.items() if other.startswith(f"{name}.")]
        kept = any(content == content[:at] + data and now.startswith(content[:at]) for at, data in cuts)
        need(kept, f"{path}: of {len(content)} bytes some are neither there nor in quarantine: {sorted(aside)}")
