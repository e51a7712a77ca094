"""The one seam between models and attention over paged keys and values.

A model computes queries, keys and values for all tokens of a batch and calls `attend` in each
layer; it knows neither pages nor requests. `TorchAttention` does it with torch operations on any
device; kernels for one kind of device are another `Attention`.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from preble_worker.attention_parts import Merged, attend_part, causal_mask, visible_mask
from preble_worker.attention_plan import (
    Chunks,
    Ints,
    Sharing,
    Span,
    Tails,
    WindowedChunk,
    find_sharing,
    plan_step,
    plan_windowed_step,
)
from preble_worker.batch import Batch, SlotTables
from preble_worker.kv_pool import KVPool


class AttentionStep(Protocol):
    """Attention for the tokens of one batch."""

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        window: int | None = None,
    ) -> Tensor:
        """Store the tokens' keys and values, then attend.

        Args:
            query: (num_tokens, num_heads, key_dim), the heads of one KV head side by side.
            key: (num_tokens, num_kv_heads, key_dim).
            value: (num_tokens, num_kv_heads, value_dim).
            scale: what scores are multiplied by.
            window: how many keys a token sees, its own included; None for all.

        Returns:
            (num_tokens, num_heads, value_dim).
        """
        ...


class Attention(Protocol):
    """Prepares each step's attention from what the scheduler decided."""

    def begin(self, batch: Batch, places: Tensor) -> AttentionStep:
        """Start a step.

        Args:
            places: int64 (num_tokens,), where `KVPool.store` puts each token.
        """
        ...


KEPT_BYTES = 256 << 20
"""On the CPU, gathered copies of shared pages are kept between steps up to this size."""

Gathered = dict[int, tuple[Tensor, Tensor]]
"""Keys and values of one span, by layer."""


@dataclass(frozen=True, slots=True)
class _Keys:
    """Keys in `pages`, the first `num_tokens` of them, and the tokens that ask for them.

    Attributes:
        kept: copies gathered in earlier steps, None where they are not kept.
    """

    queries: slice | Tensor
    pages: Tensor
    num_tokens: int
    mask: Tensor | None = None
    kept: Gathered | None = None


@dataclass(frozen=True, slots=True)
class _DevicePlan:
    """A `StepPlan` with its arrays where the model is."""

    tails: list[_Keys]
    chunks: list[Chunks]
    windowed_chunks: list[_Keys]
    spans: list[_Keys]


class TorchAttention:
    """Attention by torch operations alone.

    Who shares which pages is looked up again only when the batch's composition changed, and until
    then the keys and values of shared pages, which nobody writes any more, are gathered once.
    """

    def __init__(self, pool: KVPool, *, dtype: torch.dtype, device: torch.device) -> None:
        self._pool = pool
        self._dtype = dtype
        self._device = device
        # A composition says nothing without the scheduler, whose tables these are, that counts it.
        self._known: tuple[SlotTables | None, int] = (None, 0)
        self._sharing = Sharing([], np.zeros(0, dtype=np.int64))
        self._kept: list[Gathered | None] = []

    def begin(self, batch: Batch, places: Tensor) -> "TorchStep":
        return TorchStep(self._pool, places, lambda window: self._plan(batch, window))

    def _plan(self, batch: Batch, window: int | None) -> _DevicePlan:
        page_tokens = self._pool.page_tokens
        if window is None or window >= int((batch.starts + batch.counts).max()):
            plan = plan_step(batch, self._sharing_of(batch), page_tokens=page_tokens)
            kept = self._kept + [None] * (len(plan.spans) - len(self._kept))
        else:
            plan = plan_windowed_step(batch, window=window, page_tokens=page_tokens)
            kept = []
        return _DevicePlan(
            tails=[self._tails(tails) for tails in plan.tails],
            chunks=plan.chunks,
            windowed_chunks=[self._windowed(c, window) for c in plan.windowed_chunks],
            spans=[self._span(span, copies) for span, copies in zip(plan.spans, kept, strict=True)],
        )

    def _sharing_of(self, batch: Batch) -> Sharing:
        tables, composition = self._known
        if tables is not batch.tables or composition != batch.composition:
            self._sharing = find_sharing(batch, page_tokens=self._pool.page_tokens)
            self._known = batch.tables, batch.composition
            self._kept = self._make_room()
        return self._sharing

    def _make_room(self) -> list[Gathered | None]:
        """An empty place per shared run, for as many as `KEPT_BYTES` allows."""
        sizes = [len(run.pages) * self._pool.bytes_per_page for run in self._sharing.runs]
        limit = KEPT_BYTES if self._device.type == "cpu" else 0
        return [{} if total <= limit else None for total in accumulate(sizes)]

    def _upload(self, array: Ints) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)

    def _index(self, tokens: Ints) -> slice | Tensor:
        """A slice where the tokens are neighbours, so that indexing copies nothing."""
        begin, end = int(tokens[0]), int(tokens[-1]) + 1
        return slice(begin, end) if end - begin == len(tokens) else self._upload(tokens)

    def _span(self, span: Span, kept: Gathered | None) -> _Keys:
        pages = self._upload(span.pages)
        return _Keys(self._index(span.queries), pages, span.num_tokens, kept=kept)

    def _tails(self, tails: Tails) -> _Keys:
        num_tokens = int(tails.ends.max())
        begins, ends = self._upload(tails.begins), self._upload(tails.ends)
        mask = visible_mask(begins, ends, num_tokens, self._dtype)
        return _Keys(self._index(tails.queries), self._upload(tails.pages), num_tokens, mask)

    def _windowed(self, chunk: WindowedChunk, window: int | None) -> _Keys:
        num_tokens = chunk.offset + chunk.count
        mask = causal_mask(
            chunk.count, num_tokens, window=window, dtype=self._dtype, device=self._device
        )
        tokens = slice(chunk.begin, chunk.begin + chunk.count)
        return _Keys(tokens, self._upload(chunk.pages), num_tokens, mask)


