"""The router's tree has a limit: it is kept, costs predictions only, and memory comes back."""

import random

import pytest
from routing_helpers import pages, route, synced_scheduler, worker_spec
from true_cache import TrueCache

from preble.events import CacheEvents, CacheSnapshot, Stored
from preble.page_keys import KEY_BYTES
from preble.types import LoadReport
from preble_router.cluster_tree import ClusterTree
from preble_router.stimuli import (
    CacheChanged,
    RequestFinished,
    SnapshotReceived,
    StepReport,
    WorkerJoined,
    WorkerLost,
)
from preble_router.tree_limit import fair_level


def make_tree(max_pages: int, num_slots: int = 2) -> ClusterTree:
    tree = ClusterTree(16, max_pages=max_pages)
    for _ in range(num_slots):
        tree.add_slot()
    return tree


def known(tree: ClusterTree, path: bytes, slot: int = 0) -> int:
    """Pages of `path` that the tree says `slot` has."""
    return int(tree.warm_tokens(tree.match(path), most=10**9)[slot]) // 16


def test_what_nobody_holds_goes_before_what_somebody_does() -> None:
    rng = random.Random(1)
    tree = make_tree(100)
    held, used, new = pages(rng, 50), pages(rng, 50), pages(rng, 40)
    tree.store(0, held)
    tree.withdraw(1, tree.place(1, used, tree.match(used), now=0.0))
    tree.store(0, new)
    tree.check()
    assert (known(tree, held), known(tree, new)) == (50, 40)
    assert tree.match(used).num_pages == 0 and not tree.is_partial(0)


def test_what_was_used_long_ago_goes_next() -> None:
    rng = random.Random(2)
    tree = make_tree(100)
    paths = [pages(rng, 10) for _ in range(10)]
    for path in paths:
        tree.store(0, path)
    tree.store(0, paths[0])
    tree.store(1, new := pages(rng, 10))
    tree.check()
    assert known(tree, paths[0]) == 10 and known(tree, paths[1]) == 0
    assert known(tree, new, slot=1) == 10
    assert tree.is_partial(0) and not tree.is_partial(1)
    tree.forget(0)
    assert not tree.is_partial(0)


def test_what_live_requests_expect_stays_and_more_is_not_taken_in() -> None:
    rng = random.Random(3)
    tree = make_tree(100)
    long = pages(rng, 80)
    end = tree.place(0, long, tree.match(long), now=0.0)
    more = pages(rng, 80)
    other = tree.place(1, more, tree.match(more), now=0.0)
    tree.check()
    assert known(tree, long) == 80 and known(tree, more, slot=1) == 20
    tree.store(1, more)
    assert tree.is_partial(1)
    tree.withdraw(0, end)
    tree.withdraw(1, other)
    tree.expire_uses(before=1.0, limit=9)
    tree.forget(1)
    tree.check()
    assert (tree.num_nodes, tree.num_pages) == (0, 0)


def use(tree: ClusterTree, path: bytes, namespace: str, slot: int = 0) -> None:
    """A request of `namespace` that has come and gone."""
    match = tree.match(path)
    tree.withdraw(slot, tree.place(slot, path, match, now=0.0, namespace=namespace))


def test_a_flood_in_one_namespace_pushes_out_nothing_of_another() -> None:
    rng = random.Random(11)
    tree = make_tree(1000)
    few = [pages(rng, 10) for _ in range(20)]
    for path in few:
        use(tree, path, "few")
        tree.store(0, path)
    for _ in range(300):
        flood = pages(rng, 20)
        use(tree, flood, "many")
        tree.store(1, flood)
    tree.check()
    assert [known(tree, path) for path in few] == [10] * 20
    assert known(tree, flood, slot=1) == 20
    assert tree.is_partial(1) and not tree.is_partial(0)


def test_what_a_namespace_used_outlives_the_uses_of_another() -> None:
    rng = random.Random(12)
    tree = make_tree(1000)
    few = [pages(rng, 10) for _ in range(20)]
    for path in few:
        use(tree, path, "few")
    for _ in range(300):
        use(tree, pages(rng, 20), "many")
    tree.check()
    assert [tree.match(path).num_pages for path in few] == [10] * 20
    assert [end for _, end in tree.uses][:20] == [tree.match(path).nodes[-1] for path in few]


def test_who_has_more_than_the_others_is_cut_to_the_same() -> None:
    """Of 600, 500 and 100 pages, 170 must go: the level is at 465."""
    rng = random.Random(13)
    tree = make_tree(1200)
    sizes = {"a": 60, "b": 50, "c": 10}
    paths = {name: [pages(rng, 10) for _ in range(size)] for name, size in sizes.items()}
    for name in paths:
        for path in paths[name]:
            use(tree, path, name)
            tree.store(0, path)
    assert tree.num_pages == 1200
    use(tree, pages(rng, 110), "c")
    left = {name: sum(known(tree, path) for path in paths[name]) for name in paths}
    assert left == {"a": 460, "b": 460, "c": 100}
    assert known(tree, paths["a"][0]) == 0 and known(tree, paths["a"][-1]) == 10


def test_live_requests_of_one_namespace_leave_the_rest_to_the_others() -> None:
    rng = random.Random(14)
    tree = make_tree(1000)
    live = [pages(rng, 80) for _ in range(10)]
    ends = [tree.place(0, p, tree.match(p), now=0.0, namespace="live") for p in live]
    for i in range(60):
        use(tree, path := pages(rng, 10), f"n{i % 3}")
        tree.store(1, path)
        assert known(tree, path, slot=1) == 10
    tree.check()
    assert [known(tree, path) for path in live] == [80] * 10
    for end in ends:
        tree.withdraw(0, end)
    tree.expire_uses(before=1.0, limit=1000)
    tree.forget(1)
    tree.check()
    assert not tree.namespaces and tree.num_pages == 0


