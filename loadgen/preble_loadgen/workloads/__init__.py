"""Synthetic workloads, one file each, from statistics alone: no data set is needed. Pure.

tool_use.py, embodied_agent.py, programming.py, video_qa.py and long_documents.py imitate the five
of the published study (arXiv 2407.00023), common_share.py its micro-benchmark; mixed.py puts two
together; hot_prefix.py,
shared_system_prompt.py, quiet_burst.py and families.py are scenarios in which routers are known to
fail; no_sharing.py is the control.

Beside them: options.py (size, variants, the four random streams), prompt_tree.py (prompts as paths
of nodes), keyed.py (preamble, key, leaf), popularity.py, arrival_times.py, in_flight.py.
"""

import xxhash

from preble.errors import ConfigError
from preble_loadgen.traces import Trace
from preble_loadgen.workloads import (
    common_share,
    embodied_agent,
    families,
    hot_prefix,
    long_documents,
    mixed,
    no_sharing,
    programming,
    quiet_burst,
    shared_system_prompt,
    tool_use,
    video_qa,
)
from preble_loadgen.workloads.draft import in_order
from preble_loadgen.workloads.options import VARIANTS, Streams, WorkloadOptions
from preble_loadgen.workloads.workload import Workload

__all__ = ["VARIANTS", "WORKLOADS", "Workload", "WorkloadOptions", "make_workload"]

WORKLOADS = {
    "tool_use": tool_use.WORKLOAD,
    "embodied_agent": embodied_agent.WORKLOAD,
    "programming": programming.WORKLOAD,
    "video_qa": video_qa.WORKLOAD,
    "long_documents": long_documents.WORKLOAD,
    "mixed": mixed.MIXED,
    "mixed_long": mixed.MIXED_LONG,
    "common_share": common_share.WORKLOAD,
    "hot_prefix": hot_prefix.WORKLOAD,
    "shared_system_prompt": shared_system_prompt.WORKLOAD,
    "quiet_burst": quiet_burst.WORKLOAD,
    "families": families.WORKLOAD,
    "no_sharing": no_sharing.WORKLOAD,
}


def make_workload(name: str, options: WorkloadOptions) -> Trace:
    """The trace of the workload `name`; the same options make the same trace.

    Raises:
        ConfigError: there is no such workload, or an option cannot be used with it.
    """
    if name not in WORKLOADS:
        raise ConfigError(f"there is no workload {name!r}; allowed: {', '.join(WORKLOADS)}")
    workload = WORKLOADS[name]
    options.check()
    _check(name, workload, options)
    drafts = workload.drafts(options, Streams.seeded(options.seed))
    return Trace(
        name=name,
        format="preble",
        salt=xxhash.xxh32_intdigest(f"{name} {options.seed}".encode()),
        block_tokens=0,
        requests=in_order(drafts, options.requests),
    )


def _check(name: str, workload: Workload, options: WorkloadOptions) -> None:
    if wrong := sorted(options.variants - workload.variants):
        allowed = ", ".join(v for v in VARIANTS if v in workload.variants) or "none"
        raise ConfigError(f"{name} has no variant {wrong[0]!r}; allowed: {allowed}")
    if options.lengths and not workload.takes_lengths:
        raise ConfigError(f"{name} has lengths of its own; --lengths-from is for no_sharing")
    if options.preamble_tokens is not None and not workload.takes_preamble:
        raise ConfigError(f"{name} has no preamble to size; --preamble-tokens is for programming")
    if options.common_percent is not None and not workload.takes_common:
        raise ConfigError(f"--common-percent means nothing to {name}; it is for common_share")
    if options.arrivals and "bursty" in options.variants:
        raise ConfigError("--arrivals-from and --variant bursty exclude each other")
    if options.arrivals and "bursty" not in workload.variants:
        raise ConfigError(f"{name} waits for answers; --arrivals-from means nothing to it")
    if workload.needs_arrivals and not options.arrivals and "bursty" not in options.variants:
        raise ConfigError(
            f"{name} replays recorded arrivals: name a trace with --arrivals-from, "
            "or take --variant bursty"
        )