class PlanOfWindow(Protocol):
    """Makes the plan for layers with this window."""

    def __call__(self, window: int | None, /) -> _DevicePlan: ...


class TorchStep:
    """One batch's attention. Layers with the same window share a plan."""

    def __init__(self, pool: KVPool, places: Tensor, plan: PlanOfWindow) -> None:
        self._pool = pool
        self._places = places
        self._make_plan = plan
        self._plans: dict[int | None, _DevicePlan] = {}

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        window: int | None = None,
    ) -> Tensor:
        self._pool.store(layer, self._places, key, value)
        if window not in self._plans:
            self._plans[window] = self._make_plan(window)
        plan = self._plans[window]
        # (num_tokens, num_kv_heads, heads per KV head, dim): no key is ever copied per head.
        num_tokens, num_kv_heads = key.shape[:2]
        packed = query.reshape(num_tokens, num_kv_heads, -1, query.shape[-1])
        merged = Merged(packed, value.shape[-1], keeps_lse=bool(plan.spans))
        for tails in plan.tails:
            merged.put(tails.queries, *self._tails(layer, packed, tails, scale))
        for chunks in plan.chunks:
            tokens = slice(chunks.begin, chunks.begin + chunks.num * chunks.count)
            merged.put(tokens, *_chunks(packed[tokens], key[tokens], value[tokens], chunks, scale))
        for keys in plan.windowed_chunks:
            merged.put(keys.queries, *self._span(layer, packed, keys, scale))
        for keys in plan.spans:
            merged.add(keys.queries, *self._span(layer, packed, keys, scale))
        return merged.output.flatten(1, 2).to(query.dtype)

    def _gather(self, layer: int, span: _Keys) -> tuple[Tensor, Tensor]:
        if span.kept is None:
            return self._pool.gather(layer, span.pages)
        if layer not in span.kept:
            span.kept[layer] = self._pool.gather(layer, span.pages)
        return span.kept[layer]

    def _tails(
        self, layer: int, query: Tensor, tails: _Keys, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Decodes, each with keys of its own."""
        keys, values = self._pool.gather(layer, tails.pages)
        keys, values = (x[:, : tails.num_tokens].transpose(1, 2) for x in (keys, values))
        return attend_part(query[tails.queries], keys, values, scale=scale, mask=tails.mask)

    def _span(self, layer: int, query: Tensor, span: _Keys, scale: float) -> tuple[Tensor, Tensor]:
        """Any tokens, all with the same keys: their heads line up as queries of one product."""
        keys, values = self._gather(layer, span)
        keys, values = (x[: span.num_tokens].transpose(0, 1)[None] for x in (keys, values))
        asked = query[span.queries]
        num_tokens, _, group, _ = asked.shape
        mask = span.mask
        if mask is not None:
            mask = mask.repeat_interleave(group, dim=0)
        output, lse = attend_part(
            asked.transpose(0, 1).flatten(1, 2)[None], keys, values, scale=scale, mask=mask
        )
        split = (-1, num_tokens, group)
        return output.view(*split, values.shape[-1]).transpose(0, 1), lse.view(split).transpose(
            0, 1
        )


def _chunks(
    query: Tensor, key: Tensor, value: Tensor, chunks: Chunks, scale: float
) -> tuple[Tensor, Tensor]:
    """Prefill chunks of one length, each causal within itself."""
    num_tokens, num_kv_heads, group, _ = query.shape
    split = (chunks.num, chunks.count, num_kv_heads * group)

    def by_head(x: Tensor) -> Tensor:
        per_head = x if x.dim() == 4 else x.unsqueeze(2).expand(-1, -1, group, -1)
        return per_head.reshape(*split, x.shape[-1]).transpose(1, 2)

    output, lse = attend_part(
        by_head(query), by_head(key), by_head(value), scale=scale, is_causal=True
    )
    joined = (num_tokens, num_kv_heads, group)
    return (
        output.transpose(1, 2).reshape(*joined, value.shape[-1]),
        lse.transpose(1, 2).reshape(joined),
    )
