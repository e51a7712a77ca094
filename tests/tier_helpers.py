"""A scheduler by hand: tests say which request computes, moves or changes its form in each step."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor
from torch_helpers import TINY

from preble_worker.attention import AttentionStep, TorchAttention
from preble_worker.batch import ALL_KV, Batch, Conversion, Direction, Move, SlotTables
from preble_worker.cache_tiers import CacheTiers
from preble_worker.copy_lane import CopyLane, make_lane
from preble_worker.hidden_form import HiddenForm
from preble_worker.host_pool import HostPool
from preble_worker.int8_form import Int8Form
from preble_worker.kv_form import KvForm
from preble_worker.kv_pool import KVPool
from preble_worker.model_runner import ModelRunner
from preble_worker.models.decoder import Decoder
from preble_worker.models.decoder_config import read_decoder_config
from preble_worker.models.model_directory import read_model_config
from preble_worker.weights import Checkpoint

PAGE_TOKENS = 16
NUM_PAGES, HOST_PAGES = 96, 64

EXACT_FORMS = (KvForm.HIDDEN, KvForm.FULL)

MODELS: dict[str, Any] = {
    "llama-2": lambda: transformers.LlamaConfig(**(TINY | {"num_key_value_heads": 4})),
    "qwen3-0.6b": lambda: transformers.Qwen3Config(**TINY, head_dim=32),
    "odd sizes": lambda: transformers.Qwen2Config(
        **(TINY | {"hidden_size": 80, "num_key_value_heads": 4}), head_dim=16
    ),
}
"""With less d_model than 2·n_kv·d_h: 64 and 128; 64 and 128, with norms of queries and keys; 80
and 128, which do not divide, with biases."""


class Recorder:
    """A model that keeps the logits of the last step.

    Attributes:
        alone: what `reference` has computed, by prompt.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.alone: dict[tuple[int, ...], tuple[Stage, Request]] = {}
        self.logits = torch.empty(0)

    def forward(
        self, tokens: Tensor, positions: Tensor, attention: AttentionStep, last: Tensor
    ) -> Tensor:
        self.logits = self.decoder.forward(tokens, positions, attention, last)
        return self.logits


def load_recorder(directory: Path, device: str = "cpu") -> Recorder:
    raw = read_model_config(directory)
    checkpoint = Checkpoint(directory, dtype=torch.float32, device=torch.device(device))
    return Recorder(Decoder(read_decoder_config(raw), checkpoint, num_positions=1024))


@dataclass(eq=False)
class Request:
    """One request: its tokens, and what was computed of them.

    Attributes:
        logits: of each output token.
        shared: pages of another's prefix at the begin of its row.
        host_pages: where its private pages are while it is swapped out.
    """

    slot: int
    tokens: list[int]
    num_prompt: int
    form: KvForm = KvForm.FULL
    compact_from: int = ALL_KV
    shared: int = 0
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    host_pages: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    @property
    def missing(self) -> int:
        return len(self.tokens) - self.computed

    @property
    def output(self) -> list[int]:
        return self.tokens[self.num_prompt :]


