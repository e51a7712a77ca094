"""A candidate as local policies see it, with no scheduler around it."""

from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class Job:
    """A live request; `num_generated` and the waits are moved on by hand."""

    cached_tokens: int = 0
    num_tokens: int = 100
    arrived_at: float = 0.0
    num_generated: int = 0
    max_tokens: int = 1000
    predicted_output_tokens: int | None = None
    ttft_slo_seconds: float | None = None
    tenant: str = ""
    waiting_since: float = 0.0
    waited_seconds: float = 0.0
    runs: bool = False
    standing: Any = None

    @property
    def num_missing(self) -> int:
        return 0 if self.runs else self.num_tokens - self.cached_tokens
