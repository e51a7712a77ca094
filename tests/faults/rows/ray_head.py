"""A cluster on Ray whose head, which places and restarts actors, is killed."""

import asyncio
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.clusters import FaultyCluster
from faults.load import Load, Questions
from faults.trial import Outcome, Row, Trial, failures

CONCURRENCY = 8
HEAD = "gcs_server"
START_SECONDS = 300.0
END_SECONDS = 60.0


class RayCluster(FaultyCluster):
    """`preble serve --ray local`: Ray's processes are its children."""

    def start_router(self) -> None:
        self._start(
            "serve",
            *("serve", self.model, "--ray", "local", "--workers", str(self.num_workers)),
            *("--engine", "simulated", "--cost-model", str(self._cost)),
            *("--port", str(self.http_port), "--grpc-port", str(self.grpc_port)),
        )

    def start_worker(self, name: str, *options: str) -> None:
        """Ray does it."""

    def wait_ready(self, workers: int, seconds: float = START_SECONDS) -> float:
        return super().wait_ready(workers, seconds)

    def kill_head(self) -> None:
        (head,) = (pid for pid in self.descendants() if _name(pid).startswith(HEAD))
        os.kill(head, signal.SIGKILL)

    def descendants(self) -> list[int]:
        """Of `preble serve`: all of Ray's processes."""
        found = [self.processes["serve"].pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, task.read_text().split())
        return found

    def end(self) -> tuple[int, int]:
        """SIGTERM, as an operator would; its exit status, and how many processes are left."""
        processes = self.descendants()
        self.processes["serve"].terminate()
        status = self.processes["serve"].wait(timeout=END_SECONDS)
        return status, sum(Path(f"/proc/{pid}").exists() for pid in processes)


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text()


@contextmanager
def _cluster(trial: Trial) -> Iterator[RayCluster]:
    trial.say("starting")
    with tempfile.TemporaryDirectory(prefix="faults-") as name, RayCluster(Path(name)) as cluster:
        yield cluster


async def measure(trial: Trial) -> Outcome:
    """For longer than the minute after which Ray's nodes end by default."""
    seconds = trial.pick(75.0, 300.0)
    with _cluster(trial) as cluster:
        load = Load(cluster.url)
        async with load.going_on(Questions(seed=18_000), concurrency=CONCURRENCY):
            await asyncio.sleep(3.0)
            cluster.kill_head()
            trial.say(f"{seconds:.0f} s without a head")
            await asyncio.sleep(seconds)
        load.close()
        status, left = await asyncio.to_thread(cluster.end)
    failed, wrong = len(load.failed), len(load.wrong)
    return Outcome(
        not (failed or wrong or left or status),
        f"{failed} of {len(load.answers)} failed, {wrong} with wrong tokens in {seconds:.0f} s "
        f"without it; then SIGTERM ended all with status {status}, {left} processes left",
        failures(load),
    )


ROW = Row(
    name="ray-head",
    fault="the head of a Ray cluster is killed for good",
    to_reach="serving goes on",
    measure=measure,
    no_peer="does not run on Ray",
)
