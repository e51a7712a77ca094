"""Replay: every request leaves when the trace says so, whatever became of the others.

Turns of a closed loop are the exception: each leaves after the answer to the turn before.
"""

import asyncio
import importlib.util
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from preble.errors import ConfigError
from preble_loadgen.closed_loop import next_turns
from preble_loadgen.grpc_target import GrpcTarget
from preble_loadgen.http_target import HttpTarget
from preble_loadgen.progress import Progress, show
from preble_loadgen.prompts import PromptMaker, seeded
from preble_loadgen.replay_options import ReplayOptions, arrival_times, selected_trace
from preble_loadgen.report import Report, RequestRecord, summarize
from preble_loadgen.report_text import print_report
from preble_loadgen.result_files import result_files
from preble_loadgen.scaling import fits, prompt_tokens
from preble_loadgen.target import Observation, Question, Served, Target
from preble_loadgen.trace_request import TraceRequest
from preble_loadgen.traces import Trace

__all__ = ["ReplayOptions", "make_target", "replay", "run_replay"]

EXIT_FAILURES = 1
EXIT_INTERRUPTED = 130
DEFAULT_VOCAB_SIZE = 32_000
"""Where neither the options nor the cluster say."""
_START_SECONDS = 0.1
"""Between reading the trace and its first request."""
_UNFINISHED = {"cancelled", "deadline", "refused", "error"}


def make_target(options: ReplayOptions) -> Target:
    """The cluster at `options.url`.

    Raises:
        ConfigError: the URL cannot be used.
    """
    cls = GrpcTarget if options.url.startswith(("grpc://", "grpcs://")) else HttpTarget
    return cls(
        options.url,
        token=options.api_key,
        ca=options.ca,
        model=options.model,
        timeout=options.timeout,
    )


async def replay(
    options: ReplayOptions,
    *,
    trace: Trace | None = None,
    progress: Progress | None = None,
    stop: asyncio.Event | None = None,
) -> Report:
    """Replays a trace and returns the figures.

    Args:
        trace: instead of `selected_trace(options)`.
        progress: is kept up to date, and has the records at the end.
        stop: when set, nothing more is sent and what is in flight is broken off.

    Raises:
        ConfigError: the trace, an option or the URL cannot be used, or a request cannot fit the
            model; nothing was sent.
    """
    chosen = selected_trace(options) if trace is None else trace
    counted = progress or Progress()
    target = make_target(options)
    try:
        served = await target.served()
        _check_fit(chosen, served)
        run = _Run(options, chosen, served, target, counted)
        await run.until(stop or asyncio.Event())
    finally:
        await target.close()
    return summarize(counted.records, num_planned=len(chosen.requests))


def _check_fit(trace: Trace, served: Served) -> None:
    context = served.context_tokens
    if context is None:
        return
    for request in trace.requests:
        if not fits(request, context):
            raise ConfigError(
                f"{trace.name}:{request.line}: {prompt_tokens(request):,} prompt and "
                f"{request.output_tokens:,} output tokens do not fit {served.model!r}, which takes "
                f"{context:,}; scale the lengths with --max-context {context}"
            )


