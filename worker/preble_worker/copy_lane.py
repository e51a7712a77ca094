"""Copies between device and host memory that run beside the steps.

A lane does one copy after another, in the order in which they were begun. `mark` names the
present end of the lane, `wait` makes everything that is computed from now on see all copies up to
a mark. What was computed before a copy was begun is not disturbed by it.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

COPIES_AHEAD = 4
"""So many offloads may be under way; more would fill the device with copies of its own pages."""


@dataclass(frozen=True, slots=True)
class Copy:
    """`source` to `target`, tensors of one shape and type; one of them on the host."""

    source: Tensor
    target: Tensor


class CopyLane(Protocol):
    """Where copies run."""

    def offload(self, copies: Sequence[Copy]) -> None:
        """Begin to copy what the device has computed so far."""
        ...

    def upload(self) -> AbstractContextManager[Any]:
        """What is done within is done on the lane, behind what the device computes so far."""
        ...

    def mark(self, num_bytes: int) -> Any:
        """The end of the lane. `num_bytes` is what was copied since the last mark."""
        ...

    def wait(self, mark: Any) -> None:
        """Let what follows see all copies before `mark`."""
        ...


class PacedLane:
    """Of a CPU, where "device" and "host" are two places in one memory.

    Copies are done at once and *count* as done when a link of `rate` bytes per second would have
    brought them, so that what depends on them waits as it would on a GPU.

    Args:
        rate: bytes per second, 0 for no limit.
    """

    def __init__(
        self,
        *,
        rate: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._free_at = 0.0

    def offload(self, copies: Sequence[Copy]) -> None:
        for copy in copies:
            copy.target.copy_(copy.source)

    def upload(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def mark(self, num_bytes: int) -> float:
        if self._rate:
            self._free_at = max(self._free_at, self._clock()) + num_bytes / self._rate
        return self._free_at

    def wait(self, mark: float) -> None:
        seconds = mark - self._clock()
        if self._rate and seconds > 0.0:
            self._sleep(seconds)


class CudaLane:
    """A stream of its own. Nobody but the GPU waits, unless offloads pile up."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._offloads: deque[torch.cuda.Event] = deque()

    def offload(self, copies: Sequence[Copy]) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for copy in copies:
                copy.target.copy_(copy.source, non_blocking=True)
                copy.source.record_stream(self._stream)
            self._offloads.append(self._stream.record_event())
        if len(self._offloads) > COPIES_AHEAD:
            self._offloads.popleft().synchronize()

    def upload(self) -> AbstractContextManager[Any]:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        return torch.cuda.stream(self._stream)

    def mark(self, num_bytes: int) -> torch.cuda.Event:
        event: torch.cuda.Event = self._stream.record_event()
        return event

    def wait(self, mark: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(mark)


def make_lane(device: torch.device, *, rate: float) -> CopyLane:
    """The lane that suits `device`; only a CPU's keeps to `rate`."""
    return CudaLane(device) if device.type == "cuda" else PacedLane(rate=rate)
