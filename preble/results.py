"""What the client SDK returns: frozen values, one class per kind of answer."""

from dataclasses import dataclass

from preble.types import FinishReason, LoadReport, Usage, WorkerSpec, WorkerState


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionChunk:
    """A piece of a completion, as soon as it exists.

    Attributes:
        text: new text since the previous chunk, whole characters only; may be empty.
        token_ids: new tokens since the previous chunk; may be empty.
        logprobs: the log probability of each of them, where they were asked for.
        top_logprobs: of the likeliest tokens in the place of each, likeliest first.
        finish_reason: None but in the last chunk.
        usage: None but in the last chunk.
        worker_id: the worker that finished the request; None but in the last chunk.
    """

    request_id: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[dict[int, float], ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    worker_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A whole answer; the attributes are those of `CompletionChunk`, complete."""

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    worker_id: str
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[dict[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model the cluster serves; `context_tokens` bounds prompt plus output."""

    id: str
    context_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterWorker:
    """One worker as its router sees it.

    Attributes:
        spec: what the worker said of itself; None before the first link.
        version, engine: of the worker's process; "" before the first link.
        load: as of its last report, all routers' requests together.
        live_requests: of this router.
        held_pages: pages of its cache that the router knows of.
        speed_ratio: observed over predicted step time.
        predicted_cached_tokens_total, actual_cached_tokens_total: prompt tokens the router expected
            in its cache, and those that were.
        silent_seconds: since its last message.
        snapshots_total, differences_total: that the router read since it linked: of the whole
            cache, and of the parts in which the router was wrong.
        held_key_sum: digest of the held pages, the same on routers that agree.
    """

    address: str
    condition: WorkerState
    spec: WorkerSpec | None
    version: str
    engine: str
    load: LoadReport
    live_requests: int
    held_pages: int
    speed_ratio: float
    predicted_cached_tokens_total: int
    actual_cached_tokens_total: int
    silent_seconds: float
    placed_requests_total: int
    snapshots_total: int
    differences_total: int = 0
    held_key_sum: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeSize:
    """Size of the router's prefix tree; `held_pages` counts a page once per worker holding it.

    Routers with the same `digest` believe the same of the same workers.
    """

    nodes: int
    pages: int
    held_pages: int
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterState:
    """A router and its workers at one moment."""

    router_id: str
    version: str
    policy: str
    workers: tuple[ClusterWorker, ...]
    tree: TreeSize
    live_requests: int
    uptime_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteCandidate:
    """A worker that could take a prompt, and the policy's terms for it, by name."""

    worker_id: str
    cached_tokens: int
    terms: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteExplanation:
    """Where a prompt would go now, and why."""

    worker_id: str
    reason: str
    prompt_tokens: int
    candidates: tuple[RouteCandidate, ...]
