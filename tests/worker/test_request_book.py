"""Whose requests are whose, whatever routers call them."""

import random

import pytest

from preble.page_keys import pack_tokens
from preble.types import FinishReason, RequestOutput, SamplingParams, WorkerRequest
from preble_worker.admission import refusal
from preble_worker.request_book import RequestBook


def request(request_id: str = "r", attempt: int = 1) -> WorkerRequest:
    return WorkerRequest(
        request_id=request_id,
        tokens=b"abcd",
        sampling=SamplingParams(max_tokens=1),
        attempt=attempt,
    )


def output(key: str, reason: FinishReason | None = None) -> RequestOutput:
    return RequestOutput(request_id=key, attempt=1, position=0, finish_reason=reason)


def test_equal_ids_of_two_links_stay_apart():
    book = RequestBook()
    first, second = book.admit(1, request()), book.admit(2, request())
    assert first.request.request_id != second.request.request_id
    assert (first.replaced, second.replaced) == (None, None)
    assert book.settle(output(first.request.request_id)).link == 1
    owner = book.settle(output(second.request.request_id, FinishReason.LENGTH))
    assert (owner.link, owner.request_id) == (2, "r")
    assert book.withdraw(1, "r", 1) == first.request.request_id
    assert book.withdraw(2, "r", 1) is None, "it ended"
    book.check()


def test_a_later_attempt_replaces_and_both_ends_are_reported():
    book = RequestBook()
    old = book.admit(1, request(attempt=1)).request.request_id
    admission = book.admit(1, request(attempt=2))
    assert admission.replaced == old
    assert book.settle(output(old, FinishReason.CANCELLED)).attempt == 1
    assert book.withdraw(1, "r", 2), "the old attempt's end is not the request's"
    book.check()


def test_an_attempt_that_is_there_already_is_not_admitted_again():
    book = RequestBook()
    book.admit(1, request(attempt=2))
    assert book.admit(1, request(attempt=2)) is None
    assert book.admit(1, request(attempt=1)) is None
    assert len(book) == 1


def test_withdrawing_names_an_attempt_and_older_ones():
    book = RequestBook()
    key = book.admit(1, request(attempt=2)).request.request_id
    assert book.withdraw(1, "r", 1) is None
    assert book.withdraw(2, "r", 2) is None
    assert book.withdraw(1, "r", 2) == key
    assert book.withdraw(1, "r", 2) is None
    again = book.admit(1, request(attempt=2))
    assert again is not None, "a cancelled id may be used again before its end is reported"
    assert again.replaced is None
    assert again.request.request_id != key
    book.check()


def test_random_lives_leave_nothing_behind():
    rng = random.Random(3)
    book = RequestBook()
    keys: list[str] = []
    for _ in range(3000):
        link, request_id = rng.randrange(3), f"r{rng.randrange(5)}"
        match rng.randrange(6):
            case 0 | 1:
                admission = book.admit(link, request(request_id, rng.randrange(1, 5)))
                keys += [admission.request.request_id] if admission else []
            case 2:
                book.withdraw(link, request_id, rng.randrange(1, 5))
            case 3 | 4 if keys:
                book.settle(output(keys.pop(rng.randrange(len(keys))), FinishReason.STOP))
            case 5 if rng.random() < 0.1:
                released = book.release(link)
                assert set(released) <= set(keys)
        book.check()
    for link in range(3):
        book.release(link)
    assert len(book) == 0
    assert all(book.settle(output(key, FinishReason.CANCELLED)) is None for key in keys)


@pytest.mark.parametrize(
    ("changes", "sampling", "words"),
    [
        ({"tokens": b""}, {}, "whole tokens"),
        ({"tokens": b"abc"}, {}, "whole tokens"),
        ({"tokens": pack_tokens([1, 100])}, {}, "token id 100 is outside"),
        ({"num_delivered": 2}, {}, "leave no prompt"),
        ({}, {"temperature": float("nan")}, "temperature is nan"),
        ({}, {"temperature": -1.0}, "temperature is -1.0"),
        ({}, {"top_p": 0.0}, "top_p is 0.0"),
        ({}, {"top_p": float("nan")}, "top_p is nan"),
        ({}, {}, ""),
        ({"tokens": pack_tokens([0, 99]), "num_delivered": 1}, {"top_p": 1.0}, ""),
    ],
)
def test_what_the_engine_could_not_stand_is_refused(changes, sampling, words: str):
    values = {"request_id": "r", "tokens": pack_tokens([1, 2])} | changes
    refused = refusal(
        WorkerRequest(**values, sampling=SamplingParams(max_tokens=5, **sampling)), vocab_size=100
    )
    assert (words in refused) if words else (refused == "")
