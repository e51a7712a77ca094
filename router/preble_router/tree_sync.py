"""Keeps the marks of every worker what its feed says, and asks those whose feed is in doubt."""

from preble.events import CacheEvents, CacheSnapshot, SnapshotRequest
from preble.types import LoadReport
from preble_router.cluster_tree import ClusterTree
from preble_router.cluster_worker import ClusterWorker
from preble_router.event_feed import FeedStep
from preble_router.host_tree import HostTree
from preble_router.stimuli import RequestSnapshot
from preble_router.tree_repair import bucket_digests, take_snapshot

ROOM_SHARE = 0.9
"""Of the tree's limit; a worker known in part is asked for the rest when that fits below."""


class TreeSync:
    """Owns who must be asked, by worker id."""

    def __init__(self, tree: ClusterTree, host_tree: HostTree) -> None:
        self._tree = tree
        self._host_tree = host_tree
        self._asking: dict[str, ClusterWorker] = {}

    def join(self, worker: ClusterWorker) -> None:
        self._note(worker)

    def leave(self, worker: ClusterWorker) -> None:
        """It is lost: it holds nothing."""
        self._tree.forget(worker.slot)
        self._host_tree.forget(worker.slot)
        self._asking.pop(worker.spec.worker_id, None)

    def change(self, worker: ClusterWorker, batch: CacheEvents, *, now: float) -> bool:
        """A batch of its events; whether that changed which workers' caches are known."""
        return self._follow(worker, worker.feed.receive(batch, now=now))

    def replace(self, worker: ClusterWorker, snapshot: CacheSnapshot, *, now: float) -> bool:
        """A snapshot or a difference; whether that changed which workers' caches are known."""
        return self._follow(worker, worker.feed.receive_snapshot(snapshot, now=now))

    def compare(self, worker: ClusterWorker, load: LoadReport, *, now: float) -> None:
        """Its digest has come, as of its last batch."""
        said = (load.tree_pages, load.tree_key_sum)
        agrees = self._tree.digest(worker.slot) == said
        if agrees or not self._tree.is_partial(worker.slot) or self._has_room(worker, said[0]):
            worker.feed.receive_digest(agrees=agrees, now=now)
            self._note(worker)

    def next_ask_at(self) -> float | None:
        """When somebody must be asked."""
        times = [worker.feed.ask_at() for worker in self._asking.values()]
        return min((at for at in times if at is not None), default=None)

    def asks(self, *, now: float) -> list[RequestSnapshot]:
        """Whom to ask now, and what."""
        return [
            RequestSnapshot(worker_id, self._request(worker))
            for worker_id, worker in self._asking.items()
            if worker.feed.ask(now=now)
        ]

    def is_asking(self, worker: ClusterWorker) -> bool:
        return worker.spec.worker_id in self._asking

    def _has_room(self, worker: ClusterWorker, num_pages: int) -> bool:
        """For all that the worker holds, of which the tree knows only a part."""
        num_missing = num_pages - self._tree.held_pages(worker.slot)
        return self._tree.num_pages + num_missing < ROOM_SHARE * self._tree.max_pages

    def _request(self, worker: ClusterWorker) -> SnapshotRequest:
        feed = worker.feed
        digests = bucket_digests(self._tree, worker.slot) if feed.wants_difference else ()
        return SnapshotRequest(feed.number, digests)

    def _follow(self, worker: ClusterWorker, step: FeedStep) -> bool:
        slot, tree, host_tree = worker.slot, self._tree, self._host_tree
        if step.forget:
            tree.forget(slot)
        if step.forget or step.snapshot is not None:
            host_tree.forget(slot)
        if step.snapshot is not None:
            take_snapshot(tree, slot, step.snapshot)
            host_tree.store_all(slot, step.snapshot.host_paths)
        for batch in step.batches:
            tree.apply(slot, batch.events)
            host_tree.apply(slot, batch.host_events)
        self._note(worker)
        return step.forget or step.snapshot is not None

    def _note(self, worker: ClusterWorker) -> None:
        if worker.feed.is_synced:
            self._asking.pop(worker.spec.worker_id, None)
        else:
            self._asking[worker.spec.worker_id] = worker
