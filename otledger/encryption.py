"""Encrypting the payloads of events on their way in: who gets which key, and the keys that a ledger has at hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from otledger.ciphertext import ALGORITHMS, CHACHA20, Cipher
from otledger.config import Config
from otledger.errors import ConfigurationError, EventRefused
from otledger.record import Draft, check_text
from otledger.subjectkeys import SubjectKeys

Policy = Callable[[Draft], str | None]
"""Gives the name of the key for an event that has a subject and a payload; None leaves the payload plain."""

_MOST = 4096
"""Keys that are kept in memory."""


def by_subject(draft: Draft) -> str | None:
    """Name the key of an event: its subject. To be given as `otledger.open(..., encrypt=otledger.by_subject)`.

    A function of one's own may choose by type as well, or let several subjects share a key, which are then erased
    together: `lambda draft: draft.subject if draft.type.startswith("user.") else None`.
    """
    return draft.subject


class KeyWanted(Exception):
    """Say that a key has to be fetched from the disk first. Never reaches a caller."""

    def __init__(self, draft: Draft, name: str) -> None:
        super().__init__(name)
        self.draft = draft
        self.name = name


class Encryption:
    """What a ledger encrypts with: the policy and the keys that are in use. Raises `ConfigurationError`.

    A key in memory is used only while its file is there, which is looked at each time: so that a key that another
    process shreds is not used from then on. May be used by several threads.
    """

    def __init__(self, policy: Policy, alg: str, config: Config) -> None:
        if not callable(policy):
            raise ConfigurationError(f"encrypt must be a function such as otledger.by_subject, and {policy!r} is not")
        if alg not in ALGORITHMS:
            raise ConfigurationError(f"cipher is {alg!r}; allowed are {', '.join(map(repr, ALGORITHMS))}")
        self._policy = policy
        self._alg = alg
        self._keys = SubjectKeys(config.keys, config.machine, config.root, lock_timeout=config.lock_timeout)
        if self._keys.folder.is_dir():
            self._keys.check()
        try:
            Cipher(alg, bytes(32))
        except Exception as error:
            raise ConfigurationError(f"{alg} cannot be used here: {error}; give another cipher") from None
        self._known: dict[str, tuple[Cipher, str]] = {}

    @property
    def keys(self) -> Path:
        """The folder of the keys."""
        return self._keys.keys

    def name_for(self, draft: Draft) -> str | None:
        """Give the name of an event's key, None where it stays plain. Raises `EventRefused`."""
        if draft.subject is None or draft.data is None:
            return None
        try:
            name = self._policy(draft)
        except Exception as error:
            raise EventRefused(
                f"the event is not stored: the function given as encrypt raised {type(error).__name__}: {error}"
            ) from error
        return None if name is None else check_text("the name that encrypt gave for a key", name)

    def at_hand(self, name: str) -> Cipher | None:
        """Give a key that is in memory, and still on the disk."""
        known = self._known.get(name)
        if known is None:
            return None
        try:
            os.stat(known[1])
        except FileNotFoundError:
            self._known.pop(name, None)
            return None
        except OSError as error:
            raise EventRefused(f"the event is not stored: its key cannot be looked at: {error}") from error
        return known[0]

    def obtain(self, name: str) -> Cipher:
        """Give a key, made if need be; blocks on the disk. Raises `EventRefused`: nothing is ever stored plain."""
        try:
            found = self._keys.obtain(name, self._alg)
            cipher = found.cipher()
            if cipher is None:
                raise ValueError(f"key {found.kid} is damaged")
        except Exception as error:
            raise EventRefused(f"the event is not stored, for its data cannot be encrypted: {error}") from error
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[name] = cipher, os.fspath(self._keys.path_of(found.kid))
        return cipher


def make_encryption(policy: Policy | None, alg: str | None, config: Config) -> Encryption | None:
    """Give what a ledger encrypts with, None where it does not. Raises `ConfigurationError`."""
    if policy is None:
        if alg is not None:
            raise ConfigurationError("cipher is given without encrypt: give encrypt=otledger.by_subject as well")
        return None
    return Encryption(policy, CHACHA20 if alg is None else alg, config)
