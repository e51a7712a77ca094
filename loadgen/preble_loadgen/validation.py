"""`preble validate`: one trace on live workers and in the simulator, side by side.

The first third of the requests is a rehearsal: it says what the simulator does not compute.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from preble.client import AsyncClient
from preble.errors import ConfigError
from preble_loadgen.progress import Progress
from preble_loadgen.replay import replay
from preble_loadgen.replay_options import ReplayOptions, arrival_times
from preble_loadgen.report import Report, RequestRecord, summarize
from preble_loadgen.simulator import SimulationOptions, SimulationResult, simulate
from preble_loadgen.traces import Trace

REHEARSED = 3
"""One request of so many, the first ones: they tell the overhead, the others are compared."""
NUM_COLD = 10
"""The first requests find cold code and memory, and do not count."""
NUM_ROUNDS = 6
"""A longer step makes requests wait for one another, so the overhead is approached in rounds."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """What the simulator does not compute, measured on the rehearsal.

    Attributes:
        turn_seconds: of each step, beyond what the cost model says: the worker's loop reports it,
            its other thread sends the report, and other processes want the same cores.
        wire_seconds: one way between client and worker, the router between them included.
    """

    turn_seconds: float
    wire_seconds: float

    def of(self, cluster: SimulationOptions) -> SimulationOptions:
        """`cluster` with it."""
        cost = replace(cluster.cost, fixed=cluster.cost.fixed + self.turn_seconds)
        return replace(cluster, cost=cost, wire_seconds=self.wire_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Both runs of one trace.

    Attributes:
        live, simulated: of the requests after the rehearsal.
        num_rehearsed: requests on which the overhead was measured.
        live_busy_seconds, simulated_busy_seconds: the workers' time in steps, summed over the whole
            trace; the simulated one without the overhead, as the cost model says.
    """

    live: Report
    simulated: Report
    num_rehearsed: int
    overhead: Overhead
    live_busy_seconds: float
    simulated_busy_seconds: float


async def validate(
    options: ReplayOptions, trace: Trace, cluster: SimulationOptions, *, grpc_address: str
) -> Validation:
    """Replays `trace` on the live cluster at `options.url`, and simulates it.

    Args:
        cluster: what the live one is, with its cost model and without any overhead.

    Raises:
        ConfigError: the trace does not fit, or has too few requests to rehearse.
    """
    num_rehearsed = rehearsal_length(len(trace.requests))
    busy_before = await _busy_seconds(grpc_address)
    records = await _records(options, trace)
    busy = await _busy_seconds(grpc_address) - busy_before
    overhead = measured_overhead(
        [record for record in records if record.index < num_rehearsed],
        lambda found: _simulated(trace.first(num_rehearsed), options, found.of(cluster)).records,
    )
    simulated = _simulated(trace, options, overhead.of(cluster))
    return Validation(
        live=_after(num_rehearsed, records),
        simulated=_after(num_rehearsed, simulated.records),
        num_rehearsed=num_rehearsed,
        overhead=overhead,
        live_busy_seconds=busy,
        simulated_busy_seconds=sum(
            worker.busy_seconds - worker.num_steps * overhead.turn_seconds
            for worker in simulated.workers
        ),
    )


def rehearsal_length(num_requests: int) -> int:
    """How many of the first requests the overhead is measured on.

    Raises:
        ConfigError: too few for that.
    """
    num_rehearsed = num_requests // REHEARSED
    if num_rehearsed <= NUM_COLD:
        least = REHEARSED * (NUM_COLD + 1)
        raise ConfigError(
            f"--requests must be at least {least}, not {num_requests}: a third is the rehearsal"
        )
    return num_rehearsed


def measured_overhead(
    live: Sequence[RequestRecord], simulated: Callable[[Overhead], Sequence[RequestRecord]]
) -> Overhead:
    """What gives simulated requests the live ones' mean time per token, and to the first.

    Args:
        live: of the rehearsal.
        simulated: of the same, with so much overhead.
    """
    found = Overhead(0.0, 0.0)
    for _ in range(NUM_ROUNDS):
        records = simulated(found)
        turn = found.turn_seconds + _mean_gap(live) - _mean_gap(records)
        wire = found.wire_seconds + 0.5 * (_mean_ttft(live) - _mean_ttft(records))
        found = Overhead(max(0.0, turn), max(0.0, wire))
    return found


def _mean_ttft(records: Sequence[RequestRecord]) -> float:
    return fmean(r.first_at - r.sent_at for r in records if r.first_at and r.index >= NUM_COLD)


def _mean_gap(records: Sequence[RequestRecord]) -> float:
    """Between two tokens, each gap counted alike."""
    spans = [
        (r.last_at - r.first_at, r.output_tokens - 1)
        for r in records
        if r.first_at is not None and r.last_at is not None and r.index >= NUM_COLD
    ]
    return sum(seconds for seconds, _ in spans) / max(1, sum(gaps for _, gaps in spans))


def _after(num_rehearsed: int, records: Sequence[RequestRecord]) -> Report:
    return summarize([record for record in records if record.index >= num_rehearsed])


async def _records(options: ReplayOptions, trace: Trace) -> list[RequestRecord]:
    progress = Progress()
    await replay(options, trace=trace, progress=progress)
    return progress.records


def _simulated(
    trace: Trace, options: ReplayOptions, cluster: SimulationOptions
) -> SimulationResult:
    arrivals = arrival_times(trace.requests, options)
    return simulate(trace.requests, cluster, arrivals=arrivals, salt=trace.salt)


async def _busy_seconds(grpc_address: str) -> float:
    async with AsyncClient(grpc_address) as client:
        state = await client.cluster()
    return sum(worker.load.busy_seconds_total for worker in state.workers)
