"""What a cell tells of scheduling within a worker, beyond the figures of every cell. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from preble.cost import CostModel
from preble_loadgen.report import RequestRecord, summarize
from preble_loadgen.simulator import SimulationResult

STARVED_STRETCH = 10.0
STARVED_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFigures:
    """Times in seconds; of the requests after the warm-up, but for the sums over the whole run.

    Attributes:
        normalised_latency: mean of end to end / output tokens.
        alone_latency: the same for requests that are all alone on the worker, by its cost model.
        starved_share: of the requests: longer than alone by more than `STARVED_SECONDS` and by more
            than `STARVED_STRETCH` times what they take alone.
        longest_wait: for a first token or between two.
        swap_bytes: both ways, whole run.
        preemptions, swaps, hidden_starts, int8_starts: whole run; swaps are among the preemptions.
        mean_output, length_error: output tokens, and mean |predicted - actual|; None unpredicted.
        length_rank: rank correlation of the two; None where all predictions are the same.
    """

    normalised_latency: float
    alone_latency: float
    starved_share: float
    longest_wait: float
    swap_bytes: int
    preemptions: int
    swaps: int
    hidden_starts: int
    mean_output: float
    length_error: float | None
    length_rank: float | None
    int8_starts: int = 0


def worker_figures(
    counted: Sequence[RequestRecord], result: SimulationResult, cost: CostModel
) -> WorkerFigures:
    """The figures of a finished simulation.

    Args:
        counted: those of its requests that count.
    """
    complete = [record for record in counted if not record.error and record.output_tokens]
    alone = [alone_seconds(record, cost) for record in complete]
    lengths = summarize(complete).lengths
    workers = result.workers
    return WorkerFigures(
        normalised_latency=_mean([_seconds(r) / r.output_tokens for r in complete]),
        alone_latency=_mean(
            [own / r.output_tokens for r, own in zip(complete, alone, strict=True)]
        ),
        starved_share=_mean(
            [is_starved(_seconds(r), own) for r, own in zip(complete, alone, strict=True)]
        ),
        longest_wait=max(map(longest_wait, complete), default=0.0),
        swap_bytes=sum(w.offloaded_bytes + w.uploaded_bytes for w in workers),
        preemptions=sum(w.preemptions for w in workers),
        swaps=sum(w.swaps for w in workers),
        hidden_starts=sum(w.hidden_starts for w in workers),
        mean_output=_mean([record.output_tokens for record in complete]),
        length_error=lengths.mean_absolute_error,
        length_rank=lengths.rank_correlation,
        int8_starts=sum(w.int8_starts for w in workers),
    )


def alone_seconds(record: RequestRecord, cost: CostModel) -> float:
    """What a request takes on an idle worker with the same part of its prompt cached."""
    new = record.prompt_tokens - record.cached_tokens
    context = record.prompt_tokens + record.output_tokens / 2.0
    prefill = cost.step_seconds(
        prefill_tokens=new,
        attention=new * (record.cached_tokens + new / 2.0),
        decodes=0.0,
        context_tokens=0.0,
    )
    return prefill + (record.output_tokens - 1) * cost.decode_seconds(context)


def is_starved(seconds: float, alone: float) -> bool:
    """Whether a request that took `seconds`, and alone would have taken `alone`, starved."""
    waited = seconds - alone
    return waited > STARVED_SECONDS and waited > STARVED_STRETCH * alone


def longest_wait(record: RequestRecord) -> float:
    """For its first token, or between two."""
    first = 0.0 if record.first_at is None else record.first_at - record.sent_at
    return max(first, max(record.gaps, default=0.0))


def _seconds(record: RequestRecord) -> float:
    return record.ended_at - record.sent_at


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
