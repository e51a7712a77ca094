"""Keys and values that the device keeps in 8 bits, with a scale per token and head.

A page's memory is read another way: its half for keys holds the scales of as many tokens as fit,
then their codes, and so does its half for values.

    a page as KV    k k k k k k k k │ v v v v v v v v            page_tokens tokens
    in int8         ssss kkkkkkkkkkkk │ ssss vvvvvvvvvvvv        nearly twice as many in bfloat16

What was quantized is not exact again: a request that has this form keeps it until it ends or is
preempted, and what it computes is never shared.
"""

import numpy as np
import torch
from torch import Tensor

from preble_worker.batch import Conversion
from preble_worker.kv_pool import KVPool
from preble_worker.mixed_store import Ints, Places
from preble_worker.quantization import Quantized, dequantize, quantize

Pair = tuple[Tensor, Tensor]

SCALE_BYTES = 4
LARGEST_SCALE = 256.0
"""No key or value is beyond 127 times that. What is read as a scale and is larger, or no number, is
behind the end of a request, in a page that had another form."""


def int8_page_tokens(pool: KVPool) -> int:
    """How many tokens in int8 fit a page."""
    size = pool.page_tokens * pool.dtype.itemsize
    dims = {dim for shape in pool.shapes for dim in (shape.key_dim, shape.value_dim)}
    return min(size * dim // (dim + SCALE_BYTES) for dim in dims)


class Int8Form:
    """The pool's pages, read and written as pages in int8.

    Codes read as numbers of another form may be infinite or none. So a page that had them is
    cleared when it begins to have that form: attention gives no weight to what lies behind the end
    of a request, but 0 times such a number is not 0.

    Attributes:
        page_tokens: tokens per page.
    """

    def __init__(self, pool: KVPool) -> None:
        self.page_tokens = int8_page_tokens(pool)
        self._pool = pool
        self._had_codes = np.zeros(pool.num_pages, dtype=np.bool_)
        self._layers = [self._views(layer) for layer in range(len(pool.shapes))]

    def _views(self, layer: int) -> tuple[Quantized, Quantized]:
        """A layer's keys and values: codes (num_pages, page_tokens, heads · dim) and scales
        (num_pages, page_tokens, heads).
        """
        shape, size, num_tokens = self._pool.shapes[layer], self._pool.num_pages, self.page_tokens
        heads, begin, halves = shape.num_kv_heads, 0, []
        memory = self._pool.memory(layer)
        codes, scales = memory.view(torch.int8), memory.view(torch.float32)
        for dim in (shape.key_dim, shape.value_dim):
            half = self._pool.page_tokens * heads * dim * memory.dtype.itemsize
            first_code = begin + num_tokens * heads * SCALE_BYTES
            halves.append(
                Quantized(
                    codes.as_strided(
                        (size, num_tokens, heads * dim), (half, heads * dim, 1), first_code
                    ),
                    scales.as_strided(
                        (size, num_tokens, heads),
                        (half // SCALE_BYTES, heads, 1),
                        begin // SCALE_BYTES,
                    ),
                )
            )
            begin += size * half
        return halves[0], halves[1]

    def clear(self, pages: Ints) -> None:
        """`pages` begin to have another form."""
        had_codes = np.unique(pages[self._had_codes[pages]])
        if len(had_codes):
            self._had_codes[had_codes] = False
            self._pool.clear(self._upload(had_codes))

    def places_of(self, pages: Ints, offsets: Ints) -> Places:
        self._had_codes[pages] = True
        return self._upload(pages), self._upload(offsets)

    def store(
        self,
        layer: int,
        places: Places,
        tokens: Tensor,
        key: Tensor,
        value: Tensor,
        hidden: Tensor | None,
    ) -> None:
        for half, rows in zip(self._layers[layer], (key[tokens], value[tokens]), strict=True):
            new = quantize(rows.flatten(1), group=rows.shape[-1])
            half.codes.index_put_(places, new.codes)
            half.scales.index_put_(places, new.scales.clamp_max_(LARGEST_SCALE))

    def gather(self, layer: int, pages: Tensor) -> Pair:
        """Keys and values of `pages`, each (*pages.shape[:-1], num_tokens, num_kv_heads, dim)."""
        lead = (*pages.shape[:-1], pages.shape[-1] * self.page_tokens)
        heads = self._pool.shapes[layer].num_kv_heads
        keys, values = (self._restored(half, pages.flatten()) for half in self._layers[layer])
        return keys.view(*lead, heads, -1), values.view(*lead, heads, -1)

    def _restored(self, half: Quantized, pages: Tensor) -> Tensor:
        scales = half.scales.index_select(0, pages).flatten(0, 1)
        scales = torch.where(scales.abs() <= LARGEST_SCALE, scales, 0.0)
        codes = half.codes.index_select(0, pages).flatten(0, 1)
        return dequantize(Quantized(codes, scales), self._pool.dtype)

    def keys_of(self, pages: Ints, positions: Ints) -> "Int8Keys":
        return Int8Keys(self, self._upload(pages))

    def shrink(self, conversion: Conversion) -> None:
        """Quantize the tokens' keys and values into the pages they are to have."""
        numbers = np.arange(conversion.num_tokens)
        new_pages, offsets = np.divmod(numbers, self.page_tokens)
        places = self.places_of(conversion.new_pages.astype(np.int64)[new_pages], offsets)
        old_pages = self._upload(conversion.old_pages.astype(np.int64))
        tokens = self._upload(numbers)
        for layer in range(len(self._layers)):
            keys, values = self._pool.gather(layer, old_pages)
            self.store(layer, places, tokens, keys, values, None)

    def _upload(self, array: Ints) -> Tensor:
        return torch.from_numpy(array).to(self._pool.device, non_blocking=True)


class Int8Keys:
    """Keys and values of pages in int8, restored whenever asked."""

    def __init__(self, form: Int8Form, pages: Tensor) -> None:
        self._form = form
        self._pages = pages

    def get(self, layer: int, key: Tensor, value: Tensor) -> Pair:
        return self._form.gather(layer, self._pages)
