"""The book of the host's pages: what left the device and may come back.

A second cache of the same kind as the device's: a prefix tree whose least recently used pages give
way. A page that is in it is clean, because what a page of a path holds never changes; so a request
that leaves the device again writes only the pages that it has computed since.

    full precision   a path begins with the namespace's page, as on the device: whoever has the
                     same prefix finds it. What the device evicts comes here as well
    int8             a path begins with a page of its request's own, because what comes back is
                     not exact, and nobody else should have it
"""

import numpy as np

from preble.page_keys import KEY_BYTES
from preble_worker.batch import Direction, Move
from preble_worker.config import TierConfig
from preble_worker.eviction import CacheNode
from preble_worker.page_cache import PageArray, PageCache
from preble_worker.sequence import Sequence


class HostPages:
    """Which host page holds what.

    Attributes:
        int8: they are quantized.
        cache: the tree, and which pages are free.
    """

    def __init__(self, config: TierConfig, page_tokens: int) -> None:
        self.int8 = config.int8
        self.cache = PageCache(config.host_pages, page_tokens, epoch=0, sharing=True)

    @property
    def num_held(self) -> int:
        """Pages that hold something."""
        return self.cache.num_tree

    def num_held_of(self, sequence: Sequence, num_pages: int) -> int:
        """How many of the first `num_pages` pages of `sequence` are here."""
        return self.num_held_on(self.path(sequence, num_pages))

    def num_held_on(self, path: bytes) -> int:
        """How many of the pages of `path` are here."""
        return self.cache.lookup(path).num_pages

    def offload(
        self, path: bytes, pages: PageArray, *, now: float, seed: int = 0, keys: bytes = b""
    ) -> Move | None:
        """Keep a copy of `pages`, all those of `path`; None if nothing is to be copied.

        Where there is no room for all, the first ones are kept. `seed` and `keys` as in
        `PageCache.store`.
        """
        cache, width = self.cache, self.cache.page_bytes
        known = cache.lookup(path).num_pages
        node, held = cache.pin(path[: (known + 1) * width])
        num_kept = min(len(pages), known + cache.num_available)
        new = cache.allocate(num_kept - known)
        if len(new):
            node, _ = cache.store(
                path[: (num_kept + 1) * width],
                np.concatenate([held, new]),
                pinned=node,
                held=known,
                seed=seed,
                keys=keys[: num_kept * KEY_BYTES],
                now=now,
            )
        cache.unpin(node, now=now)
        if not len(new):
            return None
        return make_move(
            Direction.OFFLOAD, pages[known:num_kept], new, int8=self.int8, before_step=True
        )

    def clear(self) -> None:
        """Nothing that is here counts any more. Nobody may hold any of it."""
        self.cache.free(self.cache.allocate(self.cache.num_pages))

    def pin(self, sequence: Sequence, num_pages: int, *, now: float) -> tuple[CacheNode, PageArray]:
        """Hold the first `num_pages` pages of `sequence`, all of which are here."""
        node, pages = self.cache.pin(self.path(sequence, num_pages))
        self.cache.hit(node, now=now)
        return node, pages

    def unpin(self, node: CacheNode, *, now: float) -> None:
        self.cache.unpin(node, now=now)

    def path(self, sequence: Sequence, num_pages: int) -> bytes:
        """Where the first `num_pages` pages of `sequence` are to be found here."""
        path = sequence.path(num_pages)
        width = self.cache.page_bytes
        if not self.int8:
            return path
        return (sequence.order % (1 << 8 * width)).to_bytes(width, "little") + path[width:]

    def check(self, *, pinned: list[CacheNode]) -> None:
        self.cache.check(private=[], pinned=pinned)


def make_move(
    direction: Direction,
    device_pages: PageArray,
    host_pages: PageArray,
    *,
    int8: bool,
    before_step: bool,
) -> Move:
    """The copy of these pages, in the order in which the host's runs are longest."""
    order = np.argsort(host_pages)
    return Move(
        direction=direction,
        device_pages=device_pages[order],
        host_pages=host_pages[order],
        int8=int8,
        before_step=before_step,
    )
