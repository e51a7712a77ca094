"""Slots: the table rows and pages of running requests.

a row of `tables.pages` held in common with the tree │ private │ stale
                         0 ................... num_held ... num_pages
"""

import numpy as np

from preble.page_keys import TOKEN_BYTES
from preble_worker.batch import ALL_KV, Conversion, Penalties, SlotTables
from preble_worker.config import TierConfig
from preble_worker.eviction import CacheNode
from preble_worker.kv_form import KvForm
from preble_worker.page_cache import NO_PAGES, PageArray, PageCache
from preble_worker.sequence import ALL_PAGES, Fetched, Sequence

_MASK = (1 << 64) - 1


class Slots:
    """Gives requests a slot with pages, shares what they compute, and takes both back.

    Attributes:
        tables: what the engine reads; rows of free slots are stale.
        pages_changed: pages that the engine has seen stand elsewhere now, or belong to another.
        wanted_pages: how many would have to be available for the last `occupy` that failed.
    """

    def __init__(self, tables: SlotTables, cache: PageCache, tiers: TierConfig) -> None:
        self.tables = tables
        self.pages_changed = False
        self.wanted_pages = 0
        self._cache = cache
        self._page_tokens_of = {KvForm.FULL: cache.page_tokens, **tiers.page_tokens_of}
        self._leaving: list[PageArray] = []
        self._leaving_nodes: list[CacheNode] = []
        self._conversions: list[tuple[Sequence, Conversion]] = []
        self._free = list(range(len(tables.last_token)))[::-1]

    @property
    def num_free(self) -> int:
        return len(self._free)

    def occupy(self, sequence: Sequence, *, spare: int, now: float) -> bool:
        """Give a waiting request a slot and all pages of its tokens, cached ones where possible.

        False, and nothing has changed, if fewer than `spare` pages would stay available.
        """
        cache, prefix = self._cache, sequence.prefix
        assert prefix.is_current()
        num_available = cache.num_available
        node, shared = cache.pin(sequence.path(prefix.num_pages))
        num_pages = self._num_pages(sequence, sequence.num_tokens, num_held=len(shared))
        wanted = num_pages - len(shared) + spare
        fetched = sequence.fetched
        own = NO_PAGES
        if fetched:
            own = fetched.pages[len(shared) - fetched.first :]
            wanted -= len(own)
        if cache.num_available < wanted:
            self.wanted_pages = wanted + num_available - cache.num_available
            cache.unpin(node, now=now)
            return False
        cache.hit(node, now=now)
        sequence.slot = self._free.pop()
        sequence.node = node
        sequence.num_held = len(shared)
        sequence.num_pages = num_pages
        sequence.num_computed = len(shared) * cache.page_tokens
        if len(self._page_tokens_of) > 1:
            self._begin_form(sequence)
        if fetched:
            self._take_fetched(sequence, fetched, len(own), now)
        self._write_row(sequence, np.concatenate([shared, own]) if fetched else shared)
        return True

    def _take_fetched(self, sequence: Sequence, fetched: Fetched, num_own: int, now: float) -> None:
        """Its last `num_own` pages are in the row of `sequence`, the tree has the others."""
        self._cache.free(fetched.pages[: len(fetched.pages) - num_own])
        self._cache.unpin(fetched.node, now=now)
        sequence.fetched = None

    def _begin_form(self, sequence: Sequence) -> None:
        """Note from where on `sequence` computes in a compact form, if it is to."""
        self.tables.forms[sequence.slot] = sequence.form
        self.tables.compact_from[sequence.slot] = ALL_KV
        if sequence.is_compact:
            sequence.num_exact = sequence.num_held
            self.tables.compact_from[sequence.slot] = sequence.num_computed

    def _num_pages(self, sequence: Sequence, num_tokens: int, *, num_held: int) -> int:
        """Entries of a row with `num_tokens`, `num_held` of them in common with the tree."""
        own = num_tokens - num_held * self._cache.page_tokens
        return num_held - (-own // self._page_tokens_of[sequence.form])

    def pages_to_upgrade(self, sequence: Sequence) -> int:
        """Pages that must be available for `upgrade`, nothing being free before the next step."""
        own = sequence.num_pages - sequence.num_held
        return -(-own * self._page_tokens_of[sequence.form] // self._cache.page_tokens)

    def upgrade(self, sequence: Sequence, num_computed: int) -> None:
        """Give `sequence`, in the hidden form, pages for keys and values instead."""
        old_pages = self.private_pages(sequence).copy()
        self._leaving.append(old_pages)
        self._convert(sequence, KvForm.FULL, old_pages, num_computed)
        self.tables.compact_from[sequence.slot] = ALL_KV

    def num_own(self, sequence: Sequence) -> int:
        """Pages of `sequence`, which runs, that nobody else uses, those of the tree included."""
        assert sequence.node is not None
        return sequence.num_pages - self._cache.num_used_by_others(sequence.node)

    def pages_to_shrink(self, sequence: Sequence) -> int:
        """Pages that must be available for `shrink`; what it saves is free with the next step."""
        num_tokens = self.num_own(sequence) * self._cache.page_tokens
        return -(-num_tokens // self._page_tokens_of[KvForm.INT8])

    def shrink(self, sequence: Sequence, num_computed: int) -> None:
        """Keep in int8 what only `sequence`, in the full form, uses. What of it is in the tree
        stays there for others, but may be evicted.
        """
        assert sequence.node is not None
        num_shared = sequence.num_pages - self.num_own(sequence)
        old_pages = self.tables.pages[sequence.slot, num_shared : sequence.num_pages].copy()
        self._leaving.append(self.private_pages(sequence).copy())
        self._leaving_nodes.append(sequence.node)
        sequence.node, _ = self._cache.pin(sequence.path(num_shared))
        sequence.num_held = sequence.num_exact = num_shared
        self._convert(sequence, KvForm.INT8, old_pages, num_computed)
        self.tables.compact_from[sequence.slot] = num_shared * self._cache.page_tokens

    def _convert(
        self, sequence: Sequence, form: KvForm, old_pages: PageArray, num_computed: int
    ) -> None:
        """All behind the pages that `sequence` holds in common goes from `old_pages` to new ones
        that have `form`. What an engine reads is not freed before its step was computed.
        """
        slot, first, before = sequence.slot, sequence.num_held, sequence.form
        start = first * self._cache.page_tokens
        sequence.form = form
        sequence.num_pages = self._num_pages(sequence, num_computed, num_held=first)
        new_pages = self._cache.allocate(sequence.num_pages - first)
        self.tables.pages[slot, first : sequence.num_pages] = new_pages
        self.tables.forms[slot] = form
        self.pages_changed = True
        conversion = Conversion(
            slot=slot,
            before=before,
            after=form,
            start=start,
            num_tokens=num_computed - start,
            old_pages=old_pages,
            new_pages=new_pages,
        )
        self._conversions.append((sequence, conversion))

    def is_converting(self, sequence: Sequence) -> bool:
        """Whether its pages do not hold anything before the next step."""
        return any(other is sequence for other, _ in self._conversions)

    def take_conversions(self) -> tuple[Conversion, ...]:
        """Those to be done with the next step, after which exact pages may be shared."""
        if not self._conversions:
            return ()
        conversions, self._conversions = self._conversions, []
        for sequence, _ in conversions:
            if not sequence.is_compact:
                sequence.num_exact = ALL_PAGES
        return tuple(conversion for _, conversion in conversions)

    def free_leaving(self, *, now: float) -> None:
        """What a conversion read can be used again, since its step was computed."""
        for pages in self._leaving:
            self._cache.free(pages)
        for node in self._leaving_nodes:
            self._cache.unpin(node, now=now)
        self._leaving.clear()
        self._leaving_nodes.clear()

    def share(self, sequence: Sequence, *, now: float) -> None:
        """Put the full pages that were computed since the last time into the tree."""
        num_full = sequence.num_computed // self._cache.page_tokens
        if num_full > sequence.num_exact:
            num_full = sequence.num_exact
        if num_full <= sequence.num_held or not self._cache.sharing:
            return
        assert sequence.node is not None
        sequence.node, adopted = self._cache.store(
            sequence.path(num_full),
            self.tables.pages[sequence.slot, :num_full],
            pinned=sequence.node,
            held=sequence.num_held,
            seed=sequence.seed,
            now=now,
        )
        sequence.num_held = num_full
        self.pages_changed |= adopted

    def release(self, sequence: Sequence, *, share: bool, now: float) -> None:
        """Take slot and pages back; with `share`, full computed pages stay in the tree."""
        if share:
            self.share(sequence, now=now)
        if self._conversions:
            self._conversions = [entry for entry in self._conversions if entry[0] is not sequence]
        assert sequence.node is not None
        self._cache.free(self.private_pages(sequence))
        self._cache.unpin(sequence.node, now=now)
        self._free.append(sequence.slot)
        self.tables.penalties.pop(sequence.slot, None)
        sequence.node = None

    def private_pages(self, sequence: Sequence) -> PageArray:
        """The pages that only `sequence` uses, a view of its row."""
        row: PageArray = self.tables.pages[sequence.slot, sequence.num_held : sequence.num_pages]
        return row

    def _write_row(self, sequence: Sequence, pages: PageArray) -> None:
        """Its first pages are `pages`, the others are new ones."""
        tables, slot, sampling = self.tables, sequence.slot, sequence.sampling
        known, num_pages = len(pages), sequence.num_pages
        tables.pages[slot, :known] = pages
        tables.pages[slot, known:num_pages] = self._cache.allocate(num_pages - known)
        tables.output_position[slot] = sequence.num_output
        tables.prompt_hash[slot] = sequence.prompt_hash
        tables.temperature[slot] = sampling.temperature
        tables.top_p[slot] = sampling.top_p
        tables.top_k[slot] = sampling.top_k
        tables.seed[slot] = sampling.seed & _MASK
        if sampling.penalizes:
            output = bytearray(sequence.tokens[sequence.num_prompt_tokens * TOKEN_BYTES :])
            tables.penalties[slot] = Penalties(
                sampling.presence_penalty, sampling.frequency_penalty, output
            )
        self.pages_changed = True

    def check(self, running: list[Sequence], waiting: list[Sequence]) -> None:
        """Assert that `running` and the free slots share the slots out between them."""
        taken = [sequence.slot for sequence in running]
        assert sorted([*taken, *self._free]) == list(range(len(self.tables.last_token)))
        assert set(self.tables.penalties) == {s.slot for s in running if s.sampling.penalizes}
        for sequence in running:
            assert sequence.node is not None
            held = self._cache.path_pages(sequence.node)
            row = self.tables.pages[sequence.slot]
            assert np.array_equal(row[: sequence.num_held], held)
            assert self.tables.prompt_hash[sequence.slot] == sequence.prompt_hash
            assert self.tables.seed[sequence.slot] == sequence.sampling.seed & _MASK
        fetched = [sequence.fetched for sequence in waiting if sequence.fetched]
        private = [*map(self.private_pages, running), *(f.pages for f in fetched)]
        nodes = [*(s.node for s in running if s.node is not None), *(f.node for f in fetched)]
        nodes += self._leaving_nodes
        self._cache.check(private=[*self._leaving, *private], pinned=nodes)
