"""Routing policies, one file each. `make_policy` is the only place that knows their names."""

from collections.abc import Callable

from preble.errors import ConfigError
from preble_router.policies.bounded_hash import BoundedHash
from preble_router.policies.cache_aware import CacheAware
from preble_router.policies.cache_aware_spill import CacheAwareSpill
from preble_router.policies.cache_route import CacheRoute
from preble_router.policies.e2 import E2
from preble_router.policies.kv_cost import KvCost
from preble_router.policies.least_loaded import LeastLoaded
from preble_router.policies.longest_prefix import LongestPrefix
from preble_router.policies.policy import Choice, RoutingPolicy
from preble_router.policies.power_of_two import PowerOfTwo
from preble_router.policies.preble import Preble
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
        E2,
        Preble,
    )
}

POLICY_NAMES: tuple[str, ...] = tuple(_POLICIES)


def make_policy(name: str) -> RoutingPolicy:
    """A fresh policy with its defaults.

    Raises:
        ConfigError: there is no policy of that name.
    """
    try:
        return _POLICIES[name]()
    except KeyError:
        allowed = ", ".join(POLICY_NAMES)
        raise ConfigError(f"no routing policy is named {name!r}; choose from {allowed}") from None
