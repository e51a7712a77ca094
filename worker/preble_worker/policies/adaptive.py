"""Adaptive scheduling over a hybrid cache (Apt-Serve, arXiv 2504.07494)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic

from preble_worker.policies.knapsack import Form, Job, choose
from preble_worker.policies.policy import WIDE_WINDOW, C, Candidate, PolicyOptions

PIN_AFTER_SLOS = 5.0
"""Who has waited so many times its objective goes before all who have not, oldest first."""
LATE_WORTH = 1e-6
"""Of a request that has missed its objective, per second of it; it halves with each doubling of
the wait."""
FULL = Form(1.0, 0.0)
"""Keys and values at full precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect(Generic[C]):
    """A request that waits, or that runs in the hidden form.

    Attributes:
        pending_seconds: since it came, or since its last token.
        first_seconds: from now to its next token if it ran.
        slo_seconds: objective for the one or the other.
        pages: that it takes at full precision.
        is_running: in the hidden form.
    """

    candidate: C
    pending_seconds: float
    first_seconds: float
    slo_seconds: float
    pages: int
    is_running: bool

    @property
    def is_pinned(self) -> bool:
        return self.pending_seconds >= PIN_AFTER_SLOS * self.slo_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What may be used in addition to what is.

    Attributes:
        pages: at full precision. count: requests.
        num_live: requests that every delay delays.
        hidden_share: of the pages that the hidden form takes, None where there is none.
        hidden_seconds: what a page's tokens, in the hidden form, add to a step.
    """

    pages: int
    count: int
    num_live: int
    hidden_share: float | None
    hidden_seconds: float


@dataclass(frozen=True, slots=True)
class Plan(Generic[C]):
    """What is best, as of one moment.

    Attributes:
        starts: who of those who wait is to start, and whether in the hidden form; first one first.
        upgrades: who runs in the hidden form and is better off without.
    """

    starts: list[tuple[C, bool]]
    upgrades: list[C]


class Adaptive:
    """Most value for the pages: value is the time that a request has been pending.

    Running a request in the hidden form saves pages and costs rho seconds per page and step, which
    all N live requests wait for. A request that has missed its objective counts next to nothing,
    because nothing can be won.

    Who runs stays, until pages are short. With running requests in the choice as well, worth what
    their return would cost all others, small prompts kept pushing out long contexts: 6,815
    preemptions of 250 requests at twice the rate that OPT-13B on an A100 sustains, and five times
    the duration.

    Bound: who has waited 5 times its objective is pinned: before all who have not, oldest first.
    So from then on nobody overtakes it.
    """

    window = WIDE_WINDOW
    bounds_waits = True

    def __init__(self, options: PolicyOptions) -> None:
        del options

    def order(self, candidates: Sequence[C], *, now: float) -> Iterable[C]:
        """In the order of the last plan, then those who came since."""
        return sorted(candidates, key=_planned)

    def started(self, candidate: Candidate) -> None:
        candidate.standing = None

    def ended(self, candidate: Candidate, *, finished: bool) -> None:
        pass

    def plan(self, prospects: Sequence[Prospect[C]], room: Room) -> Plan[C]:
        """Decide on all of them."""
        drag = room.hidden_seconds * room.num_live
        forms = (FULL,) if room.hidden_share is None else (Form(room.hidden_share, drag), FULL)
        pinned, pages = self._pinned(prospects, room, forms)
        others = [p for p in prospects if p.is_running or not p.is_pinned]
        jobs = [
            _upgrade(p, forms) if p.is_running else Job(_worth(p), max(p.pages, 0.5), forms)
            for p in others
        ]
        choice = choose(jobs, pages=pages, count=room.count - len(pinned))
        best_first = sorted(choice, key=lambda i: -jobs[i].value(choice[i]) / jobs[i].pages)
        starts = [(p.candidate, form is not FULL) for p, form in pinned]
        starts.extend(
            (others[i].candidate, choice[i] is not FULL)
            for i in best_first
            if not others[i].is_running
        )
        self._rank(prospects, [candidate for candidate, _ in starts])
        upgrades = [others[i].candidate for i in best_first if others[i].is_running]
        return Plan(starts, upgrades)

    def _rank(self, prospects: Sequence[Prospect[C]], starts: list[C]) -> None:
        """Who is to start comes first, then the pinned, then the others by value per page: the
        next plan may be some steps off when one of those that run ends.
        """
        rest = [p for p in prospects if not p.is_running]
        rest.sort(key=_turn)
        for rank, candidate in enumerate([p.candidate for p in rest]):
            candidate.standing = len(starts) + rank
        for rank, candidate in enumerate(starts):
            candidate.standing = rank

    def _pinned(
        self, prospects: Sequence[Prospect[C]], room: Room, forms: tuple[Form, ...]
    ) -> tuple[list[tuple[Prospect[C], Form]], float]:
        """Those to start before all others, at full precision, and the pages that they leave."""
        pinned = [p for p in prospects if p.is_pinned and not p.is_running]
        pinned.sort(key=lambda p: p.candidate.arrived_at)
        pages = float(room.pages)
        chosen: list[tuple[Prospect[C], Form]] = []
        for prospect in pinned[: room.count]:
            if prospect.pages > pages:
                return chosen, 0.0
            chosen.append((prospect, FULL))
            pages -= prospect.pages
        return chosen, pages


def _worth(prospect: Prospect[C]) -> float:
    """Seconds that running it is worth, at full precision."""
    pending, slo = prospect.pending_seconds, prospect.slo_seconds
    if pending + prospect.first_seconds > slo:
        return LATE_WORTH * slo * slo / max(pending, slo)
    return pending + prospect.first_seconds


def _turn(prospect: Prospect[C]) -> tuple[bool, float]:
    if prospect.is_pinned:
        return False, prospect.candidate.arrived_at
    return True, -_worth(prospect) / max(prospect.pages, 0.5)


def _upgrade(prospect: Prospect[C], forms: tuple[Form, ...]) -> Job:
    """What is won by leaving the hidden form, for the pages that it takes more."""
    hidden = forms[0]
    return Job(hidden.drag * prospect.pages, (1.0 - hidden.share) * prospect.pages, (FULL,))


def _planned(candidate: Candidate) -> tuple[float, float]:
    rank = candidate.standing
    return float("inf") if rank is None else rank, candidate.arrived_at
