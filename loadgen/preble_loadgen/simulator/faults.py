"""What goes wrong in a simulation, on request.

    death:W@T[+D]    worker W dies at second T, and comes back empty after D seconds (or never)
    hang:W@T+D       worker W stops turning at T for D seconds; its connection stays
    slow:W@T[+D]xF   worker W takes F times as long from T on, for D seconds (or to the end)
    router@T[+D]     the router restarts at T and is back after D seconds (default 1)
    loss:P           each batch of cache events is lost with probability P
    duplicate:P      each batch of cache events comes twice with probability P
    stale:D          the router's scheduler learns what workers report D seconds late

W counts from 0.
"""

import re
from dataclasses import dataclass
from math import inf

from preble.errors import ConfigError

ROUTER_DOWN_SECONDS = 1.0
"""How long a restart takes unless told otherwise."""

_NUMBER = r"(\d+(?:\.\d*)?)"
_TIMED = re.compile(rf"(death|hang|slow):(\d+)@{_NUMBER}(?:\+{_NUMBER})?(?:x{_NUMBER})?")
_ROUTER = re.compile(rf"router@{_NUMBER}(?:\+{_NUMBER})?")
_WIRE = re.compile(rf"(loss|duplicate|stale):{_NUMBER}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: "death", "hang", "slow", "router", "loss", "duplicate" or "stale".
        worker: index of whom it befalls, for the first three.
        at, seconds: when it begins, and how long it lasts; infinite for ever. The delay of "stale".
        factor: of "slow".
        probability: of "loss" and "duplicate".
    """

    kind: str
    worker: int = 0
    at: float = 0.0
    seconds: float = inf
    factor: float = 1.0
    probability: float = 0.0

    @property
    def ends(self) -> bool:
        """Whether what it broke comes right again."""
        return self.seconds < inf


def parse_fault(text: str) -> Fault:
    """A fault as the head of this file spells it.

    Raises:
        ConfigError: it cannot be understood.
    """
    if (match := _TIMED.fullmatch(text)) and _is_complete(match):
        kind, worker, at, seconds, factor = match.groups()
        return Fault(
            kind=kind,
            worker=int(worker),
            at=float(at),
            seconds=float(seconds or inf),
            factor=float(factor or 1.0),
        )
    if match := _ROUTER.fullmatch(text):
        at, seconds = match.groups()
        return Fault(kind="router", at=float(at), seconds=float(seconds or ROUTER_DOWN_SECONDS))
    if match := _WIRE.fullmatch(text):
        kind, number = match[1], float(match[2])
        if kind == "stale":
            return Fault(kind=kind, seconds=number)
        if number <= 1.0:
            return Fault(kind=kind, probability=number)
    raise ConfigError(
        f"fault {text!r} is none of death:W@T[+D], hang:W@T+D, slow:W@T[+D]xF, router@T[+D], "
        "loss:P, duplicate:P, stale:D (worker W from 0, times in seconds, 0 <= P <= 1)"
    )


def _is_complete(match: re.Match[str]) -> bool:
    """A hang must end, and only "slow" has a factor."""
    kind, _, _, seconds, factor = match.groups()
    return (kind != "hang" or seconds is not None) and (kind == "slow") == (factor is not None)
