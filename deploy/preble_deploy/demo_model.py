"""The default model: a tiny Llama with random weights, made on the spot, so nothing is downloaded.

It answers with word salad, but it is a real model to every other part: a Hugging Face directory
with config, safetensors, tokenizer and chat template. The same bytes come out on every machine:
weights are drawn from PCG64's raw bits, whose stream NumPy promises to keep, and scaled by powers
of two of exact integers; the tokenizer is trained on a fixed text.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preble_deploy.demo_text import DEMO_TEXT

DEMO_VERSION = 1
"""Goes up whenever the bytes of the demo model change; belongs into the name of a cache folder."""

CONTEXT_TOKENS = 8192
VOCAB_SIZE = 1024
HIDDEN = 128
INTERMEDIATE = 352
LAYERS = 4
HEADS = 4
KV_HEADS = 2
HEAD_DIM = HIDDEN // HEADS

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Standard deviations of the weights. Larger than a trained model's: attention is then sharp, so
# that a wrong KV entry changes the output, and the winning logit stands clear of the next.
EMBEDDING_STD = 1.0
PROJECTION_STD = 0.14
HEAD_STD = 0.4


def make_demo_model(directory: Path) -> Path:
    """Make the demo model in `directory` unless it is there, and return the directory.

    Whoever finds `directory` finds it complete: it is built beside and renamed. Several processes
    may do this at once; the first to finish wins and the others take its result.
    """
    if (directory / "config.json").is_file():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        _write_model(building)
        building.chmod(0o755)
        building.rename(directory)
    except OSError:
        if not (directory / "config.json").is_file():
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return directory


def _write_model(directory: Path) -> None:
    from safetensors.numpy import save_file

    tokenizer = _train_tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    end_of_text, turn_end = (tokenizer.token_to_id(t) for t in (END_OF_TEXT, TURN_END))
    _write_json(directory / "config.json", _model_config(end_of_text, turn_end))
    _write_json(
        directory / "generation_config.json",
        {"bos_token_id": end_of_text, "eos_token_id": [turn_end, end_of_text]},
    )
    _write_json(directory / "tokenizer_config.json", _tokenizer_config())
    weights = _weights(_silent_tokens(tokenizer, turn_end))
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _model_config(end_of_text: int, turn_end: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": end_of_text,
        "eos_token_id": [turn_end, end_of_text],
        "torch_dtype": "float32",
    }


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT_TOKENS,
        "bos_token": END_OF_TEXT,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def _train_tokenizer() -> Any:
    """A byte-level BPE tokenizer: any text encodes, and decodes to itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=1,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(DEMO_TEXT.splitlines(keepends=True), trainer)
    return tokenizer


def _silent_tokens(tokenizer: Any, turn_end: int) -> list[int]:
    """Tokens the model should not say: lone pieces of characters, and all special ones but the
    end of its turn. Their logits are 0, far below the winner's."""
    ids = range(VOCAB_SIZE)
    broken = [i for i in ids if not _is_printable(tokenizer.decode([i], skip_special_tokens=False))]
    special = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    return sorted({*broken, *special} - {turn_end})


def _is_printable(text: str) -> bool:
    return "\ufffd" not in text and all(c.isprintable() or c == "\n" for c in text)


def _weights(silent: list[int]) -> dict[str, npt.NDArray[np.float32]]:
    bits = np.random.PCG64(20240703)
    ones = np.ones(HIDDEN, dtype=np.float32)

    def draw(rows: int, columns: int, std: float) -> npt.NDArray[np.float32]:
        """Uniform with deviation `std`: 24 exact bits each, one rounding by the scale."""
        raw = (bits.random_raw(rows * columns) >> np.uint64(40)).astype(np.int64)
        centred = (2 * raw + 1 - (1 << 24)).astype(np.float64) / (1 << 24)
        scale = float(np.float32(std * 3.0**0.5))
        return (centred * scale).astype(np.float32).reshape(rows, columns)

    weights = {"model.embed_tokens.weight": draw(VOCAB_SIZE, HIDDEN, EMBEDDING_STD)}
    shapes = {
        "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
        "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for name, (rows, columns) in shapes.items():
            weights[f"{prefix}.{name}.weight"] = draw(rows, columns, PROJECTION_STD)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}.{name}.weight"] = ones.copy()
    weights["model.norm.weight"] = ones.copy()
    head = draw(VOCAB_SIZE, HIDDEN, HEAD_STD)
    head[silent] = 0.0
    weights["lm_head.weight"] = head
    return weights
