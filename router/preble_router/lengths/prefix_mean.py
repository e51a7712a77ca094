"""`prefix_mean`: prompts that begin alike, as those of one application do, are answered alike.

A mean is kept for every prefix of 1, 2, 4, 8, ... pages, so a prompt has log2 of its pages of them,
and none has to be split as the nodes of a tree are. A long prefix is the better witness and has
seen less, so each mean is drawn towards that of the prefix half as long, as if it had seen
`PRIOR_REQUESTS` requests of that mean length:

    m(prefix) = (sum of lengths + PRIOR_REQUESTS · m(half)) / (requests + PRIOR_REQUESTS)
"""

from collections import OrderedDict
from collections.abc import Iterator

import xxhash

from preble.page_keys import KEY_BYTES
from preble_router.lengths.predictor import Prompt

PRIOR_REQUESTS = 4.0
MEMORY = 100.0
"""Requests after which an old length of the same prefix weighs 1/e."""
MAX_PREFIXES = 65_536
"""Those used longest ago leave; about 15 MB."""


class PrefixMean:
    """Means per tenant and prefix, at most `max_prefixes` of them."""

    def __init__(self, *, max_prefixes: int = MAX_PREFIXES) -> None:
        self._max_prefixes = max_prefixes
        self._means: OrderedDict[int, tuple[float, float]] = OrderedDict()  # (requests, mean)

    def __len__(self) -> int:
        return len(self._means)

    def predict(self, prompt: Prompt) -> float | None:
        """From the tenant's mean to that of the longest known prefix."""
        means = self._means
        estimate: float | None = None
        for key in _prefixes(prompt):
            known = means.get(key)
            if known is None:
                break  # Nor is any longer one.
            num, mean = known
            if estimate is not None:
                mean = (num * mean + PRIOR_REQUESTS * estimate) / (num + PRIOR_REQUESTS)
            estimate = mean
        return estimate

    def learn(self, prompt: Prompt, output_tokens: int) -> None:
        """Every prefix of the prompt has one more."""
        means = self._means
        # The shortest last: it is then never forgotten before those that continue it.
        for key in reversed(list(_prefixes(prompt))):
            num, mean = means.get(key, (0.0, 0.0))
            num = min(num + 1.0, MEMORY)
            means[key] = (num, mean + (output_tokens - mean) / num)
            means.move_to_end(key)
        while len(means) > self._max_prefixes:
            means.popitem(last=False)


def _prefixes(prompt: Prompt) -> Iterator[int]:
    """Keys of the empty prefix and of those of 1, 2, 4, ... pages, shortest first."""
    running = xxhash.xxh3_64(prompt.tenant.encode())
    yield running.intdigest()
    begin, end = 0, KEY_BYTES
    while end <= len(prompt.page_keys):
        running.update(prompt.page_keys[begin:end])
        yield running.intdigest()
        begin, end = end, 2 * end
