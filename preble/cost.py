"""Seconds of worker time, predicted: the currency in which every scheduling decision is made.

One step that computes a batch takes (ALGORITHMS: cost model)

    linear    t = fixed + c6·N + a + b        a = c1·P + c2·A + c3·D + c5·H + c7·Q    compute
    roofline  t = fixed + c6·N + max(a, b)    b = weights + c4·K               memory traffic

P new prefill tokens, A = Σ over prefill chunks of chunk·(context before + chunk/2), D decoding
requests, K context tokens that the decodes read, H and Q context tokens in the hidden form and in
int8. N counts the attention products beyond the first where an engine cuts a ragged batch into
several, and one more for several decodes; c6 is 0 where one kernel takes the batch whole.
"""

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from preble.errors import ConfigError

INT8_SHARE = 0.25
"""Of what reading a token's keys and values takes, that restoring them from 8 bits adds where it
was not measured: a multiplication per number beside the memory's traffic."""

Tokens = TypeVar("Tokens", float, npt.NDArray[np.float64])


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """Coefficients of one (model, device) pair, all in seconds.

    Attributes:
        per_prefill_token, per_attention, per_decode, per_context_token: c1 to c4 above.
        weight_read: time to read the weights once; 0 in a fitted linear model.
        per_hidden_token: c5, computing K and V anew from a token in the hidden form; 0 where the
            model has none or it was not measured.
        per_int8_token: c7, restoring K and V of a token that the device keeps in int8; 0 where that
            was not measured, and a quarter of c4 counts.
        per_product: c6 above.
        source: "measured" by `preble profile`, or "first principles".
    """

    name: str
    fixed: float
    per_prefill_token: float
    per_attention: float
    per_decode: float
    per_context_token: float
    weight_read: float = 0.0
    per_hidden_token: float = 0.0
    per_int8_token: float = 0.0
    per_product: float = 0.0
    roofline: bool = False
    source: str = "measured"

    @property
    def int8_token_seconds(self) -> float:
        """c7 as it counts."""
        return self.per_int8_token or INT8_SHARE * self.per_context_token

    def step_seconds(
        self,
        *,
        prefill_tokens: float,
        attention: float,
        decodes: float,
        context_tokens: float,
        hidden_tokens: float = 0.0,
        int8_tokens: float = 0.0,
        products: float = 0.0,
    ) -> float:
        """Duration of one step, from the batch's P, A, D, K, H, Q and N."""
        compute = (
            self.per_prefill_token * prefill_tokens
            + self.per_attention * attention
            + self.per_decode * decodes
            + self.per_hidden_token * hidden_tokens
        )
        if int8_tokens:
            compute += self.int8_token_seconds * int8_tokens
        traffic = self.weight_read + self.per_context_token * context_tokens
        return self.fixed + self.per_product * products + self.overlapped(compute, traffic)

    def overlapped(self, compute: float, traffic: float) -> float:
        """Seconds of a step's compute and memory traffic together, from those of each."""
        if self.roofline:
            return compute if compute > traffic else traffic
        return compute + traffic

    def prefill_seconds(self, new: Tokens, cached: Tokens) -> Tokens:
        """Compute time of `new` prompt tokens behind `cached` ones, steps' fixed part left out.

        Both may be arrays of one shape: one element per worker.
        """
        return new * (self.per_prefill_token + self.per_attention * (cached + 0.5 * new))

    def decode_seconds(self, context: float, batch: float = 1.0) -> float:
        """What one more output token costs a request with `context` tokens in a batch of `batch`.

        The step's fixed and weight-read time is shared equally by the batch.
        """
        step = self.step_seconds(
            prefill_tokens=0.0, attention=0.0, decodes=batch, context_tokens=context * batch
        )
        return step / max(batch, 1.0)

    def to_json(self) -> str:
        """The coefficients as a JSON object, one key per field."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = "cost model") -> Self:
        """Parse `to_json` output.

        Raises:
            ConfigError: not an object of exactly our fields with finite, non-negative numbers.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            model = cls(**values)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: not a cost model ({error})") from error
        for item in fields(cls):
            value = getattr(model, item.name)
            number = isinstance(value, int | float) and math.isfinite(value) and value >= 0.0
            if item.type is float and not number:
                raise ConfigError(f"{where}: {item.name} is {value!r}, must be finite and >= 0")
        return model

    @classmethod
    def first_principles(
        cls,
        *,
        name: str,
        parameters: float,
        layers: int,
        hidden: int,
        kv_bytes_per_token: float,
        flops_per_second: float,
        bytes_per_second: float,
        weight_bytes: float,
        fixed: float,
    ) -> Self:
        """An uncalibrated roofline: 2 FLOPs per parameter and token, 4·layers·hidden per pair.

        `flops_per_second` and `bytes_per_second` are what the device sustains, not its data sheet.
        """
        per_token = 2.0 * parameters / flops_per_second
        return cls(
            name=name,
            fixed=fixed,
            per_prefill_token=per_token,
            per_attention=4.0 * layers * hidden / flops_per_second,
            per_decode=per_token,
            per_context_token=kv_bytes_per_token / bytes_per_second,
            weight_read=weight_bytes / bytes_per_second,
            roofline=True,
            source="first principles",
        )
