"""The thread that turns: schedule, run, complete. Everything else in the worker waits on it.

The loop owns the scheduler and the engine; no other thread touches them. Commands come in by
`post`, from any thread. What happened leaves by `deliver`, called from the loop's thread.
"""

import logging
import threading
import time
from collections.abc import Callable

from preble_worker.loaded import LoadedEngine
from preble_worker.loop_messages import Command, Delivery, EngineFailed, Stopped
from preble_worker.scheduler import LocalScheduler
from preble_worker.step_loop import StepLoop

log = logging.getLogger(__name__)


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
        self._steps = StepLoop(scheduler, loaded.cost, deliver=deliver, clock=clock)
        self._deliver = deliver
        self._wakeup = threading.Condition()
        self._thread = threading.Thread(target=self._main, name="engine-loop", daemon=True)

    def start(self) -> None:
        """Begin to turn."""
        self._thread.start()

    def post(self, *commands: Command) -> None:
        """Have the loop obey `commands`, in order, before its next step. From any thread."""
        with self._wakeup:
            self._steps.commands.extend(commands)
            self._wakeup.notify()

    @property
    def is_alive(self) -> bool:
        """Whether the thread turns, or at least has not ended."""
        return self._thread.is_alive()

    def join(self, timeout_seconds: float | None = None) -> bool:
        """Wait for the thread to end; False if it has not. A hung engine never ends."""
        self._thread.join(timeout_seconds)
        return not self.is_alive

    def _main(self) -> None:
        failure = None
        try:
            while self._steps.obey():
                self._turn()
        except EngineFailed as error:
            failure = error
        except BaseException as error:
            log.critical("the step loop broke, which is a bug in Preble", exc_info=True)
            failure = EngineFailed(f"the step loop broke: {error!r}")
        self._deliver(Stopped(failure))

    def _turn(self) -> None:
        """One step of the engine, or a rest when there is no work."""
        batch = self._steps.begin()
        if batch is None:
            self._rest(self._steps.rest())
            return
        try:
            tokens = self._engine.run(batch)
        except Exception as error:
            self._steps.fail(batch, error)
        else:
            self._steps.complete(batch, tokens)

    def _rest(self, seconds: float) -> None:
        with self._wakeup:
            self._wakeup.wait_for(lambda: self._steps.commands, seconds)
