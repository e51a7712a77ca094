"""Every option of every command, once: name, meaning, unit, default, what is allowed.

The command line, the PREBLE_* variables and the YAML keys are made from these classes (`port` is
`--port`, `PREBLE_PORT` and `port:`), and so is the help. The classes end in the plain
configurations that the router and the worker take.
"""

import socket
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from preble.transport import Tls
from preble_deploy.choices import length_predictors, local_policies, routing_policies
from preble_deploy.listed_words import Addresses, Tiers, words
from preble_deploy.overload_settings import OverloadOptions
from preble_deploy.sources import Flag, Settings
from preble_router.config import RouterConfig
from preble_worker.config import DEFAULT_POLICY, WorkerConfig

LOOPBACK = "127.0.0.1"
WILDCARDS = frozenset({"0.0.0.0", "::", "[::]"})


Words = Annotated[tuple[str, ...], BeforeValidator(words)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0)]

MODEL = "Model"
LISTENING = "Listening"
ROUTING = "Routing"
ENGINE = "Engine and cache"
SECURITY = "Security"
OPERATION = "Operation"
CLUSTER = "Cluster"


class ProcessSettings(Settings):
    """What every process that serves has."""

    model: Annotated[str, Flag(argument=True, metavar="MODEL")] = Field(
        "demo",
        description="`demo` (a tiny model made on the spot, no download), a directory with "
        "config.json, safetensors and tokenizer, or a name on the Hugging Face hub.",
    )
    served_model_name: Annotated[
        str, Flag(metavar="NAME", panel=MODEL, default="MODEL, or its last folder")
    ] = Field("", description="Name under which clients ask for the model.")
    page_size: Annotated[
        int,
        Field(ge=1, le=1024),
        Flag(names=("--page-size", "--block-size"), metavar="TOKENS", panel=MODEL),
    ] = Field(
        16,
        description="Tokens per cache page; prefixes are shared in whole pages. "
        "The same for router and workers.",
    )
    host: Annotated[str, Flag(metavar="ADDRESS", panel=LISTENING)] = Field(
        LOOPBACK,
        description="Address to listen on. Only this machine reaches the default; 0.0.0.0 is "
        "every interface.",
    )
    drain_seconds: Annotated[Seconds, Flag(metavar="SECONDS", panel=OPERATION)] = Field(
        30.0, description="How long running requests may go on after SIGTERM or Ctrl-C."
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Flag(metavar="LEVEL", panel=OPERATION)
    ] = Field("info", description="Least severe log lines to print.")
    worker_token: Annotated[str, Flag(metavar="TOKEN", panel=SECURITY, secret=True)] = Field(
        "", description="Bearer token that workers demand from routers."
    )
    ssl_certfile: Annotated[Path | None, Flag(metavar="FILE", panel=SECURITY, default="none")] = (
        Field(None, description="PEM certificate chain; serves over TLS.")
    )
    ssl_keyfile: Annotated[Path | None, Flag(metavar="FILE", panel=SECURITY, default="none")] = (
        Field(None, description="PEM private key of --ssl-certfile.")
    )
    ssl_ca_certs: Annotated[Path | None, Flag(metavar="FILE", panel=SECURITY, default="none")] = (
        Field(None, description="PEM file; demand client certificates that it signed (mTLS).")
    )

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Self:
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ValueError("--ssl-certfile and --ssl-keyfile must be given together")
        if self.ssl_ca_certs and not self.ssl_certfile:
            raise ValueError("--ssl-ca-certs needs --ssl-certfile and --ssl-keyfile")
        return self

    @property
    def tls(self) -> Tls | None:
        """The PEM files of the server, None for plain text."""
        if self.ssl_certfile is None or self.ssl_keyfile is None:
            return None
        return Tls(certificate=self.ssl_certfile, key=self.ssl_keyfile, client_ca=self.ssl_ca_certs)

    @property
    def model_name(self) -> str:
        """The name clients use: as told, or the model's own; a directory's is its last part."""
        if self.served_model_name:
            return self.served_model_name
        path = Path(self.model)
        return path.resolve().name if path.is_dir() else self.model


