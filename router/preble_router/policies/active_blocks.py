"""The pages that each worker's live requests use, shared ones once: a router's own books."""

from typing import Self

from preble.page_keys import KEY_BYTES
from preble.prefix_tree import Node, PrefixTree
from preble_router.policies.path_masks import longest_by_slot
from preble_router.worker_table import Column


class Users:
    """Of one node: per worker slot, how many live requests run through it, and who has any."""

    __slots__ = ("counts", "slots")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.slots = 0

    def split(self, num_pages: int) -> Self:
        upper = type(self)()
        upper.counts, upper.slots = self.counts.copy(), self.slots
        return upper


class ActiveBlocks:
    """Counts exactly: a page is active on a worker from the first request that uses it there to
    the end of the last."""

    def __init__(self) -> None:
        self._tree: PrefixTree[Users] = PrefixTree(KEY_BYTES, lambda _: Users())
        self._pages: dict[int, int] = {}

    def num_pages(self, slot: int) -> int:
        """Distinct pages in use on `slot`."""
        return self._pages.get(slot, 0)

    def shared_pages(self, path: bytes, *, num_slots: int) -> Column:
        """Pages at the head of `path` that live requests of each slot use, shape (num_slots,)."""
        match = self._tree.match(path)
        masks = [
            (node.payload.slots, end) for node, end in zip(match.nodes, match.ends, strict=True)
        ]
        if match.partial is not None:
            masks.append((match.partial.payload.slots, match.num_pages))
        return longest_by_slot(masks, num_slots=num_slots)

    def add(self, slot: int, path: bytes) -> Node[Users]:
        """A request of `path` starts on `slot`. Returns what `remove` wants."""
        nodes = self._tree.insert(path)
        for node in nodes:
            users = node.payload
            count = users.counts.get(slot, 0)
            users.counts[slot] = count + 1
            if not count:
                users.slots |= 1 << slot
                self._pages[slot] = self.num_pages(slot) + len(node.edge) // KEY_BYTES
        return nodes[-1] if nodes else self._tree.root

    def remove(self, slot: int, end: Node[Users]) -> None:
        """The request that `add` answered with `end` is over."""
        node = end
        while node.parent is not None:
            parent, users = node.parent, node.payload
            users.counts[slot] -= 1
            if not users.counts[slot]:
                del users.counts[slot]
                users.slots &= ~(1 << slot)
                self._pages[slot] -= len(node.edge) // KEY_BYTES
            if not users.slots:
                self._tree.remove(node)
            node = parent

    def forget(self, slot: int) -> None:
        """The worker of `slot` is gone, its requests removed."""
        assert not self._pages.pop(slot, 0)

    def check(self) -> None:
        """Assert every invariant; cost grows with the tree, for tests."""
        self._tree.check()
        pages: dict[int, int] = dict.fromkeys(self._pages, 0)
        for node in self._tree:
            users = node.payload
            assert users.slots == sum(1 << slot for slot in users.counts) != 0
            assert all(count > 0 for count in users.counts.values())
            for slot in users.counts:
                pages[slot] += len(node.edge) // KEY_BYTES
        assert pages == self._pages
