"""`preble serve` as its user runs it: started, waited for, ended with Ctrl-C."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster_processes import free_ports

READY_LINE = "Preble serves"


class ServedCluster:
    """A context manager; `stop` sends Ctrl-C and tells which processes stayed behind."""

    def __init__(self, *options: str) -> None:
        self.port, self.grpc_port = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        self._options = options
        self._lines: queue.Queue[str] = queue.Queue()
        self._process: subprocess.Popen[str] | None = None
        self.started_seconds = 0.0

    def __enter__(self) -> Self:
        ports = ("--port", str(self.port), "--grpc-port", str(self.grpc_port))
        start = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "preble_deploy", "serve", "demo", *ports, *self._options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()
        seen: list[str] = []
        while not any(READY_LINE in line for line in seen):
            try:
                seen.append(self._lines.get(timeout=120))
            except queue.Empty:
                raise TimeoutError("not ready:\n" + "".join(seen)) from None
            if self._process.poll() is not None and self._lines.empty():
                raise RuntimeError("ended:\n" + "".join(seen))
        self.started_seconds = time.monotonic() - start
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop()

    def cpu_seconds(self) -> float:
        """What `preble serve` itself, without its children, has computed so far."""
        assert self._process is not None
        stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        user, system = map(int, stat.rpartition(")")[2].split()[11:13])
        return (user + system) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> tuple[int, list[int]]:
        """Ctrl-C; returns the exit status and the ids of processes of ours that still run."""
        assert self._process is not None
        family = descendants(self._process.pid)
        self._process.send_signal(signal.SIGINT)
        status = self._process.wait(timeout=60)
        end = time.monotonic() + 5
        while (alive := [pid for pid in family if is_running(pid)]) and time.monotonic() < end:
            time.sleep(0.1)
        return status, alive

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)


def descendants(pid: int) -> list[int]:
    """Process ids below `pid`, as /proc knows them."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        children += [int(word) for word in task.read_text().split()]
    return children + [below for child in children for below in descendants(child)]


def is_running(pid: int) -> bool:
    """Whether `pid` exists and is no zombie."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
