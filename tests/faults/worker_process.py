"""A simulated worker that can be told to misbehave, as a process of its own.

    DIRECTORY/NAME.blocked   while it exists, the step loop stands still; the sockets answer on
    DIRECTORY/NAME.slow      steps take as many times longer as the number in it says
    DIRECTORY/NAME.leak      while it exists, each step keeps another MiB for good
    DIRECTORY/NAME.garble    see `garbled_events`
    DIRECTORY/poison         hash of a prompt that kills whichever worker computes it

With --http-port it is an OpenAI server by itself, a router of one worker in the same process: what
another router, which does not speak our wire, has behind it.
"""

import argparse
import asyncio
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import uvloop
from faults.garbled_events import GarbledEvents, GarbledServer
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from preble_deploy.lifeline import end_with_parent
from preble_deploy.models import resolve_model
from preble_router.config import RouterConfig
from preble_router.server import RouterServer
from preble_worker.batch import Batch, Engine
from preble_worker.config import DEFAULT_POLICY, WorkerConfig
from preble_worker.engines import load_engine
from preble_worker.server import ending_at_failure, set_up_logging

MODEL = "demo"
MIB = 1 << 20
LEAKED_BYTES = 1 << 14
"""At a time: small enough that next to nothing is left for others when there is no more."""
KNOWN_FIELDS = frozenset(
    {"model", "prompt", "max_tokens", "temperature", "seed", "ignore_eos", "stream"}
)
DROPPED_HEADERS = frozenset({b"content-length", b"x-request-timeout"})
"""An engine refuses nobody for a deadline."""


class FaultyEngine:
    """Another engine, but for the faults it is told to have."""

    def __init__(self, engine: Engine, directory: Path, name: str) -> None:
        self._engine = engine
        self._blocked = directory / f"{name}.blocked"
        self._slow = directory / f"{name}.slow"
        self._leak = directory / f"{name}.leak"
        self._leaked: list[bytearray] = []
        self._poison = directory / "poison"

    def run(self, batch: Batch) -> npt.NDArray[np.int64]:
        """The other's tokens."""
        began_at = time.monotonic()
        if self._poison.exists():
            hashes = batch.tables.prompt_hash[batch.slots]
            if np.uint64(int(self._poison.read_text())) in hashes:
                os.kill(os.getpid(), signal.SIGKILL)
        if self._leak.exists():
            for _ in range(MIB // LEAKED_BYTES):
                self._leaked.append(bytearray(LEAKED_BYTES))
        while self._blocked.exists():
            time.sleep(0.01)
        tokens = self._engine.run(batch)
        if self._slow.exists():
            took = time.monotonic() - began_at
            time.sleep((float(self._slow.read_text()) - 1.0) * took)
        return tokens


class KnownFields:
    """Drops from requests what the gateway would refuse: other routers add fields of their own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        body = b""
        more = True
        while more:
            part = await receive()
            body += part.get("body", b"")
            more = part.get("more_body", False)
        fields = orjson.loads(body)
        kept = orjson.dumps({name: fields[name] for name in fields.keys() & KNOWN_FIELDS})
        headers = [pair for pair in scope["headers"] if pair[0] not in DROPPED_HEADERS]
        headers.append((b"content-length", str(len(kept)).encode()))
        parts: list[Message] = [{"type": "http.request", "body": kept, "more_body": False}]

        async def replay() -> Message:
            return parts.pop() if parts else await receive()

        await self._app({**scope, "headers": headers}, replay, send)


class Front(RouterServer):
    """The gateway of one worker, for clients that say more than OpenAI's own."""

    def _http_config(self, tokenizer: Any) -> Any:
        config = super()._http_config(tokenizer)
        config.app = KnownFields(config.app)
        return config


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--cost-model", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--advertise", default="")
    parser.add_argument("--router", action="append", default=[])
    parser.add_argument("--http-port", type=int, default=0)
    parser.add_argument("--max-num-seqs", type=int, default=32)
    parser.add_argument("--max-model-len", type=int, default=0)
    parser.add_argument("--max-num-batched-tokens", type=int, default=0)
    parser.add_argument("--kv-cache-tokens", type=int, default=0)
    parser.add_argument("--local-policy", default=DEFAULT_POLICY)
    return parser.parse_args()


async def serve(options: argparse.Namespace, config: WorkerConfig) -> None:
    """Until SIGTERM."""
    loaded = load_engine(config)
    engine = FaultyEngine(loaded.engine, options.directory, options.name)
    worker = GarbledServer(config, replace(loaded, engine=engine))
    worker.garbled = GarbledEvents(options.directory, options.name)
    address = await worker.start()
    front = None
    if options.http_port:
        front = Front(
            RouterConfig(
                model=MODEL,
                model_path=config.model_path,
                port=options.http_port,
                grpc_port=0,
                workers=(address,),
                policy="round_robin",
            )
        )
        await front.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(
            number, lambda: worker.begin_stop(drain_seconds=0.0)
        )
    await worker.wait()
    if front is not None:
        await front.stop()


def main() -> None:
    end_with_parent()
    options = parse()
    set_up_logging("info")
    config = WorkerConfig(
        model=MODEL,
        model_path=resolve_model(MODEL),
        engine="simulated",
        worker_id=options.name,
        host=options.host,
        advertise=options.advertise,
        routers=tuple(options.router),
        cost_model=options.cost_model,
        max_sequences=options.max_num_seqs,
        context_tokens=options.max_model_len,
        max_batch_tokens=options.max_num_batched_tokens,
        kv_cache_tokens=options.kv_cache_tokens,
        policy=options.local_policy,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, ending_at_failure():
        runner.run(serve(options, config))


if __name__ == "__main__":
    main()
