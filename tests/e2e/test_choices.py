"""`n > 1` through router and workers: the choices share the prompt's prefix."""

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


async def test_the_choices_compute_their_prompt_once():
    workers = [make_worker(f"w{i}") for i in range(3)]
    tokenizer = chat_tokenizer()
    async with running(*workers) as addresses, dispatcher_over(*addresses) as dispatcher:
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
    assert sorted(cached) == [0, 0, 3 * SHARED_TOKENS], "three waited for the first one's pages"
    assert len(set(answer.headers["x-preble-worker"].split(","))) == 1
    assert answer.parse().usage.prompt_tokens == len(PROMPT)
    assert answer.parse().usage.completion_tokens == 80
    for choice in answer.parse().choices:
        seed = choice_seed(7, choice.index)
        tokens = simulated_tokens(pack_tokens(PROMPT), seed, 20, VOCAB)
        assert choice.text == tokenizer.decode(pack_tokens(tokens))
