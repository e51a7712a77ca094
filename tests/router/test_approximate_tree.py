"""What routers note for themselves, against plain dictionaries of paths."""

import random

import pytest

from preble.page_keys import KEY_BYTES
from preble.prefix_tree import Node
from preble_router.policies.active_blocks import ActiveBlocks, Users
from preble_router.policies.approximate_tree import ApproximateTree

KEYS = [bytes([letter]) * KEY_BYTES for letter in b"xyz"]
SLOTS = 4


def random_path(rng: random.Random) -> bytes:
    return b"".join(rng.choices(KEYS, weights=(5, 2, 1), k=rng.randrange(1, 9)))


def prefixes(path: bytes, width: int = KEY_BYTES) -> list[bytes]:
    return [path[:end] for end in range(width, len(path) + 1, width)]


@pytest.mark.parametrize("chunk_pages", [1, 2])
def test_without_a_bound_it_notes_what_was_routed(chunk_pages: int) -> None:
    rng = random.Random(chunk_pages)
    tree = ApproximateTree(pages_max=1000, chunk_pages=chunk_pages)
    noted: list[set[bytes]] = [set() for _ in range(SLOTS)]
    for step in range(400):
        slot, path = rng.randrange(SLOTS), random_path(rng)
        if step % 60 == 59:
            tree.forget(slot)
            noted[slot].clear()
        else:
            tree.insert(slot, path, now=float(step))
            noted[slot].update(prefixes(path, chunk_pages * KEY_BYTES))
        tree.check()
        probe = random_path(rng)
        want = [max((len(p) for p in prefixes(probe) if p in seen), default=0) for seen in noted]
        found = tree.matched_pages(probe, num_slots=SLOTS)
        assert (found * KEY_BYTES).tolist() == want


def test_it_forgets_what_was_routed_longest_ago_and_leaves_no_holes() -> None:
    rng = random.Random(5)
    tree = ApproximateTree(pages_max=12)
    for step in range(500):
        slot = rng.randrange(SLOTS)
        path = random_path(rng)
        tree.insert(slot, path, now=float(step))
        tree.trim_slot(slot)
        tree.check()
        assert tree.num_pages(slot) <= 12
        assert tree.matched_pages(path, num_slots=SLOTS)[slot] * KEY_BYTES == len(path)


def test_trim_keeps_the_latest() -> None:
    rng = random.Random(6)
    tree = ApproximateTree(pages_max=30)
    paths = [rng.randbytes(10 * KEY_BYTES) for _ in range(5)]
    for now, path in enumerate(paths):
        tree.insert(0, path, now=float(now))
    tree.insert(0, paths[0], now=5.0)
    tree.trim()
    tree.check()
    kept = [int(tree.matched_pages(path, num_slots=1)[0]) for path in paths]
    assert kept == [10, 0, 0, 10, 10]


def test_expiry_takes_what_nobody_routed_since() -> None:
    rng = random.Random(7)
    tree = ApproximateTree(pages_max=1000)
    for step in range(300):
        tree.insert(rng.randrange(SLOTS), random_path(rng), now=float(step))
        tree.expire(before=step - 20.0)
        tree.check()
    tree.expire(before=299.0)
    tree.check()
    assert [tree.num_pages(slot) for slot in range(SLOTS)] == [0] * SLOTS


def test_the_latest_worker_of_a_prefix_is_who_got_it_last() -> None:
    rng = random.Random(8)
    tree = ApproximateTree(pages_max=1000)
    head = rng.randbytes(4 * KEY_BYTES)
    tree.insert(0, head + rng.randbytes(4 * KEY_BYTES), now=0.0)
    tree.insert(1, head + rng.randbytes(4 * KEY_BYTES), now=1.0)
    assert tree.match(head).nodes[-1].payload.latest == 1
    tree.forget(1)
    assert tree.match(head).nodes[-1].payload.latest == 0


def test_active_blocks_count_shared_pages_once() -> None:
    rng = random.Random(9)
    blocks = ActiveBlocks()
    live: list[tuple[int, Node[Users], bytes]] = []
    for _ in range(600):
        if live and rng.random() < 0.45:
            slot, end, _ = live.pop(rng.randrange(len(live)))
            blocks.remove(slot, end)
        else:
            slot, path = rng.randrange(SLOTS), random_path(rng)
            live.append((slot, blocks.add(slot, path), path))
        blocks.check()
        probe = random_path(rng)
        for slot, shared in enumerate(blocks.shared_pages(probe, num_slots=SLOTS)):
            used = {p for where, _, path in live if where == slot for p in prefixes(path)}
            assert blocks.num_pages(slot) == len(used)
            assert shared * KEY_BYTES == max(
                (len(p) for p in prefixes(probe) if p in used), default=0
            )
