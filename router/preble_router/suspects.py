"""Which live requests may have brought a worker down, and how they are kept apart until that shows.

    w0 fails with {a, b, c} on it  ->  a goes to w1, b to w2, each on trial there; c waits
    b shows a token                ->  c goes to w2

So at a second failure one of the suspects was there, and not several. What is held against whom is
in `poison`.
"""

from collections.abc import Iterable, Iterator, Mapping

from preble_router.generation import Generation
from preble_router.poison import PoisonBook, fingerprint
from preble_router.session import Session

HEARTBEAT_SECONDS = 0.5
"""An idle worker reports at least so often."""
TRIAL_STEPS = 12
"""Of the slowest worker: so long suspects are kept apart; their streams wait."""
TRIAL_SECONDS = 0.25
"""At least so long, whatever the steps take."""
MOST_TRIAL_SECONDS = 1.0
"""And no longer."""


class Suspects:
    """
    Attributes:
        book: what is held against requests that live, and against those that come again.
    """

    def __init__(self, sessions: Mapping[str, Session]) -> None:
        self.book = PoisonBook()
        self._sessions = sessions

    def is_poisoned(self, generation: Generation, now: float) -> bool:
        """Whether to refuse it."""
        book = self.book
        return book.has_poisoned and book.is_poisoned(_fingerprint(generation), now=now)

    def blame(self, failure: str, generations: Iterable[Generation], now: float) -> None:
        """A worker failed while it ran these: one of them may have been the cause."""
        running = [(_fingerprint(each), each.attempt_output_tokens) for each in generations]
        self.book.failed(failure, running, now=now)
        until = now + self._trial_seconds()
        for generation in generations:
            generation.suspected_until = until

    def _trial_seconds(self) -> float:
        """Who has had no step to show a token in has not been tried."""
        pace = max((s.pace.seconds for s in self._sessions.values() if s.ready), default=0.0)
        return min(max(TRIAL_SECONDS, TRIAL_STEPS * pace), MOST_TRIAL_SECONDS)

    def blame_end(self, session: Session, now: float) -> None:
        """The process there failed, or is silent. Who came when it had been silent for longer than
        an idle worker is has not done that."""
        running = [each for each in session.live.values() if not _came_late(each, now)]
        self.blame(f"{session.worker_id}/{session.spec.epoch}", running, now)

    def broke_off(self, generation: Generation, now: float) -> None:
        """By the fault of its worker, on which it still is."""
        session = generation.session
        assert session is not None
        if _came_late(generation, now):
            mark, epoch = _fingerprint(generation), session.spec.epoch
            self.book.came_late(mark, session.worker_id, epoch, now=now)

    def ended_well(self, generation: Generation) -> None:
        """Nothing is held against it any more."""
        if self.book.has_suspects:
            self.book.clear(_fingerprint(generation))

    def placed(self, generation: Generation, session: Session, now: float) -> None:
        """A suspect is on trial where it runs."""
        if generation.suspected_until > now:
            session.trial = generation

    def end_trial(self, session: Session, now: float) -> None:
        """The suspect there has shown a token: the next one may come."""
        assert session.trial is not None
        session.trial.suspected_until = now
        session.trial = None

    def barred(self, generation: Generation, failed: set[str], now: float) -> set[str]:
        """Workers that may not take it now: for a suspect, those that try another one. When its
        time is up it avoids them, if any that has not `failed` it tries nobody."""
        is_suspect = generation.suspected_until > now
        if not (is_suspect or generation.num_failures):
            return set()
        trials = {s.worker_id: s.trial for s in self._sessions.values() if s.trial is not None}
        if not is_suspect:
            free = (s for s in self._untried() if s.ready and not s.liveness.suspect)
            return set(trials) if any(s.worker_id not in failed for s in free) else set()
        mark = _fingerprint(generation)
        # The verdict over its like, such as another choice of the same prompt, is its own too.
        is_tried = any(_fingerprint(other) == mark for other in trials.values())
        return set(self._sessions if is_tried else trials)

    def _untried(self) -> Iterator[Session]:
        """Workers that try nobody."""
        return (session for session in self._sessions.values() if session.trial is None)

    def must_wait(self, generation: Generation, now: float) -> bool:
        """Whether it is certain that all who could take it are barred; cheaper than to ask who."""
        return generation.suspected_until > now and not any(s.ready for s in self._untried())


def _fingerprint(generation: Generation) -> bytes:
    if generation.fingerprint is None:
        request = generation.request
        generation.fingerprint = fingerprint(
            request.tokens,
            request.sampling,
            namespace=request.namespace,
            tenant=request.tenant,
        )
    return generation.fingerprint


def _came_late(generation: Generation, now: float) -> bool:
    """Whether its worker has said nothing since it came, nor for a while before."""
    assert generation.session is not None
    silent_seconds = generation.session.liveness.silent_seconds(now=now)
    return generation.placed_at > now - silent_seconds + HEARTBEAT_SECONDS
