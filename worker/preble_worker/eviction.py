"""Which leaf of the cache goes next: the least recently used one, weighted by its hits.

Every hit adds 2^(t / half-life) to a node's weight, and the leaf of least weight goes first. Only
the order matters, so the weight is kept as its logarithm, the *heat*: it never has to decay, the
order of two untouched leaves never changes, and a heap can hold it. n hits at one moment are worth
log2(n) half-lives of recency; with one hit each, this is plain LRU.
"""

from heapq import heappop, heappush
from math import log2

import numpy as np
import numpy.typing as npt

from preble.page_keys import KEY_BYTES
from preble.prefix_tree import Node

HALF_LIFE_SECONDS = 60.0
"""After this long without a use, a hit counts half."""


class CachedPages:
    """What a node of the worker's tree holds.

    Attributes:
        pages: int32, the physical page behind each page of the edge; empty on the node of a
            namespace, whose one page stands for no tokens.
        keys: the routers' 8-byte key of each page.
        users: requests that hold the node's end, plus its children that have users. So 0 means
            that nobody uses anything at or below the node.
        heat: logarithm of the weight, in half-lives.
        is_queued: an entry for the node is in the eviction heap.
    """

    __slots__ = ("heat", "is_queued", "keys", "pages", "users")

    def __init__(self, pages: npt.NDArray[np.int32], keys: bytes, heat: float) -> None:
        self.pages = pages
        self.keys = keys
        self.heat = heat
        self.users = 0
        self.is_queued = False

    def split(self, num_pages: int) -> "CachedPages":
        upper = CachedPages(
            self.pages[:num_pages].copy(), self.keys[: num_pages * KEY_BYTES], self.heat
        )
        upper.users = 1 if self.users else 0
        self.pages = self.pages[num_pages:].copy()
        self.keys = self.keys[num_pages * KEY_BYTES :]
        return upper


CacheNode = Node[CachedPages]


def heat_at(now: float) -> float:
    """The heat of one use at `now`."""
    return now / HALF_LIFE_SECONDS


def last_use(heat: float) -> float:
    """When a single use would have left such heat: the inverse of `heat_at`."""
    return heat * HALF_LIFE_SECONDS


def hotter(heat: float, use: float) -> float:
    """The heat after one more use: log2(2^heat + 2^use), without overflow."""
    return max(heat, use) + log2(1.0 + 2.0 ** -min(abs(heat - use), 1000.0))


class EvictionQueue:
    """The evictable leaves, coolest first.

    Entries are checked when they come up, not when a node changes: one that is in use again,
    has children or has gone is dropped, and one that was used meanwhile is put back. A node has
    one entry at most, so the heap never outgrows the tree.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, CacheNode]] = []
        self._num_pushed = 0

    def push(self, node: CacheNode) -> None:
        """`node` became an unused leaf."""
        payload = node.payload
        if not payload.is_queued:
            payload.is_queued = True
            self._num_pushed += 1
            heappush(self._heap, (payload.heat, self._num_pushed, node))

    def pop(self) -> CacheNode:
        """The coolest unused leaf. There must be one."""
        while True:
            heat, _, node = heappop(self._heap)
            payload = node.payload
            payload.is_queued = False
            if payload.users or node.children or node.parent is None:
                continue
            if payload.heat > heat:
                self.push(node)
                continue
            return node
