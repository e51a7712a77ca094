"""The Ray launcher: router and workers as detached, named actors, on any number of nodes.

Preble must be installed on every node, in the same version and environment: actors are found by
import, nothing is shipped. The model is found on each node as well: `demo` is made there, a hub
name is downloaded there, a directory must exist there.
"""

import asyncio
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preble.errors import ConfigError, PrebleError
from preble_deploy.cluster import RUNNING, Progress, reachable
from preble_deploy.ports import choose_ports
from preble_deploy.ray_connection import (
    HEADLESS_SECONDS,
    HEADLESS_VARIABLE,
    connect,
    end,
    watch_head,
)
from preble_deploy.settings import ServeSettings
from preble_deploy.terminal import Terminal

KILL_MARGIN_SECONDS = 5.0
"""Beyond its own drain time, what an actor gets to end before it is killed."""
CALL_SECONDS = 2.0


class RayCluster:
    """Implements `preble_deploy.cluster.Cluster`. Connects to Ray when made.

    Made before there is an event loop, because Ray takes the signal handlers of whoever connects.
    """

    def __init__(self, settings: ServeSettings, model_path: Path) -> None:
        assert settings.ray is not None
        self._settings = settings
        # A directory is looked up on other nodes, whose working directory is another.
        self._model = str(model_path) if Path(settings.model).is_dir() else settings.model
        self.terminal = Terminal([])
        self.terminal.step("connecting to Ray")
        wanted = (settings.workers or 1) * settings.ray_num_cpus
        self._ray = connect(settings.ray, namespace=settings.ray_namespace, num_cpus=wanted)
        gpus = self._gpus()
        self.num_workers = settings.workers or gpus or 1
        self._num_gpus = 1 if gpus and settings.engine == "torch" else 0
        self._refuse_second_cluster()
        self._ports = choose_ports(settings)
        self._router: Any = None
        self._workers: list[Any] = []
        self.url = self.grpc_address = ""

    async def start(self) -> None:
        """Creates the actors. Ray starts them when it has room, and again after a crash."""
        await asyncio.to_thread(self._start)

    async def progress(self) -> Progress:
        """How many workers the router can use.

        Raises:
            PrebleError: an actor can never serve.
        """
        return await asyncio.to_thread(self._progress)

    async def failure(self) -> None:
        """Never returns: Ray restarts what fails, as long as it has a head."""
        await watch_head(self._ray.get_runtime_context().gcs_address, self.terminal.say)

    async def stop(self) -> None:
        """Lets running requests end: the router first, so that it still has its workers."""
        patience = self._settings.drain_seconds + KILL_MARGIN_SECONDS
        for group in ([self._router], self._workers):
            await asyncio.to_thread(self._stop, group, patience)

    async def kill(self) -> None:
        """Removes the actors; ends Ray if we started it."""
        await asyncio.to_thread(self._kill)

    def _start(self) -> None:
        from preble_deploy.ray_actors import CALLS_AT_ONCE, RouterActor, WorkerActor

        settings, ray = self._settings, self._ray
        token = settings.worker_token or secrets.token_urlsafe(24)
        common = {
            "namespace": settings.ray_namespace,
            "lifetime": "detached",
            "max_restarts": -1,
            "max_task_retries": 0,
            "max_concurrency": CALLS_AT_ONCE,
        }
        self._router = (
            ray.remote(RouterActor)
            .options(
                name=router_name(settings.name),
                num_cpus=0,
                # Its ports were chosen on this node, and users look for it here.
                scheduling_strategy=self._here(),
                **common,
            )
            .remote(self._router_config(token), self._model)
        )
        for index in range(self.num_workers):
            name = worker_name(settings.name, index)
            config = self._worker_config(index, token)
            self._workers.append(
                ray.remote(WorkerActor)
                .options(
                    name=name,
                    num_cpus=settings.ray_num_cpus,
                    num_gpus=self._num_gpus,
                    # One worker per node first: each then has the node's memory for itself.
                    scheduling_strategy="SPREAD",
                    **common,
                )
                .remote(config, self._model, router_name(settings.name), settings.ray_namespace)
            )

    def _router_config(self, token: str) -> Any:
        settings = self._settings.model_copy(
            update={
                "port": self._ports[0],
                "grpc_port": self._ports[1],
                "worker_token": token,
                "router_id": self._settings.router_id or self._settings.name,
            }
        )
        return settings.router_config(Path())

    def _worker_config(self, index: int, token: str) -> Any:
        settings = self._settings
        threads = settings.threads or max(1, int(settings.ray_num_cpus))
        return settings.worker_config(
            Path(),
            worker_id=f"worker-{index}",
            token=token,
            tls=None,
            threads=0 if self._num_gpus else threads,
        )

    def _here(self) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = self._ray.get_runtime_context().get_node_id()
        return NodeAffinitySchedulingStrategy(node, soft=True)

    def _progress(self) -> Progress:
        router, *workers = self._statuses()
        for status in (router, *workers):
            if status is not None and status.error:
                raise PrebleError(status.error)
        if router is None or not router.address:
            return Progress(False, "starting the router")
        scheme = "https" if self._settings.tls else "http"
        self.url = f"{scheme}://{_from_here(router.address)}"
        self.grpc_address = _from_here(router.grpc_address)
        num_ready = self._ray.get(self._router.num_ready.remote(), timeout=CALL_SECONDS)
        if num_ready >= self.num_workers:
            self._warn_of_short_lives([router, *workers])
            return RUNNING
        missing = sum(status is None for status in workers)
        words = f"{num_ready} of {self.num_workers} workers ready"
        if missing:
            words += f", {missing} wait for Ray to place them ({self._free()} free)"
        return Progress(False, words)

    def _warn_of_short_lives(self, statuses: Sequence[Any]) -> None:
        """The head's end would be the cluster's. Its nodes' options are the operator's."""
        least = min(status.headless_seconds for status in statuses if status is not None)
        if least < HEADLESS_SECONDS:
            self.terminal.say(
                f"preble: serving would end {least} s after Ray's head; set "
                f"{HEADLESS_VARIABLE}={HEADLESS_SECONDS} for every `ray start`"
            )

    def _statuses(self) -> list[Any]:
        """Status per actor, None for those that Ray has not started yet."""
        actors = [self._router, *self._workers]
        calls = [actor.status.remote() for actor in actors]
        ready, _ = self._ray.wait(calls, num_returns=len(calls), timeout=CALL_SECONDS)
        answered = set(ready)
        return [self._answer(call) if call in answered else None for call in calls]

    def _answer(self, call: Any) -> Any:
        """The answer to a call that is over; None from an actor that is being started again."""
        from ray.exceptions import ActorDiedError, ActorUnavailableError

        try:
            return self._ray.get(call)
        except ActorUnavailableError:
            return None
        except ActorDiedError as error:
            # With max_restarts=-1 it dies of its constructor only, or by somebody's hand.
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise PrebleError(f"an actor died: {lines[-1]}") from None

    def _free(self) -> str:
        free = self._ray.available_resources()
        return f"{free.get('CPU', 0):g} CPUs, {free.get('GPU', 0):g} GPUs"

    def _stop(self, actors: Sequence[Any], patience: float) -> None:
        calls = [actor.stop.remote(self._settings.drain_seconds) for actor in actors if actor]
        if calls:
            self._ray.wait(calls, num_returns=len(calls), timeout=patience)

    def _kill(self) -> None:
        for actor in (*self._workers, self._router):
            if actor is not None:
                self._ray.kill(actor, no_restart=True)
        end(self._ray)

    def _gpus(self) -> int:
        if self._settings.device == "cpu" or self._settings.engine != "torch":
            return 0
        return int(self._ray.cluster_resources().get("GPU", 0))

    def _refuse_second_cluster(self) -> None:
        name = router_name(self._settings.name)
        if name in self._names():
            raise ConfigError(
                f"--name is {self._settings.name!r}, a cluster that runs already; choose another, "
                "or remove that one with `preble down`"
            )

    def _names(self) -> set[str]:
        return actor_names(self._ray, self._settings.ray_namespace)


def router_name(cluster: str) -> str:
    """Name of the router's actor."""
    return f"{cluster}-router"


def worker_name(cluster: str, index: int) -> str:
    """Name of a worker's actor."""
    return f"{cluster}-worker-{index}"


def actor_names(ray: Any, namespace: str) -> set[str]:
    """Names of the actors in `namespace`."""
    return {
        entry["name"]
        for entry in ray.util.list_named_actors(all_namespaces=True)
        if entry["namespace"] == namespace
    }


def remove(ray: Any, *, cluster: str, namespace: str) -> int:
    """Kills all actors of a cluster; returns how many there were."""
    names = [
        name
        for name in sorted(actor_names(ray, namespace))
        if name == router_name(cluster) or name.startswith(worker_name(cluster, 0)[:-1])
    ]
    for name in names:
        ray.kill(ray.get_actor(name, namespace=namespace), no_restart=True)
    return len(names)


def _from_here(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"{reachable(host)}:{port}"
