"""A sentence encoder in the router: a small random BERT, made here."""

from pathlib import Path

import numpy as np
import pytest
from gateway_helpers import chat_tokenizer

from preble.errors import ConfigError
from preble_router.prompt_embedding import PromptEmbedder
from preble_router.prompt_encoding import PromptEncoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "quick", "brown", "fox", "lazy", "dog"]


@pytest.fixture(scope="module")
def encoder_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    path = tmp_path_factory.mktemp("encoder")
    (path / "vocab.txt").write_text("\n".join(WORDS))
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(WORDS), intermediate_size=32, **sizes)
    BertModel(config).save_pretrained(path)
    BertTokenizerFast(vocab_file=str(path / "vocab.txt")).save_pretrained(path)
    return path


async def test_equal_texts_have_equal_vectors_of_unit_length(encoder_path: Path) -> None:
    embedder = PromptEmbedder.from_directory(encoder_path)
    first = await embedder.embed("the quick brown fox")
    again = await embedder.embed("the quick brown fox")
    other = await embedder.embed("lazy dog")
    nothing = await embedder.embed("")
    embedder.close()
    assert first.shape == (16,) and first.dtype == np.float32
    assert float(np.linalg.norm(first)) == pytest.approx(1.0, abs=1e-5)
    assert (first == again).all() and not np.allclose(first, other)
    assert nothing.shape == (16,)


async def test_the_end_of_a_prompt_is_embedded(encoder_path: Path) -> None:
    embedder, tokenizer = PromptEmbedder.from_directory(encoder_path), chat_tokenizer()
    encoder = PromptEncoder(tokenizer, embedder=embedder)
    end = tokenizer.encode(" lazy dog" * 300)
    short = await encoder.embed(end)
    long = await encoder.embed(tokenizer.encode("the quick brown fox " * 300) + end)
    encoder.close()
    embedder.close()
    assert short is not None and long is not None and np.allclose(short, long)
    without = PromptEncoder(tokenizer)
    assert await without.embed(end) is None
    without.close()


def test_a_directory_without_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--length-embedder .* no directory with a config.json"):
        PromptEmbedder.from_directory(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot load the encoder in"):
        PromptEmbedder.from_directory(tmp_path)
