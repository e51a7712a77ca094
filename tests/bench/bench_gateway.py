"""What the HTTP gateway costs, with a dispatcher that answers at once.

A request passes uvicorn, validation, chat template, tokenization, the (pretended) dispatch, text
generation and the encoding of the answer. Client and gateway share nothing but the machine: the
gateway runs in a process of its own, and its CPU time is read from there.
"""

import asyncio
import json
import multiprocessing
import multiprocessing.connection
import resource
import socket
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

OUTPUT_TOKENS = 64
CONNECTIONS = 16
REQUESTS = {"short": 600, "long": 120}
PROMPT_BYTES = {"short": 1_200, "long": 32_000}
SENTENCE = "The quick brown fox jumps over the lazy dog. "


def main() -> None:
    """Prints the table."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    port = ours.recv()
    print(f"gateway, one process, {CONNECTIONS} connections, {OUTPUT_TOKENS} output tokens each")
    print(f"{'request':<34}{'requests/s':>12}{'CPU µs':>10}{'p50 ms':>9}{'p99 ms':>9}")
    bare = measure(ours, port, "GET", "/health", None, REQUESTS["short"])
    print_row("GET /health (floor of the server)", bare)
    for length in ("short", "long"):
        for stream in (False, True):
            body = {
                "messages": [{"role": "user", "content": prompt(PROMPT_BYTES[length])}],
                "max_tokens": OUTPUT_TOKENS,
                "stream": stream,
            }
            kind = f"chat {PROMPT_BYTES[length] / 1e3:.1f} kB{', streamed' if stream else ''}"
            path = "/v1/chat/completions"
            print_row(kind, measure(ours, port, "POST", path, body, REQUESTS[length]))
    ids = {"prompt": [5] * 300, "max_tokens": OUTPUT_TOKENS}
    print_row("300 token ids", measure(ours, port, "POST", "/v1/completions", ids, 600))
    ours.send(None)
    process.join()
    parts()


def prompt(size: int) -> str:
    return (SENTENCE * (size // len(SENTENCE) + 1))[:size]


def print_row(name: str, row: tuple[float, float, float, float]) -> None:
    rate, cpu, p50, p99 = row
    print(f"{name:<34}{rate:>12.0f}{cpu * 1e6:>10.0f}{p50 * 1e3:>9.2f}{p99 * 1e3:>9.2f}")


def serve(pipe: multiprocessing.connection.Connection) -> None:
    """The gateway's process: tells its port, then its CPU seconds whenever asked."""
    import uvicorn
    from gateway_helpers import FakeDispatcher, Script, byte_level_core, chat_tokenizer, make_config

    from preble.page_keys import pack_tokens
    from preble_router.gateway import make_app
    from preble_router.metrics import Metrics

    ids = byte_level_core().encode(SENTENCE * 10).ids[:OUTPUT_TOKENS]
    script = Script([pack_tokens([i]) for i in ids])
    dispatcher = FakeDispatcher(script=lambda _: script, context_tokens=10**6)
    dispatcher.requests = _Forgetful()
    app = make_app(dispatcher, chat_tokenizer(), make_config(), Metrics())
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="warning", access_log=False)
    server = uvicorn.Server(config)

    async def answer() -> None:
        serving = asyncio.create_task(server.serve([listener]))
        pipe.send(listener.getsockname()[1])
        loop = asyncio.get_running_loop()
        while await loop.run_in_executor(None, pipe.recv) is not None:
            usage = resource.getrusage(resource.RUSAGE_SELF)
            pipe.send(usage.ru_utime + usage.ru_stime)
        server.should_exit = True
        await serving

    uvicorn_loop = config.get_loop_factory()
    with asyncio.Runner(loop_factory=uvicorn_loop) as runner:
        runner.run(answer())


class _Forgetful(list[Any]):
    def append(self, item: Any) -> None:
        """Requests are not kept."""


def measure(
    pipe: multiprocessing.connection.Connection,
    port: int,
    method: str,
    path: str,
    body: Any,
    count: int,
) -> tuple[float, float, float, float]:
    """Requests per second, the gateway's CPU seconds per request, p50 and p99 in seconds."""
    asyncio.run(load(port, method, path, body, CONNECTIONS * 2))
    before = cpu_seconds(pipe)
    started = time.perf_counter()
    seconds = sorted(asyncio.run(load(port, method, path, body, count)))
    elapsed = time.perf_counter() - started
    cpu = cpu_seconds(pipe) - before
    p50, p99 = (seconds[int(share * (len(seconds) - 1))] for share in (0.5, 0.99))
    return count / elapsed, cpu / count, p50, p99


def cpu_seconds(pipe: multiprocessing.connection.Connection) -> float:
    pipe.send("cpu")
    return float(pipe.recv())


async def load(port: int, method: str, path: str, body: Any, count: int) -> list[float]:
    """Closed loop over `CONNECTIONS` connections; a bare client, so that it costs little itself."""
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
    per_connection = count // CONNECTIONS
    rounds = [one_connection(port, request, per_connection) for _ in range(CONNECTIONS)]
    return [seconds for done in await asyncio.gather(*rounds) for seconds in done]


async def one_connection(port: int, request: bytes, count: int) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        await read_body(head.lower(), reader)
        seconds.append(time.perf_counter() - started)
    writer.close()
    return seconds


async def read_body(head: bytes, reader: asyncio.StreamReader) -> None:
    if b"transfer-encoding: chunked" in head:
        await reader.readuntil(b"\r\n0\r\n\r\n")
    else:
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)


def parts() -> None:
    """What single steps cost, in this process."""
    from gateway_helpers import byte_level_core, chat_tokenizer

    from preble_router.gateway.requests import read_chat
    from preble_router.gateway.responses import ChatEncoder
    from preble_router.stop_strings import StopStrings

    tokenizer = chat_tokenizer()
    ids = byte_level_core().encode(SENTENCE * 20).ids
    encoder = ChatEncoder("x" * 30, created=1_700_000_000, model="demo")
    body = {"messages": [{"role": "user", "content": "x"}], "temperature": 0.5, "max_tokens": 9}
    plain = {"id": "x", "choices": [{"index": 0, "delta": {"content": " word"}}]}
    decoder, stops = tokenizer.stream(), StopStrings(["\n\n", "END"])
    print()
    print(f"{'step':<50}{'µs':>8}")
    for name, call, times in (
        ("validate a chat body", lambda: read_chat(json.loads(json.dumps(body))), 5_000),
        ("  of that, json.loads(json.dumps())", lambda: json.loads(json.dumps(body)), 5_000),
        ("encode one event of a stream", lambda: encoder.text(0, " word"), 50_000),
        ("  baseline: json.dumps of a smaller object", lambda: json.dumps(plain), 20_000),
        ("decode one token", lambda: decoder.push(ids[7]), 100_000),
        ("search a token of 5 characters for 2 stop strings", lambda: stops.push(" word"), 50_000),
        ("tokenize 1.2 kB", lambda: tokenizer.encode(prompt(1_200)), 300),
        ("tokenize 32 kB", lambda: tokenizer.encode(prompt(32_000)), 20),
    ):
        started = time.perf_counter()
        for _ in range(times):
            call()
        print(f"{name:<50}{(time.perf_counter() - started) / times * 1e6:>8.2f}")


if __name__ == "__main__":
    main()
