"""Erasing what a ledger says about a subject: its keys are destroyed, and a record says so."""

from __future__ import annotations

from dataclasses import dataclass

from otledger.config import Config
from otledger.errors import LedgerError, RootError
from otledger.journal import Journal
from otledger.keyring import KeyFile
from otledger.lookups import SHREDDED_TYPE
from otledger.reader import Reader
from otledger.record import Draft
from otledger.segment import list_machines
from otledger.subjectkeys import SubjectKeys

Member = str | int | bool | None | list[str]


@dataclass(frozen=True, slots=True)
class Shredding:
    """What a shredding destroys, or has destroyed."""

    subject: str
    machine: str
    kids: tuple[str, ...]
    elsewhere: tuple[KeyFile, ...]
    """Keys of that subject for other machines or roots in the same folder, which are left."""
    seq: int | None = None
    """The record's number; None where it was there already, or nothing is done yet."""

    def to_dict(self) -> dict[str, Member | list[dict[str, str]]]:
        """Give it as plain JSON values."""
        others = [{"kid": key.kid, "machine": key.machine, "root": key.root} for key in self.elsewhere]
        return {
            "subject": self.subject,
            "machine": self.machine,
            "kids": list(self.kids),
            "seq": self.seq,
            "elsewhere": others,
        }


def keys_of(config: Config) -> SubjectKeys:
    """Give the keys of a ledger's machine. Raises `ConfigurationError` for a folder within the root."""
    return SubjectKeys(config.keys, config.machine, config.root, lock_timeout=config.lock_timeout)


def plan_shredding(config: Config, subject: str) -> Shredding:
    """Give what `shred` would destroy; changes nothing."""
    keys = keys_of(config)
    kids = [key.kid for key in (*keys.of(subject), *keys.dying(subject))]
    return Shredding(subject, config.machine, tuple(kids), _elsewhere(keys, subject))


def _elsewhere(keys: SubjectKeys, subject: str) -> tuple[KeyFile, ...]:
    own = {key.kid for key in keys.of(subject)}
    return tuple(key for key in keys.all() if key.subject == subject and key.kid not in own)


def shred(config: Config, subject: str, reason: str | None = None) -> Shredding:
    """Destroy all keys of a subject for the machine and root of `config`, and record that; durable on return.

    The keys go first: whatever happens then, the data is erased, and to run it again writes the record that is
    missing. Raises `RootError` where there is no such ledger, `LedgerError` where a step failed, which says how far
    it came.
    """
    machines = list_machines(config.root)
    if config.machine not in machines:
        there = ", ".join(machines) or "none"
        raise RootError(
            f"{config.root} has no machine {config.machine!r} whose record could say so; there are: {there}",
            path=config.root,
        )
    keys = keys_of(config)
    # A crash may have come between the record and the end of the files.
    told = _told(config) if keys.dying(subject) else frozenset()
    destroyed = keys.destroy(subject)
    kids = [key.kid for key in destroyed]
    if not kids:
        return Shredding(subject, config.machine, (), _elsewhere(keys, subject))
    try:
        seq = _record(config, [kid for kid in kids if kid not in told], subject, reason)
    except (LedgerError, OSError) as error:
        raise LedgerError(
            f"the keys of {subject!r} are destroyed, but the record that says so could not be written: {error};"
            " run it again to have it written",
            path=config.root,
        ) from error
    keys.forget(destroyed)
    return Shredding(subject, config.machine, tuple(kids), _elsewhere(keys, subject), seq)


def _told(config: Config) -> frozenset[str]:
    return Reader(config.root).shredded(machines=[config.machine], on_fault=lambda _: None)


def _record(config: Config, kids: list[str], subject: str, reason: str | None) -> int | None:
    if not kids:
        return None
    data = {"kids": kids, "subject": subject, "reason": reason}
    with Journal(config=config) as journal:
        return journal.append([Draft(SHREDDED_TYPE, data)], reserved=True)[0].seq
