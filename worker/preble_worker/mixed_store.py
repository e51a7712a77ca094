"""Where the tokens of a batch go in which some rows have a compact form."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from preble_worker.batch import Batch
from preble_worker.gathered_keys import KeySource
from preble_worker.kv_form import KvForm
from preble_worker.kv_pool import KVPool

Ints = npt.NDArray[np.int64]
Places = tuple[Tensor, ...]


class CompactPages(Protocol):
    """The pool's pages, read and written as pages of a compact form.

    Attributes:
        page_tokens: tokens per page.
    """

    @property
    def page_tokens(self) -> int: ...

    def places_of(self, pages: Ints, offsets: Ints) -> Places:
        """Where in its layers' memory token `offsets[i]` of page `pages[i]` is."""
        ...

    def store(
        self,
        layer: int,
        places: Places,
        tokens: Tensor,
        key: Tensor,
        value: Tensor,
        hidden: Tensor | None,
    ) -> None:
        """Keep `tokens`, int64 (n,), of those that a layer computed, at `places`.

        Args:
            key, value, hidden: of all tokens, as `AttentionStep.attend` has them.
        """
        ...

    def keys_of(self, pages: Ints, positions: Ints) -> KeySource:
        """The tokens of `pages` (..., num_pages), of which the first is at `positions` (...)."""
        ...


Forms = Mapping[KvForm, CompactPages]
"""The compact forms that an engine has."""


class MixedStore:
    """Keeps each token in its row's form."""

    def __init__(self, pool: KVPool, forms: Forms, batch: Batch, places: Tensor) -> None:
        new = NewTokens.of(batch)
        self._pool = pool
        self._parts = []
        for kind in np.unique(new.forms[new.forms > KvForm.FULL]).tolist():
            form, tokens = forms[KvForm(kind)], np.flatnonzero(new.forms == kind)
            pages, offsets = new.pages_of(batch, tokens, pool.page_tokens, form.page_tokens)
            at = form.places_of(pages, offsets)
            self._parts.append((form, at, torch.from_numpy(tokens).to(pool.device)))
        self._full = torch.from_numpy(np.flatnonzero(new.forms == KvForm.FULL)).to(pool.device)
        self._full_places = places[self._full]

    def store(self, layer: int, key: Tensor, value: Tensor, hidden: Tensor | None) -> None:
        for form, places, tokens in self._parts:
            form.store(layer, places, tokens, key, value, hidden)
        if len(self._full):
            self._pool.store(layer, self._full_places, key[self._full], value[self._full])


@dataclass(frozen=True, slots=True)
class NewTokens:
    """Those that a batch computes: each one's slot, its form, and its number among those of its
    request that have this form; int64 (num_tokens,).

    Attributes:
        begins: position of the first such one.
    """

    slots: Ints
    forms: Ints
    numbers: Ints
    begins: Ints

    @classmethod
    def of(cls, batch: Batch) -> "NewTokens":
        tables = batch.tables
        rows = np.repeat(np.arange(len(batch.slots)), batch.counts)
        first = np.cumsum(batch.counts) - batch.counts
        positions = np.arange(len(rows)) + (batch.starts - first)[rows]
        slots = batch.slots[rows]
        begins = tables.compact_from[slots]
        is_compact = positions >= begins
        begins = np.where(is_compact, begins, 0)
        forms = np.where(is_compact, tables.forms[slots], KvForm.FULL)
        return cls(slots, forms, positions - begins, begins)

    def pages_of(
        self, batch: Batch, tokens: Ints, page_tokens: int, width: int
    ) -> tuple[Ints, Ints]:
        """The page of each of `tokens`, whose form has `width` to a page, and its number in it."""
        columns, offsets = np.divmod(self.numbers[tokens], width)
        columns += self.begins[tokens] // page_tokens
        pages = batch.tables.pages[self.slots[tokens], columns]
        return pages.astype(np.int64), offsets


def begun_pages(batch: Batch, page_tokens: int, page_tokens_of: Mapping[KvForm, int]) -> Ints:
    """Pages of which the step computes the first token, those of int8 left out."""
    new = NewTokens.of(batch)
    begun = []
    for form, width in {KvForm.FULL: page_tokens, **page_tokens_of}.items():
        if form is not KvForm.INT8:
            tokens = np.flatnonzero((new.forms == form) & (new.numbers % width == 0))
            begun.append(new.pages_of(batch, tokens, page_tokens, width)[0])
    return np.concatenate(begun)


def has_compact_rows(batch: Batch) -> bool:
    """Whether some rows have tokens in a compact form once the step has run."""
    begins = batch.tables.compact_from[batch.slots]
    return bool((begins < batch.starts + batch.counts).any())
