"""One worker: a `LocalScheduler` whose engine is the cost model and whose loop is the agenda.

A run of steps that compute the same requests is one entry of the agenda:

    schedule ── step ── step ── step ── complete, report, schedule ...
                  ▲
                  a command comes: the run is cut behind the step under way

Nothing of a run happens before its end, so a cut one only ends earlier.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from preble_loadgen.simulator.agenda import Agenda
from preble_loadgen.simulator.messages import (
    Cancel,
    Command,
    Hello,
    Message,
    Report,
    Snapshot,
    Submit,
    TakeSnapshot,
)
from preble_loadgen.simulator.options import SimulationOptions
from preble_worker.batch import Batch, num_extra_products, seconds_with_copies
from preble_worker.outputs import NO_TOKENS, StepOutputs
from preble_worker.scheduler import LocalScheduler
from preble_worker.simulated_tokens import TokenSource

HEARTBEAT_SECONDS = 0.4
LONG_STEP_SECONDS = 0.25
STARVED_WAIT_SECONDS = 0.02
"""As in the worker's engine loop."""
_AN_INSTANT = 1e-6
"""Less than this is rounding: to rest for it would not let time pass."""


@dataclass(slots=True, eq=False)
class _Run:
    """Steps under way, and when each of them ends.

    `slowness` is the worker's when it began; `hung_seconds` were added to the last step.
    """

    batch: Batch
    began_at: float
    ends: list[float]
    slowness: float
    hung_seconds: float = 0.0


