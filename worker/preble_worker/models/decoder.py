"""One decoder for the Llama family: Llama, Mistral, Qwen2, Qwen3, SmolLM.

A batch is a flat row of tokens. Projections that read the same input are one matrix each (queries,
keys and values; gate and up), joined when the weights are loaded.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812, torch's own convention
from torch import Tensor

from preble_worker.attention import AttentionStep
from preble_worker.hidden_form import HiddenSource, Projection
from preble_worker.kv_pool import KVShape
from preble_worker.models.decoder_config import DecoderConfig
from preble_worker.weights import Checkpoint


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x·weightᵀ + bias."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights; `query_norm` and `key_norm` are None where the model has none."""

    input_norm: Tensor
    qkv: Linear
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: Linear
    post_norm: Tensor
    gate_up: Linear
    down: Linear


class Decoder:
    """The weights, and the walk of a batch through them.

    Attributes:
        kv_shapes: what each layer keeps per token.
        hidden_source: what the hidden form needs of the model, or why it cannot have it.
    """

    def __init__(self, config: DecoderConfig, checkpoint: Checkpoint, *, num_positions: int):
        """Load the weights, and prepare rotations for `num_positions` positions.

        Raises:
            ConfigError: a tensor is missing, has another shape, or is not the model's.
        """
        self._config = config
        self._embedding = checkpoint.take(
            "model.embed_tokens.weight", config.vocab_size, config.hidden_size
        )
        self._layers = [_load_layer(config, checkpoint, i) for i in range(config.num_layers)]
        self._norm = checkpoint.take("model.norm.weight", config.hidden_size)
        if config.tied_embeddings:
            checkpoint.drop("lm_head.weight")
            self._head = self._embedding
        else:
            self._head = checkpoint.take("lm_head.weight", config.vocab_size, config.hidden_size)
        checkpoint.finish()
        self._rotations = _rotations(config, num_positions, self._head)
        shape = KVShape(config.num_kv_heads, config.head_dim, config.head_dim)
        self.kv_shapes = [shape] * config.num_layers
        weights = config.num_layers * config.hidden_size * shape.numbers_per_token
        self.hidden_source: HiddenSource | str = (
            "it attends in windows"
            if any(config.windows)
            else HiddenSource(config.hidden_size, weights, self.projection_at)
        )

    def forward(
        self, tokens: Tensor, positions: Tensor, attention: AttentionStep, last: Tensor
    ) -> Tensor:
        hidden = F.embedding(tokens, self._embedding)
        rotation = self._rotations[positions].unsqueeze(2).unbind(1)
        for index, layer in enumerate(self._layers):
            attended = self._attend(index, layer, hidden, rotation, attention)
            if index == len(self._layers) - 1 and len(last) < len(tokens):
                # Nobody reads what the other tokens become from here on.
                hidden, attended = hidden[last], attended[last]
            hidden = hidden + layer.output(attended)
            hidden = hidden + self._feed_forward(layer, hidden)
        return F.linear(self._normalize(hidden, self._norm), self._head)

    def projection_at(self, positions: Tensor) -> Projection:
        """Keys and values of tokens at `positions`, from what their QKV projection took.

        Positions behind the last one are allowed, of tokens that nobody looks at.
        """
        config = self._config
        known = positions.clamp_max(len(self._rotations) - 1)
        rotation = self._rotations[known].unsqueeze(2).unbind(1)
        queries = config.num_heads * config.head_dim

        def project(index: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
            layer = self._layers[index]
            qkv = layer.qkv
            bias = None if qkv.bias is None else qkv.bias[queries:]
            projected = F.linear(hidden, qkv.weight[queries:], bias)
            split = projected.view(len(hidden), 2, config.num_kv_heads, config.head_dim)
            key, value = split.unbind(1)
            if layer.key_norm is not None:
                key = self._normalize(key, layer.key_norm)
            return _rotate(key, *rotation), value

        return project

    def _attend(
        self,
        index: int,
        layer: Layer,
        hidden: Tensor,
        rotation: tuple[Tensor, ...],
        attention: AttentionStep,
    ) -> Tensor:
        config = self._config
        num_rotated = config.num_heads + config.num_kv_heads
        normed = self._normalize(hidden, layer.input_norm)
        qkv = layer.qkv(normed)
        qkv = qkv.view(len(hidden), num_rotated + config.num_kv_heads, config.head_dim)
        query_key, value = qkv[:, :num_rotated], qkv[:, num_rotated:]
        if layer.query_norm is not None and layer.key_norm is not None:
            query = self._normalize(query_key[:, : config.num_heads], layer.query_norm)
            key = self._normalize(query_key[:, config.num_heads :], layer.key_norm)
            query_key = torch.cat((query, key), dim=1)
        rotated = _rotate(query_key, *rotation)
        query, key = rotated[:, : config.num_heads], rotated[:, config.num_heads :]
        attended = attention.attend(
            index,
            query,
            key,
            value,
            scale=config.head_dim**-0.5,
            window=config.windows[index],
            hidden=normed,
        )
        return attended.flatten(1)

    def _feed_forward(self, layer: Layer, hidden: Tensor) -> Tensor:
        gate, up = layer.gate_up(self._normalize(hidden, layer.post_norm)).chunk(2, dim=-1)
        return layer.down(F.silu(gate) * up)

    def _normalize(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self._config.norm_epsilon)


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate the pairs (x[i], x[i + dim/2]) of each head; `sine` carries the sign of its half."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cosine, torch.cat((second, first), dim=-1), sine)


def _rotations(config: DecoderConfig, num_positions: int, like: Tensor) -> Tensor:
    """(num_positions, 2, head_dim): cosines, and sines with the sign of their half."""
    frequencies = torch.from_numpy(config.rope.inverse_frequencies(config.head_dim))
    angles = torch.arange(num_positions, dtype=torch.float32)[:, None] * frequencies
    cosine = angles.cos().repeat(1, 2)
    sine = torch.cat((-angles.sin(), angles.sin()), dim=-1)
    return torch.stack((cosine, sine), dim=1).to(like)


def _load_layer(config: DecoderConfig, checkpoint: Checkpoint, index: int) -> Layer:
    prefix = f"model.layers.{index}"
    hidden, inner = config.hidden_size, config.intermediate_size
    query, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def linear(block: str, outputs: dict[str, int], inputs: int, *, bias: bool) -> Linear:
        names = [f"{prefix}.{block}.{name}_proj" for name in outputs]
        sizes = list(zip(names, outputs.values(), strict=True))
        weights = [checkpoint.take(f"{name}.weight", size, inputs) for name, size in sizes]
        biases = [checkpoint.take(f"{name}.bias", size) for name, size in sizes if bias]
        return Linear(_joined(weights), _joined(biases) if biases else None)

    def norm(name: str, size: int) -> Tensor:
        return checkpoint.take(f"{prefix}.{name}.weight", size)

    return Layer(
        input_norm=norm("input_layernorm", hidden),
        qkv=linear("self_attn", {"q": query, "k": kv, "v": kv}, hidden, bias=config.qkv_bias),
        query_norm=norm("self_attn.q_norm", config.head_dim) if config.qk_norm else None,
        key_norm=norm("self_attn.k_norm", config.head_dim) if config.qk_norm else None,
        output=linear("self_attn", {"o": hidden}, query, bias=config.output_bias),
        post_norm=norm("post_attention_layernorm", hidden),
        gate_up=linear("mlp", {"gate": inner, "up": inner}, hidden, bias=config.mlp_bias),
        down=linear("mlp", {"down": hidden}, inner, bias=config.mlp_bias),
    )


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
