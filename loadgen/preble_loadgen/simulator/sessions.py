"""Who asks when: a trace's arrivals, open and closed loop."""

from collections.abc import Callable, Sequence

from preble_loadgen.closed_loop import next_turns
from preble_loadgen.simulator.agenda import Agenda
from preble_loadgen.trace_request import TraceRequest


class Arrivals:
    """Has each request asked when it is due: at its time, or some time after the answer to its
    session's turn before.

    Args:
        times: of each of `requests`, in seconds; those of the closed loop do not count.
        ask: is given each request when it is due.
    """

    def __init__(
        self,
        requests: Sequence[TraceRequest],
        times: Sequence[float],
        agenda: Agenda,
        ask: Callable[[TraceRequest], None],
    ) -> None:
        self._agenda = agenda
        self._ask = ask
        self._next_turns = next_turns(requests)
        waiting = {request.index for request in self._next_turns.values()}
        opening = [
            (at, request)
            for request, at in zip(requests, times, strict=True)
            if request.index not in waiting
        ]
        opening.sort(key=lambda arrival: arrival[0])
        self._opening = iter(opening)

    def begin(self) -> None:
        """Enter the first arrival into the agenda; each enters the next."""
        arrival = next(self._opening, None)
        if arrival is not None:
            self._agenda.at(arrival[0], self._arrive, arrival[1])

    def answered(self, index: int) -> None:
        """The request of that index has ended, however: its session goes on."""
        request = self._next_turns.pop(index, None)
        if request is not None:
            self._agenda.after(request.think_seconds or 0.0, self._ask, request)

    def _arrive(self, request: TraceRequest) -> None:
        self.begin()
        self._ask(request)
