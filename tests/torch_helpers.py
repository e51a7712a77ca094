"""Tiny random models, and a loop that serves requests with the real scheduler and engine."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from preble.page_keys import pack_tokens, unpack_tokens
from preble.types import FinishReason, Logprobs, SamplingParams, WorkerRequest
from preble_worker.batch import Batch
from preble_worker.config import WorkerConfig
from preble_worker.loaded import LoadedEngine
from preble_worker.scheduler import LocalScheduler
from preble_worker.torch_engine import load_torch_engine

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TINY: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def save_model(config: Any, directory: Path, *, seed: int = 0) -> Any:
    """A random model of `config`, saved as users get theirs, and returned.

    Weights are larger than at the start of training: attention is sharp, so that a wrong key or
    value changes the output, and the best logit stands clear of the second.
    """
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                size = 1.0 if "embed" in name or "wte" in name else 1.6 * weight.shape[-1] ** -0.5
                weight.normal_(0.0, size)
            elif name.endswith("bias"):
                weight.normal_(0.0, 0.3)
            else:
                weight.add_(torch.rand_like(weight) * 0.4 - 0.2)
    model.tie_weights()
    model.save_pretrained(directory)
    return model


def worker_config(directory: Path, **options: Any) -> WorkerConfig:
    return WorkerConfig(model="tiny", model_path=directory, **({"device": "cpu"} | options))


def load(directory: Path, **options: Any) -> LoadedEngine:
    return load_torch_engine(worker_config(directory, **options), cost=None)


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, ignore_eos=True)


@dataclass
class Served:
    """What a run of `serve` produced.

    Attributes:
        tokens: per request, in the order given.
        reasons: why each ended.
        cached: prompt tokens of each that came from cache.
        logprobs: of each token of those that ask for them.
        batches: shape of every step: decodes, prefill rows, prefill tokens.
    """

    tokens: list[list[int]] = field(default_factory=list)
    reasons: list[FinishReason | None] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)
    batches: list[tuple[int, int, int]] = field(default_factory=list)
    preemptions: int = 0
    logprobs: list[list[Logprobs]] = field(default_factory=list)


def serve(
    loaded: LoadedEngine,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams | Sequence[SamplingParams],
    *,
    arrivals: Sequence[int] | None = None,
    scheduler: LocalScheduler | None = None,
    delivered: Sequence[int] | None = None,
    checks: bool = True,
) -> Served:
    """Serve all prompts to their ends.

    Args:
        arrivals: the step before which each request arrives, the first if not given.
        delivered: how many of each prompt's last tokens are output of an earlier attempt.
        checks: assert the scheduler's invariants after every step.
    """
    scheduler = scheduler or LocalScheduler(loaded.scheduler, epoch=1)
    each = [sampling] * len(prompts) if isinstance(sampling, SamplingParams) else list(sampling)
    served = Served([[] for _ in prompts], [None for _ in prompts], [0 for _ in prompts])
    served.logprobs = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: arrivals[i] if arrivals else 0)
    step = 0
    while order or scheduler.has_work:
        while order and (arrivals is None or arrivals[order[0]] <= step):
            index = order.pop(0)
            request = WorkerRequest(
                request_id=str(index),
                tokens=pack_tokens(prompts[index]),
                sampling=each[index],
                num_delivered=delivered[index] if delivered else 0,
            )
            scheduler.add(request, now=float(step))
        step += 1
        batch = scheduler.schedule(now=float(step))
        if batch is None:
            outputs = scheduler.flush()
        else:
            outputs = scheduler.complete(batch, loaded.engine.run(batch), now=float(step))
            served.batches.append(shape_of(batch))
        if checks:
            scheduler.check()
        for output in outputs.outputs:
            index = int(output.request_id)
            already = delivered[index] if delivered else 0
            assert output.position == already + len(served.tokens[index])
            served.tokens[index] += unpack_tokens(output.tokens).tolist()
            served.reasons[index] = output.finish_reason
            if output.logprobs is not None:
                assert len(output.logprobs.chosen) == len(output.tokens)
                served.logprobs[index].append(output.logprobs)
            served.cached[index] = output.cached_tokens or 0
    served.preemptions = scheduler.load().preemptions_total
    return served


def shape_of(batch: Batch) -> tuple[int, int, int]:
    return (
        batch.num_decodes,
        len(batch.slots) - batch.num_decodes,
        len(batch.prefill_tokens),
    )


def generate(model: Any, prompts: Iterable[Sequence[int]], max_tokens: int) -> list[list[int]]:
    """transformers' greedy output; prompts of one length go together, so nothing is padded."""
    prompts = [list(prompt) for prompt in prompts]
    answers: list[list[int]] = [[] for _ in prompts]
    for length in sorted({len(prompt) for prompt in prompts}):
        rows = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        tokens = torch.tensor([prompts[i] for i in rows], device=model.device)
        with torch.inference_mode():
            output = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=max_tokens,
                min_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        for row, answer in zip(rows, output[:, length:].tolist(), strict=True):
            answers[row] = answer
    return answers


def random_prompts(
    seed: int, num: int, *, vocab: int = 512, shortest: int = 1, longest: int = 90
) -> list[list[int]]:
    """Prompts of few different lengths, so that `generate` can batch them."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, longest + 1, max(1, num // 8))
    chosen: npt.NDArray[np.int64] = rng.choice(lengths, num)
    return [rng.integers(2, vocab, n).tolist() for n in chosen.tolist()]
