"""What predicts how long the answer to a prompt will be. Pure, like everything in this package."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt, as far as a predictor may look.

    Attributes:
        tokens: packed.
        page_keys: its key path.
        tenant: lengths are learnt from, and used for, requests of one tenant only.
        max_tokens: what the request allows.
        embedding: of the prompt by a model, unit length; None where no model embeds.
    """

    tokens: bytes
    page_keys: bytes
    tenant: str
    max_tokens: int
    embedding: Vector | None = None


class LengthPredictor(Protocol):
    """Predicts from the prompts and lengths of requests that finished."""

    def predict(self, prompt: Prompt) -> float | None:
        """Expected output tokens, the limit not applied; None while it knows too little."""

    def learn(self, prompt: Prompt, output_tokens: int) -> None:
        """The request finished of itself with so many, at least one."""
