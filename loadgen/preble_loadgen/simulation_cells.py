"""Several simulations at once, each in a process of its own: the cells of a comparison."""

import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from ctypes import c_int64
from dataclasses import dataclass
from typing import Any

from preble.errors import PrebleError
from preble_loadgen.simulator import SimulationOptions, SimulationResult, simulate
from preble_loadgen.trace_request import TraceRequest

POLL_SECONDS = 0.2

GC_THRESHOLD = 200_000
"""Trees make many objects and hardly a cycle: looking for some more seldom saves a few percent."""

_counts: Any = None


class CellFailed(PrebleError):
    """The process of a cell ended before its simulation did."""

    code = "cell_failed"


@dataclass(frozen=True, slots=True)
class Load:
    """What every cell is given.

    Attributes:
        arrivals: of each of `requests`, in seconds.
        salt: of the trace.
    """

    requests: Sequence[TraceRequest]
    arrivals: Sequence[float]
    salt: int = 0


@dataclass(frozen=True, slots=True)
class CellResult:
    """`wall_seconds` is what the simulation took here."""

    result: SimulationResult
    wall_seconds: float


def run_cells(
    load: Load,
    cells: Sequence[SimulationOptions],
    *,
    jobs: int,
    on_progress: Callable[[list[int]], None] = lambda counts: None,
) -> list[CellResult]:
    """Simulate all `cells`, `jobs` at a time.

    Args:
        on_progress: is told, a few times a second, how many requests have ended in each cell.

    Raises:
        ConfigError: a cell's options cannot be used.
        CellFailed: a process was ended from outside, for want of memory for instance.
    """
    processes = multiprocessing.get_context("spawn")
    counts = processes.RawArray(c_int64, len(cells))
    pool = ProcessPoolExecutor(
        max_workers=min(jobs, len(cells)),
        mp_context=processes,
        initializer=_share,
        initargs=(counts,),
    )
    try:
        futures = [pool.submit(_run_cell, load, cell, index) for index, cell in enumerate(cells)]
        _wait(futures, lambda: on_progress(list(counts)))
        return [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise CellFailed("a simulation's process was ended; is there enough memory?") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _wait(futures: Sequence[Future[CellResult]], report: Callable[[], None]) -> None:
    """Until all are done or one has failed."""
    while not all(future.done() for future in futures):
        if any(future.done() and future.exception() for future in futures):
            return
        report()
        time.sleep(POLL_SECONDS)
    report()


def _share(counts: Any) -> None:
    """In each process, before its first cell: where to count."""
    global _counts
    _counts = counts
    begin_process()


def begin_process() -> None:
    """Settle a process that runs cells: it never outlives the one that started it, however that
    one ends; the pool's own processes would wait for work for ever.
    """
    gc.set_threshold(GC_THRESHOLD)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _run_cell(load: Load, options: SimulationOptions, index: int) -> CellResult:
    def count(num_ended: int) -> None:
        _counts[index] = num_ended

    began_at = time.perf_counter()
    result = simulate(load.requests, options, arrivals=load.arrivals, salt=load.salt, on_end=count)
    return CellResult(result, time.perf_counter() - began_at)
