"""Makes room in a tree that is full: what nobody holds goes first, then what was used long ago.

One namespace cannot push out what is known of another's prefixes: only those lose pages that have
more than a level, the one at which all of them have just so much that it fits:

    ██                      level
    ██─██──────────────────────── - - -
    ██ ██ ▄▄
    ██ ██ ██ ▄▄                         the first loses two, the second one, the others none

What live requests expect stays: it is bounded by their number. A worker of whose pages some went
so is known in part only: its requests may find more in its cache than was predicted.
"""

from collections.abc import Iterable, Iterator
from itertools import islice, zip_longest
from typing import TYPE_CHECKING

from preble.page_keys import KEY_BYTES
from preble_router.residence import ClusterNode, slots_of

if TYPE_CHECKING:
    from preble_router.cluster_tree import ClusterTree

SPARE_SHARE = 0.05
"""Of the limit, freed beyond what is needed, so that it is not searched for again at once."""
_NODES_AT_FIRST = 1024
"""Of each worker that are looked at; then twice as many, and so on."""


def make_room(tree: "ClusterTree", num_pages: int) -> None:
    """Free pages for `num_pages` more and some to spare, as far as that goes."""
    target = max(tree.max_pages - num_pages - int(SPARE_SHARE * tree.max_pages), 0)
    fixed: set[str] = set()
    while tree.num_pages > target:
        surplus = _surplus(tree, target, fixed)
        _end_uses(tree, surplus)
        if max(surplus.values(), default=0) > 0:
            _drop_coldest(tree, surplus)
        left = {namespace for namespace, pages in surplus.items() if pages > 0}
        if not left:
            return
        fixed |= left  # Its live requests expect so much. The others must make do with the rest.


def fair_level(sizes: Iterable[int], total: int) -> int:
    """The most that each may have so that all together have no more than `total`."""
    ascending = sorted(sizes)
    level = 0
    for at, size in enumerate(ascending):
        level = max(total, 0) // (len(ascending) - at)
        if size > level:
            return level
        total -= size
    return ascending[-1] if ascending else level


def _surplus(tree: "ClusterTree", target: int, fixed: set[str]) -> dict[str, int]:
    """Pages by which each namespace is above the level; those of `fixed` have what they have."""
    sizes = _pages_by_namespace(tree)
    total = target - sum(sizes.pop(namespace, 0) for namespace in fixed)
    level = fair_level(sizes.values(), total)
    return {namespace: pages - level for namespace, pages in sizes.items()}


def _pages_by_namespace(tree: "ClusterTree") -> dict[str, int]:
    sizes: dict[str, int] = {}
    if not tree.namespaces:
        return {"": tree.num_pages}
    for top in tree.root.children.values():
        namespace = tree.namespace_of(top)
        below = [top]
        for node in below:
            below.extend(node.children.values())
        num_bytes = sum(len(node.edge) for node in below)
        sizes[namespace] = sizes.get(namespace, 0) + num_bytes // KEY_BYTES
    return sizes


def _end_uses(tree: "ClusterTree", surplus: dict[str, int]) -> None:
    """Forget what nobody holds, of the namespaces with a surplus, the longest unused first."""
    uses = tree.uses
    num_kept = 0
    for _ in range(len(uses)):
        if max(surplus.values(), default=0) <= 0:
            break
        use = uses.popleft()
        namespace = tree.namespace_of(use[1])
        if surplus.get(namespace, 0) > 0:
            before = tree.num_pages
            tree.end_use(use[1])
            surplus[namespace] -= before - tree.num_pages
        else:
            uses.append(use)
            num_kept += 1
    uses.rotate(num_kept)


def _drop_coldest(tree: "ClusterTree", surplus: dict[str, int]) -> None:
    """Forget who holds what, leaves only, until none has a surplus or nothing more can go."""
    num_nodes, before_round = _NODES_AT_FIRST, -1
    while num_nodes <= 2 * tree.num_nodes or tree.num_pages != before_round:
        before_round = tree.num_pages
        for node in _coldest(tree, num_nodes):
            if node.parent is None or node.children or node.payload.expected:
                continue
            namespace = tree.namespace_of(node)
            if surplus.get(namespace, 0) <= 0:
                continue
            before = tree.num_pages
            for slot in slots_of(node.payload.holders):
                tree.drop(slot, node)
                tree.mark_partial(slot)
            surplus[namespace] -= before - tree.num_pages
            if surplus[namespace] <= 0 and max(surplus.values()) <= 0:
                return
        num_nodes *= 2


def _coldest(tree: "ClusterTree", num_nodes: int) -> Iterator[ClusterNode]:
    """So many nodes of each worker, every worker's coldest before any one's next."""
    slots = range(tree.num_slots)
    ranks = zip_longest(*[list(islice(tree.coldest(slot), num_nodes)) for slot in slots])
    return (node for rank in ranks for node in rank if node is not None)
