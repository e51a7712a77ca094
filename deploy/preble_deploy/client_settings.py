"""Options of the commands that talk to a running cluster or look at this machine."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from preble_deploy.settings import Port
from preble_deploy.sources import Flag, Settings
from preble_deploy.trace_settings import REQUESTS, TraceOptions

TARGET = "Target"
RESULTS = "Results"


class ClientOptions(Settings):
    """How to reach a router."""

    grpc_address: Annotated[
        str, Flag(names=("--router", "--grpc-address"), metavar="HOST:PORT")
    ] = Field(
        "127.0.0.1:8001", description="gRPC address of the router; grpcs://HOST:PORT for TLS."
    )
    api_key: Annotated[str, Flag(metavar="KEY", secret=True)] = Field(
        "", description="Bearer token to present, where the router demands one."
    )
    router_ca: Annotated[Path | None, Flag(metavar="FILE")] = Field(
        None, description="PEM file that signed the router's certificate; uses TLS."
    )
    timeout_seconds: Annotated[float, Field(gt=0), Flag(metavar="SECONDS")] = Field(
        10.0, description="How long to wait for the answer."
    )
    json_output: Annotated[bool, Flag(names=("--json",))] = Field(
        False, description="Print JSON instead of a table."
    )


class StatusSettings(ClientOptions):
    """`preble status`."""

    section: ClassVar[str] = "status"

    watch: Annotated[float, Field(ge=0), Flag(metavar="SECONDS", default="once")] = Field(
        0.0, description="Print again every so many seconds until Ctrl-C."
    )


class RouteSettings(ClientOptions):
    """`preble route`."""

    section: ClassVar[str] = "route"

    text: Annotated[str, Flag(argument=True, metavar="TEXT")] = Field(
        description="The prompt; `-` reads it from standard input."
    )
    namespace: Annotated[str, Flag(metavar="NAME")] = Field(
        "", description="Tenant whose cached prefixes may be used."
    )
    max_tokens: Annotated[
        int, Field(ge=0), Flag(metavar="TOKENS", default="the router's estimate")
    ] = Field(0, description="Output limit of the imagined request.")


class DrainSettings(ClientOptions):
    """`preble drain`."""

    section: ClassVar[str] = "drain"

    worker: Annotated[str, Flag(argument=True, metavar="WORKER")] = Field(
        description="Id of the worker, as `preble status` shows it."
    )
    deadline: Annotated[
        float | None, Field(ge=0), Flag(metavar="SECONDS", default="the worker's --drain-seconds")
    ] = Field(None, description="Until what still runs there goes on elsewhere, from where it is.")
    wait: bool = Field(False, description="Return when the worker has ended.")


class ReplaySettings(TraceOptions):
    """`preble replay`."""

    section: ClassVar[str] = "replay"

    url: Annotated[str, Flag(metavar="URL", panel=TARGET)] = Field(
        "http://127.0.0.1:8000",
        description="http(s)://HOST:PORT of an OpenAI-compatible server, or grpc(s)://HOST:PORT "
        "of a Preble router.",
    )
    served_model_name: Annotated[
        str,
        Flag(
            names=("--model", "--served-model-name"),
            metavar="NAME",
            panel=TARGET,
            default="the first one listed",
        ),
    ] = Field("", description="Model to ask for.")
    api_key: Annotated[str, Flag(metavar="KEY", panel=TARGET, secret=True)] = Field(
        "", description="Bearer token to present, where the server demands one."
    )
    ca: Annotated[Path | None, Flag(metavar="FILE", panel=TARGET)] = Field(
        None, description="PEM file with the certificates to trust for https and grpcs."
    )
    timeout_seconds: Annotated[
        float,
        Field(gt=0),
        Flag(names=("--timeout", "--timeout-seconds"), metavar="SECONDS", panel=TARGET),
    ] = Field(600.0, description="Until an answer is given up.")
    vocab_size: Annotated[
        int | None, Field(ge=4), Flag(metavar="TOKENS", panel=TARGET, default="ask the cluster")
    ] = Field(None, description="Token ids of the prompts stay below it.")
    scale_lengths: Annotated[float | None, Field(ge=1), Flag(metavar="X", panel=REQUESTS)] = Field(
        None, description="Divide all lengths by X; what is shared stays shared."
    )
    seed: Annotated[int, Field(ge=0), Flag(metavar="SEED", panel=REQUESTS)] = Field(
        0, description="Seed of everything random."
    )
    out: Annotated[Path | None, Flag(metavar="FILE", panel=RESULTS)] = Field(
        None, description="Write the figures here, as JSON."
    )
    requests_out: Annotated[Path | None, Flag(metavar="FILE", panel=RESULTS)] = Field(
        None, description="Write what happened to each request here, as JSON lines."
    )


class DoctorSettings(Settings):
    """`preble doctor`."""

    section: ClassVar[str] = "doctor"

    model: Annotated[str, Flag(argument=True, metavar="MODEL")] = Field(
        "demo", description="The model that is going to be served."
    )
    host: Annotated[str, Flag(metavar="ADDRESS")] = Field(
        "127.0.0.1", description="Address the router is going to listen on."
    )
    port: Annotated[Port, Flag(metavar="PORT")] = Field(
        8000, description="Port of the HTTP gateway that is going to be used."
    )
    grpc_port: Annotated[Port | None, Flag(metavar="PORT", default="--port + 1")] = Field(
        None, description="gRPC port that is going to be used."
    )


class DownSettings(Settings):
    """`preble down`."""

    section: ClassVar[str] = "down"

    ray: Annotated[str, Flag(metavar="ADDRESS")] = Field(
        "auto", description="Address of the Ray cluster; `auto` finds the one on this machine."
    )
    name: Annotated[str, Flag(metavar="NAME")] = Field(
        "preble", description="Name that the cluster was given by `preble serve --name`."
    )
    ray_namespace: Annotated[str, Flag(metavar="NAME")] = Field(
        "preble", description="Ray namespace of its actors."
    )
