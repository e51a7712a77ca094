"""Adaptive scheduling over a hybrid cache (Apt-Serve, arXiv 2504.07494)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Generic

from preble_worker.kv_form import CompactForm, KvForm
from preble_worker.policies.knapsack import Form, Job, choose
from preble_worker.policies.pace import Due, Pace, most_in_time
from preble_worker.policies.policy import WIDE_WINDOW, C, Candidate, PolicyOptions

PIN_AFTER_SLOS = 5.0
"""Who has waited so many times its objective goes before all who have not, oldest first."""
LATE_WORTH = 1e-6
"""Of a request that has missed its objective, per second of it; it halves with each doubling of
the wait."""
TOKENS_PER_PAUSE = 100
"""The objective between tokens is for the 99th percentile of a request's gaps: with so many tokens
for each pause it is met, however long the pauses were."""
FULL = Form(1.0, 0.0)
"""Keys and values at full precision."""


@dataclass(slots=True)
class Prospect(Generic[C]):
    """A request that waits.

    Attributes:
        pending_seconds: since it came, or since it was preempted.
        first_seconds: from now to its next token if it ran.
        slo_seconds: objective for the one or the other.
        pages: that it takes at full precision.
        can_wait: it had output enough for its pauses, so that this one misses no objective.
        tokens: to be computed before its next one.
        keeps_full: pages of it are on the host, and can only come back as they were.
    """

    candidate: C
    pending_seconds: float
    first_seconds: float
    slo_seconds: float
    pages: int
    can_wait: bool
    tokens: int
    keeps_full: bool = False


@dataclass(slots=True)
class Runner(Generic[C]):
    """A request that runs, and about which there is a choice.

    Attributes:
        pages: that it takes at full precision, or gives back when it is paused.
        pause_seconds: what it takes to copy them out and in.
    """

    candidate: C
    pages: int
    pause_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What may be used in addition to what is.

    Attributes:
        pages: at full precision. count: requests.
        num_live: requests that every delay delays.
        page_tokens: of a page at full precision.
        forms: compact ones, smallest first.
        pace: at which prompts are computed.
        tokens: that are computed until the next plan.
    """

    pages: int
    count: int
    num_live: int
    page_tokens: int
    forms: tuple[CompactForm, ...]
    pace: Pace
    tokens: int


@dataclass(frozen=True, slots=True)
class Plan(Generic[C]):
    """What is best, as of one moment.

    Attributes:
        starts: who of those who wait is to start, and in which form; first one first.
        upgrades: who runs in the hidden form and is better off without.
        shrinks: who runs in the full form and is to go on in int8.
        pauses: who runs and is to make room.
    """

    starts: list[tuple[C, KvForm]]
    upgrades: list[C]
    shrinks: list[C]
    pauses: list[C]


