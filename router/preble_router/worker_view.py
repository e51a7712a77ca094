"""What a status page shows of one worker: a copy of the router's belief, changed by nobody."""

from dataclasses import dataclass

from preble.types import LoadReport, WorkerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """One worker as the router sees it.

    Attributes:
        load: the worker's last report.
        held_pages: pages that the router's tree believes it holds.
        held_key_sum: sum of their keys modulo 2**64; two routers that agree have the same.
        live_requests: ours that were placed there and have not ended.
        queued_prefill_tokens, decode_tokens: our books for it.
        speed_ratio: observed over predicted step time; above 1 it is slower than its cost model.
        predicted_cached_total, actual_cached_total: prompt tokens of the requests whose first
            token has come: what we expected it to find in its cache, and what it did find.
        synced: its cache events are complete so far.
        snapshots_total, differences_total: read since its link is up: of everything, and of the
            parts in which the view was wrong.
    """

    worker_id: str
    spec: WorkerSpec
    load: LoadReport
    held_pages: int
    held_key_sum: int
    live_requests: int
    queued_prefill_tokens: int
    decode_tokens: float
    speed_ratio: float
    predicted_cached_total: int
    actual_cached_total: int
    placed_total: int
    synced: bool
    suspended: bool
    draining: bool
    snapshots_total: int
    differences_total: int


@dataclass(frozen=True, slots=True)
class TreeSummary:
    """Size of the router's tree, and the live requests on the books."""

    num_nodes: int
    num_pages: int
    live_requests: int
