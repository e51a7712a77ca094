"""Simulate a cluster of any size on a trace, in virtual time, and compare routing policies.

Runs the router's and the workers' own schedulers; only the GPU is replaced by a cost model, the
wire by delays and the clock by a virtual one. Latencies count no HTTP, no tokenizer and no network
beyond half a millisecond each way. The same options give the same run, told by its digest. Exit
status: 0 if every request was answered, 1 if not.

[bold]Examples[/]

  preble simulate mooncake.jsonl.gz --workers 8
  preble simulate tools.jsonl --workers 16 --policy preble --policy e2 --policy round_robin --jobs 3
  preble simulate tools.jsonl --rate 40 --cost-model llama-3-70b-4xh100 --out figures.json
  preble simulate tools.jsonl --faults death:0@60+30 --faults loss:0.01
"""

from collections.abc import Callable

from preble.errors import ConfigError
from preble_deploy import options
from preble_deploy.simulate_settings import SimulateSettings


def run(settings: SimulateSettings) -> int:
    """Simulates, and returns the exit status."""
    from preble.cost_library import load_cost_model
    from preble_loadgen.replay_options import ReplayOptions
    from preble_loadgen.simulate import SimulateOptions, run_simulate
    from preble_loadgen.simulator import SimulationOptions, parse_fault
    from preble_worker.estimated_tiers import named_tiers

    kv_tokens = settings.kv_cache_tokens or _capacity(settings.cost_model)
    return run_simulate(
        SimulateOptions(
            trace=ReplayOptions(
                trace=settings.trace,
                url="",
                format=settings.trace_format,
                limit=settings.limit,
                skip_bad_lines=settings.skip_bad_lines,
                max_context=settings.max_context,
                max_output_tokens=settings.max_output_tokens,
                speed=settings.speed,
                rate=settings.rate,
                seed=settings.seed,
                out=settings.out,
                requests_out=settings.requests_out,
            ),
            cluster=SimulationOptions(
                cost=load_cost_model(settings.cost_model),
                num_workers=settings.workers,
                local_policy=settings.local_policy,
                length_predictor=settings.length_predictor,
                length_noise=settings.length_noise,
                max_tokens=settings.max_tokens,
                kv_cache_tokens=kv_tokens,
                tiers=named_tiers(
                    settings.cost_model,
                    settings.kv_tiers,
                    kv_tokens=kv_tokens,
                    page_tokens=16,
                    host_kv_tokens=settings.host_kv_tokens,
                    copy_rate=settings.copy_rate,
                ),
                ttft_slo_seconds=settings.ttft_slo,
                tbt_slo_seconds=settings.tbt_slo,
                timeout_seconds=settings.timeout,
                max_queue_seconds=settings.max_queue_seconds,
                max_batch_tokens=settings.max_num_batched_tokens,
                max_sequences=settings.max_num_seqs,
                context_tokens=settings.max_model_len,
                seed=settings.seed,
                report_seconds=settings.report_seconds,
                check_every=settings.check_every,
                faults=tuple(map(parse_fault, settings.faults)),
            ),
            policies=settings.policy,
            jobs=settings.jobs,
        )
    )


def _capacity(cost_model: str) -> int:
    from preble.cost_library import kv_capacity_tokens

    try:
        return kv_capacity_tokens(cost_model)
    except ConfigError as error:
        raise ConfigError(f"{error}; --kv-cache-tokens says it") from error


def command() -> Callable[..., None]:
    """The typer command."""
    return options.command(SimulateSettings, run)
