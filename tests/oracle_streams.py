"""Streams against simulated workers, each compared with the tokens it must yield."""

import asyncio
import random
from dataclasses import dataclass, field

from preble import AsyncClient
from preble.errors import PrebleError
from preble.page_keys import pack_tokens
from preble.types import Usage
from preble_worker.simulated_engine import simulated_tokens


@dataclass(slots=True)
class Stream:
    """One request and all that came of it."""

    prompt: list[int]
    max_tokens: int
    seed: int
    tokens: list[int] = field(default_factory=list)
    usage: Usage | None = None
    worker_id: str | None = None
    error: str = ""

    def verdict(self, vocab_size: int, excluded: tuple[int, ...]) -> str:
        """ "" when every token came once and in order, else what is wrong."""
        if self.error:
            return self.error
        expected = simulated_tokens(
            pack_tokens(self.prompt), self.seed, self.max_tokens, vocab_size, excluded=excluded
        ).tolist()
        if self.tokens == expected:
            return ""
        same = next(
            (i for i, (a, b) in enumerate(zip(self.tokens, expected, strict=False)) if a != b),
            min(len(self.tokens), len(expected)),
        )
        return f"{len(self.tokens)} of {len(expected)} tokens, the first {same} right"

    async def run(self, client: AsyncClient, *, within_seconds: float) -> None:
        """Send it and read to the end; a failure is noted, not raised."""
        try:
            async with asyncio.timeout(within_seconds):
                stream = client.stream(
                    self.prompt,
                    max_tokens=self.max_tokens,
                    seed=self.seed,
                    temperature=1.0,
                    ignore_eos=True,
                )
                async for chunk in stream:
                    self.tokens.extend(chunk.token_ids)
                    self.usage = chunk.usage or self.usage
                    self.worker_id = chunk.worker_id or self.worker_id
        except TimeoutError:
            self.error = f"hung after {len(self.tokens)} tokens"
        except PrebleError as error:
            self.error = f"{type(error).__name__}: {error}"


def family_streams(
    count: int,
    *,
    families: int,
    shared: int,
    own: int,
    max_tokens: int,
    seed: int,
    family_seed: int = 0,
) -> list[Stream]:
    """Prompts of `families` families, each with `shared` leading tokens of its own in common."""
    rng = random.Random(seed)
    prefixes = random.Random(family_seed)
    heads = [[prefixes.randrange(10, 500) for _ in range(shared)] for _ in range(families)]
    return [
        Stream(
            prompt=heads[index % families] + [rng.randrange(10, 500) for _ in range(own)],
            max_tokens=max_tokens,
            seed=rng.randrange(2**32),
        )
        for index in range(count)
    ]
