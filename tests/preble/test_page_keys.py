"""Packed tokens and page keys."""

import hypothesis.strategies as st
import numpy as np
import pytest
import xxhash
from hypothesis import given

from preble.page_keys import (
    KEY_BYTES,
    key_sum,
    namespace_page,
    namespace_seed,
    num_tokens,
    pack_tokens,
    page_keys,
    unpack_tokens,
)

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=100)


@given(TOKENS)
def test_packing_is_exact_both_ways(ids: list[int]) -> None:
    packed = pack_tokens(ids)
    assert unpack_tokens(packed).tolist() == ids
    assert num_tokens(packed) == len(ids)


@pytest.mark.parametrize("bad", [-1, 2**32])
def test_ids_outside_of_32_bits_are_refused(bad: int) -> None:
    with pytest.raises(OverflowError):
        pack_tokens([1, bad])


@given(TOKENS, st.sampled_from([1, 4, 16]), st.integers(0, 2**64 - 1))
def test_a_key_is_the_seeded_hash_of_its_page(ids: list[int], page: int, seed: int) -> None:
    path = page_keys(pack_tokens(ids), page_tokens=page, seed=seed)
    assert len(path) == len(ids) // page * KEY_BYTES
    for i in range(len(ids) // page):
        own = np.array(ids[i * page : (i + 1) * page], dtype="<u4").tobytes()
        key = int.from_bytes(path[i * KEY_BYTES : (i + 1) * KEY_BYTES], "big")
        assert key == xxhash.xxh3_64_intdigest(own, seed)


@given(TOKENS, st.integers(0, 5))
def test_keys_of_a_prefix_are_a_prefix_of_the_keys(ids: list[int], cut: int) -> None:
    whole = page_keys(pack_tokens(ids), page_tokens=4)
    assert whole.startswith(page_keys(pack_tokens(ids[: cut * 4]), page_tokens=4))


def test_namespaces_share_no_keys() -> None:
    tokens = pack_tokens(range(64))
    paths = {page_keys(tokens, seed=namespace_seed(name)) for name in ("", "a", "b")}
    assert len(paths) == 3
    assert namespace_seed("") == 0


def test_the_namespace_page_has_the_width_of_a_page_and_differs_by_name() -> None:
    pages = {namespace_page(name, 64) for name in ("", "a", "b")}
    assert len(pages) == 3 and all(len(page) == 64 for page in pages)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_key_sum_is_the_sum_modulo_64_bits_in_any_order(keys: list[int]) -> None:
    path = b"".join(key.to_bytes(KEY_BYTES, "big") for key in keys)
    back = b"".join(key.to_bytes(KEY_BYTES, "big") for key in reversed(keys))
    assert key_sum(path) == sum(keys) % 2**64 == key_sum(back)
