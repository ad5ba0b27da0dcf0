"""Journals that break a rule, one each: the crash states that the rule is for must catch them.

A mutant is made here, by replacing one function of the product; there is no switch for it in the product. Each has
the smallest part of the campaign that catches it; the same passes with the product as it is, see test_crash_states.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from otledger import Journal, folder, partition, quarantine, recovering, recovery
from otledger.batch import check_line
from otledger.identity import host_hash
from otledger.lock import PartitionLock
from otledger.recovery import Finding, Inspection, Place
from otledger.segment import file_size, last_line, line_at, open_folder, open_segment, unfinished_name
from tests.faults.crashes import Campaign
from tests.faults.judge import Judge, Lost
from tests.faults.recorder import Link, MakeFolder
from tests.faults.stories import STORIES

Made = Callable[..., Any]
Play = Callable[[Campaign], None]


@dataclass(frozen=True)
class Mutant:
    """The rule that is broken, by what in place of which function, and what catches it."""

    owner: Any
    name: str
    make: Callable[[Made], Made]
    play: Play


def story(name: str, *, second_lives: int = 0) -> Play:
    """Play one of the stories."""

    def play(campaign: Campaign) -> None:
        campaign.run(STORIES[name], second_lives=second_lives)

    return play


def next_life_after(kind: type) -> Play:
    """A process is killed right after such a call, and another goes on until the power is cut."""

    def play(campaign: Campaign) -> None:
        log = campaign.record(STORIES["cuts at disk"])
        for crash in campaign.kills_after(log, kind):
            campaign.go_on(log, crash)

    return play


@contextmanager
def without(owner: Any, name: str) -> Iterator[None]:
    """A function that does nothing meanwhile."""
    with patch.object(owner, name, lambda *_, **__: None):
        yield


# The mutants ------------------------------------------------------------------------------------------------


def acknowledges_before_its_sync(real: Made) -> Made:
    def write(self: Journal, batch: Any, **options: Any) -> Any:
        if self._fd >= 0:
            os.fdatasync(self._fd)
        with without(os, "fdatasync"):
            return real(self, batch, **options)

    return write


def does_nothing(real: Made) -> Made:
    return lambda *_, **__: None


def never_syncs_files(real: Made) -> Made:
    def function(*arguments: Any, **options: Any) -> Any:
        with without(os, "fsync"):
            return real(*arguments, **options)

    return function


def looks_at_the_last_line(real: Made) -> Made:
    def inspect(dir_fd: int, path: Path, chain: Any, state: Any) -> Inspection:
        if not chain.pieces:
            return real(dir_fd, path, chain, state)  # type: ignore[no-any-return]
        name = chain.pieces[-1].name
        fd = open_segment(dir_fd, name)
        try:
            end = size = file_size(fd)
            while (tail := check_line(last_line(fd, end)[1])) is None and end:
                end = last_line(fd, end)[0]
        finally:
            os.close(fd)
        if tail is None:
            return real(dir_fd, path, chain, state)  # type: ignore[no-any-return]
        place = Place(name, end, tail.seq + 1, tail.checksum)
        torn = Finding("residue", name, end, tail.seq + 1, "torn") if end < size else None
        return Inspection(place, torn, place)

    return inspect


def syncs_again(real: Made) -> Made:
    def sync(self: Journal, **options: Any) -> None:
        once = os.fdatasync

        def fdatasync(fd: int) -> None:
            try:
                once(fd)
            except OSError:
                once(fd)

        with patch.object(os, "fdatasync", fdatasync):
            real(self, **options)

    return sync


def believes_it_has_the_lock(real: Made) -> Made:
    return lambda self: True


def knows_where_the_segment_ends(real: Made) -> Made:
    return lambda self, state: True


def writes_once(real: Made) -> Made:
    def write_some(fd: int, data: bytes) -> tuple[int, None]:
        os.write(fd, data)
        return len(data), None

    def put(self: Journal, batch: Any) -> Any:
        # What is there is counted as well, against file systems that do the same.
        with patch.object(partition, "_write_some", write_some), without(Journal, "_check_end"):
            return real(self, batch)

    return put


def syncs_after_unlocking(real: Made) -> Made:
    def write(self: Journal, batch: Any, **options: Any) -> Any:
        config, self.config = self.config, replace(self.config, durability="os")
        try:
            ack = real(self, batch, **options)
        finally:
            self.config = config
        os.fdatasync(self._fd)
        with self._mutex, self._locked(None):
            state = self._state
            state.synced, state.synced_seq, state.synced_head = state.acked, state.seq, state.head
            self._publish("idle")
        return ack

    return write


def takes_every_state_for_idle(real: Made) -> Made:
    def read(self: PartitionLock) -> Any:
        state = real(self)
        if state is not None:
            state.state = "idle"
        return state

    return read


def begins_at_the_checkpoint(real: Made) -> Made:
    def find_anchor(dir_fd: int, path: Path, chain: Any) -> Any:
        for piece in reversed(chain.pieces):
            for offset, tail, size, _ in recovery._checkpoints(dir_fd, path, piece):
                fd = open_segment(dir_fd, piece.name)
                end = offset + len(line_at(fd, offset))
                os.close(fd)
                return Place(piece.name, end, tail.seq + 1, tail.checksum), (size, tail.seq)
        return real(dir_fd, path, chain)

    return find_anchor


def takes_foreign_lines_for_residue(real: Made) -> Made:
    return lambda line: False


def takes_forks_for_residue(real: Made) -> Made:
    def result(self: Any) -> Inspection:
        self.kinds.discard("fork")
        found: Inspection = real(self)
        finding = found.finding
        if finding is not None and finding.kind == "fork":
            finding = replace(finding, kind="residue")
        return replace(found, finding=finding)

    return result


def cuts_without_a_sync(real: Made) -> Made:
    def cut_if_due(self: Journal) -> None:
        with without(Journal, "_sync"), without(Journal, "_final_checkpoint"):
            real(self)

    return cut_if_due


def names_before_it_syncs(real: Made) -> Made:
    def fill_segment(self: Journal, fd: int, name: Any, *arguments: Any, **options: Any) -> None:
        if options.pop("new", False):
            os.rename(unfinished_name(host_hash()), str(name), src_dir_fd=self._dir_fd, dst_dir_fd=self._dir_fd)
        real(self, fd, name, *arguments, **options)

    return fill_segment


def calls_durable_what_is_written(real: Made) -> Made:
    def put(self: Journal, batch: Any) -> Any:
        self._state.synced_seq = self._state.seq
        return real(self, batch)

    return put


def trusts_a_name(real: Made) -> Made:
    def resume(self: Journal, place: Any, synced: Any) -> None:
        with without(recovering, "sync_folder"):
            real(self, place, synced)

    return resume


def trusts_a_folder(real: Made) -> Made:
    def make_partition(root: Path, machine: str, mode: int) -> int:
        if (root / machine).is_dir():
            return open_folder(root / machine)
        made: int = real(root, machine, mode)
        return made

    return make_partition


MUTANTS: dict[str, Mutant] = {
    "acknowledges before its sync": Mutant(Journal, "write", acknowledges_before_its_sync, story("batches at disk")),
    "no sync of the folder of a segment": Mutant(partition, "sync_folder", does_nothing, story("batches at disk")),
    "no sync of the folder of a partition": Mutant(folder, "sync_folder", does_nothing, story("batches at disk")),
    "no sync of a new segment": Mutant(Journal, "_fill_segment", never_syncs_files, story("batches at disk")),
    "a segment has its name before it is durable": Mutant(
        Journal, "_fill_segment", names_before_it_syncs, story("a process dies in the sync of a new segment")
    ),
    "no sync of the quarantine": Mutant(quarantine, "keep", never_syncs_files, story("after a death in a write")),
    "no record of what was set aside": Mutant(
        Journal, "_record_forgotten_quarantine", does_nothing, story("after a death in a write")
    ),
    "recovery looks at the last line only": Mutant(
        recovering, "inspect", looks_at_the_last_line, story("batches at disk")
    ),
    "a failed sync is tried again": Mutant(Journal, "_sync", syncs_again, story("a sync fails")),
    "the lock is not looked at after acquiring": Mutant(
        PartitionLock, "_still_there", believes_it_has_the_lock, story("a lock that is replaced")
    ),
    "the tail is not read again": Mutant(
        Journal, "_unchanged", knows_where_the_segment_ends, story("two writers at disk")
    ),
    "a short write is ignored": Mutant(Journal, "_put", writes_once, story("a full disk")),
    "the sync comes after unlocking": Mutant(
        Journal, "write", syncs_after_unlocking, story("a process dies in a sync that fails")
    ),
    "the state in .lock is ignored": Mutant(
        PartitionLock, "read", takes_every_state_for_idle, story("a process dies in a sync that fails")
    ),
    "recovery begins at the checkpoint": Mutant(
        recovery, "find_anchor", begins_at_the_checkpoint, story("unsynced batches with checkpoints")
    ),
    "foreign lines are cut": Mutant(
        recovery, "is_foreign", takes_foreign_lines_for_residue, story("lines of somebody else")
    ),
    "forked lines are cut": Mutant(recovery._Walk, "result", takes_forks_for_residue, story("lines of somebody else")),
    "a cut without a sync before it": Mutant(Journal, "_cut_if_due", cuts_without_a_sync, story("cuts at os")),
    "what is written is called durable": Mutant(Journal, "_put", calls_durable_what_is_written, story("batches at os")),
    "a dead process's segment is trusted to have its name": Mutant(
        Journal, "_resume", trusts_a_name, next_life_after(Link)
    ),
    "a dead process's folder is trusted to have its name": Mutant(
        partition, "make_partition", trusts_a_folder, next_life_after(MakeFolder)
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(judge: Judge, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = MUTANTS[name]
    made = mutant.make(getattr(mutant.owner, mutant.name))
    calls = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return made(*arguments, **options)

    monkeypatch.setattr(mutant.owner, mutant.name, counted)
    with pytest.raises(Lost) as caught:
        mutant.play(Campaign(judge, draws=3))
    assert calls > 0
    print(f"{name}: caught by state {judge.count}: {caught.value}")
