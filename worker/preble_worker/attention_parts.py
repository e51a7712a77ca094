"""Attention over a part of a query's keys, and the merge of such parts.

A part yields its output o and the log-sum-exp l of its scores. Two parts a and b merge into

    o = o_b + σ(l_a − l_b)·(o_a − o_b)          l = log(exp l_a + exp l_b)

which is softmax over the union of their keys (Milakov and Gimelshein, arXiv 1805.02867).
"""

import torch
from torch import Tensor

SCORE_BYTES = 256 << 20
"""Off the CPU, queries are taken in blocks so that one block's scores fit this."""


def attend_part(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    mask: Tensor | None = None,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """Attention with the log-sum-exp of its scores.

    Args:
        query: (n, heads, num_queries, key_dim).
        key, value: (n, heads, num_keys, key_dim or value_dim).
        mask: added to the scores, broadcast to (n, heads, num_queries, num_keys).
        is_causal: query i sees keys 0 … i; with as many queries as keys and no mask.

    Returns:
        Output (n, heads, num_queries, value_dim); log-sum-exp (n, heads, num_queries), float32.
    """
    if query.device.type == "cpu" and query.shape[-1] == value.shape[-1]:
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale
        )
        return output, lse
    if is_causal:
        mask = causal_mask(
            query.shape[2], key.shape[2], window=None, dtype=query.dtype, device=query.device
        )
    block = max(1, SCORE_BYTES // (4 * query.shape[0] * query.shape[1] * key.shape[2]))
    parts = [
        _attend_plainly(query[:, :, i : i + block], key, value, scale, _rows(mask, i, block))
        for i in range(0, query.shape[2], block)
    ]
    outputs, lses = zip(*parts, strict=True)
    return torch.cat(outputs, dim=2), torch.cat(lses, dim=2)


def _rows(mask: Tensor | None, begin: int, num: int) -> Tensor | None:
    if mask is None or mask.shape[-2] == 1:
        return mask
    return mask[..., begin : begin + num, :]


def _attend_plainly(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The definition: three operations, with the scores in memory, and in float32."""
    scores = torch.matmul(query, key.transpose(-1, -2)).float() * scale
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(dim=-1)
    weights = (scores - lse.unsqueeze(-1)).exp_().to(value.dtype)
    return torch.matmul(weights, value), lse


def causal_mask(
    num_queries: int,
    num_keys: int,
    *,
    window: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """(num_queries, num_keys): the queries are the newest of the keys' tokens, each sees the
    `window` keys up to its own."""
    keys = torch.arange(num_keys, device=device)
    own = keys[num_keys - num_queries :, None]
    hidden = keys > own
    if window is not None:
        hidden |= keys <= own - window
    return _minus_infinity_where(hidden, dtype)


def visible_mask(begins: Tensor, ends: Tensor, num_keys: int, dtype: torch.dtype) -> Tensor:
    """(n, 1, 1, num_keys): row i sees keys begins[i] … ends[i] − 1."""
    keys = torch.arange(num_keys, device=begins.device)
    hidden = (keys < begins[:, None]) | (keys >= ends[:, None])
    return _minus_infinity_where(hidden, dtype)[:, None, None]


def _minus_infinity_where(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, float("-inf"))


class Merged:
    """Outputs of a batch's tokens, to which parts are put first and added then.

    Attributes:
        output: (num_tokens, num_kv_heads, heads per KV head, value_dim).
    """

    def __init__(self, query: Tensor, value_dim: int, *, keeps_lse: bool) -> None:
        shape = query.shape[:-1]
        dtype = torch.float32 if keeps_lse else query.dtype
        self.output = torch.empty(*shape, value_dim, dtype=dtype, device=query.device)
        self._keeps_lse = keeps_lse
        self._lse = torch.empty(shape if keeps_lse else 0, device=query.device)

    def put(self, tokens: slice | Tensor, output: Tensor, lse: Tensor) -> None:
        """The first part of `tokens`; output (n, kv heads, group, dim), lse without the last."""
        self.output[tokens] = output.to(self.output.dtype)
        if self._keeps_lse:
            self._lse[tokens] = lse

    def add(self, tokens: slice | Tensor, output: Tensor, lse: Tensor) -> None:
        """Another part of tokens that have one."""
        old_output, old_lse = self.output[tokens], self._lse[tokens]
        weight = torch.sigmoid(lse - old_lse).unsqueeze(-1)
        self.output[tokens] = torch.lerp(old_output, output.to(old_output.dtype), weight)
        self._lse[tokens] = torch.logaddexp(old_lse, lse)
