"""What the scheduler asks of the engine for one step, and the tables both read.

A running request owns a *slot*: a row in `SlotTables`. A batch names slots, so the engine gathers
its inputs with a few array operations and never walks requests one by one.

    rows of a batch   0 ............ num_decodes ............... len(slots)
                      decodes, one token each    prefill chunks, oldest first
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

import numpy as np
import numpy.typing as npt

from preble.cost import CostModel
from preble_worker.config import TierConfig
from preble_worker.kv_form import KvForm
from preble_worker.logprobs import LogprobColumns

ALL_KV = np.iinfo(np.int64).max
"""`SlotTables.compact_from` of a request that keeps all its tokens as keys and values."""


@dataclass(frozen=True, slots=True)
class Penalties:
    """What the logits of tokens that an output already has are lowered by.

    Attributes:
        presence, frequency: as in `SamplingParams`.
        output: packed, all of it that is known; the scheduler appends.
    """

    presence: float
    frequency: float
    output: bytearray


class SlotTables:
    """State of the running requests, one row per slot. The scheduler writes, the engine reads.

    Tokens before `compact_from` have keys and values, as many to a page as the pool has
    `page_tokens`. Those from there on have the row's compact form, of which a page of the same
    bytes holds more:

        position   0 ............. compact_from ........................... length
        row        KV pages        compact pages, page tokens of the form    stale

    Attributes:
        pages: int32 (max_sequences, max_pages). Physical page of each logical page; the entries
            beyond a request's length are stale.
        compact_from: int64 (max_sequences,). A multiple of `page_tokens`, ALL_KV for none. The
            token at position p >= compact_from is number (p - compact_from) % n in page
            compact_from // page_tokens + (p - compact_from) // n of its row, n being the page
            tokens of the form. It stays while a request runs, but for `Conversion`.
        forms: int8 (max_sequences,). `KvForm` of the tokens from `compact_from` on.
        last_token: int64 (max_sequences,). The newest token, the input of the next decode.
        output_position: int64 (max_sequences,). Index in the request's output of the token that
            the next sampling draws; with `seed` the source of its randomness.
        prompt_hash: uint64 (max_sequences,). xxh3 of the prompt without delivered output; with
            `seed` and `output_position` it determines the simulated engine's tokens.
        temperature, top_p: float32; top_k: int32; seed: uint64; each (max_sequences,).
        penalties: of the slots whose request has any.
    """

    def __init__(self, max_sequences: int, max_pages: int) -> None:
        self.pages = np.zeros((max_sequences, max_pages), dtype=np.int32)
        self.compact_from = np.full(max_sequences, ALL_KV, dtype=np.int64)
        self.forms = np.zeros(max_sequences, dtype=np.int8)
        self.last_token = np.zeros(max_sequences, dtype=np.int64)
        self.output_position = np.zeros(max_sequences, dtype=np.int64)
        self.prompt_hash = np.zeros(max_sequences, dtype=np.uint64)
        self.temperature = np.zeros(max_sequences, dtype=np.float32)
        self.top_p = np.ones(max_sequences, dtype=np.float32)
        self.top_k = np.zeros(max_sequences, dtype=np.int32)
        self.seed = np.zeros(max_sequences, dtype=np.uint64)
        self.penalties: dict[int, Penalties] = {}


class Direction(Enum):
    """Which way pages are copied."""

    OFFLOAD = auto()
    """From the device to the host."""
    UPLOAD = auto()
    """From the host to the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Pages to copy between the device's pool and the host's.

    Attributes:
        device_pages, host_pages: int32 (n,). Page i of the one corresponds to page i of the
            other; in contiguous runs where possible.
        int8: on the host the pages are quantized: an offload quantizes, an upload restores.
        before_step: the step itself reads what is uploaded, or writes where was offloaded. Other
            moves may run beside the step.
    """

    direction: Direction
    device_pages: npt.NDArray[np.int32]
    host_pages: npt.NDArray[np.int32]
    int8: bool
    before_step: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """Tokens of a running request that take another form: hidden states become keys and values,
    by one projection, or keys and values are quantized.

    Attributes:
        slot: its row, which already shows the new pages, form and `compact_from`.
        before, after: the two forms.
        start: position of the first such token, a multiple of `page_tokens`.
        num_tokens: how many there are.
        old_pages: int32. Where they are.
        new_pages: int32. Where they go; disjoint from `old_pages`.
    """

    slot: int
    before: KvForm
    after: KvForm
    start: int
    num_tokens: int
    old_pages: npt.NDArray[np.int32]
    new_pages: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One step's work.

    Attributes:
        step: counts from 1 over the life of the scheduler.
        slots: int64 (n,). Row of each request in `tables`, decodes first.
        starts: int64 (n,). Tokens of the request that already have KV.
        counts: int64 (n,). Tokens to compute now; 1 for decodes.
        samples: bool (n,). Whether the row's last token is the newest known one, so that its
            logits yield the next; true for every decode and for a prompt's last chunk.
        num_decodes: the first rows, whose input is `tables.last_token[slot]`.
        prefill_tokens: int64 (sum of counts after num_decodes,). Inputs of the prefill chunks,
            one after another.
        tables: valid until the scheduler's next call.
        context_tokens: K of the cost model: KV tokens the decodes read.
        attention: A of the cost model.
        composition: changes whenever `slots`, or any page but those past the end of a request's
            previous length, differ from the previous batch; lets an engine keep derived state.
        moves: copies to begin with this step, in effect one after another in this order, all of
            them before the step and the conversions where `before_step` says so (of an offload only
            the reading need be), and in any case before the next batch runs.
        conversions: to be done before the step and behind the moves it waits for. What they read is
            nobody else's before the next batch.
        hidden_tokens: tokens in the hidden form before `starts`, all rows together: what the
            step projects anew.
        num_hidden_decodes: decodes in the hidden form; `hidden_tokens` grows by as many with
            each step.
        int8_tokens, num_int8_decodes: the same of those in int8, which the step restores.
        logprobs: for the engine to fill in; None where no row asks for log probabilities.
    """

    step: int
    slots: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    samples: npt.NDArray[np.bool_]
    num_decodes: int
    prefill_tokens: npt.NDArray[np.int64]
    tables: SlotTables
    context_tokens: int
    attention: float
    composition: int
    moves: tuple[Move, ...] = ()
    conversions: tuple[Conversion, ...] = ()
    hidden_tokens: int = 0
    num_hidden_decodes: int = 0
    int8_tokens: int = 0
    num_int8_decodes: int = 0
    logprobs: LogprobColumns | None = None


