"""`preble serve --ray` on a Ray cluster of three nodes, as an operator runs it."""

import asyncio
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar

import pytest

from preble.errors import PrebleError
from preble_deploy import ray_connection
from preble_deploy.ray_connection import POLL_PAUSE_SECONDS, connect, pause_without_head

pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(1800)
"""Ray starts some twenty processes, each of which imports much."""

PREBLE = (sys.executable, "-m", "preble_deploy")
NAMESPACE = "preble-test"
PATIENCE_SECONDS = 400.0
NODE = {"num_cpus": 2, "object_store_memory": 80 * 1024 * 1024}
RAY_START_TRIES = 5

Result = TypeVar("Result")


def until(ask: Callable[[], Result | None]) -> Result:
    """The first answer that is not None or false."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while True:
        if answer := ask():
            return answer
        assert time.monotonic() < give_up_at, "the cluster did not get there"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    import ray

    cluster = started(nodes=3)
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


def started(nodes: int) -> Any:
    """A `ray.cluster_utils.Cluster`.

    Ray gives a node 30 s to come up and raises a bare exception then: too soon for a busy machine.
    """
    import psutil
    from ray.cluster_utils import Cluster

    others = set(psutil.Process().children(recursive=True))
    tries_left = RAY_START_TRIES
    while True:
        cluster = Cluster()
        try:
            cluster.add_node(**NODE, include_dashboard=False)
            for _ in range(nodes - 1):
                cluster.add_node(**NODE)
        except Exception:
            cluster.shutdown()
            for process in set(psutil.Process().children(recursive=True)) - others:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            tries_left -= 1
            if not tries_left:
                raise
        else:
            return cluster


class Served:
    """`preble serve --ray` in a subprocess, and what it printed."""

    def __init__(self, address: str, *options: str) -> None:
        self.process = subprocess.Popen(
            [
                *(*PREBLE, "serve", "--ray", address, "--ray-namespace", NAMESPACE),
                *("--engine", "simulated", "--port", "0", *options),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._queue: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.url = until(self._find_url)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line.rstrip())

    def _find_url(self) -> str | None:
        while not self._queue.empty():
            self.lines.append(self._queue.get())
        assert self.process.poll() is None, "\n".join(self.lines)
        return next((x.split()[-1] for x in self.lines if "OpenAI API" in x), None)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url.removesuffix("/v1") + path, timeout=60) as answer:
            return json.load(answer)

    def complete(self, prompt: str) -> dict[str, Any]:
        body = {"model": "demo", "prompt": prompt, "max_tokens": 4, "ignore_eos": True}
        request = urllib.request.Request(
            self.url + "/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return dict(json.load(answer))

    def ready(self) -> dict[str, Any]:
        """Workers that can be used, by id."""
        workers = self.get("/cluster")["workers"]
        return {w["worker_id"]: w for w in workers if w["state"] == "ready"}


@pytest.fixture
def served(ray_address: str) -> Iterator[Served]:
    served = Served(ray_address, "--workers", "3")
    try:
        yield served
    finally:
        served.end()


def test_killed_actor_comes_back_and_is_used_and_ctrl_c_leaves_nothing(served: Served) -> None:
    import ray

    from preble_deploy.ray_cluster import actor_names, router_name, worker_name

    before = served.ready()
    assert set(before) == {"worker-0", "worker-1", "worker-2"}
    assert any("would end 60 s after Ray's head" in line for line in served.lines)
    usage = served.complete("Once upon a time")["usage"]
    assert usage["completion_tokens"] == 4
    actors = {
        name: ray.get_actor(name, namespace=NAMESPACE)
        for name in actor_names(ray, NAMESPACE)
        if name != router_name("preble")
    }
    assert set(actors) == {worker_name("preble", i) for i in range(3)}
    statuses = ray.get([actor.status.remote() for actor in actors.values()])
    assert len({status.node_id for status in statuses}) == 3
    assert all(status.address.startswith("127.0.0.1:") for status in statuses), "one machine"

    ray.kill(actors[worker_name("preble", 1)], no_restart=False)
    epoch = before["worker-1"]["spec"]["epoch"]
    back = until(
        lambda: (w := served.ready().get("worker-1")) and w["spec"]["epoch"] != epoch and w
    )
    assert back["address"] != before["worker-1"]["address"]
    until(
        lambda: (
            served.complete(f"Prompt {time.monotonic()}")
            and served.ready()["worker-1"]["placed_requests_total"] > 0
        )
    )

    router = ray.get_actor(router_name("preble"), namespace=NAMESPACE)
    pid = ray.get(router.status.remote()).pid
    ray.kill(router, no_restart=False)
    until(lambda: another_process_is_behind(router, pid) and has_all_workers(served))
    assert served.complete("After the router's death")["usage"]["completion_tokens"] == 4

    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(timeout=PATIENCE_SECONDS) == 0
    assert actor_names(ray, NAMESPACE) == set()


def another_process_is_behind(actor: Any, pid: int) -> bool:
    import ray

    try:
        return bool(ray.get(actor.status.remote()).pid != pid)
    except ray.exceptions.RayError:  # It does not run yet.
        return False


def has_all_workers(served: Served) -> bool:
    try:
        return len(served.ready()) == 3
    except (OSError, HTTPException):  # It may end in the middle of an answer.
        return False


def test_detached_cluster_stays_until_it_is_taken_down(ray_address: str) -> None:
    import ray

    from preble_deploy.ray_cluster import actor_names

    def preble(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*PREBLE, *words], capture_output=True, text=True)

    cluster = ("--ray", ray_address, "--ray-namespace", NAMESPACE, "--name", "kept")
    serve = ("serve", *cluster, "--engine", "simulated", "--port", "0", "--detach")
    started = preble(*serve)
    assert started.returncode == 0, started.stderr + started.stdout
    assert actor_names(ray, NAMESPACE) == {"kept-router", "kept-worker-0"}
    again = preble(*serve)
    assert again.returncode == 2
    assert "--name is 'kept', a cluster that runs already" in again.stderr
    down = preble("down", *cluster)
    assert down.returncode == 0, down.stderr
    assert "removed 2 actors" in down.stdout
    assert actor_names(ray, NAMESPACE) == set()
    nothing = preble("down", *cluster)
    assert nothing.returncode == 1
    assert "no cluster named 'kept'" in nothing.stderr


def test_wrong_address_is_one_line() -> None:
    result = subprocess.run(
        [*PREBLE, "serve", "--ray", "ray://127.0.0.1:1"],
        capture_output=True,
        text=True,
        cwd=Path.home(),
    )
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "--ray is 'ray://127.0.0.1:1'" in result.stderr


def test_a_node_that_is_too_slow_to_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def too_slow(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nAnd much more.")

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(ray, "init", too_slow)
    with pytest.raises(PrebleError) as caught:
        connect("local", namespace=NAMESPACE, num_cpus=1)
    assert str(caught.value).endswith("(see --ray): The current node timed out during startup.")


@pytest.mark.parametrize("name", ["GcsLogSubscriber", "GcsErrorSubscriber"])
def test_ray_is_not_asked_all_the_time_for_what_a_dead_head_would_say(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ray._raylet, name, getattr(ray._raylet, name))  # Put back at the end.
    for _ in range(2):  # As often as a process connects.
        pause_without_head(ray)
    subscriber = getattr(ray._raylet, name)(address="127.0.0.1:1")
    num_polls, give_up_at = 0, time.monotonic() + 3 * POLL_PAUSE_SECONDS
    while time.monotonic() < give_up_at:
        subscriber.poll()
        num_polls += 1
    assert num_polls <= 4, "tens of thousands without a pause"


async def test_it_says_when_rays_head_is_gone_and_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_connection, "PROBE_SECONDS", 0.02)
    said: asyncio.Queue[str] = asyncio.Queue()

    async def listen(port: int) -> asyncio.Server:
        return await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port)

    head = await listen(0)
    port = head.sockets[0].getsockname()[1]
    watch = ray_connection.watch_head(f"127.0.0.1:{port}", said.put_nowait)
    watching = asyncio.create_task(watch)
    await asyncio.sleep(0.2)
    assert said.empty()
    head.close()
    await head.wait_closed()
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert f"Ray's head at 127.0.0.1:{port} does not answer" in await said.get()
        head = await listen(port)
        assert "is back" in await said.get()
    assert said.empty()
    watching.cancel()
    head.close()
