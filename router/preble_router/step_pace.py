"""How long a worker takes from one step to the next while it computes, as the router sees it. Pure.

That is more than its steps take where the worker, the wire or the router is held up.
"""

KEPT = 0.8
"""Of what was known, beside the latest step."""


class StepPace:
    """
    Attributes:
        seconds: between steps of late; 0 before there were two in a row.
    """

    __slots__ = ("_stepped_at", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self._stepped_at: float | None = None

    def stepped(self, *, now: float) -> None:
        """A step has come."""
        if self._stepped_at is not None:
            latest = now - self._stepped_at
            self.seconds = KEPT * self.seconds + (1.0 - KEPT) * latest if self.seconds else latest
        self._stepped_at = now

    def rested(self) -> None:
        """It computes nothing now."""
        self._stepped_at = None
