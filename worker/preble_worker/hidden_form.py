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
import torch
from torch import Tensor

from preble_worker.batch import Conversion
from preble_worker.kv_pool import KVPool, KVShape
from preble_worker.mixed_store import Ints, Places

Pair = tuple[Tensor, Tensor]

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

    def store(
        self,
        layer: int,
        places: Places,
        tokens: Tensor,
        key: Tensor,
        value: Tensor,
        hidden: Tensor | None,
    ) -> None:
        assert hidden is not None
        self._layers[layer].index_put_(places, hidden[tokens])

    def gather(self, layer: int, pages: Tensor) -> Tensor:
        """All rows of `pages` (..., num_pages): (..., num_pages · page_tokens, width)."""
        rows = self._layers[layer].index_select(0, pages.flatten())
        return rows.view(*pages.shape[:-1], -1, self._source.width)

    def places_of(self, pages: Ints, offsets: Ints) -> Places:
        half, row = np.divmod(offsets, self.page_tokens // 2)
        return tuple(self._upload(index) for index in (pages, half, row))

    def keys_of(self, pages: Ints, positions: Ints) -> "HiddenKeys":
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
