"""A path-compressed radix tree over fixed-width pages, shared by router and worker.

A path is the concatenation of its page keys; what a page key is (a hash at the router, the tokens
themselves at the worker) the tree does not know. An edge is one slice of such bytes, so comparing
an edge is one memcmp however many pages it spans:

    root ── "aabbcc" ──┬── "dd"          a page is two letters here; splits fall
                       └── "eeff" ── …    between pages, never inside one

Queries change nothing. `insert`, `split`, `merge` and `remove` are the only mutators; each costs
time in the length of the path it touches and none in the size of the tree.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar


class Payload(Protocol):
    """What an owner of a tree hangs on each node."""

    def split(self, num_pages: int) -> Self:
        """Hand over the part for the node's first `num_pages` pages, keep the rest."""
        ...


P = TypeVar("P", bound=Payload)


class Node(Generic[P]):
    """A run of pages that no path leaves in the middle.

    `edge` is never empty except at the root; `children` is keyed by the first page of each
    child's edge.
    """

    __slots__ = ("children", "edge", "parent", "payload")

    def __init__(self, edge: bytes, parent: "Node[P] | None", payload: P) -> None:
        self.edge = edge
        self.parent = parent
        self.children: dict[bytes, Node[P]] = {}
        self.payload = payload

    def __repr__(self) -> str:
        return f"Node({len(self.edge)} bytes, {len(self.children)} children, {self.payload!r})"


@dataclass(slots=True, eq=False)
class Match(Generic[P]):
    """How far a path runs along the tree. Not frozen: one is made for each request.

    Attributes:
        nodes: the nodes matched to the end of their edge, from the root's child downwards.
        ends: `ends[i]` is the number of the path's pages that lie at or above `nodes[i]`.
        num_pages: pages matched in all, those of `partial` included.
        partial: the node whose edge agrees with the path for at least one page but not to its
            end; its first `num_pages - (ends[-1] if ends else 0)` pages match.
    """

    nodes: list[Node[P]]
    ends: list[int]
    num_pages: int
    partial: Node[P] | None


class PrefixTree(Generic[P]):
    """The tree. `new_payload(num_pages)` makes the payload of a node created by `insert`."""

    def __init__(self, page_bytes: int, new_payload: Callable[[int], P]) -> None:
        assert page_bytes > 0
        self.page_bytes = page_bytes
        self.root: Node[P] = Node(b"", None, new_payload(0))
        self.num_nodes = 0
        self.num_pages = 0
        self._new_payload = new_payload

    def match(self, path: bytes) -> Match[P]:
        """The longest prefix of `path`, in whole pages, that is in the tree. Changes nothing."""
        size = self.page_bytes
        nodes: list[Node[P]] = []
        ends: list[int] = []
        children = self.root.children
        at = 0
        while (child := children.get(path[at : at + size])) is not None:
            edge = child.edge
            if not path.startswith(edge, at):
                return Match(nodes, ends, at // size + self._common_pages(edge, path, at), child)
            at += len(edge)
            nodes.append(child)
            ends.append(at // size)
            children = child.children
        return Match(nodes, ends, at // size, None)

    def descend(self, path: bytes) -> tuple[Node[P], int, bool]:
        """The last node to whose end `path` runs (at least the root), the bytes of `path` up to
        there, and whether the next page of `path` is in the tree. Changes nothing.
        """
        size = self.page_bytes
        node = self.root
        at = 0
        while (child := node.children.get(path[at : at + size])) is not None:
            if not path.startswith(child.edge, at):
                return node, at, True
            at += len(child.edge)
            node = child
        return node, at, False

    def add_leaf(self, parent: Node[P], edge: bytes) -> Node[P]:
        """A new leaf below `parent`; no child of that begins with the first page of `edge`."""
        num_pages = len(edge) // self.page_bytes
        leaf = Node(edge, parent, self._new_payload(num_pages))
        parent.children[edge[: self.page_bytes]] = leaf
        self.num_nodes += 1
        self.num_pages += num_pages
        return leaf

    def insert(self, path: bytes, match: Match[P] | None = None) -> list[Node[P]]:
        """Make `path` end at a node boundary, and return the nodes that cover it from the top.

        A caller that has just matched `path` may hand its `match` over; it is used up.
        """
        assert len(path) % self.page_bytes == 0
        if match is None:
            match = self.match(path)
        nodes = match.nodes
        if match.partial is not None:
            above = match.ends[-1] if match.ends else 0
            nodes.append(self.split(match.partial, match.num_pages - above))
        at = match.num_pages * self.page_bytes
        if at < len(path):
            nodes.append(self.add_leaf(nodes[-1] if nodes else self.root, path[at:]))
        return nodes

    def split(self, node: Node[P], num_pages: int) -> Node[P]:
        """Cut `node` after its first `num_pages` pages and return the new upper node.

        The lower part keeps the identity of `node`, so whoever refers to its end still does.
        """
        at = num_pages * self.page_bytes
        parent = node.parent
        assert parent is not None and 0 < at < len(node.edge)
        upper = Node(node.edge[:at], parent, node.payload.split(num_pages))
        parent.children[node.edge[: self.page_bytes]] = upper
        node.edge = node.edge[at:]
        node.parent = upper
        upper.children[node.edge[: self.page_bytes]] = node
        self.num_nodes += 1
        return upper

    def merge(self, node: Node[P]) -> None:
        """Undo a split: put the pages of `node`'s parent, which has no other child, before its own.

        `node` keeps identity and payload; the parent leaves the tree.
        """
        upper = node.parent
        assert upper is not None and upper.parent is not None and len(upper.children) == 1
        node.edge = upper.edge + node.edge
        node.parent = upper.parent
        node.parent.children[node.edge[: self.page_bytes]] = node
        upper.parent = None
        self.num_nodes -= 1

    def remove(self, node: Node[P]) -> None:
        """Take a leaf out. Its parent stays, even if that leaves it without children."""
        parent = node.parent
        assert parent is not None and not node.children
        del parent.children[node.edge[: self.page_bytes]]
        node.parent = None
        self.num_nodes -= 1
        self.num_pages -= len(node.edge) // self.page_bytes

    def path_to(self, node: Node[P]) -> bytes:
        """The whole path from the root to the end of `node`."""
        edges: list[bytes] = []
        at: Node[P] | None = node
        while at is not None:
            edges.append(at.edge)
            at = at.parent
        edges.reverse()
        return b"".join(edges)

    def __iter__(self) -> Iterator[Node[P]]:
        """Every node but the root, parents before children. The tree must not change meanwhile."""
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def check(self) -> None:
        """Assert every invariant of the structure; cost grows with the tree, for tests."""
        size = self.page_bytes
        num_nodes = num_pages = 0
        assert self.root.parent is None and self.root.edge == b""
        for node in self:
            num_nodes += 1
            num_pages += len(node.edge) // size
            assert node.edge and len(node.edge) % size == 0
            assert node.parent is not None
            assert node.parent.children[node.edge[:size]] is node
        assert (num_nodes, num_pages) == (self.num_nodes, self.num_pages)

    def _common_pages(self, edge: bytes, path: bytes, at: int) -> int:
        """Whole pages on which `edge` and `path[at:]` agree, by bisection on memcmp."""
        size = self.page_bytes
        low, high = 1, min(len(edge), len(path) - at) // size
        while low < high:
            middle = (low + high + 1) // 2
            if path.startswith(edge[: middle * size], at):
                low = middle
            else:
                high = middle - 1
        return low
