"""Recomputing the tree over all records, and comparing every checkpoint's root and edge with it (format, 7)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from otledger.merkle import Tree, fold, leaf_hash
from otledger.segment import Piece
from otledger.verifying.committed import Committed
from otledger.verifying.files import Files
from otledger.verifying.subtrees import add_subtrees

_RECENT = 100_000
"""Edges that are kept as they were: where checkpoints end that are still to come."""


class Regrown:
    """A chain's tree, as its records come."""

    def __init__(self, files: Files, pieces: Sequence[Piece], tree: Tree) -> None:
        self.files = files
        self.pieces = pieces
        self.tree: Tree | None = tree
        """None where the records do not follow each other."""
        self._sizes = [tree.size]
        self._edges = [tuple(tree.edge)]

    def add(self, runs: Sequence[tuple[int, int, bytes]]) -> None:
        """Take the hashes of the next records."""
        for first, end, nodes in runs:
            if self.tree is None or first != self.tree.size:
                self.tree = None
                return
            add_subtrees(self.tree, end, nodes)
            self._sizes.append(end)
            self._edges.append(tuple(self.tree.edge))
        if len(self._sizes) > 2 * _RECENT:
            # Every hundredth of the older ones: a checkpoint may end anywhere, but seldom so far back.
            self._sizes[:-_RECENT] = self._sizes[:-_RECENT:100]
            self._edges[:-_RECENT] = self._edges[:-_RECENT:100]

    def why_not(self, read: Committed) -> str | None:
        """Give the reason why the records do not have the tree that is named; None too where that is not known."""
        edge = self._edge_at(read.size)
        if edge is None:
            return None
        if fold(edge) != read.root:
            return f"its root is not that of the first {read.size} records"
        if read.edge is not None and tuple(edge) != read.edge:
            return f"its edge is not that of the first {read.size} records"
        return None

    def _edge_at(self, size: int) -> Sequence[bytes] | None:
        if self.tree is None or not self._sizes[0] <= size <= self.tree.size:
            return None
        at = bisect_right(self._sizes, size) - 1
        if self._sizes[at] == size:
            return self._edges[at]
        tree = Tree(self._sizes[at], self._edges[at])
        for _, _, _, tail in self.files.records(self.pieces, tree.size):
            tree.add(leaf_hash(tail.checksum))
            if tree.size == size:
                return tree.edge
        return None
