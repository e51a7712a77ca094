"""Cost models and KV capacities of known models on known devices, computed from what they are.

Nothing here was measured. A step is a roofline of these assumptions:

    compute     half of the data sheet's dense bfloat16 FLOP/s, in products and in attention
    bandwidth   four fifths of the data sheet's bytes/s
    fixed       1 ms per step for launching kernels, sampling and the scheduler
    tensor      products are split evenly; two all-reduces per layer cost 18 % of the compute
    parallel    (8192 numbers per token and layer over NVLink), and 10 µs each in every step
    KV cache    nine tenths of the memory that the weights leave

A token is multiplied with every weight but the input embedding's, whose rows are only read. That
counts the output head for each prompt token, though engines compute it for the last one only: 2 to
9 % too much for the models below, 35 % for the smallest.
"""

from dataclasses import dataclass, replace

from preble.cost import CostModel

BYTES_PER_NUMBER = 2
"""bfloat16, weights and KV."""

COMPUTE_SHARE = 0.5
BANDWIDTH_SHARE = 0.8
KV_SHARE = 0.9
FIXED_SECONDS = 1e-3
TENSOR_PARALLEL_SHARE = 1.0 / 1.18
ALL_REDUCE_SECONDS = 10e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """Sizes of a decoder without its biases, from its config.json.

    Attributes:
        gated: the feed-forward block has three matrices, as in the Llama family, not two.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab_size: int
    tied_embeddings: bool = False
    gated: bool = True

    @property
    def multiplied_parameters(self) -> int:
        """Weights that a token is multiplied with, norms left out."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        feed_forward = (3 if self.gated else 2) * self.hidden * self.intermediate
        return self.layers * (attention + feed_forward) + self.hidden * self.vocab_size

    @property
    def parameters(self) -> int:
        """All weights, norms left out."""
        embedding = 0 if self.tied_embeddings else self.hidden * self.vocab_size
        return self.multiplied_parameters + embedding

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        return self.layers * self.kv_numbers * BYTES_PER_NUMBER

    @property
    def kv_numbers(self) -> int:
        """Keys and values of one token in one layer."""
        return 2 * self.kv_heads * self.head_dim

    @property
    def hidden_saves_memory(self) -> bool:
        """Whether the input of the QKV projection is smaller than the keys and values."""
        return self.hidden < self.kv_numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What the data sheet says, per GPU. `memory_bytes` is what the driver reports as total.
    `host_bytes_per_second` is sustained one way between pinned memory and device, PCIe 4 x16.
    """

    name: str
    flops_per_second: float
    bytes_per_second: float
    memory_bytes: int
    gpus: int = 1
    host_bytes_per_second: float = 25e9


LLAMA_3_8B = DecoderShape(
    name="Llama-3-8B",
    layers=32,
    hidden=4096,
    heads=32,
    kv_heads=8,
    head_dim=128,
    intermediate=14_336,
    vocab_size=128_256,
)
LLAMA_3_70B = DecoderShape(
    name="Llama-3-70B",
    layers=80,
    hidden=8192,
    heads=64,
    kv_heads=8,
    head_dim=128,
    intermediate=28_672,
    vocab_size=128_256,
)
MISTRAL_7B = DecoderShape(
    name="Mistral-7B",
    layers=32,
    hidden=4096,
    heads=32,
    kv_heads=8,
    head_dim=128,
    intermediate=14_336,
    vocab_size=32_000,
)
QWEN3_8B = DecoderShape(
    name="Qwen3-8B",
    layers=36,
    hidden=4096,
    heads=32,
    kv_heads=8,
    head_dim=128,
    intermediate=12_288,
    vocab_size=151_936,
)
QWEN3_0_6B = DecoderShape(
    name="Qwen3-0.6B",
    layers=28,
    hidden=1024,
    heads=16,
    kv_heads=8,
    head_dim=128,
    intermediate=3072,
    vocab_size=151_936,
    tied_embeddings=True,
)
OPT_13B = DecoderShape(
    name="OPT-13B",
    layers=40,
    hidden=5120,
    heads=40,
    kv_heads=40,
    head_dim=128,
    intermediate=20_480,
    vocab_size=50_272,
    tied_embeddings=True,
    gated=False,
)
OPT_30B = DecoderShape(
    name="OPT-30B",
    layers=48,
    hidden=7168,
    heads=56,
    kv_heads=56,
    head_dim=128,
    intermediate=28_672,
    vocab_size=50_272,
    tied_embeddings=True,
    gated=False,
)

H100 = Device(
    name="H100-80GB SXM",
    flops_per_second=989e12,
    bytes_per_second=3.35e12,
    memory_bytes=81_559 << 20,
)
H100_X4 = Device(
    name="4 x H100-80GB SXM",
    flops_per_second=989e12,
    bytes_per_second=3.35e12,
    memory_bytes=81_559 << 20,
    gpus=4,
)
A6000 = Device(
    name="RTX A6000 48GB",
    flops_per_second=154.8e12,
    bytes_per_second=768e9,
    memory_bytes=49_140 << 20,
)
A100_40GB = Device(
    name="A100-40GB SXM",
    flops_per_second=312e12,
    bytes_per_second=1.555e12,
    memory_bytes=40_536 << 20,
)
A100_80GB = Device(
    name="A100-80GB SXM",
    flops_per_second=312e12,
    bytes_per_second=2.039e12,
    memory_bytes=81_920 << 20,
)

PAIRS: dict[str, tuple[DecoderShape, Device]] = {
    "llama-3-8b-h100": (LLAMA_3_8B, H100),
    "llama-3-8b-a6000": (LLAMA_3_8B, A6000),
    "llama-3-70b-4xh100": (LLAMA_3_70B, H100_X4),
    "mistral-7b-h100": (MISTRAL_7B, H100),
    "mistral-7b-a6000": (MISTRAL_7B, A6000),
    "qwen3-8b-h100": (QWEN3_8B, H100),
    "qwen3-8b-a6000": (QWEN3_8B, A6000),
    "qwen3-0.6b-h100": (QWEN3_0_6B, H100),
    "qwen3-0.6b-a6000": (QWEN3_0_6B, A6000),
    "opt-13b-a100-40gb": (OPT_13B, A100_40GB),
    "opt-30b-a100-80gb": (OPT_30B, A100_80GB),
}
"""By the names under which `preble.cost_library` offers them."""


def estimated_cost(model: DecoderShape, device: Device) -> CostModel:
    """The roofline of `model` on `device`, all its GPUs working as one."""
    compute, fixed = COMPUTE_SHARE, FIXED_SECONDS
    if device.gpus > 1:
        compute *= TENSOR_PARALLEL_SHARE
        fixed += 2 * model.layers * ALL_REDUCE_SECONDS
    flops_per_second = compute * device.flops_per_second * device.gpus
    projection = 2 * model.layers * model.hidden * model.kv_numbers
    cost = CostModel.first_principles(
        name=f"{model.name}, bfloat16, on {device.name}",
        parameters=model.multiplied_parameters,
        layers=model.layers,
        # Scores and weighted sums are as wide as all heads together, not as the hidden state.
        hidden=model.heads * model.head_dim,
        kv_bytes_per_token=model.kv_bytes_per_token,
        flops_per_second=flops_per_second,
        bytes_per_second=BANDWIDTH_SHARE * device.bytes_per_second * device.gpus,
        weight_bytes=BYTES_PER_NUMBER * model.multiplied_parameters,
        fixed=fixed,
    )
    if not model.hidden_saves_memory:
        return cost
    return replace(cost, per_hidden_token=projection / flops_per_second)


def estimated_kv_tokens(model: DecoderShape, device: Device) -> int:
    """Tokens of KV cache that fit beside the weights on `device`, all its GPUs together."""
    free = device.gpus * device.memory_bytes - BYTES_PER_NUMBER * model.parameters
    return int(KV_SHARE * free) // model.kv_bytes_per_token
