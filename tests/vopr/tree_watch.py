"""What a router believes of caches: said by the workers, within its limit, and fairly forgotten."""

from collections import Counter
from collections.abc import Callable

from vopr.network import Network, Wire
from vopr.violation import Violation

from preble.page_keys import KEY_BYTES
from preble.v1 import worker_pb2 as pb
from preble_router.cluster_tree import MAX_TREE_PAGES, ClusterTree
from preble_router.dispatch import Dispatcher
from preble_router.event_feed import RETRY_SECONDS
from preble_router.residence import ClusterMatch, ClusterNode
from preble_router.session import Session
from preble_router.tree_limit import SPARE_SHARE
from preble_router.tree_sync import ROOM_SHARE


class TreeWatch:
    """Of one life of a router.

    Args:
        max_pages: of its tree.
        struck: is told what happened.
    """

    def __init__(
        self,
        router: str,
        network: Network,
        dispatcher: Dispatcher,
        *,
        max_pages: int,
        struck: Callable[[str], None],
    ) -> None:
        self._router = router
        self._network = network
        self._dispatcher = dispatcher
        self._tree: ClusterTree = dispatcher.scheduler._tree
        self._host_tree: ClusterTree = dispatcher.scheduler._host_tree._tree
        self._max_pages = max_pages
        self._gapped: set[Wire] = set()
        if max_pages < MAX_TREE_PAGES:
            QuotaWatch(self._tree, max_pages=max_pages, struck=struck)

    # What passes over the router's wires.

    def asked(self, wire: Wire, now: float) -> None:
        """For a snapshot: not while another is on its way."""
        if now < wire.feed.asked_at + RETRY_SECONDS - 1e-6:
            raise Violation(f"{wire} is asked for a second snapshot at once")
        wire.feed.asked_at = now

    def step(self, wire: Wire, step: pb.StepOutput) -> None:
        # What was delayed may be a former process's.
        if step.HasField("cache") and step.cache.epoch == wire.epoch:
            wire.feed.batch(step.cache)
            if wire.feed.has_gap:
                self._gapped.add(wire)

    # Invariants.

    def check(self) -> None:
        """Cheap: after every instant."""
        num_pages = max(self._tree.num_pages, self._host_tree.num_pages)
        if num_pages > self._max_pages:
            raise Violation(f"a tree has {num_pages} pages, and may have {self._max_pages}")
        if self._gapped:
            self._check_gaps()

    def _check_gaps(self) -> None:
        """Nobody takes a view to be as of a batch before which one is missing."""
        workers = {worker.spec.epoch: worker for worker in self._dispatcher.scheduler._roster}
        for wire in list(self._gapped):
            feed, worker = wire.feed, workers.get(wire.epoch)
            if worker is None or not feed.has_gap:
                self._gapped.discard(wire)
            elif feed.seq is not None and worker.feed.seq > feed.seq:
                raise Violation(f"batches of {wire} are missing after {feed.seq}, unnoticed")

    def check_deeply(self) -> None:
        """All that is believed was said by who is linked now."""
        slots = set[int]()
        for worker in self._dispatcher.scheduler._roster:
            slots.add(worker.slot)
            wire = self.wire_to(self._dispatcher.membership.sessions[worker.spec.worker_id])
            if wire is None:
                continue
            feed = wire.feed
            if worker.feed.is_synced and feed.has_gap:
                raise Violation(f"events of {worker.spec.worker_id} are missing, unnoticed")
            for tree, said in ((self._tree, feed.paths), (self._host_tree, feed.host_paths)):
                if not {tree.path_to(node) for node in tree.coldest(worker.slot)} <= said:
                    raise Violation(
                        f"{worker.spec.worker_id} never said it holds what the tree has"
                    )
        for tree in (self._tree, self._host_tree):
            if any(tree.held_pages(i) for i in range(tree.num_slots) if i not in slots):
                raise Violation("what lost workers held is still believed")

    def wire_to(self, session: Session) -> Wire | None:
        """The wire that the session is on; None if that has just gone."""
        wires = self._network.between(self._router, session.address)
        return next((w for w in wires if w.hears_of(session.spec.epoch)), None)

    def is_right(self, slot: int, digest: tuple[int, int]) -> bool:
        """Whether it knows all that the worker holds, whose digest it is, or has no room for it."""
        tree = self._tree
        if tree.digest(slot) == digest:
            return True
        missing = digest[0] - tree.held_pages(slot)
        is_full = tree.num_pages + missing >= ROOM_SHARE * self._max_pages
        return tree.is_partial(slot) and is_full


class QuotaWatch:
    """Looks on as a tree makes room: who has no more than its share loses nothing.

    It learns by itself which namespace a path belongs to, and forgets it when the tree may.
    """

    def __init__(self, tree: ClusterTree, *, max_pages: int, struck: Callable[[str], None]) -> None:
        self._tree = tree
        self._max_pages = max_pages
        self._struck = struck
        self._namespaces: dict[bytes, str] = {}
        self._place, self._fit, self._remove = tree.place, tree._fit, tree._tree.remove
        tree.place = self.place  # type: ignore[method-assign]
        tree._fit = self.fit  # type: ignore[method-assign]
        tree._tree.remove = self.remove  # type: ignore[method-assign]

    def place(
        self, slot: int, path: bytes, match: ClusterMatch, *, now: float, namespace: str = ""
    ) -> ClusterNode:
        end = self._place(slot, path, match, now=now, namespace=namespace)
        if end.parent is not None:
            self._namespaces[path[:KEY_BYTES]] = namespace
        return end

    def remove(self, node: ClusterNode) -> None:
        if node.parent is self._tree.root:
            self._namespaces.pop(node.edge[:KEY_BYTES], None)
        self._remove(node)

    def fit(self, path: bytes) -> tuple[bytes, ClusterMatch]:
        """Room is made for `path`."""
        before, expected = self._count_pages()
        num_new = len(path) // KEY_BYTES - self._tree.match(path).num_pages
        target = self._max_pages - num_new - int(SPARE_SHARE * self._max_pages)
        fitted = self._fit(path)
        after, _ = self._count_pages()
        self._struck("tree makes room")
        for namespace, pages in before.items():
            # Live requests of the others are left what they expect.
            total = target - expected.total() + expected[namespace]
            if pages > max(total, 0) // len(before):
                continue
            if after[namespace] < pages:
                raise Violation(
                    f"namespace {namespace!r} had {pages} pages of "
                    f"{before.total()}, and lost {pages - after[namespace]}"
                )
            self._struck("quota spares a namespace")
        return fitted

    def _count_pages(self) -> tuple[Counter[str], Counter[str]]:
        """By namespace: all, and those that live requests expect."""
        pages, expected = Counter[str](), Counter[str]()
        for top in self._tree.root.children.values():
            namespace = self._namespaces.get(top.edge[:KEY_BYTES], "")
            below = [top]
            for node in below:
                below.extend(node.children.values())
                count = len(node.edge) // KEY_BYTES
                pages[namespace] += count
                expected[namespace] += count if node.payload.expected else 0
        return pages, expected
