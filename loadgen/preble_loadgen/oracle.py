"""The best placement that a search finds when it knows every arrival beforehand: a mark to aim at.

Placements are judged by a static model that flatters them: each worker serves its requests in the
order they come, one prefill at a time, in the cost model's seconds; its cache never evicts, decodes
cost nothing, and a step has no fixed part. So for a given placement the mean time to first token
here is a lower bound. The search is random greedy placements, then moves of whole prefixes and of
single requests; it finds a good placement, not certainly the best. What no policy reaches may
therefore be the flattery, and what a policy beats was missed by the search: it is a mark, no proof.
"""

import itertools
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from preble.cost import CostModel
from preble.page_keys import KEY_BYTES
from preble.prefix_tree import Node, PrefixTree


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request: when it comes, the key path of its prompt's full pages, its prompt's tokens."""

    at: float
    page_keys: bytes
    num_tokens: int


@dataclass(frozen=True, slots=True)
class OraclePlacement:
    """A worker per arrival, and what the static model says of it.

    Attributes:
        mean_ttft: seconds.
        cached_share: of all prompt tokens.
    """

    workers: tuple[int, ...]
    mean_ttft: float
    cached_share: float


class _Part:
    """Payload of the tree: nothing, a node is its own name."""

    def split(self, num_pages: int) -> Self:
        return type(self)()


@dataclass(slots=True)
class _Score:
    """Of one worker's requests: waiting summed, tokens served from its cache."""

    seconds: float = 0.0
    cached: int = 0


class StaticModel:
    """Workers that serve known arrivals, first come first served, with caches that never evict."""

    def __init__(
        self, arrivals: Sequence[Arrival], cost: CostModel, *, page_tokens: int = 16
    ) -> None:
        assert all(a.at <= b.at for a, b in itertools.pairwise(arrivals))
        self.arrivals = arrivals
        self.chains = _chains(arrivals, page_tokens)
        self._cost = cost

    def seconds(self, index: int, cached: int) -> float:
        """To prefill arrival `index` behind `cached` tokens; the last token is always computed."""
        num_tokens = self.arrivals[index].num_tokens
        cached = min(cached, num_tokens - 1)
        return self._cost.prefill_seconds(float(num_tokens - cached), float(cached))

    def cached(self, index: int, held: set[Node[_Part]]) -> int:
        """Tokens of arrival `index` that a worker with the nodes `held` has."""
        tokens = 0
        for node, num_tokens in self.chains[index]:
            if node not in held:
                break
            tokens += num_tokens
        return tokens

    def score(self, indices: Sequence[int]) -> _Score:
        """One worker that serves exactly these arrivals, given in order."""
        held: set[Node[_Part]] = set()
        free_at, score = 0.0, _Score()
        for index in indices:
            cached = self.cached(index, held)
            held.update(node for node, _ in self.chains[index])
            at = self.arrivals[index].at
            free_at = max(free_at, at) + self.seconds(index, cached)
            score.seconds += free_at - at
            score.cached += cached
        return score


def best_placement(
    arrivals: Sequence[Arrival],
    cost: CostModel,
    *,
    num_workers: int,
    rng: random.Random,
    page_tokens: int = 16,
    num_starts: int = 20,
    num_moves: int = 400,
) -> OraclePlacement:
    """The placement of `arrivals`, ascending in time, with the least mean TTFT that was found.

    Of `num_starts` greedy placements with random regard for caches, the best is improved by
    `num_moves` random moves that are kept if they help.
    """
    assert arrivals and num_workers > 0
    model = StaticModel(arrivals, cost, page_tokens=page_tokens)
    starts = [_greedy(model, num_workers, rng) for _ in range(num_starts)]
    workers = min(starts, key=lambda workers: _total(_scores(model, workers, num_workers)))
    scores = _scores(model, workers, num_workers)
    families = _families(model)
    for _ in range(num_moves):
        moved = families[rng.randrange(len(families))]
        if rng.random() < 0.5:
            moved = [rng.choice(moved)]
        tried = workers.copy()
        to = rng.randrange(num_workers)
        for index in moved:
            tried[index] = to
        touched = {to, *(workers[index] for index in moved)}
        found = _scores(model, tried, num_workers, only=touched)
        new = {**scores, **found}
        if _total(new) < _total(scores):
            workers, scores = tried, new
    prompts = sum(arrival.num_tokens for arrival in arrivals)
    cached = sum(score.cached for score in scores.values())
    return OraclePlacement(tuple(workers), _total(scores) / len(arrivals), cached / prompts)


def _greedy(model: StaticModel, num_workers: int, rng: random.Random) -> list[int]:
    """Each arrival where waiting plus its prefill, the latter times a random weight, is least."""
    weight = 10.0 ** rng.uniform(-1.0, 2.0)
    free_at = [0.0] * num_workers
    held: list[set[Node[_Part]]] = [set() for _ in range(num_workers)]
    workers = []
    for index, arrival in enumerate(model.arrivals):
        own = [model.seconds(index, model.cached(index, nodes)) for nodes in held]
        costs = [
            max(free - arrival.at, 0.0) + weight * seconds
            for free, seconds in zip(free_at, own, strict=True)
        ]
        least = min(costs)
        to = rng.choice([worker for worker, cost in enumerate(costs) if cost == least])
        free_at[to] = max(free_at[to], arrival.at) + own[to]
        held[to].update(node for node, _ in model.chains[index])
        workers.append(to)
    return workers


def _scores(
    model: StaticModel, workers: list[int], num_workers: int, *, only: set[int] | None = None
) -> dict[int, _Score]:
    given: dict[int, list[int]] = {worker: [] for worker in only or range(num_workers)}
    for index, worker in enumerate(workers):
        if worker in given:
            given[worker].append(index)
    return {worker: model.score(indices) for worker, indices in given.items()}


def _total(scores: dict[int, _Score]) -> float:
    return sum(score.seconds for score in scores.values())


def _families(model: StaticModel) -> list[list[int]]:
    """The arrivals through each node of the tree, which a move takes elsewhere together."""
    through: dict[Node[_Part], list[int]] = defaultdict(list)
    for index, chain in enumerate(model.chains):
        for node, _ in chain:
            through[node].append(index)
    families = [indices for indices in through.values() if len(indices) > 1]
    return families or [[index] for index in range(len(model.chains))]


def _chains(arrivals: Sequence[Arrival], page_tokens: int) -> list[list[tuple[Node[_Part], int]]]:
    """Per arrival the nodes that its prompt runs through, with their tokens, from the top."""
    tree: PrefixTree[_Part] = PrefixTree(KEY_BYTES, lambda _: _Part())
    for arrival in arrivals:
        tree.insert(arrival.page_keys)
    return [
        [
            (node, len(node.edge) // KEY_BYTES * page_tokens)
            for node in tree.match(arrival.page_keys).nodes
        ]
        for arrival in arrivals
    ]
