"""Four simulated workers behind a router, ours or another's: what a fault is done to.

ours     client ── preble router ══ gRPC ══ worker w0 … w3
a peer   client ── its router ── HTTP ── OpenAI front and worker w0 … w3, a process each
"""

import json
import os
import resource
import sys
import time
import urllib.request
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from cluster_processes import ClusterProcesses, free_ports
from faults.clock_shift import ShiftedClocks

from preble.cost import CostModel

COST = CostModel(
    name="20 ms",
    fixed=0.017,
    per_prefill_token=2e-5,
    per_attention=0.0,
    per_decode=2.5e-4,
    per_context_token=0.0,
)
"""A step takes 20 ms with 12 requests. Were it 20 ms with any number, it would be right to send all
to one worker."""
TESTS = Path(__file__).parent.parent
WORKER = str(Path(__file__).with_name("worker_process.py"))
END_WITH_PARENT = """
import runpy
from ctypes import CDLL
CDLL(None).prctl(1, 9)
runpy.run_module("sglang_router.launch_router", run_name="__main__", alter_sys=True)
"""
"""Sets what `preble_deploy.lifeline` sets, in an environment that has no Preble."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A worker, as the router in front of it sees it."""

    state: str
    live_requests: int
    placed_total: int
    held_pages: int
    tree_pages: int
    silent_seconds: float

    @classmethod
    def of(cls, worker: dict[str, Any]) -> "Seen":
        return cls(
            worker["state"],
            worker["live_requests"],
            worker["placed_requests_total"],
            worker["held_pages"],
            (worker["load"] or {}).get("tree_pages", 0),
            worker["silent_seconds"],
        )


