"""Holding a chain against what witnesses, and its signer, remember of it (format, 7)."""

from __future__ import annotations

from collections.abc import Sequence

from otledger.merkle import Tree, leaf_hash
from otledger.segment import CHECKPOINT_TYPE, Piece, control_data, lines_with
from otledger.verifying.committed import Committed
from otledger.verifying.pinned import Claim
from otledger.verifying.report import Status
from otledger.verifying.seals import Seal, Seals

_LOOKED_AT = 1000
"""Checkpoints among which the one of a certain size is looked for."""


def check_claims(seals: Seals, claims: Sequence[Claim], seal: Seal | None, end: int) -> Claim | None:
    """Tell of each claim that the chain does not bear out; give the largest that a witness makes and that holds.

    `end`: how many records the chain has, as far as it is whole. `seal`: its last note that holds.
    """
    newest: Claim | None = None
    for claim in claims:
        if claim.origin != seals.origin:
            continue
        if _holds(seals, claim, seal, end) and claim.witness and (newest is None or claim.size > newest.size):
            newest = claim
    return newest


def _holds(seals: Seals, claim: Claim, seal: Seal | None, end: int) -> bool:
    found, last = seals.found, seals.pieces[-1]
    if claim.broken is not None:
        found.fault(Status.INCOMPLETE, "", 0, None, f"what {claim.who} has cannot be read: {claim.broken}")
        return False
    signer = claim.note.signer_of(seals.trusted) if claim.note is not None and seals.pinned else None
    if claim.unproved and (signer is None or claim.size == 0):
        return False
    if claim.size > end:
        reason = f"{claim.who} has a signed note over {claim.size} records, and {end} are there: the rest was cut off"
        found.fault(Status.TAMPERED, str(last.name), seals.files.end(last), end, reason)
        return False
    agrees = _agrees(seals, claim, seal) if claim.size else True
    if agrees is None:
        reason = f"what {claim.who} has over {claim.size} records cannot be compared: not all of them are here"
        found.fault(Status.INCOMPLETE, "", 0, None, reason)
        return False
    if not agrees:
        place = seals.files.place_of(seals.pieces, claim.size - 1)
        piece, offset = (place[0], place[1]) if place is not None else (last, 0)
        reason = f"{claim.who} has another root over {claim.size} records than these have"
        found.fault(Status.TAMPERED, str(piece.name), offset, claim.size - 1, reason)
        return False
    if claim.note is None or not seals.pinned or signer is not None:
        return True
    if not {text.split("+")[1] for text in seals.former if text.count("+") > 1}.isdisjoint(claim.note.key_ids()):
        # Of a key before the pinned one: nobody here can check it, and it says what the records say.
        return False
    reason = f"the note of {claim.who} is by another key, {', '.join(claim.note.key_ids())}: it proves nothing"
    found.fault(Status.INCOMPLETE, "", 0, None, reason)
    return False


def _agrees(seals: Seals, claim: Claim, seal: Seal | None) -> bool | None:
    """Tell whether the first records have this root; None where that cannot be known.

    A path from their last one to the root says it, for the chain binds the others to that. Else they are counted out:
    from the last seal on, or all of them.
    """
    if seal is not None and seal.size == claim.size:
        return seal.root == claim.root
    if _has_path(seals, claim):
        return True
    if seal is not None and seal.edge is not None and seal.size < claim.size:
        root = grow(seals, Tree(seal.size, seal.edge), claim.size)
        if root == claim.root:
            return True
    root = grow(seals, Tree(), claim.size)
    return None if root is None else root == claim.root


def _has_path(seals: Seals, claim: Claim) -> bool:
    after = seals.files.place_of(seals.pieces, claim.size)
    if after is None:
        return False
    left = _LOOKED_AT
    for piece, start in _from(seals.pieces, after[0], after[1]):
        with seals.files.opened(piece.name) as fd:
            needle = b'"type":"' + CHECKPOINT_TYPE.encode() + b'"'
            for offset, line in lines_with(fd, needle, start, seals.files.end(piece)):
                data = control_data(line, CHECKPOINT_TYPE) or {}
                read = Committed.read(data, claim.size)
                if isinstance(read, Committed) and (read.size, read.root) == (claim.size, claim.root):
                    head = seals.files.checksum_before(piece, offset, claim.size - 1)
                    return head is not None and read.why_not(head) is None
                size, left = data.get("size"), left - 1
                if left == 0 or (isinstance(size, int) and size > claim.size and "root" in data):
                    return False
    return False


def _from(pieces: Sequence[Piece], first: Piece, offset: int) -> list[tuple[Piece, int]]:
    return [(piece, offset if piece is first else 0) for piece in pieces[pieces.index(first) :]]


def grow(seals: Seals, tree: Tree, size: int) -> bytes | None:
    """Give the root over the first `size` records, from a tree of fewer of them; None where one is not there."""
    for _, _, _, tail in seals.files.records(seals.pieces, tree.size):
        if tree.size == size:
            break
        tree.add(leaf_hash(tail.checksum))
    return tree.root() if tree.size == size else None
