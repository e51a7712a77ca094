"""Pages that cross to host memory and back, exact or in 8 bits, and when they count as there."""

import numpy as np
import pytest
import torch

from preble_worker.batch import Direction, Move
from preble_worker.copy_lane import PacedLane
from preble_worker.host_pool import HostPool, runs
from preble_worker.kv_pool import KVPool, KVShape
from preble_worker.quantization import dequantize, quantize

SHAPES = [KVShape(2, 8, 8), KVShape(2, 16, 8)]


def make_pool(dtype: torch.dtype = torch.float32) -> KVPool:
    pool = KVPool(SHAPES, num_pages=20, page_tokens=4, dtype=dtype, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20, pool.numbers_per_page, generator=generator)
    pool.write(torch.arange(20), rows.to(dtype))
    return pool


def move(
    direction: Direction,
    device: list[int],
    host: list[int],
    *,
    int8: bool = False,
    before_step: bool = True,
) -> Move:
    return Move(
        direction=direction,
        device_pages=np.array(device, dtype=np.int32),
        host_pages=np.array(host, dtype=np.int32),
        int8=int8,
        before_step=before_step,
    )


class Watch:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def lane(self, rate: float) -> PacedLane:
        return PacedLane(rate=rate, clock=lambda: self.now, sleep=self.sleep)


def test_what_is_written_is_read() -> None:
    """A page's row holds exactly what attention gathers of it."""
    pool = make_pool()
    row = pool.read(torch.tensor([7]))[0]
    gathered = [part.flatten() for i in range(2) for part in pool.gather(i, torch.tensor([7]))]
    assert torch.equal(row, torch.cat(gathered))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pages_come_back_where_they_are_sent(dtype: torch.dtype) -> None:
    pool = make_pool(dtype)
    host = HostPool(pool, Watch().lane(0.0), num_pages=12, int8=False)
    before = pool.read(torch.arange(20))
    there, here = [3, 4, 5, 9, 1], [11, 12, 13, 2, 19]
    host.begin([move(Direction.OFFLOAD, there, [7, 8, 0, 1, 11])])
    pool.write(torch.tensor(there), torch.zeros(5, pool.numbers_per_page, dtype=dtype))
    host.begin([move(Direction.UPLOAD, here, [7, 8, 0, 1, 11])])
    after = pool.read(torch.arange(20))
    assert torch.equal(after[here], before[there])
    untouched = [page for page in range(20) if page not in (*there, *here)]
    assert torch.equal(after[untouched], before[untouched])


def test_int8_keeps_each_head_of_each_token_within_half_a_scale() -> None:
    pool = make_pool()
    # One token's values are a thousand times as large: only its own codes may be coarse.
    rows = pool.read(torch.tensor([3]))
    rows[0, : pool.group] *= 1000
    pool.write(torch.tensor([3]), rows)
    host = HostPool(pool, Watch().lane(0.0), num_pages=4, int8=True)
    host.begin([move(Direction.OFFLOAD, [3], [2], int8=True)])
    host.begin([move(Direction.UPLOAD, [6], [2], int8=True)])
    groups = rows.view(-1, pool.group)
    error = (pool.read(torch.tensor([6])).view(-1, pool.group) - groups).abs().amax(dim=1)
    assert pool.group == 8
    assert (error <= groups.abs().amax(dim=1) / 254 * 1.001).all()
    assert host.bytes_per_page < pool.bytes_per_page / 2


def test_quantizing_nothing_gives_nothing() -> None:
    zeros = torch.zeros(2, 16)
    assert torch.equal(dequantize(quantize(zeros, group=8), torch.float32), zeros)


def test_a_step_waits_only_for_what_it_needs() -> None:
    pool, watch = make_pool(), Watch()
    page = pool.bytes_per_page
    host = HostPool(pool, watch.lane(rate=float(page)), num_pages=12, int8=False)
    host.begin([move(Direction.OFFLOAD, [1, 2, 3], [0, 1, 2])])
    assert watch.now == 100.0  # Nobody waits for pages that leave: 3 s.
    host.begin([move(Direction.UPLOAD, [5], [0], before_step=False)])
    assert watch.now == 100.0  # Runs beside the step, behind what left.
    host.begin([])
    assert watch.now == 104.0
    host.begin([move(Direction.UPLOAD, [6, 7], [1, 2])])
    assert watch.now == 106.0
    host.begin([])
    assert watch.now == 106.0


def test_a_step_does_not_wait_for_what_comes_after_what_it_needs() -> None:
    pool, watch = make_pool(), Watch()
    host = HostPool(pool, watch.lane(float(pool.bytes_per_page)), num_pages=12, int8=False)
    later = move(Direction.UPLOAD, [7, 8], [1, 2], before_step=False)
    host.begin([move(Direction.UPLOAD, [6], [0]), later])
    assert watch.now == 101.0
    host.begin([])
    assert watch.now == 103.0


def test_runs_are_neighbours_in_both() -> None:
    pages = np.array([4, 5, 6, 2, 9, 10], dtype=np.int32)
    found = [(where.start, where.stop, page.start, page.stop) for where, page in runs(pages)]
    assert found == [(0, 3, 4, 7), (3, 4, 2, 3), (4, 6, 9, 11)]
