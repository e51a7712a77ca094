"""What a router can know of requests that bring workers down, and that it acts on that."""

from math import inf

from vopr.network import Network, Wire
from vopr.violation import Violation
from vopr.workers import Process

from preble.types import TURNED_AWAY
from preble.v1 import worker_pb2 as pb
from preble_router.dispatch import Dispatcher


class PoisonWatch:
    """Of one life of a router.

    Args:
        prompts: packed; they bring down workers or their engines.
        most: failures by one of them that the router sees before it refuses it.
    """

    def __init__(
        self,
        router: str,
        network: Network,
        dispatcher: Dispatcher,
        *,
        prompts: frozenset[bytes],
        most: int,
    ) -> None:
        self._router = router
        self._network = network
        self._dispatcher = dispatcher
        self._prompts = prompts
        self._most = most
        self._sent_at: dict[tuple[str, int], float] = {}  # by request id and epoch
        # By worker, epoch, and step of the engine or 0 for the process: since when it shows.
        self._known: dict[tuple[str, int, int], float] = {}
        self._untold: set[tuple[str, int]] = set()  # processes of whose end nothing was heard

    def submitted(self, wire: Wire, submit: pb.Submit, now: float) -> None:
        """What failed so often goes to nobody else; the last failure may be news."""
        generation = self._dispatcher.attempts.live.get(submit.request_id)
        if generation is None or generation.request.tokens not in self._prompts:
            return
        self._sent_at[submit.request_id, wire.epoch] = now
        known = [worker_id for (worker_id, *_), at in self._known.items() if at < now]
        if len(known) >= self._most:
            raise Violation(f"{submit.request_id} has brought down {known}")

    def hello(self, wire: Wire) -> None:
        """A newer process: the former one has died."""
        former = {each for each in self._untold if each[0] == wire.worker_id}
        self._untold -= former
        for worker_id, epoch in former:
            if epoch < wire.epoch:
                self._known[worker_id, epoch, 0] = wire.heard_at

    def step(self, wire: Wire, step: pb.StepOutput) -> None:
        """Of an engine that may have failed."""
        if not self._prompts:
            return
        for output in step.outputs:
            generation = self._dispatcher.attempts.live.get(output.request_id)
            if (
                output.finish_reason == pb.FINISH_REASON_ERROR
                and output.error != TURNED_AWAY
                and generation is not None
                and generation.attempt == output.attempt
                and generation.session is not None
                and generation.request.tokens in self._prompts
            ):
                self._known[wire.worker_id, wire.epoch, step.step] = wire.heard_at

    def brought_down(self, process: Process, now: float) -> None:
        """One of them ran there, and the process has died: when will that be known here?"""
        wires = self._network.between(self._router, process.address)
        wire = next((w for w in wires if w.epoch == process.epoch), None)
        session = self._dispatcher.membership.sessions.get(process.host.name)
        if wire is None or wire.draining_since < inf or (session and session.draining):
            return
        for generation in self._dispatcher.attempts.live.values():
            sent_at = self._sent_at.get((generation.request_id, process.epoch))
            if sent_at is None:
                continue
            runs_there = generation.session is not None and generation.session is session
            if runs_there and not wire.is_muted:
                self._known[process.host.name, process.epoch, 0] = now
            elif wire.is_muted and (runs_there or wire.heard_at <= sent_at):
                self._untold.add((process.host.name, process.epoch))
