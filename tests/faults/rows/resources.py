"""The router's journal finds the disk full; the router runs out of descriptors."""

import asyncio
import resource
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.load import Load, Questions
from faults.trial import Outcome, Row, Trial, failures

CONCURRENCY = 40
DISK = "128k"
SPARE_DESCRIPTORS = 4
IDLE_CLIENTS = 60
WITHOUT_SECONDS = 5.0


async def measure_disk(trial: Trial) -> Outcome:
    """A journal on a file system that is full after a second."""
    with _small_disk() as disk, trial.cluster(router_options=("--journal", f"{disk}/j")) as cluster:
        load = Load(cluster.url)
        async with load.going_on(Questions(seed=14_000), concurrency=CONCURRENCY):
            await asyncio.sleep(trial.pick(6.0, 15.0))
        size = sum(file.stat().st_size for file in disk.iterdir())
        load.close()
    failed = len(load.failed) + len(load.wrong)
    return Outcome(
        not failed,
        f"{failed} of {len(load.answers)} failed; the journal ended at {size // 1024} KiB",
        failures(load),
    )


@contextmanager
def _small_disk() -> Iterator[Path]:
    """Raises `CalledProcessError` where mounting is not permitted."""
    with tempfile.TemporaryDirectory(prefix="faults-disk-") as name:
        mount = ("mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", name)
        subprocess.run(mount, check=True, capture_output=True)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "-l", name], check=True)


async def measure_descriptors(trial: Trial) -> Outcome:
    """Clients that only connect take what is left; those that are there go on."""
    with trial.cluster() as cluster:
        load, late = Load(cluster.url), Load(cluster.url)
        questions = Questions(seed=14_001)
        async with load.going_on(questions, concurrency=CONCURRENCY):
            await asyncio.sleep(3.0)
            pid = cluster.processes["router"].pid
            _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            limit = cluster.num_descriptors("router") + SPARE_DESCRIPTORS
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))
            trial.say("no descriptors left")
            address = ("127.0.0.1", cluster.http_port)
            idle = [socket.create_connection(address) for _ in range(IDLE_CLIENTS)]
            await asyncio.sleep(WITHOUT_SECONDS)
            for each in idle:
                each.close()
            ended_at = time.perf_counter()
            while (await late.ask(questions.make(max_tokens=4))).failed:
                await asyncio.sleep(0.05)
            recovery = time.perf_counter() - ended_at
        load.close()
        late.close()
    failed = len(load.failed) + len(load.wrong)
    return Outcome(
        not failed and recovery <= 2.0,
        f"{failed} of {len(load.answers)} failed; a new client was served {recovery:.2f} s after",
        failures(load),
    )


DISK_FULL = Row(
    name="disk",
    fault="the disk of the router's journal is full",
    to_reach="0 failed by it",
    measure=measure_disk,
    no_peer="keeps no journal",
)
DESCRIPTORS = Row(
    name="descriptors",
    fault="the router has no descriptors left for 5 s",
    to_reach="0 failed by it; recovery ≤ 2 s",
    measure=measure_descriptors,
)
