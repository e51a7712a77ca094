"""Options of `preble simulate`."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from preble_deploy.choices import (
    local_policies,
    routing_policies,
    simulated_length_predictors,
)
from preble_deploy.client_settings import RESULTS
from preble_deploy.listed_words import Tiers
from preble_deploy.settings import Words
from preble_deploy.sources import Flag
from preble_deploy.trace_settings import REQUESTS, TraceOptions
from preble_worker.config import DEFAULT_POLICY

CLUSTER = "Cluster"
FIDELITY = "Faults and fidelity"


class SimulateSettings(TraceOptions):
    """`preble simulate`."""

    section: ClassVar[str] = "simulate"

    workers: Annotated[int, Field(ge=1), Flag(metavar="N", panel=CLUSTER)] = Field(
        4, description="Number of workers."
    )
    policy: Annotated[Words, Flag(metavar="NAME", panel=CLUSTER, default="preble")] = Field(
        ("preble",),
        description="Routing policy; given several times, one run each. Names: see `preble router "
        "--help`; preble:TERM=WEIGHT changes a weight, 0 switches the term off.",
    )
    local_policy: Annotated[str, Flag(metavar="NAME", panel=CLUSTER, choices=local_policies)] = (
        Field(DEFAULT_POLICY, description="Order of requests within a worker.")
    )
    length_predictor: Annotated[
        str, Flag(metavar="NAME", panel=CLUSTER, choices=simulated_length_predictors)
    ] = Field(
        "mean",
        description="How the router predicts output lengths; `oracle` takes the trace's, with "
        "--length-noise.",
    )
    length_noise: Annotated[float, Field(ge=0), Flag(metavar="SIGMA", panel=CLUSTER)] = Field(
        0.0, description="Standard deviation of the logarithm of the oracle's error."
    )
    max_tokens: Annotated[
        int, Field(ge=0), Flag(metavar="TOKENS", panel=REQUESTS, default="the output's length")
    ] = Field(
        0,
        description="Output limit that requests state. No prediction is above it, so without one "
        "every predictor but the oracle knows more than it would in production.",
    )
    cost_model: Annotated[str, Flag(metavar="NAME|FILE", panel=CLUSTER)] = Field(
        "llama-3-8b-h100",
        description="Seconds per step: a model and device that Preble knows, or a file written by "
        "`preble profile`.",
    )
    kv_cache_tokens: Annotated[
        int, Field(ge=0), Flag(metavar="TOKENS", panel=CLUSTER, default="what the device has")
    ] = Field(0, description="Size of each worker's KV cache.")
    kv_tiers: Annotated[Tiers, Flag(metavar="TIER", panel=CLUSTER, default="none")] = Field(
        (),
        description="Tiers of each worker's cache beyond full precision on the device: `host`, "
        "`int8`, `hidden`, `int8-resident`; see `preble worker --help`. Needs a named cost model.",
    )
    host_kv_tokens: Annotated[
        int, Field(ge=0), Flag(metavar="TOKENS", panel=CLUSTER, default="four times the device's")
    ] = Field(0, description="Size of each worker's cache in host memory.")
    copy_rate: Annotated[
        float, Field(ge=0), Flag(metavar="BYTES/S", panel=CLUSTER, default="the device's")
    ] = Field(0.0, description="Bytes per second between device and host.")
    ttft_slo: Annotated[
        float, Field(gt=0, allow_inf_nan=False), Flag(metavar="SECONDS", panel=CLUSTER)
    ] = Field(1.0, description="Objective for the first token of requests that state none.")
    tbt_slo: Annotated[
        float, Field(gt=0, allow_inf_nan=False), Flag(metavar="SECONDS", panel=CLUSTER)
    ] = Field(1.0, description="The same for the time between tokens, the 99th percentile.")
    timeout: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False),
        Flag(metavar="SECONDS", panel=CLUSTER, default="none"),
    ] = Field(
        0.0,
        description="Every request must have ended so soon; one that is predicted not to is "
        "refused, as by the router. Goodput counts what was in time.",
    )
    max_queue_seconds: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False),
        Flag(metavar="SECONDS", panel=CLUSTER, default="none"),
    ] = Field(
        0.0,
        description="Refuse requests whose first token is predicted to take longer.",
    )
    max_num_batched_tokens: Annotated[int, Field(ge=1), Flag(metavar="TOKENS", panel=CLUSTER)] = (
        Field(2048, description="Token budget of one step.")
    )
    max_num_seqs: Annotated[int, Field(ge=1), Flag(metavar="N", panel=CLUSTER)] = Field(
        64, description="Requests that run at the same time on a worker."
    )
    max_model_len: Annotated[int, Field(ge=1), Flag(metavar="TOKENS", panel=CLUSTER)] = Field(
        131_072, description="Longest prompt plus output of one request."
    )
    seed: Annotated[int, Field(ge=0), Flag(metavar="SEED", panel=REQUESTS)] = Field(
        0, description="Seed of everything random; the same seed gives the same digest."
    )
    faults: Annotated[Words, Flag(metavar="FAULT", panel=FIDELITY)] = Field(
        (),
        description="What goes wrong, one or more of death:W@T+D, hang:W@T+D, slow:W@T+DxF, "
        "router@T+D, loss:P, duplicate:P, stale:D for worker W (from 0), second T, duration D, "
        "factor F, probability P.",
    )
    report_seconds: Annotated[float, Field(ge=0), Flag(metavar="SECONDS", panel=FIDELITY)] = Field(
        0.2,
        description="Report steps of equal batches together for so long; 0 reports every step, as "
        "real workers do, and takes several times longer.",
    )
    check_every: Annotated[
        float, Field(ge=0), Flag(metavar="SECONDS", panel=FIDELITY, default="never")
    ] = Field(0.0, description="Assert all invariants so often, in simulated seconds.")
    jobs: Annotated[int, Field(ge=1), Flag(metavar="N", panel=RESULTS)] = Field(
        1, description="Runs at the same time, each in a process of its own."
    )
    out: Annotated[Path | None, Flag(metavar="FILE", panel=RESULTS)] = Field(
        None, description="Write figures and each worker's load over time here, as JSON."
    )
    requests_out: Annotated[Path | None, Flag(metavar="FILE", panel=RESULTS)] = Field(
        None, description="Write what happened to each request here, as JSON lines."
    )

    @field_validator("policy")
    @classmethod
    def _known_policies(cls, policies: tuple[str, ...]) -> tuple[str, ...]:
        names = routing_policies()
        if not policies or any(policy.partition(":")[0] not in names for policy in policies):
            raise ValueError(f"allowed: {', '.join(names)}")
        return policies
