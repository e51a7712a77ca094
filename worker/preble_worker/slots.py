"""Slots: the table rows and pages of running requests.

a row of `tables.pages` held in common with the tree │ private │ stale
                         0 ................... num_held ... num_pages
"""

import numpy as np

from preble.page_keys import TOKEN_BYTES
from preble_worker.batch import ALL_KV, Penalties, SlotTables, Upgrade
from preble_worker.config import TierConfig
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
        self._hidden_page_tokens = tiers.hidden_page_tokens
        self._leaving: list[PageArray] = []
        self._upgrades: list[tuple[Sequence, Upgrade]] = []
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
        if self._hidden_page_tokens:
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
        """Note from where on `sequence` computes in the hidden form, if it is to."""
        self.tables.hidden_from[sequence.slot] = ALL_KV
        if sequence.is_hidden:
            sequence.num_exact = sequence.num_held
            self.tables.hidden_from[sequence.slot] = sequence.num_computed

    def _num_pages(self, sequence: Sequence, num_tokens: int, *, num_held: int) -> int:
        """Entries of a row with `num_tokens`, `num_held` of them in common with the tree."""
        width = self._cache.page_tokens
        if not sequence.is_hidden:
            return -(-num_tokens // width)
        return num_held - (num_held * width - num_tokens) // self._hidden_page_tokens

    def pages_to_upgrade(self, sequence: Sequence) -> int:
        """Pages that must be available for `upgrade`, nothing being free before the next step."""
        own = sequence.num_pages - sequence.num_held
        return -(-own * self._hidden_page_tokens // self._cache.page_tokens)

    def upgrade(self, sequence: Sequence, num_computed: int) -> None:
        """Give `sequence`, in the hidden form, pages for keys and values instead."""
        cache, slot, first = self._cache, sequence.slot, sequence.num_held
        start = first * cache.page_tokens
        hidden_pages = self.private_pages(sequence).copy()
        sequence.is_hidden = False
        sequence.num_pages = self._num_pages(sequence, num_computed, num_held=first)
        pages = cache.allocate(sequence.num_pages - first)
        self.tables.pages[slot, first : sequence.num_pages] = pages
        self.tables.hidden_from[slot] = ALL_KV
        self._leaving.append(hidden_pages)
        self.pages_changed = True
        upgrade = Upgrade(
            slot=slot,
            start=start,
            num_tokens=num_computed - start,
            hidden_pages=hidden_pages,
            pages=pages,
        )
        self._upgrades.append((sequence, upgrade))

    def is_upgrading(self, sequence: Sequence) -> bool:
        """Whether its pages do not hold anything before the next step."""
        return any(other is sequence for other, _ in self._upgrades)

    def take_upgrades(self) -> tuple[Upgrade, ...]:
        """Those to be done with the next step, after which their pages may be shared."""
        upgrades, self._upgrades = self._upgrades, []
        for sequence, _ in upgrades:
            sequence.num_exact = ALL_PAGES
        return tuple(upgrade for _, upgrade in upgrades)

    def free_leaving(self) -> None:
        """The pages that an upgrade read can be used again, since its step was computed."""
        for pages in self._leaving:
            self._cache.free(pages)
        self._leaving.clear()

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
        if self._upgrades:
            self._upgrades = [entry for entry in self._upgrades if entry[0] is not sequence]
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
        self._cache.check(private=[*self._leaving, *private], pinned=nodes)
