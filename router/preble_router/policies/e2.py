"""E2, exploit or explore, as Preble published it (arXiv 2407.00023), without its prototype's bugs.

Exploit a cached prefix where less than half of the prompt is missing; otherwise feed a worker that
mostly decodes, or else explore: the least load, eviction and prefill cost of all workers.

    L_i  what was assigned to i within H seconds: prefills, and decodes of i's mean output length
    M_i  recomputing what i would evict for it, by how often that was shared within H
    P_i  prefilling what i has not cached
"""

import random
from collections.abc import Iterator
from itertools import islice

import numpy as np

from preble.types import WorkerSpec
from preble_router.booking import Booking
from preble_router.candidates import Candidates, Slots
from preble_router.cluster_tree import ClusterTree
from preble_router.policies.e2_shift import LoadShift, key_prefix
from preble_router.policies.e2_window import Assigned, AssignmentWindow, CacheRatio
from preble_router.policies.policy import Choice, RoutingPolicy
from preble_router.residence import ClusterNode
from preble_router.worker_table import Column, WorkerTable

WINDOW_SECONDS = 180.0
"""H."""
IMBALANCE_RATIO = 0.7
"""IMBALR: a worker that served a larger share of its prompts from cache mostly decodes."""
RATIO_SECONDS = 30.0
EVICTED_NODES_MAX = 64
"""Nodes looked at per worker to price an eviction."""


class E2(RoutingPolicy):
    name = "e2"

    def __init__(self) -> None:
        self._window = AssignmentWindow(WINDOW_SECONDS)
        self._ratio = CacheRatio(RATIO_SECONDS)
        self._specs: dict[int, WorkerSpec] = {}
        self._output_sums: dict[int, tuple[float, int]] = {}
        self._assigned: dict[str, Assigned] = {}
        self._now = float("-inf")

    def bind(self, tree: ClusterTree, table: WorkerTable) -> None:
        self._tree = tree
        self._table = table
        self._shift = LoadShift(tree, self._window)

    def choose(self, candidates: Candidates, rng: random.Random) -> Choice:
        self._window.expire(candidates.now)
        cached = candidates.cached_tokens - candidates.barred
        best = float(cached.max())
        missed = max(1.0, candidates.request.num_tokens - best)
        if missed < best:
            return self._exploit(candidates, np.flatnonzero(cached == best))
        ratios = self._ratio.ratios(candidates.now) - candidates.barred
        if float(ratios.max()) > IMBALANCE_RATIO:
            slot = self._lowest_id(np.flatnonzero(ratios == ratios.max()))
            return Choice(slot, f"decode-heavy: {ratios[slot]:.0%} of its prompts came from cache")
        terms = self.terms(candidates)
        cost = terms["load"] + terms["evict"] + terms["prefill"]
        slot = self._lowest_id(candidates.least(cost))
        return Choice(slot, f"explore: least cost {cost[slot]:.3f} s")

    def _exploit(self, candidates: Candidates, holders: Slots) -> Choice:
        load = self._load()[holders]
        slot = self._lowest_id(holders[load == load.min()])
        cached = int(candidates.cached_tokens[slot])
        reason = f"exploit: {cached} of {candidates.request.num_tokens} tokens cached"
        moved = self._shift.redirect(candidates.match.nodes, slot)
        if moved != slot and candidates.barred[moved] == 0.0:
            return Choice(moved, f"load shift: {reason} on {self._table.worker_ids[slot]}")
        return Choice(slot, reason)

    def terms(self, candidates: Candidates) -> dict[str, Column]:
        self._window.expire(candidates.now)
        evict, prefill = np.zeros((2, self._table.num_slots))
        for slot in candidates.open_slots.tolist():
            missed = float(candidates.missed_tokens[slot])
            prefill[slot] = self._specs[slot].cost.prefill_seconds(missed, 0.0)
            evict[slot] = self._evict_cost(slot, missed)
        return {"load": self._load(), "evict": evict, "prefill": prefill}

    def _load(self) -> Column:
        """L per slot, in seconds."""
        load: Column = self._window.load.copy()
        for slot in np.flatnonzero(self._window.counts).tolist():
            load[slot] += self._window.counts[slot] * self._decode_seconds(slot)
        return load

    def _decode_seconds(self, slot: int) -> float:
        """To decode the mean output length seen on `slot`."""
        total, count = self._output_sums.get(slot, (0.0, 0))
        return total / count * self._specs[slot].cost.decode_seconds(0.0) if count else 0.0

    def _evict_cost(self, slot: int, missed: float) -> float:
        """M of `slot`, in seconds."""
        short = missed - float(self._table.free_tokens[slot])
        requests = float(self._window.counts[slot])
        if short <= 0.0 or not requests:
            return 0.0
        cost_model, seconds = self._specs[slot].cost, 0.0
        for tokens, uses in self._evicted(slot, short):
            seconds += cost_model.prefill_seconds(tokens, 0.0) * uses / requests
        return seconds

    def _evicted(self, slot: int, short: float) -> Iterator[tuple[float, int]]:
        """(tokens, uses within H) of the nodes that LRU would evict to free `short` tokens."""
        for node in islice(self._tree.coldest(slot), EVICTED_NODES_MAX):
            if short <= 0.0:
                return
            tokens = float(self._tree.num_tokens(node))
            yield tokens, node.payload.uses
            short -= tokens

    def _lowest_id(self, slots: Slots) -> int:
        return min((int(slot) for slot in slots), key=lambda slot: self._table.worker_ids[slot])

    # Facts

    def joined(self, slot: int, spec: WorkerSpec) -> None:
        if slot == self._table.num_slots - 1:
            self._window.add_slots(self._table.num_slots)
            self._ratio.add_slots(self._table.num_slots)
        self._window.clear(slot)
        self._ratio.clear(slot)
        self._shift.forget(slot)
        self._specs[slot] = spec
        self._output_sums.pop(slot, None)

    def placed(self, candidates: Candidates, booking: Booking, path_end: ClusterNode) -> None:
        self._now = candidates.now
        self._window.expire(candidates.now)
        seconds = self._specs[booking.slot].cost.prefill_seconds(
            float(booking.prefill_tokens), float(booking.cached_tokens)
        )
        entry = Assigned(candidates.now, booking.slot, key_prefix(path_end), seconds)
        self._window.add(entry)
        self._shift.placed(candidates.match.nodes, booking.slot)
        self._assigned[booking.request_id] = entry

    def started(self, booking: Booking, *, cached_tokens: int, now: float) -> None:
        self._ratio.add(
            booking.slot,
            prompt_tokens=booking.prompt_tokens,
            cached_tokens=cached_tokens,
            now=now,
        )
        entry = self._assigned.get(booking.request_id)
        if entry is not None:
            entry.queue_seconds = now - booking.placed_at

    def closed(self, booking: Booking, *, output_tokens: int | None, now: float) -> None:
        self._assigned.pop(booking.request_id, None)
        if output_tokens:
            total, count = self._output_sums.get(booking.slot, (0.0, 0))
            self._output_sums[booking.slot] = (total + output_tokens, count + 1)

    # Time

    def next_wakeup(self) -> float | None:
        if not self._window.counts.sum():
            return None
        return max(self._shift.due_at, self._now)

    def tick(self, *, now: float) -> None:
        self._window.expire(now)
        loads = self._load()
        slots = [slot for slot in sorted(self._specs) if self._table.worker_ids[slot]]
        self._shift.balance(
            {slot: float(loads[slot]) for slot in slots},
            {slot: self._decode_seconds(slot) for slot in slots},
            now=now,
        )
