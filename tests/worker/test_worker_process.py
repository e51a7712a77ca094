"""The worker as a process: signals, drain and exit codes."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from worker_link_helpers import LinkClient, prompt_of, simulated

from preble.errors import ConfigError
from preble.types import FinishReason
from preble.v1 import worker_pb2 as pb
from preble_worker.config import WorkerConfig
from preble_worker.server import WorkerServer

PATIENCE_SECONDS = 40.0

MAIN = """
import sys
from pathlib import Path
from preble_worker import server
from preble_worker.config import WorkerConfig
from worker_link_helpers import simulated
import time

def engine(config):
    {sleep}
    return simulated(sleep=sleep, context_tokens=100_000, num_pages=10_000)

server.load_engine = engine
config = WorkerConfig(model="m", model_path=Path("/nowhere"), engine="simulated", {options})
server.run(config)
"""
SLOW = "sleep = lambda _: time.sleep(0.01)"
BROKEN = "sleep = lambda _: 1 / 0"


class Process:
    """A worker in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process):
        self.process = process
        self.lines: list[str] = []
        self.address = ""

    async def read_until(self, words: str) -> str:
        """The first line of the log from here on that has `words`."""
        while line := (
            await asyncio.wait_for(self.process.stderr.readline(), PATIENCE_SECONDS)
        ).decode():
            self.lines.append(line)
            if words in line:
                return line
        pytest.fail(f"{words!r} is not in the log:\n" + "".join(self.lines))

    async def exit_code(self) -> int:
        _, rest = await asyncio.wait_for(self.process.communicate(), PATIENCE_SECONDS)
        self.lines += rest.decode().splitlines(keepends=True)
        return self.process.returncode


@asynccontextmanager
async def worker_process(sleep: str = SLOW, options: str = ""):
    here = Path(__file__).parent.parent
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), *filter(None, sys.path)])}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        MAIN.format(sleep=sleep, options=options),
        env=env,
        stderr=subprocess.PIPE,
    )
    worker = Process(process)
    try:
        line = await worker.read_until(" serves m at ")
        worker.address = line.partition(" at ")[2].split(": engine")[0]
        yield worker
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_exits_well(number):
    async with worker_process() as worker:
        router = await LinkClient.connect(worker.address)
        await router.submit("a", prompt_of(20), 100)
        await router.until(lambda: bool(router.requests["a"][0].tokens))
        worker.process.send_signal(number)
        await router.until(lambda: router.steps[-1].phase == pb.PHASE_DRAINING)
        ended = await router.finished("a")
        assert (ended.finish_reason, len(ended.tokens)) == (FinishReason.LENGTH, 100)
        assert await worker.exit_code() == 0
        assert "worker stopped" in worker.lines[-1]
        await router.close()


async def test_a_second_signal_stops_at_once():
    async with worker_process(options="drain_seconds=1e6") as worker:
        router = await LinkClient.connect(worker.address)
        await router.submit("a", prompt_of(20), 90_000)
        await router.until(lambda: bool(router.requests["a"][0].tokens))
        worker.process.send_signal(signal.SIGTERM)
        await router.until(lambda: router.steps[-1].phase == pb.PHASE_DRAINING)
        worker.process.send_signal(signal.SIGTERM)
        assert await worker.exit_code() == 0
        await router.until(lambda: router.ended is not None)
        await router.close()


async def test_an_engine_beyond_hope_exits_with_one():
    async with worker_process(sleep=BROKEN) as worker:
        router = await LinkClient.connect(worker.address)
        for attempt in (1, 2, 3):
            await router.submit("a", prompt_of(20), 4, attempt=attempt)
            await router.finished("a")
        assert await worker.exit_code() == 1
        log = "".join(worker.lines)
        assert "CRITICAL preble_worker.server: the engine failed 3 steps in a row" in log
        assert log.count("ZeroDivisionError") == 3
        await router.close()


def test_importing_the_server_loads_no_torch():
    code = "import preble_worker.server, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


async def test_a_taken_port_is_a_configuration_error():
    config = WorkerConfig(model="m", model_path=Path("/nowhere"), engine="simulated")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            await WorkerServer(replace(config, port=port), simulated()).start()