class SimulatedWorker:
    """Takes commands, sends messages.

    Args:
        send: takes each message, in order, at the moment it leaves.

    Attributes:
        epoch: of its present life, counted from 1.
        alive: whether it has not died.
        slowness: actual over predicted step time.
        num_steps: computed in all its lives.
    """

    def __init__(
        self,
        worker_id: str,
        agenda: Agenda,
        options: SimulationOptions,
        *,
        send: Callable[["SimulatedWorker", Message], None],
    ) -> None:
        self.worker_id = worker_id
        self.epoch = 0
        self.alive = False
        self.slowness = 1.0
        self.num_steps = 0
        self._agenda = agenda
        self._options = options
        self._cost = options.cost
        self._config = options.scheduler_config()
        self._tokens = TokenSource(options.vocab_size)
        self._send = send
        self._inbox: deque[Command] = deque()
        self._run: _Run | None = None
        self._resting: object = None
        self._hung_until = 0.0
        self._reported_at = agenda.now
        self._busy_before = 0.0
        self.scheduler = LocalScheduler(self._config, epoch=0)

    @property
    def busy_seconds(self) -> float:
        """Time spent in steps, in all its lives."""
        return self._busy_before + self.scheduler.load().busy_seconds_total

    # Life

    def begin(self) -> None:
        """A new process, with an empty cache."""
        self._busy_before = self.busy_seconds
        self.epoch += 1
        self.alive = True
        self.scheduler = LocalScheduler(self._config, epoch=self.epoch)
        self._tokens = TokenSource(self._options.vocab_size)
        self._inbox.clear()
        self._run = None
        self._hung_until = 0.0
        self._turn()

    def link(self) -> None:
        """A router has connected: what it needs to know first."""
        self._send(self, Hello(self._options.worker_spec(self.worker_id, epoch=self.epoch)))
        self.post(TakeSnapshot())

    def die(self) -> None:
        """The process ends; what it computed until now has left it."""
        if self._run is not None:
            del self._run.ends[bisect_left(self._run.ends, self._agenda.now) :]
            if self._run.ends:
                self._complete(self._run)
        self.alive = False
        self._run = self._resting = None

    def hang(self, seconds: float) -> None:
        """The step under way takes so long, or the rest."""
        self._hung_until = self._agenda.now + seconds
        self._cut()

    def post(self, *commands: Command) -> None:
        """Have it obey `commands`, in order, before its next step."""
        if not self.alive:
            return
        self._inbox.extend(commands)
        if self._run is None:
            self._turn()
        else:
            self._cut()

    # The loop

    def _turn(self) -> None:
        """Obey, and begin the next run; or rest."""
        now = self._agenda.now
        self._resting = None
        if now < self._hung_until:
            self._rest_for(self._hung_until - now)
            return
        while self._inbox:
            self._obey(self._inbox.popleft())
        batch = self.scheduler.schedule(now=now)
        if batch is None:
            self._rest()
            return
        self._run = run = _Run(batch, now, self._ends(batch, now), self.slowness)
        if run.ends[0] - now > LONG_STEP_SECONDS:
            self._report(None, next_step_seconds=run.ends[0] - now)
        self._agenda.at(run.ends[-1], self._end, run)

    def _ends(self, batch: Batch, now: float) -> list[float]:
        """When each step of the run that begins with `batch` ends, if nothing comes up."""
        most = self.scheduler.num_alike(batch) if self._options.report_seconds else 1
        report_at = now + self._options.report_seconds
        step_seconds, slowness = self._cost.step_seconds, self.slowness
        prefill, decodes = len(batch.prefill_tokens), batch.num_decodes
        products = num_extra_products(batch) if self._cost.per_product else 0
        ends, at, context = [], now, batch.context_tokens
        hidden, int8 = batch.hidden_tokens, batch.int8_tokens
        while True:
            seconds = step_seconds(
                prefill_tokens=prefill,
                attention=batch.attention,
                decodes=decodes,
                context_tokens=context,
                hidden_tokens=hidden,
                int8_tokens=int8,
                products=products,
            )
            if batch.moves:
                seconds = seconds_with_copies(seconds, batch.moves, self._config.tiers)
            at += slowness * seconds
            ends.append(at)
            if len(ends) >= most or at >= report_at:
                return ends
            context += decodes
            hidden += batch.num_hidden_decodes
            int8 += batch.num_int8_decodes

    def _cut(self) -> None:
        """End the run with the step under way."""
        run = self._run
        if run is None:
            return
        last = bisect_left(run.ends, self._agenda.now)
        if last + 1 < len(run.ends):
            del run.ends[last + 1 :]
            self._agenda.at(run.ends[-1], self._end, run)

    def _end(self, run: _Run) -> None:
        """The run's last step has ended, unless it was cut and ended before, or hangs."""
        if run is not self._run or self._agenda.now < run.ends[-1]:
            return
        if self._agenda.now < self._hung_until:
            run.hung_seconds += self._hung_until - run.ends[-1]
            run.ends[-1] = self._hung_until
            self._agenda.at(self._hung_until, self._end, run)
            return
        self._complete(run)
        self._run = None
        self._turn()

    def _complete(self, run: _Run) -> None:
        batch, ends = run.batch, run.ends
        tokens = self._tokens.draw(batch, num_steps=len(ends))
        if len(ends) > 1:
            self.scheduler.repeat(batch, tokens[:-1])
        outputs = self.scheduler.complete(batch, tokens[-1], now=ends[-1])
        self.num_steps += len(ends)
        seconds = ends[-1] - run.began_at
        self._report(
            outputs,
            ends=tuple(ends),
            step_seconds=seconds,
            predicted_step_seconds=(seconds - run.hung_seconds) / run.slowness,
        )

    def _obey(self, command: Command) -> None:
        now = self._agenda.now
        match command:
            case Submit(request):
                self.scheduler.add(request, now=now)
            case Cancel(request_id):
                self.scheduler.cancel(request_id, now=now)
            case TakeSnapshot(request):
                # What is pending belongs before the snapshot: it already reflects it.
                self._report_unless_empty(self.scheduler.flush())
                self._send(self, Snapshot(self.scheduler.snapshot(request)))

    def _rest(self) -> None:
        """Nothing to compute: report what arose without a step, or a heartbeat, and wait."""
        self._report_unless_empty(self.scheduler.flush())
        seconds = self._reported_at + HEARTBEAT_SECONDS - self._agenda.now
        if seconds < _AN_INSTANT:
            self._report(None)
            seconds = HEARTBEAT_SECONDS
        if self.scheduler.has_work:
            seconds = min(seconds, STARVED_WAIT_SECONDS)
        self._rest_for(seconds)

    def _rest_for(self, seconds: float) -> None:
        self._resting = rest = object()
        self._agenda.after(seconds, self._wake, rest)

    def _wake(self, rest: object) -> None:
        """The rest is over, unless something has ended it before."""
        if rest is self._resting:
            self._turn()

    def _report_unless_empty(self, outputs: StepOutputs) -> None:
        if outputs.others or outputs.decoded or outputs.cache is not None:
            self._report(outputs)

    def _report(
        self,
        outputs: StepOutputs | None,
        *,
        ends: tuple[float, ...] = (),
        step_seconds: float = 0.0,
        predicted_step_seconds: float = 0.0,
        next_step_seconds: float = 0.0,
    ) -> None:
        report = Report(
            ends=ends,
            others=outputs.others if outputs else [],
            decoded=outputs.decoded if outputs else NO_TOKENS,
            cache=outputs.cache if outputs else None,
            load=self.scheduler.load(),
            step_seconds=step_seconds,
            predicted_step_seconds=predicted_step_seconds,
            next_step_seconds=next_step_seconds,
        )
        self._reported_at = self._agenda.now
        self._send(self, report)
