"""What the worker's loop does, without a thread and without waiting: schedule, complete, report.

    obey ── begin ──▶ a batch for the engine to run ──▶ complete, or fail
              └─────▶ None ──▶ rest, for at most so long or until there are commands

It owns the scheduler; commands are what others want of it, deliveries are what happened, handed
over once per step in the order in which it happened.
"""

import logging
from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from preble.cost import CostModel
from preble.types import TURNED_AWAY, FinishReason, Phase, RequestOutput, WorkerRequest
from preble_worker.batch import Batch, predicted_seconds
from preble_worker.loop_messages import (
    Cancel,
    Command,
    Delivery,
    Drain,
    Drained,
    EngineFailed,
    LoopReport,
    Settle,
    SnapshotTaken,
    Stop,
    Submit,
    TakeSnapshot,
)
from preble_worker.outputs import NO_TOKENS, StepOutputs
from preble_worker.scheduler import LocalScheduler

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 0.4
"""An idle loop reports this often; the protocol promises 0.5 s."""

LONG_STEP_SECONDS = 0.25
"""A step expected to take longer is announced before it runs."""

STARVED_WAIT_SECONDS = 0.02
"""How long to wait when there is work that cannot be scheduled; deadlines pass meanwhile."""

MAX_FAILURES_IN_A_ROW = 3
"""After as many failed steps the engine is beyond hope, and the process better starts afresh."""

SLOWNESS_WEIGHT = 0.2
"""Weight of the newest step in the average of measured over predicted step time."""


class StepLoop:
    """Everything of one worker's loop but its engine and its waits.

    Args:
        deliver: takes each delivery; may block to slow the loop down.
        clock: seconds; deadlines of submitted requests are on it.

    Attributes:
        commands: what to obey before the next step, appended by whoever wants it.
    """

    def __init__(
        self,
        scheduler: LocalScheduler,
        cost: CostModel,
        *,
        deliver: Callable[[Delivery], None],
        clock: Callable[[], float],
    ) -> None:
        self.commands: deque[Command] = deque()
        self._cost = cost
        self._scheduler = scheduler
        self._deliver = deliver
        self._clock = clock
        self._draining = False
        self._drained = False
        self._step = 0
        self._failures_in_a_row = 0
        self._slowness = 1.0
        self._began_at = self._reported_at = clock()
        self._predicted = 0.0
        self._settled: list[RequestOutput] = []

    def obey(self) -> bool:
        """Obey what has come; whether to go on."""
        while self.commands:
            command = self.commands.popleft()
            now = self._clock()
            match command:
                case Submit(request) if self._draining:
                    self._settled.append(_turned_away(request))
                case Submit(request):
                    self._scheduler.add(request, now=now)
                case Cancel(request_id):
                    self._scheduler.cancel(request_id, now=now)
                case Settle(output):
                    self._settled.append(output)
                case TakeSnapshot(link, asked):
                    # What is pending belongs before the snapshot: it already reflects it.
                    self._report_unless_empty(self._scheduler.flush())
                    self._deliver(SnapshotTaken(link, self._scheduler.snapshot(asked)))
                case Drain():
                    self._draining = True
                    self._report()
                case Stop():
                    return False
        return True

    def begin(self) -> Batch | None:
        """The next step's batch, announced if it will be long; None where there is no work."""
        self._began_at = self._clock()
        batch = self._scheduler.schedule(now=self._began_at)
        if batch is not None:
            self._predicted = predicted_seconds(self._cost, batch)
            self._announce_long_step(self._predicted * self._slowness)
        return batch

    def complete(self, batch: Batch, tokens: npt.NDArray[np.int64]) -> None:
        """The engine has computed it."""
        outputs = self._scheduler.complete(batch, tokens, now=self._clock())
        self._failures_in_a_row = 0
        self._report_step(batch, outputs)

    def fail(self, batch: Batch, error: Exception) -> None:
        """The engine has not. Raises `EngineFailed` when it is beyond hope."""
        self._failures_in_a_row += 1
        log.error(
            "engine failed at step %d, %d requests end with an error (failure %d in a row)",
            batch.step,
            len(batch.slots),
            self._failures_in_a_row,
            exc_info=error,
        )
        text = f"the worker's engine failed ({type(error).__name__})"
        self._report_step(batch, self._scheduler.fail(batch, error=text, now=self._clock()))
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise EngineFailed(f"the engine failed {self._failures_in_a_row} steps in a row")

    def rest(self) -> float:
        """Report what arose without a step, or a heartbeat; how long to wait for commands."""
        self._report_unless_empty(self._scheduler.flush())
        if self._draining and not self._drained and not self._scheduler.num_live:
            self._drained = True
            self._deliver(Drained())
        heartbeat_in = self._reported_at + HEARTBEAT_SECONDS - self._clock()
        if heartbeat_in <= 0.0:
            self._report()
            heartbeat_in = HEARTBEAT_SECONDS
        if self._scheduler.has_work:
            heartbeat_in = min(heartbeat_in, STARVED_WAIT_SECONDS)
        return heartbeat_in

    def _report_step(self, batch: Batch, outputs: StepOutputs) -> None:
        took = self._clock() - self._began_at
        self._step = batch.step
        self._observe_slowness(took)
        self._report(outputs, step_seconds=took, predicted_step_seconds=self._predicted)

    def _announce_long_step(self, seconds: float) -> None:
        """Let routers wait longer before they take the coming silence for a hang."""
        if seconds > LONG_STEP_SECONDS:
            self._report(next_step_seconds=seconds)

    def _observe_slowness(self, took: float) -> None:
        """A mispredicting cost model must not make a slow device look like a hung one."""
        if self._predicted > 0.0:
            self._slowness += SLOWNESS_WEIGHT * (took / self._predicted - self._slowness)

    def _report_unless_empty(self, outputs: StepOutputs) -> None:
        if outputs.others or outputs.decoded or outputs.cache is not None or self._settled:
            self._report(outputs)

    def _report(
        self,
        outputs: StepOutputs | None = None,
        *,
        step_seconds: float = 0.0,
        predicted_step_seconds: float = 0.0,
        next_step_seconds: float = 0.0,
    ) -> None:
        settled, self._settled = self._settled, []
        report = LoopReport(
            step=self._step,
            phase=self._phase(),
            load=self._scheduler.load(),
            step_seconds=step_seconds,
            predicted_step_seconds=predicted_step_seconds,
            next_step_seconds=next_step_seconds,
            others=settled + outputs.others if outputs else settled,
            decoded=outputs.decoded if outputs else NO_TOKENS,
            cache=outputs.cache if outputs else None,
        )
        self._reported_at = self._clock()
        self._deliver(report)

    def _phase(self) -> Phase:
        if self._draining:
            return Phase.DRAINING
        return Phase.COMPUTING if self._scheduler.has_work else Phase.IDLE


def _turned_away(request: WorkerRequest) -> RequestOutput:
    """ERROR, not REFUSED: the router may place it elsewhere."""
    return RequestOutput(
        request_id=request.request_id,
        attempt=request.attempt,
        position=request.num_delivered,
        finish_reason=FinishReason.ERROR,
        error=TURNED_AWAY,
    )
