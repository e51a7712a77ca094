"""Log probabilities as the official client library sees them."""

import math

import openai
import pytest
from gateway_helpers import FakeDispatcher, Script, Served, byte_level_core, gateway, spoken
from pretend_logprobs import pretend_logprobs

from preble.page_keys import pack_tokens, unpack_tokens
from preble.types import FinishReason

MESSAGES = [{"role": "user", "content": "Hi"}]
TEXT = "The quick 狐 jumps 🙂!"
CORE = byte_level_core()
IDS = CORE.encode(TEXT).ids


def speaking(end: FinishReason | None = FinishReason.STOP) -> FakeDispatcher:
    return FakeDispatcher(script=lambda _: spoken(TEXT, end))


def client_of(served: Served) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=served.url + "/v1", api_key="key", max_retries=0)


def expected(num_tokens: int = len(IDS)) -> list[float]:
    """What was told of the first tokens of TEXT."""
    packed = pretend_logprobs(pack_tokens(IDS[:num_tokens]), 0).chosen
    return [float(value) for value in memoryview(packed).cast("f")]


def joined(content) -> str:
    return b"".join([bytes(token.bytes) for token in content]).decode()


@pytest.mark.parametrize("end", [FinishReason.STOP, FinishReason.LENGTH])
async def test_a_chat(end):
    async with gateway(speaking(end)) as served, client_of(served) as client:
        chat = await client.chat.completions.create(
            model="demo", messages=MESSAGES, logprobs=True, top_logprobs=3
        )
    content = chat.choices[0].logprobs.content
    assert [token.logprob for token in content] == expected(), "the end token is not among them"
    assert joined(content) == TEXT
    for token in content:
        try:
            assert token.token == bytes(token.bytes).decode()
        except UnicodeDecodeError:
            assert token.token == "".join(f"\\x{byte:02x}" for byte in token.bytes)
        values = [likely.logprob for likely in token.top_logprobs]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert token.top_logprobs[0].token == token.token
    assert any(token.token.startswith("\\x") for token in content), "a character is split"


async def test_a_streamed_chat_has_them_beside_their_text():
    async with gateway(speaking()) as served, client_of(served) as client:
        stream = await client.chat.completions.create(
            model="demo", messages=MESSAGES, logprobs=True, stream=True, n=2
        )
        choices = [choice async for chunk in stream for choice in chunk.choices]
    for index in range(2):
        mine = [choice for choice in choices if choice.index == index]
        told = [choice for choice in mine if choice.logprobs]
        for choice in told:
            assert joined(choice.logprobs.content) == choice.delta.content
            assert all(token.top_logprobs == [] for token in choice.logprobs.content)
        assert "".join(choice.delta.content for choice in told) == TEXT
        tokens = [token for choice in told for token in choice.logprobs.content]
        assert [token.logprob for token in tokens] == expected()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_completion(stream):
    async with gateway(speaking()) as served, client_of(served) as client:
        answer = await client.completions.create(
            model="demo", prompt="a", logprobs=2, stream=stream
        )
        chunks = [chunk async for chunk in answer] if stream else [answer]
    told = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    tokens = [token for part in told for token in part.tokens]
    offsets = [offset for part in told for offset in part.text_offset]
    assert [value for part in told for value in part.token_logprobs] == expected()
    assert len(offsets) == len(tokens) == len(IDS)
    for token, offset in zip(tokens, offsets, strict=True):
        assert token.startswith("bytes:\\x") or TEXT[offset:].startswith(token)
    for part in told:
        for token, value, top in zip(
            part.tokens, part.token_logprobs, part.top_logprobs, strict=True
        ):
            assert top[token] == value
            assert len(top) in (2, 3)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", ["狐", "ick", " quick", "The", "umps 🙂"])
async def test_they_end_where_a_stop_string_begins(stop, stream):
    async with gateway(speaking(None)) as served, client_of(served) as client:
        answer = await client.completions.create(
            model="demo", prompt="a", logprobs=0, stop=stop, stream=stream
        )
        chunks = [chunk async for chunk in answer] if stream else [answer]
    text = "".join(chunk.choices[0].text for chunk in chunks)
    assert text == TEXT[: TEXT.index(stop)]
    told = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    offsets = [offset for part in told for offset in part.text_offset]
    assert all(offset < len(text) for offset in offsets)
    values = [value for part in told for value in part.token_logprobs]
    assert values == expected(len(values))
    told_of = CORE.decode(IDS[: len(values)])
    assert told_of.startswith(text), "every token of the text is told"


async def test_special_tokens_within_an_output_have_no_bytes():
    end = CORE.token_to_id("<|im_end|>")
    script = Script([pack_tokens([IDS[0], end, IDS[1]])], FinishReason.LENGTH)
    dispatcher = FakeDispatcher(script=lambda _: script)
    async with gateway(dispatcher) as served, client_of(served) as client:
        chat = await client.chat.completions.create(model="demo", messages=MESSAGES, logprobs=True)
    content = chat.choices[0].logprobs.content
    assert [token.token for token in content][1] == "<|im_end|>"
    assert [token.bytes is None for token in content] == [False, True, False]


async def test_what_is_impossible_has_a_number(monkeypatch):
    impossible = pretend_logprobs(pack_tokens(IDS[:1]), 0)
    minus_infinity = memoryview(bytearray(4)).cast("f")
    minus_infinity[0] = -math.inf

    def told(tokens, num_top, **_):
        del num_top
        assert unpack_tokens(tokens).tolist() == IDS[:1]
        return type(impossible)(bytes(minus_infinity))

    monkeypatch.setattr("gateway_helpers.pretend_logprobs", told)
    script = Script([pack_tokens(IDS[:1])], FinishReason.LENGTH)
    dispatcher = FakeDispatcher(script=lambda _: script)
    async with gateway(dispatcher) as served, client_of(served) as client:
        chat = await client.chat.completions.create(model="demo", messages=MESSAGES, logprobs=True)
    assert [token.logprob for token in chat.choices[0].logprobs.content] == [-9999.0]


async def test_who_does_not_ask_is_told_nothing():
    async with gateway(speaking()) as served, client_of(served) as client:
        chat = await client.chat.completions.create(model="demo", messages=MESSAGES)
        completion = await client.completions.create(model="demo", prompt="a")
    assert chat.choices[0].logprobs is None
    assert completion.choices[0].logprobs is None
    assert served.dispatcher.requests[0].sampling.top_logprobs is None
