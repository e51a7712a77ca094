"""What is true of the router's tree at every moment, for tests; the cost grows with the tree."""

from collections.abc import Iterable, Sequence

from preble.page_keys import key_sum
from preble_router.holding import Holding
from preble_router.residence import ClusterNode, slots_of


def check_marks(
    root: ClusterNode,
    nodes: Iterable[ClusterNode],
    uses: Iterable[tuple[float, ClusterNode]],
    holdings: Sequence[Holding],
) -> None:
    """Assert that all `nodes` below `root` agree with the uses and with what each slot holds."""
    held: list[set[ClusterNode]] = [set() for _ in holdings]
    ends: dict[ClusterNode, int] = {}
    for _, end in uses:
        ends[end] = ends.get(end, 0) + 1
    for node in nodes:
        check_node(node, ends.get(node, 0), root)
        for slot in slots_of(node.payload.holders):
            held[slot].add(node)
    for holding, own in zip(holdings, held, strict=True):
        holding.check(own)


def check_expected(nodes: Iterable[ClusterNode], live: list[tuple[int, ClusterNode]]) -> None:
    """Assert that exactly these (slot, end of path) keep their paths expected."""
    counts: dict[ClusterNode, dict[int, int]] = {node: {} for node in nodes}
    for slot, end in live:
        node = end
        while node.parent is not None:
            counts[node][slot] = counts[node].get(slot, 0) + 1
            node = node.parent
    for node, expected in counts.items():
        assert node.payload.expected == expected


def check_node(node: ClusterNode, ending: int, root: ClusterNode) -> None:
    """Assert the invariants of one node, at which `ending` uses end."""
    residence = node.payload
    expected = 0
    for slot, count in residence.expected.items():
        assert count > 0
        expected |= 1 << slot
    assert residence.warm == residence.holders | expected
    assert residence.uses == ending + sum(c.payload.uses for c in node.children.values())
    assert residence.pages_key_sum in (None, key_sum(node.edge))
    assert node.children or residence.is_needed
    parent = node.parent
    assert parent is not None
    if parent is not root:
        assert not residence.holders & ~parent.payload.holders
        for slot, count in residence.expected.items():
            assert parent.payload.expected.get(slot, 0) >= count
