"""Requests through the dispatcher over real links: exact output, one end, honest books."""

from fake_worker import FakeWorker
from router_helpers import assert_exact, cluster, generation_request


async def test_a_request_is_answered_exactly() -> None:
    worker = FakeWorker()
    async with cluster(worker) as dispatcher:
        generation = dispatcher.start(generation_request())
        assert generation.worker_id == "w0"
        deltas = await assert_exact(generation)
        assert deltas[-1].cached_tokens == 0
        assert dispatcher.num_live == 0
