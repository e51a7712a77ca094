"""A cluster from its first arrival to the end of its last request."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import xxhash

from preble.errors import ConfigError
from preble.page_keys import pack_tokens
from preble.types import FinishReason, SamplingParams
from preble_loadgen.prompts import PromptMaker, seeded
from preble_loadgen.report import RequestRecord
from preble_loadgen.simulator.agenda import Agenda
from preble_loadgen.simulator.faults import Fault
from preble_loadgen.simulator.flight import Flight
from preble_loadgen.simulator.messages import Message
from preble_loadgen.simulator.options import SimulationOptions
from preble_loadgen.simulator.result import LoadSample, SimulationResult, WorkerResult
from preble_loadgen.simulator.router import SimulatedRouter
from preble_loadgen.simulator.sessions import Arrivals
from preble_loadgen.simulator.worker import SimulatedWorker
from preble_loadgen.trace_request import TraceRequest
from preble_router.stimuli import Placement

JOIN_SECONDS = 0.1
"""How long before the first arrival the workers join."""


def simulate(
    requests: Sequence[TraceRequest],
    options: SimulationOptions,
    *,
    arrivals: Sequence[float] | None = None,
    salt: int = 0,
    on_end: Callable[[int], None] | None = None,
) -> SimulationResult:
    """Run `requests` on the cluster of `options`, until every one of them has ended.

    Args:
        arrivals: when each comes, in seconds; None for the trace's own times.
        salt: of the trace, for its prompts.
        on_end: is told how many have ended, after each end.

    Raises:
        ConfigError: an option cannot be used, or a request fits no worker.
    """
    options.check()
    _check_fit(requests, options)
    times = [request.at for request in requests] if arrivals is None else arrivals
    run = _Simulation(requests, times, options, salt=salt, on_end=on_end)
    run.to_the_end()
    return run.result()


def _check_fit(requests: Sequence[TraceRequest], options: SimulationOptions) -> None:
    limit = min(options.context_tokens, options.kv_cache_tokens)
    for request in requests:
        prompt = len(request.token_ids) // 4 or sum(s.length for s in request.segments)
        if prompt + request.output_tokens > limit:
            raise ConfigError(
                f"request {request.index} (line {request.line}): {prompt:,} prompt and "
                f"{request.output_tokens:,} output tokens do not fit a worker of {limit:,}"
            )


class _Simulation:
    """One run."""

    def __init__(
        self,
        requests: Sequence[TraceRequest],
        times: Sequence[float],
        options: SimulationOptions,
        *,
        salt: int,
        on_end: Callable[[int], None] | None,
    ) -> None:
        self._options = options
        self._agenda = Agenda(begins_at=min(times, default=0.0) - JOIN_SECONDS)
        self._prompts = PromptMaker(vocab_size=options.vocab_size, salt=seeded(salt, options.seed))
        self._arrivals = Arrivals(requests, times, self._agenda, self._ask)
        self._num_requests = len(requests)
        self._on_end = on_end
        self._records: list[RequestRecord] = []
        self._samples: list[LoadSample] = []
        self._digest = xxhash.xxh3_64()
        self._num_placements = 0
        self._num_retries = 0
        self._num_lives = 0
        width = len(str(options.num_workers - 1))
        self._workers = [
            SimulatedWorker(f"w{i:0{width}}", self._agenda, options, send=self._send_up)
            for i in range(options.num_workers)
        ]
        self._router: SimulatedRouter | None = None
        for worker in self._workers:
            worker.begin()
        self._start_router()
        for fault in options.faults:
            self._enter(fault)

    def to_the_end(self) -> None:
        """Every request has ended afterwards."""
        self._arrivals.begin()
        for seconds, call in (
            (self._options.sample_every, self._sample),
            (self._options.check_every, self._check),
        ):
            if seconds > 0.0:
                self._agenda.after(JOIN_SECONDS, self._repeat, seconds, call)
        while len(self._records) < self._num_requests:
            going_on = self._agenda.step()
            assert going_on, "a request never ends"

    def result(self) -> SimulationResult:
        records, router = self._records, self._router
        began_at = min((record.sent_at for record in records), default=0.0)
        return SimulationResult(
            records=records,
            digest=self._digest.hexdigest(),
            samples=self._samples,
            workers=tuple(map(_worker_result, self._workers)),
            duration_seconds=self._agenda.now - began_at,
            num_calls=self._agenda.num_done,
            num_placements=self._num_placements,
            num_retries=self._num_retries + (router.retries_total if router else 0),
            num_snapshots=sum(w.snapshots_total for w in router.scheduler.workers())
            if router
            else 0,
        )

    # Requests

    def _ask(self, request: TraceRequest) -> None:
        options = self._options
        tokens = self._prompts.tokens(request)
        flight = Flight(
            request=request,
            request_id=f"r{request.index}",
            tokens=pack_tokens(tokens),
            num_prompt_tokens=len(tokens),
            sampling=SamplingParams(
                max_tokens=request.output_tokens,
                seed=options.seed + request.index,
                ignore_eos=True,
            ),
            stated_max_tokens=max(options.max_tokens, request.output_tokens),
            vocab_size=options.vocab_size,
            asked_at=self._agenda.now,
            deadline_at=self._agenda.now + options.timeout_seconds
            if options.timeout_seconds
            else None,
        )
        if self._router is None:
            self._end(flight, "router_lost")
        else:
            self._router.start(flight)

    def _place(self, placement: Placement) -> None:
        self._num_placements += 1
        self._digest.update(repr((self._agenda.now, placement)).encode())

    def _end(self, flight: Flight, end: FinishReason | str) -> None:
        is_complete = isinstance(end, FinishReason)
        record = flight.record(
            ended_at=self._agenda.now,
            wire_seconds=self._options.wire_seconds,
            finish_reason=str(end) if is_complete else "",
            error="" if is_complete else str(end),
        )
        self._digest.update(repr(replace(record, gaps=())).encode())
        self._digest.update(np.asarray(record.gaps, dtype=np.float64).tobytes())
        self._records.append(record)
        self._arrivals.answered(record.index)
        if self._on_end is not None:
            self._on_end(len(self._records))

    # The cluster, and what befalls it

    def _send_up(self, worker: SimulatedWorker, message: Message) -> None:
        if self._router is not None:
            self._router.send_up(worker, message)

    def _start_router(self) -> None:
        self._num_lives += 1
        self._router = router = SimulatedRouter(
            self._agenda,
            self._options,
            life=self._num_lives,
            placed=self._place,
            ended=self._end,
        )
        for worker in self._workers:
            if worker.alive:
                router.link(worker)

    def _enter(self, fault: Fault) -> None:
        """Those that happen at a time; the router looks after the wire's."""
        call = {"death": self._kill, "hang": self._hang, "slow": self._slow}.get(fault.kind)
        if call is not None:
            self._agenda.at(fault.at, call, self._workers[fault.worker], fault)
        elif fault.kind == "router":
            self._agenda.at(fault.at, self._stop_router, fault)

    def _kill(self, worker: SimulatedWorker, fault: Fault) -> None:
        if not worker.alive:
            return
        worker.die()
        if self._router is not None:
            self._router.lose(worker)
        if fault.ends:
            self._agenda.after(fault.seconds, self._revive, worker)

    def _revive(self, worker: SimulatedWorker) -> None:
        worker.begin()
        if self._router is not None:
            self._router.link(worker)

    def _hang(self, worker: SimulatedWorker, fault: Fault) -> None:
        if worker.alive:
            worker.hang(fault.seconds)

    def _slow(self, worker: SimulatedWorker, fault: Fault) -> None:
        worker.slowness *= fault.factor
        if fault.ends:
            self._agenda.after(fault.seconds, self._speed_up, worker, fault.factor)

    def _speed_up(self, worker: SimulatedWorker, factor: float) -> None:
        worker.slowness /= factor

    def _stop_router(self, fault: Fault) -> None:
        if self._router is None:
            return
        router, self._router = self._router, None
        router.stop()
        self._num_retries += router.retries_total
        self._agenda.after(fault.seconds, self._start_router)

    # Looking at it

    def _repeat(self, seconds: float, call: Callable[[], None]) -> None:
        call()
        self._agenda.after(seconds, self._repeat, seconds, call)

    def _sample(self) -> None:
        for worker in self._workers:
            if not worker.alive:
                continue
            load = worker.scheduler.load()
            sample = LoadSample(
                at=self._agenda.now,
                worker_id=worker.worker_id,
                num_running=load.num_running,
                num_waiting=load.num_waiting,
                waiting_prefill_tokens=load.waiting_prefill_tokens,
                used_pages=load.used_pages,
                cached_pages=load.cached_pages,
                cached_tokens_total=load.cached_tokens_total,
                busy_seconds=load.busy_seconds_total,
            )
            self._samples.append(sample)

    def _check(self) -> None:
        if self._router is not None:
            self._router.scheduler.check()
        for worker in self._workers:
            worker.scheduler.check()


def _worker_result(worker: SimulatedWorker) -> WorkerResult:
    load, tiers = worker.scheduler.load(), worker.scheduler.tier_totals
    page_bytes = worker.scheduler.config.tiers.crossing_bytes
    return WorkerResult(
        worker_id=worker.worker_id,
        prompt_tokens=load.prompt_tokens_total,
        cached_tokens=load.cached_tokens_total,
        preemptions=load.preemptions_total,
        num_steps=worker.num_steps,
        busy_seconds=worker.busy_seconds,
        swaps=tiers.swaps,
        recomputes=tiers.recomputes,
        offloaded_bytes=tiers.offloaded_pages * page_bytes,
        uploaded_bytes=tiers.uploaded_pages * page_bytes,
        hidden_starts=tiers.hidden_starts,
        int8_starts=tiers.int8_starts,
    )
