"""Local scheduling policies, one pure file each.

A policy orders waiting requests of one priority; some also say which running ones make room for
them. Two rules stand above every policy and are the queue's (`preble_worker.waiting`): higher
priority first, and within a priority whoever waited for `age_escape_seconds` first, unless the
policy states a bound of its own.
"""

from collections.abc import Callable

from preble.errors import ConfigError
from preble_worker.policies.adaptive import Adaptive
from preble_worker.policies.alise import Alise
from preble_worker.policies.dlpm import Dlpm
from preble_worker.policies.edf import Edf
from preble_worker.policies.fcfs import Fcfs
from preble_worker.policies.lpm import Lpm
from preble_worker.policies.mlfq import Mlfq
from preble_worker.policies.policy import (
    Candidate,
    ClassedPolicy,
    LocalPolicy,
    OvertakingPolicy,
    PolicyOptions,
    RunningPolicy,
    WaitEstimator,
)
from preble_worker.policies.preble_groups import PrebleGroups
from preble_worker.policies.srpt import Srpt

_POLICIES: dict[str, Callable[[PolicyOptions], LocalPolicy]] = {
    "fcfs": lambda _: Fcfs(),
    "lpm": lambda _: Lpm(),
    "preble_groups": lambda _: PrebleGroups(),
    "mlfq": Mlfq,
    "srpt": Srpt,
    "alise": Alise,
    "adaptive": Adaptive,
    "dlpm": Dlpm,
    "edf": Edf,
}

POLICY_NAMES: tuple[str, ...] = tuple(_POLICIES)

__all__ = [
    "POLICY_NAMES",
    "Candidate",
    "ClassedPolicy",
    "LocalPolicy",
    "OvertakingPolicy",
    "PolicyOptions",
    "RunningPolicy",
    "WaitEstimator",
    "make_policy",
]


def make_policy(name: str, options: PolicyOptions | None = None) -> LocalPolicy:
    """The policy of that name, with no history.

    Raises:
        ConfigError: there is none.
    """
    if name not in _POLICIES:
        allowed = ", ".join(POLICY_NAMES)
        raise ConfigError(f"policy: there is no local policy {name!r}; allowed are {allowed}")
    return _POLICIES[name](options or PolicyOptions())