class _Run:
    """One replay in progress."""

    def __init__(
        self,
        options: ReplayOptions,
        trace: Trace,
        served: Served,
        target: Target,
        progress: Progress,
    ) -> None:
        vocab_size = options.vocab_size or served.vocab_size or DEFAULT_VOCAB_SIZE
        self._seed = options.seed
        self._requests = trace.requests
        salt = seeded(trace.salt, options.seed)
        self._prompts = PromptMaker(vocab_size=vocab_size, salt=salt)
        self._arrivals = arrival_times(trace.requests, options)
        self._next_turns = next_turns(trace.requests)
        self._target = target
        self._progress = progress
        self._began_at = 0.0
        progress.num_planned = len(trace.requests)

    async def until(self, stop: asyncio.Event) -> None:
        """Sends everything and waits for all answers, or until `stop` is set."""
        sending = asyncio.create_task(self._send())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({sending, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            if not sending.done():
                sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending

    async def _send(self) -> None:
        """Every request when it is due. Leaving it early breaks off what is in flight."""
        self._began_at = time.perf_counter() + _START_SECONDS
        waiting = {request.index for request in self._next_turns.values()}
        async with asyncio.TaskGroup() as answers:
            for request, at in zip(self._requests, self._arrivals, strict=True):
                if request.index in waiting:
                    continue
                prepared = self._target.prepare(self._question(request))
                await _until(self._began_at + at)
                answers.create_task(self._converse(request, at, prepared))

    async def _converse(self, request: TraceRequest, at: float, prepared: object) -> None:
        """A request, and the turns that wait for one another from there."""
        await self._ask(request, at, prepared)
        while (following := self._next_turns.get(request.index)) is not None:
            at = time.perf_counter() - self._began_at + (following.think_seconds or 0.0)
            prepared = self._target.prepare(self._question(following))
            await _until(self._began_at + at)
            await self._ask(following, at, prepared)
            request = following

    def _question(self, request: TraceRequest) -> Question:
        return Question(
            tokens=self._prompts.tokens(request),
            output_tokens=request.output_tokens,
            namespace=request.namespace,
            seed=self._seed + request.index,
            ttft_slo_seconds=request.ttft_slo_seconds,
            tbt_slo_seconds=request.tbt_slo_seconds,
        )

    async def _ask(self, request: TraceRequest, at: float, prepared: object) -> None:
        observation = Observation(on_piece=self._progress.tokens)
        sent_at = time.perf_counter()
        self._progress.sent()
        try:
            await self._target.ask(prepared, observation)
        except asyncio.CancelledError:
            observation.failed("interrupted", "the replay was stopped")
            raise
        finally:
            self._progress.ended(self._record(request, at, sent_at, observation))

    def _record(
        self, request: TraceRequest, at: float, sent_at: float, seen: Observation
    ) -> RequestRecord:
        if seen.finish_reason in _UNFINISHED:
            seen.failed(seen.finish_reason)
        return RequestRecord(
            index=request.index,
            scheduled_at=at,
            sent_at=sent_at - self._began_at,
            ended_at=time.perf_counter() - self._began_at,
            first_at=None if seen.first_at is None else seen.first_at - self._began_at,
            last_at=None if seen.last_at is None else seen.last_at - self._began_at,
            gaps=tuple(seen.gaps),
            prompt_tokens=seen.prompt_tokens or prompt_tokens(request),
            expected_output_tokens=request.output_tokens,
            output_tokens=seen.output_tokens,
            cached_tokens=seen.cached_tokens,
            predicted_cached_tokens=seen.predicted_cached_tokens,
            worker_id=seen.worker_id,
            session=request.session,
            namespace=request.namespace,
            finish_reason="" if seen.error else seen.finish_reason,
            error=seen.error,
            message=seen.message,
        )


async def _until(due_at: float) -> None:
    """Sleeps at least once: where it is late already, the answers in flight need their turn."""
    remaining = due_at - time.perf_counter()
    await asyncio.sleep(max(0.0, remaining))
    # A timer may fire up to a millisecond early.
    while (remaining := due_at - time.perf_counter()) > 0:  # noqa: ASYNC110 - it is time that is waited for
        await asyncio.sleep(remaining)


def run_replay(options: ReplayOptions) -> int:
    """`preble replay`: shows progress and figures, writes the files asked for.

    Ctrl-C ends it early and reports what there is.

    Returns:
        The exit status: 0 if every answer was complete, 1 if some failed, 130 after Ctrl-C.

    Raises:
        ConfigError: nothing was sent.
    """
    trace = selected_trace(options)
    with result_files(options.out, options.requests_out) as files:
        console, progress = Console(stderr=True), Progress()
        console.print(_introduction(options, trace), highlight=False)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            report, stopped = runner.run(_interruptible(options, trace, progress, console))
        print_report(Console(), report)
        about, secret = _about(options, trace), options.api_key
        files.write(report, progress.records, about=about, secret=secret)
    if stopped:
        return EXIT_INTERRUPTED
    return EXIT_FAILURES if report.num_failed else 0


async def _interruptible(
    options: ReplayOptions, trace: Trace, progress: Progress, console: Console
) -> tuple[Report, bool]:
    """The replay with its progress shown, and whether Ctrl-C ended it."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop.set)
    showing = asyncio.create_task(show(progress, console))
    try:
        return await replay(options, trace=trace, progress=progress, stop=stop), stop.is_set()
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        showing.cancel()
        with suppress(asyncio.CancelledError):
            await showing


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed: it halves what the generator itself costs."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    return cast("Callable[[], asyncio.AbstractEventLoop]", uvloop.new_event_loop)


def _introduction(options: ReplayOptions, trace: Trace) -> str:
    times = arrival_times(trace.requests, options)
    prompts = sum(prompt_tokens(request) for request in trace.requests)
    outputs = sum(request.output_tokens for request in trace.requests)
    lines = [
        f"{trace.name} ({trace.format}): {len(trace.requests):,} requests, {prompts:,} prompt and "
        f"{outputs:,} output tokens, over {times[-1]:,.1f} s"
    ]
    if waiting := len(next_turns(trace.requests)):
        lines.append(f"{waiting:,} of them wait for the answer to their session's turn before")
    if trace.factor != 1.0:
        block = f", blocks of {trace.block_tokens / trace.factor:g}" * bool(trace.block_tokens)
        lines.append(f"lengths divided by {trace.factor:.4g}{block}")
    if trace.num_skipped:
        lines.append(f"{trace.num_skipped:,} bad lines skipped; {trace.first_skipped}")
    return "\n".join(lines)


def _about(options: ReplayOptions, trace: Trace) -> dict[str, Any]:
    """What one must know to repeat the run. The key is a secret, and stays out."""
    shown = {name: value for name, value in asdict(options).items() if name != "api_key"}
    return {
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in shown.items()},
        "seed": options.seed,
        "trace": {
            "name": trace.name,
            "format": trace.format,
            "requests": len(trace.requests),
            "factor": trace.factor,
            "skipped_lines": trace.num_skipped,
        },
    }
