"""A real model's worker is lost mid-stream: tokens, log probabilities and penalties go on."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import transformers
from linked_cluster import dispatcher_over, running
from router_helpers import collect, until
from torch_helpers import TINY, load, save_model, worker_config

from preble.page_keys import pack_tokens
from preble.types import Logprobs, SamplingParams
from preble_router.dispatch import Dispatcher, Generation, GenerationRequest
from preble_worker.server import WorkerServer

MAX_TOKENS = 150
SAMPLINGS = [
    SamplingParams(max_tokens=MAX_TOKENS, ignore_eos=True, top_logprobs=4, **options)
    for options in (
        {},
        {"frequency_penalty": 0.75, "presence_penalty": -0.5},
        {"temperature": 0.8, "top_p": 0.95, "seed": 5, "presence_penalty": 2.0},
    )
]
PROMPT = pack_tokens(np.random.default_rng(4).integers(2, 512, 100))


def start(dispatcher: Dispatcher, number: int) -> list[Generation]:
    requests = [
        GenerationRequest(request_id=f"{number}-{i}", tokens=PROMPT, sampling=sampling)
        for i, sampling in enumerate(SAMPLINGS)
    ]
    return [dispatcher.start(request) for request in requests]


async def whole(generation: Generation) -> tuple[bytes, Logprobs]:
    tokens, deltas = await collect(generation)
    return tokens, Logprobs.joined([delta.logprobs for delta in deltas if delta.logprobs])


async def test_nothing_shows_that_a_worker_was_lost(tmp_path: Path) -> None:
    save_model(transformers.LlamaConfig(**TINY), tmp_path)
    workers = [
        WorkerServer(
            replace(worker_config(tmp_path, worker_id=f"w{i}"), model="demo"), load(tmp_path)
        )
        for i in range(2)
    ]
    async with running(*workers) as addresses, dispatcher_over(*addresses) as dispatcher:
        undisturbed = await asyncio.gather(*map(whole, start(dispatcher, 0)))
        generations = start(dispatcher, 1)
        await until(lambda: all(g.num_output_tokens > 9 for g in generations))
        (lost,) = {generation.worker_id for generation in generations}
        dispatcher.remove_worker(lost)
        answers = await asyncio.gather(*map(whole, generations))
        assert [generation.attempt for generation in generations] == [2, 2, 2]
    for (tokens, logprobs), (expected_tokens, expected) in zip(answers, undisturbed, strict=True):
        assert tokens == expected_tokens
        assert logprobs.top_tokens == expected.top_tokens
        for column in ("chosen", "top"):
            ours, theirs = (
                np.frombuffer(getattr(each, column), "<f4") for each in (logprobs, expected)
            )
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
