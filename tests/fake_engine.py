"""Pretend engines: one with a real memory, and one that takes no time."""

import numpy as np
import numpy.typing as npt
import xxhash

from preble.page_keys import pack_tokens
from preble_worker.batch import ALL_KV, Batch, Conversion, Direction, Move
from preble_worker.config import NO_TIERS, TierConfig
from preble_worker.kv_form import KvForm

VOCAB = 50

EXACT, INEXACT = -1, -2
"""Of a place in the pretend engine, while it is not bound to a slot."""


def next_token(context: npt.NDArray[np.integer], seed: int, position: int) -> int:
    """The token that the pretend model draws after `context`, and nothing else decides."""
    digest = xxhash.xxh3_64_intdigest(pack_tokens(context), seed=seed)
    return xxhash.xxh3_64_intdigest(digest.to_bytes(8, "little"), seed=position) % VOCAB


class FakeEngine:
    """Computes nothing, but remembers which token and position each place of each page holds.

    It reads a request's context back through the page table, as attention would, so that any
    wrong page, stale place or lost token changes what is drawn.

    Copies beside a step are made as late as an engine may, before the next one. A place that went
    through int8, or has it, is inexact: it may be read by one request only.

    Attributes:
        num_offloaded, num_uploaded: pages copied so far.
        num_prefill_tokens, num_decode_tokens: computed so far.
    """

    def __init__(self, num_pages: int, page_tokens: int, *, tiers: TierConfig = NO_TIERS) -> None:
        self.page_tokens = page_tokens
        self.num_offloaded = self.num_uploaded = 0
        self.num_prefill_tokens = 0
        self.num_decode_tokens = 0
        self.num_upgraded = self.num_shrunk = 0
        self.num_hidden = self.num_int8 = 0
        self._page_tokens_of = {KvForm.FULL: page_tokens, **tiers.page_tokens_of}
        self._width = max(self._page_tokens_of.values())
        num_places = num_pages * self._width
        self._token = np.full(num_places, -1, dtype=np.int64)
        self._position = np.full(num_places, -1, dtype=np.int64)
        self._form = np.zeros(num_places, dtype=np.int64)
        self._reader = np.full(num_places, EXACT, dtype=np.int64)
        self._pools = [self._token, self._position, self._reader, self._form]
        self._host = np.full((4, tiers.host_pages, self._width), -1, dtype=np.int64)
        self._late: list[Move] = []
        self._seen: tuple[int, list[int], list[list[int]]] = (-1, [], [])

    def run(self, batch: Batch) -> npt.NDArray[np.int64]:
        self._copy(batch.moves)
        for conversion in batch.conversions:
            self._convert(batch, conversion)
        self._check_forms(batch)
        self._check_shape(batch)
        self._check_composition(batch)
        inputs = np.concatenate(
            [batch.tables.last_token[batch.slots[: batch.num_decodes]], batch.prefill_tokens]
        )
        self.num_decode_tokens += batch.num_decodes
        self.num_prefill_tokens += len(batch.prefill_tokens)
        ends = np.cumsum(batch.counts)
        for row in range(len(batch.slots)):  # All rows write before any reads.
            places = self._places(batch, row)[batch.starts[row] :]
            self._token[places] = inputs[ends[row] - batch.counts[row] : ends[row]]
            self._position[places] = np.arange(batch.counts[row]) + batch.starts[row]
            self._form[places] = self._forms_of(batch, row)[batch.starts[row] :]
            self._reader[places] = np.where(self._form[places] == KvForm.INT8, INEXACT, EXACT)
        drawn = [self._draw(batch, row) for row in np.flatnonzero(batch.samples)]
        return np.array(drawn, dtype=np.int64)

    def _copy(self, moves: tuple[Move, ...]) -> None:
        late, self._late = self._late, [move for move in moves if not move.before_step]
        for move in [*late, *(move for move in moves if move.before_step)]:
            device, host = move.device_pages, move.host_pages
            assert len(device) == len(host) == len(set(device.tolist())) == len(set(host.tolist()))
            is_offload = move.direction is Direction.OFFLOAD
            self.num_offloaded += len(host) * is_offload
            self.num_uploaded += len(host) * (not is_offload)
            for flat, kept in zip(self._pools, self._host, strict=True):
                pages = flat.reshape(-1, self._width)
                if is_offload:
                    kept[host] = pages[device]
                else:
                    pages[device] = kept[host]
            if move.int8 and not is_offload:
                self._reader.reshape(-1, self._width)[device] = INEXACT

    def _convert(self, batch: Batch, conversion: Conversion) -> None:
        """K and V of what was hidden, or K and V in 8 bits."""
        before, after = conversion.before, conversion.after
        assert (before, after) in [(KvForm.HIDDEN, KvForm.FULL), (KvForm.FULL, KvForm.INT8)]
        assert not set(conversion.new_pages.tolist()) & set(conversion.old_pages.tolist())
        begin = ALL_KV if after is KvForm.FULL else conversion.start
        assert batch.tables.compact_from[conversion.slot] == begin
        assert batch.tables.forms[conversion.slot] == after
        numbers = np.arange(conversion.num_tokens)
        sources = self._at(conversion.old_pages, numbers, self._page_tokens_of[before])
        targets = self._at(conversion.new_pages, numbers, self._page_tokens_of[after])
        assert (self._form[sources] == before).all()
        assert np.array_equal(self._position[sources], numbers + conversion.start)
        for pool in self._pools:
            pool[targets] = pool[sources]
        self._form[targets] = after
        if after is KvForm.INT8:
            self._reader[targets] = INEXACT
        self.num_upgraded += before is KvForm.HIDDEN
        self.num_shrunk += after is KvForm.INT8

    def _at(
        self, pages: npt.NDArray[np.int32], numbers: npt.NDArray[np.int64], per_page: int
    ) -> npt.NDArray[np.int64]:
        """Where token number i of `pages` lies, for each i of `numbers`."""
        return pages[numbers // per_page].astype(np.int64) * self._width + numbers % per_page

    def _check_forms(self, batch: Batch) -> None:
        tables, slots = batch.tables, batch.slots
        tokens = np.maximum(batch.starts - tables.compact_from[slots], 0)
        is_compact = tables.compact_from[slots] != ALL_KV
        hidden = is_compact & (tables.forms[slots] == KvForm.HIDDEN)
        int8 = is_compact & (tables.forms[slots] == KvForm.INT8)
        assert np.array_equal(is_compact, tables.forms[slots] != KvForm.FULL)
        assert batch.hidden_tokens == tokens[hidden].sum()
        assert batch.int8_tokens == tokens[int8].sum()
        assert batch.num_hidden_decodes == hidden[: batch.num_decodes].sum()
        assert batch.num_int8_decodes == int8[: batch.num_decodes].sum()
        self.num_hidden += int(hidden.sum())
        self.num_int8 += int(int8.sum())

    def _forms_of(self, batch: Batch, row: int) -> npt.NDArray[np.int64]:
        """Of each of a row's tokens."""
        positions = np.arange(batch.starts[row] + batch.counts[row])
        slot = batch.slots[row]
        is_compact = positions >= batch.tables.compact_from[slot]
        return np.where(is_compact, batch.tables.forms[slot], KvForm.FULL)

    def _check_composition(self, batch: Batch) -> None:
        """What an engine may keep while the composition stays: slots, and pages seen before."""
        ends = [len(set((self._places(batch, r) // self._width).tolist())) for r in rows_of(batch)]
        pages = [
            batch.tables.pages[slot, :end].tolist()
            for slot, end in zip(batch.slots, ends, strict=True)
        ]
        composition, slots, before = self._seen
        if batch.composition == composition:
            assert batch.slots.tolist() == slots
            assert [new[: len(old)] for new, old in zip(pages, before, strict=True)] == before
        self._seen = batch.composition, batch.slots.tolist(), pages

    def _places(self, batch: Batch, row: int) -> npt.NDArray[np.int64]:
        """Where the tokens of a row's request lie, up to and with its new ones."""
        positions = np.arange(batch.starts[row] + batch.counts[row])
        slot = batch.slots[row]
        pages, first = batch.tables.pages[slot], int(batch.tables.compact_from[slot])
        kept = self._at(pages, positions[:first], self.page_tokens)
        if len(positions) <= first:
            return kept
        own = pages[first // self.page_tokens :]
        width = self._page_tokens_of[KvForm(batch.tables.forms[slot])]
        return np.append(kept, self._at(own, positions[first:] - first, width))

    def _draw(self, batch: Batch, row: int) -> int:
        places = self._places(batch, row)
        assert np.array_equal(self._position[places], np.arange(len(places)))
        assert np.array_equal(self._form[places], self._forms_of(batch, row))
        slot = batch.slots[row]
        readers = self._reader[places]
        assert set(readers.tolist()) <= {EXACT, INEXACT, int(slot)}, "inexact pages were shared"
        self._reader[places[readers == INEXACT]] = slot
        position = int(batch.tables.output_position[slot])
        return next_token(self._token[places], int(batch.tables.seed[slot]), position)

    def _check_shape(self, batch: Batch) -> None:
        num_rows, num_decodes = len(batch.slots), batch.num_decodes
        assert len(set(batch.slots.tolist())) == num_rows
        assert len(batch.starts) == len(batch.counts) == len(batch.samples) == num_rows
        assert (batch.counts >= 1).all() and (batch.counts[:num_decodes] == 1).all()
        assert batch.samples[:num_decodes].all()
        assert len(batch.prefill_tokens) == batch.counts[num_decodes:].sum()
        assert batch.context_tokens == batch.starts[:num_decodes].sum()


def rows_of(batch: Batch) -> range:
    return range(len(batch.slots))


class StubEngine:
    """Draws token 7 for every row: what remains is the scheduler's own time."""

    def run(self, batch: Batch) -> npt.NDArray[np.int64]:
        return np.full(int(batch.samples.sum()), 7, dtype=np.int64)
