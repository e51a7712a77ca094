"""How far apart the uses of the same prompt tokens are. Pure.

For every prompt token that an earlier request had, too: requests since the last one that had it,
and distinct prompt tokens that the requests strictly between had, the size of cache in which least
recently used would just have kept it. Counted per token, so a long shared prefix weighs more.
"""

from dataclasses import dataclass

import numpy as np

from preble_loadgen.prompt_pieces import Ints, PromptPieces


@dataclass(frozen=True, slots=True)
class Reuses:
    """One entry per (request, earlier request) pair between which tokens were reused.

    Attributes:
        tokens: how many.
        requests: the difference of the requests' positions, at least 1.
        between: distinct tokens last used by a request between them.
    """

    tokens: Ints
    requests: Ints
    between: Ints


def reuses(prompts: PromptPieces) -> Reuses:
    """All reuses of a trace."""
    last_use = [-1] * len(prompts.lengths)
    lengths: list[int] = prompts.lengths.tolist()
    recent = _RecentTokens(len(prompts.pieces))
    rows: list[tuple[int, int, int]] = []
    for position, path in enumerate(prompts.pieces):
        reused: dict[int, int] = {}
        total = 0
        for piece in path:
            length, used = lengths[piece], last_use[piece]
            total += length
            if used >= 0:
                reused[used] = reused.get(used, 0) + length
            last_use[piece] = position
        rows += [(tokens, position - used, recent.after(used)) for used, tokens in reused.items()]
        for used, tokens in reused.items():
            recent.add(used, -tokens)
        recent.add(position, total)
    columns = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return Reuses(columns[:, 0], columns[:, 1], columns[:, 2])


class _RecentTokens:
    """Tokens by the position of their last use: a binary indexed tree of sums."""

    def __init__(self, size: int) -> None:
        self._sums = [0] * (size + 1)
        self._total = 0

    def add(self, position: int, tokens: int) -> None:
        self._total += tokens
        at = position + 1
        while at < len(self._sums):
            self._sums[at] += tokens
            at += at & -at

    def after(self, position: int) -> int:
        """Tokens last used after `position`."""
        at, until = position + 1, 0
        while at:
            until += self._sums[at]
            at -= at & -at
        return self._total - until
