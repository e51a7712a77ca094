"""What a slot of the tree holds as leaves, and its repair by the difference from a worker's own."""

from preble.events import CacheSnapshot
from preble.leaf_digest import Leaves, leaves_of, num_buckets_for
from preble_router.cluster_tree import ClusterTree
from preble_router.residence import ClusterNode, Residence


def leaves(tree: ClusterTree, slot: int) -> Leaves[Residence]:
    """The ends of what `slot` holds; cost grows with that."""
    bit = 1 << slot
    return leaves_of(
        tree.root,
        keys=lambda node: node.edge,
        holds=lambda node: bool(node.payload.holders & bit),
    )


def bucket_digests(tree: ClusterTree, slot: int) -> tuple[int, ...]:
    """By which the worker in `slot` finds what is wrong here; empty if `slot` holds nothing."""
    held = leaves(tree, slot)
    return held.digests(num_buckets_for(len(held.nodes))) if held.nodes else ()


def take_snapshot(tree: ClusterTree, slot: int, snapshot: CacheSnapshot) -> None:
    """`slot` holds what `snapshot` says; where that is a difference, in its buckets."""
    if snapshot.is_difference:
        _drop_wrong(tree, slot, snapshot)
    else:
        tree.forget(slot)
    tree.store_all(slot, snapshot.paths)


def _drop_wrong(tree: ClusterTree, slot: int, snapshot: CacheSnapshot) -> None:
    """Drops the leaves that the difference does not confirm, each up to where it branched off.

    That an ancestor has become a leaf by it makes it no leaf of the worker: were it one, its
    bucket would differ, and the difference would name it.
    """
    held = leaves(tree, slot)
    confirmed = set(snapshot.paths)
    for node in held.among(snapshot.buckets, num_buckets=snapshot.num_buckets):
        if tree.path_to(node) not in confirmed:
            tree.drop(slot, _top_of_branch(tree, slot, node))


def _top_of_branch(tree: ClusterTree, slot: int, leaf: ClusterNode) -> ClusterNode:
    """The uppermost node above `leaf` of which `slot` holds nothing but the way to `leaf`."""
    bit = 1 << slot
    top = leaf
    while (above := top.parent) is not None and above is not tree.root:
        if sum(bool(child.payload.holders & bit) for child in above.children.values()) > 1:
            break
        top = above
    return top
