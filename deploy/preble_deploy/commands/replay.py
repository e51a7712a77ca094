"""Send a trace to a running cluster, each request when it is due, and measure.

Arrivals never wait for answers, so an overloaded cluster shows as growing latencies; except in the
closed loops of agent sessions, where a turn waits for the answer to the one before. Prints time
to first token, gap between tokens, TPOT, end to end, and the cached share, predicted and actual,
with the formulas. Exit status: 0 if every answer was complete, 1 if not.

[bold]Examples[/]

  preble replay mooncake.jsonl.gz --limit 300 --max-context 8192 --rate 5
  preble replay trace.jsonl --url grpc://10.0.0.2:8001 --speed 2 --out figures.json
  preble replay azure.csv --url https://llm.example.com --api-key secret --skip-bad-lines
"""

from collections.abc import Callable

from preble_deploy import options
from preble_deploy.client_settings import ReplaySettings


def run(settings: ReplaySettings) -> int:
    """Replays, and returns the exit status."""
    from preble_loadgen.replay import ReplayOptions, run_replay

    return run_replay(
        ReplayOptions(
            trace=settings.trace,
            url=settings.url,
            format=settings.trace_format,
            limit=settings.limit,
            skip_bad_lines=settings.skip_bad_lines,
            scale_lengths=settings.scale_lengths,
            max_context=settings.max_context,
            max_output_tokens=settings.max_output_tokens,
            speed=settings.speed,
            rate=settings.rate,
            seed=settings.seed,
            timeout=settings.timeout_seconds,
            model=settings.served_model_name,
            vocab_size=settings.vocab_size,
            api_key=settings.api_key,
            ca=settings.ca,
            out=settings.out,
            requests_out=settings.requests_out,
        )
    )


def command() -> Callable[..., None]:
    """The typer command."""
    return options.command(ReplaySettings, run)