class Adaptive:
    """Most value for the pages and the tokens: value is the time that a request has been pending.

    Running a request in the hidden form saves pages and costs rho seconds per page and step, which
    all N live requests wait for.

    Every objective bounds the tokens that may be computed until then. So of those who wait as many
    as can be are in time (`pace`), and those among them who start do it in that order. A request
    that has missed its objective, or would make several others miss theirs, counts next to nothing,
    because nothing can be won: those are served with the pages and tokens that the others leave, in
    int8 where there is that.

    Who runs stays, until pages are short, but for those that can be paused at no loss: they swap,
    and have had 100 tokens for each pause, so that the 99th percentile of their gaps still meets
    the objective. What they are worth is what their copies take. So in overload the first tokens
    are in time, and those who run take turns of 100 tokens or more. Where a return means to compute
    anew, nobody is paused: with all running requests in the choice, small prompts kept pushing
    out long contexts, 6,815 preemptions of 250 requests at twice the rate that OPT-13B on an A100
    sustains, and five times the duration.

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

    def plan(
        self,
        waiting: Sequence[Prospect[C]],
        room: Room,
        *,
        hidden: Sequence[Runner[C]] = (),
        pausable: Sequence[Runner[C]] = (),
        shrinkable: Sequence[Runner[C]] = (),
    ) -> Plan[C]:
        """Decide on all of them.

        Args:
            hidden: run in the hidden form.
            pausable: run, and may be paused.
            shrinkable: run in the full form, could have int8, and may not be paused.
        """
        pinned, in_time, late = _by_hope(waiting, room.pace)
        forms = _forms(room)
        pages = float(room.pages + sum(runner.pages for runner in pausable))
        pages += sum(_fuller(r, forms, KvForm.INT8).pages for r in shrinkable)
        count = room.count + len(pausable)

        modest = _modest(forms)
        first = _oldest_that_fit(pinned, modest, pages, count)
        taken = sum(form.share * p.pages for p, form in first)
        pages = pages - taken if len(first) == len(pinned) else 0.0
        jobs = [
            Job(
                p.pending_seconds + p.first_seconds,
                _weight(p.pages),
                (FULL,) if p.keeps_full else forms,
            )
            for p in in_time
        ]
        jobs += [_keep(r) for r in pausable]
        jobs += [_fuller(r, forms, KvForm.HIDDEN) for r in hidden]
        jobs += [_fuller(r, forms, KvForm.INT8) for r in shrinkable]
        choice = choose(jobs, pages=pages, count=count - len(first))
        pages -= sum(jobs[i].weight(form) for i, form in choice.items())

        starts = [(p.candidate, form.kind) for p, form in first]
        starts += [(p.candidate, choice[i].kind) for i, p in enumerate(in_time) if i in choice]
        running = len(in_time) + len(pausable)
        num_kept = sum(len(in_time) <= i < running for i in choice)
        tokens = room.tokens - sum(p.tokens for p, _ in first)
        tokens -= sum(p.tokens for i, p in enumerate(in_time) if i in choice)
        starts += _best_of(late, modest, pages, count - len(starts) - num_kept, tokens)
        _rank([*pinned, *in_time, *late], starts)
        in_full = running + len(hidden)
        return Plan(
            starts,
            upgrades=[r.candidate for i, r in enumerate(hidden, running) if i in choice],
            shrinks=[r.candidate for i, r in enumerate(shrinkable, in_full) if i not in choice],
            pauses=[r.candidate for i, r in enumerate(pausable, len(in_time)) if i not in choice],
        )


def _forms(room: Room) -> tuple[Form, ...]:
    """All that a request can have, smallest first."""
    size, num_live = room.page_tokens, room.num_live
    compact = [
        Form(size / form.page_tokens, form.token_seconds * size * num_live, form.kind)
        for form in room.forms
    ]
    return (*compact, FULL)


def _rank(prospects: list[Prospect[C]], starts: list[tuple[C, KvForm]]) -> None:
    """Who is to start comes first, then the others as they are: the next plan may be some steps off
    when one of those that run ends.
    """
    for rank, prospect in enumerate(prospects, len(starts)):
        prospect.candidate.standing = rank
    for rank, (candidate, _) in enumerate(starts):
        candidate.standing = rank


def _by_hope(
    waiting: Sequence[Prospect[C]], pace: Pace
) -> tuple[list[Prospect[C]], list[Prospect[C]], list[Prospect[C]]]:
    """The pinned, oldest first; as many as can meet their objectives, in the order in which they
    do; and the others.
    """
    pinned: list[Prospect[C]] = []
    dues: list[Due] = []
    late: list[Prospect[C]] = []
    for number, p in enumerate(waiting):
        pending, slo = p.pending_seconds, p.slo_seconds
        if pending >= PIN_AFTER_SLOS * slo:
            pinned.append(p)
        elif p.can_wait or pending + p.first_seconds > slo:
            late.append(p)
        else:
            dues.append(Due(slo - pending, p.tokens, number))
    pinned.sort(key=lambda p: p.candidate.arrived_at)
    in_time, left_out = most_in_time(dues, pace)
    late += [waiting[number] for number in left_out]
    late.sort(key=lambda p: _late_worth(p) / (p.pages or 0.5), reverse=True)
    return pinned, [waiting[number] for number in in_time], late


def _modest(forms: tuple[Form, ...]) -> Form:
    """Of those with nothing to win, that should leave others their room but not delay them: int8,
    where there is that. Who has pages on the host keeps the full form all the same.
    """
    return next((form for form in forms if form.kind is KvForm.INT8), FULL)


def _oldest_that_fit(
    pinned: list[Prospect[C]], modest: Form, pages: float, count: int
) -> list[tuple[Prospect[C], Form]]:
    """Those to start before all others; nobody overtakes who does not fit."""
    chosen = []
    for prospect in pinned[: max(count, 0)]:
        form = FULL if prospect.keeps_full else modest
        pages -= form.share * prospect.pages
        if pages < 0.0:
            break
        chosen.append((prospect, form))
    return chosen


def _best_of(
    late: list[Prospect[C]], modest: Form, pages: float, count: int, tokens: float
) -> list[tuple[C, KvForm]]:
    """Of those with nothing to win, with what room is left."""
    if min(count, tokens) <= 0:
        return []
    small = [
        (p, form)
        for p in late
        if (form := FULL if p.keeps_full else modest).share * p.pages <= pages
    ]
    jobs = [Job(_late_worth(p), f.share * _weight(p.pages), (FULL,), 1, p.tokens) for p, f in small]
    choice = choose(jobs, pages=pages, count=count, tokens=tokens)
    return [(p.candidate, f.kind) for number, (p, f) in enumerate(small) if number in choice]


def _late_worth(prospect: Prospect[C]) -> float:
    slo, pending = prospect.slo_seconds, prospect.pending_seconds
    return LATE_WORTH * slo * slo / (pending if pending > slo else slo)


def _weight(pages: float) -> float:
    return pages if pages > 0.5 else 0.5


def _keep(runner: Runner[C]) -> Job:
    """To let it run; worth something even where copies take no time, or it made room for nobody."""
    return Job(max(runner.pause_seconds, LATE_WORTH), _weight(runner.pages), (FULL,))


def _fuller(runner: Runner[C], forms: tuple[Form, ...], kind: KvForm) -> Job:
    """What is won by having the full form and not `kind`, for the pages that it takes more."""
    compact = next(form for form in forms if form.kind is kind)
    worth = max(compact.drag * runner.pages, LATE_WORTH)
    return Job(worth, _weight((1.0 - compact.share) * runner.pages), (FULL,), places=0)


def _planned(candidate: Candidate) -> tuple[float, float]:
    rank = candidate.standing
    return inf if rank is None else rank, candidate.arrived_at
