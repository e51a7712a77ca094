"""Sizes and prices of tiers from first principles, and who cannot have them."""

import numpy as np
import pytest

from preble.cost_library import load_cost_model
from preble.errors import ConfigError
from preble_worker.batch import Direction, seconds_with_copies
from preble_worker.config import NO_TIERS, TierConfig
from preble_worker.estimated_tiers import named_tiers
from preble_worker.host_pages import make_move


def tiers(name: str, *wanted: str, **sizes: float) -> TierConfig:
    return named_tiers(name, wanted, kv_tokens=16_000, page_tokens=16, **sizes)


def test_without_tiers_nothing_need_be_known() -> None:
    assert tiers("my own file") is NO_TIERS


def test_opt_keeps_two_hidden_tokens_where_one_has_keys_and_values() -> None:
    found = tiers("opt-13b-a100-40gb", "host", "int8", "hidden")
    assert (found.hidden_page_tokens, found.host_pages, found.int8) == (32, 4000, True)
    assert found.page_bytes == 16 * 2 * 2 * 40 * 5120
    assert found.copy_seconds == pytest.approx(0.5 * found.page_bytes / 25e9)
    assert load_cost_model("opt-13b-a100-40gb").per_hidden_token > 0.0


@pytest.mark.parametrize("name", ["opt-13b-a100-40gb", "llama-3-8b-h100"])
def test_int8_keeps_nearly_twice_as_many_tokens_whatever_the_heads(name: str) -> None:
    """A number of 2 bytes becomes one byte, and 128 of them a scale of 4."""
    found = tiers(name, "int8-resident")
    assert (found.int8_page_tokens, found.hidden_page_tokens, found.host_pages) == (31, 0, 0)
    cost = load_cost_model(name)
    assert 0.0 < cost.int8_token_seconds < cost.per_context_token


def test_grouped_heads_have_no_hidden_form_and_it_is_said_why() -> None:
    with pytest.raises(ConfigError, match=r"d_model = 4096 .* 2·n_kv·d_h = 2048"):
        tiers("llama-3-8b-h100", "hidden")
    assert load_cost_model("llama-3-8b-h100").per_hidden_token == 0.0


def test_a_cost_model_is_found_by_the_name_it_bears() -> None:
    name = load_cost_model("llama-3-8b-h100").name
    assert tiers(name, "host") == tiers("llama-3-8b-h100", "host")


@pytest.mark.parametrize(
    ("name", "wanted", "message"),
    [
        (
            "llama-3-8b-h100",
            ("disk",),
            "'disk' is none; allowed are host, int8, hidden, int8-resident",
        ),
        ("llama-3-8b-h100", ("int8",), "but no 'host'"),
        ("measured.json", ("host",), "sizes are known only"),
    ],
)
def test_what_cannot_be_is_refused(name: str, wanted: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiers(name, *wanted)


def test_copies_cross_beside_the_step_unless_it_reads_them() -> None:
    pages = named_tiers("llama-3-8b-h100", ("host",), kv_tokens=1600, page_tokens=16)
    some = np.arange(10, dtype=np.int32)
    seconds = 10 * pages.page_copy_seconds

    def step(direction: Direction, *, before_step: bool, int8: bool = False) -> float:
        move = make_move(direction, some, some, int8=int8, before_step=before_step)
        return seconds_with_copies(seconds / 2, (move,), pages)

    assert step(Direction.UPLOAD, before_step=True) == pytest.approx(1.5 * seconds)
    assert step(Direction.UPLOAD, before_step=False) == pytest.approx(seconds)
    assert step(Direction.OFFLOAD, before_step=True) == pytest.approx(seconds)
    assert step(Direction.UPLOAD, before_step=True, int8=True) == pytest.approx(seconds)
