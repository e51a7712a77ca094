"""The thread that turns: schedule, run, complete. Everything else in the worker waits on it.

The loop owns the scheduler and the engine; no other thread touches them. Commands come in by
`post`, from any thread. What happened leaves by `deliver`, called from the loop's thread in the
order in which it happened, once per step.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from preble.types import FinishReason, Phase, RequestOutput, WorkerRequest
from preble_worker.batch import Batch, predicted_seconds
from preble_worker.loaded import LoadedEngine
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
    Stopped,
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


class EngineLoop:
    """Owns the thread.

    Args:
        deliver: takes each delivery in the loop's thread; may block to slow the loop down.
        clock: seconds; deadlines of submitted requests are on it.
    """

    def __init__(
        self,
        loaded: LoadedEngine,
        scheduler: LocalScheduler,
        *,
        deliver: Callable[[Delivery], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = loaded.engine
        self._cost = loaded.cost
        self._scheduler = scheduler
        self._deliver = deliver
        self._clock = clock
        self._commands: deque[Command] = deque()
        self._wakeup = threading.Condition()
        self._thread = threading.Thread(target=self._main, name="engine-loop", daemon=True)
        self._draining = False
        self._drained = False
        self._step = 0
        self._failures_in_a_row = 0
        self._slowness = 1.0
        self._reported_at = clock()
        self._settled: list[RequestOutput] = []

    def start(self) -> None:
        """Begin to turn."""
        self._thread.start()

    def post(self, *commands: Command) -> None:
        """Have the loop obey `commands`, in order, before its next step. From any thread."""
        with self._wakeup:
            self._commands.extend(commands)
            self._wakeup.notify()

    def join(self, timeout_seconds: float | None = None) -> bool:
        """Wait for the thread to end; False if it has not. A hung engine never ends."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _main(self) -> None:
        failure = None
        try:
            while self._obey_commands():
                self._turn()
        except EngineFailed as error:
            failure = error
        except BaseException as error:
            log.critical("the step loop broke, which is a bug in Preble", exc_info=True)
            failure = EngineFailed(f"the step loop broke: {error!r}")
        self._deliver(Stopped(failure))

    def _turn(self) -> None:
        """One step of the engine, or a rest when there is no work."""
        began_at = self._clock()
        batch = self._scheduler.schedule(now=began_at)
        if batch is None:
            self._rest()
            return
        predicted = predicted_seconds(self._cost, batch)
        self._announce_long_step(predicted * self._slowness)
        try:
            tokens = self._engine.run(batch)
        except Exception as error:
            outputs = self._fail(batch, error)
        else:
            outputs = self._scheduler.complete(batch, tokens, now=self._clock())
            self._failures_in_a_row = 0
        took = self._clock() - began_at
        self._step = batch.step
        self._observe_slowness(took, predicted)
        self._report(outputs, step_seconds=took, predicted_step_seconds=predicted)
        self._give_up_if_hopeless()

    def _obey_commands(self) -> bool:
        """Whether to go on."""
        while self._commands:
            command = self._commands.popleft()
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
                case TakeSnapshot(link):
                    # What is pending belongs before the snapshot: it already reflects it.
                    self._report_unless_empty(self._scheduler.flush())
                    self._deliver(SnapshotTaken(link, self._scheduler.snapshot()))
                case Drain():
                    self._draining = True
                    self._report()
                case Stop():
                    return False
        return True

    def _rest(self) -> None:
        """Report what arose without a step, or a heartbeat; wait for commands."""
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
        with self._wakeup:
            self._wakeup.wait_for(lambda: self._commands, heartbeat_in)

    def _announce_long_step(self, seconds: float) -> None:
        """Let routers wait longer before they take the coming silence for a hang."""
        if seconds > LONG_STEP_SECONDS:
            self._report(next_step_seconds=seconds)

    def _observe_slowness(self, took: float, predicted: float) -> None:
        """A mispredicting cost model must not make a slow device look like a hung one."""
        if predicted > 0.0:
            self._slowness += SLOWNESS_WEIGHT * (took / predicted - self._slowness)

    def _fail(self, batch: Batch, error: Exception) -> StepOutputs:
        self._failures_in_a_row += 1
        log.error(
            "engine failed at step %d, %d requests end with an error (failure %d in a row)",
            batch.step,
            len(batch.slots),
            self._failures_in_a_row,
            exc_info=error,
        )
        text = f"the worker's engine failed ({type(error).__name__})"
        return self._scheduler.fail(batch, error=text, now=self._clock())

    def _give_up_if_hopeless(self) -> None:
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise EngineFailed(f"the engine failed {self._failures_in_a_row} steps in a row")

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
        error="the worker is draining",
    )
