"""What a simulated cluster makes of more than it can do: goodput under overload, and fair shares.

4 workers with steps of 20 ms, in virtual time: the figures are the same on every machine.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from overload_helpers import TIMEOUT_SECONDS, Sharing, overload, sharing

OVERLOAD_SECONDS = 25.0
SHARING_SECONDS = 5.0
SEEDS = (0, 10, 20)
STEADY_RATE = 24.0
"""Requests per second, a fifth of what the cluster can do; the greedy tenant asks for two."""
PAIRS = (("longest_prefix", "lpm"), ("preble", "dlpm"), ("d2lpm", "dlpm"))
GOODPUT, RECOVERY_SECONDS, SLOWER, THROUGHPUT = 0.90, 2.0, 1.5, 0.95


def main() -> None:
    print_overload()
    print_sharing()


def print_overload() -> None:
    """Under the default policies."""
    print(
        f"5 x capacity for {OVERLOAD_SECONDS:.0f} s, deadlines of {TIMEOUT_SECONDS:.0f} s; ", end=""
    )
    print("then 0.8 x\n")
    seen = overload(seconds=OVERLOAD_SECONDS, num_workers=4)
    print(f"{'':28} {'figure':>7} {'target':>7}")
    print(f"{'good requests of capacity':28} {seen.requests_share:7.2f} {GOODPUT:7.2f}")
    print(f"{'their tokens of capacity':28} {seen.tokens_share:7.2f} {GOODPUT:7.2f}")
    print(
        f"{'seconds until 95 % are good':28} {seen.recovery_seconds:7.1f} {RECOVERY_SECONDS:7.1f}"
    )
    wasted = seen.during.wasted_tokens / seen.during.good_tokens
    print(f"{'wasted over good tokens':28} {wasted:7.2f}")


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
