"""What local policies compete on: one worker, six kinds of requests.

alpaca       instructions after Alpaca, log-normal: prompt 20 (12) tokens, output 60 (60)
sharegpt     chats: recorded pairs of lengths, all turns until then in the prompt
humaneval    functions to complete, log-normal: prompt 170 (70), output 100 (80)
longbench    papers to sum up: recorded lengths, 2,600 and 290 on average
tool_use     the workload of that name, with 10 requests to each tool
claude_code  recorded sessions of a coding agent, in a closed loop, scaled down to fit the worker

The recorded pairs are those that fit `Contest.context`, drawn at random. A rate is stated as a
multiple of `saturation`, a figure of the cost model alone: no policy's capacity enters into it.
SLOs are those of Apt-Serve (arXiv 2504.07494) for ShareGPT, HumanEval and LongBench on OPT-13B;
alpaca has HumanEval's, tool_use ShareGPT's and claude_code LongBench's. They hold on every device.
"""

import random
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from preble.cost import CostModel
from preble.cost_library import kv_capacity_tokens, load_cost_model
from preble.errors import ConfigError
from preble_loadgen.arrivals import at_rate
from preble_loadgen.formats.length_pairs import read_length_pairs
from preble_loadgen.simulation_cells import Load
from preble_loadgen.tournament.cell import CellKey, Slo
from preble_loadgen.trace_request import TraceRequest
from preble_loadgen.traces import Trace, load_trace
from preble_loadgen.workloads import WorkloadOptions, make_workload
from preble_loadgen.workloads.distributions import clipped, log_normal
from preble_loadgen.workloads.options import Rng

MAX_SEQUENCES = 256
STATED_MAX_TOKENS = 2048
"""What requests state, so that no predictor learns a length from its limit."""
REQUESTS_PER_TOOL = 10
TURNS = 6
"""Of each session: many short ones press on a worker more than a few long ones."""
CACHE_SHARE = 0.9
"""Of a worker's cache, that the longest request may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Of a log-normal distribution of tokens."""

    mean: float
    deviation: float
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContest:
    """Requests as they come to one worker.

    Attributes:
        slo: that requests state.
        requests: or four times what a worker has under way, if that is more: a run is long beside
            what one of them takes.
        new_tokens, output_tokens: of a request on average, new being those that no cache has; by
            them, and not by what was drawn, a load becomes a rate.
        file: in the folder of traces; "" for generated ones.
        prompt, output: of those that are drawn.
        context: prompt plus output at most, in tokens.
        shares: whether prompts have prefixes in common.
        has_own_clock: arrivals are the trace's; they have no CV to choose.
    """

    name: str
    slo: Slo
    requests: int
    new_tokens: float
    output_tokens: float
    file: str = ""
    prompt: Lengths | None = None
    output: Lengths | None = None
    context: int = 2048
    shares: bool = False
    has_own_clock: bool = False


CHAT = Slo(ttft=1.0, tbt=1.0)
QUICK = Slo(ttft=0.5, tbt=0.5)
LONG = Slo(ttft=4.0, tbt=1.0)

WORKER_CONTESTS = {
    contest.name: contest
    for contest in (
        WorkerContest(
            name="alpaca",
            slo=QUICK,
            requests=1500,
            new_tokens=20,
            output_tokens=60,
            prompt=Lengths(mean=20, deviation=12, most=400),
            output=Lengths(mean=60, deviation=60, most=800),
        ),
        WorkerContest(
            name="sharegpt",
            slo=CHAT,
            requests=300,
            new_tokens=600,
            output_tokens=400,
            file="len_sharegpt8k_llama2.csv.gz",
        ),
        WorkerContest(
            name="humaneval",
            slo=QUICK,
            requests=900,
            new_tokens=170,
            output_tokens=100,
            prompt=Lengths(mean=170, deviation=70, most=700),
            output=Lengths(mean=100, deviation=80, most=800),
        ),
        WorkerContest(
            name="longbench",
            slo=LONG,
            requests=300,
            new_tokens=2640,
            output_tokens=295,
            file="len_arxivsum_llama2.csv.gz",
            context=4096,
        ),
        WorkerContest(
            name="tool_use",
            slo=CHAT,
            requests=600,
            new_tokens=900,
            output_tokens=43,
            shares=True,
        ),
        WorkerContest(
            name="claude_code",
            slo=LONG,
            requests=300,
            new_tokens=20_000,
            output_tokens=190,
            file="derived_cc_v6_global.jsonl.gz",
            context=131_072,
            shares=True,
            has_own_clock=True,
        ),
    )
}


def saturation(prompt: float, output: float, cost: CostModel, *, kv_tokens: int) -> float:
    """Requests/s that keep a worker busy, by the cost model alone.

    Each takes the prefill of `prompt` new tokens, and its share of `output` decode steps of as many
    requests as fit the cache on average. Prefill that hides behind the reading of the weights
    makes a worker faster than this, waiting for memory slower.
    """
    context = prompt + output / 2.0
    batch = mean_batch(context, kv_tokens)
    return 1.0 / (cost.prefill_seconds(prompt, 0.0) + output * cost.decode_seconds(context, batch))


def mean_batch(context: float, kv_tokens: int) -> float:
    """Requests of so many tokens each that run at the same time, if there are enough."""
    return max(1.0, min(MAX_SEQUENCES, kv_tokens / context))


