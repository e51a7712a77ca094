"""Any causal language model of transformers, with our attention in place of its own.

transformers' models call the attention function that their config names. Ours finds the step under
way at the calling module, hands it queries, keys and values, and so the same paged cache serves
models whose code we do not know. Whether that is all a model needs of attention is not assumed: on
loading, a probe compares its logits with those under its own attention.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from preble.errors import ConfigError
from preble_worker.attention import AttentionStep
from preble_worker.attention_parts import attend_part, causal_mask
from preble_worker.kv_pool import KVShape

ATTENTION_NAME = "preble_paged"
PROBE_TOKENS = 24
TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Largest difference of two logits, relative to the largest logit, that rounding explains."""

UNSUPPORTED_OPTIONS = ("softcap", "s_aux", "position_bias", "head_mask")
"""What transformers' attention functions take beyond queries, keys, values, scale and window."""

UNSTEADY_ROPE_TYPES = {"dynamic", "longrope"}
LAYER_TYPES = {"full_attention", "sliding_attention"}


class StepSeat:
    """Where a model's attention modules find the step under way."""

    def __init__(self) -> None:
        self.step: AttentionStep | None = None


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """An attention function as transformers calls it; tensors are (1, heads, num_tokens, dim).

    Raises:
        ConfigError: the model asks for something that would change the result.
    """
    for name in UNSUPPORTED_OPTIONS:
        if options.get(name) is not None:
            raise ConfigError(f"{type(module).__name__} cannot be served: it needs {name}")
    seat: Any = module.preble_seat
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = seat.step.attend(
        module.layer_idx,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        scale=scale,
        window=sliding_window,
    )
    return output[None], None


class TransformersModel:
    """A model of transformers behind the engine's `CausalModel`.

    Attributes:
        kv_shapes: what each layer keeps per token, as seen in the probe.
    """

    def __init__(self, model: Any, seat: StepSeat, kv_shapes: Sequence[KVShape]) -> None:
        self._model = model
        self._seat = seat
        self.kv_shapes = kv_shapes
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])
        self.num_parameters = int(model.num_parameters())

    @classmethod
    def load(
        cls, directory: Path, *, dtype: torch.dtype, device: torch.device, context_tokens: int
    ) -> "TransformersModel":
        """Load from safetensors with transformers' own code, never the checkpoint's.

        Raises:
            ConfigError: transformers cannot load it, or its attention cannot be paged.
        """
        from transformers import AutoModelForCausalLM
        from transformers.modeling_utils import AttentionInterface

        AttentionInterface.register(ATTENTION_NAME, paged_attention)
        try:
            model = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=dtype,
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
            )
        except (ValueError, OSError, KeyError, ImportError) as error:
            raise ConfigError(f"{directory}: transformers cannot load it: {error}") from error
        model = model.eval().to(device)
        reason = _unsupported(model, context_tokens)
        if reason is None:
            seat = StepSeat()
            kv_shapes, reason = _probe(model, seat, dtype)
        if reason is not None:
            raise ConfigError(f"{directory}: {type(model).__name__} cannot be served: {reason}")
        return cls(model, seat, kv_shapes)

    def forward(
        self, tokens: Tensor, positions: Tensor, attention: AttentionStep, last: Tensor
    ) -> Tensor:
        self._seat.step = attention
        logits: Tensor = self._model(
            input_ids=tokens[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=last,
        ).logits
        return logits[0]


def _unsupported(model: Any, context_tokens: int) -> str | None:
    """What of the model's interface the engine cannot do without, or None."""
    parameters = inspect.signature(model.forward).parameters
    for name in ("position_ids", "logits_to_keep"):
        if name not in parameters:
            return f"its forward takes no {name}"
    kinds = set(getattr(model.config, "layer_types", None) or ())
    if kinds - LAYER_TYPES:
        return f"it has layers of type {', '.join(sorted(kinds - LAYER_TYPES))}"
    if getattr(model.config, "attention_chunk_size", None):
        return "it attends in chunks"
    return _unsteady_rope(model.config, context_tokens)


def _unsteady_rope(config: Any, context_tokens: int) -> str | None:
    """Some rotations change for all tokens once one is beyond a position: another request's
    length would then change this one's keys, those in the cache included."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    longest = int(getattr(config, "max_position_embeddings", None) or 0)
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        kind = parameters.get("rope_type", parameters.get("type"))
        limit = int(parameters.get("original_max_position_embeddings") or longest)
        if kind in UNSTEADY_ROPE_TYPES and context_tokens > limit:
            return f"rope_type {kind} changes with length; set context_tokens to at most {limit}"
    return None


def _probe(model: Any, seat: StepSeat, dtype: torch.dtype) -> tuple[list[KVShape], str | None]:
    """Run a short text with the model's own attention and with the engine's.

    Returns:
        The layers' shapes; why the model cannot be served, or None.
    """
    for module in model.modules():
        if getattr(module, "layer_idx", None) is not None:
            module.preble_seat = seat
    device = next(model.parameters()).device
    vocab = int(model.get_output_embeddings().weight.shape[0])
    tokens = torch.arange(PROBE_TOKENS, device=device)[None] * 7919 % vocab
    positions = torch.arange(PROBE_TOKENS, device=device)[None]
    inputs = {"input_ids": tokens, "position_ids": positions, "use_cache": False}
    probe = _Probe()
    with torch.inference_mode():
        expected = model(**inputs).logits.float()
        model.set_attn_implementation(ATTENTION_NAME)
        seat.step = probe
        got = model(**inputs).logits.float()
    num_layers = int(model.config.get_text_config().num_hidden_layers)
    if sorted(probe.shapes) != list(range(num_layers)):
        return [], "its layers do not all use transformers' attention interface"
    error = float((got - expected).abs().max() / expected.abs().max())
    if not error <= TOLERANCE[dtype]:
        return [], "its attention is more than softmax over scaled products of queries and keys"
    windows = _sliding_layers(model.config)
    missing = [layer for layer in windows if probe.windows[layer] is None]
    if missing:
        return [], f"layer {missing[0]} does not pass its sliding window to attention"
    return [probe.shapes[layer] for layer in range(num_layers)], None


def _sliding_layers(config: Any) -> list[int]:
    kinds = getattr(config, "layer_types", None) or ()
    return [layer for layer, kind in enumerate(kinds) if kind == "sliding_attention"]


class _Probe:
    """Attention over the step alone, which notes what each layer keeps."""

    def __init__(self) -> None:
        self.shapes: dict[int, KVShape] = {}
        self.windows: dict[int, int | None] = {}

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        window: int | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        self.shapes[layer] = KVShape(key.shape[1], key.shape[2], value.shape[2])
        self.windows[layer] = window
        group = query.shape[1] // key.shape[1]
        asked, keys, values = (x.transpose(0, 1)[None] for x in (query, key, value))
        keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
        num_tokens = len(query)
        mask = causal_mask(
            num_tokens, num_tokens, window=window, dtype=query.dtype, device=query.device
        )
        output, _ = attend_part(asked, keys, values, scale=scale, mask=mask)
        return output[0].transpose(0, 1)
