"""Requests that a CUDA device keeps in int8: no more is lost than on a CPU."""

from pathlib import Path
from typing import Any

import int8_claims
import pytest
import torch
from tier_helpers import Recorder, load_recorder
from torch_helpers import save_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

EXACT, SAME = 1e-3, 1e-2


@pytest.fixture(scope="module", params=list(int8_claims.FACTORIES))
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    directory: Path = tmp_path_factory.mktemp("model")
    save_model(int8_claims.FACTORIES[request.param](), directory)
    return load_recorder(directory, device="cuda")


@pytest.mark.parametrize("bits", ["float32", "bfloat16", "float16"])
def test_a_page_holds_more_and_gives_back_what_it_was_given(bits: str) -> None:
    int8_claims.a_page_holds_more_and_gives_back_what_it_was_given(bits, torch.device("cuda"))


def test_all_forms_beside_each_other(model: Recorder) -> None:
    int8_claims.all_forms_beside_each_other(model, EXACT, SAME)


def test_shrinking_after_every_number_of_outputs(model: Recorder) -> None:
    int8_claims.shrinking_after_every_number_of_outputs(model, EXACT)


def test_pages_that_had_int8_are_as_good_as_new(model: Recorder) -> None:
    int8_claims.pages_that_had_int8_are_as_good_as_new(model, EXACT)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens(model: Recorder, seed: int) -> None:
    int8_claims.whatever_happens(model, seed, EXACT)
