"""What one worker holds, as the router's tree knows it: its nodes, least recently used first."""

from collections import OrderedDict
from itertools import islice

from preble.page_keys import KEY_BYTES, key_sum
from preble_router.residence import ClusterNode

KEY_SUM_MASK = (1 << 64) - 1


class Holding:
    """The nodes of one slot, and their digest.

    Attributes:
        nodes: least recently used first, what hangs below before above.
        num_pages: of all nodes.
        key_sum: of their page keys, modulo 2**64.
        is_partial: the worker holds more than is known, because the tree was full.
    """

    __slots__ = ("is_partial", "key_sum", "nodes", "num_pages")

    def __init__(self) -> None:
        self.nodes: OrderedDict[ClusterNode, None] = OrderedDict()
        self.num_pages = 0
        self.key_sum = 0
        self.is_partial = False

    def count(self, node: ClusterNode, sign: int) -> None:
        """`node` has come (1) or goes (-1)."""
        residence = node.payload
        if residence.pages_key_sum is None:
            residence.pages_key_sum = key_sum(node.edge)
        self.num_pages += sign * (len(node.edge) // KEY_BYTES)
        self.key_sum = (self.key_sum + sign * residence.pages_key_sum) & KEY_SUM_MASK

    def count_stored(self, keys: bytes) -> None:
        """Nodes with these page keys in all have come."""
        self.num_pages += len(keys) // KEY_BYTES
        self.key_sum = (self.key_sum + key_sum(keys)) & KEY_SUM_MASK

    def reuse_share(self, num_nodes: int) -> float:
        """See `ClusterTree.reuse_share`."""
        pages = wanted = 0.0
        for node in islice(self.nodes, num_nodes):
            uses = node.payload.uses
            pages += len(node.edge)
            wanted += len(node.edge) * uses / (uses + 1)
        return wanted / pages if pages else 0.0

    def check(self, nodes: set[ClusterNode]) -> None:
        """Assert that exactly `nodes` are held, and the digest."""
        assert nodes == set(self.nodes)
        assert self.num_pages == sum(len(node.edge) // KEY_BYTES for node in nodes)
        assert self.key_sum == sum(key_sum(node.edge) for node in nodes) & KEY_SUM_MASK
