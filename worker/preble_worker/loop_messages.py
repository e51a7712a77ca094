"""What the engine loop is told, and what it tells: its only two doors to other threads."""

from dataclasses import dataclass, field

from preble.errors import PrebleError
from preble.events import EVERYTHING, CacheEvents, CacheSnapshot, SnapshotRequest
from preble.types import LoadReport, Phase, RequestOutput, WorkerRequest
from preble_worker.outputs import NO_TOKENS, TokenColumns


class EngineFailed(PrebleError):
    """The step loop ended by an error; the worker process must be restarted."""

    code = "engine_failed"


# Commands, any thread to the loop


@dataclass(frozen=True, slots=True)
class Submit:
    """Schedule a request."""

    request: WorkerRequest


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a request, if it is live."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Settle:
    """Report this output of a request that the scheduler never saw, in order with the others."""

    output: RequestOutput


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Deliver a `SnapshotTaken` for `link`, exactly between two reports."""

    link: int
    request: SnapshotRequest = EVERYTHING


@dataclass(frozen=True, slots=True)
class Drain:
    """Take no more requests; deliver `Drained` when the last one has ended."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End the thread, whatever is running."""


Command = Submit | Cancel | Settle | TakeSnapshot | Drain | Stop


# Deliveries, the loop to whoever serves the routers


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopReport:
    """One turn of the loop; fields as in the wire's StepOutput and in `StepOutputs`,
    all routers' outputs together."""

    step: int
    phase: Phase
    load: LoadReport
    step_seconds: float = 0.0
    predicted_step_seconds: float = 0.0
    next_step_seconds: float = 0.0
    others: list[RequestOutput] = field(default_factory=list)
    decoded: TokenColumns = NO_TOKENS
    cache: CacheEvents | None = None


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """What the cache held right here in the order of deliveries, for `link`."""

    link: int
    snapshot: CacheSnapshot


@dataclass(frozen=True, slots=True)
class Drained:
    """No request is left, and none will come."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """Nothing follows. `failure` is None when the loop was told to stop."""

    failure: EngineFailed | None


Delivery = LoopReport | SnapshotTaken | Drained | Stopped
