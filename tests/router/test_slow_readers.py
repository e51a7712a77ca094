"""Clients that stop to read their streams."""

import pytest
from fake_worker import FakeWorker
from router_helpers import cluster, generation_request, until

from preble.errors import SlowReader
from preble_router.slow_readers import SlowReaders


class Reader:
    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.num_read_bytes = 0
        self.num_unread_bytes = 0


def test_only_who_reads_nothing_for_long_is_found() -> None:
    slow, steady, idle = Reader("slow"), Reader("steady"), Reader("idle")
    readers = SlowReaders(10.0)
    slow.num_unread_bytes = steady.num_unread_bytes = 400
    found = []
    for second in range(15):
        steady.num_read_bytes += 4
        found.append(readers.find([slow, steady, idle], now=float(second)))
    assert found[:10] == [[]] * 10 and found[10] == [slow]
    slow.num_read_bytes = 4
    assert readers.find([slow, steady], now=15.0) == []


def test_it_looks_once_a_second_and_not_at_all_without_a_limit() -> None:
    slow = Reader("slow")
    slow.num_unread_bytes = 4
    assert all(not SlowReaders(0.0).find([slow], now=float(at)) for at in range(1000))
    readers = SlowReaders(0.1)
    assert readers.find([slow], now=0.0) == []
    assert readers.find([slow], now=0.5) == []
    assert readers.find([slow], now=1.0) == [slow]


async def test_a_stream_that_nobody_reads_is_cut_off_and_its_worker_freed() -> None:
    worker = FakeWorker(step_seconds=0.02)
    async with cluster(worker, slow_reader_seconds=0.1) as dispatcher:
        unread = dispatcher.start(generation_request("unread", max_tokens=2000))
        await until(lambda: unread.done)
        await until(lambda: [cancel.request_id for cancel in worker.cancels] == ["unread"])
        assert unread.num_output_tokens < 2000
        with pytest.raises(SlowReader, match="not read"):
            async for _ in unread:
                pass
        assert dispatcher.attempts.outcomes == {"slow_reader": 1}
