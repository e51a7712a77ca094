"""Clients of an OpenAI server, each of whose answers is compared with the text it must be."""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any

import orjson
import xxhash

from preble.page_keys import pack_tokens
from preble_deploy.models import resolve_model
from preble_loadgen.http_stream import ConnectionBroken, Endpoint, HttpPool, Response
from preble_router.tokenizer import Tokenizer
from preble_worker.engines import read_model_shape
from preble_worker.simulated_engine import simulated_tokens

WORDS = [
    "river",
    "stone",
    "light",
    "winter",
    "garden",
    "paper",
    "music",
    "silver",
    "morning",
    "window",
    "bread",
    "letter",
]
ANSWER_SECONDS = 60.0
"""Whoever has no answer by then hangs, or by the time that it states itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What to ask, and the one right answer."""

    prompt: str
    expected: str
    prompt_hash: int
    max_tokens: int
    seed: int
    temperature: float
    stream: bool
    tenant: str = ""
    timeout_seconds: float | None = None


@dataclass(slots=True, eq=False)
class Answer:
    """What came of a question. Times are `time.perf_counter` seconds."""

    question: Question
    sent_at: float
    pieces_at: list[float] = field(default_factory=list)
    text: str = ""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    error: str = ""
    finished: bool = False
    ended_at: float = math.inf
    cached_share: float = 0.0

    @property
    def failed(self) -> bool:
        """It did not come to its end."""
        return bool(self.error)

    @property
    def wrong(self) -> bool:
        """It has text that it must not have, or lacks some though it ended well."""
        if self.failed:
            return not self.question.expected.startswith(self.text.rstrip("\ufffd"))
        return self.text != self.question.expected

    @property
    def seconds(self) -> float:
        return self.ended_at - self.sent_at

    @property
    def first_seconds(self) -> float:
        """To the first text."""
        return self.pieces_at[0] - self.sent_at if self.pieces_at else math.inf

    def stall_after(self, at: float) -> float:
        """The longest time without news among those that began or went on after `at`."""
        times = [self.sent_at, *self.pieces_at, self.ended_at]
        return max((end - start for start, end in pairwise(times) if end > at), default=0.0)

    def ran_on(self, worker: str, *, at: float) -> bool:
        """Whether it was a stream of that worker then, as far as its answer told."""
        streams = self.question.stream and self.sent_at <= at < self.ended_at
        return streams and self.headers.get("x-preble-worker") == worker


