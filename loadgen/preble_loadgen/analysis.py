"""What a trace asks of a cluster: lengths, arrivals, and how much its prompts share. Pure.

Nothing here knows of workers' speeds or cache sizes: the shares are those of caches that never
evict, an upper bound for a given placement.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preble_loadgen.prompt_pieces import PromptPieces, cut_prompts
from preble_loadgen.reuse_distance import reuses
from preble_loadgen.scaling import prompt_tokens
from preble_loadgen.trace_request import TraceRequest

RANDOM_WORKERS = (4, 8, 16, 64)
PEAK_SECONDS = (1, 10, 60)
QUANTILES = {
    "min": 0.0,
    "p1": 0.01,
    "p10": 0.1,
    "p25": 0.25,
    "p50": 0.5,
    "p75": 0.75,
    "p90": 0.9,
    "p99": 0.99,
    "max": 1.0,
}
Numbers = npt.NDArray[np.float64] | npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, standard deviation (of the population) and quantiles by the names of `QUANTILES`."""

    mean: float
    sd: float
    quantiles: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """When requests come.

    Attributes:
        span_seconds: from the first to the last.
        rate: requests per second over the span; 0 for one moment.
        gap_cv: coefficient of variation of the gaps: 1 for Poisson arrivals, more for bursts.
        peak_rates: seconds of a window to the requests per second in the fullest such window;
            only windows that the span fills.
        num_sessions: conversations.
        num_closed_loop: requests that wait for an answer; their arrivals are estimates.
    """

    span_seconds: float
    rate: float
    gap_cv: float
    peak_rates: Mapping[int, float]
    num_sessions: int
    num_closed_loop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """What prompts have in common; percentages are 0 to 100, shares 0 to 1.

    Attributes:
        prompt_tokens: of all requests.
        unique_tokens: of the prefix tree that all prompts make.
        shared_percent: of a prompt's tokens, those that another request has, too.
        ideal_hit_share: of all prompt tokens, those that an earlier request had.
        random_hit_shares: the same where each request goes to a random one of so many workers, and
            the earlier request must have gone there, too.
    """

    prompt_tokens: int
    unique_tokens: int
    shared_percent: Spread
    ideal_hit_share: float
    random_hit_shares: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPortions:
    """The key portion of a prompt: down to its deepest part longer than all before it together.

    A part ends where prompts part. The last segment does not count where no other request has it.

    Attributes:
        num_keys: different ones.
        portion_percent: of a prompt's tokens.
        requests_per_key: popularity.
        top_shares: of all requests, those of the 1, 10 and 100 most popular keys.
    """

    num_keys: int
    portion_percent: Spread
    requests_per_key: Spread
    top_shares: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseDistance:
    """Between uses of the same tokens, as reuse_distance.py counts; None where nothing is reused.

    Attributes:
        requests: until the next request that has them.
        unique_tokens: that came in between.
    """

    requests: Spread
    unique_tokens: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """All figures of a trace."""

    num_requests: int
    num_namespaces: int
    prompt_tokens: Spread
    output_tokens: Spread
    arrivals: Arrivals
    sharing: Sharing
    key_portions: KeyPortions
    reuse_distance: ReuseDistance | None


def analyze(requests: Sequence[TraceRequest], *, seed: int = 0) -> Analysis:
    """The figures of a trace's requests, at least one.

    Args:
        seed: of the random placements.
    """
    assert requests
    prompts = cut_prompts(requests)
    return Analysis(
        num_requests=len(requests),
        num_namespaces=len({request.namespace for request in requests}),
        prompt_tokens=spread(np.array([prompt_tokens(request) for request in requests])),
        output_tokens=spread(np.array([request.output_tokens for request in requests])),
        arrivals=_arrivals(requests),
        sharing=_sharing(prompts, seed),
        key_portions=_key_portions(prompts, requests),
        reuse_distance=_reuse_distance(prompts),
    )


def spread(values: Numbers, weights: Numbers | None = None) -> Spread:
    """Of the values, each counted `weights` times; once unless given."""
    order = np.argsort(values, kind="stable")
    ordered = np.asarray(values, dtype=np.float64)[order]
    counts = np.ones(len(ordered)) if weights is None else np.asarray(weights, np.float64)[order]
    mean = float(np.average(ordered, weights=counts))
    sd = float(np.sqrt(np.average((ordered - mean) ** 2, weights=counts)))
    until = np.cumsum(counts) / counts.sum()
    places = np.searchsorted(until, np.array([*QUANTILES.values()]) - 1e-12)
    quantiles = ordered[np.minimum(places, len(ordered) - 1)].tolist()
    return Spread(mean, sd, dict(zip(QUANTILES, quantiles, strict=True)))


