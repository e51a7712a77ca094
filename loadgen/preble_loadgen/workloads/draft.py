"""A request of a workload before its place in the trace is known. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from preble_loadgen.trace_request import PRIVATE_ID, Segment, TraceRequest

FIRST_LINE = 2
"""Where requests begin in a file of our own format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A request; the fields mean what those of `TraceRequest` do."""

    at: float
    segments: tuple[Segment, ...]
    output_tokens: int
    session: str = ""
    turn: int = 0
    think_seconds: float | None = None


def in_order(drafts: Sequence[Draft], limit: int | None = None) -> tuple[TraceRequest, ...]:
    """The first `limit` of them as a trace has them: by arrival, the first at second 0."""
    ordered = sorted(drafts, key=lambda draft: draft.at)[:limit]
    began_at = ordered[0].at if ordered else 0.0
    return tuple(_request(draft, index, began_at) for index, draft in enumerate(ordered))


def _request(draft: Draft, index: int, began_at: float) -> TraceRequest:
    line = index + FIRST_LINE
    think = draft.think_seconds
    return TraceRequest(
        index=index,
        line=line,
        at=round(float(draft.at - began_at), 6),
        segments=tuple(
            Segment(PRIVATE_ID + line, segment.length) if segment.id == PRIVATE_ID else segment
            for segment in draft.segments
        ),
        output_tokens=draft.output_tokens,
        session=draft.session,
        turn=draft.turn,
        think_seconds=None if think is None else round(float(think), 6),
    )
