"""How busy each worker is: exact books of our own requests, and what the worker reports of all.

A report is the truth about every router's requests, but an old one: it knows nothing of what was
placed since. Our books know every request of ours, but neither other routers' nor how far a
prefill has come. With, in uncached prompt tokens,

    R  waiting prefill of the last report        O    our own bookings now, whole until first token
    U  our bookings no report can know yet       O_r  our own bookings when the report came

the prefill queued at the worker is taken to be

    min(R + U, O + max(0, R - O_r))

The first form counts every token once, as long as U is right, and sees a half-done prefill. The
second bounds it should a report already contain part of U: what we booked, and what others had
queued beyond that. A booking leaves U with the first report that comes `REPORT_LAG_SECONDS` after
it, time enough to reach the worker; with one router the bound makes a longer lag harmless.
"""

from collections import deque
from math import inf

from preble.types import LoadReport, WorkerSpec
from preble_router.booking import Booking
from preble_router.pace import FleetPace, Pace
from preble_router.ramp_up import RampUp

REPORT_LAG_SECONDS = 0.02


class WorkerLoad:
    """The books of one worker.

    Attributes:
        queued_tokens: O above. unreported_tokens: U above.
        decode_tokens: output tokens to come of our decoding requests.
        context_tokens: prompt and output tokens of all our live requests.
        num_live: our requests on this worker that have not ended. num_queued, num_decoding: of
            them, before and after their first token.
        others_prefill_tokens, others_requests, others_context_tokens: what the last report showed
            beyond our books.
        report: the last one.
        unreported_need: tokens of new KV that our unreported bookings will take.
    """

    __slots__ = (
        "_idle_since",
        "_pace",
        "_ramp_up",
        "_unreported",
        "context_tokens",
        "decode_tokens",
        "num_decoding",
        "num_live",
        "num_queued",
        "others_context_tokens",
        "others_prefill_tokens",
        "others_requests",
        "queued_tokens",
        "report",
        "spec",
        "unreported_need",
        "unreported_tokens",
    )

    def __init__(self, spec: WorkerSpec, fleet: FleetPace | None = None) -> None:
        self.spec = spec
        self.queued_tokens = 0
        self.unreported_tokens = 0
        self.unreported_need = 0.0
        self.decode_tokens = 0.0
        self.context_tokens = 0
        self.num_live = 0
        self.num_queued = 0
        self.num_decoding = 0
        self.others_prefill_tokens = 0
        self.others_requests = 0
        self.others_context_tokens = 0
        pages = spec.capacity_tokens // spec.page_tokens
        self.report = LoadReport(free_pages=pages)
        self._unreported: deque[Booking] = deque()
        fleet = fleet or FleetPace()
        self._pace = Pace(fleet)
        self._ramp_up = RampUp(is_new=fleet.steps > 0.0)
        self._idle_since = inf

    # What is known

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens it has yet to compute, all routers' together; the formula above."""
        return min(
            self.report.waiting_prefill_tokens + self.unreported_tokens,
            self.queued_tokens + self.others_prefill_tokens,
        )

    def free_tokens_beside(self, prefill_tokens: int) -> float:
        """Tokens of KV that new requests can have without evicting anything.

        What is queued, `prefill_tokens`, comes first: its pages are still free, but spoken for.
        """
        free = self.report.free_pages * self.spec.page_tokens - self.unreported_need
        return max(free + self.unreported_tokens - prefill_tokens, 0.0)

    @property
    def speed_ratio(self) -> float:
        """Observed over predicted step time, recent steps weighing most."""
        return self._pace.ratio

    @property
    def is_full(self) -> bool:
        """It has as many requests as one whose speed is unknown may have."""
        return self.num_live + self.others_requests >= self._ramp_up.limit

    # What changes it

    def book(self, booking: Booking) -> None:
        self.num_live += 1
        self.num_queued += 1
        self.queued_tokens += booking.prefill_tokens
        self.context_tokens += booking.prompt_tokens
        self.unreported_tokens += booking.prefill_tokens
        self.unreported_need += booking.need_tokens
        self._unreported.append(booking)

    def progress(self, booking: Booking, num_tokens: int) -> None:
        """`num_tokens` more output tokens have come."""
        before = booking.decode_tokens if booking.is_decoding else 0.0
        if not booking.is_decoding and num_tokens > 0:
            booking.is_decoding = True
            self.num_queued -= 1
            self.num_decoding += 1
            self.queued_tokens -= booking.prefill_tokens
            self._mark_reported(booking)
        booking.output_tokens += num_tokens
        self.context_tokens += num_tokens
        if booking.is_decoding:
            self.decode_tokens += booking.decode_tokens - before

    def close(self, booking: Booking) -> None:
        """The attempt ended, however: take it off."""
        self._mark_reported(booking)
        self.num_live -= 1
        self.context_tokens -= booking.context_tokens
        if booking.is_decoding:
            self.num_decoding -= 1
            self.decode_tokens -= booking.decode_tokens
        else:
            self.num_queued -= 1
            self.queued_tokens -= booking.prefill_tokens
        if not self.num_decoding:
            self.decode_tokens = 0.0  # what rounding left

    def receive_report(self, report: LoadReport, *, now: float) -> None:
        """A report has come, after the progress that belongs to the same step was booked."""
        if not (report.num_waiting or report.num_running or self.num_live):
            self._idle(now=now)
        self._idle_since = now
        self.report = report
        latest = now - REPORT_LAG_SECONDS
        unreported = self._unreported
        while unreported and (not unreported[0].is_unreported or unreported[0].placed_at <= latest):
            self._mark_reported(unreported.popleft())
        requests = report.num_waiting + report.num_running
        self.others_requests = max(0, requests - self.num_live)
        self.others_prefill_tokens = max(0, report.waiting_prefill_tokens - self.queued_tokens)
        self.others_context_tokens = max(0, report.decode_context_tokens - self.context_tokens)

    def receive_step(
        self, *, observed_seconds: float, predicted_seconds: float, now: float
    ) -> None:
        """A step took `observed_seconds` where the cost model said `predicted_seconds`; 0 is a
        heartbeat."""
        if observed_seconds > 0.0:
            self._idle_since = now
            self._pace.observe(observed_seconds, predicted_seconds)
            self._ramp_up.stepped()

    def _idle(self, *, now: float) -> None:
        """What it showed loses weight with the time it does nothing."""
        self._ramp_up.idled(lag=self._pace.lag)
        self._pace.fade(max(now - self._idle_since, 0.0))

    def _mark_reported(self, booking: Booking) -> None:
        if booking.is_unreported:
            booking.is_unreported = False
            self.unreported_tokens -= booking.prefill_tokens
            self.unreported_need -= booking.need_tokens

    def check(self, live: list[Booking]) -> None:
        """Assert that the books are the sum of the `live` attempts on this worker."""
        queued = [b for b in live if not b.is_decoding]
        decoding = [b for b in live if b.is_decoding]
        unreported = [b for b in live if b.is_unreported]
        assert (self.num_queued, self.num_decoding) == (len(queued), len(decoding))
        assert self.num_live == len(live)
        assert self.queued_tokens == sum(b.prefill_tokens for b in queued)
        assert self.context_tokens == sum(b.context_tokens for b in live)
        assert abs(self.decode_tokens - sum(b.decode_tokens for b in decoding)) < 1e-3
        assert self.unreported_tokens == sum(b.prefill_tokens for b in unreported)
        assert abs(self.unreported_need - sum(b.need_tokens for b in unreported)) < 1e-3
        assert not {b.request_id for b in unreported} - {b.request_id for b in self._unreported}
