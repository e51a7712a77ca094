"""Policies in a live cluster and in the simulator: both must put them into the same order.

Live are real processes on the real wire: a router and eight workers whose engines sleep as long as
the cost model says. The simulator runs the same requests under the same options, several times:
the runs differ in the seed of ties, in the wire's delay and in how much longer than predicted a
step takes, as live runs do on a machine with other work. An order of two policies is firm where the
one is faster than the other by `MARGIN` in every run; the live cluster must agree with every firm
order.

Router and clients need the CPU at once, to hand on each token. Where others take it they fall
behind, and requests wait before any worker has them, whatever the policy. So the rate is one at
which all processes together need little of two cores, and a run on a machine that was busy with
other work is not judged.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from statistics import mean, median

from cluster_processes import ClusterProcesses

from preble.cost_library import load_cost_model
from preble_loadgen.progress import Progress
from preble_loadgen.replay import ReplayOptions, replay
from preble_loadgen.report import Report, RequestRecord, summarize
from preble_loadgen.simulator import SimulationOptions, simulate
from preble_loadgen.simulator.faults import Fault
from preble_loadgen.traces import Trace
from preble_loadgen.workloads import WorkloadOptions, make_workload

STEADY = "round_robin"
"""Places alike whatever the workers report, so that live and simulated answers can be paired."""
POLICIES = ("preble", "e2", "cache_aware", "kv_cost", STEADY)
COST_MODEL = "mistral-7b-a6000"
"""A slow device: a step takes 20 ms and more, beside the 0.7 ms of CPU that it costs here."""
KV_TOKENS = 100_000
VOCAB_SIZE = 1024
"""The demo model's, whose tokenizer the router has."""
CONTEXT_TOKENS = 8192
RUNS = ((0.0005, 1.0), (0.001, 1.05), (0.002, 1.1), (0.004, 1.15), (0.008, 1.2))
"""One-way delay in seconds, and actual over predicted step time, of each simulated run."""
MARGIN = 0.05
BUSY_SHARE_MAX = 0.5
"""Of the machine's CPU time, of which the show itself takes a third at most; beyond it the live
figures are those of a starved router, or of workers slower than in the run of another policy."""


@dataclass(frozen=True, slots=True)
class Live:
    """A replay on live processes; `busy_share` is of the machine's CPU time, whoever took it."""

    records: Sequence[RequestRecord]
    report: Report
    busy_share: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """One policy's figures; `runs` has the records and `simulated` the report of each run."""

    policy: str
    live: Live
    runs: Sequence[Sequence[RequestRecord]]
    simulated: Sequence[Report]

    @property
    def complete(self) -> bool:
        """Whether every request was answered, live and simulated."""
        return all(r.num_complete == r.num_planned for r in (self.live.report, *self.simulated))

    @property
    def simulated_ttft(self) -> list[float]:
        """Mean seconds to the first token in each run."""
        return [report.ttft.mean for report in self.simulated]


@dataclass(frozen=True, slots=True)
class Pairs:
    """The same requests, live and simulated, one by one.

    Attributes:
        same_cached: of how many of `count` the same number of tokens was cached.
        ttft_seconds: live less simulated time to the first token, the median.
    """

    count: int
    same_cached: int
    ttft_seconds: float


def paired(live: Sequence[RequestRecord], simulated: Sequence[RequestRecord]) -> Pairs:
    """Of the requests that both answered."""
    other = {record.index: record for record in simulated}
    both = [(record, other[record.index]) for record in live if record.index in other]
    return Pairs(
        count=len(both),
        same_cached=sum(a.cached_tokens == b.cached_tokens for a, b in both),
        ttft_seconds=median(_ttft(a) - _ttft(b) for a, b in both),
    )


def _ttft(record: RequestRecord) -> float:
    return (record.first_at or record.ended_at) - record.sent_at


def firm_orders(
    seconds: Mapping[str, Sequence[float]], *, margin: float = MARGIN
) -> list[tuple[str, str]]:
    """Pairs (faster, slower) of policies that no run puts the other way, nor nearly so.

    Args:
        seconds: of each policy, one figure per run; the runs are the same for all.
    """
    return [
        (fast, slow)
        for fast, slow in permutations(seconds, 2)
        if all(a * (1.0 + margin) < b for a, b in zip(seconds[fast], seconds[slow], strict=True))
    ]


def contradicted(
    orders: Sequence[tuple[str, str]], seconds: Mapping[str, float]
) -> list[tuple[str, str]]:
    """Those of `orders` that `seconds` puts the other way."""
    return [(fast, slow) for fast, slow in orders if seconds[fast] >= seconds[slow]]


def live(policy: str, trace: Trace, *, workers: int) -> Live:
    """Replay on a fresh cluster of processes."""
    options = {
        "--cost-model": COST_MODEL,
        "--kv-cache-tokens": KV_TOKENS,
        "--max-model-len": CONTEXT_TOKENS,
    }
    with tempfile.TemporaryDirectory() as logs:
        cluster = ClusterProcesses(
            Path(logs),
            workers=workers,
            policy=policy,
            worker_options=tuple(str(word) for option in options.items() for word in option),
        )
        with cluster:
            replayed = ReplayOptions(trace=Path(trace.name), url=f"grpc://{cluster.grpc_address}")
            progress, before = Progress(), cpu_ticks()
            report = asyncio.run(replay(replayed, trace=trace, progress=progress))
            busy, idle = (now - then for now, then in zip(cpu_ticks(), before, strict=True))
    return Live(progress.records, report, busy / (busy + idle))


