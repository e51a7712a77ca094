"""The prompts of a trace, cut where prompts part or end. Pure.

A *piece* is a run of tokens that no prompt of the trace leaves or ends inside, so that a prompt is
a path of whole pieces and two prompts share exactly the pieces at the front of both paths. Prompts
of different namespaces share nothing. The cost grows with the number of segments, not of tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preble.page_keys import TOKEN_BYTES
from preble.prefix_tree import PrefixTree
from preble_loadgen.trace_request import TraceRequest

Ints = npt.NDArray[np.int64]
Run = tuple[int, int]
"""(a node below all that stands before it in the prompt, tokens of it)."""


@dataclass(frozen=True, slots=True)
class PromptPieces:
    """All prompts as paths.

    Attributes:
        runs: of each request, the nodes of its prompt and how much of each.
        pieces: of each request, its pieces from the front.
        lengths: tokens of each piece.
        counts: requests that have each piece.
    """

    runs: list[list[Run]]
    pieces: list[list[int]]
    lengths: Ints
    counts: Ints


def cut_prompts(requests: Sequence[TraceRequest]) -> PromptPieces:
    """The pieces of all prompts."""
    runs = _runs(requests)
    cuts: dict[int, set[int]] = {}
    for path in runs:
        for node, length in path:
            cuts.setdefault(node, set()).add(length)
    lengths: list[int] = []
    pieces_of: dict[Run, range] = {}
    for node, ends in cuts.items():
        first, at = len(lengths), 0
        for end in sorted(ends):
            lengths.append(end - at)
            pieces_of[node, end] = range(first, len(lengths))
            at = end
    pieces = [[piece for run in path for piece in pieces_of[run]] for path in runs]
    flat = np.fromiter((piece for path in pieces for piece in path), dtype=np.int64)
    counts = np.bincount(flat, minlength=len(lengths))
    return PromptPieces(runs, pieces, np.array(lengths, dtype=np.int64), counts.astype(np.int64))


def _runs(requests: Sequence[TraceRequest]) -> list[list[Run]]:
    """Every prompt as nodes, which are told apart by where in which node they begin, too."""
    token_paths = _token_paths(requests)
    nodes: dict[tuple[object, int, int], int] = {}
    runs: list[list[Run]] = []
    for request in requests:
        if request.token_ids:
            path = token_paths[request.index]
        else:
            path = [(segment.id, segment.length) for segment in request.segments]
        # A space of its own for each namespace, and for tokens beside nodes.
        parent: object = (request.namespace, bool(request.token_ids))
        offset = 0
        placed: list[Run] = []
        for id, length in path:
            node = nodes.setdefault((parent, offset, id), len(nodes))
            placed.append((node, length))
            parent, offset = node, length
        runs.append(placed)
    return runs


class _Numbered:
    """The payload of a tree of tokens: a number for each node."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = -1

    def split(self, num_pages: int) -> "_Numbered":
        return _Numbered()


def _token_paths(requests: Sequence[TraceRequest]) -> dict[int, list[Run]]:
    """Prompts that are stated as tokens, as (node, length); by the request's index."""
    tree: PrefixTree[_Numbered] = PrefixTree(TOKEN_BYTES, lambda _: _Numbered())
    stated = [request for request in requests if request.token_ids]
    for request in stated:
        tree.insert(request.token_ids)
    for number, node in enumerate(tree):
        node.payload.number = number
    return {
        request.index: [
            (node.payload.number, len(node.edge) // TOKEN_BYTES)
            for node in tree.match(request.token_ids).nodes
        ]
        for request in stated
    }
