"""Show what a trace asks of a cluster: lengths, arrivals, and how much its prompts share.

Hit shares are those of caches that never evict: ideal with one cache for all, and with as many
caches as workers where each request goes to a random one. What lies between is what prefix-aware
routing can win. The reuse distance in tokens tells how large caches must be for it.

[bold]Examples[/]

  preble analyze trace.jsonl
  preble analyze mooncake.jsonl.gz --limit 5000
  preble analyze azure.csv --json > figures.json
"""

from collections.abc import Callable

from rich.console import Console

from preble_deploy import options
from preble_deploy.trace_settings import AnalyzeSettings
from preble_loadgen.wide_console import wide_console


def run(settings: AnalyzeSettings) -> int:
    """Prints the figures."""
    from preble_loadgen.analysis import analyze
    from preble_loadgen.analysis_text import analysis_json, print_analysis
    from preble_loadgen.traces import load_trace

    with Console(stderr=True).status(f"reading {settings.trace}") as status:
        trace = load_trace(
            settings.trace,
            format=settings.trace_format,
            limit=settings.limit,
            skip_bad_lines=settings.skip_bad_lines,
        )
        status.update(f"comparing {len(trace.requests):,} prompts")
        analysis = analyze(trace.requests, seed=settings.seed)
    if settings.json_output:
        print(analysis_json(trace, analysis))  # noqa: T201
    else:
        print_analysis(wide_console(), trace, analysis)
    return 0


def command() -> Callable[..., None]:
    """The typer command."""
    return options.command(AnalyzeSettings, run)
