"""The state of all workers as columns, one element per worker slot, for policies to compute with.

Each change of a worker's books rewrites that worker's row, so a placement reads every worker
without touching a Python object per worker. Seconds come from the worker's own cost model,
corrected by its observed speed.
"""

import numpy as np
import numpy.typing as npt

from preble.types import LoadReport
from preble_router.load import WorkerLoad

Column = npt.NDArray[np.float64]

_COLUMNS = (
    "outstanding_tokens",
    "num_live",
    "num_requests",
    "num_queued",
    "num_decoding",
    "wait_seconds",
    "seconds_per_token",
    "half_seconds_per_pair",
    "decode_seconds",
    "decode_seconds_per_context",
    "free_tokens",
    "eviction_price",
    "load_seconds",
)


class WorkerTable:
    """The columns, float64 of shape (slots,).

    Attributes:
        worker_ids: "" for a slot nobody has now.
        reports: the last one of each worker.
        has_prices: some eviction price is not 0.
        outstanding_tokens: uncached prompt tokens that the worker has yet to compute, and output
            tokens still to come.
        num_live: the router's own live requests.
        num_requests: all routers' live requests. num_queued, num_decoding: of them, before and
            after their first token.
        live_total: sum of `num_live`.
        mean_prompt: tokens, of the prompts placed lately.
        wait_seconds: until a prefill placed now would start.
        seconds_per_token: per prompt token, the steps' fixed part and decodes' share included.
        half_seconds_per_pair: half of what a prompt token and one before it cost (attention).
        decode_seconds: what one more output token costs: a step with one request more than are
            live, and half of what that request adds to every other's step (they run beside it
            for a part of its life only).
        decode_seconds_per_context: of the latter, per token of the request's context.
        free_tokens: of KV that a new request can have without evicting anything.
        eviction_price: expected seconds to have it again, per token evicted next.
        load_seconds: what a token takes to come from the worker's host memory.
    """

    outstanding_tokens: Column
    num_live: Column
    num_requests: Column
    num_queued: Column
    num_decoding: Column
    wait_seconds: Column
    seconds_per_token: Column
    half_seconds_per_pair: Column
    decode_seconds: Column
    decode_seconds_per_context: Column
    free_tokens: Column
    eviction_price: Column
    load_seconds: Column

    def __init__(self) -> None:
        self.worker_ids: list[str] = []
        self.reports: list[LoadReport] = []
        self.has_prices = False
        self.live_total = 0.0
        self.mean_prompt = 0.0
        for name in _COLUMNS:
            setattr(self, name, np.zeros(0))

    def price_eviction(self, slot: int, price: float) -> None:
        """`slot` would lose `price` seconds of later work per token it evicts next."""
        if price != self.eviction_price[slot]:
            self.eviction_price[slot] = price
            self.has_prices = bool(self.eviction_price.any())

    def loaded_share(self) -> Column:
        """What a worker saves by taking a token from its host memory, as a share of computing it.

        0 where it would rather compute it.
        """
        seconds = np.maximum(self.seconds_per_token, np.finfo(np.float64).tiny)
        return np.maximum(1.0 - self.load_seconds / seconds, 0.0)

    @property
    def num_slots(self) -> int:
        return len(self.worker_ids)

    def add_slot(self) -> None:
        self.worker_ids.append("")
        self.reports.append(LoadReport())
        for name in _COLUMNS:
            setattr(self, name, np.append(getattr(self, name), 0.0))

    def clear(self, slot: int) -> None:
        """Nobody has `slot` any more."""
        self.reports[slot] = LoadReport()
        self.live_total -= float(self.num_live[slot])
        for name in _COLUMNS:
            getattr(self, name)[slot] = 0.0

    def publish(self, slot: int, load: WorkerLoad, *, mean_output: float) -> None:
        """Rewrite the row of `slot` from its books.

        `mean_output` and `mean_prompt`, in tokens, stand in for what is not known of single
        requests: other routers', and those that will run beside the queued ones.
        """
        spec, report = load.spec, load.report
        cost, max_sequences = spec.cost, spec.max_sequences
        ratio = load.speed_ratio
        num_live, others = load.num_live, load.others_requests
        requests = num_live + others
        decoding = min(load.num_decoding + others, max_sequences)
        context = load.context_tokens + load.others_context_tokens
        prefill = load.prefill_tokens

        # As `CostModel.step_seconds` has it, but what both steps share is computed once: every
        # report of every worker comes here.
        traffic = cost.weight_read + cost.per_context_token * context
        chunk = max(spec.max_batch_tokens - decoding, 1)
        compute = cost.per_prefill_token * chunk + cost.per_decode * decoding
        per_token = ratio * (cost.fixed + cost.overlapped(compute, traffic)) / chunk
        half_per_pair = 0.5 * ratio * cost.per_attention
        compute = cost.per_decode * min(requests + 1, max_sequences)
        decode_step = ratio * (cost.fixed + cost.overlapped(compute, traffic))
        growth = growth_per_context = 0.0
        if not cost.roofline or compute > traffic:
            growth = ratio * cost.per_decode
        if not cost.roofline or compute <= traffic:
            growth_per_context = ratio * cost.per_context_token
        wait = prefill * (per_token + half_per_pair * self.mean_prompt)
        if requests >= max_sequences:  # until so many have ended that it is our turn
            ahead = (requests + 1 - max_sequences) / max_sequences
            wait += ahead * mean_output * decode_step

        self.num_queued[slot] = max(load.num_queued, report.num_waiting)
        self.reports[slot] = report
        self.outstanding_tokens[slot] = prefill + load.decode_tokens + others * mean_output
        self.live_total += num_live - self.num_live.item(slot)
        self.num_live[slot] = num_live
        self.num_requests[slot] = requests
        self.num_decoding[slot] = decoding
        self.wait_seconds[slot] = wait
        self.seconds_per_token[slot] = per_token
        self.half_seconds_per_pair[slot] = half_per_pair
        self.decode_seconds[slot] = decode_step + 0.5 * requests * growth
        self.decode_seconds_per_context[slot] = 0.5 * requests * growth_per_context
        self.free_tokens[slot] = load.free_tokens_beside(prefill)
        self.load_seconds[slot] = spec.host_token_seconds
