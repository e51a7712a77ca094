"""The analysis of a trace, held against counting token by token."""

import random
from collections import Counter
from itertools import accumulate

import numpy as np
import pytest

from preble.page_keys import pack_tokens, unpack_tokens
from preble_loadgen.analysis import Analysis, analyze, spread
from preble_loadgen.prompt_pieces import cut_prompts
from preble_loadgen.prompts import PromptMaker
from preble_loadgen.reuse_distance import reuses
from preble_loadgen.trace_request import Segment, TraceRequest
from preble_loadgen.workloads import WorkloadOptions, make_workload

Prefix = tuple[object, ...]


def request(
    index: int,
    segments: list[tuple[int, int]] | None = None,
    *,
    tokens: list[int] | None = None,
    at: float | None = None,
    namespace: str = "",
    output_tokens: int = 1,
) -> TraceRequest:
    return TraceRequest(
        index=index,
        line=index + 2,
        at=float(index) if at is None else at,
        segments=tuple(Segment(*pair) for pair in segments or []),
        token_ids=pack_tokens(tokens) if tokens else b"",
        output_tokens=output_tokens,
        namespace=namespace,
    )


def random_trace(seed: int, *, stated_as_tokens: bool = False) -> list[TraceRequest]:
    """Few nodes and lengths, so that prompts part everywhere, inside segments too."""
    rng = random.Random(seed)
    requests = []
    for index in range(rng.randrange(1, 40)):
        namespace = rng.choice(["", "", "a"])
        if stated_as_tokens:
            prompt = [rng.randrange(2) for _ in range(rng.randrange(1, 8))]
            requests.append(request(index, tokens=prompt, namespace=namespace))
        else:
            path = [(rng.randrange(3), rng.randrange(1, 4)) for _ in range(rng.randrange(1, 5))]
            requests.append(request(index, path, namespace=namespace))
    return requests


def prefixes(r: TraceRequest) -> list[Prefix]:
    """Every prefix of the prompt, told apart by namespace."""
    if r.token_ids:
        tokens: list[object] = unpack_tokens(r.token_ids).tolist()
    else:
        tokens = [(s.id, i) for s in r.segments for i in range(s.length)]
    return [(r.namespace, *tokens[: n + 1]) for n in range(len(tokens))]


def hit_share(requests: list[TraceRequest], num_workers: int) -> float:
    rng = random.Random(0)
    held: list[set[Prefix]] = [set() for _ in range(num_workers)]
    hits = total = 0
    for r in requests:
        cache, prompt = held[rng.randrange(num_workers)], prefixes(r)
        hits += sum(prefix in cache for prefix in prompt)
        total += len(prompt)
        cache.update(prompt)
    return hits / total


def key_end(r: TraceRequest, counts: Counter[Prefix]) -> int:
    """Tokens of the key portion."""
    prompt = prefixes(r)
    number = [counts[prefix] for prefix in prompt]
    alone = sum(n == 1 for n in number)
    last = alone if r.token_ids else min(alone, r.segments[-1].length)
    until = len(prompt) - last or len(prompt)
    ends = [n for n in range(1, until + 1) if n == until or number[n] < number[n - 1]]
    if last == len(prompt):
        return len(prompt)
    starts = [0, *ends[:-1]]
    return max(end for start, end in zip(starts, ends, strict=True) if end - start > start)


def token_reuses(requests: list[TraceRequest]) -> Counter[tuple[int, int]]:
    """(requests apart, distinct tokens between) of every reused token."""
    last: dict[Prefix, int] = {}
    found: Counter[tuple[int, int]] = Counter()
    for position, r in enumerate(requests):
        prompt = prefixes(r)
        for prefix in prompt:
            if prefix in last:
                between = sum(used > last[prefix] for used in last.values())
                found[position - last[prefix], between] += 1
        last.update(dict.fromkeys(prompt, position))
    return found


