"""Makes room in a tree that is full: what nobody holds goes first, then what was used long ago.

What live requests expect stays: it is bounded by their number. A worker of whose pages some went
so is known in part only: its requests may find more in its cache than was predicted.
"""

from collections.abc import Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING

from preble_router.residence import ClusterNode, slots_of

if TYPE_CHECKING:
    from preble_router.cluster_tree import ClusterTree

SPARE_SHARE = 0.05
"""Of the limit, freed beyond what is needed, so that it is not searched for again at once."""
_USES_AT_A_TIME = 256


def make_room(tree: "ClusterTree", num_pages: int) -> None:
    """Free pages for `num_pages` more and some to spare, as far as that goes."""
    target = max(tree.max_pages - num_pages - int(SPARE_SHARE * tree.max_pages), 0)
    while tree.num_pages > target and tree.next_use_at() is not None:
        tree.expire_uses(before=float("inf"), limit=_USES_AT_A_TIME)
    before = -1
    while tree.num_pages > target and tree.num_pages != before:
        before = tree.num_pages
        for node in _coldest(tree):
            if tree.num_pages <= target:
                break
            if node.parent is not None and not node.children and not node.payload.expected:
                for slot in slots_of(node.payload.holders):
                    tree.drop(slot, node)
                    tree.mark_partial(slot)


def _coldest(tree: "ClusterTree") -> Iterator[ClusterNode]:
    """The nodes that anybody holds, every worker's coldest before any one's next."""
    ranks = zip_longest(*[list(tree.coldest(slot)) for slot in range(tree.num_slots)])
    return (node for rank in ranks for node in rank if node is not None)
