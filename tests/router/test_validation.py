"""Which values of a request's fields are allowed; the edges of each range."""

from dataclasses import replace
from typing import Any

import pytest

from preble.errors import InvalidRequest
from preble.page_keys import pack_tokens
from preble.types import SamplingParams
from preble_router.validation import (
    check_name,
    check_priority,
    check_sampling,
    check_stop,
    check_tokens,
)

GOOD = SamplingParams(max_tokens=1)


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 2**31 - 1},
        {"temperature": 2.0},
        {"top_p": 1e-9},
        {"top_k": 2**31 - 1},
        {"seed": 2**64 - 1},
        {"stop_token_ids": tuple(range(64))},
    ],
)
def test_the_edges_are_allowed(change: dict[str, Any]) -> None:
    check_sampling(replace(GOOD, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 0},
        {"max_tokens": 2**31},
        {"temperature": -0.1},
        {"temperature": 2.01},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": float("nan")},
        {"top_k": -1},
        {"seed": -1},
        {"seed": 2**64},
        {"stop_token_ids": tuple(range(65))},
        {"stop_token_ids": (-1,)},
    ],
)
def test_beyond_them_the_field_is_named(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_sampling(replace(GOOD, **change))
    (field,) = change
    assert caught.value.field == field
    assert field in str(caught.value)


def test_a_field_is_called_what_the_caller_called_it() -> None:
    with pytest.raises(InvalidRequest, match="max_completion_tokens") as caught:
        check_sampling(replace(GOOD, max_tokens=0), max_tokens_field="max_completion_tokens")
    assert caught.value.field == "max_completion_tokens"


def test_stop_strings() -> None:
    check_stop(["x" * 1024] * 16)
    for wrong in (["x"] * 17, [""], ["x" * 1025]):
        with pytest.raises(InvalidRequest) as caught:
            check_stop(wrong)
        assert caught.value.field == "stop"


def test_tokens() -> None:
    check_tokens(pack_tokens([0, 99]), vocab_size=100)
    for wrong in (b"", b"\0\0\0\0\0", pack_tokens([100])):
        with pytest.raises(InvalidRequest) as caught:
            check_tokens(wrong, vocab_size=100, field="tokens")
        assert caught.value.field == "tokens"


def test_names_and_priorities() -> None:
    check_name("", field="namespace")
    check_name("täglich " * 32, field="namespace")
    for wrong in ("x" * 257, "a\nb", "\0"):
        with pytest.raises(InvalidRequest):
            check_name(wrong, field="namespace")
    check_priority(-(2**31))
    with pytest.raises(InvalidRequest):
        check_priority(2**31)
