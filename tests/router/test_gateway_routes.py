"""The gateway's routes by what a client sees."""

import httpx
import pytest
from gateway_helpers import FakeDispatcher, gateway, spoken

from preble.errors import (
    DeadlineExceeded,
    NoWorkers,
    Overloaded,
    PromptTooLong,
    WorkerFailed,
)
from preble.types import FinishReason

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]}


def assert_error(response: httpx.Response, status: int) -> dict[str, str]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return body["error"]


async def test_chat_answers_whole_with_usage_and_placement():
    async with gateway() as served:
        response = await served.post("/v1/chat/completions", CHAT)
    assert response.status_code == 200
    body = response.json()
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    (choice,) = body["choices"]
    assert choice["message"]["content"] == "Hello, world!"
    assert choice["finish_reason"] == "length"
    prompt = body["usage"]["prompt_tokens"]
    assert prompt == len(served.dispatcher.requests[0].tokens) // 4
    assert body["usage"]["completion_tokens"] == body["usage"]["total_tokens"] - prompt
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 16
    assert response.headers["x-preble-worker"] == "w0"
    assert response.headers["x-preble-predicted-cached-tokens"] == "48"


async def test_operation_routes():
    async with gateway() as served:
        assert (await served.http.get("/health")).json() == {"status": "ok"}
        assert (await served.http.get("/ready")).status_code == 200
        served.dispatcher.is_ready = False
        response = await served.http.get("/ready")
        assert_error(response, 503)
        assert response.headers["retry-after"] == "1"
        assert "version" in (await served.http.get("/version")).json()
        cluster = (await served.http.get("/cluster")).json()
        assert cluster["policy"] == "preble"
        assert cluster["tree"]["pages"] == 40
        assert cluster["workers"][1]["state"] == "ready"
        assert cluster["workers"][1]["load"]["num_running"] == 3


async def test_models():
    async with gateway() as served:
        (model,) = (await served.http.get("/v1/models")).json()["data"]
        assert (model["id"], model["max_model_len"]) == ("demo", 2048)
        assert (await served.http.get("/v1/models/demo")).json() == model
        error = assert_error(await served.http.get("/v1/models/org/other"), 404)
        assert error["code"] == "model_not_found"
        error = assert_error(await served.post("/v1/chat/completions", CHAT | {"model": "x"}), 404)
        assert error["code"] == "model_not_found"


async def test_errors_of_http_have_the_same_shape():
    async with gateway(max_body_bytes=1000) as served:
        assert_error(await served.http.get("/nowhere"), 404)
        assert_error(await served.http.get("/v1/models/"), 404)
        response = await served.http.get("/v1/chat/completions")
        assert_error(response, 405)
        assert response.headers["allow"] == "POST"
        json = {"content-type": "application/json"}
        for content in (b"{", b"\xff", b"", b'{"model": NaN}', b'{"model": "\\ud800"}'):
            assert_error(
                await served.http.post("/v1/completions", content=content, headers=json), 400
            )
        assert_error(await served.post("/v1/completions", ["prompt"]), 400)
        error = assert_error(await served.post("/v1/completions", {"prompt": "x" * 1000}), 413)
        assert error["code"] == "body_too_large"

        async def chunks():
            for _ in range(30):
                yield b" " * 100

        assert_error(await served.http.post("/v1/completions", content=chunks(), headers=json), 413)
        for content_type in ("text/plain", "application/x-www-form-urlencoded", ""):
            response = await served.http.post(
                "/v1/completions", content=b"{}", headers={"content-type": content_type}
            )
            assert_error(response, 415)
        assert served.dispatcher.requests == []


async def test_deep_nesting_is_a_wrong_body():
    json = {"content-type": "application/json"}
    async with gateway() as served:
        for depth in (300, 1000, 100_000):
            nested = b"[" * depth + b"]" * depth
            for body in (nested, b'{"prompt": %b}' % nested, b'{"x": %b}' % nested):
                response = await served.http.post("/v1/completions", content=body, headers=json)
                assert_error(response, 400)


