"""A cluster behind an OpenAI-compatible `/v1/completions`, ours or another's."""

import asyncio
import ssl
from pathlib import Path
from typing import Any

import orjson

from preble.errors import ConfigError
from preble_loadgen.http_stream import ConnectionBroken, Endpoint, HttpPool, Response
from preble_loadgen.target import Observation, Question, Served


class HttpTarget:
    """Sends token ids, and reads server-sent events.

    The first token counts as received with the first text, so an answer that begins in the middle
    of a character seems a little later than it was. gRPC shows each token.

    Args:
        url: the server's root, or its `/v1`.
        model: name to ask for; "" for the first one listed.
        timeout: seconds one answer may take.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        ca: Path | None = None,
        model: str = "",
        timeout: float,
    ) -> None:
        self._url = url
        self._model = model
        self._timeout = timeout
        context = _trusting(ca) if ca else None
        root = url.rstrip("/").removesuffix("/v1")
        self._pool = HttpPool(Endpoint.of(root), token=token, context=context)

    async def served(self) -> Served:
        """From `/v1/models` and, where there is one, `/cluster`."""
        models = await self._get("/v1/models")
        listed = [m for m in (models or {}).get("data") or [] if self._model in ("", m.get("id"))]
        if not listed:
            wanted = f"the model {self._model!r}" if self._model else "a model"
            raise ConfigError(f"{self._url} does not serve {wanted}")
        self._model = str(listed[0]["id"])
        vocabularies = _values(await self._get("/cluster"), "vocab_size")
        return Served(
            model=self._model,
            context_tokens=listed[0].get("max_model_len") or None,
            vocab_size=min((v for v in vocabularies if isinstance(v, int) and v), default=None),
        )

    def prepare(self, question: Question) -> bytes:
        """The whole request as bytes."""
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": question.tokens,
            "max_tokens": question.output_tokens,
            "temperature": 0,
            "seed": question.seed,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if question.namespace:
            body["cache_salt"] = question.namespace
        if question.ttft_slo_seconds is not None:
            body["ttft_slo_seconds"] = question.ttft_slo_seconds
        if question.tbt_slo_seconds is not None:
            body["tbt_slo_seconds"] = question.tbt_slo_seconds
        encoded = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        return self._pool.request("POST", "/v1/completions", encoded)

    async def ask(self, prepared: object, observation: Observation) -> None:
        """Sends, and reads events to `[DONE]`."""
        assert isinstance(prepared, bytes)
        events = _Events(observation)
        response = Response(events.add)
        try:
            async with asyncio.timeout(self._timeout):
                await self._pool.exchange(prepared, response)
        except TimeoutError:
            observation.failed("timeout", f"no complete answer within {self._timeout:g} s")
        except ConnectionBroken as error:
            observation.failed("connection broken", str(error))
        except OSError as error:
            observation.failed("cannot connect", str(error))
        _close(observation, response, events)

    async def close(self) -> None:
        """Closes the connections that are idle."""
        self._pool.close()

    async def _get(self, path: str) -> Any:
        """An answer's JSON; None where the server does not know the path."""
        response = Response()
        try:
            async with asyncio.timeout(min(self._timeout, 30.0)):
                await self._pool.exchange(self._pool.request("GET", path), response)
            if response.status in (404, 405):
                return None
            if response.status != 200:
                raise ConfigError(f"{self._url}{path} answers {response.status}")
            return orjson.loads(response.body)
        except (OSError, ConnectionBroken, TimeoutError, orjson.JSONDecodeError) as error:
            reason = str(error) or "no answer in time"
            raise ConfigError(f"cannot use --url {self._url}: {reason}") from error


class _Events:
    """Splits a body into server-sent events, and notes what they say."""

    def __init__(self, observation: Observation) -> None:
        self._observation = observation
        self._rest = b""
        self.done = False

    def add(self, data: bytes, now: float) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now)

    def _event(self, event: bytes, now: float) -> None:
        if event == b"[DONE]":
            self.done = True
            return
        try:
            message = orjson.loads(event)
        except orjson.JSONDecodeError:
            self._observation.failed("bad event", event[:200].decode(errors="replace"))
            return
        for choice in message.get("choices") or ():
            if choice.get("text"):
                self._observation.piece(now, 1)
            self._observation.finish_reason = choice.get("finish_reason") or ""
        if message.get("usage"):
            _note_usage(self._observation, message["usage"], now)
        if message.get("error"):
            _note_error(self._observation, message["error"], "")


def _note_usage(observation: Observation, usage: dict[str, Any], now: float) -> None:
    details = usage.get("prompt_tokens_details") or {}
    observation.prompt_tokens = usage.get("prompt_tokens", 0)
    observation.output_tokens = usage.get("completion_tokens", 0)
    observation.cached_tokens = details.get("cached_tokens") or 0
    observation.predicted_cached_tokens = details.get("predicted_cached_tokens")
    if observation.first_at is None and observation.output_tokens:
        observation.piece(now, observation.output_tokens)  # tokens that made no text


def _note_error(observation: Observation, error: Any, prefix: str) -> None:
    told = error if isinstance(error, dict) else {"message": str(error)}
    reason = str(told.get("code") or told.get("type") or "error")
    observation.failed(f"{prefix}{reason}", str(told.get("message") or ""))


def _close(observation: Observation, response: Response, events: _Events) -> None:
    """What the head of the answer, and its end, add to the events."""
    observation.worker_id = response.headers.get("x-preble-worker", "")
    if observation.predicted_cached_tokens is None:
        predicted = response.headers.get("x-preble-predicted-cached-tokens", "")
        observation.predicted_cached_tokens = int(predicted) if predicted.isdecimal() else None
    if response.status not in (0, 200):
        try:
            error = orjson.loads(response.body)["error"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            error = {"message": response.body[:200].decode(errors="replace"), "code": "error"}
        _note_error(observation, error, f"HTTP {response.status} ")
    elif not events.done:
        observation.failed("broken off", "the answer ended without [DONE]")


def _trusting(ca: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(ca))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot use {ca}: {error}") from error


def _values(tree: Any, key: str) -> list[Any]:
    """All values of `key` at any depth of a JSON value."""
    if isinstance(tree, list):
        return [value for item in tree for value in _values(item, key)]
    if isinstance(tree, dict):
        below = [value for item in tree.values() for value in _values(item, key)]
        return ([tree[key]] if key in tree else []) + below
    return []
