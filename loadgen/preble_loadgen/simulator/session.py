"""One linked life of a simulated worker: what the router holds of it, and the way down to it."""

from itertools import count

from preble_loadgen.simulator.agenda import Agenda
from preble_loadgen.simulator.flight import Flight
from preble_loadgen.simulator.messages import Command
from preble_loadgen.simulator.worker import SimulatedWorker
from preble_router.liveness import Liveness


class Session:
    """From the link until the worker or the router is lost.

    Attributes:
        serial: renewed when a silent worker speaks again, since an attempt that broke off before
            says nothing about the worker after it.
        live: requests on the worker, by id.
        known: its first snapshot has come.
        ended: nothing of it counts any more.
    """

    def __init__(
        self,
        worker: SimulatedWorker,
        agenda: Agenda,
        *,
        wire_seconds: float,
        silence_seconds: float,
    ) -> None:
        self.worker = worker
        self.worker_id = worker.worker_id
        self.live: dict[str, Flight] = {}
        self.known = False
        self.ended = False
        self.liveness = Liveness(silence_seconds, now=agenda.now)
        self._agenda = agenda
        self._epoch = worker.epoch
        self._wire_seconds = wire_seconds
        self._serials = count(1)
        self.serial = next(self._serials), worker.epoch

    @property
    def ready(self) -> bool:
        """Whether requests may be placed on it."""
        return self.known and not (self.liveness.suspect or self.ended)

    def renew(self) -> None:
        """What broke off before counts no longer."""
        self.serial = next(self._serials), self._epoch

    def send(self, *commands: Command) -> None:
        """They arrive if the worker then still lives this life."""
        self._agenda.after(self._wire_seconds, self._deliver, commands)

    def _deliver(self, commands: tuple[Command, ...]) -> None:
        if self.worker.epoch == self._epoch:
            self.worker.post(*commands)
