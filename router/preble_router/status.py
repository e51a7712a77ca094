"""The state of a router and its workers as values, for status pages and for the wire."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import xxhash

from preble import __version__
from preble.types import LoadReport, WorkerSpec, WorkerState
from preble.v1 import cluster_pb2 as pb
from preble.wire import hello_to_wire, load_to_wire
from preble_router.attempts import Attempts
from preble_router.config import RouterConfig
from preble_router.lengths.accuracy import Accuracy
from preble_router.membership import Member, Membership
from preble_router.scheduler import GlobalScheduler
from preble_router.worker_view import WorkerView


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """One address, and the worker behind it while it is linked.

    Attributes:
        worker_id: "" before the first link.
        spec: None while it is not linked, as everything else about it is empty then.
        live_requests: this router's requests on it.
        held_pages: pages of its cache that the router's tree knows.
        held_key_sum: sum of their keys modulo 2**64, the same on routers that agree.
        silent_seconds: since its last message.
    """

    address: str
    worker_id: str
    state: WorkerState
    version: str = ""
    engine: str = ""
    spec: WorkerSpec | None = None
    load: LoadReport | None = None
    live_requests: int = 0
    held_pages: int = 0
    speed_ratio: float = 1.0
    predicted_cached_tokens_total: int = 0
    actual_cached_tokens_total: int = 0
    silent_seconds: float = 0.0
    placed_requests_total: int = 0
    snapshots_total: int = 0
    differences_total: int = 0
    held_key_sum: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeStatus:
    """The router's prefix tree.

    Attributes:
        held_pages: what each worker holds of it, summed.
        digest: 16 hex digits, the same on routers that believe the same of the same workers.
    """

    nodes: int
    pages: int
    held_pages: int
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStatus:
    """Everything, at one moment. `workers` are sorted by id, then by address.

    Attributes:
        outcomes: ended requests since the start, by finish reason or error code.
        placements: attempts since the start, by the kind of the policy's reason.
        retries_total: attempts after the first. retries_refused_total: those beyond the budget.
        refusals: requests refused for overload since the start, by what would have been exceeded.
        lengths: how good the predicted output lengths of the last requests were.
    """

    router_id: str
    version: str
    model: str
    policy: str
    workers: tuple[WorkerStatus, ...]
    tree: TreeStatus
    live_requests: int
    uptime_seconds: float
    outcomes: Mapping[str, int] = field(default_factory=dict)
    placements: Mapping[str, int] = field(default_factory=dict)
    retries_total: int = 0
    retries_refused_total: int = 0
    refusals: Mapping[str, int] = field(default_factory=dict)
    lengths: Accuracy = field(default_factory=Accuracy)


def cluster_status(
    config: RouterConfig,
    membership: Membership,
    scheduler: GlobalScheduler,
    attempts: Attempts,
    *,
    num_live: int,
    uptime_seconds: float,
    now: float,
) -> ClusterStatus:
    """Reads the parts and changes none."""
    views = {view.worker_id: view for view in scheduler.workers()}
    workers = [
        _worker_status(member, views.get(member.worker_id), now)
        for member in membership.members.values()
    ]
    tree = scheduler.tree_summary()
    return ClusterStatus(
        router_id=config.router_id,
        version=__version__,
        model=config.model,
        policy=config.policy,
        workers=tuple(sorted(workers, key=lambda w: (w.worker_id, w.address))),
        tree=TreeStatus(
            nodes=tree.num_nodes,
            pages=tree.num_pages,
            held_pages=sum(view.held_pages for view in views.values()),
            digest=_digest(views.values()),
        ),
        live_requests=num_live,
        uptime_seconds=uptime_seconds,
        outcomes=dict(attempts.outcomes),
        placements=dict(attempts.placements),
        retries_total=attempts.retries_total,
        retries_refused_total=attempts.budget.refused_total,
        refusals=dict(scheduler.admission.refusals),
        lengths=attempts.forecasts.accuracy(),
    )


def _digest(views: Iterable[WorkerView]) -> str:
    held = sorted((view.worker_id, view.held_pages, view.held_key_sum) for view in views)
    return xxhash.xxh3_64_hexdigest(repr(held).encode())


def _worker_status(member: Member, view: WorkerView | None, now: float) -> WorkerStatus:
    session = member.session
    if session is None or view is None:
        return WorkerStatus(
            address=member.address, worker_id=member.worker_id, state=WorkerState.UNREACHABLE
        )
    if session.liveness.suspect:
        state = WorkerState.SUSPECT
    elif session.draining:
        state = WorkerState.DRAINING
    else:
        state = WorkerState.READY if view.synced else WorkerState.JOINING
    return WorkerStatus(
        address=member.address,
        worker_id=member.worker_id,
        state=state,
        version=session.hello.version,
        engine=session.hello.engine,
        spec=session.spec,
        load=session.load,
        live_requests=len(session.live),
        held_pages=view.held_pages,
        speed_ratio=view.speed_ratio,
        predicted_cached_tokens_total=view.predicted_cached_total,
        actual_cached_tokens_total=view.actual_cached_total,
        silent_seconds=session.liveness.silent_seconds(now=now),
        placed_requests_total=view.placed_total,
        snapshots_total=view.snapshots_total,
        differences_total=view.differences_total,
        held_key_sum=view.held_key_sum,
    )


_STATE_TO_WIRE = {
    WorkerState.UNREACHABLE: pb.WORKER_STATE_UNREACHABLE,
    WorkerState.JOINING: pb.WORKER_STATE_JOINING,
    WorkerState.READY: pb.WORKER_STATE_READY,
    WorkerState.DRAINING: pb.WORKER_STATE_DRAINING,
    WorkerState.SUSPECT: pb.WORKER_STATE_SUSPECT,
}


def status_to_wire(status: ClusterStatus) -> pb.GetClusterResponse:
    """The same for gRPC."""
    return pb.GetClusterResponse(
        router_id=status.router_id,
        version=status.version,
        policy=status.policy,
        workers=[_worker_to_wire(worker) for worker in status.workers],
        tree=pb.TreeSummary(
            nodes=status.tree.nodes,
            pages=status.tree.pages,
            held_pages=status.tree.held_pages,
            digest=status.tree.digest,
        ),
        live_requests=status.live_requests,
        uptime_seconds=status.uptime_seconds,
    )


def _worker_to_wire(worker: WorkerStatus) -> pb.WorkerStatus:
    message = pb.WorkerStatus(
        address=worker.address,
        state=_STATE_TO_WIRE[worker.state],
        live_requests=worker.live_requests,
        held_pages=worker.held_pages,
        speed_ratio=worker.speed_ratio,
        predicted_cached_tokens_total=worker.predicted_cached_tokens_total,
        actual_cached_tokens_total=worker.actual_cached_tokens_total,
        silent_seconds=worker.silent_seconds,
        placed_requests_total=worker.placed_requests_total,
        snapshots_total=worker.snapshots_total,
        differences_total=worker.differences_total,
        held_key_sum=worker.held_key_sum,
    )
    if worker.spec is not None:
        hello = hello_to_wire(worker.spec, version=worker.version, engine=worker.engine)
        message.hello.CopyFrom(hello)
    if worker.load is not None:
        message.load.CopyFrom(load_to_wire(worker.load))
    return message
