"""How long an agent's environment takes before the next request. Pure."""

from preble_loadgen.workloads.options import Rng


def think_seconds(rng: Rng) -> float:
    """Half a second, and an exponential part of one second on average."""
    return float(0.5 + rng.exponential(1.0))
