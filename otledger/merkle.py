"""The Merkle tree over the records: hashes, roots and proofs of RFC 6962, section 2.1 (format, 7).

Pure. Hashes are 32 bytes. Leaf `i` is the record with `seq` `i`. The *edge* of a tree is the roots of its perfect
subtrees, the largest first: one for each bit of its size, and all that is needed to make it larger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256

from otledger import speed
from otledger.batch import CHECKSUM_BYTES, checksum_of

NODE = 33
"""Bytes of a node for `grow`: its level and its hash."""
Range = tuple[int, int]
"""Leaves from the first number up to, and without, the second."""


def leaf_hash(checksum: bytes) -> bytes:
    """Give the hash of a record's leaf. `checksum`: its 64 hex digits."""
    return sha256(b"\0" + bytes.fromhex(checksum.decode("ascii"))).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Give the hash of the node over two others."""
    return sha256(b"\1" + left + right).digest()


class Tree:
    """A tree that grows, of which no more is kept than its edge."""

    __slots__ = ("edge", "size")

    def __init__(self, size: int = 0, edge: Iterable[bytes] = ()) -> None:
        """Go on from a tree of `size` leaves. Raises ValueError where no such tree has that edge."""
        self.size = size
        self.edge = list(edge)
        if len(self.edge) != size.bit_count() or any(len(node) != 32 for node in self.edge):
            raise ValueError(f"a tree of {size} leaves has an edge of {size.bit_count()} hashes of 32 bytes")

    def add(self, leaf: bytes) -> None:
        """Add the hash of the next leaf."""
        rest = self.size
        while rest & 1:
            leaf = node_hash(self.edge.pop(), leaf)
            rest >>= 1
        self.edge.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """Give the root of the tree as it is."""
        return fold(self.edge)

    def path_of_next(self) -> list[bytes]:
        """Give the audit path that the next leaf has while it is the last one."""
        return self.edge[::-1]

    def copy(self) -> Tree:
        """Give another tree of the same leaves."""
        return Tree(self.size, self.edge)


def fold(edge: Sequence[bytes]) -> bytes:
    """Give the root of the tree that has this edge."""
    if not edge:
        return sha256().digest()
    root = edge[-1]
    for left in reversed(edge[:-1]):
        root = node_hash(left, root)
    return root


# Many leaves at once


def grow_plainly(block: bytes, start: int, stop: int, seq: int, nodes: bytes) -> bytes:
    """Add the leaves of the whole lines between two offsets of a block to the nodes of the leaves before them.

    `seq` is the number of the first line's leaf. Each node is 33 bytes, its level and its hash: the roots of perfect
    subtrees, from left to right. Those of leaves from 0 on are a tree's edge; leaves that begin elsewhere give what
    `join` takes. Raises ValueError for what is no line with a checksum.
    """
    stack = [(nodes[at], nodes[at + 1 : at + NODE]) for at in range(0, len(nodes), NODE)]
    at = start
    while at < stop:
        end = block.find(b"\n", at, stop) + 1
        line = block[at:end]
        if len(line) < CHECKSUM_BYTES:
            raise ValueError("a line without a checksum")
        _push(stack, seq, 0, leaf_hash(checksum_of(line)))
        seq += 1
        at = end
    return b"".join(bytes((level,)) + node for level, node in stack)


def _push(stack: list[tuple[int, bytes]], place: int, level: int, node: bytes) -> None:
    """Put the node that is number `place` of its level behind others, and make parents of pairs."""
    while place & 1 and stack and stack[-1][0] == level:
        node = node_hash(stack.pop()[1], node)
        level, place = level + 1, place >> 1
    stack.append((level, node))


grow: Callable[[bytes, int, int, int, bytes], bytes] = speed.grow or grow_plainly


def nodes_of(tree: Tree) -> bytes:
    """Give the nodes of a tree's edge, for `grow`."""
    levels = [bit for bit in range(tree.size.bit_length() - 1, -1, -1) if tree.size >> bit & 1]
    return b"".join(bytes((level,)) + node for level, node in zip(levels, tree.edge, strict=True))


