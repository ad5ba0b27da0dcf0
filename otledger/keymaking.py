"""Making, changing and listing the signing keys of a ledger's chains."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from otledger.config import Config
from otledger.errors import ConfigurationError
from otledger.journal import Journal
from otledger.keys import Signed, Signer
from otledger.notes import VerifierKey
from otledger.segment import list_machines, open_folder, read_chain

TRIES = 40
PAUSE = 0.05
"""Seconds between two tries to make a checkpoint."""


@dataclass(frozen=True, slots=True)
class ChainKeys:
    """The keys of one chain, as far as they are on this host. `verifiers`: the oldest first, the last one signs."""

    machine: str
    ledger: str
    verifiers: tuple[VerifierKey, ...]
    epoch: float
    """Seconds after which a key is destroyed and the next one signs; 0: never by itself."""
    signed: Signed | None
    """What was signed last."""


def init(config: Config, *, epoch: float = 0.0) -> ChainKeys:
    """Make the first key of a machine's chain, and sign all that is there; the chain is begun if there is none.

    `epoch` is in seconds. On return the key is durable, and its record in the ledger, unless another process is
    just making a checkpoint, which then brings it. Raises `ConfigurationError` where the chain has a key.
    """
    with Journal(config=config) as journal:
        signer = Signer(config.keys, journal.ledger_id())
        signer.create(time.time_ns(), epoch=epoch)
        _checkpoint(journal)
    return _keys_of(config.machine, signer)


def rotate(config: Config) -> ChainKeys:
    """Have another key sign from now on, which the old one signs; the old private key is destroyed.

    Raises `ConfigurationError` where the chain has no key.
    """
    with Journal(config=config) as journal:
        signer = Signer(config.keys, journal.ledger_id())
        if not signer.exists:
            raise ConfigurationError(f"machine {config.machine} has no key in {config.keys}; see otledger keys init")
        # What came before stands under the old key.
        _checkpoint(journal)
        signer.rotate(time.time_ns())
        _checkpoint(journal)
    return _keys_of(config.machine, signer)


def list_keys(root: Path, keys: Path) -> Iterator[ChainKeys]:
    """Give the keys of each chain under `root`, also of those that another chain has followed, and have none here."""
    for machine in list_machines(root):
        fd = open_folder(root / machine)
        try:
            headers = [piece.header for piece in read_chain(fd, root / machine).pieces]
        finally:
            os.close(fd)
        for ledger in dict.fromkeys(header.ledger for header in headers if header is not None):
            yield _keys_of(machine, Signer(keys, ledger))


def _checkpoint(journal: Journal) -> None:
    """Have everything signed and recorded; where other processes are at it for long, they do it soon."""
    for _ in range(TRIES):
        if journal.checkpoint():
            return
        time.sleep(PAUSE)


def _keys_of(machine: str, signer: Signer) -> ChainKeys:
    ledger = signer.folder.name
    if not signer.exists:
        return ChainKeys(machine, ledger, (), 0.0, None)
    return ChainKeys(machine, ledger, tuple(signer.verifiers()), signer.settings().epoch, signer.memory())