async def test_an_overloaded_router_refuses_before_it_tokenizes():
    dispatcher = FakeDispatcher(early_refusal=Overloaded("too much", retry_after_seconds=2.5))
    async with gateway(dispatcher) as served:
        for path, fields in (
            ("/v1/completions", {"prompt": "x" * 100_000}),
            ("/v1/chat/completions", CHAT),
        ):
            response = await served.post(path, fields, headers={"X-Request-Timeout": "3"})
            assert assert_error(response, 429)["code"] == "overloaded"
            assert response.headers["retry-after"] == "3"
    assert not dispatcher.requests
    asked = dispatcher.asked_deadlines
    assert len(asked) == 2 and all(at is not None for at in asked)


@pytest.mark.parametrize("options", [{}, {"default_timeout_seconds": 5.0}])
async def test_who_has_a_limit_of_time_is_refused_unread_where_there_is_none(options):
    dispatcher = FakeDispatcher(script=lambda _: spoken("hi"), has_time=False)
    async with gateway(dispatcher, **options) as served:
        headers = {"X-Request-Timeout": "3"}
        for path in ("/v1/chat/completions", "/v1/completions"):
            response = await served.post(path, {"not": "read"}, headers=headers)
            assert assert_error(response, 429)["code"] == "overloaded"
        response = await served.post("/v1/chat/completions", CHAT)
        assert response.status_code == (429 if options else 200)


@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (Overloaded("full", retry_after_seconds=2.5), 429, "overloaded"),
        (NoWorkers("none"), 503, "no_workers"),
        (PromptTooLong("long", num_tokens=9, max_tokens=8), 413, "context_length_exceeded"),
        (DeadlineExceeded("late"), 504, "deadline_exceeded"),
    ],
)
async def test_refusals_at_placement(refusal, status, code):
    async with gateway(FakeDispatcher(refusal=refusal)) as served:
        for stream in (False, True):
            response = await served.post("/v1/chat/completions", CHAT | {"stream": stream})
            assert assert_error(response, status)["code"] == code
            expected = {429: "3", 503: "1"}.get(status)
            assert response.headers.get("retry-after") == expected


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("end", "status"),
    [
        (WorkerFailed("died"), 503),
        (DeadlineExceeded("late"), 504),
        (PromptTooLong("long", num_tokens=9, max_tokens=8), 413),
        (FinishReason.CANCELLED, 499),
    ],
)
async def test_failures_before_the_first_token_have_their_status(end, status, stream):
    async with gateway(FakeDispatcher(script=lambda _: spoken("", end))) as served:
        assert_error(await served.post("/v1/chat/completions", CHAT | {"stream": stream}), status)


async def test_a_bug_is_a_500_that_tells_nothing(caplog):
    def broken(_request):
        raise ZeroDivisionError("secret")

    async with gateway(FakeDispatcher(script=broken)) as served:
        response = await served.post("/v1/chat/completions", CHAT)
        error = assert_error(response, 500)
    assert "secret" not in response.text
    assert error["type"] == "server_error"
    assert "ZeroDivisionError" in caplog.text


async def test_prompt_longer_than_the_context_is_413_with_both_numbers():
    async with gateway() as served:
        response = await served.post("/v1/completions", {"prompt": [5] * 2048})
        message = assert_error(response, 413)["message"]
        assert "2048" in message and "2049" in message
        response = await served.post("/v1/completions", {"prompt": [5] * 2000, "max_tokens": 49})
        assert "2049" in assert_error(response, 413)["message"]
        response = await served.post("/v1/completions", {"prompt": [5] * 2040})
        assert response.status_code == 200
        assert served.dispatcher.requests[0].sampling.max_tokens == 8


async def test_api_keys():
    async with gateway(api_keys=("first", "second")) as served:
        for path in ("/health", "/ready", "/metrics"):
            assert (await served.http.get(path)).status_code == 200
        for key in ("", "Bearer", "Bearer third", "Basic first", "Bearer firstsecond"):
            headers = {"authorization": key}
            error = assert_error(await served.http.get("/v1/models", headers=headers), 401)
            assert error["code"] == "invalid_api_key"
            response = await served.post("/v1/chat/completions", CHAT, headers=headers)
            assert_error(response, 401)
        assert_error(await served.http.get("/cluster"), 401)
        for key in ("first", "second"):
            headers = {"authorization": f"Bearer {key}"}
            assert (await served.http.get("/v1/models", headers=headers)).status_code == 200


