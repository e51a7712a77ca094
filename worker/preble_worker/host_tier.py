"""What leaves the device for the host, what comes back, and when that is worth it.

    running ──preempt──▶ waiting, its pages in the device's tree (may be evicted) and on the host
       ▲                    │ start: pages of its own
       └──all copied── LOADING   some pages with each step, as many as cross while it computes

    the device's tree ──evict──▶ on the host

A request that comes back finds what the device's tree still has of it, then what the host has, and
computes the rest; so it is a prefill like any other, and nothing depends on where its past was. A
new request finds the prefixes that others have left in the same way, in full precision.

Of an evicted leaf the whole path is kept, so that what the host holds can be read from its begin.
A page is written once for as long as it stays there, so that costs a prefix one copy.

Copying is weighed against computing with the cost model, on the way out and again on the way in.
"""

from collections.abc import Callable
from dataclasses import replace
from math import inf

from preble_worker.batch import Batch, Move, predicted_seconds
from preble_worker.config import SchedulerConfig
from preble_worker.eviction import CacheNode, last_use
from preble_worker.host_pages import HostPages
from preble_worker.incoming import Incoming
from preble_worker.page_cache import PageArray, PageCache
from preble_worker.sequence import Fetched, Sequence, Stage
from preble_worker.slots import Slots
from preble_worker.totals import TierTotals

MIN_STEP_PAGES = 8
"""Pages that may cross with a step, however short it is."""


def _endless(_: Sequence) -> float:
    return inf


