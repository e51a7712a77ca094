"""What the decoder needs to know of a model, read from a Hugging Face config.json.

Families differ in configuration only: biases (Qwen2), norms of queries and keys (Qwen3), sliding
windows (Mistral, some Qwen2), tied embeddings. `obstacle` names what a config asks for and the
decoder does not do; such models run through transformers' own code.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
ROPE_TYPES = ("default", "linear", "llama3")

Config = Mapping[str, Any]
Frequencies = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """A decoder of the Llama family.

    Attributes:
        qkv_bias, output_bias: of the attention's projections in and out.
        qk_norm: RMS norm of each head's query and key before the rotation.
        windows: per layer the number of keys a token sees, None for all.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_epsilon: float
    max_positions: int
    rope: "Rope"
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied_embeddings: bool
    windows: tuple[int | None, ...]

    @property
    def num_parameters(self) -> int:
        """Weights that a token is multiplied with, norms and biases left out."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        feed_forward = 3 * self.hidden_size * self.intermediate_size
        head = self.hidden_size * self.vocab_size
        return self.num_layers * (attention + feed_forward) + head


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary position embedding; the factors are those of Llama 3.1's and linear scaling."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_max_positions: int = 8192

    def inverse_frequencies(self, head_dim: int) -> Frequencies:
        """Radians per position, (head_dim / 2,), rounded where transformers rounds them."""
        exponents = np.arange(0, head_dim, 2).astype(np.float32) / np.float32(head_dim)
        frequencies: Frequencies = 1.0 / np.power(np.float32(self.theta), exponents)
        if self.kind == "linear":
            frequencies /= np.float32(self.factor)
        elif self.kind == "llama3":
            frequencies = self._stretched(frequencies).astype(np.float32)
        return frequencies

    def _stretched(self, plain: Frequencies) -> Frequencies:
        """Waves longer than the original context are slowed down by `factor`, short ones kept,
        and those between are blended."""
        waves = self.original_max_positions * plain / (2.0 * math.pi)
        spread = self.high_frequency_factor - self.low_frequency_factor
        keep: Frequencies = np.clip((waves - self.low_frequency_factor) / spread, 0.0, 1.0)
        stretched: Frequencies = (1.0 - keep) * plain / self.factor + keep * plain
        return stretched


def obstacle(config: Config) -> str | None:
    """What in `config` the decoder cannot do, or None."""
    architecture = next(iter(config.get("architectures") or []), "none")
    if architecture not in FAMILIES:
        return f"architecture {architecture}"
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        return f"hidden_act {activation}"
    parameters = _rope_parameters(config)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in ROPE_TYPES:
        return f"rope_type {kind}"
    if parameters.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        return "partial_rotary_factor"
    if any(isinstance(value, Mapping) for value in parameters.values()):
        return "rope parameters per layer type"
    return None


def read_decoder_config(config: Config) -> DecoderConfig:
    """The decoder's view of a config without `obstacle`; defaults are transformers' own.

    Raises:
        KeyError: a size is missing.
    """
    family = FAMILIES[config["architectures"][0]]
    num_heads = int(config["num_attention_heads"])
    num_layers = int(config["num_hidden_layers"])
    head_dim = config.get("head_dim") or (
        128 if family == "qwen3" else config["hidden_size"] // num_heads
    )
    attention_bias = bool(config.get("attention_bias", False))
    return DecoderConfig(
        vocab_size=int(config["vocab_size"]),
        hidden_size=int(config["hidden_size"]),
        intermediate_size=int(config["intermediate_size"]),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=int(config.get("num_key_value_heads") or num_heads),
        head_dim=int(head_dim),
        norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
        max_positions=int(config["max_position_embeddings"]),
        rope=_rope(config),
        qkv_bias=family == "qwen2" or (family in ("llama", "qwen3") and attention_bias),
        output_bias=family in ("llama", "qwen3") and attention_bias,
        mlp_bias=family == "llama" and bool(config.get("mlp_bias", False)),
        qk_norm=family == "qwen3",
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        windows=_windows(config, family, num_layers),
    )


def _windows(config: Config, family: str, num_layers: int) -> tuple[int | None, ...]:
    window = config.get("sliding_window", 4096)
    if family == "llama" or window is None:
        return (None,) * num_layers
    if family == "mistral":
        return (int(window),) * num_layers
    if not config.get("use_sliding_window", False):
        return (None,) * num_layers
    first = int(config.get("max_window_layers", 28))
    kinds = config.get("layer_types") or [
        "sliding_attention" if i >= first else "full_attention" for i in range(num_layers)
    ]
    return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)


def _rope_parameters(config: Config) -> Config:
    """transformers 5 writes `rope_parameters`, older versions `rope_scaling` and `rope_theta`."""
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _rope(config: Config) -> Rope:
    parameters = _rope_parameters(config)
    theta = float(parameters.get("rope_theta", config.get("rope_theta", 10000.0)))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    original = parameters.get("original_max_position_embeddings")
    return Rope(
        theta=theta,
        kind=kind,
        factor=float(parameters.get("factor", 1.0)),
        low_frequency_factor=float(parameters.get("low_freq_factor", 1.0)),
        high_frequency_factor=float(parameters.get("high_freq_factor", 4.0)),
        original_max_positions=int(original or config["max_position_embeddings"]),
    )
