"""Where attention gets a part's keys and values from: the pool, or a copy it kept.

Pages lie scattered in the pool, and attention wants its keys in a row, so it gathers them, which
reads and writes every number once more than needed. While the same requests decode step after step
that can be avoided: pages shared by several requests do not change any more, and a decode's own
keys only grow by one token. The copies cost memory, so they are bounded and only for the CPU.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from preble_worker.attention_plan import SharedPages, Tails
from preble_worker.kv_pool import KVPool

KEPT_BYTES = 256 << 20
"""Bound on the copies of one engine."""

SPARE_PAGES = 8
"""Room in a copy of tails for this much growth."""

Pair = tuple[Tensor, Tensor]


class KeySource(Protocol):
    """Keys and values of one part, layer by layer."""

    def get(self, layer: int, key: Tensor, value: Tensor) -> Pair:
        """The part's keys and values, each (..., at least the part's tokens, kv heads, dim).

        Args:
            key, value: those of all tokens of the step, already stored in the pool.
        """
        ...


class PagedKeys:
    """Gathers from the pool whenever asked."""

    def __init__(self, pool: KVPool, pages: Tensor) -> None:
        self._pool = pool
        self._pages = pages

    def get(self, layer: int, key: Tensor, value: Tensor) -> Pair:
        return self._pool.gather(layer, self._pages)


class KeptSpan:
    """Pages that do not change: gathered once."""

    def __init__(self, pool: KVPool, pages: Tensor) -> None:
        self._pool = pool
        self._pages = pages
        self._layers: dict[int, Pair] = {}

    def get(self, layer: int, key: Tensor, value: Tensor) -> Pair:
        if layer not in self._layers:
            self._layers[layer] = self._pool.gather(layer, self._pages)
        return self._layers[layer]


class KeptTails:
    """Tails of decodes that run step after step: gathered once, then each step adds a token.

    One row per decode, with room for `capacity` tokens. `advance` starts a step, then `get` is
    called once per layer.
    """

    def __init__(self, pool: KVPool, tails: Tails) -> None:
        num_pages = tails.pages.shape[1] + SPARE_PAGES
        self.capacity = num_pages * pool.page_tokens
        self.num_bytes = len(tails.queries) * num_pages * pool.bytes_per_page
        self._pool = pool
        self._queries = tails.queries
        self._ends = tails.ends
        self._rows = torch.from_numpy(tails.queries)
        pages = np.pad(tails.pages, ((0, 0), (0, SPARE_PAGES)))
        self._pages = torch.from_numpy(pages)
        self._newest = torch.empty(0, dtype=torch.int64)
        self._layers: dict[int, Pair] = {}

    def precedes(self, tails: Tails) -> bool:
        """Whether `tails` are the same rows one step later, and fit."""
        return (
            np.array_equal(self._queries, tails.queries)
            and np.array_equal(self._ends + 1, tails.ends)
            and int(tails.ends.max()) <= self.capacity
        )

    def advance(self, tails: Tails) -> None:
        self._ends = tails.ends
        places = np.arange(len(tails.ends)) * self.capacity + tails.ends - 1
        self._newest = torch.from_numpy(places)

    def get(self, layer: int, key: Tensor, value: Tensor) -> Pair:
        if layer not in self._layers:
            self._layers[layer] = self._pool.gather(layer, self._pages)
        else:
            for kept, new in zip(self._layers[layer], (key, value), strict=True):
                kept.flatten(0, 1).index_copy_(0, self._newest, new[self._rows])
        return self._layers[layer]


class KeptKeys:
    """The copies that an engine keeps while its batch's composition stays the same."""

    def __init__(self, pool: KVPool, *, limit_bytes: int) -> None:
        self._pool = pool
        self._limit = limit_bytes
        self._span_bytes = 0
        self._tails: list[KeptTails] = []
        self._seen: list[Tails] = []

    def renew(self, runs: Sequence[SharedPages], pages: Sequence[Tensor]) -> list[KeySource]:
        """Forget everything: the composition is another. One source per shared run."""
        self._tails, self._seen, self._span_bytes = [], [], 0
        sources: list[KeySource] = []
        for run, uploaded in zip(runs, pages, strict=True):
            num_bytes = len(run.pages) * self._pool.bytes_per_page
            if self._span_bytes + num_bytes <= self._limit:
                self._span_bytes += num_bytes
                sources.append(KeptSpan(self._pool, uploaded))
            else:
                sources.append(PagedKeys(self._pool, uploaded))
        return sources

    def tails(self, all_tails: Sequence[Tails]) -> list[KeptTails | None]:
        """Copies to use for a step's tails, None where pages are to be gathered.

        Tails are copied only when they are met for the second time, so that batches which change
        with every step pay nothing.
        """
        kept: list[KeptTails | None] = []
        room = self._limit - self._span_bytes
        for tails in all_tails:
            copy = next((k for k in self._tails if k.precedes(tails)), None)
            if copy is None and any(_follows(tails, seen) for seen in self._seen):
                copy = KeptTails(self._pool, tails)
            if copy is not None and copy.num_bytes <= room:
                copy.advance(tails)
                room -= copy.num_bytes
                kept.append(copy)
            else:
                kept.append(None)
        self._seen = list(all_tails)
        self._tails = [copy for copy in kept if copy is not None]
        return kept


def _follows(tails: Tails, earlier: Tails) -> bool:
    return np.array_equal(earlier.queries, tails.queries) and np.array_equal(
        earlier.ends + 1, tails.ends
    )
