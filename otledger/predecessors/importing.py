"""Import: the predecessors' ledgers into partitions of their own, which only imports append to (format, 1).

An import may be repeated, and goes on where an earlier one ended: what is there already is known by its id and
its content. The ids in other partitions than those of imports are not looked at.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otledger.config import Config
from otledger.errors import LockTimeout
from otledger.folder import check_root, make_partition
from otledger.hooks import Progress
from otledger.identity import valid_machine
from otledger.predecessors import evledger, pipeworks
from otledger.predecessors.intake import Event, ImportReport, Intake, Seen
from otledger.predecessors.members import UNRESTORABLE, Members, read_object, require
from otledger.predecessors.sources import evledger_folders, pipeworks_files
from otledger.predecessors.stored import import_partitions, imported
from otledger.segment import open_folder


def import_evledger(
    root: str | Path, source: str | Path, *, progress: Progress | None = None, **settings: Any
) -> ImportReport:
    """Append the evledger ledger in the folder `source` to the ledger at `root`.

    Each machine goes to a partition of its own, `<machine>.import`. `settings` are those of `Config`. What is
    reported as imported is durable. Raises `RootError` and `FormatError` for what cannot be read or is no such
    ledger, `LockTimeout` while another import runs, `JournalError` if something could not be written: then the
    import can be repeated.
    """
    folders = evledger_folders(Path(source))
    config = Config.resolve(root=root, machine=pipeworks.PARTITION, **settings)
    names = partition_names(folders, {})
    with one_at_a_time(config, next(iter(names.values()))):
        names = partition_names(folders, _owners(config.root))
        intake = Intake(config.root, settings, progress, [path for files in folders.values() for path in files])
        intake.know(_seen(config.root, intake, list(names.values())))
        for folder, files in folders.items():
            intake.take(names[folder], files, _Evledger(folder, names[folder]))
        return intake.report()


def import_pipeworks(
    root: str | Path, source: str | Path, *, progress: Progress | None = None, **settings: Any
) -> ImportReport:
    """Append the PipeWorks ledger at `source`, a folder or a file, to the ledger at `root`.

    It goes to the partition `pipeworks.import`, the world as subject; checksums are verified. Everything else
    is as with `import_evledger`.
    """
    files = pipeworks_files(Path(source))
    config = Config.resolve(root=root, machine=pipeworks.PARTITION, **settings)
    with one_at_a_time(config, pipeworks.PARTITION):
        intake = Intake(config.root, settings, progress, files)
        intake.know(_seen(config.root, intake, [pipeworks.PARTITION]))
        intake.take(pipeworks.PARTITION, files, _Pipeworks())
        return intake.report()


@contextlib.contextmanager
def one_at_a_time(config: Config, partition: str) -> Iterator[None]:
    """Let one import at a time append to a ledger: between looking for an id and appending it, none may come."""
    check_root(config.root, force=config.force)
    if not config.root.exists():
        os.close(make_partition(config.root, partition, config.folder_mode))
    fd = open_folder(config.root)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockTimeout(
                f"another import into {config.root} is running; start this one again when that is done",
                path=config.root,
            ) from None
        yield
    finally:
        os.close(fd)


def _seen(root: Path, intake: Intake, partitions: Sequence[str]) -> Seen:
    present = import_partitions(root)
    for partition in partitions:
        if partition in present:
            # What a crash left is settled first: what is found after that stays.
            intake.recover(partition)
    seen = Seen()
    for partition in present:
        for record in imported(root, partition):
            seen.add(record.id, _content(record.to_dict()))
    return seen


def _content(stored: Members) -> Members:
    """Give the event that a record was made of; if nobody can tell any more, what no event is equal to."""
    with contextlib.suppress(*UNRESTORABLE):
        if evledger.is_ours(stored):
            return evledger.restore(stored)
        if pipeworks.is_ours(stored):
            return pipeworks.restore(stored)[0]
    return {}


# The names of partitions


def partition_names(folders: Iterable[str], owners: Mapping[str, str]) -> dict[str, str]:
    """Give each of evledger's machines its partition; `owners` has the machines of the partitions that exist.

    A valid name keeps its text. Where two names become the same, one of them gets a hash.
    """
    taken = {pipeworks.PARTITION: "", **owners}
    names = {}
    for folder in sorted(folders, key=lambda folder: (valid_machine(folder) != folder, folder)):
        base = valid_machine(folder)[:56].rstrip(".")
        if taken.get(base + evledger.SUFFIX, folder) != folder:
            base = f"{base[:49].rstrip('.')}-{hashlib.sha256(folder.encode()).hexdigest()[:6]}"
        names[folder] = base + evledger.SUFFIX
        taken[names[folder]] = folder
    return names


def _owners(root: Path) -> dict[str, str]:
    owners = {}
    for partition in import_partitions(root):
        if partition == pipeworks.PARTITION:
            continue
        for record in imported(root, partition):
            stored = record.to_dict()
            if evledger.is_ours(stored):
                owners[partition] = evledger.folder_of(stored)
                break
    return owners


# How lines are read


@dataclass(frozen=True, slots=True)
class _Evledger:
    folder: str
    partition: str

    def read(self, line: bytes) -> Event:
        members = read_object(line)
        require(members, evledger.REQUIRED)
        return Event(members["id"], members, lambda: evledger.to_draft(members, self.folder, self.partition))

    def swallowed(self, line: bytes) -> int:
        # Without a checksum nothing proves that what follows a torn line is an event.
        return 0


@dataclass(frozen=True, slots=True)
class _Pipeworks:
    def read(self, line: bytes) -> Event:
        members = read_object(line)
        forms = pipeworks.fitting(members)
        del members[pipeworks.CHECKSUM]
        form = "either" if len(forms) > 1 else forms[0]
        return Event(members["event_id"], members, lambda: pipeworks.to_draft(members, forms[0]), form)

    def swallowed(self, line: bytes) -> int:
        return pipeworks.swallowed(line)
