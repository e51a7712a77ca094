"""The gateway as the official client library sees it."""

import asyncio

import openai
import pytest
from gateway_helpers import FakeDispatcher, Served, gateway, spoken

from preble.errors import DeadlineExceeded, NoWorkers, Overloaded, PromptTooLong
from preble.types import FinishReason

TEXT = "Hello, wörld 🙂"
MESSAGES = [{"role": "user", "content": "Hi"}]


def speaking() -> FakeDispatcher:
    return FakeDispatcher(script=lambda _: spoken(TEXT, FinishReason.STOP))


def options(served: Served) -> dict[str, object]:
    return {"base_url": served.url + "/v1", "api_key": "key", "max_retries": 0}


async def test_async_client():
    async with gateway(speaking()) as served, openai.AsyncOpenAI(**options(served)) as client:
        chat = await client.chat.completions.create(
            model="demo", messages=MESSAGES, seed=1, temperature=0, max_completion_tokens=50
        )
        assert chat.choices[0].message.content == TEXT
        assert chat.choices[0].finish_reason == "stop"
        assert chat.usage.prompt_tokens_details.cached_tokens == 16

        stream = await client.chat.completions.create(
            model="demo",
            messages=[*MESSAGES, chat.choices[0].message.model_dump(), *MESSAGES],
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"top_k": 5, "ignore_eos": True, "cache_salt": "tenant"},
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
        assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 16
        assert served.dispatcher.requests[-1].namespace == "tenant"

        completion = await client.completions.create(model="demo", prompt=["a", "b"], stop=["wör"])
        assert [choice.text for choice in completion.choices] == ["Hello, ", "Hello, "]
        stream = await client.completions.create(model="demo", prompt="a", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == TEXT

        models = await client.models.list()
        assert [model.id for model in models.data] == ["demo"]
        assert (await client.models.retrieve("demo")).owned_by == "preble"


async def test_sync_client():
    def talk(served: Served) -> None:
        with openai.OpenAI(**options(served)) as client:
            chat = client.chat.completions.create(model="demo", messages=MESSAGES)
            assert chat.choices[0].message.content == TEXT
            stream = client.chat.completions.create(model="demo", messages=MESSAGES, stream=True)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == TEXT
            raw = client.chat.completions.with_raw_response.create(model="demo", messages=MESSAGES)
            assert raw.headers["x-preble-worker"] == "w0"

    async with gateway(speaking()) as served:
        await asyncio.to_thread(talk, served)


async def test_leaving_a_stream_cancels():
    dispatcher = FakeDispatcher(script=lambda _: spoken(TEXT, None))
    async with gateway(dispatcher) as served, openai.AsyncOpenAI(**options(served)) as client:
        stream = await client.chat.completions.create(model="demo", messages=MESSAGES, stream=True)
        async with stream:
            async for chunk in stream:
                if chunk.choices[0].delta.content:
                    break
        # Leaving the gateway's block waits until nothing is live.
    assert len(dispatcher.cancelled) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (Overloaded("full"), openai.RateLimitError),
        (NoWorkers("none"), openai.InternalServerError),
        (DeadlineExceeded("late"), openai.InternalServerError),
        (PromptTooLong("long", num_tokens=2, max_tokens=1), openai.APIStatusError),
    ],
)
async def test_errors_have_the_client_s_classes(refusal, expected, stream):
    dispatcher = FakeDispatcher(refusal=refusal)
    async with gateway(dispatcher) as served, openai.AsyncOpenAI(**options(served)) as client:
        with pytest.raises(expected) as caught:
            await client.chat.completions.create(model="demo", messages=MESSAGES, stream=stream)
        assert caught.value.code == refusal.code
        assert str(refusal) in str(caught.value)


async def test_bad_requests_have_the_client_s_classes():
    async with (
        gateway(speaking(), api_keys=("secret",)) as served,
        openai.AsyncOpenAI(**options(served)) as stranger,
        openai.AsyncOpenAI(**options(served) | {"api_key": "secret"}) as client,
    ):
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="other", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.completions.create(model="demo", prompt="a", n=2, best_of=3)
        assert caught.value.param == "best_of"


async def test_an_error_in_a_stream_is_raised():
    dispatcher = FakeDispatcher(script=lambda _: spoken("x", DeadlineExceeded("late")))
    async with gateway(dispatcher) as served, openai.AsyncOpenAI(**options(served)) as client:
        stream = await client.chat.completions.create(model="demo", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="late"):
            async for _ in stream:
                pass