class Questions:
    """An endless source of questions of a few families, each sharing `shared_words` at its head.

    They take turns in streaming and not, greedy and seeded, unless told otherwise. Answers are
    `max_tokens` long, or, with `varied`, that in the mean: those that began together do not all
    end together then.
    """

    def __init__(
        self,
        *,
        seed: int,
        families: int = 8,
        shared_words: int = 150,
        own_words: int = 20,
        max_tokens: int = 40,
        varied: bool = False,
        stream: bool | None = None,
        tenant: str = "",
        timeout_seconds: float | None = None,
    ) -> None:
        path = resolve_model("demo")
        self._tokenizer = Tokenizer.from_directory(path)
        self._shape = read_model_shape(path)
        self._rng = random.Random(seed)
        heads = random.Random(f"{seed // 1000} {tenant}")
        self._heads = [self._words(shared_words, heads) for _ in range(families)]
        self._own_words = own_words
        self._max_tokens = max_tokens
        self._varied = varied
        self._stream = stream
        self._tenant = tenant
        self._timeout_seconds = timeout_seconds
        self._numbers = count()

    def take(self, number: int) -> list[Question]:
        return [self.make() for _ in range(number)]

    def make(self, *, words: int = 0, max_tokens: int = 0) -> Question:
        """The next one, or one of another length."""
        number, rng = next(self._numbers), self._rng
        own = self._words(words or self._own_words, rng)
        prompt = f"{rng.choice(self._heads)} {own}"
        tokens = self._tokenizer.encode(prompt)
        seed = rng.randrange(2**31)
        if not max_tokens:
            most = self._max_tokens
            max_tokens = rng.randint(most // 2, most + most // 2) if self._varied else most
        expected = simulated_tokens(
            tokens, seed, max_tokens, self._shape.vocab_size, excluded=self._shape.eos_token_ids
        )
        return Question(
            prompt=prompt,
            expected=self._tokenizer.decode(pack_tokens(expected)),
            prompt_hash=xxhash.xxh3_64_intdigest(tokens),
            max_tokens=max_tokens,
            seed=seed,
            temperature=float(number // 2 % 2),
            stream=number % 4 != 3 if self._stream is None else self._stream,
            tenant=self._tenant,
            timeout_seconds=self._timeout_seconds,
        )

    def _words(self, number: int, rng: random.Random) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(number))


class Load:
    """Asks a server, and keeps every answer."""

    def __init__(self, url: str) -> None:
        self.answers: list[Answer] = []
        self._pool = HttpPool(Endpoint.of(url))

    async def ask(self, question: Question) -> Answer:
        """Sends it and reads to the end; a failure is noted, not raised."""
        answer = Answer(question, time.perf_counter())
        self.answers.append(answer)
        events = _Events(answer)
        response = Response(events.add if question.stream else None)
        answer.headers = response.headers
        try:
            async with asyncio.timeout(question.timeout_seconds or ANSWER_SECONDS):
                await self._pool.exchange(self.request(question), response)
        except TimeoutError:
            answer.error = "hangs"
        except (ConnectionBroken, OSError) as error:
            answer.error = f"connection: {error}"
        answer.status = response.status
        if not answer.error:
            _read_end(answer, response)
        answer.ended_at = time.perf_counter()
        return answer

    def request(self, question: Question) -> bytes:
        """As it goes over the wire."""
        body: dict[str, Any] = {
            "model": "demo",
            "prompt": question.prompt,
            "max_tokens": question.max_tokens,
            "temperature": question.temperature,
            "seed": question.seed,
            "ignore_eos": True,
            "stream": question.stream,
        }
        if question.tenant:
            body["cache_salt"] = question.tenant
        request = self._pool.request("POST", "/v1/completions", orjson.dumps(body))
        if question.timeout_seconds is None:
            return request
        header = b"\r\nx-request-timeout: %g\r\n" % question.timeout_seconds
        return request.replace(b"\r\n", header, 1)

    async def closed_loop(self, questions: Iterable[Question], *, concurrency: int) -> None:
        """Keeps `concurrency` of them in flight until all are answered."""
        source = iter(questions)

        async def client() -> None:
            for question in source:
                await self.ask(question)

        await asyncio.gather(*(client() for _ in range(concurrency)))

    async def open_loop(self, questions: Iterable[Question], *, rate: float, seed: int) -> None:
        """Sends them at Poisson times, `rate` per second, and returns when all are answered."""
        rng = random.Random(seed)
        async with asyncio.TaskGroup() as group:
            at = time.perf_counter()
            for question in questions:
                at += rng.expovariate(rate)
                await asyncio.sleep(max(0.0, at - time.perf_counter()))
                group.create_task(self.ask(question))

    @asynccontextmanager
    async def going_on(
        self,
        questions: Questions,
        *,
        concurrency: int = 0,
        rate: float = 0.0,
        leave: bool = False,
    ) -> AsyncIterator[None]:
        """Keeps as many in flight for as long as the body runs, then lets them end, or leaves.

        With a `rate` it sends so many per second instead, however many are in flight.
        """
        ended = False
        source = iter(lambda: None if ended else questions.make(), None)
        asking = asyncio.create_task(
            self.open_loop(source, rate=rate, seed=0)
            if rate
            else self.closed_loop(source, concurrency=concurrency)
        )
        try:
            yield
            if not leave:
                ended = True
                await asking
        finally:
            asking.cancel()
            await asyncio.wait([asking])

    @property
    def in_flight(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.ended_at == math.inf]

    @property
    def failed(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.failed]

    @property
    def wrong(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.wrong]

    def close(self) -> None:
        self._pool.close()


class _Events:
    """The text of server-sent events, and when each came."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._rest = b""

    def add(self, data: bytes, now: float) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now)

    def _event(self, event: bytes, now: float) -> None:
        answer = self._answer
        if event == b"[DONE]":
            answer.finished = True
            return
        message = orjson.loads(event)
        if "error" in message:
            answer.error = f"error event: {message['error']['message']}"
        for choice in message.get("choices", ()):
            answer.text += choice["text"]
            answer.pieces_at.append(now)


def _read_end(answer: Answer, response: Response) -> None:
    if response.status != 200:
        answer.error = f"HTTP {response.status}: {response.body[:200].decode(errors='replace')}"
    elif not answer.question.stream:
        body = orjson.loads(response.body)
        answer.text = body["choices"][0]["text"]
        details = body["usage"].get("prompt_tokens_details") or {}
        answer.cached_share = details.get("cached_tokens", 0) / body["usage"]["prompt_tokens"]
    elif not answer.finished:
        answer.error = "ended without [DONE]"


def quantile(values: Iterable[float], share: float) -> float:
    """The value below which `share` of them are; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0
