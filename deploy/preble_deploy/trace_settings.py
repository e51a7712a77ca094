"""Options of the commands that make traces and look at them, and how others choose from one."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from preble_deploy.settings import Words
from preble_deploy.sources import Flag, Settings

SIZE = "How much and how fast"
CONTENT = "What"
REQUESTS = "Requests"

TraceFormat = Literal["mooncake", "preble", "agents", "azure", "servegen"]


class TraceOptions(Settings):
    """Which requests of a trace to use, how long, and how fast they come."""

    trace: Annotated[Path, Flag(argument=True, metavar="TRACE")] = Field(
        description="Mooncake, agent-session or Preble's own JSONL, Azure or ServeGen CSV, gzipped "
        "or not."
    )
    trace_format: Annotated[
        TraceFormat | None,
        Flag(names=("--format",), metavar="NAME", panel=REQUESTS, default="told by content"),
    ] = Field(None, description="Format of the trace.")
    limit: Annotated[int | None, Field(ge=1), Flag(metavar="N", panel=REQUESTS, default="all")] = (
        Field(None, description="Use the first N requests.")
    )
    skip_bad_lines: Annotated[bool, Flag(names=("--skip-bad-lines",), panel=REQUESTS)] = Field(
        False, description="Leave out lines that cannot be used, instead of stopping at the first."
    )
    max_context: Annotated[int | None, Field(ge=1), Flag(metavar="TOKENS", panel=REQUESTS)] = Field(
        None, description="Divide all lengths by what makes every request fit so many tokens."
    )
    max_output_tokens: Annotated[
        int | None, Field(ge=1), Flag(metavar="TOKENS", panel=REQUESTS)
    ] = Field(None, description="Cap of the output lengths.")
    speed: Annotated[float, Field(gt=0), Flag(metavar="X", panel=REQUESTS)] = Field(
        1.0, description="Run the trace's clock X times as fast."
    )
    rate: Annotated[float | None, Field(gt=0), Flag(metavar="REQUESTS/S", panel=REQUESTS)] = Field(
        None, description="Instead, so many requests per second on average."
    )


class WorkloadSettings(Settings):
    """`preble workload`."""

    section: ClassVar[str] = "workload"

    workload: Annotated[str, Flag(argument=True, metavar="NAME", default="list them")] = Field(
        "", description="The workload; without it, all are listed."
    )
    out: Annotated[Path | None, Flag(metavar="FILE")] = Field(
        None, description="Write the trace here; gzipped if the name ends in .gz."
    )
    requests: Annotated[
        int | None,
        Field(ge=1),
        Flag(metavar="N", panel=SIZE, default="what the prefixes get on average"),
    ] = Field(None, description="How many requests.")
    prefixes: Annotated[
        int | None,
        Field(ge=1),
        Flag(metavar="N", panel=SIZE, default="as many as so many requests, or workers, have"),
    ] = Field(None, description="How many distinct shared prefixes: tools, problems, documents.")
    workers: Annotated[int, Field(ge=1), Flag(metavar="N", panel=SIZE)] = Field(
        4, description="Size and rate are chosen for so many, unless given."
    )
    rate: Annotated[
        float | None,
        Field(gt=0),
        Flag(metavar="REQUESTS/S", panel=SIZE, default="what suits --workers"),
    ] = Field(None, description="Requests per second on average.")
    in_flight: Annotated[
        int | None, Field(ge=1), Flag(metavar="N", panel=SIZE, default="8 per worker")
    ] = Field(None, description="Requests kept in flight by the scenarios that do so.")
    seed: Annotated[int, Field(ge=0), Flag(metavar="SEED", panel=SIZE)] = Field(
        0, description="Seed of everything random."
    )
    variant: Annotated[Words, Flag(metavar="NAME", panel=CONTENT)] = Field(
        (), description="Variants, as explained above; several by commas or repetition."
    )
    zipf: Annotated[float, Field(gt=0), Flag(metavar="EXPONENT", panel=CONTENT)] = Field(
        1.1, description="Exponent of the variant zipf; the larger, the fewer prefixes matter."
    )
    cv: Annotated[float, Field(gt=0), Flag(metavar="CV", panel=CONTENT)] = Field(
        3.0, description="Coefficient of variation of the gaps in the variant bursty; 1 is Poisson."
    )
    preamble_tokens: Annotated[
        int | None, Field(ge=0), Flag(metavar="TOKENS", panel=CONTENT, default="2400")
    ] = Field(
        None,
        description="What all prompts of programming begin with; the published study tried 0, 750, "
        "1500 and 2400.",
    )
    common_percent: Annotated[
        float | None, Field(ge=0, le=95), Flag(metavar="PERCENT", panel=CONTENT, default="40")
    ] = Field(
        None,
        description="Of each prompt of common_share that all share; the published study tried 0, "
        "20, 40, 60 and 80.",
    )
    arrivals_from: Annotated[Words, Flag(metavar="TRACE", panel=CONTENT)] = Field(
        (),
        description="Replay the gaps of this trace, rescaled to the rate; for a mixed workload, "
        "one or two of them.",
    )
    lengths_from: Annotated[Path | None, Flag(metavar="TRACE", panel=CONTENT)] = Field(
        None, description="Take prompt and output lengths from this trace (no_sharing only)."
    )


class AnalyzeSettings(Settings):
    """`preble analyze`."""

    section: ClassVar[str] = "analyze"

    trace: Annotated[Path, Flag(argument=True, metavar="TRACE")] = Field(
        description="A trace of any format that `preble replay` reads."
    )
    trace_format: Annotated[
        TraceFormat | None, Flag(names=("--format",), metavar="NAME", default="told by content")
    ] = Field(None, description="Format of the trace.")
    limit: Annotated[int | None, Field(ge=1), Flag(metavar="N", default="all")] = Field(
        None, description="Look at the first N requests."
    )
    skip_bad_lines: Annotated[bool, Flag(names=("--skip-bad-lines",))] = Field(
        False, description="Leave out lines that cannot be used, instead of stopping at the first."
    )
    seed: Annotated[int, Field(ge=0), Flag(metavar="SEED")] = Field(
        0, description="Seed of the random placements."
    )
    json_output: Annotated[bool, Flag(names=("--json",))] = Field(
        False, description="Print JSON instead of tables."
    )
