"""Clients: how they behave, and that they get what they must, in the end or at once."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable

from vopr.asks import Ask, Choice, Letters, Manner, Poison
from vopr.routers import LEEWAY_SECONDS, SLOW_READER_SECONDS, Router, RouterHost
from vopr.violation import Violation

from preble.errors import (
    CapacityError,
    DeadlineExceeded,
    PoisonedRequest,
    PrebleError,
    SlowReader,
    WorkerFailed,
)
from preble.page_keys import TOKEN_BYTES, num_tokens
from preble.types import FinishReason, Logprobs
from preble_router.generation import Generation, GenerationRequest
from preble_router.slow_readers import CHECK_SECONDS
from preble_router.text_generation import TextDelta, TextGeneration

MOST_TRIES = 40
MOST_UNREAD_SECONDS = SLOW_READER_SECONDS + 2 * CHECK_SECONDS + 2 * LEEWAY_SECONDS
ROUTER_GONE = "router gone"


class Client:
    """Asks until it is accepted and answered, and compares every token.

    Attributes:
        outcomes: how its choices ended.
    """

    def __init__(self, ask: Ask, rng: random.Random, struck: Callable[[str], None]) -> None:
        self.ask = ask
        self.outcomes: Counter[str] = Counter()
        self._rng = rng
        self._struck = struck
        self._accepted = 0
        self._given_up = 0
        self._generations: list[Generation] = []

    async def run(self, routers: list[RouterHost]) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(1000.0 + self.ask.at - loop.time())
        choices = self.ask.choices()
        for tries in range(MOST_TRIES):
            host = self._rng.choice(routers)
            if host.router is None:
                await asyncio.sleep(0.2)
                continue
            try:
                started = self._start(host.router, choices, tries)
            except CapacityError as error:
                await asyncio.sleep(error.retry_after_seconds * self._rng.uniform(1, 2))
                continue
            except (PoisonedRequest, DeadlineExceeded) as error:
                self.outcomes[self._judge(error, None)] += len(choices)
                return
            self._accepted += 1
            follows = [
                asyncio.create_task(self._follow(*pair, host.router), name=pair[1].name)
                for pair in zip(started, choices, strict=True)
            ]
            ends = await asyncio.gather(*follows)
            if self.ask.poison is not Poison.NONE and self._accepted < 3:
                await asyncio.sleep(0.01)  # What is known now is known for certain then.
                continue  # An obstinate client: is refused at the door.
            self.outcomes += Counter(end for end in ends if end != ROUTER_GONE)
            choices = [c for c, end in zip(choices, ends, strict=True) if end == ROUTER_GONE]
            if not choices:
                return
        self.outcomes["gave up"] += len(choices)

    def _start(self, router: Router, choices: list[Choice], tries: int) -> list[Generation]:
        """All or none."""
        ask, started = self.ask, list[Generation]()
        now = asyncio.get_running_loop().time()
        try:
            for choice in choices:
                request = GenerationRequest(
                    request_id=f"{choice.name}.{tries}",
                    tokens=ask.prompt,
                    sampling=choice.sampling,
                    namespace=ask.namespace,
                    tenant=ask.tenant,
                    priority=ask.priority,
                    deadline_at=None if ask.timeout_seconds is None else now + ask.timeout_seconds,
                )
                started.append(router.start(request))
                self._generations.append(started[-1])
        except PrebleError as error:
            if isinstance(error, CapacityError):
                self._check_refusal(error, router)
            for generation in started:
                generation.cancel()
            raise
        return started

    def _check_refusal(self, error: CapacityError, router: Router) -> None:
        if not 0.0 < error.retry_after_seconds <= 60.0:
            raise Violation(f"{self.ask.name}: Retry-After {error.retry_after_seconds}")
        router.judge_refusal(error, has_deadline=self.ask.timeout_seconds is not None)

    async def _follow(self, generation: Generation, choice: Choice, router: Router) -> str:
        timer = None
        if self.ask.manner is Manner.VANISHES:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(2.0 * self.ask.patience, self._vanish, generation)
        try:
            return await self._read(generation, choice)
        except WorkerFailed:
            self._given_up += 1
            return router.judge_failure(generation)
        except (PoisonedRequest, DeadlineExceeded, SlowReader) as error:
            return self._judge(error, generation)
        finally:
            generation.cancel()
            if timer is not None:
                timer.cancel()

    def _vanish(self, generation: Generation) -> None:
        self._struck("client vanishes")
        generation.cancel()

    def _judge(self, error: PrebleError, generation: Generation | None) -> str:
        """Nobody's request ends so but for a cause."""
        ask, loop = self.ask, asyncio.get_running_loop()
        match error:
            case PoisonedRequest():
                # Its choices are alike, and each other's repetition.
                num_failures = sum(each.num_failures for each in self._generations)
                num_failures += self._given_up  # perhaps with a worker that was silent till then
                if ask.poison is Poison.NONE and num_failures < 2:
                    raise Violation(f"{ask.name} is blamed for nothing") from error
                if ask.poison is Poison.NONE:
                    return "blamed by accident"
            case DeadlineExceeded():
                deadline_at = generation and generation.request.deadline_at
                if deadline_at is not None and loop.time() < deadline_at - 1e-6:
                    raise Violation(f"{ask.name} ended before its deadline") from error
                if ask.timeout_seconds is None:
                    raise Violation(f"{ask.name} has no deadline") from error
            case SlowReader():
                if ask.manner is not Manner.STALLS:
                    raise Violation(f"{ask.name} was read, and is cut off") from error
        return error.code

    async def _read(self, generation: Generation, choice: Choice) -> str:
        stops = [choice.stop] if choice.stop else []
        stream = TextGeneration(generation, Letters(), stop=stops)  # type: ignore[arg-type]
        tokens, text, logprobs = b"", "", list[Logprobs]()
        most = int(self.ask.max_tokens * self.ask.patience)
        stalls = self.ask.manner is Manner.STALLS
        last: TextDelta | None = None
        async for delta in stream:
            if last is not None and last.finish_reason is not None:
                raise Violation(f"{generation.request_id} went on after its end")
            last = delta
            tokens += delta.tokens
            text += delta.text
            if delta.tokens and self.ask.top_logprobs is not None:
                assert delta.logprobs is not None
                logprobs.append(delta.logprobs)
            if not (
                choice.whole.startswith(tokens) and (choice.text + choice.stop).startswith(text)
            ):
                raise Violation(f"{generation.request_id} got tokens that are not the oracle's")
            gives_up = self.ask.manner is Manner.GIVES_UP and len(tokens) > most * TOKEN_BYTES
            if gives_up and not generation.done:
                self._struck("client gives up")
                generation.cancel()
            if stalls:
                stalls = False
                self._struck("client stalls")
                await self._stall(generation)
        assert last is not None
        self._check_logprobs(choice, tokens, logprobs)
        reason = last.finish_reason
        if reason is FinishReason.CANCELLED:
            return str(reason)
        if reason is not (FinishReason.STOP if choice.stop else FinishReason.LENGTH):
            raise Violation(f"{generation.request_id} ended by {reason}")
        if (tokens, text) != (choice.whole, choice.text):
            raise Violation(f"{generation.request_id} ended without all of its tokens")
        if last.usage is None or last.usage.completion_tokens != num_tokens(tokens):
            raise Violation(f"{generation.request_id} is counted wrongly")
        return str(reason)

    def _check_logprobs(self, choice: Choice, tokens: bytes, parts: list[Logprobs]) -> None:
        if self.ask.top_logprobs is None or not parts:
            return
        expected = choice.logprobs(self.ask.top_logprobs).first(num_tokens(tokens))
        if Logprobs.joined(parts) != expected:
            raise Violation(f"{choice.name} got log probabilities that are not the oracle's")

    async def _stall(self, generation: Generation) -> None:
        """Reads nothing for a while; the router need not put up with that for ever."""
        unread_seconds = 0.0  # of time in which somebody ran: the machine may be suspended
        for _ in range(int(6.0 * MOST_UNREAD_SECONDS * self.ask.patience)):
            await asyncio.sleep(0.25)
            unread_seconds += 0.25 if generation.num_unread_bytes else 0.0
            if generation.done:
                return
            if unread_seconds > MOST_UNREAD_SECONDS:
                raise Violation(f"{generation.request_id} is not read, and not cut off")
