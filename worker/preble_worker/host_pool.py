"""Pages in host memory, for what the device has no room for.

A host page holds one device page, all its layers in a row, so that neighbouring pages cross in one
copy. On the device a page lies in as many pieces as there are layers; an offload first gathers
them into a *staging* tensor, which reads the pages in the order of the steps: whoever writes them
next need not wait until they have crossed. An upload crosses into staging and is then scattered.

    device pages ──gather──▶ [quantize] ──▶ staging ═══▶ host pages      offload
    device pages ◀──scatter── [restore] ◀── staging ◀═══ host pages      upload

Moves know nothing of forms: the groups that are quantized are a KV head's key or value where the
page holds those, and as many neighbouring numbers where it holds the hidden form.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from preble_worker.batch import Direction, Move
from preble_worker.copy_lane import Copy, CopyLane
from preble_worker.kv_pool import KVPool
from preble_worker.quantization import Quantized, dequantize, quantize

STAGING_BYTES = 64 << 20
"""Pages cross in portions of about this size."""

SCALE_BYTES = 4


class HostPool:
    """The host's pages, and the copies between them and the device's.

    Attributes:
        bytes_per_page: what one page takes here, and what crosses for it.
    """

    def __init__(self, pool: KVPool, lane: CopyLane, *, num_pages: int, int8: bool) -> None:
        self.bytes_per_page = host_bytes_per_page(pool, int8=int8)
        self._pool = pool
        self._lane = lane
        self._int8 = int8
        self._portion = max(1, STAGING_BYTES // pool.bytes_per_page)
        self._uploaded = lane.mark(0)
        pinned = pool.device.type == "cuda"

        def memory(width: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(num_pages, width, dtype=dtype, pin_memory=pinned)

        numbers = pool.numbers_per_page
        self._parts = [memory(numbers, torch.int8 if int8 else pool.dtype)]
        if int8:
            self._parts.append(memory(numbers // pool.group, torch.float32))

    def begin(self, moves: Sequence[Move]) -> None:
        """Begin `moves`. On return, whatever is computed next sees those that had to come before
        the step, and all that were begun earlier."""
        self._lane.wait(self._uploaded)
        urgent = None
        for move in moves:
            assert move.int8 == self._int8
            if move.direction is Direction.OFFLOAD:
                # It may take what an upload before it in line has brought.
                self._lane.wait(self._uploaded)
                self._offload(move)
                self._lane.mark(len(move.host_pages) * self.bytes_per_page)
                continue
            self._upload(move)
            self._uploaded = self._lane.mark(len(move.host_pages) * self.bytes_per_page)
            if move.before_step:
                urgent = self._uploaded
        if urgent is not None:
            self._lane.wait(urgent)

    def _offload(self, move: Move) -> None:
        for device_pages, host_pages in self._portions(move):
            rows = self._pool.read(device_pages)
            staged = [rows]
            if self._int8:
                quantized = quantize(rows, group=self._pool.group)
                staged = [quantized.codes, quantized.scales]
            copies = [
                Copy(part[rows_of_run], memory[pages])
                for rows_of_run, pages in runs(host_pages)
                for part, memory in zip(staged, self._parts, strict=True)
            ]
            self._lane.offload(copies)

    def _upload(self, move: Move) -> None:
        with self._lane.upload():
            for device_pages, host_pages in self._portions(move):
                staged = [self._fetch(memory, host_pages) for memory in self._parts]
                rows = staged[0]
                if self._int8:
                    rows = dequantize(Quantized(*staged), self._pool.dtype)
                self._pool.write(device_pages, rows)

    def _fetch(self, memory: Tensor, host_pages: npt.NDArray[np.int32]) -> Tensor:
        shape = (len(host_pages), memory.shape[1])
        staged = torch.empty(shape, dtype=memory.dtype, device=self._pool.device)
        for rows_of_run, pages in runs(host_pages):
            staged[rows_of_run].copy_(memory[pages], non_blocking=True)
        return staged

    def _portions(self, move: Move) -> Iterator[tuple[Tensor, npt.NDArray[np.int32]]]:
        for begin in range(0, len(move.host_pages), self._portion):
            some = slice(begin, begin + self._portion)
            pages = torch.from_numpy(move.device_pages[some].astype(np.int64))
            yield pages.to(self._pool.device, non_blocking=True), move.host_pages[some]


def host_bytes_per_page(pool: KVPool, *, int8: bool) -> int:
    """What a host page of `pool` takes."""
    if not int8:
        return pool.bytes_per_page
    return pool.numbers_per_page + pool.numbers_per_page // pool.group * SCALE_BYTES


def runs(pages: npt.NDArray[np.int32]) -> Iterator[tuple[slice, slice]]:
    """Neighbouring pages that follow one another: where in `pages`, and which they are."""
    cuts = (np.flatnonzero(np.diff(pages) != 1) + 1).tolist()
    for begin, end in zip([0, *cuts], [*cuts, len(pages)], strict=True):
        first = int(pages[begin])
        yield slice(begin, end), slice(first, first + end - begin)