class RouterOptions(ProcessSettings, OverloadOptions):
    """What decides how requests are accepted and placed."""

    port: Annotated[Port, Flag(metavar="PORT", panel=LISTENING)] = Field(
        8000, description="Port of the HTTP gateway; 0 lets the system pick one."
    )
    grpc_port: Annotated[
        Port | None, Flag(metavar="PORT", panel=LISTENING, default="--port + 1")
    ] = Field(None, description="Port of the gRPC services; 0 lets the system pick one.")
    policy: Annotated[str, Flag(metavar="NAME", panel=ROUTING, choices=routing_policies)] = Field(
        "preble", description="How a worker is chosen for a request."
    )
    length_predictor: Annotated[
        str, Flag(metavar="NAME", panel=ROUTING, choices=length_predictors)
    ] = Field(
        "mean",
        description="How output lengths are predicted, for routing and for workers that order "
        "requests by length: the mean of all, the request's limit, the mean of prompts that begin "
        "alike, or that of the most similar prompts.",
    )
    length_embedder: Annotated[Path | None, Flag(metavar="DIR", panel=ROUTING, default="none")] = (
        Field(
            None,
            description="Sentence encoder (config.json, weights, tokenizer) by which `retrieval` "
            "tells similar prompts; without one it compares their hashed n-grams.",
        )
    )
    worker_urls: Annotated[Addresses, Flag(metavar="HOST:PORT", panel=ROUTING)] = Field(
        (),
        description="gRPC addresses of workers to link to, beside those that announce "
        "themselves. Repeat it, or separate them with commas.",
    )
    max_live_requests: Annotated[int, Field(ge=1), Flag(metavar="REQUESTS", panel=ROUTING)] = Field(
        4096, description="Requests accepted and not ended; beyond it clients get 429."
    )
    default_max_tokens: Annotated[int, Field(ge=1), Flag(metavar="TOKENS", panel=ROUTING)] = Field(
        256, description="Output limit of a request that states none."
    )
    silence_seconds: Annotated[float, Field(gt=0), Flag(metavar="SECONDS", panel=ROUTING)] = Field(
        1.5, description="A worker whose step loop is silent for longer gets no requests."
    )
    max_attempts: Annotated[int, Field(ge=1), Flag(metavar="ATTEMPTS", panel=ROUTING)] = Field(
        3, description="How many workers a request may be placed on before it fails."
    )
    seed: Annotated[int, Field(ge=0), Flag(metavar="SEED", panel=ROUTING)] = Field(
        0, description="Seed of the router's random choices."
    )
    journal: Annotated[Path | None, Flag(metavar="FILE", panel=ROUTING, default="none")] = Field(
        None, description="Record every input of the scheduler here, to replay its decisions."
    )
    api_key: Annotated[Words, Flag(metavar="KEY", panel=SECURITY, secret=True)] = Field(
        (), description="Accept only requests that carry one of these bearer tokens. Repeatable."
    )
    worker_ca: Annotated[Path | None, Flag(metavar="FILE", panel=SECURITY, default="none")] = Field(
        None, description="PEM file that signed the workers' certificates; uses TLS towards them."
    )
    router_id: Annotated[
        str, Flag(metavar="NAME", panel=OPERATION, default="host name and --grpc-port")
    ] = Field("", description="Name of this router, unique among those that share workers.")

    @property
    def effective_grpc_port(self) -> int:
        """The gRPC port: as told, or the one after the gateway's (any, if that is any)."""
        if self.grpc_port is not None:
            return self.grpc_port
        return self.port + 1 if 0 < self.port < 65535 else 0

    def router_config(self, model_path: Path) -> RouterConfig:
        """The configuration of a router of the model in the directory `model_path`."""
        return RouterConfig(
            model=self.model_name,
            model_path=model_path,
            host=self.host,
            port=self.port,
            grpc_port=self.effective_grpc_port,
            router_id=self.router_id or f"{socket.gethostname()}:{self.effective_grpc_port}",
            workers=self.worker_urls,
            policy=self.policy,
            length_predictor=self.length_predictor,
            length_embedder=self.length_embedder,
            page_tokens=self.page_size,
            max_live_requests=self.max_live_requests,
            default_max_tokens=self.default_max_tokens,
            silence_seconds=self.silence_seconds,
            max_attempts=self.max_attempts,
            seed=self.seed,
            api_keys=self.api_key,
            worker_token=self.worker_token,
            worker_ca=self.worker_ca,
            tls=self.tls,
            journal=self.journal,
            drain_seconds=self.drain_seconds,
            log_level=self.log_level,
            **self.overload_config,
        )


