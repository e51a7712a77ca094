"""How far workers are from what their cost model says: observed over predicted step time.

A model that is wrong is wrong for all workers that share it, so what one worker shows is believed
of the others until they show otherwise. Were it not, the first worker to be used would look slow
beside those that nobody has tried yet, and its cache would be given up for theirs.

What a worker showed fades while it idles, since nobody would try a slow one again to see whether
it has come right. How much is then laid on it says `ramp_up`.
"""

from math import exp

MEMORY = 0.95
"""Weight that the past keeps at each new step."""
PRIOR_STEPS = 5.0
"""How many steps of its own a worker needs to weigh as much as the fleet."""
RATIO_RANGE = (0.02, 50.0)
FADE_SECONDS = 3.0
"""Time constant with which an idle worker's own steps lose weight: what 20 of them said, be it ten
times the fleet's pace, is nearly forgotten after five of it."""
LARGEST_LEAP = 4.0
"""One step counts as at most so many times as slow as was believed: a pause is not a pace."""


class FleetPace:
    """The pace of all workers with one cost model. `steps` weighs recent steps most."""

    __slots__ = ("observed_seconds", "predicted_seconds", "steps")

    def __init__(self) -> None:
        self.observed_seconds = 0.0
        self.predicted_seconds = 0.0
        self.steps = 0.0

    @property
    def ratio(self) -> float:
        """Observed over predicted step time; 1 before the first step."""
        return self.observed_seconds / self.predicted_seconds if self.steps else 1.0


class Pace:
    """The pace of one worker, told from `fleet` as long as it has shown little itself."""

    __slots__ = ("_fleet", "_observed_seconds", "_predicted_seconds")

    def __init__(self, fleet: FleetPace) -> None:
        self._fleet = fleet
        self._observed_seconds = 0.0
        self._predicted_seconds = 0.0

    @property
    def ratio(self) -> float:
        """Observed over predicted step time; above 1 it is slower than its cost model."""
        observed, predicted = self._observed_seconds, self._predicted_seconds
        fleet = self._fleet
        if fleet.steps:
            weight = PRIOR_STEPS / fleet.steps
            observed += weight * fleet.observed_seconds
            predicted += weight * fleet.predicted_seconds
        if predicted <= 0.0:
            return 1.0
        low, high = RATIO_RANGE
        return min(max(observed / predicted, low), high)

    @property
    def lag(self) -> float:
        """Its ratio over the fleet's."""
        return self.ratio / self._fleet.ratio

    def observe(self, observed_seconds: float, predicted_seconds: float) -> None:
        """A step took the one where the model said the other; 0 is a heartbeat."""
        if observed_seconds <= 0.0 or predicted_seconds <= 0.0:
            return
        observed_seconds = min(observed_seconds, LARGEST_LEAP * self.ratio * predicted_seconds)
        self._observed_seconds = MEMORY * self._observed_seconds + observed_seconds
        self._predicted_seconds = MEMORY * self._predicted_seconds + predicted_seconds
        fleet = self._fleet
        fleet.observed_seconds = MEMORY * fleet.observed_seconds + observed_seconds
        fleet.predicted_seconds = MEMORY * fleet.predicted_seconds + predicted_seconds
        fleet.steps = MEMORY * fleet.steps + 1.0

    def fade(self, idle_seconds: float) -> None:
        """It had nothing to do for so long."""
        keep = exp(-idle_seconds / FADE_SECONDS)
        self._observed_seconds *= keep
        self._predicted_seconds *= keep
