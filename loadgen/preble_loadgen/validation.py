"""`preble validate`: one trace on live workers and in the simulator, side by side."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from preble.client import AsyncClient
from preble_loadgen.progress import Progress
from preble_loadgen.replay import replay
from preble_loadgen.replay_options import ReplayOptions, arrival_times
from preble_loadgen.report import Report, RequestRecord, summarize
from preble_loadgen.simulator import SimulationOptions, simulate
from preble_loadgen.trace_request import Segment, TraceRequest
from preble_loadgen.traces import Trace

NUM_PROBES = 50
WARM_PROBES = 10
"""The first ones find cold code and memory, and do not count."""
PROBE_SECONDS = 0.25
"""Between two of them: each finds the cluster idle."""
PROBE_TOKENS, PROBE_OUTPUT_TOKENS = 4, 10
"""Together less than a page, so that nothing of it is cached."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """What the simulator does not compute, measured on the idle cluster.

    Attributes:
        turn_seconds: of each step, beyond what the cost model says: the worker's loop reports it,
            and its other thread sends the report.
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
        live_busy_seconds, simulated_busy_seconds: the workers' time in steps, summed.
    """

    live: Report
    simulated: Report
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
        ConfigError: the trace does not fit.
    """
    probes, probing = probe_trace(), replace(options, rate=None, speed=1.0)
    answers = await _records(probing, probes)
    overhead = measured_overhead(
        answers, lambda found: _simulated(probes, probing, found.of(cluster))[0]
    )
    busy_before = await _busy_seconds(grpc_address)
    records = await _records(options, trace)
    busy = await _busy_seconds(grpc_address) - busy_before
    simulated, simulated_busy = _simulated(trace, options, overhead.of(cluster))
    return Validation(
        live=summarize(records, num_planned=len(trace.requests)),
        simulated=summarize(simulated),
        overhead=overhead,
        live_busy_seconds=busy,
        simulated_busy_seconds=simulated_busy,
    )


def probe_trace() -> Trace:
    """Requests so short and so far apart that what they take is mostly the way to the worker."""
    requests = tuple(
        TraceRequest(
            index=i,
            line=i + 1,
            at=i * PROBE_SECONDS,
            segments=(Segment(i, PROBE_TOKENS),),
            output_tokens=PROBE_OUTPUT_TOKENS,
        )
        for i in range(NUM_PROBES)
    )
    return Trace(name="probes", format="preble", salt=0, block_tokens=0, requests=requests)


def measured_overhead(
    live: Sequence[RequestRecord], simulated: Callable[[Overhead], Sequence[RequestRecord]]
) -> Overhead:
    """What makes the simulated probes take as long as the live ones: per token, and to the first.

    Args:
        live: of the probes.
        simulated: of the same, with so much overhead.
    """
    bare = simulated(Overhead(0.0, 0.0))
    turn = max(0.0, _median(live, _tpot) - _median(bare, _tpot))
    step = _median(simulated(Overhead(turn, 0.0)), _ttft)
    return Overhead(turn, max(0.0, 0.5 * (_median(live, _ttft) - step)))


def _median(records: Sequence[RequestRecord], of: Callable[[RequestRecord], float | None]) -> float:
    warm = (of(record) for record in records if record.index >= WARM_PROBES)
    return statistics.median(value for value in warm if value is not None)


def _ttft(record: RequestRecord) -> float | None:
    return None if record.first_at is None else record.first_at - record.sent_at


def _tpot(record: RequestRecord) -> float | None:
    if record.first_at is None or record.last_at is None or record.output_tokens < 2:
        return None
    return (record.last_at - record.first_at) / (record.output_tokens - 1)


async def _records(options: ReplayOptions, trace: Trace) -> list[RequestRecord]:
    progress = Progress()
    await replay(options, trace=trace, progress=progress)
    return progress.records


def _simulated(
    trace: Trace, options: ReplayOptions, cluster: SimulationOptions
) -> tuple[list[RequestRecord], float]:
    arrivals = arrival_times(trace.requests, options)
    result = simulate(trace.requests, cluster, arrivals=arrivals, salt=trace.salt)
    return result.records, sum(worker.busy_seconds for worker in result.workers)


async def _busy_seconds(grpc_address: str) -> float:
    async with AsyncClient(grpc_address) as client:
        state = await client.cluster()
    return sum(worker.load.busy_seconds_total for worker in state.workers)
