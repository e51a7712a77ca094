"""The demo model is the same bytes wherever and however often it is made."""

import hashlib
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from preble_deploy.demo_model import CHAT_TEMPLATE, VOCAB_SIZE, make_demo_model

WEIGHTS_SHA256 = "d159b7c965504af8717b1138ca7397ffa934bc40cebdfe352284dd145050831d"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_model(tmp_path_factory.mktemp("cache") / "deep" / "demo")


def digests(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.iterdir())
    }


def test_weights_are_the_released_ones(demo: Path) -> None:
    assert digests(demo)["model.safetensors"] == WEIGHTS_SHA256


def test_a_second_make_yields_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    again = make_demo_model(tmp_path / "demo")
    assert digests(again) == digests(demo)
    assert len(digests(demo)) == 5


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    directory.mkdir()
    (directory / "config.json").write_text("mine")
    assert make_demo_model(directory) == directory
    assert digests(directory).keys() == {"config.json"}


def test_processes_that_race_leave_one_complete_model(demo: Path, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.map(make_demo_model, [tmp_path / "demo"] * 3)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert digests(tmp_path / "demo") == digests(demo)


def test_a_file_in_the_way_is_reported(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("a file")
    with pytest.raises(OSError, match="demo"):
        make_demo_model(tmp_path / "demo")
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_torch_is_not_imported(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from preble_deploy.demo_model import make_demo_model;"
        "make_demo_model(pathlib.Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "demo")], check=True)


@pytest.mark.parametrize("text", ["Hello, wörld!\n\n  tabs\tand 日本語 🙂", "", " ", "\x00\xff"])
def test_any_text_survives_the_tokenizer(demo: Path, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(demo / "tokenizer.json"))
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < VOCAB_SIZE for token in ids)


def test_vocabulary_fills_the_model(demo: Path) -> None:
    tokenizer = Tokenizer.from_file(str(demo / "tokenizer.json"))
    config = json.loads((demo / "config.json").read_text())
    assert tokenizer.get_vocab_size() == config["vocab_size"] == VOCAB_SIZE
    weights = load_file(demo / "model.safetensors")
    assert weights["model.embed_tokens.weight"].shape == (VOCAB_SIZE, config["hidden_size"])


def test_chat_turns_are_single_tokens(demo: Path) -> None:
    template = ImmutableSandboxedEnvironment().from_string(CHAT_TEMPLATE)
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    text = template.render(messages=turns, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>")
    assert text.endswith("<|im_start|>assistant\n")
    tokenizer = Tokenizer.from_file(str(demo / "tokenizer.json"))
    eos = json.loads((demo / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.encode(text).ids.count(eos[0]) == 2
