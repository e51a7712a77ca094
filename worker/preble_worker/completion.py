"""What a computed batch means for its requests: tokens to hand out, pages to share, ends."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from preble.page_keys import TOKEN_BYTES
from preble.types import Logprobs
from preble_worker.decodes import DecodeRows
from preble_worker.logprobs import NO_LOGPROBS
from preble_worker.outbox import Outbox
from preble_worker.outputs import TokenColumns
from preble_worker.prefills import Prefills
from preble_worker.running import Running
from preble_worker.sequence import Sequence, Stage
from preble_worker.slots import Slots


class Completion:
    """Takes in what the engine drew.

    Attributes:
        stopping: requests that were ended while the batch under way computes them.
    """

    def __init__(self, running: Running, slots: Slots, outbox: Outbox) -> None:
        self.stopping: list[Sequence] = []
        self._running = running
        self._decodes: DecodeRows = running.decodes
        self._prefills: Prefills = running.prefills
        self._slots = slots
        self._outbox = outbox

    def take_decodes(
        self, tokens: npt.NDArray[np.int64], logprobs: Mapping[int, Logprobs], now: float
    ) -> TokenColumns:
        """One token per decode; those of the decodes that go on are returned."""
        sequences, num_decodes = self._decodes.sequences, len(tokens)
        of_decodes = NO_LOGPROBS
        if logprobs:
            of_decodes = {row: one for row, one in logprobs.items() if row < num_decodes}
        columns, ended = self._decodes.advance(tokens, of_decodes)
        if self.stopping:
            stopped = [sequences.index(s) for s in self.stopping if s.stage is Stage.DECODE]
            ended = sorted({*ended, *stopped})
        if not ended:
            return columns
        leaving = [sequences[row] for row in ended]
        self._decodes.remove(leaving)
        for row, sequence in zip(ended, leaving, strict=True):
            self._slots.release(sequence, share=True, now=now)
            position = int(columns.positions[row])
            self._outbox.settle_last(sequence, int(tokens[row]), position, logprobs.get(row))
        return columns.without(ended)

    def take_prefills(
        self,
        tokens: npt.NDArray[np.int64],
        logprobs: Mapping[int, Logprobs],
        now: float,
        *,
        num_decodes: int,
    ) -> None:
        """One token per chunk that was the last of its prompt; their rows follow the decodes'."""
        drawn = enumerate(tokens.tolist(), start=num_decodes)
        for sequence in self._prefills.chunks:
            self._prefills.advance(sequence)
            row, token = next(drawn) if sequence.num_missing == 0 else (None, 0)
            if sequence.end is not None:
                self._running.leave(sequence, now=now)
                self._slots.release(sequence, share=True, now=now)
                self._outbox.settle(sequence, sequence.end)
                continue
            self._slots.share(sequence, now=now)
            if row is None:
                self._prefills.announce(sequence)
            else:
                self._prefills.remove(sequence)
                self._take_first_token(sequence, token, logprobs.get(row), now)
        self._prefills.chunks.clear()

    def _take_first_token(
        self, sequence: Sequence, token: int, logprobs: Logprobs | None, now: float
    ) -> None:
        """The first one since it started, to be exact: it may have been preempted before."""
        position = sequence.num_output
        sequence.has_output = True
        if sequence.reason_to_end(token, position + 1) is not None:
            self._slots.release(sequence, share=True, now=now)
            self._outbox.settle_last(sequence, token, position, logprobs)
            return
        tokens = token.to_bytes(TOKEN_BYTES, "little")
        self._outbox.others.append(sequence.output(tokens, logprobs))
        self._decodes.add(sequence, token)
