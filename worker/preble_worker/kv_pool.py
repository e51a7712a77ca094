"""The memory that holds keys and values of all requests, in pages.

One page's tokens lie together, so that gathering a page is one copy:

    keys[layer]    (num_pages, page_tokens, num_kv_heads, key_dim)
    values[layer]  (num_pages, page_tokens, num_kv_heads, value_dim)

Which page belongs to whom only the scheduler knows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one layer keeps per token."""

    num_kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def numbers_per_token(self) -> int:
        return self.num_kv_heads * (self.key_dim + self.value_dim)


class KVPool:
    """Paged keys and values, layer by layer.

    It starts as zeros, not as whatever memory held: attention multiplies what lies behind the end
    of a request by a weight of 0, and 0 times NaN is NaN.

    Attributes:
        bytes_per_page, numbers_per_page: all layers together.
        group: what keys and values of every head and layer have a multiple of.
    """

    def __init__(
        self,
        shapes: Sequence[KVShape],
        *,
        num_pages: int,
        page_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.shapes = shapes
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        self.dtype = dtype
        self.device = device
        self.bytes_per_page = page_tokens * bytes_per_token(shapes, dtype)
        self.numbers_per_page = self.bytes_per_page // dtype.itemsize
        self.group = math.gcd(*(dim for s in shapes for dim in (s.key_dim, s.value_dim)))

        def memory(shape: KVShape) -> Tensor:
            size = num_pages * page_tokens * shape.numbers_per_token
            return torch.zeros(size, dtype=dtype, device=device)

        num_tokens = num_pages * page_tokens
        self._memory = [memory(shape) for shape in shapes]
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        for flat, shape in zip(self._memory, shapes, strict=True):
            keys = num_tokens * shape.num_kv_heads * shape.key_dim
            self._keys.append(flat[:keys].view(num_tokens, -1))
            self._values.append(flat[keys:].view(num_tokens, -1))

    def store(self, layer: int, places: Tensor, key: Tensor, value: Tensor) -> None:
        """Keep what was computed for some tokens.

        Args:
            places: int64 (num_tokens,); page · page_tokens + offset in the page.
            key, value: (num_tokens, num_kv_heads, dim).
        """
        self._keys[layer].index_copy_(0, places, key.flatten(1))
        self._values[layer].index_copy_(0, places, value.flatten(1))

    def gather(self, layer: int, pages: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of `pages`, each (*pages.shape[:-1], num_tokens, num_kv_heads, dim)."""
        shape = self.shapes[layer]
        lead = (*pages.shape[:-1], pages.shape[-1] * self.page_tokens, shape.num_kv_heads)
        flat = pages.flatten()
        keys = self._take(self._keys[layer], flat).view(*lead, shape.key_dim)
        values = self._take(self._values[layer], flat).view(*lead, shape.value_dim)
        return keys, values

    def read(self, pages: Tensor) -> Tensor:
        """All that `pages` (n,) hold: (n, numbers_per_page), layer after layer, keys first."""
        rows = torch.empty(len(pages), self.numbers_per_page, dtype=self.dtype, device=self.device)
        for column, page_rows in self._columns():
            torch.index_select(page_rows, 0, pages, out=rows[:, column])
        return rows

    def write(self, pages: Tensor, rows: Tensor) -> None:
        """What `read` has read, into `pages`."""
        for column, page_rows in self._columns():
            page_rows.index_copy_(0, pages, rows[:, column])

    def clear(self, pages: Tensor) -> None:
        """Fill `pages` (n,) with zeros."""
        for _, page_rows in self._columns():
            page_rows.index_fill_(0, pages, 0.0)

    def memory(self, layer: int) -> Tensor:
        """A layer's numbers, one after another: all pages' keys, then all pages' values."""
        return self._memory[layer]

    def halves(self, layer: int, numbers: int) -> Tensor:
        """A layer's memory, (num_pages, 2, rows, numbers): of each page the half that holds its
        keys and the half that holds its values, each cut into rows of `numbers`."""
        shape = self.shapes[layer]
        assert shape.key_dim == shape.value_dim
        half = self.page_tokens * shape.num_kv_heads * shape.key_dim
        return self._memory[layer].as_strided(
            (self.num_pages, 2, half // numbers, numbers),
            (half, self.num_pages * half, numbers, 1),
        )

    def _columns(self) -> list[tuple[slice, Tensor]]:
        columns, begin = [], 0
        for rows in (rows for pair in zip(self._keys, self._values, strict=True) for rows in pair):
            page_rows = rows.view(self.num_pages, -1)
            end = begin + page_rows.shape[1]
            columns.append((slice(begin, end), page_rows))
            begin = end
        return columns

    def _take(self, rows: Tensor, pages: Tensor) -> Tensor:
        return rows.view(-1, self.page_tokens * rows.shape[-1]).index_select(0, pages)


def bytes_per_token(shapes: Sequence[KVShape], dtype: torch.dtype) -> int:
    """KV memory of one token, all layers together."""
    return sum(shape.numbers_per_token for shape in shapes) * dtype.itemsize
