"""Joins a Ray cluster, or starts one on the spot that only this user can reach."""

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from preble.errors import PrebleError
from preble_deploy.devices import num_cores

AUTO, LOCAL = "auto", "local"
HEADLESS_VARIABLE = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""How long a node of Ray, and with it its actors, outlives the cluster's head. Each process of Ray
reads it from its own environment."""
RAYS_HEADLESS_SECONDS = 60
HEADLESS_SECONDS = 1_000_000
"""Ray places and restarts; to serve, nobody needs its head."""
END_SECONDS = 3.0
PROBE_SECONDS = 5.0
POLL_PAUSE_SECONDS = 0.5
_NOTHING_HEARD: dict[str, Callable[[Any], bool]] = {
    "GcsLogSubscriber": lambda answer: not answer or not answer["lines"],
    "GcsErrorSubscriber": lambda answer: answer[1] is None,
}
_CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")
"""Written by `ray start`, removed by `ray stop`."""


def connect_existing(address: str, *, namespace: str) -> Any:
    """The `ray` module, connected to a cluster that runs. Arguments and errors as of `connect`."""
    if address == LOCAL or (address == AUTO and _found() == LOCAL):
        raise PrebleError("no Ray cluster runs on this machine; name its address with --ray")
    return connect(address, namespace=namespace, num_cpus=0)


def connect(address: str, *, namespace: str, num_cpus: float) -> Any:
    """The `ray` module, connected. `num_cpus` is what a cluster started here must offer.

    Args:
        address: "auto" for the cluster found on this machine or else a new one, "local" for a new
            one, otherwise host:port of a cluster's head.

    Raises:
        PrebleError: Ray is not installed, or no cluster answers.
    """
    if address == AUTO:
        address = _found()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault(HEADLESS_VARIABLE, str(HEADLESS_SECONDS))
    # Ray would decide by itself, and differently from one machine to the next.
    os.environ.setdefault("RAY_AUTH_MODE", _auth_mode(address))
    options: dict[str, Any] = {}
    if address == LOCAL:
        if os.environ["RAY_AUTH_MODE"] == "token":
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # The switch by which Ray keeps to loopback; on Linux it would take the machine's address.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        options = {"include_dashboard": False, "num_cpus": max(num_cores(), int(num_cpus + 1))}
    try:
        import ray
    except ModuleNotFoundError:
        raise PrebleError("Ray is not installed; pip install 'preble[ray]'") from None
    pause_without_head(ray)
    try:
        ray.init(address=address, namespace=namespace, logging_level=logging.WARNING, **options)
    except Exception as error:  # A node that is too slow to start raises a bare one.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PrebleError(f"no Ray cluster at {address!r} (see --ray): {reason}") from None
    return ray


def pause_without_head(ray: Any) -> None:
    """Gives the polls of Ray's two listening threads a pause where no head answers.

    They ask again at once (Ray 2.60), and with a dead head that is two busy cores.
    """
    for name, heard_nothing in _NOTHING_HEARD.items():
        subscriber = getattr(ray._raylet, name, None)
        if isinstance(subscriber, type) and subscriber.__module__ == ray._raylet.__name__:
            setattr(ray._raylet, name, _pausing(subscriber, heard_nothing))


def _pausing(subscriber: type[Any], heard_nothing: Callable[[Any], bool]) -> type[Any]:
    def poll(self: Any, *arguments: Any, **options: Any) -> Any:
        answer = subscriber.poll(self, *arguments, **options)
        if heard_nothing(answer):
            time.sleep(POLL_PAUSE_SECONDS)
        return answer

    return type(subscriber.__name__, (subscriber,), {"poll": poll})


async def watch_head(address: str, say: Callable[[str], None]) -> NoReturn:
    """Says when nobody listens any more at `address`, host:port of the head, and when one does."""
    is_there = True
    while True:
        await asyncio.sleep(PROBE_SECONDS)
        if await _listens(address) is is_there:
            continue
        is_there = not is_there
        if is_there:
            say("preble: Ray's head is back")
        else:
            say(
                f"preble: Ray's head at {address} does not answer; serving goes on as long as its "
                "parts live, but Ray starts none of them again"
            )


async def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except OSError:  # TimeoutError is one.
        return False
    writer.close()
    return True


def end(ray: Any) -> None:
    """Leaves the cluster, or ends it with all its processes if it was started here.

    Some of them wait for the head before they end, which may be gone.
    """
    import psutil  # It comes with Ray, and is found once that is imported.

    started_here = psutil.Process().children(recursive=True)
    ray.shutdown()
    for process in psutil.wait_procs(started_here, timeout=END_SECONDS)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _found() -> str:
    """What "auto" stands for on this machine."""
    return os.environ.get("RAY_ADDRESS") or (AUTO if _CURRENT_CLUSTER.exists() else LOCAL)


def _auth_mode(address: str) -> str:
    """Tokens on a cluster of our own; elsewhere, where there is a token to present."""
    has_token = (
        any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
        or (Path.home() / ".ray" / "auth_token").exists()
    )
    return "token" if address == LOCAL or has_token else "disabled"
