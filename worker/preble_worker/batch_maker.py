"""From the scheduler's choice to the arrays that an engine takes."""

from collections.abc import Iterable
from collections.abc import Sequence as Listing
from itertools import compress

import numpy as np
import numpy.typing as npt

from preble.page_keys import TOKEN_BYTES, unpack_tokens
from preble_worker.batch import Batch, SlotTables
from preble_worker.decodes import DecodeRows
from preble_worker.kv_form import KvForm
from preble_worker.logprobs import LogprobColumns
from preble_worker.sequence import Sequence
from preble_worker.slots import Slots

_NO_TOKENS = np.zeros(0, dtype=np.int64)


class BatchMaker:
    """Numbers the batches and notices when their composition changes.

    Attributes:
        step: of the last batch.
    """

    def __init__(self, tables: SlotTables) -> None:
        self.step = 0
        self._tables = tables
        self._composition = 0
        self._last_slots: npt.NDArray[np.int64] = _NO_TOKENS
        self._counts = np.ones(len(tables.last_token), dtype=np.int64)
        self._samples = np.ones(len(tables.last_token), dtype=np.bool_)
        self._counts.flags.writeable = self._samples.flags.writeable = False  # batches share them

    def make(self, decodes: DecodeRows, chunks: Listing[Sequence], changes: Slots) -> Batch:
        """The decodes with one token each, then the chunk of each of `chunks`."""
        pages_changed, changes.pages_changed = changes.pages_changed, False
        slots, starts = decodes.slots, decodes.starts()
        num_decodes = len(slots)
        counts, samples = self._counts[:num_decodes], self._samples[:num_decodes]
        inputs = _NO_TOKENS
        attention = 0.0
        wanted = decodes.wanted_logprobs
        hidden_tokens = decodes.tokens_in(KvForm.HIDDEN)
        int8_tokens = decodes.tokens_in(KvForm.INT8)
        if chunks:
            draws = [s.chunk == s.num_missing for s in chunks]
            slots = _joined(slots, [s.slot for s in chunks])
            starts = _joined(starts, [s.num_computed for s in chunks])
            counts = _joined(counts, [s.chunk for s in chunks])
            samples = np.concatenate([samples, draws])
            inputs = np.concatenate([_chunk_tokens(s) for s in chunks], dtype=np.int64)
            if compact := [s for s in chunks if s.is_compact]:
                hidden_tokens += self._tokens_in(KvForm.HIDDEN, compact)
                int8_tokens += self._tokens_in(KvForm.INT8, compact)
            if [s for s in chunks if s.sampling.top_logprobs is not None]:
                wanted = [*wanted, *_wanted_logprobs(compress(chunks, draws), num_decodes)]
            attention = sum([s.chunk * (s.num_computed + 0.5 * s.chunk) for s in chunks])
        if pages_changed or not self._are_last(slots):
            self._composition += 1
        self._last_slots = slots
        self.step += 1
        return Batch(
            step=self.step,
            slots=slots,
            starts=starts,
            counts=counts,
            samples=samples,
            num_decodes=num_decodes,
            prefill_tokens=inputs,
            tables=self._tables,
            context_tokens=decodes.context_tokens,
            attention=attention,
            composition=self._composition,
            conversions=changes.take_conversions(),
            hidden_tokens=hidden_tokens,
            num_hidden_decodes=decodes.num_in[KvForm.HIDDEN],
            int8_tokens=int8_tokens,
            num_int8_decodes=decodes.num_in[KvForm.INT8],
            logprobs=LogprobColumns.ask(wanted) if wanted else None,
        )

    def _tokens_in(self, form: KvForm, chunks: Listing[Sequence]) -> int:
        """Tokens of `chunks` in `form` before the step."""
        begins = self._tables.compact_from
        return sum(s.num_computed - int(begins[s.slot]) for s in chunks if s.form is form)

    def _are_last(self, slots: npt.NDArray[np.int64]) -> bool:
        return slots is self._last_slots or np.array_equal(slots, self._last_slots)


def _joined(decodes: npt.NDArray[np.int64], chunks: list[int]) -> npt.NDArray[np.int64]:
    return np.concatenate([decodes, np.array(chunks, dtype=np.int64)])


def _wanted_logprobs(drawing: Iterable[Sequence], num_decodes: int) -> list[tuple[int, int]]:
    """Of the chunks that draw a token: its row among those drawn, and how many of the likeliest."""
    return [
        (row, s.sampling.top_logprobs)
        for row, s in enumerate(drawing, start=num_decodes)
        if s.sampling.top_logprobs is not None
    ]


def _chunk_tokens(sequence: Sequence) -> npt.NDArray[np.uint32]:
    start = sequence.num_computed * TOKEN_BYTES
    return unpack_tokens(sequence.tokens[start : start + sequence.chunk * TOKEN_BYTES])
