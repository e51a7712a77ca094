"""How much of a workload, how fast, and in which variant. Pure."""

from dataclasses import dataclass

import numpy as np

from preble.errors import ConfigError

Rng = np.random.Generator

VARIANTS = {
    "even": "every prefix equally often",
    "zipf": "prefixes by Zipf's law, with exponent --zipf",
    "bursty": "gamma arrivals, with --cv as coefficient of variation of the gaps",
    "drift": "popularity drawn anew every 5 minutes",
    "hot-burst": "for 30 s in the middle, half of the arrivals go to one prefix",
    "singles": "a tenth of the prompts has a document that no other has",
    "sessions": "closed loop: an agent's next step waits for the last answer and a think time",
    "study": "few-shot examples shared between environments, as in the published study",
    "as-sent": "as the published load generator sends it: its caps and crops",
}
"""What a variant changes. A workload names those that it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadOptions:
    """What to generate.

    Attributes:
        requests: how many; None for what the workload's prefixes get on average.
        prefixes: distinct shared prefixes; None for as many as `requests` would have in the data,
            or, without either, the workload's own number for `workers`.
        rate: requests per second on average; None for the workload's own for `workers`. In a closed
            loop, what it would be if answers took no time.
        workers: for which the defaults are sized.
        in_flight: requests kept in flight by the scenarios that do so; None for 8 per worker.
        seed: of everything random.
        variants: of `VARIANTS`.
        zipf: exponent of the variant zipf.
        cv: of the variant bursty.
        preamble_tokens: that all prompts share, for a workload that takes it; None for its own.
        common_percent: of each prompt that all share, for a workload that takes it; None for its
            own.
        arrivals: for each part of the workload, times whose gaps are replayed, in seconds; () for
            random ones.
        lengths: (prompt, output) tokens of the requests, for a workload that takes them.
    """

    requests: int | None = None
    prefixes: int | None = None
    rate: float | None = None
    workers: int = 4
    in_flight: int | None = None
    seed: int = 0
    variants: frozenset[str] = frozenset()
    zipf: float = 1.1
    cv: float = 3.0
    preamble_tokens: int | None = None
    common_percent: float | None = None
    arrivals: tuple[tuple[float, ...], ...] = ()
    lengths: tuple[tuple[int, int], ...] = ()

    def check(self) -> None:
        """Values that the types allow and sense does not.

        Raises:
            ConfigError: one of them does not make sense.
        """
        positive = {
            "--requests": self.requests,
            "--prefixes": self.prefixes,
            "--rate": self.rate,
            "--workers": self.workers,
            "--in-flight": self.in_flight,
            "--zipf": self.zipf,
            "--cv": self.cv,
        }
        for name, value in positive.items():
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be more than 0, not {value}")
        if self.preamble_tokens is not None and self.preamble_tokens < 0:
            raise ConfigError(f"--preamble-tokens must be at least 0, not {self.preamble_tokens}")
        if self.common_percent is not None and not 0 <= self.common_percent <= 95:
            raise ConfigError(
                f"--common-percent must be between 0 and 95, not {self.common_percent}"
            )
        if {"even", "zipf"} <= self.variants:
            raise ConfigError("--variant even and zipf exclude each other")
        if {"even", "drift"} <= self.variants:
            raise ConfigError("--variant even and drift exclude each other")


@dataclass(frozen=True, slots=True)
class Streams:
    """Four separate sources of randomness: the load can change without changing the content."""

    tree: Rng
    popularity: Rng
    lengths: Rng
    arrivals: Rng

    @classmethod
    def seeded(cls, seed: int) -> "Streams":
        """The four of one seed."""
        return cls(*map(np.random.default_rng, np.random.SeedSequence(seed).spawn(4)))
