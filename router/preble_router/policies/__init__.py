"""Routing policies, one file each. `make_policy` is the only place that knows their names."""

import math
from collections.abc import Callable
from dataclasses import fields

from preble.errors import ConfigError
from preble_router.policies.bounded_hash import BoundedHash
from preble_router.policies.cache_aware import CacheAware
from preble_router.policies.cache_aware_spill import CacheAwareSpill
from preble_router.policies.cache_route import CacheRoute
from preble_router.policies.d2lpm import DoubleDeficit
from preble_router.policies.e2 import E2
from preble_router.policies.kv_cost import KvCost
from preble_router.policies.least_loaded import LeastLoaded
from preble_router.policies.longest_prefix import LongestPrefix
from preble_router.policies.policy import Choice, RoutingPolicy
from preble_router.policies.power_of_two import PowerOfTwo
from preble_router.policies.preble import Preble, PrebleWeights
from preble_router.policies.prefix_random import PrefixRandom
from preble_router.policies.prefix_score import PrefixScore
from preble_router.policies.prefix_score_precise import PrefixScorePrecise
from preble_router.policies.random_choice import RandomChoice
from preble_router.policies.ray_prefix import RayPrefix
from preble_router.policies.round_robin import RoundRobin
from preble_router.policies.sigma_gate import SigmaGate
from preble_router.policies.sticky import Sticky

__all__ = ["POLICY_NAMES", "Choice", "RoutingPolicy", "make_policy"]

_POLICIES: dict[str, Callable[[], RoutingPolicy]] = {
    policy.name: policy
    for policy in (
        RoundRobin,
        RandomChoice,
        LeastLoaded,
        PowerOfTwo,
        Sticky,
        BoundedHash,
        LongestPrefix,
        CacheAware,
        CacheAwareSpill,
        KvCost,
        PrefixScore,
        PrefixScorePrecise,
        SigmaGate,
        PrefixRandom,
        RayPrefix,
        CacheRoute,
        DoubleDeficit,
        E2,
        Preble,
    )
}

POLICY_NAMES: tuple[str, ...] = tuple(_POLICIES)


def make_policy(text: str) -> RoutingPolicy:
    """A fresh policy: its name, and of `preble` its terms' weights, as in "preble:plan=0:delay=2".

    Raises:
        ConfigError: there is no such policy or weight, or a weight is no number.
    """
    name, _, weights = text.partition(":")
    if name not in _POLICIES:
        allowed = ", ".join(POLICY_NAMES)
        raise ConfigError(f"no routing policy is named {name!r}; choose from {allowed}")
    if not weights:
        return _POLICIES[name]()
    if name != Preble.name:
        raise ConfigError(f"{text!r}: only {Preble.name} has weights to set")
    return Preble(PrebleWeights(**dict(_weight(item, text) for item in weights.split(":"))))


def _weight(item: str, text: str) -> tuple[str, float]:
    """One name=number of `text`."""
    name, _, value = item.partition("=")
    allowed = [field.name for field in fields(PrebleWeights)]
    if name not in allowed:
        raise ConfigError(f"{text!r}: {name!r} is no term; choose from {', '.join(allowed)}")
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if not 0.0 <= weight < math.inf:
        raise ConfigError(f"{text!r}: {name} must be a number of at least 0, not {value!r}")
    return name, weight