ONE_PRODUCT_TOKENS = 128
"""Decodes with contexts up to this length are one attention product on a CPU."""


def num_extra_products(batch: Batch) -> int:
    """N of the cost model: attention products beyond the first, as torch computes them on a CPU.

    Decodes whose contexts are within a factor of two are one product, neighbouring prefill chunks
    of one length are one, and a chunk behind a context is two more: the context's own, and the
    merge with it. Several decodes count as one more, since that is about what they take longer,
    however few and short, than one alone, whose matrix products have a single row. What decodes
    save by sharing a prefix is left out.
    """
    contexts = batch.starts[: batch.num_decodes] + 1
    chunks, before = batch.counts[batch.num_decodes :], batch.starts[batch.num_decodes :]
    lengths = np.ceil(np.log2(np.maximum(contexts, ONE_PRODUCT_TOKENS)))
    products = len(np.unique(lengths)) + 2 * int(np.count_nonzero(before))
    products += batch.num_decodes > 1
    if len(chunks):
        products += 1 + int(np.count_nonzero(np.diff(chunks)))
    return max(products - 1, 0)


def predicted_seconds(cost: CostModel, batch: Batch) -> float:
    """How long `batch` should take, by its P, A, D, K, H, Q and N; copies left out."""
    return cost.step_seconds(
        prefill_tokens=len(batch.prefill_tokens),
        attention=batch.attention,
        decodes=batch.num_decodes,
        context_tokens=batch.context_tokens,
        hidden_tokens=batch.hidden_tokens,
        int8_tokens=batch.int8_tokens,
        products=num_extra_products(batch) if cost.per_product else 0.0,
    )


def seconds_with_copies(step_seconds: float, moves: tuple[Move, ...], tiers: TierConfig) -> float:
    """How long a step takes whose computing takes `step_seconds`: what it reads comes in first,
    all else crosses beside it, and it ends when both have.
    """
    before = beside = 0.0
    for move in moves:
        seconds = len(move.host_pages) * tiers.page_copy_seconds * (0.5 if move.int8 else 1.0)
        if move.before_step and move.direction is Direction.UPLOAD:
            before += seconds
        else:
            beside += seconds
    return before + max(step_seconds, beside)


class Engine(Protocol):
    """Computes batches. `ModelRunner` does it with a model, `SimulatedEngine` with sleeps."""

    def run(self, batch: Batch) -> npt.NDArray[np.int64]:
        """Compute the step, fill in `batch.logprobs` if there are any, and return one sampled
        token per row with `samples`, in row order."""
        ...
