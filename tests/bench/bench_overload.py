"""What a simulated cluster makes of more than it can do: goodput under overload, and fair shares.

4 workers with steps of 20 ms, in virtual time: the figures are the same on every machine.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from overload_helpers import TIMEOUT_SECONDS, Sharing, overload, sharing

from preble_worker.config import DEFAULT_POLICY

OVERLOAD_SECONDS = 25.0
SHARING_SECONDS = 5.0
SEEDS = (0, 10, 20)
STEADY_RATE = 24.0
"""Requests per second, a fifth of what the cluster can do; the greedy tenant asks for two."""
LOCAL_POLICIES = (DEFAULT_POLICY, "preble_groups", "srpt", "fcfs")
PAIRS = (("longest_prefix", "lpm"), ("preble", "dlpm"), ("d2lpm", "dlpm"))
GOODPUT, RECOVERY_SECONDS, SLOWER, THROUGHPUT = 0.90, 2.0, 1.5, 0.95


def main() -> None:
    print_overload()
    print_sharing()


def print_overload() -> None:
    """Under the default routing policy."""
    print(f"5 x capacity for {OVERLOAD_SECONDS:.0f} s, ", end="")
    print(f"deadlines of {TIMEOUT_SECONDS:.0f} s; then 0.8 x\n")
    seen = {
        policy: overload(seconds=OVERLOAD_SECONDS, num_workers=4, local_policy=policy)
        for policy in LOCAL_POLICIES
    }
    print(f"{'':28}" + "".join(f"{policy:>15}" for policy in seen) + f"{'target':>9}")
    for words, figures, target in (
        ("good requests of capacity", [each.requests_share for each in seen.values()], GOODPUT),
        ("their tokens of capacity", [each.tokens_share for each in seen.values()], GOODPUT),
        (
            "seconds until 95 % are good",
            [each.recovery_seconds for each in seen.values()],
            RECOVERY_SECONDS,
        ),
        (
            "wasted over good tokens",
            [each.during.wasted_tokens / each.during.good_tokens for each in seen.values()],
            None,
        ),
    ):
        line = f"{words:28}" + "".join(f"{figure:15.2f}" for figure in figures)
        print(line + (f"{target:9.2f}" if target is not None else ""))


def print_sharing() -> None:
    """From the moment on when the greedy tenant comes to the steady one, a column per seed."""
    print(
        f"\ntenant A comes with {10 * STEADY_RATE:.0f} requests/s, B has {STEADY_RATE:.0f}; ",
        end="",
    )
    print(f"targets {SLOWER} x and {THROUGHPUT}\n")
    print(f"{'policies':22} {'p99 TTFT of B over that alone':>30} {'throughput of the first':>27}")
    unfair: list[float] = []
    for policy, local_policy in PAIRS:
        seen = [_share(policy, local_policy, seed) for seed in SEEDS]
        unfair = unfair or [each.tokens_per_second for each in seen]
        slower = "".join(f"{each.slower:8.2f} x" for each in seen)
        shares = zip(seen, unfair, strict=True)
        throughput = "".join(f"{each.tokens_per_second / first:9.3f}" for each, first in shares)
        print(f"{policy + ' + ' + local_policy:22} {slower:>30} {throughput:>27}", flush=True)


def _share(policy: str, local_policy: str, seed: int) -> Sharing:
    return sharing(
        seconds=SHARING_SECONDS,
        rate=STEADY_RATE,
        seed=seed,
        policy=policy,
        local_policy=local_policy,
    )


if __name__ == "__main__":
    main()
