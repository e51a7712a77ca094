"""Whether a request can be served in time, by what its worker's queue and its own work take.

    first token   what is before it of the worker's wait_seconds, and the request's own prefill
    end           that, and its predicted output in the steps there

Both are corrected by how far such predictions were off lately. A request that states no time is
never refused here, and neither is one that an idle worker can take: refusing that one would
relieve nobody, and nothing would be learnt from it.
"""

from collections import Counter

import numpy as np

from preble.errors import Overloaded
from preble_router.booking import Booking
from preble_router.candidates import Candidates, Slots
from preble_router.fair_queues import FairQueues
from preble_router.policies.policy import Choice
from preble_router.priority_queues import PriorityQueues
from preble_router.worker_table import Column, WorkerTable

MEMORY = 0.98
"""Weight that older predictions keep at each new outcome."""
PRIOR_SECONDS = 1.0
"""How many predicted seconds must have come true before the outcomes weigh as much as the model."""
DEVIATIONS = 2.0
"""Mean deviations that a bound leaves room for: few of those let in are late then, and the queue
is soon short again after overload."""
RATIO_RANGE = (0.25, 20.0)
LEAST_RETRY_SECONDS = 0.1


class Correction:
    """Actual over predicted seconds, and how much that varies.

    Ratio and mean deviation of the sums, as in TCP's retransmission timer (RFC 6298): long waits,
    where errors matter, weigh more than short ones.
    """

    __slots__ = ("_actual", "_deviation", "_predicted", "bound")

    def __init__(self) -> None:
        self._actual = self._predicted = PRIOR_SECONDS
        self._deviation = 0.0
        self.bound = 1.0
        """What to multiply a prediction with, so that it mostly holds."""

    def observe(self, *, predicted: float, actual: float) -> None:
        """Something took `actual` seconds where `predicted` were expected."""
        ratio = self._actual / self._predicted
        error = abs(actual - ratio * predicted)
        fade = (1.0 - MEMORY) * PRIOR_SECONDS  # what is forgotten, the model's word replaces
        self._actual = MEMORY * self._actual + fade + actual
        self._predicted = MEMORY * self._predicted + fade + predicted
        self._deviation = MEMORY * self._deviation + error
        low, high = RATIO_RANGE
        bound = (self._actual + DEVIATIONS * self._deviation) / self._predicted
        self.bound = min(max(bound, low), high)

    def observe_at_least(self, *, predicted: float, elapsed: float) -> None:
        """It had taken `elapsed` seconds when it was given up."""
        if elapsed > predicted * self._actual / self._predicted:
            self.observe(predicted=predicted, actual=elapsed)


class Admission:
    """Lets requests in, or says when to come again.

    Attributes:
        refusals: by what could not be met: the request's "deadline", the operator's limit to the
            "queue"; or "live_requests" and "router", which are counted by the dispatcher.
        queues: what is booked, by priority, and by tenant where workers share fairly.
    """

    def __init__(self, *, shares_fairly: bool = False) -> None:
        self.refusals: Counter[str] = Counter()
        self.queues = FairQueues() if shares_fairly else PriorityQueues()
        self._first = Correction()
        self._rest = Correction()

    # Requests

    def admit(self, candidates: Candidates, choice: Choice) -> Choice:
        """The policy's choice, if the request is in time there, else the worker soonest done.

        Raises:
            Overloaded: it would be late everywhere.
        """
        request = candidates.request
        if request.attempt > 1 or (request.deadline_at is None and request.start_by is None):
            return choice
        late = self._late_seconds(candidates)
        if late[choice.slot] <= 0.0:
            return choice
        soonest = int((late + candidates.barred).argmin())
        if late[soonest] > 0.0:
            raise self._refusal(
                float(late[soonest]), "queue" if request.deadline_at is None else "deadline"
            )
        return Choice(soonest, f"in time: elsewhere {late[choice.slot]:.2f} s late")

    def check_wait(
        self,
        table: WorkerTable,
        slots: Slots,
        *,
        latest_at: float,
        priority: int,
        tenant: str,
        now: float,
    ) -> None:
        """Whether a first token could come by `latest_at`, had its prompt no length: to be asked
        before work is spent on the prompt.

        Raises:
            Overloaded: it could not.
        """
        waits = self.queues.wait_seconds(table, priority=priority, tenant=tenant)[slots]
        waits *= self._first.bound
        waits[table.num_requests[slots] == 0.0] = 0.0
        late = now + float(waits.min(initial=np.inf)) - latest_at
        if len(slots) and late > 0.0:
            raise self._refusal(late, "deadline")

    def _late_seconds(self, candidates: Candidates) -> Column:
        """By how much each worker would miss what the request demands, at most 0 if it would not;
        idle workers never do."""
        request, table = candidates.request, candidates.table
        first = candidates.now + self._first.bound * first_token_seconds(candidates)
        late = np.full(len(first), -np.inf)
        if request.start_by is not None:
            late = first - request.start_by
        if request.deadline_at is not None:
            rest = self._rest.bound * table.decode_seconds * candidates.predicted_output_tokens
            late = np.maximum(late, first + rest - request.deadline_at)
        late[table.num_requests == 0.0] = 0.0
        return late

    def _refusal(self, late_seconds: float, reason: str) -> Overloaded:
        self.refusals[reason] += 1
        return Overloaded(
            f"the request would be {late_seconds:.2f} s late: too much is queued",
            retry_after_seconds=max(late_seconds, LEAST_RETRY_SECONDS),
        )

    # Outcomes

    def booked(self, booking: Booking) -> None:
        """It was placed."""
        self.queues.add(booking)

    def started(self, booking: Booking, *, now: float) -> None:
        """Its first token came."""
        self.queues.remove(booking)
        booking.started_at = now
        self._first.observe(predicted=booking.first_token_seconds, actual=now - booking.placed_at)

    def closed(self, booking: Booking, *, broke_off: bool, now: float) -> None:
        """It ended; one that broke off tells nothing."""
        if booking.started_at is None:
            self.queues.remove(booking)
        if broke_off:
            return
        if booking.started_at is None:
            elapsed = now - booking.placed_at
            self._first.observe_at_least(predicted=booking.first_token_seconds, elapsed=elapsed)
        elif booking.output_tokens > 1:
            predicted = booking.seconds_per_output_token * (booking.output_tokens - 1)
            self._rest.observe(predicted=predicted, actual=now - booking.started_at)


def first_token_seconds(candidates: Candidates) -> Column:
    """Until the first token, per slot, uncorrected: the queue, and the request's own prefill."""
    table, length = candidates.table, candidates.request.num_tokens
    own = candidates.cached_tokens + length  # twice the mean context of the missed tokens
    own *= table.half_seconds_per_pair
    own += table.seconds_per_token
    own *= candidates.missed_tokens
    own += candidates.wait_seconds
    return own
