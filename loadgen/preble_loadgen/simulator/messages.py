"""What travels between router and worker: the wire's messages as values."""

from dataclasses import dataclass

from preble.events import EVERYTHING, CacheEvents, CacheSnapshot, SnapshotRequest
from preble.types import LoadReport, RequestOutput, WorkerRequest, WorkerSpec
from preble_worker.outputs import TokenColumns


@dataclass(frozen=True, slots=True)
class Submit:
    """Start an attempt."""

    request: WorkerRequest


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a request, whichever attempt."""

    request_id: str


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Say what the cache holds."""

    request: SnapshotRequest = EVERYTHING


Command = Submit | Cancel | TakeSnapshot


@dataclass(frozen=True, slots=True)
class Hello:
    """The worker's first message."""

    spec: WorkerSpec


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the cache held right here in the order of messages."""

    snapshot: CacheSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One step, several that computed the same requests, or a heartbeat.

    Attributes:
        ends: when each of the steps ended; empty for a heartbeat.
        others: first tokens, ends with their last token.
        decoded: the last step's tokens of the requests that go on; each had one in every step.
        step_seconds, predicted_step_seconds: of all the steps together.
        next_step_seconds: the announced length of a long step that begins now, or 0.
    """

    ends: tuple[float, ...] = ()
    others: list[RequestOutput]
    decoded: TokenColumns
    cache: CacheEvents | None
    load: LoadReport
    step_seconds: float = 0.0
    predicted_step_seconds: float = 0.0
    next_step_seconds: float = 0.0


Message = Hello | Snapshot | Report
