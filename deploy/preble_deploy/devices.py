"""What this machine has to compute on, found out without importing torch."""

import os
from pathlib import Path


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Names of the GPUs as CUDA_VISIBLE_DEVICES takes them; empty where there is none."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",")]
        # CUDA itself stops at the first invalid one; -1 is the usual way to say none.
        return [name for name in names if name and not name.startswith("-")]
    # A container sees only its own here, other than in /proc/driver/nvidia.
    return [str(index) for index, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def num_workers(asked: int | None, gpus: list[str]) -> int:
    """Workers to bring up: as many as asked for, or one per GPU, or one."""
    return asked or len(gpus) or 1
