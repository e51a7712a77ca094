"""`preble serve` on this machine, as an operator runs it: real processes on loopback."""

import json
import os
import queue
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from deploy_helpers import PREBLE, run_preble

PATIENCE_SECONDS = 60.0

Result = TypeVar("Result")


def until(ask: Callable[[], Result | None]) -> Result:
    """The first answer that is not None or false."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not (answer := ask()):
        assert time.monotonic() < give_up_at, "it did not get there"
        time.sleep(0.05)
    return answer


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def descendants(pid: int) -> set[int]:
    """All processes that `pid` started, and those they started."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, pending = set[int](), [pid]
    while pending:
        new = children.get(pending.pop(), [])
        found.update(new)
        pending += new
    return found


class Serve:
    """`preble serve` in a subprocess."""

    def __init__(self, *options: str) -> None:
        words = ("serve", "--engine", "simulated", "--port", "0", *options)
        self.process = subprocess.Popen(
            [*PREBLE, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._queue: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line.rstrip())

    def printed(self, words: str, since: int = 0) -> str | None:
        """The first line with `words` in it, of those after the first `since`."""
        while not self._queue.empty():
            self.lines.append(self._queue.get())
        return next((line for line in self.lines[since:] if words in line), None)

    def wait_ready(self) -> str:
        """Waits for the banner and returns the gateway's URL."""

        def banner() -> str | None:
            line = self.printed("Ctrl-C ends everything")
            assert line or self.process.poll() is None, "\n".join(self.lines)
            return line

        until(banner)
        line = self.printed("OpenAI API")
        assert line is not None
        return line.split()[-1].removesuffix("/v1")

    def pids(self) -> dict[str, int]:
        """Pids of router and workers by name, from their command lines."""
        found = {}
        for pid in descendants(self.process.pid):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if "--worker-id" in words:
                found[words[words.index("--worker-id") + 1]] = pid
            elif "router" in words:
                found["router"] = pid
        return found

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


def get(url: str, headers: dict[str, str] | None = None) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {})) as answer:
        return json.load(answer)


def ready_epochs(url: str, headers: dict[str, str] | None = None) -> dict[str, int]:
    """Epochs of the workers that can be used."""
    try:
        workers = get(f"{url}/cluster", headers)["workers"]
    except OSError:
        return {}
    return {w["worker_id"]: w["spec"]["epoch"] for w in workers if w["state"] == "ready"}


def epochs_with_new(url: str, worker: str, epoch: int) -> dict[str, int] | None:
    """The epochs once `worker` is there with another one than `epoch`."""
    epochs = ready_epochs(url)
    return epochs if epochs.get(worker, epoch) != epoch else None


def complete(url: str, key: str = "") -> dict[str, Any]:
    body = {"model": "demo", "prompt": "Once upon", "max_tokens": 3, "ignore_eos": True}
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return dict(json.load(answer))


@pytest.fixture
def serve() -> Iterator[Callable[..., Serve]]:
    started: list[Serve] = []

    def start(*options: str) -> Serve:
        started.append(Serve(*options))
        return started[-1]

    yield start
    for each in started:
        pids = descendants(each.process.pid)
        each.process.kill()
        each.process.wait()
        until(lambda pids=pids: not any(map(is_running, pids)))


def test_crashes_are_cured_and_ctrl_c_leaves_nothing(serve: Callable[..., Serve]) -> None:
    served = serve("--workers", "2")
    url = served.wait_ready()
    assert complete(url)["usage"]["completion_tokens"] == 3
    curl = served.printed("curl -N")
    assert curl is not None and f"{url}/v1/chat/completions" in curl
    assert served.printed(f'OpenAI(base_url="{url}/v1"')
    pids = served.pids()
    assert set(pids) == {"router", "worker-0", "worker-1"}
    epochs = ready_epochs(url)

    os.kill(pids["worker-0"], signal.SIGKILL)
    back = until(lambda: epochs_with_new(url, "worker-0", epochs["worker-0"]))
    assert back["worker-1"] == epochs["worker-1"]
    assert served.printed("worker-0 | ended with SIGKILL")

    os.kill(pids["router"], signal.SIGKILL)
    assert until(lambda: served.pids().get("router", pids["router"]) != pids["router"])
    until(lambda: ready_epochs(url) == back)  # The same ports, and no worker was disturbed.
    assert complete(url)["usage"]["completion_tokens"] == 3

    everything = descendants(served.process.pid)
    assert len(everything) >= 3
    assert served.end(signal.SIGINT) == 0
    assert not any(map(is_running, everything))
    assert served.printed("everything ended")


def test_killed_launcher_takes_its_children_along(serve: Callable[..., Serve]) -> None:
    served = serve("--workers", "2", "--drain-seconds", "600")
    served.wait_ready()
    children = descendants(served.process.pid)
    assert len(children) >= 3
    served.process.kill()
    until(lambda: not any(map(is_running, children)))


def test_api_key_guards_everything_and_reaches_no_command_line(
    serve: Callable[..., Serve],
) -> None:
    served = serve("--workers", "1", "--api-key", "hush-hush")
    url = served.wait_ready()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        complete(url)
    assert complete(url, "hush-hush")["usage"]["completion_tokens"] == 3
    for pid in served.pids().values():
        assert "hush" not in Path(f"/proc/{pid}/cmdline").read_text()
    assert not any("hush" in line for line in served.lines)
    grpc = served.printed("gRPC  ")
    assert grpc is not None
    address = grpc.split()[-1]
    assert run_preble("status", "--router", address).status == 1
    status = run_preble("status", "--router", address, "--api-key", "hush-hush")
    assert "worker-0" in status.out and "ready" in status.out
    route = run_preble("route", "Once upon a time", "--router", address, "--api-key", "hush-hush")
    assert "→ worker-0" in route.out
    assert served.end(signal.SIGTERM) == 0


def test_second_ctrl_c_does_not_wait_for_requests(serve: Callable[..., Serve]) -> None:
    served = serve("--workers", "1", "--drain-seconds", "600")
    url = served.wait_ready()
    body = {"model": "demo", "prompt": "x", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as stream:
        stream.readline()
        children = descendants(served.process.pid)
        served.process.send_signal(signal.SIGINT)
        until(lambda: served.printed("draining"))
        assert served.process.poll() is None
        assert served.end(signal.SIGINT) == 0
    assert not any(map(is_running, children))


def test_taken_port_is_told_before_anything_starts(serve: Callable[..., Serve]) -> None:
    served = serve("--workers", "1")
    port = served.wait_ready().rpartition(":")[2]
    second = run_preble("serve", "--engine", "simulated", "--port", port)
    assert second.status == 2
    assert f"--port is {port}, which cannot be listened on" in second.complaint
    assert not second.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--kv-cache-tokens", "1"), "worker-0 cannot start"),
        (("--cost-model", "/no/such/file"), "/no/such/file"),
    ],
)
def test_what_a_child_refuses_ends_the_launch(options: Sequence[str], words: str) -> None:
    outcome = run_preble("serve", "--engine", "simulated", "--port", "0", *options)
    assert outcome.status == 2, outcome.out
    assert words in outcome.complaint
