"""Replays against a fake server on loopback: what is sent, when, and what is said of it."""

import asyncio
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from client_helpers import FakeRouter, serving
from loadgen_helpers import FakeOpenAI, mooncake, preble_trace, serving_openai, write_lines

from preble.errors import ConfigError, Overloaded
from preble_loadgen.progress import Progress
from preble_loadgen.replay import ReplayOptions, replay, run_replay
from preble_loadgen.replay_options import arrival_times, selected_trace
from preble_loadgen.report import Report

PROMPTS = [[7] * 30 + [i] for i in range(6)]


async def replayed(
    fake: FakeOpenAI, trace: Path, *, path: str = "", **options: Any
) -> tuple[Report, Progress]:
    progress = Progress()
    async with serving_openai(fake) as url:
        given = ReplayOptions(trace=trace, url=url + path, **({"timeout": 20.0} | options))
        return await replay(given, progress=progress), progress


async def test_every_request_is_sent_as_the_trace_says(tmp_path: Path) -> None:
    fake = FakeOpenAI()
    report, progress = await replayed(fake, preble_trace(tmp_path / "t", PROMPTS), seed=3)
    assert (report.num_complete, report.num_failed, report.num_short) == (6, 0, 0)
    by_last = sorted(fake.bodies, key=lambda body: body["prompt"][-1])
    assert [body["prompt"] for body in by_last] == PROMPTS
    assert [body["seed"] for body in by_last] == list(range(3, 9))
    body = by_last[0]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("fake", 4, 0)
    assert body["stream"] and body["ignore_eos"] and body["stream_options"]["include_usage"]
    assert "cache_salt" not in body
    assert report.cached_tokens == 6 * 20
    assert report.predicted_cached_tokens == 6 * 16
    assert [(w.worker_id, w.requests) for w in report.workers] == [("w1", 6)]
    assert progress.num_sent == progress.num_planned == 6
    for record in progress.records:
        assert record.first_at is not None and record.last_at is not None
        assert record.scheduled_at <= record.sent_at < record.first_at
        assert record.first_at <= record.last_at <= record.ended_at
        assert len(record.gaps) == 3
        assert sum(record.gaps) == pytest.approx(record.last_at - record.first_at)
        assert record.finish_reason == "length"


async def test_arrivals_never_wait_for_answers(tmp_path: Path) -> None:
    # No answer begins before all requests have arrived: a closed loop would hang.
    fake = FakeOpenAI(wait_for_all=6)
    report, _ = await replayed(fake, preble_trace(tmp_path / "t", PROMPTS, gap=0.02))
    assert report.num_complete == 6
    assert fake.num_connections >= 6


async def test_connections_are_used_again(tmp_path: Path) -> None:
    fake = FakeOpenAI()
    report, _ = await replayed(fake, preble_trace(tmp_path / "t", PROMPTS, gap=0.1))
    assert report.num_complete == 6
    assert fake.num_connections < 6


async def test_a_server_that_closes_connections(tmp_path: Path) -> None:
    fake = FakeOpenAI(mode="close")
    report, _ = await replayed(fake, preble_trace(tmp_path / "t", PROMPTS, gap=0.02))
    assert (report.num_complete, report.num_failed) == (6, 0)


@pytest.mark.parametrize(
    ("mode", "error"),
    [
        ("hang", "timeout"),
        ("break", "connection broken"),
        ("refuse", "HTTP 503 overloaded"),
        ("error", "worker_failed"),
        ("garbage", "connection broken"),
    ],
)
async def test_failures_by_reason(tmp_path: Path, mode: str, error: str) -> None:
    fake = FakeOpenAI(mode=mode)
    trace = preble_trace(tmp_path / "t", PROMPTS)
    report, progress = await replayed(fake, trace, timeout=0.3 if mode == "hang" else 20.0)
    assert (report.num_complete, report.failures) == (0, {error: 6})
    assert all(record.error == error and record.message for record in progress.records)
    if mode == "hang":
        await asyncio.sleep(0.05)
        assert fake.num_abandoned == 6


async def test_tokens_without_text_are_counted_at_the_end(tmp_path: Path) -> None:
    report, _ = await replayed(FakeOpenAI(mode="silent"), preble_trace(tmp_path / "t", PROMPTS))
    assert (report.num_complete, report.output_tokens, report.ttft.count) == (6, 24, 6)


async def test_a_server_without_usage_gives_short_answers(tmp_path: Path) -> None:
    report, _ = await replayed(FakeOpenAI(mode="no usage"), preble_trace(tmp_path / "t", PROMPTS))
    assert (report.num_complete, report.num_short, report.output_tokens) == (6, 6, 0)
    assert report.prompt_tokens == 6 * 31


