"""What a router counts, for Prometheus. Names begin with `preble_router_`; times are in seconds.

Requests are counted and timed as they happen. What is known of workers is not kept here: it is
read from the cluster's status whenever somebody asks.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import HistogramMetricFamily, Metric

from preble.types import Usage
from preble_router.worker_metrics import cluster_families

if TYPE_CHECKING:
    from preble_router.status import ClusterStatus

_TTFT_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_REQUEST_SECONDS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

MAX_TENANTS = 100
"""Clients may name as many as they like, and each is a series for ever."""


class SecondsHistogram:
    """A histogram that is told of every token, by one thread: the library's own takes locks, which
    would cost more than everything else that is done for a token."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """One more."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterable[Metric]:
        """For a registry."""
        labels = [*map(str, self._bounds), "+Inf"]
        buckets = list(zip(labels, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)


class Metrics:
    """One router's metrics, in a registry of their own.

    Attributes:
        live_requests: gauge of requests that are generating.
        ttft, inter_token: histograms to be told of every first, and of every further delta.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.live_requests = Gauge(
            "preble_router_live_requests",
            "Requests that are generating, streamed or not.",
            registry=self.registry,
        )
        self._tasks = Gauge(
            "preble_router_tasks",
            "asyncio tasks: some for each live request, link and connection, and no more.",
            registry=self.registry,
        )
        self.ttft = SecondsHistogram(
            "preble_router_ttft_seconds",
            "From the arrival of a request to its first token.",
            _TTFT_SECONDS,
        )
        self.inter_token = SecondsHistogram(
            "preble_router_inter_token_seconds",
            "Between two deliveries of tokens of one output; a delivery is mostly one token.",
            _TOKEN_SECONDS,
        )
        self.registry.register(self.ttft)
        self.registry.register(self.inter_token)
        self._http_requests = Counter(
            "preble_router_http_requests",
            "HTTP requests that ended. A stream that broke off counts under the status its error "
            "would have had, one whose client went away under 499.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "preble_router_http_request_seconds",
            "From the arrival of an HTTP request to the end of its response.",
            ["route"],
            buckets=_REQUEST_SECONDS,
            registry=self.registry,
        )
        self._tokens = Counter(
            "preble_router_tokens",
            "Tokens of ended requests: prompt, completion, cached (prompt tokens that workers "
            "served from their caches), predicted_cached (what the router had expected of that).",
            ["kind"],
            registry=self.registry,
        )
        self._kinds = {
            kind: self._tokens.labels(kind)
            for kind in ("prompt", "completion", "cached", "predicted_cached")
        }

        self._charged = Counter(
            "preble_router_tenant_charged_tokens",
            "Uncached prompt tokens, and output tokens twice, of ended requests, by who is charged "
            f"where tenants share fairly; beyond the first {MAX_TENANTS} tenants: (others).",
            ["tenant"],
            registry=self.registry,
        )
        self._tenants: set[str] = set()

    def http_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request ended."""
        self._http_requests.labels(_known(method), route, status).inc()
        self._request_seconds.labels(route).observe(seconds)

    def tenant_charged(self, tenant: str, tokens: float) -> None:
        """A request of this tenant has ended."""
        if len(self._tenants) < MAX_TENANTS:
            self._tenants.add(tenant)
        self._charged.labels(tenant if tenant in self._tenants else "(others)").inc(tokens)

    def request_generated(self, usage: Usage) -> None:
        """A request that generated has ended, well or not."""
        self._kinds["prompt"].inc(usage.prompt_tokens)
        self._kinds["completion"].inc(usage.completion_tokens)
        self._kinds["cached"].inc(usage.cached_tokens)
        self._kinds["predicted_cached"].inc(usage.predicted_cached_tokens)

    async def render(self, status: "ClusterStatus", *, accept: str) -> tuple[bytes, str]:
        """Everything as text, and its content type.

        Args:
            accept: the scraper's Accept header, which chooses between Prometheus' text formats.
        """
        encode, content_type = choose_encoder(accept)
        self._tasks.set(len(asyncio.all_tasks()))
        # With many workers this takes a while, and the event loop has streams to serve.
        content = await asyncio.to_thread(encode, _Both(self.registry, status))
        return content, content_type


class _Both:
    """The registry and the cluster's status, as one thing that can be collected."""

    def __init__(self, registry: CollectorRegistry, status: "ClusterStatus") -> None:
        self._registry = registry
        self._status = status

    def collect(self) -> Iterable[Metric]:
        yield from self._registry.collect()
        yield from cluster_families(self._status)


def _known(method: str) -> str:
    """Clients may invent methods; labels must stay few."""
    return method if method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} else "other"