class FaultyCluster(ClusterProcesses):
    """Workers that misbehave when told to. Ours; `PeerCluster` is the same behind another router.

    Args:
        options: of `worker_process.py`.
        shifted_clocks: its processes' wall clocks can be moved.
    """

    system = "preble"

    def __init__(
        self,
        directory: Path,
        *,
        workers: int = 4,
        options: tuple[str, ...] = (),
        router_options: tuple[str, ...] = (),
        cost: CostModel = COST,
        shifted_clocks: bool = False,
    ) -> None:
        super().__init__(directory, workers=workers, router_options=router_options)
        self.names = tuple(f"w{index}" for index in range(workers))
        self._cost = directory / "cost.json"
        self._cost.write_text(cost.to_json())
        self._own_options = options
        self._clocks = ShiftedClocks(directory) if shifted_clocks else None

    def start_worker(self, name: str, *options: str) -> None:
        self.start(
            name,
            *(sys.executable, WORKER, "--name", name, "--directory", str(self.directory)),
            *("--cost-model", str(self._cost)),
            *(options or ("--router", self.grpc_address)),
            *self._own_options,
        )

    def environment(self, name: str) -> dict[str, str]:
        path = os.pathsep.join((str(TESTS), os.environ.get("PYTHONPATH", "")))
        return {"PYTHONPATH": path} | (self._clocks.environment(name) if self._clocks else {})

    def shift_clock(self, name: str, seconds: int) -> None:
        """The wall clock of that process is so many seconds ahead from now on."""
        assert self._clocks is not None
        self._clocks.shift(name, seconds)

    def seen(self) -> dict[str, Seen]:
        """Every worker the router knows, by name; where it was before does not count."""
        found = sorted(self.workers(), key=lambda each: each["state"] != "unreachable")
        return {each["worker_id"]: Seen.of(each) for each in found if each["worker_id"]}

    def busiest(self) -> str:
        seen = self.seen()
        return max(sorted(seen), key=lambda name: seen[name].live_requests)

    def num_descriptors(self, name: str) -> int:
        """Open files and sockets of that process."""
        return len(list(Path(f"/proc/{self.processes[name].pid}/fd").iterdir()))

    def num_tasks(self) -> int:
        """asyncio tasks of the router; 0 of a peer's, which has none."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        found = [line.split()[1] for line in lines if line.startswith("preble_router_tasks ")]
        return int(float(found[0]))

    def lost(self) -> list[str]:
        """Workers whose processes have ended by themselves."""
        return [name for name in self.names if self.processes[name].poll() is not None]

    def block(self, name: str) -> None:
        """Its step loop stands still; its sockets answer on."""
        (self.directory / f"{name}.blocked").touch()

    def unblock(self, name: str) -> None:
        (self.directory / f"{name}.blocked").unlink()

    def leak(self, name: str, *, most: int) -> None:
        """It keeps a MiB for good with each step, and may have so many bytes more."""
        pid = self.processes[name].pid
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
        limit = pages * resource.getpagesize() + most
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, hard))
        (self.directory / f"{name}.leak").touch()

    def stop_leak(self, name: str) -> None:
        """Who is started by that name from now on leaks nothing."""
        (self.directory / f"{name}.leak").unlink()

    def slow(self, name: str, factor: float) -> None:
        """Its steps take as many times longer; 1 cures it."""
        (self.directory / f"{name}.slow").write_text(str(factor))

    def garble(self, share: float) -> None:
        """From now on each of `garbled_events.FAULTS` happens to that share of all workers' batches
        of events; 1 loses all of them."""
        for name in self.names:
            (self.directory / f"{name}.garble").write_text(str(share))

    def garbled(self) -> list[tuple[str, float]]:
        """What happened, and when on `time.monotonic`."""
        records = self.directory.glob("*.garbled")
        lines = [line.split() for record in records for line in record.read_text().splitlines()]
        return sorted(((what, float(at)) for what, at in lines), key=itemgetter(1))

    def poison(self, prompt_hash: int) -> None:
        """Whoever computes this prompt dies of it."""
        (self.directory / "poison").write_text(str(prompt_hash))


class PeerCluster(FaultyCluster):
    """The same workers behind `sglang-router`, each with a small OpenAI front of its own.

    Its options are its defaults, but that it looks for starting workers every second.

    Args:
        environment: the virtual environment in which it is installed.
    """

    system = "sglang-router"

    def __init__(self, directory: Path, *, environment: Path, **options: Any) -> None:
        super().__init__(directory, **{**options, "router_options": ()})
        self._python = str(environment / "bin" / "python")
        self._metrics_port, *ports = free_ports(1 + len(self.names))
        self._ports = dict(zip(self.names, ports, strict=True))

    def num_tasks(self) -> int:
        return 0

    def start_router(self) -> None:
        urls = [f"http://127.0.0.1:{port}" for port in self._ports.values()]
        self.start(
            "router",
            *(self._python, "-c", END_WITH_PARENT),
            *("--host", "127.0.0.1", "--port", str(self.http_port)),
            *("--prometheus-port", str(self._metrics_port)),
            *("--worker-startup-check-interval", "1"),
            *("--worker-urls", *urls),
        )

    def start_worker(self, name: str, *options: str) -> None:
        super().start_worker(name, "--http-port", str(self._ports[name]))

    def workers(self) -> list[dict[str, Any]]:
        """Asked of the workers themselves: their router has no such list of theirs."""
        found: list[dict[str, Any]] = []
        for port in self._ports.values():
            try:
                url = f"http://127.0.0.1:{port}/cluster"
                with urllib.request.urlopen(url, timeout=2) as answer:
                    found += json.load(answer)["workers"]
            except OSError:
                continue
        return found

    def wait_ready(self, workers: int, seconds: float = 60.0) -> float:
        """Also until the router has taken them all in."""
        start = time.monotonic()
        super().wait_ready(workers, seconds)
        while time.monotonic() - start < seconds:
            try:
                listed = self.get("/workers")["workers"]
            except OSError:
                listed = []
            if sum(worker["is_healthy"] for worker in listed) >= workers:
                return time.monotonic() - start
            time.sleep(0.2)
        raise TimeoutError(f"sglang-router has not taken in {workers} workers")
