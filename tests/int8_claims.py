"""What holds of requests that a device keeps in int8: what they lose, and that nobody else loses.

`exact` is the largest error of logits that rounding alone may make, on this device; `same` that of
two runs in int8 whose sums were rounded another way, so that a code or two may differ.
"""

import random
from typing import Any

import torch
import transformers
from tier_helpers import (
    EXACT_FORMS,
    MODELS,
    PAGE_TOKENS,
    Recorder,
    Request,
    Stage,
    largest_error,
    reference,
    some_tokens,
    with_the_tokens_of,
)
from torch_helpers import TINY

from preble_worker.int8_form import Int8Form, int8_page_tokens
from preble_worker.kv_form import KvForm
from preble_worker.kv_pool import KVPool, KVShape

NEW_TOKENS = 12
LOSS = 0.5
"""Of logits up to about 7."""

FACTORIES: dict[str, Any] = {
    "llama-2": MODELS["llama-2"],
    "grouped heads": lambda: transformers.LlamaConfig(**TINY),
}


def forced(model: Recorder, stage: Stage, requests: list[Request], prompts: list[Any]) -> None:
    """Decode all, with the inputs of their references."""
    while min(len(r.logits) for r in requests) < NEW_TOKENS:
        for request, prompt in zip(requests, prompts, strict=True):
            with_the_tokens_of(reference(model, prompt, NEW_TOKENS), request)
        stage.step(*((r, 1) for r in requests if len(r.logits) < NEW_TOKENS))


def in_chunks(stage: Stage, request: Request, *beside: Request) -> None:
    for chunk in (3, 16, len(request.tokens)):
        if num := min(chunk, request.missing if not request.output else 0):
            stage.step(*((r, 1) for r in beside), (request, num))


