"""What the scheduler asks of the engine for one step, and the tables both read.

A running request owns a *slot*: a row in `SlotTables`. A batch names slots, so the engine gathers
its inputs with a few array operations and never walks requests one by one.

    rows of a batch   0 ............ num_decodes ............... len(slots)
                      decodes, one token each    prefill chunks, oldest first
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from preble.cost import CostModel


class SlotTables:
    """State of the running requests, one row per slot. The scheduler writes, the engine reads.

    Attributes:
        pages: int32 (max_sequences, max_pages). Physical page of each logical page; the entries
            beyond a request's length are stale.
        last_token: int64 (max_sequences,). The newest token, the input of the next decode.
        output_position: int64 (max_sequences,). Index in the request's output of the token that
            the next sampling draws; with `seed` the source of its randomness.
        prompt_hash: uint64 (max_sequences,). xxh3 of the prompt without delivered output; with
            `seed` and `output_position` it determines the simulated engine's tokens.
        temperature, top_p: float32; top_k: int32; seed: uint64; each (max_sequences,).
    """

    def __init__(self, max_sequences: int, max_pages: int) -> None:
        self.pages = np.zeros((max_sequences, max_pages), dtype=np.int32)
        self.last_token = np.zeros(max_sequences, dtype=np.int64)
        self.output_position = np.zeros(max_sequences, dtype=np.int64)
        self.prompt_hash = np.zeros(max_sequences, dtype=np.uint64)
        self.temperature = np.zeros(max_sequences, dtype=np.float32)
        self.top_p = np.ones(max_sequences, dtype=np.float32)
        self.top_k = np.zeros(max_sequences, dtype=np.int32)
        self.seed = np.zeros(max_sequences, dtype=np.uint64)


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


def predicted_seconds(cost: CostModel, batch: Batch) -> float:
    """How long `batch` should take, by its P, A, D and K."""
    return cost.step_seconds(
        prefill_tokens=len(batch.prefill_tokens),
        attention=batch.attention,
        decodes=batch.num_decodes,
        context_tokens=batch.context_tokens,
    )


class Engine(Protocol):
    """Computes batches. `ModelRunner` does it with a model, `SimulatedEngine` with sleeps."""

    def run(self, batch: Batch) -> npt.NDArray[np.int64]:
        """Compute the step and return one sampled token per row with `samples`, in row order."""
        ...