class HostTier:
    """Copies between the device's pages and the host's.

    Attributes:
        estimated_wait: seconds until a request that is preempted, or waits, starts. Who waits for
            less than the way out and in is `resident`: it is not copied, but left in the tree.
    """

    def __init__(
        self, config: SchedulerConfig, cache: PageCache, slots: Slots, totals: TierTotals
    ) -> None:
        self.totals = totals
        self.estimated_wait: Callable[[Sequence], float] = _endless
        self.resident: set[Sequence] = set()
        self._config = config.tiers
        self._cost = config.tiers.cost or config.cost
        self._page_tokens = config.page_tokens
        self._cache = cache
        self._slots = slots
        self._host = HostPages(config.tiers, config.page_tokens)
        self._keeps_evicted = config.keeps_evicted
        if self._keeps_evicted:
            cache.put_above(self._host.cache, self._keep)
        self._kept: dict[Sequence, CacheNode] = {}
        self._incoming: list[Incoming] = []
        self._moves: list[Move] = []

    @property
    def num_pages(self) -> int:
        """Pages that the host holds."""
        return self._host.num_held

    @property
    def loading(self) -> list[Sequence]:
        """Requests with a slot whose pages are on their way in."""
        return [incoming.sequence for incoming in self._started]

    @property
    def away(self) -> list[Sequence]:
        """Requests that wait and have pages here, none of which come in yet."""
        return [sequence for sequence in self._kept if sequence.fetched is None]

    @property
    def is_copying(self) -> bool:
        """Whether pages are to come in with the next steps."""
        return any(incoming.num_left for incoming in self._incoming)

    @property
    def _loading(self) -> list[Sequence]:
        return [incoming.sequence for incoming in self._incoming]

    def save(self, sequence: Sequence, *, now: float) -> None:
        """`sequence` is about to lose its slot: keep its full pages if that is worth it."""
        num_full = sequence.num_computed // self._page_tokens
        if not num_full or sequence.is_compact or self._slots.is_converting(sequence):
            return
        assert sequence.node is not None
        num_safe = self._cache.num_used_by_others(sequence.node)
        round_trip = self._round_trip_seconds(sequence, num_full, num_safe)
        if round_trip >= self._compute_seconds(num_full - num_safe, num_safe):
            self.totals.recomputes += 1
        elif self.estimated_wait(sequence) <= round_trip:
            self.resident.add(sequence)
        else:
            self._offload(sequence, self._slots.tables.pages[sequence.slot, :num_full], now)

    def save_waiting(self, sequence: Sequence, *, now: float) -> None:
        """Keep what the device's tree still has of `sequence`, which waits, and was just looked up
        in it.
        """
        self.resident.discard(sequence)
        node, pages = self._cache.pin(sequence.path(sequence.prefix.num_pages))
        if len(pages):
            self._offload(sequence, pages, now)
        self._cache.unpin(node, now=now)

    def _offload(self, sequence: Sequence, pages: PageArray, now: float) -> None:
        self.totals.swaps += 1
        path = self._host.path(sequence, len(pages))
        self._begin_offload(self._host.offload(path, pages, seed=sequence.seed, now=now))
        if not self._keeps_evicted:
            self._host.cache.drain()  # Nobody else can use it, so nobody is told.
        num_held = self._host.num_held_on(path)
        self._kept[sequence], _ = self._host.pin(sequence, num_held, now=now)

    def _keep(self, leaf: CacheNode) -> None:
        """The device is about to evict pages of `leaf`: keep its path if that is worth it."""
        cache = self._cache
        num_pages = len(leaf.payload.pages)
        path = cache.token_path(leaf)
        num_before = len(path) // cache.page_bytes - 1 - num_pages
        if self.swap_seconds(num_pages) >= self._compute_seconds(num_pages, num_before):
            return
        if self._host.num_held_on(path) == num_before + num_pages:
            return
        move = self._host.offload(
            path,
            cache.path_pages(leaf),
            keys=cache.key_path(leaf),
            now=last_use(leaf.payload.heat),
        )
        self._begin_offload(move)

    def _begin_offload(self, move: Move | None) -> None:
        if move is not None:
            self.totals.offloaded_pages += len(move.host_pages)
            self._moves.append(move)

    def keeps(self, sequence: Sequence) -> bool:
        """Whether pages are here for `sequence`, which waits."""
        return sequence in self._kept

    def release(self, sequence: Sequence, *, now: float) -> None:
        """`sequence` no longer waits: what the host keeps of it may give way. While it waits that
        may not, or what was paid for by copying would go before what nobody needs.
        """
        self.resident.discard(sequence)
        node = self._kept.pop(sequence, None)
        if node is not None:
            self._host.unpin(node, now=now)
        if sequence.fetched is not None:
            self._give_back(sequence, now)

    def swap_seconds(self, num_pages: int) -> float:
        """What it takes to copy `num_pages` out and in."""
        return 2.0 * self.copy_seconds(num_pages)

    def is_cheaper(self, sequence: Sequence, num_pages: int) -> bool:
        """Whether `sequence`, which runs, had better swap its last `num_pages` pages than compute
        them again.
        """
        num_before = sequence.num_pages - num_pages
        return self.swap_seconds(num_pages) < self._compute_seconds(num_pages, num_before)

    def round_trip_seconds(self, sequence: Sequence) -> float:
        """What it takes to copy out and in what the device's tree has of one that waits."""
        return self._round_trip_seconds(sequence, sequence.prefix.num_pages, 0)

    def _round_trip_seconds(self, sequence: Sequence, num_full: int, num_safe: int) -> float:
        """Of its first `num_full` pages, of which the device does not lose the first `num_safe`."""
        num_dirty = num_full - self._host.num_held_of(sequence, num_full)
        return self.copy_seconds(num_dirty + num_full - num_safe)

    def copy_seconds(self, num_pages: int) -> float:
        """What it takes to copy `num_pages` one way."""
        return num_pages * self._config.copy_seconds

    def _compute_seconds(self, num_pages: int, num_before: int) -> float:
        if self._cost is None:
            return float("inf")
        new, cached = num_pages * self._page_tokens, num_before * self._page_tokens
        return self._cost.prefill_seconds(float(new), float(cached))

    def num_to_fetch(self, sequence: Sequence) -> int:
        """How many pages of one that waits `begin_load` would bring in if it started now."""
        return self._num_worth_loading(sequence, sequence.prefix.num_pages)

    def _num_worth_loading(self, sequence: Sequence, first: int) -> int:
        """Pages behind the first `first` that are here; 0 if they are computed sooner."""
        num_reusable = (sequence.num_tokens - 1) // self._page_tokens
        num_pages = self._host.num_held_of(sequence, num_reusable) - first
        if num_pages <= 0 or sequence.is_compact:
            return 0
        is_slow = self.copy_seconds(num_pages) >= self._compute_seconds(num_pages, first)
        return 0 if is_slow else num_pages

    def fetch(self, sequence: Sequence, num_pages: int, *, spare: int, now: float) -> bool:
        """Bring in the next `num_pages` pages of `sequence` ahead of its start; False if fewer than
        `spare` pages would stay available.
        """
        cache, first = self._cache, sequence.prefix.num_pages
        node, _ = cache.pin(sequence.path(first))
        if cache.num_available < num_pages + spare:
            cache.unpin(node, now=now)
            return False
        sequence.fetched = Fetched(node, first, cache.allocate(num_pages))
        self._bring(sequence, first, node, sequence.fetched.pages, now)
        return True

    def give_back(self, *, besides: Sequence | None = None, now: float) -> bool:
        """Free the pages of all that wait but `besides`; False if there are none."""
        waiting = [s for s in self._loading if s.fetched is not None and s is not besides]
        for sequence in waiting:
            self._give_back(sequence, now)
        return bool(waiting)

    def _give_back(self, sequence: Sequence, now: float) -> None:
        assert sequence.fetched is not None
        self.abandon(sequence, now=now)
        self._cache.free(sequence.fetched.pages)
        self._cache.unpin(sequence.fetched.node, now=now)
        sequence.fetched = None

    def begin_load(self, sequence: Sequence, *, now: float) -> bool:
        """Bring in what the host has of `sequence`, which has a slot; False if that is nothing, is
        there already, or would take longer than to compute it. What the host kept for it is
        released.
        """
        if sequence in self._loading:
            is_begun = self._go_on(sequence, now)
        else:
            first = sequence.num_held
            num_pages = self._num_worth_loading(sequence, first)
            is_begun = num_pages > 0
            if is_begun:
                pages = self._slots.tables.pages[sequence.slot, first : first + num_pages]
                assert sequence.node is not None
                self._bring(sequence, first, sequence.node, pages.copy(), now)
        self.release(sequence, now=now)
        return is_begun

    def should_follow(self, sequence: Sequence) -> bool:
        """Whether `sequence`, still waiting, would bring in what is on its way for another that
        runs. Its own copy would come after that one.
        """
        return (
            sequence.fetched is None
            and any(incoming.brings_next_of(sequence) for incoming in self._started)
            and self.num_to_fetch(sequence) > 0
            and not self._host.int8
        )

    def is_coming(self, sequence: Sequence) -> bool:
        """Whether what `sequence` would fetch is on its way for another, be it one that waits."""
        incoming = (incoming.brings_next_of(sequence) for incoming in self._incoming)
        return not self._host.int8 and any(incoming)

    def _go_on(self, sequence: Sequence, now: float) -> bool:
        """The pages that `sequence` fetched are in its row, but for those that the tree had."""
        incoming = self._incoming_of(sequence)
        assert sequence.node is not None
        end = incoming.first + len(incoming.host_pages)
        num_shared = min(sequence.num_held, end) - incoming.first
        incoming.skip(num_shared, below=sequence.node)
        if incoming.num_left:
            return True
        self._end(incoming, now)
        self._slots.share(sequence, now=now)
        return False

    def _bring(
        self, sequence: Sequence, first: int, below: CacheNode, pages: PageArray, now: float
    ) -> None:
        node, host_pages = self._host.pin(sequence, first + len(pages), now=now)
        self._incoming.append(
            Incoming(
                sequence=sequence,
                node=node,
                first=first,
                below=below,
                host_pages=host_pages[first:],
                device_pages=pages,
            )
        )

    def _incoming_of(self, sequence: Sequence) -> Incoming:
        return next(incoming for incoming in self._incoming if incoming.sequence is sequence)

    def end_loads(self, *, now: float) -> list[Sequence]:
        """Requests whose pages are all there, in the batches until now."""
        there = [incoming for incoming in self._started if not incoming.num_left]
        for incoming in there:
            self._end(incoming, now)
            self._slots.share(incoming.sequence, now=now)
        return [incoming.sequence for incoming in there]

    def rush(self, *, now: float) -> Sequence | None:
        """The first of the loading requests, whose other pages come in before the next step. They
        can be shared when that has succeeded, like what it computes."""
        if not self._started:
            return None
        incoming = self._started[0]
        self._moves.append(self._upload(incoming, incoming.num_left, before_step=True))
        self._end(incoming, now)
        return incoming.sequence

    @property
    def _started(self) -> list[Incoming]:
        return [each for each in self._incoming if each.sequence.stage is Stage.LOADING]

    def abandon(self, sequence: Sequence, *, now: float) -> None:
        """`sequence`, that was loading, is not to run."""
        incoming = self._incoming_of(sequence)
        self._incoming.remove(incoming)
        self._host.unpin(incoming.node, now=now)

    def forget(self, *, now: float) -> None:
        """The engine failed: nobody knows what it copied."""
        self.give_back(now=now)
        assert not self._incoming
        self._moves.clear()
        for sequence in list(self._kept):
            self.release(sequence, now=now)
        self.resident.clear()
        self._host.clear()

    def with_moves(self, batch: Batch) -> Batch:
        """`batch` with the copies that go with it."""
        moves, self._moves = self._moves, []
        budget = self._pages_beside(batch) if self._incoming else 0
        for incoming in sorted(self._incoming, key=lambda each: each.sequence.fetched is not None):
            num_pages = min(budget, incoming.num_left)
            if not num_pages:
                continue
            moves.append(self._upload(incoming, num_pages, before_step=False))
            budget -= num_pages
        return replace(batch, moves=tuple(moves)) if moves else batch

    def _pages_beside(self, batch: Batch) -> int:
        """How many pages cross while `batch` is computed."""
        copy_seconds = self._config.copy_seconds
        if self._cost is None or not copy_seconds:
            return self._slots.tables.pages.size
        num_pages = predicted_seconds(self._cost, batch) / copy_seconds
        return max(MIN_STEP_PAGES, int(num_pages))

    def _upload(self, incoming: Incoming, num_pages: int, *, before_step: bool) -> Move:
        self.totals.uploaded_pages += num_pages
        return incoming.move(num_pages, int8=self._host.int8, before_step=before_step)

    def _end(self, incoming: Incoming, now: float) -> None:
        sequence = incoming.sequence
        self._incoming.remove(incoming)
        self._host.unpin(incoming.node, now=now)
        if self._host.int8:
            sequence.num_exact = sequence.num_held
        num_tokens = len(incoming.host_pages) * self._page_tokens
        sequence.num_computed += num_tokens
        if sequence.served_from_cache is None:
            self.totals.loaded_tokens += num_tokens

    def check(self) -> None:
        assert all(incoming.num_left >= 0 for incoming in self._incoming)
        coming = [incoming.node for incoming in self._incoming]
        self._host.check(pinned=[*coming, *self._kept.values()])


def make_host_tier(
    config: SchedulerConfig, cache: PageCache, slots: Slots, totals: TierTotals
) -> HostTier | None:
    """None without that tier."""
    return HostTier(config, cache, slots, totals) if config.tiers.host_pages else None
