"""The same `preble serve` and the same replay, with the router and the workers as Ray actors."""

import argparse
import asyncio
import sys
from pathlib import Path

from served_cluster import ServedCluster
from shows.trace import CONTEXT_TOKENS, TRACE

from preble_loadgen.replay import ReplayOptions, replay


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, default=TRACE, help="a Mooncake trace")
    parser.add_argument("--limit", type=int, default=100, help="requests")
    parser.add_argument("--rate", type=float, default=4.0, help="requests/s on average")
    options = parser.parse_args()
    with ServedCluster("--workers", "2", "--ray", "local") as cluster:
        print(f"serving on Ray after {cluster.started_seconds:.1f} s at {cluster.url}")
        report = asyncio.run(
            replay(
                ReplayOptions(
                    trace=options.trace,
                    url=cluster.url,
                    limit=options.limit,
                    rate=options.rate,
                    max_context=CONTEXT_TOKENS,
                )
            )
        )
        status, left = cluster.stop()
    print(f"requests complete / planned  {report.num_complete} / {report.num_planned}")
    print(f"cached share                 {report.cached_share:.1%}")
    print(f"TTFT mean / p99 (s)          {report.ttft.mean:.3f} / {report.ttft.p99:.3f}")
    print(f"Ctrl-C: exit status {status}, processes left behind: {left or 'none'}")
    good = report.num_complete == report.num_planned and status == 0
    print("PASSED" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
