"""The Merkle tree is that of RFC 6962: by published vectors, by pymerkle, by definition; and nothing else passes."""

from collections.abc import Iterator, Sequence
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymerkle import InmemoryTree, InvalidProof, verify_consistency, verify_inclusion

from otledger import merkle
from otledger.merkle import Tree

# The inputs, roots and proofs of the reference tests of Certificate Transparency.
INPUTS = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
A = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
B = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
C = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
D = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
E = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
F = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
INCLUSION = [
    (0, 1, []),
    (0, 2, [A]),
    (1, 2, [ROOTS[1]]),
    (2, 3, [ROOTS[2]]),
    (1, 5, [ROOTS[1], B, D]),
    (0, 8, [A, B, C]),
    (5, 8, [D, E, ROOTS[4]]),
]
CONSISTENCY = [(1, 1, []), (1, 8, [A, B, C]), (2, 5, [B, D]), (2, 8, [B, C]), (6, 8, [F, E, ROOTS[4]])]


def leaves_of(inputs: Sequence[bytes]) -> list[bytes]:
    """As a log makes them that has the inputs themselves, and not their checksums, under its leaves."""
    return [sha256(b"\0" + each).digest() for each in inputs]


LEAVES = leaves_of(INPUTS)
MANY = leaves_of([b"%d" % n for n in range(300)])


def tree_of(leaves: Sequence[bytes]) -> Tree:
    tree = Tree()
    for leaf in leaves:
        tree.add(leaf)
    return tree


def root_of(leaves: Sequence[bytes]) -> bytes:
    return tree_of(leaves).root()


def path_of(leaves: Sequence[bytes], index: int) -> list[bytes]:
    return merkle.range_hashes(merkle.inclusion_ranges(index, len(leaves)), iter(leaves))


def proof_of(leaves: Sequence[bytes], old: int) -> list[bytes]:
    return merkle.range_hashes(merkle.consistency_ranges(old, len(leaves)), iter(leaves))


# The published vectors


def test_a_leaf_is_that_of_the_format() -> None:
    checksum = sha256(b"a line").hexdigest().encode()
    assert merkle.leaf_hash(checksum) == sha256(b"\0" + sha256(b"a line").digest()).digest()


@pytest.mark.parametrize("size", range(9))
def test_the_roots_are_the_published_ones(size: int) -> None:
    assert root_of(LEAVES[:size]).hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "size", "path"), INCLUSION)
def test_the_audit_paths_are_the_published_ones(index: int, size: int, path: list[str]) -> None:
    assert [each.hex() for each in path_of(LEAVES[:size], index)] == path
    hashes = [bytes.fromhex(each) for each in path]
    assert merkle.is_included(LEAVES[index], index, size, hashes, bytes.fromhex(ROOTS[size]))


@pytest.mark.parametrize(("old", "size", "proof"), CONSISTENCY)
def test_the_consistency_proofs_are_the_published_ones(old: int, size: int, proof: list[str]) -> None:
    assert [each.hex() for each in proof_of(LEAVES[:size], old)] == proof
    hashes = [bytes.fromhex(each) for each in proof]
    assert merkle.is_consistent(old, bytes.fromhex(ROOTS[old]), size, bytes.fromhex(ROOTS[size]), hashes)


def test_the_example_of_the_rfc() -> None:
    # RFC 6962, 2.1.3: the tree of seven leaves d0 to d6.
    d = MANY[:7]
    g, h, i = (merkle.node_hash(d[at], d[at + 1]) for at in (0, 2, 4))
    j, k, m = d[6], merkle.node_hash(g, h), merkle.node_hash(i, d[6])
    assert merkle.node_hash(k, m) == root_of(d)
    assert path_of(d, 0) == [d[1], h, m]
    assert path_of(d, 3) == [d[2], g, m]
    assert path_of(d, 4) == [d[5], j, k]
    assert path_of(d, 6) == [i, k]
    assert proof_of(d, 3) == [d[2], d[3], g, m]
    assert proof_of(d, 4) == [m]
    assert proof_of(d, 6) == [i, j, k]


# Against others


