"""How fast prompts are computed, and whose first token can still be in time. Pure.

Prompts are computed in steps of B tokens that take s(B) seconds, decodes included. Larger steps
compute more per second, but who comes amid one waits for its end, and whose prompt is in one waits
for the others' in it. Of an objective of T seconds, T - s(B) are left to who comes at the begin of
a step, in which

    B · (T / s(B) - 1)

tokens are computed: the step is best whose B makes that the most.

Of requests that follow one another at a known pace, each with a time by which it must be done, the
most are in time if they go by that time, and whenever one would be late, the longest of those until
then is left out (Moore, Management Science 15, 1968).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import NamedTuple

from preble.cost import CostModel

SMALLEST_STEP = 64
"""Tokens; smaller steps would be all overhead."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Steps of `tokens` that take `seconds`; `ahead` tokens come before all that wait."""

    tokens: int
    seconds: float
    ahead: int = 0

    def seconds_until(self, tokens: int) -> float:
        """When so many tokens behind those ahead are computed: at the end of a step."""
        return -(-(self.ahead + tokens) // self.tokens) * self.seconds


class Due(NamedTuple):
    """Something of `tokens` to be done in `seconds` from now."""

    seconds: float
    tokens: int
    number: int


def best_pace(
    cost: CostModel, *, most: int, decodes: int, context: float, slo: float, ahead: int
) -> Pace:
    """The pace that suits an objective of `slo` seconds best.

    Args:
        most: tokens of prompts in a step.
        decodes: requests that decode meanwhile, with `context` tokens all together.
    """
    best, best_worth = Pace(max(most, 1), 0.0, ahead), -inf
    tokens = most
    while tokens >= min(most, SMALLEST_STEP) and tokens > 0:
        seconds = cost.step_seconds(
            prefill_tokens=tokens, attention=0.0, decodes=decodes, context_tokens=context
        )
        worth = tokens * (slo / seconds - 1.0) if seconds else 0.0
        if worth > best_worth:
            best, best_worth = Pace(tokens, seconds, ahead), worth
        tokens //= 2
    return best


def most_in_time(dues: Sequence[Due], pace: Pace) -> tuple[list[int], list[int]]:
    """Numbers of as many as can be in time, in the order in which they are; and of the others."""
    ordered = sorted(dues)
    longest: list[tuple[int, int]] = []
    left_out: list[int] = []
    total = 0
    for due in ordered:
        heappush(longest, (-due.tokens, due.number))
        total += due.tokens
        if pace.seconds_until(total) > due.seconds:
            tokens, number = heappop(longest)
            total += tokens
            left_out.append(number)
    late = set(left_out)
    return [due.number for due in ordered if due.number not in late], left_out
