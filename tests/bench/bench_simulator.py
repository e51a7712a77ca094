"""What the simulator costs per simulated request, and what skipping ahead saves.

python tests/bench/bench_simulator.py
"""

import random
import resource
import time

from preble.cost_library import load_cost_model
from preble_loadgen.report import summarize
from preble_loadgen.simulator import SimulationOptions, SimulationResult, simulate
from preble_loadgen.trace_request import PRIVATE_ID, Segment, TraceRequest

CPU_SECONDS_PER_REQUEST_MAX = 900.0 / 100_000
"""256 workers and 100,000 requests in 15 minutes."""


def chat_load(num_requests: int, *, rate: float, num_prefixes: int) -> list[TraceRequest]:
    """Poisson arrivals; prompts of a shared prefix and an end of their own, answers of ~ 200."""
    rng = random.Random(0)
    requests, at = [], 0.0
    for index in range(num_requests):
        shared = Segment(rng.randrange(num_prefixes), 1500)
        own = Segment(PRIVATE_ID + index, rng.randrange(50, 1000))
        output = min(1 + int(rng.expovariate(1 / 200)), 1000)
        requests.append(
            TraceRequest(index=index, line=0, at=at, segments=(shared, own), output_tokens=output)
        )
        at += rng.expovariate(rate)
    return requests


def measure(
    num_workers: int, num_requests: int, **fields: object
) -> tuple[SimulationResult, float]:
    """A run with about 2 requests/s and worker, and the CPU seconds it took."""
    options = SimulationOptions(
        cost=load_cost_model("llama-3-8b-h100"),
        num_workers=num_workers,
        **fields,  # type: ignore[arg-type]
    )
    requests = chat_load(num_requests, rate=2.0 * num_workers, num_prefixes=4 * num_workers)
    began_at = time.process_time()
    result = simulate(requests, options)
    return result, time.process_time() - began_at


def main() -> None:
    print(f"{'workers':>8}{'requests':>10}{'report s':>10}{'steps':>10}{'calls':>10}", end="")
    print(f"{'cpu s':>8}{'ms/request':>12}{'TTFT mean ms':>14}{'RSS MB':>8}")
    for num_workers, num_requests, report_seconds in (
        (8, 400, 0.0),
        (8, 400, 0.2),
        (8, 1600, 0.2),
        (256, 1600, 0.2),
    ):
        result, seconds = measure(num_workers, num_requests, report_seconds=report_seconds)
        report = summarize(result.records)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(
            f"{num_workers:>8}{num_requests:>10,}{report_seconds:>10g}{result.num_steps:>10,}"
            f"{result.num_calls:>10,}{seconds:>8.1f}{seconds / num_requests * 1e3:>12.2f}"
            f"{report.ttft.mean * 1e3:>14.1f}{memory:>8.0f}"
        )
    print(f"target: at most {CPU_SECONDS_PER_REQUEST_MAX * 1e3:.1f} ms per request")


if __name__ == "__main__":
    main()