def naive_root(leaves: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962, 2.1."""
    if not leaves:
        return sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return sha256(b"\1" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def naive_path(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    """PATH of 2.1.1."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*naive_path(m, leaves[:k]), naive_root(leaves[k:])]
    return [*naive_path(m - k, leaves[k:]), naive_root(leaves[:k])]


def naive_proof(m: int, leaves: Sequence[bytes], whole: bool = True) -> list[bytes]:
    """SUBPROOF of 2.1.2."""
    if m == len(leaves):
        return [] if whole else [naive_root(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*naive_proof(m, leaves[:k], whole), naive_root(leaves[k:])]
    return [*naive_proof(m - k, leaves[k:], False), naive_root(leaves[:k])]


def split(size: int) -> int:
    k = 1
    while k * 2 < size:
        k *= 2
    return k


def test_all_small_trees_are_those_of_the_definitions() -> None:
    for size in range(1, 40):
        leaves = MANY[:size]
        assert root_of(leaves) == naive_root(leaves)
        for at in range(size):
            assert path_of(leaves, at) == naive_path(at, leaves)
            assert proof_of(leaves, at + 1) == naive_proof(at + 1, leaves)


@pytest.fixture(scope="module")
def others() -> InmemoryTree:
    """The same 300 leaves in pymerkle's tree."""
    tree = InmemoryTree(algorithm="sha256")
    for n in range(300):
        tree.append_entry(b"%d" % n)
    return tree


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 300), st.data())
def test_pymerkle_has_the_same_roots_and_proofs(others: InmemoryTree, size: int, data: st.DataObject) -> None:
    leaves = MANY[:size]
    root = root_of(leaves)
    assert others.get_root(size) == root
    index = data.draw(st.integers(0, size - 1))
    # Its paths begin with the leaf itself.
    theirs = others.prove_inclusion(index + 1, size)
    assert theirs.path == [leaves[index], *path_of(leaves, index)]
    verify_inclusion(leaves[index], root, theirs)
    assert merkle.is_included(leaves[index], index, size, theirs.path[1:], root)
    old = data.draw(st.integers(1, size))
    before = root_of(leaves[:old])
    # Its consistency proofs are its own, of more hashes than the RFC's: they agree in what they prove.
    verify_consistency(before, root, others.prove_consistency(old, size))
    assert merkle.is_consistent(old, others.get_root(old), size, others.get_root(size), proof_of(leaves, old))
    if old < size:
        with pytest.raises(InvalidProof):
            verify_consistency(root, root, others.prove_consistency(old, size))
        assert not merkle.is_consistent(old, root, size, root, proof_of(leaves, old))


def test_pymerkle_refuses_another_root(others: InmemoryTree) -> None:
    with pytest.raises(InvalidProof):
        verify_inclusion(MANY[3], root_of(MANY[:7]), others.prove_inclusion(4, 8))


# The tree that grows


@given(st.integers(0, 300), st.integers(0, 300))
def test_a_tree_goes_on_from_its_edge(first: int, second: int) -> None:
    begun = tree_of(MANY[:first])
    going_on = Tree(begun.size, begun.edge)
    for leaf in MANY[first : first + second]:
        going_on.add(leaf)
    whole = tree_of(MANY[: first + second])
    assert (going_on.size, going_on.edge, going_on.root()) == (whole.size, whole.edge, whole.root())
    assert going_on.edge == merkle.range_hashes(merkle.edge_ranges(whole.size), iter(MANY))
    assert merkle.fold(going_on.edge) == naive_root(MANY[: first + second])
    copy = begun.copy()
    copy.add(MANY[0])
    assert (begun.size, len(begun.edge)) == (first, first.bit_count())


@given(st.integers(0, 299))
def test_the_next_leaf_s_path_is_known_before_it_comes(size: int) -> None:
    tree = tree_of(MANY[:size])
    path = tree.path_of_next()
    tree.add(MANY[size])
    assert path == path_of(MANY[: size + 1], size)
    assert merkle.is_included(MANY[size], size, size + 1, path, tree.root())


@given(st.integers(1, 299), st.integers(1, 299))
def test_what_is_old_in_a_consistency_proof_is_on_the_old_edge(old: int, more: int) -> None:
    edge = merkle.edge_ranges(old)
    for begin, end in merkle.consistency_ranges(old, old + more):
        assert (begin, end) in edge if begin < old else end > old