async def test_tokens_stay_below_the_servers_vocabulary(tmp_path: Path) -> None:
    rows = [mooncake(0, [0, 1], tail=5)]
    trace = write_lines(tmp_path / "t", rows)
    for options, below in (({}, 500), ({"vocab_size": 50}, 50)):
        fake = FakeOpenAI(context=None)
        await replayed(fake, trace, **options)
        assert max(fake.bodies[0]["prompt"]) < below
    fake = FakeOpenAI(context=None, has_cluster=False)
    await replayed(fake, trace)
    assert max(fake.bodies[0]["prompt"]) > 10_000


async def test_another_seed_means_other_prompts_with_the_same_sharing(tmp_path: Path) -> None:
    trace = write_lines(tmp_path / "t", [mooncake(0, [0, 1]), mooncake(0, [0, 2])])
    seen = []
    for seed in (0, 0, 1):
        fake = FakeOpenAI(context=None)
        await replayed(fake, trace, seed=seed)
        seen.append(sorted(body["prompt"] for body in fake.bodies))
    assert seen[0] == seen[1]
    assert seen[0][0][:16] != seen[2][0][:16]
    assert all(first[:512] == second[:512] for first, second in seen)


async def test_requests_that_cannot_fit_stop_it_before_the_first(tmp_path: Path) -> None:
    trace = write_lines(tmp_path / "t", [mooncake(0, [0]), mooncake(0, [0, 1])])
    fake = FakeOpenAI(context=1000)
    with pytest.raises(ConfigError, match=r"t:2: 1,024 prompt .* --max-context 1000"):
        await replayed(fake, trace)
    assert not fake.bodies
    report, _ = await replayed(fake, trace, max_context=1000)
    assert report.num_complete == 2
    lengths = sorted(len(body["prompt"]) for body in fake.bodies)
    assert lengths == [496, 992]


async def test_key_namespace_and_path(tmp_path: Path) -> None:
    row = {"at": 0, "token_ids": [1, 2], "output_tokens": 1, "namespace": "acme"}
    trace = write_lines(tmp_path / "t", [{"preble_trace": 1}, row])
    fake = FakeOpenAI()
    report, _ = await replayed(fake, trace, path="/v1", api_key="secret")
    assert report.num_complete == 1
    assert fake.bodies[0]["cache_salt"] == "acme"
    assert all("authorization: Bearer secret" in head for head in fake.heads)


async def test_a_model_that_is_not_served(tmp_path: Path) -> None:
    trace = preble_trace(tmp_path / "t", PROMPTS)
    with pytest.raises(ConfigError, match="'other'"):
        await replayed(FakeOpenAI(), trace, model="other")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "grpc://127.0.0.1:1"])
async def test_nobody_listens(tmp_path: Path, url: str) -> None:
    options = ReplayOptions(trace=preble_trace(tmp_path / "t", PROMPTS), url=url)
    with pytest.raises(ConfigError, match=f"cannot use --url {url}"):
        await replay(options)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x:1", "http://:80", "http://x:port"])
async def test_a_url_that_is_none(tmp_path: Path, url: str) -> None:
    options = ReplayOptions(trace=preble_trace(tmp_path / "t", PROMPTS), url=url)
    with pytest.raises(ConfigError, match="--url must be"):
        await replay(options)


async def test_over_grpc(tmp_path: Path) -> None:
    router, progress = FakeRouter(), Progress()
    prompts = [[7] * 30 + [i] for i in range(4)]
    with serving(router) as address:
        trace = preble_trace(tmp_path / "t", prompts)
        options = ReplayOptions(trace=trace, url=f"grpc://{address}", timeout=20)
        report = await replay(options, progress=progress)
    assert (report.num_complete, report.num_short, report.output_tokens) == (4, 0, 16)
    assert (report.cached_tokens, report.predicted_cached_tokens) == (8, 4)
    assert report.workers[0].worker_id == "worker-1"
    assert progress.num_tokens == 16
    sampling = router.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.ignore_eos) == (4, 0.0, True)


async def test_failures_over_grpc(tmp_path: Path) -> None:
    router = FakeRouter()
    with serving(router) as address:
        trace = preble_trace(tmp_path / "t", PROMPTS)
        options = ReplayOptions(trace=trace, url=f"grpc://{address}")
        router.fail_with, router.fail_after = Overloaded("full"), 2
        report = await replay(options)
    assert report.failures == {"overloaded": 6}


