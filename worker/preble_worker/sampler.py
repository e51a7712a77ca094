"""Draws the next tokens from logits.

Randomness is counted, not kept: the number that draws token i of a request is a hash of the
request's seed and i. So a draw depends neither on the batch it is computed in nor on the device,
and a request that is resumed elsewhere goes on with the same draws.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from preble.page_keys import TOKEN_BYTES, unpack_tokens
from preble_worker.batch import Penalties, SlotTables
from preble_worker.logprobs import LogprobColumns

GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """How the next token of each row of logits is drawn; arrays of one length."""

    temperature: npt.NDArray[np.float32]
    top_p: npt.NDArray[np.float32]
    top_k: npt.NDArray[np.int32]
    seed: npt.NDArray[np.uint64]
    position: npt.NDArray[np.int64]

    @classmethod
    def of_slots(cls, tables: SlotTables, slots: npt.NDArray[np.int64]) -> "SamplingRows":
        return cls(
            tables.temperature[slots],
            tables.top_p[slots],
            tables.top_k[slots],
            tables.seed[slots],
            tables.output_position[slots],
        )

    def take(self, rows: npt.NDArray[np.int64]) -> "SamplingRows":
        return SamplingRows(
            self.temperature[rows],
            self.top_p[rows],
            self.top_k[rows],
            self.seed[rows],
            self.position[rows],
        )


def sample(logits: Tensor, rows: SamplingRows) -> Tensor:
    """One token per row of `logits` (n, vocab): int64 (n,).

    Temperature 0 takes the largest logit, the first of equals. Otherwise softmax of
    logits / temperature, of which the `top_k` likeliest stay, of which the likeliest stay until
    their share reaches `top_p`.
    """
    tokens = logits.argmax(dim=-1)
    drawn = rows.temperature > 0
    if not drawn.any():
        return tokens
    cut = drawn & ((rows.top_k > 0) | (rows.top_p < 1))
    for chosen, draw in ((drawn & ~cut, _draw), (cut, _draw_cut)):
        if chosen.any():
            index = np.flatnonzero(chosen)
            place = torch.from_numpy(index).to(logits.device)
            tokens[place] = draw(logits[place], rows.take(index))
    return tokens


def penalized(
    logits: Tensor, slots: npt.NDArray[np.int64], penalties: Mapping[int, Penalties]
) -> Tensor:
    """`logits` (n, vocab) of the requests in `slots`, lowered by what their outputs have.

        logits[j] - frequency * count[j] - presence * (count[j] > 0)

    as OpenAI's documentation has it. float32; may be `logits` itself, changed.
    """
    found = [(row, penalties[slot]) for row, slot in enumerate(slots.tolist()) if slot in penalties]
    if not found:
        return logits
    logits, vocab, device = logits.float(), logits.shape[-1], logits.device
    tokens = unpack_tokens(b"".join([each.output for _, each in found])).astype(np.int64)
    lengths = [len(each.output) // TOKEN_BYTES for _, each in found]
    places = torch.from_numpy(tokens + np.repeat(np.arange(len(found)) * vocab, lengths)).to(device)
    counts = torch.zeros(len(found) * vocab, device=device)
    counts.index_add_(0, places, torch.ones(len(tokens), device=device))
    counts = counts.view(len(found), vocab)
    frequency = _column(np.array([each.frequency for _, each in found], np.float32), device)
    presence = _column(np.array([each.presence for _, each in found], np.float32), device)
    rows = torch.tensor([row for row, _ in found], device=device)
    logits[rows] -= counts * frequency + (counts > 0) * presence
    return logits


def measure(logits: Tensor, tokens: Tensor, logprobs: LogprobColumns) -> None:
    """Fill `logprobs` in: log-softmax of `logits` (n, vocab) as the model gave them, of which
    `tokens` (n,) were drawn.
    """
    place = torch.from_numpy(logprobs.rows).to(logits.device)
    wide = logits[place].float().log_softmax(dim=-1)
    logprobs.chosen[:] = wide.gather(-1, tokens[place][:, None])[:, 0].cpu().numpy()
    num_top = logprobs.top.shape[1]
    if num_top:
        top, ids = wide.topk(num_top, dim=-1)
        logprobs.top[:] = top.cpu().numpy()
        logprobs.top_tokens[:] = ids.cpu().numpy()


def uniforms(
    seed: npt.NDArray[np.uint64], position: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per (seed, position), in steps of 2**-40.

    Splitmix64 (Steele, Lea and Flood, 2014) of the position, counted from a hash of the seed.
    """
    counter = _mix(seed + GOLDEN_RATIO) + position.astype(np.uint64) * GOLDEN_RATIO
    return (_mix(counter) >> np.uint64(24)).astype(np.float64) * 2.0**-40


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _draw(logits: Tensor, rows: SamplingRows) -> Tensor:
    return _pick(_weights(logits, rows), rows)


def _draw_cut(logits: Tensor, rows: SamplingRows) -> Tensor:
    vocab = logits.shape[-1]
    ordered, ids = logits.sort(dim=-1, descending=True, stable=True)
    weights = _weights(ordered, rows)
    top_k = np.where(rows.top_k > 0, np.minimum(rows.top_k, vocab), vocab)
    ranks = torch.arange(vocab, device=logits.device)
    weights.masked_fill_(ranks >= _column(top_k, logits.device), 0.0)
    before = weights.cumsum(dim=-1) - weights
    share = _column(rows.top_p.astype(np.float64), logits.device)
    total = weights.sum(dim=-1, keepdim=True)
    # The likeliest token always stays, and top_p 1 cuts nothing however the sums were rounded.
    gone = (before >= share * total) & (ranks > 0) & (share < 1.0)
    weights.masked_fill_(gone, 0.0)
    return ids.gather(-1, _pick(weights, rows)[:, None])[:, 0]


def _weights(logits: Tensor, rows: SamplingRows) -> Tensor:
    """exp(logits / temperature) up to a factor, in float64: sums over a large vocabulary then
    round the same way, up to 2**-40, wherever they are computed."""
    wide = logits.double()
    below_largest = wide - wide.amax(dim=-1, keepdim=True)
    return (below_largest / _column(rows.temperature.astype(np.float64), logits.device)).exp_()


def _pick(weights: Tensor, rows: SamplingRows) -> Tensor:
    """The index at which the running sum passes the row's number."""
    sums = weights.cumsum(dim=-1)
    number = _column(uniforms(rows.seed, rows.position), weights.device)
    return torch.searchsorted(sums, number * sums[:, -1:], right=True)[:, 0]


def _column(array: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)[:, None]
