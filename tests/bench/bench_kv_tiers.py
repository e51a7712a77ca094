"""What the cache's tiers cost and lose, beside full-precision KV on the device in the same run.

A multi-head model of 4 layers (d_model 256, keys and values 512 numbers per token and layer) in
float32 on one CPU thread, where "device" and "host" are two places in one memory.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))
from tier_helpers import (
    Recorder,
    Request,
    Stage,
    load_recorder,
    reference,
    some_tokens,
    with_the_tokens_of,
)
from torch_helpers import TINY, greedy, load, save_model, serve

from preble_worker.batch import Direction, Move
from preble_worker.copy_lane import make_lane
from preble_worker.host_pool import HostPool
from preble_worker.kv_form import KvForm
from preble_worker.kv_pool import KVPool

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 12, 80, 24
ROUNDS = 5
SIZES = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}


def line(what: str, value: str, beside: str = "") -> None:
    print(f"{what:<52}{value:>14}  {beside}")


def int8_losses(model: Recorder) -> None:
    """Each request's prompt leaves in 8 bits and comes back, once; or it has int8 all the time."""
    losses("int8, to the host and back", model, leave_and_come_back)
    losses("int8, resident", model, lambda stage, seed: stay(stage, seed, KvForm.INT8))


def leave_and_come_back(stage: Stage, seed: int) -> Request:
    request = stay(stage, seed, KvForm.FULL)
    stage.offload(request, before_step=True)
    stage.move_only()
    stage.upload(request, before_step=True)
    return request


def stay(stage: Stage, seed: int, form: KvForm) -> Request:
    request = stage.add(some_tokens(seed, PROMPT_TOKENS), form=form)
    stage.step((request, PROMPT_TOKENS))
    return request


def losses(name: str, model: Recorder, begin: Callable[[Stage, int], Request]) -> None:
    errors, largest, first_same, all_same = [], [], 0, 0
    for seed in range(PROMPTS):
        expected = reference(model, some_tokens(seed, PROMPT_TOKENS), NEW_TOKENS)
        stage = Stage(model, int8=True)
        request = begin(stage, seed)
        while len(request.logits) < NEW_TOKENS:
            with_the_tokens_of(expected, request)
            stage.step((request, 1))
        ours, theirs = torch.stack(request.logits[1:]), torch.stack(expected.logits[1:NEW_TOKENS])
        errors.append(float((ours - theirs).abs().max()))
        largest.append(float(theirs.abs().max()))
        same = ours.argmax(dim=-1) == theirs.argmax(dim=-1)
        first_same += int(same[0])
        all_same += int(same.sum())
    steps = PROMPTS * (NEW_TOKENS - 1)
    line(f"{name}: greedy tokens equal", f"{all_same / steps:.1%}", f"of {steps} steps")
    line(f"{name}: second token equal", f"{first_same / PROMPTS:.1%}", f"of {PROMPTS} prompts")
    line(f"{name}: largest error", f"{max(errors):.4f}", f"largest logit {max(largest):.1f}")


def copy_rates(model: Recorder) -> None:
    """Scattered device pages to neighbouring host pages and back."""
    pool = KVPool(
        model.decoder.kv_shapes,
        num_pages=1024,
        page_tokens=16,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    device = np.random.default_rng(0).permutation(1024)[:512].astype(np.int32)
    pages = np.arange(512, dtype=np.int32)
    for int8 in (False, True):
        lane = make_lane(torch.device("cpu"), rate=0.0)
        host = HostPool(pool, lane, num_pages=512, int8=int8)
        for direction in Direction:
            move = Move(
                direction=direction,
                device_pages=device,
                host_pages=pages,
                int8=int8,
                before_step=True,
            )
            taken = median_seconds([lambda h=host, m=move: h.begin([m])])[0]
            rate = 512 * pool.bytes_per_page / taken / 1e9
            form = f"int8, {host.bytes_per_page / pool.bytes_per_page:.2f} of the bytes"
            name = f"{direction.name.lower()}, {form if int8 else 'full precision'}"
            line(f"{name}", f"{rate:.2f} GB/s", "of full-precision KV")


def step_times(model: Recorder) -> None:
    """Eight decodes at contexts of about 128, all in one form."""
    runs = []
    for form in KvForm:
        stage = Stage(model)
        requests = [stage.add(some_tokens(seed, 96), form=form) for seed in range(8)]
        stage.step(*((r, 96) for r in requests))
        runs.append(lambda s=stage, rs=requests: many_steps(s, rs))
    kv, hidden, int8 = (seconds / 8 for seconds in median_seconds(runs))
    tokens = 8 * (96 + 8 * (ROUNDS + 1) // 2)
    line("decode step of 8, KV", f"{kv * 1e3:.2f} ms", "copies of gathered keys not kept")
    for name, seconds, field in (
        ("hidden form", hidden, "per_hidden_token"),
        ("int8", int8, "per_int8_token"),
    ):
        line(f"decode step of 8, {name}", f"{seconds * 1e3:.2f} ms", f"{seconds / kv:.2f}x")
        rho = (seconds - kv) / tokens
        line(f"{name}: slowdown per token and step", f"{rho * 1e6:.2f} us", field)


def many_steps(stage: Stage, requests: list[Request]) -> None:
    for _ in range(8):
        stage.step(*((r, 1) for r in requests))


def whole_runs(directory: Path) -> None:
    """The same load without tiers, and with tiers that nothing needs."""
    prompts = [some_tokens(seed, 64) for seed in range(16)]
    every: dict[str, dict[str, Any]] = {
        "tiers off": {},
        "tiers on, nothing moves": {"kv_tiers": ("host", "hidden"), "host_kv_tokens": 4096},
    }
    engines = [load(directory, kv_cache_tokens=8192, **options) for options in every.values()]
    times = median_seconds(
        [lambda e=e: serve(e, prompts, greedy(48), checks=False) for e in engines]
    )
    for name, seconds in zip(every, times, strict=True):
        line(f"16 requests of 64 + 48, {name}", f"{seconds:.3f} s", f"{seconds / times[0]:.3f}x")


def median_seconds(runs: list[Callable[[], object]]) -> list[float]:
    """Of each run; they take turns, so that a slow moment of the machine meets all."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(ROUNDS + 1):
        for index, run in enumerate(runs):
            begun_at = time.perf_counter()
            run()
            if turn:  # The first turn warms up.
                times[index].append(time.perf_counter() - begun_at)
    return [statistics.median(each) for each in times]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        save_model(transformers.LlamaConfig(**(TINY | SIZES)), directory)
        model = load_recorder(directory)
        print(f"torch {torch.__version__}, {torch.get_num_threads()} thread, float32\n")
        int8_losses(model)
        copy_rates(model)
        step_times(model)
        whole_runs(directory)


if __name__ == "__main__":
    main()
