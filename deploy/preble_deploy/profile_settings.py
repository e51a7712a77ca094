"""Options of `preble profile`."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from preble_deploy.settings import ENGINE
from preble_deploy.sources import Flag, Settings

MEASURING = "Measuring"
RESULTS = "Results"


class ProfileSettings(Settings):
    """`preble profile`."""

    section: ClassVar[str] = "profile"

    model: Annotated[str, Flag(argument=True, metavar="MODEL")] = Field(
        "demo", description="`demo`, a directory, or a name on the Hugging Face hub."
    )
    out: Annotated[Path, Flag(metavar="FILE", panel=RESULTS)] = Field(
        description="Write the cost model here, as JSON for --cost-model."
    )
    plot: Annotated[Path | None, Flag(metavar="FILE", panel=RESULTS, default="--out, as .png")] = (
        Field(None, description="Write the plot of the residuals here, as PNG.")
    )
    quick: Annotated[bool, Flag(names=("--quick",), panel=MEASURING)] = Field(
        False, description="Measure a third of the steps in a third of the time."
    )
    rounds: Annotated[int, Field(ge=1), Flag(metavar="N", panel=MEASURING)] = Field(
        9, description="Visit every step so often; more where other work disturbs the device."
    )
    cpu_time: Annotated[bool, Flag(names=("--cpu-time",), panel=MEASURING)] = Field(
        False,
        description="Time by CPU seconds, for a machine that others use too; needs --device cpu "
        "and --threads 1.",
    )
    engine: Annotated[Literal["torch", "simulated"], Flag(metavar="ENGINE", panel=ENGINE)] = Field(
        "torch", description="`torch`, or `simulated` to see what measuring itself costs."
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$"), Flag(panel=ENGINE)] = Field(
        "auto", description="`auto`, `cpu`, `cuda` or `cuda:N`."
    )
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], Flag(metavar="TYPE", panel=ENGINE)
    ] = Field("auto", description="Type of weights and KV; `auto` takes the model's own on a GPU.")
    threads: Annotated[
        int, Field(ge=0), Flag(metavar="THREADS", panel=ENGINE, default="torch's choice")
    ] = Field(0, description="CPU threads of torch.")
    page_size: Annotated[int, Field(ge=1, le=1024), Flag(metavar="TOKENS", panel=ENGINE)] = Field(
        16, description="Tokens per cache page."
    )
    kv_cache_tokens: Annotated[
        int, Field(ge=0), Flag(metavar="TOKENS", panel=ENGINE, default="what memory allows")
    ] = Field(0, description="Size of the KV cache; steps larger than it are not measured.")
    max_num_batched_tokens: Annotated[
        int, Field(ge=0), Flag(metavar="TOKENS", panel=ENGINE, default="the engine's choice")
    ] = Field(0, description="Token budget of one step, the largest that is measured.")
    max_num_seqs: Annotated[int, Field(ge=1), Flag(metavar="REQUESTS", panel=ENGINE)] = Field(
        64, description="Requests in one step, the most that are measured."
    )
    hidden_form: Annotated[bool, Flag(names=("--hidden-form",), panel=ENGINE)] = Field(
        False,
        description="Measure as well how much slower steps are whose requests are in the hidden "
        "form (`--kv-tiers hidden`), by which `adaptive` chooses it.",
    )
    int8_form: Annotated[bool, Flag(names=("--int8-form",), panel=ENGINE)] = Field(
        False,
        description="The same of requests that the device keeps in 8 bits (`--kv-tiers "
        "int8-resident`); unmeasured, a quarter of what reading keys and values takes counts.",
    )
    cost_model: Annotated[Path | None, Flag(metavar="FILE", panel=ENGINE, default="derived")] = (
        Field(None, description="Cost model of `--engine simulated`: a file, or a known name.")
    )