class EngineOptions(ProcessSettings):
    """What decides how a worker computes and what it keeps."""

    engine: Annotated[Literal["torch", "simulated"], Flag(metavar="ENGINE", panel=ENGINE)] = Field(
        "torch",
        description="`torch` computes; `simulated` sleeps as long as the cost model says and "
        "answers with made-up tokens, for load tests without a GPU.",
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$"), Flag(panel=ENGINE)] = Field(
        "auto", description="`auto`, `cpu`, `cuda` or `cuda:N`."
    )
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], Flag(metavar="TYPE", panel=ENGINE)
    ] = Field("auto", description="Type of weights and KV; `auto` takes the model's own on a GPU.")
    max_model_len: Annotated[
        int, Field(ge=0), Flag(metavar="TOKENS", panel=ENGINE, default="the model's")
    ] = Field(0, description="Longest prompt plus output of one request.")
    max_num_seqs: Annotated[int, Field(ge=1), Flag(metavar="REQUESTS", panel=ENGINE)] = Field(
        64, description="Requests that run at the same time on one worker."
    )
    max_num_batched_tokens: Annotated[
        int, Field(ge=0), Flag(metavar="TOKENS", panel=ENGINE, default="the engine's choice")
    ] = Field(0, description="Token budget of one step, prefill chunks and decodes together.")
    kv_cache_tokens: Annotated[
        int, Field(ge=0), Flag(metavar="TOKENS", panel=ENGINE, default="what memory allows")
    ] = Field(0, description="Size of the KV cache of one worker.")
    local_policy: Annotated[str, Flag(metavar="NAME", panel=ENGINE, choices=local_policies)] = (
        Field(DEFAULT_POLICY, description="In which order a worker starts waiting requests.")
    )
    enable_prefix_caching: Annotated[
        bool,
        Flag(names=("--enable-prefix-caching/--no-enable-prefix-caching",), panel=ENGINE),
    ] = Field(True, description="Keep prefixes and share them between requests.")
    kv_tiers: Annotated[Tiers, Flag(metavar="TIER", panel=ENGINE, default="none")] = Field(
        (),
        description="Where else requests may be kept than in full precision on the device: `host` "
        "memory, to which preempted requests and evicted prefixes go where copying takes less than "
        "computing them again; `int8`, the form that requests have there, while prefixes then do "
        "not go there; `hidden`, what keys and values are projected from, where a model keeps less "
        "of that; `int8-resident`, keys and values in 8 bits on the device, half as large and not "
        "exact. Only `adaptive` uses the last two. Repeat it, or separate them with commas.",
    )
    host_kv_tokens: Annotated[
        int, Field(ge=0), Flag(metavar="TOKENS", panel=ENGINE, default="four times the device's")
    ] = Field(0, description="Size of one worker's cache in host memory, with `--kv-tiers host`.")
    copy_rate: Annotated[
        float, Field(ge=0), Flag(metavar="BYTES/S", panel=ENGINE, default="the device's")
    ] = Field(
        0.0,
        description="Bytes per second between device and host, by which swapping is weighed. On a "
        "CPU copies also take as long.",
    )
    ttft_slo: Annotated[
        float, Field(gt=0, allow_inf_nan=False), Flag(metavar="SECONDS", panel=ENGINE)
    ] = Field(
        1.0,
        description="Objective for the time to the first token of requests that state none; the "
        "local policies `edf` and `adaptive` go by it.",
    )
    tbt_slo: Annotated[
        float, Field(gt=0, allow_inf_nan=False), Flag(metavar="SECONDS", panel=ENGINE)
    ] = Field(1.0, description="The same for the time between tokens; `adaptive` goes by it.")
    threads: Annotated[
        int, Field(ge=0), Flag(metavar="THREADS", panel=ENGINE, default="cores per worker")
    ] = Field(0, description="CPU threads of one worker's torch.")
    cost_model: Annotated[Path | None, Flag(metavar="FILE", panel=ENGINE, default="derived")] = (
        Field(
            None,
            description="How long steps take: a JSON file made by `preble profile`, or the name of "
            "a cost model that comes with Preble, such as llama-3-8b-h100.",
        )
    )

    def worker_config(self, model_path: Path, **changes: Any) -> WorkerConfig:
        """The configuration of a worker of the model in `model_path`, with `changes`."""
        options: dict[str, Any] = {
            "engine": self.engine,
            "host": self.host,
            "page_tokens": self.page_size,
            "kv_cache_tokens": self.kv_cache_tokens,
            "max_batch_tokens": self.max_num_batched_tokens,
            "max_sequences": self.max_num_seqs,
            "context_tokens": self.max_model_len,
            "policy": self.local_policy,
            "prefix_caching": self.enable_prefix_caching,
            "kv_tiers": self.kv_tiers,
            "host_kv_tokens": self.host_kv_tokens,
            "copy_rate": self.copy_rate,
            "ttft_slo_seconds": self.ttft_slo,
            "tbt_slo_seconds": self.tbt_slo,
            "dtype": self.dtype,
            "device": self.device,
            "threads": self.threads,
            "cost_model": self.cost_model,
            "token": self.worker_token,
            "tls": self.tls,
            "drain_seconds": self.drain_seconds,
            "log_level": self.log_level,
        }
        return WorkerConfig(model=self.model_name, model_path=model_path, **(options | changes))


