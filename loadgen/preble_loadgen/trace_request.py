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
        at: arrival in seconds since the trace began.
        segments: the prompt as a path of the prefix tree; empty when `token_ids` states it.
        token_ids: the prompt's packed tokens; empty when `segments` states it.
        output_tokens: length of the answer, at least 1.
        session: requests of one conversation have the same; "" for none.
        namespace: tenant whose prefixes it may share; "" is the default.
    """

    index: int
    line: int
    at: float
    segments: tuple[Segment, ...] = ()
    token_ids: bytes = b""
    output_tokens: int
    session: str = ""
    namespace: str = ""
