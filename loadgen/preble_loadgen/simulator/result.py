"""What a simulation yields."""

from dataclasses import dataclass, fields

from preble_loadgen.report import RequestRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSample:
    """One worker at one moment, by its own account; fields as in `LoadReport`."""

    at: float
    worker_id: str
    num_running: int
    num_waiting: int
    waiting_prefill_tokens: int
    used_pages: int
    cached_pages: int
    cached_tokens_total: int
    busy_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerResult:
    """One worker over the whole run, all its lives together.

    Attributes:
        prompt_tokens, cached_tokens: of the requests it started in its last life.
        num_steps, busy_seconds: of all its lives.
        swaps, recomputes: preemptions with a copy to the host and without, in its last life.
        offloaded_bytes, uploaded_bytes: that crossed between device and host, in its last life.
        hidden_starts, int8_starts: requests started in these forms, in its last life.
    """

    worker_id: str
    prompt_tokens: int
    cached_tokens: int
    preemptions: int
    num_steps: int
    busy_seconds: float
    swaps: int = 0
    recomputes: int = 0
    offloaded_bytes: int = 0
    uploaded_bytes: int = 0
    hidden_starts: int = 0
    int8_starts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossings:
    """What preemption and the tiers came to; fields as in `WorkerResult`."""

    preemptions: int
    swaps: int
    recomputes: int
    offloaded_bytes: int
    uploaded_bytes: int
    hidden_starts: int
    int8_starts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationResult:
    """Everything that is known after a run.

    Attributes:
        records: one per request, in the order of their ends.
        digest: 16 hex digits over all placements and records; equal for equal runs.
        samples: every worker's load over time, `sample_every` apart.
        duration_seconds: virtual, from the first arrival to the last end.
        num_calls: of the agenda.
        num_placements: attempts.
        num_retries: attempts after a request's first.
        num_snapshots: read by the router that was there at the end.
    """

    records: list[RequestRecord]
    digest: str
    samples: list[LoadSample]
    workers: tuple[WorkerResult, ...]
    duration_seconds: float
    num_calls: int
    num_placements: int
    num_retries: int
    num_snapshots: int

    @property
    def num_steps(self) -> int:
        """Computed by all workers."""
        return sum(worker.num_steps for worker in self.workers)

    @property
    def crossings(self) -> Crossings:
        """Of all workers together."""
        return Crossings(
            **{
                item.name: sum(getattr(worker, item.name) for worker in self.workers)
                for item in fields(Crossings)
            }
        )

    @property
    def busy_imbalance(self) -> float:
        """Largest over mean of the workers' busy time."""
        busy = [worker.busy_seconds for worker in self.workers]
        return max(busy) * len(busy) / sum(busy) if sum(busy) else 0.0
