"""What hangs on a node of the router's tree: who holds its pages, and who needs it."""

from functools import lru_cache
from typing import Self

import numpy as np
import numpy.typing as npt

from preble.prefix_tree import Match, Node

_FEW_SLOTS = 8
"""Up to so many set bits, a loop over them is cheaper than NumPy."""


class Residence:
    """What the router knows about the pages of one node.

    Attributes:
        holders: bit per worker slot that holds all of the node's pages.
        expected: per slot, how many placed requests will make it hold them.
        warm: `holders` and the slots of `expected` together; kept because every match reads it.
        uses: requests placed within the window whose prompt runs through the node's end.
        pages_key_sum: sum of the node's page keys, None until somebody needs it.
    """

    __slots__ = ("expected", "holders", "pages_key_sum", "uses", "warm")

    def __init__(self) -> None:
        self.holders = 0
        self.expected: dict[int, int] = {}
        self.warm = 0
        self.uses = 0
        self.pages_key_sum: int | None = None

    def __repr__(self) -> str:
        return f"Residence(holders={self.holders:b}, expected={self.expected}, uses={self.uses})"

    def split(self, num_pages: int) -> Self:
        upper = type(self)()
        upper.holders = self.holders
        upper.expected = self.expected.copy()
        upper.warm = self.warm
        upper.uses = self.uses
        self.pages_key_sum = None
        return upper

    @property
    def is_needed(self) -> bool:
        return bool(self.warm or self.uses)

    def is_same_as(self, other: "Residence") -> bool:
        """Whether nothing tells the two nodes apart, and no request ends between them."""
        return (
            self.holders == other.holders
            and self.uses == other.uses
            and self.expected == other.expected
        )


ClusterNode = Node[Residence]
ClusterMatch = Match[Residence]


@lru_cache(maxsize=1024)
def slots_of(mask: int) -> tuple[int, ...]:
    """The set bits of `mask`, lowest first. The same few sets come again and again."""
    slots = []
    while mask:
        low = mask & -mask
        slots.append(low.bit_length() - 1)
        mask ^= low
    return tuple(slots)


def assign(tokens: npt.NDArray[np.float64], mask: int, count: int) -> None:
    """Set `tokens[slot] = count` for every bit of `mask`."""
    if mask.bit_count() > _FEW_SLOTS:
        tokens[_index_of(mask)] = count
    else:
        for slot in slots_of(mask):
            tokens[slot] = count


@lru_cache(maxsize=1024)
def _index_of(mask: int) -> npt.NDArray[np.intp]:
    """As `slots_of`."""
    octets = mask.to_bytes((mask.bit_length() + 7) // 8, "little")
    return np.flatnonzero(np.unpackbits(np.frombuffer(octets, np.uint8), bitorder="little"))
