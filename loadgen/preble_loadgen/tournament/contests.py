"""What the policies compete on: workloads and traces, each with its size, its rate and its SLO.

A contest's nominal rate is about where four workers of `mistral-7b-a6000` begin to queue; loads are
multiples of it. It is per worker, and scaled by the speed of prefill for another cost model, so
that a load means the same on any cluster. Prefixes are as many as the published load generator has
for so many requests: 10 to 20 requests each. Scenarios have no rate: their clients keep 8 requests
per worker in flight. A trace is made faster or slower as a whole, think times included.

SLO: the first token within three times what the mean prompt takes uncached on an idle worker, and
one second at least; where requests share nothing, also at least twice what the longest hundredth of
the prompts takes, since there the longest is always computed whole, and no cluster could keep to
less. Later tokens (99th percentile of an answer's gaps) within one second.
"""

import random
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from preble.cost import CostModel
from preble.cost_library import load_cost_model
from preble.errors import ConfigError
from preble_loadgen.arrivals import at_rate
from preble_loadgen.scaling import prompt_tokens
from preble_loadgen.simulation_cells import Load
from preble_loadgen.tournament.cell import CellKey, Slo
from preble_loadgen.trace_request import TraceRequest
from preble_loadgen.traces import Trace, load_trace
from preble_loadgen.workloads import WorkloadOptions, make_workload

