"""A worker's real page cache under requests that end at once, for tests of a router's view."""

import random
from collections.abc import Iterator

import numpy as np

from preble.events import CacheEvents
from preble.page_keys import namespace_page, namespace_seed, pack_tokens
from preble_worker.page_cache import PageCache

PAGE_TOKENS = 16


class TrueCache:
    """Families of prompts in a small pool, so that pages are stored and evicted all the time."""

    def __init__(self, num_pages: int, *, epoch: int, rng: random.Random) -> None:
        self.pages = PageCache(num_pages, PAGE_TOKENS, epoch=epoch, sharing=True)
        self._rng = rng
        self._families = [self._tokens(rng.randrange(1, 12)) for _ in range(20)]

    @property
    def digest(self) -> tuple[int, int]:
        """(pages, sum of page keys)."""
        return self.pages.num_tree, self.pages.key_sum

    def serve(self, *, now: float) -> None:
        """A request of some family with an end of its own."""
        rng = self._rng
        family = rng.choice(self._families)
        shared = family[: rng.randrange(len(family) // PAGE_TOKENS + 1) * PAGE_TOKENS]
        self.fill(shared + self._tokens(rng.randrange(1, 6)), now=now)

    def fill(self, tokens: list[int], *, namespace: str = "", now: float = 0.0) -> None:
        """A request for whole pages of `tokens`, from its start to its end."""
        width = PAGE_TOKENS * 4
        path = namespace_page(namespace, width) + pack_tokens(tokens)
        found = self.pages.lookup(path).num_pages
        node, shared = self.pages.pin(path[: (found + 1) * width])
        own = self.pages.allocate(len(tokens) // PAGE_TOKENS - found)
        seed = namespace_seed(namespace)
        row = np.concatenate([shared, own])
        node, _ = self.pages.store(path, row, pinned=node, held=found, seed=seed, now=now)
        self.pages.unpin(node, now=now)

    def clear(self) -> None:
        """Evict everything."""
        self.pages.free(self.pages.allocate(self.pages.num_available))

    def drain(self) -> CacheEvents | None:
        return self.pages.drain()

    def leaves(self) -> Iterator[bytes]:
        """The key path of each leaf."""
        return iter(self.pages.snapshot().paths)

    def _tokens(self, num_pages: int) -> list[int]:
        return self._rng.choices(range(1000), k=num_pages * PAGE_TOKENS)
