"""A cluster on Ray whose head, which places and restarts actors, is killed."""

import asyncio
import os
import signal
import tempfile
from pathlib import Path

from faults.clusters import COST
from faults.load import Load, Questions
from faults.trial import Outcome, Row, Trial, failures
from served_cluster import ServedCluster, descendants

CONCURRENCY = 8
BUSY_SHARE_MAX = 0.2
"""Of a core, by a `preble serve` that has only to wait."""
HEAD = "gcs_server"


async def measure(trial: Trial) -> Outcome:
    """For longer than the minute after which Ray's nodes end by default."""
    seconds = trial.pick(75.0, 300.0)
    trial.say("starting")
    with tempfile.NamedTemporaryFile("w") as cost:
        cost.write(COST.to_json())
        cost.flush()
        options = ("--ray", "local", "--workers", "4", "--engine", "simulated")
        with ServedCluster(*options, "--cost-model", cost.name) as cluster:
            load = Load(cluster.url)
            async with load.going_on(Questions(seed=18_000), concurrency=CONCURRENCY):
                await asyncio.sleep(3.0)
                _kill_head()
                trial.say(f"{seconds:.0f} s without a head")
                computed = cluster.cpu_seconds()
                await asyncio.sleep(seconds)
                busy_share = (cluster.cpu_seconds() - computed) / seconds
            load.close()
            status, left = await asyncio.to_thread(cluster.stop)
    failed, wrong = len(load.failed), len(load.wrong)
    return Outcome(
        not (failed or wrong or left or status) and busy_share <= BUSY_SHARE_MAX,
        f"{failed} of {len(load.answers)} failed, {wrong} with wrong tokens in {seconds:.0f} s "
        f"without it, `preble serve` busy {busy_share:.0%}; then Ctrl-C ended all with status "
        f"{status}, {len(left)} processes left",
        failures(load),
    )


def _kill_head() -> None:
    processes = descendants(os.getpid())
    (head,) = (pid for pid in processes if Path(f"/proc/{pid}/comm").read_text()[:-1] == HEAD)
    os.kill(head, signal.SIGKILL)


ROW = Row(
    name="ray-head",
    fault="the head of a Ray cluster is killed for good",
    to_reach="serving goes on",
    measure=measure,
    no_peer="does not run on Ray",
)
