"""One request of a trace, whatever file it came from."""

from dataclasses import dataclass

PRIVATE_ID = 1 << 31
"""Node ids from here on are private to one request: `PRIVATE_ID + index`. Files use lower ones."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A node of the prompts' prefix tree, or its beginning.

    Attributes:
        id: equal ids have equal tokens at equal positions, in one trace.
        length: tokens of it that the prompt contains.
    """

    id: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """A prompt, and when it came.

    Attributes:
        index: counts the trace's requests from 0; a skipped bad line counts none.
        line: where it stands in the file, from 1.
        at: arrival in seconds since the trace began. Where `think_seconds` says otherwise, an
            estimate of it: what orders the trace, and what an open-loop replay goes by.
        segments: the prompt as a path of the prefix tree; empty when `token_ids` states it.
        token_ids: the prompt's packed tokens; empty when `segments` states it.
        output_tokens: length of the answer, at least 1.
        session: requests of one conversation have the same; "" for none.
        turn: its place in the session, from 0.
        think_seconds: closed loop: it arrives so long after the answer to the session's turn
            before, which stands above it in the trace. None: open loop, it arrives at `at`.
        namespace: tenant whose prefixes it may share; "" is the default.
        tenant: who is charged for it, in simulations; "" for the namespace. A live router tells
            tenants by their API keys.
        ttft_slo_seconds, tbt_slo_seconds: its objectives, None for the workers' defaults.
    """

    index: int
    line: int
    at: float
    segments: tuple[Segment, ...] = ()
    token_ids: bytes = b""
    output_tokens: int
    session: str = ""
    turn: int = 0
    think_seconds: float | None = None
    namespace: str = ""
    tenant: str = ""
    ttft_slo_seconds: float | None = None
    tbt_slo_seconds: float | None = None
