"""The local launcher: a router and workers as subprocesses of this one.

The router has fixed ports; workers take any port and announce themselves to it. So each of them
can be started again, in any order, and the others find it. With TLS the workers would have to
trust the router's certificate under the name `localhost`; then they get fixed ports instead, and
the router dials them.
"""

import asyncio
import contextlib
import os
import secrets
import sys
from pathlib import Path

from preble.errors import ConfigError, PrebleError
from preble_deploy.cluster import RUNNING, Progress, endpoint, reachable
from preble_deploy.devices import num_cores, num_workers, visible_gpus
from preble_deploy.gateway_probe import GatewayProbe
from preble_deploy.options import command_line, without_settings
from preble_deploy.ports import choose_ports, free_port
from preble_deploy.settings import LOOPBACK, RouterSettings, ServeSettings, WorkerSettings
from preble_deploy.sources import AnySettings
from preble_deploy.supervision import Program, SupervisedProcess
from preble_deploy.terminal import Terminal

FAILURES_AT_START = 3
"""A process that fails so often before the cluster was ever ready makes us give up."""

KILL_MARGIN_SECONDS = 5.0
"""Beyond its own drain time, what a process gets to end before it is killed."""


class LocalCluster:
    """Implements `preble_deploy.cluster.Cluster`."""

    def __init__(self, settings: ServeSettings, model_path: Path) -> None:
        self._settings = settings
        self._gpus = _gpus(settings)
        self.num_workers = num_workers(settings.workers, self._gpus)
        _check_gpus(settings, self.num_workers, self._gpus)
        ports = choose_ports(settings)
        self.url = endpoint(settings, ports[0])
        self.grpc_address = f"{reachable(settings.host)}:{ports[1]}"
        key = settings.api_key[0] if settings.api_key else ""
        self._probe = GatewayProbe(self.url, key)
        self._programs = _programs(settings, model_path, ports, self.num_workers, self._gpus)
        self.terminal = Terminal([program.name for program in self._programs])
        self._processes: list[SupervisedProcess] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Starts every process; they are restarted from here on."""
        self._processes = [
            SupervisedProcess(program, self.terminal.log) for program in self._programs
        ]
        self._tasks = [asyncio.create_task(process.run()) for process in self._processes]

    async def progress(self) -> Progress:
        """How many workers the router can use.

        Raises:
            PrebleError: a process failed again and again.
        """
        readiness = await self._probe.readiness()
        if readiness.answers and readiness.workers >= self.num_workers:
            return RUNNING
        for process in self._processes:
            if process.failures_in_a_row >= FAILURES_AT_START:
                raise PrebleError(
                    f"{process.program.name} failed {process.failures_in_a_row} times in a row; "
                    "its log lines above say why"
                )
        waiting = f"{readiness.workers} of {self.num_workers} workers ready"
        return Progress(False, waiting if readiness.answers else "starting router and workers")

    async def failure(self) -> None:
        """Waits for a failure that restarting cannot cure, and raises it."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()

    async def stop(self) -> None:
        """Lets running requests end: the router first, so that it still has its workers."""
        router, workers = self._processes[:1], self._processes[1:]
        for group in (router, workers):
            await self._end(group)

    async def kill(self) -> None:
        """Ends everything at once."""
        for process in self._processes:
            process.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _end(self, processes: list[SupervisedProcess]) -> None:
        tasks = [self._tasks[self._processes.index(process)] for process in processes]
        for process in processes:
            process.terminate()
        if not tasks:
            return
        patience = self._settings.drain_seconds + KILL_MARGIN_SECONDS
        _, late = await asyncio.wait(tasks, timeout=patience)
        for process, task in zip(processes, tasks, strict=True):
            if task in late:
                self.terminal.say(f"preble: {process.program.name} did not end; killing it")
            # Also after a clean end: what it started itself must not stay.
            process.kill()
        with contextlib.suppress(PrebleError):
            await asyncio.gather(*tasks)


def _gpus(settings: ServeSettings) -> list[str]:
    uses_gpus = settings.engine == "torch" and settings.device != "cpu"
    return visible_gpus() if uses_gpus else []


def _check_gpus(settings: ServeSettings, workers: int, gpus: list[str]) -> None:
    if gpus and workers > len(gpus) and not settings.kv_cache_tokens:
        raise ConfigError(
            f"--workers is {workers}; allowed: up to {len(gpus)}, the number of visible GPUs, "
            "unless --kv-cache-tokens bounds what each worker takes"
        )
    if ":" in settings.device and workers > 1 and not settings.kv_cache_tokens:
        raise ConfigError(f"--device is {settings.device!r}; allowed with {workers} workers: cuda")


def _programs(
    settings: ServeSettings,
    model_path: Path,
    ports: tuple[int, int],
    workers: int,
    gpus: list[str],
) -> list[Program]:
    """The router's program first, then the workers'."""
    common = {"model": str(model_path), "served_model_name": settings.model_name}
    # Loopback is shared with every user of the machine: where clients need a key, so do we.
    token = settings.worker_token or (secrets.token_urlsafe(24) if settings.api_key else "")
    fixed = [0] * workers
    if settings.tls:
        fixed = [free_port(LOOPBACK, 0, "--port") for _ in range(workers)]
    dialled = tuple(f"{LOOPBACK}:{port}" for port in fixed if port)
    router = _derived(
        RouterSettings,
        settings,
        **common,
        port=ports[0],
        grpc_port=ports[1],
        worker_urls=settings.worker_urls + dialled,
        worker_token=token,
    )
    programs = [_program("router", router, {})]
    for index, port in enumerate(fixed):
        worker = _derived(
            WorkerSettings,
            settings,
            **common,
            host=LOOPBACK,
            port=port,
            worker_id=f"worker-{index}",
            router=() if port else (f"{reachable(settings.host)}:{ports[1]}",),
            router_token=settings.api_key[0] if settings.api_key else "",
            worker_token=token,
            threads=settings.threads or _threads(workers, gpus),
            ssl_certfile=None,
            ssl_keyfile=None,
        )
        device = {"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} if gpus else {}
        programs.append(_program(f"worker-{index}", worker, device))
    return programs


def _threads(workers: int, gpus: list[str]) -> int:
    return 0 if gpus else max(1, num_cores() // workers)


def _derived(kind: type[AnySettings], settings: ServeSettings, **changes: object) -> AnySettings:
    """Settings of one process of the cluster; flags, variables and files are not read again."""
    values = {
        name: getattr(settings, name)
        for name in kind.model_fields
        if hasattr(settings, name) and name != "config"
    }
    return kind.model_construct(**values | changes)


def _program(
    name: str, settings: RouterSettings | WorkerSettings, extra: dict[str, str]
) -> Program:
    arguments, variables = command_line(settings)
    environment = without_settings(dict(os.environ))
    return Program(
        name=name,
        command=(sys.executable, "-m", "preble_deploy", settings.section, *arguments),
        essential=name == "router",
        variables=environment | variables | extra | {"PYTHONUNBUFFERED": "1"},
    )
