"""What a worker has done since its process began."""

from dataclasses import dataclass, field

from preble_worker.kv_form import KvForm
from preble_worker.sequence import Sequence


@dataclass(slots=True, kw_only=True)
class TierTotals:
    """What became of preempted requests, and what crossed; counts since the process began.

    Attributes:
        swaps, recomputes: preempted requests whose pages were copied to the host, or not because
            computing them again is cheaper.
        offloaded_pages, uploaded_pages: that crossed, in the form in which they did.
        loaded_tokens: prompt tokens that came from the host when their request first ran.
        hidden_starts, int8_starts: requests started in these forms.
    """

    swaps: int = 0
    recomputes: int = 0
    offloaded_pages: int = 0
    uploaded_pages: int = 0
    loaded_tokens: int = 0
    hidden_starts: int = 0
    int8_starts: int = 0


@dataclass(slots=True)
class Totals:
    """Counts since the process began, as `LoadReport` explains them."""

    preemptions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    busy_seconds: float = 0.0
    tiers: TierTotals = field(default_factory=TierTotals)

    def count_start(self, sequence: Sequence) -> None:
        """Only a request's first start counts; after a preemption it hits its own pages."""
        if sequence.served_from_cache is None:
            sequence.served_from_cache = min(sequence.num_computed, sequence.num_prompt_tokens)
            self.prompt_tokens += sequence.num_prompt_tokens
            self.cached_tokens += sequence.served_from_cache
            self.tiers.hidden_starts += sequence.form is KvForm.HIDDEN
            self.tiers.int8_starts += sequence.form is KvForm.INT8
