"""What a worker says of its load, put together from those who know."""

from dataclasses import dataclass

from preble.types import LoadReport
from preble_worker.decodes import DecodeRows
from preble_worker.page_cache import PageCache
from preble_worker.prefills import Prefills
from preble_worker.sequence import Sequence
from preble_worker.waiting import WaitingQueue


@dataclass(slots=True)
class Totals:
    """Counts since the process began, as `LoadReport` explains them."""

    preemptions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    busy_seconds: float = 0.0

    def count_start(self, sequence: Sequence) -> None:
        """Only a request's first start counts; after a preemption it hits its own pages."""
        if sequence.served_from_cache is None:
            sequence.served_from_cache = min(sequence.num_computed, sequence.num_prompt_tokens)
            self.prompt_tokens += sequence.num_prompt_tokens
            self.cached_tokens += sequence.served_from_cache


def load_report(
    waiting: WaitingQueue,
    prefills: Prefills,
    decodes: DecodeRows,
    cache: PageCache,
    totals: Totals,
    *,
    digest: tuple[int, int],
) -> LoadReport:
    """`digest` is (pages, key sum) of the tree as of the last events handed out."""
    return LoadReport(
        num_waiting=len(waiting),
        num_running=len(prefills) + len(decodes),
        waiting_prefill_tokens=waiting.num_missing + prefills.num_missing,
        decode_context_tokens=decodes.context_tokens,
        free_pages=cache.num_free,
        cached_pages=cache.num_tree - cache.num_used,
        used_pages=cache.num_pages - cache.num_available,
        tree_pages=digest[0],
        tree_key_sum=digest[1],
        preemptions_total=totals.preemptions,
        prompt_tokens_total=totals.prompt_tokens,
        cached_tokens_total=totals.cached_tokens,
        busy_seconds_total=totals.busy_seconds,
    )
