"""What the router learns of output lengths from requests that end in every way."""

import asyncio

from fake_worker import FakeWorker
from gateway_helpers import chat_tokenizer
from router_helpers import (
    PROMPT,
    assert_exact,
    cluster,
    collect,
    generation_request,
    midway,
    until,
)

from preble.page_keys import pack_tokens
from preble_router.lengths.forecasts import LengthForecasts
from preble_router.lengths.prefix_mean import PrefixMean
from preble_router.metrics import Metrics
from preble_router.text_generation import TextGeneration


def learning() -> LengthForecasts:
    return LengthForecasts(PrefixMean())


async def test_finished_requests_are_learnt_from_and_predictions_are_sent() -> None:
    worker, forecasts = FakeWorker(), learning()
    async with cluster(worker, forecasts=forecasts) as dispatcher:
        await assert_exact(dispatcher.start(generation_request("q0", max_tokens=30)))
        await assert_exact(dispatcher.start(generation_request("q1", max_tokens=300)))
        other = generation_request("q2", max_tokens=300, tenant="other")
        await assert_exact(dispatcher.start(other))
        first, second, third = (submit.predicted_output_tokens for submit in worker.submits)
        assert first == 30, "the scheduler's own guess, while nothing is known"
        assert second == 30, "as its equal before"
        assert third == 165, "nothing is known of that tenant: the scheduler's mean"
        assert forecasts.accuracy().num_requests == 3
        assert dispatcher.explain(PROMPT, max_tokens=500).placement.predicted_output_tokens == 165
        metrics, _ = await Metrics().render(dispatcher.status(), accept="")
        assert b"preble_router_output_length_error_tokens 135.0" in metrics


async def test_requests_that_are_broken_off_teach_nothing() -> None:
    worker, forecasts = FakeWorker(), learning()
    async with cluster(worker, forecasts=forecasts) as dispatcher:
        cancelled = dispatcher.start(generation_request("q0", max_tokens=1000))
        await until(lambda: cancelled.num_output_tokens > 3)
        cancelled.cancel()
        worker.faults.engine_error = "boom"
        failed = dispatcher.start(generation_request("q1"))
        await asyncio.gather(collect(failed), return_exceptions=True)
        assert forecasts.accuracy().num_requests == 0


async def test_a_stop_string_is_an_end_like_any_other() -> None:
    forecasts, tokenizer = learning(), chat_tokenizer()
    worker = FakeWorker(vocab_size=tokenizer.vocab_size)
    async with cluster(worker, forecasts=forecasts) as dispatcher:
        tokens = pack_tokens(list(range(40, 60)))
        request = generation_request("q0", tokens=tokens, max_tokens=60)
        text = "".join([d.text async for d in TextGeneration(dispatcher.start(request), tokenizer)])
        stop = text[len(text) // 2 :][:4]
        request = generation_request("q1", tokens=tokens, max_tokens=60)
        stopped = TextGeneration(dispatcher.start(request), tokenizer, stop=[stop])
        assert "".join([delta.text async for delta in stopped]) == text.partition(stop)[0]
        assert forecasts.accuracy().num_requests == 2


async def test_a_request_that_moved_counts_once_with_all_its_output() -> None:
    dying, other, forecasts = FakeWorker("w0"), FakeWorker("w1"), learning()
    async with cluster(dying, other, forecasts=forecasts) as dispatcher:
        tasks = await midway(dispatcher, "q0", max_tokens=200)
        dying.break_streams()
        await asyncio.gather(*tasks)
        assert [submit.attempt for submit in (*dying.submits, *other.submits)] == [1, 2]
        assert forecasts.accuracy().num_requests == 1
        assert forecasts.accuracy().mean_absolute_error == 0, "200 were predicted and 200 came"
