"""Seconds to draw a workload of 20,000 requests, and to analyze it, against a target."""

import time

from preble_loadgen.analysis import analyze
from preble_loadgen.workloads import WorkloadOptions, make_workload

NUM_REQUESTS = 20_000
TARGET_SECONDS = 10.0
NAMES = ("tool_use", "embodied_agent", "programming", "video_qa", "long_documents", "no_sharing")


def main() -> None:
    print(f"{NUM_REQUESTS:,} requests each; target: each figure below {TARGET_SECONDS:g} s")
    print(f"{'workload':<16}{'prompt tokens':>16}{'draw s':>9}{'analyze s':>11}{'ideal':>8}")
    for name in NAMES:
        began_at = time.perf_counter()
        trace = make_workload(name, WorkloadOptions(requests=NUM_REQUESTS))
        drawn_at = time.perf_counter()
        sharing = analyze(trace.requests).sharing
        ended_at = time.perf_counter()
        print(
            f"{name:<16}{sharing.prompt_tokens:>16,}{drawn_at - began_at:>9.2f}"
            f"{ended_at - drawn_at:>11.2f}{sharing.ideal_hit_share:>8.1%}"
        )


if __name__ == "__main__":
    main()
