"""Write a synthetic workload as a trace, to replay, to simulate or to analyze.

Lengths, sharing and popularity are those published of real data sets; no data set is needed. The
same options write the same file. Without NAME, all workloads are listed with their variants.

Variants: [bold]even[/] (every prefix equally often), [bold]zipf[/] (popularity by Zipf's law),
[bold]bursty[/] (gamma arrivals), [bold]drift[/] (popularity changes every 5 minutes),
[bold]hot-burst[/] (for 30 s half of the arrivals go to one prefix), [bold]singles[/] (a tenth of
the prompts shares no document), [bold]sessions[/] (closed loop), [bold]study[/] (shared few-shot
examples), [bold]as-sent[/] (caps of the published load generator; mixed: its arrivals,
from record 200 of each trace).

[bold]Examples[/]

  preble workload tool_use --out tools.jsonl
  preble workload tool_use --variant zipf,bursty --zipf 1.4 --workers 8 --out hot.jsonl.gz
  preble workload mixed --arrivals-from azure_code.csv --rate 12 --out mixed.jsonl
  preble workload programming --preamble-tokens 750 --out short.jsonl
  preble workload common_share --common-percent 80 --out common.jsonl
  preble workload no_sharing --lengths-from servegen.csv --requests 5000 --out none.jsonl
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from preble.errors import ConfigError
from preble_deploy import options
from preble_deploy.trace_settings import WorkloadSettings
from preble_loadgen.wide_console import wide_console

if TYPE_CHECKING:
    from preble_loadgen.workloads import WorkloadOptions


def run(settings: WorkloadSettings) -> int:
    """Writes the trace, or lists what there is."""
    from preble_loadgen.traces import save_trace
    from preble_loadgen.workloads import make_workload

    if not settings.workload:
        _list()
        return 0
    if settings.out is None:
        raise ConfigError("--out is missing; allowed: a file for the trace")
    console = Console(stderr=True, highlight=False)
    with console.status(f"drawing {settings.workload}") as status:
        trace = make_workload(settings.workload, _options(settings))
        status.update(f"writing {len(trace.requests):,} requests")
        save_trace(trace, settings.out)
    console.print(
        f"{settings.out}: {len(trace.requests):,} requests over {trace.requests[-1].at:,.0f} s; "
        f"preble analyze {settings.out} shows what is in it",
        soft_wrap=True,
    )
    return 0


def _options(settings: WorkloadSettings) -> "WorkloadOptions":
    from preble_loadgen.scaling import prompt_tokens
    from preble_loadgen.traces import load_trace
    from preble_loadgen.workloads import WorkloadOptions

    recorded = [load_trace(Path(name)).requests for name in settings.arrivals_from]
    measured = load_trace(settings.lengths_from).requests if settings.lengths_from else ()
    return WorkloadOptions(
        requests=settings.requests,
        prefixes=settings.prefixes,
        rate=settings.rate,
        workers=settings.workers,
        in_flight=settings.in_flight,
        seed=settings.seed,
        variants=frozenset(settings.variant),
        zipf=settings.zipf,
        cv=settings.cv,
        preamble_tokens=settings.preamble_tokens,
        common_percent=settings.common_percent,
        arrivals=tuple(tuple(request.at for request in requests) for requests in recorded),
        lengths=tuple((prompt_tokens(request), request.output_tokens) for request in measured),
    )


def _list() -> None:
    from preble_loadgen.workloads import VARIANTS, WORKLOADS

    table = Table("workload", "what it imitates", "variants", box=None, pad_edge=False)
    for name, workload in WORKLOADS.items():
        variants = ", ".join(variant for variant in VARIANTS if variant in workload.variants)
        table.add_row(name, workload.summary, variants)
    wide_console().print(table)


def command() -> Callable[..., None]:
    """The typer command."""
    return options.command(WorkloadSettings, run)
