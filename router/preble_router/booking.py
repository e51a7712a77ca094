"""One live attempt of a request on the router's books."""

from dataclasses import dataclass

from preble_router.residence import ClusterNode

EXPECTED_SECONDS = 300.0
"""How long at most a placed request makes its path count as cached on its worker.

Until its first token it is certain to be computed there, however long the queue: it must outlast
any queue, or else a saturated worker's documents look like nobody's, and are computed elsewhere.
"""


@dataclass(slots=True, kw_only=True, eq=False)
class Booking:
    """One live attempt, and what it weighs on its worker.

    Attributes:
        priority, tenant: of the request.
        prefill_tokens: uncached prompt tokens, queued until the first output token.
        cached_tokens: predicted at placement.
        path_end: tree node on which the attempt keeps its worker expected, None when it no
            longer does.
        expected_until: when that ends in any case.
        first_token_seconds, seconds_per_output_token: as they looked at placement.
        started_at: when its first token came, None before.
        is_decoding: its first token has come.
        is_unreported: no load report can have counted it yet.
    """

    request_id: str
    attempt: int
    slot: int
    prompt_tokens: int
    prefill_tokens: int
    cached_tokens: int
    predicted_output_tokens: float
    placed_at: float
    expected_until: float
    path_end: ClusterNode | None
    priority: int = 0
    tenant: str = ""
    first_token_seconds: float = 0.0
    seconds_per_output_token: float = 0.0
    started_at: float | None = None
    output_tokens: int = 0
    is_decoding: bool = False
    is_unreported: bool = True

    @property
    def decode_tokens(self) -> float:
        """Output tokens still to come; at least 1 while it lives."""
        return max(self.predicted_output_tokens - self.output_tokens, 1.0)

    @property
    def context_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens

    @property
    def need_tokens(self) -> float:
        """New KV it will take, in tokens."""
        return self.prefill_tokens + self.predicted_output_tokens
