"""The one seam between models and attention over paged keys and values.

A model computes queries, keys and values for all tokens of a batch and calls `attend` in each
layer; it knows neither pages nor requests. `TorchAttention` does it with torch operations on any
device; kernels for one kind of device are another `Attention`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from preble_worker.attention_parts import Merged, attend_part, causal_mask, visible_mask
from preble_worker.attention_plan import (
    Chunks,
    Ints,
    Sharing,
    StepPlan,
    Tails,
    WindowedChunk,
    find_sharing,
    plan_step,
    plan_windowed_step,
)
from preble_worker.batch import Batch, SlotTables
from preble_worker.gathered_keys import KEPT_BYTES, KeptKeys, KeySource, PagedKeys
from preble_worker.int8_form import Int8Form
from preble_worker.kv_form import KvForm
from preble_worker.kv_pool import KVPool
from preble_worker.mixed_plan import find_kv_sharing, plan_mixed_step
from preble_worker.mixed_store import Forms, MixedStore, begun_pages, has_compact_rows

NO_FORMS: Forms = {}


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
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Store the tokens' keys and values, then attend.

        Args:
            query: (num_tokens, num_heads, key_dim), the heads of one KV head side by side.
            key: (num_tokens, num_kv_heads, key_dim).
            value: (num_tokens, num_kv_heads, value_dim).
            scale: what scores are multiplied by.
            window: how many keys a token sees, its own included; None for all.
            hidden: (num_tokens, width), what keys and values were projected from: what is stored
                of tokens in the hidden form.

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


@dataclass(frozen=True, slots=True)
class _Part:
    """Tokens that ask for the first `num_tokens` keys of a source."""

    queries: slice | Tensor
    source: KeySource
    num_tokens: int
    mask: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _DevicePlan:
    """A `StepPlan` with its arrays where the model is."""

    tails: list[_Part]
    chunks: list[Chunks]
    windowed_chunks: list[_Part]
    spans: list[_Part]


class TorchAttention:
    """Attention by torch operations alone.

    While the batch's composition stays the same, so does who shares which pages, and copies of
    gathered keys are kept.

    Args:
        forms: compact ones that tokens may have.
    """

    def __init__(
        self,
        pool: KVPool,
        *,
        dtype: torch.dtype,
        device: torch.device,
        forms: Forms = NO_FORMS,
    ) -> None:
        self._pool = pool
        self._forms = forms
        int8 = forms.get(KvForm.INT8)
        self._int8 = int8 if isinstance(int8, Int8Form) else None
        self._page_tokens_of = {kind: form.page_tokens for kind, form in forms.items()}
        self._dtype = dtype
        self._device = device
        # A composition says nothing without the scheduler, whose tables these are, that counts it.
        self._known: tuple[SlotTables | None, int] = (None, 0)
        self._sharing = Sharing([], np.zeros(0, dtype=np.int64))
        self._shared: list[KeySource] = []
        self._kept = KeptKeys(pool, limit_bytes=KEPT_BYTES if device.type == "cpu" else 0)

    def begin(self, batch: Batch, places: Tensor) -> "TorchStep":
        if self._int8 is not None:
            self._int8.clear(begun_pages(batch, self._pool.page_tokens, self._page_tokens_of))
        if not self._forms or not has_compact_rows(batch):
            return TorchStep(self, batch, places)
        return TorchStep(self, batch, places, MixedStore(self._pool, self._forms, batch, places))

    def plan(self, batch: Batch) -> _DevicePlan:
        """For layers that see all keys; to be called once in a step."""
        self._renew(batch, find_sharing)
        return self._placed(plan_step(batch, self._sharing, page_tokens=self._pool.page_tokens))

    def plan_mixed(self, batch: Batch) -> _DevicePlan:
        """As `plan`, where some rows have tokens in a compact form."""
        self._renew(batch, find_kv_sharing)
        mixed = plan_mixed_step(
            batch,
            self._sharing,
            page_tokens=self._pool.page_tokens,
            page_tokens_of=self._page_tokens_of,
        )
        plan = self._placed(mixed.kv)
        for part in mixed.tails:
            keys = self._forms[part.form].keys_of(part.tails.pages, part.begins)
            plan.tails.append(self._tails(part.tails, keys))
        for past in mixed.spans:
            span = past.span
            keys = self._forms[past.form].keys_of(span.pages, np.array(past.begin))
            plan.spans.append(_Part(self._index(span.queries), keys, span.num_tokens))
        return plan

    def _renew(self, batch: Batch, find: Callable[..., Sharing]) -> None:
        """Find out who shares what, where that may have changed."""
        tables, composition = self._known
        if tables is not batch.tables or composition != batch.composition:
            self._known = batch.tables, batch.composition
            self._sharing = find(batch, page_tokens=self._pool.page_tokens)
            runs = self._sharing.runs
            self._shared = self._kept.renew(runs, [self._upload(run.pages) for run in runs])

    def _placed(self, plan: StepPlan) -> _DevicePlan:
        own_pasts = plan.spans[len(self._shared) :]
        sources = [*self._shared, *(self._paged(span.pages) for span in own_pasts)]
        spans = zip(plan.spans, sources, strict=True)
        tails = zip(plan.tails, self._kept.tails(plan.tails), strict=True)
        return _DevicePlan(
            tails=[self._tails(part, kept) for part, kept in tails],
            chunks=plan.chunks,
            windowed_chunks=[],
            spans=[_Part(self._index(s.queries), source, s.num_tokens) for s, source in spans],
        )

    def plan_windowed(self, batch: Batch, window: int) -> _DevicePlan:
        """For layers that see the last `window` keys."""
        plan = plan_windowed_step(batch, window=window, page_tokens=self._pool.page_tokens)
        return _DevicePlan(
            tails=[self._tails(tails, None) for tails in plan.tails],
            chunks=[],
            windowed_chunks=[self._windowed(chunk, window) for chunk in plan.windowed_chunks],
            spans=[],
        )

    def store(self, layer: int, places: Tensor, key: Tensor, value: Tensor) -> None:
        self._pool.store(layer, places, key, value)

    def _upload(self, array: Ints) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)

    def _paged(self, pages: Ints) -> KeySource:
        return PagedKeys(self._pool, self._upload(pages))

    def _index(self, tokens: Ints) -> slice | Tensor:
        """A slice where the tokens are neighbours, so that indexing copies nothing."""
        begin, end = int(tokens[0]), int(tokens[-1]) + 1
        return slice(begin, end) if end - begin == len(tokens) else self._upload(tokens)

    def _tails(self, tails: Tails, kept: KeySource | None) -> _Part:
        num_tokens = int(tails.ends.max())
        begins, ends = self._upload(tails.begins), self._upload(tails.ends)
        mask = visible_mask(begins, ends, num_tokens, self._dtype)
        return _Part(self._index(tails.queries), kept or self._paged(tails.pages), num_tokens, mask)

    def _windowed(self, chunk: WindowedChunk, window: int) -> _Part:
        num_tokens = chunk.offset + chunk.count
        mask = causal_mask(
            chunk.count, num_tokens, window=window, dtype=self._dtype, device=self._device
        )
        tokens = slice(chunk.begin, chunk.begin + chunk.count)
        return _Part(tokens, self._paged(chunk.pages), num_tokens, mask)


class TorchStep:
    """One batch's attention. Layers with the same window share a plan."""

    def __init__(
        self,
        attention: TorchAttention,
        batch: Batch,
        places: Tensor,
        mixed: MixedStore | None = None,
    ) -> None:
        self._attention = attention
        self._mixed = mixed
        self._batch = batch
        self._places = places
        self._longest = int((batch.starts + batch.counts).max())
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
        hidden: Tensor | None = None,
    ) -> Tensor:
        if self._mixed is None:
            self._attention.store(layer, self._places, key, value)
        else:
            self._mixed.store(layer, key, value, hidden)
        plan = self._plan(window)
        num_tokens, num_kv_heads = key.shape[:2]
        # (num_tokens, num_kv_heads, heads per KV head, dim): no key is ever copied per head.
        packed = query.reshape(num_tokens, num_kv_heads, -1, query.shape[-1])
        merged = Merged(packed, value.shape[-1], keeps_lse=bool(plan.spans))
        for part in plan.tails:
            merged.put(
                part.queries, *_tails(packed, *part.source.get(layer, key, value), part, scale)
            )
        for chunks in plan.chunks:
            tokens = slice(chunks.begin, chunks.begin + chunks.num * chunks.count)
            merged.put(tokens, *_chunks(packed[tokens], key[tokens], value[tokens], chunks, scale))
        for part in plan.windowed_chunks:
            merged.put(
                part.queries, *_span(packed, *part.source.get(layer, key, value), part, scale)
            )
        for part in plan.spans:
            merged.add(
                part.queries, *_span(packed, *part.source.get(layer, key, value), part, scale)
            )
        return merged.output.flatten(1, 2).to(query.dtype)

    def _plan(self, window: int | None) -> _DevicePlan:
        """A window that hides nothing is none."""
        if window is not None and window >= self._longest:
            window = None
        if window not in self._plans:
            self._plans[window] = self._new_plan(window)
        return self._plans[window]

    def _new_plan(self, window: int | None) -> _DevicePlan:
        if window is not None:
            assert self._mixed is None, "windowed layers never have a compact form"
            return self._attention.plan_windowed(self._batch, window)
        if self._mixed is not None:
            return self._attention.plan_mixed(self._batch)
        return self._attention.plan(self._batch)


def _tails(
    query: Tensor, keys: Tensor, values: Tensor, part: _Part, scale: float
) -> tuple[Tensor, Tensor]:
    """Decodes, each with keys of its own."""
    keys, values = (x[:, : part.num_tokens].transpose(1, 2) for x in (keys, values))
    return attend_part(query[part.queries], keys, values, scale=scale, mask=part.mask)


def _span(
    query: Tensor, keys: Tensor, values: Tensor, part: _Part, scale: float
) -> tuple[Tensor, Tensor]:
    """Any tokens, all with the same keys: their heads line up as queries of one product."""
    keys, values = (x[: part.num_tokens].transpose(0, 1)[None] for x in (keys, values))
    asked = query[part.queries]
    num_tokens, _, group, _ = asked.shape
    mask = None if part.mask is None else part.mask.repeat_interleave(group, dim=0)
    output, lse = attend_part(
        asked.transpose(0, 1).flatten(1, 2)[None], keys, values, scale=scale, mask=mask
    )
    split = (-1, num_tokens, group)
    return output.view(*split, values.shape[-1]).transpose(0, 1), lse.view(split).transpose(0, 1)


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
