"""Leaves in buckets: independent of how a tree is cut, and enough to find every difference."""

import random

from hypothesis import given
from hypothesis import strategies as st

from preble.leaf_digest import (
    BUCKETS_MAX,
    BUCKETS_MIN,
    Leaves,
    is_bucket_count,
    leaves_of,
    num_buckets_for,
)
from preble.page_keys import KEY_BYTES
from preble.prefix_tree import PrefixTree


class Nothing:
    """Payload that says nothing."""

    def split(self, num_pages: int) -> "Nothing":
        return Nothing()


Tree = PrefixTree[Nothing]

paths = st.lists(
    st.text("abc", min_size=1, max_size=6).map(
        lambda text: b"".join(letter.encode() * KEY_BYTES for letter in text)
    ),
    max_size=12,
)


def tree_of(*stored: bytes) -> Tree:
    tree: Tree = PrefixTree(KEY_BYTES, lambda num_pages: Nothing())
    for path in stored:
        tree.insert(path)
    return tree


def leaves(tree: Tree) -> Leaves[Nothing]:
    return leaves_of(tree.root, keys=lambda node: node.edge, holds=lambda node: True)


def leaf_paths(tree: Tree) -> set[bytes]:
    return {tree.path_to(node) for node in leaves(tree).nodes}


@given(paths, st.integers())
def test_digests_do_not_depend_on_order_and_cuts(stored: list[bytes], seed: int) -> None:
    rng = random.Random(seed)
    tree, other = tree_of(*stored), tree_of(*rng.sample(stored, len(stored)))
    for node in [n for n in other if len(n.edge) > KEY_BYTES]:
        other.split(node, rng.randrange(1, len(node.edge) // KEY_BYTES))
    assert leaves(tree).digests(16) == leaves(other).digests(16)
    longest = {p for p in stored if not any(q != p and q.startswith(p) for q in stored)}
    assert leaf_paths(tree) == longest


@given(paths, paths)
def test_the_buckets_that_differ_hold_every_leaf_that_differs(
    mine: list[bytes], theirs: list[bytes]
) -> None:
    a, b = tree_of(*mine), tree_of(*theirs)
    buckets, sent = leaves(b).difference(leaves(a).digests(32))
    wrong = {a.path_to(node) for node in leaves(a).among(buckets, num_buckets=32)}
    named = {b.path_to(node) for node in sent}
    assert (leaf_paths(a) - wrong) | named == leaf_paths(b)
    if leaf_paths(a) == leaf_paths(b):
        assert not buckets and not named


def test_the_order_of_pages_matters() -> None:
    a, b = b"a" * KEY_BYTES, b"b" * KEY_BYTES
    assert leaves(tree_of(a + b)).digests(16) != leaves(tree_of(b + a)).digests(16)


def test_an_empty_tree_has_the_digests_of_nothing() -> None:
    assert leaves(tree_of()).digests(16) == (0,) * 16


def test_there_are_about_as_many_buckets_as_leaves() -> None:
    assert [num_buckets_for(n) for n in (0, 16, 17, 1000, 10**6)] == [
        BUCKETS_MIN,
        16,
        32,
        1024,
        BUCKETS_MAX,
    ]
    assert all(is_bucket_count(num_buckets_for(n)) for n in range(100))
    assert not any(map(is_bucket_count, (0, 1, 8, 17, 2 * BUCKETS_MAX)))
