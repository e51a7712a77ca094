"""Streams of the gateway: their events, their failures, and clients that go away."""

import asyncio
import json
from typing import Any

import pytest
from gateway_helpers import (
    FakeDispatcher,
    Script,
    Served,
    byte_level_core,
    gateway,
    packed,
    spoken,
    until,
)

from preble.errors import DeadlineExceeded, WorkerFailed
from preble.types import FinishReason

TEXT = "The quick brown 狐 jumps 🙂"
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


async def events(served: Served, path: str, body: Any) -> list[Any]:
    """The events of a stream, parsed; the last is the string that ends it."""
    async with served.http.stream("POST", path, json=body | {"stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert set(response.headers["x-preble-worker"].split(",")) == {"w0"}
        raw = (await response.aread()).decode()
    assert raw.endswith("\n\n")
    found = [event.removeprefix("data: ") for event in raw[:-2].split("\n\n")]
    return [event if event == "[DONE]" else json.loads(event) for event in found]


async def test_chat_stream():
    dispatcher = FakeDispatcher(script=lambda _: spoken(TEXT, FinishReason.STOP))
    async with gateway(dispatcher) as served:
        first, *middle, last, done = await events(served, "/v1/chat/completions", CHAT)
    assert done == "[DONE]"
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(event["choices"][0]["delta"]["content"] for event in middle)
    assert text == TEXT
    assert last["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert {event["id"] for event in (first, *middle, last)} == {first["id"]}
    assert all("usage" not in event for event in (first, *middle, last))


async def test_completion_stream_with_usage():
    dispatcher = FakeDispatcher(script=lambda _: spoken(TEXT))
    async with gateway(dispatcher) as served:
        body = {"prompt": [1] * 30, "stream_options": {"include_usage": True}}
        *chunks, last, usage, done = await events(served, "/v1/completions", body)
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == TEXT
    assert last["choices"][0]["finish_reason"] == "length"
    assert all(chunk["usage"] is None for chunk in (*chunks, last))
    assert usage["choices"] == []
    completion = len(byte_level_core().encode(TEXT).ids)
    assert usage["usage"] == {
        "prompt_tokens": 30,
        "completion_tokens": completion,
        "total_tokens": 30 + completion,
        "prompt_tokens_details": {"cached_tokens": 16, "predicted_cached_tokens": 48},
    }


async def test_stop_string_in_a_stream():
    dispatcher = FakeDispatcher(script=lambda _: spoken(TEXT, None))
    async with gateway(dispatcher) as served:
        *chunks, last, done = await events(
            served, "/v1/completions", {"prompt": "x", "stop": "brown"}
        )
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "The quick "
        assert last["choices"][0]["finish_reason"] == "stop"
        assert done == "[DONE]"
        assert len(dispatcher.cancelled) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_several_prompts_become_several_choices(stream):
    def script(request):
        return spoken("one" if request.request_id.endswith("-0") else "two and more")

    async with gateway(FakeDispatcher(script=script)) as served:
        body = {"prompt": ["a", [1, 2, 3]], "stream_options": {"include_usage": True}}
        if stream:
            *chunks, usage, _ = await events(served, "/v1/completions", body)
            choices = [choice for chunk in chunks for choice in chunk["choices"]]
            texts = ["".join(c["text"] for c in choices if c["index"] == i) for i in range(2)]
        else:
            response = await served.post("/v1/completions", {"prompt": body["prompt"]})
            usage = response.json()
            choices = usage["choices"]
            assert [choice["index"] for choice in choices] == [0, 1]
            texts = [choice["text"] for choice in choices]
            assert response.headers["x-preble-worker"] == "w0,w0"
        assert texts == ["one", "two and more"]
        prompt_tokens = sum(len(request.tokens) // 4 for request in served.dispatcher.requests)
        assert usage["usage"]["prompt_tokens"] == prompt_tokens


async def test_if_one_of_several_prompts_cannot_start_none_runs():
    async with gateway() as served:
        response = await served.post("/v1/completions", {"prompt": ["a", [1] * 3000]})
        assert response.status_code == 413
        assert served.dispatcher.requests == []


async def test_if_one_of_several_prompts_fails_the_others_are_cancelled():
    def script(request):
        if request.request_id.endswith("-0"):
            return spoken("never ends", None)
        return spoken("x", WorkerFailed("died"))

    for stream in (False, True):
        async with gateway(FakeDispatcher(script=script)) as served:
            body = {"prompt": ["a", "b"], "stream": stream}
            response = await served.post("/v1/completions", body)
            assert "worker_failed" in response.text
            assert len(served.dispatcher.cancelled) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WorkerFailed("died"), "worker_failed"),
        (DeadlineExceeded("late"), "deadline_exceeded"),
        (FinishReason.CANCELLED, "cancelled"),
        (None, "internal_error"),  # half a token: a bug
    ],
)
async def test_an_error_in_the_middle_is_the_last_event(error, code):
    script = Script([packed(byte_level_core().encode("fox").ids)], None)

    class Failing(FakeDispatcher):
        async def _play(self, generation, script):
            generation.feed(script.steps[0], 0)
            await asyncio.sleep(0.02)
            if error is None:
                generation.feed(b"xyz", None)
                return
            self.live.pop(generation.request_id)
            generation.end(error)

    async with gateway(Failing(script=lambda _: script)) as served:
        *chunks, last = await events(served, "/v1/chat/completions", CHAT)
        assert chunks[1]["choices"][0]["delta"]["content"] == "fox"
        assert last["error"]["code"] == code
        status = {"worker_failed": 503, "deadline_exceeded": 504, "cancelled": 499}.get(code, 500)
        await until(lambda: served.metrics.live_requests._value.get() == 0)
        text = (await served.http.get("/metrics")).text
        assert f'route="/v1/chat/completions",status="{status}"}} 1.0' in text


async def test_the_first_event_waits_for_nothing_but_the_first_token():
    core = byte_level_core()
    script = Script([packed(core.encode("fox").ids)], None)
    async with gateway(FakeDispatcher(script=lambda _: script)) as served:
        body = CHAT | {"stream": True}
        async with served.http.stream("POST", "/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                if "fox" in line:
                    break
        await until(lambda: served.dispatcher.cancelled != [])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("steps", [0, 1])
async def test_a_client_that_goes_away_cancels(stream, steps):
    """Before the first token or after it, streamed or not."""
    script = Script([packed(byte_level_core().encode("fox").ids)] * steps, None)
    async with gateway(FakeDispatcher(script=lambda _: script)) as served:
        posting = asyncio.create_task(
            served.post("/v1/chat/completions", CHAT | {"stream": stream})
        )
        await until(lambda: served.dispatcher.num_live == 1)
        await asyncio.sleep(0.05)
        posting.cancel()
        await until(lambda: len(served.dispatcher.cancelled) == 1)
        await until(lambda: served.metrics.live_requests._value.get() == 0)
        await asyncio.sleep(0.02)
        text = (await served.http.get("/metrics")).text
    assert 'route="/v1/chat/completions",status="499"} 1.0' in text


async def test_a_client_that_goes_away_in_several_prompts_cancels_all():
    script = Script([], None)
    async with gateway(FakeDispatcher(script=lambda _: script)) as served:
        posting = asyncio.create_task(
            served.post("/v1/completions", {"prompt": ["a", "b", "c"], "stream": True})
        )
        await until(lambda: served.dispatcher.num_live == 3)
        posting.cancel()
        await until(lambda: len(served.dispatcher.cancelled) == 3)


async def test_a_client_that_reads_late_gets_everything():
    ids = byte_level_core().encode("The quick brown fox jumps over the lazy dog. ").ids
    script = Script([packed(ids)] * 3000)
    expected = "The quick brown fox jumps over the lazy dog. " * 3000
    dispatcher = FakeDispatcher(script=lambda _: script, context_tokens=10**6)
    async with gateway(dispatcher) as served:
        body = {"prompt": "x", "stream": True, "max_tokens": 500_000}
        async with served.http.stream("POST", "/v1/completions", json=body) as response:
            await asyncio.sleep(0.3)
            text = ""
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["text"]
    assert text == expected
