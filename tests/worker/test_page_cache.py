"""The worker's pages: sharing, eviction, events."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from worker_helpers import CacheView

from preble.events import Evicted, Stored
from preble.page_keys import namespace_page, namespace_seed, pack_tokens, page_keys
from preble_worker.eviction import HALF_LIFE_SECONDS, CacheNode
from preble_worker.page_cache import PageArray, PageCache

PAGE = 2
"""Tokens per page here."""


@dataclass(eq=False)
class Holder:
    """A live request: its path, its table row and its grip on the tree."""

    namespace: str
    tokens: bytes
    node: CacheNode
    row: PageArray
    num_held: int
    computed: int = field(default=0)

    def path(self, num_pages: int) -> bytes:
        width = PAGE * 4
        return namespace_page(self.namespace, width) + self.tokens[: num_pages * width]


class Cache:
    """A page cache under the hands of requests, with a view of its events and of its memory."""

    def __init__(self, num_pages: int) -> None:
        self.pages = PageCache(num_pages, PAGE, epoch=3, sharing=True)
        self.view = CacheView()
        self.holders: list[Holder] = []
        self.contents: dict[int, bytes] = {}

    def start(self, tokens: list[int], *, namespace: str = "", now: float = 0.0) -> Holder:
        """Pin what is cached of `tokens` and take private pages for the rest."""
        packed = pack_tokens(tokens)
        path = namespace_page(namespace, PAGE * 4) + packed
        found = self.pages.lookup(path).num_pages
        node, shared = self.pages.pin(path[: (found + 1) * PAGE * 4])
        self.pages.hit(node, now=now)
        own = self.pages.allocate(len(tokens) // PAGE - found)
        holder = Holder(namespace, packed, node, np.concatenate([shared, own]), found, found)
        for number, page in enumerate(shared.tolist()):
            assert self.contents[page] == holder.path(number + 1), "shared another one's KV"
        self.holders.append(holder)
        return holder

    def compute(self, holder: Holder, num_pages: int, *, now: float = 0.0) -> bool:
        """Compute and store up to `num_pages` pages; whether any was adopted."""
        for number in range(holder.computed, num_pages):
            self.contents[int(holder.row[number])] = holder.path(number + 1)
        holder.computed = max(holder.computed, num_pages)
        holder.node, adopted = self.pages.store(
            holder.path(holder.computed),
            holder.row[: holder.computed],
            pinned=holder.node,
            held=holder.num_held,
            seed=namespace_seed(holder.namespace),
            now=now,
        )
        holder.num_held = holder.computed
        return adopted

    def end(self, holder: Holder, *, now: float = 0.0) -> None:
        self.pages.free(holder.row[holder.num_held :])
        self.pages.unpin(holder.node, now=now)
        self.holders.remove(holder)

    def fill(self, tokens: list[int], *, namespace: str = "", now: float = 0.0) -> None:
        """A whole request."""
        holder = self.start(tokens, namespace=namespace, now=now)
        self.compute(holder, len(tokens) // PAGE, now=now)
        self.end(holder, now=now)

    def cached(self, tokens: list[int], *, namespace: str = "") -> int:
        """Pages of `tokens` in the cache."""
        return self.pages.lookup(
            namespace_page(namespace, PAGE * 4) + pack_tokens(tokens)
        ).num_pages

    def check(self) -> None:
        self.pages.check(
            private=[h.row[h.num_held :] for h in self.holders],
            pinned=[h.node for h in self.holders],
        )
        events = self.pages.drain()
        if events is not None:
            self.view.apply(events)
        snapshot = self.pages.snapshot()
        assert (snapshot.epoch, snapshot.seq) == (3, self.view.seq)
        assert CacheView(snapshot.paths).pages == self.view.pages
        assert len(self.view.pages) == self.pages.num_tree
        assert self.view.key_sum == self.pages.key_sum


def test_a_second_request_finds_the_first_ones_pages() -> None:
    cache = Cache(8)
    first = cache.start([1, 2, 3, 4, 5, 6])
    cache.compute(first, 2)
    second = cache.start([1, 2, 3, 4, 9, 9])
    assert second.num_held == 2
    assert second.row[:2].tolist() == first.row[:2].tolist()
    assert (cache.pages.num_tree, cache.pages.num_used, cache.pages.num_free) == (2, 2, 4)
    cache.check()


def test_a_page_that_two_computed_is_kept_once() -> None:
    cache = Cache(8)
    first, second = cache.start([1, 2, 3, 4]), cache.start([1, 2, 3, 4])
    assert not cache.compute(first, 2)
    assert cache.compute(second, 2)
    assert second.row.tolist() == first.row.tolist()
    assert cache.pages.num_free == 6
    cache.check()


def test_namespaces_share_nothing() -> None:
    cache = Cache(8)
    cache.fill([1, 2, 3, 4], namespace="a")
    assert cache.cached([1, 2, 3, 4], namespace="a") == 2
    assert cache.cached([1, 2, 3, 4], namespace="b") == cache.cached([1, 2, 3, 4]) == 0
    cache.fill([1, 2, 3, 4], namespace="b")
    assert cache.pages.num_tree == 4
    cache.check()
    key_path = page_keys(pack_tokens([1, 2, 3, 4]), page_tokens=PAGE, seed=namespace_seed("a"))
    assert key_path in cache.pages.snapshot().paths


def test_events_name_key_paths_without_the_namespace() -> None:
    cache = Cache(4)
    cache.fill([1, 2, 3, 4])
    path = page_keys(pack_tokens([1, 2, 3, 4]), page_tokens=PAGE)
    first = cache.pages.drain()
    assert first is not None and (first.epoch, first.seq, first.events) == (3, 1, (Stored(path),))
    assert cache.pages.drain() is None
    cache.pages.free(cache.pages.allocate(3))
    second = cache.pages.drain()
    assert second is not None and (second.seq, second.events) == (2, (Evicted(path, 1),))


def test_chunks_of_one_request_are_one_event() -> None:
    cache = Cache(4)
    holder = cache.start([1, 2, 3, 4])
    cache.compute(holder, 1)
    cache.compute(holder, 2)
    batch = cache.pages.drain()
    assert batch is not None and len(batch.events) == 1


def test_eviction_takes_the_tail_of_a_leaf_and_no_more_than_needed() -> None:
    cache = Cache(4)
    cache.fill([1, 2, 3, 4, 5, 6, 7, 8])
    cache.pages.free(cache.pages.allocate(1))
    assert cache.cached([1, 2, 3, 4, 5, 6, 7, 8]) == 3
    cache.pages.free(cache.pages.allocate(3))
    assert cache.cached([1, 2, 3, 4, 5, 6, 7, 8]) == 1
    cache.check()


def test_branches_go_before_what_they_share() -> None:
    cache = Cache(4)
    cache.fill([1, 1, 2, 2], now=1.0)
    cache.fill([1, 1, 3, 3], now=2.0)
    cache.pages.free(cache.pages.allocate(2))
    assert (cache.cached([1, 1, 2, 2]), cache.cached([1, 1, 3, 3])) == (1, 2)
    cache.pages.free(cache.pages.allocate(3))
    assert cache.cached([1, 1, 3, 3]) == 1
    cache.pages.free(cache.pages.allocate(4))
    assert cache.cached([1, 1]) == 0
    cache.check()


def test_the_least_recently_used_goes_first() -> None:
    cache = Cache(3)
    for number in (1, 2, 3):
        cache.fill([number, number], now=float(number))
    cache.fill([1, 1], now=4.0)
    cache.pages.free(cache.pages.allocate(1))
    assert [cache.cached([n, n]) for n in (1, 2, 3)] == [1, 0, 1]


def test_a_path_counts_as_used_until_its_last_user_leaves() -> None:
    cache = Cache(2)
    holder = cache.start([1, 1], now=1.0)
    cache.compute(holder, 1, now=1.0)
    cache.fill([2, 2], now=2.0)
    cache.end(holder, now=3.0)
    cache.pages.free(cache.pages.allocate(1))
    assert (cache.cached([1, 1]), cache.cached([2, 2])) == (1, 0)


@pytest.mark.parametrize(("num_hits", "survives"), [(2, False), (9, True)])
def test_hits_weigh_against_age(num_hits: int, survives: bool) -> None:
    """Nine uses at one moment outweigh one use three half-lives later, two do not."""
    cache = Cache(2)
    for _ in range(num_hits):
        cache.fill([1, 1], now=0.0)
    cache.fill([2, 2], now=3 * HALF_LIFE_SECONDS)
    cache.pages.free(cache.pages.allocate(1))
    assert cache.cached([1, 1]) == survives


def test_pages_in_use_are_never_evicted() -> None:
    cache = Cache(6)
    holder = cache.start([1, 1, 2, 2])
    cache.compute(holder, 2)
    cache.fill([1, 1, 3, 3], now=5.0)
    cache.fill([4, 4], now=6.0)
    assert cache.pages.num_available == 4
    cache.pages.free(cache.pages.allocate(4))
    assert cache.cached([1, 1, 2, 2]) == 2
    cache.check()
    cache.end(holder)
    assert cache.pages.num_available == 6
    cache.check()


def test_a_lookup_knows_when_it_is_out_of_date() -> None:
    cache = Cache(8)
    path = namespace_page("", PAGE * 4) + pack_tokens([1, 1, 2, 2, 3, 3])
    nothing = cache.pages.lookup(path)
    assert nothing.is_current()
    cache.fill([1, 1])
    assert not nothing.is_current()
    one = cache.pages.lookup(path)
    cache.fill([1, 1, 7, 7])
    assert one.is_current() and one.num_pages == 1
    cache.fill([1, 1, 2, 2])
    assert not one.is_current()
    two = cache.pages.lookup(path)
    cache.pages.free(cache.pages.allocate(8))
    assert not two.is_current()
    assert cache.pages.lookup(path).num_pages == 0


def test_without_sharing_there_is_no_tree() -> None:
    pages = PageCache(4, PAGE, epoch=1, sharing=False)
    path = namespace_page("", PAGE * 4) + pack_tokens([1, 1])
    assert pages.lookup(path).num_pages == 0
    node, shared = pages.pin(path[: PAGE * 4])
    own = pages.allocate(4)
    assert len(shared) == 0 and pages.num_available == 0
    pages.free(own)
    pages.unpin(node, now=0.0)
    assert pages.num_free == 4 and pages.drain() is None and pages.snapshot().paths == ()


class CacheMachine(RuleBasedStateMachine):
    """Requests come, compute and go at random; contents, references and events stay true."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = Cache(12)
        self.now = 0.0

    @rule(
        tokens=st.lists(st.sampled_from([[1, 1], [2, 2]]), min_size=1, max_size=5),
        namespace=st.sampled_from(["", "tenant"]),
    )
    def start(self, tokens: list[list[int]], namespace: str) -> None:
        self.now += 1.0
        if self.cache.pages.num_available >= len(tokens):
            flat = [token for page in tokens for token in page]
            self.cache.start(flat, namespace=namespace, now=self.now)

    @precondition(lambda self: self.cache.holders)
    @rule(data=st.data(), num_pages=st.integers(1, 5))
    def compute(self, data: st.DataObject, num_pages: int) -> None:
        holder = data.draw(st.sampled_from(self.cache.holders))
        if holder.computed < (end := min(num_pages, len(holder.row))):
            self.cache.compute(holder, end, now=self.now)

    @precondition(lambda self: self.cache.holders)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.now += 1.0
        self.cache.end(data.draw(st.sampled_from(self.cache.holders)), now=self.now)

    @rule(num_pages=st.integers(0, 12))
    def evict(self, num_pages: int) -> None:
        pages = self.cache.pages
        taken = pages.allocate(min(num_pages, pages.num_available))
        pages.free(taken)

    @invariant()
    def holds(self) -> None:
        self.cache.check()


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
