"""`n`: several outputs for one prompt, as the official client library sees them."""

import random

import openai
import pytest
from gateway_helpers import FakeDispatcher, Script, Served, gateway, spoken

from preble.errors import Overloaded, WorkerFailed
from preble.types import FinishReason
from preble_router.generation import Generation, GenerationRequest

MESSAGES = [{"role": "user", "content": "Hi"}]
WORDS = ["The", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]


def babble(request: GenerationRequest) -> Script:
    """What it says, how long, and how much of the prompt was cached depend on the seed alone."""
    rng = random.Random(request.sampling.seed)
    script = spoken(" ".join(rng.choices(WORDS, k=rng.randrange(2, 9))), FinishReason.STOP)
    script.cached_tokens = rng.randrange(30)
    return script


def client_of(served: Served) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=served.url + "/v1", api_key="key", max_retries=0)


async def test_the_first_choice_is_the_answer_to_the_request_alone():
    async with gateway(FakeDispatcher(script=babble)) as served, client_of(served) as client:
        alone = await client.chat.completions.create(model="demo", messages=MESSAGES, seed=5)
        both = [
            await client.chat.completions.create(model="demo", messages=MESSAGES, seed=5, n=6)
            for _ in range(2)
        ]
    contents = [[choice.message.content for choice in chat.choices] for chat in both]
    assert contents[0] == contents[1], "the same seed gives the same choices"
    assert contents[0][0] == alone.choices[0].message.content
    assert len(set(contents[0])) == 6, "each choice has randomness of its own"
    assert [choice.index for choice in both[0].choices] == list(range(6))
    seeds = [request.sampling.seed for request in served.dispatcher.requests[1:7]]
    assert seeds[0] == 5
    assert len(set(seeds)) == 6
    assert len({request.tokens for request in served.dispatcher.requests}) == 1


async def test_the_prompt_counts_once_and_outputs_add_up():
    async with gateway(FakeDispatcher(script=babble)) as served, client_of(served) as client:
        options = {"model": "demo", "prompt": [[5] * 40, [6] * 50], "seed": 3, "max_tokens": 50}
        alone = [
            (await client.completions.create(**options | {"prompt": prompt})).usage
            for prompt in options["prompt"]
        ]
        whole = await client.completions.create(**options, n=3)
        lengths = [len(babble(r).steps) for r in served.dispatcher.requests[2:]]
        assert [choice.index for choice in whole.choices] == list(range(6))
        assert whole.usage.prompt_tokens == 90
        assert whole.usage.completion_tokens == sum(lengths)
        assert whole.usage.prompt_tokens_details.cached_tokens == sum(
            usage.prompt_tokens_details.cached_tokens for usage in alone
        )
        stream = await client.completions.create(
            **options, n=3, stream=True, stream_options={"include_usage": True}
        )
        texts = [""] * 6
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        assert texts == [choice.text for choice in whole.choices]
        assert chunk.usage == whole.usage, "in whichever order the choices ended"


async def test_every_streamed_choice_begins_with_its_role_and_ends_once():
    async with gateway(FakeDispatcher(script=babble)) as served, client_of(served) as client:
        stream = await client.chat.completions.create(
            model="demo", messages=MESSAGES, n=4, stream=True, seed=1
        )
        choices = [choice async for chunk in stream for choice in chunk.choices]
    for index in range(4):
        first, *_, last = [choice for choice in choices if choice.index == index]
        assert first.delta.role == "assistant"
        assert last.finish_reason == "stop"
    assert sum(choice.finish_reason is not None for choice in choices) == 4


async def test_leaving_cancels_all_choices():
    dispatcher = FakeDispatcher(script=lambda _: spoken("Hello", None))
    async with gateway(dispatcher) as served, client_of(served) as client:
        stream = await client.chat.completions.create(
            model="demo", messages=MESSAGES, n=5, stream=True
        )
        async with stream:
            async for chunk in stream:
                if chunk.choices[0].delta.content:
                    break
        # Leaving the gateway's block waits until nothing is live.
    assert len(dispatcher.cancelled) == 5


class Full(FakeDispatcher):
    """Takes two requests."""

    def start(self, request: GenerationRequest) -> Generation:
        if len(self.live) == 2:
            raise Overloaded("full")
        return super().start(request)


async def test_all_choices_are_admitted_or_none():
    dispatcher = Full(script=lambda _: spoken("Hello", None))
    async with gateway(dispatcher) as served, client_of(served) as client:
        with pytest.raises(openai.RateLimitError):
            await client.completions.create(model="demo", prompt=["a", "b"], n=2)
    assert dispatcher.asked_rooms == [4]
    assert len(dispatcher.cancelled) == 2


async def test_one_failed_choice_fails_the_answer_and_frees_the_others():
    def script(request: GenerationRequest) -> Script:
        fails = len(dispatcher.requests) == 3
        return spoken("Hello", WorkerFailed("gone") if fails else None)

    dispatcher = FakeDispatcher(script=script)
    async with gateway(dispatcher) as served, client_of(served) as client:
        with pytest.raises(openai.InternalServerError, match="gone"):
            await client.chat.completions.create(model="demo", messages=MESSAGES, n=4)
    assert len(dispatcher.cancelled) == 3