async def test_request_ids_are_echoed_and_made_unique_for_dispatch():
    async with gateway() as served:
        for _ in range(2):
            response = await served.post(
                "/v1/chat/completions", CHAT, headers={"x-request-id": "mine"}
            )
            assert response.headers["x-request-id"] == "mine"
        first, second = (request.request_id for request in served.dispatcher.requests)
        assert first != second
        assert first.startswith("mine-") and second.startswith("mine-")
        response = await served.http.get("/health")
        assert response.headers["x-request-id"]
        bad = {"x-request-id": "a" * 300}
        assert assert_error(await served.http.get("/health", headers=bad), 400)["param"]


async def test_deadline_header():
    async with gateway() as served:
        for value in ("0", "-1", "soon", "nan", "inf", "1e9"):
            response = await served.post(
                "/v1/chat/completions", CHAT, headers={"x-request-timeout": value}
            )
            assert assert_error(response, 400)["param"] == "X-Request-Timeout"
        await served.post("/v1/chat/completions", CHAT, headers={"x-request-timeout": "30"})
        await served.post("/v1/chat/completions", CHAT)
        timed, untimed = served.dispatcher.requests
        assert timed.deadline_at is not None
        assert untimed.deadline_at is None


async def test_tokenize_and_detokenize():
    async with gateway() as served:
        text = "Grüße, 世界! <|im_end|>"
        body = (await served.post("/tokenize", {"text": text})).json()
        assert body["count"] == len(body["tokens"])
        assert body == (await served.post("/tokenize", {"prompt": text})).json()
        back = (await served.post("/detokenize", {"tokens": body["tokens"]})).json()
        assert back == {"text": "Grüße, 世界! "}  # special tokens are left out
        chat = (await served.post("/tokenize", {"messages": CHAT["messages"]})).json()
        await served.post("/v1/chat/completions", CHAT)
        assert served.dispatcher.requests[0].tokens == b"".join(
            token.to_bytes(4, "little") for token in chat["tokens"]
        )
        assert_error(await served.post("/tokenize", {}), 400)
        assert_error(await served.post("/tokenize", {"text": "a", "prompt": "b"}), 400)
        assert_error(await served.post("/tokenize", {"text": 5}), 400)
        assert_error(await served.post("/tokenize", {"text": "a", "shout": True}), 400)
        assert_error(await served.post("/detokenize", {"tokens": [10**6]}), 400)
        assert_error(await served.post("/detokenize", {"tokens": "abc"}), 400)


async def test_metrics_tell_what_happened():
    async with gateway() as served:
        await served.post("/v1/chat/completions", CHAT)
        await served.http.get("/nowhere/1")
        await served.http.get("/nowhere/2")
        text = (await served.http.get("/metrics")).text
        lines = set(text.splitlines())
    count = 'preble_router_http_requests_total{method="%s",route="%s",status="%s"} %s'
    assert count % ("POST", "/v1/chat/completions", 200, "1.0") in lines
    assert count % ("GET", "unmatched", 404, "2.0") in lines
    assert 'preble_router_tokens_total{kind="cached"} 16.0' in lines
    assert "preble_router_ttft_seconds_count 1.0" in lines
    assert "preble_router_live_requests 0.0" in lines
    assert any(line.startswith("preble_router_tasks ") for line in lines)
    assert 'preble_router_placements_total{policy="preble",reason="exploit"} 7.0' in lines
    assert 'preble_router_workers{state="ready"} 1.0' in lines
    assert 'preble_router_worker_running_requests{worker="w0"} 3.0' in lines
    helps = {line.split()[2] for line in lines if line.startswith("# HELP")}
    types = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert types == helps


async def test_access_log_has_one_line_per_request(caplog):
    caplog.set_level("INFO", logger="preble.access")
    async with gateway() as served:
        await served.post(
            "/v1/chat/completions", CHAT | {"user": "eve"}, headers={"x-request-id": "mine"}
        )
        await served.http.get("/no%0aforged")
        await served.post("/v1/chat/completions", CHAT | {"best_of": 2})
    lines = [record.getMessage() for record in caplog.records if record.name == "preble.access"]
    assert len(lines) == 3
    assert "400" in lines[2] and "error='best_of is not supported" in lines[2]
    for part in ("POST", "200", "id=mine", "cached=16/48", "ttft=", "worker=w0", "user='eve'"):
        assert part in lines[0]
    assert "\n" not in lines[1]
