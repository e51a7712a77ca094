"""The decoding requests, as columns.

A decode step changes the same few numbers of every request, so they are kept in arrays and a step
is a dozen array operations; only what happens to single requests (an end, a new page, a full tail)
is done one by one.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from preble.page_keys import TOKEN_BYTES, TOKEN_DTYPE
from preble.types import Logprobs
from preble_worker.batch import SlotTables
from preble_worker.config import SchedulerConfig
from preble_worker.kv_form import KvForm
from preble_worker.logprobs import NO_LOGPROBS
from preble_worker.outputs import TokenColumns
from preble_worker.page_cache import PageArray
from preble_worker.sequence import Sequence, Stage

TAIL_TOKENS = 64
"""Newest tokens of a request that are kept in an array before they join its bytes."""

Rows = npt.NDArray[np.intp]
Slots = npt.NDArray[np.int64]


class DecodeRows:
    """Decoding requests, row by row as they stand at the front of a batch.

    While a request is here its `num_computed`, `num_output` and `generated` are behind the arrays,
    and `remove` brings them up to date.

    Attributes:
        sequences: one per row.
        context_tokens: tokens with KV, all rows together.
        num_in: rows in each form.
        wanted_logprobs: rows that ask for log probabilities, each with how many of the likeliest
            tokens it wants.
    """

    def __init__(self, tables: SlotTables, config: SchedulerConfig) -> None:
        page_tokens = config.page_tokens
        num_slots = len(tables.last_token)
        self._tables = tables
        self._page_tokens = page_tokens
        self._page_tokens_of = {KvForm.FULL: page_tokens, **config.tiers.page_tokens_of}
        self._tokens_per_page = np.full(num_slots, page_tokens, dtype=np.int64)
        self._num_pages = np.zeros(num_slots, dtype=np.int64)
        self.num_in = dict.fromkeys(KvForm, 0)
        self.wanted_logprobs: list[tuple[int, int]] = []
        self._eos_token_ids = config.eos_token_ids
        self._num_computed = np.zeros(num_slots, dtype=np.int64)
        self._capacity = np.zeros(num_slots, dtype=np.int64)
        self._max_tokens = np.zeros(num_slots, dtype=np.int64)
        self._obeys_eos = np.zeros(num_slots, dtype=np.bool_)
        self._tail = np.zeros((num_slots, TAIL_TOKENS), dtype=TOKEN_DTYPE)
        self.sequences: list[Sequence] = []
        self.context_tokens = 0
        self._is_stale = True
        self._refresh()

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def slots(self) -> Slots:
        """The slot of each row; a new array whenever the rows changed."""
        if self._is_stale:
            self._refresh()
        return self._slots

    def add(self, sequence: Sequence, token: int) -> None:
        """`sequence` has computed its prompt and drawn `token`."""
        slot = sequence.slot
        self._num_computed[slot] = sequence.num_computed
        self._set_pages(sequence)
        self.num_in[sequence.form] += 1
        self._max_tokens[slot] = sequence.sampling.max_tokens
        self._obeys_eos[slot] = not sequence.sampling.ignore_eos
        self._tail[slot, sequence.num_output % TAIL_TOKENS] = token
        self._tables.last_token[slot] = token
        self._tables.output_position[slot] = sequence.num_output + 1
        if penalties := self._tables.penalties.get(slot):
            penalties.output.extend(token.to_bytes(TOKEN_BYTES, "little"))
        if (sequence.num_output + 1) % TAIL_TOKENS == 0:
            self._move_tail(sequence)
        sequence.stage = Stage.DECODE
        self.sequences.append(sequence)
        self.context_tokens += sequence.num_computed
        self._is_stale = True

    def remove(self, leaving: list[Sequence]) -> None:
        """Take sequences out, with their own numbers up to date."""
        for sequence in leaving:
            self._settle(sequence)
            self.context_tokens -= sequence.num_computed
            self.num_in[sequence.form] -= 1
        gone = set(leaving)
        self.sequences = [s for s in self.sequences if s not in gone]
        self._is_stale = True

    def num_computed(self, sequence: Sequence) -> int:
        """Tokens that `sequence`, one of the rows, has computed."""
        return int(self._num_computed[sequence.slot])

    def converted(self, sequence: Sequence, before: KvForm) -> None:
        """`sequence`, one of the rows, has another form than `before`."""
        self.num_in[before] -= 1
        self.num_in[sequence.form] += 1
        self._set_pages(sequence)

    def tokens_in(self, form: KvForm) -> int:
        """Tokens in a compact form, all rows together."""
        if not self.num_in[form]:
            return 0
        slots = self.slots[self._tables.forms[self.slots] == form]
        return int((self._num_computed[slots] - self._tables.compact_from[slots]).sum())

    def _set_pages(self, sequence: Sequence) -> None:
        slot, own = sequence.slot, sequence.num_pages - sequence.num_held
        width = self._page_tokens_of[sequence.form]
        self._tokens_per_page[slot] = width
        self._num_pages[slot] = sequence.num_pages
        self._capacity[slot] = sequence.num_held * self._page_tokens + own * width

    def _settle(self, sequence: Sequence) -> None:
        slot = sequence.slot
        sequence.num_computed = int(self._num_computed[slot])
        if sequence.num_output < self._tables.output_position[slot]:
            self._move_tail(sequence)

    def starts(self) -> npt.NDArray[np.int64]:
        """Tokens with KV, per row."""
        return self._num_computed[self.slots]

    def note_generated(self) -> None:
        """Bring `num_generated` of all up to date."""
        positions = self._tables.output_position[self.slots].tolist()
        for sequence, position in zip(self.sequences, positions, strict=True):
            sequence.num_generated = position

    def short_of_pages(self) -> Rows:
        """Rows whose next token lies beyond their last page."""
        slots = self.slots
        rows: Rows = (self._num_computed[slots] == self._capacity[slots]).nonzero()[0]
        return rows

    def steps_until_end(self, *, num_available: int) -> int:
        """How many steps in a row compute all rows, if nobody joins or is cancelled: the last is
        the one in which a row ends, or behind which more than `num_available` pages would be
        needed. 1 if an end cannot be foreseen, because a token may bring it, or if a row asks for
        more than tokens.
        """
        slots = self.slots
        if (
            self.wanted_logprobs
            or self._rows_with_stop_tokens
            or (self._eos_token_ids and self._obeys_eos[slots].any())
        ):
            return 1
        steps = int((self._max_tokens[slots] - self._tables.output_position[slots]).min())
        while steps > 1 and self._wanted_pages(slots, ahead=steps - 1) > num_available:
            steps //= 2
        return steps

    def _wanted_pages(self, slots: Slots, *, ahead: int) -> int:
        beyond = self._num_computed[slots] + ahead - self._capacity[slots]
        return int((np.maximum(beyond, -1) // self._tokens_per_page[slots] + 1).sum())

    def give_pages(self, rows: Rows, pages: PageArray) -> None:
        """One page more for each of `rows`."""
        slots = self.slots[rows]
        self._tables.pages[slots, self._num_pages[slots]] = pages
        self._capacity[slots] += self._tokens_per_page[slots]
        self._num_pages[slots] += 1
        for row in rows.tolist():
            self.sequences[row].num_pages += 1

    def advance(
        self, tokens: npt.NDArray[np.int64], logprobs: Mapping[int, Logprobs] = NO_LOGPROBS
    ) -> tuple[TokenColumns, list[int]]:
        """Each row computed one token and drew the next, `tokens`.

        Returns:
            Columns of all rows, and the rows that end with this token.
        """
        slots, tables = self.slots, self._tables
        positions = tables.output_position[slots]
        after = positions + 1
        tables.output_position[slots] = after
        tables.last_token[slots] = tokens
        self._num_computed[slots] += 1
        self.context_tokens += len(slots)
        columns = np.remainder(positions, TAIL_TOKENS)
        self._tail[slots, columns] = tokens
        for row, output in self._penalized:
            output.extend(int(tokens[row]).to_bytes(TOKEN_BYTES, "little"))
        for row in (columns == TAIL_TOKENS - 1).nonzero()[0].tolist():
            self._move_tail(self.sequences[row])
        return self._columns(positions, tokens, logprobs), self._ended(after, tokens)

    def advance_many(
        self, tokens: npt.NDArray[np.int64], allocate: Callable[[int], PageArray]
    ) -> None:
        """`advance` once for each line of `tokens`, with which no row ends, and `give_pages` from
        `allocate` after each.
        """
        slots, tables, num_steps = self.slots, self._tables, len(tokens)
        newest = np.ascontiguousarray(tokens.T, dtype=TOKEN_DTYPE).tobytes()
        width = len(newest) // len(slots)
        positions = tables.output_position[slots].tolist()
        for row, (sequence, position) in enumerate(zip(self.sequences, positions, strict=True)):
            if sequence.num_output < position:
                self._move_tail(sequence)
            sequence.generated += newest[row * width : (row + 1) * width]
            sequence.num_output += num_steps
        for row, output in self._penalized:
            output.extend(newest[row * width : (row + 1) * width])
        tables.output_position[slots] += num_steps
        tables.last_token[slots] = tokens[-1]
        self._num_computed[slots] += num_steps
        self.context_tokens += num_steps * len(slots)
        self._give_overdue_pages(allocate)

    def _give_overdue_pages(self, allocate: Callable[[int], PageArray]) -> None:
        """Pages that rows came to lack in the course of several steps, allocated step by step."""
        slots = self.slots
        page_tokens = self._tokens_per_page[slots]
        overdue = self._num_computed[slots] - self._capacity[slots]
        rows = np.flatnonzero(overdue >= 0)
        if not len(rows):
            return
        lacking = overdue[rows] // page_tokens[rows] + 1
        each = np.repeat(rows, lacking)
        nth = np.arange(len(each)) - np.repeat(np.cumsum(lacking) - lacking, lacking)
        steps_late = overdue[each] - nth * page_tokens[each]
        order = np.argsort(-steps_late, kind="stable")
        counts = np.bincount(steps_late)[::-1]
        pages = np.concatenate([allocate(count) for count in counts[counts > 0].tolist()])
        columns = self._num_pages[slots[each]] + nth
        self._tables.pages[slots[each][order], columns[order]] = pages
        self._capacity[slots[rows]] += lacking * page_tokens[rows]
        self._num_pages[slots[rows]] += lacking
        for row, count in zip(rows.tolist(), lacking.tolist(), strict=True):
            self.sequences[row].num_pages += count

    def _columns(
        self,
        positions: npt.NDArray[np.int64],
        tokens: npt.NDArray[np.int64],
        logprobs: Mapping[int, Logprobs],
    ) -> TokenColumns:
        return TokenColumns(
            self._request_ids,
            self._attempts,
            positions,
            tokens.astype(np.uint32),
            self._cached_tokens,
            logprobs,
        )

    def _ended(self, num_output: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64]) -> list[int]:
        slots = self._slots
        ended = num_output >= self._max_tokens[slots]
        for eos in self._eos_token_ids:
            is_eos = tokens == eos
            if np.count_nonzero(is_eos):
                ended |= is_eos & self._obeys_eos[slots]
        for row in self._rows_with_stop_tokens:
            if int(tokens[row]) in self.sequences[row].stop_ids:
                ended[row] = True
        rows: list[int] = ended.nonzero()[0].tolist()
        return rows

    def _move_tail(self, sequence: Sequence) -> None:
        """Move the newest tokens to the sequence's bytes; the tail never wraps in between."""
        num_output = int(self._tables.output_position[sequence.slot])
        first = sequence.num_output % TAIL_TOKENS
        newest = self._tail[sequence.slot, first : first + num_output - sequence.num_output]
        sequence.generated += newest.tobytes()
        sequence.num_output = num_output

    def _refresh(self) -> None:
        sequences = self.sequences
        self._slots = np.array([s.slot for s in sequences], dtype=np.int64)
        self._request_ids = [s.request_id for s in sequences]
        self._attempts = [s.attempt for s in sequences]
        self._cached_tokens = [s.served_from_cache or 0 for s in sequences]
        penalties = self._tables.penalties
        self._penalized = [
            (row, penalties[s.slot].output)
            for row, s in enumerate(sequences if penalties else ())
            if s.slot in penalties
        ]
        self.wanted_logprobs, self._rows_with_stop_tokens = [], []
        for row, sequence in enumerate(sequences):
            sampling = sequence.sampling
            if sampling.top_logprobs is not None:
                self.wanted_logprobs.append((row, sampling.top_logprobs))
            if sampling.stop_token_ids:
                self._rows_with_stop_tokens.append(row)
        self._is_stale = False

    def check(self) -> None:
        for form, num in self.num_in.items():
            assert num == sum(sequence.form is form for sequence in self.sequences)
        assert self.context_tokens == int(self._num_computed[self.slots].sum())
        for sequence in self.sequences:
            slot = sequence.slot
            assert sequence.stage is Stage.DECODE
            assert 0 < self._num_computed[slot] <= self._capacity[slot]
            assert self._num_pages[slot] == sequence.num_pages
            own = sequence.num_pages - sequence.num_held
            width = self._page_tokens_of[sequence.form]
            assert self._capacity[slot] == sequence.num_held * self._page_tokens + own * width
            num_output = int(self._tables.output_position[slot])
            assert self._num_computed[slot] == sequence.num_prompt_tokens + num_output - 1
            assert num_output < sequence.sampling.max_tokens
            if sequence.sampling.penalizes:
                assert len(self._tables.penalties[slot].output) == num_output * TOKEN_BYTES
