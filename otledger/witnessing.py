"""What a witness accepts: the next note of a chain if it is signed by the key it knows and goes on from the one it has.

The place is read before the ledger is: so a ledger that only grows never has less than the place says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from otledger import record
from otledger.errors import ConfigurationError, LedgerError
from otledger.merkle import Tree, is_consistent
from otledger.notes import Commitment, Note, VerifierKey, origin_of
from otledger.proofs import SignedCheckpoint, consistency, newest_note
from otledger.segment import list_machines
from otledger.witness import KnownKey, Place, RefusedNote, WitnessedNote, WitnessError
from otledger.witnesses.kept import is_origin
from otledger.witnesses.keychain import chains, key_records, way_to_signer

Verdict = Literal["first", "accepted", "unchanged", "refused", "untrusted", "nothing"]
TRIES = 100
"""How often it begins again because another witness was quicker."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the newest note of one machine.

    `first`: it is the first of its chain; `accepted`: it follows the one that was there; `unchanged`: it was there
    already; `refused`: it does not follow, the ledger is TAMPERED or another one; `untrusted`: no key is known
    for the chain; `nothing`: the machine has no signed note, and the place none of it.
    """

    machine: str
    verdict: Verdict
    origin: str | None = None
    size: int | None = None
    """Records under the note that the ledger has."""
    before: int | None = None
    """Records under the note that the place had."""
    key: str | None = None
    """Id of the key that the note is by, 8 hex digits, where it was accepted."""
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain values."""
        return {name: getattr(self, name) for name in self.__slots__}


class _Refusal(Exception):
    """Why a note is not accepted: it does not follow what is known."""


class _Untrusted(Exception):
    """Why a note is not accepted: which key is the chain's is not known."""


class _Raced(Exception):
    """Another witness was quicker."""


def witness(
    root: str | Path,
    place: Place,
    *,
    machines: Sequence[str] | None = None,
    keys: Iterable[VerifierKey] = (),
    trust_first: bool = False,
) -> list[Outcome]:
    """Offer the newest note of each machine to a place. Gives what became of each, durable on return.

    `keys` are those of chains that the place does not know yet, and are held against those of chains that it does.
    `trust_first` takes the key of an unknown chain from the ledger itself. What is refused is kept at the place, and
    raises nothing. Raises `RootError` where there is no ledger, `WitnessError` where the place cannot be used.
    """
    root = Path(root)
    there = list_machines(root)
    missing = [name for name in machines or () if name not in there]
    session = _Session(root, place, tuple(keys), trust_first)
    outcomes = [session.offer(name) for name in there if machines is None or name in machines]
    lost = [
        entry.machine
        for entry in session.entries.values()
        if entry.machine not in there and (entry.machine in missing if machines else entry.ledger == session.ledger)
    ]
    outcomes += [session.offer(name, gone=True) for name in sorted(set(lost))]
    unknown = [name for name in missing if name not in lost]
    if unknown:
        known = ", ".join(there) or "none"
        raise ConfigurationError(f"{root} has no machine {', '.join(unknown)}; there are: {known}")
    return outcomes