@pytest.mark.parametrize("stated_as_tokens", [False, True])
@pytest.mark.parametrize("seed", range(60))
def test_against_counting_every_token(seed: int, stated_as_tokens: bool) -> None:
    requests = random_trace(seed, stated_as_tokens=stated_as_tokens)
    found = analyze(requests)
    sharing = found.sharing
    counts = Counter(prefix for r in requests for prefix in prefixes(r))
    assert sharing.unique_tokens == len(counts)
    assert sharing.prompt_tokens == counts.total()
    shared = [100 * np.mean([counts[p] > 1 for p in prefixes(r)]) for r in requests]
    assert sharing.shared_percent.mean == pytest.approx(np.mean(shared))
    assert sharing.shared_percent.sd == pytest.approx(np.std(shared))
    assert sharing.ideal_hit_share == pytest.approx(hit_share(requests, 1))
    for workers, share in sharing.random_hit_shares.items():
        assert share == pytest.approx(hit_share(requests, workers))
    ends = [key_end(r, counts) for r in requests]
    portions = [100 * end / len(prefixes(r)) for r, end in zip(requests, ends, strict=True)]
    assert found.key_portions.portion_percent.mean == pytest.approx(np.mean(portions))
    keys = Counter(prefixes(r)[end - 1] for r, end in zip(requests, ends, strict=True))
    assert found.key_portions.num_keys == len(keys)
    assert found.key_portions.requests_per_key.quantiles["max"] == max(keys.values())


@pytest.mark.parametrize("seed", range(40))
def test_reuse_against_counting_every_token(seed: int) -> None:
    requests = random_trace(seed)
    expected = token_reuses(requests)
    found = reuses(cut_prompts(requests))
    got: Counter[tuple[int, int]] = Counter()
    for tokens, apart, between in zip(found.tokens, found.requests, found.between, strict=True):
        got[int(apart), int(between)] += int(tokens)
    assert got == expected
    distance = analyze(requests).reuse_distance
    if not expected:
        assert distance is None
    else:
        assert distance is not None
        assert distance.requests.quantiles["max"] == max(apart for apart, _ in expected)


def test_tokens_and_segments_tell_the_same() -> None:
    trace = make_workload("programming", WorkloadOptions(requests=60, prefixes=5, seed=1))
    maker = PromptMaker(vocab_size=1 << 30, salt=trace.salt)
    stated = [
        request(r.index, tokens=maker.tokens(r).tolist(), output_tokens=r.output_tokens)
        for r in trace.requests
    ]
    by_segments, by_tokens = analyze(trace.requests), analyze(stated)
    assert by_tokens.sharing == by_segments.sharing
    assert by_tokens.reuse_distance == by_segments.reuse_distance
    assert by_tokens.prompt_tokens == by_segments.prompt_tokens


def test_arrivals() -> None:
    times = [0.0, 0.5, 0.9, 1.4, 20.0]
    found = analyze([request(i, [(1, 5)], at=at) for i, at in enumerate(times)]).arrivals
    assert (found.span_seconds, found.rate) == (20.0, 4 / 20)
    gaps = np.diff(times)
    assert found.gap_cv == pytest.approx(gaps.std() / gaps.mean())
    assert found.peak_rates == {1: 3.0, 10: 0.4}, "no minute passed"
    assert (found.num_sessions, found.num_closed_loop) == (0, 0)


def test_one_request_alone() -> None:
    found = analyze([request(0, [(1, 5), (2, 3)], output_tokens=7)])
    assert isinstance(found, Analysis)
    assert found.prompt_tokens.mean == 8 and found.output_tokens.mean == 7
    assert found.arrivals.rate == 0 and found.arrivals.gap_cv == 0 and not found.arrivals.peak_rates
    assert found.sharing.ideal_hit_share == 0
    assert found.reuse_distance is None


@pytest.mark.parametrize("seed", range(5))
def test_a_weighted_spread_is_that_of_repeated_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, weights = rng.integers(0, 9, 30), rng.integers(1, 5, 30)
    weighted, repeated = spread(values, weights), spread(np.repeat(values, weights))
    assert weighted.quantiles == repeated.quantiles
    assert weighted.mean == pytest.approx(repeated.mean)
    assert weighted.sd == pytest.approx(repeated.sd)
    assert list(accumulate(repeated.quantiles.values(), max)) == [*repeated.quantiles.values()]
