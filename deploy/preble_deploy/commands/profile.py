"""Measure how long the steps of MODEL take on a device, and fit a cost model.

Runs real steps over a grid (prefill chunks behind cached prefixes, decode batches, both together),
each after a warm-up, and fits the linear and the roofline form of the cost model by non-negative
least squares; the form that misses held-out steps by less is written to --out, for --cost-model
of `serve` and `worker`. A fit that misses one of them by over 15 % is not written, and the exit
status is 1. Nothing else should run on the device meanwhile.

[bold]Examples[/]

  preble profile demo --device cpu --threads 1 --out demo-cpu.json
  preble profile Qwen/Qwen3-8B --device cuda:0 --out qwen3-8b.json
  preble profile demo --quick --out quick.json
  preble profile meta-llama/Llama-2-7b-hf --device cuda --hidden-form --int8-form --out llama-2.json
"""

from collections.abc import Callable
from pathlib import Path

from preble_deploy import options
from preble_deploy.profile_settings import ProfileSettings


def run(settings: ProfileSettings) -> int:
    """Measures, fits and writes."""
    from preble_deploy.models import resolve_model
    from preble_loadgen.profiling import ProfileOptions, run_profile
    from preble_worker.config import WorkerConfig

    measured = {"hidden": settings.hidden_form, "int8-resident": settings.int8_form}
    model_path = resolve_model(settings.model)
    is_folder = Path(settings.model).expanduser().is_dir()
    return run_profile(
        ProfileOptions(
            worker=WorkerConfig(
                model=model_path.name if is_folder else settings.model,
                model_path=model_path,
                engine=settings.engine,
                device=settings.device,
                dtype=settings.dtype,
                threads=settings.threads,
                page_tokens=settings.page_size,
                kv_cache_tokens=settings.kv_cache_tokens,
                max_batch_tokens=settings.max_num_batched_tokens,
                max_sequences=settings.max_num_seqs,
                kv_tiers=tuple(tier for tier, wanted in measured.items() if wanted),
                cost_model=settings.cost_model,
            ),
            out=settings.out,
            plot=settings.plot or settings.out.with_suffix(".png"),
            rounds=settings.rounds,
            quick=settings.quick,
            cpu_time=settings.cpu_time,
        )
    )


def command() -> Callable[..., None]:
    """The typer command."""
    return options.command(ProfileSettings, run)
