"""Local scheduling policies, one pure file each.

A policy orders waiting requests of one priority. Two rules stand above every policy and are the
queue's (`preble_worker.waiting`): higher priority first, and within a priority whoever waited for
`age_escape_seconds` first.
"""

from preble.errors import ConfigError
from preble_worker.policies.fcfs import Fcfs
from preble_worker.policies.lpm import Lpm
from preble_worker.policies.policy import Candidate, LocalPolicy
from preble_worker.policies.preble_groups import PrebleGroups

_POLICIES: dict[str, type[LocalPolicy]] = {
    "fcfs": Fcfs,
    "lpm": Lpm,
    "preble_groups": PrebleGroups,
}

POLICY_NAMES: tuple[str, ...] = tuple(_POLICIES)

__all__ = ["POLICY_NAMES", "Candidate", "LocalPolicy", "make_policy"]


def make_policy(name: str) -> LocalPolicy:
    """The policy of that name, with no history.

    Raises:
        ConfigError: there is none.
    """
    if name not in _POLICIES:
        allowed = ", ".join(POLICY_NAMES)
        raise ConfigError(f"policy: there is no local policy {name!r}; allowed are {allowed}")
    return _POLICIES[name]()
