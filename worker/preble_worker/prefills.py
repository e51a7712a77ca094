"""The running requests that still compute their prompt, and what is left of it."""

from preble_worker.eviction import CacheNode
from preble_worker.sequence import Sequence

FOLLOW_STEPS = 4
"""A request that waits for another's pages gives up when none came in so many steps."""


class Prefills:
    """Prefilling requests in the order in which they started.

    They are also who is about to compute which page: under (node, tokens of the next page) stands
    the request that will store that page below that node. A waiting request whose match ends
    there, and that needs the same page next, is better off following.

    Attributes:
        num_missing: tokens left to compute.
        chunks: those with tokens in the batch under way.
    """

    def __init__(self) -> None:
        self.sequences: list[Sequence] = []
        self.chunks: list[Sequence] = []
        self.num_missing = 0
        self._computing: dict[tuple[CacheNode, bytes], Sequence] = {}

    def __len__(self) -> int:
        return len(self.sequences)

    def add(self, sequence: Sequence) -> None:
        self.sequences.append(sequence)
        self.num_missing += sequence.num_missing
        self.announce(sequence)

    def move_before(self, sequence: Sequence, behind: list[Sequence]) -> None:
        """Have `sequence`, the last, computed before the first of `behind`."""
        assert self.sequences[-1] is sequence
        del self.sequences[-1]
        self.sequences.insert(min(map(self.sequences.index, behind)), sequence)

    def remove(self, sequence: Sequence) -> None:
        self.sequences.remove(sequence)
        self.num_missing -= sequence.num_missing
        self._withdraw(sequence)

    def take(self, sequence: Sequence, budget: int) -> int:
        """Put as much of `sequence` as `budget` allows in the next batch, and say how much."""
        sequence.chunk = min(budget, sequence.num_missing)
        self.chunks.append(sequence)
        return sequence.chunk

    def advance(self, sequence: Sequence) -> None:
        """The chunk of `sequence` was computed."""
        self.num_missing -= sequence.chunk
        sequence.num_computed += sequence.chunk
        sequence.chunk = 0

    def announce(self, sequence: Sequence) -> None:
        """The page that `sequence` computes next has changed."""
        self._withdraw(sequence)
        page = sequence.next_own_page()
        if page and sequence.node is not None:
            key = sequence.node, page
            if self._computing.setdefault(key, sequence) is sequence:
                sequence.computing = key

    def should_follow(self, sequence: Sequence, *, step: int) -> bool:
        """Whether `sequence`, still waiting, gets its next page sooner by leaving it to another."""
        prefix = sequence.prefix
        if not prefix.next_page:
            return False
        other = self._computing.get((prefix.node, prefix.next_page))
        if other is None:
            return False
        if sequence.following != (other, other.num_computed):
            sequence.following = other, other.num_computed
            sequence.followed_since = step
        return step - sequence.followed_since < FOLLOW_STEPS

    def _withdraw(self, sequence: Sequence) -> None:
        if sequence.computing is not None:
            del self._computing[sequence.computing]
            sequence.computing = None

    def check(self) -> None:
        assert self.num_missing == sum(s.num_missing for s in self.sequences)
        assert len(self._computing) == sum(s.computing is not None for s in self.sequences)
        for key, sequence in self._computing.items():
            assert sequence.computing == key == (sequence.node, sequence.next_own_page())