@pytest.mark.parametrize("seed", range(50))
def test_the_level_is_the_highest_that_fits(seed: int) -> None:
    rng = random.Random(seed)
    sizes = [rng.randrange(50) for _ in range(rng.randrange(1, 8))]
    total = rng.randrange(sum(sizes) + 1)
    level = fair_level(sizes, total)
    assert sum(min(size, level) for size in sizes) <= total
    assert level == max(sizes) or sum(min(size, level + 1) for size in sizes) > total


def test_the_limit_holds_under_a_storm_of_everything() -> None:
    rng = random.Random(4)
    tree = make_tree(300, num_slots=4)
    roots = [pages(rng, 20) for _ in range(6)]
    live = []
    for now in range(3000):
        path = rng.choice(roots)[: KEY_BYTES * rng.randrange(1, 21)] + pages(rng, rng.randrange(30))
        slot = rng.randrange(4)
        draw = rng.random()
        if draw < 0.5:
            tree.store(slot, path)
        elif draw < 0.8:
            match, namespace = tree.match(path), rng.choice(["", "a", "b"])
            live.append((slot, tree.place(slot, path, match, now=now, namespace=namespace)))
        elif draw < 0.9:
            tree.evict(slot, path, rng.randrange(10))
        elif draw < 0.91:
            tree.forget(slot)
        while len(live) > 4:
            tree.withdraw(*live.pop(0))
        assert tree.num_pages <= 300
        if now % 50 == 0:
            tree.check()
            tree.check_expected(live)


def test_the_memory_of_a_removed_worker_comes_back() -> None:
    rng = random.Random(5)
    scheduler = synced_scheduler("preble", ["a"])
    before = scheduler.tree_summary()
    for round_ in range(3):
        scheduler.observe(WorkerJoined(worker_spec("b", epoch=round_ + 1)), now=0.0)
        paths = tuple(pages(rng, 40) for _ in range(100))
        scheduler.observe(SnapshotReceived("b", CacheSnapshot(round_ + 1, 0, paths)), now=0.0)
        assert scheduler.tree_summary().num_pages == 4000
        scheduler.observe(WorkerLost("b"), now=1.0)
        assert scheduler.tree_summary() == before
        scheduler.check()


def test_a_scheduler_at_its_limit_goes_on_placing() -> None:
    rng = random.Random(6)
    scheduler = synced_scheduler("preble", ["a", "b"], max_tree_pages=200)
    for i in range(200):
        now = float(i)
        path = pages(rng, rng.randrange(1, 60))
        scheduler.place(route(f"r{i}", path), now=now)
        scheduler.observe(CacheChanged("a", CacheEvents(1, i + 1, (Stored(path),))), now=now)
        scheduler.observe(RequestFinished(f"r{i}", 1, 3), now=now)
        assert scheduler.tree_summary().num_pages <= 200
        scheduler.check()


def test_one_tenants_documents_do_not_push_out_anothers_conversations() -> None:
    """Through the scheduler, which knows the namespaces of what it places."""
    rng = random.Random(9)
    scheduler = synced_scheduler("preble", ["a", "b"], max_tree_pages=2000)
    seqs = {"a": 0, "b": 0}
    talks = [pages(rng, 20) for _ in range(10)]

    def serve(path: bytes, namespace: str, now: float) -> int:
        name = f"{namespace} {now}"
        placed = scheduler.place(route(name, path, namespace=namespace), now=now)
        seqs[placed.worker_id] += 1
        batch = CacheEvents(1, seqs[placed.worker_id], (Stored(path),))
        scheduler.observe(CacheChanged(placed.worker_id, batch), now=now)
        scheduler.observe(RequestFinished(name, 1, 3), now=now)
        return placed.cached_tokens

    for i, talk in enumerate(talks):
        serve(talk, "talks", float(i))
    for i in range(10, 310):
        serve(pages(rng, 100), "documents", float(i))
    scheduler.check()
    assert all(serve(talk, "talks", 1000.0 + i) for i, talk in enumerate(talks))


def test_a_worker_known_in_part_is_not_asked_until_there_is_room_for_it() -> None:
    cache = TrueCache(400, epoch=1, rng=random.Random(7))
    while cache.pages.num_free > 50:
        cache.serve(now=0.0)
    cache.drain()
    rng = random.Random(8)
    scheduler = synced_scheduler("preble", ["b"], max_tree_pages=600)
    others = tuple(pages(rng, 10) for _ in range(50))
    scheduler.observe(WorkerJoined(worker_spec("a")), now=0.0)
    scheduler.observe(SnapshotReceived("a", cache.pages.snapshot()), now=0.0)
    scheduler.observe(SnapshotReceived("b", CacheSnapshot(1, 1, others)), now=0.0)
    load = LoadReport(tree_pages=cache.digest[0], tree_key_sum=cache.digest[1])
    for now in range(1, 100):
        scheduler.observe(StepReport(worker_id="a", load=load), now=float(now))
        assert scheduler.tick(now=float(now)) == []
    scheduler.observe(WorkerLost("b"), now=100.0)
    scheduler.observe(StepReport(worker_id="a", load=load), now=100.0)
    (ask,) = scheduler.tick(now=101.0)
    assert ask.worker_id == "a"
    repair = cache.pages.snapshot(ask.request)
    scheduler.observe(SnapshotReceived("a", repair), now=101.1)
    (view,) = scheduler.workers()
    assert (view.held_pages, view.held_key_sum) == cache.digest
