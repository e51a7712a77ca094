"""The cache's tiers on a CUDA device: pinned memory, a stream of its own, the same output."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tier_helpers import (
    EXACT_FORMS,
    MODELS,
    Recorder,
    Stage,
    largest_error,
    load_recorder,
    reference,
    some_tokens,
)
from torch_helpers import save_model

from preble_worker.copy_lane import CudaLane, make_lane
from preble_worker.kv_form import KvForm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

NEW_TOKENS = 12


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    directory: Path = tmp_path_factory.mktemp("model")
    save_model(MODELS[request.param](), directory)
    return load_recorder(directory, device="cuda")


def test_a_gpu_copies_on_a_stream_of_its_own() -> None:
    assert isinstance(make_lane(torch.device("cuda"), rate=1.0), CudaLane)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("before_step", [False, True])
def test_swapped_at_every_step_number(model: Recorder, hidden: bool, before_step: bool) -> None:
    prompt, other = some_tokens(3, 50), some_tokens(4, 21)
    expected = reference(model, prompt, NEW_TOKENS), reference(model, other, 3 * NEW_TOKENS)
    for at in range(1, NEW_TOKENS):
        stage = Stage(model)
        request, beside = (
            stage.add(prompt, form=EXACT_FORMS[not hidden]),
            stage.add(other, form=EXACT_FORMS[hidden]),
        )
        stage.step((beside, beside.missing), (request, request.missing))
        while len(request.output) < NEW_TOKENS:
            if len(request.output) == at:
                stage.offload(request, before_step=before_step)
                stage.step((beside, 1))
                stage.upload(request, before_step=before_step)
                if not before_step:
                    stage.step((beside, 1))
            stage.step((beside, 1), (request, 1))
        for ours, theirs in zip((request, beside), expected, strict=True):
            assert ours.output == theirs.output[: len(ours.output)]
            assert largest_error(ours, theirs) < 1e-3


def test_upgrade(model: Recorder) -> None:
    prompt = some_tokens(5, 45)
    expected = reference(model, prompt, NEW_TOKENS)
    stage = Stage(model)
    request = stage.add(prompt, form=KvForm.HIDDEN)
    stage.step((request, 20))
    stage.step((request, 25))
    while len(request.output) < NEW_TOKENS:
        if len(request.output) == NEW_TOKENS // 2:
            stage.upgrade(request)
        stage.step((request, 1))
    assert request.output == expected.output[:NEW_TOKENS]


def test_offloads_that_pile_up(model: Recorder) -> None:
    """More moves in one batch than may be under way at a time."""
    stage = Stage(model, int8=False)
    requests = [stage.add(some_tokens(seed, 40)) for seed in range(8)]
    stage.step(*((r, 40) for r in requests))
    for _ in range(3):
        for request in requests:
            stage.offload(request, before_step=True)
        for request in requests:
            stage.upload(request, before_step=True)
        stage.step(*((r, 1) for r in requests))
    for seed, request in enumerate(requests):
        assert request.output == reference(model, some_tokens(seed, 40), 4).output[:4]
