"""What the load generator itself costs: CPU time per request and per streamed token.

A server of canned answers runs in a process of its own; only this process's CPU time counts. The
baseline is httpx, the usual asynchronous client, doing the same exchanges in the same run. What is
measured as a cluster's latency contains this cost, and on two cores it competes with the cluster.
"""

import asyncio
import json
import multiprocessing
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection

import httpx
import numpy as np
import uvloop

from preble_loadgen.http_target import HttpTarget
from preble_loadgen.target import Observation, Question

STREAMS = 64
ROUNDS = 2
PROMPT_TOKENS = 1024
OUTPUT_TOKENS = 64
PIECE_SECONDS = 0.01
TARGET_US_PER_TOKEN = 50.0


def event(value: object) -> bytes:
    text = f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode()
    return f"{len(text):x}\r\n".encode() + text + b"\r\n"


PIECE = event(
    {
        "id": "cmpl-0123456789abcdef0123456789abcdef",
        "object": "text_completion",
        "created": 1700000000,
        "model": "demo",
        "choices": [{"index": 0, "text": " word", "logprobs": None, "finish_reason": None}],
        "usage": None,
    }
)
USAGE = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": OUTPUT_TOKENS}
END = event({"choices": [], "usage": USAGE}) + event("[DONE]") + b"0\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


async def answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, output_tokens: int
) -> None:
    """Canned answers: one event per token, each in a write of its own."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = head.lower().split(b"content-length:")[1].split(b"\r\n")[0]
            await reader.readexactly(int(length))
            writer.write(HEAD)
            for _ in range(output_tokens):
                await asyncio.sleep(PIECE_SECONDS)
                writer.write(PIECE)
            writer.write(END)
    except asyncio.IncompleteReadError:
        writer.close()


def serve(ports: Connection, output_tokens: int) -> None:
    async def main() -> None:
        server = await asyncio.start_server(
            lambda reader, writer: answer(reader, writer, output_tokens), "127.0.0.1", 0
        )
        ports.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())


async def with_ours(url: str) -> Callable[[], Awaitable[int]]:
    target = HttpTarget(url, model="demo", timeout=60)
    question = Question(tokens=np.arange(PROMPT_TOKENS, dtype=np.uint32), output_tokens=1)

    async def ask() -> int:
        seen = Observation()
        await target.ask(target.prepare(question), seen)
        assert not seen.error, seen.message
        return len(seen.gaps) + 1

    return ask


async def with_httpx(url: str) -> Callable[[], Awaitable[int]]:
    limits = httpx.Limits(max_connections=STREAMS)
    client = httpx.AsyncClient(timeout=60, limits=limits)
    body = {"prompt": list(range(PROMPT_TOKENS)), "stream": True}

    async def ask() -> int:
        pieces = 0
        async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    pieces += bool(json.loads(line[6:])["choices"])
        return pieces

    return ask


async def cpu_seconds(ask: Callable[[], Awaitable[int]], output_tokens: int) -> float:
    """CPU time of this process per request, `STREAMS` at a time, after one round to warm up."""
    begun = 0.0
    for round_number in range(ROUNDS + 1):
        if round_number == 1:
            begun = time.process_time()
        pieces = await asyncio.gather(*(ask() for _ in range(STREAMS)))
        assert set(pieces) <= {output_tokens}, pieces
    return (time.process_time() - begun) / (ROUNDS * STREAMS)


def measured(make: Callable[[str], Awaitable[Callable[[], Awaitable[int]]]]) -> tuple[float, float]:
    """Microseconds of CPU per request (without its tokens), and per token."""
    seconds = []
    for output_tokens in (1, OUTPUT_TOKENS):
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=serve, args=(theirs, output_tokens), daemon=True
        )
        process.start()

        async def run(port: int, output_tokens: int = output_tokens) -> float:
            return await cpu_seconds(await make(f"http://127.0.0.1:{port}"), output_tokens)

        seconds.append(uvloop.run(run(ours.recv())))
        process.terminate()
        process.join()
    per_token = (seconds[1] - seconds[0]) / (OUTPUT_TOKENS - 1)
    return (seconds[0] - per_token) * 1e6, per_token * 1e6


def main() -> None:
    rows = {"preble replay": measured(with_ours), "httpx": measured(with_httpx)}
    print(f"{STREAMS} streams, {PROMPT_TOKENS} prompt and {OUTPUT_TOKENS} output tokens; CPU time")
    print(f"{'client':<16}{'µs/request':>12}{'µs/token':>12}{'target':>12}")
    for name, (request, token) in rows.items():
        target = f"<= {TARGET_US_PER_TOKEN:g}" if name != "httpx" else ""
        print(f"{name:<16}{request:>12.0f}{token:>12.1f}{target:>12}")


if __name__ == "__main__":
    main()
