"""`n > 1` through router and workers: the choices share the prompt's prefix."""

import pytest
from gateway_helpers import chat_tokenizer, make_config, serving
from linked_cluster import VOCAB, dispatcher_over, make_worker, running
from openai import AsyncOpenAI

from preble.page_keys import pack_tokens
from preble_router.gateway import make_app
from preble_router.gateway.completions import choice_seed
from preble_router.metrics import Metrics
from preble_worker.simulated_engine import simulated_tokens

PROMPT = [20 + i % 250 for i in range(1000)]
SHARED_TOKENS = 62 * 16


@pytest.mark.parametrize("policy", ["preble", "longest_prefix"])
async def test_each_worker_computes_the_choices_prompt_once(policy):
    workers = [make_worker(f"w{i}") for i in range(3)]
    tokenizer = chat_tokenizer()
    async with (
        running(*workers) as addresses,
        dispatcher_over(*addresses, policy=policy) as dispatcher,
    ):
        app = make_app(dispatcher, tokenizer, make_config(), Metrics())
        async with serving(app) as url, AsyncOpenAI(base_url=url + "/v1", api_key="-") as client:
            answer = await client.completions.with_raw_response.create(
                model="demo",
                prompt=PROMPT,
                n=4,
                seed=7,
                max_tokens=20,
                extra_body={"ignore_eos": True},
            )
        cached = [worker.load.cached_tokens_total for worker in dispatcher.scheduler.workers()]
    chosen = set(answer.headers["x-preble-worker"].split(","))
    assert sum(cached) == (4 - len(chosen)) * SHARED_TOKENS, "others waited for the first's pages"
    # The default policy may find that a second copy is worth its computing.
    assert len(chosen) == 1 or policy == "preble"
    assert answer.parse().usage.prompt_tokens == len(PROMPT)
    assert answer.parse().usage.completion_tokens == 80
    for choice in answer.parse().choices:
        seed = choice_seed(7, choice.index)
        tokens = simulated_tokens(pack_tokens(PROMPT), seed, 20, VOCAB)
        assert choice.text == tokenizer.decode(pack_tokens(tokens))
