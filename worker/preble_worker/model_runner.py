"""The engine that computes batches with a model."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from preble_worker.attention import Attention, AttentionStep
from preble_worker.batch import Batch
from preble_worker.cache_tiers import NO_CACHE_TIERS, CacheTiers
from preble_worker.sampler import SamplingRows, measure, penalized, sample


class CausalModel(Protocol):
    """A language model that leaves attention to the engine."""

    def forward(
        self, tokens: Tensor, positions: Tensor, attention: AttentionStep, last: Tensor
    ) -> Tensor:
        """Compute a batch of requests' tokens, one after another without padding.

        Args:
            tokens, positions: int64 (num_tokens,); positions count within each request.
            last: int64 (n,), the tokens whose successors are wanted.

        Returns:
            Logits (n, vocab_size).
        """
        ...


@dataclass(frozen=True, slots=True)
class BatchInputs:
    """A batch's tokens in the order of its rows.

    Attributes:
        tokens, positions: (num_tokens,).
        places: (num_tokens,), where each token's keys and values go in the pool.
        last: (n,), the last token of each row with `samples`.
    """

    tokens: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]


def gather_inputs(batch: Batch, *, page_tokens: int) -> BatchInputs:
    """Read a batch's inputs out of the slot tables."""
    decoding = batch.slots[: batch.num_decodes]
    tokens = np.concatenate([batch.tables.last_token[decoding], batch.prefill_tokens])
    ends = np.cumsum(batch.counts)
    rows = np.repeat(np.arange(len(batch.slots)), batch.counts)
    positions = np.arange(len(tokens)) + (batch.starts - ends + batch.counts)[rows]
    pages = batch.tables.pages[batch.slots[rows], positions // page_tokens].astype(np.int64)
    places = pages * page_tokens + positions % page_tokens
    return BatchInputs(tokens, positions, places, (ends - 1)[batch.samples])


NO_TOKENS: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)


class ModelRunner:
    """Runs a model over batches. The one wait for the device is the read of the tokens."""

    def __init__(
        self,
        model: CausalModel,
        attention: Attention,
        *,
        page_tokens: int,
        device: torch.device,
        tiers: CacheTiers = NO_CACHE_TIERS,
    ) -> None:
        self._model = model
        self._attention = attention
        self._page_tokens = page_tokens
        self._device = device
        self._tiers = tiers if tiers.any else None

    @torch.inference_mode()
    def run(self, batch: Batch) -> npt.NDArray[np.int64]:
        if self._tiers is not None:
            self._tiers.begin(batch)
            if not len(batch.slots):
                return NO_TOKENS
        inputs = gather_inputs(batch, page_tokens=self._page_tokens)
        step = self._attention.begin(batch, self._upload(inputs.places))
        logits = self._model.forward(
            self._upload(inputs.tokens),
            self._upload(inputs.positions),
            step,
            self._upload(inputs.last),
        )
        slots, own = batch.slots[batch.samples], logits
        if batch.tables.penalties:
            own = logits.clone() if batch.logprobs is not None else logits
            logits = penalized(logits, slots, batch.tables.penalties)
        drawn = sample(logits, SamplingRows.of_slots(batch.tables, slots))
        if batch.logprobs is not None:
            measure(own, drawn, batch.logprobs)
        sampled: npt.NDArray[np.int64] = drawn.cpu().numpy()
        return sampled

    def _upload(self, array: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)
