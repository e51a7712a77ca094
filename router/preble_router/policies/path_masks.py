"""From bits of worker slots along a path to how far each worker's part of the path reaches."""

import numpy as np

from preble_router.residence import ClusterMatch, assign
from preble_router.worker_table import Column


def longest_by_slot(masks: list[tuple[int, int]], *, num_slots: int) -> Column:
    """The last end at which each slot's bit is set, of (bits, end) from the top downwards.

    Bits can only vanish on the way down. Shape (num_slots,), 0 for a slot without any.
    """
    reach: Column = np.zeros(num_slots)
    seen = 0
    for mask, end in reversed(masks):
        if mask & ~seen:
            assign(reach, mask & ~seen, end)
            seen |= mask
    return reach


def held_pages(match: ClusterMatch, *, num_slots: int) -> Column:
    """Pages of the path that each worker said it holds; what was only routed there is not."""
    masks = [(node.payload.holders, end) for node, end in zip(match.nodes, match.ends, strict=True)]
    if match.partial is not None:
        masks.append((match.partial.payload.holders, match.num_pages))
    return longest_by_slot(masks, num_slots=num_slots)
