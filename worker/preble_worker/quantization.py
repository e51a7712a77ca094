"""Numbers in 8 bits: symmetric, with one scale per group of neighbouring numbers.

A group is what one token keeps in one KV head of one layer, its key or its value, so that no other
token's or head's outlier costs it precision.

    code = round(number / scale)    scale = largest |number| of the group / 127

The error is at most half a scale, 0.4 % of the group's largest number.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_CODE = 127
SMALLEST_SCALE = 1e-30
"""A group of zeros must not be divided by zero."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """Rows of numbers as `codes`, int8 (n, numbers), and `scales`, float32 (n, groups)."""

    codes: Tensor
    scales: Tensor


def quantize(rows: Tensor, *, group: int) -> Quantized:
    """Quantize `rows` (n, numbers), every `group` neighbours with a scale of their own."""
    groups = rows.float().view(len(rows), -1, group)
    scales = groups.abs().amax(dim=-1).div_(LARGEST_CODE).clamp_min_(SMALLEST_SCALE)
    codes = (groups / scales.unsqueeze(-1)).round_().to(torch.int8)
    return Quantized(codes.flatten(1), scales)


def dequantize(quantized: Quantized, dtype: torch.dtype) -> Tensor:
    """(n, numbers): what is left of the rows."""
    codes, scales = quantized.codes, quantized.scales
    groups = codes.view(*scales.shape, -1).float().mul_(scales.unsqueeze(-1))
    return groups.flatten(1).to(dtype)
