"""What the tests of the global scheduler say and look at."""

from preble.events import CacheEvents, Stored
from preble.page_keys import KEY_BYTES, key_sum
from preble.types import LoadReport
from preble_router.scheduler import GlobalScheduler
from preble_router.stimuli import (
    CacheChanged,
    Progress,
    StepReport,
)
from preble_router.worker_view import WorkerView


def view(scheduler: GlobalScheduler, worker_id: str) -> WorkerView:
    return next(v for v in scheduler.workers() if v.worker_id == worker_id)


def stored(worker_id: str, seq: int, *paths: bytes) -> CacheChanged:
    return CacheChanged(worker_id, CacheEvents(1, seq, tuple(Stored(p) for p in paths)))


def report(worker_id: str, *progress: Progress, **load: int) -> StepReport:
    return StepReport(worker_id=worker_id, load=LoadReport(**load), progress=progress)


def report_holding(worker_id: str, path: bytes, *progress: Progress, **load: int) -> StepReport:
    """A report whose digest says that the worker holds exactly `path`."""
    digest = {"tree_pages": len(path) // KEY_BYTES, "tree_key_sum": key_sum(path)}
    return report(worker_id, *progress, **digest, **load)