def a_page_holds_more_and_gives_back_what_it_was_given(bits: str, device: torch.device) -> None:
    """Within half a step of each head's own scale, at every place of every page."""
    shapes = [KVShape(2, 16, 8), KVShape(1, 24, 24)]
    dtype = getattr(torch, bits)
    pool = KVPool(shapes, num_pages=5, page_tokens=16, dtype=dtype, device=device)
    form = Int8Form(pool)
    width = form.page_tokens
    assert width == int8_page_tokens(pool) == {4: 42, 2: 21}[dtype.itemsize]
    generator = torch.Generator().manual_seed(0)
    numbers = torch.arange(5 * width).numpy()
    places = form.places_of(numbers // width, numbers % width)
    tokens = torch.arange(5 * width, device=device)
    given = []
    for layer, shape in enumerate(shapes):
        key, value = (
            torch.randn(5 * width, shape.num_kv_heads, dim, generator=generator).to(device, dtype)
            for dim in (shape.key_dim, shape.value_dim)
        )
        given.append((key, value))
        form.store(layer, places, tokens, key, value, None)
    for layer, pair in enumerate(given):
        for ours, theirs in zip(
            form.gather(layer, torch.arange(5, device=device)), pair, strict=True
        ):
            scale = theirs.float().abs().amax(dim=-1, keepdim=True) / 127
            rounding = theirs.float().abs() * torch.finfo(dtype).eps
            assert ours.shape == theirs.shape
            error = (ours.float() - theirs.float()).abs()
            assert (error <= 0.501 * scale + rounding).all()


def all_forms_beside_each_other(model: Recorder, exact: float, same: float) -> None:
    """The exact ones lose nothing, and int8 no more than alone, in chunks and decodes."""
    kinds = [KvForm.INT8, KvForm.HIDDEN, KvForm.INT8, KvForm.FULL, KvForm.INT8]
    prompts = [some_tokens(seed, num) for seed, num in enumerate((40, 17, 33, 64, 5))]
    stage = Stage(model)
    requests = [stage.add(p, form=form) for p, form in zip(prompts, kinds, strict=True)]
    arrived: list[Request] = []
    for request in requests:
        in_chunks(stage, request)
        arrived.append(request)
    forced(model, stage, requests, prompts)
    for request, prompt, form in zip(requests, prompts, kinds, strict=True):
        error = largest_error(request, reference(model, prompt, NEW_TOKENS))
        if form is not KvForm.INT8:
            assert error < exact
            continue
        alone = Stage(model)
        again = alone.add(prompt, form=form)
        in_chunks(alone, again)
        forced(model, alone, [again], [prompt])
        assert largest_error(request, again) < same
        assert exact < error < LOSS


def shrinking_after_every_number_of_outputs(model: Recorder, exact: float) -> None:
    """What was shared stays so: another request goes on reading it, exactly."""
    prefix = some_tokens(1, 3 * PAGE_TOKENS)
    prompts = [prefix + some_tokens(2, 30), prefix + some_tokens(3, 9)]
    for at in range(1, NEW_TOKENS):
        stage = Stage(model)
        first = stage.add([*prefix, 7])
        stage.step((first, first.missing))
        requests = [stage.add(prompt, like=first) for prompt in prompts]
        stage.step(*((r, r.missing) for r in requests))
        while len(requests[0].logits) < NEW_TOKENS:
            if len(requests[0].logits) == at:
                stage.shrink(requests[0])
                assert requests[0].compact_from == len(prefix)
            for request, prompt in zip(requests, prompts, strict=True):
                with_the_tokens_of(reference(model, prompt, NEW_TOKENS), request)
            stage.step(*((r, 1) for r in requests))
        before, after = requests[0].logits[:at], requests[0].logits[at:]
        expected = reference(model, prompts[0], NEW_TOKENS).logits
        pairs = [*zip(before, expected, strict=False), *zip(after, expected[at:], strict=False)]
        errors = [float((ours - theirs).abs().max()) for ours, theirs in pairs]
        assert max(errors[:at]) < exact and max(errors[at:]) < LOSS
        assert largest_error(requests[1], reference(model, prompts[1], NEW_TOKENS)) < exact


def pages_that_had_int8_are_as_good_as_new(model: Recorder, exact: float) -> None:
    """Codes read as numbers are often none, and attention multiplies what it does not look at."""
    stage = Stage(model, tidy=False)
    for seed in range(3):
        request = stage.add(some_tokens(seed, 90), form=KvForm.INT8)
        stage.step((request, 90))
        stage.end(request)
        pages = torch.tensor(stage.free[:1], device=stage.pool.device)
        assert not stage.pool.read(pages).isfinite().all()
        for form in EXACT_FORMS:
            # The shorter one's last page is read beyond its end, because the other is longer.
            prompts = [some_tokens(10 + seed, num) for num in (20 + seed, 40)]
            others = [stage.add(prompt, form=form) for prompt in prompts]
            stage.step(*((other, other.missing) for other in others))
            while len(others[0].output) < 5:
                stage.step(*((other, 1) for other in others))
            for other, prompt in zip(others, prompts, strict=True):
                assert largest_error(other, reference(model, prompt, 5)) < exact


def whatever_happens(model: Recorder, seed: int, exact: float) -> None:
    """Random chunks, forms and shrinking with shared prefixes."""
    rng = random.Random(seed)
    stage = Stage(model)
    prefix = some_tokens(100 + seed, 3 * PAGE_TOKENS)
    prompts = [prefix + some_tokens(1000 * seed + i, rng.randint(1, 40)) for i in range(6)]
    first = stage.add([*prefix, 9])
    stage.step((first, first.missing))
    forms = list(KvForm)
    requests = [
        stage.add(prompt, form=rng.choice(forms), like=rng.choice([None, first]))
        for prompt in prompts
    ]
    lossy = {r for r in requests if r.form is KvForm.INT8}
    while any(len(r.logits) < 8 for r in requests):
        rows = []
        for request, prompt in zip(requests, prompts, strict=True):
            if len(request.logits) >= NEW_TOKENS or rng.random() < 0.2:
                continue
            if request.form is KvForm.FULL and request.output and rng.random() < 0.1:
                stage.shrink(request)
                lossy.add(request)
            if request.output:
                with_the_tokens_of(reference(model, prompt, NEW_TOKENS), request)
            rows.append((request, 1 if request.output else rng.randint(1, request.missing)))
        if rows:
            stage.step(*rows)
    for request, prompt in zip(requests, prompts, strict=True):
        error = largest_error(request, reference(model, prompt, NEW_TOKENS))
        assert error < (LOSS if request in lossy else exact)
