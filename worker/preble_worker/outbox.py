"""The live requests, how each of them ends, and what has not been said of them yet."""

from preble.page_keys import TOKEN_BYTES
from preble.types import FinishReason, Logprobs, RequestOutput
from preble_worker.outputs import StepOutputs, TokenColumns
from preble_worker.page_cache import PageCache
from preble_worker.policies import LocalPolicy
from preble_worker.sequence import Sequence

_FINISHED = (FinishReason.STOP, FinishReason.LENGTH)


class Outbox:
    """Settles each request once.

    Attributes:
        live: requests that have not ended, by id; the latest attempt of each.
        others: outputs to hand out that are not tokens of decodes which go on.
        digest: (pages, key sum) of the tree as of the last events handed out.
    """

    def __init__(self, policy: LocalPolicy) -> None:
        self._policy = policy
        self.live: dict[str, Sequence] = {}
        self.others: list[RequestOutput] = []
        self.digest = (0, 0)

    def settle(
        self,
        sequence: Sequence,
        reason: FinishReason,
        *,
        tokens: bytes = b"",
        logprobs: Logprobs | None = None,
        error: str = "",
    ) -> None:
        """The one place where requests end."""
        if self.live.get(sequence.request_id) is sequence:
            del self.live[sequence.request_id]
        self.others.append(sequence.output(tokens, logprobs, reason, error))
        sequence.num_generated = sequence.num_output + len(tokens) // TOKEN_BYTES
        self._policy.ended(sequence, finished=reason in _FINISHED)
        sequence.finish()

    def settle_last(
        self, sequence: Sequence, token: int, position: int, logprobs: Logprobs | None
    ) -> None:
        """The request ends with the step that drew `token`, which is dropped if it was stopped."""
        sequence.num_output = position
        if sequence.end is not None:
            self.settle(sequence, sequence.end)
            return
        reason = sequence.reason_to_end(token, position + 1)
        assert reason is not None
        tokens = token.to_bytes(TOKEN_BYTES, "little")
        self.settle(sequence, reason, tokens=tokens, logprobs=logprobs)

    def hand_out(self, cache: PageCache, decoded: TokenColumns) -> StepOutputs:
        """Everything since the last time, the cache's events included."""
        others, self.others = self.others, []
        events = cache.drain()
        self.digest = cache.num_tree, cache.key_sum
        return StepOutputs(others, events, decoded)

    def check(self, among: list[Sequence]) -> None:
        """Assert that `among` are the requests which have not ended."""
        live = [s for s in among if s.end is None]
        assert {s.request_id: s for s in live}.items() <= self.live.items()
        assert all(s.end is not None for s in self.live.values() if s not in live)
