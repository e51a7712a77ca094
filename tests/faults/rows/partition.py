"""Two routers on the same workers, one of which loses half of them without a word.

Router B lives in a network namespace of its own, joined to ours by two pairs of virtual interfaces;
each half of the workers is reached by one. Taking one down drops every packet of that half.

    namespace: router B ══ 10.203.0.0/30 ══ w0 w1 ┐
                        ══ 10.203.1.0/30 ══ w2 w3 ┴ router A
"""

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from faults.clusters import FaultyCluster
from faults.load import Load, Questions
from faults.trial import Outcome, Row, Trial, failures

CONCURRENCY = 24
"""Of each router."""
HALVES = (("w0", "w1"), ("w2", "w3"))
HTTP_PORT, GRPC_PORT = 18_200, 18_201
PARTITION_SECONDS = 10.0


class Network:
    """The namespace and its two ways out."""

    def __init__(self) -> None:
        self.name = f"faults{os.getpid()}"

    def up(self) -> None:
        """Raises `CalledProcessError` where this is not permitted."""
        _ip(f"netns add {self.name}")
        self._inside("link set lo up")
        for half in (0, 1):
            ours, theirs = self._interfaces(half)
            _ip(f"link add {ours} type veth peer name {theirs} netns {self.name}")
            _ip(f"addr add {self.address(half)}/30 dev {ours}")
            _ip(f"link set {ours} up")
            self._inside(f"addr add {self.router_address(half)}/30 dev {theirs}")
            self.join(half)

    def down(self) -> None:
        with suppress(subprocess.CalledProcessError):
            _ip(f"netns del {self.name}")

    def cut(self, half: int) -> None:
        """Packets of that half are dropped, in both directions; nobody is told."""
        self._inside(f"link set {self._interfaces(half)[1]} down")

    def join(self, half: int) -> None:
        self._inside(f"link set {self._interfaces(half)[1]} up")

    def address(self, half: int) -> str:
        """Of the workers of that half."""
        return f"10.203.{half}.1"

    def router_address(self, half: int) -> str:
        """Of router B for them."""
        return f"10.203.{half}.2"

    def _interfaces(self, half: int) -> tuple[str, str]:
        number = os.getpid() % 100_000
        return f"fa{number}{half}", f"fb{number}{half}"

    def _inside(self, command: str) -> None:
        _ip(f"-n {self.name} {command}")


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, capture_output=True)


class TwoRouters(FaultyCluster):
    """Router A as ever, and router B in the namespace."""

    network: Network

    def start_router(self) -> None:
        super().start_router()
        self.start(
            "router-b",
            *("ip", "netns", "exec", self.network.name),
            *(sys.executable, "-m", "preble_deploy", "router", self.model),
            *("--host", "0.0.0.0", "--port", str(HTTP_PORT), "--grpc-port", str(GRPC_PORT)),
            *("--router-id", "b"),
        )

    def start_worker(self, name: str, *options: str) -> None:
        half = 0 if name in HALVES[0] else 1
        address = self.network.address(half)
        routers = (self.grpc_address, f"{self.network.router_address(half)}:{GRPC_PORT}")
        both = [word for router in routers for word in ("--router", router)]
        super().start_worker(name, "--host", address, *both)


@contextmanager
def _cluster(trial: Trial) -> Iterator[TwoRouters]:
    trial.say("starting")
    network = Network()
    try:
        network.up()
        with tempfile.TemporaryDirectory(prefix="faults-") as directory:
            cluster = TwoRouters(Path(directory))
            cluster.network = network
            with cluster:
                yield cluster
    finally:
        network.down()


async def measure(trial: Trial) -> Outcome:
    """Both routers have clients all the time."""
    with _cluster(trial) as cluster:
        a = Load(cluster.url)
        b = Load(f"http://{cluster.network.router_address(0)}:{HTTP_PORT}")
        async with (
            a.going_on(Questions(seed=13_000), concurrency=CONCURRENCY),
            b.going_on(Questions(seed=13_001), concurrency=CONCURRENCY),
        ):
            await asyncio.sleep(4.0)
            trial.say("B is cut off from half of the workers")
            cluster.network.cut(1)
            await asyncio.sleep(PARTITION_SECONDS)
            trial.say("B has them again")
            cluster.network.join(1)
            await asyncio.sleep(6.0)
        a.close()
        b.close()
    stall = max(answer.stall_after(0.0) for answer in b.answers)
    failed = [len(load.failed) + len(load.wrong) for load in (a, b)]
    return Outcome(
        failed == [0, 0],
        f"{failed[0]} of {len(a.answers)} failed through the other, {failed[1]} of "
        f"{len(b.answers)} through the partitioned one, whose streams stood still for "
        f"{stall:.1f} s at most (network namespaces)",
        failures(a, b),
    )


ROW = Row(
    name="partition",
    fault="two routers on the same workers, one partitioned from half of them for 10 s",
    to_reach="0 failed through the other",
    measure=measure,
    no_peer="no two routers that share anything",
)
