"""What is noted of one HTTP request on its way through, for its log line and the metrics."""

import time
from dataclasses import dataclass, field

from preble.types import Usage

RECORD_KEY = "preble.record"
"""Where the record lies in an ASGI scope."""


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """Times are of `time.perf_counter`.

    Attributes:
        request_id: the client's `X-Request-Id`, else a random one; the answer's header repeats it.
        route: the path as it is served, with placeholders; "unmatched" for others.
        status: of the response, 0 before it starts; of a stream that broke off the status that its
            error would have had.
        usage, worker_ids, streamed: of a request that generates.
    """

    request_id: str
    method: str
    path: str
    route: str
    started_at: float = field(default_factory=time.perf_counter)
    status: int = 0
    streamed: bool = False
    usage: Usage | None = None
    worker_ids: tuple[str, ...] = ()
    first_token_at: float | None = None
    user: str = ""
    error: str = ""

    def line(self, *, now: float) -> str:
        """The log line. What the client chose is escaped, so that it cannot forge lines."""
        path = ascii(self.path)[1:-1]
        words = [f"{self.method} {path} {self.status} id={self.request_id}"]
        if self.streamed:
            words.append("stream")
        if self.usage is not None:
            words.append(
                f"prompt={self.usage.prompt_tokens} "
                f"cached={self.usage.cached_tokens}/{self.usage.predicted_cached_tokens} "
                f"output={self.usage.completion_tokens}"
            )
        if self.first_token_at is not None:
            words.append(f"ttft={_ms(self.first_token_at - self.started_at)}")
        words.append(f"total={_ms(now - self.started_at)}")
        if self.worker_ids:
            words.append("worker=" + ",".join(self.worker_ids))
        if self.user:
            words.append(f"user={self.user!a}")
        if self.error:
            words.append(f"error={self.error!a}")
        return " ".join(words)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}ms"
