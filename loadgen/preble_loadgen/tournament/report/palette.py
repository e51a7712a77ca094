"""How each policy is drawn, the same in every plot. Pure.

Colours are those of Okabe and Ito, which readers with any colour vision tell apart; lines that
share a colour differ in marker and stroke. Cache-blind policies are grey, ours is vermilion.
"""

import zlib
from dataclasses import dataclass

from preble_loadgen.tournament.report.groups import OURS, is_own

VERMILION, BLUE, GREEN, SKY = "#d55e00", "#0072b2", "#009e73", "#56b4e9"
PURPLE, ORANGE, BLACK, GREY = "#cc79a7", "#e69f00", "#000000", "#8a8a8a"


@dataclass(frozen=True, slots=True)
class Look:
    """`stroke` and `marker` in matplotlib's notation."""

    colour: str
    marker: str
    stroke: str

    @property
    def is_ours(self) -> bool:
        """Whether it is drawn thick and in front."""
        return self == LOOKS[OURS]


LOOKS = {
    OURS: Look(VERMILION, "o", "-"),
    "e2": Look(BLACK, "s", "-"),
    "round_robin": Look(GREY, "s", "-"),
    "random": Look(GREY, "x", ":"),
    "least_loaded": Look(GREY, "v", "--"),
    "power_of_two": Look(GREY, "^", "-."),
    "sticky": Look(SKY, "s", "-"),
    "bounded_hash": Look(SKY, "v", "--"),
    "longest_prefix": Look(SKY, "^", ":"),
    "cache_aware": Look(BLUE, "s", "-"),
    "cache_aware_spill": Look(BLUE, "v", "--"),
    "kv_cost": Look(GREEN, "s", "-"),
    "cache_route": Look(GREEN, "v", "--"),
    "prefix_score": Look(PURPLE, "s", "-"),
    "prefix_score_precise": Look(PURPLE, "v", "--"),
    "prefix_random": Look(PURPLE, "^", ":"),
    "sigma_gate": Look(ORANGE, "s", "-"),
    "ray_prefix": Look(ORANGE, "v", "--"),
}
OTHER_COLOURS = (BLUE, GREEN, SKY, PURPLE, ORANGE, BLACK)
OTHER_MARKERS = ("D", "P", "X", "<", ">", "h")


def look(policy: str) -> Look:
    """Of a policy that is not listed, one that depends on its name alone."""
    if policy in LOOKS:
        return LOOKS[policy]
    chosen = zlib.crc32(policy.encode())
    marker = OTHER_MARKERS[chosen // 7 % len(OTHER_MARKERS)]
    if is_own(policy):
        return Look(VERMILION, marker, ":")
    return Look(OTHER_COLOURS[chosen % len(OTHER_COLOURS)], marker, ":")
