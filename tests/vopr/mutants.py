"""Bugs to plant: each breaks one thing that production code does, and some seed must notice.

Only this file, which knows production's insides, replaces its methods; in a process of its own.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from vopr.regressions import REGRESSIONS
from vopr.world import run_seed

from preble.errors import Overloaded
from preble_router import tree_sync
from preble_router.admission import Admission
from preble_router.attempts import Attempts
from preble_router.cluster_tree import ClusterTree
from preble_router.dispatch import Dispatcher
from preble_router.event_feed import EventFeed, FeedStep
from preble_router.fair_queues import FairQueues
from preble_router.generation import Generation
from preble_router.host_tree import HostTree
from preble_router.liveness import Change, Liveness
from preble_router.load import WorkerLoad
from preble_router.membership import Membership
from preble_router.poison import PoisonBook
from preble_router.request_ends import worker_gone
from preble_router.retry_budget import RetryBudget
from preble_router.scheduler import GlobalScheduler
from preble_router.session import Session
from preble_router.slow_readers import SlowReaders
from preble_router.steps import Steps
from preble_router.suspects import TRIAL_SECONDS, Suspects
from preble_router.tree_sync import TreeSync
from preble_worker.request_book import RequestBook
from preble_worker.service import WorkerService
from preble_worker.step_loop import StepLoop

Plant = Callable[[], Any]

MUTANTS: dict[str, Plant] = {}


def replace(owner: Any, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The decorated function, told the original first, stands in for `owner.name`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def plant() -> Any:
            original = getattr(owner, name)

            def mutant(*args: Any, **kwargs: Any) -> Any:
                return function(original, *args, **kwargs)

            patcher = patch.object(owner, name, mutant)
            patcher.start()
            return patcher

        MUTANTS[function.__name__] = plant
        return function

    return decorate


@dataclass(frozen=True, slots=True)
class Hunt:
    """The first regression or seed that finds a mutant, "" where none did."""

    mutant: str
    found_by: str
    violation: str


def hunt(task: tuple[str, int]) -> Hunt:
    """Plant a mutant and try regressions, then seeds 0, 1, … until one shows a violation."""
    name, num_seeds = task
    patcher = MUTANTS[name]()
    try:
        for found_by, violation in _violations(num_seeds):
            assert not violation.startswith(("TypeError", "AttributeError")), (name, violation)
            if violation:
                return Hunt(name, found_by, violation)
    finally:
        patcher.stop()
    return Hunt(name, "", "")


def _violations(num_seeds: int) -> Iterator[tuple[str, str]]:
    """Of all lives in turn; "" where there is none."""
    for regression in REGRESSIONS:
        yield f"regression {regression.life.seed}", regression.live().violation
    for seed in range(num_seeds):
        yield f"seed {seed}", run_seed(seed).violation


# Tokens


@replace(Generation, "check_output")
def output_positions_are_not_checked(original: Any, self: Any, position: int, size: int) -> None:
    return


@replace(Steps, "take")
def old_attempts_are_not_fenced_off(
    original: Any, self: Any, session: Any, step: Any, now: Any
) -> Any:
    for output in step.outputs:
        generation = self._attempts.live.get(output.request_id)
        if generation is not None and generation.session is not None:
            output.attempt = generation.attempt
            generation.session.live[output.request_id] = generation
            session.live.setdefault(output.request_id, generation)
    return original(self, session, step, now)


@replace(WorkerService, "_submit")
def delivered_output_is_drawn_again(original: Any, self: Any, link: Any, message: Any) -> None:
    message.num_delivered = 0
    original(self, link, message)


# Ends and books


@replace(Attempts, "settle")
def requests_are_settled_twice(original: Any, self: Any, generation: Any, end: Any) -> None:
    original(self, generation, end)
    if generation.num_failures:
        generation.end(end)


@replace(WorkerLoad, "close")
def closed_bookings_leak_load(original: Any, self: Any, booking: Any) -> None:
    original(self, booking)
    self.context_tokens += booking.output_tokens > 3


@replace(Dispatcher, "_end")
def cancelled_requests_stay_on_the_books(
    original: Any, self: Any, generation: Any, end: Any
) -> None:
    session = generation.session
    if session is not None:
        self.attempts.cancel_attempt(generation)
        generation.unplace()
    self.attempts.settle(generation, end)


@replace(Session, "cancel")
def workers_are_not_told_to_cancel(
    original: Any, self: Any, request_id: Any, **kwargs: Any
) -> None:
    return


@replace(Dispatcher, "_pass_deadline")
def deadlines_do_not_pass(original: Any, self: Any, generation: Any) -> None:
    return


@replace(SlowReaders, "find")
def slow_readers_are_never_cut_off(
    original: Any, self: Any, streams: Any, *, now: Any
) -> list[Any]:
    return []


@replace(RequestBook, "release")
def requests_of_a_dead_link_go_on(original: Any, self: Any, link: Any) -> list[str]:
    original(self, link)
    return []


# Going on


@replace(Attempts, "go_on")
def broken_requests_are_given_up(
    original: Any, self: Any, generation: Any, now: Any, **kwargs: Any
) -> None:
    self.settle(generation, worker_gone(generation))


@replace(RetryBudget, "allows")
def the_retry_budget_is_ignored(original: Any, self: Any, *, num_failures: Any, now: Any) -> bool:
    return True


@replace(Attempts, "break_off")
def failures_are_not_counted(
    original: Any, self: Any, generation: Any, now: Any, *, fault: bool = True
) -> None:
    original(self, generation, now, fault=False)


@replace(Attempts, "retry_waiting")
def nobody_looks_again_for_waiting_requests(original: Any, self: Any, now: Any) -> None:
    return


@replace(PoisonBook, "failed")
def poison_is_not_noticed(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    return


@replace(PoisonBook, "failed")
def the_poisoned_are_suspected_anew(
    original: Any, self: Any, failure: Any, running: Any, *, now: Any
) -> None:
    poisoned, self._poisoned_until = self._poisoned_until, OrderedDict()
    original(self, failure, running, now=now)
    self._poisoned_until.update(poisoned)


@replace(Suspects, "barred")
def suspects_of_one_kind_are_tried_side_by_side(
    original: Any, self: Any, generation: Any, failed: Any, now: Any
) -> set[str]:
    if generation.suspected_until <= now:
        return set()
    return {each.worker_id for each in self._sessions.values() if each.trial is not None}


@replace(Suspects, "_trial_seconds")
def suspects_wait_no_longer_for_slow_steps(original: Any, self: Any) -> float:
    return TRIAL_SECONDS


@replace(PoisonBook, "came_late")
def who_came_in_a_silence_is_never_blamed(
    original: Any, self: Any, *args: Any, **kwargs: Any
) -> None:
    return


@replace(Steps, "_blame_engine")
def engines_that_fail_blame_nobody(original: Any, self: Any, *args: Any) -> None:
    return


@replace(Suspects, "blame_end")
def everybody_on_a_silent_worker_is_blamed(
    original: Any, self: Any, session: Any, now: Any
) -> None:
    self.blame(f"{session.worker_id}/{session.spec.epoch}", list(session.live.values()), now)


@replace(Attempts, "go_on")
def broken_requests_do_not_wait(
    original: Any, self: Any, generation: Any, now: Any, **kwargs: Any
) -> None:
    original(self, generation, now, **{**kwargs, "wait": False})


@replace(Generation, "feed")
def log_probabilities_are_given_twice(
    original: Any, self: Any, tokens: Any, cached: Any, logprobs: Any = None
) -> None:
    original(self, tokens, cached, logprobs)
    if logprobs is not None and self.num_failures:
        self._logprobs.append(logprobs)


@replace(Dispatcher, "_check_room")
def routers_are_full_long_before_they_are(original: Any, self: Any, *args: Any) -> None:
    original(self, *args)
    if self.num_live > 6:
        raise Overloaded("there is no room")


@replace(Steps, "mark_draining")
def draining_is_ignored(original: Any, self: Any, session: Any, now: Any) -> None:
    return


# Membership


@replace(Liveness, "check")
def silence_is_not_noticed(original: Any, self: Any, *, now: Any) -> Change:
    return Change.NONE


@replace(Liveness, "heard")
def who_was_silent_never_comes_back(original: Any, self: Any, **kwargs: Any) -> Change:
    return Change.NONE if self.suspect else original(self, **kwargs)


@replace(Membership, "_admit")
def epochs_are_not_compared(original: Any, self: Any, session: Any) -> None:
    rival = self.sessions.get(session.worker_id)
    if rival is not None:
        self._end(rival, "replaced")


# Cache events


@replace(EventFeed, "receive")
def gaps_are_not_noticed(original: Any, self: Any, batch: Any, *, now: Any) -> FeedStep:
    if batch.epoch == self.epoch and batch.seq > self.seq and not self._awaits:
        self.seq = batch.seq
        return FeedStep(batches=(batch,))
    step: FeedStep = original(self, batch, now=now)
    return step


@replace(EventFeed, "receive_digest")
def digests_are_not_compared(original: Any, self: Any, *, agrees: Any, now: Any) -> None:
    return


@replace(tree_sync, "take_snapshot")
def snapshots_add_to_what_was_believed(original: Any, tree: Any, slot: Any, snapshot: Any) -> None:
    tree.store_all(slot, snapshot.paths)


@replace(EventFeed, "ask")
def snapshots_are_never_asked_for(original: Any, self: Any, *, now: Any) -> bool:
    return False


@replace(GlobalScheduler, "tick")
def expected_marks_never_expire(original: Any, self: Any, *, now: Any) -> Any:
    expecting, self._expecting = self._expecting, type(self._expecting)()
    try:
        return original(self, now=now)
    finally:
        self._expecting = expecting


@replace(TreeSync, "leave")
def what_lost_workers_held_is_still_believed(original: Any, self: Any, worker: Any) -> None:
    self._asking.pop(worker.spec.worker_id, None)


@replace(HostTree, "forget")
def host_memory_outlives_its_worker(original: Any, self: Any, slot: Any) -> None:
    return


@replace(EventFeed, "ask")
def snapshots_are_asked_for_all_the_time(original: Any, self: Any, *, now: Any) -> Any:
    due = original(self, now=now)
    if self._awaits:
        self._ask_at = now
    return due


# Limits


@replace(ClusterTree, "_is_too_long")
def the_tree_has_no_limit(original: Any, self: Any, *args: Any) -> bool:
    return False


@replace(ClusterTree, "place")
def namespaces_have_no_quotas(
    original: Any, self: Any, *args: Any, now: Any, namespace: Any
) -> Any:
    return original(self, *args, now=now)


@replace(Dispatcher, "_check_room")
def routers_are_never_full(original: Any, self: Any, *args: Any) -> None:
    return


@replace(Admission, "_late_seconds")
def idle_workers_are_too_late(original: Any, self: Any, candidates: Any) -> Any:
    return original(self, candidates) + 1.0


@replace(FairQueues, "remove")
def who_has_begun_still_queues(original: Any, self: Any, booking: Any) -> None:
    return


# The worker


@replace(StepLoop, "rest")
def idle_workers_say_nothing(original: Any, self: Any) -> float:
    self._reported_at = self._clock()
    return original(self)
