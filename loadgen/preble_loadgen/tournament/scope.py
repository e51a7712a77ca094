"""How much of the tournament is wanted, and can be had. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from preble_loadgen.tournament.contests import Contest


def _always(name: str) -> bool:
    del name
    return True


@dataclass(frozen=True, slots=True)
class Scope:
    """How much of it.

    Attributes:
        has: whether a contest's traces are there. has_file: whether that trace is.
        quick: only a first look is wanted.
    """

    has: Callable[[Contest], bool]
    quick: bool = False
    has_file: Callable[[str], bool] = _always
