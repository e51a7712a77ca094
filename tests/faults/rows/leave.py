"""Half of the clients leave in the middle: queued, in prefill, in decode; politely or not."""

import asyncio
import socket
import struct
import time
from urllib.parse import urlsplit

from faults.clusters import FaultyCluster
from faults.load import Load, Question, Questions, quantile
from faults.trial import Outcome, Row, Trial

CLIENTS = 40
SEQUENCES = 5
"""Per worker: half of the clients run and half are queued."""
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER so that close sends RST."""
LONG_WORDS = 2000
SETTLE_SECONDS = 1.0


class Client:
    """A socket that asks, and leaves without reading the answer to its end."""

    def __init__(self, url: str, request: bytes) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port))
        self._socket.sendall(request)

    def leave(self, *, reset: bool) -> None:
        """FIN, or RST."""
        if reset:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._socket.close()


async def measure(trial: Trial) -> Outcome:
    """Rounds of 40 clients, 20 of which leave one after another, each timed."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with trial.cluster(options=("--max-num-seqs", str(SEQUENCES))) as cluster:
        load = Load(cluster.url)
        await load.closed_loop(Questions(seed=11_000).take(80), concurrency=CLIENTS)
        descriptors, pages = _descriptors(cluster), _pages_in_use(cluster)
        tasks = cluster.num_tasks()
        for round_number in range(trial.pick(2, 8)):
            trial.say(f"round {round_number + 1}")
            for stream in (True, False):
                questions = Questions(seed=11_001 + round_number, max_tokens=2000, stream=stream)
                seconds[stream] += await _round(cluster, load, questions)
        await asyncio.sleep(SETTLE_SECONDS)
        leaked = {
            "descriptors": max(0, _descriptors(cluster) - descriptors),
            "tasks": max(0, cluster.num_tasks() - tasks),
            "pages": _pages_in_use(cluster) - pages,
            "requests": _live(cluster),
        }
        load.close()
    p99 = {stream: quantile(times, 0.99) for stream, times in seconds.items()}
    return Outcome(
        p99[True] <= 0.100 and p99[False] <= 0.250 and not any(leaked.values()),
        f"aborted p99 {1000 * p99[True]:.0f} ms streaming, {1000 * p99[False]:.0f} ms not "
        f"({len(seconds[True]) + len(seconds[False])} left); leaked "
        + ", ".join(f"{number} {what}" for what, number in leaked.items()),
        tuple(f"leaked {what}" for what, number in leaked.items() if number),
    )


async def _round(cluster: FaultyCluster, load: Load, questions: Questions) -> list[float]:
    """Seconds from each leave until the workers have one request fewer."""

    def ask(question: Question) -> Client:
        return Client(cluster.url, load.request(question))

    clients = [ask(question) for question in questions.take(CLIENTS)]
    await cluster.until(lambda: _live(cluster) == CLIENTS)
    await asyncio.sleep(0.5)
    seconds = []
    for number in range(CLIENTS // 2):
        if number % 5 == 4:  # one that is still in its prefill
            clients[number].leave(reset=False)
            await cluster.until(lambda: _live(cluster) < CLIENTS - number)  # noqa: B023
            clients[number] = ask(questions.make(words=LONG_WORDS))
            await cluster.until(lambda: _live(cluster) == CLIENTS - number)  # noqa: B023
        left_at = time.perf_counter()
        clients[number].leave(reset=number % 2 == 1)
        while await asyncio.to_thread(_live, cluster) > CLIENTS - number - 1:
            if time.perf_counter() > left_at + 10.0:
                break
        seconds.append(time.perf_counter() - left_at)
    for client in clients[CLIENTS // 2 :]:
        client.leave(reset=False)
    await cluster.until(lambda: _live(cluster) == 0)
    return seconds


def _loads(cluster: FaultyCluster) -> list[dict[str, int]]:
    return [worker["load"] or {} for worker in cluster.workers()]


def _live(cluster: FaultyCluster) -> int:
    """Requests that the workers have, as their last reports say."""
    return sum(load.get("num_running", 0) + load.get("num_waiting", 0) for load in _loads(cluster))


def _pages_in_use(cluster: FaultyCluster) -> int:
    return sum(load.get("used_pages", 0) for load in _loads(cluster))


def _descriptors(cluster: FaultyCluster) -> int:
    """Of router and workers."""
    return sum(map(cluster.num_descriptors, cluster.processes))


ROW = Row(
    name="leave",
    fault="20 of 40 clients leave (queued, prefill, decode; FIN, RST)",
    to_reach="aborted p99 ≤ 100 ms streaming, ≤ 250 ms not; 0 leaked tasks, pages, descriptors",
    measure=measure,
)
