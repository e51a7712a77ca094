"""Tokens kept as what their keys and values are projected from (arXiv 2504.07494, section 4.2).

A page's memory is read another way: its half for keys and its half for values each hold as many
rows of `width` numbers as fit, one row per token and layer.

    a page as KV        k k k k k k k k │ v v v v v v v v      page_tokens tokens
    in the hidden form  h   h   h   h   │ h   h   h   h        more, where a row is shorter than k+v

Keys and values are projected anew in each step, and forgotten.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from preble_worker.batch import Batch, Conversion
from preble_worker.kv_pool import KVPool, KVShape

Pair = tuple[Tensor, Tensor]
Ints = npt.NDArray[np.int64]

Projection = Callable[[int, Tensor], Pair]
"""From a layer and its QKV projection's inputs (num_tokens, width) to the tokens' keys and values,
each (num_tokens, num_kv_heads, dim), normed and rotated as attention wants them."""


@dataclass(frozen=True, slots=True)
class HiddenSource:
    """What of a model the hidden form needs.

    Attributes:
        width: numbers per token and layer that the QKV projection takes.
        num_weights: that a token is multiplied with to have its keys and values, in all layers.
        at: the projection of tokens at some positions, int64 (num_tokens,).
    """

    width: int
    num_weights: int
    at: Callable[[Tensor], Projection]


def hidden_page_tokens(shape: KVShape, *, width: int, page_tokens: int) -> int:
    """How many tokens in the hidden form fit a page."""
    return 2 * (page_tokens * shape.num_kv_heads * shape.key_dim // width)


class HiddenForm:
    """The pool's pages, read and written as pages of the hidden form.

    Attributes:
        page_tokens: tokens per page.
        num_weights: of the model, that are in the projections.
    """

    def __init__(self, pool: KVPool, source: HiddenSource) -> None:
        self.page_tokens = hidden_page_tokens(
            pool.shapes[0], width=source.width, page_tokens=pool.page_tokens
        )
        self.num_weights = source.num_weights
        self._pool = pool
        self._source = source
        self._layers = [pool.halves(layer, source.width) for layer in range(len(pool.shapes))]

    def store(self, layer: int, places: tuple[Tensor, ...], hidden: Tensor) -> None:
        """Keep `hidden` (num_tokens, width) at `places`, which `places_of` has found."""
        self._layers[layer].index_put_(places, hidden)

    def gather(self, layer: int, pages: Tensor) -> Tensor:
        """All rows of `pages` (..., num_pages): (..., num_pages · page_tokens, width)."""
        rows = self._layers[layer].index_select(0, pages.flatten())
        return rows.view(*pages.shape[:-1], -1, self._source.width)

    def places_of(self, pages: Ints, offsets: Ints) -> tuple[Tensor, ...]:
        """Where in its layers' memory token `offsets[i]` of page `pages[i]` is."""
        half, row = np.divmod(offsets, self.page_tokens // 2)
        return tuple(self._upload(index) for index in (pages, half, row))

    def keys_of(self, pages: Ints, positions: Ints) -> "HiddenKeys":
        """The tokens of `pages` (..., num_pages), of which the first is at `positions` (...)."""
        num_tokens = pages.shape[-1] * self.page_tokens
        each = positions[..., None] + np.arange(num_tokens)
        return HiddenKeys(self, self._upload(pages), self._source.at(self._upload(each.ravel())))

    def upgrade(self, upgrade: Conversion) -> None:
        """Put the tokens' keys and values into the pages they are to have."""
        numbers = np.arange(upgrade.num_tokens)
        pages = upgrade.new_pages.astype(np.int64)
        size = self._pool.page_tokens
        places = self._upload(pages[numbers // size] * size + numbers % size)
        hidden_pages = self._upload(upgrade.old_pages.astype(np.int64))
        project = self._source.at(self._upload(upgrade.start + numbers))
        for layer in range(len(self._layers)):
            hidden = self.gather(layer, hidden_pages)[: upgrade.num_tokens]
            self._pool.store(layer, places, *project(layer, hidden))

    def _upload(self, array: Ints) -> Tensor:
        return torch.from_numpy(array).to(self._pool.device, non_blocking=True)


class HiddenKeys:
    """Keys and values of pages in the hidden form, projected whenever asked."""

    def __init__(self, form: HiddenForm, pages: Tensor, project: Projection) -> None:
        self._form = form
        self._pages = pages
        self._project = project

    def get(self, layer: int, key: Tensor, value: Tensor) -> Pair:
        hidden = self._form.gather(layer, self._pages)
        keys, values = self._project(layer, hidden.flatten(0, -2))
        lead = hidden.shape[:-1]
        return keys.view(*lead, *keys.shape[1:]), values.view(*lead, *values.shape[1:])


class MixedStore:
    """Where the tokens of a batch go in which some rows keep the hidden form."""

    def __init__(self, pool: KVPool, form: HiddenForm, batch: Batch, places: Tensor) -> None:
        rows = np.repeat(np.arange(len(batch.slots)), batch.counts)
        first = np.cumsum(batch.counts) - batch.counts
        positions = np.arange(len(rows)) + (batch.starts - first)[rows]
        compact_from = batch.tables.compact_from[batch.slots[rows]]
        is_hidden = positions >= compact_from
        tokens = np.flatnonzero(is_hidden)
        begins = compact_from[tokens]
        columns, offsets = np.divmod(positions[tokens] - begins, form.page_tokens)
        slots = batch.slots[rows[tokens]]
        pages = batch.tables.pages[slots, begins // pool.page_tokens + columns]
        self._pool = pool
        self._form = form
        self._hidden = torch.from_numpy(tokens).to(pool.device)
        self._hidden_places = form.places_of(pages.astype(np.int64), offsets)
        self._kv = torch.from_numpy(np.flatnonzero(~is_hidden)).to(pool.device)
        self._kv_places = places[self._kv]

    def store(self, layer: int, key: Tensor, value: Tensor, hidden: Tensor) -> None:
        """Keep each token in its row's form."""
        self._form.store(layer, self._hidden_places, hidden[self._hidden])
        if len(self._kv):
            self._pool.store(layer, self._kv_places, key[self._kv], value[self._kv])


def in_hidden_form(batch: Batch) -> npt.NDArray[np.bool_]:
    """Which rows have tokens in the hidden form once the step has run."""
    hidden: npt.NDArray[np.bool_] = (
        batch.tables.compact_from[batch.slots] < batch.starts + batch.counts
    )
    return hidden
