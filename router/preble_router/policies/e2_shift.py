"""E2 after the fact: moving key prefixes off a worker that carries too much.

Looked at now and then, never per request. A *redirect* sends the future exploits of a key prefix
from the heaviest worker to the lightest. Where that does not suffice, a prefix whose requests queue
longer and longer there gets the lightest worker as a second holder.
"""

from preble_router.cluster_tree import ClusterTree
from preble_router.policies.e2_window import Assigned, AssignmentWindow
from preble_router.residence import ClusterNode

BALANCE_THRESHOLD = 1.5
"""Th_bal: the heaviest worker may carry so many times the load of the lightest."""
INTERVAL_SECONDS = 10.0
REQUESTS_PER_WORKER = 50
"""Assignments per worker before loads are worth comparing."""
QUEUE_GROWTH = 2.0
"""Queueing in the later half of the window over that in the earlier one that earns a copy."""


class LoadShift:
    """Redirects and copies in force."""

    def __init__(self, tree: ClusterTree, window: AssignmentWindow) -> None:
        self._tree = tree
        self._window = window
        self._redirects: dict[ClusterNode, dict[int, int]] = {}
        self._copies: dict[ClusterNode, int] = {}
        self.due_at = float("-inf")

    def redirect(self, nodes: list[ClusterNode], slot: int) -> int:
        """Where an exploit of `slot` along `nodes` goes instead; `slot` itself by default."""
        if not self._redirects and not self._copies:
            return slot
        for node in reversed(nodes):
            if node in self._copies:
                return self._copies[node]
            targets = self._redirects.get(node)
            if targets is not None and slot in targets:
                return targets[slot]
        return slot

    def placed(self, nodes: list[ClusterNode], slot: int) -> None:
        """A request along `nodes` went to `slot`: a copy ordered there is being made."""
        for node in nodes:
            if self._copies.get(node) == slot:
                del self._copies[node]

    def forget(self, slot: int) -> None:
        """The worker of `slot` is gone."""
        self._copies = {node: to for node, to in self._copies.items() if to != slot}
        for targets in self._redirects.values():
            for source in [s for s, to in targets.items() if slot in (s, to)]:
                del targets[source]
        self._redirects = {node: targets for node, targets in self._redirects.items() if targets}

    def balance(self, loads: dict[int, float], decodes: dict[int, float], *, now: float) -> None:
        """Compare the `loads` of all slots in use, in seconds, and act on them.

        `decodes` are the seconds that a request decodes on each.
        """
        self.due_at = now + INTERVAL_SECONDS
        self._prune()
        if len(loads) < 2 or self._window.counts.sum() < REQUESTS_PER_WORKER * len(loads):
            return
        heavy, light = _extremes(loads)
        movable = self._movable(heavy, decodes[heavy])
        while _is_unbalanced(loads, heavy, light) and movable:
            key, cost = movable.pop(0)
            if loads[light] + cost > loads[heavy] - cost:
                break
            self._redirects.setdefault(key, {})[heavy] = light
            loads[heavy] -= cost
            loads[light] += cost
            heavier, light = _extremes(loads)
            if heavier != heavy:
                heavy, movable = heavier, self._movable(heavier, decodes[heavier])
        if _is_unbalanced(loads, heavy, light):
            self._copy_where_queues_grow(heavy, light, now=now)

    def _movable(self, slot: int, decode_seconds: float) -> list[tuple[ClusterNode, float]]:
        """Key prefixes assigned to `slot` and not redirected yet, cheapest first."""
        costs = [
            (sum(entry.seconds + decode_seconds for entry in entries), order, key)
            for order, (key, entries) in enumerate(self._window.by_key[slot].items())
            if slot not in self._redirects.get(key, {})
        ]
        return [(key, cost) for cost, _, key in sorted(costs, key=lambda c: c[:2])]

    def _copy_where_queues_grow(self, heavy: int, light: int, *, now: float) -> None:
        for key, entries in self._window.by_key[heavy].items():
            holders = key.payload.warm
            if _queue_grows(list(entries), now - self._window.seconds / 2.0) and not (
                holders >> light & 1
            ):
                self._copies[key] = light

    def _prune(self) -> None:
        """Drop what speaks of nodes that have left the tree."""
        self._redirects = {n: to for n, to in self._redirects.items() if n.parent is not None}
        self._copies = {n: to for n, to in self._copies.items() if n.parent is not None}


def key_prefix(end: ClusterNode) -> ClusterNode | None:
    """The deepest node down to `end` that is longer than all its ancestors together."""
    above = 0
    node = end
    while (parent := node.parent) is not None:
        above += len(node.edge)
        node = parent
    node = end
    while (parent := node.parent) is not None:
        length = len(node.edge)
        above -= length
        if length > above:
            return node
        node = parent
    return None


def _extremes(loads: dict[int, float]) -> tuple[int, int]:
    """The heaviest and the lightest slot, the lowest among equals."""
    heavy = max(sorted(loads), key=lambda slot: loads[slot])
    light = min(sorted(loads), key=lambda slot: loads[slot])
    return heavy, light


def _is_unbalanced(loads: dict[int, float], heavy: int, light: int) -> bool:
    return heavy != light and loads[heavy] > BALANCE_THRESHOLD * loads[light]


def _queue_grows(entries: list[Assigned], middle: float) -> bool:
    early = [e.queue_seconds for e in entries if e.queue_seconds is not None and e.at < middle]
    late = [e.queue_seconds for e in entries if e.queue_seconds is not None and e.at >= middle]
    if not early or not late:
        return False
    early_mean, late_mean = sum(early) / len(early), sum(late) / len(late)
    return late_mean > 0.0 and late_mean >= QUEUE_GROWTH * early_mean
