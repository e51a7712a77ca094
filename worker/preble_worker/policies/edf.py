"""Earliest deadline of the first token first."""

from collections.abc import Iterator, Sequence

from preble_worker.policies.outlook import Outlook
from preble_worker.policies.policy import WIDE_WINDOW, C, Candidate, PolicyOptions

DEMOTED_SHARE = 0.05
"""Least share of the started tokens for requests whose deadline cannot be met any more."""


class Edf:
    """Earliest first; those whose deadline is lost come after all others, oldest first.

    A request that has its first token, and was preempted, goes before all.

    Bound: the lost ones get at least 5 % of the tokens that are started while any of them wait.

    Attributes:
        debt: tokens that the demoted have coming; their turn is when it covers the first of them.
    """

    window = WIDE_WINDOW
    bounds_waits = True

    def __init__(self, options: PolicyOptions) -> None:
        self.debt = 0.0
        self._outlook = Outlook(options)
        self._ttft_slo_seconds = options.ttft_slo_seconds
        self._demoted_wait = False

    def order(self, candidates: Sequence[C], *, now: float) -> Iterator[C]:
        hopeful: list[tuple[float, float, C]] = []
        demoted: list[C] = []
        for candidate in candidates:
            candidate.standing = self.is_lost(candidate, now=now)
            if candidate.standing:
                demoted.append(candidate)
            else:
                at = 0.0 if candidate.num_generated else self.deadline(candidate)
                hopeful.append((at, candidate.arrived_at, candidate))
        hopeful.sort(key=lambda entry: entry[:2])
        self._demoted_wait = bool(demoted)
        return _interleaved([entry[2] for entry in hopeful], demoted, self.debt)

    def started(self, candidate: Candidate) -> None:
        """`standing` is whether it was demoted."""
        if self._demoted_wait:
            self.debt += _share(candidate, is_demoted=bool(candidate.standing))
        else:
            self.debt = 0.0

    def ended(self, candidate: Candidate, *, finished: bool) -> None:
        pass

    def deadline(self, candidate: Candidate) -> float:
        """When its first token is due, in seconds."""
        slo = candidate.ttft_slo_seconds
        return candidate.arrived_at + (self._ttft_slo_seconds if slo is None else slo)

    def is_lost(self, candidate: Candidate, *, now: float) -> bool:
        """Whether its first token would be late even if it started now."""
        if candidate.num_generated:
            return False
        return now + self._outlook.prefill_seconds(candidate) > self.deadline(candidate)


def _interleaved(hopeful: list[C], demoted: list[C], debt: float) -> Iterator[C]:
    """`hopeful` before `demoted`, but for the share that the latter have coming."""
    num_demoted = 0
    for candidate in hopeful:
        while num_demoted < len(demoted):
            after = debt + _share(demoted[num_demoted], is_demoted=True)
            if after < 0.0:
                break
            debt = after
            yield demoted[num_demoted]
            num_demoted += 1
        debt += _share(candidate, is_demoted=False)
        yield candidate
    yield from demoted[num_demoted:]


def _share(candidate: Candidate, *, is_demoted: bool) -> float:
    """What the demoted have coming more when `candidate` starts: their share of its tokens, less
    its tokens if it is one of them.
    """
    tokens = float(max(1, candidate.num_missing))
    return DEMOTED_SHARE * tokens - (tokens if is_demoted else 0.0)
