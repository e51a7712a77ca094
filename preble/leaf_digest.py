"""Digests of a tree's leaves in buckets, by which two sides find where their trees differ.

A tree is the set of its leaves, each a path of page keys. The *leaf hash* of the path k0 k1 k2 …
is mix(sum of mix(k_i + i * GOLDEN)) modulo 2**64, where mix is the finalizer of splitmix64: it
depends on the order of the pages, and not on where either side has cut the path into nodes. Its
top bits name one of `num_buckets` buckets, and a bucket's digest is the sum of its leaves' hashes.
One side sends its digests; the other answers with the leaves of the buckets that differ, all of
them:

    mine     a b | c   | d e | f          digests differ in buckets 1 and 3:
    theirs   a b | c x | d e |            "1: c x, 3: none" makes mine equal to theirs

A pair of different buckets with equal digests leaves a difference in place; whoever relies on it
compares the whole afterwards.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Generic

import numpy as np
import numpy.typing as npt

from preble.page_keys import KEY_BYTES, KEY_DTYPE
from preble.prefix_tree import Node, P

Hashes = npt.NDArray[np.uint64]

BUCKETS_MIN = 16
BUCKETS_MAX = 8192
_DIGEST_MASK = 0xFFFF_FFFF
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Leaves(Generic[P]):
    """The leaves of (a part of) a tree, and the leaf hash of each, shape (leaves,)."""

    nodes: list[Node[P]]
    hashes: Hashes

    def buckets(self, num_buckets: int) -> npt.NDArray[np.int64]:
        """The bucket of each leaf; `num_buckets` is a power of two."""
        shift = np.uint64(64 - (num_buckets.bit_length() - 1))
        return (self.hashes >> shift).astype(np.int64)

    def digests(self, num_buckets: int) -> tuple[int, ...]:
        """32 bits per bucket."""
        sums = np.zeros(num_buckets, np.uint64)
        np.add.at(sums, self.buckets(num_buckets), self.hashes)
        return tuple((sums & np.uint64(_DIGEST_MASK)).tolist())

    def difference(self, digests: tuple[int, ...]) -> tuple[tuple[int, ...], list[Node[P]]]:
        """The buckets in which `digests` are not those of these leaves, and the leaves in them."""
        own = self.digests(len(digests))
        wrong = [at for at in range(len(digests)) if own[at] != digests[at]]
        return tuple(wrong), self.among(wrong, num_buckets=len(digests))

    def among(self, buckets: Collection[int], *, num_buckets: int) -> list[Node[P]]:
        """The leaves in `buckets`."""
        chosen = np.zeros(num_buckets, np.bool_)
        chosen[list(buckets)] = True
        return [self.nodes[at] for at in np.flatnonzero(chosen[self.buckets(num_buckets)])]


def num_buckets_for(num_leaves: int) -> int:
    """As many buckets as leaves, in powers of two: then a difference names few equal leaves."""
    wanted = 1 << max(num_leaves - 1, 0).bit_length()
    return min(max(wanted, BUCKETS_MIN), BUCKETS_MAX)


def is_bucket_count(number: int) -> bool:
    """Whether a peer may ask for so many."""
    return BUCKETS_MIN <= number <= BUCKETS_MAX and number.bit_count() == 1


def leaves_of(
    root: Node[P], *, keys: Callable[[Node[P]], bytes], holds: Callable[[Node[P]], bool]
) -> Leaves[P]:
    """The nodes below `root` without a child that `holds`, of those that can be reached by such.

    Args:
        keys: the page keys of a node's edge.
        holds: whether the node counts; true of no node below one of which it is not.
    """
    nodes: list[Node[P]] = []
    parents: list[int] = []
    edges: list[bytes] = []
    leaves: list[int] = []
    stack = [(child, -1) for child in root.children.values() if holds(child)]
    while stack:
        node, parent = stack.pop()
        at = len(nodes)
        nodes.append(node)
        parents.append(parent)
        edges.append(keys(node))
        below = [(child, at) for child in node.children.values() if holds(child)]
        if below:
            stack.extend(below)
        else:
            leaves.append(at)
    sums = _path_sums(edges, parents)
    kept = [at for at in leaves if sums[at] is not None]
    hashes = np.array([sums[at] for at in kept], dtype=np.uint64)
    return Leaves([nodes[at] for at in kept], _mixed(hashes))


def _path_sums(edges: list[bytes], parents: list[int]) -> list[int | None]:
    """Per node, the sum over the keys on its path; None where the path has no key."""
    starts: list[int] = []
    ends: list[int] = []
    for edge, parent in zip(edges, parents, strict=True):
        start = ends[parent] if parent >= 0 else 0
        starts.append(start)
        ends.append(start + len(edge) // KEY_BYTES)
    lengths = np.array(ends, np.int64) - np.array(starts, np.int64)
    page_keys = np.frombuffer(b"".join(edges), KEY_DTYPE).astype(np.uint64)
    firsts = np.cumsum(lengths) - lengths
    depths = np.arange(len(page_keys)) + np.repeat(np.array(starts, np.int64) - firsts, lengths)
    placed = _mixed(page_keys + depths.astype(np.uint64) * _GOLDEN)
    totals = np.concatenate([np.zeros(1, np.uint64), np.cumsum(placed, dtype=np.uint64)])
    own: list[int] = (totals[firsts + lengths] - totals[firsts]).tolist()
    sums: list[int | None] = []
    for at, parent in enumerate(parents):
        above = sums[parent] if parent >= 0 else 0
        total = ((above or 0) + own[at]) & 0xFFFF_FFFF_FFFF_FFFF
        sums.append(total if ends[at] else None)
    return sums


def _mixed(sums: Hashes) -> Hashes:
    """The finalizer of splitmix64, of each."""
    x = sums.copy()
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x
