"""What the `GlobalScheduler` is told, what it answers, and what it orders.

Events are past facts; actions are orders to the shell. All are immutable.
"""

from dataclasses import dataclass, field

from preble.events import CacheEvents, CacheSnapshot, SnapshotRequest
from preble.types import LoadReport, WorkerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRequest:
    """One attempt at a request, as far as routing cares.

    Attributes:
        page_keys: key path of the prompt's full pages (on a later attempt, of prompt plus
            delivered output).
        num_tokens: length of that prompt in tokens.
        max_tokens: output tokens still allowed.
        tenant: who is charged for it where tenants share workers fairly.
        predicted_output_tokens: of them, those that are expected; None lets the scheduler predict.
        excluded: workers that must not be chosen, e.g. those that failed it before.
        start_by, deadline_at: its first token, and its end, are no use later; None for any time.
            A first attempt that cannot keep them is refused.
    """

    request_id: str
    page_keys: bytes
    num_tokens: int
    max_tokens: int
    attempt: int = 1
    namespace: str = ""
    tenant: str = ""
    priority: int = 0
    predicted_output_tokens: int | None = None
    excluded: frozenset[str] = frozenset()
    start_by: float | None = None
    deadline_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where one attempt goes.

    Attributes:
        cached_tokens: prompt tokens the router expects the worker to serve from its cache.
        predicted_output_tokens: the output length the booking assumes.
        reason: a few words for logs and the dry run, e.g. "exploit: 480 of 512 tokens cached".
    """

    request_id: str
    attempt: int
    worker_id: str
    cached_tokens: int
    predicted_output_tokens: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateTerms:
    """One worker as a policy saw it: `terms` are the named summands of its choice."""

    worker_id: str
    cached_tokens: int
    terms: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Answer of a dry run: the placement that would be made, and every candidate."""

    placement: Placement
    candidates: tuple[CandidateTerms, ...]


# Events


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A link is up. A worker already known under this id is replaced, its cache forgotten."""

    spec: WorkerSpec


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """The link is down: its cache and its load leave the books; its requests are re-placed by
    the shell, one `place` each."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class WorkerSuspended:
    """The step loop went silent (or, with `suspended` false, speaks again): place nothing there."""

    worker_id: str
    suspended: bool


@dataclass(frozen=True, slots=True)
class WorkerDrained:
    """The operator wants it empty: place nothing more there."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class CacheChanged:
    worker_id: str
    batch: CacheEvents


@dataclass(frozen=True, slots=True)
class SnapshotReceived:
    worker_id: str
    snapshot: CacheSnapshot


@dataclass(frozen=True, slots=True)
class Progress:
    """A request's new output in a step. `cached_tokens` comes with its first token."""

    request_id: str
    attempt: int
    num_tokens: int
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One step of a worker; `step_seconds` 0 is a heartbeat."""

    worker_id: str
    load: LoadReport
    step_seconds: float = 0.0
    predicted_step_seconds: float = 0.0
    progress: tuple[Progress, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """The attempt ended well, cancelled or at its deadline: take its load off the books."""

    request_id: str
    attempt: int
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """The attempt broke off; another `place` may follow."""

    request_id: str
    attempt: int


Event = (
    WorkerJoined
    | WorkerLost
    | WorkerSuspended
    | WorkerDrained
    | CacheChanged
    | SnapshotReceived
    | StepReport
    | RequestFinished
    | RequestFailed
)

# Actions


@dataclass(frozen=True, slots=True)
class RequestSnapshot:
    """Ask the worker for a snapshot or a difference: the router's view of it is in doubt."""

    worker_id: str
    request: SnapshotRequest


Action = RequestSnapshot
