"""Which worker holds which prefix: the router's view of every worker's cache, in one tree.

Workers are numbered by *slots*; the workers of a node are the bits of an int. A node's `holders`
said so themselves (cache events); its `expected` workers are about to hold it because a request
was just routed there. Both sets can only shrink on the way down, which makes one walk along a
prompt enough to know what every worker has of it:

    root ── system prompt ──┬── question A      holders 0b111, then 0b001
                            └── question B      holders 0b111, then 0b100

A node stays while somebody holds it, expects it, or used it within the window. Each of the three
is a count or a set that is exact at every moment, so a node goes in the instant the last one ends
and no scan for dead nodes exists. This file does not know about load, loss or policies.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from sys import intern

import numpy as np
import numpy.typing as npt

from preble.events import CacheEvent, Evicted, Stored
from preble.page_keys import KEY_BYTES
from preble.prefix_tree import PrefixTree
from preble_router.holding import Holding
from preble_router.residence import (
    ClusterMatch,
    ClusterNode,
    Residence,
    assign,
    slots_of,
)
from preble_router.tree_check import check_expected, check_marks
from preble_router.tree_limit import make_room

MAX_TREE_PAGES = 1 << 24
"""268 million tokens: of 600 workers with 400,000 tokens each that have nothing in common."""


class ClusterTree:
    """The tree with its marks, and per worker slot the nodes it holds, least recently used first.

    A worker's nodes are touched leaf first, so that a node is always more recent than what hangs
    below it, as in the worker's own cache.

    Attributes:
        max_pages: it never has more; what does not fit is not known.
        uses: when, and the end of the path, of each that still counts; oldest first.
        namespaces: by the first page key of a path, where it is known and not the default.
    """

    def __init__(self, page_tokens: int, *, max_pages: int = MAX_TREE_PAGES) -> None:
        self.page_tokens = page_tokens
        self.max_pages = max_pages
        self._tree: PrefixTree[Residence] = PrefixTree(KEY_BYTES, lambda num_pages: Residence())
        self._holdings: list[Holding] = []
        self.uses: deque[tuple[float, ClusterNode]] = deque()
        self.namespaces: dict[bytes, str] = {}

    @property
    def num_nodes(self) -> int:
        return self._tree.num_nodes

    @property
    def num_pages(self) -> int:
        return self._tree.num_pages

    @property
    def num_slots(self) -> int:
        return len(self._holdings)

    # Queries

    @property
    def root(self) -> ClusterNode:
        """It has no pages and is held by nobody."""
        return self._tree.root

    def path_to(self, node: ClusterNode) -> bytes:
        """Page keys from the root to the end of `node`."""
        return self._tree.path_to(node)

    def match(self, path: bytes) -> ClusterMatch:
        """The longest prefix of `path` that anybody holds, expects or used lately."""
        return self._tree.match(path)

    def warm_tokens(self, match: ClusterMatch, *, most: int) -> npt.NDArray[np.float64]:
        """Tokens of the matched path that each slot holds or is expected to hold, shape (slots,).

        None counts for more than `most`.
        """
        tokens = np.zeros(len(self._holdings))
        page_tokens = self.page_tokens
        seen = 0
        if match.partial is not None:
            seen = match.partial.payload.warm
            if seen:
                assign(tokens, seen, min(match.num_pages * page_tokens, most))
        for node, end in zip(reversed(match.nodes), reversed(match.ends), strict=True):
            warm = node.payload.warm
            if warm != seen:
                assign(tokens, warm & ~seen, min(end * page_tokens, most))
                seen = warm
        return tokens

    def digest(self, slot: int) -> tuple[int, int]:
        """(pages, sum of page keys) that `slot` holds, to compare with the worker's own."""
        return self._holdings[slot].num_pages, self._holdings[slot].key_sum

    def is_partial(self, slot: int) -> bool:
        """`slot` holds more than is known of it, because the tree was full."""
        return self._holdings[slot].is_partial

    def namespace_of(self, node: ClusterNode) -> str:
        """The namespace in whose requests the path to `node` begins; "" if none was placed."""
        if not self.namespaces:
            return ""
        while (above := node.parent) is not None and above.parent is not None:
            node = above
        return self.namespaces.get(node.edge[:KEY_BYTES], "")

    def num_tokens(self, node: ClusterNode) -> int:
        """Prompt tokens that the pages of `node` hold."""
        return len(node.edge) // KEY_BYTES * self.page_tokens

    def held_pages(self, slot: int) -> int:
        return self._holdings[slot].num_pages

    def coldest(self, slot: int) -> Iterator[ClusterNode]:
        """The nodes `slot` holds, least recently used first, what hangs below before above."""
        return iter(self._holdings[slot].nodes)

    def reuse_share(self, slot: int, *, num_nodes: int) -> float:
        """Share of the pages `slot` would evict next that will be wanted again, in 0 ... 1.

        Of its `num_nodes` coldest nodes; one used u times within the window is taken to be wanted
        again with chance u / (u + 1).
        """
        return self._holdings[slot].reuse_share(num_nodes)

    # What workers say

    def add_slot(self) -> int:
        """A new slot that holds nothing."""
        self._holdings.append(Holding())
        return len(self._holdings) - 1

    def store(self, slot: int, path: bytes) -> None:
        """`slot` holds all of `path`."""
        bit = 1 << slot
        holding = self._holdings[slot]
        match = self._tree.match(path)
        if self._is_too_long(path, match):
            whole, (path, match) = path, self._fit(path)
            if path != whole:
                self.mark_partial(slot)
        nodes = self._cover(path, match)
        num_new = 0
        for node in reversed(nodes):
            residence = node.payload
            if residence.holders & bit:
                holding.nodes.move_to_end(node)
                continue
            residence.holders |= bit
            residence.warm |= bit
            holding.nodes[node] = None
            holding.count(node, 1)
            num_new += 1
        if num_new:
            self._join_along(nodes[-num_new:])

    def store_all(self, slot: int, paths: Iterable[bytes]) -> None:
        """`store` of each, in less time where most are a new leaf below what `slot` holds."""
        bit = 1 << slot
        held, tree = self._holdings[slot].nodes, self._tree
        edges: list[bytes] = []
        for path in paths:
            above, at, goes_on = tree.descend(path)
            edge = path[at:]
            is_plain = edge and not goes_on and (not at or above.payload.holders & bit)
            if not is_plain or tree.num_pages + len(edge) // KEY_BYTES > self.max_pages:
                self.store(slot, path)
                continue
            leaf = tree.add_leaf(above, edge)
            leaf.payload.holders = leaf.payload.warm = bit
            held[leaf] = None
            edges.append(edge)
            node = above
            while node.parent is not None:
                held.move_to_end(node)
                node = node.parent
            self._join_only_child(above)
        self._holdings[slot].count_stored(b"".join(edges))

    def evict(self, slot: int, path: bytes, keep: int) -> None:
        """`slot` holds nothing at or below page `keep` of `path`; side branches stay."""
        match = self._tree.match(path)
        if match.num_pages <= keep:
            return
        start = 0
        top: ClusterNode | None = match.partial
        for node, end in zip(match.nodes, match.ends, strict=True):
            if end > keep:
                top = node
                break
            start = end
        assert top is not None
        if not top.payload.holders & 1 << slot:
            return
        if keep > start:
            self._register(self._tree.split(top, keep - start))
        self.drop(slot, top)

    def drop(self, slot: int, top: ClusterNode) -> None:
        """`slot`, which holds `top`, holds nothing of it or below it any more."""
        bit = 1 << slot
        holding = self._holdings[slot]
        cleared = [top]
        for node in cleared:
            residence = node.payload
            residence.holders &= ~bit
            if slot not in residence.expected:
                residence.warm &= ~bit
            del holding.nodes[node]
            holding.count(node, -1)
            cleared.extend(c for c in node.children.values() if c.payload.holders & bit)
        for node in reversed(cleared):
            self._release(node)
        above = top.parent
        if above is not None:
            self._join_only_child(top)
            self._join_only_child(above)

    def mark_partial(self, slot: int) -> None:
        """Of what `slot` holds, something is not in the tree."""
        self._holdings[slot].is_partial = True

    def forget(self, slot: int) -> None:
        """`slot` holds nothing any more. Expectations are withdrawn by whoever made them."""
        bit = 1 << slot
        held = self._holdings[slot].nodes
        self._holdings[slot] = Holding()
        for node in held:
            residence = node.payload
            residence.holders &= ~bit
            if slot not in residence.expected:
                residence.warm &= ~bit
        for node in held:
            self._release(node)

    def apply(self, slot: int, events: Iterable[CacheEvent]) -> None:
        """Take over what `slot` said of its cache, in order."""
        for event in events:
            match event:
                case Stored():
                    self.store(slot, event.path)
                case Evicted():
                    self.evict(slot, event.path, event.keep)

    # What the router does

    def place(
        self, slot: int, path: bytes, match: ClusterMatch, *, now: float, namespace: str = ""
    ) -> ClusterNode:
        """A request for `path` was routed to `slot`: it uses the path, and will make it warm.

        `match` is that of `path`, and is used up. Returns the node that ends `path`, or as much of
        it as there is room for, by which `withdraw` finds its way back.
        """
        if self._is_too_long(path, match):
            path, match = self._fit(path)
        bit = 1 << slot
        held = self._holdings[slot].nodes
        nodes = self._cover(path, match)
        for node in reversed(nodes):
            residence = node.payload
            expected = residence.expected
            residence.uses += 1
            expected[slot] = expected.get(slot, 0) + 1
            residence.warm |= bit
            if residence.holders & bit:
                held.move_to_end(node)
        end = nodes[-1] if nodes else self._tree.root
        if nodes and namespace:
            self.namespaces[path[:KEY_BYTES]] = intern(namespace)
        self.uses.append((now, end))
        return end

    def withdraw(self, slot: int, end: ClusterNode) -> None:
        """The request placed on `slot` whose path ends at `end` warms nothing any more."""
        bit = 1 << slot
        node = end
        while node.parent is not None:
            residence = node.payload
            count = residence.expected[slot] - 1
            if count:
                residence.expected[slot] = count
            else:
                del residence.expected[slot]
                if not residence.holders & bit:
                    residence.warm &= ~bit
            node = node.parent
        self._release(end)

    def next_use_at(self) -> float | None:
        """When the oldest use that still counts was made."""
        return self.uses[0][0] if self.uses else None

    def expire_uses(self, *, before: float, limit: int) -> None:
        """Stop counting the uses made at or before `before`, at most `limit` of them."""
        uses = self.uses
        while limit > 0 and uses and uses[0][0] <= before:
            self.end_use(uses.popleft()[1])
            limit -= 1

    def end_use(self, end: ClusterNode) -> None:
        """A use of the path to `end`, taken out of `uses`, counts no longer."""
        node = end
        while node.parent is not None:
            node.payload.uses -= 1
            node = node.parent
        self._release(end)

    # Invariants

    def check(self) -> None:
        """Assert every invariant; cost grows with the tree, for tests."""
        self._tree.check()
        assert self._tree.num_pages <= self.max_pages
        assert self.namespaces.keys() <= self._tree.root.children.keys()
        check_marks(self.root, self._tree, self.uses, self._holdings)

    def check_expected(self, live: list[tuple[int, ClusterNode]]) -> None:
        """Assert that exactly these (slot, end of path) keep their paths expected."""
        check_expected(self._tree, live)

    # Steps

    def _is_too_long(self, path: bytes, match: ClusterMatch) -> bool:
        num_new = len(path) // KEY_BYTES - match.num_pages
        return self._tree.num_pages + num_new > self.max_pages

    def _fit(self, path: bytes) -> tuple[bytes, ClusterMatch]:
        """As much of `path` as fits after room was made for it, and its match."""
        num_pages = len(path) // KEY_BYTES
        make_room(self, num_pages - self._tree.match(path).num_pages)
        match = self._tree.match(path)
        most = match.num_pages + self.max_pages - self._tree.num_pages
        if num_pages > most:
            path = path[: most * KEY_BYTES]
            match = self._tree.match(path)
        return path, match

    def _cover(self, path: bytes, match: ClusterMatch) -> list[ClusterNode]:
        """Nodes that cover exactly `path`; a node this splits is entered for its holders."""
        num_whole, was_partial = len(match.nodes), match.partial is not None
        nodes = self._tree.insert(path, match)
        if was_partial:
            self._register(nodes[num_whole])
        return nodes

    def _register(self, upper: ClusterNode) -> None:
        for slot in slots_of(upper.payload.holders):
            self._holdings[slot].nodes[upper] = None

    def _join_along(self, nodes: list[ClusterNode]) -> None:
        """Undo the cuts that a prompt stored chunk by chunk has made, `nodes` from the top.

        A prefix in pieces would have no piece longer than all above it, and so no key prefix.
        """
        for node in nodes:
            if node.parent is not None:
                self._join_only_child(node.parent)
        self._join_only_child(nodes[-1])

    def _join_only_child(self, upper: ClusterNode) -> None:
        """Merge `upper` with its child if nothing tells them apart any more.

        Without it, every branch that ever left a path would leave a cut in it for good.
        """
        if upper.parent is None or len(upper.children) != 1:
            return
        lower = next(iter(upper.children.values()))
        if not upper.payload.is_same_as(lower.payload):
            return
        for slot in slots_of(upper.payload.holders):
            del self._holdings[slot].nodes[upper]
        self._tree.merge(lower)
        lower.payload.pages_key_sum = None

    def _release(self, node: ClusterNode) -> None:
        """Take `node` out if it is a leaf nobody needs, and its parents as far as that goes."""
        while node.parent is not None and not node.children and not node.payload.is_needed:
            parent = node.parent
            self._tree.remove(node)
            if self.namespaces and parent.parent is None:
                self.namespaces.pop(node.edge[:KEY_BYTES], None)
            node = parent
        self._join_only_child(node)
