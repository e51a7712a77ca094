"""Tokens and lengths of a trace's prompts: what is shared in the trace is shared in the tokens."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loadgen_helpers import mooncake, write_lines

from preble.errors import ConfigError
from preble.page_keys import pack_tokens
from preble_loadgen.arrivals import at_rate, at_speed
from preble_loadgen.prompts import PromptMaker, every_nth, splitmix64
from preble_loadgen.scaling import fits, fitting_factor, prompt_tokens, scaled
from preble_loadgen.trace_request import PRIVATE_ID, Segment, TraceRequest
from preble_loadgen.traces import load_trace

PAGE = 16
WIDE = 2**32 - 1
"""A vocabulary in which no two tokens meet by chance."""


def shared(a: np.ndarray, b: np.ndarray) -> int:
    """Leading tokens that are equal."""
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length


def request(*segments: tuple[int, int], index: int = 0, output: int = 1) -> TraceRequest:
    return TraceRequest(
        index=index,
        line=index + 1,
        at=0.0,
        segments=tuple(Segment(*s) for s in segments),
        output_tokens=output,
    )


def explicit(*tokens: int) -> TraceRequest:
    return TraceRequest(
        index=0, line=1, at=0.0, token_ids=pack_tokens(list(tokens)), output_tokens=1
    )


@st.composite
def families(draw: st.DrawFn) -> tuple[TraceRequest, TraceRequest, int]:
    """Two prompts of 512-token blocks, and how many blocks they share."""
    ids = st.integers(0, 2**31 - 1)
    common = draw(st.lists(ids, min_size=0, max_size=6, unique=True))
    other_ids = ids.filter(lambda i: i not in common)
    ends = draw(st.tuples(other_ids, other_ids).filter(lambda pair: pair[0] != pair[1]))
    tails = draw(st.tuples(st.integers(1, 511), st.integers(1, 511)))
    first, second = (
        request(*((i, 512) for i in common), (end, 512), (PRIVATE_ID + n, tail))
        for n, (end, tail) in enumerate(zip(ends, tails, strict=True))
    )
    return first, second, len(common)


@given(families(), st.integers(0, 2**32 - 1))
def test_requests_share_their_common_blocks_and_nothing_more(
    family: tuple[TraceRequest, TraceRequest, int], salt: int
) -> None:
    first, second, blocks = family
    maker = PromptMaker(vocab_size=WIDE, salt=salt)
    assert shared(maker.tokens(first), maker.tokens(second)) == blocks * 512
    narrow = PromptMaker(vocab_size=512, salt=salt)
    common = shared(narrow.tokens(first), narrow.tokens(second))
    assert blocks * 512 <= common < blocks * 512 + PAGE


@given(families(), st.floats(1.0, 600.0))
def test_scaling_keeps_what_is_shared(
    family: tuple[TraceRequest, TraceRequest, int], factor: float
) -> None:
    first, second, blocks = (*(scaled(r, factor) for r in family[:2]), family[2])
    maker = PromptMaker(vocab_size=WIDE)
    block = first.segments[0].length
    assert block == max(1, int(512 / factor + 1e-9))
    assert shared(maker.tokens(first), maker.tokens(second)) == blocks * block


@given(
    st.lists(st.integers(0, 3), max_size=40),
    st.lists(st.integers(0, 3), max_size=40),
    st.lists(st.integers(0, 3), max_size=40),
    st.floats(1.0, 50.0),
)
def test_explicit_tokens_keep_their_shared_part_too(
    common: list[int], one: list[int], other: list[int], factor: float
) -> None:
    both = [[9, *common, *end] for end in (one, other)]
    first, second = (
        PromptMaker(vocab_size=64).tokens(scaled(explicit(*tokens), factor)) for tokens in both
    )
    for tokens, unscaled in ((first, both[0]), (second, both[1])):
        assert len(tokens) == max(1, int(len(unscaled) / factor + 1e-9))
    assert shared(first, second) >= min(len(first), len(second), int((1 + len(common)) / factor))


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1), st.integers(4, 10_000))
def test_tokens_stay_below_the_vocabulary(tokens: list[int], vocab_size: int) -> None:
    maker = PromptMaker(vocab_size=vocab_size)
    folded = maker.tokens(explicit(*tokens))
    assert int(folded.max()) < vocab_size
    known = [i for i, token in enumerate(tokens) if token < vocab_size]
    assert [int(folded[i]) for i in known] == [tokens[i] for i in known]
    made = maker.tokens(request((tokens[0] % PRIVATE_ID, 100)))
    assert vocab_size // 4 <= int(made.max()) < vocab_size or int(made.max()) >= 1000


def test_the_function_of_the_tokens_is_fixed() -> None:
    # SplitMix64's published test vector: seed 0, whose first state is the increment itself.
    assert int(splitmix64(np.zeros(1, dtype=np.uint64))[0]) == 0xE220A8397B1DCDAF
    mask = 2**64 - 1

    def expected(node: int, i: int) -> int:
        z = ((node << 32 | i) + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
        return 1000 + (z ^ z >> 31) % (32_000 - 2000)

    tokens = PromptMaker(vocab_size=32_000, salt=6).tokens(request((3, 5), (2**31 + 9, 2)))
    nodes = [(3 ^ 6, i) for i in range(5)] + [((2**31 + 9) ^ 6, i) for i in range(2)]
    assert tokens.tolist() == [expected(*node) for node in nodes]


def test_files_with_other_names_share_nothing(tmp_path: Path) -> None:
    prompts = []
    for name in ("a.jsonl", "b.jsonl", "a.jsonl.gz"):
        trace = load_trace(write_lines(tmp_path / name, [mooncake(0, [0, 1])]))
        prompts.append(PromptMaker(vocab_size=WIDE, salt=trace.salt).tokens(trace.requests[0]))
    assert shared(prompts[0], prompts[1]) == 0
    assert shared(prompts[0], prompts[2]) == 1024


def test_tails_are_private(tmp_path: Path) -> None:
    rows = [mooncake(0, [0, 1], tail=100)] * 2
    trace = load_trace(write_lines(tmp_path / "t", rows))
    first, second = map(PromptMaker(vocab_size=WIDE).tokens, trace.requests)
    assert shared(first, second) == 512 and len(first) == len(second) == 612


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 3000)), min_size=1, max_size=8),
    st.integers(200, 40_000),
)
@settings(deadline=None)
def test_fitted_block_traces_fit_and_use_whole_pages_where_they_can(
    shapes: list[tuple[int, int]], context: int
) -> None:
    requests = [
        request(*((block, 512) for block in range(n)), index=i, output=output)
        for i, (n, output) in enumerate(shapes)
    ]
    factor = fitting_factor(requests, context, block_tokens=512)
    block = scaled(requests[0], factor).segments[0].length
    assert all(fits(scaled(r, factor), context) for r in requests)
    assert block % PAGE == 0 or block < PAGE
    larger = block + (PAGE if block >= PAGE else 1)
    if factor > 1 and larger <= 512:
        assert not all(fits(scaled(r, 512 / larger), context) for r in requests)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=10), st.integers(10, 4000))
def test_fitted_traces_without_blocks_fit(lengths: list[int], context: int) -> None:
    requests = [request((i, n), index=i, output=n) for i, n in enumerate(lengths)]
    factor = fitting_factor(requests, context)
    longest = max(2 * n for n in lengths)
    assert all(fits(scaled(r, factor), context) for r in requests)
    assert factor <= max(1.0, longest / context * 1.02)


def test_what_cannot_fit() -> None:
    hopeless = request(*((i, 512) for i in range(10)))
    for block_tokens in (0, 512):
        with pytest.raises(ConfigError, match="no scale"):
            fitting_factor([hopeless], 10, block_tokens=block_tokens)


def test_a_trace_that_fits_is_left_alone() -> None:
    assert fitting_factor([request((1, 512))], 600, block_tokens=512) == 1.0
    assert every_nth(pack_tokens([1, 2, 3]), 1.0) == pack_tokens([1, 2, 3])
    assert prompt_tokens(explicit(1, 2, 3)) == 3


def test_speed_and_rate() -> None:
    assert at_speed([5.0, 6.0, 9.0], 2.0) == [0.0, 0.5, 2.0]
    assert at_speed([5.0, 6.0], float("inf")) == [0.0, 0.0]
    rescaled = at_rate([5.0, 6.0, 9.0], 10.0, rng=random.Random(0))
    assert rescaled == pytest.approx([0.0, 0.05, 0.2])
    poisson = at_rate([0.0] * 2000, 10.0, rng=random.Random(0))
    assert poisson == at_rate([0.0] * 2000, 10.0, rng=random.Random(0))
    assert poisson[-1] == pytest.approx(200, rel=0.1)
    gaps = np.diff(poisson)
    assert float(gaps.std() / gaps.mean()) == pytest.approx(1.0, rel=0.1)
    assert at_rate([3.0], 10.0, rng=random.Random(0)) == [0.0]
