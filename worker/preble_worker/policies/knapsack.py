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
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Form:
    """`share` of the pages at full precision, `drag` seconds of delay per such page."""

    share: float
    drag: float


@dataclass(slots=True)
class Job:
    """A request that may be run.

    Attributes:
        worth: seconds; what it is worth to run it at full precision.
        pages: that it takes at full precision, more than 0.
        forms: those it can have, smallest share first.
        places: that it takes, 0 if it has one already.
    """

    worth: float
    pages: float
    forms: tuple[Form, ...]
    places: int = 1

    def weight(self, form: Form) -> float:
        return form.share * self.pages

    def value(self, form: Form) -> float:
        return self.worth - form.drag * self.pages


class Increment(NamedTuple):
    """Job `job` in `form` instead of the form `below`, None for not at all.

    `density` is `value` per `weight`, `places` those that it takes more.
    """

    job: int
    below: Form | None
    form: Form
    value: float
    weight: float
    density: float
    places: int


Choice = dict[int, Form]
"""Form of each job that is to run."""


def increments(number: int, job: Job, budget: float) -> list[Increment]:
    """The envelope of `job` among the forms that fit `budget`: falling density, rising weight."""
    found: list[Increment] = []
    for form in job.forms:
        whole = form.share * job.pages
        if whole > budget:
            break
        while True:
            below, value, weight = None, job.worth - form.drag * job.pages, whole
            if found:
                below = found[-1].form
                value -= job.value(below)
                weight -= job.weight(below)
            if value <= 0.0:
                break
            density = value / weight
            if found and density >= found[-1].density:
                found.pop()
                continue
            places = 0 if found else job.places
            found.append(Increment(number, below, form, value, weight, density, places))
            break
    return found


def choose(jobs: Sequence[Job], *, pages: float, count: int) -> Choice:
    """Forms of the jobs to run, with at most `pages` and `count` places together.

    Where `count` does not bind, their value is at least half of what is possible.
    """
    steps = [step for number, job in enumerate(jobs) for step in increments(number, job, pages)]
    steps.sort(key=attrgetter("density"), reverse=True)
    taken, critical = _take(steps, {}, pages, count)
    if critical is None:
        return taken
    alone: Choice = {critical.job: critical.form}
    left = pages - jobs[critical.job].weight(critical.form)
    alone, _ = _take(steps, alone, left, count - jobs[critical.job].places, pass_over=True)
    left = pages - sum(jobs[number].weight(form) for number, form in taken.items())
    count -= sum(jobs[number].places for number in taken)
    taken, _ = _take(steps, taken, left, count, pass_over=True)
    return max(taken, alone, key=lambda choice: value_of(choice, jobs))


def _take(
    steps: list[Increment], chosen: Choice, pages: float, count: int, *, pass_over: bool = False
) -> tuple[Choice, Increment | None]:
    """Add to `chosen` what fits, up to the first increment that does not, which is returned; or
    with `pass_over` whatever fits.
    """
    chosen = dict(chosen)
    for step in steps:
        if chosen.get(step.job) is not step.below or count < step.places:
            continue
        if step.weight > pages:
            if pass_over:
                continue
            return chosen, step
        chosen[step.job] = step.form
        pages -= step.weight
        count -= step.places
    return chosen, None


def value_of(choice: Choice, jobs: Sequence[Job]) -> float:
    """Of all that runs."""
    return sum(jobs[number].value(form) for number, form in choice.items())
