"""One linked life of a worker: from its Hello until the stream ends or a newer process comes."""

import math
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING

from preble.events import SnapshotRequest
from preble.types import LoadReport, WorkerRequest, WorkerSpec
from preble.v1 import worker_pb2 as pb
from preble.wire import hello_from_wire, snapshot_request_to_wire, submit_to_wire
from preble_router.liveness import Liveness
from preble_router.step_pace import StepPace

if TYPE_CHECKING:
    from preble_router.generation import Generation

_serials = count(1)


class Session:
    """What the router holds of a linked worker, and the messages it sends there.

    Attributes:
        serial: unique; renewed when a silent worker speaks again, since an attempt that broke off
            before says nothing about the worker after it.
        live: this router's requests on the worker, by request id.
        known: its first snapshot has come, so its step loop turns.
        draining: nothing more may be placed on it; it ends by somebody's will, not by a fault.
        pace: of its steps.
        trial: a suspect that has shown no token here yet; see `poison`.
        linked_at: when it said Hello.
        sent_at: when the last of its requests left, infinite while one waits to be written.
        idle_since: when it first reported to have nothing to do, infinite while it has something.
        ejected: nothing is placed on it because it is silent.
        ended: the stream is over or must not be listened to any more.
        request_limit_tokens: longest prompt plus output it can ever run.
    """

    __slots__ = (
        "_send",
        "address",
        "draining",
        "ejected",
        "ended",
        "hello",
        "idle_since",
        "known",
        "linked_at",
        "live",
        "liveness",
        "load",
        "pace",
        "request_limit_tokens",
        "sent_at",
        "serial",
        "spec",
        "trial",
    )

    def __init__(
        self,
        address: str,
        hello: pb.Hello,
        send: Callable[[pb.RouterMessage], None],
        *,
        silence_seconds: float,
        now: float,
    ) -> None:
        self.address = address
        self.hello = hello
        self.spec: WorkerSpec = hello_from_wire(hello)
        self.request_limit_tokens = min(self.spec.context_tokens, self.spec.capacity_tokens)
        self.serial = next(_serials)
        self.live: dict[str, Generation] = {}
        self.liveness = Liveness(silence_seconds, now=now)
        self.load: LoadReport | None = None
        self.linked_at = now
        self.known = False
        self.draining = False
        self.pace = StepPace()
        self.trial: Generation | None = None
        self.ejected = False
        self.ended = False
        self.sent_at = now
        self.idle_since = math.inf
        self._send = send

    @property
    def worker_id(self) -> str:
        """As the worker says."""
        return self.spec.worker_id

    @property
    def ready(self) -> bool:
        """Whether requests may be placed on it."""
        return self.known and not (self.draining or self.ejected or self.ended)

    def renew(self) -> None:
        """What broke off before counts no longer."""
        self.serial = next(_serials)

    def submit(self, request: WorkerRequest, *, now: float) -> None:
        """Starts an attempt."""
        self.sent_at = math.inf
        self._send(pb.RouterMessage(submit=submit_to_wire(request, now=now)))

    def cancel(self, request_id: str, *, attempt: int) -> None:
        """Ends an attempt and those before it."""
        self._send(pb.RouterMessage(cancel=pb.Cancel(request_id=request_id, attempt=attempt)))

    def request_snapshot(self, request: SnapshotRequest) -> None:
        """The view of its cache is in doubt."""
        self._send(pb.RouterMessage(snapshot_request=snapshot_request_to_wire(request)))

    def drain(self, *, deadline_seconds: float | None = None) -> None:
        """It accepts nothing more, from any router, and ends by the deadline or its own."""
        self._send(pb.RouterMessage(drain=pb.Drain(deadline_seconds=deadline_seconds)))
