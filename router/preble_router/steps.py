"""What a worker's step means: output for its requests, facts for the scheduler, ends."""

import math

from preble.errors import DeadlineExceeded, PeerError, WorkerFailed
from preble.page_keys import TOKEN_BYTES, num_tokens
from preble.types import TURNED_AWAY, FinishReason
from preble.v1 import worker_pb2 as pb
from preble.wire import (
    cache_events_from_wire,
    finish_from_wire,
    load_from_wire,
    logprobs_from_wire,
)
from preble_router.attempts import Attempts
from preble_router.config import RouterConfig
from preble_router.generation import Generation
from preble_router.membership import Membership
from preble_router.request_ends import too_long
from preble_router.scheduler import GlobalScheduler
from preble_router.session import Session
from preble_router.stimuli import CacheChanged, Progress, StepReport, WorkerDrained


class Steps:
    """Reads the steps of all workers, each once and in the order of its stream."""

    def __init__(
        self,
        config: RouterConfig,
        scheduler: GlobalScheduler,
        membership: Membership,
        attempts: Attempts,
    ) -> None:
        self._config = config
        self._scheduler = scheduler
        self._membership = membership
        self._attempts = attempts

    def take(self, session: Session, step: pb.StepOutput, now: float) -> None:
        """One pass over a step: outputs to their requests, facts to the scheduler.

        Raises:
            PeerError: an output is not at the position where it must be, or lacks a part.
        """
        if step.HasField("cache"):
            batch = cache_events_from_wire(step.cache)
            self._scheduler.observe(CacheChanged(session.worker_id, batch), now=now)
        progress: list[Progress] = []
        ended: list[tuple[Generation, pb.RequestOutput]] = []
        for output in step.outputs:
            generation = session.live.get(output.request_id)
            if generation is None or output.attempt != generation.attempt:
                continue  # of an attempt that was cancelled or moved
            if tokens := output.tokens:
                generation.check_output(output.position, len(tokens))
                cached = None
                if generation.awaits_first_token and output.HasField("cached_tokens"):
                    cached = output.cached_tokens
                logprobs = None
                if generation.request.sampling.top_logprobs is not None:
                    logprobs = logprobs_from_wire(output)
                    generation.check_logprobs(logprobs, len(tokens))
                generation.feed(tokens, cached, logprobs)
                count = len(tokens) // TOKEN_BYTES
                progress.append(Progress(generation.request_id, generation.attempt, count, cached))
            if output.finish_reason:
                ended.append((generation, output))
        session.load = load = load_from_wire(step.load)
        self._scheduler.observe(
            StepReport(
                worker_id=session.worker_id,
                load=load,
                step_seconds=step.step_seconds,
                predicted_step_seconds=step.predicted_step_seconds,
                progress=tuple(progress),
            ),
            now=now,
        )
        if session.trial is not None and not session.trial.awaits_first_token:
            self._attempts.end_trial(session, now)
        self._blame_engine(session, step, ended, now)
        for generation, output in ended:
            self._end_attempt(generation, output, now)
        if step.phase == pb.PHASE_DRAINING:
            self.mark_draining(session, now)
        if step.step_seconds:
            session.pace.stepped(now=now)
        if step.step_seconds or load.num_running or load.num_waiting:
            session.idle_since = math.inf
        else:
            session.pace.rested()
            session.idle_since = min(session.idle_since, now)
            self._find_forgotten(session, now)

    def _blame_engine(
        self,
        session: Session,
        step: pb.StepOutput,
        ended: list[tuple[Generation, pb.RequestOutput]],
        now: float,
    ) -> None:
        """A step of the engine failed with these in its batch, as a process fails with all."""
        failed = [
            generation
            for generation, output in ended
            if finish_from_wire(output.finish_reason) is FinishReason.ERROR and not _drains(output)
        ]
        if failed:
            name = f"{session.worker_id}/{session.spec.epoch} step {step.step}"
            self._attempts.suspects.blame(name, failed, now)

    def _end_attempt(self, generation: Generation, output: pb.RequestOutput, now: float) -> None:
        """The worker is done with the request, in whichever way."""
        reason = finish_from_wire(output.finish_reason)
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            if generation.num_output_tokens != output.position + num_tokens(output.tokens):
                raise PeerError(f"output of {generation.request_id} ends at a wrong position")
            self._attempts.settle(generation, reason)
        elif reason is FinishReason.DEADLINE:
            self._attempts.settle(generation, DeadlineExceeded("the request's deadline passed"))
        elif reason is FinishReason.REFUSED:
            refused = too_long(
                generation.request, self._membership.request_limit_tokens, output.error
            )
            self._attempts.turn_away(generation, now, error=refused, wait=False)
        elif _drains(output):
            self._attempts.turn_away(generation, now, fault=False)
        else:
            # Failed engines, and cancellations that nobody here asked for.
            error = WorkerFailed(output.error) if output.error else None
            self._attempts.turn_away(generation, now, error=error)

    def mark_draining(self, session: Session, now: float) -> None:
        """Nothing more is placed on it."""
        if not session.draining:
            session.draining = True
            self._membership.count_ready()
            self._scheduler.observe(WorkerDrained(session.worker_id), now=now)

    def _find_forgotten(self, session: Session, now: float) -> None:
        """An idle worker has none of our requests: those it was sent a while ago are lost.

        What it was sent counts from when that left, and what it says from when that was read: a
        router that is held up sends late, and reads at once what was said long ago.
        """
        latest = now - self._config.silence_seconds
        if max(session.sent_at, session.idle_since) > latest:
            return
        for generation in list(session.live.values()):
            if generation.placed_at < latest:
                self._attempts.cancel_attempt(generation)
                self._attempts.break_off(generation, now)
                session.renew()  # It may take the request again.
                self._attempts.go_on(generation, now)


def _drains(output: pb.RequestOutput) -> bool:
    """Whether the worker took it no more, because it is about to end."""
    return output.error == TURNED_AWAY
