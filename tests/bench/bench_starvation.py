"""Half an hour of overload under every local policy: the longest wait beside what it promises.

python tests/bench/bench_starvation.py [MINUTES]

In virtual time, on one worker that gets more than it can serve, until it is done with all of it.
Takes some minutes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from starvation_helpers import bounds, longest_wait, overload

from preble_worker.policies import POLICY_NAMES


def main(minutes: float = 30.0) -> None:
    load = overload(60.0 * minutes)
    print(f"{len(load)} requests in {minutes:.0f} minutes; seconds")
    print(f"{'':<16}{'first token':>12}{'between two':>12}{'longest':>10}{'bound':>10}")
    limits: dict[str, float] = {}
    for policy in POLICY_NAMES:
        longest = longest_wait(policy, load)
        assert not longest.num_failed
        limits = limits or bounds(longest.seconds, 60.0 * minutes)
        verdict = "within" if longest.seconds <= limits[policy] else "EXCEEDED"
        print(
            f"{policy:<16}{longest.first:>12.1f}{longest.gap:>12.1f}{longest.seconds:>10.1f}"
            f"{limits[policy]:>10.1f}  {verdict}"
        )


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
