"""Everything an operator can set about a worker, already validated."""

from dataclasses import dataclass
from pathlib import Path

from preble.transport import Tls


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Options of the `LocalScheduler`, all pure numbers.

    Attributes:
        num_pages: pages of the KV pool.
        page_tokens: tokens per page.
        max_batch_tokens: token budget of one step.
        max_sequences: requests that run at the same time.
        context_tokens: longest prompt plus output of one request.
        policy: name of a local policy.
        prefix_caching: share and keep prefixes; off, every request computes its whole prompt.
        age_escape_seconds: a request that waited longer goes first, whatever the policy.
        eos_token_ids: tokens that end an output unless the request ignores them.
    """

    num_pages: int
    page_tokens: int = 16
    max_batch_tokens: int = 512
    max_sequences: int = 64
    context_tokens: int = 8192
    policy: str = "preble_groups"
    prefix_caching: bool = True
    age_escape_seconds: float = 10.0
    eos_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """Options of one worker process.

    Attributes:
        model: name under which the model is served.
        model_path: directory with config.json and safetensors; the simulated engine reads
            config.json only.
        engine: "torch" or "simulated".
        host, port: where the gRPC service listens; port 0 lets the system pick.
        advertise: address by which routers reach it; "" for host:port.
        routers: gRPC addresses of routers to announce itself to while none is linked.
        kv_cache_tokens: size of the KV pool; 0 lets the engine choose.
        context_tokens: 0 takes the model's own limit.
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: torch's intra-op threads on the CPU; 0 leaves torch's default.
        cost_model: JSON file with coefficients, or a name in `preble.cost_library`; None takes what
            is known of the model on the device, else first principles.
        token: bearer token that routers must present, "" for none.
        router_token, router_ca: credentials when announcing itself to routers.
        drain_seconds: how long running requests may go on after SIGTERM.
    """

    model: str
    model_path: Path
    engine: str = "torch"
    worker_id: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    advertise: str = ""
    routers: tuple[str, ...] = ()
    page_tokens: int = 16
    kv_cache_tokens: int = 0
    max_batch_tokens: int = 0
    max_sequences: int = 64
    context_tokens: int = 0
    policy: str = "preble_groups"
    prefix_caching: bool = True
    dtype: str = "auto"
    device: str = "auto"
    threads: int = 0
    cost_model: Path | None = None
    token: str = ""
    router_token: str = ""
    router_ca: Path | None = None
    tls: Tls | None = None
    drain_seconds: float = 30.0
    log_level: str = "info"
