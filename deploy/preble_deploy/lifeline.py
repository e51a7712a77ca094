"""A child process that never outlives the process that started it, however that one ends."""

import ctypes
import os
import signal
import sys
import threading
import time

PARENT_VARIABLE = "PREBLE_PARENT_PID"
"""Set by a launcher for its children; holds its process id."""

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 1.0


def end_with_parent() -> None:
    """Asks the system to kill this process when its launcher ends; does nothing without one."""
    parent = int(os.environ.pop(PARENT_VARIABLE, "0") or 0)
    if not parent:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # It ended before we could ask.
        os.kill(os.getpid(), signal.SIGKILL)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
