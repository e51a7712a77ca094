"""Wherever a request's memory goes and whatever form it takes, the engine's output stays."""

import random
from pathlib import Path
from typing import Any

import pytest
from tier_helpers import (
    EXACT_FORMS,
    MODELS,
    PAGE_TOKENS,
    Recorder,
    Request,
    Stage,
    largest_error,
    load_recorder,
    reference,
    some_tokens,
)
from torch_helpers import save_model

from preble_worker.kv_form import KvForm

TOLERANCE = 1e-4
NEW_TOKENS = 12


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    directory: Path = tmp_path_factory.mktemp("model")
    save_model(MODELS[request.param](), directory)
    return load_recorder(directory)


def assert_same(request: Request, expected: Request) -> None:
    num = len(request.output)
    assert num and request.output == expected.output[:num]
    assert largest_error(request, expected) < TOLERANCE


def test_hidden_beside_kv(model: Recorder) -> None:
    """Mixed batches: chunks and decodes of both forms, in every pairing."""
    prompts = [some_tokens(seed, num) for seed, num in enumerate((40, 17, 33, 64, 5))]
    stage = Stage(model)
    requests = [stage.add(prompt, form=EXACT_FORMS[i % 2]) for i, prompt in enumerate(prompts)]
    arrived: list[Request] = []
    for request in requests:
        for chunk in (3, 16, len(request.tokens)):
            if num := min(chunk, request.missing if not request.output else 0):
                stage.step(*((r, 1) for r in arrived), (request, num))
        arrived.append(request)
    while min(len(r.output) for r in requests) < NEW_TOKENS:
        stage.step(*((r, 1) for r in requests))
    for request, prompt in zip(requests, prompts, strict=True):
        assert_same(request, reference(model, prompt, len(request.output)))


def test_hidden_behind_a_shared_prefix(model: Recorder) -> None:
    """A prefix's pages stay KV and are read by rows of both forms in one product."""
    prefix = some_tokens(1, 10 * PAGE_TOKENS)
    prompts = [prefix + some_tokens(seed, 9 * seed) for seed in range(1, 5)]
    stage = Stage(model)
    first = stage.add([*prefix, 7])
    stage.step((first, first.missing))
    requests = [stage.add(p, form=EXACT_FORMS[i >= 3], like=first) for i, p in enumerate(prompts)]
    assert all(r.compact_from == len(prefix) for r in requests[:3])
    for _ in range(NEW_TOKENS):
        stage.step(*((r, r.missing) for r in requests))
    for request, prompt in zip(requests, prompts, strict=True):
        assert_same(request, reference(model, prompt, NEW_TOKENS))


@pytest.mark.parametrize("hidden", [False, True])
def test_swapped_at_every_step_number(model: Recorder, hidden: bool) -> None:
    """Out and in again, after every number of steps, amid others that go on."""
    prompt, other = some_tokens(3, 50), some_tokens(4, 21)
    expected = reference(model, prompt, NEW_TOKENS), reference(model, other, 3 * NEW_TOKENS)
    for at in range(NEW_TOKENS):
        stage = Stage(model)
        request = stage.add(prompt, form=EXACT_FORMS[not hidden])
        beside = stage.add(other, form=EXACT_FORMS[hidden])
        stage.step((beside, beside.missing))
        for number in range(NEW_TOKENS + 4):
            if number == at:
                stage.offload(request, before_step=bool(at % 2))
            if at <= number < at + 3:
                stage.step((beside, 1))
                continue
            if number == at + 3:
                stage.upload(request, before_step=bool(at % 2))
                if not at % 2:
                    stage.step((beside, 1))
            chunk = 1 if request.output else min(13, request.missing)
            stage.step((beside, 1), (request, chunk))
        assert_same(request, expected[0])
        assert_same(beside, expected[1])


def test_upgrade(model: Recorder) -> None:
    """From hidden to KV after every number of outputs, and in the midst of a prompt."""
    prompt = some_tokens(5, 45)
    expected = reference(model, prompt, NEW_TOKENS)
    for at in range(0, NEW_TOKENS, 2):
        stage = Stage(model)
        request = stage.add(prompt, form=KvForm.HIDDEN)
        beside = stage.add(prompt[:30], form=KvForm.HIDDEN)
        stage.step((beside, 30), (request, 20))
        while len(request.output) < NEW_TOKENS:
            if len(request.logits) == at:
                stage.upgrade(request)
            stage.step((beside, 1), (request, request.missing))
        assert_same(request, expected)


def test_moves_alone_and_in_their_order(model: Recorder) -> None:
    """Out and in within one batch, through host pages that were just left."""
    stage = Stage(model)
    requests = [stage.add(some_tokens(seed, 40), form=EXACT_FORMS[seed != 1]) for seed in range(3)]
    stage.step(*((r, 40) for r in requests))
    for _ in range(5):
        for request in requests:
            stage.offload(request, before_step=False)
        for request in reversed(requests):
            stage.upload(request, before_step=False)
        stage.move_only()
        for request in requests:
            stage.offload(request, before_step=True)
            stage.upload(request, before_step=True)
        stage.step(*((r, 1) for r in requests))
    for seed, request in enumerate(requests):
        assert_same(request, reference(model, some_tokens(seed, 40), 6))


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens(model: Recorder, seed: int) -> None:
    """Random chunks, swaps, forms and upgrades with shared prefixes."""
    rng = random.Random(seed)
    stage = Stage(model)
    prefix = some_tokens(100 + seed, 3 * PAGE_TOKENS)
    prompts = [prefix + some_tokens(1000 * seed + i, rng.randint(1, 40)) for i in range(6)]
    first = stage.add([*prefix, 9])
    stage.step((first, first.missing))
    requests = [
        stage.add(prompt, form=EXACT_FORMS[rng.random() < 0.5], like=rng.choice([None, first]))
        for prompt in prompts
    ]
    fresh: set[Request] = set()
    while any(len(r.output) < 8 for r in requests):
        rows = []
        for request in rng.sample(requests, len(requests)):
            if len(request.output) >= 12 or request in fresh:
                continue
            if request.host_pages:
                if rng.random() < 0.5:
                    now = rng.random() < 0.5
                    stage.upload(request, before_step=now)
                    fresh |= set() if now else {request}
                continue
            if rng.random() < 0.15:
                stage.offload(request, before_step=True)
                continue
            if request.compact_from < 1000 and rng.random() < 0.05:
                stage.upgrade(request)
            if rng.random() < 0.8:
                count = 1 if request.output else rng.randint(1, request.missing)
                rows.append((request, count))
        fresh = set()
        if rows:
            stage.step(*rows)
        else:
            stage.move_only()
    for request, prompt in zip(requests, prompts, strict=True):
        assert_same(request, reference(model, prompt, len(request.output)))
