"""Small traces, and a server on loopback that speaks just enough of OpenAI's API."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHARED_TRACES = Path(__file__).parents[2] / "shared" / "traces"
"""Real traces, where the checkout stands beside them."""


def write_lines(path: Path, lines: Iterable[object]) -> Path:
    """Objects as JSON lines, text as it is; gzipped if the name says so."""
    text = "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def mooncake(timestamp: int, blocks: list[int], tail: int = 0, output: int = 4) -> dict[str, Any]:
    """A Mooncake line of full blocks and, with the last of `blocks` as its id, a tail."""
    full = len(blocks) - bool(tail)
    return {
        "timestamp": timestamp,
        "input_length": full * 512 + tail,
        "output_length": output,
        "hash_ids": blocks,
    }


def call(
    session: int,
    turn: int,
    *,
    runs: Sequence[list[int]] = ([0, 2],),
    tail: int = 2,
    t: float | None = 0.0,
    think: float | None = 0.0,
    block: int = 64,
) -> dict[str, Any]:
    """A line of an agent-session trace."""
    return {
        "s": session,
        "k": turn,
        "t": t,
        "th": think,
        "in": sum(number for _, number in runs) * block + tail * (block == 64),
        "out": 4,
        "h": list(runs),
        "c": "x",
    }


def preble_trace(path: Path, prompts: list[list[int]], *, gap: float = 0.0) -> Path:
    """A trace of explicit prompts, `gap` seconds apart, 4 output tokens each."""
    rows = [
        {"at": i * gap, "token_ids": prompt, "output_tokens": 4} for i, prompt in enumerate(prompts)
    ]
    return write_lines(path, [{"preble_trace": 1}, *rows])


@dataclass
class FakeOpenAI:
    """Answers with as many one-letter events as tokens were asked for.

    Attributes:
        bodies: requests seen, in order of arrival.
        num_connections: connections accepted.
        num_abandoned: answers whose reader went away.
        mode: "ok", "hang" (after the first event), "break" (the connection, after the first
            event), "refuse" (status 503), "error" (an error event), "garbage" (not HTTP),
            "no usage", "silent" (tokens without text), "close" (ok, then closes).
        piece_seconds: pause before each event.
        wait_for_all: no answer begins before so many requests have arrived.
    """

    mode: str = "ok"
    piece_seconds: float = 0.0
    wait_for_all: int = 0
    context: int | None = 1000
    has_cluster: bool = True
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    num_connections: int = 0
    num_abandoned: int = 0
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            self.num_abandoned += 1
        except asyncio.CancelledError:
            pass  # the server ends; asyncio's streams would log it
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except asyncio.IncompleteReadError:
            return False
        length = next(
            int(line.split(":")[1])
            for line in head.lower().splitlines()
            if line.startswith("content-length:")
        )
        body = await reader.readexactly(length)
        self.heads.append(head)
        method, path, _ = head.split(" ", 2)
        if method == "GET":
            self._get(path, writer)
            return True
        return await self._complete(json.loads(body), reader, writer)

    def _get(self, path: str, writer: asyncio.StreamWriter) -> None:
        answers: dict[str, Any] = {
            "/v1/models": {"data": [{"id": "fake", "max_model_len": self.context}]},
        }
        if self.has_cluster:
            answers["/cluster"] = {"workers": [{"spec": {"vocab_size": 500}}]}
        found = path in answers
        self._whole(writer, 200 if found else 404, answers.get(path, {}))

    def _whole(self, writer: asyncio.StreamWriter, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        head = f"HTTP/1.1 {status} x\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)

    async def _complete(
        self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        self.bodies.append(body)
        if len(self.bodies) >= self.wait_for_all:
            self._arrived.set()
        await self._arrived.wait()
        if self.mode == "garbage":
            writer.write(b"what?\r\n\r\n")
            return False
        if self.mode == "refuse":
            error = {"error": {"message": "full", "code": "overloaded"}}
            self._whole(writer, 503, error)
            return True
        writer.write(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nX-Preble-Worker: w1\r\n"
            b"x-preble-predicted-cached-tokens: 16\r\n\r\n"
        )
        for i in range(body["max_tokens"]):
            if self.piece_seconds:
                await asyncio.sleep(self.piece_seconds)
            text = "" if self.mode == "silent" else "a"
            self._event(writer, {"choices": [{"text": text, "finish_reason": None}]})
            if i == 0 and self.mode == "break":
                return False
            if i == 0 and self.mode == "error":
                self._event(writer, {"error": {"message": "died", "code": "worker_failed"}})
                break
            if i == 0 and self.mode == "hang":
                await reader.readexactly(1)  # raises when the reader goes away
            await writer.drain()
        self._event(writer, {"choices": [{"text": "", "finish_reason": "length"}]})
        if self.mode != "no usage":
            self._event(writer, {"choices": [], "usage": self._usage(body)})
        self._event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        return self.mode != "close"

    def _usage(self, body: dict[str, Any]) -> dict[str, Any]:
        return {
            "prompt_tokens": len(body["prompt"]),
            "completion_tokens": body["max_tokens"],
            "prompt_tokens_details": {"cached_tokens": 20},
        }

    def _event(self, writer: asyncio.StreamWriter, event: Any) -> None:
        text = event if isinstance(event, str) else json.dumps(event)
        chunk = f"data: {text}\n\n".encode()
        # In two chunks, so that an event does not always come in one piece.
        for part in (chunk[:9], chunk[9:]):
            writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")


@asynccontextmanager
async def serving_openai(fake: FakeOpenAI) -> AsyncIterator[str]:
    """Yields its URL."""
    server = await asyncio.start_server(fake.connection, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
