"""Which prompts went to which worker: what a router knows that hears nothing from the caches.

Routers of this kind note each prompt for its worker when they route it, and forget what was routed
longest ago once a worker's notes grow past a bound. They are never told of evictions, so a note is
a hope. Pages stand in for the characters or blocks in which each of them counts.
"""

from collections import OrderedDict
from typing import Self

from preble.page_keys import KEY_BYTES
from preble.prefix_tree import Match, Node, PrefixTree
from preble_router.policies.path_masks import longest_by_slot
from preble_router.residence import slots_of
from preble_router.worker_table import Column


class Notes:
    """Of one node: a bit per worker slot it was routed to, and the slot it went to last."""

    __slots__ = ("latest", "slots")

    def __init__(self) -> None:
        self.slots = 0
        self.latest = -1

    def split(self, num_pages: int) -> Self:
        upper = type(self)()
        upper.slots, upper.latest = self.slots, self.latest
        return upper


NotedNode = Node[Notes]


class ApproximateTree:
    """Prompts in chunks of `chunk_pages` pages, at most `pages_max` pages noted per worker.

    A worker's notes are kept least recently routed first, what hangs below before what is above,
    so that forgetting the first never leaves a hole. Where a prompt leaves another in the middle of
    a node, the part they share counts as routed now for both.
    """

    def __init__(self, *, pages_max: int, chunk_pages: int = 1) -> None:
        self.pages_max = pages_max
        self.chunk_pages = chunk_pages
        self._tree: PrefixTree[Notes] = PrefixTree(chunk_pages * KEY_BYTES, lambda _: Notes())
        self._noted: dict[int, OrderedDict[NotedNode, float]] = {}
        self._pages: dict[int, int] = {}

    def match(self, path: bytes) -> Match[Notes]:
        return self._tree.match(path)

    def matched_pages(self, path: bytes, *, num_slots: int) -> Column:
        """Pages at the head of `path` that were routed to each slot, shape (num_slots,)."""
        match = self.match(path)
        masks = [
            (node.payload.slots, end) for node, end in zip(match.nodes, match.ends, strict=True)
        ]
        if match.partial is not None:
            masks.append((match.partial.payload.slots, match.num_pages))
        return longest_by_slot(masks, num_slots=num_slots) * self.chunk_pages

    def num_pages(self, slot: int) -> int:
        """Pages noted for `slot`."""
        return self._pages.get(slot, 0)

    def insert(self, slot: int, path: bytes, *, now: float) -> None:
        """A prompt of `path` was routed to `slot`; a last part of a chunk is not noted."""
        width = self._tree.page_bytes
        path = path[: len(path) // width * width]
        match = self._tree.match(path)
        num_whole, cut = len(match.nodes), match.partial is not None
        nodes = self._tree.insert(path, match)
        if cut:
            for other in slots_of(nodes[num_whole].payload.slots):
                self._touch(other, nodes[: num_whole + 1], now)
        self._noted.setdefault(slot, OrderedDict())
        for node in nodes:
            if not node.payload.slots >> slot & 1:
                node.payload.slots |= 1 << slot
                self._pages[slot] = self.num_pages(slot) + self._num_pages(node)
            node.payload.latest = slot
        self._touch(slot, nodes, now)

    def trim(self) -> None:
        """Forget what was routed longest ago of every worker beyond the bound."""
        for slot in self._noted:
            self.trim_slot(slot)

    def trim_slot(self, slot: int) -> None:
        while self._noted.get(slot) and self.num_pages(slot) > self.pages_max:
            self._forget_first(slot)

    def expire(self, *, before: float) -> None:
        """Forget what was last routed at or before `before`."""
        for slot, noted in self._noted.items():
            while noted and next(iter(noted.values())) <= before:
                self._forget_first(slot)

    def forget(self, slot: int) -> None:
        """The worker of `slot` is gone."""
        while self._noted.get(slot):
            self._forget_first(slot)
        self._noted.pop(slot, None)
        self._pages.pop(slot, None)

    def check(self) -> None:
        """Assert every invariant; cost grows with the tree, for tests."""
        self._tree.check()
        for node in self._tree:
            assert node.payload.slots and node.parent is not None
            if node.parent is not self._tree.root:
                assert not node.payload.slots & ~node.parent.payload.slots
        for slot, noted in self._noted.items():
            assert set(noted) == {n for n in self._tree if n.payload.slots >> slot & 1}
            assert self.num_pages(slot) == sum(self._num_pages(node) for node in noted)

    def _touch(self, slot: int, nodes: list[NotedNode], now: float) -> None:
        noted = self._noted[slot]
        for node in reversed(nodes):
            noted[node] = now
            noted.move_to_end(node)

    def _num_pages(self, node: NotedNode) -> int:
        return len(node.edge) // KEY_BYTES

    def _forget_first(self, slot: int) -> None:
        node, _ = self._noted[slot].popitem(last=False)
        self._pages[slot] -= self._num_pages(node)
        node.payload.slots &= ~(1 << slot)
        if not node.payload.slots:
            self._tree.remove(node)
        elif node.payload.latest == slot:
            node.payload.latest = slots_of(node.payload.slots)[0]
