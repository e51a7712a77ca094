"""Lengths made to fit a smaller model. Pure.

Every length is divided by one factor. A segment's new length depends on its old length alone, so
equal segments stay equal and a shared prefix stays shared. In a trace of blocks the factor is
chosen such that a block becomes a whole number of cache pages, where that is possible: otherwise
part of every shared block would fall into a page that is not shared.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from preble.errors import ConfigError
from preble.page_keys import DEFAULT_PAGE_TOKENS, num_tokens
from preble_loadgen.prompts import every_nth
from preble_loadgen.trace_request import Segment, TraceRequest


def prompt_tokens(request: TraceRequest) -> int:
    """Length of the prompt."""
    return num_tokens(request.token_ids) or sum(segment.length for segment in request.segments)


def scaled(request: TraceRequest, factor: float) -> TraceRequest:
    """`request` with all lengths divided by `factor`, none below one token."""
    if factor == 1.0:
        return request
    return replace(
        request,
        segments=tuple(Segment(s.id, _scaled(s.length, factor)) for s in request.segments),
        token_ids=every_nth(request.token_ids, factor) if request.token_ids else b"",
        output_tokens=_scaled(request.output_tokens, factor),
    )


def _scaled(length: int, factor: float) -> int:
    # The small addition keeps 512 / (512 / 48) at 48.
    return max(1, int(length / factor + 1e-9))


def fits(request: TraceRequest, context_tokens: int) -> bool:
    """Whether prompt and output fit the model together."""
    return prompt_tokens(request) + request.output_tokens <= context_tokens


def fitting_factor(
    requests: Sequence[TraceRequest], context_tokens: int, *, block_tokens: int = 0
) -> float:
    """The smallest factor, at least 1, with which every one of `requests` fits.

    Args:
        block_tokens: of a trace made of blocks; 0 for any other.

    Raises:
        ConfigError: no factor makes them fit.
    """
    candidates = (
        _block_factors(block_tokens) if block_tokens else _any_factors(requests, context_tokens)
    )
    for factor in candidates:
        if all(fits(scaled(request, factor), context_tokens) for request in requests):
            return factor
    raise ConfigError(f"no scale makes the trace's requests fit {context_tokens} tokens")


def _block_factors(block_tokens: int) -> Iterator[float]:
    """Factors that make a block a whole number of pages, then of tokens; smallest first."""
    page = DEFAULT_PAGE_TOKENS
    yield 1.0
    yield from (block_tokens / b for b in range((block_tokens - 1) // page * page, 0, -page))
    yield from (block_tokens / b for b in range(min(page, block_tokens) - 1, 0, -1))


def _any_factors(requests: Iterable[TraceRequest], context_tokens: int) -> Iterator[float]:
    """Factors from what the longest request needs upwards, in steps of 1 %."""
    longest = max((prompt_tokens(r) + r.output_tokens for r in requests), default=0)
    factor = max(1.0, longest / context_tokens)
    while factor <= max(1.0, longest):
        yield factor
        factor *= 1.01
