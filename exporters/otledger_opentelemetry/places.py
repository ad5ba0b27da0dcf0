"""Where a replay is: its cursor, and the file that keeps it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from otledger.errors import ConfigurationError

from .selecting import Item


class ReplayCursor(msgspec.Struct):
    """How far a replay got."""

    sent: dict[str, int] = {}
    """For each machine the `seq` up to which all is sent, unfinished spans apart."""
    unfinished: dict[str, list[int]] = {}
    """For each machine the `seq` of the start records of spans that were sent as unfinished."""
    chains: dict[str, str] = {}
    """For each machine which chain of records that was: a `seq` means nothing in another."""

    @classmethod
    def load(cls, path: Path) -> ReplayCursor:
        """Give the cursor of a file, an empty one where there is none. Raises `ConfigurationError`."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            return cls()
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigurationError(f"{path} is no cursor of a replay: {error}; remove it to begin anew") from None

    def save(self, path: Path) -> None:
        """Write the cursor, durable on return."""
        unfinished = path.with_name(path.name + ".new")
        with open(unfinished, "wb") as file:
            file.write(msgspec.json.encode(self))
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def note(self, item: Item) -> None:
        """Note that this is sent."""
        machine, seq = item.record.machine, item.record.seq
        if item.unfinished:
            self.unfinished.setdefault(machine, []).append(seq)
        else:
            self.sent[machine] = max(self.sent.get(machine, 0), seq + 1)


class Place:
    """Where a replay is, by its cursor's file if it has one."""

    def __init__(self, path: Path | None, chains: dict[str, str], *, move: bool) -> None:
        self.cursor = ReplayCursor.load(path) if path is not None else ReplayCursor()
        self._path = path if move else None
        self._shown = path
        self._chains = chains
        self._known = {machine: frozenset(seqs) for machine, seqs in self.cursor.unfinished.items()}
        self._still: dict[str, list[int]] = {}
        # Before anything is sent: what cannot be noted would be sent again.
        self._save()

    @property
    def is_kept(self) -> bool:
        """Whether there is a file to note it in."""
        return self._path is not None

    def unsent(self, items: Iterator[Item]) -> Iterator[Item]:
        """Leave out the unfinished spans that were sent.

        Raises `ConfigurationError` for the cursor of another ledger.
        """
        checked = set()
        for item in items:
            machine = item.record.machine
            if machine not in checked:
                self._check_chain(machine)
                checked.add(machine)
            if item.unfinished:
                seq = item.record.seq
                self._still.setdefault(machine, []).append(seq)
                if seq in self._known.get(machine, ()):
                    continue
            yield item
        for machine in self._chains:
            self._check_chain(machine)

    def moved(self, items: Sequence[Item]) -> None:
        """Note what was sent."""
        for item in items:
            self.cursor.note(item)
            chain = self._chains.get(item.record.machine)
            if chain is not None:
                self.cursor.chains[item.record.machine] = chain
        self._save()

    def forget_ended(self) -> None:
        """Forget the unfinished spans that have ended since; all were looked for."""
        for machine in self._chains:
            still = self._still.get(machine, [])
            self.cursor.unfinished.pop(machine, None)
            if still:
                self.cursor.unfinished[machine] = still
        self._save()

    def _check_chain(self, machine: str) -> None:
        noted, found = self.cursor.chains.get(machine), self._chains.get(machine)
        if noted is not None and found is not None and noted != found:
            raise ConfigurationError(
                f"{self._shown} is the cursor of another ledger: {machine} was begun anew since;"
                " give another file, or remove it to send everything"
            )

    def _save(self) -> None:
        if self._path is not None:
            self.cursor.save(self._path)
