"""Which worker holds which prefix in host memory, from where it can be copied to its device.

A second tree beside the `ClusterTree` of what devices hold, without uses and expectations; it
costs a placement nothing while no worker has such memory.
"""

from collections.abc import Iterable

import numpy as np

from preble.events import CacheEvent
from preble_router.cluster_tree import MAX_TREE_PAGES, ClusterTree
from preble_router.worker_table import Column, WorkerTable


class HostTree:
    """Slots as in the tree of the devices."""

    def __init__(self, page_tokens: int, *, max_pages: int = MAX_TREE_PAGES) -> None:
        self._tree = ClusterTree(page_tokens, max_pages=max_pages)

    def add_slot(self) -> None:
        """A new slot that holds nothing."""
        self._tree.add_slot()

    def with_loaded(
        self, warm: Column, path: bytes, table: WorkerTable, *, most: int
    ) -> tuple[Column, Column]:
        """`warm`, the tokens of `path` on each device, with those in host memory: once for what
        they save, and once as many as they are; shape (slots,), at most `most`.
        """
        if not self._tree.num_nodes:
            return warm, warm
        match = self._tree.match(path)
        if not match.num_pages:
            return warm, warm
        loaded = np.maximum(self._tree.warm_tokens(match, most=most) - warm, 0.0)
        return warm + loaded * table.loaded_share(), warm + loaded

    def apply(self, slot: int, events: Iterable[CacheEvent]) -> None:
        """Take over what `slot` said of its host memory, in order."""
        self._tree.apply(slot, events)

    def store_all(self, slot: int, paths: Iterable[bytes]) -> None:
        """`slot` holds all of each path in its host memory."""
        self._tree.store_all(slot, paths)

    def forget(self, slot: int) -> None:
        """`slot` holds nothing any more."""
        self._tree.forget(slot)

    def check(self) -> None:
        self._tree.check()
