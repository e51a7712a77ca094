"""How many requests may be on a worker of which nobody knows how fast it is.

    a new worker beside others at work        one, and one more for each step that it shows,
    one that was slow, and has idled since    until it has shown `RAMP_STEPS`
    any other                                 no limit

So a worker that is slow, or slow to start, is found out by a few requests, and not by all that
come until its first steps are reported; one that is not takes its full share within a second.
Nobody is turned away for it: where all others are full or gone, the limit does not count.
"""

from math import inf

RAMP_STEPS = 16
SLOW_LAG = 1.5
"""Times the fleet's pace from which a worker counts as slow."""


class RampUp:
    """One worker's.

    Attributes:
        limit: of requests on it, all routers' together.
    """

    __slots__ = ("limit",)

    def __init__(self, *, is_new: bool) -> None:
        self.limit = 1.0 if is_new else inf

    def stepped(self) -> None:
        """It has shown one step more."""
        self.limit += 1.0
        if self.limit > RAMP_STEPS:
            self.limit = inf

    def idled(self, *, lag: float) -> None:
        """It had nothing to do, and was believed to be `lag` times as slow as the fleet."""
        if lag > SLOW_LAG:
            self.limit = 1.0
