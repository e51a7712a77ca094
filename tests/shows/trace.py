"""The first requests of a real trace on four torch workers, under `preble` and under `round_robin`.

Lengths are scaled to the demo model's context, the block structure is kept. The cached tokens that
the answers report must be the workers' own count, and the router's belief must be close to it.
"""

import argparse
import asyncio
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cluster_processes import ClusterProcesses

from preble_loadgen.replay import ReplayOptions, replay
from preble_loadgen.report import Report

TRACE = Path(__file__).parents[3] / "shared/traces/mooncake_conversation_first40min.jsonl.gz"
BASELINE = "round_robin"
CONTEXT_TOKENS = 8192
WORKERS = 4
KV_TOKENS = 131_072
"""Per worker: half of all prompts, so that what is missed was misplaced and not evicted."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One policy's run: the clients' figures beside the workers' and the router's counts."""

    policy: str
    report: Report
    worker_cached_tokens: int
    predicted_cached_tokens: int

    @property
    def prediction_error(self) -> float:
        """Of the router's belief, relative to what was cached."""
        return abs(self.predicted_cached_tokens / max(1, self.worker_cached_tokens) - 1.0)

    @property
    def is_exact(self) -> bool:
        """No failure, and clients and workers count the same cached tokens."""
        complete = self.report.num_complete == self.report.num_planned
        return complete and self.report.cached_tokens == self.worker_cached_tokens


def replay_under(
    policy: str, trace: Path, directory: Path, *, limit: int, rate: float, engine: str = "torch"
) -> Outcome:
    """Replay on a fresh cluster, so that every policy starts with empty caches."""
    cluster = ClusterProcesses(
        directory,
        workers=WORKERS,
        engine=engine,
        policy=policy,
        worker_options=("--kv-cache-tokens", str(KV_TOKENS)),
    )
    with cluster:
        options = ReplayOptions(
            trace=trace, url=cluster.url, limit=limit, rate=rate, max_context=CONTEXT_TOKENS
        )
        report = asyncio.run(replay(options))
        workers = cluster.workers()
    return Outcome(
        policy=policy,
        report=report,
        worker_cached_tokens=sum(w["load"]["cached_tokens_total"] for w in workers),
        predicted_cached_tokens=sum(w["predicted_cached_tokens_total"] for w in workers),
    )


def passed(ours: Outcome, baseline: Outcome) -> bool:
    """What this show promises."""
    return (
        ours.is_exact
        and baseline.is_exact
        and ours.prediction_error <= 0.02
        and ours.report.cached_tokens > baseline.report.cached_tokens
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, default=TRACE, help="a Mooncake trace")
    parser.add_argument("--limit", type=int, default=300, help="requests")
    parser.add_argument("--rate", type=float, default=4.0, help="requests/s on average")
    options = parser.parse_args()
    outcomes = []
    for policy in ("preble", BASELINE):
        with tempfile.TemporaryDirectory() as logs:
            outcomes.append(
                replay_under(
                    policy, options.trace, Path(logs), limit=options.limit, rate=options.rate
                )
            )
    rows = {
        "requests complete / planned": [
            f"{o.report.num_complete} / {o.report.num_planned}" for o in outcomes
        ],
        "prompt tokens": [f"{o.report.prompt_tokens:,}" for o in outcomes],
        "cached, by the answers": [f"{o.report.cached_tokens:,}" for o in outcomes],
        "cached, by the workers": [f"{o.worker_cached_tokens:,}" for o in outcomes],
        "cached, as the router predicted": [f"{o.predicted_cached_tokens:,}" for o in outcomes],
        "error of the prediction": [f"{o.prediction_error:.2%}" for o in outcomes],
        "cached share": [f"{o.report.cached_share:.1%}" for o in outcomes],
        "TTFT mean / p99 (s)": [
            f"{o.report.ttft.mean:.3f} / {o.report.ttft.p99:.3f}" for o in outcomes
        ],
        "end to end mean / p99 (s)": [
            f"{o.report.e2e.mean:.3f} / {o.report.e2e.p99:.3f}" for o in outcomes
        ],
    }
    print(f"{'policy':<34}" + "".join(f"{o.policy:>20}" for o in outcomes))
    for name, values in rows.items():
        print(f"{name:<34}" + "".join(f"{value:>20}" for value in values))
    good = passed(*outcomes)
    print("PASSED" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
