"""How much of what was asked for in a stretch of time was answered, in time. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from preble.errors import DeadlineExceeded, Overloaded
from preble_loadgen.report import RequestRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """Of the requests sent in a stretch of time.

    Attributes:
        num_sent, num_good: all of them; and the complete answers that came in time.
        num_refused, num_late: turned away at the door; and broken off or answered too late.
        good_tokens, wasted_tokens: output of the good ones; and of those that came to nothing.
        seconds: length of the stretch.
    """

    num_sent: int
    num_good: int
    num_refused: int
    num_late: int
    good_tokens: int
    wasted_tokens: int
    seconds: float

    @property
    def good_share(self) -> float:
        """Of the requests sent; 1 where there were none."""
        return self.num_good / self.num_sent if self.num_sent else 1.0

    @property
    def requests_per_second(self) -> float:
        """Good ones."""
        return self.num_good / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """Output of good ones."""
        return self.good_tokens / self.seconds


def goodput_of(
    records: Sequence[RequestRecord],
    *,
    timeout_seconds: float = inf,
    begin: float = -inf,
    end: float = inf,
) -> Goodput:
    """Of those due from `begin` on and before `end`: by default, from the first to the last."""
    sent = [record for record in records if begin <= record.scheduled_at < end]
    first = begin if begin > -inf else min((r.scheduled_at for r in sent), default=0.0)
    last = end if end < inf else max((r.scheduled_at for r in sent), default=0.0)
    good: list[RequestRecord] = []
    bad: list[RequestRecord] = []
    for record in sent:
        is_good = not record.error and record.ended_at - record.sent_at <= timeout_seconds
        (good if is_good else bad).append(record)
    late = [r for r in bad if not r.error or r.error == DeadlineExceeded.code]
    return Goodput(
        num_sent=len(sent),
        num_good=len(good),
        num_refused=sum(record.error == Overloaded.code for record in bad),
        num_late=len(late),
        good_tokens=sum(record.output_tokens for record in good),
        wasted_tokens=sum(record.output_tokens for record in bad),
        seconds=max(last - first, 1e-9),
    )