class RouterSettings(RouterOptions):
    """`preble router`."""

    section: ClassVar[str] = "router"


class WorkerSettings(EngineOptions):
    """`preble worker`."""

    section: ClassVar[str] = "worker"

    port: Annotated[Port, Flag(metavar="PORT", panel=LISTENING)] = Field(
        0, description="Port of the worker's gRPC service; 0 lets the system pick one."
    )
    advertise: Annotated[
        str, Flag(metavar="HOST:PORT", panel=LISTENING, default="--host and --port")
    ] = Field("", description="Address by which routers reach this worker, if it is another.")
    router: Annotated[Addresses, Flag(metavar="HOST:PORT", panel=CLUSTER)] = Field(
        (),
        description="gRPC addresses of routers to announce itself to whenever they are not "
        "linked. Repeat it, or separate them with commas.",
    )
    worker_id: Annotated[str, Flag(metavar="NAME", panel=CLUSTER, default="made up")] = Field(
        "", description="Name of this worker, unique in the cluster."
    )
    router_token: Annotated[str, Flag(metavar="KEY", panel=SECURITY, secret=True)] = Field(
        "", description="API key to present to routers."
    )
    router_ca: Annotated[Path | None, Flag(metavar="FILE", panel=SECURITY, default="none")] = Field(
        None, description="PEM file that signed the routers' certificates; uses TLS towards them."
    )

    def config_of(self, model_path: Path) -> WorkerConfig:
        """The configuration of this worker."""
        return self.worker_config(
            model_path,
            port=self.port,
            advertise=self.advertise,
            routers=self.router,
            worker_id=self.worker_id,
            router_token=self.router_token,
            router_ca=self.router_ca,
        )


class ServeSettings(RouterOptions, EngineOptions):
    """`preble serve`: a router and its workers."""

    section: ClassVar[str] = "serve"

    workers: Annotated[
        int | None, Field(ge=1), Flag(metavar="N", panel=CLUSTER, default="one per GPU, or 1")
    ] = Field(None, description="How many workers to bring up.")
    local: Annotated[bool, Flag(panel=CLUSTER, names=("--local",), default="unless --ray")] = Field(
        False, description="Run everything on this machine as subprocesses."
    )
    ray: Annotated[str | None, Flag(metavar="[ADDRESS]", panel=CLUSTER)] = Field(
        None,
        description="Run router and workers as actors of the Ray cluster at ADDRESS. Without an "
        "address: of the cluster found on this machine, or one started on the spot.",
    )
    name: Annotated[str, Field(pattern=r"^[\w.-]+$"), Flag(metavar="NAME", panel=CLUSTER)] = Field(
        "preble", description="Name of the cluster; its Ray actors' names begin with it."
    )
    ray_namespace: Annotated[str, Flag(metavar="NAME", panel=CLUSTER)] = Field(
        "preble", description="Ray namespace of the actors."
    )
    ray_num_cpus: Annotated[float, Field(ge=0), Flag(metavar="CPUS", panel=CLUSTER)] = Field(
        1.0, description="CPUs that Ray sets aside for one worker."
    )
    detach: Annotated[bool, Flag(panel=CLUSTER, names=("--detach",))] = Field(
        False, description="With --ray: leave the actors running and return once they are ready."
    )
    startup_seconds: Annotated[float, Field(gt=0), Flag(metavar="SECONDS", panel=OPERATION)] = (
        Field(600.0, description="How long to wait for every worker to be ready.")
    )

    @model_validator(mode="after")
    def _one_launcher(self) -> Self:
        if self.local and self.ray is not None:
            raise ValueError("--local and --ray exclude each other")
        if self.detach and self.ray in (None, "local"):
            raise ValueError("--detach needs --ray and a Ray cluster that outlives this command")
        if self.ray and "://" in self.ray:
            raise ValueError(
                f"--ray is {self.ray!r}; allowed: auto, local or HOST:PORT (run this on a node of "
                "the cluster; Ray's client protocol is not used)"
            )
        if self.ssl_ca_certs:
            raise ValueError(
                "--ssl-ca-certs is not for `serve`; start `preble router` and `preble worker`"
            )
        return self
