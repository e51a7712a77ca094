"""Options of `preble validate`."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from preble_deploy.choices import local_policies, routing_policies
from preble_deploy.client_settings import RESULTS
from preble_deploy.sources import Flag, Settings
from preble_deploy.trace_settings import REQUESTS
from preble_worker.config import DEFAULT_POLICY

CLUSTER = "Cluster"


class ValidateSettings(Settings):
    """`preble validate`."""

    section: ClassVar[str] = "validate"

    cost_model: Annotated[str, Flag(argument=True, metavar="COST_MODEL")] = Field(
        "demo-cpu", description="The cost model to hold against the workers: a file, or a name."
    )
    model: Annotated[str, Flag(metavar="MODEL", panel=CLUSTER)] = Field(
        "demo", description="What the live workers serve, as for `serve`."
    )
    workers: Annotated[int, Field(ge=1), Flag(metavar="N", panel=CLUSTER)] = Field(
        4, description="Number of workers, live and simulated."
    )
    threads: Annotated[int, Field(ge=1), Flag(metavar="THREADS", panel=CLUSTER)] = Field(
        1, description="CPU threads of each live worker."
    )
    policy: Annotated[str, Flag(metavar="NAME", panel=CLUSTER, choices=routing_policies)] = Field(
        "preble", description="Routing policy of both."
    )
    local_policy: Annotated[str, Flag(metavar="NAME", panel=CLUSTER, choices=local_policies)] = (
        Field(DEFAULT_POLICY, description="Order of requests within a worker, of both.")
    )
    kv_cache_tokens: Annotated[int, Field(ge=16), Flag(metavar="TOKENS", panel=CLUSTER)] = Field(
        32_768, description="Size of each worker's KV cache."
    )
    max_num_batched_tokens: Annotated[int, Field(ge=1), Flag(metavar="TOKENS", panel=CLUSTER)] = (
        Field(512, description="Token budget of one step.")
    )
    max_num_seqs: Annotated[int, Field(ge=1), Flag(metavar="N", panel=CLUSTER)] = Field(
        64, description="Requests that run at the same time on a worker."
    )
    workload: Annotated[str, Flag(metavar="NAME", panel=REQUESTS)] = Field(
        "tool_use", description="What to send; `preble workload` lists the names."
    )
    trace: Annotated[Path | None, Flag(metavar="TRACE", panel=REQUESTS, default="--workload")] = (
        Field(None, description="Instead, a file that `preble replay` reads.")
    )
    requests: Annotated[int, Field(ge=1), Flag(metavar="N", panel=REQUESTS)] = Field(
        450, description="How many requests; the first third is a rehearsal."
    )
    rate: Annotated[float, Field(gt=0), Flag(metavar="REQUESTS/S", panel=REQUESTS)] = Field(
        1.5,
        description="Requests per second on average. The cores must bear it: where more workers "
        "compute at once than there are cores, live steps take longer and simulated ones do not. "
        "At 1.5 the demo model's workers compute for 145 s of the 300, all four together.",
    )
    max_context: Annotated[int, Field(ge=1), Flag(metavar="TOKENS", panel=REQUESTS)] = Field(
        8192, description="Divide all lengths by what makes every request fit so many tokens."
    )
    seed: Annotated[int, Field(ge=0), Flag(metavar="SEED", panel=REQUESTS)] = Field(
        0, description="Seed of the workload, of both routers and of the answers."
    )
    out: Annotated[Path | None, Flag(metavar="FILE", panel=RESULTS)] = Field(
        None, description="Write the comparison here, as Markdown."
    )