def nominal_rate(contest: WorkerContest, cost_model: str) -> float:
    """Requests/s at load 1: `saturation` of the mean lengths."""
    kv_tokens = kv_capacity_tokens(cost_model)
    part = fitting_context(contest, kv_tokens) / contest.context
    return saturation(
        part * contest.new_tokens,
        part * contest.output_tokens,
        load_cost_model(cost_model),
        kv_tokens=kv_tokens,
    )


def num_requests(contest: WorkerContest, kv_tokens: int) -> int:
    """Of a cell."""
    batch = mean_batch(contest.new_tokens + contest.output_tokens / 2.0, kv_tokens)
    return contest.requests if contest.has_own_clock else max(contest.requests, round(4 * batch))


def fitting_context(contest: WorkerContest, kv_tokens: int) -> int:
    """Tokens that its longest request may have, where the worker's cache holds `kv_tokens`."""
    return min(contest.context, int(CACHE_SHARE * kv_tokens))


def worker_load(key: CellKey, traces: Path | None) -> Load:
    """The requests of a cell, and when they come.

    Raises:
        ConfigError: its trace cannot be read.
    """
    contest = WORKER_CONTESTS[key.workload]
    kv_tokens = kv_capacity_tokens(key.cost_model)
    requests, salt = _requests(contest, traces, kv_tokens=kv_tokens, seed=key.seed)
    slo = contest.slo
    stated = [
        replace(request, ttft_slo_seconds=slo.ttft, tbt_slo_seconds=slo.tbt) for request in requests
    ]
    if contest.has_own_clock:
        times = [request.at for request in stated]
        arrivals = at_rate(times, key.rate, rng=random.Random(key.seed))
        pace = arrivals[-1] / (times[-1] - times[0])
        return Load([_paced(request, pace) for request in stated], arrivals, salt)
    return Load(stated, gamma_arrivals(len(stated), key.rate, cv=key.cv, seed=key.seed), salt)


def gamma_arrivals(size: int, rate: float, *, cv: float, seed: int) -> list[float]:
    """Times in seconds, the first 0, `rate` per second on average; a CV of 1 is Poisson's.

    Gaps are rescaled to that average: at a CV of 4 a few hundred of them would be far off it, and
    policies are compared over rates.
    """
    gaps = np.random.default_rng([seed, 1]).gamma(cv**-2, cv**2, size - 1)
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    scaled: list[float] = (times * ((size - 1) / rate / times[-1])).tolist()
    return scaled


@lru_cache(maxsize=8)
def _requests(
    contest: WorkerContest, traces: Path | None, *, kv_tokens: int, seed: int
) -> tuple[tuple[TraceRequest, ...], int]:
    """They, and the salt of their trace."""
    size = num_requests(contest, kv_tokens)
    if contest.has_own_clock:
        trace = _recorded(_path(contest, traces))
        chosen = _sessions(trace.requests, size, seed)
        context = fitting_context(contest, kv_tokens)
        return replace(trace, requests=chosen).fitted(context).requests, trace.salt
    if contest.file or contest.prompt:
        pairs = _pairs(contest, traces, size, seed)
        options = WorkloadOptions(requests=size, seed=seed, lengths=pairs)
        trace = make_workload("no_sharing", options)
    else:
        prefixes = size // REQUESTS_PER_TOOL
        options = WorkloadOptions(requests=size, prefixes=prefixes, workers=1, seed=seed)
        trace = make_workload(contest.name, options)
    return trace.requests, trace.salt


def _pairs(
    contest: WorkerContest, traces: Path | None, size: int, seed: int
) -> tuple[tuple[int, int], ...]:
    rng = np.random.default_rng([seed, 2])
    if contest.prompt and contest.output:
        prompt, output = contest.prompt, contest.output
        return tuple((_drawn(prompt, rng), _drawn(output, rng)) for _ in range(size))
    fitting = [
        pair for pair in read_length_pairs(_path(contest, traces)) if sum(pair) <= contest.context
    ]
    chosen = rng.choice(len(fitting), min(size, len(fitting)), replace=False)
    return tuple(fitting[i] for i in chosen)


def _drawn(lengths: Lengths, rng: Rng) -> int:
    return round(clipped(log_normal(rng, lengths.mean, lengths.deviation), 4, lengths.most))


def _sessions(requests: tuple[TraceRequest, ...], size: int, seed: int) -> tuple[TraceRequest, ...]:
    """The first turns of every second session, or of every other one, by the seed."""
    names = list(dict.fromkeys(request.session for request in requests))
    mine = set(names[seed % 2 :: 2])
    chosen = [r for r in requests if r.session in mine and r.turn < TURNS][:size]
    return tuple(replace(request, index=index) for index, request in enumerate(chosen))


def _paced(request: TraceRequest, pace: float) -> TraceRequest:
    think = request.think_seconds
    return replace(request, think_seconds=None if think is None else think * pace)


def _path(contest: WorkerContest, traces: Path | None) -> Path:
    if traces is None:
        raise ConfigError(f"{contest.file} is needed; --traces names the folder it lies in")
    return traces / contest.file


@lru_cache(maxsize=2)
def _recorded(path: Path) -> Trace:
    return load_trace(path)
