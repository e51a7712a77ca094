"""The requests that have a slot: those that decode, that compute their prompt, that come back."""

from collections.abc import Iterator
from itertools import chain

from preble_worker.decodes import DecodeRows
from preble_worker.host_tier import HostTier
from preble_worker.prefills import Prefills
from preble_worker.sequence import Sequence, Stage
from preble_worker.totals import Totals


class Running:
    """Each is in one of three places, and `leave` takes it out of whichever.

    Attributes:
        host: None without that tier.
    """

    def __init__(
        self, decodes: DecodeRows, prefills: Prefills, host: HostTier | None, totals: Totals
    ) -> None:
        self.decodes = decodes
        self.prefills = prefills
        self.host = host
        self._totals = totals

    def __len__(self) -> int:
        num_running = len(self.prefills.sequences) + len(self.decodes.sequences)
        return num_running + len(self.host.loading) if self.host else num_running

    def __iter__(self) -> Iterator[Sequence]:
        return chain(self.decodes.sequences, self.prefills.sequences, self.loading)

    @property
    def loading(self) -> list[Sequence]:
        """Those whose pages are on their way from the host."""
        return self.host.loading if self.host else []

    @property
    def is_copying(self) -> bool:
        """Whether pages are on their way from the host, be it for requests that wait."""
        return self.host is not None and (self.host.is_copying or bool(self.loading))

    def give_back(self, *, besides: Sequence | None = None, now: float) -> bool:
        """Free the pages of all that wait but `besides`; False if there are none."""
        return self.host is not None and self.host.give_back(besides=besides, now=now)

    def should_follow(self, sequence: Sequence, *, step: int) -> bool:
        """Whether `sequence`, still waiting, had better leave its next page to one that runs."""
        if self.prefills.should_follow(sequence, step=step):
            return True
        return self.host is not None and self.host.should_follow(sequence)

    def enter(self, sequence: Sequence, *, now: float) -> None:
        """`sequence` has a slot: bring in what the host has of it, and compute the rest."""
        if self.host and self.host.begin_load(sequence, now=now):
            sequence.stage = Stage.LOADING
        else:
            self.prefill(sequence)

    def prefill(self, sequence: Sequence) -> None:
        """`sequence` has all pages that can be had without computing."""
        self._totals.count_start(sequence)
        sequence.stage = Stage.PREFILL
        self.prefills.add(sequence)

    def leave(self, sequence: Sequence, *, now: float) -> None:
        """Its own numbers are up to date afterwards."""
        if sequence.stage is Stage.PREFILL:
            self.prefills.remove(sequence)
        elif sequence.stage is Stage.DECODE:
            self.decodes.remove([sequence])
        elif self.host:
            self.host.abandon(sequence, now=now)

    def preempt(self, sequence: Sequence, *, now: float) -> None:
        """`leave`, to come back: the host may keep what it computed."""
        self.leave(sequence, now=now)
        if self.host:
            self.host.save(sequence, now=now)

    def wait_no_more(self, sequence: Sequence, *, now: float) -> None:
        """`sequence`, that waits, is not to run."""
        if self.host:
            self.host.release(sequence, now=now)

    def end_loads(self, *, now: float) -> None:
        """Go on with those whose pages have come."""
        if self.host:
            for sequence in self.host.end_loads(now=now):
                self.prefill(sequence)

    def hurry(self, budget: int, *, now: float) -> None:
        """If there is nothing to compute beside the copies, let the first be there for the step."""
        if self.host is None or len(self.decodes) or self.prefills.chunks:
            return
        sequence = self.host.rush(now=now)
        if sequence is not None:
            self.prefill(sequence)
            self.prefills.take(sequence, budget)

    def check(self) -> None:
        self.decodes.check()
        self.prefills.check()
        if self.host:
            self.host.check()
        assert all(sequence.stage is Stage.LOADING for sequence in self.loading)
