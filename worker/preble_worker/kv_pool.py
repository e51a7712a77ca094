"""The memory that holds keys and values of all requests, in pages.

One page's tokens lie together, so that gathering a page is one copy:

    keys[layer]    (num_pages, page_tokens, num_kv_heads, key_dim)
    values[layer]  (num_pages, page_tokens, num_kv_heads, value_dim)

Which page belongs to whom only the scheduler knows.
"""

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
        bytes_per_page: all layers together.
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
        self.page_tokens = page_tokens
        self.bytes_per_page = page_tokens * bytes_per_token(shapes, dtype)
        self._shapes = shapes

        def rows(width: int) -> Tensor:
            return torch.zeros(num_pages * page_tokens, width, dtype=dtype, device=device)

        self._keys = [rows(s.num_kv_heads * s.key_dim) for s in shapes]
        self._values = [rows(s.num_kv_heads * s.value_dim) for s in shapes]

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
        shape = self._shapes[layer]
        lead = (*pages.shape[:-1], pages.shape[-1] * self.page_tokens, shape.num_kv_heads)
        flat = pages.flatten()
        keys = self._take(self._keys[layer], flat).view(*lead, shape.key_dim)
        values = self._take(self._values[layer], flat).view(*lead, shape.value_dim)
        return keys, values

    def _take(self, rows: Tensor, pages: Tensor) -> Tensor:
        return rows.view(-1, self.page_tokens * rows.shape[-1]).index_select(0, pages)


def bytes_per_token(shapes: Sequence[KVShape], dtype: torch.dtype) -> int:
    """KV memory of one token, all layers together."""
    return sum(shape.numbers_per_token for shape in shapes) * dtype.itemsize
