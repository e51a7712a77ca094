"""Every local policy on one live CPU worker, beside the simulator.

Two kinds of requests, more than the worker can keep up with: chats whose answers have heavy tails,
for the policies that go by lengths and objectives, and tools whose prompts share prefixes that the
cache holds a part of, for those that go by prefixes. Lengths are predicted by the requests' limits,
which they keep to, so that no policy suffers from a bad prediction.

How long a step takes depends on what else the machine does, and in overload all that takes a third
longer can double the waits. So a simulated worker has what the live one says that it has, and is as
slow from moment to moment as that was (`shows.worker_pace`): mean times to the first token and to
the last must then agree within `TOLERANCE`. How the policies compare is seen where all are equally
slow, in the last columns.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
from cluster_processes import ClusterProcesses
from shows.policy_order import cpu_ticks
from shows.worker_pace import TimedStep, WorkerPace, as_slow_as, slowness

from preble.types import WorkerSpec
from preble_loadgen.progress import Progress
from preble_loadgen.replay import ReplayOptions, replay
from preble_loadgen.report import Report, RequestRecord, summarize
from preble_loadgen.simulator import SimulationOptions, simulate
from preble_loadgen.simulator.faults import Fault
from preble_loadgen.traces import Trace
from preble_loadgen.workloads import WorkloadOptions, make_workload
from preble_loadgen.workloads.distributions import clipped, log_normal
from preble_worker.config import TierConfig

CONTESTS = {
    "chats": ("fcfs", "mlfq", "srpt", "alise", "adaptive", "edf"),
    "tools": ("fcfs", "lpm", "preble_groups", "dlpm"),
}
PROMPT, ANSWER = (120.0, 80.0, 600), (60.0, 90.0, 500)
"""Of chats: mean, standard deviation and most, in tokens, of log-normal lengths."""
COST_MODEL = "demo-cpu"
KV_TOKENS = 16_384
HOST_KV_TOKENS = 65_536
COPY_RATE = 5e9
"""Bytes per second between device and host, of which each is a part of the memory."""
TIERS = {"alise": ("host",), "adaptive": ("host",)}
"""Who can make use of more than the device's cache."""
MAX_SEQUENCES = 16
TTFT_SLO, TBT_SLO = 0.3, 0.2
TOLERANCE = 0.2


@dataclass(frozen=True, slots=True)
class Live:
    """What became of the requests on a live worker.

    Attributes:
        spec: what the worker says of itself.
        steps: that it computed.
        busy_share: of the machine's CPU time, whoever took it.
    """

    records: Sequence[RequestRecord]
    spec: WorkerSpec
    steps: Sequence[TimedStep]
    preemptions: int
    busy_share: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """One policy's figures, live and simulated as slow as that."""

    policy: str
    seen: Live
    live: Report
    simulated: Report

    @property
    def agrees(self) -> bool:
        """Whether every request was answered, in the time that the simulator says."""
        pairs = (
            (self.live.ttft.mean, self.simulated.ttft.mean),
            (self.live.e2e.mean, self.simulated.e2e.mean),
        )
        return all(
            report.num_complete == report.num_planned for report in (self.live, self.simulated)
        ) and all(abs(live - simulated) <= TOLERANCE * simulated for live, simulated in pairs)


def live(policy: str, trace: Trace) -> Live:
    """On a fresh worker behind a router, all processes of their own."""
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
        options |= {
            "--kv-tiers": ",".join(tiers),
            "--host-kv-tokens": HOST_KV_TOKENS,
            "--copy-rate": COPY_RATE,
        }
    with tempfile.TemporaryDirectory() as logs:
        cluster = ClusterProcesses(
            Path(logs),
            workers=1,
            engine="torch",
            worker_options=tuple(str(word) for option in options.items() for word in option),
            router_options=("--length-predictor", "max_tokens"),
        )
        with cluster:
            return asyncio.run(_replayed(cluster, trace))


async def _replayed(cluster: ClusterProcesses, trace: Trace) -> Live:
    replayed = ReplayOptions(trace=Path(trace.name), url=f"grpc://{cluster.grpc_address}")
    progress, before = Progress(), cpu_ticks()
    async with WorkerPace(cluster.workers()[0]["address"]) as pace:
        await replay(replayed, trace=trace, progress=progress)
    busy, idle = (now - then for now, then in zip(cpu_ticks(), before, strict=True))
    return Live(
        progress.records,
        pace.spec,
        pace.steps,
        cluster.workers()[0]["load"]["preemptions_total"],
        busy / (busy + idle),
    )


def simulated(policy: str, trace: Trace, spec: WorkerSpec, slow: tuple[Fault, ...]) -> Report:
    """The same in virtual time, on a worker that is what `spec` says."""
    tiers = TierConfig(
        host_pages=spec.host_capacity_tokens // spec.page_tokens,
        page_copy_seconds=spec.host_token_seconds * spec.page_tokens,
        cost=spec.cost,
    )
    options = SimulationOptions(
        cost=spec.cost,
        num_workers=1,
        local_policy=policy,
        length_predictor="max_tokens",
        kv_cache_tokens=spec.capacity_tokens,
        max_batch_tokens=spec.max_batch_tokens,
        max_sequences=spec.max_sequences,
        context_tokens=spec.context_tokens,
        page_tokens=spec.page_tokens,
        vocab_size=spec.vocab_size,
        tiers=tiers,
        ttft_slo_seconds=TTFT_SLO,
        tbt_slo_seconds=TBT_SLO,
        report_seconds=0.0,
        sample_every=0.0,
        faults=slow,
    )
    return summarize(simulate(trace.requests, options, salt=trace.salt).records)


def compare(policy: str, trace: Trace) -> Outcome:
    """Live, then simulated as slow as that."""
    seen = live(policy, trace)
    first = seen.steps[0]
    began_at = first.ended_at - first.seconds - trace.requests[0].at
    slow = as_slow_as(seen.steps, began_at=began_at)
    return Outcome(policy, seen, summarize(seen.records), simulated(policy, trace, seen.spec, slow))


def print_table(outcomes: Sequence[Outcome], trace: Trace) -> None:
    """Milliseconds."""
    factor = mean(slowness(outcome.seen.steps) for outcome in outcomes)
    same = (Fault(kind="slow", factor=factor),)
    figures = f"{'TTFT mean':>11}{'e2e mean':>10}"
    print(f"{'':<15}{'live':>38}{'as slow, simulated':>21}{f'all {factor:.2f} as slow':>21}")
    print(
        f"{'policy':<15}{'slowness':>9}{'cached':>8}{figures}{figures}{figures}"
        f"{'preempted':>11}{'CPU':>6}"
    )
    for outcome in outcomes:
        seen = outcome.seen
        alike = simulated(outcome.policy, trace, seen.spec, same)
        reports = (outcome.live, outcome.simulated, alike)
        times = "".join(f"{r.ttft.mean * 1e3:>11.0f}{r.e2e.mean * 1e3:>10.0f}" for r in reports)
        print(
            f"{outcome.policy:<15}{slowness(seen.steps):>9.2f}{outcome.live.cached_share:>8.1%}"
            f"{times}{seen.preemptions:>11}{seen.busy_share:>6.0%}"
        )


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
        outcomes = [compare(policy, traces[name]) for policy in policies]
        print_table(outcomes, traces[name])
        for outcome in outcomes:
            if not outcome.agrees:
                print(f"  {outcome.policy}: live is not as simulated")
        good &= all(outcome.agrees for outcome in outcomes)
    print("PASSED" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
