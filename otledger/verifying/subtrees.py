"""The Merkle tree in pieces: what each chunk hashes for itself, and the parent puts together (format, 7).

Pure. A run of leaves is the roots of its largest perfect subtrees, left to right: few hashes, however many leaves.
"""

from __future__ import annotations

from hashlib import sha256

from otledger.batch import check_line
from otledger.merkle import NODE, Tree, grow, node_hash


def subtrees(first: int, checksums: list[str]) -> bytes:
    """Give the hashes over the records from number `first` on, one after the other. `checksums`: 64 hex digits each."""
    digest = sha256
    raw = bytes.fromhex("".join(checksums))
    hashes = [digest(b"\0" + raw[at : at + 32]).digest() for at in range(0, len(raw), 32)]
    left: list[bytes] = []
    right: list[bytes] = []
    while hashes:
        if first & 1:
            left.append(hashes.pop(0))
            first += 1
        if len(hashes) & 1:
            right.append(hashes.pop())
        evens, odds = hashes[::2], hashes[1::2]
        hashes = [digest(b"\1" + a + b).digest() for a, b in zip(evens, odds, strict=True)]
        first >>= 1
    return b"".join(left + right[::-1])


def add_subtrees(tree: Tree, end: int, nodes: bytes) -> None:
    """Make a tree larger by what `subtrees` gave for the records from its size up to `end`."""
    for at in range(0, len(nodes), 32):
        # The largest subtree that begins here and does not reach beyond the end.
        level = (end - tree.size).bit_length() - 1
        if tree.size:
            level = min(level, (tree.size & -tree.size).bit_length() - 1)
        node, rest = nodes[at : at + 32], tree.size >> level
        while rest & 1:
            node = node_hash(tree.edge.pop(), node)
            rest >>= 1
        tree.edge.append(node)
        tree.size += 1 << level


def _line_of(block: bytes, start: int, stop: int, seq: int) -> int | None:
    """Give where in a block the line of the record with this `seq` begins, None where it is not found."""
    at = start
    while (at := block.find(b',"seq":%d,"prev":"' % seq, at, stop)) >= 0:
        first, end = block.rfind(b"\n", start, at) + 1 or start, block.find(b"\n", at) + 1
        tail = check_line(block[first:end])
        if tail is not None and tail.seq == seq:
            return first
        at = end
    return None


class Runs:
    """Collects the checksums of a chunk's records as runs, cut where a checkpoint says that its tree ends."""

    def __init__(self) -> None:
        self.done: list[tuple[int, int, bytes]] = []
        """First number, the number behind the last, and hashes."""
        self._first = 0
        self._checksums: list[str] = []
        self._cuts: set[int] = set()

    def add(self, seq: int, checksums: list[str]) -> None:
        """Take the checksums of records that follow each other."""
        if seq != self._first + len(self._checksums):
            self.flush()
            self._first = seq
        self._checksums += checksums

    def add_lines(self, block: bytes, start: int, stop: int, seq: int, count: int) -> None:
        """Take the records whose lines, known to be right, stand between two offsets of a block: hashed at once."""
        cuts = sorted(cut for cut in self._cuts if seq < cut < seq + count)
        self.flush()
        places = [(cut, place) for cut in cuts if (place := _line_of(block, start, stop, cut)) is not None]
        for end, place in [*places, (seq + count, stop)]:
            nodes = grow(block, start, place, seq, b"")
            hashes = b"".join(nodes[at + 1 : at + NODE] for at in range(0, len(nodes), NODE))
            self.done.append((seq, end, hashes))
            start, seq = place, end
        self._first = seq

    def cut(self, size: int) -> None:
        """End a run before record `size`, if that is not in an earlier one."""
        self._cuts.add(size)

    def flush(self) -> None:
        """Hash what was collected."""
        first, end = self._first, self._first + len(self._checksums)
        cuts = sorted(cut for cut in self._cuts if first < cut < end)
        for start, stop in zip([first, *cuts], [*cuts, end], strict=True):
            if start < stop:
                self.done.append((start, stop, subtrees(start, self._checksums[start - first : stop - first])))
        self._first, self._checksums = end, []
        # A checkpoint is met before the records of its block are taken.
        self._cuts = {cut for cut in self._cuts if cut > end}