async def test_stopping_breaks_off_what_is_in_flight(tmp_path: Path) -> None:
    fake, stop, progress = FakeOpenAI(mode="hang"), asyncio.Event(), Progress()
    async with serving_openai(fake) as url:
        trace = preble_trace(tmp_path / "t", PROMPTS, gap=0.02)
        slow = write_lines(
            tmp_path / "slow",
            [*trace.read_text().splitlines(), {"at": 999, "token_ids": [1], "output_tokens": 1}],
        )
        options = ReplayOptions(trace=slow, url=url)
        running = asyncio.create_task(replay(options, progress=progress, stop=stop))
        async with asyncio.timeout(20):
            while len(fake.bodies) < 6:  # noqa: ASYNC110 - the server is not told to tell
                await asyncio.sleep(0.01)
            stop.set()
            report = await running
        assert (report.num_planned, report.num_sent) == (7, 6)
        assert report.failures == {"interrupted": 6}
        await asyncio.sleep(0.05)
        assert fake.num_abandoned == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speed": 2.0, "rate": 1.0}, "exclude"),
        ({"scale_lengths": 2.0, "max_context": 5}, "exclude"),
        ({"speed": 0.0}, "--speed"),
        ({"speed": float("nan")}, "--speed"),
        ({"rate": -1.0}, "--rate"),
        ({"limit": 0}, "--limit"),
        ({"scale_lengths": 0.5}, "--scale-lengths"),
        ({"vocab_size": 3}, "--vocab-size"),
        ({"max_output_tokens": 0}, "--max-output-tokens"),
        ({"seed": -1}, "--seed"),
        ({"timeout": 0.0}, "--timeout"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    trace = preble_trace(tmp_path / "t", PROMPTS)
    with pytest.raises(ConfigError, match=message):
        selected_trace(ReplayOptions(trace=trace, url="http://x", **options))


def test_options_shape_the_requests(tmp_path: Path) -> None:
    rows = [mooncake(3000 * i, [0, i + 1], output=100) for i in range(5)]
    path = write_lines(tmp_path / "t", rows)

    def requests(**options: Any) -> ReplayOptions:
        return ReplayOptions(trace=path, url="http://x", **options)

    def times(**options: Any) -> list[float]:
        chosen = requests(**options)
        return arrival_times(selected_trace(chosen).requests, chosen)

    assert len(selected_trace(requests(limit=3)).requests) == 3
    assert times() == [0, 3, 6, 9, 12]
    assert times(speed=3.0) == [0, 1, 2, 3, 4]
    assert times(rate=2.0) == [0, 0.5, 1.0, 1.5, 2.0]
    halved = selected_trace(requests(scale_lengths=2.0, max_output_tokens=20)).requests[0]
    assert ([s.length for s in halved.segments], halved.output_tokens) == ([256, 256], 20)


class ServedElsewhere:
    """The fake server in a thread of its own: `run_replay` has its own event loop."""

    def __init__(self, fake: FakeOpenAI) -> None:
        self._fake = fake
        self._ready, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self.url = ""

    async def _serve(self) -> None:
        async with serving_openai(self._fake) as self.url:
            self._ready.set()
            await asyncio.to_thread(self._end.wait)

    def __enter__(self) -> str:
        self._thread.start()
        assert self._ready.wait(20)
        return self.url

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(20)


@pytest.mark.parametrize(("mode", "status"), [("ok", 0), ("refuse", 1)])
def test_the_command_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str, status: int
) -> None:
    out, requests_out = tmp_path / "results.json", tmp_path / "requests.jsonl"
    with ServedElsewhere(FakeOpenAI(mode=mode)) as url:
        options = ReplayOptions(
            trace=preble_trace(tmp_path / "t", PROMPTS),
            url=url,
            out=out,
            requests_out=requests_out,
            api_key="secret",
            seed=5,
        )
        assert run_replay(options) == status
    printed = capsys.readouterr()
    assert "TTFT" in printed.out and "6 requests" in printed.err
    results = json.loads(out.read_text())
    assert results["metrics"]["num_complete"] == (6 if status == 0 else 0)
    assert results["seed"] == 5 and results["command"] and results["date"]
    assert results["versions"]["preble"] and results["trace"]["requests"] == 6
    assert "secret" not in out.read_text()
    rows = [json.loads(line) for line in requests_out.read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(6))
    assert {row["error"] for row in rows} == ({""} if status == 0 else {"HTTP 503 overloaded"})


def test_a_result_file_that_cannot_be_written_costs_no_run(tmp_path: Path) -> None:
    trace = preble_trace(tmp_path / "t", PROMPTS)
    options = ReplayOptions(trace=trace, url="http://127.0.0.1:1", out=tmp_path / "no" / "file")
    with pytest.raises(ConfigError, match="cannot write"):
        run_replay(options)


def test_ctrl_c_prints_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeOpenAI(mode="hang")
    out = tmp_path / "results.json"

    def interrupt() -> None:
        while len(fake.bodies) < 6:
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    with ServedElsewhere(fake) as url:
        threading.Thread(target=interrupt).start()
        trace = preble_trace(tmp_path / "t", PROMPTS)
        assert run_replay(ReplayOptions(trace=trace, url=url, out=out)) == 130
    assert "6 interrupted" in capsys.readouterr().out
    assert json.loads(out.read_text())["metrics"]["failures"] == {"interrupted": 6}
