"""Every local policy on one live CPU worker, beside the simulator with the measured cost model.

Two kinds of requests, more than the worker can keep up with: chats whose answers have heavy tails,
for the policies that go by lengths and objectives, and tools whose prompts share prefixes that the
cache holds a part of, for those that go by prefixes. The simulator runs each with steps that take
as long as measured, and somewhat longer, since router and clients want the same cores. Where it
puts one policy ahead of another by `MARGIN` in every run, the live worker must agree. Lengths are
predicted by the requests' limits, which they keep to, so that no policy suffers from a bad
prediction.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
from cluster_processes import ClusterProcesses
from shows.policy_order import contradicted, cpu_ticks, firm_orders

from preble.cost_library import load_cost_model
from preble_loadgen.progress import Progress
from preble_loadgen.replay import ReplayOptions, replay
from preble_loadgen.report import Report, RequestRecord, summarize
from preble_loadgen.simulator import SimulationOptions, simulate
from preble_loadgen.simulator.faults import Fault
from preble_loadgen.traces import Trace
from preble_loadgen.workloads import WorkloadOptions, make_workload
from preble_loadgen.workloads.distributions import clipped, log_normal

CONTESTS = {
    "chats": ("fcfs", "mlfq", "srpt", "alise", "adaptive", "edf"),
    "tools": ("fcfs", "lpm", "preble_groups", "dlpm"),
}
PROMPT, ANSWER = (120.0, 80.0, 600), (60.0, 90.0, 500)
"""Of chats: mean, standard deviation and most, in tokens, of log-normal lengths."""
COST_MODEL = "demo-cpu"
KV_TOKENS = 16_384
HOST_KV_TOKENS = 65_536
TIERS = {"alise": ("host",), "adaptive": ("host",)}
"""Who can make use of more than the device's cache."""
MAX_SEQUENCES = 16
TTFT_SLO, TBT_SLO = 0.3, 0.2
SLOWNESS = (1.0, 1.5, 2.0)
"""Actual over predicted step time, of the simulated runs."""
MARGIN = 0.25


@dataclass(frozen=True, slots=True)
class Outcome:
    """One policy's figures, live and in each simulated run.

    Attributes:
        preemptions: of the live worker. busy_share: of the machine's CPU time, while it ran.
    """

    policy: str
    live: Report
    within_slo: float
    preemptions: int
    busy_share: float
    simulated: Sequence[Report]

    @property
    def complete(self) -> bool:
        """Whether every request was answered, live and simulated."""
        return all(r.num_complete == r.num_planned for r in (self.live, *self.simulated))


def live(policy: str, trace: Trace) -> tuple[Sequence[RequestRecord], int, float]:
    """What became of the requests, the worker's preemptions, and the share of CPU time taken."""
    options = {
        "--local-policy": policy,
        "--kv-cache-tokens": KV_TOKENS,
        "--max-num-seqs": MAX_SEQUENCES,
        "--cost-model": COST_MODEL,
        "--threads": 1,
        "--ttft-slo": TTFT_SLO,
        "--tbt-slo": TBT_SLO,
    }
    if tiers := TIERS.get(policy):
        options |= {"--kv-tiers": ",".join(tiers), "--host-kv-tokens": HOST_KV_TOKENS}
    with tempfile.TemporaryDirectory() as logs:
        cluster = ClusterProcesses(
            Path(logs),
            workers=1,
            engine="torch",
            worker_options=tuple(str(word) for option in options.items() for word in option),
            router_options=("--length-predictor", "max_tokens"),
        )
        with cluster:
            replayed = ReplayOptions(trace=Path(trace.name), url=f"grpc://{cluster.grpc_address}")
            progress, before = Progress(), cpu_ticks()
            asyncio.run(replay(replayed, trace=trace, progress=progress))
            busy, idle = (now - then for now, then in zip(cpu_ticks(), before, strict=True))
            preemptions = cluster.workers()[0]["load"]["preemptions_total"]
    return progress.records, preemptions, busy / (busy + idle)


def simulated(policy: str, trace: Trace) -> list[Report]:
    """The same in virtual time, once for each of `SLOWNESS`."""
    worker = SimulationOptions(
        cost=load_cost_model(COST_MODEL),
        num_workers=1,
        local_policy=policy,
        length_predictor="max_tokens",
        kv_cache_tokens=KV_TOKENS,
        max_sequences=MAX_SEQUENCES,
        max_batch_tokens=512,
        ttft_slo_seconds=TTFT_SLO,
        tbt_slo_seconds=TBT_SLO,
        report_seconds=0.0,
        sample_every=0.0,
    )
    runs = [
        replace(worker, faults=(Fault(kind="slow", worker=0, at=0.0, factor=factor),))
        for factor in SLOWNESS
    ]
    return [summarize(simulate(trace.requests, run, salt=trace.salt).records) for run in runs]