def cpu_ticks() -> tuple[int, int]:
    """Busy and idle, of all cores since the machine started, as Linux counts them.

    What runs with a higher nice value makes way for the cluster, and counts as idle.
    """
    words = Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    user, nice, system, idle, waiting, *others = map(int, words)
    return user + system + sum(others), nice + idle + waiting


def simulated(policy: str, trace: Trace, *, workers: int) -> list[Sequence[RequestRecord]]:
    """The same in virtual time, once for each of `RUNS`."""
    cluster = SimulationOptions(
        cost=load_cost_model(COST_MODEL),
        num_workers=workers,
        policy=policy,
        kv_cache_tokens=KV_TOKENS,
        context_tokens=CONTEXT_TOKENS,
        vocab_size=VOCAB_SIZE,
        report_seconds=0.0,
        sample_every=0.0,
    )
    runs = [
        replace(cluster, seed=seed, wire_seconds=delay, faults=_slowness(workers, factor))
        for seed, (delay, factor) in enumerate(RUNS)
    ]
    return [simulate(trace.requests, run, salt=trace.salt).records for run in runs]


def _slowness(workers: int, factor: float) -> tuple[Fault, ...]:
    """Every worker is slower than the router is told, all the time."""
    return tuple(Fault(kind="slow", worker=w, at=0.0, factor=factor) for w in range(workers))


def compare(policies: Sequence[str], trace: Trace, *, workers: int) -> list[Outcome]:
    """Every policy, live and simulated."""
    outcomes = []
    for policy in policies:
        runs = simulated(policy, trace, workers=workers)
        seen = live(policy, trace, workers=workers)
        outcomes.append(Outcome(policy, seen, runs, [summarize(run) for run in runs]))
    return outcomes


def print_table(outcomes: Sequence[Outcome]) -> None:
    """By mean TTFT in the simulator, the fastest first; a range is over its runs."""
    columns = f"{'p99':>8}{'cached':>8}"
    print(f"{'':<14}{'simulated':>24}{'':>16}   {'live':>14}")
    print(f"{'policy':<14}{'TTFT mean ms':>24}{columns}   {'TTFT mean ms':>14}{columns}{'CPU':>6}")
    for outcome in sorted(outcomes, key=lambda outcome: mean(outcome.simulated_ttft)):
        runs, seen = outcome.simulated, outcome.live.report
        ttft = outcome.simulated_ttft
        spread = f"{mean(ttft) * 1e3:.0f} ({min(ttft) * 1e3:.0f}-{max(ttft) * 1e3:.0f})"
        print(
            f"{outcome.policy:<14}{spread:>24}"
            f"{mean(run.ttft.p99 for run in runs) * 1e3:>8.0f}"
            f"{mean(run.cached_share for run in runs):>8.1%}   "
            f"{seen.ttft.mean * 1e3:>14.0f}{seen.ttft.p99 * 1e3:>8.0f}{seen.cached_share:>8.1%}"
            f"{outcome.live.busy_share:>6.0%}"
        )


def print_pairs(outcomes: Sequence[Outcome]) -> None:
    """Where placements do not depend on time, answers can be compared one by one."""
    for outcome in outcomes:
        if outcome.policy == STEADY:
            pairs = paired(outcome.live.records, outcome.runs[0])
            print(
                f"{STEADY}, request by request: {pairs.same_cached} of {pairs.count} with the same "
                f"cached tokens; first tokens live {pairs.ttft_seconds * 1e3:.1f} ms later (median)"
            )


def verdict(outcomes: Sequence[Outcome]) -> str:
    """PASSED, or why not. Prints the orders that differ."""
    orders = firm_orders({outcome.policy: outcome.simulated_ttft for outcome in outcomes})
    wrong = contradicted(orders, {o.policy: o.live.report.ttft.mean for o in outcomes})
    pairs = len(outcomes) * (len(outcomes) - 1) // 2
    print(f"{len(orders)} of {pairs} orders are firm in the simulator; live, {len(wrong)} differ")
    for fast, slow in wrong:
        print(f"  {fast} is faster than {slow} in the simulator, and not live")
    if any(outcome.live.busy_share > BUSY_SHARE_MAX for outcome in outcomes):
        return "NOT JUDGED: the machine was busy with other work"
    good = bool(orders) and not wrong and all(outcome.complete for outcome in outcomes)
    return "PASSED" if good else "FAILED"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--rate", type=float, default=14.0, help="requests/s on average")
    parser.add_argument("--prefixes", type=int, default=160, help="tools")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    trace = make_workload(
        "tool_use",
        WorkloadOptions(
            requests=given.requests, rate=given.rate, prefixes=given.prefixes, seed=given.seed
        ),
    )
    began_at = time.monotonic()
    outcomes = compare(POLICIES, trace, workers=given.workers)
    print_table(outcomes)
    print_pairs(outcomes)
    judged = verdict(outcomes)
    print(f"{time.monotonic() - began_at:.0f} s")
    print(judged)
    return 0 if judged == "PASSED" else 1


if __name__ == "__main__":
    sys.exit(main())
