"""The cluster's status as Prometheus metrics, one sample per linked worker and metric."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from preble.types import LoadReport
    from preble_router.status import ClusterStatus, WorkerStatus

_STATES = ("unreachable", "joining", "ready", "draining", "suspect")

_GAUGES: tuple[tuple[str, str, "Callable[[WorkerStatus], float]"], ...] = (
    ("live_requests", "This router's requests on the worker.", lambda w: w.live_requests),
    ("held_pages", "Cache pages the router believes it holds.", lambda w: w.held_pages),
    ("silent_seconds", "Since the worker's last message.", lambda w: w.silent_seconds),
    (
        "speed_ratio",
        "Observed over predicted step time; above 1 it is slower than its cost model.",
        lambda w: w.speed_ratio,
    ),
)
_COUNTERS: tuple[tuple[str, str, "Callable[[WorkerStatus], float]"], ...] = (
    ("placed_requests", "Requests placed on the worker.", lambda w: w.placed_requests_total),
    ("snapshots", "Cache snapshots read from it.", lambda w: w.snapshots_total),
    ("differences", "Repairs by difference read from it.", lambda w: w.differences_total),
    (
        "predicted_cached_tokens",
        "Prompt tokens the router expected in its cache, of requests with a first token.",
        lambda w: w.predicted_cached_tokens_total,
    ),
    (
        "actual_cached_tokens",
        "Prompt tokens it served from its cache, of the same requests.",
        lambda w: w.actual_cached_tokens_total,
    ),
)
_LOAD_GAUGES: tuple[tuple[str, str, "Callable[[LoadReport], float]"], ...] = (
    ("waiting_requests", "Queued on the worker, from all routers.", lambda r: r.num_waiting),
    ("running_requests", "Running on the worker, from all routers.", lambda r: r.num_running),
    (
        "waiting_prefill_tokens",
        "Uncached prompt tokens it has not computed yet.",
        lambda r: r.waiting_prefill_tokens,
    ),
    ("free_pages", "Cache pages that hold nothing.", lambda r: r.free_pages),
    ("cached_pages", "Cache pages that no request uses and that can go.", lambda r: r.cached_pages),
    ("used_pages", "Cache pages that running requests use.", lambda r: r.used_pages),
    ("host_pages", "Cache pages in its host memory.", lambda r: r.host_pages),
)
_LOAD_COUNTERS: tuple[tuple[str, str, "Callable[[LoadReport], float]"], ...] = (
    ("preemptions", "Requests the worker set back to make room.", lambda r: r.preemptions_total),
    ("prompt_tokens", "Of the requests it started.", lambda r: r.prompt_tokens_total),
    ("cached_tokens", "Of those, served from its cache.", lambda r: r.cached_tokens_total),
    ("loaded_tokens", "Of those, from its host memory.", lambda r: r.loaded_tokens_total),
    ("busy_seconds", "Time it spent in steps.", lambda r: r.busy_seconds_total),
)


def cluster_families(status: "ClusterStatus") -> Iterator[Metric]:
    """All that `status` has to say. A worker without a link has a state and nothing else."""
    yield from _router_families(status)
    yield from _count_families(status)
    yield from _length_families(status)
    yield _states(status)
    linked = [worker for worker in status.workers if worker.spec is not None]
    for name, text, read in _GAUGES:
        yield _family(GaugeMetricFamily, name, text, [(w.worker_id, read(w)) for w in linked])
    for name, text, read in _COUNTERS:
        yield _family(CounterMetricFamily, name, text, [(w.worker_id, read(w)) for w in linked])
    loads = [(worker.worker_id, worker.load) for worker in linked if worker.load is not None]
    for name, text, read_load in _LOAD_GAUGES:
        samples = [(worker_id, read_load(load)) for worker_id, load in loads]
        yield _family(GaugeMetricFamily, name, text, samples)
    for name, text, read_load in _LOAD_COUNTERS:
        samples = [(worker_id, read_load(load)) for worker_id, load in loads]
        yield _family(CounterMetricFamily, name, text, samples)


def _router_families(status: "ClusterStatus") -> Iterator[Metric]:
    info = GaugeMetricFamily(
        "preble_router_info",
        "1; its labels say which router this is.",
        labels=["router", "version", "model", "policy"],
    )
    info.add_metric([status.router_id, status.version, status.model, status.policy], 1.0)
    yield info
    for name, text, value in (
        ("dispatched_requests", "Accepted and not ended, by any protocol.", status.live_requests),
        ("uptime_seconds", "Since the router started.", status.uptime_seconds),
        ("tree_nodes", "Nodes of the prefix tree.", status.tree.nodes),
        ("tree_pages", "Pages of the prefix tree, shared ones once.", status.tree.pages),
        ("tree_held_pages", "Pages of the prefix tree, per worker.", status.tree.held_pages),
    ):
        yield GaugeMetricFamily("preble_router_" + name, text, value=value)


def _count_families(status: "ClusterStatus") -> Iterator[Metric]:
    for name, text, label, counts in (
        ("outcomes", "Ended requests, by finish reason or error code.", "end", status.outcomes),
        (
            "placements",
            "Attempts, by the kind of the policy's reason.",
            "reason",
            status.placements,
        ),
    ):
        family = CounterMetricFamily("preble_router_" + name, text, labels=["policy", label])
        for value, count in sorted(counts.items()):
            family.add_metric([status.policy, value], count)
        yield family
    refusals = CounterMetricFamily(
        "preble_router_refusals",
        "Requests refused for overload, by what would have been exceeded: the request's deadline, "
        "--max-queue-seconds, --max-live-requests or what the router itself can look at in time.",
        labels=["limit"],
    )
    for limit in ("deadline", "queue", "live_requests", "router"):
        refusals.add_metric([limit], status.refusals.get(limit, 0))
    yield refusals
    yield CounterMetricFamily(
        "preble_router_retries", "Attempts after the first.", value=status.retries_total
    )
    yield CounterMetricFamily(
        "preble_router_retries_refused",
        "Requests that broke off and were not placed again, since the budget for that was spent.",
        value=status.retries_refused_total,
    )


def _length_families(status: "ClusterStatus") -> Iterator[Metric]:
    """A figure that is undefined is left out."""
    lengths = status.lengths
    for name, text, value in (
        (
            "output_length_error_tokens",
            "Mean absolute error of the predicted output lengths, of the last 1,000 requests that "
            "finished.",
            lengths.mean_absolute_error,
        ),
        (
            "output_length_rank_correlation",
            "Spearman's rank correlation of predicted and actual output lengths of the same, from "
            "-1 to 1.",
            lengths.rank_correlation,
        ),
    ):
        if value is not None:
            yield GaugeMetricFamily("preble_router_" + name, text, value=value)


def _states(status: "ClusterStatus") -> Metric:
    counts = dict.fromkeys(_STATES, 0)
    for worker in status.workers:
        counts[worker.state] += 1
    family = GaugeMetricFamily(
        "preble_router_workers", "Workers whose address is known, by state.", labels=["state"]
    )
    for state, count in counts.items():
        family.add_metric([state], count)
    return family


def _family(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    name: str,
    text: str,
    samples: list[tuple[str, float]],
) -> Metric:
    family = kind(f"preble_router_worker_{name}", text, labels=["worker"])
    for worker_id, value in samples:
        family.add_metric([worker_id], value)
    return family