def within_slo(record: RequestRecord) -> bool:
    """Its first token in time, and its tokens on average."""
    if record.first_at is None or record.last_at is None:
        return False
    gaps = max(record.output_tokens - 1, 1)
    in_time = record.first_at - record.sent_at <= TTFT_SLO
    return in_time and (record.last_at - record.first_at) / gaps <= TBT_SLO


def compare(policies: Sequence[str], trace: Trace) -> list[Outcome]:
    """Every policy, live and simulated."""
    outcomes = []
    for policy in policies:
        runs = simulated(policy, trace)
        records, preemptions, busy = live(policy, trace)
        share = mean(map(within_slo, records))
        outcomes.append(Outcome(policy, summarize(records), share, preemptions, busy, runs))
    return outcomes


def print_table(outcomes: Sequence[Outcome]) -> None:
    """Milliseconds; simulated is the mean of its runs."""
    print(f"{'':<15}{'simulated':>20}{'live':>20}{'':>20}")
    figures = f"{'TTFT mean':>10}{'e2e mean':>10}"
    print(
        f"{'policy':<15}{figures}{figures}{'TTFT p99':>10}{'e2e p99':>10}{'cached':>8}{'in SLO':>8}"
        f"{'preempted':>11}{'CPU':>6}"
    )
    for outcome in outcomes:
        runs, seen = outcome.simulated, outcome.live
        print(
            f"{outcome.policy:<15}{mean(run.ttft.mean for run in runs) * 1e3:>10.0f}"
            f"{mean(run.e2e.mean for run in runs) * 1e3:>10.0f}"
            f"{seen.ttft.mean * 1e3:>10.0f}{seen.e2e.mean * 1e3:>10.0f}"
            f"{seen.ttft.p99 * 1e3:>10.0f}{seen.e2e.p99 * 1e3:>10.0f}{seen.cached_share:>8.1%}"
            f"{outcome.within_slo:>8.0%}{outcome.preemptions:>11}{outcome.busy_share:>6.0%}"
        )


def passed(outcomes: Sequence[Outcome]) -> bool:
    """Every request answered, and no firm order the other way. Prints the orders that differ."""
    orders = firm_orders(
        {outcome.policy: [run.ttft.mean for run in outcome.simulated] for outcome in outcomes},
        margin=MARGIN,
    )
    wrong = contradicted(orders, {outcome.policy: outcome.live.ttft.mean for outcome in outcomes})
    pairs = len(outcomes) * (len(outcomes) - 1) // 2
    print(f"{len(orders)} of {pairs} orders are firm in the simulator; live, {len(wrong)} differ")
    for fast, slow in wrong:
        print(f"  {fast} is faster than {slow} in the simulator, and not live")
    return bool(orders) and not wrong and all(outcome.complete for outcome in outcomes)


def chats(count: int, *, rate: float, seed: int) -> Trace:
    """Prompts that share nothing; a few answers are many times as long as most."""
    rng = np.random.default_rng(seed)

    def drawn(mean: float, deviation: float, most: int) -> int:
        return round(clipped(log_normal(rng, mean, deviation), 4, most))

    lengths = tuple((drawn(*PROMPT), drawn(*ANSWER)) for _ in range(count))
    options = WorkloadOptions(requests=count, rate=rate, seed=seed, lengths=lengths)
    return make_workload("no_sharing", options)


def tools(count: int, *, rate: float, seed: int) -> Trace:
    """Ten requests to each."""
    options = WorkloadOptions(requests=count, prefixes=count // 10, rate=rate, seed=seed)
    return make_workload("tool_use", options)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chats", type=int, default=300, help="how many")
    parser.add_argument("--chats-rate", type=float, default=35.0, help="requests/s on average")
    parser.add_argument("--tools", type=int, default=120, help="how many")
    parser.add_argument("--tools-rate", type=float, default=8.0, help="requests/s on average")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    traces = {
        "chats": chats(given.chats, rate=given.chats_rate, seed=given.seed),
        "tools": tools(given.tools, rate=given.tools_rate, seed=given.seed),
    }
    good = True
    for name, policies in CONTESTS.items():
        print(f"{name}: {len(traces[name].requests)} requests")
        outcomes = compare(policies, traces[name])
        print_table(outcomes)
        good &= passed(outcomes)
    print("PASSED" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