def join(nodes: bytes, seq: int, more: bytes) -> bytes:
    """Give the nodes of leaves that follow each other: `more` are those of the leaves from number `seq` on."""
    stack = [(nodes[at], nodes[at + 1 : at + NODE]) for at in range(0, len(nodes), NODE)]
    for at in range(0, len(more), NODE):
        level = more[at]
        _push(stack, seq >> level, level, more[at + 1 : at + NODE])
        seq += 1 << level
    return b"".join(bytes((level,)) + node for level, node in stack)


def tree_of(nodes: bytes) -> Tree:
    """Give the tree whose edge these nodes are. Raises ValueError where they are none."""
    levels = [nodes[at] for at in range(0, len(nodes), NODE)]
    if levels != sorted(set(levels), reverse=True):
        raise ValueError("these nodes are not the edge of a tree")
    edge = [nodes[at + 1 : at + NODE] for at in range(0, len(nodes), NODE)]
    return Tree(sum(1 << level for level in levels), edge)


# Proofs


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """Give the leaves under each hash of the audit path of leaf `index` in the tree of `size` (PATH of RFC 6962)."""
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size}")
    low, high, path = 0, size, list[Range]()
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            path.append((middle, high))
            high = middle
        else:
            path.append((low, middle))
            low = middle
    return path[::-1]


def consistency_ranges(old: int, size: int) -> list[Range]:
    """Give the leaves under each hash of the proof that the tree of `old` leaves begins that of `size` (PROOF there).

    Those before `old` are subtrees of the old tree's edge.
    """
    if not 0 < old <= size:
        raise ValueError(f"no proof from {old} leaves to {size}")
    low, high, whole, proof = 0, size, True, list[Range]()
    while old != high:
        middle = low + _split(high - low)
        if old <= middle:
            proof.append((middle, high))
            high = middle
        else:
            proof.append((low, middle))
            low, whole = middle, False
    if not whole:
        proof.append((low, high))
    return proof[::-1]


def range_hashes(ranges: Sequence[Range], leaves: Iterator[bytes], first: int = 0) -> list[bytes]:
    """Give the root over each range, in the order of `ranges`, in one pass over the hashes from leaf `first` on."""
    found: dict[Range, bytes] = {}
    at = first
    for begin, end in sorted(ranges):
        while at < begin:
            next(leaves)
            at += 1
        tree = Tree()
        while at < end:
            tree.add(next(leaves))
            at += 1
        found[begin, end] = tree.root()
    return [found[each] for each in ranges]


def edge_ranges(size: int) -> list[Range]:
    """Give the leaves under each hash of the edge of a tree of `size`."""
    ranges, low = list[Range](), 0
    for bit in range(size.bit_length() - 1, -1, -1):
        if size >> bit & 1:
            ranges.append((low, low + (1 << bit)))
            low += 1 << bit
    return ranges


def is_included(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Tell whether `path` proves that `leaf` is number `index` of the tree (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    at, last = index, size - 1
    for node in path:
        if last == 0:
            return False
        if at & 1 or at == last:
            leaf = node_hash(node, leaf)
            while not at & 1 and at:
                at >>= 1
                last >>= 1
        else:
            leaf = node_hash(leaf, node)
        at >>= 1
        last >>= 1
    return last == 0 and leaf == root


def is_consistent(old: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> bool:
    """Tell whether `proof` proves that the tree of `old` leaves begins the tree of `size` (RFC 9162, 2.1.4.2)."""
    if not 0 < old <= size:
        return False
    if old == size:
        return not proof and old_root == root
    nodes = list(proof)
    if old & (old - 1) == 0:
        nodes.insert(0, old_root)
    if not nodes:
        return False
    at, last = old - 1, size - 1
    while at & 1:
        at >>= 1
        last >>= 1
    first = second = nodes[0]
    for node in nodes[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            first, second = node_hash(node, first), node_hash(node, second)
            while not at & 1 and at:
                at >>= 1
                last >>= 1
        else:
            second = node_hash(second, node)
        at >>= 1
        last >>= 1
    return last == 0 and first == old_root and second == root


def _split(size: int) -> int:
    """Give the largest power of two that is smaller than `size`."""
    return 1 << (size - 1).bit_length() - 1
