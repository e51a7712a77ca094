"""Figures of the shared core: page keys, and the prefix tree at a million pages."""

import gc
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Self

import numpy as np

from preble.page_keys import KEY_BYTES, pack_tokens, page_keys
from preble.prefix_tree import PrefixTree

PROMPT_TOKENS = 8_192
PROMPT_PAGES = PROMPT_TOKENS // 16


class Empty:
    """The lightest payload there is."""

    __slots__ = ()

    def split(self, num_pages: int) -> Self:
        return self


def median_us(run: Callable[[], object], blocks: int = 20, rounds: int = 30) -> float:
    """The median of the quietest block: on a shared machine the others measure the neighbours."""
    medians = []
    for _ in range(blocks):
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        medians.append(statistics.median(times))
    return min(medians) * 1e6


def path(rng: random.Random, pages: int) -> bytes:
    return rng.randbytes(pages * KEY_BYTES)


def grow(pages: int, rng: random.Random) -> tuple[PrefixTree[Empty], list[bytes]]:
    """Families as real prompts have them: 128 shared pages, then 384 of one's own."""
    empty = Empty()
    tree: PrefixTree[Empty] = PrefixTree(KEY_BYTES, lambda _: empty)
    prompts: list[bytes] = []
    while tree.num_pages < pages:
        shared = path(rng, PROMPT_PAGES // 4)
        for _ in range(20):
            prompts.append(shared + path(rng, PROMPT_PAGES - PROMPT_PAGES // 4))
            tree.insert(prompts[-1])
    return tree, prompts


def insert_and_evict(tree: PrefixTree[Empty], prompt: bytes) -> None:
    tree.remove(tree.insert(prompt)[-1])


def main() -> None:
    rng = random.Random(7)
    tokens = pack_tokens(np.random.default_rng(7).integers(0, 128_000, PROMPT_TOKENS))
    print(f"{'core':<58}{'median':>12}{'target':>12}")

    def row(name: str, value: str, target: str = "") -> None:
        print(f"{name:<58}{value:>12}{target:>12}")

    row("page keys of 8,192 tokens", f"{median_us(lambda: page_keys(tokens)):.1f} µs", "100 µs")
    for pages in (10_000, 100_000, 1_000_000):
        gc.collect()
        tracemalloc.start()
        tree, prompts = grow(pages, rng)
        prompt = rng.choice(prompts)
        prompts_bytes = sum(map(len, prompts))
        size = tracemalloc.get_traced_memory()[0] - prompts_bytes
        tracemalloc.stop()
        new = prompt[: 100 * KEY_BYTES] + path(rng, 412)
        name = f"in a tree of {pages:,} pages"
        target = "20 µs" if pages == 1_000_000 else ""
        hit = median_us(lambda t=tree, p=prompt: t.match(p))  # type: ignore[misc]
        row(f"match 512 pages {name}", f"{hit:.1f} µs", target)
        partial = median_us(lambda t=tree, p=new: t.match(p))  # type: ignore[misc]
        row(f"match 100 of 512 pages {name}", f"{partial:.1f} µs", target)
        change = median_us(lambda t=tree, p=new: insert_and_evict(t, p))  # type: ignore[misc]
        row(f"insert and evict 412 pages {name}", f"{change:.1f} µs")
        row(f"memory {name}", f"{size / tree.num_pages:.1f} B/page")


if __name__ == "__main__":
    main()
