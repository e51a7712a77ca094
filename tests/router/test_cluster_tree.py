"""The tree of holders: marks, expectations, uses, and that nothing stays that nobody needs."""

import random
from typing import Any

import pytest
from routing_helpers import pages

from preble.page_keys import KEY_BYTES, key_sum
from preble_router.cluster_tree import MAX_TREE_PAGES, ClusterTree


def path(text: str) -> bytes:
    """One page per letter."""
    return b"".join(letter.encode() * KEY_BYTES for letter in text)


def make_tree(num_slots: int = 3) -> ClusterTree:
    tree = ClusterTree(16)
    for _ in range(num_slots):
        tree.add_slot()
    return tree


def warm(tree: ClusterTree, text: str) -> list[int]:
    tree.check()
    tokens = tree.warm_tokens(tree.match(path(text)), most=10**9)
    return [int(count) // 16 for count in tokens]


def test_each_worker_holds_its_own_length_of_a_path() -> None:
    tree = make_tree()
    tree.store(0, path("abcdef"))
    tree.store(1, path("abc"))
    tree.store(2, path("abxy"))
    assert warm(tree, "abcdefgh") == [6, 3, 2]
    assert warm(tree, "abxz") == [2, 2, 3]
    assert warm(tree, "zzz") == [0, 0, 0]


def test_most_bounds_what_counts() -> None:
    tree = make_tree()
    tree.store(0, path("abcdef"))
    tree.store(1, path("ab"))
    assert tree.warm_tokens(tree.match(path("abcdef")), most=48).tolist() == [48, 32, 0]


def test_storing_twice_is_storing_once() -> None:
    tree = make_tree()
    tree.store(0, path("abc"))
    digest = tree.digest(0)
    tree.store(0, path("abc"))
    tree.store(0, path("ab"))
    assert tree.digest(0) == digest == (3, key_sum(path("abc")))
    tree.check()


def test_eviction_clears_what_lies_below_and_no_side_branch() -> None:
    tree = make_tree()
    for text in ("abcd", "abce", "abx"):
        tree.store(0, path(text))
    tree.evict(0, path("abcd"), 2)
    assert warm(tree, "abcd")[0] == warm(tree, "abce")[0] == 2
    assert warm(tree, "abx")[0] == 3
    assert tree.held_pages(0) == 3


def test_eviction_is_of_one_worker_and_idempotent() -> None:
    tree = make_tree()
    tree.store(0, path("abcd"))
    tree.store(1, path("abcd"))
    for _ in range(2):
        tree.evict(0, path("abcdefg"), 1)
        assert warm(tree, "abcd") == [1, 4, 0]
    tree.evict(0, path("abcd"), 4)
    assert warm(tree, "abcd") == [1, 4, 0]


def test_evicting_all_empties_the_tree() -> None:
    tree = make_tree()
    for text in ("abcd", "abx", "q"):
        tree.store(0, path(text))
    tree.evict(0, path("abcd"), 0)
    tree.evict(0, path("q"), 0)
    assert (tree.num_nodes, tree.num_pages, tree.digest(0)) == (0, 0, (0, 0))


def test_eviction_page_by_page_leaves_no_chain_of_single_pages() -> None:
    rng = random.Random(1)
    tree = make_tree()
    long = pages(rng, 200)
    tree.store(0, long)
    tree.store(1, long)
    for keep in range(199, -1, -1):
        tree.evict(0, long, keep)
        assert tree.num_nodes <= 2
    assert tree.num_nodes == 1 and tree.held_pages(1) == 200
    tree.check()


def test_branches_that_come_and_go_leave_no_cuts() -> None:
    rng = random.Random(2)
    tree = make_tree()
    long = pages(rng, 100)
    tree.store(0, long)
    for _ in range(50):
        branch = long[: rng.randrange(1, 100) * KEY_BYTES] + pages(rng, 3)
        end = tree.place(1, branch, tree.match(branch), now=0.0)
        tree.withdraw(1, end)
        tree.expire_uses(before=0.0, limit=1)
        tree.check()
    assert tree.num_nodes == 1


def test_an_expected_path_counts_as_held_but_not_in_the_digest() -> None:
    tree = make_tree()
    tree.store(0, path("ab"))
    end = tree.place(1, path("abcd"), tree.match(path("abcd")), now=0.0)
    assert warm(tree, "abcd") == [2, 4, 0]
    assert tree.digest(1) == (0, 0)
    tree.withdraw(1, end)
    assert warm(tree, "abcd") == [2, 0, 0]


def test_two_expectations_end_one_by_one() -> None:
    tree = make_tree()
    first = tree.place(1, path("abcd"), tree.match(path("abcd")), now=0.0)
    second = tree.place(1, path("abxy"), tree.match(path("abxy")), now=0.0)
    tree.withdraw(1, first)
    assert warm(tree, "abcd")[1] == 2 and warm(tree, "abxy")[1] == 4
    tree.withdraw(1, second)
    assert warm(tree, "abxy")[1] == 0


def test_withdrawing_keeps_what_the_worker_stored_meanwhile() -> None:
    tree = make_tree()
    end = tree.place(1, path("abcd"), tree.match(path("abcd")), now=0.0)
    tree.store(1, path("abc"))
    tree.withdraw(1, end)
    assert warm(tree, "abcd")[1] == 3


def test_a_path_stays_while_used_and_goes_after() -> None:
    tree = make_tree()
    end = tree.place(0, path("abcd"), tree.match(path("abcd")), now=5.0)
    tree.withdraw(0, end)
    assert tree.num_pages == 4
    assert tree.next_use_at() == 5.0
    tree.expire_uses(before=4.9, limit=100)
    assert tree.num_pages == 4
    tree.expire_uses(before=5.0, limit=100)
    assert tree.num_pages == 0
    tree.check()


def test_expiry_is_bounded_per_call() -> None:
    tree = make_tree()
    for letter in "abcdef":
        tree.withdraw(0, tree.place(0, path(letter), tree.match(path(letter)), now=0.0))
    tree.expire_uses(before=1.0, limit=4)
    assert tree.num_pages == 2


def test_forgetting_a_worker_leaves_the_others() -> None:
    tree = make_tree()
    for text in ("abcd", "abx", "pq"):
        tree.store(0, path(text))
    tree.store(1, path("abx"))
    tree.forget(0)
    assert warm(tree, "abx") == [0, 3, 0]
    assert tree.num_pages == 3 and tree.held_pages(0) == 0


def test_the_coldest_nodes_come_first_and_leaves_before_their_parents() -> None:
    tree = make_tree(1)
    for text in ("abcd", "abxy", "mn"):
        tree.store(0, path(text))
    touched = path("abcd")
    tree.withdraw(0, tree.place(0, touched, tree.match(touched), now=0.0))
    letters = [node.edge[:1].decode() for node in tree.coldest(0)]
    assert letters == ["x", "m", "c", "a"]


def test_many_holders_are_told_apart() -> None:
    tree = make_tree(100)
    rng = random.Random(3)
    lengths = [rng.randrange(0, 40) for _ in range(100)]
    long = pages(rng, 40)
    for slot, length in enumerate(lengths):
        tree.store(slot, long[: length * KEY_BYTES])
    assert [int(t) // 16 for t in tree.warm_tokens(tree.match(long), most=10**6)] == lengths
    tree.check()


def test_an_empty_path_is_placed_and_withdrawn() -> None:
    tree = make_tree()
    tree.withdraw(0, tree.place(0, b"", tree.match(b""), now=0.0))
    tree.expire_uses(before=0.0, limit=1)
    tree.check()
    assert tree.num_nodes == 0


@pytest.mark.parametrize("max_pages", [MAX_TREE_PAGES, 150])
@pytest.mark.parametrize("seed", range(40))
def test_storing_many_at_once_is_storing_each(seed: int, max_pages: int) -> None:
    """The same nodes, in the same order, with the same marks."""
    rng = random.Random(seed)
    trunks = ["".join(rng.choices("ab", k=rng.randrange(12))) for _ in range(4)]

    def some() -> bytes:
        return path(rng.choice(trunks) + "".join(rng.choices("abc", k=rng.randrange(6))))

    before = [(rng.choice(["store", "place", "evict"]), rng.randrange(3), some()) for _ in range(9)]
    snapshot = [some() for _ in range(rng.randrange(40))]
    shapes: list[list[Any]] = []
    for at_once in (True, False):
        tree = ClusterTree(16, max_pages=max_pages)
        for _ in range(3):
            tree.add_slot()
        for deed, slot, what in before:
            if deed == "store":
                tree.store(slot, what)
            elif deed == "evict":
                tree.evict(slot, what, 2)
            else:
                tree.place(slot, what, tree.match(what), now=0.0)
        if at_once:
            tree.store_all(1, snapshot)
        else:
            for each in snapshot:
                tree.store(1, each)
        tree.check()
        shapes.append([[tree.path_to(n) for n in tree.coldest(slot)] for slot in range(3)])
        shapes[-1].append([(tree.digest(slot), tree.is_partial(slot)) for slot in range(3)])
        shapes[-1].append([tree.num_nodes, tree.num_pages])
    assert shapes[0] == shapes[1]
