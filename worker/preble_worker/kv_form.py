"""In which form a token's memory on the device is."""

from dataclasses import dataclass
from enum import IntEnum


class KvForm(IntEnum):
    """Only what is in the full form can be shared; the others are *compact*."""

    FULL = 0
    """Keys and values."""
    HIDDEN = 1
    """Of each layer the input of its QKV projection, from which K and V are computed anew in each
    step: exact, but for the rounding of another product."""
    INT8 = 2
    """Keys and values in 8 bits with scales: not exact."""


@dataclass(frozen=True, slots=True)
class CompactForm:
    """A form that a request may have instead of the full one.

    Attributes:
        page_tokens: of it that fit a page; more than of the full form.
        token_seconds: what a token in it adds to a step.
    """

    kind: KvForm
    page_tokens: int
    token_seconds: float
