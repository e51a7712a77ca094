"""What to replay, against what, and how fast; checked, and applied to the trace."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preble.errors import ConfigError
from preble_loadgen.arrivals import at_rate, at_speed
from preble_loadgen.trace_request import TraceRequest
from preble_loadgen.traces import Trace, load_trace


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """What to replay, against what, and how fast.

    Attributes:
        trace: a file of one of the formats of traces.py.
        url: http(s)://host:port of an OpenAI-compatible server, or grpc(s)://host:port of ours.
        format: of the trace; None to tell by content.
        limit: replay the first so many requests.
        skip_bad_lines: leave out lines that cannot be used.
        scale_lengths: divide all lengths by this.
        max_context: instead, divide by what makes every request fit so many tokens.
        max_output_tokens: cap of the output lengths, after scaling.
        speed: of the trace's clock; 2 is twice as fast.
        rate: instead, requests/s on average.
        seed: of the answers, and of random arrivals. Another seed also means other prompts with the
            same sharing, so that a cluster that is warm from one run is cold for the next.
        timeout: seconds until an answer is given up.
        model: name to ask for; "" for the first one the cluster lists.
        vocab_size: token ids stay below it; None asks the cluster.
        api_key: bearer token, "" for none.
        ca: file with the certificates to trust for https and grpcs.
        out: file for the figures, as JSON.
        requests_out: file for what happened to each request, as JSON lines.
    """

    trace: Path
    url: str
    format: str | None = None
    limit: int | None = None
    skip_bad_lines: bool = False
    scale_lengths: float | None = None
    max_context: int | None = None
    max_output_tokens: int | None = None
    speed: float = 1.0
    rate: float | None = None
    seed: int = 0
    timeout: float = 600.0
    model: str = ""
    vocab_size: int | None = None
    api_key: str = ""
    ca: Path | None = None
    out: Path | None = None
    requests_out: Path | None = None


def selected_trace(options: ReplayOptions) -> Trace:
    """The requests to replay, lengths as they will be sent.

    Raises:
        ConfigError: the trace or an option cannot be used.
    """
    _check(options)
    trace = load_trace(
        options.trace,
        format=options.format,
        limit=options.limit,
        skip_bad_lines=options.skip_bad_lines,
    )
    if options.scale_lengths is not None:
        trace = trace.scaled(options.scale_lengths)
    capped = trace.capped(options.max_output_tokens) if options.max_output_tokens else trace
    return capped.fitted(options.max_context) if options.max_context else capped


def _check(options: ReplayOptions) -> None:
    """Values that the types allow and sense does not."""
    if options.rate is not None and options.speed != 1.0:
        raise ConfigError("--speed and --rate exclude each other")
    if options.scale_lengths is not None and options.max_context is not None:
        raise ConfigError("--scale-lengths and --max-context exclude each other")
    positive = {
        "--speed": options.speed,
        "--rate": options.rate,
        "--limit": options.limit,
        "--max-context": options.max_context,
        "--max-output-tokens": options.max_output_tokens,
        "--timeout": options.timeout,
    }
    for name, value in positive.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{name} must be more than 0, not {value}")
    if options.scale_lengths is not None and not options.scale_lengths >= 1:
        raise ConfigError(f"--scale-lengths must be at least 1, not {options.scale_lengths}")
    if options.seed < 0:
        raise ConfigError(f"--seed must be at least 0, not {options.seed}")
    if options.vocab_size is not None and options.vocab_size < 4:
        raise ConfigError(f"--vocab-size must be at least 4, not {options.vocab_size}")


def arrival_times(requests: Sequence[TraceRequest], options: ReplayOptions) -> list[float]:
    """When each request is due, in seconds since the first."""
    times = [request.at for request in requests]
    if options.rate is not None:
        return at_rate(times, options.rate, rng=random.Random(options.seed))
    return at_speed(times, options.speed)
