"""How many attention products a ragged batch needs on a CPU, beyond the first."""

from dataclasses import replace

import numpy as np
import pytest

from preble.cost import CostModel
from preble.page_keys import pack_tokens
from preble.types import SamplingParams, WorkerRequest
from preble_worker.batch import Batch, num_extra_products, predicted_seconds
from preble_worker.config import SchedulerConfig
from preble_worker.scheduler import LocalScheduler

COST = CostModel(
    name="toy",
    fixed=1.0,
    per_prefill_token=0.0,
    per_attention=0.0,
    per_decode=0.0,
    per_context_token=0.0,
    per_product=0.25,
)


class Batches:
    """Real batches out of a scheduler."""

    def __init__(self) -> None:
        config = SchedulerConfig(num_pages=1024, max_batch_tokens=4096, policy="fcfs")
        self._scheduler = LocalScheduler(config, epoch=1)
        self._num = 0

    def decoding(self, *contexts: int) -> None:
        """Requests that decode from the next batch on."""
        for context in contexts:
            self._add(range(self._num * 10_000, self._num * 10_000 + context), max_tokens=50)
        self.next()

    def keep(self, num_tokens: int) -> range:
        """A prompt that stays in the cache."""
        prompt = range(900_000, 900_000 + num_tokens)
        self._add(prompt, max_tokens=1)
        self.next()
        return prompt

    def prefill(self, *, new: int, behind: range = range(0)) -> None:
        self._num += 1
        own = range(self._num * 10_000, self._num * 10_000 + new)
        self._add([*behind, *own], max_tokens=50)

    def next(self) -> Batch:
        batch = self._scheduler.schedule(now=0.0)
        assert batch is not None
        tokens = np.full(np.count_nonzero(batch.samples), 7, dtype=np.int64)
        self._scheduler.complete(batch, tokens, now=0.0)
        self._scheduler.check()
        return batch

    def _add(self, tokens: range | list[int], *, max_tokens: int) -> None:
        self._num += 1
        self._scheduler.add(
            WorkerRequest(
                request_id=str(self._num),
                tokens=pack_tokens(list(tokens)),
                sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True),
            ),
            now=0.0,
        )


@pytest.mark.parametrize(
    ("contexts", "extra"),
    [((40,), 0), ((40, 90, 120), 1), ((40, 200), 2), ((200, 250), 1), ((40, 200, 300, 700), 4)],
)
def test_decodes_of_like_length_are_one_product_and_several_one_more(
    contexts: tuple[int, ...], extra: int
) -> None:
    batches = Batches()
    batches.decoding(*contexts)
    assert num_extra_products(batches.next()) == extra


def test_chunks_of_one_length_are_one_product() -> None:
    batches = Batches()
    for new in (64, 64, 64, 32):
        batches.prefill(new=new)
    assert num_extra_products(batches.next()) == 1


def test_a_chunk_behind_a_context_is_two_more_and_decodes_are_another() -> None:
    batches = Batches()
    prefix = batches.keep(64)
    batches.prefill(new=40, behind=prefix)
    assert num_extra_products(batches.next()) == 2
    batches.prefill(new=40)
    assert num_extra_products(batches.next()) == 1


def test_the_prediction_counts_them_where_they_cost() -> None:
    batches = Batches()
    batches.decoding(40, 200, 300)
    batch = batches.next()
    assert predicted_seconds(COST, batch) == pytest.approx(1.75)
    assert predicted_seconds(replace(COST, per_product=0.0), batch) == 1.0
