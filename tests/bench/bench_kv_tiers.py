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
from tier_helpers import Recorder, Request, Stage, load_recorder, reference, some_tokens
from torch_helpers import TINY, greedy, load, save_model, serve

from preble_worker.batch import Direction, Move
from preble_worker.copy_lane import make_lane
from preble_worker.host_pool import HostPool
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
    """Each request leaves in 8 bits after its prompt and comes back, once."""
    errors, largest, first_same, all_same = [], [], 0, 0
    for seed in range(PROMPTS):
        prompt = some_tokens(seed, PROMPT_TOKENS)
        expected = reference(model, prompt, NEW_TOKENS)
        stage = Stage(model, int8=True)
        request = stage.add(prompt)
        stage.step((request, PROMPT_TOKENS))
        stage.offload(request, before_step=True)
        stage.move_only()
        stage.upload(request, before_step=True)
        # The same inputs whatever int8 would have said, so that every step can be compared.
        while len(request.logits) < NEW_TOKENS:
            request.tokens = expected.tokens[: request.computed + 1]
            stage.step((request, 1))
        ours, theirs = torch.stack(request.logits[1:]), torch.stack(expected.logits[1:NEW_TOKENS])
        errors.append(float((ours - theirs).abs().max()))
        largest.append(float(theirs.abs().max()))
        same = ours.argmax(dim=-1) == theirs.argmax(dim=-1)
        first_same += int(same[0])
        all_same += int(same.sum())
    steps = PROMPTS * (NEW_TOKENS - 1)
    line("int8: greedy tokens equal, step by step", f"{all_same / steps:.1%}", f"of {steps}")
    line("int8: first token after coming back equal", f"{first_same / PROMPTS:.1%}")
    line("int8: largest logit error", f"{max(errors):.4f}", f"largest logit {max(largest):.1f}")


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
    for hidden in (False, True):
        stage = Stage(model)
        requests = [stage.add(some_tokens(seed, 96), hidden=hidden) for seed in range(8)]
        stage.step(*((r, 96) for r in requests))
        runs.append(lambda s=stage, rs=requests: many_steps(s, rs))
    kv, hidden_form = (seconds / 8 for seconds in median_seconds(runs))
    tokens = 8 * (96 + 8 * (ROUNDS + 1) // 2)
    line("decode step of 8, KV", f"{kv * 1e3:.2f} ms", "copies of gathered keys not kept")
    line("decode step of 8, hidden form", f"{hidden_form * 1e3:.2f} ms", f"{hidden_form / kv:.2f}x")
    rho = (hidden_form - kv) / tokens
    line("hidden form: slowdown per token and step", f"{rho * 1e6:.2f} us", "per_hidden_token")


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
