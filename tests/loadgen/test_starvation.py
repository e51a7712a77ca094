"""Nobody starves: in an overload the longest wait is within what each local policy promises.

Here for two and a half minutes; tests/bench/bench_starvation.py has half an hour.
"""

from functools import cache

import pytest
from starvation_helpers import bounds, longest_wait, overload

from preble_worker.policies import POLICY_NAMES, adaptive

SECONDS = 150.0


@cache
def fcfs_seconds() -> float:
    return longest_wait("fcfs", overload(SECONDS)).seconds


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_the_longest_wait_is_within_its_bound(policy: str) -> None:
    assert fcfs_seconds() > 40.0, "that is no overload"
    longest = longest_wait(policy, overload(SECONDS))
    assert longest.num_failed == 0
    assert longest.seconds <= bounds(fcfs_seconds(), SECONDS)[policy]


def test_without_its_escape_a_policy_breaks_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptive, "PIN_AFTER_SLOS", 1e9)
    longest = longest_wait("adaptive", overload(SECONDS))
    assert longest.seconds > bounds(fcfs_seconds(), SECONDS)["adaptive"]
