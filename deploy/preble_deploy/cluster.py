"""What the launchers have in common, and the foreground loop of `preble serve`."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from preble.errors import PrebleError
from preble_deploy.banner import banner
from preble_deploy.settings import LOOPBACK, WILDCARDS, ServeSettings
from preble_deploy.terminal import Terminal

POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a cluster has come; `waiting_for` says what is missing."""

    ready: bool
    waiting_for: str = ""


RUNNING = Progress(True)


class Cluster(Protocol):
    """A router and its workers, brought up somewhere.

    Attributes:
        url: of the HTTP gateway. Known, like `grpc_address`, once the cluster is ready.
    """

    num_workers: int
    url: str
    grpc_address: str
    terminal: Terminal

    async def start(self) -> None:
        """Starts all parts; they are restarted from here on."""

    async def progress(self) -> Progress:
        """How far it has come. Raises PrebleError if it will never be ready."""

    async def failure(self) -> None:
        """Waits for a failure that restarting cannot cure, and raises it."""

    async def stop(self) -> None:
        """Lets running requests end, then ends everything."""

    async def kill(self) -> None:
        """Ends everything at once."""


def endpoint(settings: ServeSettings, port: int) -> str:
    """URL of the gateway as seen from this machine."""
    scheme = "https" if settings.tls else "http"
    return f"{scheme}://{reachable(settings.host)}:{port}"


def reachable(host: str) -> str:
    """The name under which this machine reaches what listens on `host`."""
    if host in WILDCARDS:
        return LOOPBACK
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


async def serve_in_foreground(cluster: Cluster, settings: ServeSettings, model_path: Path) -> int:
    """Brings the cluster up, waits for Ctrl-C or SIGTERM, and takes it down. Returns 0.

    The first signal drains, the second kills.

    Raises:
        PrebleError: it did not come up, or broke beyond repair.
    """
    async with _signals() as asked_to_stop:
        try:
            await cluster.start()
            if await _until_ready(cluster, settings, asked_to_stop):
                cluster.terminal.say(_banner(cluster, settings, model_path))
                if settings.detach:
                    return 0
                await _first(asked_to_stop.wait(), cluster.failure())
        except BaseException:
            await cluster.kill()
            raise
        finally:
            cluster.terminal.done()
        asked_to_stop.clear()
        cluster.terminal.say("preble: draining; Ctrl-C again ends everything at once")
        await _first(cluster.stop(), asked_to_stop.wait())
        await cluster.kill()
        cluster.terminal.say("preble: everything ended")
    return 0


async def until_ready(cluster: Cluster, *, seconds: float) -> None:
    """Polls until every worker is ready.

    Raises:
        PrebleError: a part failed for good.
        TimeoutError: it took longer than `seconds`.
    """
    async with asyncio.timeout(seconds):
        while not (await _progress(cluster)).ready:  # noqa: ASYNC110 - processes tell nobody
            await asyncio.sleep(POLL_SECONDS)


async def _until_ready(
    cluster: Cluster, settings: ServeSettings, asked_to_stop: asyncio.Event
) -> bool:
    """Polls until every worker is ready; False if a signal came first."""
    give_up_at = asyncio.get_running_loop().time() + settings.startup_seconds
    while not (progress := await _progress(cluster)).ready:
        cluster.terminal.step(progress.waiting_for)
        if asyncio.get_running_loop().time() > give_up_at:
            raise PrebleError(
                f"not ready after {settings.startup_seconds:g} s ({progress.waiting_for}); "
                "see --startup-seconds"
            )
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asked_to_stop.wait(), POLL_SECONDS)
        if asked_to_stop.is_set():
            return False
    cluster.terminal.done()
    return True


async def _progress(cluster: Cluster) -> Progress:
    """The cluster's progress, unless it breaks meanwhile."""
    asked = asyncio.ensure_future(cluster.progress())
    await _first(asyncio.shield(asked), cluster.failure())
    return await asked


async def _first(*awaitables: Awaitable[object]) -> None:
    """Waits until one of them is done and cancels the rest; raises what that one raised."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def _signals() -> AsyncIterator[asyncio.Event]:
    """An event that Ctrl-C, SIGTERM and a closed terminal set."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # As under nohup.
        numbers.append(signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, event.set)
    try:
        yield event
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _banner(cluster: Cluster, settings: ServeSettings, model_path: Path) -> str:
    down = f"preble down --ray {settings.ray} --name {settings.name}"
    return banner(
        model=settings.model_name,
        model_path=model_path,
        url=cluster.url,
        grpc=cluster.grpc_address,
        workers=cluster.num_workers,
        policy=settings.policy,
        has_key=bool(settings.api_key),
        ending=f"`{down}` ends it." if settings.detach else "Ctrl-C ends everything.",
    )
