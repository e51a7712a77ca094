"""What clients ask, and the oracle of every token, log probability and letter they must get."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

import xxhash
from pretend_logprobs import pretend_logprobs
from vopr.workers import VOCAB_SIZE

from preble.page_keys import pack_tokens
from preble.types import Logprobs, SamplingParams
from preble_worker.simulated_tokens import simulated_tokens


class Manner(Enum):
    """How a client reads."""

    PLAIN = auto()
    GIVES_UP = auto()  # after some tokens
    VANISHES = auto()  # after some seconds, wherever it is
    STALLS = auto()  # reads nothing for long


class Poison(Enum):
    """What a request does to a worker."""

    NONE = auto()
    KILLS = auto()  # the process
    RAISES = auto()  # in its engine, at each step


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request to come.

    Attributes:
        at: seconds after the world begins.
        num_choices: outputs for the same prompt, each a request of its own, as `n` makes them.
        stops: draw a stop string from the output to be.
        patience: from 0 to 1.
    """

    name: str
    prompt: bytes
    max_tokens: int
    seed: int = 1
    at: float = 1.0
    num_choices: int = 1
    top_logprobs: int | None = None
    stops: bool = False
    penalty: float = 0.0
    priority: int = 0
    namespace: str = ""
    tenant: str = ""
    manner: Manner = Manner.PLAIN
    patience: float = 0.5
    timeout_seconds: float | None = None
    poison: Poison = Poison.NONE

    def choices(self) -> list["Choice"]:
        return [Choice(self, number) for number in range(self.num_choices)]


class Choice:
    """One output of an ask, as it must be.

    Attributes:
        whole: packed tokens, and `text` theirs, up to the stop string where it has one.
    """

    def __init__(self, ask: Ask, number: int) -> None:
        self.name = f"{ask.name}-{number}" if ask.num_choices > 1 else ask.name
        seed = ask.seed + number
        self.sampling = SamplingParams(
            max_tokens=ask.max_tokens,
            seed=seed,
            ignore_eos=True,
            top_logprobs=ask.top_logprobs,
            presence_penalty=ask.penalty,
        )
        tokens = simulated_tokens(ask.prompt, seed, ask.max_tokens, VOCAB_SIZE).tolist()
        self.text = "".join(map(text_of, tokens))
        self.stop = ""
        if ask.stops:
            begin = int(ask.patience * (len(self.text) - 3))
            self.stop = self.text[begin : begin + 3]
            end = self.text.index(self.stop)
            self.text = self.text[:end]
            tokens = tokens[: -(-(end + 3) // LETTERS)]
        self.whole = pack_tokens(tokens)

    def logprobs(self, num_top: int) -> Logprobs:
        """Of the whole output."""
        return pretend_logprobs(self.whole, num_top, vocab_size=VOCAB_SIZE)


LETTERS = 2
"""Per token: each is written with as many."""


def text_of(token_id: int) -> str:
    return chr(0x61 + token_id % 26) + chr(0x41 + token_id // 26 % 26)


class Letters:
    """A tokenizer's decoder, of a vocabulary in which each token is two letters."""

    def stream(self) -> "Letters":
        return self

    def push(self, token_id: int) -> str:
        return text_of(token_id)

    def push_all(self, token_ids: Sequence[int]) -> str:
        return "".join(map(text_of, token_ids))

    def finish(self) -> str:
        return ""


def prompt_hash(ask: Ask) -> int:
    """As the engines see it."""
    return xxhash.xxh3_64_intdigest(ask.prompt)


def draw_asks(rng: random.Random, *, count: int, seconds: float) -> list[Ask]:
    """Families with shared prefixes; half of them come in bursts."""
    heads = [
        [rng.randrange(3, VOCAB_SIZE) for _ in range(16 * rng.randrange(2, 12))] for _ in range(4)
    ]
    bursts = [rng.uniform(0.0, seconds) for _ in range(3)]
    poisons = {}
    if rng.random() < 0.25:
        poisons[rng.randrange(count)] = rng.choice((Poison.KILLS, Poison.RAISES))
    asks = []
    for i in range(count):
        own = [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randrange(1, 50))]
        at = rng.choice(bursts) if rng.random() < 0.5 else rng.uniform(0.0, seconds)
        manner = rng.choices(list(Manner), (70, 12, 12, 6))[0]
        stalls = manner is Manner.STALLS
        namespace = rng.choices(("", "a", "b"), (8, 1, 1))[0]
        asks.append(
            Ask(
                name=f"q{i}",
                prompt=pack_tokens(rng.choice(heads) + own),
                max_tokens=160 if stalls else rng.choice((1, 6, 15, 30, 60)),
                seed=rng.getrandbits(32),
                at=1.0 + at,
                num_choices=rng.choices((1, 2, 4), (90, 7, 3))[0],
                top_logprobs=rng.choices((None, 0, 3), (80, 10, 10))[0],
                stops=not stalls and rng.random() < 0.15,
                penalty=0.5 if rng.random() < 0.1 else 0.0,
                priority=rng.choices((0, -1, 5), (80, 10, 10))[0],
                namespace=namespace,
                tenant=namespace,
                manner=manner,
                patience=rng.random(),
                timeout_seconds=rng.uniform(0.3, 4.0) if rng.random() < 0.15 else None,
                poison=poisons.get(i, Poison.NONE),
            )
        )
    return asks


def features(asks: Sequence[Ask]) -> dict[str, int]:
    """How many ask for what."""
    return {
        "n > 1": sum(ask.num_choices > 1 for ask in asks),
        "log probabilities": sum(ask.top_logprobs is not None for ask in asks),
        "stop strings": sum(ask.stops for ask in asks),
        "penalties": sum(ask.penalty > 0.0 for ask in asks),
        "priorities": sum(ask.priority != 0 for ask in asks),
        "namespaces": sum(ask.namespace != "" for ask in asks),
        "deadlines": sum(ask.timeout_seconds is not None for ask in asks),
    }
