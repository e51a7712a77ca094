"""Everything an operator can set about a worker, already validated."""

from dataclasses import dataclass
from math import inf
from pathlib import Path

from preble.cost import CostModel
from preble.transport import Tls
from preble_worker.kv_form import CompactForm, KvForm
from preble_worker.policies.policy import UNMEASURED, PolicyOptions

DEFAULT_POLICY = "alise"
"""The best behind the router where requests queue, and no worse where they do not
(`loadgen/SCHEDULING.md`)."""
KV_TIERS = ("host", "int8", "hidden", "int8-resident")
"""What `--kv-tiers` takes, besides full-precision KV on the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierConfig:
    """Where else a request's memory may be than in full precision on the device. All off by
    default.

    Attributes:
        host_pages: pages of the pool in host memory, 0 for none.
        int8: keys and values that leave the device are quantized, and halve what crosses; a
            host page then takes half the memory. Such pages come back to their own request only.
        page_bytes: of a page at full precision, for reports; 0 if not known.
        page_copy_seconds: what a page takes to cross, one way, at full precision.
        hidden_page_tokens: tokens in the hidden form that fit a page, 0 where that form is off;
            page_tokens · 2·n_kv·d_h / d_model, rounded down, and more than `page_tokens`.
        int8_page_tokens: tokens in int8, with their scales, that fit a page; 0 where no request is
            kept so on the device.
        cost: of the model's steps, by which swapping is weighed against recomputing, and the
            compact forms against waiting; it has their slowdowns.
    """

    host_pages: int = 0
    int8: bool = False
    page_bytes: int = 0
    page_copy_seconds: float = 0.0
    hidden_page_tokens: int = 0
    int8_page_tokens: int = 0
    cost: CostModel | None = None

    @property
    def page_tokens_of(self) -> dict[KvForm, int]:
        """Tokens per page of the compact forms that there are."""
        of = {KvForm.HIDDEN: self.hidden_page_tokens, KvForm.INT8: self.int8_page_tokens}
        return {form: tokens for form, tokens in of.items() if tokens}

    def compact_forms(self, cost: CostModel) -> tuple[CompactForm, ...]:
        """They, with what `cost` says of each, smallest first."""
        seconds = {KvForm.HIDDEN: cost.per_hidden_token, KvForm.INT8: cost.int8_token_seconds}
        forms = [CompactForm(f, tokens, seconds[f]) for f, tokens in self.page_tokens_of.items()]
        return tuple(sorted(forms, key=lambda form: -form.page_tokens))

    @property
    def copy_seconds(self) -> float:
        """What a page takes to cross, one way, in the form in which it does."""
        return self.page_copy_seconds * (0.5 if self.int8 else 1.0)

    @property
    def crossing_bytes(self) -> int:
        """Of a page, in the form in which it crosses."""
        return self.page_bytes // 2 if self.int8 else self.page_bytes


NO_TIERS = TierConfig()


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
        tiers: of the cache, beyond full-precision KV on the device.
        cost: seconds per step, for policies that compare times; None where nobody measured them.
        ttft_slo_seconds: objective for the first token of requests that state none.
        tbt_slo_seconds: objective for the time between tokens of requests that state none.
    """

    num_pages: int
    page_tokens: int = 16
    max_batch_tokens: int = 512
    max_sequences: int = 64
    context_tokens: int = 8192
    policy: str = DEFAULT_POLICY
    prefix_caching: bool = True
    age_escape_seconds: float = 10.0
    eos_token_ids: tuple[int, ...] = ()
    tiers: TierConfig = NO_TIERS
    cost: CostModel | None = None
    ttft_slo_seconds: float = 1.0
    tbt_slo_seconds: float = 1.0

    @property
    def max_running(self) -> int:
        """Each decode takes a token of the budget, so more than that could not all run."""
        return min(self.max_sequences, self.max_batch_tokens)

    @property
    def keeps_evicted(self) -> bool:
        """Whether prefixes that the device evicts may go to the host, for whoever has the same."""
        return self.prefix_caching and self.tiers.host_pages > 0 and not self.tiers.int8

    @property
    def host_capacity_tokens(self) -> int:
        """Tokens of such prefixes that fit the host's pool."""
        return self.tiers.host_pages * self.page_tokens if self.keeps_evicted else 0

    @property
    def host_token_seconds(self) -> float:
        """What a token's KV takes to cross, one way; 0 without the host's pool."""
        return self.tiers.copy_seconds / self.page_tokens if self.tiers.host_pages else 0.0

    @property
    def policy_options(self) -> PolicyOptions:
        """What the policy is made with."""
        return PolicyOptions(
            cost=self.cost or UNMEASURED,
            age_escape_seconds=self.age_escape_seconds,
            ttft_slo_seconds=self.ttft_slo_seconds,
            swap_token_seconds=2.0 * self.host_token_seconds if self.tiers.host_pages else inf,
        )


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
        kv_tiers: some of KV_TIERS.
        host_kv_tokens: size of the host's pool, 0 for four times the device's; counts if
            `kv_tiers` has "host".
        copy_rate: bytes per second between device and host; 0 takes what the device is known for.
        ttft_slo_seconds, tbt_slo_seconds: objectives of requests that state none.
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
    policy: str = DEFAULT_POLICY
    prefix_caching: bool = True
    kv_tiers: tuple[str, ...] = ()
    host_kv_tokens: int = 0
    copy_rate: float = 0.0
    ttft_slo_seconds: float = 1.0
    tbt_slo_seconds: float = 1.0
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