class _Session:
    """One run over a ledger's machines."""

    def __init__(self, root: Path, place: Place, keys: tuple[VerifierKey, ...], trust_first: bool) -> None:
        self.root, self.place, self.keys, self.trust_first = root, place, keys, trust_first
        self.ledger = str(root.resolve())
        self.entries: dict[str, WitnessedNote] = {}
        """What the place has, by origin. Read before anything of the ledger is that is held against it."""
        self._look()

    def _look(self) -> None:
        found = {origin: self.place.newest(origin) for origin in self.place.origins()}
        self.entries = {origin: entry for origin, entry in found.items() if entry is not None}

    def offer(self, machine: str, *, gone: bool = False) -> Outcome:
        """Offer a machine's newest note. `gone`: there is no such machine any more."""
        for _ in range(TRIES):
            try:
                return self._offer(machine, gone)
            except _Raced:
                self._look()
        raise WitnessError(f"{self.place}: others put notes of {machine} there all the time; try again")

    def _offer(self, machine: str, gone: bool) -> Outcome:
        found, there, why = None, list[str](), f"there is no machine {machine} any more"
        if not gone:
            found, there, why = self._newest(machine)
        origin = found.commitment.origin if found else None
        entry = self.entries.get(origin) if origin else None
        try:
            if entry is None:
                entry = self._lost(machine, there, gone=gone)
                if entry is not None:
                    given = f"has one of {found.size:,} records of {origin}" if found else f"has none: {why}"
                    raise _Refusal(f"and the partition {machine} {given}. {_WRONG}")
            if found is None or origin is None:
                return Outcome(machine, "nothing", reason=why)
            if entry is None:
                return self._first(machine, origin, found)
            return self._next(machine, entry, found)
        except _Untrusted as problem:
            return Outcome(machine, "untrusted", origin, found.size if found else None, reason=str(problem))
        except _Refusal as refusal:
            return self._refuse(machine, entry, found, str(refusal))

    def _newest(self, machine: str) -> tuple[SignedCheckpoint | None, list[str], str]:
        """Give the newest note of the partition's present chain, the origins of all chains, and why there is none."""
        there = list[str]()
        try:
            there = [origin_of(ledger) for ledger in chains(self.root, machine)]
            found = newest_note(self.root, machine)
        except LedgerError as error:
            return None, there, str(error)
        if found is None:
            return None, there, "no checkpoint is signed; see: otledger keys init"
        origin = found.commitment.origin
        if origin != there[-1] or not is_origin(origin):
            return None, there, f"its newest note is of {origin[:100]}, and the chain there is {there[-1][:100]}"
        return found, there, ""

    def _lost(self, machine: str, there: list[str], *, gone: bool) -> WitnessedNote | None:
        """Give the note of a chain that this partition had, and of which it has no more."""
        own = [entry for entry in self.entries.values() if (entry.machine, entry.ledger) == (machine, self.ledger)]
        if gone:
            own = own or [entry for entry in self.entries.values() if entry.machine == machine]
        # A chain that a new one has followed (format, 6) is still there, in older segments.
        own = [entry for entry in own if entry.origin not in there[:-1]]
        return max(own, key=lambda entry: entry.taken, default=None)

    # The two ways in

    def _first(self, machine: str, origin: str, found: SignedCheckpoint) -> Outcome:
        note = Note.parse(found.note)
        records = key_records(self.root, machine)
        pinned = [key for key in self.keys if key.name == origin]
        if not pinned and self.trust_first:
            pinned = [each.new for each in records if each.new.name == origin and note.is_signed_by(each.new)]
        if not pinned:
            raise _Untrusted(
                f"no key is known for {origin}: give it by --key, as it was told to you by other ways than this ledger"
                " (otledger keys export), or take the one that the ledger names by --trust-first"
            )
        for key in pinned:
            way = way_to_signer(key, note, records)
            if way is not None:
                for _, said in way:
                    self._prove(machine, said, found.commitment, ())
                keys = (KnownKey(key), *(known for known, _ in way))
                return self._put(machine, found, keys, None)
        ids = ", ".join(key.id.hex() for key in pinned)
        raise _Refusal(
            f"it was given a note of {found.size:,} records of {origin} that is signed by {_ids(note)}, and not by"
            f" {ids} or a key that follows it. {_WRONG}"
        )

    def _next(self, machine: str, entry: WitnessedNote, found: SignedCheckpoint) -> Outcome:
        had, given, note = entry.commitment, found.commitment, Note.parse(found.note)
        pinned = [key for key in self.keys if key.name == entry.origin]
        if pinned and not any(known.key in pinned for known in entry.keys):
            raise _Untrusted(
                f"the witness knows the key {entry.key.id.hex()} of {entry.origin}, and another is given by --key:"
                f" {pinned[0].id.hex()}; see which of them is the chain's"
            )
        if given.size < had.size:
            raise _Refusal(f"and was given one of fewer: {given.size:,}. {_WRONG}")
        if given.size == had.size and given.root != had.root:
            raise _Refusal(f"and was given one of as many, with another root. {_WRONG}")
        way: list[tuple[KnownKey, Commitment]] | None = []
        if not note.is_signed_by(entry.key):
            way = way_to_signer(entry.key, note, key_records(self.root, machine))
        if way is None:
            raise _Refusal(
                f"signed by {entry.key.id.hex()}, and was given one of {given.size:,} signed by {_ids(note)}, to"
                f" which no signed change of keys leads. {_WRONG}"
            )
        for _, said in way:
            small, large = sorted((had, said), key=lambda each: each.size)
            self._prove(machine, small, large, entry.edge if small is had else ())
            self._prove(machine, said, given, ())
        self._prove(machine, had, given, entry.edge)
        if given.size == had.size and not way:
            return Outcome(machine, "unchanged", entry.origin, given.size, had.size, entry.key.id.hex())
        return self._put(machine, found, (*entry.keys, *(known for known, _ in way)), entry)

    def _prove(self, machine: str, old: Commitment, new: Commitment, edge: Sequence[bytes]) -> None:
        """Raise `_Refusal` unless the tree of `old` begins that of `new`."""
        if old.size == 0:
            return
        what = f"and was given one of {new.size:,}"
        try:
            proof = consistency(self.root, machine, old.size, new.size, edge or None)
        except LedgerError as error:
            raise _Refusal(f"{what}, and no proof leads there: {error}") from None
        if not is_consistent(old.size, old.root, new.size, new.root, proof):
            raise _Refusal(
                f"{what}, and the first {old.size:,} records of that are not those that were signed before. {_WRONG}"
            )

    def _put(
        self, machine: str, found: SignedCheckpoint, keys: tuple[KnownKey, ...], before: WitnessedNote | None
    ) -> Outcome:
        said = found.commitment
        entry = WitnessedNote(
            origin=said.origin,
            note=found.note,
            taken=record.now_ns(),
            machine=machine,
            ledger=self.ledger,
            number=0 if before is None else before.number + 1,
            previous="" if before is None else before.digest,
            keys=keys,
            edge=_fitting(found),
        )
        if not self.place.put(entry):
            raise _Raced
        verdict: Verdict = "first" if before is None else "accepted"
        size = None if before is None else before.commitment.size
        return Outcome(machine, verdict, said.origin, said.size, size, entry.key.id.hex())

    def _refuse(self, machine: str, entry: WitnessedNote | None, found: SignedCheckpoint | None, why: str) -> Outcome:
        if entry is not None:
            origin, had = entry.origin, entry.commitment.size
            reason = f"the witness has a note of {had:,} records of {origin}, {why}"
        else:
            assert found is not None
            origin, had, reason = found.commitment.origin, None, why
        self.place.refuse(origin, RefusedNote("" if found is None else found.note, reason, record.now_ns(), machine))
        return Outcome(machine, "refused", origin, found.size if found else None, had, None, reason)


_WRONG = "The ledger is TAMPERED, or it is not the one that was witnessed"


def _fitting(found: SignedCheckpoint) -> tuple[bytes, ...]:
    """Give the checkpoint's edge if it is that of the signed tree; without it the next proof reads more."""
    try:
        fits = Tree(found.size, found.edge).root() == found.root
    except ValueError:
        return ()
    return found.edge if fits else ()


def _ids(note: Note) -> str:
    return ", ".join(note.key_ids()) or "nobody"