def _arrivals(requests: Sequence[TraceRequest]) -> Arrivals:
    times = np.array([request.at for request in requests])
    gaps = np.diff(times)
    span = float(times[-1] - times[0])
    return Arrivals(
        span_seconds=span,
        rate=len(gaps) / span if span > 0 else 0.0,
        gap_cv=float(gaps.std() / gaps.mean()) if span > 0 else 0.0,
        peak_rates={n: _peak(times, n) for n in PEAK_SECONDS if n <= span},
        num_sessions=len({request.session for request in requests if request.session}),
        num_closed_loop=sum(request.think_seconds is not None for request in requests),
    )


def _peak(times: Numbers, seconds: float) -> float:
    ends = np.searchsorted(times, times + seconds, side="left")
    return float((ends - np.arange(len(times))).max() / seconds)


def _sharing(prompts: PromptPieces, seed: int) -> Sharing:
    lengths = [prompts.lengths[path] for path in prompts.pieces]
    shared = [
        100 * own[prompts.counts[path] > 1].sum() / own.sum()
        for own, path in zip(lengths, prompts.pieces, strict=True)
    ]
    total = sum(int(own.sum()) for own in lengths)
    return Sharing(
        prompt_tokens=total,
        unique_tokens=int(prompts.lengths.sum()),
        shared_percent=spread(np.array(shared)),
        ideal_hit_share=_hit_tokens(prompts, 1, seed) / total,
        random_hit_shares={n: _hit_tokens(prompts, n, seed) / total for n in RANDOM_WORKERS},
    )


def _hit_tokens(prompts: PromptPieces, num_workers: int, seed: int) -> int:
    """Prompt tokens found in caches that never evict, each request on a random worker."""
    rng = random.Random(seed)
    held: list[dict[int, int]] = [{} for _ in range(num_workers)]
    num_hits = 0
    for path in prompts.runs:
        cache = held[rng.randrange(num_workers)]
        matches = True
        for node, length in path:
            have = cache.get(node, 0)
            if matches:
                num_hits += min(have, length)
                matches = have >= length
            if have < length:
                cache[node] = length
    return num_hits


def _key_portions(prompts: PromptPieces, requests: Sequence[TraceRequest]) -> KeyPortions:
    keys: list[int] = []
    portions: list[float] = []
    for path, request in zip(prompts.pieces, requests, strict=True):
        last = 0 if request.token_ids else request.segments[-1].length
        key, tokens, total = _key(prompts, path, last)
        keys.append(key)
        portions.append(100 * tokens / total)
    popularity = np.array(sorted(Counter(keys).values(), reverse=True))
    return KeyPortions(
        num_keys=len(popularity),
        portion_percent=spread(np.array(portions)),
        requests_per_key=spread(popularity),
        top_shares={n: float(popularity[:n].sum() / len(keys)) for n in (1, 10, 100)},
    )


def _key(prompts: PromptPieces, path: list[int], last: int) -> tuple[int, int, int]:
    """The piece in which the key portion ends, the portion's tokens, and the prompt's.

    Args:
        last: tokens of the prompt's last segment; 0 where segments are not known, and what no other
            prompt has is taken for it.
    """
    lengths, counts = prompts.lengths[path], prompts.counts[path]
    total = int(lengths.sum())
    private_tokens = int(lengths[counts == 1].sum())
    until = total - (min(last, private_tokens) if last else private_tokens)
    if until == 0:
        return path[-1], total, total
    key, portion, began = path[0], 0, 0
    ends = np.cumsum(lengths).tolist()
    for position, end in enumerate(ends):
        if end < until and counts[position + 1] == counts[position]:
            continue  # Prompts part only further down.
        if end - began > began:
            key, portion = path[position], end
        if end >= until:
            break
        began = end
    return key, portion, total


def _reuse_distance(prompts: PromptPieces) -> ReuseDistance | None:
    found = reuses(prompts)
    if not len(found.tokens):
        return None
    return ReuseDistance(
        requests=spread(found.requests, found.tokens),
        unique_tokens=spread(found.between, found.tokens),
    )
