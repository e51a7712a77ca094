"""Every input of a scheduler as a line of JSON, and the same placements from those lines again.

A scheduler is pure: the same inputs at the same times with the same luck make the same placements.
The first line of a journal says how the scheduler was made, luck included; each further line is an
input with its time, and after each `place` the placement that came of it. Replayed under another
policy the lines show what that policy would have decided; what the workers then report is still
what happened under the first, so the longer the replay, the less it proves.

    {"scheduler": {"policy": "preble", "page_tokens": 16, ..., "luck": [...]}}
    {"at": 12.5, "RouteRequest": {"request_id": "r1", "page_keys": "<hex>", ...}}
    {"at": 12.5, "Placement": {"request_id": "r1", "worker_id": "w3", ...}}
    {"at": 12.6, "StepReport": {...}}
    {"at": 13.0, "tick": {}}
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

from preble.cost import CostModel
from preble.errors import NoWorkers, Overloaded, PeerError
from preble.events import CacheEvents, CacheSnapshot, Evicted, Stored
from preble.types import LoadReport, WorkerSpec
from preble_router.booking import EXPECTED_SECONDS
from preble_router.cluster_tree import MAX_TREE_PAGES
from preble_router.policies import RoutingPolicy, make_policy
from preble_router.scheduler import GlobalScheduler, Input
from preble_router.stimuli import (
    CacheChanged,
    Placement,
    Progress,
    RequestFailed,
    RequestFinished,
    RouteRequest,
    SnapshotReceived,
    StepReport,
    WorkerDrained,
    WorkerJoined,
    WorkerLost,
    WorkerSuspended,
)

Line = dict[str, Any]

_TYPES: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        CacheChanged,
        CacheEvents,
        CacheSnapshot,
        CostModel,
        Evicted,
        LoadReport,
        Placement,
        Progress,
        RequestFailed,
        RequestFinished,
        RouteRequest,
        SnapshotReceived,
        StepReport,
        Stored,
        WorkerDrained,
        WorkerJoined,
        WorkerLost,
        WorkerSpec,
        WorkerSuspended,
    )
}


class Journal:
    """Writes lines through `write`; pass it as `record` to the scheduler that `start` makes."""

    def __init__(self, write: Callable[[Line], None]) -> None:
        self._write = write

    def start(
        self,
        policy: RoutingPolicy,
        *,
        rng: random.Random,
        page_tokens: int = 16,
        window_seconds: float = 180.0,
        expected_seconds: float = EXPECTED_SECONDS,
        max_tree_pages: int = MAX_TREE_PAGES,
    ) -> GlobalScheduler:
        """A scheduler whose inputs are written from the first on."""
        version, state, gauss = rng.getstate()
        options = {
            "page_tokens": page_tokens,
            "window_seconds": window_seconds,
            "expected_seconds": expected_seconds,
            "max_tree_pages": max_tree_pages,
        }
        luck = [version, list(state), gauss]
        self._write({"scheduler": {"policy": policy.name, **options, "luck": luck}})
        return GlobalScheduler(
            policy,
            rng=rng,
            page_tokens=page_tokens,
            window_seconds=window_seconds,
            expected_seconds=expected_seconds,
            max_tree_pages=max_tree_pages,
            record=self,
        )

    def __call__(self, at: float, value: Input | Placement) -> None:
        if value is None:
            self._write({"at": at, "tick": {}})
        else:
            (name, content) = next(iter(_encode(value).items()))
            self._write({"at": at, name: content})


def placements(lines: Iterable[Line]) -> list[Placement]:
    """The placements that were made when `lines` were written."""
    return [_decode({"Placement": line["Placement"]}) for line in lines if "Placement" in line]


def replay(lines: Iterable[Line], policy: RoutingPolicy | None = None) -> list[Placement]:
    """Feed the inputs of `lines` to a new scheduler; the placements it makes.

    With `policy` None the policy is the recorded one with its defaults. A request that nobody could
    take makes no placement, then as now.
    """
    lines = iter(lines)
    options = dict(next(lines)["scheduler"])
    name, (version, state, gauss) = options.pop("policy"), options.pop("luck")
    rng = random.Random()
    rng.setstate((version, tuple(state), gauss))
    scheduler = GlobalScheduler(policy or make_policy(name), rng=rng, **options)
    made: list[Placement] = []
    for line in lines:
        now = line["at"]
        if "tick" in line:
            scheduler.tick(now=now)
        elif "Placement" not in line:
            made.extend(_give(scheduler, _decode(_without(line, "at")), now))
    return made


def _give(scheduler: GlobalScheduler, value: Any, now: float) -> list[Placement]:
    """One input; the faults that its first recipient raised are raised again, and mean the same."""
    try:
        if isinstance(value, RouteRequest):
            return [scheduler.place(value, now=now)]
        scheduler.observe(value, now=now)
    except (NoWorkers, Overloaded, PeerError):
        pass
    return []


def _without(line: Line, key: str) -> Line:
    return {name: value for name, value in line.items() if name != key}


def _encode(value: Any) -> Any:
    """JSON for our frozen dataclasses: {type name: fields}; bytes in hex, sets sorted."""
    kind = type(value)
    if kind.__name__ in _TYPES:
        return {kind.__name__: {f.name: _encode(getattr(value, f.name)) for f in fields(kind)}}
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, frozenset):
        return {"set": sorted(value)}
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    (name, content) = next(iter(value.items()))
    if name == "hex":
        return bytes.fromhex(content)
    if name == "set":
        return frozenset(content)
    return _TYPES[name](**{key: _decode(item) for key, item in content.items()})
