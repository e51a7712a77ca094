"""What is simulated."""

from dataclasses import dataclass
from math import inf

from preble.cost import CostModel
from preble.errors import ConfigError
from preble.types import WorkerSpec
from preble_loadgen.simulator.faults import Fault
from preble_router.lengths import DEFAULT as LENGTH_DEFAULT
from preble_router.lengths import LENGTH_PREDICTOR_NAMES
from preble_worker.config import DEFAULT_POLICY, NO_TIERS, SchedulerConfig, TierConfig

ORACLE = "oracle"
"""The length predictor that only a simulator can have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOptions:
    """A cluster of equal workers, its policies, and what befalls it.

    Attributes:
        policy: of routing. local_policy: of each worker.
        length_predictor: of the router's, or "oracle", which knows the truth but for noise.
        length_noise: standard deviation of the logarithm of the oracle's error.
        max_tokens: limit that requests state, by which lengths may be predicted; where it is less
            than the output, as 0 is, they state the output's length itself, as a replay does.
        cost: seconds per step of each worker.
        kv_cache_tokens, max_batch_tokens, max_sequences, context_tokens, page_tokens: of each.
        prefix_caching: whether workers share and keep prefixes.
        tiers: of each worker's cache, beyond full-precision KV on the device.
        ttft_slo_seconds, tbt_slo_seconds: objectives of requests that state none.
        timeout_seconds: within which each request must have ended, or is refused if it is predicted
            not to; 0 for any time. max_queue_seconds: as in the router.
        seed: of everything random. Another seed also means other prompts with the same sharing.
        wire_seconds: what a message between router and worker takes, each way.
        report_seconds: steps that compute the same requests are reported together, for at most
            about so long; 0 reports every step on its own, as production does, and is slower.
            When each token was there stays exact; only what the router knows comes late.
        silence_seconds, max_attempts, takeover_seconds: as in the router.
        check_every: assert all invariants so often, in virtual seconds; 0 never.
        sample_every: virtual seconds between two samples of every worker's load; 0 for none.
        faults: what goes wrong.
    """

    cost: CostModel
    num_workers: int = 4
    policy: str = "preble"
    local_policy: str = DEFAULT_POLICY
    length_predictor: str = LENGTH_DEFAULT
    length_noise: float = 0.0
    max_tokens: int = 0
    kv_cache_tokens: int = 400_000
    max_batch_tokens: int = 2048
    max_sequences: int = 64
    context_tokens: int = 131_072
    page_tokens: int = 16
    vocab_size: int = 128_256
    prefix_caching: bool = True
    tiers: TierConfig = NO_TIERS
    ttft_slo_seconds: float = 1.0
    tbt_slo_seconds: float = 1.0
    timeout_seconds: float = 0.0
    max_queue_seconds: float = 0.0
    seed: int = 0
    wire_seconds: float = 0.0005
    report_seconds: float = 0.2
    silence_seconds: float = 1.5
    max_attempts: int = 3
    takeover_seconds: float = 5.0
    check_every: float = 0.0
    sample_every: float = 1.0
    faults: tuple[Fault, ...] = ()

    def check(self) -> None:
        """
        Raises:
            ConfigError: a value makes no sense.
        """
        at_least_one = {
            "workers": self.num_workers,
            "max_batch_tokens": self.max_batch_tokens,
            "max_sequences": self.max_sequences,
            "context_tokens": self.context_tokens,
            "page_tokens": self.page_tokens,
            "kv_cache_tokens in pages": self.kv_cache_tokens // max(self.page_tokens, 1),
            "max_attempts": self.max_attempts,
        }
        for name, value in at_least_one.items():
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        if self.length_predictor not in (*LENGTH_PREDICTOR_NAMES, ORACLE):
            raise ConfigError(
                f"length predictor {self.length_predictor!r} is unknown; there are "
                f"{', '.join((*LENGTH_PREDICTOR_NAMES, ORACLE))}"
            )
        for name, least in (
            ("length_noise", self.length_noise),
            ("max_tokens", self.max_tokens),
            ("timeout_seconds", self.timeout_seconds),
            ("max_queue_seconds", self.max_queue_seconds),
        ):
            if not least >= 0:
                raise ConfigError(f"{name} must be at least 0, not {least}")
        for name, seconds in (
            ("ttft_slo_seconds", self.ttft_slo_seconds),
            ("tbt_slo_seconds", self.tbt_slo_seconds),
        ):
            if not 0.0 < seconds < inf:
                raise ConfigError(f"{name} must be a number above 0, not {seconds}")
        for fault in self.faults:
            if fault.worker >= self.num_workers:
                raise ConfigError(
                    f"{fault.kind}:{fault.worker}: there are only {self.num_workers} workers, "
                    "counted from 0"
                )

    def scheduler_config(self) -> SchedulerConfig:
        """Of each worker's `LocalScheduler`."""
        return SchedulerConfig(
            num_pages=self.kv_cache_tokens // self.page_tokens,
            page_tokens=self.page_tokens,
            max_batch_tokens=self.max_batch_tokens,
            max_sequences=self.max_sequences,
            context_tokens=self.context_tokens,
            policy=self.local_policy,
            prefix_caching=self.prefix_caching,
            cost=self.cost,
            tiers=self.tiers,
            ttft_slo_seconds=self.ttft_slo_seconds,
            tbt_slo_seconds=self.tbt_slo_seconds,
        )

    def worker_spec(self, worker_id: str, *, epoch: int) -> WorkerSpec:
        """What a worker says of itself when it joins."""
        scheduler = self.scheduler_config()
        return WorkerSpec(
            worker_id=worker_id,
            epoch=epoch,
            model=self.cost.name,
            page_tokens=self.page_tokens,
            capacity_tokens=self.kv_cache_tokens,
            max_batch_tokens=self.max_batch_tokens,
            max_sequences=self.max_sequences,
            context_tokens=self.context_tokens,
            vocab_size=self.vocab_size,
            cost=self.cost,
            host_capacity_tokens=scheduler.host_capacity_tokens,
            host_token_seconds=scheduler.host_token_seconds,
        )
