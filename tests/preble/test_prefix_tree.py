"""The prefix tree against a brute-force model."""

import random

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tree_model import ALPHABET, TreeModel, make_tree, random_walk

PATHS = st.lists(st.sampled_from(ALPHABET), max_size=9).map(b"".join)


@pytest.mark.parametrize("seed", range(4))
def test_random_operations_agree_with_the_model(seed: int) -> None:
    random_walk(5_000, seed)


class TreeMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.model = TreeModel()

    @rule(path=PATHS)
    def insert(self, path: bytes) -> None:
        self.model.insert(path)

    @rule(path=PATHS)
    def match(self, path: bytes) -> None:
        self.model.match(path)

    @rule(seed=st.integers(0, 2**16))
    def split(self, seed: int) -> None:
        self.model.split(random.Random(seed))

    @rule(seed=st.integers(0, 2**16))
    def merge(self, seed: int) -> None:
        self.model.merge(random.Random(seed))

    @rule(seed=st.integers(0, 2**16))
    def remove(self, seed: int) -> None:
        self.model.remove(random.Random(seed))

    @invariant()
    def agrees(self) -> None:
        self.model.check()


TreeMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTreeMachine = TreeMachine.TestCase


def test_a_split_keeps_the_identity_of_the_lower_part() -> None:
    tree = make_tree()
    (leaf,) = tree.insert(b"aaabba")
    nodes = tree.insert(b"aaabcc")
    assert [node.edge for node in nodes] == [b"aaab", b"cc"]
    assert leaf.edge == b"ba" and leaf.parent is nodes[0]
    tree.check()


def test_a_path_that_ends_inside_an_edge_becomes_a_node() -> None:
    tree = make_tree()
    tree.insert(b"aaabba")
    (upper,) = tree.insert(b"aa")
    assert upper.edge == b"aa" and tree.match(b"aa").nodes == [upper]
    tree.check()


def test_an_empty_path_matches_nothing_and_inserts_nothing() -> None:
    tree = make_tree()
    assert tree.insert(b"") == []
    assert tree.match(b"").num_pages == 0 and tree.num_nodes == 0


def test_a_trailing_partial_page_never_matches() -> None:
    tree = make_tree()
    tree.insert(b"aaab")
    assert tree.match(b"aaa").num_pages == 1


def test_check_finds_a_broken_parent_link() -> None:
    tree = make_tree()
    (node,) = tree.insert(b"aa")
    node.parent = None
    with pytest.raises(AssertionError):
        tree.check()