@pytest.mark.parametrize(("size", "edge"), [(1, []), (0, [b"1" * 32]), (2, [b"1" * 31]), (3, [b"1" * 32])])
def test_no_tree_goes_on_from_an_edge_that_is_none(size: int, edge: list[bytes]) -> None:
    with pytest.raises(ValueError, match="a tree of"):
        Tree(size, edge)


def test_nothing_is_proved_of_what_is_not_there() -> None:
    for index, size in ((0, 0), (5, 5), (-1, 5)):
        with pytest.raises(ValueError, match="not in a tree"):
            merkle.inclusion_ranges(index, size)
    for old, size in ((0, 5), (6, 5), (-1, 5)):
        with pytest.raises(ValueError, match="no proof"):
            merkle.consistency_ranges(old, size)


# What is not right does not pass


def changes(hashes: list[bytes], data: st.DataObject) -> Iterator[list[bytes]]:
    """The hashes with one flipped bit, one missing, one more, two exchanged."""
    if hashes:
        at = data.draw(st.integers(0, len(hashes) - 1))
        bit = data.draw(st.integers(0, 255))
        flipped = bytearray(hashes[at])
        flipped[bit // 8] ^= 1 << bit % 8
        yield [*hashes[:at], bytes(flipped), *hashes[at + 1 :]]
        yield hashes[:at] + hashes[at + 1 :]
        yield [*hashes[:at], hashes[at], *hashes[at:]]
    if len(hashes) > 1:
        yield hashes[::-1]
    yield [*hashes, b"\0" * 32]
    yield [b"\0" * 32, *hashes]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.data())
def test_no_other_audit_path_passes(size: int, data: st.DataObject) -> None:
    leaves, index = MANY[:size], data.draw(st.integers(0, size - 1))
    root, path = root_of(leaves), path_of(leaves, index)
    assert merkle.is_included(leaves[index], index, size, path, root)
    for changed in changes(path, data):
        assert changed == path or not merkle.is_included(leaves[index], index, size, changed, root)
    for other in (index - 1, index + 1, index ^ 2, index + size, index + 2 * size, -1):
        assert not merkle.is_included(leaves[index], other, size, path, root)
        assert not 0 <= other < size or not merkle.is_included(leaves[other], index, size, path, root)
    assert not merkle.is_included(leaves[index], index, size, path, sha256(root).digest())
    assert not merkle.is_included(root, index, size, [], root) or size == 1
    assert not merkle.is_included(leaves[index], index, 0, path, root)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.data())
def test_no_other_consistency_proof_passes(size: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, size))
    leaves = MANY[:size]
    before, root, proof = root_of(leaves[:old]), root_of(leaves), proof_of(leaves, old)
    assert merkle.is_consistent(old, before, size, root, proof)
    for changed in changes(proof, data):
        assert changed == proof or not merkle.is_consistent(old, before, size, root, changed)
    wrong = sha256(root).digest()
    assert not merkle.is_consistent(old, wrong, size, root, proof)
    assert not merkle.is_consistent(old, before, size, wrong, proof)
    assert not merkle.is_consistent(old, before, old - 1, root, proof)
    assert not merkle.is_consistent(0, before, size, root, proof)
    if old < size:
        assert not merkle.is_consistent(old, before, size, root, [])
        assert not merkle.is_consistent(old, root, size, root, proof)
        assert not merkle.is_consistent(size, root, old, before, proof)


def test_a_proof_for_a_smaller_tree_says_nothing_of_a_larger_one() -> None:
    before, root, proof = root_of(MANY[:4]), root_of(MANY[:7]), proof_of(MANY[:7], 4)
    assert merkle.is_consistent(4, before, 7, root, proof)
    assert not merkle.is_consistent(4, before, 12, root, proof)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 300), st.data())
def test_a_tree_whose_past_was_changed_has_no_consistency_proof(size: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, size - 1))
    at = data.draw(st.integers(0, old - 1))
    changed = [*MANY[:at], sha256(MANY[at]).digest(), *MANY[at + 1 : size]]
    proof = proof_of(changed, old)
    assert not merkle.is_consistent(old, root_of(MANY[:old]), size, root_of(changed), proof)
