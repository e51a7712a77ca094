"""Paged attention against its definition, on random batches with random sharing of pages."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from preble_worker.attention import TorchAttention
from preble_worker.attention_parts import attend_part, causal_mask, visible_mask
from preble_worker.attention_plan import (
    Sharing,
    StepPlan,
    find_sharing,
    plan_step,
    plan_windowed_step,
)
from preble_worker.batch import Batch, SlotTables
from preble_worker.kv_pool import KVPool, KVShape, bytes_per_token
from preble_worker.model_runner import gather_inputs

PAGE = 4
NUM_PAGES = 600
CPU = torch.device("cpu")


def random_batch(rng: np.random.Generator, *, prefix_pages: int = 0) -> Batch:
    """Requests whose leading pages are shared along a random tree, in random phases."""
    num_decodes, num_prefills = int(rng.integers(0, 9)), int(rng.integers(0, 5))
    num = max(1, num_decodes + num_prefills)
    num_decodes = min(num_decodes, num)
    tables = SlotTables(16, 128)
    free = iter(rng.permutation(NUM_PAGES).tolist())
    root = [next(free) for _ in range(prefix_pages or int(rng.integers(0, 60)))]
    paths = [root, root]
    for _ in range(3):
        path = paths[int(rng.integers(len(paths)))]
        kept = path[: int(rng.integers(0, len(path) + 1))]
        paths.append(kept + [next(free) for _ in range(int(rng.integers(0, 30)))])
    slots = rng.permutation(16)[:num]
    starts, counts = np.zeros(num, np.int64), np.ones(num, np.int64)
    for row, slot in enumerate(slots.tolist()):
        path = paths[int(rng.integers(len(paths)))]
        starts[row] = len(path) * PAGE + int(rng.integers(0, 20))
        if row >= num_decodes:
            counts[row] = int(rng.integers(1, 20))
            if rng.random() < 0.3:
                path, starts[row] = [], 0
        elif starts[row] == 0:
            starts[row] = 1
        total = -(-int(starts[row] + counts[row]) // PAGE)
        pages = (path + [next(free) for _ in range(max(0, total - len(path)))])[:total]
        tables.pages[slot, :total] = pages
        tables.pages[slot, total:] = rng.integers(0, NUM_PAGES, 128 - total)
    return Batch(
        step=1,
        slots=slots.astype(np.int64),
        starts=starts,
        counts=counts,
        samples=np.ones(num, dtype=np.bool_),
        num_decodes=num_decodes,
        prefill_tokens=np.zeros(int(counts[num_decodes:].sum()), np.int64),
        tables=tables,
        context_tokens=0,
        attention=0.0,
        composition=int(rng.integers(1 << 40)),
    )


def keys_of(batch: Batch, row: int) -> list[int]:
    """Places in the pool of the keys of a row, its chunk's own included."""
    pages = batch.tables.pages[batch.slots[row]]
    length = int(batch.starts[row] + batch.counts[row])
    return [int(pages[i // PAGE]) * PAGE + i % PAGE for i in range(length)]


def expected_keys(batch: Batch, window: int | None) -> list[list[int]]:
    """Per token of the batch, the places it must see, in order."""
    seen = []
    for row in range(len(batch.slots)):
        places = keys_of(batch, row)
        for position in range(int(batch.starts[row]), len(places)):
            lowest = 0 if window is None else max(0, position - window + 1)
            seen.append(places[lowest : position + 1])
    return seen


def planned_keys(batch: Batch, plan: StepPlan, window: int | None) -> list[list[int]]:
    """Per token of the batch, the places it sees by the plan, sorted; doubles would show."""
    places = gather_inputs(batch, page_tokens=PAGE).places
    seen: list[list[int]] = [[] for _ in places]

    def flat(pages: np.ndarray) -> np.ndarray:
        return (pages[:, None] * PAGE + np.arange(PAGE)).ravel()

    for span in plan.spans:
        for token in span.queries.tolist():
            seen[token] += flat(span.pages)[: span.num_tokens].tolist()
    for tails in plan.tails:
        for i, token in enumerate(tails.queries.tolist()):
            seen[token] += flat(tails.pages[i])[tails.begins[i] : tails.ends[i]].tolist()
    for chunks in plan.chunks:
        for token in range(chunks.num * chunks.count):
            first = chunks.begin + token - token % chunks.count
            seen[chunks.begin + token] += places[first : chunks.begin + token + 1].tolist()
    for chunk in plan.windowed_chunks:
        assert window is not None
        for i in range(chunk.count):
            end = chunk.offset + i + 1
            seen[chunk.begin + i] += flat(chunk.pages)[max(0, end - window) : end].tolist()
    return [sorted(keys) for keys in seen]


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("window", [None, 1, 9, 10_000])
def test_plan_shows_each_token_its_keys_once(seed: int, window: int | None) -> None:
    batch = random_batch(np.random.default_rng(seed))
    if window is None:
        plan = plan_step(batch, find_sharing(batch, page_tokens=PAGE), page_tokens=PAGE)
    else:
        plan = plan_windowed_step(batch, window=window, page_tokens=PAGE)
    expected = [sorted(keys) for keys in expected_keys(batch, window)]
    assert planned_keys(batch, plan, window) == expected


def definition(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> torch.Tensor:
    """One token: query (heads, dim), keys and values (num_keys, kv heads, dim)."""
    group = query.shape[0] // keys.shape[1]
    keys, values = (x.repeat_interleave(group, dim=1).transpose(0, 1) for x in (keys, values))
    weights = torch.softmax((keys @ query[:, :, None]) * scale, dim=1)
    return (weights * values).sum(dim=1)


@pytest.mark.parametrize("value_dim", [8, 6])
@pytest.mark.parametrize("window", [None, 7, 64])
@pytest.mark.parametrize("seed", range(8))
def test_attention_is_its_definition(seed: int, window: int | None, value_dim: int) -> None:
    """With equal widths by the fused operation, with others by the plain one."""
    batch = random_batch(np.random.default_rng(100 + seed), prefix_pages=40)
    generator = torch.Generator().manual_seed(seed)
    pool = KVPool(
        [KVShape(2, 8, value_dim)] * 2,
        num_pages=NUM_PAGES,
        page_tokens=PAGE,
        dtype=torch.float32,
        device=CPU,
    )
    everything = torch.arange(NUM_PAGES * PAGE)
    keys = torch.randn(len(everything), 2, 8, generator=generator)
    values = torch.randn(len(everything), 2, value_dim, generator=generator)
    pool.store(1, everything, keys, values)
    inputs = gather_inputs(batch, page_tokens=PAGE)
    places = torch.from_numpy(inputs.places)
    query = torch.randn(len(places), 6, 8, generator=generator)
    new_keys = torch.randn(len(places), 2, 8, generator=generator)
    new_values = torch.randn(len(places), 2, value_dim, generator=generator)
    keys[places], values[places] = new_keys, new_values
    step = TorchAttention(pool, dtype=torch.float32, device=CPU).begin(batch, places)
    output = step.attend(1, query, new_keys, new_values, scale=0.9, window=window)
    for token, visible in enumerate(expected_keys(batch, window)):
        expected = definition(query[token], keys[visible], values[visible], 0.9)
        torch.testing.assert_close(output[token], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_causal", [False, True])
def test_parts_report_the_log_sum_exp(is_causal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 3, 70, 16, generator=generator) for _ in range(2))
    mask = causal_mask(70, 70, window=None, dtype=torch.float32, device=CPU) if is_causal else 0.0
    scores = query @ key.transpose(-1, -2) * 0.5 + mask
    for value in (key, key[..., :4]):
        output, lse = attend_part(query, key, value, scale=0.5, is_causal=is_causal)
        torch.testing.assert_close(lse, scores.logsumexp(-1))
        torch.testing.assert_close(output, scores.softmax(-1) @ value, rtol=1e-4, atol=1e-5)


def test_queries_in_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 33, 8, generator=generator) for _ in range(2))
    value = key[..., :4]
    whole = attend_part(query, key, value, scale=1.0, is_causal=True)
    monkeypatch.setattr("preble_worker.attention_parts.SCORE_BYTES", 4 * 2 * 33 * 5)
    blocks = attend_part(query, key, value, scale=1.0, is_causal=True)
    torch.testing.assert_close(whole, blocks)


def test_masks_hide_what_lies_outside() -> None:
    hidden = float("-inf")
    mask = causal_mask(2, 4, window=2, dtype=torch.float32, device=CPU)
    assert mask.tolist() == [[hidden, 0, 0, hidden], [hidden, hidden, 0, 0]]
    mask = visible_mask(torch.tensor([0, 1]), torch.tensor([2, 3]), 3, torch.float32)
    assert mask[:, 0, 0].tolist() == [[0, 0, hidden], [hidden, 0, 0]]


def sharing_batch(paths: list[list[int]], starts: list[int]) -> Batch:
    tables = SlotTables(len(paths), 64)
    for slot, path in enumerate(paths):
        tables.pages[slot, : len(path)] = path
    num = len(paths)
    return Batch(
        step=1,
        slots=np.arange(num),
        starts=np.array(starts),
        counts=np.ones(num, np.int64),
        samples=np.ones(num, np.bool_),
        num_decodes=num,
        prefill_tokens=np.zeros(0, np.int64),
        tables=tables,
        context_tokens=0,
        attention=0.0,
        composition=1,
    )


def test_sharing_follows_the_tree_of_prefixes() -> None:
    root, left, right = list(range(20)), list(range(20, 40)), list(range(40, 60))
    paths = [root + left + [60], root + left + [61], root + right + [62], root + right + [63], [64]]
    batch = sharing_batch(paths, [650, 655, 650, 641, 3])
    sharing = find_sharing(batch, page_tokens=16)
    runs = sorted((run.rows.tolist(), run.pages.tolist()) for run in sharing.runs)
    assert runs == [([0, 1], left), ([0, 1, 2, 3], root), ([2, 3], right)]
    assert sharing.covered.tolist() == [40, 40, 40, 40, 0]


def test_a_short_common_start_joins_the_longer_runs_behind_it() -> None:
    paths = [[0, *range(1, 21), 90], [0, *range(1, 21), 91], [0, *range(30, 50), 92]]
    sharing = find_sharing(sharing_batch(paths, [340, 340, 340]), page_tokens=16)
    assert [(run.rows.tolist(), run.pages.tolist()) for run in sharing.runs] == [
        ([0, 1], list(range(21)))
    ]
    assert sharing.covered.tolist() == [21, 21, 0]


def test_unfinished_pages_are_not_shared() -> None:
    """The page being filled belongs to one request even where numbers look alike."""
    paths = [list(range(30)), list(range(30))]
    sharing = find_sharing(sharing_batch(paths, [16 * 20 + 5, 16 * 25]), page_tokens=16)
    assert [len(run.pages) for run in sharing.runs] == [20]


def test_sharing_is_found_again_only_for_a_new_composition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []

    def noted(batch: Batch, *, page_tokens: int) -> Sharing:
        found.append(batch.composition)
        return find_sharing(batch, page_tokens=page_tokens)

    monkeypatch.setattr("preble_worker.attention.find_sharing", noted)
    pool = KVPool([KVShape(1, 8, 8)], num_pages=64, page_tokens=16, dtype=torch.float32, device=CPU)
    attention = TorchAttention(pool, dtype=torch.float32, device=CPU)
    query = torch.ones(2, 1, 8)
    first, other = (sharing_batch([list(range(30))] * 2, [470, 470]) for _ in range(2))
    for batch in (first, first, replace(first, composition=2), replace(other, composition=2)):
        step = attention.begin(batch, torch.tensor([470, 471]))
        step.attend(0, query, query, query, scale=1.0)
    assert found == [1, 2, 2]


def test_bytes_per_token_counts_every_layer() -> None:
    shapes = [KVShape(2, 8, 8), KVShape(1, 8, 4)]
    assert bytes_per_token(shapes, torch.bfloat16) == 2 * (2 * 16 + 12)
