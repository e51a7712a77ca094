"""Which steps to measure: a grid as wide as the scheduler's options allow. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from preble_worker.config import SchedulerConfig
from preble_worker.kv_form import KvForm

CHUNKS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
CACHED = (0, 256, 1024, 2048, 4096, 7168)
PROMPTS = (2, 4, 8)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (32, 128, 512, 1024, 2048, 4096)
COMPACT_BATCHES = (1, 4, 16)

KV_SHARE = 0.8
"""Of the KV cache that a step may fill, so that no request is preempted while it is prepared."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """One step.

    Attributes:
        prefills: new and cached tokens of each prompt.
        decodes: context of each decoding request.
        form: of those contexts.
    """

    prefills: tuple[tuple[int, int], ...] = ()
    decodes: tuple[int, ...] = ()
    form: KvForm = KvForm.FULL

    @property
    def kind(self) -> str:
        if not self.prefills:
            return "decode" if self.form is KvForm.FULL else self.form.name.lower()
        return "mixed" if self.decodes else "prefill"

    @property
    def kv_tokens(self) -> int:
        """What its requests hold, preparation included."""
        return sum(new + 2 * cached for new, cached in self.prefills) + sum(self.decodes)


def plan_steps(config: SchedulerConfig, *, quick: bool = False) -> list[StepShape]:
    """The grid, each step once. `quick` leaves out two of three points."""
    shapes = [*_prefills(config), *_decodes(config), *_mixtures(config)]
    fitting = [shape for shape in dict.fromkeys(shapes) if _fits(shape, config)]
    return fitting[::3] if quick else fitting


def plan_compact_steps(config: SchedulerConfig, form: KvForm) -> list[StepShape]:
    """Decodes in a compact form; none where the engine does not have it."""
    if form not in config.tiers.page_tokens_of:
        return []
    shapes = [
        StepShape(decodes=_spread(num, context), form=form)
        for num, context in product(COMPACT_BATCHES, CONTEXTS)
    ]
    return [shape for shape in shapes if _fits(shape, config)]


def _prefills(config: SchedulerConfig) -> Iterator[StepShape]:
    for new, cached in product(CHUNKS, CACHED):
        yield StepShape(prefills=((new, _whole_pages(cached, config)),))
    for num, cached in product(PROMPTS, (0, 512)):
        for new in (32, config.max_batch_tokens // num):
            yield StepShape(prefills=((new, _whole_pages(cached, config)),) * num)
        mean = min(32, config.max_batch_tokens // (2 * num))
        prompts = tuple((new, _whole_pages(cached, config)) for new in _spread(num, mean))
        yield StepShape(prefills=prompts)


def _decodes(config: SchedulerConfig) -> Iterator[StepShape]:
    for num, context in product(BATCHES, CONTEXTS):
        yield StepShape(decodes=_spread(num, context))


def _mixtures(config: SchedulerConfig) -> Iterator[StepShape]:
    for num, context, cached in product((2, 8, 32), (128, 1024), (0, 1024)):
        for new in (32, 128, config.max_batch_tokens - num):
            prompt = new, _whole_pages(cached, config)
            yield StepShape(prefills=(prompt,), decodes=_spread(num, context))


def _spread(num: int, mean: int) -> tuple[int, ...]:
    """Lengths from half to one and a half times the mean: requests are never all of one length."""
    if num == 1:
        return (mean,)
    return tuple(mean // 2 + mean * i // (num - 1) for i in range(num))


def _whole_pages(num_tokens: int, config: SchedulerConfig) -> int:
    """Only whole pages can be cached."""
    return num_tokens // config.page_tokens * config.page_tokens


def _fits(shape: StepShape, config: SchedulerConfig) -> bool:
    longest = max(*(new + cached for new, cached in shape.prefills), *shape.decodes, 0, 0)
    tokens = sum(new for new, _ in shape.prefills) + len(shape.decodes)
    return (
        tokens <= config.max_batch_tokens
        and len(shape.prefills) + len(shape.decodes) <= config.max_sequences
        and longest <= KV_SHARE * config.context_tokens
        and shape.kv_tokens <= KV_SHARE * config.num_pages * config.page_tokens
    )
