"""Options of `preble demo`."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from preble_deploy.choices import routing_policies
from preble_deploy.client_settings import RESULTS
from preble_deploy.settings import Words
from preble_deploy.sources import Flag, Settings
from preble_deploy.trace_settings import REQUESTS

CLUSTER = "Cluster"


class DemoSettings(Settings):
    """`preble demo`."""

    section: ClassVar[str] = "demo"

    policy: Annotated[
        Words, Flag(metavar="NAME", panel=CLUSTER, default="round_robin, e2 and preble")
    ] = Field(
        ("round_robin", "e2", "preble"),
        description="Routing policy; given several times, one cluster each. Names: see `preble "
        "router --help`.",
    )
    workers: Annotated[int, Field(ge=1), Flag(metavar="N", panel=CLUSTER)] = Field(
        4, description="Number of workers."
    )
    cost_model: Annotated[str, Flag(metavar="NAME", panel=CLUSTER)] = Field(
        "mistral-7b-a6000", description="What the workers' engines pretend to be."
    )
    workload: Annotated[str, Flag(metavar="NAME", panel=REQUESTS)] = Field(
        "tool_use", description="What to send; `preble workload` lists the names."
    )
    seconds: Annotated[float, Field(gt=0), Flag(metavar="SECONDS", panel=REQUESTS)] = Field(
        40.0, description="How long requests come under each policy."
    )
    rate: Annotated[float, Field(gt=0), Flag(metavar="REQUESTS/S", panel=REQUESTS)] = Field(
        9.0, description="Requests per second on average."
    )
    seed: Annotated[int, Field(ge=0), Flag(metavar="SEED", panel=REQUESTS)] = Field(
        1, description="Seed of the workload and of the routers."
    )
    html: Annotated[Path, Flag(metavar="FILE", panel=RESULTS)] = Field(
        Path("demo.html"), description="The report, with plots."
    )

    @field_validator("policy")
    @classmethod
    def _known_policies(cls, policies: tuple[str, ...]) -> tuple[str, ...]:
        names = routing_policies()
        if not policies or not set(policies) <= set(names):
            raise ValueError(f"allowed: {', '.join(names)}")
        return policies