REFERENCE = "mistral-7b-a6000"
SLO_PREFILLS = 3.0
SLO_LONG_PREFILLS = 2.0
SLO_TTFT_MIN = 1.0
SLO_TBT = 1.0
REQUESTS_MAX = 30_000
"""Of a cell; hundreds of workers get fewer requests each."""
_COMPARED_PROMPT = 2000.0
"""Tokens at which the prefill speeds of two cost models are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """A workload or a trace as it is used here.

    Attributes:
        requests, prefixes: per worker; prefixes None for what so many requests have in the data.
        rate: nominal requests/s per worker of `REFERENCE`; 0 for a scenario.
        shares: whether requests have prefixes in common. has_families: whether each prompt begins
            with the prefix of one of several families.
        file: in the folder of traces; "" for a workload.
        context: a trace's lengths are divided by what makes its requests fit so many tokens.
        arrivals_file: whose arrivals a workload replays.
    """

    name: str
    requests: int
    rate: float = 0.0
    prefixes: int | None = None
    shares: bool = True
    has_families: bool = False
    file: str = ""
    context: int = 131_072
    arrivals_file: str = ""


_AZURE_CODE = "azure2023_code.csv.gz"
_MOONCAKE = "mooncake_conversation_first40min.jsonl.gz"

CONTESTS = {
    contest.name: contest
    for contest in (
        Contest(name="tool_use", requests=300, prefixes=25, rate=6.0),
        Contest(name="embodied_agent", requests=700, prefixes=60, rate=60.0),
        Contest(name="programming", requests=250, prefixes=20, rate=2.5),
        Contest(name="video_qa", requests=250, prefixes=30, rate=0.8),
        Contest(name="long_documents", requests=200, prefixes=12, rate=0.5),
        Contest(name="mixed", requests=300, rate=2.4, arrivals_file=_AZURE_CODE),
        Contest(name="no_sharing", requests=250, rate=1.6, shares=False),
        Contest(name="hot_prefix", requests=150),
        Contest(name="shared_system_prompt", requests=150),
        Contest(name="quiet_burst", requests=120, has_families=True),
        Contest(name="families", requests=150, has_families=True),
        Contest(name="mooncake", requests=250, rate=0.12, file=_MOONCAKE),
        Contest(
            name="coding_agents",
            requests=250,
            rate=3.0,
            file="derived_cc_v6_global.jsonl.gz",
            context=65_536,
        ),
        Contest(
            name="airline_agents",
            requests=300,
            rate=5.0,
            file="derived_agent_tau_airline.jsonl.gz",
        ),
        Contest(name="azure_code", requests=300, rate=1.2, shares=False, file=_AZURE_CODE),
        Contest(
            name="servegen",
            requests=300,
            rate=5.0,
            shares=False,
            file="derived_servegen_m-large_1h.csv.gz",
        ),
    )
}


def nominal_rate(contest: Contest, cost: CostModel) -> float:
    """Requests/s per worker of that cost model at load 1."""
    reference = load_cost_model(REFERENCE)
    ratio = reference.prefill_seconds(_COMPARED_PROMPT, 0.0) / cost.prefill_seconds(
        _COMPARED_PROMPT, 0.0
    )
    return contest.rate * ratio


def is_available(contest: Contest, traces: Path | None) -> bool:
    """Whether the files that it needs are in the folder `traces`."""
    wanted = [name for name in (contest.file, contest.arrivals_file) if name]
    return all(traces is not None and (traces / name).exists() for name in wanted)


def load_of(key: CellKey, traces: Path | None) -> Load:
    """The requests of a cell, and when they come.

    Raises:
        ConfigError: there is no such workload or variant, or its trace cannot be read.
    """
    contest = CONTESTS[key.workload]
    return (
        _trace_load(contest, key, traces) if contest.file else _workload_load(contest, key, traces)
    )


def slo_of(contest: Contest, load: Load, cost: CostModel) -> Slo:
    """What the requests of `load` must keep to."""
    prompts = sorted(map(prompt_tokens, load.requests))
    ttft = SLO_PREFILLS * cost.prefill_seconds(sum(prompts) / len(prompts), 0.0)
    if not contest.shares:
        longest = prompts[int(0.99 * len(prompts))]
        ttft = max(ttft, SLO_LONG_PREFILLS * cost.prefill_seconds(longest, 0.0))
    return Slo(ttft=max(ttft, SLO_TTFT_MIN), tbt=SLO_TBT)


def _workload_load(contest: Contest, key: CellKey, traces: Path | None) -> Load:
    workers = key.num_workers
    per_worker = min(contest.requests, REQUESTS_MAX // workers)
    prefixes = contest.prefixes and round(
        contest.prefixes * workers * per_worker / contest.requests
    )
    arrivals: tuple[tuple[float, ...], ...] = ()
    if contest.arrivals_file:
        arrivals = (tuple(r.at for r in _trace(_path(traces, contest.arrivals_file)).requests),)
    variants = {name for name in key.variant.split("+") if name}
    if "bursty" in variants:
        arrivals = ()
    trace = make_workload(
        contest.name,
        WorkloadOptions(
            requests=per_worker * workers,
            prefixes=prefixes,
            rate=key.rate or None,
            workers=workers,
            seed=key.seed,
            variants=frozenset(variants),
            arrivals=arrivals,
        ),
    )
    return Load(trace.requests, [request.at for request in trace.requests], trace.salt)


def _trace_load(contest: Contest, key: CellKey, traces: Path | None) -> Load:
    """Another seed is another stretch of the trace, where it is long enough to have one."""
    trace = _fitted(_path(traces, contest.file), contest.context)
    size = contest.requests * key.num_workers
    requests = _stretch(trace.requests, size, key.seed)
    times = [request.at for request in requests]
    arrivals = at_rate(times, key.rate, rng=random.Random(key.seed))
    span = times[-1] - times[0]
    pace = (arrivals[-1] - arrivals[0]) / span if span else 1.0
    paced = [_paced(request, index, pace) for index, request in enumerate(requests)]
    return Load(paced, arrivals, trace.salt)


def _stretch(requests: tuple[TraceRequest, ...], size: int, seed: int) -> tuple[TraceRequest, ...]:
    """`size` requests in a row; of sessions, whose turns need the ones before, the first ones."""
    if size >= len(requests) or any(request.think_seconds is not None for request in requests):
        return requests[:size]
    begin = random.Random(seed).randrange(len(requests) - size)
    return requests[begin : begin + size]


def _paced(request: TraceRequest, index: int, pace: float) -> TraceRequest:
    think = request.think_seconds
    return replace(request, index=index, think_seconds=None if think is None else think * pace)


def _path(traces: Path | None, name: str) -> Path:
    if traces is None:
        raise ConfigError(f"{name} is needed; --traces names the folder it lies in")
    return traces / name


@lru_cache(maxsize=4)
def _trace(path: Path) -> Trace:
    return load_trace(path)


@lru_cache(maxsize=4)
def _fitted(path: Path, context: int) -> Trace:
    return _trace(path).fitted(context)
