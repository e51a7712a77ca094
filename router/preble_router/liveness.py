"""Is a worker's step loop alive? Pure: judged by its messages alone, never by the transport.

        silence_seconds + announced step
heard ------------------------------------> suspect ---- heard ----> back
"""

from enum import Enum

_AWAKE_SECONDS = 0.1
"""Of the time between two checks, so much at most counts: beyond it the router was held up."""
_LONGEST_STEP_SECONDS = 60.0
"""A longer announced step is not believed, so that every hang ends."""


class Change(Enum):
    """What a check or a message changed."""

    NONE = "none"
    SUSPECT = "suspect"
    BACK = "back"


class Liveness:
    """Silence of one worker, measured from its last message.

    A router whose own event loop was held up has not read what the worker sent meanwhile, so only
    time in which the router was awake is held against the worker.
    """

    __slots__ = ("_checked_at", "_heard_at", "_silence_seconds", "_suspect_at", "suspect")

    def __init__(self, silence_seconds: float, *, now: float) -> None:
        self._silence_seconds = silence_seconds
        self._heard_at = now
        self._checked_at = now
        self._suspect_at = now + silence_seconds
        self.suspect = False

    def heard(self, *, next_step_seconds: float = 0.0, now: float) -> Change:
        """A message came; the next may take the announced step longer."""
        self._heard_at = now
        step_seconds = min(next_step_seconds, _LONGEST_STEP_SECONDS)
        self._suspect_at = now + self._silence_seconds + step_seconds
        if not self.suspect:
            return Change.NONE
        self.suspect = False
        return Change.BACK

    def check(self, *, now: float) -> Change:
        """Call often; becomes suspect once per silence."""
        stall = now - self._checked_at - _AWAKE_SECONDS
        self._checked_at = now
        if stall > 0:
            self._suspect_at += stall
        if self.suspect or now < self._suspect_at:
            return Change.NONE
        self.suspect = True
        return Change.SUSPECT

    def silent_seconds(self, *, now: float) -> float:
        """Since the last message."""
        return now - self._heard_at
