"""One linked worker as the scheduler keeps it: its books, its event feed, and what bars it."""

from dataclasses import dataclass, field

from preble.types import WorkerSpec
from preble_router.cluster_tree import ClusterTree
from preble_router.event_feed import EventFeed
from preble_router.load import WorkerLoad
from preble_router.worker_table import WorkerTable
from preble_router.worker_view import WorkerView

PRICE_SECONDS = 1.0
"""How often a worker's eviction price is worked out anew."""
PRICE_NODES = 16
"""Of how many nodes it would evict next."""


@dataclass(slots=True, kw_only=True, eq=False)
class ClusterWorker:
    """State from the moment its link is up until it is lost.

    Attributes:
        slot: its bit in the tree and its row in the table; reused after it is lost.
        held: it may not take more before it has shown how fast it is.
        priced_at: when its eviction price was last worked out.
    """

    spec: WorkerSpec
    slot: int
    load: WorkerLoad
    feed: EventFeed
    suspended: bool = False
    draining: bool = False
    held: bool = False
    predicted_cached_total: int = 0
    actual_cached_total: int = 0
    placed_total: int = 0
    priced_at: float = field(default=float("-inf"))

    @property
    def is_open(self) -> bool:
        """It may take requests, if need be before its cache is known."""
        return not self.suspended and not self.draining

    def price_eviction(self, tree: ClusterTree, table: WorkerTable, *, now: float) -> None:
        """Work out anew what the tokens it would evict next are worth, now and then."""
        if now < self.priced_at + PRICE_SECONDS:
            return
        self.priced_at = now
        share = tree.reuse_share(self.slot, num_nodes=PRICE_NODES)
        seconds = float(table.seconds_per_token[self.slot])
        if self.spec.host_capacity_tokens:  # It goes to the host, from where it comes back.
            seconds = min(seconds, self.spec.host_token_seconds)
        table.price_eviction(self.slot, share * seconds)

    def view(self, tree: ClusterTree) -> WorkerView:
        load = self.load
        held_pages, held_key_sum = tree.digest(self.slot)
        return WorkerView(
            worker_id=self.spec.worker_id,
            spec=self.spec,
            load=load.report,
            held_pages=held_pages,
            held_key_sum=held_key_sum,
            live_requests=load.num_live,
            queued_prefill_tokens=load.queued_tokens,
            decode_tokens=load.decode_tokens,
            speed_ratio=load.speed_ratio,
            predicted_cached_total=self.predicted_cached_total,
            actual_cached_total=self.actual_cached_total,
            placed_total=self.placed_total,
            synced=self.feed.is_synced,
            suspended=self.suspended,
            draining=self.draining,
            snapshots_total=self.feed.snapshots_total,
            differences_total=self.feed.differences_total,
        )
