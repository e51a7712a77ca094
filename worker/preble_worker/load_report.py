"""What a worker says of its load, put together from those who know."""

from preble.types import LoadReport
from preble_worker.page_cache import PageCache
from preble_worker.running import Running
from preble_worker.totals import Totals
from preble_worker.waiting import WaitingQueue


def load_report(
    waiting: WaitingQueue,
    running: Running,
    cache: PageCache,
    totals: Totals,
    *,
    digest: tuple[int, int],
) -> LoadReport:
    """`digest` is (pages, key sum) of the tree as of the last events handed out."""
    prefills, decodes = running.prefills, running.decodes
    return LoadReport(
        num_waiting=len(waiting),
        num_running=len(running),
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
        host_pages=running.host.num_pages if running.host else 0,
        loaded_tokens_total=totals.tiers.loaded_tokens,
    )
