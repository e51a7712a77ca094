"""Clients: what they ask, how they behave, and what they must get."""

import asyncio
import random
from dataclasses import dataclass
from enum import Enum, auto

from vopr.routers import LEEWAY_SECONDS, SLOW_READER_SECONDS, Router, RouterHost
from vopr.violation import Violation
from vopr.workers import VOCAB_SIZE

from preble.errors import (
    CapacityError,
    DeadlineExceeded,
    PoisonedRequest,
    SlowReader,
    WorkerFailed,
)
from preble.page_keys import TOKEN_BYTES, pack_tokens
from preble.types import FinishReason, SamplingParams
from preble_router.generation import Generation, GenerationRequest
from preble_router.slow_readers import CHECK_SECONDS
from preble_worker.simulated_tokens import simulated_tokens

MOST_TRIES = 40
MOST_UNREAD_SECONDS = SLOW_READER_SECONDS + 2 * CHECK_SECONDS + 2 * LEEWAY_SECONDS


class Manner(Enum):
    """How a client reads."""

    PLAIN = auto()
    GIVES_UP = auto()  # after some tokens
    VANISHES = auto()  # after some seconds, wherever it is
    STALLS = auto()  # reads nothing for long


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request to come."""

    name: str
    prompt: bytes
    max_tokens: int
    seed: int
    at: float
    manner: Manner
    patience: float
    timeout_seconds: float | None
    is_poisonous: bool


def make_asks(rng: random.Random, *, count: int, begin: float, seconds: float) -> list[Ask]:
    """Families with shared prefixes; half of them come in bursts."""
    heads = [
        [rng.randrange(3, VOCAB_SIZE) for _ in range(16 * rng.randrange(2, 12))] for _ in range(4)
    ]
    bursts = [rng.uniform(0.0, seconds) for _ in range(3)]
    poison_at = rng.randrange(count) if rng.random() < 0.15 else -1
    asks = []
    for i in range(count):
        own = [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randrange(1, 50))]
        at = rng.choice(bursts) if rng.random() < 0.5 else rng.uniform(0.0, seconds)
        manner = rng.choices(list(Manner), (70, 12, 12, 6))[0]
        asks.append(
            Ask(
                name=f"q{i}",
                prompt=pack_tokens(rng.choice(heads) + own),
                max_tokens=rng.choice((1, 6, 15, 30, 60)) if manner is not Manner.STALLS else 300,
                seed=rng.getrandbits(32),
                at=begin + at,
                manner=manner,
                patience=rng.random(),
                timeout_seconds=rng.uniform(0.3, 4.0) if rng.random() < 0.15 else None,
                is_poisonous=i == poison_at,
            )
        )
    return asks


class Client:
    """Asks until it is accepted and answered, and compares every token.

    Attributes:
        outcome: how it ended, "" until then.
        accepted: how often some router took its request.
    """

    def __init__(self, ask: Ask, rng: random.Random) -> None:
        self.ask = ask
        self.outcome = ""
        self.accepted = 0
        self._rng = rng
        self._whole = pack_tokens(
            simulated_tokens(ask.prompt, ask.seed, ask.max_tokens, VOCAB_SIZE)
        )

    async def run(self, routers: list[RouterHost]) -> str:
        ask = self.ask
        loop = asyncio.get_running_loop()
        await asyncio.sleep(ask.at - loop.time())
        for tries in range(MOST_TRIES):
            host = self._rng.choice(routers)
            if host.router is None:
                await asyncio.sleep(0.2)
                continue
            timeout = ask.timeout_seconds
            request = GenerationRequest(
                request_id=f"{ask.name}.{tries}",
                tokens=ask.prompt,
                sampling=SamplingParams(max_tokens=ask.max_tokens, seed=ask.seed, ignore_eos=True),
                deadline_at=None if timeout is None else loop.time() + timeout,
            )
            router = host.router
            try:
                generation = router.start(request)
            except CapacityError as error:
                await asyncio.sleep(max(0.05, error.retry_after_seconds) * self._rng.uniform(1, 2))
                continue
            except (PoisonedRequest, DeadlineExceeded) as error:
                return error.code
            self.accepted += 1
            outcome = await self._follow(generation, router)
            if outcome == "router gone":
                continue
            if ask.is_poisonous and self.accepted < 3:
                continue  # An obstinate client: is refused at the door.
            return outcome
        return "gave up"

    async def _follow(self, generation: Generation, router: Router) -> str:
        timer = None
        if self.ask.manner is Manner.VANISHES:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(2.0 * self.ask.patience, generation.cancel)
        try:
            return await self._read(generation)
        except WorkerFailed:
            return router.judge_failure(generation)
        except PoisonedRequest as error:
            if not self.ask.is_poisonous and generation.num_failures < 2:
                raise Violation(f"{generation.request_id} is blamed for nothing") from error
            return error.code
        except (DeadlineExceeded, SlowReader) as error:
            return error.code
        finally:
            generation.cancel()
            if timer is not None:
                timer.cancel()

    async def _read(self, generation: Generation) -> str:
        tokens, reason = b"", None
        most = int(self.ask.max_tokens * self.ask.patience)
        stalls = self.ask.manner is Manner.STALLS
        async for delta in generation:
            if reason is not None:
                raise Violation(f"{generation.request_id} went on after its end")
            tokens += delta.tokens
            reason = delta.finish_reason
            if not self._whole.startswith(tokens):
                raise Violation(f"{generation.request_id} got tokens that are not the oracle's")
            if self.ask.manner is Manner.GIVES_UP and len(tokens) > most * TOKEN_BYTES:
                generation.cancel()
            if stalls:
                stalls = False
                await self._stall(generation)
        if reason is FinishReason.LENGTH and tokens != self._whole:
            raise Violation(f"{generation.request_id} ended without all of its tokens")
        assert reason in (FinishReason.LENGTH, FinishReason.CANCELLED), reason
        return str(reason)

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
