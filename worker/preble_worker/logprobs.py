"""The log probabilities that a batch's rows ask for: an order to the engine, and its answer.

They stand beside the drawn tokens, in columns, for the rows that ask and no others; so a batch in
which nobody asks has none of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preble.types import Logprobs

NO_LOGPROBS: Mapping[int, Logprobs] = {}


@dataclass(frozen=True, slots=True)
class LogprobColumns:
    """The scheduler says `rows` and `num_top`, the engine fills in the rest.

    Attributes:
        rows: int64 (m,). Index among the batch's drawn tokens, ascending.
        num_top: int64 (m,). How many of the likeliest tokens each wants.
        chosen: float32 (m,). Log probability of the drawn token.
        top_tokens, top: uint32 and float32 (m, largest of num_top). The likeliest tokens, likeliest
            first, and their log probabilities.
    """

    rows: npt.NDArray[np.int64]
    num_top: npt.NDArray[np.int64]
    chosen: npt.NDArray[np.float32]
    top_tokens: npt.NDArray[np.uint32]
    top: npt.NDArray[np.float32]

    @classmethod
    def ask(cls, wanted: Sequence[tuple[int, int]]) -> "LogprobColumns":
        """Nothing filled in.

        Args:
            wanted: row and number of likeliest tokens of each that asks.
        """
        rows, num_top = np.array(wanted, dtype=np.int64).T
        shape = len(rows), int(num_top.max())
        return cls(
            rows,
            num_top,
            np.zeros(len(rows), dtype=np.float32),
            np.zeros(shape, dtype=np.uint32),
            np.zeros(shape, dtype=np.float32),
        )

    def packed(self) -> dict[int, Logprobs]:
        """As they travel, by row."""
        return {
            row: Logprobs(
                self.chosen[i].tobytes(),
                self.top_tokens[i, :num_top].tobytes(),
                self.top[i, :num_top].tobytes(),
            )
            for i, (row, num_top) in enumerate(
                zip(self.rows.tolist(), self.num_top.tolist(), strict=True)
            )
        }
