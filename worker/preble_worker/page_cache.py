"""The worker's KV pages: a free list, and a prefix tree over those whose tokens are known.

    free ──allocate──▶ private to one request ──store──▶ in the tree, used or not ──evict──▶ free
      ▲────────────────────free────────┘                               a copy ──▶ the cache below

A path is the namespace's page followed by the tokens of full pages, so sharing is exact. A live
request *pins* the node where the part of its path that is in the tree ends; ancestors of a pinned
node are never leaves, so one reference keeps the whole path.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preble.events import EVERYTHING, CacheEvents, CacheSnapshot, SnapshotRequest
from preble.leaf_digest import is_bucket_count, leaves_of
from preble.page_keys import KEY_BYTES, TOKEN_BYTES, key_sum, page_keys
from preble.prefix_tree import PrefixTree
from preble_worker.event_log import EventLog
from preble_worker.eviction import CachedPages, CacheNode, EvictionQueue, heat_at, hotter

PageArray = npt.NDArray[np.int32]

NO_PAGES: PageArray = np.zeros(0, dtype=np.int32)
_MASK = (1 << 64) - 1

EVICT_AHEAD_PAGES = 32
"""Where evicted pages are copied, so many of a leaf go at once: one copy, and no more of them in
each of the next steps."""


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """How much of a path the cache held when it was looked up.

    Attributes:
        num_pages: full pages of tokens found.
        node: where the match ended.
        next_page: the first page that was not found, b"" when the match ended inside an edge or
            covered the path; whoever else computes it will store it below `node`.
        edge_bytes: length of the node's edge then; another length means that it was split.
    """

    num_pages: int
    node: CacheNode
    next_page: bytes
    edge_bytes: int

    def is_current(self) -> bool:
        """Whether a new lookup would find the same, at the price of a dictionary lookup."""
        node = self.node
        return (
            len(node.edge) == self.edge_bytes
            and self.next_page not in node.children
            and (node.parent is not None or not self.edge_bytes)
        )


NOT_LOOKED_UP = CachedPrefix(0, CacheNode(b"", None, CachedPages(NO_PAGES, b"", 0.0)), b"", 1)
"""Of a path that was never looked up; it is not current in any cache."""


class PageCache:
    """All pages of one worker.

    Attributes:
        num_pages, page_tokens: size of the pool.
        num_free: pages that hold nothing.
        num_tree: pages in the prefix tree.
        num_used: those of them that live requests use; the others can be evicted.
        key_sum: sum of the tree's page keys modulo 2**64.
    """

    def __init__(self, num_pages: int, page_tokens: int, *, epoch: int, sharing: bool) -> None:
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        self.page_bytes = page_tokens * TOKEN_BYTES
        self.num_free = num_pages
        self.num_tree = 0
        self.num_used = 0
        self.key_sum = 0
        self.sharing = sharing
        self.log = EventLog(epoch)
        self._free = np.arange(num_pages - 1, -1, -1, dtype=np.int32)
        self._tree: PrefixTree[CachedPages] = PrefixTree(
            self.page_bytes, lambda _: CachedPages(NO_PAGES, b"", 0.0)
        )
        self._unused = EvictionQueue()
        self._below: PageCache | None = None
        self._keep: Callable[[CacheNode], None] | None = None

    def put_above(self, below: "PageCache", keep: Callable[[CacheNode], None]) -> None:
        """Speak for the cache `below` as well, to which `keep` copies what is worth it: it is shown
        each leaf just before pages of it are evicted.
        """
        self._below, self._keep = below, keep

    @property
    def num_at_hand(self) -> int:
        """Pages that `allocate` can hand out without anything being copied for it."""
        return self.num_free if self._keep else self.num_available

    @property
    def has_events(self) -> bool:
        """Whether `drain` has something to say."""
        return not (self.log.is_empty and (self._below is None or self._below.log.is_empty))

    @property
    def num_available(self) -> int:
        """Pages that `allocate` can hand out, evicting what nobody uses."""
        return self.num_free + self.num_tree - self.num_used

    def lookup(self, path: bytes) -> CachedPrefix:
        """How much of `path`, the namespace's page included in it, is cached. Changes nothing."""
        tree = self._tree
        if not self.sharing:
            return CachedPrefix(0, tree.root, b"", 0)
        match = tree.match(path)
        node = match.partial
        next_page = b""
        if node is None:
            node = match.nodes[-1] if match.nodes else tree.root
            at = match.num_pages * self.page_bytes
            next_page = path[at : at + self.page_bytes]
        return CachedPrefix(max(0, match.num_pages - 1), node, next_page, len(node.edge))

    def num_below(self, path: bytes) -> int:
        """Pages of `path` that the cache below holds."""
        return self._below.lookup(path).num_pages if self._below else 0

    def pin(self, path: bytes) -> tuple[CacheNode, PageArray]:
        """Hold `path`, all of whose pages are cached: its end's node and its physical pages."""
        if not self.sharing:
            return self._tree.root, NO_PAGES
        num_pages = self._tree.num_pages
        nodes = self._tree.insert(path)
        assert self._tree.num_pages - num_pages <= (len(path) == self.page_bytes)
        self._hold(nodes[-1])
        return nodes[-1], np.concatenate([node.payload.pages for node in nodes])

    def unpin(self, node: CacheNode, *, now: float) -> None:
        """Let go of a pinned node. Its path counts as used until now."""
        use = heat_at(now)
        at: CacheNode | None = node
        while at is not None:
            at.payload.heat = max(at.payload.heat, use)
            at = at.parent
        self._let_go(node)

    def hit(self, node: CacheNode, *, now: float) -> None:
        """Count one more use of the path that ends at `node`."""
        use = heat_at(now)
        at: CacheNode | None = node
        while at is not None:
            at.payload.heat = hotter(at.payload.heat, use)
            at = at.parent

    def num_used_by_others(self, node: CacheNode) -> int:
        """Pages of the path to `node`, which somebody has pinned, that others use as well."""
        return self.num_used_of(node, at_least=2)

    def num_used_of(self, node: CacheNode, *, at_least: int = 1) -> int:
        """Pages of the path to `node` that have so many users, the rest of its edge included."""
        at = node
        while at.parent is not None and at.payload.users < at_least:
            at = at.parent
        num_pages = 0
        while at.parent is not None:
            num_pages += len(at.payload.pages)
            at = at.parent
        return num_pages

    def allocate(self, num_pages: int) -> PageArray:
        """Private pages for one or more requests; at most `num_available`."""
        if num_pages > self.num_free:
            self._evict(num_pages - self.num_free)
        self.num_free -= num_pages
        return self._free[self.num_free : self.num_free + num_pages].copy()

    def free(self, pages: PageArray) -> None:
        """Take back private pages."""
        end = self.num_free + len(pages)
        self._free[self.num_free : end] = pages
        self.num_free = end

    def store(
        self,
        path: bytes,
        pages: PageArray,
        *,
        pinned: CacheNode,
        held: int,
        now: float,
        seed: int = 0,
        keys: bytes = b"",
    ) -> tuple[CacheNode, bool]:
        """Share a request's computed pages: its private `pages[held:]` go to the tree.

        Where the tree already has a page, the request adopts it: the entry of `pages` is
        overwritten and the request's own page is freed.

        Args:
            path: the namespace's page, then the tokens of `pages`.
            pinned: the node that the request holds, the end of its first `held` pages.
            seed: of the namespace, for the page keys.
            keys: those, where they are known.

        Returns:
            The node that the request holds now, and whether any page was adopted.
        """
        num_pages = self._tree.num_pages
        nodes = self._tree.insert(path)
        known = len(pages) - (self._tree.num_pages - num_pages)
        if known > held:
            self.free(pages[held:known])
            pages[held:known] = np.concatenate([n.payload.pages for n in nodes])[held:known]
        if known < len(pages):
            leaf = nodes[-1]
            leaf.payload.keys = keys[known * KEY_BYTES :] or page_keys(
                leaf.edge, page_tokens=self.page_tokens, seed=seed
            )
            self._fill(leaf, pages[known:].copy(), now)
        self._hold(nodes[-1])
        self._let_go(pinned)
        return nodes[-1], known > held

    def drain(self) -> CacheEvents | None:
        """The events since the last call, numbered."""
        return self.log.drain(host=self._below.log.take() if self._below else ())

    def snapshot(self, request: SnapshotRequest = EVERYTHING) -> CacheSnapshot:
        """One key path per leaf, or per leaf of the buckets in which `request` is wrong.

        Events not drained yet are already in it; to apply them again changes nothing.
        """
        epoch, seq, digests = self.log.epoch, self.log.seq, request.bucket_digests
        below = self._below._leaf_paths() if self._below else ()
        if not is_bucket_count(len(digests)):
            return CacheSnapshot(epoch, seq, self._leaf_paths(), below, number=request.number)
        held = leaves_of(
            self._tree.root, keys=lambda node: node.payload.keys, holds=lambda node: True
        )
        wrong, nodes = held.difference(digests)
        return CacheSnapshot(
            epoch,
            seq,
            tuple(map(self.key_path, nodes)),
            below,
            number=request.number,
            num_buckets=len(digests),
            buckets=wrong,
        )

    def token_path(self, node: CacheNode) -> bytes:
        """The path to the end of `node`, the namespace's page first."""
        return self._tree.path_to(node)

    def key_path(self, node: CacheNode) -> bytes:
        """The page keys of the path to the end of `node`."""
        parts: list[bytes] = []
        at: CacheNode | None = node
        while at is not None:
            parts.append(at.payload.keys)
            at = at.parent
        return b"".join(parts[::-1])

    def path_pages(self, node: CacheNode) -> PageArray:
        """The physical pages of the path to the end of `node`."""
        parts: list[PageArray] = []
        at: CacheNode | None = node
        while at is not None:
            parts.append(at.payload.pages)
            at = at.parent
        return np.concatenate(parts[::-1])

    def _leaf_paths(self) -> tuple[bytes, ...]:
        leaves = (node for node in self._tree if not node.children and node.payload.keys)
        return tuple(map(self.key_path, leaves))

    def _fill(self, leaf: CacheNode, pages: PageArray, now: float) -> None:
        payload = leaf.payload
        payload.pages = pages
        payload.heat = heat_at(now)
        self.num_tree += len(pages)
        self.key_sum = (self.key_sum + key_sum(payload.keys)) & _MASK
        self.log.stored(self.key_path(leaf))

    def _evict(self, num_pages: int) -> None:
        while num_pages > 0:
            node = self._unused.pop()
            wanted = num_pages
            if self._keep:
                self._keep(node)
                wanted = max(num_pages, EVICT_AHEAD_PAGES)
            num_dropped = min(wanted, len(node.payload.pages))
            self._cut(node, num_dropped)
            num_pages -= num_dropped

    def _cut(self, leaf: CacheNode, num_pages: int) -> None:
        """Drop the last `num_pages` pages of an unused leaf."""
        path = self.key_path(leaf)
        num_kept = len(leaf.payload.pages) - num_pages
        if num_kept:
            self._tree.split(leaf, num_kept)
        parent = leaf.parent
        assert parent is not None
        self._tree.remove(leaf)
        dropped = leaf.payload
        self.free(dropped.pages)
        self.num_tree -= num_pages
        self.key_sum = (self.key_sum - key_sum(dropped.keys)) & _MASK
        self.log.evicted(path, (len(path) - len(dropped.keys)) // 8)
        if not parent.payload.users:
            self._expose(parent)

    def _hold(self, node: CacheNode) -> None:
        while node.parent is not None:
            payload = node.payload
            payload.users += 1
            if payload.users > 1:
                return
            self.num_used += len(payload.pages)
            node = node.parent

    def _let_go(self, node: CacheNode) -> None:
        while (parent := node.parent) is not None:
            payload = node.payload
            payload.users -= 1
            if payload.users:
                return
            self.num_used -= len(payload.pages)
            self._expose(node)
            node = parent

    def _expose(self, node: CacheNode) -> None:
        """`node` has no users; if it is a leaf, it may be evicted."""
        if node.children or node.parent is None:
            return
        if len(node.payload.pages):
            self._unused.push(node)
        else:
            self._tree.remove(node)  # A namespace without pages: nothing to keep.

    def check(self, *, private: Iterable[PageArray], pinned: Iterable[CacheNode]) -> None:
        """Assert that every page is in one place and every reference has its holder.

        Args:
            private: the pages outside of the tree that each live request has.
            pinned: the node that each live request holds.
        """
        self._tree.check()
        nodes = list(self._tree)
        in_tree = [node.payload.pages for node in nodes]
        everywhere = np.concatenate([self._free[: self.num_free], *in_tree, *private])
        assert np.array_equal(np.sort(everywhere), np.arange(self.num_pages))
        assert self.num_tree == sum(map(len, in_tree))
        users = dict.fromkeys(nodes, 0)
        for node in pinned:
            if node.parent is not None:
                users[node] += 1
        for node in reversed(nodes):  # Children come before their parents.
            if users[node] and node.parent is not self._tree.root:
                assert node.parent is not None
                users[node.parent] += 1
        keys = b"".join(node.payload.keys for node in nodes)
        assert self.key_sum == key_sum(keys)
        assert self.num_used == sum(len(n.payload.pages) for n in nodes if users[n])
        for node in nodes:
            self._check_node(node, users[node])

    def _check_node(self, node: CacheNode, users: int) -> None:
        payload = node.payload
        is_namespace = node.parent is self._tree.root
        num_pages = 0 if is_namespace else len(node.edge) // self.page_bytes
        assert len(payload.pages) == num_pages and len(payload.keys) == 8 * num_pages
        assert payload.users == users
        if not users and not node.children:
            assert payload.is_queued and not is_namespace
