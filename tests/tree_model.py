"""A brute-force model of the prefix tree, and the random walk that holds the two side by side."""

import random
from dataclasses import dataclass
from typing import Self

from preble.prefix_tree import Node, PrefixTree

PAGE_BYTES = 2
ALPHABET = (b"aa", b"ab", b"ba", b"cc")
MAX_DEPTH = 9


@dataclass(slots=True)
class Labels:
    """Payload that names each page of its node, so that a split at the wrong place shows."""

    labels: list[bytes]

    def split(self, num_pages: int) -> Self:
        upper = type(self)(self.labels[:num_pages])
        self.labels = self.labels[num_pages:]
        return upper


def make_tree() -> PrefixTree[Labels]:
    return PrefixTree(PAGE_BYTES, lambda num_pages: Labels([b""] * num_pages))


def random_path(rng: random.Random) -> bytes:
    return b"".join(rng.choices(ALPHABET, k=rng.randrange(MAX_DEPTH + 1)))


class TreeModel:
    """The tree beside the plain set of prefixes it stands for."""

    def __init__(self) -> None:
        self.tree = make_tree()
        self.prefixes: set[bytes] = set()

    def insert(self, path: bytes) -> None:
        nodes = self.tree.insert(path)
        assert b"".join(node.edge for node in nodes) == path
        for node in nodes:
            self._label(node)
        for end in range(PAGE_BYTES, len(path) + 1, PAGE_BYTES):
            self.prefixes.add(path[:end])

    def match(self, path: bytes) -> None:
        before = self._shape()
        match = self.tree.match(path)
        expected = 0
        while path[: (expected + 1) * PAGE_BYTES] in self.prefixes and expected < len(path) // 2:
            expected += 1
        assert match.num_pages == expected
        assert len(match.nodes) == len(match.ends)
        for node, end in zip(match.nodes, match.ends, strict=True):
            assert self.tree.path_to(node) == path[: end * PAGE_BYTES]
        below = match.num_pages - (match.ends[-1] if match.ends else 0)
        if match.partial is None:
            assert below == 0
        else:
            assert 0 < below < len(match.partial.edge) // PAGE_BYTES
        assert self._shape() == before, "a query changed the tree"

    def split(self, rng: random.Random) -> None:
        nodes = [node for node in self.tree if len(node.edge) > PAGE_BYTES]
        if nodes:
            node = rng.choice(nodes)
            path = self.tree.path_to(node)
            upper = self.tree.split(node, rng.randrange(1, len(node.edge) // PAGE_BYTES))
            assert node.parent is upper and self.tree.path_to(node) == path

    def merge(self, rng: random.Random) -> None:
        root = self.tree.root
        nodes = [
            node
            for node in self.tree
            if node.parent is not root and node.parent and len(node.parent.children) == 1
        ]
        if nodes:
            node = rng.choice(nodes)
            path, upper = self.tree.path_to(node), node.parent
            self.tree.merge(node)
            assert self.tree.path_to(node) == path and upper not in list(self.tree)
            self._label(node)

    def remove(self, rng: random.Random) -> None:
        leaves = [node for node in self.tree if not node.children]
        if leaves:
            leaf = rng.choice(leaves)
            path = self.tree.path_to(leaf)
            self.tree.remove(leaf)
            for end in range(len(path) - len(leaf.edge) + PAGE_BYTES, len(path) + 1, PAGE_BYTES):
                self.prefixes.discard(path[:end])

    def check(self) -> None:
        self.tree.check()
        assert self.tree.num_pages == len(self.prefixes)
        seen = set()
        for node in self.tree:
            path = self.tree.path_to(node)
            first = len(path) - len(node.edge) + PAGE_BYTES
            ends = range(first, len(path) + 1, PAGE_BYTES)
            assert node.payload.labels == [path[:end] for end in ends], "payload left its pages"
            seen.update(node.payload.labels)
        assert seen == self.prefixes

    def _label(self, node: Node[Labels]) -> None:
        path = self.tree.path_to(node)
        first = len(path) - len(node.edge) + PAGE_BYTES
        node.payload.labels = [path[:end] for end in range(first, len(path) + 1, PAGE_BYTES)]

    def _shape(self) -> list[bytes]:
        return [node.edge for node in self.tree]


def random_walk(operations: int, seed: int) -> TreeModel:
    """Apply `operations` random operations to both, comparing after each."""
    rng = random.Random(seed)
    model = TreeModel()
    for _ in range(operations):
        draw = rng.random()
        crowded = model.tree.num_pages > 40
        if draw < (0.15 if crowded else 0.35):
            model.insert(random_path(rng))
        elif draw < 0.55:
            model.match(random_path(rng))
        elif draw < 0.65:
            model.split(rng)
        elif draw < 0.7:
            model.merge(rng)
        else:
            model.remove(rng)
        model.check()
    return model
