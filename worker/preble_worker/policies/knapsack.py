"""Whom to run and in which form, when not all fit (Apt-Serve, arXiv 2504.07494, §4).

Each job may be left out, or be held in one of several forms. A form takes a share f of the pages
that the job takes at full precision, and slows every step; the smaller, the slower:

    value of job i in form k    v = worth_i - drag_k · pages_i        drag = N · rho, f = 1 has none
    its weight                  w = f_k · pages_i

That is a knapsack with a choice of sizes. On the upper concave envelope of a job's (w, v), from
(0, 0), each form is an *increment* over the one below, of falling value per page. Increments are
taken by value per page until one does not fit, the critical one. What was taken, or the one job to
which the critical increment belongs, is worth at least half of the optimum: both together are worth
more than all that fits even where jobs can be split. Then whatever still fits is added to either.

Tokens to be computed are a second budget. Where all jobs together keep within it, all is as above.
Else a job weighs w / pages + tokens / budget of tokens. Whatever fits both budgets weighs at most
2; what was taken and the critical increment overflow one of them, so they weigh over 1, at a higher
density. So the better of the two is worth at least a quarter of the optimum. More cannot be said:
two jobs of half the pages and few tokens each, a little denser than one of all pages and one of all
tokens, keep those two out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from operator import attrgetter
from typing import NamedTuple

from preble_worker.kv_form import KvForm


@dataclass(frozen=True, slots=True)
class Form:
    """`share` of the pages at full precision, `drag` seconds of delay per such page."""

    share: float
    drag: float
    kind: KvForm = KvForm.FULL


@dataclass(slots=True)
class Job:
    """A request that may be run.

    Attributes:
        worth: seconds; what it is worth to run it at full precision.
        pages: that it takes at full precision, more than 0.
        forms: those it can have, smallest share first.
        places: that it takes, 0 if it has one already.
        tokens: to be computed, whatever the form.
    """

    worth: float
    pages: float
    forms: tuple[Form, ...]
    places: int = 1
    tokens: float = 0.0

    def weight(self, form: Form) -> float:
        return form.share * self.pages

    def value(self, form: Form) -> float:
        return self.worth - form.drag * self.pages


class Increment(NamedTuple):
    """Job `job` in `form` instead of the form `below`, None for not at all.

    It takes `pages`, `tokens` and `places` more; `density` is its value per weight.
    """

    job: int
    below: Form | None
    form: Form
    value: float
    pages: float
    tokens: float
    density: float
    places: int


@dataclass(frozen=True, slots=True)
class Budgets:
    """What all that run may take together.

    Attributes:
        per_page, per_token: what a page and a token weigh.
    """

    pages: float
    tokens: float = inf
    per_page: float = 1.0
    per_token: float = 0.0


Choice = dict[int, Form]
"""Form of each job that is to run."""


def increments(number: int, job: Job, budgets: Budgets) -> list[Increment]:
    """The envelope of `job` among the forms that fit: falling density, rising weight."""
    found: list[Increment] = []
    tokens = min(job.tokens, budgets.tokens)
    for form in job.forms:
        whole = form.share * job.pages
        if whole > budgets.pages:
            break
        while True:
            below, value = None, job.worth - form.drag * job.pages
            pages, new_tokens, places = whole, tokens, job.places
            if found:
                below = found[-1].form
                value -= job.value(below)
                pages -= job.weight(below)
                new_tokens, places = 0.0, 0
            if value <= 0.0:
                break
            density = value / (pages * budgets.per_page + new_tokens * budgets.per_token)
            if found and density >= found[-1].density:
                found.pop()
                continue
            found.append(Increment(number, below, form, value, pages, new_tokens, density, places))
            break
    return found


def choose(jobs: Sequence[Job], *, pages: float, count: int, tokens: float = inf) -> Choice:
    """Forms of the jobs to run, with at most `pages` and `count` places together, and `tokens`; who
    has more tokens than that alone takes all of them.

    Where `count` does not bind, their value is at least half of what is possible, or a quarter
    where `tokens` do.
    """
    if pages <= 0.0:
        return {}
    budgets = Budgets(pages)
    if sum(job.tokens for job in jobs) > tokens:
        budgets = Budgets(pages, tokens, 1.0 / pages, 1.0 / max(tokens, 1.0))
    steps = [step for number, job in enumerate(jobs) for step in increments(number, job, budgets)]
    steps.sort(key=attrgetter("density"), reverse=True)
    left = _Left(pages, budgets.tokens, count)
    taken: Choice = {}
    critical = _take(steps, taken, left)
    if critical is None:
        return taken
    job, alone = jobs[critical.job], {critical.job: critical.form}
    of_job = min(job.tokens, budgets.tokens)
    beside = _Left(pages - job.weight(critical.form), budgets.tokens - of_job, count - job.places)
    _take(steps, alone, beside, pass_over=True)
    _take(steps, taken, left, pass_over=True)
    return max(taken, alone, key=lambda choice: value_of(choice, jobs))


@dataclass(slots=True)
class _Left:
    """Of the budgets."""

    pages: float
    tokens: float
    count: int


def _take(
    steps: list[Increment], chosen: Choice, left: _Left, *, pass_over: bool = False
) -> Increment | None:
    """Add to `chosen` what fits, up to the first increment that does not, which is returned; or
    with `pass_over` whatever fits.
    """
    for step in steps:
        if chosen.get(step.job) is not step.below or left.count < step.places:
            continue
        if step.pages > left.pages or step.tokens > left.tokens:
            if pass_over:
                continue
            return step
        chosen[step.job] = step.form
        left.pages -= step.pages
        left.tokens -= step.tokens
        left.count -= step.places
    return None


def value_of(choice: Choice, jobs: Sequence[Job]) -> float:
    """Of all that runs."""
    return sum(jobs[number].value(form) for number, form in choice.items())
