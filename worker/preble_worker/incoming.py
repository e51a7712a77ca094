"""Pages on their way from the host to the device, for one request."""

from dataclasses import dataclass

from preble_worker.batch import Direction, Move
from preble_worker.eviction import CacheNode
from preble_worker.host_pages import make_move
from preble_worker.page_cache import PageArray
from preble_worker.sequence import Sequence


@dataclass(slots=True, kw_only=True, eq=False)
class Incoming:
    """`host_pages[i]` goes to `device_pages[i]`.

    Attributes:
        sequence: has a slot, or waits and has `fetched` them.
        node: holds its path on the host.
        first: pages of its path before these, which the device's tree has.
        below: the device's node where those end.
        num_moved: of these, in a batch already.
    """

    sequence: Sequence
    node: CacheNode
    first: int
    below: CacheNode
    host_pages: PageArray
    device_pages: PageArray
    num_moved: int = 0

    @property
    def num_left(self) -> int:
        """Pages that are in no batch yet."""
        return len(self.host_pages) - self.num_moved

    def brings_next_of(self, sequence: Sequence) -> bool:
        """Whether the first page is what another that waits needs next."""
        prefix = sequence.prefix
        return (
            prefix.node is self.below
            and bool(prefix.next_page)
            and prefix.next_page == self.sequence.page(self.first)
        )

    def skip(self, num_pages: int, *, below: CacheNode) -> None:
        """The device's tree has the first `num_pages` by now, and ends at `below`."""
        self.host_pages = self.host_pages[num_pages:]
        self.device_pages = self.device_pages[num_pages:]
        self.num_moved = max(self.num_moved - num_pages, 0)
        self.first += num_pages
        self.below = below

    def move(self, num_pages: int, *, int8: bool, before_step: bool) -> Move:
        """The copy of the next `num_pages`, which are in a batch then."""
        begin, end = self.num_moved, self.num_moved + num_pages
        self.num_moved = end
        return make_move(
            Direction.UPLOAD,
            self.device_pages[begin:end],
            self.host_pages[begin:end],
            int8=int8,
            before_step=before_step,
        )