class Stage:
    """An engine with its tiers, and the book of its pages.

    Whatever is freed is overwritten with garbage before the next step, so that nothing is read
    that should have been copied; unless it is not `tidy`.
    """

    def __init__(
        self,
        model: Recorder,
        *,
        int8: bool = False,
        lane: CopyLane | None = None,
        tidy: bool = True,
    ) -> None:
        device = model.decoder._head.device
        self.pool = KVPool(
            model.decoder.kv_shapes,
            num_pages=NUM_PAGES,
            page_tokens=PAGE_TOKENS,
            dtype=torch.float32,
            device=device,
        )
        source = model.decoder.hidden_source
        hidden = None if isinstance(source, str) else HiddenForm(self.pool, source)
        lane = lane or make_lane(device, rate=0.0)
        host = HostPool(self.pool, lane, num_pages=HOST_PAGES, int8=int8)
        tiers = CacheTiers(host, hidden, Int8Form(self.pool))
        self.forms = tiers.forms
        self.runner = ModelRunner(
            model,
            TorchAttention(self.pool, dtype=torch.float32, device=device, forms=tiers.forms),
            page_tokens=PAGE_TOKENS,
            device=device,
            tiers=tiers,
        )
        self.tables = SlotTables(16, 64)
        self._model = model
        self._int8 = int8
        self._tidy = tidy
        self._free = list(range(NUM_PAGES))
        self._free_on_host = list(range(HOST_PAGES))
        self._moves: list[Move] = []
        self._conversions: list[Conversion] = []
        self._steps = 0
        self._num_slots = 0
        shape = (NUM_PAGES, self.pool.numbers_per_page)
        self._garbage = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3
        self._garbage = self._garbage.to(device)
        self._freed = list(self._free)
        self._left: list[int] = []

    @property
    def free(self) -> list[int]:
        """Pages that are nobody's, those that are taken first in front."""
        return self._free

    def add(
        self, prompt: list[int], *, form: KvForm = KvForm.FULL, like: Request | None = None
    ) -> Request:
        """A new request; with `like`, it shares that one's full KV pages of equal tokens."""
        request = Request(self._num_slots, list(prompt), len(prompt))
        self._num_slots += 1
        if like is not None:
            known = min(like.computed, like.compact_from, len(prompt) - 1) // PAGE_TOKENS
            assert prompt[: known * PAGE_TOKENS] == like.tokens[: known * PAGE_TOKENS]
            request.shared = known
            request.computed = known * PAGE_TOKENS
            request.pages = like.pages[:known]
        self._set_form(request, form, request.computed)
        return request

    def _set_form(self, request: Request, form: KvForm, start: int) -> None:
        request.form = form
        request.compact_from = ALL_KV if form is KvForm.FULL else start
        self.tables.forms[request.slot] = form
        self.tables.compact_from[request.slot] = request.compact_from

    def offload(self, request: Request, *, before_step: bool) -> None:
        """Its private pages go to the host; the device's are anybody's from then on."""
        private = request.pages[request.shared :]
        if not private:
            return
        request.host_pages = [self._free_on_host.pop(0) for _ in private]
        self._move(Direction.OFFLOAD, private, request.host_pages, before_step)
        request.pages = request.pages[: request.shared]
        self._give_back(private)

    def upload(self, request: Request, *, before_step: bool) -> None:
        """What `offload` took comes back, to other pages."""
        if not request.host_pages:
            return
        pages = [self._free.pop() for _ in request.host_pages]
        self._move(Direction.UPLOAD, pages, request.host_pages, before_step)
        request.pages += pages
        self._free_on_host += request.host_pages
        request.host_pages = []

    def upgrade(self, request: Request) -> None:
        """Its hidden tokens become keys and values."""
        self._convert(request, KvForm.FULL, request.compact_from)

    def end(self, request: Request) -> None:
        """Its private pages are anybody's, with what is in them."""
        self._free[:0] = request.pages[request.shared :]
        request.pages = []

    def shrink(self, request: Request) -> None:
        """What only it has is quantized."""
        self._convert(request, KvForm.INT8, request.shared * PAGE_TOKENS)

    def _convert(self, request: Request, form: KvForm, start: int) -> None:
        before, column = request.form, start // PAGE_TOKENS
        old, num_tokens = request.pages[column:], request.computed - start
        self._set_form(request, form, start)
        if num_tokens <= 0:
            return
        width = PAGE_TOKENS if form is KvForm.FULL else self.forms[form].page_tokens
        new = [self._free.pop() for _ in range(-(-num_tokens // width))]
        request.pages[column:] = new
        self._conversions.append(
            Conversion(
                slot=request.slot,
                before=before,
                after=form,
                start=start,
                num_tokens=num_tokens,
                old_pages=np.array(old, dtype=np.int32),
                new_pages=np.array(new, dtype=np.int32),
            )
        )
        # Moves come before conversions, so nothing may be moved to these in this step.
        self._left += old

    def step(self, *rows: tuple[Request, int]) -> None:
        """Compute so many tokens of each request; 1 of a request with no more is a decode."""
        decodes = [(r, n) for r, n in rows if r.missing == 1 and r.output]
        chunks = [(r, n) for r, n in rows if (r, n) not in decodes]
        rows = (*decodes, *chunks)
        self._steps += 1
        for request, count in rows:
            self._write_row(request, request.computed + count)
        requests = [request for request, _ in rows]
        batch = self._batch(rows, len(decodes))
        self.runner.run(batch)
        drawn = iter(self._model.logits.cpu())
        for request, count in rows:
            request.computed += count
        for request, samples in zip(requests, batch.samples, strict=True):
            if samples:
                logits = next(drawn)
                request.logits.append(logits.clone())
                request.tokens.append(int(logits.argmax()))
        self._overwrite_freed()

    def move_only(self) -> None:
        """A batch without rows."""
        assert len(self.runner.run(self._batch((), 0))) == 0
        self._overwrite_freed()

    def _batch(self, rows: tuple[tuple[Request, int], ...], num_decodes: int) -> Batch:
        starts = [r.computed for r, _ in rows]
        counts = [n for _, n in rows]
        inputs = [
            token
            for request, num in rows[num_decodes:]
            for token in request.tokens[request.computed : request.computed + num]
        ]
        moves, self._moves = tuple(self._moves), []
        conversions, self._conversions = tuple(self._conversions), []
        return Batch(
            step=self._steps,
            slots=np.array([r.slot for r, _ in rows], dtype=np.int64),
            starts=np.array(starts, dtype=np.int64),
            counts=np.array(counts, dtype=np.int64),
            samples=np.array([n == r.missing for r, n in rows], dtype=np.bool_),
            num_decodes=num_decodes,
            prefill_tokens=np.array(inputs, dtype=np.int64),
            tables=self.tables,
            context_tokens=0,
            attention=0.0,
            composition=self._steps,
            moves=moves,
            conversions=conversions,
        )

    def _write_row(self, request: Request, num_tokens: int) -> None:
        kv = min(num_tokens, request.compact_from)
        num_pages = -(-kv // PAGE_TOKENS)
        if num_tokens > request.compact_from:
            width = self.forms[request.form].page_tokens
            num_pages += -(-(num_tokens - request.compact_from) // width)
        while len(request.pages) < num_pages:
            request.pages.append(self._free.pop(0))
        self.tables.pages[request.slot, : len(request.pages)] = request.pages
        self.tables.last_token[request.slot] = request.tokens[-1]

    def _move(
        self, direction: Direction, device: list[int], host: list[int], before_step: bool
    ) -> None:
        self._moves.append(
            Move(
                direction=direction,
                device_pages=np.array(device, dtype=np.int32),
                host_pages=np.array(host, dtype=np.int32),
                int8=self._int8,
                before_step=before_step,
            )
        )

    def _give_back(self, pages: list[int]) -> None:
        self._free += pages
        self._freed += pages

    def _overwrite_freed(self) -> None:
        self._give_back(self._left)
        self._left = []
        pages = [page for page in self._freed if page in self._free and self._tidy]
        index = torch.tensor(pages, dtype=torch.int64, device=self.pool.device)
        self.pool.write(index, self._garbage[: len(pages)])
        self._freed = []


def with_the_tokens_of(expected: Request, request: Request) -> None:
    """Whatever `request` has drawn, its input is that of `expected`, so that every step can be
    compared."""
    request.tokens = expected.tokens[: request.computed + 1]


def reference(model: Recorder, prompt: list[int], num_tokens: int) -> Request:
    """The request alone, whole, in full precision on the device: at least so many tokens."""
    stage, request = model.alone.get(tuple(prompt), (None, None))
    if stage is None or request is None:
        stage = Stage(model)
        request = stage.add(prompt)
        model.alone[tuple(prompt)] = stage, request
    while len(request.output) < num_tokens:
        stage.step((request, request.missing))
    return request


def largest_error(request: Request, expected: Request) -> float:
    """Of the logits, where the outputs so far are the same tokens."""
    num = min(len(request.logits), len(expected.logits))
    ours, theirs = torch.stack(request.logits[:num]), torch.stack(expected.logits[:num])
    return float((ours - theirs).abs().max())


def some_tokens(seed: int, num: int) -> list[int]:
    drawn: npt.NDArray[np.int64] = np.random.default_rng(seed).integers(2, 512, num)
    return [int(token) for token in drawn]
