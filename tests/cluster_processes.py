"""A cluster of real processes on loopback, each of which a test may kill.

The processes are started by the command line, as an operator starts them by hand. Logs go to a
directory; the tail of each is shown when something did not come up.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from preble_deploy.lifeline import PARENT_VARIABLE
from preble_deploy.models import resolve_model

READY_SECONDS = 60.0


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class ClusterProcesses:
    """Router and workers as subprocesses; a context manager that leaves nothing running."""

    def __init__(
        self,
        directory: Path,
        *,
        workers: int,
        engine: str = "simulated",
        policy: str = "preble",
        model: str = "demo",
        worker_options: tuple[str, ...] = (),
        router_options: tuple[str, ...] = (),
    ) -> None:
        self.directory = directory
        self.num_workers = workers
        self.model = model
        self.http_port, self.grpc_port = free_ports(2)
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.grpc_address = f"127.0.0.1:{self.grpc_port}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._worker_options = ("--engine", engine, *worker_options)
        self._router_options = ("--policy", policy, *router_options)

    def __enter__(self) -> Self:
        try:
            self.start_router()
            for index in range(self.num_workers):
                self.start_worker(f"w{index}")
            self.wait_ready(self.num_workers)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start_router(self) -> None:
        ports = ("--port", str(self.http_port), "--grpc-port", str(self.grpc_port))
        self._start("router", "router", self.model, *ports, *self._router_options)

    def start_other_router(self) -> str:
        """A second router, which knows no worker yet; its gRPC address."""
        http_port, grpc_port = free_ports(2)
        ports = ("--port", str(http_port), "--grpc-port", str(grpc_port))
        self._start("other-router", "router", self.model, *ports, *self._router_options)
        return f"127.0.0.1:{grpc_port}"

    def start_worker(self, name: str) -> None:
        own = ("--worker-id", name, "--router", self.grpc_address)
        self._start(name, "worker", self.model, *own, *self._worker_options)

    def kill(self, name: str) -> None:
        """`kill -9`, and wait until the process is gone."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def freeze(self, name: str) -> None:
        """SIGSTOP: it does nothing more, and its sockets stay open."""
        self.processes[name].send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """SIGCONT."""
        self.processes[name].send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Terminate everything; kill what has not ended after ten seconds."""
        for process in self.processes.values():
            process.terminate()
            process.send_signal(signal.SIGCONT)  # one that is frozen would not hear of it
        end = time.monotonic() + 10
        for process in self.processes.values():
            try:
                process.wait(timeout=max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()

    def get(self, path: str) -> Any:
        """The JSON answer of a GET on the gateway."""
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.load(answer)

    def workers(self) -> list[dict[str, Any]]:
        """The gateway's view of each worker."""
        return list(self.get("/cluster")["workers"])

    def excluded_tokens(self) -> tuple[int, ...]:
        """Ids the simulated engine never draws: the model's ends of sequence."""
        config = json.loads((resolve_model(self.model) / "generation_config.json").read_text())
        ids = config["eos_token_id"]
        return tuple(ids) if isinstance(ids, list) else (ids,)

    def wait_ready(self, workers: int, seconds: float = READY_SECONDS) -> float:
        """Wait until the router sees `workers` ready ones, and return how long that took."""
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            try:
                states = [worker["state"] for worker in self.workers()]
            except (urllib.error.URLError, OSError):
                states = []
            if states.count("ready") >= workers:
                return time.monotonic() - start
            gone = [name for name, process in self.processes.items() if process.poll() is not None]
            if gone:
                raise RuntimeError(f"{gone} ended:\n{self._tails(gone)}")
            time.sleep(0.05)
        raise TimeoutError(f"not ready after {seconds} s:\n{self._tails(list(self.processes))}")

    async def until(self, condition: Callable[[], bool], seconds: float = 15.0) -> None:
        """Wait until `condition()` holds, without blocking the event loop.

        Raises:
            TimeoutError: it did not within `seconds`.
        """
        async with asyncio.timeout(seconds):
            while True:
                if await asyncio.to_thread(condition):
                    return
                await asyncio.sleep(0.05)

    def _start(self, name: str, *arguments: str) -> None:
        self.start(name, sys.executable, "-m", "preble_deploy", *arguments)

    def start(self, name: str, *command: str) -> None:
        """A process of ours; call it from the main thread, with which it ends at the latest."""
        own = {"OMP_NUM_THREADS": "1", PARENT_VARIABLE: str(os.getpid()), **self.environment(name)}
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **own}
            )

    def environment(self, name: str) -> dict[str, str]:
        """What else the process is started with."""
        return {}

    def _tails(self, names: list[str]) -> str:
        return "\n".join(
            f"--- {name}\n" + (self.directory / f"{name}.log").read_text()[-2000:] for name in names
        )
